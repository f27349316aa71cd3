//! What happens to a value whose lease was lost before it could be stored.

/// What [`RedisLock`](crate::RedisLock) does with a created value whose lease was lost.
///
/// A lease is lost if it was flushed, evicted, or expired because its holder was stopped for longer
/// than the lease. The caller gets the value in each case, and
/// [`Stats::lost_leases`](crate::Stats::lost_leases) counts the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnLeaseLost {
    /// Stores the value. The default: a cache that was flushed fills again. Another process may be
    /// creating the value too, and the later store wins. Costs a plain write.
    #[default]
    Store,
    /// Does not store the value, because it may be older than the one that the new holder creates.
    /// A script compares the lease and stores the value in one step.
    Discard,
}
