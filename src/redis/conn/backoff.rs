//! How long a server is left alone that could not be reached, and what is said to those who come meanwhile.

use std::time::Duration;

use crate::error::{Error, ErrorKind};

/// How long after the first attempt that failed. Doubled with each.
const FIRST: Duration = Duration::from_millis(10);

/// The pause after so many attempts that failed, one at least: `longest` at most, and between a half and all of that at
/// random, so that not all clients of a server come back at once.
pub(crate) fn after(failures: u32, longest: Duration) -> Duration {
    let pause = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(longest);
    let random = getrandom::u32().unwrap_or(0);
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// The error for who comes in a pause, and so has waited for nothing.
#[cold]
pub(crate) fn left_alone(failed: &Error) -> Error {
    let kind = if failed.kind() == ErrorKind::Timeout { ErrorKind::Connection } else { failed.kind() };
    Error::new(kind, format!("the server is left alone for a moment, since it failed before: {failed}"))
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
