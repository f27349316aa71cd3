//! Timeouts and buffer sizes that all kinds of connections share.

use std::time::Duration;

/// The limits of a connection, as set on the builder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The connect timeout.
    pub(crate) connect: Duration,
    /// The response timeout.
    pub(crate) response: Duration,
    /// The largest entry in bytes, for reads and writes.
    pub(crate) max_entry: usize,
    /// The longest backoff between two attempts to connect.
    pub(crate) max_backoff: Duration,
    /// Limits that apply to multiplexed connections only.
    #[cfg(feature = "tokio")]
    pub(crate) multiplexed: crate::redis::conn::multiplexed::MultiplexLimits,
}

/// Context for errors that occur while a reply is read.
pub(crate) const READING: &str = "waiting for the server's reply";
/// Context for errors that occur while commands are sent.
pub(crate) const SENDING: &str = "sending the request";

/// The size of one read in bytes, unless a single string is larger.
pub(crate) const READ_SIZE: usize = 16 * 1024;

/// The largest buffer, in bytes, that an idle connection keeps allocated.
pub(crate) const MAX_IDLE_CAPACITY: usize = 256 * 1024;

/// The bytes that must move within each response timeout of a transfer that takes longer than one.
pub(crate) const MIN_PROGRESS: u64 = 1 << 20;
