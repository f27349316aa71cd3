//! [`Transport`]: exchanges commands for replies with Redis servers, whatever their topology.
//!
//! [`Redis`](crate::Redis), [`Cluster`](crate::Cluster), [`Sentinel`](crate::Sentinel) and the
//! drivers are transports. [`store`](super::store) makes a backend out of each of them. The traits are
//! sealed: they can be named in no path outside of this crate.

use std::future::ready;
use std::pin::Pin;

use crate::error::Error;
use crate::exec::{Blocking, Exec};
use crate::redis::HashTtl;
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::parser::{Receive, Token};
use crate::time::{Clock, Timestamp};

/// A future that is ready when a lock may have become free. It may be ready too early, and also
/// when the state of the lock can no longer be observed. Dropped, it ends the interest.
pub type Watch = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a request does: it decides where the request may go and whether it may be sent twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only reads: may go to a replica.
    Read,
    /// Writes, and may be sent again if the connection broke.
    Write,
    /// Writes under a condition that the first attempt may have changed: is sent once.
    Once,
}

/// Where a request goes among the servers of a cluster. A single server gets everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the server of this slot, which all keys of the request belong to.
    Slot(u16),
    /// Each command to the server of its first key's slot.
    Keys,
    /// To one of the primaries by number, below [`TransportSettings::primaries`].
    Primary(usize),
}

/// What a transport is for blocking and async callers alike.
pub trait TransportSettings: Send + Sync {
    /// Returns how long fields of hashes live.
    fn hash_ttl(&self) -> HashTtl;

    /// Returns the size of the largest entry that the servers take, in bytes.
    fn max_entry(&self) -> usize;

    /// Returns whether keys are divided among servers by slot. If so, each command is about the keys
    /// of one slot, and a lock is named such that it is in the slot of its entry.
    #[inline(always)]
    fn is_cluster(&self) -> bool {
        false
    }

    /// Returns how many primaries the keys are divided among, as far as is known.
    fn primaries(&self) -> usize {
        1
    }

    /// Returns the time by which [stamps](HashTtl::Stamped) are written and read.
    fn now(&self) -> Timestamp {
        Clock::system().now()
    }

    /// Watches the lock at this Redis key. Returns `None` if the servers send no notifications; the
    /// lock must then be polled.
    fn watch(&self, lock: &[u8]) -> Option<Watch> {
        let _ = lock;
        None
    }
}

/// Exchanges commands for replies and blocks the calling thread meanwhile.
pub trait Transport: TransportSettings {
    /// Sends the commands that `write` appends in RESP and gives `receive` the replies, token by
    /// token.
    ///
    /// `write` returns how many replies will come; it may be called again. If `receive` fails, the
    /// connection is closed.
    ///
    /// # Errors
    /// If the server cannot be reached, does not reply in time or not in RESP; and the error of
    /// `receive`.
    fn exchange(
        &self,
        access: Access,
        route: Route,
        write: impl Fn(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error>;
}

/// Exchanges commands for replies without blocking.
pub trait AsyncTransport: TransportSettings {
    /// How callers of this transport wait.
    #[allow(private_bounds)]
    type Exec: Exec;

    /// As [`Transport::exchange`]. `write` may run under a lock of the transport and so must not use
    /// it.
    ///
    /// # Cancel safety
    /// If the future is dropped, commands that were sent take effect and their replies are skipped.
    fn exchange_async(
        &self,
        access: Access,
        route: Route,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Sends commands that may be sent twice and whose replies do not matter, after everything that
    /// this caller has sent before. Does not wait for replies unless the transport blocks.
    ///
    /// # Errors
    /// Only a transport that blocks reports whether the server was reached.
    fn send(&self, write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync) -> Result<(), Error>;
}

impl<X: TransportSettings> TransportSettings for &X {
    #[inline(always)]
    fn hash_ttl(&self) -> HashTtl {
        (**self).hash_ttl()
    }

    #[inline(always)]
    fn max_entry(&self) -> usize {
        (**self).max_entry()
    }

    #[inline(always)]
    fn is_cluster(&self) -> bool {
        (**self).is_cluster()
    }

    fn primaries(&self) -> usize {
        (**self).primaries()
    }

    fn now(&self) -> Timestamp {
        (**self).now()
    }

    fn watch(&self, lock: &[u8]) -> Option<Watch> {
        (**self).watch(lock)
    }
}

impl<X: Transport> Transport for &X {
    #[inline(always)]
    fn exchange(
        &self,
        access: Access,
        route: Route,
        write: impl Fn(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error> {
        (**self).exchange(access, route, write, receive)
    }
}

/// Adapts a blocking transport to the async trait: its futures are ready when they are created.
#[derive(Clone)]
pub struct BlockingTransport<X>(pub(crate) X);

impl<X: Transport> TransportSettings for BlockingTransport<X> {
    #[inline(always)]
    fn hash_ttl(&self) -> HashTtl {
        self.0.hash_ttl()
    }

    #[inline(always)]
    fn max_entry(&self) -> usize {
        self.0.max_entry()
    }

    #[inline(always)]
    fn is_cluster(&self) -> bool {
        self.0.is_cluster()
    }

    fn primaries(&self) -> usize {
        self.0.primaries()
    }

    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn watch(&self, lock: &[u8]) -> Option<Watch> {
        self.0.watch(lock)
    }
}

impl<X: Transport> AsyncTransport for BlockingTransport<X> {
    type Exec = Blocking;

    #[inline(always)]
    fn exchange_async(
        &self,
        access: Access,
        route: Route,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> impl Future<Output = Result<(), Error>> + Send {
        ready(self.0.exchange(access, route, write, receive))
    }

    fn send(&self, write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync) -> Result<(), Error> {
        let mut ignore = |_: Token<'_>, _: &mut Chunk<'_>| Ok(());
        self.0.exchange(Access::Write, Route::Keys, write, &mut ignore)
    }
}
