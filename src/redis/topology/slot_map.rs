//! [`SlotMap`]: which servers of a cluster own which slots, and how the servers are asked for it.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::error::{Error, ErrorKind};
use crate::redis::conn::blocking::BlockingConnection;
use crate::redis::conn::reply::{Reply, members, text};
use crate::redis::protocol::batch::server_error;
use crate::redis::protocol::commands;
use crate::redis::protocol::routing::Endpoint;
use crate::redis::protocol::slot::SLOTS;
use crate::redis::topology::discovery::Discover;
use crate::redis::topology::node::Node;
use crate::redis::topology::node_pool::NodePool;
use crate::redis::topology::shard::{Shard, Target};
use crate::redis::transport::Access;
use crate::redis::url::{Address, Role, Server};

/// The owners of all slots, as one server of the cluster described them.
pub(crate) struct SlotMap {
    /// For each slot, the index of its shard, or [`NO_SHARD`].
    slots: Box<[u16]>,
    shards: Vec<Shard>,
    /// The description that the map was built from, for comparison with later ones.
    ranges: Vec<SlotRange>,
    /// The cluster's current epoch. A server that is partitioned from the others reports an old
    /// one.
    epoch: u64,
}

/// A range of slots that belong to one primary and its replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SlotRange {
    first: u16,
    last: u16,
    primary: Endpoint,
    replicas: Vec<Endpoint>,
}

/// The shard index of a slot that no server owns.
const NO_SHARD: u16 = u16::MAX;

/// The role of a node that is written to.
const PRIMARY: Role = Role::ClusterNode { reads_replicas: false };
/// The role of a node that is only read from.
const REPLICA: Role = Role::ClusterNode { reads_replicas: true };

impl SlotMap {
    /// Returns the server for a request about a slot, or `None` if no server owns the slot.
    #[inline]
    pub(crate) fn target(&self, slot: u16, access: Access) -> Option<Target<'_>> {
        Some(self.shards.get(usize::from(*self.slots.get(usize::from(slot))?))?.target(access))
    }

    /// Returns the primaries, in the order of their first slots.
    pub(crate) fn primaries(&self) -> impl ExactSizeIterator<Item = &Arc<Node>> {
        self.shards.iter().map(Shard::primary)
    }

    /// Returns a primary by its index in [`SlotMap::primaries`].
    pub(crate) fn primary(&self, number: usize) -> Result<&Arc<Node>, Error> {
        let none =
            || Error::new(ErrorKind::Config, format!("routing a request: the cluster has no primary number {number}"));
        self.primaries().nth(number).ok_or_else(none)
    }
}

/// Discovery by `CLUSTER SLOTS`, which every server of a cluster answers.
pub(crate) struct ClusterDiscovery {
    /// The servers that the user named.
    seeds: Vec<Server>,
    nodes: NodePool,
}

impl ClusterDiscovery {
    pub(crate) fn new(seeds: Vec<Server>, nodes: NodePool) -> Self {
        ClusterDiscovery { seeds, nodes }
    }

    pub(crate) fn seeds(&self) -> &[Server] {
        &self.seeds
    }

    /// Returns the primary that a redirection named, as the target of a command.
    pub(crate) fn announced(&self, at: &Endpoint) -> Result<Target<'static>, Error> {
        self.nodes.node(at, PRIMARY).map(Target::Announced)
    }

    /// Builds the map: ranges with the same servers share one shard.
    fn map(&self, ranges: Vec<SlotRange>, epoch: u64) -> Result<SlotMap, Error> {
        let mut slots = vec![NO_SHARD; usize::from(SLOTS)];
        let mut shards: Vec<Shard> = Vec::new();
        // The first range of each shard, in the order of `shards`.
        let mut firsts: Vec<&SlotRange> = Vec::new();
        for range in &ranges {
            let is_same = |first: &&SlotRange| first.primary == range.primary && first.replicas == range.replicas;
            let shard = match firsts.iter().position(is_same) {
                Some(shard) => shard,
                None => {
                    shards.push(self.nodes.shard((&range.primary, PRIMARY), (&range.replicas, REPLICA))?);
                    firsts.push(range);
                    firsts.len() - 1
                }
            };
            // Each shard has at least one of the 16,384 slots, so its index fits.
            slots[usize::from(range.first)..=usize::from(range.last)].fill(u16::try_from(shard).unwrap_or(NO_SHARD));
        }
        Ok(SlotMap { slots: slots.into(), shards, ranges, epoch })
    }
}

impl Discover for ClusterDiscovery {
    type View = SlotMap;

    /// Returns the known primaries, followed by the seeds that are not among them.
    fn candidates(&self, known: Option<&SlotMap>) -> Vec<Server> {
        let known = known.into_iter().flat_map(SlotMap::primaries).map(|node| &node.server);
        let mut candidates: Vec<_> = known.cloned().collect();
        for seed in &self.seeds {
            if candidates.iter().all(|server| server.address != seed.address) {
                candidates.push(seed.clone());
            }
        }
        candidates
    }

    fn ask(&self, connection: &mut BlockingConnection, server: &Server) -> Result<SlotMap, Error> {
        let answers = connection.query(commands::cluster_slots)?;
        let answer = answers.iter().next().unwrap_or_default();
        if let [Reply::Error(error)] = answer {
            return Err(match server_error(error) {
                error if error.to_string().contains("cluster support disabled") => {
                    Error::new(ErrorKind::Config, "the server is not part of a cluster: use `Redis`")
                }
                error => error,
            });
        }
        // A range that cannot be read does not make the others unusable.
        let mut ranges: Vec<_> = members(answer).filter_map(|range| read_range(range, server)).collect();
        if let [Reply::Array(0)] = answer {
            return Err(Error::new(ErrorKind::Server, "the server knows no slots of the cluster"));
        }
        if ranges.is_empty() {
            return Err(Error::new(ErrorKind::Protocol, "unexpected reply to CLUSTER SLOTS"));
        }
        ranges.sort_unstable_by_key(|range| range.first);
        let epoch = match answers.iter().nth(1) {
            Some([Reply::Text(info)]) => current_epoch(&String::from_utf8_lossy(info)),
            _ => None,
        };
        self.map(ranges, epoch.unwrap_or(0))
    }

    fn nodes(map: &SlotMap) -> impl Iterator<Item = &Arc<Node>> + Send {
        map.shards.iter().flat_map(Shard::nodes)
    }

    fn compare(&self, known: &SlotMap, received: &SlotMap) -> Ordering {
        match received.epoch.cmp(&known.epoch) {
            Ordering::Less => Ordering::Less,
            _ if received.ranges == known.ranges => Ordering::Equal,
            _ => Ordering::Greater,
        }
    }

    fn retain_nodes(&self, map: &SlotMap) {
        self.nodes.retain(Self::nodes(map));
    }
}

/// Reads the current epoch from the reply to `CLUSTER INFO`.
fn current_epoch(info: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix("cluster_current_epoch:"))?.trim().parse().ok()
}

/// Reads one range of `CLUSTER SLOTS`: the first slot, the last, the primary, and the replicas.
fn read_range(range: &[Reply], asked: &Server) -> Option<SlotRange> {
    let mut parts = members(range);
    let mut slot = || match parts.next()? {
        [Reply::Int(slot)] => u16::try_from(*slot).ok().filter(|slot| *slot < SLOTS),
        _ => None,
    };
    let (first, last) = (slot()?, slot()?);
    let mut servers = parts.map(|server| read_server(server, asked));
    let primary = servers.next()??;
    // A replica without a readable address is left out; it may just be down.
    let mut replicas: Vec<_> = servers.flatten().collect();
    replicas.sort_unstable();
    (first <= last).then_some(SlotRange { first, last, primary, replicas })
}

/// Reads one server of a range: its host, port, ID, and alternative names.
fn read_server(server: &[Reply], asked: &Server) -> Option<Endpoint> {
    let mut parts = members(server);
    let (host, port, _id, names) = (parts.next()?, parts.next()?, parts.next(), parts.next().unwrap_or_default());
    let host = match host {
        // A null or empty host stands for the host that was asked.
        [Reply::Nil] => None,
        [Reply::Text(host)] if host.is_empty() => None,
        // The server lacks the kind of name that the cluster prefers, but may have the other kind.
        [Reply::Text(host)] if host == b"?" => [b"ip", &b"hostname"[..]].iter().find_map(|kind| text(names, kind)),
        [Reply::Text(host)] => Some(&host[..]),
        _ => return None,
    };
    let host = match (host, &asked.address) {
        (Some(host), _) => std::str::from_utf8(host).ok()?.to_owned(),
        (None, Address::Tcp(host, _)) => host.clone(),
        (None, Address::Unix(_)) => return None,
    };
    let [Reply::Int(port)] = port else { return None };
    Some(Endpoint { host, port: u16::try_from(*port).ok()? })
}
