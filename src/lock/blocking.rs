//! [`BlockingLock`] and [`BlockingBackend`]: blocking locks and backends behind the async traits.
//!
//! The creation driver is written once, over [`AsyncLock`] and [`AsyncBackend`]. For a blocking caller
//! it gets these adapters, whose futures are ready when they are created.

use std::future::ready;
use std::time::Duration;

use bytes::Bytes;

use crate::backend::{AsyncBackend, Backend};
use crate::batch::{Batch, Found};
use crate::error::Error;
use crate::key::Key;
use crate::lock::{AsyncLock, Attempt, Lock, LockSettings, Watch};

/// A blocking backend as an [`AsyncBackend`].
pub(crate) struct BlockingBackend<'b, B>(pub(crate) &'b B);

impl<B: Backend> AsyncBackend for BlockingBackend<'_, B> {
    fn get_async(&self, key: Key<'_>) -> impl Future<Output = Result<Option<Bytes>, Error>> + Send {
        ready(self.0.get(key))
    }

    fn get_many_async(&self, keys: &[Key<'_>], found: &mut Found) -> impl Future<Output = Result<(), Error>> + Send {
        ready(self.0.get_many(keys, found))
    }

    fn set_async(
        &self,
        key: Key<'_>,
        entry: &[u8],
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        ready(self.0.set(key, entry, ttl))
    }

    fn set_many_async(&self, batch: &Batch, ttl: Option<Duration>) -> impl Future<Output = Result<(), Error>> + Send {
        ready(self.0.set_many(batch, ttl))
    }

    fn max_entry(&self) -> usize {
        self.0.max_entry()
    }

    fn delete_many_async(&self, keys: &[Key<'_>]) -> impl Future<Output = Result<(), Error>> + Send {
        ready(self.0.delete_many(keys))
    }
}

/// A blocking lock as an [`AsyncLock`].
pub(crate) struct BlockingLock<'l, L>(pub(crate) &'l L);

impl<L: LockSettings> LockSettings for BlockingLock<'_, L> {
    const ONLY_THIS_REGION: bool = L::ONLY_THIS_REGION;

    fn reads_and_locks(&self) -> bool {
        self.0.reads_and_locks()
    }

    fn check(&self) -> Result<(), Error> {
        self.0.check()
    }
}

impl<B: Backend, L: Lock<B>> AsyncLock<BlockingBackend<'_, B>> for BlockingLock<'_, L> {
    type AsyncGuard = L::Guard;

    fn try_lock_async(
        &self,
        backend: &BlockingBackend<'_, B>,
        key: Key<'_>,
    ) -> impl Future<Output = Result<Option<L::Guard>, Error>> + Send {
        ready(self.0.try_lock(backend.0, key))
    }

    fn try_lock_and_read_async(
        &self,
        backend: &BlockingBackend<'_, B>,
        keys: &[Key<'_>],
    ) -> impl Future<Output = Result<Vec<Attempt<L::Guard>>, Error>> + Send {
        ready(self.0.try_lock_and_read(backend.0, keys))
    }

    fn read_or_lock_async(
        &self,
        backend: &BlockingBackend<'_, B>,
        key: Key<'_>,
    ) -> impl Future<Output = Result<Attempt<L::Guard>, Error>> + Send {
        ready(self.0.read_or_lock(backend.0, key))
    }

    fn store_and_release_async(
        &self,
        backend: &BlockingBackend<'_, B>,
        guards: Vec<L::Guard>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<usize, Error>> + Send {
        ready(self.0.store_and_release(backend.0, guards, batch, ttl))
    }

    fn release(&self, backend: &BlockingBackend<'_, B>, guards: Vec<L::Guard>) {
        self.0.release(backend.0, guards);
    }

    fn watch(&self, backend: &BlockingBackend<'_, B>, key: Key<'_>) -> Option<Watch> {
        self.0.watch(backend.0, key)
    }

    fn is_locked_async(
        &self,
        backend: &BlockingBackend<'_, B>,
        key: Key<'_>,
    ) -> impl Future<Output = Result<bool, Error>> + Send {
        ready(self.0.is_locked(backend.0, key))
    }
}
