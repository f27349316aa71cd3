//! [`Exchange`]: what exchanges commands for replies with a Redis server, for callers of either face.

use std::future::ready;

use crate::backend::leases::Watch;
use crate::error::Error;
#[cfg(feature = "tokio")]
use crate::exec::Task;
use crate::exec::Thread;
use crate::redis::HashExpiry;
use crate::redis::protocol::parser::Receive;
use crate::time::{Clock, Timestamp};

/// What a request does, so that an [`Exchange`] knows where it may go, and whether it may go twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Only reads: may go to a replica.
    Read,
    /// Writes what may be written again when the connection broke.
    Write,
    /// Writes under a condition that the first attempt may have changed, and so only once.
    Once,
}

/// Where a request goes among the servers of a cluster. Where there is one server, everything goes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Route {
    /// To the server of this slot, of which all keys are.
    Slot(u16),
    /// Each command to the server of the slot of its first key.
    Keys,
    /// To one of the primaries, by its number; there are as many as [`ExchangeSettings::primaries`] says.
    Primary(usize),
}

/// Something that exchanges commands for replies with a Redis server. Whatever does so is a [`Backend`](crate::backend::Backend) with
/// [`Leases`](crate::backend::Leases).
pub trait Exchange: ExchangeSettings {
    /// Sends the commands that `write` appends in RESP, and gives `receive` the replies, token by token. `write`
    /// returns how many replies will come; it may be called again. When `receive` fails, the connection is given up.
    ///
    /// # Errors
    /// When the server cannot be reached, does not answer in time or not in RESP, and what `receive` failed with.
    fn exchange(
        &self,
        access: Access,
        route: Route,
        write: impl Fn(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error>;
}

/// What an exchange is for callers of either face. A clone is a handle of the same.
pub trait ExchangeSettings: Clone + Send + Sync + 'static {
    /// How long fields of hashes live.
    fn hash_expiry(&self) -> HashExpiry;

    /// The largest entry that the server takes, in bytes.
    fn max_entry(&self) -> usize;

    /// Whether keys are divided among the servers of a cluster, by their slots. Commands are then about keys of one slot
    /// each, and locks are [named](crate::backend::Leases::lock_name) so that they are in the slots of their entries.
    fn is_cluster(&self) -> bool {
        false
    }

    /// How many primaries keys are divided among, as far as is known.
    fn primaries(&self) -> usize {
        1
    }

    /// The time that [stamps](HashExpiry::Stamped) are written and read by. Default: that of the system's clock.
    fn now(&self) -> Timestamp {
        Clock::system().now()
    }

    /// As [`Leases::watch`](crate::backend::Leases::watch).
    fn watch(&self, lock: &[u8]) -> Option<Watch> {
        let _ = lock;
        None
    }
}

/// Something that exchanges commands for replies with a Redis server, and whose callers are tasks. Whatever does so is
/// an [`AsyncBackend`](crate::backend::AsyncBackend) with [`AsyncLeases`](crate::backend::AsyncLeases).
#[cfg(feature = "tokio")]
pub trait AsyncExchange: ExchangeSettings {
    /// Sends the commands that `write` appends in RESP, and gives `receive` the replies, token by token. `write`
    /// returns how many replies will come; it may be called again when a connection broke, and must not use this
    /// exchange, since it may run under its lock. A future that is dropped leaves the commands that were sent, and their
    /// replies reach nobody.
    ///
    /// # Errors
    /// When the server cannot be reached, does not answer in time or not in RESP, and what `receive` failed with.
    fn exchange_async(
        &self,
        access: Access,
        route: Route,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Sends commands whose replies do not matter, and that may be sent twice, after all that this caller sent before.
    /// Does not block; what cannot be sent is lost.
    fn send(&self, write: impl FnOnce(&mut Vec<u8>) -> usize);
}

/// How a face exchanges.
pub(crate) trait Face<X: ExchangeSettings> {
    fn exchange(
        server: &X,
        access: Access,
        route: Route,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

impl<X: Exchange> Face<X> for Thread {
    #[inline(always)]
    fn exchange(
        server: &X,
        access: Access,
        route: Route,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> impl Future<Output = Result<(), Error>> + Send {
        ready(server.exchange(access, route, write, receive))
    }
}

#[cfg(feature = "tokio")]
impl<X: AsyncExchange> Face<X> for Task {
    #[inline(always)]
    fn exchange(
        server: &X,
        access: Access,
        route: Route,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> impl Future<Output = Result<(), Error>> + Send {
        server.exchange_async(access, route, write, receive)
    }
}
