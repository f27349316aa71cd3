//! [`Fleet`]: servers that change their places, and what a cluster's and a sentinel's have in common in how they are
//! asked.

use std::sync::Arc;

use arc_swap::Guard;

use crate::error::{Error, ErrorKind};
use crate::redis::ReadFrom;
use crate::redis::builder::Settings;
use crate::redis::protocol::batch::Acknowledged;
use crate::redis::protocol::commands;
use crate::redis::topology::discovery::{Discover, Topology};
use crate::redis::transport::Access;

/// What is known of servers, for as long as it is used.
pub(crate) struct Known<V>(Guard<Option<Arc<V>>>);

impl<V> Known<V> {
    #[inline]
    pub(crate) fn get(&self) -> Result<&V, Error> {
        self.0.as_deref().ok_or_else(nothing_known)
    }
}

#[cold]
fn nothing_known() -> Error {
    Error::new(ErrorKind::Connection, "nothing is known of the servers")
}

/// Servers that change their places.
pub(crate) struct Fleet<D: Discover> {
    pub(crate) topology: Topology<D>,
    pub(crate) settings: Settings,
    pub(crate) read_from: ReadFrom,
}

impl<D: Discover> Fleet<D> {
    pub(crate) fn new(discover: D, settings: Settings, read_from: ReadFrom) -> Self {
        Fleet { topology: Topology::new(discover, settings.limits), settings, read_from }
    }

    /// What is known of the servers may be old where replicas are read, whom nobody sends elsewhere.
    #[inline]
    fn recheck(&self, access: Access) {
        if access == Access::Read && self.read_from == ReadFrom::Replicas {
            self.topology.recheck();
        }
    }

    /// What is known, which threads may have to wait for.
    #[inline(always)]
    pub(crate) fn known(&self, access: Access) -> Result<Known<D::View>, Error> {
        self.recheck(access);
        let view = self.topology.view();
        if view.is_some() {
            Ok(Known(view))
        } else {
            self.topology.known().map(|view| Known(Guard::from_inner(Some(view))))
        }
    }

    /// The same for tasks.
    #[cfg(feature = "tokio")]
    #[inline]
    pub(crate) async fn known_async(&self, access: Access) -> Result<Arc<D::View>, Error> {
        self.recheck(access);
        let view = self.topology.view().clone();
        match view {
            Some(view) => Ok(view),
            None => self.topology.known_async().await,
        }
    }

    /// Asks every server that requests go to whether it is there.
    pub(crate) fn ping(&self) -> Result<(), Error> {
        for node in D::nodes(&*self.topology.known()?) {
            let mut answer = Acknowledged::default();
            self.topology.doubt_after(node.exchange(Access::Read, commands::ping, &mut answer))?;
            answer.finish()?;
        }
        Ok(())
    }

    /// The same for tasks.
    #[cfg(feature = "tokio")]
    pub(crate) async fn ping_async(&self) -> Result<(), Error> {
        for node in D::nodes(&*self.topology.known_async().await?) {
            let mut answer = Acknowledged::default();
            self.topology.doubt_after(node.exchange_async(Access::Read, commands::ping, &mut answer).await)?;
            answer.finish()?;
        }
        Ok(())
    }
}
