//! The reply reader against a naive flattening of trees.

use bytes::{Bytes, BytesMut};
use dogpile::Error;
use dogpile::internals::Chunk;
use dogpile::internals::{Fed, Parser, Receive, Strings, Token};
use proptest::prelude::*;

use crate::{check, octets};

/// A value as a server sends it.
#[derive(Clone, Debug)]
enum Reply {
    /// On the wire as it is here, and what it is read as.
    Simple(Vec<u8>, Seen),
    /// A type and members; pairs, where the type is a map's.
    Members(u8, Vec<Reply>),
    /// A push or an attribute, and the value that comes after it.
    After(u8, Vec<Reply>, Box<Reply>),
}

/// A token that owns its bytes.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Nil,
    Bulk(Vec<u8>),
    Status(Vec<u8>),
    Int(i64),
    Error(Vec<u8>),
    Array(usize),
}

impl From<Token<'_>> for Seen {
    fn from(token: Token<'_>) -> Self {
        match token {
            Token::Nil => Seen::Nil,
            Token::Bulk(bytes) => Seen::Bulk(bytes.to_vec()),
            Token::Status(line) => Seen::Status(line.to_vec()),
            Token::Int(int) => Seen::Int(int),
            Token::Error(line) => Seen::Error(line.to_vec()),
            Token::Array(members) => Seen::Array(members),
        }
    }
}

impl Reply {
    fn write(&self, out: &mut Vec<u8>) {
        let head = |out: &mut Vec<u8>, kind: u8, members: &[Reply]| {
            let pairs = if matches!(kind, b'%' | b'|') { 2 } else { 1 };
            out.push(kind);
            out.extend_from_slice(format!("{}\r\n", members.len() / pairs).as_bytes());
            members[..members.len() / pairs * pairs].iter().for_each(|member| member.write(out));
        };
        match self {
            Reply::Simple(wire, _) => out.extend_from_slice(wire),
            Reply::Members(kind, members) => head(out, *kind, members),
            Reply::After(kind, members, value) => {
                head(out, *kind, members);
                value.write(out);
            }
        }
    }

    fn flatten(&self, tokens: &mut Vec<Seen>) {
        match self {
            Reply::Simple(_, seen) => tokens.push(seen.clone()),
            Reply::Members(kind, members) => {
                let count = if *kind == b'%' { members.len() / 2 * 2 } else { members.len() };
                tokens.push(Seen::Array(count));
                members[..count].iter().for_each(|member| member.flatten(tokens));
            }
            Reply::After(_, _, value) => value.flatten(tokens),
        }
    }
}

fn reply() -> impl Strategy<Value = Reply> {
    fn bulk(kind: char, bytes: &[u8]) -> Vec<u8> {
        [format!("{kind}{}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
    }
    fn on_a_line(kind: char, text: &[u8]) -> Vec<u8> {
        [&[kind as u8], text, b"\r\n"].concat()
    }
    let line = || octets(1000).prop_map(|bytes| bytes.into_iter().filter(|byte| *byte != b'\r').collect::<Vec<u8>>());
    let nil = prop::sample::select(vec!["$-1\r\n", "*-1\r\n", "_\r\n"]);
    let simple = prop_oneof![
        6 => octets(70_000).prop_map(|bytes| Reply::Simple(bulk('$', &bytes), Seen::Bulk(bytes))),
        2 => nil.prop_map(|nil| Reply::Simple(nil.into(), Seen::Nil)),
        1 => any::<i64>().prop_map(|int| Reply::Simple(format!(":{int}\r\n").into(), Seen::Int(int))),
        1 => any::<u16>().prop_map(|int| Reply::Simple(format!(":+{int}\r\n").into(), Seen::Int(int.into()))),
        1 => line().prop_map(|line| Reply::Simple(on_a_line('+', &line), Seen::Status(line))),
        1 => line().prop_map(|line| Reply::Simple(on_a_line(',', &line), Seen::Status(line))),
        1 => line().prop_map(|line| Reply::Simple(on_a_line('-', &line), Seen::Error(line))),
        1 => line().prop_map(|line| Reply::Simple(on_a_line('(', &line), Seen::Bulk(line))),
        1 => octets(300).prop_map(|bytes| Reply::Simple(bulk('!', &bytes), Seen::Error(bytes))),
        1 => octets(300).prop_map(|bytes| {
            Reply::Simple(bulk('=', &[b"txt:", &bytes[..]].concat()), Seen::Bulk(bytes))
        }),
        1 => any::<bool>().prop_map(|is| {
            Reply::Simple(if is { b"#t\r\n" } else { b"#f\r\n" }.to_vec(), Seen::Int(is.into()))
        }),
    ];
    simple.prop_recursive(4, 60, 12, |inner| {
        let members = prop::collection::vec(inner.clone(), 0..12);
        prop_oneof![
            3 => (prop::sample::select(b"*~%".to_vec()), members.clone())
                .prop_map(|(kind, members)| Reply::Members(kind, members)),
            1 => (prop::sample::select(b">|".to_vec()), members, inner)
                .prop_map(|(kind, members, value)| Reply::After(kind, members, Box::new(value))),
        ]
    })
}

/// Keeps all tokens, and what they borrow. Takes strings in runs of so many.
#[derive(Default)]
struct Keeps {
    run: usize,
    tokens: Vec<Seen>,
    kept: Vec<(Vec<u8>, Bytes)>,
}

impl Receive for Keeps {
    fn token(&mut self, token: Token<'_>, chunk: &mut Chunk<'_>) -> Result<(), Error> {
        if let Token::Bulk(bytes) | Token::Status(bytes) | Token::Error(bytes) = token {
            self.kept.push((bytes.to_vec(), chunk.keep(bytes)));
        }
        self.tokens.push(token.into());
        Ok(())
    }

    fn strings(&mut self, strings: &mut Strings<'_>, chunk: &mut Chunk<'_>) -> Result<(), Error> {
        let (whole, rest) = (chunk.whole().clone(), chunk.rest());
        for string in strings.take(self.run) {
            let start = whole.len() - rest.len() + (string.as_ptr() as usize - rest.as_ptr() as usize);
            assert_eq!(whole[start..start + string.len()], *string, "the whole has its parts in the same places");
            self.token(Token::Bulk(string), chunk)?;
        }
        Ok(())
    }
}

/// Reads input that comes in pieces, which end at `cuts`.
fn read(input: &[u8], replies: usize, cuts: &[usize], sharing: bool, run: usize) -> Keeps {
    let mut reader = Parser::new(70_000);
    reader.expect(replies);
    let mut cuts = cuts.iter().copied().chain([input.len()]);
    let mut keeps = Keeps { run, ..Keeps::default() };
    let mut arena = BytesMut::with_capacity(64);
    let (mut at, mut fed) = (0, 0);
    loop {
        let shared = Bytes::copy_from_slice(&input[at..fed]);
        // What is lent is written over at once.
        let mut lent = shared.to_vec();
        let mut chunk = if sharing { Chunk::sharing(&shared) } else { Chunk::copying(&lent, &mut arena) };
        let came = reader.feed(&mut chunk, &mut keeps).unwrap();
        at = fed - chunk.rest().len();
        lent.fill(b'?');
        match came {
            Fed::Done => {
                assert_eq!(at, input.len(), "nothing is left over");
                return keeps;
            }
            Fed::More(missing) => {
                assert!(missing > 0 && fed + missing <= input.len(), "no more is asked for than will come");
                fed = cuts.next().expect("all has come");
            }
        }
    }
}

#[test]
fn any_replies_under_any_cuts_are_their_flattening() {
    let cuts = prop::collection::vec(any::<prop::sample::Index>(), 0..8);
    let inputs = (prop::collection::vec(reply(), 0..5), cuts, any::<bool>(), prop_oneof![0_usize..4, Just(usize::MAX)]);
    check(inputs, |(replies, cuts, sharing, run)| {
        let (mut input, mut expected) = (Vec::new(), Vec::new());
        for reply in &replies {
            reply.write(&mut input);
            reply.flatten(&mut expected);
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
        cuts.sort_unstable();
        let read = read(&input, replies.len(), &cuts, sharing, run);
        assert_eq!(read.tokens, expected);
        for (bytes, kept) in read.kept {
            assert_eq!(bytes, kept, "what is kept stays as it was");
        }
    });
}
