//! [`RedisGuard`]: leases that were asked for of a server, while they are held, and until they are released.

use std::future::ready;
#[cfg(feature = "tokio")]
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

#[cfg(feature = "tokio")]
use crate::backend::leases::AsyncLeases;
use crate::backend::leases::Lease;
use crate::backend::leases::Leases;
use crate::batch::Batch;
use crate::error::{Error, ErrorKind};
#[cfg(feature = "tokio")]
use crate::exec::Task;
use crate::exec::Thread;
use crate::key::{Key, KeyBuf, hex};
use crate::lock::Attempt;
use crate::lock::renewal;
#[cfg(feature = "tokio")]
use crate::lock::renewal::RenewLater;
use crate::lock::renewal::{Kept, RenewNow};

/// Holds a [`RedisLock`](crate::lock::RedisLock) until it is dropped, which releases it: in one round trip where its holder is a thread, and
/// where it is a task by sending word, which nobody waits for. Until then it is renewed.
pub struct RedisGuard<B> {
    asked: Arc<Asked<B>>,
    at: usize,
}

/// Leases that were asked for together, and are renewed together while one of them is held.
pub(crate) struct Asked<B> {
    backend: B,
    leases: SmallVec<[Owned; 1]>,
    life: Duration,
    release: fn(&RedisGuard<B>),
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

/// Leases that nobody waits for any more, and that a server which did not answer may have taken, or may still take when it
/// has time again; or that it may not have released, and its successor has.
pub(crate) struct Unsure<B> {
    asked: Arc<Asked<B>>,
    which: SmallVec<[usize; 1]>,
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
        self.which.iter().map(|at| self.asked.leases[*at].lease()).collect()
    }
}

/// Releases these as soon as their server answers again, for as long as one of them may live.
pub(crate) fn release_later<A: Face<B>, B>(guards: &[RedisGuard<B>]) {
    let Some(first) = guards.first() else { return };
    guards.iter().for_each(RedisGuard::forget);
    let asked = Arc::clone(&first.asked);
    let (life, which) = (asked.life, guards.iter().map(|guard| guard.at).collect());
    let period = (life / 3).clamp(SHORTEST, SOON);
    let tries = 2 * life.as_millis().div_ceil(period.as_millis().max(1)).min(10_000) as u32;
    let (releases, tries) = (AtomicU32::new(3), AtomicU32::new(tries.max(3)));
    A::release_later(Unsure { asked, which, releases, tries }, period);
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

    pub(crate) fn lease(&self) -> Lease<'_> {
        self.owned().lease()
    }

    /// It need not be released.
    pub(crate) fn forget(&self) {
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
            (self.asked.release)(self);
        }
    }
}

impl<B> std::fmt::Debug for RedisGuard<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisGuard").field("lock", &self.owned().lock).finish_non_exhaustive()
    }
}

/// How a face asks for leases.
pub(crate) trait Face<B> {
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

    fn lock_name(backend: &B, prefix: &[u8], key: Key<'_>) -> KeyBuf;

    /// Whether they are released, or word was sent that they be. A lease that is gone need not be released.
    fn release(backend: &B, held: &[Lease<'_>]) -> bool;

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

    fn lock_name(backend: &B, prefix: &[u8], key: Key<'_>) -> KeyBuf {
        backend.lock_name(prefix, key)
    }

    fn release(backend: &B, held: &[Lease<'_>]) -> bool {
        !matches!(backend.release(held), Err(error) if error.is_out_of_reach())
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

    fn lock_name(backend: &B, prefix: &[u8], key: Key<'_>) -> KeyBuf {
        backend.lock_name_async(prefix, key)
    }

    fn release(backend: &B, held: &[Lease<'_>]) -> bool {
        backend.send_release(held);
        true
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

/// Locks that were asked for, and may be held.
pub(crate) struct Guards<B> {
    asked: Arc<Asked<B>>,
    guards: Vec<RedisGuard<B>>,
}

impl<B: Clone> Guards<B> {
    /// Those of locks with these names for these entries. Each may be held as soon as it is asked for: a guard that is
    /// dropped releases it.
    pub(crate) fn new<A: Face<B>>(
        backend: &B,
        life: Duration,
        wanted: impl ExactSizeIterator<Item = (KeyBuf, KeyBuf)>,
    ) -> Result<Self, Error> {
        let mut leases = SmallVec::with_capacity(wanted.len());
        for (lock, key) in wanted {
            leases.push(Owned { lock, token: token()?, key, is_held: AtomicBool::new(true) });
        }
        let (backend, many) = (backend.clone(), leases.len());
        let asked = Arc::new(Asked { backend, leases, life, release: release_held::<A, B>, kept: OnceLock::new() });
        let guards = (0..many).map(|at| RedisGuard { asked: Arc::clone(&asked), at }).collect();
        Ok(Guards { asked, guards })
    }

    /// Takes those that nobody has, and reads the entries after that.
    pub(crate) async fn take_and_read<A: Face<B>>(self) -> Result<Vec<Attempt<RedisGuard<B>>>, Error> {
        let wanted: Vec<_> = self.asked.leases.iter().map(Owned::lease).collect();
        let taken = A::lease(&self.asked.backend, &wanted, self.asked.life).await;
        drop(wanted);
        self.answered::<A>(taken.map(Vec::into_iter))
    }

    /// Reads an entry and, where there is none, takes its lock if nobody has it.
    pub(crate) async fn read_or_take<A: Face<B>>(self) -> Result<Attempt<RedisGuard<B>>, Error> {
        let taken = A::read_or_lease(&self.asked.backend, self.asked.leases[0].lease(), self.asked.life).await;
        let attempt = self.answered::<A>(taken.map(std::iter::once))?.pop();
        Ok(attempt.unwrap_or(Attempt { guard: None, entry: None }))
    }

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
                if error.is_out_of_reach() {
                    release_later::<A, B>(&guards);
                }
                release_all::<A, B>(guards);
                Err(error)
            }
        }
    }
}

/// Releases those that are held, together.
pub(crate) fn release_all<A: Face<B>, B>(mut guards: Vec<RedisGuard<B>>) {
    guards.retain(RedisGuard::let_go);
    let Some(first) = guards.first() else { return };
    let held: Vec<_> = guards.iter().map(RedisGuard::lease).collect();
    if !A::release(&first.asked.backend, &held) {
        release_later::<A, B>(&guards);
    }
}

fn release_held<A: Face<B>, B>(guard: &RedisGuard<B>) {
    if !A::release(&guard.asked.backend, &[guard.lease()]) {
        release_later::<A, B>(std::slice::from_ref(guard));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_hex_and_never_the_same() {
        let (first, second) = (token().unwrap(), token().unwrap());
        assert!(first.iter().all(|digit| b"0123456789abcdef".contains(digit)));
        assert_ne!(first, second);
    }
}
