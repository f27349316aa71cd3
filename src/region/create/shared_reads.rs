//! [`Readings`]: which keys this process reads or creates just now, and which it found lately. Without locks or memory
//! for each key, and so without a promise to know all of them.
//!
//! A table of slots; a key's hash says which is its, and stands there with what is known of it. Another key may have
//! taken the slot, and then nothing is known.

use crate::region::create::sync::{AtomicU64, Ordering};

/// What is known of keys, by their hashes.
pub(crate) struct Readings {
    slots: Box<[AtomicU64]>,
}

/// How many keys can be known.
const SLOTS: usize = 4096;

/// The lowest bits of a slot. Those above are the key's hash, which has no such bits.
pub(crate) const STATE: u64 = 0b111;
/// The key was found when it was read last.
const FOUND: u64 = 1;
/// Somebody reads it, and nobody else wants it.
const READ: u64 = 2;
/// Somebody reads or creates it, and has a place in the line that others stand in.
const AWAITED: u64 = 3;
/// Somebody reads or creates it, but what he finds or misses may not be what is there now.
const SPOILED: u64 = 4;

/// How a caller stands who wants to read a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// He reads it for all, until [`Readings::end`].
    Ours,
    /// Somebody reads or creates it for all.
    Theirs,
    /// He reads for himself, and nothing is known of that.
    None,
}

impl Readings {
    pub(crate) fn new() -> Self {
        Readings { slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Whether the key of this hash was found when it was read last.
    #[inline]
    pub(crate) fn was_found(&self, hash: u64) -> bool {
        self.slot(hash).load(Ordering::Relaxed) == with(hash, FOUND)
    }

    /// Somebody is about to read the key of this hash, which was not found lately.
    #[cold]
    pub(crate) fn claim(&self, hash: u64) -> Claim {
        let slot = self.slot(hash);
        let seen = slot.load(Ordering::Acquire);
        if seen & STATE >= READ {
            let is_theirs = seen == with(hash, READ) || seen == with(hash, AWAITED);
            return if is_theirs { Claim::Theirs } else { Claim::None };
        }
        let claimed = slot.compare_exchange(seen, with(hash, READ), Ordering::SeqCst, Ordering::Relaxed);
        if claimed.is_ok() { Claim::Ours } else { Claim::None }
    }

    /// Somebody stands in line for what is [`Theirs`](Claim::Theirs): whether they are still about it.
    pub(crate) fn wait(&self, hash: u64) -> bool {
        let (read, awaited) = (with(hash, READ), with(hash, AWAITED));
        let before = self.slot(hash).compare_exchange(read, awaited, Ordering::SeqCst, Ordering::SeqCst);
        [read, awaited].contains(&before.unwrap_or_else(|before| before))
    }

    /// The key was written, or whoever reads it takes too long: nobody waits for his reading from now on, and nobody learns
    /// from him that it is missing. Whether somebody stands in line for it.
    #[inline]
    pub(crate) fn spoil(&self, hash: u64) -> bool {
        let seen = self.slot(hash).load(Ordering::SeqCst);
        seen & !STATE == hash && self.spoil_known(hash, seen)
    }

    #[cold]
    fn spoil_known(&self, hash: u64, mut seen: u64) -> bool {
        let (slot, read, awaited) = (self.slot(hash), with(hash, READ), with(hash, AWAITED));
        while seen == read || seen == awaited {
            match slot.compare_exchange(seen, with(hash, SPOILED), Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return seen == awaited,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Whoever had claimed the key has done with it: whether somebody stands in line for it.
    #[inline]
    pub(crate) fn end(&self, hash: u64, was_found: bool) -> bool {
        let next = if was_found { with(hash, FOUND) } else { 0 };
        self.slot(hash).swap(next, Ordering::AcqRel) & STATE == AWAITED
    }

    /// Whoever had claimed the key found nothing, and leads from now on those who stand in line for it, or will. Not so if
    /// it was spoiled meanwhile: then he has done with it.
    pub(crate) fn lead(&self, hash: u64) -> bool {
        self.wait(hash) || {
            self.slot(hash).store(0, Ordering::SeqCst);
            false
        }
    }

    #[inline]
    fn slot(&self, hash: u64) -> &AtomicU64 {
        // Other bits than those that choose a shard.
        #[allow(clippy::cast_possible_truncation)]
        let slot = (hash >> 40) as usize % SLOTS;
        &self.slots[slot]
    }
}

#[inline]
fn with(hash: u64, state: u64) -> u64 {
    hash | state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reads_for_all_until_it_was_found() {
        let readings = Readings::new();
        let hash = 0x1234_5678_9abc_def8;
        assert_eq!(readings.claim(hash), Claim::Ours);
        assert_eq!(readings.claim(hash), Claim::Theirs);
        assert!(readings.wait(hash) && readings.wait(hash));
        assert!(readings.end(hash, true), "somebody waited");
        assert!(!readings.wait(hash), "it is over");
        assert!(readings.was_found(hash));
        readings.end(hash, false);
        assert_eq!(readings.claim(hash), Claim::Ours);
        assert!(readings.lead(hash));
        assert_eq!(readings.claim(hash), Claim::Theirs);
        readings.end(hash, false);
        assert_eq!(readings.claim(hash), Claim::Ours);
        assert!(!readings.end(hash, false), "nobody waited");
    }

    #[test]
    fn what_is_written_meanwhile_spoils_a_reading() {
        let readings = Readings::new();
        let hash = 0x1234_5678_9abc_def8;
        assert!(!readings.spoil(hash), "nobody reads");
        assert_eq!(readings.claim(hash), Claim::Ours);
        assert!(!readings.spoil(hash), "nobody waits");
        assert_eq!(readings.claim(hash), Claim::None);
        assert!(!readings.wait(hash) && !readings.lead(hash), "who reads does not lead");
        assert_eq!(readings.claim(hash), Claim::Ours, "and has done with it");
        assert!(readings.lead(hash));
        assert!(readings.spoil(hash));
        assert!(!readings.spoil(hash), "once is enough");
        assert_eq!(readings.claim(hash), Claim::None);
        readings.end(hash, true);
        assert!(readings.was_found(hash) && !readings.spoil(hash));
    }

    #[test]
    fn of_keys_that_share_a_slot_one_is_known() {
        let readings = Readings::new();
        let (one, other) = (0x1234_5600_0000_0010, 0x1234_5600_0000_0008);
        assert_eq!(readings.claim(one), Claim::Ours);
        assert_eq!(readings.claim(other), Claim::None);
        assert!(!readings.wait(other) && !readings.spoil(other));
        readings.end(one, true);
        assert!(readings.was_found(one) && !readings.was_found(other));
        assert_eq!(readings.claim(other), Claim::Ours, "what was found lately makes room");
        assert_eq!(readings.claim(one), Claim::None);
        readings.end(other, false);
        assert_eq!(readings.claim(one), Claim::Ours, "nothing is known any more");
    }
}
