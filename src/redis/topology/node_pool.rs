//! [`Nodes`]: the connections to all servers that there are, by where these are.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind};
use crate::redis::builder::Settings;
use crate::redis::protocol::routing::Endpoint;
use crate::redis::topology::node::Node;
use crate::redis::topology::shard::{ReadFrom, Shard};
use crate::redis::url::{Role, Server};

/// Servers by where they are, and the connections to them.
pub(crate) struct Nodes {
    /// Tells each server who we are.
    template: Server,
    settings: Settings,
    read_from: ReadFrom,
    open: Mutex<HashMap<(Endpoint, Role), Arc<Node>>>,
}

impl Nodes {
    pub(crate) fn new(template: Server, settings: Settings, read_from: ReadFrom) -> Self {
        Nodes { template, settings, read_from, open: Mutex::default() }
    }

    /// A server that may be in no map yet.
    pub(crate) fn node(&self, at: &Endpoint, role: Role) -> Result<Arc<Node>, Error> {
        if let Some(node) = self.open.lock().get(&(at.clone(), role)) {
            return Ok(Arc::clone(node));
        }
        // Where it is was told by another server, whose fault it is when that cannot be.
        let told = |error: Error| Error::new(ErrorKind::Connection, format!("a server was told of: {error}"));
        let server = self.template.at_host(&at.host, at.port).map_err(told)?;
        // What is only read from needs to be able to do less.
        let is_replica = matches!(role, Role::Replica | Role::ClusterNode { reads_replicas: true });
        let server = Server { role, needs_hsetex: server.needs_hsetex && !is_replica, ..server };
        let node = Arc::new(Node::new(server, self.settings.connections, self.settings.limits));
        Ok(Arc::clone(self.open.lock().entry((at.clone(), role)).or_insert(node)))
    }

    /// A primary and its replicas, where these are read from.
    pub(crate) fn shard(&self, primary: (&Endpoint, Role), replicas: (&[Endpoint], Role)) -> Result<Shard, Error> {
        let read = if self.read_from == ReadFrom::Replicas { replicas.0 } else { &[] };
        let replicas = read.iter().map(|at| self.node(at, replicas.1)).collect::<Result<_, Error>>()?;
        Ok(Shard::new(self.node(primary.0, primary.1)?, replicas))
    }

    /// No others are used any more.
    pub(crate) fn keep<'n>(&self, used: impl Iterator<Item = &'n Arc<Node>>) {
        let used: Vec<_> = used.collect();
        // Connections are closed without the lock.
        let mut gone = Vec::new();
        self.open.lock().retain(|_, node| {
            let is_used = used.iter().any(|other| Arc::ptr_eq(node, other));
            if !is_used {
                gone.push(Arc::clone(node));
            }
            is_used
        });
    }
}
