//! Who may create a value: one caller in this process by the line, one of all processes by a [`Lock`].

mod lease;
mod local;
mod on_lost;
mod redis;
mod renewal;

use std::time::Duration;

use bytes::Bytes;

#[cfg(feature = "tokio")]
use crate::backend::AsyncBackend;
use crate::backend::Backend;
use crate::backend::leases::Watch;
use crate::batch::{Batch, Found};
use crate::error::Error;
use crate::key::Key;
use crate::slice::Slice;

pub use self::lease::RedisGuard;
pub use self::local::LocalLock;
pub use self::on_lost::{AfterLoss, Discard, LostLease, Store};
pub use self::redis::RedisLock;

/// Who may create a value, among processes. Callers of one process have been brought down to one before it is asked.
///
/// A lock of your own needs [`LockSettings`], [`try_lock`](Lock::try_lock) and [`is_locked`](Lock::is_locked), and
/// [`watch`](Lock::watch) where another process can hold it; a wrapper around one passes on all.
///
/// ```
/// use std::collections::HashSet;
/// use std::sync::{Arc, Mutex};
/// use dogpile::{Backend, Error, Key, KeyBuf, Lock, LockSettings, Memory, Region};
///
/// /// Shared by the regions of this process.
/// #[derive(Clone, Default)]
/// struct Shared(Arc<Mutex<HashSet<KeyBuf>>>);
///
/// struct Held(Shared, KeyBuf);
///
/// impl Drop for Held {
///     fn drop(&mut self) {
///         self.0.0.lock().unwrap().remove(&self.1);
///     }
/// }
///
/// impl LockSettings for Shared {}
///
/// impl<B: Backend> Lock<B> for Shared {
///     type Guard = Held;
///     fn try_lock(&self, _: &B, key: Key<'_>) -> Result<Option<Held>, Error> {
///         let new = self.0.lock().unwrap().insert(key.to_buf());
///         Ok(new.then(|| Held(self.clone(), key.to_buf())))
///     }
///     fn is_locked(&self, _: &B, key: Key<'_>) -> Result<bool, Error> {
///         Ok(self.0.lock().unwrap().contains(&key.to_buf()))
///     }
/// }
///
/// let region = Region::builder(Memory::new(1 << 20)).lock(Shared::default()).build()?;
/// let value: u64 = region.get_or_create("k", || Ok::<_, Error>(15)).unwrap();
/// # Ok::<(), Error>(())
/// ```
pub trait Lock<B: Backend>: LockSettings {
    /// Holds the lock until it is dropped.
    type Guard: Send;

    /// Takes the lock on `key` if nobody has it. Does not wait.
    ///
    /// # Errors
    /// When the lock cannot tell.
    fn try_lock(&self, backend: &B, key: Key<'_>) -> Result<Option<Self::Guard>, Error>;

    /// Takes the lock on each of `keys` that nobody has, and reads the entries after that: another process may have
    /// created them before it released its lock. As many members as there are keys, in their order.
    ///
    /// # Errors
    /// When the lock or the backend cannot tell.
    fn try_lock_and_read(&self, backend: &B, keys: &[Key<'_>]) -> Result<Vec<Attempt<Self::Guard>>, Error> {
        let guards: Result<Vec<_>, _> = keys.iter().map(|key| self.try_lock(backend, *key)).collect();
        let guards = guards?;
        let mut found = Found::new();
        backend.get_many(keys, &mut found)?;
        Ok(attempts(guards, &found))
    }

    /// Reads the entry of `key` and, where there is none, takes the lock if nobody has it: in one round trip instead of
    /// two. Asked only where the lock [says so](LockSettings::reads_and_locks), and for keys that were not found lately.
    ///
    /// # Errors
    /// When the lock or the backend cannot tell.
    fn read_or_lock(&self, backend: &B, key: Key<'_>) -> Result<Attempt<Self::Guard>, Error> {
        let entry = backend.get(key)?;
        let guard = if entry.is_none() { self.try_lock(backend, key)? } else { None };
        Ok(Attempt { guard, entry })
    }

    /// Stores the entries of `batch`, one for each guard, and releases the guards: how many of them had lost their lock
    /// before, for [`Stats`](crate::region::stats::Stats).
    ///
    /// # Errors
    /// When some may not have been stored. The locks are released all the same.
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

    /// Releases locks whose values are not stored. Dropping the guards does so too, one by one.
    fn release(&self, backend: &B, guards: Vec<Self::Guard>) {
        let _ = backend;
        drop(guards);
    }

    /// Tells when the lock on `key`, which another process holds, may be free, or its value there; see
    /// [`Leases::watch`](crate::backend::Leases::watch). `None`, the default, where nothing tells: whoever waits then asks again
    /// after pauses of 5 to 40 ms.
    fn watch(&self, backend: &B, key: Key<'_>) -> Option<Watch> {
        let _ = (backend, key);
        None
    }

    /// Whether another process may hold the lock on `key`.
    ///
    /// # Errors
    /// When the lock cannot tell.
    fn is_locked(&self, backend: &B, key: Key<'_>) -> Result<bool, Error>;
}

/// As [`Lock`], for callers that are tasks; a type may be both, and then they lock each other out.
///
/// A guard that is dropped must not block: it sends word, and somebody else waits. Futures may be dropped at any time,
/// and then hold no lock.
#[cfg(feature = "tokio")]
pub trait AsyncLock<B: AsyncBackend>: LockSettings {
    /// Holds the lock until it is dropped.
    type AsyncGuard: Send;

    /// As [`Lock::try_lock`].
    ///
    /// # Errors
    /// As there.
    fn try_lock_async(
        &self,
        backend: &B,
        key: Key<'_>,
    ) -> impl Future<Output = Result<Option<Self::AsyncGuard>, Error>> + Send;

    /// As [`Lock::try_lock_and_read`].
    ///
    /// # Errors
    /// As there.
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

    /// As [`Lock::read_or_lock`].
    ///
    /// # Errors
    /// As there.
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

    /// As [`Lock::store_and_release`].
    ///
    /// # Errors
    /// As there.
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

    /// As [`Lock::watch`]; it is named apart because a type may be both.
    fn watch_async(&self, backend: &B, key: Key<'_>) -> Option<Watch> {
        let _ = (backend, key);
        None
    }

    /// As [`Lock::is_locked`].
    ///
    /// # Errors
    /// As there.
    fn is_locked_async(&self, backend: &B, key: Key<'_>) -> impl Future<Output = Result<bool, Error>> + Send;
}

/// What a lock is for callers of either face.
pub trait LockSettings: Send + Sync {
    /// Whether it keeps nobody off but the callers of one region, who stand in its line anyway. The winner of such a
    /// lock need not read again when it knows from the line that nobody created since it read, and is asked by
    /// [`try_lock`](Lock::try_lock) only: a miss has two round trips then, and not three. What is written meanwhile by
    /// [`Region::set`](crate::region::Region::set), or by other processes, is not known from the line, and is written over.
    /// `false`, the default, is never wrong.
    const ONLY_THIS_REGION: bool = false;

    /// Whether keys that were not found lately are read by [`Lock::read_or_lock`], so that a miss has two round trips and
    /// not three.
    fn reads_and_locks(&self) -> bool {
        false
    }

    /// Whether its settings can work; asked once, when a region is built.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) when they cannot.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// What came of trying to lock a key.
#[derive(Debug)]
pub struct Attempt<G> {
    /// The lock, if it is ours now.
    pub guard: Option<G>,
    /// The entry as it was after that.
    pub entry: Option<Bytes>,
}

/// Guards, and the entries that were read after they were taken.
fn attempts<G>(guards: Vec<Option<G>>, found: &Found) -> Vec<Attempt<G>> {
    let attempt = |(guard, entry): (_, Option<Slice<'_>>)| Attempt { guard, entry: entry.map(Slice::to_bytes) };
    guards.into_iter().zip(found.iter()).map(attempt).collect()
}
