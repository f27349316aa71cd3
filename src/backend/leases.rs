//! Leases in the server of a backend, for locks among processes.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

#[cfg(feature = "tokio")]
use crate::backend::AsyncBackend;
use crate::backend::Backend;
use crate::batch::Batch;
use crate::error::Error;
use crate::key::{Key, KeyBuf};
use crate::redis::protocol::slot;

/// A lease that is wanted or held, and the entry it is for.
#[derive(Clone, Copy, Debug)]
pub struct Lease<'a> {
    /// The Redis key of the lease.
    pub lock: &'a [u8],
    /// Who holds it: other than any other attempt's.
    pub token: &'a [u8],
    /// The entry that whoever holds the lease creates.
    pub key: Key<'a>,
}

/// A backend whose server can hold leases, for [`RedisLock`](crate::lock::RedisLock).
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
    /// As [`Leases::lease`]; [`ErrorKind::WrongType`](crate::error::ErrorKind::WrongType) where there is something else.
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
