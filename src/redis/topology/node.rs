//! [`Node`]: one server and the connections to it.

use crate::error::Error;
use crate::redis::conn::blocking::BlockingConnection;
use crate::redis::conn::limits::Limits;
#[cfg(feature = "tokio")]
use crate::redis::conn::multiplexed::pipeline::RawReplies;
#[cfg(feature = "tokio")]
use crate::redis::conn::multiplexed::{ConnectionRef, EncodedCommands, MultiplexedConnections};
use crate::redis::conn::pool::{PendingExchange, Pool};
use crate::redis::protocol::parser::Receive;
use crate::redis::tracking::TrackingConnection;
use crate::redis::transport::Access;
use crate::redis::transport::Watch;
use crate::redis::url::Server;

/// One server and its connections, each of which is opened when it is first needed.
pub(crate) struct Node {
    pub(crate) server: Server,
    limits: Limits,
    /// Boxed, since every request moves a connection out of the pool and back into it.
    pool: Pool<Box<BlockingConnection>>,
    #[cfg(feature = "tokio")]
    multiplexed: MultiplexedConnections,
    tracking: TrackingConnection,
}

/// The replies to a request over a multiplexed connection.
#[cfg(feature = "tokio")]
pub(crate) struct NodeReplies<'n> {
    connection: ConnectionRef<'n>,
    replied: RawReplies,
}

impl Node {
    /// A node without connections, which opens at most `connections` for blocking callers.
    pub(crate) fn new(server: Server, connections: usize, limits: Limits) -> Self {
        Node {
            #[cfg(feature = "tokio")]
            multiplexed: MultiplexedConnections::new(&server, limits),
            tracking: TrackingConnection::new(&server, limits),
            pool: Pool::new(connections, limits.response, limits.max_backoff),
            server,
            limits,
        }
    }

    /// Sends commands and receives their replies over a connection of the pool.
    #[inline]
    pub(crate) fn exchange(
        &self,
        access: Access,
        write: impl FnOnce(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error> {
        self.pool.exchange(access, || self.connect(), write, receive)
    }

    /// Sends commands; [`Node::finish`] receives their replies.
    pub(crate) fn begin(
        &self,
        access: Access,
        write: impl FnOnce(&mut Vec<u8>) -> usize,
    ) -> Result<PendingExchange<'_, Box<BlockingConnection>>, Error> {
        self.pool.begin(access, || self.connect(), write)
    }

    /// Receives the replies to the commands that [`Node::begin`] sent.
    pub(crate) fn finish(
        &self,
        begun: PendingExchange<'_, Box<BlockingConnection>>,
        receive: &mut impl Receive,
    ) -> Result<(), Error> {
        begun.finish(|| self.connect(), receive)
    }

    fn connect(&self) -> Result<Box<BlockingConnection>, Error> {
        BlockingConnection::open(&self.server, self.limits).map(Box::new)
    }

    /// Sends commands and receives their replies over the multiplexed connection of this runtime.
    #[cfg(feature = "tokio")]
    #[inline]
    pub(crate) async fn exchange_async(
        &self,
        access: Access,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> Result<(), Error> {
        let replies = self.ask(access, write).await?;
        self.take(replies, receive)
    }

    /// Sends commands and waits until their replies are here; [`Node::take`] reads them.
    #[cfg(feature = "tokio")]
    #[inline]
    pub(crate) async fn ask(
        &self,
        access: Access,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
    ) -> Result<NodeReplies<'_>, Error> {
        let connection = self.multiplexed.current()?;
        let replied = match connection.request(&write).await {
            Ok(Ok(replied)) => replied,
            // Boxed: retries are rare, and their state would enlarge the future of every request.
            other => Box::pin(connection.retry(access, write, other)).await?,
        };
        Ok(NodeReplies { connection, replied })
    }

    /// Gives `receive` the replies that [`Node::ask`] waited for.
    #[cfg(feature = "tokio")]
    #[inline]
    pub(crate) fn take(&self, replies: NodeReplies<'_>, receive: &mut impl Receive) -> Result<(), Error> {
        let NodeReplies { connection, replied } = replies;
        replied
            .read(self.limits.max_entry, receive)
            .inspect_err(|error| connection.pipeline.close_on_protocol_error(error))
    }

    /// Sends commands without waiting for their replies.
    ///
    /// Returns the commands if the connection of the current runtime is not open, so that the
    /// caller can send them again once it is.
    #[cfg(feature = "tokio")]
    pub(crate) fn send(&self, write: impl FnOnce(&mut Vec<u8>) -> usize) -> Option<EncodedCommands> {
        self.multiplexed.send(write)
    }

    /// Returns a future that completes when the lease of this Redis key may have ended.
    ///
    /// Returns `None` while the server cannot notify this client.
    pub(crate) fn watch(&self, lock: &[u8]) -> Option<Watch> {
        self.tracking.watch(lock)
    }
}
