//! [`Driver`]: the same backend over blocking connections of the `redis` crate.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::{ConnectionLike, RedisError, Value};

use super::pool::{Failed, Pool, Wire};
use super::{Access, Exchange};
use crate::engine::chunk::Chunk;
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
        let pool = Pool::new(connections.max(1), Duration::from_secs(1));
        Driver(Arc::new(Shared { pool, connect: Box::new(connect), hash_expiry: HashExpiry::default() }))
    }

    /// Changes when hashes get their TTL. Default: [`HashExpiry::OnCreate`].
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
        write: impl FnOnce(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error> {
        self.0.pool.exchange(access, || self.connect(), write, receive)
    }

    fn hash_expiry(&self) -> HashExpiry {
        self.0.hash_expiry
    }

    fn max_entry(&self) -> usize {
        512 * 1024 * 1024
    }
}

impl<C: ConnectionLike> Wire for Connection<C> {
    fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    fn is_closed(&mut self) -> bool {
        !self.inner.is_open()
    }

    fn exchange(&mut self, replies: usize, receive: &mut impl Receive) -> Result<(), Failed> {
        let fail = |error, broke_early| Failed { error, broke_early };
        let values = self
            .inner
            .req_packed_commands(&self.output, 0, replies)
            .map_err(|error| fail(driver_error(&error), error.is_connection_dropped()))?;
        if values.len() != replies {
            let message = format!("{} replies came to {replies} commands", values.len());
            return Err(fail(Error::new(ErrorKind::Protocol, message), false));
        }
        values.into_iter().try_for_each(|value| flatten(value, receive)).map_err(|error| fail(error, false))
    }
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
