//! [`NodePool`]: the nodes of a deployment by address and role, shared by successive views.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind};
use crate::redis::ReadFrom;
use crate::redis::builder::ServerSettings;
use crate::redis::protocol::routing::Endpoint;
use crate::redis::topology::node::Node;
use crate::redis::topology::shard::Shard;
use crate::redis::url::{Role, Server};

/// Nodes by address and role, so that a new view keeps the connections of the previous one.
pub(crate) struct NodePool {
    /// Credentials, database and encryption for every server; its address is replaced.
    template: Server,
    settings: ServerSettings,
    read_from: ReadFrom,
    nodes: Mutex<HashMap<(Endpoint, Role), Arc<Node>>>,
}

impl NodePool {
    pub(crate) fn new(template: Server, settings: ServerSettings, read_from: ReadFrom) -> Self {
        NodePool { template, settings, read_from, nodes: Mutex::default() }
    }

    /// Returns the node at an address, which need not be part of any view yet.
    pub(crate) fn node(&self, at: &Endpoint, role: Role) -> Result<Arc<Node>, Error> {
        if let Some(node) = self.nodes.lock().get(&(at.clone(), role)) {
            return Ok(Arc::clone(node));
        }
        // Another server announced this address, so an invalid one is not an error of the settings.
        let invalid = |error: Error| {
            let message = format!("connecting to {}:{}, as announced by another server: {error}", at.host, at.port);
            Error::new(ErrorKind::Connection, message)
        };
        let server = self.template.at_host(&at.host, at.port).map_err(invalid)?;
        // A server that is only read from does not have to know `HSETEX`.
        let is_replica = matches!(role, Role::Replica | Role::ClusterNode { reads_replicas: true });
        let server = Server { role, needs_hsetex: server.needs_hsetex && !is_replica, ..server };
        let node = Arc::new(Node::new(server, self.settings.connections, self.settings.limits));
        Ok(Arc::clone(self.nodes.lock().entry((at.clone(), role)).or_insert(node)))
    }

    /// Returns a primary and, if replicas are read from, its replicas.
    pub(crate) fn shard(&self, primary: (&Endpoint, Role), replicas: (&[Endpoint], Role)) -> Result<Shard, Error> {
        let read = if self.read_from == ReadFrom::Replicas { replicas.0 } else { &[] };
        let replicas = read.iter().map(|at| self.node(at, replicas.1)).collect::<Result<_, Error>>()?;
        Ok(Shard::new(self.node(primary.0, primary.1)?, replicas))
    }

    /// Removes all nodes except these.
    pub(crate) fn retain<'n>(&self, used: impl Iterator<Item = &'n Arc<Node>>) {
        let used: Vec<_> = used.collect();
        // Dropping a node closes its connections, which happens after the lock is released.
        let mut removed = Vec::new();
        self.nodes.lock().retain(|_, node| {
            let is_used = used.iter().any(|other| Arc::ptr_eq(node, other));
            if !is_used {
                removed.push(Arc::clone(node));
            }
            is_used
        });
    }
}
