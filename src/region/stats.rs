//! [`Stats`]: counters of what is not a plain hit.

use std::sync::atomic::{AtomicU64, Ordering};

/// What has happened in a region since it was built.
///
/// Hits are not counted: a counter that all threads write to would cost more than the rest of a hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Values that a creator returned.
    pub creations: u64,
    /// Creators that failed or panicked, or whose task was dropped.
    pub failed_creations: u64,
    /// Callers that got the value that another caller of this process created.
    pub coalesced: u64,
    /// Values that callers waited for while another process created them.
    pub remote_waits: u64,
    /// Values that callers stopped waiting for because of the `wait_timeout`.
    pub wait_timeouts: u64,
    /// Leases that were lost before their value was stored: flushed, evicted, or expired.
    pub lost_leases: u64,
    /// Callers that got a stale value while it was created anew.
    pub stale_hits: u64,
    /// Entries that could not be decoded, or had another version. Each was a miss.
    pub undecodable: u64,
    /// Keys that held another type of data. Each was a miss.
    pub wrong_type: u64,
    /// Reads that failed, so that the creator ran instead.
    pub failed_reads: u64,
    /// Locks that could not be asked for, so that the creator ran without a lock.
    pub failed_locks: u64,
    /// Created values that could not be stored: for their size, their type, or because the backend failed.
    pub failed_writes: u64,
    /// Entries larger than their keys are made for
    /// ([`KeyMap::longest_entry`](crate::KeyMap::longest_entry)). In a [bucket](crate::Bucketed) each
    /// may turn the hash into a hash table, at several times the memory.
    pub oversized: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) creations: Counter,
    pub(crate) failed_creations: Counter,
    pub(crate) coalesced: Counter,
    pub(crate) remote_waits: Counter,
    pub(crate) wait_timeouts: Counter,
    pub(crate) lost_leases: Counter,
    pub(crate) stale_hits: Counter,
    pub(crate) undecodable: Counter,
    pub(crate) wrong_type: Counter,
    pub(crate) failed_reads: Counter,
    pub(crate) failed_locks: Counter,
    pub(crate) failed_writes: Counter,
    pub(crate) oversized: Counter,
}

#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: usize) {
        self.0.fetch_add(more as u64, Ordering::Relaxed);
    }

    /// Adds one. Returns whether it is the first.
    pub(crate) fn is_first(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) == 0
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(crate) fn read(&self) -> Stats {
        Stats {
            creations: self.creations.get(),
            failed_creations: self.failed_creations.get(),
            coalesced: self.coalesced.get(),
            remote_waits: self.remote_waits.get(),
            wait_timeouts: self.wait_timeouts.get(),
            lost_leases: self.lost_leases.get(),
            stale_hits: self.stale_hits.get(),
            undecodable: self.undecodable.get(),
            wrong_type: self.wrong_type.get(),
            failed_reads: self.failed_reads.get(),
            failed_locks: self.failed_locks.get(),
            failed_writes: self.failed_writes.get(),
            oversized: self.oversized.get(),
        }
    }
}
