//! [`Redis`]: a Redis or Valkey server over our own sockets.

pub(crate) mod builder;
pub(crate) mod conn;
#[cfg(feature = "driver")]
mod driver;
mod hash_ttl;
mod info;
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

use crate::backend::leases::Watch;
use crate::error::Error;
use crate::redis::protocol::batch::Acknowledged;
use crate::redis::protocol::commands;
use crate::redis::protocol::parser::Receive;
use crate::redis::topology::node::Node;
#[cfg(feature = "tls")]
#[cfg(feature = "tokio")]
use crate::redis::transport::AsyncExchange;
use crate::redis::transport::{Access, Exchange, ExchangeSettings, Route};
use crate::time::{Clock, Timestamp};

pub use self::builder::{OneServer, RedisBuilder};
#[cfg(all(feature = "driver", feature = "tokio"))]
pub use self::driver::AsyncDriver;
#[cfg(feature = "driver")]
pub use self::driver::Driver;
pub use self::hash_ttl::HashExpiry;
pub use self::info::{ServerInfo, ServerName};
#[cfg(feature = "tokio")]
pub use self::sweep::sweep_async;
pub use self::sweep::{Swept, sweep};
#[cfg(feature = "tls")]
pub use self::tls::Tls;
pub use self::topology::cluster::{Cluster, ClusterNodes};
pub use self::topology::sentinel::{Sentinel, SentinelServers};
pub use self::topology::shard::ReadFrom;

/// Entries in a Redis or Valkey server, over connections of our own.
///
/// A handle is cheap to clone, and clones share one pool of connections. Connections are opened when they are needed,
/// so a server that is down shows at the first use; a region goes on without it, unless it
/// [fails closed](crate::region::builder::RegionBuilder::fail_closed). A connection that broke is replaced, and what can be asked twice
/// is asked again, once. Threads take a connection each for as long as a request takes. Tasks share one, whose requests
/// follow each other without waiting for replies (feature `tokio`, in a runtime with I/O and timers). Servers: Redis 7.0
/// or newer, Valkey; RESP3 where they know it, RESP2 otherwise.
///
/// What a server cannot do is found out when a connection to it is made, at no round trip more (one more without RESP3): a
/// Redis before 7.0, one without `HSETEX` where [`HashExpiry::PerField`] is set, a node of a cluster and a sentinel are
/// refused with an error of [`ErrorKind::Config`](crate::error::ErrorKind::Config), which a region passes on also where it goes on without its backend.
/// What a server or proxy does not say of itself is not held against it; nor is it asked what an ACL lets its user do, so a
/// command that is not allowed shows when it is sent.
///
/// A hit makes one write and one read and allocates nothing: the entry goes into memory of the connection that is used
/// again when nobody holds any of it. A value that keeps its entry (`Bytes`, `ByteString`,
/// [`LazyMap`](crate::codec::lazy::LazyMap)) keeps 16 KiB of that memory or so, shared with its neighbours.
///
/// ```no_run
/// use dogpile::{HashExpiry, Redis};
/// use std::time::Duration;
///
/// let redis = Redis::open("redis://127.0.0.1:6379/0")?;
///
/// let redis = Redis::builder("redis://:password@primary:6379")
///     .reader("redis://:password@replica:6379")
///     .connections(32)
///     .response_timeout(Duration::from_millis(500))
///     .hash_expiry(HashExpiry::Always)
///     .build()?;
/// redis.ping()?;
/// # Ok::<(), dogpile::Error>(())
/// ```
#[derive(Clone)]
pub struct Redis(Arc<Shared>);

struct Shared {
    writer: Node,
    reader: Option<Node>,
    limits: Limits,
    hash_expiry: HashExpiry,
    clock: Clock,
}

/// What tasks get while there is no connection.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WhileDown {
    /// An error, at once, as long as the last attempt to connect failed; whoever comes while the next one is made too.
    Fail,
    /// They wait for a connection, for as long as connecting and answering may take together.
    Wait,
}

impl Redis {
    /// The server at a URL, with everything else at its default.
    ///
    /// `redis://[user][:password]@host[:port][/db]`, the same with `rediss://` for TLS (feature `tls`), or
    /// `unix:///path/to/socket[?db=…&user=…&pass=…]`. Nothing is connected yet; [`Redis::ping`] does that.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::error::ErrorKind::Config) when the URL is of no use; the message does not repeat it.
    pub fn open(url: &str) -> Result<Self, Error> {
        Self::builder(url).build()
    }

    /// A server at a URL, with settings.
    pub fn builder(url: &str) -> RedisBuilder {
        RedisBuilder::new(url)
    }

    /// Asks every server whether it is there, over the connections that requests use.
    ///
    /// # Errors
    /// When one cannot be reached, refuses us, or does not answer in time.
    pub fn ping(&self) -> Result<(), Error> {
        for access in [Access::Write, Access::Read] {
            let mut answer = Acknowledged::default();
            self.exchange(access, Route::Primary(0), commands::ping, &mut answer)?;
            answer.finish()?;
        }
        Ok(())
    }

    /// As [`Redis::ping`], over the connections that tasks share.
    ///
    /// # Errors
    /// As there.
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

impl Exchange for Redis {
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

impl ExchangeSettings for Redis {
    fn hash_expiry(&self) -> HashExpiry {
        self.0.hash_expiry
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
impl AsyncExchange for Redis {
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

    fn send(&self, write: impl FnOnce(&mut Vec<u8>) -> usize) {
        // The connection broke, which is no reason for a lease to stay.
        if let Some(written) = self.0.writer.send(write) {
            written.send_to(self);
        }
    }
}

/// Shows where the servers are, and no password.
impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("server", &self.0.writer.server)
            .field("reader", &self.0.reader.as_ref().map(|node| &node.server))
            .field("limits", &self.0.limits)
            .field("hash_expiry", &self.0.hash_expiry)
            .finish_non_exhaustive()
    }
}
