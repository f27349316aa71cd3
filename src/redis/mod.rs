//! Backends that keep entries in Redis or Valkey: one server, a cluster, or servers under Sentinel.
//!
//! Choose the backend by your deployment and pass it to
//! [`Region::builder`](crate::Region::builder):
//!
//! | deployment | backend | builder parameter |
//! |---|---|---|
//! | one server, optionally with a replica to read from | [`Redis`] | [`OneServer`] |
//! | a cluster, with keys distributed by slot | [`Cluster`] | [`ClusterNodes`] |
//! | a primary and replicas that sentinels monitor | [`Sentinel`] | [`SentinelServers`] |
//! | blocking connections of the `redis` crate | [`Driver`] (feature `driver`) | |
//! | an asynchronous connection of that crate | [`AsyncDriver`] (features `driver`, `tokio`) | |
//!
//! A [`RedisBuilder`] sets up the first three, which serve both blocking callers and tasks (feature
//! `tokio`). [`Driver`] serves only blocking callers, and [`AsyncDriver`] only tasks. Blocking
//! callers use a pool of connections. Tasks share one multiplexed connection per server and
//! runtime.
//!
//! The other items here are settings, and tools for operating a deployment:
//!
//! | item | purpose |
//! |---|---|
//! | [`HashTtl`] | how the fields of hashes expire |
//! | [`ReadFrom`] | whether reads go to primaries or to replicas |
//! | [`WhileDown`] (feature `tokio`) | whether tasks fail or wait while there is no connection |
//! | [`Tls`] (feature `tls`) | trusted roots and client certificate of `rediss://` URLs |
//! | [`ServerInfo`], [`ServerName`] | what a server is and which features it has |
//! | [`sweep`], [`sweep_async`], [`SweepReport`] | removal of expired [stamped](HashTtl::Stamped) fields |
//! | [`LeaseSource`] | lets a wrapper around a backend support [`RedisLock`](crate::RedisLock) |
//!
//! ```no_run
//! use std::time::Duration;
//! use dogpile::{Redis, RedisLock, Region};
//!
//! let redis = Redis::builder("redis://127.0.0.1:6379/0")
//!     .response_timeout(Duration::from_millis(500))
//!     .build()?;
//! let region = Region::builder(redis).lock(RedisLock::new()).build()?;
//! # let _: Region<_, _, _, _> = region;
//! # Ok::<(), dogpile::Error>(())
//! ```

pub(crate) mod builder;
pub(crate) mod conn;
#[cfg(feature = "driver")]
mod driver;
mod hash_ttl;
mod info;
pub(crate) mod leases;
pub(crate) mod protocol;
pub(crate) mod stamp;
mod store;
mod sweep;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod topology;
pub(crate) mod tracking;
pub(crate) mod transport;
pub(crate) mod url;

use std::fmt;
use std::sync::Arc;

use crate::redis::conn::limits::Limits;

use crate::error::Error;
use crate::redis::protocol::batch::Acknowledged;
use crate::redis::protocol::commands;
use crate::redis::protocol::parser::Receive;
use crate::redis::topology::node::Node;
#[cfg(feature = "tokio")]
use crate::redis::transport::AsyncTransport;
use crate::redis::transport::Watch;
use crate::redis::transport::{Access, Route, Transport, TransportSettings};
use crate::time::{Clock, Timestamp};

pub use self::builder::{OneServer, RedisBuilder};
#[cfg(all(feature = "driver", feature = "tokio"))]
pub use self::driver::AsyncDriver;
#[cfg(feature = "driver")]
pub use self::driver::Driver;
pub use self::hash_ttl::HashTtl;
pub use self::info::{ServerInfo, ServerName};
pub use self::leases::LeaseSource;
#[cfg(feature = "tokio")]
pub use self::sweep::sweep_async;
pub use self::sweep::{SweepReport, sweep};
#[cfg(feature = "tls")]
pub use self::tls::Tls;
pub use self::topology::cluster::{Cluster, ClusterNodes};
pub use self::topology::sentinel::{Sentinel, SentinelServers};
pub use self::topology::shard::ReadFrom;

/// A backend that keeps entries in one Redis or Valkey server.
///
/// A handle is cheap to clone, and clones share the connections. It works with Redis 7.0 or newer
/// and with Valkey, over RESP3 if the server supports it and over RESP2 otherwise.
///
/// # Connections
///
/// Blocking callers take a connection out of a pool for each request. Tasks share one connection
/// per runtime and send their requests without waiting for earlier replies; this needs the feature
/// `tokio` and a runtime with I/O and timers enabled.
///
/// Connections are opened when they are needed, so the first request reports a server that is down.
/// A region then runs its creators without the cache, unless it [fails
/// closed](crate::RegionBuilder::fail_closed). A broken connection is replaced, and a request that
/// is safe to repeat is repeated once.
///
/// # Server capabilities
///
/// The handshake of each connection checks what the server is and supports. It needs no additional
/// round trip over RESP3, and one over RESP2. The connection is refused with
/// [`ErrorKind::Config`](crate::ErrorKind::Config) if the server is older than Redis 7.0, lacks
/// `HSETEX` while [`HashTtl::PerField`] is set, is a node of a cluster, or is a sentinel. A region
/// returns this error even if it does not fail closed.
///
/// A server or proxy that does not report a capability is assumed to have it. The handshake does
/// not query ACL permissions, so a forbidden command fails when it is sent.
///
/// # Cost
///
/// A hit makes one system call to write and one to read, and allocates nothing. The entry is read
/// into a buffer of the connection, which is reused once no value refers to it. A value that
/// borrows from its entry (`Bytes`, `ByteString`, [`LazyMap`](crate::codec::LazyMap)) keeps about
/// 16 KiB of that buffer alive, which it shares with neighboring values.
///
/// ```no_run
/// use dogpile::{HashTtl, Redis};
/// use std::time::Duration;
///
/// let redis = Redis::open("redis://127.0.0.1:6379/0")?;
///
/// let redis = Redis::builder("redis://:password@primary:6379")
///     .reader("redis://:password@replica:6379")
///     .connections(32)
///     .response_timeout(Duration::from_millis(500))
///     .hash_ttl(HashTtl::Always)
///     .build()?;
/// redis.ping()?;
/// # Ok::<(), dogpile::Error>(())
/// ```
#[derive(Clone)]
pub struct Redis(Arc<RedisInner>);

struct RedisInner {
    writer: Node,
    reader: Option<Node>,
    limits: Limits,
    hash_ttl: HashTtl,
    clock: Clock,
}

/// The behavior of requests from tasks while there is no connection to the server.
///
/// [`RedisBuilder::while_down`] sets it.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WhileDown {
    /// Requests fail immediately from a failed attempt to connect until the next successful one.
    Fail,
    /// Requests wait for a connection, at most for the sum of the connect and response timeouts.
    Wait,
}

impl Redis {
    /// Opens the server at a URL, with default settings.
    ///
    /// The URL is `redis://[user][:password]@host[:port][/db]`, the same with `rediss://` for TLS
    /// (feature `tls`), or `unix:///path/to/socket[?db=…&user=…&pass=…]`. Special characters in its
    /// parts are percent-encoded.
    ///
    /// This does not connect yet; [`Redis::ping`] does.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) if the URL is invalid. The message does not
    /// contain the URL.
    pub fn open(url: &str) -> Result<Self, Error> {
        Self::builder(url).build()
    }

    /// Returns a builder for the server at a URL, in the form that [`Redis::open`] takes.
    pub fn builder(url: &str) -> RedisBuilder {
        RedisBuilder::new(url)
    }

    /// Sends `PING` to the server and its [reader](RedisBuilder::reader) and waits for the replies.
    ///
    /// # Errors
    /// If a server cannot be reached, refuses the connection, or does not answer in time.
    ///
    /// # Cost
    /// Two round trips, one after the other; without a reader, both go to the same server.
    pub fn ping(&self) -> Result<(), Error> {
        for access in [Access::Write, Access::Read] {
            let mut answer = Acknowledged::default();
            self.exchange(access, Route::Primary(0), commands::ping, &mut answer)?;
            answer.finish()?;
        }
        Ok(())
    }

    /// Sends `PING` to the server and its reader over the connections that tasks share.
    ///
    /// # Errors
    /// If a server cannot be reached, refuses the connection, or does not answer in time, and
    /// outside of a tokio runtime.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the check; the connections stay usable.
    ///
    /// # Cost
    /// Two round trips, one after the other; without a reader, both go to the same server.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), dogpile::Error> {
    /// let redis = dogpile::Redis::open("redis://127.0.0.1:6379")?;
    /// redis.ping_async().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "tokio")]
    pub async fn ping_async(&self) -> Result<(), Error> {
        for access in [Access::Write, Access::Read] {
            let mut answer = Acknowledged::default();
            self.exchange_async(access, Route::Primary(0), commands::ping, &mut answer).await?;
            answer.finish()?;
        }
        Ok(())
    }

    fn node(&self, access: Access) -> &Node {
        match (access, &self.0.reader) {
            (Access::Read, Some(reader)) => reader,
            _ => &self.0.writer,
        }
    }
}

impl Transport for Redis {
    #[inline]
    fn exchange(
        &self,
        access: Access,
        _: Route,
        write: impl Fn(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error> {
        self.node(access).exchange(access, write, receive)
    }
}

impl TransportSettings for Redis {
    fn hash_ttl(&self) -> HashTtl {
        self.0.hash_ttl
    }

    fn max_entry(&self) -> usize {
        self.0.limits.max_entry
    }

    fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    fn watch(&self, lock: &[u8]) -> Option<Watch> {
        self.0.writer.watch(lock)
    }
}

#[cfg(feature = "tokio")]
impl AsyncTransport for Redis {
    type Exec = crate::exec::Async;

    #[inline]
    fn exchange_async(
        &self,
        access: Access,
        _: Route,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> impl Future<Output = Result<(), Error>> + Send {
        self.node(access).exchange_async(access, write, receive)
    }

    fn send(&self, write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync) -> Result<(), Error> {
        // If the connection broke, a task repeats the commands, so that no lease stays until it
        // expires.
        if let Some(written) = self.0.writer.send(write) {
            written.send_to(self);
        }
        Ok(())
    }
}

/// Shows the addresses and settings, and no password.
impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("server", &self.0.writer.server)
            .field("reader", &self.0.reader.as_ref().map(|node| &node.server))
            .field("limits", &self.0.limits)
            .field("hash_ttl", &self.0.hash_ttl)
            .finish_non_exhaustive()
    }
}
