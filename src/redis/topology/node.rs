//! [`Node`]: a server, and the connections to it.

use crate::backend::leases::Watch;
use crate::error::Error;
use crate::redis::conn::blocking::Connection;
use crate::redis::conn::limits::Limits;
#[cfg(feature = "tokio")]
use crate::redis::conn::multiplexed::pipeline::Replied;
#[cfg(feature = "tokio")]
use crate::redis::conn::multiplexed::{Held, Links, Written};
use crate::redis::conn::pool::{Begun, Pool};
use crate::redis::protocol::parser::Receive;
use crate::redis::tracking::Listener;
use crate::redis::transport::Access;
use crate::redis::url::Server;

/// A server and the connections to it, each opened when it is needed.
pub(crate) struct Node {
    pub(crate) server: Server,
    limits: Limits,
    /// Boxed, since they move in and out with every request.
    pool: Pool<Box<Connection>>,
    #[cfg(feature = "tokio")]
    links: Links,
    listener: Listener,
}

/// The replies to a request of a task.
#[cfg(feature = "tokio")]
pub(crate) struct Answered<'n> {
    link: Held<'n>,
    replied: Replied,
}

impl Node {
    /// A server, and how many connections threads may have to it.
    pub(crate) fn new(server: Server, connections: usize, limits: Limits) -> Self {
        Node {
            #[cfg(feature = "tokio")]
            links: Links::new(&server, limits),
            listener: Listener::new(&server, limits),
            pool: Pool::new(connections, limits.response, limits.max_pause),
            server,
            limits,
        }
    }

    /// As [`Exchange::exchange`](crate::redis::transport::Exchange::exchange).
    #[inline]
    pub(crate) fn exchange(
        &self,
        access: Access,
        write: impl FnOnce(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error> {
        self.pool.exchange(access, || self.connect(), write, receive)
    }

    /// Sends commands, whose replies are to be received by [`Begun::finish`].
    pub(crate) fn begin(
        &self,
        access: Access,
        write: impl FnOnce(&mut Vec<u8>) -> usize,
    ) -> Result<Begun<'_, Box<Connection>>, Error> {
        self.pool.begin(access, || self.connect(), write)
    }

    /// Receives the replies to what was begun.
    pub(crate) fn finish(&self, begun: Begun<'_, Box<Connection>>, receive: &mut impl Receive) -> Result<(), Error> {
        begun.finish(|| self.connect(), receive)
    }

    fn connect(&self) -> Result<Box<Connection>, Error> {
        Connection::open(&self.server, self.limits).map(Box::new)
    }

    /// As [`AsyncExchange::exchange_async`](crate::redis::transport::AsyncExchange::exchange_async).
    #[cfg(feature = "tokio")]
    #[inline]
    pub(crate) async fn exchange_async(
        &self,
        access: Access,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> Result<(), Error> {
        let answered = self.ask(access, write).await?;
        self.take(answered, receive)
    }

    /// Sends commands and waits for their replies, which are to be received by [`Node::take`].
    #[cfg(feature = "tokio")]
    #[inline]
    pub(crate) async fn ask(
        &self,
        access: Access,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
    ) -> Result<Answered<'_>, Error> {
        let link = self.links.here()?;
        let replied = match link.request(&write).await {
            Ok(Ok(replied)) => replied,
            // Boxed, since it is seldom needed, and its size would be part of every request's.
            other => Box::pin(link.request_again(access, write, other)).await?,
        };
        Ok(Answered { link, replied })
    }

    /// Receives the replies to what was asked.
    #[cfg(feature = "tokio")]
    #[inline]
    pub(crate) fn take(&self, answered: Answered<'_>, receive: &mut impl Receive) -> Result<(), Error> {
        let Answered { link, replied } = answered;
        replied.read(self.limits.max_entry, receive).inspect_err(|error| link.pipeline.doubt(error))
    }

    /// As [`AsyncExchange::send`](crate::redis::transport::AsyncExchange::send); gives back what could not be sent and still may.
    #[cfg(feature = "tokio")]
    pub(crate) fn send(&self, write: impl FnOnce(&mut Vec<u8>) -> usize) -> Option<Written> {
        self.links.send(write)
    }

    /// As [`Leases::watch`](crate::backend::Leases::watch).
    pub(crate) fn watch(&self, lock: &[u8]) -> Option<Watch> {
        self.listener.watch(lock)
    }
}
