//! [`Sentinel`]: a backend over a primary and its replicas, which Redis Sentinel monitors.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind};
use crate::redis::HashTtl;
use crate::redis::RedisBuilder;
#[cfg(feature = "tls")]
use crate::redis::Tls;
use crate::redis::conn::blocking::BlockingConnection;
#[cfg(feature = "tokio")]
use crate::redis::conn::multiplexed::EncodedCommands;
use crate::redis::conn::reply::{Reply, members, text};
use crate::redis::protocol::batch::server_error;
use crate::redis::protocol::commands;
use crate::redis::protocol::parser::Receive;
use crate::redis::protocol::routing::{Endpoint, Redirect, UpToRedirect};
use crate::redis::topology::discovery::{Discover, Discovery};
use crate::redis::topology::node::Node;
use crate::redis::topology::node_pool::NodePool;
use crate::redis::topology::router::Router;
use crate::redis::topology::shard::{ReadFrom, Shard, Target};
#[cfg(feature = "tokio")]
use crate::redis::transport::AsyncTransport;
use crate::redis::transport::Watch;
use crate::redis::transport::{Access, Route, Transport, TransportSettings};
use crate::redis::url::{Address, Role, Server};
use crate::time::Timestamp;

/// A backend that keeps entries in a Redis or Valkey server monitored by Redis Sentinel.
///
/// Everything that [`Redis`](crate::Redis) documents about connections, timeouts and costs holds
/// here too: a hit is one round trip and allocates nothing. A handle is cheap to clone, and clones
/// share the connections.
///
/// # Failover
///
/// The first request asks the sentinels for the address of the primary. A background thread asks
/// them again when the primary cannot be reached or reports that it has become a replica; the
/// thread runs only during the refresh. Until the sentinels have promoted a replica, requests fail
/// immediately, and a region runs its creators without the cache unless it [fails
/// closed](crate::RegionBuilder::fail_closed). A new connection to a server that is no longer the
/// primary is refused.
///
/// Sentinels close a server's connections when they demote it. If you demote a server by hand, run
/// `CLIENT KILL` as well: otherwise reads continue on the old connections until something is
/// written.
///
/// ```no_run
/// use dogpile::redis::ReadFrom;
/// use dogpile::{RedisLock, Region, Sentinel};
///
/// let sentinels = ["redis://10.0.0.1:26379", "redis://10.0.0.2:26379", "redis://10.0.0.3:26379"];
/// let servers = Sentinel::open(sentinels, "mymaster")?;
///
/// let servers = Sentinel::builder(sentinels, "mymaster")
///     .server_password(None, "password")
///     .read_from(ReadFrom::Replicas)
///     .build()?;
/// let region = Region::builder(servers).lock(RedisLock::new()).build()?;
/// # let _: Region<_, _, _, _> = region;
/// # Ok::<(), dogpile::Error>(())
/// ```
#[derive(Clone)]
pub struct Sentinel(Arc<Router<Sentinels>>);

/// The sentinels of a [`Sentinel`] under construction: the parameter of its [`RedisBuilder`].
#[derive(Clone)]
pub struct SentinelServers {
    urls: Vec<String>,
    name: String,
    read_from: ReadFrom,
    /// User and password of the servers.
    credentials: Option<(Option<String>, String)>,
    db: u32,
    /// The encryption of the servers, if it differs from that of the sentinels.
    #[cfg(feature = "tls")]
    tls: Option<Option<Tls>>,
}

impl Sentinel {
    /// Opens the servers that these sentinels monitor under a name, with default settings.
    ///
    /// The URLs are those of [`Redis::open`](crate::Redis::open), except that they name no database
    /// and no Unix socket, and that their default port is 26379. User and password of the first URL
    /// apply to all sentinels: the other URLs repeat them or have none. `rediss://` in all URLs
    /// encrypts the connections to the sentinels and to the servers.
    ///
    /// This does not connect yet; [`Sentinel::ping`] does.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if there is no URL, if one is invalid, or if one contradicts the
    /// first. The message does not contain the URL.
    pub fn open<U: Into<String>>(urls: impl IntoIterator<Item = U>, name: &str) -> Result<Self, Error> {
        Self::builder(urls, name).build()
    }

    /// Returns a builder, which takes the sentinels and the name of [`Sentinel::open`].
    ///
    /// ```no_run
    /// let sentinel = dogpile::Sentinel::builder(["redis://10.0.0.1:26379"], "mymaster")
    ///     .server_password(None, "password")
    ///     .database(2)
    ///     .build()?;
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn builder<U: Into<String>>(urls: impl IntoIterator<Item = U>, name: &str) -> RedisBuilder<SentinelServers> {
        let urls = urls.into_iter().map(Into::into).collect();
        let read_from = ReadFrom::default();
        RedisBuilder::over(SentinelServers {
            urls,
            name: name.into(),
            read_from,
            credentials: None,
            db: 0,
            #[cfg(feature = "tls")]
            tls: None,
        })
    }

    /// Sends `PING` to every server that requests may go to and waits for the replies.
    ///
    /// This discovers the servers first if that has not happened yet. Replicas are included if they
    /// are [read from](ReadFrom::Replicas).
    ///
    /// # Errors
    /// If a server cannot be reached, refuses the connection, or does not answer in time.
    ///
    /// # Cost
    /// One round trip per server, one after the other.
    ///
    /// ```no_run
    /// let sentinel = dogpile::Sentinel::open(["redis://10.0.0.1:26379"], "mymaster")?;
    /// sentinel.ping()?;
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn ping(&self) -> Result<(), Error> {
        self.0.ping()
    }

    /// Sends `PING` to every server that requests may go to, over the connections that tasks share.
    ///
    /// This discovers the servers first if that has not happened yet. Replicas are included if they
    /// are [read from](ReadFrom::Replicas).
    ///
    /// # Errors
    /// If a server cannot be reached, refuses the connection, or does not answer in time, and
    /// outside of a tokio runtime.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the check; the connections stay usable.
    ///
    /// # Cost
    /// One round trip per server, one after the other.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), dogpile::Error> {
    /// let sentinel = dogpile::Sentinel::open(["redis://10.0.0.1:26379"], "mymaster")?;
    /// sentinel.ping_async().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "tokio")]
    pub async fn ping_async(&self) -> Result<(), Error> {
        self.0.ping_async().await
    }
}

/// Decides what follows a failed or redirected exchange: `Ok` if the primary is to be asked
/// instead.
///
/// Once a reply was handed on, the request must not be sent again.
#[cold]
fn retry_at_primary<R: Receive>(
    topology: &Discovery<Sentinels>,
    target: &Target<'_>,
    outcome: Result<Redirect, Error>,
    up_to: &UpToRedirect<'_, R>,
) -> Result<(), Error> {
    let has_handed_on = up_to.is_inside() || up_to.handed_on > 0;
    match target.next_hop(topology, outcome, has_handed_on)? {
        Redirect::Primary if !has_handed_on => Ok(()),
        other => Err(other.into_error().during(format_args!("requesting from {}", target.node().server.address))),
    }
}

impl Transport for Sentinel {
    #[inline]
    fn exchange(
        &self,
        access: Access,
        _: Route,
        write: impl Fn(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error> {
        let view = self.0.view(access)?;
        let Roles { shard, .. } = view.get()?;
        let target = shard.target(access);
        let mut up_to = UpToRedirect::new(receive, target.is_replica());
        let exchanged = target.node().exchange(access, &write, &mut up_to);
        let Some(outcome) = up_to.said(exchanged) else { return Ok(()) };
        retry_at_primary(&self.0.topology, &target, outcome, &up_to)?;
        shard.primary().exchange(access, write, receive)
    }
}

#[cfg(feature = "tokio")]
impl AsyncTransport for Sentinel {
    type Exec = crate::exec::Async;

    async fn exchange_async(
        &self,
        access: Access,
        _: Route,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> Result<(), Error> {
        let roles = self.0.view_async(access).await?;
        let target = roles.shard.target(access);
        let mut up_to = UpToRedirect::new(&mut *receive, target.is_replica());
        let exchanged = target.node().exchange_async(access, &write, &mut up_to).await;
        let Some(outcome) = up_to.said(exchanged) else { return Ok(()) };
        retry_at_primary(&self.0.topology, &target, outcome, &up_to)?;
        roles.shard.primary().exchange_async(access, write, receive).await
    }

    fn send(&self, write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync) -> Result<(), Error> {
        let view = self.0.topology.view();
        // Without a view nothing was sent before, so there is nothing that these commands could
        // follow up.
        let Some(roles) = &*view else { return Ok(()) };
        // Within a runtime, a task retries until a server replies: a promoted replica has the
        // leases too.
        if tokio::runtime::Handle::try_current().is_ok() {
            EncodedCommands::encode(write).send_to(self);
            return Ok(());
        }
        roles.shard.primary().send(write);
        Ok(())
    }
}

impl TransportSettings for Sentinel {
    fn hash_ttl(&self) -> HashTtl {
        self.0.settings.hash_ttl
    }

    fn max_entry(&self) -> usize {
        self.0.settings.limits.max_entry
    }

    fn now(&self) -> Timestamp {
        self.0.settings.clock.now()
    }

    fn watch(&self, lock: &[u8]) -> Option<Watch> {
        self.0.topology.view().as_ref()?.shard.primary().watch(lock)
    }
}

/// The view of a sentinel: which server is the primary and which are its replicas.
struct Roles {
    shard: Shard,
    /// The addresses that the shard was built from, for comparison with later views.
    primary: Endpoint,
    replicas: Vec<Endpoint>,
    /// The configuration epoch, which grows with each failover. A sentinel that is partitioned from
    /// the others reports an old one.
    epoch: u64,
}

/// The sentinels, and the name of the primary that they are asked for.
struct Sentinels {
    sentinels: Vec<Server>,
    name: String,
    nodes: NodePool,
}

impl Discover for Sentinels {
    type View = Roles;

    fn candidates(&self, _: Option<&Roles>) -> Vec<Server> {
        self.sentinels.clone()
    }

    fn ask(&self, connection: &mut BlockingConnection, _: &Server) -> Result<Roles, Error> {
        let answers = connection.query(|out| commands::sentinel(out, &self.name))?;
        let mut answers = answers.iter();
        let mut next = || answers.next().unwrap_or_default();
        let (primary, replicas, details) = (next(), next(), next());
        let primary = match primary {
            [Reply::Error(error)] => return Err(server_error(error)),
            // Another sentinel may monitor it.
            [Reply::Nil] => {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!("the sentinel knows no primary of the name {}", self.name),
                ));
            }
            [Reply::Array(2), Reply::Text(host), Reply::Text(port)] => endpoint(host, port),
            _ => None,
        };
        let primary = primary
            .ok_or_else(|| Error::new(ErrorKind::Protocol, "unexpected reply to SENTINEL GET-MASTER-ADDR-BY-NAME"))?;
        let mut replicas: Vec<_> = members(replicas).filter_map(replica).collect();
        replicas.sort_unstable();
        let shard = self.nodes.shard((&primary, Role::Primary), (&replicas, Role::Replica))?;
        let epoch = text(details, b"config-epoch").and_then(|epoch| std::str::from_utf8(epoch).ok()?.parse().ok());
        Ok(Roles { shard, primary, replicas, epoch: epoch.unwrap_or(0) })
    }

    fn nodes(roles: &Roles) -> impl Iterator<Item = &Arc<Node>> + Send {
        roles.shard.nodes()
    }

    fn compare(&self, known: &Roles, received: &Roles) -> Ordering {
        match received.epoch.cmp(&known.epoch) {
            Ordering::Less => Ordering::Less,
            _ if (&known.primary, &known.replicas) == (&received.primary, &received.replicas) => Ordering::Equal,
            _ => Ordering::Greater,
        }
    }

    fn retain_nodes(&self, roles: &Roles) {
        self.nodes.retain(Self::nodes(roles));
    }
}

fn endpoint(host: &[u8], port: &[u8]) -> Option<Endpoint> {
    let text = |bytes| std::str::from_utf8(bytes).ok();
    Some(Endpoint { host: text(host)?.to_owned(), port: text(port)?.parse().ok()? })
}

/// Reads a sentinel's description of a replica; `None` if the replica is down or not in sync.
fn replica(description: &[Reply]) -> Option<Endpoint> {
    let text = |name: &[u8]| text(description, name);
    let mut flags = text(b"flags")?.split(|byte| *byte == b',');
    let is_down = flags.any(|flag| matches!(flag, b"s_down" | b"o_down" | b"disconnected"));
    let is_in_sync = text(b"master-link-status").is_none_or(|status| status == b"ok");
    endpoint(text(b"ip")?, text(b"port")?).filter(|_| !is_down && is_in_sync)
}

/// Shows the addresses of the sentinels and the settings, and no password.
impl fmt::Debug for Sentinel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentinels = self.0.topology.discover();
        f.debug_struct("Sentinel")
            .field("sentinels", &sentinels.sentinels)
            .field("name", &sentinels.name)
            .field("read_from", &self.0.read_from)
            .field("limits", &self.0.settings.limits)
            .field("hash_ttl", &self.0.settings.hash_ttl)
            .finish_non_exhaustive()
    }
}

impl RedisBuilder<SentinelServers> {
    /// Sets which servers reads go to. Default: the primary.
    pub fn read_from(mut self, servers: ReadFrom) -> Self {
        self.to.read_from = servers;
        self
    }

    /// Sets user and password of the servers. Default: no authentication.
    ///
    /// The URLs contain only the credentials of the sentinels.
    pub fn server_password(mut self, user: Option<&str>, password: &str) -> Self {
        self.to.credentials = Some((user.map(Into::into), password.into()));
        self
    }

    /// Sets the encryption of the connections to the servers, or disables it with `None`.
    ///
    /// Default: that of the sentinels, by their URLs and [`RedisBuilder::tls`].
    ///
    /// ```no_run
    /// let sentinel = dogpile::Sentinel::builder(["rediss://10.0.0.1:26379"], "mymaster")
    ///     .server_tls(None)
    ///     .build()?;
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    #[cfg(feature = "tls")]
    pub fn server_tls(mut self, tls: impl Into<Option<Tls>>) -> Self {
        self.to.tls = Some(tls.into());
        self
    }

    /// Sets the database of the servers. Default: 0.
    pub fn database(mut self, db: u32) -> Self {
        self.to.db = db;
        self
    }

    /// Builds the backend. This does not connect yet; [`Sentinel::ping`] does.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if there is no URL, if one is invalid or contradicts the first, and if
    /// the number of connections, the number of requests in flight, or a timeout is zero.
    pub fn build(self) -> Result<Sentinel, Error> {
        let RedisBuilder { to, settings } = self;
        settings.check()?;
        let config = |what| Error::new(ErrorKind::Config, format!("building a Sentinel: {what}"));
        let sentinel = |(server, url): (Server, &String)| Server {
            role: Role::Sentinel,
            needs_hsetex: false,
            ..server.with_default_port(url, 26_379)
        };
        let sentinels: Vec<_> = settings.servers(&to.urls)?.into_iter().zip(&to.urls).map(sentinel).collect();
        let Some(first) = sentinels.first() else {
            return Err(config("no sentinel is named, expected at least one URL"));
        };
        if sentinels.iter().any(|sentinel| matches!(sentinel.address, Address::Unix(_))) {
            return Err(config("a URL names a Unix socket, but sentinels are reached over TCP"));
        }
        if sentinels.iter().any(|sentinel| sentinel.db != 0) {
            return Err(config("a URL names a database, but sentinels have none: set the servers' with `database`"));
        }
        let (user, password) = to.credentials.map_or((None, None), |(user, password)| (user, Some(password)));
        let needs_hsetex = settings.hash_ttl == HashTtl::PerField;
        #[cfg_attr(not(feature = "tls"), expect(unused_mut))]
        let mut server = Server { user, password, db: to.db, needs_hsetex, ..first.clone() };
        #[cfg(feature = "tls")]
        if let (Some(tls), Address::Tcp(host, _)) = (to.tls, &first.address) {
            server.secure = tls.map(|tls| tls.for_host(host)).transpose()?;
        }
        let nodes = NodePool::new(server, settings.clone(), to.read_from);
        let sentinels = Sentinels { sentinels, name: to.name, nodes };
        Ok(Sentinel(Arc::new(Router::new(sentinels, settings, to.read_from))))
    }
}

/// Omits the URLs and the password.
impl fmt::Debug for SentinelServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SentinelServers").field("name", &self.name).finish_non_exhaustive()
    }
}
