//! [`ClusterDriver`]: the servers of a cluster over blocking connections of the `redis` crate.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use redis::ServerErrorKind::{Ask, Moved};
use redis::cluster::{ClusterClient, ClusterConnection};
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{ServerError, Value};

use super::node::{Node, whom};
use super::slots::{Primaries, ask_primaries, at, elsewhere, not_sent};
use super::values::{MAX_ENTRY, driver_error, flatten};
use crate::backend::pool::{Failed, Pool};
use crate::backend::{Access, Exchange, ExchangeSettings, Route};
use crate::engine::replies::Receive;
use crate::engine::route::{MOST_ROUNDS, ON_THEIR_WAY, cut};
use crate::error::Error;
use crate::request::HashExpiry;

/// Entries in a Redis or Valkey cluster over blocking connections of the `redis` crate, for who has a `ClusterClient`, or
/// a setup of connections that only that crate can make.
///
/// It sends the same commands as [`Cluster`](crate::Cluster) and means the same by them, so entries and locks are shared
/// with it: requests for many keys are divided by server, sent to all of these before the first answer is waited for, and
/// answered in the caller's order; the lock on an entry is in the entry's slot. A hit costs the `redis` crate's copies and
/// allocations.
///
/// Where the slots are is what the client's connections know; what servers answer about that (`MOVED`, `ASK`) is told to
/// them. Reads go to replicas where the client has a `read_routing_strategy`, and what is read under a lock to the
/// primary. After a failure connections are made anew, so a primary's successor is found. Set the client up so:
///
/// - `response_timeout`: without one a server that hangs is waited for without an end. `connection_timeout`: a second,
///   if it says nothing; a connection is made to one server after the other.
/// - `retries` of at least 1, as they are by default: with none, redirections are not followed. Nothing else is sent
///   again because of them, and what must be sent only once is sent once.
/// - no database: a cluster has only one.
///
/// Each of its connections is one to each server of the cluster, replicas included.
///
/// ```no_run
/// use std::time::{Duration, Instant};
/// use dogpile::{ClusterDriver, RedisLock, Region};
///
/// let client = redis::cluster::ClusterClient::builder(["redis://10.0.0.1:7000", "redis://10.0.0.2:7000"])
///     .connection_timeout(Duration::from_millis(500))
///     .response_timeout(Duration::from_secs(1))
///     .build()?;
/// let region = Region::builder(ClusterDriver::new(8, client)).lock(RedisLock::new()).build()?;
/// # let _: Region<_, _, _, _> = region;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ClusterDriver(Arc<Shared>);

struct Shared {
    client: ClusterClient,
    pool: Pool<Connection>,
    primaries: Primaries,
    hash_expiry: HashExpiry,
}

/// How long a connection is kept at least that is in doubt.
const KEPT: Duration = Duration::from_secs(1);

impl ClusterDriver {
    /// A backend that opens up to so many connections of a client, each when it is first needed. At least one.
    pub fn new(connections: usize, client: ClusterClient) -> Self {
        let pool = Pool::new(connections.max(1), Duration::from_secs(1), Duration::from_secs(1));
        ClusterDriver(Arc::new(Shared {
            client,
            pool,
            primaries: Primaries::default(),
            hash_expiry: HashExpiry::default(),
        }))
    }

    /// Changes how long fields of hashes live. Default: [`HashExpiry::OnCreate`].
    ///
    /// # Panics
    /// When the backend was cloned before.
    #[must_use]
    pub fn hash_expiry(mut self, hash_expiry: HashExpiry) -> Self {
        let shared = Arc::get_mut(&mut self.0).expect("a driver is set up before it is cloned");
        shared.hash_expiry = hash_expiry;
        self
    }
}

impl Exchange for ClusterDriver {
    fn exchange(
        &self,
        access: Access,
        route: Route,
        write: impl Fn(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error> {
        let shared = &*self.0;
        let ask = |connection: &mut Connection| {
            connection.renew(&shared.client)?;
            connection.commands.clear();
            let count = write(&mut connection.commands);
            match route {
                _ if count == 0 => Ok(Vec::new()),
                Route::Slot(slot) => connection.ask_one(access, slot, count),
                Route::Keys => connection.ask_many(access, count),
                Route::Primary(number) => connection.ask_primary(&shared.primaries, number, count),
            }
        };
        let replies = shared.pool.with(access, || Connection::open(&shared.client), ask)?;
        let is_followed = !matches!(route, Route::Primary(_));
        if let Some(said) = replies.iter().find_map(|reply| elsewhere(reply, access)).filter(|_| is_followed) {
            return Err(
                driver_error(&said.into()).during("sent from one of the cluster's servers to the other, at last")
            );
        }
        replies.into_iter().try_for_each(|reply| flatten(reply, receive))
    }
}

impl ExchangeSettings for ClusterDriver {
    fn hash_expiry(&self) -> HashExpiry {
        self.0.hash_expiry
    }

    fn max_entry(&self) -> usize {
        MAX_ENTRY
    }

    fn is_cluster(&self) -> bool {
        true
    }

    fn primaries(&self) -> usize {
        self.0.primaries.count()
    }
}

/// A connection to each server of the cluster. After a failure some of them may have replies that nobody waits for, so it
/// is not used again.
struct Connection {
    cluster: ClusterConnection<Node>,
    /// What is to be sent.
    commands: Vec<u8>,
    /// What of it goes to one server.
    part: Vec<u8>,
    made: Instant,
    /// A replica could not be reached, so there may be others by now.
    is_in_doubt: bool,
}

/// Where a command stands, and the slot of its first key.
type Command = (Range<usize>, u16);

impl Connection {
    fn open(client: &ClusterClient) -> Result<Self, Error> {
        let cluster = client.get_generic_connection();
        let cluster = cluster.map_err(|error| driver_error(&error).during("connecting"))?;
        let (commands, part) = (Vec::with_capacity(512), Vec::new());
        Ok(Connection { cluster, commands, part, made: Instant::now(), is_in_doubt: false })
    }

    /// Takes another one in the place of one that is in doubt, unless it was made just now.
    fn renew(&mut self, client: &ClusterClient) -> Result<(), Failed> {
        if self.is_in_doubt && self.made.elapsed() > KEPT {
            *self = Self::open(client).map_err(not_sent)?;
        }
        Ok(())
    }

    /// The replies to so many commands about keys of one slot.
    fn ask_one(&mut self, access: Access, slot: u16, count: usize) -> Result<Vec<Value>, Failed> {
        let node = self.whom(access, slot)?;
        node.send(&self.commands)?;
        let replies = (0..count).map(|_| node.receive()).collect::<Result<Vec<_>, _>>()?;
        self.follow(access, replies)
    }

    /// The replies to so many commands about keys of any slots.
    fn ask_many(&mut self, access: Access, count: usize) -> Result<Vec<Value>, Failed> {
        let commands = cut(&self.commands, count).map_err(not_sent)?;
        let mut replies = vec![Value::Nil; count];
        self.ask_at_once(access, &commands, 0..count, &mut replies)?;
        self.follow(access, replies)
    }

    /// The replies of one of the primaries, whatever they say.
    fn ask_primary(&mut self, primaries: &Primaries, number: usize, count: usize) -> Result<Vec<Value>, Failed> {
        if number == 0 {
            let random = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
            let told = self.cluster.route_command(&ask_primaries(), random);
            primaries.learn(told).map_err(not_sent)?;
        }
        let slot = primaries.slot(number).map_err(not_sent)?;
        let node = self.whom(Access::Write, slot)?;
        node.send(&self.commands)?;
        (0..count).map(|_| node.receive()).collect()
    }

    /// The server to ask about a slot: where replicas may be asked and the chosen one cannot be reached, the primary.
    fn whom(&mut self, access: Access, slot: u16) -> Result<Node, Failed> {
        let node = whom(&mut self.cluster, at(slot, access), None);
        if node.is_err() && access == Access::Read {
            self.is_in_doubt = true;
            return whom(&mut self.cluster, at(slot, Access::Write), None);
        }
        node
    }

    /// Sends some of the commands to all of their servers, then waits for the replies.
    fn ask_at_once(
        &mut self,
        access: Access,
        commands: &[Command],
        numbers: impl IntoIterator<Item = usize>,
        replies: &mut [Value],
    ) -> Result<(), Failed> {
        let mut parts: Vec<(Node, Vec<usize>)> = Vec::new();
        // Commands stand in the order of their slots.
        let mut last: Option<(u16, usize)> = None;
        for number in numbers {
            let slot = commands[number].1;
            let part = match last {
                Some((of, part)) if of == slot => part,
                _ => {
                    let node = self.whom(access, slot)?;
                    parts.iter().position(|(other, _)| other.is(&node)).unwrap_or_else(|| {
                        parts.push((node, Vec::new()));
                        parts.len() - 1
                    })
                }
            };
            parts[part].1.push(number);
            last = Some((slot, part));
        }
        for (node, numbers) in &parts {
            self.part.clear();
            for &number in numbers {
                self.part.extend_from_slice(&self.commands[commands[number].0.clone()]);
            }
            node.send(&self.part)?;
        }
        for (node, numbers) in &parts {
            for &number in numbers {
                replies[number] = node.receive()?;
            }
        }
        Ok(())
    }

    /// Sends again what servers have sent elsewhere, until all is answered, or they did that too often.
    fn follow(&mut self, access: Access, mut replies: Vec<Value>) -> Result<Vec<Value>, Failed> {
        if replies.iter().all(|reply| elsewhere(reply, access).is_none()) {
            return Ok(replies);
        }
        let commands = cut(&self.commands, replies.len()).map_err(not_sent)?;
        let mut open: Vec<usize> = (0..commands.len()).collect();
        for round in 0..MOST_ROUNDS {
            open = sent_elsewhere(access, &commands, &open, &replies);
            let said: Vec<_> = open.iter().map(|&number| elsewhere(&replies[number], access)).collect();
            let moved = |said: &Option<ServerError>| matches!(said, Some(said) if said.kind() == Some(Moved));
            // Slots seldom move alone: once the connection has been told of one, all may be sent again at once.
            if let (0, Some(at_first)) = (round, said.iter().position(moved)) {
                whom(&mut self.cluster, at(commands[open[at_first]].1, access), said[at_first].clone())?;
                self.ask_at_once(access, &commands, open.iter().copied(), &mut replies)?;
                continue;
            }
            if !said.iter().flatten().all(is_told) {
                thread::sleep(ON_THEIR_WAY * round);
            }
            for (&number, said) in open.iter().zip(said) {
                replies[number] = self.ask_again(access, &commands[number], said)?;
            }
        }
        Ok(replies)
    }

    /// The reply to one command, to which a server may have said something else before.
    fn ask_again(
        &mut self,
        access: Access,
        (place, slot): &Command,
        said: Option<ServerError>,
    ) -> Result<Value, Failed> {
        let node = match said {
            Some(said) if is_told(&said) => whom(&mut self.cluster, at(*slot, access), Some(said))?,
            // Of servers that cannot answer the primary is the one to wait for.
            Some(_) => self.whom(Access::Write, *slot)?,
            None => self.whom(access, *slot)?,
        };
        node.send(&self.commands[place.clone()])?;
        node.receive()
    }
}

/// Whether a server said where to go.
fn is_told(said: &ServerError) -> bool {
    matches!(said.kind(), Some(Moved | Ask))
}

/// Of some commands those that servers have sent elsewhere, and what comes after them in their slots where it may be sent
/// again: an entry is read, or a lease released, after the command before it.
fn sent_elsewhere(access: Access, commands: &[Command], numbers: &[usize], replies: &[Value]) -> Vec<usize> {
    let mut slots: HashSet<u16, ahash::RandomState> = HashSet::default();
    let is_open = |&number: &usize| {
        let slot = commands[number].1;
        if elsewhere(&replies[number], access).is_some() {
            slots.insert(slot);
            return true;
        }
        access != Access::Once && slots.contains(&slot)
    };
    numbers.iter().copied().filter(is_open).collect()
}

impl fmt::Debug for ClusterDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterDriver").field("hash_expiry", &self.0.hash_expiry).finish_non_exhaustive()
    }
}
