//! What happens when a lease is gone before its value is stored: flushed, evicted, or expired.

use crate::key::Key;

/// What to do with a value whose lease was lost. Its caller gets the value in each case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterLoss {
    /// Store it. Another process may be creating the value too, and the later one wins.
    Store,
    /// Do not store it: whoever holds the lease now will.
    Discard,
}

/// What to do when a lease is lost, decided case by case. Closures `Fn(Key<'_>) -> AfterLoss` are policies.
///
/// ```
/// use dogpile::{AfterLoss, Key, RedisLock};
///
/// let lock = RedisLock::new().when_lost(|key: Key<'_>| {
///     eprintln!("the lease on {key} was lost");
///     AfterLoss::Discard
/// });
/// ```
pub trait LostLease: Send + Sync + 'static {
    /// Whether the answer is always [`AfterLoss::Store`]. The value is then stored without asking the server first
    /// whether the lease is still held, in a plain write.
    const ALWAYS_STORES: bool = false;

    /// The lease on `key` was gone when its value was to be stored. Called outside of all locks but the key's own.
    fn lost(&self, key: Key<'_>) -> AfterLoss;
}

/// Stores the value all the same. The default: a cache that was flushed wants to be filled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Store;

impl LostLease for Store {
    const ALWAYS_STORES: bool = true;

    fn lost(&self, _: Key<'_>) -> AfterLoss {
        AfterLoss::Store
    }
}

/// Does not store the value: it may be older than what the new holder creates.
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard;

impl LostLease for Discard {
    fn lost(&self, _: Key<'_>) -> AfterLoss {
        AfterLoss::Discard
    }
}

impl<F: Fn(Key<'_>) -> AfterLoss + Send + Sync + 'static> LostLease for F {
    fn lost(&self, key: Key<'_>) -> AfterLoss {
        self(key)
    }
}
