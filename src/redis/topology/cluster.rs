//! [`Cluster`]: the servers of a Redis or Valkey cluster over our own sockets.

use std::fmt;
use std::sync::Arc;

use crate::backend::leases::Watch;
use crate::error::{Error, ErrorKind};
#[cfg(feature = "tokio")]
use crate::exec::Task;
use crate::exec::{Thread, now};
use crate::redis::HashExpiry;
use crate::redis::ReadFrom;
use crate::redis::RedisBuilder;
#[cfg(feature = "tokio")]
use crate::redis::conn::multiplexed::Written;
use crate::redis::protocol::parser::Receive;
use crate::redis::protocol::routing::{Errands, UpToRedirect};
use crate::redis::protocol::slot::slot;
use crate::redis::topology::node_pool::Nodes;
use crate::redis::topology::router::Fleet;
use crate::redis::topology::scatter::{parts, split};
use crate::redis::topology::slot_map::Servers;
#[cfg(feature = "tokio")]
use crate::redis::transport::AsyncExchange;
use crate::redis::transport::{Access, Exchange, ExchangeSettings, Route};
use crate::redis::url::{Address, Role};
use crate::time::Timestamp;

/// Entries in a Redis or Valkey cluster, over connections of our own. As [`Redis`](crate::redis::Redis), whose promises hold
/// here too: a hit is one round trip and allocates nothing.
///
/// Each key belongs to one of 16,384 slots, by what stands in it between `{` and `}`, or by all of it, and each slot to
/// a server: `{user-15}|posts` and `{user-15}|name` are at the same one. All fields of a hash are where the hash is.
/// Requests for many keys are divided by server, sent to all of these before the first answer is waited for, and
/// answered in the caller's order.
///
/// The lock on an entry must be where the entry is. [`Leases::lock_name`](crate::backend::Leases::lock_name) says how it is named
/// for that: `_lok.{user-15}` for the key `user-15`, and `_lok.{user-15}|posts`, the name that the reference has for it
/// too, for `{user-15}|posts`. So a cluster's locks are shared with Python where keys have hash tags.
///
/// Where the slots are is asked when it is first needed, and again, by a thread that is there only for that, when a
/// server says that a slot has moved, or cannot be reached. Redirections (`MOVED`, `ASK`, `TRYAGAIN`) are followed. While
/// a primary is down, what is asked of its slots fails at once, as with one server that is down, and a region creates by
/// itself; when a replica has taken its place, entries are found again.
///
/// ```no_run
/// use dogpile::{Cluster, ReadFrom, Redis, RedisLock, Region};
///
/// let cluster = Cluster::open(["redis://10.0.0.1:7000", "redis://10.0.0.2:7000"])?;
///
/// let cluster = Cluster::builder(["rediss://:password@cache.example:7000"])
///     .read_from(ReadFrom::Replicas)
///     .connections(8)
///     .build()?;
/// let region = Region::builder(cluster).lock(RedisLock::new()).build()?;
/// # let _: Region<_, _, _, _> = region;
/// # Ok::<(), dogpile::Error>(())
/// ```
#[derive(Clone)]
pub struct Cluster(Arc<Fleet<Servers>>);

/// What a [`Cluster`] is built over.
#[derive(Clone)]
pub struct ClusterNodes {
    urls: Vec<String>,
    read_from: ReadFrom,
}

impl Cluster {
    /// The cluster that these servers are part of, with everything else at its default. One that can be reached is
    /// enough; the others are asked when it is down. URLs are as in [`Redis::open`](crate::redis::Redis::open), but without a
    /// database and not of sockets; user, password and TLS are those of the first for all servers, so the others name
    /// the same, or no user and no password. A server that announces its address and not its name needs a certificate
    /// for that, or [`Tls::server_name`](crate::redis::tls::Tls::server_name).
    ///
    /// Nothing is connected yet; [`Cluster::ping`] does that.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when a URL is of no use, or not like the first, or there is none; the message does not repeat
    /// it.
    pub fn open<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Result<Self, Error> {
        Self::builder(urls).build()
    }

    /// A cluster, with settings.
    pub fn builder<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> RedisBuilder<ClusterNodes> {
        let urls = urls.into_iter().map(Into::into).collect();
        RedisBuilder::over(ClusterNodes { urls, read_from: ReadFrom::default() })
    }

    /// Asks every server that requests go to whether it is there.
    ///
    /// # Errors
    /// When one cannot be reached, refuses us, or does not answer in time.
    pub fn ping(&self) -> Result<(), Error> {
        self.0.ping()
    }

    /// As [`Cluster::ping`], over the connections that tasks share.
    ///
    /// # Errors
    /// As there.
    #[cfg(feature = "tokio")]
    pub async fn ping_async(&self) -> Result<(), Error> {
        self.0.ping_async().await
    }
}

impl Fleet<Servers> {
    /// No server has the slot, as far as is known.
    #[cold]
    pub(crate) fn nobody(&self, slot: u16) -> Error {
        self.topology.doubt();
        Error::new(ErrorKind::Connection, format!("no server of the cluster has the slot {slot}"))
    }
}

impl Exchange for Cluster {
    #[inline]
    fn exchange(
        &self,
        access: Access,
        route: Route,
        write: impl Fn(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error> {
        let fleet = &*self.0;
        let known = fleet.known(access)?;
        let map = known.get()?;
        let (skip, redirect) = match route {
            // What goes once must not be sent again as a whole.
            Route::Slot(slot) if access != Access::Once => {
                let target = map.target(slot, access).ok_or_else(|| fleet.nobody(slot))?;
                let mut up_to = UpToRedirect::new(receive, target.is_replica());
                let exchanged = target.node().exchange(access, &write, &mut up_to);
                let Some(said) = up_to.said(exchanged) else { return Ok(()) };
                (up_to.handed_on, Some(target.elsewhere(&fleet.topology, said, up_to.is_inside())?))
            }
            Route::Primary(number) => {
                let exchanged = map.primary(number)?.exchange(access, write, receive);
                return fleet.topology.doubt_after(exchanged);
            }
            _ => (0, None),
        };
        let errands = Errands::new(write, skip, redirect, access != Access::Once)?;
        now(split::<Thread>(fleet, access, errands, receive))
    }
}

#[cfg(feature = "tokio")]
impl AsyncExchange for Cluster {
    async fn exchange_async(
        &self,
        access: Access,
        route: Route,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> Result<(), Error> {
        let fleet = &*self.0;
        let map = fleet.known_async(access).await?;
        let (skip, redirect) = match route {
            Route::Slot(slot) if access != Access::Once => {
                let target = map.target(slot, access).ok_or_else(|| fleet.nobody(slot))?;
                let mut up_to = UpToRedirect::new(&mut *receive, target.is_replica());
                let exchanged = target.node().exchange_async(access, &write, &mut up_to).await;
                let Some(said) = up_to.said(exchanged) else { return Ok(()) };
                (up_to.handed_on, Some(target.elsewhere(&fleet.topology, said, up_to.is_inside())?))
            }
            Route::Primary(number) => {
                let exchanged = map.primary(number)?.exchange_async(access, write, receive).await;
                return fleet.topology.doubt_after(exchanged);
            }
            _ => (0, None),
        };
        let errands = Errands::new(write, skip, redirect, access != Access::Once)?;
        Box::pin(split::<Task>(fleet, access, errands, receive)).await
    }

    fn send(&self, write: impl FnOnce(&mut Vec<u8>) -> usize) {
        let view = self.0.topology.view();
        // Who knows of no servers has asked none of them for anything.
        let Some(map) = &*view else { return };
        // A slot may have moved, and a server that does not answer may be replaced by one that has its leases too: the
        // answers are looked at, where there is a runtime for that.
        if tokio::runtime::Handle::try_current().is_ok() {
            return Written::by(write).send_to(self);
        }
        let Some(errands) = Errands::once(write) else { return };
        for (node, numbers) in parts(map, &errands) {
            node.send(|out| errands.write(out, &numbers));
        }
    }
}

impl ExchangeSettings for Cluster {
    fn hash_expiry(&self) -> HashExpiry {
        self.0.settings.hash_expiry
    }

    fn max_entry(&self) -> usize {
        self.0.settings.limits.max_entry
    }

    #[inline(always)]
    fn is_cluster(&self) -> bool {
        true
    }

    fn primaries(&self) -> usize {
        self.0.topology.view().as_ref().map_or(1, |map| map.primaries().len())
    }

    fn now(&self) -> Timestamp {
        self.0.settings.clock.now()
    }

    fn watch(&self, lock: &[u8]) -> Option<Watch> {
        let view = self.0.topology.view();
        view.as_ref()?.target(slot(lock, b""), Access::Write)?.node().watch(lock)
    }
}

/// Shows where the servers are, and no password.
impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("seeds", &self.0.topology.discover().seeds())
            .field("read_from", &self.0.read_from)
            .field("limits", &self.0.settings.limits)
            .field("hash_expiry", &self.0.settings.hash_expiry)
            .finish_non_exhaustive()
    }
}

impl RedisBuilder<ClusterNodes> {
    /// Which servers reads go to. Default: the primaries.
    pub fn read_from(mut self, servers: ReadFrom) -> Self {
        self.to.read_from = servers;
        self
    }

    /// The backend. Connects to nothing yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a URL of no use or not like the first, and for zero URLs, connections, requests under way
    /// or timeouts.
    pub fn build(self) -> Result<Cluster, Error> {
        let RedisBuilder { to: ClusterNodes { urls, read_from }, settings } = self;
        settings.check()?;
        let config = |what| Error::new(ErrorKind::Config, format!("a cluster cannot be used: {what}"));
        let mut seeds = settings.servers(&urls)?;
        if seeds.is_empty() {
            return Err(config("none of its servers is named"));
        }
        if seeds.iter().any(|seed| matches!(seed.address, Address::Unix(_))) {
            return Err(config("its servers are reached by TCP, and one of its URLs is of a socket"));
        }
        if seeds.iter().any(|seed| seed.db != 0) {
            return Err(config("it has only the database 0, and one of its URLs names another one"));
        }
        for seed in &mut seeds {
            seed.role = Role::ClusterSeed;
        }
        let nodes = Nodes::new(seeds[0].clone(), settings.clone(), read_from);
        Ok(Cluster(Arc::new(Fleet::new(Servers::new(seeds, nodes), settings, read_from))))
    }
}

/// Shows no URL.
impl fmt::Debug for ClusterNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterNodes").field("read_from", &self.read_from).finish_non_exhaustive()
    }
}
