//! [`Driver`] and [`AsyncDriver`]: backends over connections of the `redis` crate.

mod values;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::{ConnectionLike, RedisError};
#[cfg(feature = "tokio")]
use tokio::runtime::Handle;

use crate::error::Error;
use crate::redis::HashTtl;
use crate::redis::conn::pool::{ExchangeError, Pool, PoolConnection};
use crate::redis::driver::values::{MAX_ENTRY, driver_error, flatten_all};
#[cfg(feature = "tokio")]
use crate::redis::driver::values::{commands, pipeline};
use crate::redis::protocol::parser::Receive;
#[cfg(feature = "tokio")]
use crate::redis::transport::AsyncTransport;
use crate::redis::transport::{Access, Route, Transport, TransportSettings};

/// A backend over blocking connections of the `redis` crate.
///
/// Use it if you already have a `redis::Client`, or if only that crate can set up your connections.
/// Otherwise use [`Redis`](crate::Redis), which sends the same commands with the same effects.
///
/// Timeouts are those of the connections: set them in the closure that opens a connection. A
/// connection to a cluster does not work here; use [`Cluster`](crate::Cluster).
///
/// This type needs the feature `driver`. A handle is cheap to clone, and clones share the
/// connections.
///
/// # Cost
/// A hit is one round trip, with the copies and allocations of the `redis` crate.
///
/// ```no_run
/// use std::time::Duration;
/// use dogpile::redis::Driver;
/// use dogpile::Region;
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
pub struct Driver<C = redis::Connection>(Arc<DriverInner<C>>);

struct DriverInner<C> {
    pool: Pool<DriverConnection<C>>,
    connect: Box<dyn Fn() -> Result<C, RedisError> + Send + Sync>,
    hash_ttl: HashTtl,
}

struct DriverConnection<C> {
    inner: C,
    output: Vec<u8>,
}

impl<C: ConnectionLike + Send + 'static> Driver<C> {
    /// Creates a backend that opens up to `connections` connections with `connect`.
    ///
    /// A connection is opened when it is first needed. Zero counts as one. If all connections are
    /// in use, a caller waits for one, at most for one second.
    pub fn new(connections: usize, connect: impl Fn() -> Result<C, RedisError> + Send + Sync + 'static) -> Self {
        let pool = Pool::new(connections.max(1), Duration::from_secs(1), Duration::from_secs(1));
        Driver(Arc::new(DriverInner { pool, connect: Box::new(connect), hash_ttl: HashTtl::default() }))
    }

    /// Sets how the fields of hashes expire. Default: [`HashTtl::OnCreate`].
    ///
    /// # Panics
    /// If the backend was cloned before.
    ///
    /// ```no_run
    /// use dogpile::HashTtl;
    /// use dogpile::redis::Driver;
    ///
    /// let client = redis::Client::open("redis://127.0.0.1/")?;
    /// let driver = Driver::new(8, move || client.get_connection()).hash_ttl(HashTtl::Always);
    /// # let _ = driver;
    /// # Ok::<(), redis::RedisError>(())
    /// ```
    #[must_use]
    pub fn hash_ttl(mut self, hash_ttl: HashTtl) -> Self {
        let inner = Arc::get_mut(&mut self.0).expect("`hash_ttl` must be called before the driver is cloned");
        inner.hash_ttl = hash_ttl;
        self
    }

    fn connect(&self) -> Result<DriverConnection<C>, Error> {
        let inner =
            (self.0.connect)().map_err(|error| driver_error(&error).during("connecting with the redis crate"))?;
        Ok(DriverConnection { inner, output: Vec::with_capacity(512) })
    }
}

impl<C: ConnectionLike + Send + 'static> Transport for Driver<C> {
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

impl<C: ConnectionLike + Send + 'static> TransportSettings for Driver<C> {
    fn hash_ttl(&self) -> HashTtl {
        self.0.hash_ttl
    }

    fn max_entry(&self) -> usize {
        MAX_ENTRY
    }
}

impl<C: ConnectionLike> PoolConnection for DriverConnection<C> {
    fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    fn is_closed(&mut self) -> bool {
        !self.inner.is_open()
    }

    /// Does nothing: a connection of the `redis` crate sends and receives in one call.
    fn send(&mut self) -> Result<(), ExchangeError> {
        Ok(())
    }

    fn receive(&mut self, replies: usize, receive: &mut impl Receive) -> Result<(), ExchangeError> {
        let fail = |error, broke_early| ExchangeError { error, broke_early };
        let values = self
            .inner
            .req_packed_commands(&self.output, 0, replies)
            .map_err(|error| fail(driver_error(&error), error.is_connection_dropped()))?;
        flatten_all(values, replies, receive).map_err(|error| fail(error, false))
    }
}

/// A backend over an asynchronous connection of the `redis` crate that many tasks share.
///
/// Use it if your service already has a `MultiplexedConnection` or a `ConnectionManager`. Otherwise
/// use [`Redis`](crate::Redis), which sends the same commands with the same effects.
///
/// The connection determines the timeouts and whether it reconnects. An asynchronous connection to
/// a cluster has a fitting type, but does not work here, since requests are not split by slot; use
/// [`Cluster`](crate::Cluster).
///
/// This type needs the features `driver` and `tokio`. A clone uses the same connection.
///
/// # Cost
/// A hit is one round trip, with the copies and allocations of the `redis` crate. In addition, each
/// request is converted from RESP to commands of that crate.
///
/// ```no_run
/// use dogpile::redis::AsyncDriver;
/// use dogpile::Region;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = redis::Client::open("redis://127.0.0.1/")?;
/// let connection = client.get_multiplexed_async_connection().await?;
/// let region = Region::builder(AsyncDriver::new(connection)).build()?;
/// let name: Option<String> = region.get_async("user-15|name").await?;
/// # Ok(())
/// # }
/// ```
#[cfg(feature = "tokio")]
#[derive(Clone)]
pub struct AsyncDriver<C = redis::aio::MultiplexedConnection> {
    connection: C,
    hash_ttl: HashTtl,
}

#[cfg(feature = "tokio")]
impl<C: redis::aio::ConnectionLike + Clone + Send + Sync + 'static> AsyncDriver<C> {
    /// Creates a backend over a connection whose clones share one socket.
    pub fn new(connection: C) -> Self {
        AsyncDriver { connection, hash_ttl: HashTtl::default() }
    }

    /// Sets how the fields of hashes expire. Default: [`HashTtl::OnCreate`].
    ///
    /// ```no_run
    /// use dogpile::HashTtl;
    /// use dogpile::redis::AsyncDriver;
    ///
    /// # async fn example() -> Result<(), redis::RedisError> {
    /// let client = redis::Client::open("redis://127.0.0.1/")?;
    /// let connection = client.get_multiplexed_async_connection().await?;
    /// let driver = AsyncDriver::new(connection).hash_ttl(HashTtl::Always);
    /// # let _ = driver;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn hash_ttl(mut self, hash_ttl: HashTtl) -> Self {
        self.hash_ttl = hash_ttl;
        self
    }
}

#[cfg(feature = "tokio")]
impl<C: redis::aio::ConnectionLike + Clone + Send + Sync + 'static> AsyncTransport for AsyncDriver<C> {
    type Exec = crate::exec::Async;

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
        let mut result = connection.req_packed_commands(&pipeline, 0, replies).await;
        // The loss of a connection that was open before does not mean that the server is down.
        if access != Access::Once && matches!(&result, Err(error) if error.is_connection_dropped()) {
            result = connection.req_packed_commands(&pipeline, 0, replies).await;
        }
        flatten_all(result.map_err(|error| driver_error(&error))?, replies, receive)
    }

    fn send(&self, write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync) -> Result<(), Error> {
        let mut resp = Vec::with_capacity(256);
        let replies = write(&mut resp);
        let (Ok(commands), Ok(runtime)) = (commands(&resp, replies), Handle::try_current()) else { return Ok(()) };
        let pipeline = pipeline(commands);
        let mut connection = self.connection.clone();
        runtime.spawn(async move { connection.req_packed_commands(&pipeline, 0, replies).await });
        Ok(())
    }
}

#[cfg(feature = "tokio")]
impl<C: redis::aio::ConnectionLike + Clone + Send + Sync + 'static> TransportSettings for AsyncDriver<C> {
    fn hash_ttl(&self) -> HashTtl {
        self.hash_ttl
    }

    fn max_entry(&self) -> usize {
        MAX_ENTRY
    }
}

#[cfg(feature = "tokio")]
impl<C> fmt::Debug for AsyncDriver<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncDriver").field("hash_ttl", &self.hash_ttl).finish_non_exhaustive()
    }
}

impl<C> Clone for Driver<C> {
    fn clone(&self) -> Self {
        Driver(Arc::clone(&self.0))
    }
}

impl<C> fmt::Debug for Driver<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("hash_ttl", &self.0.hash_ttl).finish_non_exhaustive()
    }
}
