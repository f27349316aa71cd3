//! [`Driver`] and [`AsyncDriver`]: the same backend over connections of the `redis` crate.

mod values;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::{ConnectionLike, RedisError};
#[cfg(feature = "tokio")]
use tokio::runtime::Handle;

use crate::error::Error;
use crate::redis::HashExpiry;
use crate::redis::conn::pool::{Failed, Pool, Wire};
use crate::redis::driver::values::{MAX_ENTRY, driver_error, flatten_all};
#[cfg(feature = "tokio")]
use crate::redis::driver::values::{commands, pipeline};
use crate::redis::protocol::parser::Receive;
#[cfg(feature = "tokio")]
use crate::redis::transport::AsyncExchange;
use crate::redis::transport::{Access, Exchange, ExchangeSettings, Route};

/// Entries in a Redis server over connections of the `redis` crate, for who has a `redis::Client` or a setup of
/// connections that only that crate can make.
///
/// It sends the same commands as [`Redis`](crate::redis::Redis) and means the same by them; a hit costs the `redis` crate's
/// copies and allocations. Timeouts are those of the connections: set them where you make them. A cluster's connection is
/// none of these: use [`Cluster`](crate::redis::topology::cluster::Cluster).
///
/// ```no_run
/// use std::time::Duration;
/// use dogpile::{Driver, Region};
///
/// let client = redis::Client::open("redis://127.0.0.1/")?;
/// let driver = Driver::new(8, move || {
///     let connection = client.get_connection_with_timeout(Duration::from_secs(1))?;
///     connection.set_read_timeout(Some(Duration::from_secs(1)))?;
///     connection.set_write_timeout(Some(Duration::from_secs(1)))?;
///     Ok(connection)
/// });
/// let region = Region::builder(driver).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Driver<C = redis::Connection>(Arc<Shared<C>>);

struct Shared<C> {
    pool: Pool<Connection<C>>,
    connect: Box<dyn Fn() -> Result<C, RedisError> + Send + Sync>,
    hash_expiry: HashExpiry,
}

struct Connection<C> {
    inner: C,
    output: Vec<u8>,
}

impl<C: ConnectionLike + Send + 'static> Driver<C> {
    /// A backend that opens up to `connections` connections by `connect`, each when it is first needed. At least one.
    pub fn new(connections: usize, connect: impl Fn() -> Result<C, RedisError> + Send + Sync + 'static) -> Self {
        let pool = Pool::new(connections.max(1), Duration::from_secs(1), Duration::from_secs(1));
        Driver(Arc::new(Shared { pool, connect: Box::new(connect), hash_expiry: HashExpiry::default() }))
    }

    /// Changes how long fields of hashes live. Default: [`HashExpiry::OnCreate`].
    ///
    /// # Panics
    /// When the backend was cloned before.
    #[must_use]
    pub fn hash_expiry(mut self, hash_expiry: HashExpiry) -> Self {
        let shared = Arc::get_mut(&mut self.0).expect("a driver is set up before it is cloned");
        shared.hash_expiry = hash_expiry;
        self
    }

    fn connect(&self) -> Result<Connection<C>, Error> {
        let inner = (self.0.connect)().map_err(|error| driver_error(&error).during("connecting"))?;
        Ok(Connection { inner, output: Vec::with_capacity(512) })
    }
}

impl<C: ConnectionLike + Send + 'static> Exchange for Driver<C> {
    fn exchange(
        &self,
        access: Access,
        _: Route,
        write: impl Fn(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error> {
        self.0.pool.exchange(access, || self.connect(), write, receive)
    }
}

impl<C: ConnectionLike + Send + 'static> ExchangeSettings for Driver<C> {
    fn hash_expiry(&self) -> HashExpiry {
        self.0.hash_expiry
    }

    fn max_entry(&self) -> usize {
        MAX_ENTRY
    }
}

impl<C: ConnectionLike> Wire for Connection<C> {
    fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    fn is_closed(&mut self) -> bool {
        !self.inner.is_open()
    }

    /// Its connections send and receive at once.
    fn send(&mut self) -> Result<(), Failed> {
        Ok(())
    }

    fn receive(&mut self, replies: usize, receive: &mut impl Receive) -> Result<(), Failed> {
        let fail = |error, broke_early| Failed { error, broke_early };
        let values = self
            .inner
            .req_packed_commands(&self.output, 0, replies)
            .map_err(|error| fail(driver_error(&error), error.is_connection_dropped()))?;
        flatten_all(values, replies, receive).map_err(|error| fail(error, false))
    }
}

/// Entries in a Redis server over an asynchronous connection of the `redis` crate that many tasks share: a
/// `MultiplexedConnection` or a `ConnectionManager`. For a service that has one already.
///
/// It sends the same commands as [`Redis`](crate::redis::Redis) and means the same by them; a hit costs the `redis` crate's
/// copies and allocations, and what is said in our own RESP once more in that crate's terms. Timeouts, and whether a
/// connection that broke is made anew, are the connection's business. A cluster's connection is none of these, though its
/// type fits: keys would not be divided by their slots. Use [`Cluster`](crate::redis::topology::cluster::Cluster) there. Features `driver` and `tokio`.
///
/// ```no_run
/// use dogpile::{AsyncDriver, Region};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = redis::Client::open("redis://127.0.0.1/")?;
/// let region = Region::builder(AsyncDriver::new(client.get_multiplexed_async_connection().await?)).build()?;
/// let name: Option<String> = region.get_async("user-15|name").await?;
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "tokio")]
#[derive(Clone)]
pub struct AsyncDriver<C = redis::aio::MultiplexedConnection> {
    connection: C,
    hash_expiry: HashExpiry,
}

#[cfg(feature = "tokio")]
impl<C: redis::aio::ConnectionLike + Clone + Send + Sync + 'static> AsyncDriver<C> {
    /// A backend over a connection whose clones are the same connection.
    pub fn new(connection: C) -> Self {
        AsyncDriver { connection, hash_expiry: HashExpiry::default() }
    }

    /// Changes how long fields of hashes live. Default: [`HashExpiry::OnCreate`].
    #[must_use]
    pub fn hash_expiry(mut self, hash_expiry: HashExpiry) -> Self {
        self.hash_expiry = hash_expiry;
        self
    }
}

#[cfg(feature = "tokio")]
impl<C: redis::aio::ConnectionLike + Clone + Send + Sync + 'static> AsyncExchange for AsyncDriver<C> {
    async fn exchange_async(
        &self,
        access: Access,
        _: Route,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> Result<(), Error> {
        let mut resp = Vec::with_capacity(256);
        let replies = write(&mut resp);
        if replies == 0 {
            return Ok(());
        }
        let pipeline = pipeline(commands(&resp, replies)?);
        let mut connection = self.connection.clone();
        let mut answered = connection.req_packed_commands(&pipeline, 0, replies).await;
        // It says nothing about the server that a connection breaks which was open before.
        if access != Access::Once && matches!(&answered, Err(error) if error.is_connection_dropped()) {
            answered = connection.req_packed_commands(&pipeline, 0, replies).await;
        }
        flatten_all(answered.map_err(|error| driver_error(&error))?, replies, receive)
    }

    fn send(&self, write: impl FnOnce(&mut Vec<u8>) -> usize) {
        let mut resp = Vec::with_capacity(256);
        let replies = write(&mut resp);
        let (Ok(commands), Ok(runtime)) = (commands(&resp, replies), Handle::try_current()) else { return };
        let pipeline = pipeline(commands);
        let mut connection = self.connection.clone();
        runtime.spawn(async move { connection.req_packed_commands(&pipeline, 0, replies).await });
    }
}

#[cfg(feature = "tokio")]
impl<C: redis::aio::ConnectionLike + Clone + Send + Sync + 'static> ExchangeSettings for AsyncDriver<C> {
    fn hash_expiry(&self) -> HashExpiry {
        self.hash_expiry
    }

    fn max_entry(&self) -> usize {
        MAX_ENTRY
    }
}

#[cfg(feature = "tokio")]
impl<C> fmt::Debug for AsyncDriver<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncDriver").field("hash_expiry", &self.hash_expiry).finish_non_exhaustive()
    }
}

impl<C> Clone for Driver<C> {
    fn clone(&self) -> Self {
        Driver(Arc::clone(&self.0))
    }
}

impl<C> fmt::Debug for Driver<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("hash_expiry", &self.0.hash_expiry).finish_non_exhaustive()
    }
}
