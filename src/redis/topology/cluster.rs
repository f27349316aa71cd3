//! [`Cluster`]: a backend over the servers of a Redis or Valkey cluster.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind};
#[cfg(feature = "tokio")]
use crate::exec::Async;
use crate::exec::{Blocking, poll_ready};
use crate::redis::HashTtl;
use crate::redis::ReadFrom;
use crate::redis::RedisBuilder;
#[cfg(feature = "tokio")]
use crate::redis::conn::multiplexed::EncodedCommands;
use crate::redis::protocol::parser::Receive;
use crate::redis::protocol::routing::{ScatterPlan, UpToRedirect};
use crate::redis::protocol::slot::slot;
use crate::redis::topology::node_pool::NodePool;
use crate::redis::topology::router::Router;
#[cfg(feature = "tokio")]
use crate::redis::topology::scatter::parts;
use crate::redis::topology::scatter::split;
use crate::redis::topology::slot_map::ClusterDiscovery;
#[cfg(feature = "tokio")]
use crate::redis::transport::AsyncTransport;
use crate::redis::transport::Watch;
use crate::redis::transport::{Access, Route, Transport, TransportSettings};
use crate::redis::url::{Address, Role};
use crate::time::Timestamp;

/// A backend that keeps entries in a Redis or Valkey cluster.
///
/// Everything that [`Redis`](crate::Redis) documents about connections, timeouts and costs holds
/// here for each server: a hit is one round trip and allocates nothing. A handle is cheap to clone,
/// and clones share the connections.
///
/// # Keys and slots
///
/// A key belongs to one of 16,384 slots, by the hash of its part between `{` and `}` (the hash tag)
/// or, without such a part, of the whole key. Each slot belongs to one primary: `{user-15}|posts`
/// and `{user-15}|name` are on the same one. All fields of a hash are on the server of the hash.
///
/// A request for many keys is split by server and sent to all of them at once, and the results come
/// back in the caller's order.
///
/// # Locks
///
/// The lock of an entry is in the slot of the entry. It is named `_lok.{user-15}` for the key
/// `user-15`, and `_lok.{user-15}|posts` for `{user-15}|posts`. The second name is the one that
/// Python's `dogpile.cache` uses too, so both can share the locks of a cluster if the keys have
/// hash tags.
///
/// # Topology changes
///
/// The first request fetches the slot map. A background thread fetches it again when a server
/// reports that a slot has moved or when a server cannot be reached; the thread runs only during
/// the refresh. Redirections (`MOVED`, `ASK`, `TRYAGAIN`) are followed. While a primary is down,
/// requests for its slots fail immediately, and a region runs its creators without the cache unless
/// it [fails closed](crate::RegionBuilder::fail_closed). After a replica was promoted, its entries
/// are found again.
///
/// ```no_run
/// use dogpile::{Cluster, Redis, RedisLock, Region};
/// use dogpile::redis::ReadFrom;
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
pub struct Cluster(Arc<Router<ClusterDiscovery>>);

/// The seeds of a [`Cluster`] under construction: the parameter of its [`RedisBuilder`].
#[derive(Clone)]
pub struct ClusterNodes {
    urls: Vec<String>,
    read_from: ReadFrom,
}

impl Cluster {
    /// Opens the cluster that these servers belong to, with default settings.
    ///
    /// One reachable server is enough; the others are asked if it is down. The URLs are those of
    /// [`Redis::open`](crate::Redis::open), except that they name no database and no Unix socket.
    /// User, password and TLS of the first URL apply to all servers of the cluster: the other URLs
    /// repeat the credentials or have none.
    ///
    /// With TLS, a server that the cluster announces by address and not by name needs a certificate
    /// for that address, or [`Tls::server_name`](crate::redis::Tls::server_name).
    ///
    /// This does not connect yet; [`Cluster::ping`] does.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if there is no URL, if one is invalid, or if one contradicts the
    /// first. The message does not contain the URL.
    pub fn open<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Result<Self, Error> {
        Self::builder(urls).build()
    }

    /// Returns a builder for a cluster, which takes the seed servers of [`Cluster::open`].
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// let cluster = dogpile::Cluster::builder(["redis://10.0.0.1:7000", "redis://10.0.0.2:7000"])
    ///     .response_timeout(Duration::from_millis(500))
    ///     .build()?;
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn builder<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> RedisBuilder<ClusterNodes> {
        let urls = urls.into_iter().map(Into::into).collect();
        RedisBuilder::over(ClusterNodes { urls, read_from: ReadFrom::default() })
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
    /// let cluster = dogpile::Cluster::open(["redis://10.0.0.1:7000"])?;
    /// cluster.ping()?;
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
    /// let cluster = dogpile::Cluster::open(["redis://10.0.0.1:7000"])?;
    /// cluster.ping_async().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "tokio")]
    pub async fn ping_async(&self) -> Result<(), Error> {
        self.0.ping_async().await
    }
}

impl Router<ClusterDiscovery> {
    /// Requests a refresh and returns the error for a slot that no server of the map owns.
    #[cold]
    pub(crate) fn no_owner(&self, slot: u16) -> Error {
        self.topology.request_refresh();
        Error::new(ErrorKind::Connection, format!("routing a request: no server of the cluster owns slot {slot}"))
    }
}

impl Transport for Cluster {
    #[inline]
    fn exchange(
        &self,
        access: Access,
        route: Route,
        write: impl Fn(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error> {
        let router = &*self.0;
        let view = router.view(access)?;
        let map = view.get()?;
        let (skip, redirect) = match route {
            // A request that may be sent only once must not be repeated as a whole after a
            // redirect.
            Route::Slot(slot) if access != Access::Once => {
                let target = map.target(slot, access).ok_or_else(|| router.no_owner(slot))?;
                let mut up_to = UpToRedirect::new(receive, target.is_replica());
                let exchanged = target.node().exchange(access, &write, &mut up_to);
                let Some(outcome) = up_to.said(exchanged) else { return Ok(()) };
                (up_to.handed_on, Some(target.next_hop(&router.topology, outcome, up_to.is_inside())?))
            }
            Route::Primary(number) => {
                let exchanged = map.primary(number)?.exchange(access, write, receive);
                return router.topology.refresh_if_unreachable(exchanged);
            }
            _ => (0, None),
        };
        let plan = ScatterPlan::new(write, skip, redirect, access != Access::Once)?;
        poll_ready(split::<Blocking>(router, access, plan, receive))
    }
}

#[cfg(feature = "tokio")]
impl AsyncTransport for Cluster {
    type Exec = crate::exec::Async;

    async fn exchange_async(
        &self,
        access: Access,
        route: Route,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> Result<(), Error> {
        let router = &*self.0;
        let map = router.view_async(access).await?;
        let (skip, redirect) = match route {
            Route::Slot(slot) if access != Access::Once => {
                let target = map.target(slot, access).ok_or_else(|| router.no_owner(slot))?;
                let mut up_to = UpToRedirect::new(&mut *receive, target.is_replica());
                let exchanged = target.node().exchange_async(access, &write, &mut up_to).await;
                let Some(outcome) = up_to.said(exchanged) else { return Ok(()) };
                (up_to.handed_on, Some(target.next_hop(&router.topology, outcome, up_to.is_inside())?))
            }
            Route::Primary(number) => {
                let exchanged = map.primary(number)?.exchange_async(access, write, receive).await;
                return router.topology.refresh_if_unreachable(exchanged);
            }
            _ => (0, None),
        };
        let plan = ScatterPlan::new(write, skip, redirect, access != Access::Once)?;
        Box::pin(split::<Async>(router, access, plan, receive)).await
    }

    fn send(&self, write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync) -> Result<(), Error> {
        let view = self.0.topology.view();
        // Without a view nothing was sent before, so there is nothing that these commands could
        // follow up.
        let Some(map) = &*view else { return Ok(()) };
        // Within a runtime, a task reads the replies and retries: the slot may have moved, or a
        // promoted replica, which has the leases too, may replace a server that does not answer.
        if tokio::runtime::Handle::try_current().is_ok() {
            EncodedCommands::encode(write).send_to(self);
            return Ok(());
        }
        let Some(plan) = ScatterPlan::once(write) else { return Ok(()) };
        for (node, numbers) in parts(map, &plan) {
            node.send(|out| plan.write(out, &numbers));
        }
        Ok(())
    }
}

impl TransportSettings for Cluster {
    fn hash_ttl(&self) -> HashTtl {
        self.0.settings.hash_ttl
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

/// Shows the seed addresses and settings, and no password.
impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("seeds", &self.0.topology.discover().seeds())
            .field("read_from", &self.0.read_from)
            .field("limits", &self.0.settings.limits)
            .field("hash_ttl", &self.0.settings.hash_ttl)
            .finish_non_exhaustive()
    }
}

impl RedisBuilder<ClusterNodes> {
    /// Sets which servers reads go to. Default: the primaries.
    pub fn read_from(mut self, servers: ReadFrom) -> Self {
        self.to.read_from = servers;
        self
    }

    /// Builds the backend. This does not connect yet; [`Cluster::ping`] does.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if there is no URL, if one is invalid or contradicts the first, and if
    /// the number of connections, the number of requests in flight, or a timeout is zero.
    pub fn build(self) -> Result<Cluster, Error> {
        let RedisBuilder { to: ClusterNodes { urls, read_from }, settings } = self;
        settings.check()?;
        let config = |what| Error::new(ErrorKind::Config, format!("building a Cluster: {what}"));
        let mut seeds = settings.servers(&urls)?;
        if seeds.is_empty() {
            return Err(config("no server is named, expected at least one URL"));
        }
        if seeds.iter().any(|seed| matches!(seed.address, Address::Unix(_))) {
            return Err(config("a URL names a Unix socket, but the servers of a cluster are reached over TCP"));
        }
        if seeds.iter().any(|seed| seed.db != 0) {
            return Err(config("a URL names another database, but a cluster has only database 0"));
        }
        for seed in &mut seeds {
            seed.role = Role::ClusterSeed;
        }
        let nodes = NodePool::new(seeds[0].clone(), settings.clone(), read_from);
        Ok(Cluster(Arc::new(Router::new(ClusterDiscovery::new(seeds, nodes), settings, read_from))))
    }
}

/// Omits the URLs, which may contain a password.
impl fmt::Debug for ClusterNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterNodes").field("read_from", &self.read_from).finish_non_exhaustive()
    }
}
