//! [`Map`]: which slots are at which servers; [`Nodes`]: the connections to these.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::super::answer::Answer;
use super::super::builder::Settings;
use super::super::config::{Address, Server};
use super::super::connection::Connection;
use super::super::node::Node;
use super::super::topology::Discover;
use super::ReadFrom;
use crate::backend::Access;
use crate::engine::plan;
use crate::engine::route::Endpoint;
use crate::engine::slot::SLOTS;
use crate::error::{Error, ErrorKind};

/// Which slots are at which servers, as one of them told.
pub(super) struct Map {
    /// For each slot, which of the shards has it.
    slots: Box<[u16]>,
    shards: Vec<Shard>,
    /// What it was made of.
    ranges: Vec<Range>,
}

/// Servers that have the same slots.
struct Shard {
    primary: Arc<Node>,
    replicas: Vec<Replica>,
    /// Whose turn it is.
    turn: AtomicUsize,
}

pub(super) struct Replica {
    node: Arc<Node>,
    /// Milliseconds since the replica was made until when it is left alone; none of zero.
    shunned_until: AtomicU64,
    made: Instant,
}

/// Slots that are at one primary and its replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    primary: Endpoint,
    replicas: Vec<Endpoint>,
}

/// No shard has the slot.
const NOBODY: u16 = u16::MAX;

/// A server to send something to.
pub(super) enum Target<'m> {
    Primary(&'m Arc<Node>),
    Replica(&'m Replica),
    /// One that was told of, and may be in no map.
    Told(Arc<Node>),
}

impl Target<'_> {
    #[inline]
    pub(super) fn is_replica(&self) -> bool {
        matches!(self, Target::Replica(_))
    }

    #[inline]
    pub(super) fn node(&self) -> &Arc<Node> {
        match self {
            Target::Primary(node) => node,
            Target::Told(node) => node,
            Target::Replica(replica) => &replica.node,
        }
    }
}

impl Map {
    /// The server to ask about a slot, if there is one.
    #[inline]
    pub(super) fn target(&self, slot: u16, access: Access) -> Option<Target<'_>> {
        let shard = self.shards.get(usize::from(*self.slots.get(usize::from(slot))?))?;
        if access == Access::Read && !shard.replicas.is_empty() {
            return Some(shard.to_read());
        }
        Some(Target::Primary(&shard.primary))
    }

    /// The primaries, in the order of their slots.
    pub(super) fn primaries(&self) -> impl ExactSizeIterator<Item = &Arc<Node>> {
        self.shards.iter().map(|shard| &shard.primary)
    }

    /// All servers that requests go to.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        let replicas = self.shards.iter().flat_map(|shard| shard.replicas.iter().map(|replica| &replica.node));
        self.primaries().chain(replicas)
    }
}

impl Shard {
    /// A replica in its turn, or the primary where none can be asked.
    #[cold]
    fn to_read(&self) -> Target<'_> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.replicas.len();
        let in_turn = (0..count).map(|at| &self.replicas[(turn.wrapping_add(at)) % count]);
        in_turn
            .into_iter()
            .find(|replica| !replica.is_shunned())
            .map_or(Target::Primary(&self.primary), Target::Replica)
    }
}

impl Replica {
    fn is_shunned(&self) -> bool {
        let until = self.shunned_until.load(Ordering::Relaxed);
        until > 0 && self.made.elapsed() < Duration::from_millis(until)
    }

    /// Leaves it alone for a while.
    #[cold]
    pub(super) fn shun(&self, pause: Duration) {
        let until = self.made.elapsed().saturating_add(pause).as_millis();
        self.shunned_until.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// The servers of a cluster, by where they are, and the connections to them.
pub(super) struct Nodes {
    /// Those that are asked first, and tell who we are to all others.
    seeds: Vec<Server>,
    settings: Settings,
    read_from: ReadFrom,
    open: Mutex<HashMap<(Endpoint, bool), Arc<Node>>>,
}

impl Nodes {
    pub(super) fn new(seeds: Vec<Server>, settings: Settings, read_from: ReadFrom) -> Self {
        Nodes { seeds, settings, read_from, open: Mutex::default() }
    }

    pub(super) fn seeds(&self) -> &[Server] {
        &self.seeds
    }

    /// A primary, which may not be in any map yet.
    pub(super) fn primary(&self, at: &Endpoint) -> Result<Arc<Node>, Error> {
        self.node(at, false)
    }

    fn node(&self, at: &Endpoint, is_read: bool) -> Result<Arc<Node>, Error> {
        if let Some(node) = self.open.lock().get(&(at.clone(), is_read)) {
            return Ok(Arc::clone(node));
        }
        let server = Server { is_read, ..self.seeds[0].at_host(&at.host, at.port)? };
        let node = Arc::new(Node::new(server, self.settings.connections, self.settings.limits));
        Ok(Arc::clone(self.open.lock().entry((at.clone(), is_read)).or_insert(node)))
    }

    /// Those that are in no map are not used any more.
    fn keep(&self, map: &Map) {
        // Their connections are closed without the lock.
        let mut gone = Vec::new();
        self.open.lock().retain(|_, node| {
            let is_there = map.nodes().any(|other| Arc::ptr_eq(node, other));
            if !is_there {
                gone.push(Arc::clone(node));
            }
            is_there
        });
    }

    fn map(&self, ranges: Vec<Range>) -> Result<Map, Error> {
        let mut map = Map { slots: vec![NOBODY; usize::from(SLOTS)].into(), shards: Vec::new(), ranges: Vec::new() };
        let mut shards: HashMap<(&Endpoint, &[Endpoint]), u16> = HashMap::new();
        for range in &ranges {
            let shard = match shards.get(&(&range.primary, &range.replicas[..])) {
                Some(shard) => *shard,
                None => {
                    let replicas = if self.read_from == ReadFrom::Replicas { &range.replicas[..] } else { &[] };
                    let replicas = replicas.iter().map(|at| {
                        let (node, made) = (self.node(at, true)?, Instant::now());
                        Ok(Replica { node, shunned_until: AtomicU64::new(0), made })
                    });
                    let replicas = replicas.collect::<Result<_, Error>>()?;
                    map.shards.push(Shard {
                        primary: self.primary(&range.primary)?,
                        replicas,
                        turn: AtomicUsize::new(0),
                    });
                    let shard = u16::try_from(map.shards.len() - 1).unwrap_or(NOBODY);
                    shards.insert((&range.primary, &range.replicas), shard);
                    shard
                }
            };
            map.slots[usize::from(range.first)..=usize::from(range.last)].fill(shard);
        }
        drop(shards);
        self.keep(&map);
        map.ranges = ranges;
        Ok(map)
    }
}

impl Discover for Nodes {
    type View = Map;

    /// The servers that are known, then those that were named.
    fn whom(&self, known: Option<&Map>) -> Vec<Server> {
        let known = known.into_iter().flat_map(|map| map.primaries().map(|node| node.server.clone()));
        known.chain(self.seeds.iter().cloned()).collect()
    }

    fn ask(&self, connection: &mut Connection, server: &Server) -> Result<Map, Error> {
        let answers = connection.ask_all(plan::cluster_slots)?;
        let ranges = match answers.first() {
            Some(Answer::Refused(error)) => {
                return Err(match error.to_string() {
                    said if said.contains("cluster support disabled") => {
                        Error::new(ErrorKind::Config, "it is not part of a cluster: use `Redis` for it")
                    }
                    _ => error.copy(),
                });
            }
            Some(answer) => answer.members().iter().map(|range| read_range(range, server)).collect::<Option<Vec<_>>>(),
            None => None,
        };
        let ranges = ranges.ok_or_else(|| Error::new(ErrorKind::Protocol, "its CLUSTER SLOTS is none"))?;
        if ranges.is_empty() {
            return Err(Error::new(ErrorKind::Server, "it knows of no slots"));
        }
        self.map(ranges)
    }

    fn is_new(&self, known: &Map, told: &Map) -> bool {
        known.ranges != told.ranges
    }
}

fn read_range(range: &Answer, asked: &Server) -> Option<Range> {
    let [first, last, servers @ ..] = range.members() else { return None };
    let slot = |answer: &Answer| u16::try_from(answer.int()?).ok().filter(|slot| *slot < SLOTS);
    let mut servers = servers.iter().map(|server| {
        let [host, port, ..] = server.members() else { return None };
        let port = u16::try_from(port.int()?).ok()?;
        // A server that does not know its name, or shall not tell it, has the one that it was asked by.
        let host = match (host.text(), &asked.address) {
            (None | Some("" | "?"), Address::Tcp(host, _)) => host,
            (Some(host), _) => host,
            (None, Address::Unix(_)) => return None,
        };
        Some(Endpoint { host: host.to_owned(), port })
    });
    let (first, last, primary) = (slot(first)?, slot(last)?, servers.next()??);
    let replicas = servers.collect::<Option<_>>()?;
    (first <= last).then_some(Range { first, last, primary, replicas })
}
