//! [`BlockingBackend`]: a blocking backend behind the async trait.
//!
//! The creation driver is written once, over [`AsyncBackend`] and [`AsyncLock`](crate::AsyncLock). For
//! a blocking caller it gets adapters, whose futures are ready when they are created.

use std::future::ready;
use std::time::Duration;

use bytes::Bytes;

use crate::backend::{AsyncBackend, Backend};
use crate::batch::{Batch, Found};
use crate::error::Error;
use crate::key::Key;

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
