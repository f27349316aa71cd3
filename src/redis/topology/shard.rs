//! [`Shard`]: a primary and its replicas, and the choice between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::redis::protocol::routing::Redirect;
use crate::redis::topology::discovery::{Discover, Discovery};
use crate::redis::topology::node::Node;
use crate::redis::transport::Access;
use crate::redis::url::Address;

/// Which servers reads go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReadFrom {
    /// The primaries. The default.
    #[default]
    Primaries,
    /// The replicas, in round-robin order, and their primary while none of them is available.
    ///
    /// A read may return an entry that is older than the stored one by the replication lag. Locks,
    /// and reads in the same round trip as a lock, go to the primaries.
    Replicas,
}

/// A primary and its replicas.
pub(crate) struct Shard {
    primary: Arc<Node>,
    /// Empty unless replicas are read from.
    replicas: Vec<Replica>,
    /// Counts reads, for the round-robin order.
    turn: AtomicUsize,
}

/// A replica, which is skipped for a while after it failed.
pub(crate) struct Replica {
    node: Arc<Node>,
    created: Instant,
    /// The end of the backoff in milliseconds since `created`; zero if there was no failure.
    backoff_until: AtomicU64,
}

/// The server that a command goes to.
pub(crate) enum Target<'m> {
    Primary(&'m Arc<Node>),
    Replica(&'m Replica),
    /// A server that a redirection named; it need not be part of the view.
    Announced(Arc<Node>),
}

impl Target<'_> {
    #[inline]
    pub(crate) fn node(&self) -> &Arc<Node> {
        match self {
            Target::Primary(node) => node,
            Target::Replica(replica) => &replica.node,
            Target::Announced(node) => node,
        }
    }

    #[inline]
    pub(crate) fn is_replica(&self) -> bool {
        matches!(self, Target::Replica(_))
    }

    /// Returns the host of the server, which a redirection without a host refers to.
    pub(crate) fn host(&self) -> &str {
        match &self.node().server.address {
            Address::Tcp(host, _) => host,
            Address::Unix(_) => "",
        }
    }

    /// Returns where the command goes next after a redirection or an error.
    ///
    /// Requests a refresh of the view if the outcome shows that it may be outdated, and starts the
    /// backoff of a replica that failed. `is_inside` says that a part of a reply was handed on
    /// already.
    ///
    /// # Errors
    /// If no other server can answer the command.
    #[cold]
    pub(crate) fn next_hop<D: Discover>(
        &self,
        topology: &Discovery<D>,
        outcome: Result<Redirect, Error>,
        is_inside: bool,
    ) -> Result<Redirect, Error> {
        let address = &self.node().server.address;
        match outcome {
            Ok(redirect) => {
                if let (Redirect::Primary, Target::Replica(replica)) = (&redirect, self) {
                    replica.back_off(topology.max_backoff());
                }
                topology.request_refresh();
                match redirect {
                    Redirect::Down(_) => Err(redirect.into_error().during(format_args!("requesting from {address}"))),
                    redirect => Ok(redirect.said_by(self.host())),
                }
            }
            // A replica may also refuse this client, for example by its ACL, while its primary does
            // not.
            Err(error) if error.is_out_of_reach() || (self.is_replica() && error.kind() != ErrorKind::TooLarge) => {
                topology.request_refresh();
                if let Target::Replica(replica) = self {
                    replica.back_off(topology.max_backoff());
                    // A caller waits for one timeout only, and a reply that was handed on in part
                    // cannot be replaced by another.
                    if error.kind() != ErrorKind::Timeout && !is_inside {
                        return Ok(Redirect::Primary);
                    }
                }
                Err(error.during(format_args!("requesting from {address}")))
            }
            Err(error) => Err(error.during(format_args!("requesting from {address}"))),
        }
    }
}

impl Shard {
    pub(crate) fn new(primary: Arc<Node>, replicas: Vec<Arc<Node>>) -> Self {
        let replica = |node| Replica { node, created: Instant::now(), backoff_until: AtomicU64::new(0) };
        Shard { primary, replicas: replicas.into_iter().map(replica).collect(), turn: AtomicUsize::new(0) }
    }

    pub(crate) fn primary(&self) -> &Arc<Node> {
        &self.primary
    }

    /// Returns all nodes that requests may go to.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        [&self.primary].into_iter().chain(self.replicas.iter().map(|replica| &replica.node))
    }

    /// Returns the server for a request: the primary, or a replica for reads if they go there.
    #[inline]
    pub(crate) fn target(&self, access: Access) -> Target<'_> {
        if access == Access::Read && !self.replicas.is_empty() {
            return self.read_target();
        }
        Target::Primary(&self.primary)
    }

    /// Returns the next replica, or the primary while all replicas are in their backoff.
    #[inline(never)]
    fn read_target(&self) -> Target<'_> {
        let (turn, count) = (self.turn.fetch_add(1, Ordering::Relaxed), self.replicas.len());
        let mut in_order = (0..count).map(|at| &self.replicas[turn.wrapping_add(at) % count]);
        in_order.find(|replica| !replica.is_backing_off()).map_or(Target::Primary(&self.primary), Target::Replica)
    }
}

impl Replica {
    fn is_backing_off(&self) -> bool {
        let until = self.backoff_until.load(Ordering::Relaxed);
        until > 0 && self.created.elapsed() < Duration::from_millis(until)
    }

    /// Skips the replica in reads for `backoff`.
    fn back_off(&self, backoff: Duration) {
        let until = self.created.elapsed().saturating_add(backoff).as_millis();
        self.backoff_until.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
