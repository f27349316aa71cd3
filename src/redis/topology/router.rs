//! [`Router`]: the state and operations that [`Cluster`](crate::redis::Cluster) and
//! [`Sentinel`](crate::redis::Sentinel) have in common.

use std::sync::Arc;

use arc_swap::Guard;

use crate::error::{Error, ErrorKind};
use crate::redis::ReadFrom;
use crate::redis::builder::ServerSettings;
use crate::redis::protocol::batch::Acknowledged;
use crate::redis::protocol::commands;
use crate::redis::topology::discovery::{Discover, Discovery};
use crate::redis::transport::Access;

/// A borrowed view of the topology, which stays valid while newer views replace it.
pub(crate) struct ViewGuard<V>(Guard<Option<Arc<V>>>);

impl<V> ViewGuard<V> {
    #[inline]
    pub(crate) fn get(&self) -> Result<&V, Error> {
        self.0.as_deref().ok_or_else(no_view)
    }
}

#[cold]
fn no_view() -> Error {
    Error::new(ErrorKind::Connection, "routing a request: the servers have not been discovered yet")
}

/// A set of servers whose roles and addresses change at run time.
pub(crate) struct Router<D: Discover> {
    pub(crate) topology: Discovery<D>,
    pub(crate) settings: ServerSettings,
    pub(crate) read_from: ReadFrom,
}

impl<D: Discover> Router<D> {
    pub(crate) fn new(discover: D, settings: ServerSettings, read_from: ReadFrom) -> Self {
        Router { topology: Discovery::new(discover, settings.limits), settings, read_from }
    }

    /// Requests a refresh of an old view before a read from replicas.
    ///
    /// Requests to primaries need no such check: a server that lost its role answers with a
    /// redirection, while a replica that was added or came back is not announced by any server.
    #[inline]
    fn recheck(&self, access: Access) {
        if access == Access::Read && self.read_from == ReadFrom::Replicas {
            self.topology.recheck();
        }
    }

    /// Returns the current view, and blocks until there is one.
    #[inline(always)]
    pub(crate) fn view(&self, access: Access) -> Result<ViewGuard<D::View>, Error> {
        self.recheck(access);
        let view = self.topology.view();
        if view.is_some() {
            Ok(ViewGuard(view))
        } else {
            self.topology.wait_for_view().map(|view| ViewGuard(Guard::from_inner(Some(view))))
        }
    }

    /// Returns the current view, and waits until there is one.
    #[cfg(feature = "tokio")]
    #[inline]
    pub(crate) async fn view_async(&self, access: Access) -> Result<Arc<D::View>, Error> {
        self.recheck(access);
        let view = self.topology.view().clone();
        match view {
            Some(view) => Ok(view),
            None => self.topology.wait_for_view_async().await,
        }
    }

    /// Sends `PING` to every server that requests may go to, one after the other.
    pub(crate) fn ping(&self) -> Result<(), Error> {
        for node in D::nodes(&*self.topology.wait_for_view()?) {
            let mut answer = Acknowledged::default();
            self.topology.refresh_if_unreachable(node.exchange(Access::Read, commands::ping, &mut answer))?;
            answer.finish()?;
        }
        Ok(())
    }

    /// Sends `PING` to every server over the multiplexed connections, one after the other.
    #[cfg(feature = "tokio")]
    pub(crate) async fn ping_async(&self) -> Result<(), Error> {
        for node in D::nodes(&*self.topology.wait_for_view_async().await?) {
            let mut answer = Acknowledged::default();
            self.topology
                .refresh_if_unreachable(node.exchange_async(Access::Read, commands::ping, &mut answer).await)?;
            answer.finish()?;
        }
        Ok(())
    }
}
