//! Cuts what a server sends (RESP2 and RESP3) into tokens, as it arrives, without copying.

use std::fmt;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::error::{Error, ErrorKind};
use crate::redis::protocol::chunk::Chunk;

/// One piece of a reply, borrowed from the input. An array is its length, followed by its members as tokens of their
/// own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'a> {
    /// No value.
    Nil,
    /// A binary-safe string; a verbatim string or big number of RESP3 too.
    Bulk(&'a [u8]),
    /// A status such as `OK`; a double of RESP3 too.
    Status(&'a [u8]),
    /// An integer; a boolean of RESP3 is 0 or 1.
    Int(i64),
    /// An error, beginning with its code.
    Error(&'a [u8]),
    /// The members that follow; a set, or twice the pairs of a map of RESP3 too.
    Array(usize),
}

/// What is done with the tokens of replies. Any `FnMut(Token<'_>, &mut Chunk<'_>) -> Result<(), Error>` is one.
pub trait Receive {
    /// Takes the next token, which is cut from `chunk`.
    ///
    /// # Errors
    /// When it is none that can come. The connection is then given up.
    fn token(&mut self, token: Token<'_>, chunk: &mut Chunk<'_>) -> Result<(), Error>;

    /// Takes as many of the strings that come next as it likes: the same as [`token`](Receive::token) with each, and
    /// quicker where nearly every token is a string.
    ///
    /// # Errors
    /// As [`token`](Receive::token).
    #[inline]
    fn strings(&mut self, strings: &mut Strings<'_>, chunk: &mut Chunk<'_>) -> Result<(), Error> {
        strings.try_for_each(|string| self.token(Token::Bulk(string), chunk))
    }

    /// Takes a reply that is one string, in a buffer of its own: the same as [`token`](Receive::token), and quicker for
    /// who keeps it.
    ///
    /// # Errors
    /// As [`token`](Receive::token).
    #[inline]
    fn string(&mut self, string: Bytes) -> Result<(), Error> {
        self.token(Token::Bulk(&string), &mut Chunk::sharing(&string))
    }
}

impl<F: FnMut(Token<'_>, &mut Chunk<'_>) -> Result<(), Error>> Receive for F {
    #[inline]
    fn token(&mut self, token: Token<'_>, chunk: &mut Chunk<'_>) -> Result<(), Error> {
        self(token, chunk)
    }
}

/// The strings that come next. They end at the first token that is no string, has not all come, or is long; that one is
/// given to [`Receive::token`].
#[derive(Debug)]
pub struct Strings<'a> {
    rest: &'a [u8],
    /// How many there may be.
    left: usize,
    max_bulk: usize,
}

impl Strings<'_> {
    /// How many there may be at most.
    #[inline(always)]
    pub(crate) fn left(&self) -> usize {
        self.left
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.left == 0 {
            return None;
        }
        let (string, rest) = cut_short_bulk(self.rest, self.max_bulk)?;
        self.rest = rest;
        self.left -= 1;
        Some(string)
    }
}

/// How far [`Parser::feed`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fed {
    /// The chunk ends inside a token. At least so many more bytes must follow what is left of it.
    More(usize),
    /// All replies that were asked for have been read.
    Done,
}

/// Bytes that are not RESP, or exceed a limit. The connection they came from is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Malformed {}

impl From<Malformed> for Error {
    #[cold]
    fn from(malformed: Malformed) -> Self {
        let kind = if malformed == too_long() { ErrorKind::TooLarge } else { ErrorKind::Protocol };
        Error::new(kind, format!("reading the server's answer: {malformed}"))
    }
}

/// What is said of a string that is longer than is taken.
pub(crate) fn too_long() -> Malformed {
    Malformed("a string is longer than the limit for values")
}

/// The longest line (status, error, number) that is read.
const MAX_LINE: usize = 64 * 1024;

/// Reads a known number of replies.
///
/// It keeps only counters: nesting costs no stack and no memory, whatever the server sends. Pushes and attributes of
/// RESP3 between and inside replies are read over.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::internals::Chunk;
/// use dogpile::internals::{Fed, Parser, Token};
///
/// let mut strings = Vec::new();
/// let mut receive = |token: Token<'_>, chunk: &mut Chunk<'_>| {
///     if let Token::Bulk(bytes) = token {
///         strings.push(chunk.keep(bytes));
///     }
///     Ok(())
/// };
/// let mut replies = Parser::new(512 * 1024 * 1024);
/// replies.expect(2);
/// let input = Bytes::from_static(b":7\r\n$5\r\nhel");
/// let mut chunk = Chunk::sharing(&input);
/// assert_eq!(replies.feed(&mut chunk, &mut receive)?, Fed::More(4));
/// assert_eq!(chunk.rest(), b"$5\r\nhel");
/// let input = Bytes::from_static(b"$5\r\nhello\r\n");
/// assert_eq!(replies.feed(&mut Chunk::sharing(&input), &mut receive)?, Fed::Done);
/// assert_eq!(strings, ["hello"]);
/// # Ok::<(), dogpile::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Parser {
    /// Values still to come of the replies that were asked for.
    pending: usize,
    /// Values still to come of a push or an attribute.
    skipping: usize,
    max_bulk: usize,
}

impl Parser {
    /// A reader that refuses strings of more than `max_bulk` bytes.
    #[must_use]
    pub fn new(max_bulk: usize) -> Self {
        Parser { pending: 0, skipping: 0, max_bulk }
    }

    /// Begins to read so many replies.
    #[inline]
    pub fn expect(&mut self, replies: usize) {
        self.pending = replies;
    }

    /// Cuts tokens off the front of `chunk` and hands them to `receive`, until the chunk or the replies end. The
    /// [rest](Chunk::rest), the start of an incomplete token, must be given again, with more.
    ///
    /// # Errors
    /// When the chunk does not go on with RESP, or `receive` fails. The reader is then of no further use.
    // A hit of threads and one of tasks each have it once: where it is a call, its counters go through memory.
    #[inline(always)]
    pub fn feed(&mut self, chunk: &mut Chunk<'_>, receive: &mut impl Receive) -> Result<Fed, Error> {
        loop {
            if self.skipping == 0 {
                let mut strings = Strings { rest: chunk.rest, left: self.pending, max_bulk: self.max_bulk };
                receive.strings(&mut strings, chunk)?;
                (chunk.rest, self.pending) = (strings.rest, strings.left);
                if self.pending == 0 {
                    return Ok(Fed::Done);
                }
            }
            if let Some(missing) = self.feed_other(chunk, receive)? {
                return Ok(Fed::More(missing));
            }
        }
    }

    /// Whether some of the replies that it expects, or of a push, have not come.
    #[cfg(feature = "tokio")]
    #[inline]
    pub(crate) fn is_reading(&self) -> bool {
        self.pending + self.skipping > 0
    }

    /// Cuts off a reply that was not told to [`expect`](Parser::expect), if it is a string of less than a thousand
    /// bytes that has all come.
    #[cfg(feature = "tokio")]
    #[inline]
    pub(crate) fn cut_string<'a>(&self, chunk: &mut Chunk<'a>) -> Option<&'a [u8]> {
        if self.is_reading() {
            return None;
        }
        let (string, rest) = cut_short_bulk(chunk.rest, self.max_bulk)?;
        chunk.rest = rest;
        Some(string)
    }

    /// Reads over what was pushed while no reply is to come. A push of which not all has come stays.
    ///
    /// # Errors
    /// When something else comes, which nobody asked for.
    #[cold]
    pub(crate) fn feed_pushes(&mut self, chunk: &mut Chunk<'_>) -> Result<Fed, Error> {
        while let Some(kind) = chunk.rest.first() {
            if !matches!(kind, b'>' | b'|') {
                let message = format!("the server sent {} bytes more than it was asked for", chunk.rest.len());
                return Err(Error::new(ErrorKind::Protocol, message));
            }
            let mut rest = chunk.rest;
            loop {
                if let Err(missing) = self.cut_next(&mut rest)? {
                    self.skipping = 0;
                    return Ok(Fed::More(missing));
                }
                if self.skipping == 0 {
                    break;
                }
            }
            chunk.rest = rest;
        }
        Ok(Fed::Done)
    }

    /// Hands on one token of any kind, or reads over it. How many bytes are missing, if there is not all of it.
    #[inline]
    fn feed_other(&mut self, chunk: &mut Chunk<'_>, receive: &mut impl Receive) -> Result<Option<usize>, Error> {
        let mut rest = chunk.rest;
        let next = self.cut_next(&mut rest)?;
        chunk.rest = rest;
        match next {
            Ok(Some(token)) => receive.token(token, chunk).map(|()| None),
            Ok(None) => Ok(None),
            Err(missing) => Ok(Some(missing)),
        }
    }

    /// The next token of any kind; `None` when it is not part of the replies. `Err` when so many bytes are missing.
    #[inline(always)]
    fn cut_next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Result<Option<Token<'a>>, usize>, Malformed> {
        let (piece, values, rest) = match self.cut(input)? {
            Cut::More(bytes) => return Ok(Err(bytes)),
            Cut::Piece(piece, values, rest) => (piece, values, rest),
        };
        *input = rest;
        Ok(Ok(match piece {
            // What is pushed, or said about the next value, is not part of the replies.
            None => {
                self.skipping = add(self.skipping, values)?;
                None
            }
            Some(_) if self.skipping > 0 => {
                self.skipping = add(self.skipping - 1, values)?;
                None
            }
            Some(token) => {
                self.pending = add(self.pending - 1, values)?;
                Some(token)
            }
        }))
    }

    fn cut<'a>(&self, input: &'a [u8]) -> Result<Cut<'a>, Malformed> {
        match input.split_first() {
            Some((b'$', rest)) => self.cut_bulk(b'$', rest),
            Some((b'*', rest)) => cut_array(b'*', rest),
            Some((&kind, rest)) => self.cut_other(kind, rest),
            None => Ok(Cut::More(1)),
        }
    }

    /// The types that a hit does not meet.
    fn cut_other<'a>(&self, kind: u8, rest: &'a [u8]) -> Result<Cut<'a>, Malformed> {
        match kind {
            b'=' | b'!' => return self.cut_bulk(kind, rest),
            b'~' | b'%' | b'>' | b'|' => return cut_array(kind, rest),
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => {}
            _ => return Err(Malformed("the reply begins with a byte that is no type of RESP")),
        }
        let Some((line, rest)) = cut_line(rest)? else { return Ok(Cut::More(1)) };
        let token = match (kind, line) {
            (b'+' | b',', line) => Token::Status(line),
            (b'-', line) => Token::Error(line),
            (b'(', line) => Token::Bulk(line),
            (b'_', b"") => Token::Nil,
            (b'#', b"t") => Token::Int(1),
            (b'#', b"f") => Token::Int(0),
            (b':', line) => match cut_number(line)? {
                Some((number, b"")) => Token::Int(number),
                _ => return Err(NO_NUMBER),
            },
            _ => return Err(Malformed("a null or a boolean is none")),
        };
        Ok(Cut::Piece(Some(token), 0, rest))
    }

    fn cut_bulk<'a>(&self, kind: u8, rest: &'a [u8]) -> Result<Cut<'a>, Malformed> {
        let Some((length, rest)) = cut_length(rest)? else { return Ok(Cut::More(1)) };
        if length == -1 && kind == b'$' {
            return Ok(Cut::Piece(Some(Token::Nil), 0, rest));
        }
        let length = usize::try_from(length).map_err(|_| Malformed("a string has a negative length"))?;
        if length > self.max_bulk {
            return Err(too_long());
        }
        let (Some(bytes), Some(end)) = (rest.get(..length), rest.get(length..length + 2)) else {
            return Ok(Cut::More(length + 2 - rest.len()));
        };
        if end != b"\r\n" {
            return Err(Malformed("a string is not followed by CR LF"));
        }
        let token = match (kind, bytes) {
            (b'$', _) => Token::Bulk(bytes),
            (b'!', _) => Token::Error(bytes),
            // Three letters of format and a colon come before the text.
            (_, [_, _, _, b':', text @ ..]) => Token::Bulk(text),
            _ => return Err(Malformed("a verbatim string has no format")),
        };
        Ok(Cut::Piece(Some(token), 0, &rest[length + 2..]))
    }
}

/// Cuts whole messages, pushes too, for who listens more than he asks. Strings are limited to `max_bulk` bytes.
pub(crate) struct Messages {
    replies: Parser,
}

/// What a server said: a reply, or something that it pushed.
#[derive(Debug, PartialEq)]
pub(crate) struct Message<'a> {
    pub(crate) is_push: bool,
    pub(crate) tokens: SmallVec<[Token<'a>; 4]>,
}

impl Messages {
    pub(crate) fn new(max_bulk: usize) -> Self {
        Messages { replies: Parser::new(max_bulk) }
    }

    /// Cuts the first message off `input`; `None` when not all of it has come.
    ///
    /// # Errors
    /// When `input` does not go on with RESP, or with an attribute.
    pub(crate) fn cut<'a>(&self, input: &mut &'a [u8]) -> Result<Option<Message<'a>>, Error> {
        let mut message = Message { is_push: input.first() == Some(&b'>'), tokens: SmallVec::new() };
        let (mut rest, mut pending) = (*input, 1_usize);
        while pending > 0 {
            match self.replies.cut(rest)? {
                Cut::More(_) => return Ok(None),
                Cut::Piece(None, _, _) if rest[0] == b'|' || pending + message.tokens.len() > 1 => {
                    return Err(Malformed("a push or an attribute came in the middle of something").into());
                }
                Cut::Piece(token, values, after) => {
                    message.tokens.extend(token);
                    pending = add(pending - 1, values)?;
                    rest = after;
                }
            }
        }
        *input = rest;
        Ok(Some(message))
    }
}

/// A complete string of less than a thousand bytes, if that comes next. Finds no faults: what it does not take is read
/// the long way.
#[inline]
fn cut_short_bulk(input: &[u8], max_bulk: usize) -> Option<(&[u8], &[u8])> {
    // The head, of four to six bytes, is compared in one piece; the least string that follows makes it eight in most.
    let head = u64::from_le_bytes(*input.first_chunk()?);
    let digit = |at: u32| usize::from((head >> (8 * at)) as u8 ^ b'0');
    let (length, head) = if head & 0xff_ff00_00ff == u64::from_le_bytes(*b"$\0\0\r\n\0\0\0") {
        let (a, b) = (digit(1), digit(2));
        if a.max(b) >= 10 {
            return None;
        }
        (10 * a + b, 5)
    } else if head & 0xffff_0000_00ff == u64::from_le_bytes(*b"$\0\0\0\r\n\0\0") {
        let (a, b, c) = (digit(1), digit(2), digit(3));
        if a.max(b).max(c) >= 10 {
            return None;
        }
        (100 * a + 10 * b + c, 6)
    } else if head & 0xffff_00ff == u64::from_le_bytes(*b"$\0\r\n\0\0\0\0") && digit(1) < 10 {
        (digit(1), 4)
    } else {
        return None;
    };
    let end = head + length;
    let [b'\r', b'\n'] = input.get(end..end + 2)? else { return None };
    (length <= max_bulk).then_some((&input[head..end], &input[end + 2..]))
}

/// A token, `None` for a push or an attribute; how many values follow as its members; and the input after it.
enum Cut<'a> {
    Piece(Option<Token<'a>>, usize, &'a [u8]),
    More(usize),
}

const NO_NUMBER: Malformed = Malformed("a number is not a 64-bit integer in decimal");

#[inline]
fn add(values: usize, more: usize) -> Result<usize, Malformed> {
    values.checked_add(more).ok_or(Malformed("a reply has more values than can be counted"))
}

#[inline]
fn cut_array(kind: u8, rest: &[u8]) -> Result<Cut<'_>, Malformed> {
    let Some((length, rest)) = cut_length(rest)? else { return Ok(Cut::More(1)) };
    if length == -1 && kind == b'*' {
        return Ok(Cut::Piece(Some(Token::Nil), 0, rest));
    }
    // No server sends so many; the sum of a few of them would not fit the counters.
    let length = u32::try_from(length).map_err(|_| Malformed("an array has a negative or impossible length"))?;
    let members = length as usize * if matches!(kind, b'%' | b'|') { 2 } else { 1 };
    let token = (!matches!(kind, b'>' | b'|')).then_some(Token::Array(members));
    Ok(Cut::Piece(token, members, rest))
}

/// A number and its CR LF; `None` when they are not all there.
#[inline]
fn cut_length(input: &[u8]) -> Result<Option<(i64, &[u8])>, Malformed> {
    match cut_number(input)? {
        Some((number, [b'\r', b'\n', rest @ ..])) => Ok(Some((number, rest))),
        None | Some((_, [] | [b'\r'])) => Ok(None),
        Some(_) => Err(NO_NUMBER),
    }
}

/// A decimal integer with an optional sign, as far as its digits go; `None` when there is nothing but perhaps a sign.
#[inline]
fn cut_number(input: &[u8]) -> Result<Option<(i64, &[u8])>, Malformed> {
    let (negative, digits) = match input {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, input),
    };
    let mut value = 0_u64;
    let mut count = 0;
    while let Some(digit @ b'0'..=b'9') = digits.get(count) {
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        count += 1;
    }
    // Nineteen digits always fit a u64.
    if count == 0 || count > 19 {
        return if digits.is_empty() { Ok(None) } else { Err(NO_NUMBER) };
    }
    let number = if negative { 0_i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() };
    Ok(Some((number.ok_or(NO_NUMBER)?, &digits[count..])))
}

/// A line without its CR LF, and what follows.
type HeaderLine<'a> = (&'a [u8], &'a [u8]);

/// The first line; `None` when it is not complete.
fn cut_line(input: &[u8]) -> Result<Option<HeaderLine<'_>>, Malformed> {
    let Some(end) = input.iter().take(MAX_LINE).position(|&byte| byte == b'\r') else {
        return if input.len() < MAX_LINE { Ok(None) } else { Err(Malformed("a line is longer than 64 KiB")) };
    };
    match input.get(end + 1) {
        Some(b'\n') => Ok(Some((&input[..end], &input[end + 2..]))),
        Some(_) => Err(Malformed("a CR is not followed by LF")),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    /// Reads `replies` replies, handing the input over in pieces that end at `cuts`. The tokens as text.
    fn read(input: &[u8], replies: usize, cuts: &[usize]) -> Result<Vec<String>, Error> {
        let mut reader = Parser::new(1024);
        reader.expect(replies);
        let mut cuts = cuts.iter().copied().chain([input.len()]);
        let (mut at, mut fed) = (0, 0);
        let mut tokens = Vec::new();
        let mut arena = BytesMut::new();
        loop {
            let mut chunk = Chunk::copying(&input[at..fed], &mut arena);
            let came = reader.feed(&mut chunk, &mut |token: Token<'_>, _: &mut Chunk<'_>| {
                tokens.push(format!("{token:?}"));
                Ok(())
            })?;
            at = fed - chunk.rest().len();
            match came {
                Fed::Done => {
                    assert_eq!(at, input.len(), "nothing is left over");
                    return Ok(tokens);
                }
                Fed::More(bytes) => {
                    assert!(bytes > 0 && fed + bytes <= input.len().max(fed + 1), "no more than needed is asked for");
                    fed = cuts.next().ok_or(Malformed("cut short"))?;
                }
            }
        }
    }

    /// One of everything, with a push between replies and an attribute inside one.
    const ALL: &[u8] =
        b"$5\r\nhello\r\n$0\r\n\r\n$-1\r\n*-1\r\n_\r\n:42\r\n:-9223372036854775808\r\n+OK\r\n-ERR no\r\n\
        >2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n*2\r\n*1\r\n:1\r\n|1\r\n+ttl\r\n:3\r\n$1\r\nv\r\n\
        %1\r\n+a\r\n#t\r\n~1\r\n#f\r\n,1.5\r\n(123\r\n=7\r\ntxt:abc\r\n!5\r\nERR x\r\n*0\r\n";

    fn all_tokens() -> Vec<String> {
        let status = |text: &'static str| Token::Status(text.as_bytes());
        let error = |text: &'static str| Token::Error(text.as_bytes());
        let bulk = |bytes: &'static [u8]| Token::Bulk(bytes);
        let tokens = [
            bulk(b"hello"),
            bulk(b""),
            Token::Nil,
            Token::Nil,
            Token::Nil,
            Token::Int(42),
            Token::Int(i64::MIN),
            status("OK"),
            error("ERR no"),
            Token::Array(2),
            Token::Array(1),
            Token::Int(1),
            bulk(b"v"),
            Token::Array(2),
            status("a"),
            Token::Int(1),
            Token::Array(1),
            Token::Int(0),
            status("1.5"),
            bulk(b"123"),
            bulk(b"abc"),
            error("ERR x"),
            Token::Array(0),
        ];
        tokens.iter().map(|token| format!("{token:?}")).collect()
    }

    #[test]
    fn every_type_under_every_cut() {
        assert_eq!(read(ALL, 17, &[]).unwrap(), all_tokens());
        // Miri is a thousand times slower.
        for first in (0..=ALL.len()).step_by(if cfg!(miri) { 29 } else { 1 }) {
            assert_eq!(read(ALL, 17, &[first]).unwrap(), all_tokens(), "cut at {first}");
            for second in (first..=ALL.len()).filter(|_| !cfg!(miri)) {
                assert_eq!(read(ALL, 17, &[first, second]).unwrap(), all_tokens(), "cut at {first} and {second}");
            }
        }
        let every_byte: Vec<usize> = (0..ALL.len()).step_by(if cfg!(miri) { 7 } else { 1 }).collect();
        assert_eq!(read(ALL, 17, &every_byte).unwrap(), all_tokens());
    }

    #[test]
    fn what_is_not_resp_is_refused() {
        for bad in [
            &b"x\r\n"[..],
            b"\r\n",
            b"$-2\r\n",
            b"$1025\r\n",
            b"$9223372036854775807\r\n",
            b"$99999999999999999999\r\n",
            b"$\r\n",
            b"$1a\r\n",
            b"$3\r\nabcd\r\n",
            b"*-2\r\n",
            b"%-1\r\n",
            b"%9223372036854775807\r\n",
            b">-1\r\n",
            b":\r\n",
            b":--1\r\n",
            b":9223372036854775808\r\n",
            b"#x\r\n",
            b"=3\r\nabc\r\n",
            b"=4\r\nabcd\r\n",
            b"+a\rb",
        ] {
            let got = read(bad, 1, &[]);
            assert!(
                matches!(&got, Err(error) if !error.to_string().ends_with("cut short")),
                "{}: {got:?}",
                bad.escape_ascii()
            );
        }
        assert!(read(&vec![b'+'; MAX_LINE + 1], 1, &[]).unwrap_err().to_string().contains("64 KiB"));
    }

    #[test]
    fn nesting_costs_neither_stack_nor_memory() {
        let depth = if cfg!(miri) { 1_000 } else { 1_000_000 };
        let deep = b"*1\r\n".repeat(depth);
        let mut reader = Parser::new(1024);
        reader.expect(1);
        let mut arrays = 0;
        let mut receive = |token: Token<'_>, _: &mut Chunk<'_>| {
            assert_eq!(token, Token::Array(1));
            arrays += 1;
            Ok(())
        };
        assert_eq!(reader.feed(&mut Chunk::sharing(&deep.into()), &mut receive).unwrap(), Fed::More(1));
        assert_eq!(arrays, depth);
        assert!(read(b"*4294967295\r\n*4294967296\r\n", 1, &[]).unwrap_err().to_string().contains("impossible"));
    }

    #[test]
    fn messages_are_cut_whole() {
        let all: &[u8] = b":-2\r\n>2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n>2\r\n+invalidate\r\n_\r\n-ERR no\r\n";
        let messages = Messages::new(1024);
        let mut rest = all;
        let mut seen = Vec::new();
        while !rest.is_empty() {
            let whole = rest;
            let message = messages.cut(&mut rest).unwrap().unwrap();
            for end in 0..whole.len() - rest.len() {
                let mut part = &whole[..end];
                assert_eq!(messages.cut(&mut part).unwrap(), None);
                assert_eq!(part.len(), end, "what is not whole stays");
            }
            seen.push((message.is_push, message.tokens.into_vec()));
        }
        let invalidate = Token::Bulk(b"invalidate");
        assert_eq!(seen[0], (false, vec![Token::Int(-2)]));
        assert_eq!(seen[1], (true, vec![invalidate, Token::Array(1), Token::Bulk(b"k")]));
        assert_eq!(seen[2], (true, vec![Token::Status(b"invalidate"), Token::Nil]));
        assert_eq!(seen[3], (false, vec![Token::Error(b"ERR no")]));
        for bad in [&b"*1\r\n>1\r\n+a\r\n"[..], b"|1\r\n+a\r\n+b\r\n:1\r\n", b"x", b"$2000\r\n", b">9999999999\r\n"] {
            let mut input = bad;
            assert!(messages.cut(&mut input).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn the_missing_bytes_of_a_string_are_announced() {
        let mut reader = Parser::new(1024);
        reader.expect(1);
        let input = Bytes::from_static(b"$1000\r\n");
        let fed = reader.feed(&mut Chunk::sharing(&input), &mut |_: Token<'_>, _: &mut Chunk<'_>| Ok(()));
        assert_eq!(fed.unwrap(), Fed::More(1002));
    }
}
