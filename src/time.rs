//! What a cache holds of a value: the value, when it was created, and the clock that says so.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time, in whole microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Timestamp = Timestamp(0);

    /// The time `micros` microseconds after 1970.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Timestamp(micros)
    }

    /// The time `seconds` seconds after 1970; the latest possible time where that does not fit.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Timestamp(seconds.saturating_mul(1_000_000))
    }

    /// The time `seconds` after 1970, rounded to the microsecond. `None` for NaN, infinities and times before 1970.
    #[must_use]
    pub fn from_secs_f64(seconds: f64) -> Option<Self> {
        // Float to integer saturates, so any finite time is in range.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        (seconds.is_finite() && seconds >= 0.0).then(|| Timestamp((seconds * 1e6).round() as u64))
    }

    /// Microseconds since 1970.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Whole seconds since 1970, rounded down.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000_000
    }

    /// Seconds since 1970, to the microsecond until the year 2106.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// How long ago `earlier` was; zero when it lies ahead.
    #[must_use]
    pub const fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// This time, `later` by so much; the latest possible time where that does not fit.
    #[must_use]
    pub fn plus(self, later: Duration) -> Self {
        Timestamp(self.0.saturating_add(u64::try_from(later.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.as_secs(), self.0 % 1_000_000)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Timestamp::EPOCH.plus(time.duration_since(UNIX_EPOCH).unwrap_or_default())
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        UNIX_EPOCH + Duration::from_micros(time.0)
    }
}

/// Where a region reads the time: the system's clock, or one that a test moves by hand.
///
/// ```
/// use std::time::Duration;
/// use dogpile::{Clock, Timestamp};
///
/// let clock = Clock::manual(Timestamp::from_secs(100));
/// let same = clock.clone();
/// clock.advance(Duration::from_secs(5));
/// assert_eq!(same.now(), Timestamp::from_secs(105));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicU64>>);

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Clock(None)
    }

    /// A clock that stands still until it is moved. Clones show the same time.
    #[must_use]
    pub fn manual(start: Timestamp) -> Self {
        Clock(Some(Arc::new(AtomicU64::new(start.0))))
    }

    /// The time now.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            None => {
                let Ok(since) = SystemTime::now().duration_since(UNIX_EPOCH) else { return Timestamp::EPOCH };
                Timestamp(since.as_secs() * 1_000_000 + u64::from(since.subsec_micros()))
            }
            Some(manual) => Timestamp(manual.load(Ordering::Acquire)),
        }
    }

    /// Moves a manual clock and all its clones.
    ///
    /// # Panics
    /// On the system's clock, which is not ours to move.
    pub fn advance(&self, by: Duration) {
        let manual = self.0.as_ref().expect("only a manual clock can be advanced");
        manual.fetch_add(u64::try_from(by.as_micros()).unwrap_or(u64::MAX), Ordering::AcqRel);
    }
}

/// The time of one call: read from the clock when it is first needed, and then the same.
pub(crate) struct Now<'c> {
    clock: &'c Clock,
    read: Cell<Option<Timestamp>>,
}

impl<'c> Now<'c> {
    #[inline]
    pub(crate) fn of(clock: &'c Clock) -> Self {
        Now { clock, read: Cell::new(None) }
    }

    #[inline]
    pub(crate) fn get(&self) -> Timestamp {
        self.read.get().unwrap_or_else(|| {
            let now = self.clock.now();
            self.read.set(Some(now));
            now
        })
    }
}

/// A value with what the cache knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry<V> {
    /// The value.
    pub value: V,
    /// When it was created. `None` where the envelope does not keep it ([`Bare`](crate::codec::Bare)).
    pub created: Option<Timestamp>,
    /// How old it was when it was read; zero when its creation lies ahead of the clock.
    pub age: Option<Duration>,
    /// The version of its encoding, where the envelope keeps one ([`Full`](crate::codec::Full)).
    pub version: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_as_floats_survive() {
        let seconds = 1_471_113_698.761_27;
        let time = Timestamp::from_secs_f64(seconds).unwrap();
        assert_eq!(time.as_micros(), 1_471_113_698_761_270);
        assert_eq!(time.as_secs_f64().to_bits(), f64::to_bits(seconds));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0] {
            assert_eq!(Timestamp::from_secs_f64(bad), None);
        }
        assert_eq!(Timestamp::from_secs_f64(1e300), Some(Timestamp(u64::MAX)));
    }

    #[test]
    fn times_do_not_overflow() {
        let last = Timestamp(u64::MAX);
        assert_eq!(last.plus(Duration::MAX), last);
        assert_eq!(Timestamp::from_secs(u64::MAX), last);
        assert_eq!(Timestamp::EPOCH.since(last), Duration::ZERO);
        assert_eq!(format!("{:?}", Timestamp(1_000_007)), "1.000007");
    }
}
