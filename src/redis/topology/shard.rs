//! [`Shard`]: a primary and its replicas, which of them is asked, and what follows when it cannot be.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::redis::protocol::routing::Redirect;
use crate::redis::topology::discovery::{Discover, Topology};
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
    /// The replicas, in turn; their primary where none of them can be asked. Entries may lag behind what was stored, by
    /// as long as replication takes. Locks, and what is read under them, are asked for at the primaries.
    Replicas,
}

/// A primary and its replicas.
pub(crate) struct Shard {
    primary: Arc<Node>,
    /// Those that are read from.
    replicas: Vec<Replica>,
    /// Whose turn it is.
    turn: AtomicUsize,
}

pub(crate) struct Replica {
    node: Arc<Node>,
    made: Instant,
    /// Until when it is left alone, in milliseconds since it was made; zero where it is not.
    shunned_until: AtomicU64,
}

/// A server to send something to.
pub(crate) enum Target<'m> {
    Primary(&'m Arc<Node>),
    Replica(&'m Replica),
    /// One that a server told of, and may be in no map.
    Told(Arc<Node>),
}

impl Target<'_> {
    #[inline]
    pub(crate) fn node(&self) -> &Arc<Node> {
        match self {
            Target::Primary(node) => node,
            Target::Replica(replica) => &replica.node,
            Target::Told(node) => node,
        }
    }

    #[inline]
    pub(crate) fn is_replica(&self) -> bool {
        matches!(self, Target::Replica(_))
    }

    /// The server's host.
    pub(crate) fn host(&self) -> &str {
        match &self.node().server.address {
            Address::Tcp(host, _) => host,
            Address::Unix(_) => "",
        }
    }

    /// What follows when it said to go elsewhere, or could not be asked: where to go, if anywhere. `is_inside` is whether
    /// a part of a reply was handed on.
    #[cold]
    pub(crate) fn elsewhere<D: Discover>(
        &self,
        topology: &Topology<D>,
        said: Result<Redirect, Error>,
        is_inside: bool,
    ) -> Result<Redirect, Error> {
        let address = &self.node().server.address;
        match said {
            Ok(redirect) => {
                if let (Redirect::Primary, Target::Replica(replica)) = (&redirect, self) {
                    replica.shun(topology.max_pause());
                }
                topology.doubt();
                match redirect {
                    Redirect::Down(_) => Err(redirect.into_error().during(format_args!("asking {address}"))),
                    redirect => Ok(redirect.said_by(self.host())),
                }
            }
            // A replica may also turn us away where its primary does not.
            Err(error) if error.is_out_of_reach() || (self.is_replica() && error.kind() != ErrorKind::TooLarge) => {
                topology.doubt();
                if let Target::Replica(replica) = self {
                    replica.shun(topology.max_pause());
                    // Who has waited for one answer in vain does not wait for another, and who has a part of one takes no
                    // other.
                    if error.kind() != ErrorKind::Timeout && !is_inside {
                        return Ok(Redirect::Primary);
                    }
                }
                Err(error.during(format_args!("asking {address}")))
            }
            Err(error) => Err(error.during(format_args!("asking {address}"))),
        }
    }
}

impl Shard {
    pub(crate) fn new(primary: Arc<Node>, replicas: Vec<Arc<Node>>) -> Self {
        let replica = |node| Replica { node, made: Instant::now(), shunned_until: AtomicU64::new(0) };
        Shard { primary, replicas: replicas.into_iter().map(replica).collect(), turn: AtomicUsize::new(0) }
    }

    pub(crate) fn primary(&self) -> &Arc<Node> {
        &self.primary
    }

    /// All that are asked.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        [&self.primary].into_iter().chain(self.replicas.iter().map(|replica| &replica.node))
    }

    /// Whom to ask.
    #[inline]
    pub(crate) fn target(&self, access: Access) -> Target<'_> {
        if access == Access::Read && !self.replicas.is_empty() {
            return self.to_read();
        }
        Target::Primary(&self.primary)
    }

    /// A replica in its turn, or the primary where none can be asked.
    #[inline(never)]
    fn to_read(&self) -> Target<'_> {
        let (turn, count) = (self.turn.fetch_add(1, Ordering::Relaxed), self.replicas.len());
        let mut in_turn = (0..count).map(|at| &self.replicas[turn.wrapping_add(at) % count]);
        in_turn.find(|replica| !replica.is_shunned()).map_or(Target::Primary(&self.primary), Target::Replica)
    }
}

impl Replica {
    fn is_shunned(&self) -> bool {
        let until = self.shunned_until.load(Ordering::Relaxed);
        until > 0 && self.made.elapsed() < Duration::from_millis(until)
    }

    /// Leaves it alone for a while.
    fn shun(&self, pause: Duration) {
        let until = self.made.elapsed().saturating_add(pause).as_millis();
        self.shunned_until.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
