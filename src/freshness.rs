//! Freshness of entries: expiry by age, and invalidation of all entries older than a point in time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::time::{Now, Timestamp};

/// The use that a region may make of an entry: serve it, serve it stale, or ignore it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Freshness {
    /// The entry is served.
    Fresh,
    /// One caller creates a new value; until it is stored, the other callers are served this one.
    Stale,
    /// The entry counts as a miss.
    Invalid,
}

/// The age at which an entry becomes stale (soft expiry).
///
/// A stale entry stays in the cache and is served while one caller creates a new value
/// (stale-while-revalidate). The TTL, by contrast, is the time after which the server removes the
/// entry (hard expiry).
///
/// ```
/// use std::time::Duration;
/// use dogpile::{Expiry, Memory, Region};
///
/// let region = Region::builder(Memory::new(1 << 20))
///     .stale_after(Expiry::After(Duration::from_secs(300)))
///     .ttl(Duration::from_secs(3600))
///     .build()?;
/// # region.set("user-15", &15_u64)?;
/// # Ok::<(), dogpile::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expiry {
    /// Entries never become stale by age. This is the default.
    ///
    /// They still disappear by the server's TTL and by eviction, and can be invalidated.
    #[default]
    Never,
    /// An entry is fresh until it has this age.
    ///
    /// If the envelope stores whole seconds, as [`Seconds`](crate::codec::Seconds) does, an entry
    /// is fresh for up to one second longer. Without that tolerance, values with a short expiry
    /// might never be fresh.
    After(Duration),
}

impl From<Duration> for Expiry {
    fn from(age: Duration) -> Self {
        Expiry::After(age)
    }
}

/// The treatment of entries after they are invalidated.
///
/// ```
/// use dogpile::{Invalidate, Memory, Region};
///
/// let region = Region::builder(Memory::new(1 << 20)).build()?;
/// region.set("user-15", &15_u64)?;
/// region.invalidate(Invalidate::Hard);
/// assert_eq!(region.get::<u64>("user-15")?, None);
/// # Ok::<(), dogpile::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidate {
    /// Invalidated entries count as a miss; callers wait for the new value.
    Hard,
    /// Invalidated entries are stale; they are served while one caller creates the new value.
    Soft,
}

/// A store for the time up to which all entries of a region are invalid or stale.
///
/// The default, [`LocalInvalidation`], keeps it in this process. An implementation that keeps it on
/// a server invalidates the region in all processes.
///
/// ```
/// use std::sync::Arc;
/// use dogpile::freshness::LocalInvalidation;
/// use dogpile::{Invalidate, Memory, Region};
///
/// // Two regions that are always invalidated together.
/// let shared = Arc::new(LocalInvalidation::default());
/// let users = Region::builder(Memory::new(1 << 20)).invalidation(Arc::clone(&shared)).build()?;
/// let posts = Region::builder(Memory::new(1 << 20)).invalidation(shared).build()?;
/// posts.set("post-7", &7_u64)?;
/// users.invalidate(Invalidate::Hard);
/// assert_eq!(posts.get::<u64>("post-7")?, None);
/// # Ok::<(), dogpile::Error>(())
/// ```
pub trait Invalidation: Send + Sync {
    /// Returns the freshness of an entry that was created at `created`, regardless of its age.
    ///
    /// The region calls it for each hit, so it should be fast.
    fn judge(&self, created: Timestamp) -> Freshness;

    /// Invalidates all entries that were created at `now` or earlier.
    ///
    /// Afterwards, [`judge`](Invalidation::judge) does not return [`Freshness::Fresh`] for them.
    fn invalidate(&self, now: Timestamp, how: Invalidate);

    /// Returns the creation time to store in an entry that is created at `now`.
    ///
    /// It is a time for which [`judge`](Invalidation::judge) returns [`Freshness::Fresh`]. Some
    /// envelopes round it down to whole seconds; [`LocalInvalidation`] takes that into account. The
    /// default implementation returns `now`.
    fn stamp(&self, now: Timestamp) -> Timestamp {
        now
    }
}

/// Shares one invalidation among several regions.
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

/// The default invalidation, which applies to this process only, as in Python's `dogpile.cache`.
///
/// It consists of two atomic timestamps, so checking an entry takes two loads.
///
/// Envelopes that store whole seconds round the creation time down. A value that is created in the
/// same second as an invalidation would thus appear to be older than the invalidation, so its
/// creation time is set to the next second.
///
/// ```
/// use dogpile::freshness::{Freshness, Invalidation, LocalInvalidation};
/// use dogpile::{Invalidate, Timestamp};
///
/// let invalidation = LocalInvalidation::default();
/// invalidation.invalidate(Timestamp::from_secs(100), Invalidate::Soft);
/// assert_eq!(invalidation.judge(Timestamp::from_secs(99)), Freshness::Stale);
/// assert_eq!(invalidation.judge(Timestamp::from_secs(101)), Freshness::Fresh);
/// assert_eq!(invalidation.stamp(Timestamp::from_secs(100)), Timestamp::from_secs(101));
/// ```
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
            Freshness::Invalid
        } else if created <= self.soft.load(Ordering::Acquire) {
            Freshness::Stale
        } else {
            Freshness::Fresh
        }
    }

    fn invalidate(&self, now: Timestamp, how: Invalidate) {
        // Entries that were created in this second after an earlier invalidation carry the later
        // time that `stamp` returned, so invalidate up to that time.
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

/// An [`Expiry`] in microseconds, the unit in which ages are compared.
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

/// The tolerated clock skew between processes, in microseconds.
///
/// An entry that is created further in the future was written with a wrong clock. It would stay
/// fresh for too long, so it is stale instead.
const MAX_CLOCK_SKEW: u64 = 60_000_000;

/// Returns the freshness of an entry. Entries without a creation time are always fresh.
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
    judge_old_or_future(created, max_age, now, invalidation)
}

/// The slow path of [`judge`], for entries that appear to be old, or to be from the future.
#[cold]
fn judge_old_or_future(created: u64, max_age: MaxAge, now: u64, invalidation: &impl Invalidation) -> Freshness {
    if created > now {
        // Invalidations in quick succession move the stamps of this process ahead by any number of
        // seconds.
        let latest = invalidation.stamp(Timestamp::from_micros(now)).as_micros().max(now);
        return if created.saturating_sub(latest) > MAX_CLOCK_SKEW { Freshness::Stale } else { Freshness::Fresh };
    }
    // A whole second may be a rounded time. Assume the end of that second, so that no entry becomes
    // stale early.
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
    fn entries_become_stale_by_age() {
        let clock = Clock::manual(at(100 * SECOND));
        let valid = LocalInvalidation::default();
        let judge = |created, expiry| judge(created, MaxAge::from(expiry), &Now::of(&clock), &valid);
        let minute = Expiry::After(Duration::from_secs(60));
        assert_eq!(judge(Some(at(40 * SECOND + 1)), minute), Freshness::Fresh);
        assert_eq!(judge(Some(at(40 * SECOND - 1)), minute), Freshness::Stale);
        assert_eq!(judge(Some(at(40 * SECOND)), minute), Freshness::Fresh, "a whole second may be a rounded time");
        assert_eq!(judge(Some(at(39 * SECOND)), minute), Freshness::Stale);
        assert_eq!(judge(Some(at(100 * SECOND)), Expiry::After(Duration::ZERO)), Freshness::Stale);
        assert_eq!(judge(Some(at(1)), Expiry::Never), Freshness::Fresh);
        assert_eq!(judge(None, Expiry::After(Duration::ZERO)), Freshness::Fresh);
        assert_eq!(judge(Some(at(160 * SECOND)), minute), Freshness::Fresh, "a clock skew of a minute is tolerated");
        assert_eq!(judge(Some(at(160 * SECOND + 1)), minute), Freshness::Stale);
    }

    #[test]
    fn invalidation_takes_precedence_over_age() {
        let clock = Clock::manual(at(100 * SECOND));
        let invalidation = LocalInvalidation::default();
        invalidation.invalidate(at(80 * SECOND), Invalidate::Hard);
        invalidation.invalidate(at(90 * SECOND), Invalidate::Soft);
        let judge = |created| {
            judge(Some(at(created)), Expiry::After(Duration::from_secs(5)).into(), &Now::of(&clock), &invalidation)
        };
        assert_eq!(judge(80 * SECOND), Freshness::Invalid);
        assert_eq!(judge(90 * SECOND), Freshness::Stale);
        assert_eq!(judge(99 * SECOND), Freshness::Fresh);
    }

    #[test]
    fn values_created_after_an_invalidation_are_fresh_even_in_whole_seconds() {
        let invalidation = LocalInvalidation::default();
        let floor = |stamp: Timestamp| Timestamp::from_secs(stamp.as_secs());
        // A value that is created between two invalidations in the same second is invalidated by
        // the second one.
        for now in [100 * SECOND, 100 * SECOND + 300_000, 100 * SECOND + 999_999, 101 * SECOND] {
            let before = invalidation.stamp(at(now));
            invalidation.invalidate(at(now), Invalidate::Hard);
            assert_eq!(invalidation.judge(before), Freshness::Invalid, "{now}");
            assert_eq!(invalidation.judge(floor(before)), Freshness::Invalid, "{now}");
            let after = invalidation.stamp(at(now + 1));
            assert_eq!(invalidation.judge(after), Freshness::Fresh, "{now}");
            assert_eq!(invalidation.judge(floor(after)), Freshness::Fresh, "{now}");
        }
        assert_eq!(invalidation.stamp(at(200 * SECOND)), at(200 * SECOND), "later times are unchanged");
    }
}
