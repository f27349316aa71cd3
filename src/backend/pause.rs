//! How long a server is left alone that could not be reached.

use std::time::Duration;

/// How long after the first attempt that failed. Doubled with each.
const FIRST: Duration = Duration::from_millis(10);

/// The pause after so many attempts that failed, one at least: `longest` at most, and between a half and all of that at
/// random, so that not all clients of a server come back at once.
pub(super) fn after(failures: u32, longest: Duration) -> Duration {
    let pause = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(longest);
    let random = getrandom::u32().unwrap_or(0);
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let longest = Duration::from_secs(1);
        for (failures, whole) in [(1, 10), (2, 20), (3, 40), (7, 640), (8, 1000), (100, 1000), (u32::MAX, 1000)] {
            let (pause, whole) = (after(failures, longest), Duration::from_millis(whole));
            assert!((whole / 2..=whole).contains(&pause), "{failures}: {pause:?}");
        }
        assert!(after(1, Duration::ZERO).is_zero());
    }
}
