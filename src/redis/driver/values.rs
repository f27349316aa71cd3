//! The `redis` crate's values, commands and errors, and ours.

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
use crate::redis::protocol::parser::Replies;
use crate::redis::protocol::parser::{Receive, Token};

/// The servers' own limit.
pub(crate) const MAX_ENTRY: usize = 512 * 1024 * 1024;

/// So many commands in RESP, in the `redis` crate's terms. Its asynchronous connections do not take bytes.
#[cfg(feature = "tokio")]
pub(crate) fn commands(resp: &[u8], count: usize) -> Result<Vec<Cmd>, Error> {
    let mut commands: Vec<Cmd> = Vec::with_capacity(count);
    let mut replies = Replies::new(MAX_ENTRY);
    replies.expect(count);
    // Commands look as replies do, and nothing of them is kept.
    replies.feed(&mut Chunk::copying(resp, &mut BytesMut::new()), &mut |token: Token<'_>, _: &mut Chunk<'_>| {
        match (token, commands.last_mut()) {
            (Token::Array(_), _) => commands.push(Cmd::new()),
            (Token::Bulk(argument), Some(command)) => drop(command.arg(argument)),
            (other, _) => return Err(unexpected(other)),
        }
        Ok(())
    })?;
    Ok(commands)
}

/// Commands as a pipeline.
#[cfg(feature = "tokio")]
pub(crate) fn pipeline(commands: impl IntoIterator<Item = Cmd>) -> Pipeline {
    let mut pipeline = Pipeline::new();
    for command in commands {
        pipeline.add_command(command);
    }
    pipeline
}

/// Gives `receive` the tokens that make up so many replies.
pub(crate) fn flatten_all(values: Vec<Value>, replies: usize, receive: &mut impl Receive) -> Result<(), Error> {
    if values.len() != replies {
        let message = format!("{} replies came to {replies} commands", values.len());
        return Err(Error::new(ErrorKind::Protocol, message));
    }
    values.into_iter().try_for_each(|value| flatten(value, receive))
}

/// Gives `receive` the tokens that make up `value`.
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
            return Err(Error::new(ErrorKind::Protocol, format!("the reply {other:?} is none to a cache's command")));
        }
    };
    receive.token(simple, &mut Chunk::sharing(&Bytes::new()))
}

/// The `redis` crate's error as ours. What a server repeats of what it was told, which may be the password, is cut off.
#[cold]
pub(crate) fn driver_error(error: &RedisError) -> Error {
    let mut said = error.to_string();
    said.truncate(without_arguments(said.as_bytes()).len());
    let is = |kind: redis::ErrorKind| error.kind() == kind;
    if error.is_timeout() {
        Error::new(ErrorKind::Timeout, said).during("no answer in time")
    } else if is(redis::ErrorKind::AuthenticationFailed) || said.contains("AuthenticationFailed") {
        // Of several servers that were tried it is told in words only.
        Error::new(ErrorKind::Refused, said)
    } else if error.is_io_error()
        || error.is_connection_dropped()
        || error.is_connection_refusal()
        || is(redis::ErrorKind::ClusterConnectionNotFound)
        || is(ServerErrorKind::ClusterDown.into())
    {
        Error::new(ErrorKind::Connection, said)
    } else {
        Error::new(ErrorKind::Server, said)
    }
}
