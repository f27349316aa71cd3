//! [`AsyncClusterDriver`]: the servers of a cluster over an asynchronous connection of the `redis` crate.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_lock::Mutex;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, RedisError, ServerErrorKind, Value};
use tokio::runtime::Handle;

use super::slots::{Primaries, ask_primaries, at, not_sent};
use super::values::{MAX_ENTRY, commands, driver_error, flatten_all, pipeline};
use crate::backend::all::all;
use crate::backend::pool::Failed;
use crate::backend::{Access, AsyncExchange, ExchangeSettings, Route};
use crate::engine::replies::Receive;
use crate::engine::route::cut;
use crate::error::Error;
use crate::request::HashExpiry;

/// Entries in a Redis or Valkey cluster over an asynchronous connection of the `redis` crate, which all tasks share. As
/// [`ClusterDriver`](crate::ClusterDriver), for tasks. Features `driver` and `tokio`.
///
/// What a request asks of each slot goes to the connection at once, and the answers come in the caller's order. Several
/// commands about one slot go as a transaction. Reads go to replicas where the client has a `read_routing_strategy`, and
/// what is read under a lock to the primary.
///
/// The connection follows redirections (`MOVED`, `ASK`), and sends again what failed: as often as the client's `retries`
/// say, 16 times if they say nothing, some of that after pauses of more than a second. When a request was not answered in
/// time, another connection is made, at most one in a second, and used as soon as it is there: by itself a connection
/// does not ask who has taken a server's place that does not answer, and when all of its sockets break at the same time it
/// may hang for good. Set the client up so:
///
/// - `response_timeout`: that of a request with all that is sent again. Without one a request may take minutes, or for ever.
/// - `retries` of two or three, `min_retry_wait` of a few milliseconds and `max_retry_wait` of less than the timeout.
///   With none, redirections are not followed. With any, what must be sent only once, a store by
///   [`Discard`](crate::Discard) and its like, may be sent again when a socket breaks; it is then taken for one under a
///   lease that was lost.
/// - no database: a cluster has only one.
///
/// ```no_run
/// use std::time::Duration;
/// use dogpile::{AsyncClusterDriver, RedisLock, Region};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = redis::cluster::ClusterClient::builder(["redis://10.0.0.1:7000", "redis://10.0.0.2:7000"])
///     .connection_timeout(Duration::from_millis(500))
///     .response_timeout(Duration::from_secs(1))
///     .retries(3)
///     .min_retry_wait(10)
///     .max_retry_wait(100)
///     .build()?;
/// let region = Region::builder(AsyncClusterDriver::connect(client).await?).lock(RedisLock::new()).build()?;
/// let name: Option<String> = region.get_async("user-15|name").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct AsyncClusterDriver {
    shared: Arc<Shared>,
    hash_expiry: HashExpiry,
}

struct Shared {
    client: ClusterClient,
    connection: ArcSwap<Connection>,
    /// Held by who makes another one.
    making: Mutex<()>,
    primaries: Primaries,
}

struct Connection {
    cluster: ClusterConnection,
    made: Instant,
}

/// How long a connection is kept at least.
const KEPT: Duration = Duration::from_secs(1);

/// How long making one may take, by which time it hangs: it has timeouts of its own.
const HANGS: Duration = Duration::from_secs(10);

impl AsyncClusterDriver {
    /// A backend over a connection of this client, to the cluster that it finds.
    ///
    /// # Errors
    /// When none of the client's servers can be reached.
    pub async fn connect(client: ClusterClient) -> Result<Self, Error> {
        let connection = ArcSwap::from_pointee(Connection::open(&client).await?);
        let shared = Shared { client, connection, making: Mutex::new(()), primaries: Primaries::default() };
        Ok(AsyncClusterDriver { shared: Arc::new(shared), hash_expiry: HashExpiry::default() })
    }

    /// Changes how long fields of hashes live. Default: [`HashExpiry::OnCreate`].
    #[must_use]
    pub fn hash_expiry(mut self, hash_expiry: HashExpiry) -> Self {
        self.hash_expiry = hash_expiry;
        self
    }
}

impl Shared {
    /// Makes another connection in the place of this one, unless somebody has.
    async fn renew(&self, old: &Arc<Connection>) -> Result<(), Error> {
        let _making = self.making.lock().await;
        if Arc::ptr_eq(old, &self.connection.load()) {
            self.connection.store(Arc::new(Connection::open(&self.client).await?));
        }
        Ok(())
    }

    /// The same, and nobody waits for it.
    #[cold]
    fn renew_later(self: &Arc<Self>, old: &Arc<Connection>) {
        let (shared, old) = (Arc::clone(self), Arc::clone(old));
        if let (Some(_), Ok(runtime)) = (self.making.try_lock(), Handle::try_current()) {
            runtime.spawn(async move { shared.renew(&old).await });
        }
    }
}

impl Connection {
    async fn open(client: &ClusterClient) -> Result<Self, Error> {
        let late = |_| Err(io::Error::from(io::ErrorKind::TimedOut).into());
        let cluster = tokio::time::timeout(HANGS, client.get_async_connection()).await.unwrap_or_else(late);
        let cluster = cluster.map_err(|error| driver_error(&error).during("connecting"))?;
        Ok(Connection { cluster, made: Instant::now() })
    }

    /// The replies to so many commands about keys of any slots: all slots are asked at the same time.
    async fn ask_many(&self, access: Access, resp: &[u8], count: usize) -> Result<Vec<Value>, Failed> {
        let slots: Vec<u16> = cut(resp, count).map_err(refused)?.into_iter().map(|(_, slot)| slot).collect();
        let commands = commands(resp, count).map_err(refused)?;
        let mut commands: Vec<(usize, Cmd)> = commands.into_iter().enumerate().collect();
        commands.sort_by_key(|(number, _)| slots[*number]);
        // What goes once only is not sent again because of another one.
        let are_together = |a: usize, b: usize| access != Access::Once && slots[a] == slots[b];
        let groups: Vec<&[(usize, Cmd)]> = commands.chunk_by(|a, b| are_together(a.0, b.0)).collect();
        let asked = groups.iter().map(|group| {
            let commands = || Ok(group.iter().map(|(_, command)| command.clone()).collect());
            self.ask_slot(access, slots[group[0].0], commands)
        });
        let mut replies = vec![Value::Nil; count];
        for (group, answered) in groups.iter().zip(all(asked.collect()).await) {
            group.iter().zip(answered?).for_each(|((number, _), reply)| replies[*number] = reply);
        }
        Ok(replies)
    }

    /// The replies to commands about keys of one slot, which are made anew if they are sent again.
    async fn ask_slot(
        &self,
        access: Access,
        slot: u16,
        commands: impl Fn() -> Result<Vec<Cmd>, Error>,
    ) -> Result<Vec<Value>, Failed> {
        let at = at(slot, access);
        let mut at_first = commands().map_err(refused)?;
        if at_first.len() > 1 {
            if let Some(replies) = self.transact(at.clone(), at_first).await? {
                return Ok(replies);
            }
        } else if let Some(command) = at_first.pop() {
            let alone = RoutingInfo::SingleNode(at.clone());
            match self.cluster.clone().route_command(command, alone).await {
                Err(error) if is_elsewhere(&error) => {}
                answered => return answered.map(|reply| vec![reply]).map_err(failed),
            }
        }
        let mut replies = Vec::new();
        for command in commands().map_err(refused)? {
            // A server to which keys are on their way wants to hear that we know that. When the connection says so, the
            // command of somebody else may come in between.
            let asking = pipeline([redis::cmd("ASKING"), command]);
            let answered = self.cluster.clone().route_pipeline(asking, 1, 1, at.clone()).await;
            replies.extend(answered.map_err(failed)?);
        }
        Ok(replies)
    }

    /// The replies to commands about keys of one slot, or `None` where a server does not take all of them.
    ///
    /// When a server sends one command of a pipeline elsewhere, the connection sends all of them there. So it would do
    /// again what was done, at a server that may not have the other keys. In a transaction nothing is done then.
    async fn transact(&self, at: SingleNodeRoutingInfo, commands: Vec<Cmd>) -> Result<Option<Vec<Value>>, Failed> {
        let offset = 1 + commands.len();
        let mut transaction = pipeline(commands);
        transaction.atomic();
        let answered = self.cluster.clone().route_pipeline(transaction, offset, 1, at).await;
        match answered.map(|mut replies| replies.pop()) {
            Ok(Some(Value::Array(replies))) => Ok(Some(replies)),
            Ok(_) => Ok(None),
            Err(error) if is_refused(&error) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// The replies of one of the primaries, whatever they say.
    async fn ask_primary(
        &self,
        primaries: &Primaries,
        number: usize,
        resp: &[u8],
        count: usize,
    ) -> Result<Vec<Value>, Failed> {
        let mut connection = self.cluster.clone();
        if number == 0 {
            let random = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
            primaries.learn(connection.route_command(ask_primaries(), random).await).map_err(not_sent)?;
        }
        let at = at(primaries.slot(number).map_err(refused)?, Access::Write);
        let pipeline = pipeline(commands(resp, count).map_err(refused)?);
        let asked = connection.route_pipeline(pipeline, 0, count, at).await;
        asked.map_err(failed)
    }
}

#[cold]
fn failed(error: RedisError) -> Failed {
    let broke_early = error.is_connection_dropped() && !error.is_connection_refusal();
    Failed { error: driver_error(&error), broke_early }
}

/// What another connection would not help.
fn refused(error: Error) -> Failed {
    Failed { error, broke_early: false }
}

/// Whether a server did nothing of a transaction, since some of its keys are elsewhere. Valkey 9.1 says so in other words.
fn is_refused(error: &RedisError) -> bool {
    [ServerErrorKind::ExecAbort, ServerErrorKind::TryAgain].iter().any(|kind| error.kind() == (*kind).into())
}

/// Whether a server sent a request elsewhere until it was sent too often.
fn is_elsewhere(error: &RedisError) -> bool {
    [ServerErrorKind::Moved, ServerErrorKind::Ask].iter().any(|kind| error.kind() == (*kind).into())
}

impl AsyncExchange for AsyncClusterDriver {
    async fn exchange_async(
        &self,
        access: Access,
        route: Route,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> Result<(), Error> {
        let mut resp = Vec::with_capacity(256);
        let count = write(&mut resp);
        if count == 0 {
            return Ok(());
        }
        let shared = &self.shared;
        loop {
            let connection = shared.connection.load_full();
            let asked = match route {
                Route::Slot(slot) => connection.ask_slot(access, slot, || commands(&resp, count)).await,
                Route::Keys => connection.ask_many(access, &resp, count).await,
                Route::Primary(number) => connection.ask_primary(&shared.primaries, number, &resp, count).await,
            };
            let failed = match asked {
                Ok(replies) => return flatten_all(replies, count, receive),
                Err(failed) => failed,
            };
            if connection.made.elapsed() < KEPT {
                return Err(failed.error);
            }
            // It says nothing about a server that its connection breaks which was open before.
            if failed.broke_early && access != Access::Once && shared.renew(&connection).await.is_ok() {
                continue;
            }
            // Another server may have taken its place.
            if failed.error.is_out_of_reach() {
                shared.renew_later(&connection);
            }
            return Err(failed.error);
        }
    }

    fn send(&self, write: impl FnOnce(&mut Vec<u8>) -> usize) {
        let mut resp = Vec::with_capacity(256);
        let count = write(&mut resp);
        let Ok(runtime) = Handle::try_current() else { return };
        let connection = self.shared.connection.load_full();
        runtime.spawn(async move { connection.ask_many(Access::Write, &resp, count).await });
    }
}

impl ExchangeSettings for AsyncClusterDriver {
    fn hash_expiry(&self) -> HashExpiry {
        self.hash_expiry
    }

    fn max_entry(&self) -> usize {
        MAX_ENTRY
    }

    fn is_cluster(&self) -> bool {
        true
    }

    fn primaries(&self) -> usize {
        self.shared.primaries.count()
    }
}

impl fmt::Debug for AsyncClusterDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncClusterDriver").field("hash_expiry", &self.hash_expiry).finish_non_exhaustive()
    }
}
