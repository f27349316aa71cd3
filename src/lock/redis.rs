//! [`RedisLock`]: one creator of all processes, by a lease in the backend's own server.

use std::time::Duration;

#[cfg(feature = "tokio")]
use crate::backend::leases::AsyncLeases;
use crate::backend::leases::{Leases, Watch};
use crate::batch::Batch;
use crate::error::{Error, ErrorKind};
#[cfg(feature = "tokio")]
use crate::exec::Task;
use crate::exec::{Thread, now};
use crate::key::Key;
#[cfg(feature = "tokio")]
use crate::lock::AsyncLock;
use crate::lock::lease::{Face, Guards, RedisGuard, release_all, release_later};
use crate::lock::on_lost::{AfterLoss, LostLease, Store};
use crate::lock::{Attempt, Lock, LockSettings};

/// One creator of all processes: a lease in the backend's own server, compatible with redis-py's `Lock` and so with
/// `dogpile_backend_redis_advanced` (prefix `_lok.`, the default) and `dogpile.cache` (prefix `_lock`).
///
/// The lease is a key, prefix and entry's key in one (`hash,field` for a field), set by `SET NX PX` to a token that is
/// new for each attempt, and deleted by a script that compares it. It is renewed at each third of its life while the
/// creator runs: by one thread of the process for creators that are threads, and by one task of the runtime for those
/// that are tasks, which renews nothing while its runtime is blocked. A holder that crashed blocks others for what is
/// left of the lease. As in the reference, the plain key `a,b` and the field `b` of `a` share a lock: a creator of one
/// must not ask for the other.
///
/// A miss costs three round trips: read, lock and read again, store and release; [`lease_on_miss`](Self::lease_on_miss)
/// makes it two. Who waits for another process is told by
/// the server when the lease ends ([`Redis`](crate::redis::Redis): over one more connection, made when it is first needed), or
/// asks again after pauses of 5 to 40 ms where the server does not tell ([`Driver`](crate::redis::driver::Driver), RESP2).
///
/// In a [`Cluster`](crate::redis::topology::cluster::Cluster) the lock is in the slot of its entry, and named for that as
/// [`Leases::lock_name`] says: `_lok.{user-15}` for the key `user-15`. Keys with a hash tag of their own keep the name that
/// the reference has for their lock, and share it with Python. The plain keys `a` and `{a}` share a lock there.
///
/// ```no_run
/// use std::time::Duration;
/// use dogpile::{Redis, RedisLock, Region};
///
/// let region = Region::builder(Redis::open("redis://127.0.0.1")?)
///     .lock(RedisLock::new().prefix("_lok.").lease(Duration::from_secs(10)))
///     .build()?;
/// # Ok::<(), dogpile::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RedisLock<P = Store> {
    prefix: Vec<u8>,
    life: Duration,
    reads: bool,
    policy: P,
}

impl Default for RedisLock {
    fn default() -> Self {
        Self::new()
    }
}

impl RedisLock {
    /// A lock with the prefix `_lok.` and a lease of ten seconds, that stores what was created under a lost lease.
    #[must_use]
    pub fn new() -> Self {
        RedisLock { prefix: b"_lok.".to_vec(), life: Duration::from_secs(10), reads: false, policy: Store }
    }
}

impl<P> RedisLock<P> {
    /// What stands before an entry's key in that of its lock. Must not be empty.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefix = prefix.as_ref().into();
        self
    }

    /// How long a lease holds if it is neither released nor renewed, to the millisecond. Must not be zero. Default: 10 s.
    #[must_use]
    pub fn lease(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }

    /// Reads keys that this process did not find lately by a script that takes the lease at once where there is nothing:
    /// a miss then costs two round trips instead of three. It costs the server a script instead of a `GET`, at the primary,
    /// for every such key that is there: a process remembers up to 4,096 keys a region that it found, so this is for
    /// regions that miss often, or have few keys. Default: off.
    #[must_use]
    pub fn lease_on_miss(mut self) -> Self {
        self.reads = true;
        self
    }

    /// What to do with a value whose lease was lost: [`Store`], [`Discard`](crate::lock::on_lost::Discard), or your own.
    #[must_use]
    pub fn when_lost<Q: LostLease>(self, policy: Q) -> RedisLock<Q> {
        RedisLock { prefix: self.prefix, life: self.life, reads: self.reads, policy }
    }
}

impl<P: LostLease> RedisLock<P> {
    /// Locks for `keys`, which are about to be asked for.
    fn guards<A: Face<B>, B: Clone>(&self, backend: &B, keys: &[Key<'_>]) -> Result<Guards<B>, Error> {
        Guards::new::<A>(
            backend,
            self.life,
            keys.iter().map(|key| (A::lock_name(backend, &self.prefix, *key), key.to_buf())),
        )
    }

    async fn lock_and_read<A: Face<B>, B: Clone>(
        &self,
        backend: &B,
        keys: &[Key<'_>],
    ) -> Result<Vec<Attempt<RedisGuard<B>>>, Error> {
        self.guards::<A, B>(backend, keys)?.take_and_read::<A>().await
    }

    async fn read_or_take<A: Face<B>, B: Clone>(
        &self,
        backend: &B,
        key: Key<'_>,
    ) -> Result<Attempt<RedisGuard<B>>, Error> {
        self.guards::<A, B>(backend, &[key])?.read_or_take::<A>().await
    }

    async fn store_all<A: Face<B>, B>(
        &self,
        backend: &B,
        guards: Vec<RedisGuard<B>>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> Result<usize, Error> {
        let held: Vec<_> = guards.iter().map(RedisGuard::lease).collect();
        let stored = A::set_and_release(backend, &held, batch, ttl, !P::ALWAYS_STORES).await;
        drop(held);
        let still_held = match stored {
            Ok(still_held) => still_held,
            // The server released them, whatever it said of the store.
            Err(error) if matches!(error.kind(), ErrorKind::Server | ErrorKind::WrongType) => {
                guards.iter().for_each(RedisGuard::forget);
                return Err(error);
            }
            // Nobody should wait until it is in reach again. By then its replica may have taken its place, and the locks
            // with it.
            Err(error) if error.is_out_of_reach() => {
                release_later::<A, B>(&guards);
                return Err(error);
            }
            Err(error) => {
                release_all::<A, B>(guards);
                return Err(error);
            }
        };
        let (mut again, mut lost) = (Batch::new(), 0);
        for (at, (guard, still_held)) in guards.iter().zip(still_held).enumerate() {
            guard.forget();
            let key = batch.key(at);
            if still_held {
                continue;
            }
            lost += 1;
            if self.policy.lost(key) == AfterLoss::Store && !P::ALWAYS_STORES {
                again.push(key, |out| out.extend_from_slice(batch.entry(at)));
            }
        }
        A::set_many(backend, &again, ttl).await.map(|()| lost)
    }
}

impl<P: LostLease> LockSettings for RedisLock<P> {
    fn reads_and_locks(&self) -> bool {
        self.reads
    }

    fn check(&self) -> Result<(), Error> {
        if self.prefix.is_empty() {
            return Err(Error::new(ErrorKind::Config, "without a prefix the lock of an entry would be the entry"));
        }
        if self.life.is_zero() {
            return Err(Error::new(ErrorKind::Config, "a lease of no time locks nothing"));
        }
        Ok(())
    }
}

impl<B: Leases, P: LostLease> Lock<B> for RedisLock<P> {
    type Guard = RedisGuard<B>;

    fn try_lock(&self, backend: &B, key: Key<'_>) -> Result<Option<Self::Guard>, Error> {
        Ok(self.try_lock_and_read(backend, &[key])?.pop().and_then(|attempt| attempt.guard))
    }

    fn try_lock_and_read(&self, backend: &B, keys: &[Key<'_>]) -> Result<Vec<Attempt<Self::Guard>>, Error> {
        now(self.lock_and_read::<Thread, B>(backend, keys))
    }

    fn read_or_lock(&self, backend: &B, key: Key<'_>) -> Result<Attempt<Self::Guard>, Error> {
        now(self.read_or_take::<Thread, B>(backend, key))
    }

    fn store_and_release(
        &self,
        backend: &B,
        guards: Vec<Self::Guard>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> Result<usize, Error> {
        now(self.store_all::<Thread, B>(backend, guards, batch, ttl))
    }

    fn release(&self, _: &B, guards: Vec<Self::Guard>) {
        release_all::<Thread, B>(guards);
    }

    fn watch(&self, backend: &B, key: Key<'_>) -> Option<Watch> {
        backend.watch(backend.lock_name(&self.prefix, key).as_key().server_key())
    }

    fn is_locked(&self, backend: &B, key: Key<'_>) -> Result<bool, Error> {
        backend.is_leased(backend.lock_name(&self.prefix, key).as_key().server_key())
    }
}

#[cfg(feature = "tokio")]
impl<B: AsyncLeases, P: LostLease> AsyncLock<B> for RedisLock<P> {
    type AsyncGuard = RedisGuard<B>;

    async fn try_lock_async(&self, backend: &B, key: Key<'_>) -> Result<Option<RedisGuard<B>>, Error> {
        Ok(self.try_lock_and_read_async(backend, &[key]).await?.pop().and_then(|attempt| attempt.guard))
    }

    fn try_lock_and_read_async(
        &self,
        backend: &B,
        keys: &[Key<'_>],
    ) -> impl Future<Output = Result<Vec<Attempt<RedisGuard<B>>>, Error>> + Send {
        self.lock_and_read::<Task, B>(backend, keys)
    }

    fn read_or_lock_async(
        &self,
        backend: &B,
        key: Key<'_>,
    ) -> impl Future<Output = Result<Attempt<RedisGuard<B>>, Error>> + Send {
        self.read_or_take::<Task, B>(backend, key)
    }

    fn store_and_release_async(
        &self,
        backend: &B,
        guards: Vec<RedisGuard<B>>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<usize, Error>> + Send {
        self.store_all::<Task, B>(backend, guards, batch, ttl)
    }

    fn watch_async(&self, backend: &B, key: Key<'_>) -> Option<Watch> {
        backend.watch_async(backend.lock_name_async(&self.prefix, key).as_key().server_key())
    }

    async fn is_locked_async(&self, backend: &B, key: Key<'_>) -> Result<bool, Error> {
        backend.is_leased_async(backend.lock_name_async(&self.prefix, key).as_key().server_key()).await
    }
}
