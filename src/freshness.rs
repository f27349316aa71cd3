//! Whether an entry may still be used: expiry by age, and invalidation of all that is older than a moment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::time::{Now, Timestamp};

/// What an entry is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Freshness {
    /// Use it.
    Fresh,
    /// One caller creates the value anew; the others use this one until then.
    Stale,
    /// As if it were not there.
    Absent,
}

/// How old an entry may get before it is stale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expiry {
    /// Any age is fresh; entries go only by the server's TTL, by eviction, or by being invalidated. The default.
    #[default]
    Never,
    /// Fresh until it is so old; up to a second more where the envelope keeps whole seconds, as
    /// [`Seconds`](crate::codec::Seconds) does, so that values with a short expiry are fresh at all. Not to be confused
    /// with a TTL: the entry stays, to be served while one caller creates the value anew.
    After(Duration),
}

impl From<Duration> for Expiry {
    fn from(age: Duration) -> Self {
        Expiry::After(age)
    }
}

/// How invalidated entries are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidate {
    /// They are absent: callers wait for the new value.
    Hard,
    /// They are stale: one caller creates the new value, the others use the old one until then.
    Soft,
}

/// Remembers from when on entries count. The default, [`LocalInvalidation`], does so in this process; one that keeps
/// the moment in a server reaches all of them.
pub trait Invalidation: Send + Sync {
    /// What an entry created at `created` is still good for. Called for each hit, so it should be quick.
    fn judge(&self, created: Timestamp) -> Freshness;

    /// Makes all that was created up to `now` stale or absent.
    fn invalidate(&self, now: Timestamp, how: Invalidate);

    /// The time to write into an entry that is created at `now`, so that [`judge`](Self::judge) finds it fresh.
    fn stamp(&self, now: Timestamp) -> Timestamp {
        now
    }
}

/// One invalidation for several regions.
impl<I: Invalidation> Invalidation for std::sync::Arc<I> {
    fn judge(&self, created: Timestamp) -> Freshness {
        (**self).judge(created)
    }

    fn invalidate(&self, now: Timestamp, how: Invalidate) {
        (**self).invalidate(now, how);
    }

    fn stamp(&self, now: Timestamp) -> Timestamp {
        (**self).stamp(now)
    }
}

/// Invalidation for this process only, as in `dogpile.cache`: two atomics.
///
/// Envelopes that keep whole seconds round down, so a value that is created within the second of an invalidation
/// would look older than that. It gets the next second as its time instead.
#[derive(Debug, Default)]
pub struct LocalInvalidation {
    hard: AtomicU64,
    soft: AtomicU64,
}

impl Invalidation for LocalInvalidation {
    #[inline]
    fn judge(&self, created: Timestamp) -> Freshness {
        let created = created.as_micros();
        if created <= self.hard.load(Ordering::Acquire) {
            Freshness::Absent
        } else if created <= self.soft.load(Ordering::Acquire) {
            Freshness::Stale
        } else {
            Freshness::Fresh
        }
    }

    fn invalidate(&self, now: Timestamp, how: Invalidate) {
        // What was created in this second since an earlier invalidation carries the time that stamp gave it.
        let until = self.stamp(now);
        let mark = match how {
            Invalidate::Hard => &self.hard,
            Invalidate::Soft => &self.soft,
        };
        mark.fetch_max(until.as_micros(), Ordering::AcqRel);
    }

    fn stamp(&self, now: Timestamp) -> Timestamp {
        let last = self.hard.load(Ordering::Acquire).max(self.soft.load(Ordering::Acquire));
        let last = Timestamp::from_micros(last).as_secs();
        if last == 0 || now.as_secs() > last { now } else { Timestamp::from_secs(last + 1) }
    }
}

/// An [`Expiry`] in the unit that ages are compared in: whole microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MaxAge(u64);

impl MaxAge {
    pub(crate) const ANY: MaxAge = MaxAge(u64::MAX);
}

impl From<Expiry> for MaxAge {
    fn from(expiry: Expiry) -> Self {
        match expiry {
            Expiry::Never => MaxAge::ANY,
            Expiry::After(age) => MaxAge(u64::try_from(age.as_micros()).unwrap_or(u64::MAX)),
        }
    }
}

/// An entry from further ahead than this was written by a clock that is wrong, so it would never expire.
/// In microseconds.
const SKEW: u64 = 60_000_000;

/// What an entry is good for. Entries without a time are fresh as long as they are there.
#[inline]
pub(crate) fn judge(
    created: Option<Timestamp>,
    max_age: MaxAge,
    now: &Now<'_>,
    invalidation: &impl Invalidation,
) -> Freshness {
    let Some(created) = created else { return Freshness::Fresh };
    let valid = invalidation.judge(created);
    if valid != Freshness::Fresh || max_age == MaxAge::ANY {
        return valid;
    }
    let (now, created) = (now.get().as_micros(), created.as_micros());
    if created <= now && now - created < max_age.0 {
        return Freshness::Fresh;
    }
    judge_border(created, max_age, now, invalidation)
}

/// The same for what looks old, or lies ahead.
#[cold]
fn judge_border(created: u64, max_age: MaxAge, now: u64, invalidation: &impl Invalidation) -> Freshness {
    if created > now {
        // Invalidations that follow each other quickly move our own stamps ahead, by any number of seconds.
        let latest = invalidation.stamp(Timestamp::from_micros(now)).as_micros().max(now);
        return if created.saturating_sub(latest) > SKEW { Freshness::Stale } else { Freshness::Fresh };
    }
    // A whole second stands for any moment in it: an entry must not be old before it is.
    let at_latest = if created.is_multiple_of(1_000_000) { created.saturating_add(999_999) } else { created };
    if now.saturating_sub(at_latest) >= max_age.0 { Freshness::Stale } else { Freshness::Fresh }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Clock;

    const SECOND: u64 = 1_000_000;

    fn at(micros: u64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    #[test]
    fn age_decides() {
        let clock = Clock::manual(at(100 * SECOND));
        let valid = LocalInvalidation::default();
        let judge = |created, expiry| judge(created, MaxAge::from(expiry), &Now::of(&clock), &valid);
        let minute = Expiry::After(Duration::from_secs(60));
        assert_eq!(judge(Some(at(40 * SECOND + 1)), minute), Freshness::Fresh);
        assert_eq!(judge(Some(at(40 * SECOND - 1)), minute), Freshness::Stale);
        assert_eq!(judge(Some(at(40 * SECOND)), minute), Freshness::Fresh, "a whole second may be all of it");
        assert_eq!(judge(Some(at(39 * SECOND)), minute), Freshness::Stale);
        assert_eq!(judge(Some(at(100 * SECOND)), Expiry::After(Duration::ZERO)), Freshness::Stale);
        assert_eq!(judge(Some(at(1)), Expiry::Never), Freshness::Fresh);
        assert_eq!(judge(None, Expiry::After(Duration::ZERO)), Freshness::Fresh);
        assert_eq!(judge(Some(at(160 * SECOND)), minute), Freshness::Fresh, "a clock may be a minute off");
        assert_eq!(judge(Some(at(160 * SECOND + 1)), minute), Freshness::Stale);
    }

    #[test]
    fn invalidation_decides_first() {
        let clock = Clock::manual(at(100 * SECOND));
        let invalidation = LocalInvalidation::default();
        invalidation.invalidate(at(80 * SECOND), Invalidate::Hard);
        invalidation.invalidate(at(90 * SECOND), Invalidate::Soft);
        let judge = |created| {
            judge(Some(at(created)), Expiry::After(Duration::from_secs(5)).into(), &Now::of(&clock), &invalidation)
        };
        assert_eq!(judge(80 * SECOND), Freshness::Absent);
        assert_eq!(judge(90 * SECOND), Freshness::Stale);
        assert_eq!(judge(99 * SECOND), Freshness::Fresh);
    }

    #[test]
    fn what_is_created_after_an_invalidation_is_fresh_even_in_whole_seconds() {
        let invalidation = LocalInvalidation::default();
        let floor = |stamp: Timestamp| Timestamp::from_secs(stamp.as_secs());
        // Twice in the same second, and what was created between them does not survive the second.
        for now in [100 * SECOND, 100 * SECOND + 300_000, 100 * SECOND + 999_999, 101 * SECOND] {
            let before = invalidation.stamp(at(now));
            invalidation.invalidate(at(now), Invalidate::Hard);
            assert_eq!(invalidation.judge(before), Freshness::Absent, "{now}");
            assert_eq!(invalidation.judge(floor(before)), Freshness::Absent, "{now}");
            let after = invalidation.stamp(at(now + 1));
            assert_eq!(invalidation.judge(after), Freshness::Fresh, "{now}");
            assert_eq!(invalidation.judge(floor(after)), Freshness::Fresh, "{now}");
        }
        assert_eq!(invalidation.stamp(at(200 * SECOND)), at(200 * SECOND), "the next seconds are as they are");
    }
}
