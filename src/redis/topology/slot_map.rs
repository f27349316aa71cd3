//! [`Map`]: which slots are at which servers, as one of them told.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::error::{Error, ErrorKind};
use crate::redis::conn::blocking::Connection;
use crate::redis::conn::reply::{Said, members, text};
use crate::redis::protocol::batch::server_error;
use crate::redis::protocol::commands;
use crate::redis::protocol::routing::Endpoint;
use crate::redis::protocol::slot::SLOTS;
use crate::redis::topology::discovery::Discover;
use crate::redis::topology::node::Node;
use crate::redis::topology::node_pool::Nodes;
use crate::redis::topology::shard::{Shard, Target};
use crate::redis::transport::Access;
use crate::redis::url::{Address, Role, Server};

/// Which slots are at which servers.
pub(crate) struct Map {
    /// For each slot, which of the shards has it.
    slots: Box<[u16]>,
    shards: Vec<Shard>,
    /// What it was made of.
    ranges: Vec<Range>,
    /// The cluster's epoch, as who told knows it: one that is cut off from the others stays behind.
    epoch: u64,
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

/// A server whose slots are written to.
const PRIMARY: Role = Role::ClusterNode { reads_replicas: false };
const REPLICA: Role = Role::ClusterNode { reads_replicas: true };

impl Map {
    /// The server to ask about a slot, if there is one.
    #[inline]
    pub(crate) fn target(&self, slot: u16, access: Access) -> Option<Target<'_>> {
        Some(self.shards.get(usize::from(*self.slots.get(usize::from(slot))?))?.target(access))
    }

    /// The primaries, in the order of their slots.
    pub(crate) fn primaries(&self) -> impl ExactSizeIterator<Item = &Arc<Node>> {
        self.shards.iter().map(Shard::primary)
    }

    /// The primary of a number.
    pub(crate) fn primary(&self, number: usize) -> Result<&Arc<Node>, Error> {
        let none = || Error::new(ErrorKind::Config, format!("the cluster has no primary of the number {number}"));
        self.primaries().nth(number).ok_or_else(none)
    }
}

/// The servers of a cluster, which know where its slots are.
pub(crate) struct Servers {
    /// Those that were named.
    seeds: Vec<Server>,
    nodes: Nodes,
}

impl Servers {
    pub(crate) fn new(seeds: Vec<Server>, nodes: Nodes) -> Self {
        Servers { seeds, nodes }
    }

    pub(crate) fn seeds(&self) -> &[Server] {
        &self.seeds
    }

    /// The primary that a server told of.
    pub(crate) fn told_of(&self, at: &Endpoint) -> Result<Target<'static>, Error> {
        self.nodes.node(at, PRIMARY).map(Target::Told)
    }

    fn map(&self, ranges: Vec<Range>, epoch: u64) -> Result<Map, Error> {
        let mut slots = vec![NOBODY; usize::from(SLOTS)];
        let mut shards: Vec<Shard> = Vec::new();
        // The first range of each shard.
        let mut firsts: Vec<&Range> = Vec::new();
        for range in &ranges {
            let is_same = |first: &&Range| first.primary == range.primary && first.replicas == range.replicas;
            let shard = match firsts.iter().position(is_same) {
                Some(shard) => shard,
                None => {
                    shards.push(self.nodes.shard((&range.primary, PRIMARY), (&range.replicas, REPLICA))?);
                    firsts.push(range);
                    firsts.len() - 1
                }
            };
            // Each has a slot of its own at least, so there are fewer.
            slots[usize::from(range.first)..=usize::from(range.last)].fill(u16::try_from(shard).unwrap_or(NOBODY));
        }
        Ok(Map { slots: slots.into(), shards, ranges, epoch })
    }
}

impl Discover for Servers {
    type View = Map;

    /// The servers that are known, then those that were named and are not among these.
    fn whom(&self, known: Option<&Map>) -> Vec<Server> {
        let known = known.into_iter().flat_map(Map::primaries).map(|node| &node.server);
        let mut whom: Vec<_> = known.cloned().collect();
        for seed in &self.seeds {
            if whom.iter().all(|server| server.address != seed.address) {
                whom.push(seed.clone());
            }
        }
        whom
    }

    fn ask(&self, connection: &mut Connection, server: &Server) -> Result<Map, Error> {
        let answers = connection.ask_all(commands::cluster_slots)?;
        let answer = answers.iter().next().unwrap_or_default();
        if let [Said::Error(error)] = answer {
            return Err(match server_error(error) {
                said if said.to_string().contains("cluster support disabled") => {
                    Error::new(ErrorKind::Config, "it is not part of a cluster: use `Redis`")
                }
                said => said,
            });
        }
        // What is not understood of one range says nothing of the others.
        let mut ranges: Vec<_> = members(answer).filter_map(|range| read_range(range, server)).collect();
        if let [Said::Array(0)] = answer {
            return Err(Error::new(ErrorKind::Server, "it knows of no slots"));
        }
        if ranges.is_empty() {
            return Err(Error::new(ErrorKind::Protocol, "its answer to CLUSTER SLOTS is none"));
        }
        ranges.sort_unstable_by_key(|range| range.first);
        let epoch = match answers.iter().nth(1) {
            Some([Said::Text(info)]) => current_epoch(&String::from_utf8_lossy(info)),
            _ => None,
        };
        self.map(ranges, epoch.unwrap_or(0))
    }

    fn nodes(map: &Map) -> impl Iterator<Item = &Arc<Node>> + Send {
        map.shards.iter().flat_map(Shard::nodes)
    }

    fn compare(&self, known: &Map, told: &Map) -> Ordering {
        match told.epoch.cmp(&known.epoch) {
            Ordering::Less => Ordering::Less,
            _ if told.ranges == known.ranges => Ordering::Equal,
            _ => Ordering::Greater,
        }
    }

    fn forget_others(&self, map: &Map) {
        self.nodes.keep(Self::nodes(map));
    }
}

/// Of the text of `CLUSTER INFO`.
fn current_epoch(info: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix("cluster_current_epoch:"))?.trim().parse().ok()
}

/// The first slot, the last, the primary, and the replicas.
fn read_range(range: &[Said], asked: &Server) -> Option<Range> {
    let mut parts = members(range);
    let mut slot = || match parts.next()? {
        [Said::Int(slot)] => u16::try_from(*slot).ok().filter(|slot| *slot < SLOTS),
        _ => None,
    };
    let (first, last) = (slot()?, slot()?);
    let mut servers = parts.map(|server| read_server(server, asked));
    let primary = servers.next()??;
    // One that cannot be reached may have no address.
    let mut replicas: Vec<_> = servers.flatten().collect();
    replicas.sort_unstable();
    (first <= last).then_some(Range { first, last, primary, replicas })
}

/// The host, the port, and more.
fn read_server(server: &[Said], asked: &Server) -> Option<Endpoint> {
    let mut parts = members(server);
    let (host, port, _id, more) = (parts.next()?, parts.next()?, parts.next(), parts.next().unwrap_or_default());
    let host = match host {
        // One that is where the one that was asked is, or shall not tell where.
        [Said::Nil] => None,
        [Said::Text(host)] if host.is_empty() => None,
        // One that has no name of the kind that is preferred, and may have another one.
        [Said::Text(host)] if host == b"?" => [b"ip", &b"hostname"[..]].iter().find_map(|kind| text(more, kind)),
        [Said::Text(host)] => Some(&host[..]),
        _ => return None,
    };
    let host = match (host, &asked.address) {
        (Some(host), _) => std::str::from_utf8(host).ok()?.to_owned(),
        (None, Address::Tcp(host, _)) => host.clone(),
        (None, Address::Unix(_)) => return None,
    };
    let [Said::Int(port)] = port else { return None };
    Some(Endpoint { host, port: u16::try_from(*port).ok()? })
}
