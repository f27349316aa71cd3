//! [`RedisLock`]: one creator of all processes, by a lease in the backend's own server.

use std::time::Duration;

use super::{AfterLoss, Attempt, Lock, LostLease, Store};
use crate::backend::Leases;
use crate::error::{Error, ErrorKind};
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

/// Holds a [`RedisLock`] until it is dropped, which releases it in one round trip.
pub struct RedisGuard<B: Leases> {
    backend: B,
    lock: KeyBuf,
    token: [u8; 32],
    key: KeyBuf,
    /// Whether the lease is still to be released.
    held: bool,
}

impl<B: Leases> RedisGuard<B> {
    fn lease(&self) -> Lease<'_> {
        Lease { lock: self.lock.as_key().server_key(), token: &self.token, key: self.key.as_key() }
    }
}

impl<B: Leases> Drop for RedisGuard<B> {
    fn drop(&mut self) {
        if self.held {
            // What cannot be released ends by itself, and a lease that is gone need not be released.
            let _ = self.backend.release(&[self.lease()]);
        }
    }
}

impl<B: Leases> std::fmt::Debug for RedisGuard<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisGuard").field("lock", &self.lock).finish_non_exhaustive()
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

impl<B: Leases, P: LostLease> Lock<B> for RedisLock<P> {
    type Guard = RedisGuard<B>;

    fn try_lock(&self, backend: &B, key: Key<'_>) -> Result<Option<Self::Guard>, Error> {
        Ok(self.try_lock_and_read(backend, &[key])?.pop().and_then(|attempt| attempt.guard))
    }

    fn try_lock_and_read(&self, backend: &B, keys: &[Key<'_>]) -> Result<Vec<Attempt<Self::Guard>>, Error> {
        let guard = |key: &Key<'_>| {
            let (lock, token) = (self.name(*key), token()?);
            Ok(RedisGuard { backend: backend.clone(), lock, token, key: key.to_buf(), held: false })
        };
        let guards: Vec<_> = keys.iter().map(guard).collect::<Result<_, Error>>()?;
        let wanted: Vec<_> = guards.iter().map(RedisGuard::lease).collect();
        let taken = match backend.lease(&wanted, self.life) {
            Ok(taken) => taken,
            Err(error) => {
                // Some may have been taken before the server refused the rest. One that is out of reach is not asked
                // again: what it holds ends by itself.
                if !is_out_of_reach(&error) {
                    let _ = backend.release(&wanted);
                }
                return Err(error);
            }
        };
        drop(wanted);
        let attempts = guards.into_iter().zip(taken).map(|(mut guard, (held, entry))| {
            guard.held = held;
            Attempt { guard: held.then_some(guard), entry }
        });
        Ok(attempts.collect())
    }

    fn store_and_release(
        &self,
        backend: &B,
        mut guards: Vec<Self::Guard>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> Result<(), Error> {
        let held: Vec<_> = guards.iter().map(RedisGuard::lease).collect();
        let stored = backend.set_and_release(&held, batch, ttl, !P::ALWAYS_STORES);
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
                self.release(backend, guards);
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
        backend.set_many(&again, ttl)
    }

    fn release(&self, backend: &B, mut guards: Vec<Self::Guard>) {
        guards.retain(|guard| guard.held);
        if !guards.is_empty() {
            let held: Vec<_> = guards.iter().map(RedisGuard::lease).collect();
            // What cannot be released ends by itself, and a lease that is gone need not be released.
            let _ = backend.release(&held);
            drop(held);
            guards.iter_mut().for_each(|guard| guard.held = false);
        }
    }

    fn is_locked(&self, backend: &B, key: Key<'_>) -> Result<bool, Error> {
        backend.is_leased(self.name(key).as_key().server_key())
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
