//! [`BlockingLock`]: a blocking lock behind the async trait, as
//! [`BlockingBackend`](crate::backend::BlockingBackend) is for backends.

use std::future::ready;
use std::time::Duration;

use crate::backend::{Backend, BlockingBackend};
use crate::batch::Batch;
use crate::error::Error;
use crate::key::Key;
use crate::lock::{AsyncLock, Attempt, Lock, LockSettings, Watch};

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
