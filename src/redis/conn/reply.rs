//! [`ReplyReader`] collects the replies to rare commands, such as `HELLO`, as flat lists of values.

use crate::error::Error;
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::parser::{Receive, Token};

/// A value of a reply, as an owned copy. An array is its length, followed by its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Nil,
    Text(Vec<u8>),
    Int(i64),
    Error(Vec<u8>),
    Array(usize),
}

/// The number of values that are kept of one reply. The rest is dropped.
///
/// This is enough for `CLUSTER SLOTS` of a cluster in which each slot is a range of its own.
const MAX_VALUES: usize = 1 << 20;

/// The replies to some commands, up to where the connection broke.
#[derive(Default)]
pub(crate) struct ReplyReader {
    replies: Vec<Vec<Reply>>,
    /// The number of values that the last reply still misses.
    left: usize,
}

impl Receive for ReplyReader {
    fn token(&mut self, token: Token<'_>, _: &mut Chunk<'_>) -> Result<(), Error> {
        let value = match token {
            Token::Nil => Reply::Nil,
            Token::Bulk(text) | Token::Status(text) => Reply::Text(text.to_vec()),
            Token::Int(int) => Reply::Int(int),
            Token::Error(error) => Reply::Error(error.to_vec()),
            Token::Array(members) => Reply::Array(members),
        };
        if self.left == 0 {
            self.replies.push(Vec::new());
            self.left = 1;
        }
        self.left = (self.left - 1).saturating_add(value.members());
        if let Some(values) = self.replies.last_mut().filter(|values| values.len() < MAX_VALUES) {
            values.push(value);
        }
        Ok(())
    }
}

impl ReplyReader {
    /// Returns the replies in order. The last one may be incomplete.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[Reply]> {
        self.replies.iter().map(Vec::as_slice)
    }

    /// Returns the first reply if it is an error.
    pub(crate) fn first_error(&self) -> Option<&[u8]> {
        match self.replies.first().map(Vec::as_slice) {
            Some([Reply::Error(error)]) => Some(error),
            _ => None,
        }
    }
}

impl Reply {
    /// Returns the number of members that follow.
    fn members(&self) -> usize {
        if let Reply::Array(members) = self { *members } else { 0 }
    }
}

/// Returns the fields of a map by name. Values with members, such as `modules` of `HELLO`, are
/// skipped.
///
/// RESP2 sends a map as an array of alternating names and values.
pub(crate) fn pairs(reply: &[Reply]) -> impl Iterator<Item = (&[u8], &Reply)> {
    let mut rest = reply.get(1..).unwrap_or_default();
    std::iter::from_fn(move || {
        loop {
            if let ([Reply::Text(name)], [value]) = (take_value(&mut rest)?, take_value(&mut rest)?) {
                return Some((&name[..], value));
            }
        }
    })
}

/// Returns the text of the field `wanted` of a map, unless it is empty.
pub(crate) fn text<'s>(reply: &'s [Reply], wanted: &[u8]) -> Option<&'s [u8]> {
    match pairs(reply).find(|(name, _)| *name == wanted) {
        Some((_, Reply::Text(text))) if !text.is_empty() => Some(text),
        _ => None,
    }
}

/// Returns the members of an array, or nothing if the reply is not an array.
pub(crate) fn members(reply: &[Reply]) -> impl Iterator<Item = &[Reply]> {
    let mut rest = if let [Reply::Array(_), rest @ ..] = reply { rest } else { &[] };
    std::iter::from_fn(move || take_value(&mut rest))
}

/// Removes the next value, with all its members, from the front.
fn take_value<'s>(rest: &mut &'s [Reply]) -> Option<&'s [Reply]> {
    let (mut length, mut left) = (0, 1_usize);
    while left > 0 {
        left = (left - 1).saturating_add(rest.get(length)?.members());
        length += 1;
    }
    let value;
    (value, *rest) = rest.split_at(length);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::protocol::parser::Parser;

    /// Parses `count` replies and formats the fields of each.
    fn read(count: usize, resp: &str) -> Vec<String> {
        let input = bytes::Bytes::copy_from_slice(resp.as_bytes());
        let (mut parser, mut reader) = (Parser::new(1 << 16), ReplyReader::default());
        parser.expect(count);
        parser.feed(&mut Chunk::sharing(&input), &mut reader).unwrap();
        let shown = |reply| pairs(reply).map(|(name, value)| format!("{} {value:?}; ", name.escape_ascii())).collect();
        reader.iter().map(shown).collect()
    }

    #[test]
    fn reads_map_fields_and_skips_nested_values() {
        // Redis 8.0 has built-in modules. The names in a nested map are not fields of the outer
        // one.
        let hello = "%4\r\n$4\r\nmode\r\n$7\r\ncluster\r\n$7\r\nmodules\r\n*1\r\n%2\r\n$4\r\nmode\r\n*0\r\n+ver\r\n:1\r\n\
            +proto\r\n:3\r\n$4\r\nrole\r\n_\r\n";
        let fields = "mode Text([99, 108, 117, 115, 116, 101, 114]); proto Int(3); role Nil; ";
        assert_eq!(read(1, hello), [fields]);
        let flat = hello.replacen("%4", "*8", 1).replacen("%2", "*4", 1).replace("_\r", "$-1\r");
        assert_eq!(read(1, &flat), [fields]);
        assert_eq!(read(3, &format!("+OK\r\n{hello}-ERR no\r\n")), ["", fields, ""]);
        // Missing values, and replies that are not maps.
        assert_eq!(read(1, "*3\r\n+a\r\n:1\r\n+b\r\n"), ["a Int(1); "]);
        assert_eq!(read(4, "*0\r\n*-1\r\n:1\r\n%1\r\n*1\r\n+a\r\n:2\r\n"), ["", "", "", ""]);
        assert_eq!(read(1, "%2\r\n+a\r\n"), [""], "an incomplete value is not returned");
        // A reply that is too long is truncated, and the next one is still found.
        let endless = format!("*100000\r\n{}+OK\r\n", ":1\r\n".repeat(100_000));
        assert_eq!(read(2, &endless).len(), 2);
    }

    #[test]
    fn first_error_is_the_reply_to_the_first_command() {
        let first_error = |reply: Vec<Reply>| {
            ReplyReader { replies: vec![reply, vec![Reply::Nil]], left: 0 }.first_error().map(<[_]>::to_vec)
        };
        assert_eq!(first_error(vec![Reply::Error(b"ERR".to_vec())]), Some(b"ERR".to_vec()));
        assert_eq!(first_error(vec![Reply::Array(1), Reply::Error(b"ERR".to_vec())]), None);
        assert_eq!(ReplyReader::default().first_error(), None);
    }
}
