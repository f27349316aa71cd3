//! Parts of the wire protocol for the tests and fuzz targets of this crate. Not a public API.

use std::time::Duration;

use bytes::Bytes;

use crate::batch::Batch;
use crate::error::Error;
use crate::exec::poll_ready;
use crate::key::{Key, KeyBuf};
use crate::redis::leases;
pub use crate::redis::protocol::chunk::Chunk;
pub use crate::redis::protocol::commands::leases::Lease;
pub use crate::redis::protocol::parser::{Fed, Parser, Receive, Strings, Token};
use crate::redis::transport::BlockingTransport;
pub use crate::redis::transport::{Access, Route, Transport, TransportSettings};

/// Returns the name of the lock of an entry.
pub fn lock_name(server: &impl Transport, prefix: &[u8], key: Key<'_>) -> KeyBuf {
    leases::lock_name(server, prefix, key)
}

/// Takes leases that are free, and then reads their entries.
///
/// # Errors
/// If the server fails.
pub fn lease(
    server: &impl Transport,
    wanted: &[Lease<'_>],
    ttl: Duration,
) -> Result<Vec<(bool, Option<Bytes>)>, Error> {
    poll_ready(leases::lease(&BlockingTransport(server), wanted, ttl))
}

/// Releases leases that their tokens still hold.
///
/// # Errors
/// If the server fails.
pub fn release(server: &impl Transport, held: &[Lease<'_>]) -> Result<Vec<bool>, Error> {
    poll_ready(leases::release(&BlockingTransport(server), held))
}

/// Stores entries and releases their leases.
///
/// # Errors
/// If the server fails.
pub fn set_and_release(
    server: &impl Transport,
    held: &[Lease<'_>],
    batch: &Batch,
    ttl: Option<Duration>,
    only_if_held: bool,
) -> Result<Vec<bool>, Error> {
    poll_ready(leases::set_and_release(&BlockingTransport(server), held, batch, ttl, only_if_held))
}

/// Returns whether a lease has a holder.
///
/// # Errors
/// If the server fails.
pub fn is_leased(server: &impl Transport, lock: &[u8]) -> Result<bool, Error> {
    poll_ready(leases::is_leased(&BlockingTransport(server), lock))
}
