//! Locks: how many callers of all processes may create a value at the same time.
//!
//! A region lets one caller of its process create the value of a key; that is single-flight, and
//! needs no lock. A [`Lock`] does the same between processes. [`LocalLock`] is no lock, [`RedisLock`] a
//! lease in the server of the backend.

mod blocking;
mod lease;
mod local;
mod on_lost;
mod redis;

use std::time::Duration;

use bytes::Bytes;

use crate::backend::{AsyncBackend, Backend};
use crate::batch::{Batch, Found};
use crate::error::Error;
use crate::key::Key;
use crate::slice::Slice;

pub(crate) use self::blocking::BlockingLock;
pub use self::lease::RedisGuard;
pub use self::local::LocalLock;
pub use self::on_lost::OnLeaseLost;
pub use self::redis::RedisLock;
pub use crate::redis::transport::Watch;

/// A lock between processes for callers that are threads.
///
/// The region has already reduced the callers of one process to one before it asks the lock. A lock
/// of your own implements [`LockSettings`], [`try_lock`](Lock::try_lock) and
/// [`is_locked`](Lock::is_locked), and [`watch`](Lock::watch) if another process can hold it. A wrapper
/// around a lock delegates every method.
///
/// ```
/// use std::collections::HashSet;
/// use std::sync::{Arc, Mutex};
///
/// use dogpile::lock::LockSettings;
/// use dogpile::{Backend, Error, Key, KeyBuf, Lock, Memory, Region};
///
/// /// Shared by the regions of this process.
/// #[derive(Clone, Default)]
/// struct SharedLock(Arc<Mutex<HashSet<KeyBuf>>>);
///
/// struct Held(SharedLock, KeyBuf);
///
/// impl Drop for Held {
///     fn drop(&mut self) {
///         self.0.0.lock().unwrap().remove(&self.1);
///     }
/// }
///
/// impl LockSettings for SharedLock {}
///
/// impl<B: Backend> Lock<B> for SharedLock {
///     type Guard = Held;
///     fn try_lock(&self, _: &B, key: Key<'_>) -> Result<Option<Held>, Error> {
///         let is_new = self.0.lock().unwrap().insert(key.to_buf());
///         Ok(is_new.then(|| Held(self.clone(), key.to_buf())))
///     }
///     fn is_locked(&self, _: &B, key: Key<'_>) -> Result<bool, Error> {
///         Ok(self.0.lock().unwrap().contains(&key.to_buf()))
///     }
/// }
///
/// let region = Region::builder(Memory::new(1 << 20)).lock(SharedLock::default()).build()?;
/// let value: u64 = region.get_or_create("k", || Ok::<_, Error>(15)).unwrap();
/// assert_eq!(value, 15);
/// # Ok::<(), Error>(())
/// ```
pub trait Lock<B: Backend>: LockSettings {
    /// Holds the lock until it is dropped.
    type Guard: Send;

    /// Takes the lock on `key` if it is free. Does not wait.
    ///
    /// # Errors
    /// If the state of the lock cannot be learned.
    fn try_lock(&self, backend: &B, key: Key<'_>) -> Result<Option<Self::Guard>, Error>;

    /// Takes those locks of `keys` that are free, and then reads the entries.
    ///
    /// The read must come after the lock, because another process may have stored the value before it
    /// released the lock. Returns one attempt for each key, in the order of the keys. The default takes
    /// the locks one by one and reads the entries in one round trip.
    ///
    /// # Errors
    /// If the lock or the backend fails.
    fn try_lock_and_read(&self, backend: &B, keys: &[Key<'_>]) -> Result<Vec<Attempt<Self::Guard>>, Error> {
        let guards: Result<Vec<_>, _> = keys.iter().map(|key| self.try_lock(backend, *key)).collect();
        let guards = guards?;
        let mut found = Found::new();
        backend.get_many(keys, &mut found)?;
        Ok(attempts(guards, &found))
    }

    /// Reads the entry of `key` and takes the lock if there is no entry and the lock is free.
    ///
    /// The region calls it only if [`LockSettings::reads_and_locks`] returns `true`, and for keys that
    /// were not found recently. A lock that overrides it should need one round trip; the default needs
    /// two.
    ///
    /// # Errors
    /// If the lock or the backend fails.
    fn read_or_lock(&self, backend: &B, key: Key<'_>) -> Result<Attempt<Self::Guard>, Error> {
        let entry = backend.get(key)?;
        let guard = if entry.is_none() { self.try_lock(backend, key)? } else { None };
        Ok(Attempt { guard, entry })
    }

    /// Stores the entries of `batch`, one for each guard, and releases the guards.
    ///
    /// Returns how many guards had lost their lock before, for
    /// [`Stats::lost_leases`](crate::Stats::lost_leases).
    ///
    /// # Errors
    /// If some entries may not have been stored. The locks are released in any case.
    fn store_and_release(
        &self,
        backend: &B,
        guards: Vec<Self::Guard>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> Result<usize, Error> {
        let stored = match batch.len() {
            1 => backend.set(batch.key(0), batch.entry(0), ttl),
            _ => backend.set_many(batch, ttl),
        };
        drop(guards);
        stored.map(|()| 0)
    }

    /// Releases locks whose values are not stored. The default drops the guards one by one.
    fn release(&self, backend: &B, guards: Vec<Self::Guard>) {
        let _ = backend;
        drop(guards);
    }

    /// Watches the lock on `key`, which another process holds.
    ///
    /// The future is ready when the lock may be free or the value stored; it may be ready too early. If
    /// it is `None`, the default, the region polls the lock every 5 to 40 ms instead.
    fn watch(&self, backend: &B, key: Key<'_>) -> Option<Watch> {
        let _ = (backend, key);
        None
    }

    /// Returns whether another process may hold the lock on `key`.
    ///
    /// # Errors
    /// If the state of the lock cannot be learned.
    fn is_locked(&self, backend: &B, key: Key<'_>) -> Result<bool, Error>;
}

/// A lock between processes for callers that are tasks.
///
/// A type may implement both this trait and [`Lock`]; threads and tasks then exclude each other.
/// Dropping a guard must not block: it sends the release and does not wait for it.
///
/// # Cancel safety
/// Every future may be dropped at any time, and must then hold no lock.
pub trait AsyncLock<B: AsyncBackend>: LockSettings {
    /// Holds the lock until it is dropped.
    type AsyncGuard: Send;

    /// Takes the lock on `key` if it is free. Does not wait for the lock.
    ///
    /// # Errors
    /// If the state of the lock cannot be learned.
    fn try_lock_async(
        &self,
        backend: &B,
        key: Key<'_>,
    ) -> impl Future<Output = Result<Option<Self::AsyncGuard>, Error>> + Send;

    /// Takes those locks of `keys` that are free, and then reads the entries.
    ///
    /// The read must come after the lock, because another process may have stored the value before it
    /// released the lock. Returns one attempt for each key, in the order of the keys.
    ///
    /// # Errors
    /// If the lock or the backend fails.
    fn try_lock_and_read_async(
        &self,
        backend: &B,
        keys: &[Key<'_>],
    ) -> impl Future<Output = Result<Vec<Attempt<Self::AsyncGuard>>, Error>> + Send {
        async move {
            let mut guards = Vec::with_capacity(keys.len());
            for key in keys {
                guards.push(self.try_lock_async(backend, *key).await?);
            }
            let mut found = Found::new();
            backend.get_many_async(keys, &mut found).await?;
            Ok(attempts(guards, &found))
        }
    }

    /// Reads the entry of `key` and takes the lock if there is no entry and the lock is free.
    ///
    /// The region calls it only if [`LockSettings::reads_and_locks`] returns `true`, and for keys that
    /// were not found recently.
    ///
    /// # Errors
    /// If the lock or the backend fails.
    fn read_or_lock_async(
        &self,
        backend: &B,
        key: Key<'_>,
    ) -> impl Future<Output = Result<Attempt<Self::AsyncGuard>, Error>> + Send {
        async move {
            let entry = backend.get_async(key).await?;
            let guard = if entry.is_none() { self.try_lock_async(backend, key).await? } else { None };
            Ok(Attempt { guard, entry })
        }
    }

    /// Stores the entries of `batch`, one for each guard, and releases the guards.
    ///
    /// Returns how many guards had lost their lock before, for
    /// [`Stats::lost_leases`](crate::Stats::lost_leases).
    ///
    /// # Errors
    /// If some entries may not have been stored. The locks are released in any case.
    fn store_and_release_async(
        &self,
        backend: &B,
        guards: Vec<Self::AsyncGuard>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<usize, Error>> + Send {
        async move {
            let stored = match batch.len() {
                1 => backend.set_async(batch.key(0), batch.entry(0), ttl).await,
                _ => backend.set_many_async(batch, ttl).await,
            };
            drop(guards);
            stored.map(|()| 0)
        }
    }

    /// Releases locks whose values are not stored. Must not block. The default drops the guards.
    fn release(&self, backend: &B, guards: Vec<Self::AsyncGuard>) {
        let _ = backend;
        drop(guards);
    }

    /// Watches the lock on `key`, which another process holds.
    ///
    /// The future is ready when the lock may be free or the value stored; it may be ready too early. If
    /// it is `None`, the default, the region polls the lock every 5 to 40 ms instead.
    fn watch(&self, backend: &B, key: Key<'_>) -> Option<Watch> {
        let _ = (backend, key);
        None
    }

    /// Returns whether another process may hold the lock on `key`.
    ///
    /// # Errors
    /// If the state of the lock cannot be learned.
    fn is_locked_async(&self, backend: &B, key: Key<'_>) -> impl Future<Output = Result<bool, Error>> + Send;
}

/// What a lock tells about itself, for blocking and async callers alike.
pub trait LockSettings: Send + Sync {
    /// Whether the lock excludes only callers of one region, which single-flight excludes already.
    ///
    /// If `true`, the region calls nothing but [`try_lock`](Lock::try_lock), and a leader that knows
    /// that no creation has ended since its first read does not read again: a miss takes two round
    /// trips instead of three. Values that [`Region::set`](crate::Region::set) or other processes store
    /// in between are overwritten. `false`, the default, is always correct.
    const ONLY_THIS_REGION: bool = false;

    /// Returns whether keys that were not found recently are read by [`Lock::read_or_lock`], so that a
    /// miss takes two round trips instead of three. The default is `false`.
    fn reads_and_locks(&self) -> bool {
        false
    }

    /// Checks the settings. Called once, when a region is built.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) if the settings cannot work.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// The outcome of trying to lock a key.
#[derive(Debug)]
pub struct Attempt<G> {
    /// The guard, if the lock was free.
    pub guard: Option<G>,
    /// The entry as it was read after the lock was tried.
    pub entry: Option<Bytes>,
}

/// Pairs guards with the entries that were read after the locks were tried.
fn attempts<G>(guards: Vec<Option<G>>, found: &Found) -> Vec<Attempt<G>> {
    let attempt = |(guard, entry): (_, Option<Slice<'_>>)| Attempt { guard, entry: entry.map(Slice::to_bytes) };
    guards.into_iter().zip(found.iter()).map(attempt).collect()
}
