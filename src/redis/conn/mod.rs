//! Connections to one server: blocking ones in a pool, and one that all tasks of a runtime share.

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
