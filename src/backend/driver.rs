//! [`Driver`] and [`AsyncDriver`]: the same backend over connections of the `redis` crate.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::{ConnectionLike, RedisError, Value};

#[cfg(feature = "tokio")]
use super::AsyncExchange;
use super::pool::{Failed, Pool, Wire};
use super::{Access, Exchange, ExchangeSettings, Route};
use crate::engine::chunk::Chunk;
#[cfg(feature = "tokio")]
use crate::engine::replies::Replies;
use crate::engine::replies::{Receive, Token};
use crate::error::{Error, ErrorKind};
use crate::request::HashExpiry;

/// Entries in a Redis server over connections of the `redis` crate, for who has a `redis::Client` or a setup of
/// connections that only that crate can make.
///
/// It sends the same commands as [`Redis`](super::Redis) and means the same by them; a hit costs the `redis` crate's
/// copies and allocations. Timeouts are those of the connections: set them where you make them.
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

/// The servers' own limit.
const MAX_ENTRY: usize = 512 * 1024 * 1024;

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
/// It sends the same commands as [`Redis`](super::Redis) and means the same by them; a hit costs the `redis` crate's
/// copies and allocations, and what is said in our own RESP once more in that crate's terms. Timeouts, and whether a
/// connection that broke is made anew, are the connection's business. Features `driver` and `tokio`.
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
        let (pipeline, replies) = pipeline(write)?;
        if replies == 0 {
            return Ok(());
        }
        let mut connection = self.connection.clone();
        let mut answered = connection.req_packed_commands(&pipeline, 0, replies).await;
        // It says nothing about the server that a connection breaks which was open before.
        if access != Access::Once && matches!(&answered, Err(error) if error.is_connection_dropped()) {
            answered = connection.req_packed_commands(&pipeline, 0, replies).await;
        }
        flatten_all(answered.map_err(|error| driver_error(&error))?, replies, receive)
    }

    fn send(&self, write: impl FnOnce(&mut Vec<u8>) -> usize) {
        let (Ok((pipeline, replies)), Ok(runtime)) = (pipeline(write), tokio::runtime::Handle::try_current()) else {
            return;
        };
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

/// What `write` says in RESP, in the `redis` crate's terms, and how many replies will come. Its asynchronous
/// connections do not take bytes.
#[cfg(feature = "tokio")]
fn pipeline(write: impl FnOnce(&mut Vec<u8>) -> usize) -> Result<(redis::Pipeline, usize), Error> {
    let mut output = Vec::with_capacity(256);
    let count = write(&mut output);
    let output = Bytes::from(output);
    let mut pipeline = redis::Pipeline::with_capacity(count);
    let mut replies = Replies::new(MAX_ENTRY);
    replies.expect(count);
    replies.feed(&mut Chunk::sharing(&output), &mut |token: Token<'_>, _: &mut Chunk<'_>| {
        match token {
            Token::Array(_) => drop(pipeline.add_command(redis::Cmd::new())),
            Token::Bulk(argument) => drop(pipeline.arg(argument)),
            other => return Err(crate::engine::batch::unexpected(other)),
        }
        Ok(())
    })?;
    Ok((pipeline, count))
}

/// Gives `receive` the tokens that make up so many replies.
fn flatten_all(values: Vec<Value>, replies: usize, receive: &mut impl Receive) -> Result<(), Error> {
    if values.len() != replies {
        let message = format!("{} replies came to {replies} commands", values.len());
        return Err(Error::new(ErrorKind::Protocol, message));
    }
    values.into_iter().try_for_each(|value| flatten(value, receive))
}

/// Gives `receive` the tokens that make up `value`.
fn flatten(value: Value, receive: &mut impl Receive) -> Result<(), Error> {
    let mut give =
        |token: fn(&[u8]) -> Token<'_>, bytes: Bytes| receive.token(token(&bytes), &mut Chunk::sharing(&bytes));
    let simple = match value {
        Value::Nil => Token::Nil,
        Value::Int(int) => Token::Int(int),
        Value::Boolean(boolean) => Token::Int(boolean.into()),
        Value::BulkString(bytes) => return give(|text| Token::Bulk(text), bytes.into()),
        Value::VerbatimString { text, .. } => return give(|text| Token::Bulk(text), text.into()),
        Value::Okay => Token::Status(b"OK"),
        Value::SimpleString(text) => return give(|text| Token::Status(text), text.into()),
        Value::Double(double) => return give(|text| Token::Status(text), double.to_string().into()),
        Value::ServerError(error) => {
            let message = format!("{} {}", error.code(), error.details().unwrap_or_default());
            return give(|text| Token::Error(text), message.into());
        }
        Value::Array(members) | Value::Set(members) => {
            receive.token(Token::Array(members.len()), &mut Chunk::sharing(&Bytes::new()))?;
            return members.into_iter().try_for_each(|member| flatten(member, receive));
        }
        Value::Map(pairs) => {
            receive.token(Token::Array(2 * pairs.len()), &mut Chunk::sharing(&Bytes::new()))?;
            return pairs.into_iter().try_for_each(|(key, value)| {
                flatten(key, receive)?;
                flatten(value, receive)
            });
        }
        Value::Attribute { data, .. } => return flatten(*data, receive),
        other => {
            return Err(Error::new(ErrorKind::Protocol, format!("the reply {other:?} is none to a cache's command")));
        }
    };
    receive.token(simple, &mut Chunk::sharing(&Bytes::new()))
}

/// The `redis` crate's error as ours. Its text names no password.
#[cold]
fn driver_error(error: &RedisError) -> Error {
    let kind = if error.is_timeout() {
        ErrorKind::Timeout
    } else if error.kind() == redis::ErrorKind::AuthenticationFailed {
        ErrorKind::Refused
    } else if error.is_io_error() || error.is_connection_dropped() || error.is_connection_refusal() {
        ErrorKind::Connection
    } else {
        ErrorKind::Server
    };
    Error::new(kind, error.to_string())
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
