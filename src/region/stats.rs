//! Counts of what is not a plain hit: what was created, waited for, or went wrong.

use std::sync::atomic::{AtomicU64, Ordering};

/// What happened in a region since it was built. Hits are not counted: a counter that all threads write to would cost
/// more than the rest of a hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Values that a creator made.
    pub created: u64,
    /// Creators that failed or panicked, or whose task was dropped.
    pub failed_creations: u64,
    /// Callers that got the value another caller of this process created.
    pub shared: u64,
    /// Values that callers waited for while another process created them.
    pub awaited: u64,
    /// Values that callers did not wait for any longer: their patience was over.
    pub impatient: u64,
    /// Locks that were lost before their value was stored: flushed, evicted, or expired.
    pub lost_locks: u64,
    /// Callers that got a stale value while it was created anew.
    pub served_stale: u64,
    /// Entries that could not be decoded, or were of another version; each was a miss.
    pub undecodable: u64,
    /// Keys that held another type of data; each was a miss.
    pub wrong_type: u64,
    /// Readings that failed where the creator ran instead.
    pub failed_reads: u64,
    /// Locks that could not be asked for, where the creator ran without.
    pub failed_locks: u64,
    /// Created values that could not be stored, for their size, their type or because the backend failed.
    pub failed_writes: u64,
    /// Entries that were larger than their keys are made for ([`KeyMap::longest_entry`](crate::keymap::KeyMap::longest_entry)): in a
    /// [bucket](crate::keymap::bucketed::Bucketed) each may make the server keep a hash table, at several times the memory.
    pub oversized: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) created: Counter,
    pub(crate) failed_creations: Counter,
    pub(crate) shared: Counter,
    pub(crate) awaited: Counter,
    pub(crate) impatient: Counter,
    pub(crate) lost_locks: Counter,
    pub(crate) served_stale: Counter,
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

    /// Adds one; whether it is the first.
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
            created: self.created.get(),
            failed_creations: self.failed_creations.get(),
            shared: self.shared.get(),
            awaited: self.awaited.get(),
            impatient: self.impatient.get(),
            lost_locks: self.lost_locks.get(),
            served_stale: self.served_stale.get(),
            undecodable: self.undecodable.get(),
            wrong_type: self.wrong_type.get(),
            failed_reads: self.failed_reads.get(),
            failed_locks: self.failed_locks.get(),
            failed_writes: self.failed_writes.get(),
            oversized: self.oversized.get(),
        }
    }
}
