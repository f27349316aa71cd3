//! [`RedisLock`]: one creator of all processes, by a lease in the backend's own server.

use std::future::ready;
#[cfg(feature = "tokio")]
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

#[cfg(feature = "tokio")]
use super::AsyncLock;
#[cfg(feature = "tokio")]
use super::renewal::RenewLater;
use super::renewal::{self, Kept, RenewNow};
use super::{AfterLoss, Attempt, Lock, LockSettings, LostLease, Store};
#[cfg(feature = "tokio")]
use crate::backend::AsyncLeases;
use crate::backend::{Leases, Watch};
use crate::error::{Error, ErrorKind};
#[cfg(feature = "tokio")]
use crate::face::Task;
use crate::face::{Thread, now};
use crate::key::{Key, KeyBuf, hex};
use crate::request::{Batch, Lease};

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
/// the server when the lease ends ([`Redis`](crate::Redis): over one more connection, made when it is first needed), or
/// asks again after pauses of 5 to 40 ms where the server does not tell ([`Driver`](crate::Driver), RESP2).
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

    /// What to do with a value whose lease was lost: [`Store`], [`Discard`](super::Discard), or your own.
    #[must_use]
    pub fn when_lost<Q: LostLease>(self, policy: Q) -> RedisLock<Q> {
        RedisLock { prefix: self.prefix, life: self.life, reads: self.reads, policy }
    }

    /// The Redis key of the lock on `key`.
    fn name(&self, key: Key<'_>) -> KeyBuf {
        let mut name = KeyBuf::new();
        name.push(&self.prefix);
        name.push(key.server_key());
        if let Key::Field { field, .. } = key {
            name.push(b",");
            name.push(field);
        }
        name
    }
}

/// Holds a [`RedisLock`] until it is dropped, which releases it: in one round trip where its holder is a thread, and
/// where it is a task by sending word, which nobody waits for. Until then it is renewed.
pub struct RedisGuard<B> {
    asked: Arc<Asked<B>>,
    at: usize,
}

/// Leases that were asked for together, and are renewed together while one of them is held.
struct Asked<B> {
    backend: B,
    leases: SmallVec<[Owned; 1]>,
    life: Duration,
    release: fn(&B, &[Lease<'_>]),
    /// `None` where nobody is there to renew.
    kept: OnceLock<Option<Kept>>,
}

struct Owned {
    lock: KeyBuf,
    token: [u8; 32],
    key: KeyBuf,
    /// Whether the lease is to be renewed, and is still to be released.
    is_held: AtomicBool,
}

impl Owned {
    fn lease(&self) -> Lease<'_> {
        Lease { lock: self.lock.as_key().server_key(), token: &self.token, key: self.key.as_key() }
    }
}

impl<B> Asked<B> {
    fn held(&self) -> impl Iterator<Item = &Owned> {
        self.leases.iter().filter(|lease| lease.is_held.load(Ordering::Acquire))
    }

    /// Takes what came of renewing `held`. What somebody else holds now, or nobody, is not renewed any more.
    fn renewed(held: &[&Owned], renewed: Result<Vec<bool>, Error>) {
        // What cannot be renewed is tried again a while later, as long as its time is not over.
        for (lease, is_held) in held.iter().zip(renewed.unwrap_or_default()) {
            lease.is_held.fetch_and(is_held, Ordering::AcqRel);
        }
    }
}

impl<B: Leases> RenewNow for Asked<B> {
    fn renew(&self) -> bool {
        let held: Vec<_> = self.held().collect();
        let leases: Vec<_> = held.iter().map(|lease| lease.lease()).collect();
        Self::renewed(&held, self.backend.renew(&leases, self.life));
        true
    }
}

/// Leases that nobody waits for any more, and that a server which did not answer may still take when it has time again.
struct Unsure<B> {
    asked: Arc<Asked<B>>,
    /// How often they are still to be released: more than once, since a server need not do what it is asked over two
    /// connections in that order.
    releases: AtomicU32,
    /// How often that is still tried.
    tries: AtomicU32,
}

impl<B> Unsure<B> {
    /// What came of releasing them: whether that is to be done again.
    fn released(&self, released: Result<Vec<bool>, Error>) -> bool {
        let left = |count: &AtomicU32| count.fetch_sub(1, Ordering::Relaxed) > 1;
        let tries_left = left(&self.tries);
        match released {
            Ok(released) => released.contains(&false) && left(&self.releases) && tries_left,
            Err(_) => tries_left,
        }
    }

    fn leases(&self) -> Vec<Lease<'_>> {
        self.asked.leases.iter().map(Owned::lease).collect()
    }
}

impl<B: Leases> RenewNow for Unsure<B> {
    fn renew(&self) -> bool {
        self.released(self.asked.backend.release(&self.leases()))
    }
}

#[cfg(feature = "tokio")]
impl<B: AsyncLeases> RenewLater for Unsure<B> {
    fn renew(self: Arc<Self>) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        Box::pin(async move { self.released(self.asked.backend.release_async(&self.leases()).await) })
    }
}

#[cfg(feature = "tokio")]
impl<B: AsyncLeases> RenewLater for Asked<B> {
    fn renew(self: Arc<Self>) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        Box::pin(async move {
            let held: Vec<_> = self.held().collect();
            let leases: Vec<_> = held.iter().map(|lease| lease.lease()).collect();
            Self::renewed(&held, self.backend.renew_async(&leases, self.life).await);
            true
        })
    }
}

impl<B> RedisGuard<B> {
    fn owned(&self) -> &Owned {
        &self.asked.leases[self.at]
    }

    fn lease(&self) -> Lease<'_> {
        self.owned().lease()
    }

    /// It need not be released.
    fn forget(&self) {
        self.let_go();
    }

    /// It is not to be released any more: whether it was.
    fn let_go(&self) -> bool {
        self.owned().is_held.swap(false, Ordering::AcqRel)
    }
}

impl<B> Drop for RedisGuard<B> {
    fn drop(&mut self) {
        if self.let_go() {
            (self.asked.release)(&self.asked.backend, &[self.lease()]);
        }
    }
}

impl<B> std::fmt::Debug for RedisGuard<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisGuard").field("lock", &self.owned().lock).finish_non_exhaustive()
    }
}

/// How a face asks for leases.
trait Face<B> {
    fn lease(
        backend: &B,
        wanted: &[Lease<'_>],
        life: Duration,
    ) -> impl Future<Output = Result<Vec<(bool, Option<Bytes>)>, Error>> + Send;

    fn read_or_lease(
        backend: &B,
        wanted: Lease<'_>,
        life: Duration,
    ) -> impl Future<Output = Result<(bool, Option<Bytes>), Error>> + Send;

    fn set_and_release(
        backend: &B,
        held: &[Lease<'_>],
        batch: &Batch,
        ttl: Option<Duration>,
        only_if_held: bool,
    ) -> impl Future<Output = Result<Vec<bool>, Error>> + Send;

    fn set_many(backend: &B, batch: &Batch, ttl: Option<Duration>) -> impl Future<Output = Result<(), Error>> + Send;

    /// What cannot be released ends by itself, and a lease that is gone need not be released.
    fn release(backend: &B, held: &[Lease<'_>]);

    /// Renews leases from now on, where there is somebody to do it.
    fn keep(asked: &Arc<Asked<B>>, period: Duration) -> Option<Kept>;

    /// Releases leases as soon as their server answers again.
    fn release_later(unsure: Unsure<B>, period: Duration);
}

impl<B: Leases> Face<B> for Thread {
    fn lease(
        backend: &B,
        wanted: &[Lease<'_>],
        life: Duration,
    ) -> impl Future<Output = Result<Vec<(bool, Option<Bytes>)>, Error>> + Send {
        ready(backend.lease(wanted, life))
    }

    fn read_or_lease(
        backend: &B,
        wanted: Lease<'_>,
        life: Duration,
    ) -> impl Future<Output = Result<(bool, Option<Bytes>), Error>> + Send {
        ready(backend.read_or_lease(wanted, life))
    }

    fn set_and_release(
        backend: &B,
        held: &[Lease<'_>],
        batch: &Batch,
        ttl: Option<Duration>,
        only_if_held: bool,
    ) -> impl Future<Output = Result<Vec<bool>, Error>> + Send {
        ready(backend.set_and_release(held, batch, ttl, only_if_held))
    }

    fn set_many(backend: &B, batch: &Batch, ttl: Option<Duration>) -> impl Future<Output = Result<(), Error>> + Send {
        ready(backend.set_many(batch, ttl))
    }

    fn release(backend: &B, held: &[Lease<'_>]) {
        let _ = backend.release(held);
    }

    fn keep(asked: &Arc<Asked<B>>, period: Duration) -> Option<Kept> {
        let leases: Weak<Asked<B>> = Arc::downgrade(asked);
        Some(renewal::keep_by_thread(period, leases))
    }

    fn release_later(unsure: Unsure<B>, period: Duration) {
        renewal::finish_by_thread(period, Arc::new(unsure));
    }
}

#[cfg(feature = "tokio")]
impl<B: AsyncLeases> Face<B> for Task {
    fn lease(
        backend: &B,
        wanted: &[Lease<'_>],
        life: Duration,
    ) -> impl Future<Output = Result<Vec<(bool, Option<Bytes>)>, Error>> + Send {
        backend.lease_async(wanted, life)
    }

    fn read_or_lease(
        backend: &B,
        wanted: Lease<'_>,
        life: Duration,
    ) -> impl Future<Output = Result<(bool, Option<Bytes>), Error>> + Send {
        backend.read_or_lease_async(wanted, life)
    }

    fn set_and_release(
        backend: &B,
        held: &[Lease<'_>],
        batch: &Batch,
        ttl: Option<Duration>,
        only_if_held: bool,
    ) -> impl Future<Output = Result<Vec<bool>, Error>> + Send {
        backend.set_and_release_async(held, batch, ttl, only_if_held)
    }

    fn set_many(backend: &B, batch: &Batch, ttl: Option<Duration>) -> impl Future<Output = Result<(), Error>> + Send {
        backend.set_many_async(batch, ttl)
    }

    fn release(backend: &B, held: &[Lease<'_>]) {
        backend.send_release(held);
    }

    fn keep(asked: &Arc<Asked<B>>, period: Duration) -> Option<Kept> {
        let leases: Weak<Asked<B>> = Arc::downgrade(asked);
        renewal::keep_by_task(period, leases)
    }

    fn release_later(unsure: Unsure<B>, period: Duration) {
        renewal::finish_by_task(period, Arc::new(unsure));
    }
}

/// No lease is renewed more often than that, whatever its life.
const SHORTEST: Duration = Duration::from_millis(1);

/// How soon a server is asked again to release what it may have taken.
const SOON: Duration = Duration::from_millis(200);

/// Whether asking the server again would only cost another timeout.
fn is_out_of_reach(error: &Error) -> bool {
    error.kind() == ErrorKind::Timeout
}

/// Sixteen random bytes as 32 hex digits, like redis-py's `uuid1().hex`.
fn token() -> Result<[u8; 32], Error> {
    let mut random = [0_u8; 16];
    getrandom::fill(&mut random).map_err(|error| {
        Error::new(ErrorKind::Config, format!("making a token for a lock: the system has no random numbers: {error}"))
    })?;
    let mut token = [0; 32];
    for (digits, byte) in token.chunks_exact_mut(2).zip(random) {
        digits.copy_from_slice(&hex(byte));
    }
    Ok(token)
}

impl<P: LostLease> RedisLock<P> {
    /// Locks for `keys`, each of which may be held as soon as it is asked for: a guard that is dropped releases it.
    fn ask<A: Face<B>, B: Clone>(&self, backend: &B, keys: &[Key<'_>]) -> Result<Guards<B>, Error> {
        let mut leases = SmallVec::with_capacity(keys.len());
        for key in keys {
            let (lock, token) = (self.name(*key), token()?);
            leases.push(Owned { lock, token, key: key.to_buf(), is_held: AtomicBool::new(true) });
        }
        let (backend, kept) = (backend.clone(), OnceLock::new());
        let asked = Arc::new(Asked { backend, leases, life: self.life, release: A::release, kept });
        let guards = (0..keys.len()).map(|at| RedisGuard { asked: Arc::clone(&asked), at }).collect();
        Ok(Guards { asked, guards })
    }

    async fn lock_and_read<A: Face<B>, B: Clone>(
        &self,
        backend: &B,
        keys: &[Key<'_>],
    ) -> Result<Vec<Attempt<RedisGuard<B>>>, Error> {
        let guards = self.ask::<A, B>(backend, keys)?;
        let wanted: Vec<_> = guards.asked.leases.iter().map(Owned::lease).collect();
        let taken = A::lease(backend, &wanted, self.life).await;
        drop(wanted);
        guards.answered::<A>(taken.map(Vec::into_iter))
    }

    async fn read_or_take<A: Face<B>, B: Clone>(
        &self,
        backend: &B,
        key: Key<'_>,
    ) -> Result<Attempt<RedisGuard<B>>, Error> {
        let guards = self.ask::<A, B>(backend, &[key])?;
        let taken = A::read_or_lease(backend, guards.asked.leases[0].lease(), self.life).await;
        let attempt = guards.answered::<A>(taken.map(std::iter::once))?.pop();
        Ok(attempt.unwrap_or(Attempt { guard: None, entry: None }))
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
            // The server released them, whatever it said of the store; or it is out of reach, and they end by
            // themselves.
            Err(error)
                if is_out_of_reach(&error) || matches!(error.kind(), ErrorKind::Server | ErrorKind::WrongType) =>
            {
                guards.iter().for_each(RedisGuard::forget);
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

/// Locks that were asked for, and may be held.
struct Guards<B> {
    asked: Arc<Asked<B>>,
    guards: Vec<RedisGuard<B>>,
}

impl<B> Guards<B> {
    /// What came of asking: of each, whether it is held, and the entry.
    fn answered<A: Face<B>>(
        self,
        taken: Result<impl Iterator<Item = (bool, Option<Bytes>)>, Error>,
    ) -> Result<Vec<Attempt<RedisGuard<B>>>, Error> {
        let Guards { asked, guards } = self;
        match taken {
            Ok(taken) => {
                let attempt = |(guard, (is_held, entry)): (RedisGuard<B>, (bool, _))| {
                    if !is_held {
                        guard.forget();
                    }
                    Attempt { guard: is_held.then_some(guard), entry }
                };
                let attempts: Vec<_> = guards.into_iter().zip(taken).map(attempt).collect();
                if attempts.iter().any(|attempt| attempt.guard.is_some()) {
                    asked.kept.get_or_init(|| A::keep(&asked, (asked.life / 3).max(SHORTEST)));
                }
                Ok(attempts)
            }
            Err(error) => {
                // Some may have been taken before the server refused the rest. One that is out of reach is not asked
                // again now: nobody should wait for that. But it may take them as soon as it has time.
                if is_out_of_reach(&error) {
                    guards.iter().for_each(RedisGuard::forget);
                    let period = (asked.life / 3).clamp(SHORTEST, SOON);
                    let tries = 2 * asked.life.as_millis().div_ceil(period.as_millis().max(1)).min(10_000) as u32;
                    let (releases, tries) = (AtomicU32::new(3), AtomicU32::new(tries.max(3)));
                    A::release_later(Unsure { asked: Arc::clone(&asked), releases, tries }, period);
                }
                release_all::<A, B>(guards);
                Err(error)
            }
        }
    }
}

/// Releases those that are held, together.
fn release_all<A: Face<B>, B>(mut guards: Vec<RedisGuard<B>>) {
    guards.retain(RedisGuard::let_go);
    if let Some(first) = guards.first() {
        let held: Vec<_> = guards.iter().map(RedisGuard::lease).collect();
        A::release(&first.asked.backend, &held);
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
        backend.watch(self.name(key).as_key().server_key())
    }

    fn is_locked(&self, backend: &B, key: Key<'_>) -> Result<bool, Error> {
        backend.is_leased(self.name(key).as_key().server_key())
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
        backend.watch_async(self.name(key).as_key().server_key())
    }

    async fn is_locked_async(&self, backend: &B, key: Key<'_>) -> Result<bool, Error> {
        backend.is_leased_async(self.name(key).as_key().server_key()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_named_as_the_reference_names_them() {
        let lock = RedisLock::new();
        assert_eq!(lock.name(Key::from("k")).to_string(), "_lok.k");
        assert_eq!(lock.name(Key::from(("a", "b"))).to_string(), "_lok.a,b");
        assert_eq!(lock.prefix("_lock").name(Key::from("k")).to_string(), "_lockk");
    }

    #[test]
    fn tokens_are_hex_and_never_the_same() {
        let (first, second) = (token().unwrap(), token().unwrap());
        assert!(first.iter().all(|digit| b"0123456789abcdef".contains(digit)));
        assert_ne!(first, second);
    }
}
