//! [`RedisLock`]: one creator of all processes, by a lease in the backend's own server.

use std::future::ready;
use std::time::Duration;

use bytes::Bytes;

#[cfg(feature = "tokio")]
use super::AsyncLock;
use super::{AfterLoss, Attempt, Lock, LockSettings, LostLease, Store};
#[cfg(feature = "tokio")]
use crate::backend::AsyncLeases;
use crate::backend::Leases;
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
/// new for each attempt, and deleted by a script that compares it. As in the reference, the plain key `a,b` and the
/// field `b` of `a` share a lock: a creator of one must not ask for the other. A crashed holder blocks others until the
/// lease ends, so it should be somewhat longer than the slowest creator takes.
///
/// A miss costs three round trips: read, lock and read again, store and release.
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
        RedisLock { prefix: b"_lok.".to_vec(), life: Duration::from_secs(10), policy: Store }
    }
}

impl<P> RedisLock<P> {
    /// What stands before an entry's key in that of its lock. Must not be empty.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefix = prefix.as_ref().into();
        self
    }

    /// How long a lease holds if it is not released, to the millisecond. Must not be zero.
    #[must_use]
    pub fn lease(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }

    /// What to do with a value whose lease was lost: [`Store`], [`Discard`](super::Discard), or your own.
    #[must_use]
    pub fn when_lost<Q: LostLease>(self, policy: Q) -> RedisLock<Q> {
        RedisLock { prefix: self.prefix, life: self.life, policy }
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
/// where it is a task by sending word, which nobody waits for.
pub struct RedisGuard<B> {
    backend: B,
    lock: KeyBuf,
    token: [u8; 32],
    key: KeyBuf,
    /// Whether the lease is still to be released.
    held: bool,
    release: fn(&B, &[Lease<'_>]),
}

impl<B> RedisGuard<B> {
    fn lease(&self) -> Lease<'_> {
        Lease { lock: self.lock.as_key().server_key(), token: &self.token, key: self.key.as_key() }
    }
}

impl<B> Drop for RedisGuard<B> {
    fn drop(&mut self) {
        if self.held {
            (self.release)(&self.backend, &[self.lease()]);
        }
    }
}

impl<B> std::fmt::Debug for RedisGuard<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisGuard").field("lock", &self.lock).finish_non_exhaustive()
    }
}

/// How a face asks for leases.
trait Face<B> {
    fn lease(
        backend: &B,
        wanted: &[Lease<'_>],
        life: Duration,
    ) -> impl Future<Output = Result<Vec<(bool, Option<Bytes>)>, Error>> + Send;

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
}

impl<B: Leases> Face<B> for Thread {
    fn lease(
        backend: &B,
        wanted: &[Lease<'_>],
        life: Duration,
    ) -> impl Future<Output = Result<Vec<(bool, Option<Bytes>)>, Error>> + Send {
        ready(backend.lease(wanted, life))
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
}

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
    async fn lock_and_read<A: Face<B>, B: Clone>(
        &self,
        backend: &B,
        keys: &[Key<'_>],
    ) -> Result<Vec<Attempt<RedisGuard<B>>>, Error> {
        // Until the answer is there, each lease may be held: a future that is dropped meanwhile releases them.
        let guard = |key: &Key<'_>| {
            let (lock, token) = (self.name(*key), token()?);
            let (backend, key) = (backend.clone(), key.to_buf());
            Ok(RedisGuard { backend, lock, token, key, held: true, release: A::release })
        };
        let guards: Result<Vec<_>, Error> = keys.iter().map(guard).collect();
        let mut guards = guards?;
        let wanted: Vec<_> = guards.iter().map(RedisGuard::lease).collect();
        let taken = A::lease(backend, &wanted, self.life).await;
        drop(wanted);
        match taken {
            Ok(taken) => {
                let attempts = guards.into_iter().zip(taken).map(|(mut guard, (held, entry))| {
                    guard.held = held;
                    Attempt { guard: held.then_some(guard), entry }
                });
                Ok(attempts.collect())
            }
            Err(error) => {
                // Some may have been taken before the server refused the rest. One that is out of reach is not asked
                // again: what it holds ends by itself.
                if is_out_of_reach(&error) {
                    guards.iter_mut().for_each(|guard| guard.held = false);
                }
                release_all::<A, B>(backend, guards);
                Err(error)
            }
        }
    }

    async fn store_all<A: Face<B>, B>(
        &self,
        backend: &B,
        mut guards: Vec<RedisGuard<B>>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> Result<(), Error> {
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
                guards.iter_mut().for_each(|guard| guard.held = false);
                return Err(error);
            }
            Err(error) => {
                release_all::<A, B>(backend, guards);
                return Err(error);
            }
        };
        let mut again = Batch::new();
        for (at, (guard, still_held)) in guards.iter_mut().zip(still_held).enumerate() {
            guard.held = false;
            let key = batch.key(at);
            if !still_held && self.policy.lost(key) == AfterLoss::Store && !P::ALWAYS_STORES {
                again.push(key, |out| out.extend_from_slice(batch.entry(at)));
            }
        }
        A::set_many(backend, &again, ttl).await
    }
}

/// Releases those that are held, together.
fn release_all<A: Face<B>, B>(backend: &B, mut guards: Vec<RedisGuard<B>>) {
    guards.retain(|guard| guard.held);
    if !guards.is_empty() {
        let held: Vec<_> = guards.iter().map(RedisGuard::lease).collect();
        A::release(backend, &held);
        drop(held);
        guards.iter_mut().for_each(|guard| guard.held = false);
    }
}

impl<P: LostLease> LockSettings for RedisLock<P> {
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

    fn store_and_release(
        &self,
        backend: &B,
        guards: Vec<Self::Guard>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> Result<(), Error> {
        now(self.store_all::<Thread, B>(backend, guards, batch, ttl))
    }

    fn release(&self, backend: &B, guards: Vec<Self::Guard>) {
        release_all::<Thread, B>(backend, guards);
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

    fn store_and_release_async(
        &self,
        backend: &B,
        guards: Vec<RedisGuard<B>>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        self.store_all::<Task, B>(backend, guards, batch, ttl)
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
