//! [`AsyncClusterDriver`]: the servers of a cluster over an asynchronous connection of the `redis` crate.

use std::fmt;
use std::sync::Arc;

use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, ServerErrorKind, Value};
use tokio::runtime::Handle;

use super::slots::{Primaries, ask_primaries, at};
use super::values::{MAX_ENTRY, commands, driver_error, flatten_all, pipeline};
use crate::backend::all::all;
use crate::backend::{Access, AsyncExchange, ExchangeSettings, Route};
use crate::engine::replies::Receive;
use crate::engine::route::cut;
use crate::error::Error;
use crate::request::HashExpiry;

/// Entries in a Redis or Valkey cluster over an asynchronous connection of the `redis` crate that many tasks share. For a
/// service that has one already.
#[derive(Clone)]
pub struct AsyncClusterDriver {
    connection: ClusterConnection,
    primaries: Arc<Primaries>,
    hash_expiry: HashExpiry,
}

impl AsyncClusterDriver {
    /// A backend over a connection whose clones are the same connection.
    pub fn new(connection: ClusterConnection) -> Self {
        AsyncClusterDriver { connection, primaries: Arc::default(), hash_expiry: HashExpiry::default() }
    }

    /// Changes how long fields of hashes live. Default: [`HashExpiry::OnCreate`].
    #[must_use]
    pub fn hash_expiry(mut self, hash_expiry: HashExpiry) -> Self {
        self.hash_expiry = hash_expiry;
        self
    }

    /// The replies to so many commands about keys of any slots: all slots are asked at the same time.
    async fn ask_many(&self, access: Access, resp: Vec<u8>, count: usize) -> Result<Vec<Value>, Error> {
        let slots: Vec<u16> = cut(&resp, count)?.into_iter().map(|(_, slot)| slot).collect();
        let mut commands: Vec<(usize, Cmd)> = commands(resp, count)?.into_iter().enumerate().collect();
        commands.sort_by_key(|(number, _)| slots[*number]);
        // What goes once only is not sent again because of another one.
        let are_together = |a: usize, b: usize| access != Access::Once && slots[a] == slots[b];
        let groups: Vec<&[(usize, Cmd)]> = commands.chunk_by(|a, b| are_together(a.0, b.0)).collect();
        let asked = groups.iter().map(|group| {
            let commands = group.iter().map(|(_, command)| command.clone()).collect();
            self.ask_slot(access, slots[group[0].0], commands)
        });
        let mut replies = vec![Value::Nil; count];
        for (group, answered) in groups.iter().zip(all(asked.collect()).await) {
            group.iter().zip(answered?).for_each(|((number, _), reply)| replies[*number] = reply);
        }
        Ok(replies)
    }

    /// The replies to commands about keys of one slot.
    async fn ask_slot(&self, access: Access, slot: u16, commands: Vec<Cmd>) -> Result<Vec<Value>, Error> {
        let at = at(slot, access);
        if commands.len() > 1
            && let Some(replies) = self.transact(at.clone(), &commands).await?
        {
            return Ok(replies);
        }
        let mut replies = Vec::with_capacity(commands.len());
        for command in commands {
            replies.push(self.ask_alone(at.clone(), command).await?);
        }
        Ok(replies)
    }

    async fn ask_alone(&self, at: SingleNodeRoutingInfo, command: Cmd) -> Result<Value, Error> {
        let answered = self.connection.clone().route_command(command, RoutingInfo::SingleNode(at)).await;
        answered.map_err(|error| driver_error(&error))
    }

    /// The replies to commands about keys of one slot, or `None` where a server does not take all of them.
    ///
    /// When a server sends one command of a pipeline elsewhere, the connection sends all of them there. So it would do
    /// again what was done, at a server that may not have the other keys. In a transaction nothing is done then.
    async fn transact(&self, at: SingleNodeRoutingInfo, commands: &[Cmd]) -> Result<Option<Vec<Value>>, Error> {
        let mut transaction = pipeline(commands.iter().cloned());
        transaction.atomic();
        let answered = self.connection.clone().route_pipeline(transaction, 1 + commands.len(), 1, at).await;
        match answered.map(|mut replies| replies.pop()) {
            Ok(Some(Value::Array(replies))) => Ok(Some(replies)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ServerErrorKind::ExecAbort.into() => Ok(None),
            Err(error) => Err(driver_error(&error)),
        }
    }

    /// The replies of one of the primaries, whatever they say.
    async fn ask_primary(&self, number: usize, resp: Vec<u8>, count: usize) -> Result<Vec<Value>, Error> {
        let mut connection = self.connection.clone();
        if number == 0 {
            let random = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
            self.primaries.learn(connection.route_command(ask_primaries(), random).await)?;
        }
        let at = at(self.primaries.slot(number)?, Access::Write);
        let asked = connection.route_pipeline(pipeline(commands(resp, count)?), 0, count, at).await;
        asked.map_err(|error| driver_error(&error))
    }
}

impl AsyncExchange for AsyncClusterDriver {
    async fn exchange_async(
        &self,
        access: Access,
        route: Route,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> Result<(), Error> {
        let mut resp = Vec::with_capacity(256);
        let count = write(&mut resp);
        if count == 0 {
            return Ok(());
        }
        let replies = match route {
            Route::Slot(slot) => self.ask_slot(access, slot, commands(resp, count)?).await?,
            Route::Keys => self.ask_many(access, resp, count).await?,
            Route::Primary(number) => self.ask_primary(number, resp, count).await?,
        };
        flatten_all(replies, count, receive)
    }

    fn send(&self, write: impl FnOnce(&mut Vec<u8>) -> usize) {
        let mut resp = Vec::with_capacity(256);
        let count = write(&mut resp);
        let Ok(runtime) = Handle::try_current() else { return };
        let driver = self.clone();
        runtime.spawn(async move { driver.ask_many(Access::Write, resp, count).await });
    }
}

impl ExchangeSettings for AsyncClusterDriver {
    fn hash_expiry(&self) -> HashExpiry {
        self.hash_expiry
    }

    fn max_entry(&self) -> usize {
        MAX_ENTRY
    }

    fn is_cluster(&self) -> bool {
        true
    }

    fn primaries(&self) -> usize {
        self.primaries.count()
    }
}

impl fmt::Debug for AsyncClusterDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncClusterDriver").field("hash_expiry", &self.hash_expiry).finish_non_exhaustive()
    }
}
