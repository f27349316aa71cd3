//! Connections to one server: pooled blocking ones for threads, and a multiplexed one for tasks.

pub(crate) mod backoff;
pub(crate) mod blocking;
pub(crate) mod handshake;
pub(crate) mod limits;
#[cfg(feature = "tokio")]
pub(crate) mod multiplexed;
pub(crate) mod pool;
pub(crate) mod reply;
#[cfg(feature = "tls")]
pub(crate) mod tls_stream;
