//! Where entries live: [`Memory`], [`Redis`], [`Cluster`], a [`Driver`] over the `redis` crate, or a backend of your own.

pub(crate) mod leases;
#[cfg(feature = "memory")]
mod memory;

use std::time::Duration;

use bytes::Bytes;

pub use crate::batch::{Batch, Found, Parts};
use crate::error::Error;
use crate::key::Key;

pub(crate) use self::leases::Watch;
#[cfg(feature = "memory")]
pub use self::memory::Memory;

/// Where entries live. Entries are bytes; what they mean is the codec's business.
///
/// A wrapper that logs, counts or delays is a type that holds a backend and is one. Keys arrive as the region's
/// [`KeyMap`](crate::keymap::KeyMap) made them.
///
/// ```
/// use std::time::Duration;
/// use bytes::Bytes;
/// use dogpile::{Backend, Batch, Error, Found, Key, Memory, Region};
///
/// /// Writes down what is deleted.
/// struct Audited<B>(B);
///
/// impl<B: Backend> Backend for Audited<B> {
///     fn get(&self, key: Key<'_>) -> Result<Option<Bytes>, Error> {
///         self.0.get(key)
///     }
///     fn get_many(&self, keys: &[Key<'_>], found: &mut Found) -> Result<(), Error> {
///         self.0.get_many(keys, found)
///     }
///     fn set(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
///         self.0.set(key, entry, ttl)
///     }
///     fn set_many(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error> {
///         self.0.set_many(batch, ttl)
///     }
///     fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
///         println!("deleting {keys:?}");
///         self.0.delete_many(keys)
///     }
/// }
///
/// let region = Region::builder(Audited(Memory::new(1 << 20))).build()?;
/// region.delete("user-15")?;
/// # Ok::<(), dogpile::Error>(())
/// ```
pub trait Backend: Send + Sync {
    /// The entry of `key`, `None` where there is none. One round trip.
    ///
    /// # Errors
    /// When the backend cannot tell. [`ErrorKind::WrongType`](crate::error::ErrorKind::WrongType) counts as a miss.
    fn get(&self, key: Key<'_>) -> Result<Option<Bytes>, Error>;

    /// The entries of `keys`, in their order, duplicates kept: afterwards `found` has a place for each of `keys`. What
    /// it held before is dropped, its memory reused. One round trip, whatever the keys.
    ///
    /// # Errors
    /// When the backend cannot tell for all of them. `found` then means nothing.
    fn get_many(&self, keys: &[Key<'_>], found: &mut Found) -> Result<(), Error>;

    /// Stores an entry, for `ttl` if one is given (at least a millisecond), in place of whatever was there.
    ///
    /// # Errors
    /// When it may not have been stored.
    fn set(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error>;

    /// Stores many entries; of duplicates the last. One round trip.
    ///
    /// # Errors
    /// When some may not have been stored.
    fn set_many(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error>;

    /// The largest entry that can be stored, in bytes. Values that turn out larger are created and not stored.
    fn max_entry(&self) -> usize {
        usize::MAX
    }

    /// Deletes many entries; those that are not there do not matter. One round trip, none for no keys.
    ///
    /// # Errors
    /// When some may not have been deleted.
    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error>;
}

/// Where entries live, for callers that are tasks. As [`Backend`], whose promises hold here too; a type may be both.
/// There is no `dyn AsyncBackend`.
///
/// Futures may be dropped at any time: what was asked for may then have been done or not.
///
/// ```
/// use std::time::Duration;
/// use bytes::Bytes;
/// use dogpile::{AsyncBackend, Batch, Error, Found, Key, Memory, Region};
///
/// /// Gives up what takes too long.
/// struct Hurried<B>(B);
///
/// impl<B: AsyncBackend> AsyncBackend for Hurried<B> {
///     async fn get_async(&self, key: Key<'_>) -> Result<Option<Bytes>, Error> {
///         let found = tokio::time::timeout(Duration::from_millis(50), self.0.get_async(key)).await;
///         found.unwrap_or(Ok(None))
///     }
///     async fn get_many_async(&self, keys: &[Key<'_>], found: &mut Found) -> Result<(), Error> {
///         self.0.get_many_async(keys, found).await
///     }
///     async fn set_async(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
///         self.0.set_async(key, entry, ttl).await
///     }
///     async fn set_many_async(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error> {
///         self.0.set_many_async(batch, ttl).await
///     }
///     async fn delete_many_async(&self, keys: &[Key<'_>]) -> Result<(), Error> {
///         self.0.delete_many_async(keys).await
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let region = Region::builder(Hurried(Memory::new(1 << 20))).build()?;
/// region.set_async("user-15", &15_u64).await?;
/// assert_eq!(region.get_async("user-15").await?, Some(15_u64));
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "tokio")]
pub trait AsyncBackend: Send + Sync {
    /// As [`Backend::get`].
    ///
    /// # Errors
    /// As there.
    fn get_async(&self, key: Key<'_>) -> impl Future<Output = Result<Option<Bytes>, Error>> + Send;

    /// As [`Backend::get_many`].
    ///
    /// # Errors
    /// As there.
    fn get_many_async(&self, keys: &[Key<'_>], found: &mut Found) -> impl Future<Output = Result<(), Error>> + Send;

    /// As [`Backend::set`].
    ///
    /// # Errors
    /// As there.
    fn set_async(
        &self,
        key: Key<'_>,
        entry: &[u8],
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// As [`Backend::set_many`].
    ///
    /// # Errors
    /// As there.
    fn set_many_async(&self, batch: &Batch, ttl: Option<Duration>) -> impl Future<Output = Result<(), Error>> + Send;

    /// As [`Backend::max_entry`]; it is named apart because a type may be both.
    fn max_entry_async(&self) -> usize {
        usize::MAX
    }

    /// As [`Backend::delete_many`].
    ///
    /// # Errors
    /// As there.
    fn delete_many_async(&self, keys: &[Key<'_>]) -> impl Future<Output = Result<(), Error>> + Send;
}

/// One backend for several regions, and `Arc<dyn Backend>` for one that is chosen at run time.
impl<B: Backend + ?Sized> Backend for std::sync::Arc<B> {
    #[inline]
    fn get(&self, key: Key<'_>) -> Result<Option<Bytes>, Error> {
        (**self).get(key)
    }
    fn get_many(&self, keys: &[Key<'_>], found: &mut Found) -> Result<(), Error> {
        (**self).get_many(keys, found)
    }
    fn set(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
        (**self).set(key, entry, ttl)
    }
    fn set_many(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error> {
        (**self).set_many(batch, ttl)
    }
    fn max_entry(&self) -> usize {
        (**self).max_entry()
    }
    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        (**self).delete_many(keys)
    }
}

/// One backend for several regions.
#[cfg(feature = "tokio")]
impl<B: AsyncBackend> AsyncBackend for std::sync::Arc<B> {
    fn get_async(&self, key: Key<'_>) -> impl Future<Output = Result<Option<Bytes>, Error>> + Send {
        (**self).get_async(key)
    }
    fn get_many_async(&self, keys: &[Key<'_>], found: &mut Found) -> impl Future<Output = Result<(), Error>> + Send {
        (**self).get_many_async(keys, found)
    }
    fn set_async(
        &self,
        key: Key<'_>,
        entry: &[u8],
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        (**self).set_async(key, entry, ttl)
    }
    fn set_many_async(&self, batch: &Batch, ttl: Option<Duration>) -> impl Future<Output = Result<(), Error>> + Send {
        (**self).set_many_async(batch, ttl)
    }
    fn max_entry_async(&self) -> usize {
        (**self).max_entry_async()
    }
    fn delete_many_async(&self, keys: &[Key<'_>]) -> impl Future<Output = Result<(), Error>> + Send {
        (**self).delete_many_async(keys)
    }
}
