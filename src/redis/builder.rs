//! [`RedisBuilder`]: settings of backends over our own sockets.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::redis::HashExpiry;
#[cfg(feature = "tls")]
use crate::redis::Tls;
#[cfg(feature = "tokio")]
use crate::redis::WhileDown;
use crate::redis::conn::limits::Limits;
#[cfg(feature = "tokio")]
use crate::redis::conn::multiplexed;
use crate::redis::topology::node::Node;
use crate::redis::url::Server;
use crate::redis::{Redis, Shared};
use crate::time::Clock;

/// Settings of a [`Redis`], a [`Cluster`](crate::redis::topology::cluster::Cluster) or a [`Sentinel`](crate::redis::topology::sentinel::Sentinel).
#[must_use]
#[derive(Clone)]
pub struct RedisBuilder<To = OneServer> {
    pub(crate) to: To,
    pub(crate) settings: Settings,
}

/// What a [`Redis`] is built over.
#[derive(Clone)]
pub struct OneServer {
    writer: String,
    reader: Option<String>,
}

/// What all backends over our own sockets can be set to.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) connections: usize,
    pub(crate) limits: Limits,
    pub(crate) hash_expiry: HashExpiry,
    pub(crate) clock: Clock,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
}

impl Settings {
    /// The server at a URL, which is written to.
    pub(crate) fn server(&self, url: &str) -> Result<Server, Error> {
        #[cfg(not(feature = "tls"))]
        let server = Server::parse(url)?;
        #[cfg(feature = "tls")]
        let server = Server::parse_secure(url, self.tls.as_ref())?;
        Ok(Server { needs_hsetex: self.hash_expiry == HashExpiry::PerField, ..server })
    }

    /// Servers that are asked in turn: user, password and TLS are those of the first.
    pub(crate) fn servers(&self, urls: &[String]) -> Result<Vec<Server>, Error> {
        let Some((first, others)) = urls.split_first() else { return Ok(Vec::new()) };
        let first = self.server(first)?;
        let others = others.iter().map(|url| first.alike(url)).collect::<Result<Vec<_>, _>>()?;
        Ok([first].into_iter().chain(others).collect())
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
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
        Ok(())
    }
}

impl<To> RedisBuilder<To> {
    pub(crate) fn over(to: To) -> Self {
        let settings = Settings {
            connections: 16,
            limits: Limits {
                connect: Duration::from_secs(1),
                response: Duration::from_secs(1),
                max_entry: 512 * 1024 * 1024,
                max_pause: Duration::from_secs(1),
                #[cfg(feature = "tokio")]
                shared: multiplexed::Sharing::default(),
            },
            hash_expiry: HashExpiry::default(),
            clock: Clock::system(),
            #[cfg(feature = "tls")]
            tls: None,
        };
        RedisBuilder { to, settings }
    }

    /// Whom `rediss://` URLs trust, and who we are to their servers. Default: [`Tls::system`].
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.settings.tls = Some(tls);
        self
    }

    /// The most connections to open to each server. A caller that finds all in use waits for one, up to the response
    /// timeout. Default: 16.
    pub fn connections(mut self, most: usize) -> Self {
        self.settings.connections = most;
        self
    }

    /// How long connecting may take, without looking up the host's name. Default: 1 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.limits.connect = timeout;
        self
    }

    /// How long the server may take to answer, and a request to be sent. A large entry may take longer, as long as a
    /// MiB of it moves within each such time. Default: 1 s.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.settings.limits.response = timeout;
        self
    }

    /// How long fields of hashes live. Default: [`HashExpiry::OnCreate`].
    pub fn hash_expiry(mut self, expiry: HashExpiry) -> Self {
        self.settings.hash_expiry = expiry;
        self
    }

    /// Where [stamps](HashExpiry::Stamped) of fields read the time. Default: the system's clock.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.settings.clock = clock;
        self
    }

    /// The largest entry in bytes, to write and to read. Larger ones are refused before they are sent, and an answer
    /// with a larger one is an error. Default: 512 MiB, which is also the servers' own.
    pub fn max_entry(mut self, bytes: usize) -> Self {
        self.settings.limits.max_entry = bytes;
        self
    }

    /// How many requests of tasks may be under way on one connection. Whoever comes when there are so many waits for
    /// room, up to the connect and response timeouts together. Default: 1024.
    #[cfg(feature = "tokio")]
    pub fn in_flight(mut self, most: usize) -> Self {
        self.settings.limits.shared.in_flight = most;
        self
    }

    /// What tasks get while there is no connection. Default: [`WhileDown::Fail`].
    #[cfg(feature = "tokio")]
    pub fn while_down(mut self, what: WhileDown) -> Self {
        self.settings.limits.shared.while_down = what;
        self
    }

    /// The longest pause before a server is tried again that could not be reached, or did not answer; until then nobody
    /// waits for it, and each request fails at once. Pauses begin at 10 ms and double with each attempt that fails, less up
    /// to a half at random. Default: 1 s.
    pub fn max_pause(mut self, pause: Duration) -> Self {
        self.settings.limits.max_pause = pause;
        self
    }
}

impl RedisBuilder {
    pub(crate) fn new(url: &str) -> Self {
        Self::over(OneServer { writer: url.into(), reader: None })
    }

    /// Another server to read from, such as a replica. Its entries may lag behind; locks are always asked for at the
    /// first. Default: none.
    pub fn reader(mut self, url: &str) -> Self {
        self.to.reader = Some(url.into());
        self
    }

    /// The backend. Connects to nothing yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a URL of no use, and for zero connections, requests under way or timeouts.
    pub fn build(self) -> Result<Redis, Error> {
        let RedisBuilder { to, settings } = self;
        settings.check()?;
        let node = |server| Node::new(server, settings.connections, settings.limits);
        let reader = to.reader.as_deref().map(|url| -> Result<Server, Error> {
            let server = settings.server(url)?;
            Ok(Server { needs_hsetex: false, ..server })
        });
        Ok(Redis(Arc::new(Shared {
            writer: node(settings.server(&to.writer)?),
            reader: reader.transpose()?.map(node),
            limits: settings.limits,
            hash_expiry: settings.hash_expiry,
            clock: settings.clock,
        })))
    }
}

/// Shows no URL, since it may hold a password.
impl<To> fmt::Debug for RedisBuilder<To> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBuilder")
            .field("connections", &self.settings.connections)
            .field("limits", &self.settings.limits)
            .field("hash_expiry", &self.settings.hash_expiry)
            .finish_non_exhaustive()
    }
}

/// Shows no URL.
impl fmt::Debug for OneServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneServer").finish_non_exhaustive()
    }
}
