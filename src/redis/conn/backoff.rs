//! Exponential backoff, with jitter, between attempts to connect to a server that is down.

use std::time::Duration;

use crate::error::{Error, ErrorKind};

/// The backoff after the first failed attempt. It doubles with each further one.
const FIRST: Duration = Duration::from_millis(10);

/// Returns the backoff after a number of failed attempts, which is at least one.
///
/// The backoff is capped at `max_backoff`. Up to a half of it is subtracted at random, so that the
/// clients of a server do not all reconnect at once.
pub(crate) fn after(failures: u32, max_backoff: Duration) -> Duration {
    let backoff = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(max_backoff);
    let random = getrandom::u32().unwrap_or(0);
    backoff / 2 + (backoff / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Returns the error for a request that fails during the backoff, without an attempt of its own.
///
/// A timeout becomes a connection error, since this request did not wait for anything.
#[cold]
pub(crate) fn unavailable(last: &Error) -> Error {
    let kind = if last.kind() == ErrorKind::Timeout { ErrorKind::Connection } else { last.kind() };
    Error::new(kind, format!("the server failed recently and is not retried yet: {last}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_the_limit() {
        let max_backoff = Duration::from_secs(1);
        for (failures, whole) in [(1, 10), (2, 20), (3, 40), (7, 640), (8, 1000), (100, 1000), (u32::MAX, 1000)] {
            let (backoff, whole) = (after(failures, max_backoff), Duration::from_millis(whole));
            assert!((whole / 2..=whole).contains(&backoff), "{failures}: {backoff:?}");
        }
        assert!(after(1, Duration::ZERO).is_zero());
    }
}
