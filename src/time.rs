//! Time: [`Timestamp`], [`Clock`], and [`Entry`], a cached value with its age.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time, in whole microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The Unix epoch, 1970-01-01T00:00:00Z.
    pub const EPOCH: Timestamp = Timestamp(0);

    /// Creates the time `micros` microseconds after the Unix epoch.
    ///
    /// ```
    /// use dogpile::Timestamp;
    ///
    /// assert_eq!(Timestamp::from_micros(1_000_000), Timestamp::from_secs(1));
    /// ```
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Timestamp(micros)
    }

    /// Creates the time `seconds` seconds after the Unix epoch.
    ///
    /// If the time is out of range, the result is the latest possible time.
    ///
    /// ```
    /// use dogpile::Timestamp;
    ///
    /// assert_eq!(Timestamp::from_secs(1).as_micros(), 1_000_000);
    /// ```
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Timestamp(seconds.saturating_mul(1_000_000))
    }

    /// Creates the time `seconds` seconds after the Unix epoch, rounded to the microsecond.
    ///
    /// Returns `None` for NaN, infinities and times before the epoch. If the time is out of range,
    /// the result is the latest possible time.
    ///
    /// ```
    /// use dogpile::Timestamp;
    ///
    /// assert_eq!(Timestamp::from_secs_f64(1.5), Some(Timestamp::from_micros(1_500_000)));
    /// assert_eq!(Timestamp::from_secs_f64(-1.0), None);
    /// ```
    #[must_use]
    pub fn from_secs_f64(seconds: f64) -> Option<Self> {
        // The conversion to an integer saturates.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        (seconds.is_finite() && seconds >= 0.0).then(|| Timestamp((seconds * 1e6).round() as u64))
    }

    /// Returns the number of microseconds since the Unix epoch.
    ///
    /// ```
    /// use dogpile::Timestamp;
    ///
    /// assert_eq!(Timestamp::from_secs(2).as_micros(), 2_000_000);
    /// ```
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Returns the number of whole seconds since the Unix epoch, rounded down.
    ///
    /// ```
    /// use dogpile::Timestamp;
    ///
    /// assert_eq!(Timestamp::from_micros(1_999_999).as_secs(), 1);
    /// ```
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000_000
    }

    /// Returns the number of seconds since the Unix epoch as a float.
    ///
    /// Until the year 2106, the result is exact to the microsecond.
    ///
    /// ```
    /// use dogpile::Timestamp;
    ///
    /// assert_eq!(Timestamp::from_micros(1_500_000).as_secs_f64(), 1.5);
    /// ```
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// Returns the time that passed from `earlier` to this time, or zero if `earlier` is later.
    ///
    /// ```
    /// use std::time::Duration;
    /// use dogpile::Timestamp;
    ///
    /// let (first, second) = (Timestamp::from_secs(10), Timestamp::from_secs(15));
    /// assert_eq!(second.since(first), Duration::from_secs(5));
    /// assert_eq!(first.since(second), Duration::ZERO);
    /// ```
    #[must_use]
    pub const fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// Returns the time that is later than this one by `later`.
    ///
    /// If the time is out of range, the result is the latest possible time.
    ///
    /// ```
    /// use std::time::Duration;
    /// use dogpile::Timestamp;
    ///
    /// let time = Timestamp::from_secs(10).plus(Duration::from_secs(5));
    /// assert_eq!(time, Timestamp::from_secs(15));
    /// ```
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

/// The clock of a region: the system clock, or a manual clock that a test advances.
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
    /// Creates a clock that reads the system time, which is the default.
    ///
    /// ```
    /// use dogpile::{Clock, Timestamp};
    ///
    /// assert!(Clock::system().now() > Timestamp::EPOCH);
    /// ```
    #[must_use]
    pub fn system() -> Self {
        Clock(None)
    }

    /// Creates a clock that shows `start` until [`advance`](Clock::advance) is called.
    ///
    /// All clones show the same time.
    #[must_use]
    pub fn manual(start: Timestamp) -> Self {
        Clock(Some(Arc::new(AtomicU64::new(start.0))))
    }

    /// Returns the current time of this clock.
    ///
    /// If the system clock is set to a time before 1970, the result is [`Timestamp::EPOCH`].
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

    /// Advances a manual clock and all its clones by `by`.
    ///
    /// # Panics
    ///
    /// If this is the system clock.
    pub fn advance(&self, by: Duration) {
        let manual = self.0.as_ref().expect("only a manual clock can be advanced");
        manual.fetch_add(u64::try_from(by.as_micros()).unwrap_or(u64::MAX), Ordering::AcqRel);
    }
}

/// The time of one call, which is read from the clock on first use and constant afterwards.
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

/// A cached value, its creation time and its version.
///
/// ```
/// use dogpile::{Memory, Region};
///
/// let region = Region::builder(Memory::new(1 << 20)).build()?;
/// region.set("user-15", &15_u64)?;
/// let entry = region.get_entry::<u64>("user-15")?.expect("the value was just stored");
/// assert_eq!(entry.value, 15);
/// assert!(entry.age.expect("the default envelope stores the time").as_secs() < 60);
/// # Ok::<(), dogpile::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry<V> {
    /// The value.
    pub value: V,
    /// The time at which the value was created.
    ///
    /// `None` if the envelope does not store it, as [`Bare`](crate::codec::Bare) does not.
    pub created: Option<Timestamp>,
    /// The age of the value when it was read.
    ///
    /// Zero if the creation time is in the future of the clock; `None` if the creation time is
    /// unknown.
    pub age: Option<Duration>,
    /// The version of the value's encoding.
    ///
    /// `None` if the envelope does not store it; [`Full`](crate::codec::Full) does.
    pub version: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_as_floats_round_trip() {
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
    fn saturates_at_the_latest_time() {
        let last = Timestamp(u64::MAX);
        assert_eq!(last.plus(Duration::MAX), last);
        assert_eq!(Timestamp::from_secs(u64::MAX), last);
        assert_eq!(Timestamp::EPOCH.since(last), Duration::ZERO);
        assert_eq!(format!("{:?}", Timestamp(1_000_007)), "1.000007");
    }
}
