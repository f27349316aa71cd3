//! [`RedisBuilder`]: the settings of [`Redis`], [`Cluster`](crate::Cluster) and
//! [`Sentinel`](crate::Sentinel).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::redis::HashTtl;
#[cfg(feature = "tls")]
use crate::redis::Tls;
#[cfg(feature = "tokio")]
use crate::redis::WhileDown;
use crate::redis::conn::limits::Limits;
#[cfg(feature = "tokio")]
use crate::redis::conn::multiplexed;
use crate::redis::topology::node::Node;
use crate::redis::url::Server;
use crate::redis::{Redis, RedisInner};
use crate::time::Clock;

/// A builder for a [`Redis`], a [`Cluster`](crate::Cluster) or a [`Sentinel`](crate::Sentinel).
///
/// [`Redis::builder`], [`Cluster::builder`](crate::Cluster::builder) and
/// [`Sentinel::builder`](crate::Sentinel::builder) return one. The type parameter is the kind of
/// deployment; each kind adds settings of its own.
///
/// ```no_run
/// use std::time::Duration;
/// use dogpile::{Clock, HashTtl, Redis};
///
/// let redis = Redis::builder("redis://127.0.0.1:6379")
///     .connections(32)
///     .connect_timeout(Duration::from_millis(250))
///     .response_timeout(Duration::from_millis(500))
///     .hash_ttl(HashTtl::Always)
///     .clock(Clock::system())
///     .max_entry(16 * 1024 * 1024)
///     .max_backoff(Duration::from_millis(200))
///     .build()?;
/// # let _ = redis;
/// # Ok::<(), dogpile::Error>(())
/// ```
#[must_use]
#[derive(Clone)]
pub struct RedisBuilder<To = OneServer> {
    pub(crate) to: To,
    pub(crate) settings: ServerSettings,
}

/// The server of a [`Redis`] under construction: the default parameter of its [`RedisBuilder`].
#[derive(Clone)]
pub struct OneServer {
    writer: String,
    reader: Option<String>,
}

/// The settings that all kinds of deployments share.
#[derive(Clone)]
pub(crate) struct ServerSettings {
    pub(crate) connections: usize,
    pub(crate) limits: Limits,
    pub(crate) hash_ttl: HashTtl,
    pub(crate) clock: Clock,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
}

impl ServerSettings {
    /// Parses the URL of a server that is written to.
    pub(crate) fn server(&self, url: &str) -> Result<Server, Error> {
        #[cfg(not(feature = "tls"))]
        let server = Server::parse(url)?;
        #[cfg(feature = "tls")]
        let server = Server::parse_secure(url, self.tls.as_ref())?;
        Ok(Server { needs_hsetex: self.hash_ttl == HashTtl::PerField, ..server })
    }

    /// Parses the URLs of several servers, which share user, password and TLS of the first.
    pub(crate) fn servers(&self, urls: &[String]) -> Result<Vec<Server>, Error> {
        let Some((first, others)) = urls.split_first() else { return Ok(Vec::new()) };
        let first = self.server(first)?;
        let others = others.iter().map(|url| first.sibling(url)).collect::<Result<Vec<_>, _>>()?;
        Ok([first].into_iter().chain(others).collect())
    }

    /// Fails if a setting that must be positive is zero.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let zero = |setting| {
            let message = format!("building a Redis backend: `{setting}` must not be zero");
            Err(Error::new(ErrorKind::Config, message))
        };
        if self.connections == 0 {
            return zero("connections");
        }
        if self.limits.connect.is_zero() {
            return zero("connect_timeout");
        }
        if self.limits.response.is_zero() {
            return zero("response_timeout");
        }
        #[cfg(feature = "tokio")]
        if self.limits.multiplexed.in_flight == 0 {
            return zero("in_flight");
        }
        Ok(())
    }
}

impl<To> RedisBuilder<To> {
    pub(crate) fn over(to: To) -> Self {
        let settings = ServerSettings {
            connections: 16,
            limits: Limits {
                connect: Duration::from_secs(1),
                response: Duration::from_secs(1),
                max_entry: 512 * 1024 * 1024,
                max_backoff: Duration::from_secs(1),
                #[cfg(feature = "tokio")]
                multiplexed: multiplexed::MultiplexLimits::default(),
            },
            hash_ttl: HashTtl::default(),
            clock: Clock::system(),
            #[cfg(feature = "tls")]
            tls: None,
        };
        RedisBuilder { to, settings }
    }

    /// Sets the TLS configuration of `rediss://` URLs: trusted roots and client certificate.
    ///
    /// Default: [`Tls::system`], the root certificates of the system.
    ///
    /// ```no_run
    /// use dogpile::Redis;
    /// use dogpile::redis::Tls;
    ///
    /// let redis = Redis::builder("rediss://cache.example:6380")
    ///     .tls(Tls::trusting(std::fs::read("ca.pem")?)?)
    ///     .build()?;
    /// # let _ = redis;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.settings.tls = Some(tls);
        self
    }

    /// Sets how many connections blocking callers may open to each server. Default: 16.
    ///
    /// If all of them are in use, a caller waits for one, at most for the response timeout. Tasks
    /// do not count: they share one connection per server and runtime.
    pub fn connections(mut self, max: usize) -> Self {
        self.settings.connections = max;
        self
    }

    /// Sets how long connecting may take, excluding the DNS lookup. Default: 1 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.limits.connect = timeout;
        self
    }

    /// Sets how long the server may take to reply, and a request to be sent. Default: 1 s.
    ///
    /// A large entry may take longer, as long as at least 1 MiB of it is transferred in each such
    /// period.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.settings.limits.response = timeout;
        self
    }

    /// Sets how the fields of hashes expire. Default: [`HashTtl::OnCreate`].
    pub fn hash_ttl(mut self, hash_ttl: HashTtl) -> Self {
        self.settings.hash_ttl = hash_ttl;
        self
    }

    /// Sets the clock for the [stamps](HashTtl::Stamped) of fields. Default: the system's clock.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.settings.clock = clock;
        self
    }

    /// Sets the size limit of an entry in bytes, for writes and reads. Default: 512 MiB.
    ///
    /// A larger entry is refused before it is sent, and a reply with a larger one is an error. The
    /// default is the limit of the servers.
    pub fn max_entry(mut self, bytes: usize) -> Self {
        self.settings.limits.max_entry = bytes;
        self
    }

    /// Sets how many requests of tasks may be in flight on one connection. Default: 1024.
    ///
    /// If the limit is reached, a request waits, at most for the sum of the connect and response
    /// timeouts.
    ///
    /// ```no_run
    /// let redis = dogpile::Redis::builder("redis://127.0.0.1").in_flight(4096).build()?;
    /// # let _ = redis;
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    #[cfg(feature = "tokio")]
    pub fn in_flight(mut self, max: usize) -> Self {
        self.settings.limits.multiplexed.in_flight = max;
        self
    }

    /// Sets what requests of tasks do while there is no connection. Default: [`WhileDown::Fail`].
    ///
    /// ```no_run
    /// use dogpile::Redis;
    /// use dogpile::redis::WhileDown;
    ///
    /// let redis = Redis::builder("redis://127.0.0.1").while_down(WhileDown::Wait).build()?;
    /// # let _ = redis;
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    #[cfg(feature = "tokio")]
    pub fn while_down(mut self, while_down: WhileDown) -> Self {
        self.settings.limits.multiplexed.while_down = while_down;
        self
    }

    /// Sets the longest backoff before a failed server is contacted again. Default: 1 s.
    ///
    /// A server fails if it cannot be reached or does not answer. During the backoff, every request
    /// fails immediately. The backoff starts at 10 ms and doubles with each failed attempt; a
    /// random jitter shortens it by up to a half.
    pub fn max_backoff(mut self, max: Duration) -> Self {
        self.settings.limits.max_backoff = max;
        self
    }
}

impl RedisBuilder {
    pub(crate) fn new(url: &str) -> Self {
        Self::over(OneServer { writer: url.into(), reader: None })
    }

    /// Sets another server to read from, such as a replica. Default: none.
    ///
    /// A read may return an entry that is older than the stored one by the replication lag. Locks,
    /// and reads in the same round trip as a lock, always go to the first server.
    ///
    /// ```no_run
    /// let redis = dogpile::Redis::builder("redis://primary:6379")
    ///     .reader("redis://replica:6379")
    ///     .build()?;
    /// # let _ = redis;
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn reader(mut self, url: &str) -> Self {
        self.to.reader = Some(url.into());
        self
    }

    /// Builds the backend. This does not connect yet; [`Redis::ping`] does.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if a URL is invalid, and if the number of connections, the number of
    /// requests in flight, or a timeout is zero.
    pub fn build(self) -> Result<Redis, Error> {
        let RedisBuilder { to, settings } = self;
        settings.check()?;
        let node = |server| Node::new(server, settings.connections, settings.limits);
        let reader = to.reader.as_deref().map(|url| -> Result<Server, Error> {
            let server = settings.server(url)?;
            Ok(Server { needs_hsetex: false, ..server })
        });
        Ok(Redis(Arc::new(RedisInner {
            writer: node(settings.server(&to.writer)?),
            reader: reader.transpose()?.map(node),
            limits: settings.limits,
            hash_ttl: settings.hash_ttl,
            clock: settings.clock,
        })))
    }
}

/// Omits the URLs, which may contain a password.
impl<To> fmt::Debug for RedisBuilder<To> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBuilder")
            .field("connections", &self.settings.connections)
            .field("limits", &self.settings.limits)
            .field("hash_ttl", &self.settings.hash_ttl)
            .finish_non_exhaustive()
    }
}

/// Omits the URLs, which may contain a password.
impl fmt::Debug for OneServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneServer").finish_non_exhaustive()
    }
}
