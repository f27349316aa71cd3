//! Conversions between this crate's commands, replies and errors and those of the `redis` crate.

use bytes::Bytes;
#[cfg(feature = "tokio")]
use bytes::BytesMut;
#[cfg(feature = "tokio")]
use redis::{Cmd, Pipeline};
use redis::{RedisError, ServerErrorKind, Value};

use crate::error::{Error, ErrorKind};
#[cfg(feature = "tokio")]
use crate::redis::protocol::batch::unexpected;
use crate::redis::protocol::batch::without_arguments;
use crate::redis::protocol::chunk::Chunk;
#[cfg(feature = "tokio")]
use crate::redis::protocol::parser::Parser;
use crate::redis::protocol::parser::{Receive, Token};

/// The size limit of a string in Redis.
pub(crate) const MAX_ENTRY: usize = 512 * 1024 * 1024;

/// Converts `count` commands from RESP to commands of the `redis` crate.
///
/// The asynchronous connections of that crate do not accept RESP as bytes.
#[cfg(feature = "tokio")]
pub(crate) fn commands(resp: &[u8], count: usize) -> Result<Vec<Cmd>, Error> {
    let mut commands: Vec<Cmd> = Vec::with_capacity(count);
    let mut parser = Parser::new(MAX_ENTRY);
    parser.expect(count);
    // Commands have the syntax of replies. Nothing keeps their bytes, so the chunk needs no shared
    // buffer.
    parser.feed(&mut Chunk::copying(resp, &mut BytesMut::new()), &mut |token: Token<'_>, _: &mut Chunk<'_>| {
        match (token, commands.last_mut()) {
            (Token::Array(_), _) => commands.push(Cmd::new()),
            (Token::Bulk(argument), Some(command)) => drop(command.arg(argument)),
            (other, _) => return Err(unexpected(other)),
        }
        Ok(())
    })?;
    Ok(commands)
}

/// Collects commands into a pipeline.
#[cfg(feature = "tokio")]
pub(crate) fn pipeline(commands: impl IntoIterator<Item = Cmd>) -> Pipeline {
    let mut pipeline = Pipeline::new();
    for command in commands {
        pipeline.add_command(command);
    }
    pipeline
}

/// Gives `receive` the tokens of `values`, which must be `replies` replies.
pub(crate) fn flatten_all(values: Vec<Value>, replies: usize, receive: &mut impl Receive) -> Result<(), Error> {
    if values.len() != replies {
        let message = format!("unexpected reply from the server: {} replies to {replies} commands", values.len());
        return Err(Error::new(ErrorKind::Protocol, message));
    }
    values.into_iter().try_for_each(|value| flatten(value, receive))
}

/// Gives `receive` the tokens of one value.
pub(crate) fn flatten(value: Value, receive: &mut impl Receive) -> Result<(), Error> {
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
            return Err(Error::new(ErrorKind::Protocol, format!("unexpected reply from the server: {other:?}")));
        }
    };
    receive.token(simple, &mut Chunk::sharing(&Bytes::new()))
}

/// Converts an error of the `redis` crate.
///
/// Servers quote the arguments of a refused command, which may include the password, so these are
/// cut off.
#[cold]
pub(crate) fn driver_error(error: &RedisError) -> Error {
    let mut message = error.to_string();
    message.truncate(without_arguments(message.as_bytes()).len());
    let is = |kind: redis::ErrorKind| error.kind() == kind;
    if error.is_timeout() {
        Error::new(ErrorKind::Timeout, message).during("waiting for the server's reply")
    } else if is(redis::ErrorKind::AuthenticationFailed) || message.contains("AuthenticationFailed") {
        // After trying several servers, the `redis` crate reports the refusal only in the text.
        Error::new(ErrorKind::Refused, message)
    } else if error.is_io_error()
        || error.is_connection_dropped()
        || error.is_connection_refusal()
        || is(redis::ErrorKind::ClusterConnectionNotFound)
        || is(ServerErrorKind::ClusterDown.into())
    {
        Error::new(ErrorKind::Connection, message)
    } else {
        Error::new(ErrorKind::Server, message)
    }
}
