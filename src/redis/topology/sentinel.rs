//! [`Sentinel`]: a primary and its replicas that sentinels watch over, over our own sockets.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use crate::backend::leases::Watch;
use crate::error::{Error, ErrorKind};
use crate::redis::HashExpiry;
use crate::redis::RedisBuilder;
#[cfg(feature = "tls")]
use crate::redis::Tls;
use crate::redis::conn::blocking::Connection;
#[cfg(feature = "tokio")]
use crate::redis::conn::multiplexed::Written;
use crate::redis::conn::reply::{Said, members, text};
use crate::redis::protocol::batch::server_error;
use crate::redis::protocol::commands;
use crate::redis::protocol::parser::Receive;
use crate::redis::protocol::routing::{Endpoint, Redirect, UpToRedirect};
use crate::redis::topology::discovery::{Discover, Topology};
use crate::redis::topology::node::Node;
use crate::redis::topology::node_pool::Nodes;
use crate::redis::topology::router::Fleet;
use crate::redis::topology::shard::{ReadFrom, Shard, Target};
#[cfg(feature = "tokio")]
use crate::redis::transport::AsyncExchange;
use crate::redis::transport::{Access, Exchange, ExchangeSettings, Route};
use crate::redis::url::{Address, Role, Server};
use crate::time::Timestamp;

/// Entries in a Redis or Valkey server that sentinels watch over, over connections of our own. As
/// [`Redis`](crate::redis::Redis), whose promises hold here too: a hit is one round trip and allocates nothing.
///
/// Sentinels are asked which server is the primary when that is first needed, and again, by a thread that is there only
/// for that, when it cannot be reached, or tells that it has become a replica. Sentinels close its connections when they
/// make it one; whoever does that by hand without `CLIENT KILL` has it read from until something is written. Until they
/// have made another one the primary, requests fail at once, as with one server that is down, and a region creates by
/// itself. A server that is no primary any more is not connected to.
///
/// ```no_run
/// use dogpile::{ReadFrom, RedisLock, Region, Sentinel};
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
pub struct Sentinel(Arc<Fleet<Sentinels>>);

/// What a [`Sentinel`] is built over.
#[derive(Clone)]
pub struct SentinelServers {
    urls: Vec<String>,
    name: String,
    read_from: ReadFrom,
    /// User and password of the servers.
    credentials: Option<(Option<String>, String)>,
    db: u32,
    /// How the servers are encrypted, where that is not as the sentinels are.
    #[cfg(feature = "tls")]
    tls: Option<Option<Tls>>,
}

impl Sentinel {
    /// The servers that these sentinels know by a name, with everything else at its default. URLs are as in
    /// [`Redis::open`](crate::redis::Redis::open), but not of sockets, and without a database; their default port is 26379. User
    /// and password in the first are for all sentinels; the others name the same or none. With `rediss://` in all of them
    /// sentinels and servers are encrypted.
    ///
    /// Nothing is connected yet; [`Sentinel::ping`] does that.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when a URL is of no use, or not like the first, or there is none; the message does not repeat
    /// it.
    pub fn open<U: Into<String>>(urls: impl IntoIterator<Item = U>, name: &str) -> Result<Self, Error> {
        Self::builder(urls, name).build()
    }

    /// Servers that sentinels watch over, with settings.
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

    /// Asks every server that requests go to whether it is there.
    ///
    /// # Errors
    /// When one cannot be reached, refuses us, or does not answer in time.
    pub fn ping(&self) -> Result<(), Error> {
        self.0.ping()
    }

    /// As [`Sentinel::ping`], over the connections that tasks share.
    ///
    /// # Errors
    /// As there.
    #[cfg(feature = "tokio")]
    pub async fn ping_async(&self) -> Result<(), Error> {
        self.0.ping_async().await
    }
}

/// What follows an exchange with one server: nothing, or that the primary is to be asked.
#[cold]
fn after<R: Receive>(
    topology: &Topology<Sentinels>,
    target: &Target<'_>,
    said: Result<Redirect, Error>,
    up_to: &UpToRedirect<'_, R>,
) -> Result<(), Error> {
    let is_begun = up_to.is_inside() || up_to.handed_on > 0;
    match target.elsewhere(topology, said, is_begun)? {
        Redirect::Primary if !is_begun => Ok(()),
        other => Err(other.into_error().during(format_args!("asking {}", target.node().server.address))),
    }
}

impl Exchange for Sentinel {
    #[inline]
    fn exchange(
        &self,
        access: Access,
        _: Route,
        write: impl Fn(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error> {
        let known = self.0.known(access)?;
        let Roles { shard, .. } = known.get()?;
        let target = shard.target(access);
        let mut up_to = UpToRedirect::new(receive, target.is_replica());
        let exchanged = target.node().exchange(access, &write, &mut up_to);
        let Some(said) = up_to.said(exchanged) else { return Ok(()) };
        after(&self.0.topology, &target, said, &up_to)?;
        shard.primary().exchange(access, write, receive)
    }
}

#[cfg(feature = "tokio")]
impl AsyncExchange for Sentinel {
    async fn exchange_async(
        &self,
        access: Access,
        _: Route,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> Result<(), Error> {
        let roles = self.0.known_async(access).await?;
        let target = roles.shard.target(access);
        let mut up_to = UpToRedirect::new(&mut *receive, target.is_replica());
        let exchanged = target.node().exchange_async(access, &write, &mut up_to).await;
        let Some(said) = up_to.said(exchanged) else { return Ok(()) };
        after(&self.0.topology, &target, said, &up_to)?;
        roles.shard.primary().exchange_async(access, write, receive).await
    }

    fn send(&self, write: impl FnOnce(&mut Vec<u8>) -> usize) {
        let view = self.0.topology.view();
        // Who knows of no servers has asked none of them for anything.
        let Some(roles) = &*view else { return };
        // As a cluster does: the server's successor has its leases.
        if tokio::runtime::Handle::try_current().is_ok() {
            return Written::by(write).send_to(self);
        }
        roles.shard.primary().send(write);
    }
}

impl ExchangeSettings for Sentinel {
    fn hash_expiry(&self) -> HashExpiry {
        self.0.settings.hash_expiry
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

/// Which server is the primary, and which are replicas.
struct Roles {
    shard: Shard,
    /// What it was made of.
    primary: Endpoint,
    replicas: Vec<Endpoint>,
    /// Of how many failovers the sentinel knows: one that is cut off from the others stays behind.
    epoch: u64,
}

/// The sentinels, and what they are asked for.
struct Sentinels {
    sentinels: Vec<Server>,
    name: String,
    nodes: Nodes,
}

impl Discover for Sentinels {
    type View = Roles;

    fn whom(&self, _: Option<&Roles>) -> Vec<Server> {
        self.sentinels.clone()
    }

    fn ask(&self, connection: &mut Connection, _: &Server) -> Result<Roles, Error> {
        let answers = connection.ask_all(|out| commands::sentinel(out, &self.name))?;
        let mut answers = answers.iter();
        let mut next = || answers.next().unwrap_or_default();
        let (primary, replicas, about) = (next(), next(), next());
        let primary = match primary {
            [Said::Error(error)] => return Err(server_error(error)),
            // Another sentinel may know.
            [Said::Nil] => {
                return Err(Error::new(ErrorKind::Config, format!("it knows no primary of the name {}", self.name)));
            }
            [Said::Array(2), Said::Text(host), Said::Text(port)] => endpoint(host, port),
            _ => None,
        };
        let primary = primary
            .ok_or_else(|| Error::new(ErrorKind::Protocol, "its answer to SENTINEL GET-MASTER-ADDR-BY-NAME is none"))?;
        let mut replicas: Vec<_> = members(replicas).filter_map(replica).collect();
        replicas.sort_unstable();
        let shard = self.nodes.shard((&primary, Role::Primary), (&replicas, Role::Replica))?;
        let epoch = text(about, b"config-epoch").and_then(|epoch| std::str::from_utf8(epoch).ok()?.parse().ok());
        Ok(Roles { shard, primary, replicas, epoch: epoch.unwrap_or(0) })
    }

    fn nodes(roles: &Roles) -> impl Iterator<Item = &Arc<Node>> + Send {
        roles.shard.nodes()
    }

    fn compare(&self, known: &Roles, told: &Roles) -> Ordering {
        match told.epoch.cmp(&known.epoch) {
            Ordering::Less => Ordering::Less,
            _ if (&known.primary, &known.replicas) == (&told.primary, &told.replicas) => Ordering::Equal,
            _ => Ordering::Greater,
        }
    }

    fn forget_others(&self, roles: &Roles) {
        self.nodes.keep(Self::nodes(roles));
    }
}

fn endpoint(host: &[u8], port: &[u8]) -> Option<Endpoint> {
    let text = |bytes| std::str::from_utf8(bytes).ok();
    Some(Endpoint { host: text(host)?.to_owned(), port: text(port)?.parse().ok()? })
}

/// A replica that is up, of what a sentinel says about it.
fn replica(said: &[Said]) -> Option<Endpoint> {
    let text = |name: &[u8]| text(said, name);
    let mut flags = text(b"flags")?.split(|byte| *byte == b',');
    let is_down = flags.any(|flag| matches!(flag, b"s_down" | b"o_down" | b"disconnected"));
    let follows = text(b"master-link-status").is_none_or(|status| status == b"ok");
    endpoint(text(b"ip")?, text(b"port")?).filter(|_| !is_down && follows)
}

/// Shows where the sentinels are, and no password.
impl fmt::Debug for Sentinel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentinels = self.0.topology.discover();
        f.debug_struct("Sentinel")
            .field("sentinels", &sentinels.sentinels)
            .field("name", &sentinels.name)
            .field("read_from", &self.0.read_from)
            .field("limits", &self.0.settings.limits)
            .field("hash_expiry", &self.0.settings.hash_expiry)
            .finish_non_exhaustive()
    }
}

impl RedisBuilder<SentinelServers> {
    /// Which servers reads go to. Default: the primary.
    pub fn read_from(mut self, servers: ReadFrom) -> Self {
        self.to.read_from = servers;
        self
    }

    /// User and password of the servers. Those of the sentinels stand in their URLs. Default: none.
    pub fn server_password(mut self, user: Option<&str>, password: &str) -> Self {
        self.to.credentials = Some((user.map(Into::into), password.into()));
        self
    }

    /// How the servers are encrypted, or `None` where they are not. Default: as the sentinels are, by their URLs and
    /// [`RedisBuilder::tls`].
    #[cfg(feature = "tls")]
    pub fn server_tls(mut self, tls: impl Into<Option<Tls>>) -> Self {
        self.to.tls = Some(tls.into());
        self
    }

    /// The database of the servers. Default: 0.
    pub fn database(mut self, db: u32) -> Self {
        self.to.db = db;
        self
    }

    /// The backend. Connects to nothing yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a URL of no use or not like the first, and for zero URLs, connections, requests under way
    /// or timeouts.
    pub fn build(self) -> Result<Sentinel, Error> {
        let RedisBuilder { to, settings } = self;
        settings.check()?;
        let config = |what| Error::new(ErrorKind::Config, format!("sentinels cannot be used: {what}"));
        let sentinel = |(server, url): (Server, &String)| Server {
            role: Role::Sentinel,
            needs_hsetex: false,
            ..server.with_default_port(url, 26_379)
        };
        let sentinels: Vec<_> = settings.servers(&to.urls)?.into_iter().zip(&to.urls).map(sentinel).collect();
        let Some(first) = sentinels.first() else { return Err(config("none of them is named")) };
        if sentinels.iter().any(|sentinel| matches!(sentinel.address, Address::Unix(_))) {
            return Err(config("they are reached by TCP, and one of their URLs is of a socket"));
        }
        if sentinels.iter().any(|sentinel| sentinel.db != 0) {
            return Err(config(
                "they have no databases, and one of their URLs names one: `database` is for the servers'",
            ));
        }
        let (user, password) = to.credentials.map_or((None, None), |(user, password)| (user, Some(password)));
        let needs_hsetex = settings.hash_expiry == HashExpiry::PerField;
        #[cfg_attr(not(feature = "tls"), expect(unused_mut))]
        let mut server = Server { user, password, db: to.db, needs_hsetex, ..first.clone() };
        #[cfg(feature = "tls")]
        if let (Some(tls), Address::Tcp(host, _)) = (to.tls, &first.address) {
            server.secure = tls.map(|tls| tls.for_host(host)).transpose()?;
        }
        let nodes = Nodes::new(server, settings.clone(), to.read_from);
        let sentinels = Sentinels { sentinels, name: to.name, nodes };
        Ok(Sentinel(Arc::new(Fleet::new(sentinels, settings, to.read_from))))
    }
}

/// Shows no URL and no password.
impl fmt::Debug for SentinelServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SentinelServers").field("name", &self.name).finish_non_exhaustive()
    }
}
