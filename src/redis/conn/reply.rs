//! [`ReplyReader`]: replies to what is seldom asked, such as what a server is, each as a flat list of what was said.

use crate::error::Error;
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::parser::{Receive, Token};

/// A token that was kept. An array is its length, followed by its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Nil,
    Text(Vec<u8>),
    Int(i64),
    Error(Vec<u8>),
    Array(usize),
}

/// Of a reply that says more, the rest is of no interest. It is enough for a cluster whose slots are all in ranges of their
/// own.
const MOST: usize = 1 << 20;

/// Parser, as far as they came.
#[derive(Default)]
pub(crate) struct ReplyReader {
    replies: Vec<Vec<Reply>>,
    /// Values still to come of the last one.
    left: usize,
}

impl Receive for ReplyReader {
    fn token(&mut self, token: Token<'_>, _: &mut Chunk<'_>) -> Result<(), Error> {
        let said = match token {
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
        self.left = (self.left - 1).saturating_add(said.members());
        if let Some(reply) = self.replies.last_mut().filter(|reply| reply.len() < MOST) {
            reply.push(said);
        }
        Ok(())
    }
}

impl ReplyReader {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[Reply]> {
        self.replies.iter().map(Vec::as_slice)
    }

    /// The error that the first command was answered with.
    pub(crate) fn refusal(&self) -> Option<&[u8]> {
        match self.replies.first().map(Vec::as_slice) {
            Some([Reply::Error(error)]) => Some(error),
            _ => None,
        }
    }
}

impl Reply {
    fn members(&self) -> usize {
        if let Reply::Array(members) = self { *members } else { 0 }
    }
}

/// What a reply that is a map says by name. In RESP2 a map is an array of names and values in turn. What has members of
/// its own, as `modules` of `HELLO`, is read over.
pub(crate) fn pairs(reply: &[Reply]) -> impl Iterator<Item = (&[u8], &Reply)> {
    let mut rest = reply.get(1..).unwrap_or_default();
    std::iter::from_fn(move || {
        loop {
            if let ([Reply::Text(name)], [value]) = (cut(&mut rest)?, cut(&mut rest)?) {
                return Some((&name[..], value));
            }
        }
    })
}

/// The text that is said under a name, unless it is empty.
pub(crate) fn text<'s>(reply: &'s [Reply], wanted: &[u8]) -> Option<&'s [u8]> {
    match pairs(reply).find(|(name, _)| *name == wanted) {
        Some((_, Reply::Text(text))) if !text.is_empty() => Some(text),
        _ => None,
    }
}

/// The members of an array; none of anything else.
pub(crate) fn members(reply: &[Reply]) -> impl Iterator<Item = &[Reply]> {
    let mut rest = if let [Reply::Array(_), rest @ ..] = reply { rest } else { &[] };
    std::iter::from_fn(move || cut(&mut rest))
}

/// Cuts the next value off, with all its members.
fn cut<'s>(rest: &mut &'s [Reply]) -> Option<&'s [Reply]> {
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

    /// So many replies, and what they say by name.
    fn read(count: usize, resp: &str) -> Vec<String> {
        let input = bytes::Bytes::copy_from_slice(resp.as_bytes());
        let (mut replies, mut answers) = (Parser::new(1 << 16), ReplyReader::default());
        replies.expect(count);
        replies.feed(&mut Chunk::sharing(&input), &mut answers).unwrap();
        let shown = |reply| pairs(reply).map(|(name, value)| format!("{} {value:?}; ", name.escape_ascii())).collect();
        answers.iter().map(shown).collect()
    }

    #[test]
    fn maps_say_things_by_name_and_what_nests_is_read_over() {
        // Redis 8.0 has a module of its own; and a map within a map, whose names are none of the outer one's.
        let hello = "%4\r\n$4\r\nmode\r\n$7\r\ncluster\r\n$7\r\nmodules\r\n*1\r\n%2\r\n$4\r\nmode\r\n*0\r\n+ver\r\n:1\r\n\
            +proto\r\n:3\r\n$4\r\nrole\r\n_\r\n";
        let said = "mode Text([99, 108, 117, 115, 116, 101, 114]); proto Int(3); role Nil; ";
        assert_eq!(read(1, hello), [said]);
        let flat = hello.replacen("%4", "*8", 1).replacen("%2", "*4", 1).replace("_\r", "$-1\r");
        assert_eq!(read(1, &flat), [said]);
        assert_eq!(read(3, &format!("+OK\r\n{hello}-ERR no\r\n")), ["", said, ""]);
        // What is not there, or is no map at all.
        assert_eq!(read(1, "*3\r\n+a\r\n:1\r\n+b\r\n"), ["a Int(1); "]);
        assert_eq!(read(4, "*0\r\n*-1\r\n:1\r\n%1\r\n*1\r\n+a\r\n:2\r\n"), ["", "", "", ""]);
        assert_eq!(read(1, "%2\r\n+a\r\n"), [""], "not all of it has come");
        // One that goes on and on is cut, and the next one is in its place.
        let endless = format!("*100000\r\n{}+OK\r\n", ":1\r\n".repeat(100_000));
        assert_eq!(read(2, &endless).len(), 2);
    }

    #[test]
    fn refusals_are_those_of_the_first_command() {
        let refusal = |said: Vec<Reply>| {
            ReplyReader { replies: vec![said, vec![Reply::Nil]], left: 0 }.refusal().map(<[_]>::to_vec)
        };
        assert_eq!(refusal(vec![Reply::Error(b"ERR".to_vec())]), Some(b"ERR".to_vec()));
        assert_eq!(refusal(vec![Reply::Array(1), Reply::Error(b"ERR".to_vec())]), None);
        assert_eq!(ReplyReader::default().refusal(), None);
    }
}
