//! [`AsyncClusterDriver`]: the servers of a cluster over an asynchronous connection of the `redis` crate.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, RedisError, ServerErrorKind, Value};
use tokio::runtime::Handle;

use super::slots::{Primaries, ask_primaries, at};
use super::values::{MAX_ENTRY, commands, driver_error, flatten_all, pipeline};
use crate::backend::all::all;
use crate::backend::{Access, AsyncExchange, ExchangeSettings, Route};
use crate::engine::replies::Receive;
use crate::engine::route::cut;
use crate::error::Error;
use crate::request::HashExpiry;

/// Entries in a Redis or Valkey cluster over an asynchronous connection of the `redis` crate, which all tasks share. As
/// [`ClusterDriver`](crate::ClusterDriver), for tasks. Features `driver` and `tokio`.
///
/// What a request asks of each slot goes to the connection at once, and the answers come in the caller's order. Several
/// commands about one slot go as a transaction.
///
/// The connection follows redirections (`MOVED`, `ASK`), and sends again what failed, as often as the client's `retries`
/// say, 16 times if they say nothing, after pauses of more than a second each. Reads go to replicas where the client has a
/// `read_routing_strategy`, and what is read under a lock to the primary. A connection does not ask where slots are when
/// a server just does not answer, so it is then made anew, while the other one is used. Set the client up so:
///
/// - `response_timeout`: that of a request with all that is sent again. Without it a request may take minutes.
/// - `retries` of two or three, `min_retry_wait` of a few milliseconds and `max_retry_wait` of less than the timeout.
///   With fewer than one, redirections are not followed. With any, what must be sent only once, a store by
///   [`Discard`](crate::Discard) and its like, may be sent again when a connection breaks; it is then taken for one under
///   a lease that was lost.
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
    connection: ArcSwap<ClusterConnection>,
    /// A connection is made in the place of this one, or was just now.
    is_new: AtomicBool,
    primaries: Primaries,
}

/// How long a connection is kept at least.
const KEPT: Duration = Duration::from_secs(1);

impl AsyncClusterDriver {
    /// A backend over a connection of this client, to the cluster that it finds.
    ///
    /// # Errors
    /// When none of the client's servers can be reached.
    pub async fn connect(client: ClusterClient) -> Result<Self, Error> {
        let connection = client.get_async_connection().await;
        let connection = connection.map_err(|error| driver_error(&error).during("connecting"))?;
        let (connection, is_new) = (ArcSwap::from_pointee(connection), AtomicBool::new(false));
        let shared = Shared { client, connection, is_new, primaries: Primaries::default() };
        Ok(AsyncClusterDriver { shared: Arc::new(shared), hash_expiry: HashExpiry::default() })
    }

    /// Changes how long fields of hashes live. Default: [`HashExpiry::OnCreate`].
    #[must_use]
    pub fn hash_expiry(mut self, hash_expiry: HashExpiry) -> Self {
        self.hash_expiry = hash_expiry;
        self
    }

    fn connection(&self) -> ClusterConnection {
        ClusterConnection::clone(&self.shared.connection.load())
    }

    /// The error of a request. A server that did not answer may have a successor.
    #[cold]
    fn failed(&self, error: &RedisError) -> Error {
        let is_out_of_reach = error.is_timeout() || error.is_connection_dropped();
        if let (true, Ok(runtime)) = (is_out_of_reach, Handle::try_current())
            && !self.shared.is_new.swap(true, Ordering::Relaxed)
        {
            let shared = Arc::clone(&self.shared);
            runtime.spawn(async move {
                if let Ok(connection) = shared.client.get_async_connection().await {
                    shared.connection.store(Arc::new(connection));
                }
                tokio::time::sleep(KEPT).await;
                shared.is_new.store(false, Ordering::Relaxed);
            });
        }
        driver_error(error)
    }

    /// The replies to so many commands about keys of any slots: all slots are asked at the same time.
    async fn ask_many(&self, access: Access, resp: &[u8], count: usize) -> Result<Vec<Value>, Error> {
        let slots: Vec<u16> = cut(resp, count)?.into_iter().map(|(_, slot)| slot).collect();
        let mut commands: Vec<(usize, Cmd)> = commands(resp, count)?.into_iter().enumerate().collect();
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
    ) -> Result<Vec<Value>, Error> {
        let at = at(slot, access);
        let mut at_first = commands()?;
        if at_first.len() > 1 {
            if let Some(replies) = self.transact(at.clone(), at_first).await? {
                return Ok(replies);
            }
        } else if let Some(command) = at_first.pop() {
            let alone = RoutingInfo::SingleNode(at.clone());
            match self.connection().route_command(command, alone).await {
                Err(error) if is_elsewhere(&error) => {}
                answered => return answered.map(|reply| vec![reply]).map_err(|error| self.failed(&error)),
            }
        }
        let mut replies = Vec::new();
        for command in commands()? {
            // A server to which keys are on their way wants to hear that we know that. When the connection says so, the
            // command of somebody else may come in between.
            let asking = pipeline([redis::cmd("ASKING"), command]);
            let answered = self.connection().route_pipeline(asking, 1, 1, at.clone()).await;
            replies.extend(answered.map_err(|error| self.failed(&error))?);
        }
        Ok(replies)
    }

    /// The replies to commands about keys of one slot, or `None` where a server does not take all of them.
    ///
    /// When a server sends one command of a pipeline elsewhere, the connection sends all of them there. So it would do
    /// again what was done, at a server that may not have the other keys. In a transaction nothing is done then.
    async fn transact(&self, at: SingleNodeRoutingInfo, commands: Vec<Cmd>) -> Result<Option<Vec<Value>>, Error> {
        let offset = 1 + commands.len();
        let mut transaction = pipeline(commands);
        transaction.atomic();
        let answered = self.connection().route_pipeline(transaction, offset, 1, at).await;
        match answered.map(|mut replies| replies.pop()) {
            Ok(Some(Value::Array(replies))) => Ok(Some(replies)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ServerErrorKind::ExecAbort.into() => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// The replies of one of the primaries, whatever they say.
    async fn ask_primary(&self, number: usize, resp: &[u8], count: usize) -> Result<Vec<Value>, Error> {
        let (primaries, mut connection) = (&self.shared.primaries, self.connection());
        if number == 0 {
            let random = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
            primaries.learn(connection.route_command(ask_primaries(), random).await)?;
        }
        let at = at(primaries.slot(number)?, Access::Write);
        let asked = connection.route_pipeline(pipeline(commands(resp, count)?), 0, count, at).await;
        asked.map_err(|error| self.failed(&error))
    }
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
        let replies = match route {
            Route::Slot(slot) => self.ask_slot(access, slot, || commands(&resp, count)).await?,
            Route::Keys => self.ask_many(access, &resp, count).await?,
            Route::Primary(number) => self.ask_primary(number, &resp, count).await?,
        };
        flatten_all(replies, count, receive)
    }

    fn send(&self, write: impl FnOnce(&mut Vec<u8>) -> usize) {
        let mut resp = Vec::with_capacity(256);
        let count = write(&mut resp);
        let Ok(runtime) = Handle::try_current() else { return };
        let driver = self.clone();
        runtime.spawn(async move { driver.ask_many(Access::Write, &resp, count).await });
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
