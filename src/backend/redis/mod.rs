//! [`Redis`]: a Redis or Valkey server over our own sockets.

mod answers;
mod config;
mod connection;
mod handshake;
#[cfg(feature = "tokio")]
mod incoming;
#[cfg(feature = "tokio")]
mod link;
mod listener;
#[cfg(feature = "tokio")]
mod pipeline;
#[cfg(feature = "tokio")]
mod serving;
#[cfg(feature = "tokio")]
mod stream;
#[cfg(feature = "tls")]
mod tls;
pub(crate) mod watches;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use self::config::Server;
use self::connection::{Connection, Limits};
#[cfg(feature = "tokio")]
use self::link::Links;
use self::listener::Listener;
#[cfg(feature = "tls")]
pub use self::tls::Tls;
#[cfg(feature = "tokio")]
use super::AsyncExchange;
use super::pool::Pool;
use super::{Access, Exchange, ExchangeSettings, Watch};
use crate::engine::batch::Acknowledged;
#[cfg(feature = "tokio")]
use crate::engine::chunk::Chunk;
use crate::engine::plan;
use crate::engine::replies::Receive;
#[cfg(feature = "tokio")]
use crate::engine::replies::Token;
use crate::entry::{Clock, Timestamp};
use crate::error::{Error, ErrorKind};
use crate::request::HashExpiry;

/// Entries in a Redis or Valkey server, over connections of our own.
///
/// A handle is cheap to clone, and clones share one pool of connections. Connections are opened when they are needed,
/// so a server that is down shows at the first use; a region goes on without it, unless it
/// [fails closed](crate::RegionBuilder::fail_closed). A connection that broke is replaced, and what can be asked twice
/// is asked again, once. Threads take a connection each for as long as a request takes. Tasks share one, whose requests
/// follow each other without waiting for replies (feature `tokio`, in a runtime with I/O and timers). Servers: Redis 7.0
/// or newer, Valkey; RESP3 where they know it, RESP2 otherwise.
///
/// What a server cannot do is found out when a connection to it is made, at no round trip more (one more without RESP3): a
/// Redis before 7.0, one without `HSETEX` where [`HashExpiry::PerField`] is set, a node of a cluster and a sentinel are
/// refused with an error of [`ErrorKind::Config`], which a region passes on also where it goes on without its backend.
/// What a server or proxy does not say of itself is not held against it; nor is it asked what an ACL lets its user do, so a
/// command that is not allowed shows when it is sent.
///
/// A hit makes one write and one read and allocates nothing: the entry goes into memory of the connection that is used
/// again when nobody holds any of it. A value that keeps its entry (`Bytes`, `ByteString`,
/// [`LazyMap`](crate::codec::LazyMap)) keeps 16 KiB of that memory or so, shared with its neighbours.
///
/// ```no_run
/// use std::time::Duration;
/// use dogpile::{HashExpiry, Redis};
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
    listener: Listener,
}

/// A server and the connections to it.
struct Node {
    server: Server,
    /// Boxed, since they move in and out with every request.
    pool: Pool<Box<Connection>>,
    #[cfg(feature = "tokio")]
    links: Links,
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
    /// [`ErrorKind::Config`] when the URL is of no use; the message does not repeat it.
    pub fn open(url: &str) -> Result<Self, Error> {
        Self::builder(url).build()
    }

    /// A server at a URL, with settings.
    pub fn builder(url: &str) -> RedisBuilder {
        RedisBuilder {
            writer: url.into(),
            reader: None,
            connections: 16,
            limits: Limits {
                connect: Duration::from_secs(1),
                response: Duration::from_secs(1),
                max_entry: 512 * 1024 * 1024,
                max_pause: Duration::from_secs(1),
                #[cfg(feature = "tokio")]
                shared: link::Sharing::default(),
            },
            hash_expiry: HashExpiry::default(),
            clock: Clock::system(),
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// Asks every server whether it is there, over the connections that requests use.
    ///
    /// # Errors
    /// When one cannot be reached, refuses us, or does not answer in time.
    pub fn ping(&self) -> Result<(), Error> {
        for access in [Access::Write, Access::Read] {
            let mut answer = Acknowledged::default();
            self.exchange(access, plan::ping, &mut answer)?;
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
            self.exchange_async(access, plan::ping, &mut answer).await?;
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
        write: impl FnOnce(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error> {
        let node = self.node(access);
        node.pool.exchange(access, || Connection::open(&node.server, self.0.limits).map(Box::new), write, receive)
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
        self.0.listener.watch(lock)
    }
}

#[cfg(feature = "tokio")]
impl AsyncExchange for Redis {
    #[inline]
    async fn exchange_async(
        &self,
        access: Access,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> Result<(), Error> {
        let link = self.node(access).links.here()?;
        let replied = match link.request(&write).await {
            Ok(Ok(replied)) => replied,
            // Boxed, since it is seldom needed, and its size would be part of every request's.
            other => Box::pin(link.request_again(access, write, other)).await?,
        };
        replied.read(self.0.limits.max_entry, receive).inspect_err(|error| link.pipeline.doubt(error))
    }

    fn send(&self, write: impl FnOnce(&mut Vec<u8>) -> usize) {
        let Some(written) = self.0.writer.links.send(write) else { return };
        // The connection broke, which is no reason for a lease to stay.
        let redis = self.clone();
        tokio::spawn(async move {
            let mut ignore = |_: Token<'_>, _: &mut Chunk<'_>| Ok(());
            let _ = redis.exchange_async(Access::Write, |out| written.again(out), &mut ignore).await;
        });
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

/// Settings of a [`Redis`].
#[must_use]
#[derive(Clone)]
pub struct RedisBuilder {
    writer: String,
    reader: Option<String>,
    connections: usize,
    limits: Limits,
    hash_expiry: HashExpiry,
    clock: Clock,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
}

impl RedisBuilder {
    /// Another server to read from, such as a replica. Its entries may lag behind; locks are always asked for at the
    /// first. Default: none.
    pub fn reader(mut self, url: &str) -> Self {
        self.reader = Some(url.into());
        self
    }

    /// Whom `rediss://` URLs trust, and who we are to their servers. Default: [`Tls::system`].
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// The most connections to open to each server. A caller that finds all in use waits for one, up to the response
    /// timeout. Default: 16.
    pub fn connections(mut self, most: usize) -> Self {
        self.connections = most;
        self
    }

    /// How long connecting may take, without looking up the host's name. Default: 1 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.limits.connect = timeout;
        self
    }

    /// How long the server may take to answer, and a request to be sent. A large entry may take longer, as long as a
    /// MiB of it moves within each such time. Default: 1 s.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.limits.response = timeout;
        self
    }

    /// How long fields of hashes live. Default: [`HashExpiry::OnCreate`].
    pub fn hash_expiry(mut self, expiry: HashExpiry) -> Self {
        self.hash_expiry = expiry;
        self
    }

    /// Where [stamps](HashExpiry::Stamped) of fields read the time. Default: the system's clock.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The largest entry in bytes, to write and to read. Larger ones are refused before they are sent, and an answer
    /// with a larger one is an error. Default: 512 MiB, which is also the servers' own.
    pub fn max_entry(mut self, bytes: usize) -> Self {
        self.limits.max_entry = bytes;
        self
    }

    /// How many requests of tasks may be under way on one connection. Whoever comes when there are so many waits for
    /// room, up to the connect and response timeouts together. Default: 1024.
    #[cfg(feature = "tokio")]
    pub fn in_flight(mut self, most: usize) -> Self {
        self.limits.shared.in_flight = most;
        self
    }

    /// What tasks get while there is no connection. Default: [`WhileDown::Fail`].
    #[cfg(feature = "tokio")]
    pub fn while_down(mut self, what: WhileDown) -> Self {
        self.limits.shared.while_down = what;
        self
    }

    /// The longest pause before a server is tried again that could not be reached, or did not answer; until then nobody
    /// waits for it, and each request fails at once. Pauses begin at 10 ms and double with each attempt that fails, less up
    /// to a half at random. Default: 1 s.
    pub fn max_pause(mut self, pause: Duration) -> Self {
        self.limits.max_pause = pause;
        self
    }

    /// The backend. Connects to nothing yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a URL of no use, and for zero connections, requests under way or timeouts.
    pub fn build(self) -> Result<Redis, Error> {
        let zero = |what| Err(Error::new(ErrorKind::Config, format!("the {what} of a Redis backend must not be zero")));
        if self.connections == 0 {
            return zero("number of connections");
        }
        if self.limits.connect.is_zero() {
            return zero("connect timeout");
        }
        if self.limits.response.is_zero() {
            return zero("response timeout");
        }
        #[cfg(feature = "tokio")]
        if self.limits.shared.in_flight == 0 {
            return zero("number of requests under way");
        }
        let node = |url: &str, writes: bool| -> Result<Node, Error> {
            #[cfg(not(feature = "tls"))]
            let mut server = Server::parse(url)?;
            #[cfg(feature = "tls")]
            let mut server = Server::parse_secure(url, self.tls.as_ref())?;
            server.needs_hsetex = writes && self.hash_expiry == HashExpiry::PerField;
            Ok(Node {
                #[cfg(feature = "tokio")]
                links: Links::new(&server, self.limits),
                server,
                pool: Pool::new(self.connections, self.limits.response, self.limits.max_pause),
            })
        };
        let writer = node(&self.writer, true)?;
        Ok(Redis(Arc::new(Shared {
            listener: Listener::new(&writer.server, self.limits),
            writer,
            reader: self.reader.as_deref().map(|url| node(url, false)).transpose()?,
            limits: self.limits,
            hash_expiry: self.hash_expiry,
            clock: self.clock,
        })))
    }
}

/// Shows no URL, since it may hold a password.
impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBuilder")
            .field("connections", &self.connections)
            .field("limits", &self.limits)
            .field("hash_expiry", &self.hash_expiry)
            .finish_non_exhaustive()
    }
}
