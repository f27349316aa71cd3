//! [`RedisLock`]: one creator of all processes, by a lease in the server of the backend.

use std::time::Duration;

use crate::backend::{AsyncBackend, Backend};
use crate::batch::Batch;
use crate::error::{Error, ErrorKind};
use crate::exec::poll_ready;
use crate::key::Key;
use crate::lock::lease::{LeaseRequest, LeaseServer, RedisGuard, release_all, release_in_background};
use crate::lock::{AsyncLock, Attempt, Lock, LockSettings, OnLeaseLost, Watch};
use crate::redis::transport::{AsyncTransport, BlockingTransport, Transport, TransportSettings};
use crate::redis::{LeaseSource, leases};

/// Allows one creator per key in all processes, by a lease in the server of the backend.
///
/// The lock is compatible with redis-py's `Lock`, and so with `dogpile_backend_redis_advanced` (prefix
/// `_lok.`, the default) and `dogpile.cache` (prefix `_lock`).
///
/// # Protocol
/// The lease is a key: the prefix and the entry's key in one (`hash,field` for a field). It is set by
/// `SET NX PX` to a token that is new for each attempt, and deleted by a script that compares the
/// token. As in the reference, the plain key `a,b` and the field `b` of the hash `a` share a lock: the
/// creator of one must not ask for the other.
///
/// In a [`Cluster`](crate::Cluster) the lock must be in the slot of its entry, and is named for that:
/// `_lok.{user-15}` for the key `user-15`, `_lok.{users},15` for the field `15` of `users`. Keys with a
/// hash tag keep the reference's name (`_lok.{user-15}|posts`) and share the lock with Python. A key
/// that contains `}` gets a number in front (`{20658}_lok.a}b`). The plain keys `a` and `{a}` share a
/// lock there.
///
/// # Renewal
/// A lease is renewed at each third of its life while the creator runs: by one thread of the process
/// for blocking creators, and by one task of the runtime for async ones. A task that blocks its
/// runtime stops its renewals. If a holder crashes, others wait for what is left of its lease.
///
/// # Waiting
/// [`Redis`](crate::Redis), [`Cluster`](crate::Cluster) and [`Sentinel`](crate::Sentinel) notify
/// waiters through client tracking when the lease ends, over one more connection that is opened when it
/// is first needed. With RESP2 or a driver over the `redis` crate waiters poll every 5 to 40 ms.
///
/// # Cost
/// A miss takes three round trips: read; lock and read again; store and release. With
/// [`lease_on_miss`](Self::lease_on_miss) it takes two.
///
/// ```no_run
/// use std::time::Duration;
///
/// use dogpile::{Redis, RedisLock, Region};
///
/// let region = Region::builder(Redis::open("redis://127.0.0.1")?)
///     .lock(RedisLock::new().prefix("_lok.").lease(Duration::from_secs(10)))
///     .build()?;
/// # Ok::<(), dogpile::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RedisLock {
    prefix: Vec<u8>,
    lease: Duration,
    lease_on_miss: bool,
    on_lost: OnLeaseLost,
}

impl Default for RedisLock {
    fn default() -> Self {
        Self::new()
    }
}

impl RedisLock {
    /// Creates a lock with the prefix `_lok.`, a lease of ten seconds, and [`OnLeaseLost::Store`].
    #[must_use]
    pub fn new() -> Self {
        RedisLock {
            prefix: b"_lok.".to_vec(),
            lease: Duration::from_secs(10),
            lease_on_miss: false,
            on_lost: OnLeaseLost::Store,
        }
    }

    /// Sets the prefix that turns an entry's key into the key of its lock. Default: `_lok.`.
    ///
    /// An empty prefix is an error when the region is built, because the lock would be the entry.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefix = prefix.as_ref().into();
        self
    }

    /// Sets how long a lease lives unless it is released or renewed, to the millisecond. Default: 10 s.
    ///
    /// This is how long others wait for a holder that crashed. Zero is an error when the region is built.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Takes the lease in the same round trip in which a key is not found. Default: off.
    ///
    /// Keys that this process has not found recently are read by a script, which takes the lease if there
    /// is no entry; a miss then takes two round trips instead of three. For each such key that exists the
    /// primary runs a script instead of a `GET`. A process remembers up to 4,096 found keys per region, so
    /// this is for regions with frequent misses or few keys.
    #[must_use]
    pub fn lease_on_miss(mut self) -> Self {
        self.lease_on_miss = true;
        self
    }

    /// Sets what happens to a value whose lease was lost. Default: [`OnLeaseLost::Store`].
    ///
    /// ```
    /// use dogpile::RedisLock;
    /// use dogpile::lock::OnLeaseLost;
    ///
    /// let lock = RedisLock::new().on_lease_lost(OnLeaseLost::Discard);
    /// ```
    #[must_use]
    pub fn on_lease_lost(mut self, on_lost: OnLeaseLost) -> Self {
        self.on_lost = on_lost;
        self
    }

    /// Prepares the leases of `keys`.
    fn request<T: LeaseServer>(&self, server: T, keys: &[Key<'_>]) -> Result<LeaseRequest<T>, Error> {
        LeaseRequest::new(server, &self.prefix, keys, self.lease)
    }

    async fn store_all<T: LeaseServer>(
        &self,
        server: &T,
        guards: Vec<RedisGuard<T>>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> Result<usize, Error> {
        let held: Vec<_> = guards.iter().map(RedisGuard::lease).collect();
        let only_if_held = self.on_lost == OnLeaseLost::Discard;
        let stored = leases::set_and_release(server, &held, batch, ttl, only_if_held).await;
        drop(held);
        match stored {
            Ok(still_held) => {
                guards.iter().for_each(RedisGuard::forget);
                Ok(still_held.into_iter().filter(|is_held| !is_held).count())
            }
            Err(error) => {
                match error.kind() {
                    // The server has released them, whatever it said about the store.
                    ErrorKind::Server | ErrorKind::WrongType => guards.iter().for_each(RedisGuard::forget),
                    // Nothing waits until the server can be reached. Its replica may have taken its place by
                    // then, and has the leases.
                    _ if error.is_out_of_reach() => release_in_background(&guards),
                    _ => release_all(guards),
                }
                Err(error)
            }
        }
    }
}

impl LockSettings for RedisLock {
    fn reads_and_locks(&self) -> bool {
        self.lease_on_miss
    }

    fn check(&self) -> Result<(), Error> {
        let refuse = |what| Err(Error::new(ErrorKind::Config, what));
        if self.prefix.is_empty() {
            return refuse("RedisLock: the prefix is empty, so the lock of an entry would be the entry");
        }
        if self.lease.is_zero() {
            return refuse("RedisLock: the lease is zero, so it would lock nothing");
        }
        Ok(())
    }
}

impl<B> Lock<B> for RedisLock
where
    B: Backend + LeaseSource,
    B::Server: Transport + Clone + 'static,
{
    type Guard = RedisGuard<BlockingTransport<B::Server>>;

    fn try_lock(&self, backend: &B, key: Key<'_>) -> Result<Option<Self::Guard>, Error> {
        Ok(Lock::try_lock_and_read(self, backend, &[key])?.pop().and_then(|attempt| attempt.guard))
    }

    fn try_lock_and_read(&self, backend: &B, keys: &[Key<'_>]) -> Result<Vec<Attempt<Self::Guard>>, Error> {
        poll_ready(self.request(BlockingTransport(backend.server().clone()), keys)?.take_and_read())
    }

    fn read_or_lock(&self, backend: &B, key: Key<'_>) -> Result<Attempt<Self::Guard>, Error> {
        poll_ready(self.request(BlockingTransport(backend.server().clone()), &[key])?.read_or_take())
    }

    fn store_and_release(
        &self,
        backend: &B,
        guards: Vec<Self::Guard>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> Result<usize, Error> {
        poll_ready(self.store_all(&BlockingTransport(backend.server().clone()), guards, batch, ttl))
    }

    fn release(&self, _: &B, guards: Vec<Self::Guard>) {
        release_all(guards);
    }

    fn watch(&self, backend: &B, key: Key<'_>) -> Option<Watch> {
        watch(backend.server(), &self.prefix, key)
    }

    fn is_locked(&self, backend: &B, key: Key<'_>) -> Result<bool, Error> {
        let server = BlockingTransport(backend.server());
        let lock = leases::lock_name(&server, &self.prefix, key);
        poll_ready(leases::is_leased(&server, lock.as_key().server_key()))
    }
}

impl<B> AsyncLock<B> for RedisLock
where
    B: AsyncBackend + LeaseSource,
    B::Server: AsyncTransport + Clone + 'static,
{
    type AsyncGuard = RedisGuard<B::Server>;

    async fn try_lock_async(&self, backend: &B, key: Key<'_>) -> Result<Option<Self::AsyncGuard>, Error> {
        let mut attempts = self.request(backend.server().clone(), &[key])?.take_and_read().await?;
        Ok(attempts.pop().and_then(|attempt| attempt.guard))
    }

    async fn try_lock_and_read_async(
        &self,
        backend: &B,
        keys: &[Key<'_>],
    ) -> Result<Vec<Attempt<Self::AsyncGuard>>, Error> {
        self.request(backend.server().clone(), keys)?.take_and_read().await
    }

    async fn read_or_lock_async(&self, backend: &B, key: Key<'_>) -> Result<Attempt<Self::AsyncGuard>, Error> {
        self.request(backend.server().clone(), &[key])?.read_or_take().await
    }

    fn store_and_release_async(
        &self,
        backend: &B,
        guards: Vec<Self::AsyncGuard>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<usize, Error>> + Send {
        self.store_all(backend.server(), guards, batch, ttl)
    }

    fn watch(&self, backend: &B, key: Key<'_>) -> Option<Watch> {
        watch(backend.server(), &self.prefix, key)
    }

    async fn is_locked_async(&self, backend: &B, key: Key<'_>) -> Result<bool, Error> {
        let server = backend.server();
        let lock = leases::lock_name(server, &self.prefix, key);
        leases::is_leased(server, lock.as_key().server_key()).await
    }
}

fn watch(server: &impl TransportSettings, prefix: &[u8], key: Key<'_>) -> Option<Watch> {
    server.watch(leases::lock_name(server, prefix, key).as_key().server_key())
}
