//! [`Fleet`]: servers that change their places, and what a cluster's and a sentinel's have in common in how they are
//! asked.

use super::builder::Settings;
use super::shard::ReadFrom;
use super::topology::{Discover, Topology};
use crate::backend::Access;
use crate::engine::batch::Acknowledged;
use crate::engine::plan;
use crate::error::Error;

/// Servers that change their places.
pub(super) struct Fleet<D: Discover> {
    pub(super) topology: Topology<D>,
    pub(super) settings: Settings,
    pub(super) read_from: ReadFrom,
}

impl<D: Discover> Fleet<D> {
    pub(super) fn new(discover: D, settings: Settings, read_from: ReadFrom) -> Self {
        Fleet { topology: Topology::new(discover, settings.limits), settings, read_from }
    }

    /// What is known of the servers may be old where replicas are read, whom nobody sends elsewhere.
    #[inline]
    fn recheck(&self, access: Access) {
        if access == Access::Read && self.read_from == ReadFrom::Replicas {
            self.topology.recheck();
        }
    }

    /// Asks servers that are chosen by what is known.
    #[inline(always)]
    pub(super) fn ask<T>(&self, access: Access, ask: impl FnOnce(&D::View) -> Result<T, Error>) -> Result<T, Error> {
        self.recheck(access);
        let view = self.topology.view();
        let known;
        ask(match &*view {
            Some(view) => view,
            None => {
                known = self.topology.known()?;
                &known
            }
        })
    }

    /// What is known, for tasks, which may have to wait for it.
    #[cfg(feature = "tokio")]
    #[inline]
    pub(super) async fn known_async(&self, access: Access) -> Result<std::sync::Arc<D::View>, Error> {
        self.recheck(access);
        let view = self.topology.view().clone();
        match view {
            Some(view) => Ok(view),
            None => self.topology.known_async().await,
        }
    }

    /// Asks every server that requests go to whether it is there.
    pub(super) fn ping(&self) -> Result<(), Error> {
        for node in D::nodes(&*self.topology.known()?) {
            let mut answer = Acknowledged::default();
            self.topology.doubt_after(node.exchange(Access::Read, plan::ping, &mut answer))?;
            answer.finish()?;
        }
        Ok(())
    }

    /// The same for tasks.
    #[cfg(feature = "tokio")]
    pub(super) async fn ping_async(&self) -> Result<(), Error> {
        for node in D::nodes(&*self.topology.known_async().await?) {
            let mut answer = Acknowledged::default();
            self.topology.doubt_after(node.exchange_async(Access::Read, plan::ping, &mut answer).await)?;
            answer.finish()?;
        }
        Ok(())
    }
}
