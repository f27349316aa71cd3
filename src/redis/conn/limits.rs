//! What all connections keep to: timeouts, sizes, pauses.

use std::time::Duration;

/// What a connection is given to work with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connect: Duration,
    pub(crate) response: Duration,
    pub(crate) max_entry: usize,
    /// The longest pause between two attempts to connect.
    pub(crate) max_backoff: Duration,
    /// Of a link only.
    #[cfg(feature = "tokio")]
    pub(crate) shared: crate::redis::conn::multiplexed::Sharing,
}

/// What is being done, for errors.
pub(crate) const READING: &str = "waiting for the server's answer";
pub(crate) const SENDING: &str = "sending the request";

/// How much is read at once, unless a string is larger.
pub(crate) const PIECE: usize = 16 * 1024;

/// What may stay allocated in a connection that goes back to its pool.
pub(crate) const KEEP: usize = 256 * 1024;

/// A request or reply that takes longer than the response timeout may go on as long as so many bytes move within each.
pub(crate) const PROGRESS: u64 = 1 << 20;
