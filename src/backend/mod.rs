//! Where entries live: [`Memory`], [`Redis`], [`Cluster`], a [`Driver`] over the `redis` crate, or a backend of your own.

#[cfg(feature = "tokio")]
mod all;
#[cfg(feature = "driver")]
mod driver;
mod exchange;
#[cfg(feature = "memory")]
mod memory;
mod pause;
mod pool;
pub(crate) mod redis;
mod resp;
mod server;
mod sweep;

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use crate::engine::slot;
use crate::error::Error;
use crate::key::{Key, KeyBuf};
use crate::request::{Batch, Found, Lease};

#[cfg(all(feature = "driver", feature = "tokio"))]
pub use self::driver::AsyncDriver;
#[cfg(feature = "driver")]
pub use self::driver::Driver;
#[cfg(feature = "tokio")]
pub use self::exchange::AsyncExchange;
pub use self::exchange::{Access, Exchange, ExchangeSettings, Route};
#[cfg(feature = "memory")]
pub use self::memory::Memory;
#[cfg(feature = "tls")]
pub use self::redis::Tls;
#[cfg(feature = "tokio")]
pub use self::redis::WhileDown;
pub use self::redis::{Cluster, ClusterNodes, OneServer, ReadFrom, Redis, RedisBuilder, Sentinel, SentinelServers};
pub use self::server::{ServerInfo, ServerName};
#[cfg(feature = "tokio")]
pub use self::sweep::sweep_async;
pub use self::sweep::{Swept, sweep};

/// Where entries live. Entries are bytes; what they mean is the codec's business.
///
/// A wrapper that logs, counts or delays is a type that holds a backend and is one. Keys arrive as the region's
/// [`KeyMap`](crate::KeyMap) made them.
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
    /// When the backend cannot tell. [`ErrorKind::WrongType`](crate::ErrorKind::WrongType) counts as a miss.
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

/// A backend whose server can hold leases, for [`RedisLock`](crate::RedisLock).
///
/// A lease is a key that holds its owner's token and expires by itself. What a miss needs together is one operation
/// here, and one round trip.
pub trait Leases: Backend + Clone + 'static {
    /// Takes each lease that nobody has, and reads the entries after that: for each, whether the lease is ours now, and
    /// the entry. One round trip.
    ///
    /// # Errors
    /// When the server cannot tell; some leases may then be held until they expire.
    fn lease(&self, wanted: &[Lease<'_>], life: Duration) -> Result<Vec<(bool, Option<Bytes>)>, Error>;

    /// Reads an entry and, where there is none, takes its lease if nobody has it: whether the lease is ours now, and the
    /// entry. One round trip, by a script.
    ///
    /// # Errors
    /// As [`Leases::lease`]; [`ErrorKind::WrongType`](crate::ErrorKind::WrongType) where there is something else.
    fn read_or_lease(&self, wanted: Lease<'_>, life: Duration) -> Result<(bool, Option<Bytes>), Error>;

    /// Releases each lease that its token still holds, and says of each whether it did. One round trip.
    ///
    /// # Errors
    /// When the server cannot tell; the leases then end when they expire.
    fn release(&self, held: &[Lease<'_>]) -> Result<Vec<bool>, Error>;

    /// Gives each lease that its token still holds another `life` from now on, and says of each whether it did. One round
    /// trip.
    ///
    /// # Errors
    /// When the server cannot tell.
    fn renew(&self, held: &[Lease<'_>], life: Duration) -> Result<Vec<bool>, Error>;

    /// Stores the entries of `batch`, one for each lease, and releases the leases; says of each whether its token
    /// still held it. With `only_if_held` nothing is stored under a lease that is not; store and release are then
    /// atomic. One round trip.
    ///
    /// # Errors
    /// When some may not have been stored.
    fn set_and_release(
        &self,
        held: &[Lease<'_>],
        batch: &Batch,
        ttl: Option<Duration>,
        only_if_held: bool,
    ) -> Result<Vec<bool>, Error>;

    /// Whether anybody holds the lease of this Redis key.
    ///
    /// # Errors
    /// When the server cannot tell.
    fn is_leased(&self, lock: &[u8]) -> Result<bool, Error>;

    /// The Redis key of the lock on an entry: prefix and key in one, `hash,field` for a field, as the reference names it.
    /// In a cluster it is in the slot of the entry: that name where it is there by itself, as with keys that have a hash
    /// tag (`_lok.{user-15}|posts`); otherwise the entry's key becomes the tag (`_lok.{user-15}`, `_lok.{users},15`); and
    /// where that cannot be, for a key with a `}` of its own, a number stands before it (`{20658}_lok.a}b`).
    fn lock_name(&self, prefix: &[u8], key: Key<'_>) -> KeyBuf {
        slot::lock_name(prefix, key)
    }

    /// Tells when the lease of this Redis key may have ended: at once if nobody holds it, later if it is released or its
    /// time is over, and also when that can no longer be told. Does not block. `None`, the default, where the server
    /// tells nothing of itself, and has to be asked again.
    fn watch(&self, lock: &[u8]) -> Option<Watch> {
        let _ = lock;
        None
    }
}

/// Ready when something may have happened that is waited for; it may be ready too early. Dropped, it ends the interest.
pub type Watch = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A backend whose server can hold leases, for tasks. As [`Leases`].
#[cfg(feature = "tokio")]
pub trait AsyncLeases: AsyncBackend + Clone + 'static {
    /// As [`Leases::lease`].
    ///
    /// # Errors
    /// As there.
    fn lease_async(
        &self,
        wanted: &[Lease<'_>],
        life: Duration,
    ) -> impl Future<Output = Result<Vec<(bool, Option<Bytes>)>, Error>> + Send;

    /// As [`Leases::read_or_lease`].
    ///
    /// # Errors
    /// As there.
    fn read_or_lease_async(
        &self,
        wanted: Lease<'_>,
        life: Duration,
    ) -> impl Future<Output = Result<(bool, Option<Bytes>), Error>> + Send;

    /// As [`Leases::release`].
    ///
    /// # Errors
    /// As there.
    fn release_async(&self, held: &[Lease<'_>]) -> impl Future<Output = Result<Vec<bool>, Error>> + Send;

    /// Sends word that each lease is to be released that its token still holds, after all that was asked before; does
    /// not wait for that. For guards that are dropped, which may happen anywhere.
    fn send_release(&self, held: &[Lease<'_>]);

    /// As [`Leases::renew`].
    ///
    /// # Errors
    /// As there.
    fn renew_async(&self, held: &[Lease<'_>], life: Duration) -> impl Future<Output = Result<Vec<bool>, Error>> + Send;

    /// As [`Leases::set_and_release`].
    ///
    /// # Errors
    /// As there.
    fn set_and_release_async(
        &self,
        held: &[Lease<'_>],
        batch: &Batch,
        ttl: Option<Duration>,
        only_if_held: bool,
    ) -> impl Future<Output = Result<Vec<bool>, Error>> + Send;

    /// As [`Leases::is_leased`].
    ///
    /// # Errors
    /// As there.
    fn is_leased_async(&self, lock: &[u8]) -> impl Future<Output = Result<bool, Error>> + Send;

    /// As [`Leases::lock_name`]; it is named apart because a type may be both.
    fn lock_name_async(&self, prefix: &[u8], key: Key<'_>) -> KeyBuf {
        slot::lock_name(prefix, key)
    }

    /// As [`Leases::watch`]; it is named apart because a type may be both.
    fn watch_async(&self, lock: &[u8]) -> Option<Watch> {
        let _ = lock;
        None
    }
}
