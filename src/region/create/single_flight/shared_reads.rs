//! [`SharedReads`]: which keys this process reads or creates, and which it found recently.
//!
//! A table of atomics without locks or memory per key, and so without a promise to know every key. A
//! key's hash selects its slot, which holds the hash and the state of the key. If another key has taken
//! the slot, nothing is known, and the caller reads for itself.

use super::sync::{AtomicU64, Ordering};

/// What is known of keys, by their hashes.
pub(super) struct SharedReads {
    slots: Box<[AtomicU64]>,
}

/// How many keys can be known.
const SLOTS: usize = 4096;

/// The lowest bits of a slot hold the state. The others are the key's hash, which has none of them set.
pub(super) const STATE_BITS: u64 = 0b111;
/// The last read found the key.
const FOUND: u64 = 1;
/// A caller reads the key, and no other one waits for that.
const READING: u64 = 2;
/// A caller reads or creates the key, and has an entry in the table that others wait at.
const AWAITED: u64 = 3;
/// A caller reads or creates the key, but the key was written after that had begun.
const INVALIDATED: u64 = 4;

/// The outcome of beginning a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadClaim {
    /// This caller reads for all, until [`SharedReads::end`].
    Own,
    /// Another caller reads or creates the key for all.
    Other,
    /// This caller reads for itself, and no other one knows of it.
    Unshared,
}

impl SharedReads {
    pub(super) fn new() -> Self {
        SharedReads { slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Returns whether the last read of the key of this hash found it.
    #[inline]
    pub(super) fn was_found(&self, hash: u64) -> bool {
        self.slot(hash).load(Ordering::Relaxed) == with_state(hash, FOUND)
    }

    /// Begins the read of a key that was not found recently.
    #[cold]
    pub(super) fn begin(&self, hash: u64) -> ReadClaim {
        let slot = self.slot(hash);
        let seen = slot.load(Ordering::Acquire);
        if seen & STATE_BITS >= READING {
            let is_other = seen == with_state(hash, READING) || seen == with_state(hash, AWAITED);
            return if is_other { ReadClaim::Other } else { ReadClaim::Unshared };
        }
        let taken = slot.compare_exchange(seen, with_state(hash, READING), Ordering::SeqCst, Ordering::Relaxed);
        if taken.is_ok() { ReadClaim::Own } else { ReadClaim::Unshared }
    }

    /// Waits for a read of [another caller](ReadClaim::Other). Returns whether it is still under way.
    pub(super) fn join(&self, hash: u64) -> bool {
        let (reading, awaited) = (with_state(hash, READING), with_state(hash, AWAITED));
        let before = self.slot(hash).compare_exchange(reading, awaited, Ordering::SeqCst, Ordering::SeqCst);
        [reading, awaited].contains(&before.unwrap_or_else(|before| before))
    }

    /// Notes that the key was written, or that its read takes too long: from now on no caller waits for
    /// the read or learns from it that the key is missing. Returns whether callers were waiting.
    #[inline]
    pub(super) fn invalidate(&self, hash: u64) -> bool {
        let seen = self.slot(hash).load(Ordering::SeqCst);
        seen & !STATE_BITS == hash && self.invalidate_known(hash, seen)
    }

    #[cold]
    fn invalidate_known(&self, hash: u64, mut seen: u64) -> bool {
        let (slot, reading, awaited) = (self.slot(hash), with_state(hash, READING), with_state(hash, AWAITED));
        while seen == reading || seen == awaited {
            let invalidated = with_state(hash, INVALIDATED);
            match slot.compare_exchange(seen, invalidated, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return seen == awaited,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Ends the read or the creation of a key. Returns whether callers were waiting.
    #[inline]
    pub(super) fn end(&self, hash: u64, was_found: bool) -> bool {
        let next = if was_found { with_state(hash, FOUND) } else { 0 };
        self.slot(hash).swap(next, Ordering::AcqRel) & STATE_BITS == AWAITED
    }

    /// Goes on from a read that found nothing to leading those who wait. Returns `false`, and ends the
    /// read, if the key was written meanwhile.
    pub(super) fn lead(&self, hash: u64) -> bool {
        self.join(hash) || {
            self.slot(hash).store(0, Ordering::SeqCst);
            false
        }
    }

    #[inline]
    fn slot(&self, hash: u64) -> &AtomicU64 {
        // Other bits than those that select a shard.
        #[allow(clippy::cast_possible_truncation)]
        let slot = (hash >> 40) as usize % SLOTS;
        &self.slots[slot]
    }
}

#[inline]
fn with_state(hash: u64, state: u64) -> u64 {
    hash | state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_reads_for_all_until_the_key_was_found() {
        let reads = SharedReads::new();
        let hash = 0x1234_5678_9abc_def8;
        assert_eq!(reads.begin(hash), ReadClaim::Own);
        assert_eq!(reads.begin(hash), ReadClaim::Other);
        assert!(reads.join(hash) && reads.join(hash));
        assert!(reads.end(hash, true), "a caller waited");
        assert!(!reads.join(hash), "it is over");
        assert!(reads.was_found(hash));
        reads.end(hash, false);
        assert_eq!(reads.begin(hash), ReadClaim::Own);
        assert!(reads.lead(hash));
        assert_eq!(reads.begin(hash), ReadClaim::Other);
        reads.end(hash, false);
        assert_eq!(reads.begin(hash), ReadClaim::Own);
        assert!(!reads.end(hash, false), "no caller waited");
    }

    #[test]
    fn a_write_invalidates_a_read() {
        let reads = SharedReads::new();
        let hash = 0x1234_5678_9abc_def8;
        assert!(!reads.invalidate(hash), "no caller reads");
        assert_eq!(reads.begin(hash), ReadClaim::Own);
        assert!(!reads.invalidate(hash), "no caller waits");
        assert_eq!(reads.begin(hash), ReadClaim::Unshared);
        assert!(!reads.join(hash) && !reads.lead(hash), "the reader does not lead");
        assert_eq!(reads.begin(hash), ReadClaim::Own, "and its read has ended");
        assert!(reads.lead(hash));
        assert!(reads.invalidate(hash));
        assert!(!reads.invalidate(hash), "once is enough");
        assert_eq!(reads.begin(hash), ReadClaim::Unshared);
        reads.end(hash, true);
        assert!(reads.was_found(hash) && !reads.invalidate(hash));
    }

    #[test]
    fn one_of_two_keys_with_the_same_slot_is_known() {
        let reads = SharedReads::new();
        let (one, other) = (0x1234_5600_0000_0010, 0x1234_5600_0000_0008);
        assert_eq!(reads.begin(one), ReadClaim::Own);
        assert_eq!(reads.begin(other), ReadClaim::Unshared);
        assert!(!reads.join(other) && !reads.invalidate(other));
        reads.end(one, true);
        assert!(reads.was_found(one) && !reads.was_found(other));
        assert_eq!(reads.begin(other), ReadClaim::Own, "a found key makes room");
        assert_eq!(reads.begin(one), ReadClaim::Unshared);
        reads.end(other, false);
        assert_eq!(reads.begin(one), ReadClaim::Own, "nothing is known any longer");
    }
}
