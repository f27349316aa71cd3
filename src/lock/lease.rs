//! [`RedisGuard`]: leases that were requested from a server, from the request to the release.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::error::{Error, ErrorKind};
use crate::exec::Exec;
use crate::exec::periodic::{CancelOnDrop, Job, Periodic};
use crate::key::{Key, KeyBuf, hex};
use crate::lock::Attempt;
use crate::redis::leases;
use crate::redis::protocol::commands::leases::Lease;
use crate::redis::transport::AsyncTransport;

/// What a server must be for leases that outlive a call: a handle that can be cloned.
pub trait LeaseServer: AsyncTransport + Clone + 'static {}

impl<T: AsyncTransport + Clone + 'static> LeaseServer for T {}

/// Holds a lease of [`RedisLock`](crate::RedisLock) until it is dropped.
///
/// The lease is renewed meanwhile. Dropping the guard releases it: in one round trip if its holder is
/// a thread, and without waiting if it is a task.
pub struct RedisGuard<T: LeaseServer> {
    group: Arc<LeaseGroup<T>>,
    index: usize,
}

/// Leases that were requested together, and are renewed together while one of them is held.
struct LeaseGroup<T> {
    server: T,
    leases: SmallVec<[OwnedLease; 1]>,
    ttl: Duration,
    /// `None` if nothing can renew the leases.
    renewal: OnceLock<Option<CancelOnDrop>>,
}

struct OwnedLease {
    lock: KeyBuf,
    token: [u8; 32],
    key: KeyBuf,
    /// Whether the lease must be renewed, and released in the end.
    is_held: AtomicBool,
}

impl OwnedLease {
    fn as_lease(&self) -> Lease<'_> {
        Lease { lock: self.lock.as_key().server_key(), token: &self.token, key: self.key.as_key() }
    }
}

impl<T: LeaseServer> Periodic for LeaseGroup<T> {
    fn run(self: Arc<Self>) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        Box::pin(async move {
            let held: Vec<_> = self.leases.iter().filter(|lease| lease.is_held.load(Ordering::Acquire)).collect();
            let renewing: Vec<_> = held.iter().map(|lease| lease.as_lease()).collect();
            // After an error the next period tries again, as long as the lease lives.
            let renewed = leases::renew(&self.server, &renewing, self.ttl).await.unwrap_or_default();
            for (lease, is_held) in held.iter().zip(renewed) {
                // A lease that expired, or that has another holder, is not renewed any more.
                lease.is_held.fetch_and(is_held, Ordering::AcqRel);
            }
            true
        })
    }
}

/// Leases without a holder that the server may still hold.
///
/// A server that did not answer may have taken them, or may still do so once it continues; or it may
/// not have released them, and its successor has them.
struct PendingRelease<T: LeaseServer> {
    group: Arc<LeaseGroup<T>>,
    indexes: SmallVec<[usize; 1]>,
    /// How many replies are still needed. More than one, since a server need not execute the commands
    /// of two connections in the order in which they were sent.
    replies_left: AtomicU32,
    tries_left: AtomicU32,
}

impl<T: LeaseServer> Periodic for PendingRelease<T> {
    fn run(self: Arc<Self>) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        Box::pin(async move {
            let leases: Vec<_> = self.indexes.iter().map(|&index| self.group.leases[index].as_lease()).collect();
            let released = leases::release(&self.group.server, &leases).await;
            let is_left = |count: &AtomicU32| count.fetch_sub(1, Ordering::Relaxed) > 1;
            let has_tries = is_left(&self.tries_left);
            match released {
                Ok(released) => released.contains(&false) && is_left(&self.replies_left) && has_tries,
                Err(_) => has_tries,
            }
        })
    }
}

/// The shortest period of renewals, whatever the lease.
const MIN_PERIOD: Duration = Duration::from_millis(1);

/// The longest period of releases that are repeated until the server answers.
const RELEASE_PERIOD: Duration = Duration::from_millis(200);

/// Releases leases in the background until their server answers, for as long as one of them may live.
pub(super) fn release_in_background<T: LeaseServer>(guards: &[RedisGuard<T>]) {
    let Some(first) = guards.first() else { return };
    guards.iter().for_each(RedisGuard::forget);
    let group = Arc::clone(&first.group);
    let (ttl, indexes) = (group.ttl, guards.iter().map(|guard| guard.index).collect());
    let period = (ttl / 3).clamp(MIN_PERIOD, RELEASE_PERIOD);
    let tries = 2 * ttl.as_millis().div_ceil(period.as_millis().max(1)).min(10_000) as u32;
    let (replies_left, tries_left) = (AtomicU32::new(3), AtomicU32::new(tries.max(3)));
    let release = PendingRelease { group, indexes, replies_left, tries_left };
    T::Exec::every(period, Job::UntilDone(Arc::new(release)));
}

/// Releases those of the leases that are still held, together.
pub(super) fn release_all<T: LeaseServer>(mut guards: Vec<RedisGuard<T>>) {
    guards.retain(RedisGuard::take_held);
    release(&guards);
}

/// Releases leases now, or in the background if the server cannot be reached.
fn release<T: LeaseServer>(guards: &[RedisGuard<T>]) {
    let Some(first) = guards.first() else { return };
    let held: Vec<_> = guards.iter().map(RedisGuard::lease).collect();
    if matches!(leases::send_release(&first.group.server, &held), Err(error) if error.is_out_of_reach()) {
        release_in_background(guards);
    }
}

impl<T: LeaseServer> RedisGuard<T> {
    fn owned(&self) -> &OwnedLease {
        &self.group.leases[self.index]
    }

    pub(super) fn lease(&self) -> Lease<'_> {
        self.owned().as_lease()
    }

    /// Marks the lease as one that needs no release.
    pub(super) fn forget(&self) {
        self.take_held();
    }

    /// Takes the duty to release the lease. Returns whether it was still there.
    fn take_held(&self) -> bool {
        self.owned().is_held.swap(false, Ordering::AcqRel)
    }
}

impl<T: LeaseServer> Drop for RedisGuard<T> {
    fn drop(&mut self) {
        if self.take_held() {
            release(std::slice::from_ref(self));
        }
    }
}

impl<T: LeaseServer> std::fmt::Debug for RedisGuard<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisGuard").field("lock", &self.owned().lock).finish_non_exhaustive()
    }
}

/// Leases that are about to be requested.
pub(super) struct LeaseRequest<T: LeaseServer> {
    group: Arc<LeaseGroup<T>>,
    guards: Vec<RedisGuard<T>>,
}

impl<T: LeaseServer> LeaseRequest<T> {
    /// Prepares the leases of locks with this prefix on these entries. From here on each of them counts
    /// as held: if the request is dropped, the leases are released, since the server may have granted them.
    pub(super) fn new(server: T, prefix: &[u8], keys: &[Key<'_>], ttl: Duration) -> Result<Self, Error> {
        let mut wanted = SmallVec::with_capacity(keys.len());
        for &key in keys {
            let lock = leases::lock_name(&server, prefix, key);
            wanted.push(OwnedLease { lock, token: token()?, key: key.to_buf(), is_held: AtomicBool::new(true) });
        }
        let group = Arc::new(LeaseGroup { server, leases: wanted, ttl, renewal: OnceLock::new() });
        let guards = (0..keys.len()).map(|index| RedisGuard { group: Arc::clone(&group), index }).collect();
        Ok(LeaseRequest { group, guards })
    }

    /// Takes the leases that are free, and then reads the entries: one round trip.
    pub(super) async fn take_and_read(self) -> Result<Vec<Attempt<RedisGuard<T>>>, Error> {
        let wanted: Vec<_> = self.group.leases.iter().map(OwnedLease::as_lease).collect();
        let taken = leases::lease(&self.group.server, &wanted, self.group.ttl).await;
        drop(wanted);
        self.finish(taken.map(Vec::into_iter))
    }

    /// Reads the entry and, if there is none, takes the lease if it is free: one round trip.
    pub(super) async fn read_or_take(self) -> Result<Attempt<RedisGuard<T>>, Error> {
        let wanted = self.group.leases[0].as_lease();
        let taken = leases::read_or_lease(&self.group.server, wanted, self.group.ttl).await;
        let attempt = self.finish(taken.map(std::iter::once))?.pop();
        Ok(attempt.unwrap_or(Attempt { guard: None, entry: None }))
    }

    /// Takes the replies: for each lease whether it was granted, and the entry.
    fn finish(
        self,
        taken: Result<impl Iterator<Item = (bool, Option<Bytes>)>, Error>,
    ) -> Result<Vec<Attempt<RedisGuard<T>>>, Error> {
        let LeaseRequest { group, guards } = self;
        match taken {
            Ok(taken) => {
                let attempt = |(guard, (is_held, entry)): (RedisGuard<T>, (bool, _))| {
                    if !is_held {
                        guard.forget();
                    }
                    Attempt { guard: is_held.then_some(guard), entry }
                };
                let attempts: Vec<_> = guards.into_iter().zip(taken).map(attempt).collect();
                if attempts.iter().any(|attempt| attempt.guard.is_some()) {
                    group.renewal.get_or_init(|| start_renewal(&group));
                }
                Ok(attempts)
            }
            Err(error) => {
                // The server may have granted some before it refused the others. If it cannot be reached,
                // nothing waits for it now, but it may grant them once it continues.
                if error.is_out_of_reach() {
                    release_in_background(&guards);
                }
                release_all(guards);
                Err(error)
            }
        }
    }
}

/// Renews the leases of a group at each third of their life.
fn start_renewal<T: LeaseServer>(group: &Arc<LeaseGroup<T>>) -> Option<CancelOnDrop> {
    let leases: Weak<LeaseGroup<T>> = Arc::downgrade(group);
    let handle = T::Exec::every((group.ttl / 3).max(MIN_PERIOD), Job::WhileOwned(leases))?;
    Some(handle.cancel_on_drop())
}

/// Makes a token of sixteen random bytes as 32 hex digits, like redis-py's `uuid1().hex`.
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
    fn tokens_are_hex_and_unique() {
        let (first, second) = (token().unwrap(), token().unwrap());
        assert!(first.iter().all(|digit| b"0123456789abcdef".contains(digit)));
        assert_ne!(first, second);
    }
}
