//! Backends: the stores of a cache's entries.
//!
//! [`Memory`] stores entries in this process; [`redis`](crate::redis) has the backends for servers.
//! Backends of your own implement [`Backend`], [`AsyncBackend`] or both.

mod blocking;
#[cfg(feature = "memory")]
mod memory;

use std::time::Duration;

use bytes::Bytes;

pub use crate::batch::{Batch, Found, FoundParts};
use crate::error::Error;
use crate::key::Key;

pub(crate) use self::blocking::BlockingBackend;
#[cfg(feature = "memory")]
pub use self::memory::Memory;

/// A store of cache entries, for callers on threads.
///
/// Entries are opaque bytes; the region's [`Codec`](crate::Codec) encodes and decodes them. Keys
/// are passed as the region's [`KeyMap`](crate::KeyMap) returns them. For callers in async tasks,
/// see [`AsyncBackend`]; a type can implement both traits.
///
/// Regions use a backend from many threads at once. If it fails during a `get_or_create`, the
/// creator runs all the same, unless the region [fails closed](crate::RegionBuilder::fail_closed).
/// To check an implementation, run `dogpile::testing::backend` (feature `testing`).
///
/// To log, count or delay operations, write a wrapper that delegates to another backend:
///
/// ```
/// use std::time::Duration;
/// use bytes::Bytes;
/// use dogpile::{Backend, Error, Key, Memory, Region};
/// use dogpile::backend::{Batch, Found};
///
/// /// Logs deletions.
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
///     fn max_entry(&self) -> usize {
///         self.0.max_entry()
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
    /// Returns the entry of `key`, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// If the backend cannot tell whether there is an entry. A region treats an error of the kind
    /// [`ErrorKind::WrongType`](crate::ErrorKind::WrongType) as a miss.
    ///
    /// # Cost
    ///
    /// One round trip.
    fn get(&self, key: Key<'_>) -> Result<Option<Bytes>, Error>;

    /// Reads the entries of `keys` into `found`, in the order of the keys.
    ///
    /// The previous contents of `found` are dropped and its memory is reused. Afterwards, it has
    /// one result for each of the `keys`, including duplicates.
    ///
    /// # Errors
    ///
    /// If the backend cannot tell for all of the keys. The contents of `found` are then
    /// unspecified.
    ///
    /// # Cost
    ///
    /// One round trip, regardless of the number and the kind of the keys.
    fn get_many(&self, keys: &[Key<'_>], found: &mut Found) -> Result<(), Error>;

    /// Stores an entry and replaces any previous one, including its TTL.
    ///
    /// With a `ttl`, which is at least one millisecond, the entry is removed after that time.
    ///
    /// # Errors
    ///
    /// If the entry may not have been stored.
    ///
    /// # Cost
    ///
    /// One round trip.
    fn set(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error>;

    /// Stores all entries of a batch with the same TTL.
    ///
    /// If a key occurs more than once, its last entry is stored. An empty batch is valid.
    ///
    /// # Errors
    ///
    /// If some of the entries may not have been stored.
    ///
    /// # Cost
    ///
    /// One round trip.
    fn set_many(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error>;

    /// Returns the size of the largest entry that can be stored, in bytes.
    ///
    /// A region returns larger values to the caller without storing them. The default
    /// implementation returns `usize::MAX`.
    fn max_entry(&self) -> usize {
        usize::MAX
    }

    /// Deletes the entries of `keys`.
    ///
    /// Keys without an entry are ignored.
    ///
    /// # Errors
    ///
    /// If some of the entries may not have been deleted.
    ///
    /// # Cost
    ///
    /// One round trip, or none if `keys` is empty.
    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error>;
}

/// A store of cache entries, for callers in async tasks.
///
/// Entries are opaque bytes; the region's [`Codec`](crate::Codec) encodes and decodes them. Keys
/// are passed as the region's [`KeyMap`](crate::KeyMap) returns them. For callers on threads, see
/// [`Backend`]; a type can implement both traits. The trait is not dyn-compatible.
///
/// If a backend fails during a `get_or_create_async`, the creator runs all the same, unless the
/// region [fails closed](crate::RegionBuilder::fail_closed). To check an implementation, run
/// `dogpile::testing::backend_async` (features `testing` and `tokio`).
///
/// # Cancel safety
///
/// A region may drop the future of any method at any time. A write or a deletion whose future was
/// dropped may or may not take effect; the backend must remain usable.
///
/// ```
/// use std::time::Duration;
/// use bytes::Bytes;
/// use dogpile::{AsyncBackend, Error, ErrorKind, Key, Memory, Region};
/// use dogpile::backend::{Batch, Found};
///
/// /// Limits the time that a read may take.
/// struct ReadTimeout<B>(B, Duration);
///
/// impl<B: AsyncBackend> AsyncBackend for ReadTimeout<B> {
///     async fn get_async(&self, key: Key<'_>) -> Result<Option<Bytes>, Error> {
///         tokio::time::timeout(self.1, self.0.get_async(key)).await.unwrap_or_else(|_| {
///             let message = format!("GET {key}: no reply within {:?}", self.1);
///             Err(Error::new(ErrorKind::Timeout, message))
///         })
///     }
///     async fn get_many_async(&self, keys: &[Key<'_>], found: &mut Found) -> Result<(), Error> {
///         self.0.get_many_async(keys, found).await
///     }
///     async fn set_async(
///         &self,
///         key: Key<'_>,
///         entry: &[u8],
///         ttl: Option<Duration>,
///     ) -> Result<(), Error> {
///         self.0.set_async(key, entry, ttl).await
///     }
///     async fn set_many_async(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error> {
///         self.0.set_many_async(batch, ttl).await
///     }
///     fn max_entry(&self) -> usize {
///         self.0.max_entry()
///     }
///     async fn delete_many_async(&self, keys: &[Key<'_>]) -> Result<(), Error> {
///         self.0.delete_many_async(keys).await
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let memory = Memory::new(1 << 20);
/// let region = Region::builder(ReadTimeout(memory, Duration::from_millis(50))).build()?;
/// region.set_async("user-15", &15_u64).await?;
/// assert_eq!(region.get_async("user-15").await?, Some(15_u64));
/// # Ok(())
/// # }
/// ```
pub trait AsyncBackend: Send + Sync {
    /// Returns the entry of `key`, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// If the backend cannot tell whether there is an entry. A region treats an error of the kind
    /// [`ErrorKind::WrongType`](crate::ErrorKind::WrongType) as a miss.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the reply is discarded.
    ///
    /// # Cost
    ///
    /// One round trip.
    fn get_async(&self, key: Key<'_>) -> impl Future<Output = Result<Option<Bytes>, Error>> + Send;

    /// Reads the entries of `keys` into `found`, in the order of the keys.
    ///
    /// The previous contents of `found` are dropped and its memory is reused. Afterwards, it has
    /// one result for each of the `keys`, including duplicates.
    ///
    /// # Errors
    ///
    /// If the backend cannot tell for all of the keys. The contents of `found` are then
    /// unspecified.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the contents of `found` are unspecified.
    ///
    /// # Cost
    ///
    /// One round trip, regardless of the number and the kind of the keys.
    fn get_many_async(&self, keys: &[Key<'_>], found: &mut Found) -> impl Future<Output = Result<(), Error>> + Send;

    /// Stores an entry and replaces any previous one, including its TTL.
    ///
    /// With a `ttl`, which is at least one millisecond, the entry is removed after that time.
    ///
    /// # Errors
    ///
    /// If the entry may not have been stored.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the entry may or may not be stored.
    ///
    /// # Cost
    ///
    /// One round trip.
    fn set_async(
        &self,
        key: Key<'_>,
        entry: &[u8],
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Stores all entries of a batch with the same TTL.
    ///
    /// If a key occurs more than once, its last entry is stored. An empty batch is valid.
    ///
    /// # Errors
    ///
    /// If some of the entries may not have been stored.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, all, some or none of the entries may be stored.
    ///
    /// # Cost
    ///
    /// One round trip.
    fn set_many_async(&self, batch: &Batch, ttl: Option<Duration>) -> impl Future<Output = Result<(), Error>> + Send;

    /// Returns the size of the largest entry that can be stored, in bytes.
    ///
    /// A region returns larger values to the caller without storing them. The default
    /// implementation returns `usize::MAX`. This method has the same name in [`Backend`]; for a
    /// type that implements both traits, both return the same value.
    fn max_entry(&self) -> usize {
        usize::MAX
    }

    /// Deletes the entries of `keys`.
    ///
    /// Keys without an entry are ignored.
    ///
    /// # Errors
    ///
    /// If some of the entries may not have been deleted.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, all, some or none of the entries may be deleted.
    ///
    /// # Cost
    ///
    /// One round trip, or none if `keys` is empty.
    fn delete_many_async(&self, keys: &[Key<'_>]) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Shares one backend among several regions, or selects it at run time with `Arc<dyn Backend>`.
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

/// Shares one backend among several regions.
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
    fn max_entry(&self) -> usize {
        (**self).max_entry()
    }
    fn delete_many_async(&self, keys: &[Key<'_>]) -> impl Future<Output = Result<(), Error>> + Send {
        (**self).delete_many_async(keys)
    }
}
