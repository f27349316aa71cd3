//! Stamps: when a field of a hash expires, in one to four bytes before its entry.
//!
//! A stamp is a second modulo 256, 65,536 and so on, so it tells the truth as long as whatever it stands before is gone
//! in time: nothing may be asked to live longer than [`Stamp::longest`], and who stretches the life of a hash removes
//! what has expired in it (`PUT_STAMPED` of `redis::protocol::commands`). So an expired field stays for at most one life of its
//! hash, which is five quarters of what its youngest field was given, and two lives in a row fit the modulus with room
//! for clocks that disagree by half a minute.

use std::time::Duration;

use crate::time::Timestamp;

/// How many bytes a stamp has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(u8);

/// The room for clocks that disagree, in seconds.
const SKEW: u64 = 30;

impl Stamp {
    /// The smallest stamp that can tell of so long a life; the largest where none can.
    #[inline]
    pub(crate) fn for_life(longest: Duration) -> Self {
        let fits = |bytes: &u8| longest.as_secs() < Stamp(*bytes).longest();
        Stamp((1..4).find(fits).unwrap_or(4))
    }

    /// How many bytes it has.
    #[inline]
    pub(crate) fn bytes(self) -> usize {
        usize::from(self.0)
    }

    fn modulus(self) -> u64 {
        1 << (8 * self.0)
    }

    /// The longest life that it can tell of, in seconds: 56 s, 8 h, 86 days, or 60 years.
    pub(crate) fn longest(self) -> u64 {
        // This life, and that of the hash: `longest + 5/4 longest`, each with the skew and the seconds of rounding.
        (self.modulus() - 4 * SKEW - 8) * 4 / 9
    }

    /// What stands behind the name of a hash whose entries have such stamps, so that hashes with others, or with none,
    /// are not taken for them. It begins with a byte that nobody's own names end with.
    pub(crate) fn suffix(self) -> &'static [u8] {
        match self.0 {
            1 => b"\x7f1",
            2 => b"\x7f2",
            3 => b"\x7f3",
            _ => b"\x7f4",
        }
    }

    /// A life that it can tell of: `ttl` up to `longest`, which is that of an entry without one.
    pub(crate) fn life(self, ttl: Option<Duration>, longest: Duration) -> Duration {
        let longest = longest.min(Duration::from_secs(self.longest()));
        ttl.map_or(longest, |ttl| ttl.min(longest))
    }

    /// Appends the stamp of what is written now and may live so long: its last second ends at most a second later.
    pub(crate) fn write(self, out: &mut Vec<u8>, now: Timestamp, life: Duration) {
        let expires = now.plus(life).as_micros().div_ceil(1_000_000);
        out.extend_from_slice(&expires.to_be_bytes()[8 - self.bytes()..]);
    }

    /// Where an entry begins behind its stamp; `None` when it has expired, or has no stamp.
    #[inline]
    pub(crate) fn open(self, stamped: &[u8], now: Timestamp) -> Option<usize> {
        let stamp = stamped.get(..self.bytes())?.iter().fold(0, |stamp, byte| stamp << 8 | u64::from(*byte));
        let left = stamp.wrapping_sub(now.as_secs()) % self.modulus();
        (1..=self.most_left()).contains(&left).then_some(self.bytes())
    }

    /// The most seconds that may be left, by a clock that is behind the writer's.
    pub(crate) fn most_left(self) -> u64 {
        self.longest() + 1 + SKEW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_795_403_000_400_000);

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn stamped(stamp: Stamp, life: Duration) -> Vec<u8> {
        let mut out = Vec::new();
        stamp.write(&mut out, NOW, life);
        out.push(b'v');
        out
    }

    #[test]
    fn as_few_bytes_as_the_life_needs() {
        let bytes = |life| Stamp::for_life(life).bytes();
        assert_eq!(bytes(Duration::ZERO), 1);
        assert_eq!((bytes(secs(55)), bytes(secs(57))), (1, 2));
        assert_eq!(bytes(secs(3600)), 2);
        assert_eq!(bytes(secs(8 * 3600)), 2);
        assert_eq!(bytes(secs(86_400)), 3);
        assert_eq!(bytes(secs(86 * 86_400)), 3);
        assert_eq!(bytes(secs(365 * 86_400)), 4);
        assert_eq!(bytes(Duration::MAX), 4);
    }

    #[test]
    fn entries_live_to_the_second() {
        for bytes in 1..=4 {
            let stamp = Stamp(bytes);
            for life in [Duration::from_millis(1), secs(1), secs(50), secs(stamp.longest())] {
                let entry = stamped(stamp, life);
                let at = |later: Duration| stamp.open(&entry, NOW.plus(later));
                assert_eq!(at(Duration::ZERO), Some(usize::from(bytes)), "{life:?}");
                assert_eq!(at(life.saturating_sub(Duration::from_millis(1))), Some(usize::from(bytes)));
                assert_eq!(at(life + secs(1)), None, "{life:?}");
                // As long as an expired field may stay: the life of its hash, by a clock that is ahead.
                let gone = life + secs(stamp.longest() * 5 / 4 + 3 + 30);
                assert_eq!(at(gone), None, "{bytes} {life:?}");
                // A reader whose clock is behind.
                let behind = Timestamp::from_secs(NOW.as_secs() - 30);
                assert_eq!(stamp.open(&entry, behind), Some(usize::from(bytes)));
            }
            assert_eq!(stamp.open(&[7; 4][..usize::from(bytes) - 1], NOW), None, "too short for a stamp");
        }
    }

    #[test]
    fn a_life_that_is_too_long_is_cut() {
        let life = |longest, ttl| Stamp::for_life(longest).life(ttl, longest);
        assert_eq!(life(secs(3600), Some(Duration::MAX)), secs(3600));
        assert_eq!(life(secs(3600), None), secs(3600));
        assert_eq!(life(secs(3600), Some(secs(5))), secs(5));
        assert_eq!(life(Duration::MAX, None), secs(Stamp(4).longest()));
    }
}
