//! Leases in a server, for [`RedisLock`](crate::RedisLock): the operations of a lock that share a
//! round trip with reading or storing an entry.
//!
//! A lease is a key that holds its owner's token and expires by itself.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::batch::{Batch, Found};
use crate::error::{Error, ErrorKind};
use crate::key::{Key, KeyBuf};
use crate::redis::protocol::batch::{Acknowledged, Gather, Groups, server_error, unexpected};
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::commands;
use crate::redis::protocol::commands::leases::Lease;
use crate::redis::protocol::commands::stamped::Script;
use crate::redis::protocol::parser::{Receive, Token};
use crate::redis::protocol::slot;
use crate::redis::store::{
    One, check_sizes, life, open, open_all, route, route_all, slots, stamp_of, write_batch, write_groups,
};
use crate::redis::transport::{Access, AsyncTransport, Route, TransportSettings};
use crate::slice::Slice;

/// A backend whose server can hold the leases of a [`RedisLock`](crate::RedisLock).
///
/// [`Redis`](crate::Redis), [`Cluster`](crate::Cluster), [`Sentinel`](crate::Sentinel) and the
/// drivers are lease sources. Implement this trait for a wrapper around one of them, such as a
/// backend that counts or delays, so that it works with `RedisLock`. Commands that carry a lease (lock
/// and read, store and release) share one round trip and go to the server directly: the wrapper does
/// not see them.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use std::time::Duration;
///
/// use bytes::Bytes;
/// use dogpile::backend::{Batch, Found};
/// use dogpile::redis::LeaseSource;
/// use dogpile::{Backend, Error, Key, Redis, RedisLock, Region};
///
/// /// Counts reads.
/// struct Counted<B> {
///     inner: B,
///     reads: AtomicU64,
/// }
///
/// impl<B: Backend> Backend for Counted<B> {
///     fn get(&self, key: Key<'_>) -> Result<Option<Bytes>, Error> {
///         self.reads.fetch_add(1, Ordering::Relaxed);
///         self.inner.get(key)
///     }
///     fn get_many(&self, keys: &[Key<'_>], found: &mut Found) -> Result<(), Error> {
///         self.reads.fetch_add(keys.len() as u64, Ordering::Relaxed);
///         self.inner.get_many(keys, found)
///     }
///     fn set(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
///         self.inner.set(key, entry, ttl)
///     }
///     fn set_many(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error> {
///         self.inner.set_many(batch, ttl)
///     }
///     fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
///         self.inner.delete_many(keys)
///     }
/// }
///
/// impl<B: LeaseSource> LeaseSource for Counted<B> {
///     type Server = B::Server;
///     fn server(&self) -> &B::Server {
///         self.inner.server()
///     }
/// }
///
/// let counted = Counted { inner: Redis::open("redis://127.0.0.1")?, reads: AtomicU64::new(0) };
/// let region = Region::builder(counted).lock(RedisLock::new()).build()?;
/// # let _: Region<_, dogpile::Msgpack, _> = region;
/// # Ok::<(), Error>(())
/// ```
pub trait LeaseSource {
    /// The server that holds the leases.
    type Server;

    /// Returns the server that holds the leases.
    fn server(&self) -> &Self::Server;
}

impl<X: TransportSettings> LeaseSource for X {
    type Server = X;

    #[inline]
    fn server(&self) -> &X {
        self
    }
}

/// Delegates to the shared backend.
impl<B: LeaseSource + ?Sized> LeaseSource for Arc<B> {
    type Server = B::Server;

    #[inline]
    fn server(&self) -> &B::Server {
        (**self).server()
    }
}

pub(crate) async fn lease<X: AsyncTransport>(
    server: &X,
    wanted: &[Lease<'_>],
    life: Duration,
) -> Result<Vec<(bool, Option<Bytes>)>, Error> {
    let groups = Groups::of(wanted.len(), |at| wanted[at].key, slots(server));
    let mut found = Found::new();
    found.reset(wanted.len());
    let mut gather = Gather::new(&groups, &mut found);
    let mut leased = Vec::with_capacity(wanted.len());
    let mut failed = None;
    let expiry = server.hash_ttl();
    let write = |out: &mut Vec<u8>| {
        let leases: usize = wanted.iter().map(|lease| commands::lease(out, lease.lock, lease.token, life)).sum();
        leases + write_groups(out, commands::Verb::Get, &groups, expiry, |at| wanted[at].key)
    };
    let mut receive = |reply: Token<'_>, chunk: &mut Chunk<'_>| {
        match reply {
            reply if leased.len() == wanted.len() => return gather.token(reply, chunk),
            Token::Nil => leased.push(true),
            Token::Bulk(holder) => leased.push(holder == wanted[leased.len()].token),
            Token::Error(error) => {
                leased.push(false);
                failed.get_or_insert_with(|| server_error(error));
            }
            other => return Err(unexpected(other)),
        }
        Ok(())
    };
    server
        .exchange_async(Access::Write, route_leases(server, wanted), write, &mut receive)
        .await
        .and_then(|()| failed.map_or(Ok(()), Err))
        .and_then(|()| gather.finish())
        .map_err(|error| error.during(Of("locking", wanted)))?;
    open_all(server, expiry, wanted.iter().map(|lease| lease.key), &mut found);
    let entries = found.iter().map(|entry| entry.map(Slice::to_bytes));
    Ok(leased.into_iter().zip(entries).collect())
}

pub(crate) async fn read_or_lease<X: AsyncTransport>(
    server: &X,
    wanted: Lease<'_>,
    life: Duration,
) -> Result<(bool, Option<Bytes>), Error> {
    let (mut is_ours, mut one) = (false, One::default());
    let mut receive = |reply: Token<'_>, chunk: &mut Chunk<'_>| match reply {
        Token::Int(int) => {
            is_ours = int == 1;
            Ok(())
        }
        entry => one.token(entry, chunk),
    };
    let stamp = stamp_of(server, wanted.key);
    let write = |out: &mut Vec<u8>| commands::read_or_lease(out, &wanted, life, stamp);
    let exchanged = server.exchange_async(Access::Write, route(server, wanted.key), write, &mut receive).await;
    // While a slot moves, lock and entry may be at two servers of a cluster, and there is no script for both.
    if server.is_cluster() && matches!(&exchanged, Err(error) if error.kind() == ErrorKind::Connection) {
        return lease_one(server, wanted, life).await;
    }
    let entry = one.finish(exchanged, wanted.key)?;
    let (Some(stamp), Some(stamped)) = (stamp, &entry) else { return Ok((is_ours, entry)) };
    if let Some(entry) = open(stamp, stamped.clone(), server.now()) {
        return Ok((is_ours, Some(entry)));
    }
    // The script took what has expired for an entry, and so no lease.
    lease_one(server, wanted, life).await
}

async fn lease_one<X: AsyncTransport>(
    server: &X,
    wanted: Lease<'_>,
    life: Duration,
) -> Result<(bool, Option<Bytes>), Error> {
    let mut attempts = lease(server, &[wanted], life).await?;
    Ok(attempts.pop().unwrap_or((false, None)))
}

pub(crate) async fn release<X: AsyncTransport>(server: &X, held: &[Lease<'_>]) -> Result<Vec<bool>, Error> {
    let mut released = Flags::default();
    let write = |out: &mut Vec<u8>| write_releases(out, held);
    server
        .exchange_async(Access::Write, route_leases(server, held), write, &mut released)
        .await
        .and_then(|()| released.finish())
        .map_err(|error| error.during(Of("unlocking", held)))
}

/// Sends the release of each lease that its token still holds, after everything sent before.
pub(crate) fn send_release(server: &impl AsyncTransport, held: &[Lease<'_>]) -> Result<(), Error> {
    server.send(|out: &mut Vec<u8>| write_releases(out, held))
}

pub(crate) async fn renew<X: AsyncTransport>(
    server: &X,
    held: &[Lease<'_>],
    life: Duration,
) -> Result<Vec<bool>, Error> {
    let mut renewed = Flags::default();
    let write =
        |out: &mut Vec<u8>| held.iter().map(|lease| commands::renew(out, lease.lock, lease.token, life)).sum::<usize>();
    server
        .exchange_async(Access::Write, route_leases(server, held), write, &mut renewed)
        .await
        .and_then(|()| renewed.finish())
        .map_err(|error| error.during(Of("renewing the lease of", held)))
}

pub(crate) async fn set_and_release<X: AsyncTransport>(
    server: &X,
    held: &[Lease<'_>],
    batch: &Batch,
    ttl: Option<Duration>,
    only_if_held: bool,
) -> Result<Vec<bool>, Error> {
    let mut acknowledged = Acknowledged::default();
    let mut released = Flags::default();
    let groups = Groups::of(batch.len(), |at| batch.key(at), slots(server));
    let life = life(server, ttl);
    // The writes come first and are only acknowledged; then each release says whether the lease was still held. One
    // closure tells the other, which runs later.
    let writes = AtomicUsize::new(0);
    let write = |out: &mut Vec<u8>| {
        // It must not go twice, so the server is told the script in any case.
        let mut script = Script::text(server.is_cluster());
        if only_if_held {
            let each = held.iter().zip(batch.iter());
            return each
                .map(|(lease, (key, entry))| commands::store_if_held(out, &mut script, lease, key, entry, life))
                .sum();
        }
        writes.store(write_batch(out, &mut script, &groups, batch, life), Ordering::Relaxed);
        writes.load(Ordering::Relaxed) + write_releases(out, held)
    };
    let mut received = 0;
    let mut receive = |reply: Token<'_>, chunk: &mut Chunk<'_>| {
        if received == writes.load(Ordering::Relaxed) {
            return released.token(reply, chunk);
        }
        received += 1;
        acknowledged.token(reply, chunk)
    };
    let store = async {
        check_sizes(server, batch)?;
        let access = if only_if_held { Access::Once } else { Access::Write };
        server.exchange_async(access, route_leases(server, held), write, &mut receive).await
    };
    store
        .await
        .and_then(|()| acknowledged.finish())
        .and_then(|()| released.finish())
        .map_err(|error| error.during(Of("writing and unlocking", held)))
}

pub(crate) async fn is_leased<X: AsyncTransport>(server: &X, lock: &[u8]) -> Result<bool, Error> {
    let mut leased = Flags::default();
    // The primary knows, so this is no read.
    let route = if server.is_cluster() { Route::Slot(slot::slot(lock, b"")) } else { Route::Keys };
    server
        .exchange_async(Access::Write, route, |out| commands::is_leased(out, lock), &mut leased)
        .await
        .and_then(|()| leased.finish())
        .map(|leased| leased == [true])
        .map_err(|error| error.during(format_args!("asking for the lock {}", lock.escape_ascii())))
}

/// What was done to which leases, for errors.
struct Of<'a>(&'static str, &'a [Lease<'a>]);

impl fmt::Display for Of<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            [lease] => write!(f, "{} {}", self.0, lease.key),
            leases => write!(f, "{} {} keys", self.0, leases.len()),
        }
    }
}

/// The same for leases, which are where their entries are.
fn route_leases(server: &impl TransportSettings, leases: &[Lease<'_>]) -> Route {
    route_all(server, leases.len(), || leases[0].key)
}

pub(crate) fn lock_name(server: &impl TransportSettings, prefix: &[u8], key: Key<'_>) -> KeyBuf {
    slots(server).map_or_else(|| slot::lock_name(prefix, key), |slots| slots.lock_name(prefix, key))
}

/// Writes one command that releases each lease.
pub(crate) fn write_releases(out: &mut Vec<u8>, held: &[Lease<'_>]) -> usize {
    held.iter().map(|lease| commands::release(out, lease.lock, lease.token)).sum()
}

/// Receives replies that are 0 or 1.
#[derive(Default)]
struct Flags {
    flags: Vec<bool>,
    failed: Option<Error>,
}

impl Receive for Flags {
    fn token(&mut self, reply: Token<'_>, _: &mut Chunk<'_>) -> Result<(), Error> {
        match reply {
            Token::Int(int) => self.flags.push(int == 1),
            Token::Error(error) if self.failed.is_none() => self.failed = Some(server_error(error)),
            Token::Error(_) => {}
            other => return Err(unexpected(other)),
        }
        Ok(())
    }
}

impl Flags {
    fn finish(self) -> Result<Vec<bool>, Error> {
        self.failed.map_or(Ok(self.flags), Err)
    }
}
