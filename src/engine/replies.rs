//! Cuts what a server sends (RESP2 and RESP3) into tokens, as it arrives, without copying.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};

/// One piece of a reply. An array is its length, followed by its members as tokens of their own.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// No value.
    Nil,
    /// A binary-safe string; a verbatim string or big number of RESP3 too.
    Bulk(Bytes),
    /// A status such as `OK`; a double of RESP3 too.
    Status(Bytes),
    /// An integer; a boolean of RESP3 is 0 or 1.
    Int(i64),
    /// An error, beginning with its code.
    Error(Bytes),
    /// The members that follow; a set, or twice the pairs of a map of RESP3 too.
    Array(usize),
}

/// What [`Replies::next`] found.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// The next token.
    Token(Token),
    /// The input ends inside a token. At least so many more bytes must come before the next call can succeed.
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

const NO_TYPE: Malformed = Malformed("the reply begins with a byte that is no type of RESP");

/// The longest line (status, error, number) that is read.
const MAX_LINE: usize = 64 * 1024;

/// Reads a known number of replies from a growing buffer.
///
/// It keeps only counters: nesting costs no stack and no memory, whatever the server sends. Pushes and attributes of
/// RESP3 between and inside replies are read over.
///
/// ```
/// use bytes::{Bytes, BytesMut};
/// use dogpile::engine::replies::{Next, Replies, Token};
///
/// let mut replies = Replies::new(512 * 1024 * 1024);
/// replies.expect(1);
/// let mut input = BytesMut::from("$5\r\nhel");
/// assert_eq!(replies.next(&mut input)?, Next::More(4));
/// input.extend_from_slice(b"lo\r\n");
/// assert_eq!(replies.next(&mut input)?, Next::Token(Token::Bulk(Bytes::from("hello"))));
/// assert_eq!(replies.next(&mut input)?, Next::Done);
/// # Ok::<(), dogpile::engine::replies::Malformed>(())
/// ```
#[derive(Clone, Debug)]
pub struct Replies {
    /// Values still to come of the replies that were asked for.
    pending: usize,
    /// Values still to come of a push or an attribute.
    skipping: usize,
    max_bulk: usize,
}

impl Replies {
    /// A reader that refuses strings of more than `max_bulk` bytes.
    #[must_use]
    pub fn new(max_bulk: usize) -> Self {
        Replies { pending: 0, skipping: 0, max_bulk }
    }

    /// Begins to read so many replies.
    #[inline]
    pub fn expect(&mut self, replies: usize) {
        self.pending = replies;
    }

    /// Takes the next token off the front of `input`. Strings share its memory.
    ///
    /// # Errors
    /// When `input` does not begin with RESP. `input` and the reader are then of no further use.
    #[inline]
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Next, Malformed> {
        loop {
            if self.pending == 0 && self.skipping == 0 {
                return Ok(Next::Done);
            }
            let (piece, values) = match self.cut(input)? {
                Cut::More(bytes) => return Ok(Next::More(bytes)),
                Cut::Piece(piece, values) => (piece, values),
            };
            match piece {
                // What is pushed, or said about the next value, is not part of the replies.
                None => self.skipping = add(self.skipping, values)?,
                Some(_) if self.skipping > 0 => self.skipping = add(self.skipping - 1, values)?,
                Some(token) => {
                    self.pending = add(self.pending - 1, values)?;
                    return Ok(Next::Token(token));
                }
            }
        }
    }

    /// Cuts one token, with the number of values that follow as its members. `None` for a push or an attribute.
    #[inline]
    fn cut(&self, input: &mut BytesMut) -> Result<Cut, Malformed> {
        let Some(&kind) = input.first() else { return Ok(Cut::More(1)) };
        // Where the line after the kind ends, if it is here already.
        let Some(end) = line_end(input)? else {
            return if b"$*:+-_#,(=!~%>|".contains(&kind) { Ok(Cut::More(1)) } else { Err(NO_TYPE) };
        };
        let line = &input[1..end];
        let token = match kind {
            b'$' | b'=' | b'!' => return self.cut_bulk(kind, end, input),
            b'*' | b'~' | b'%' | b'>' | b'|' => {
                let length = number(line)?;
                let per_member = if matches!(kind, b'%' | b'|') { 2 } else { 1 };
                input.advance(end + 2);
                return if length == -1 && kind == b'*' {
                    Ok(Cut::Piece(Some(Token::Nil), 0))
                } else {
                    // No server sends so many; the sum of a few of them would not fit the counters.
                    let members = u32::try_from(length)
                        .ok()
                        .and_then(|length| (length as usize).checked_mul(per_member))
                        .ok_or(Malformed("an array has a negative or impossible length"))?;
                    let token = (!matches!(kind, b'>' | b'|')).then_some(Token::Array(members));
                    Ok(Cut::Piece(token, members))
                };
            }
            b':' => Token::Int(number(line)?),
            b'_' => Token::Nil,
            b'#' => match line {
                b"t" => Token::Int(1),
                b"f" => Token::Int(0),
                _ => return Err(Malformed("a boolean is neither t nor f")),
            },
            b'+' | b',' => Token::Status(cut_line(input, end)),
            b'(' => Token::Bulk(cut_line(input, end)),
            b'-' => Token::Error(cut_line(input, end)),
            _ => return Err(NO_TYPE),
        };
        if matches!(kind, b':' | b'_' | b'#') {
            input.advance(end + 2);
        }
        Ok(Cut::Piece(Some(token), 0))
    }

    #[inline]
    fn cut_bulk(&self, kind: u8, end: usize, input: &mut BytesMut) -> Result<Cut, Malformed> {
        let length = number(&input[1..end])?;
        if length == -1 && kind == b'$' {
            input.advance(end + 2);
            return Ok(Cut::Piece(Some(Token::Nil), 0));
        }
        let length = usize::try_from(length).map_err(|_| Malformed("a string has a negative length"))?;
        if length > self.max_bulk {
            return Err(Malformed("a string is longer than the limit for values"));
        }
        let whole = end + 2 + length + 2;
        if input.len() < whole {
            return Ok(Cut::More(whole - input.len()));
        }
        if input[whole - 2..whole] != *b"\r\n" {
            return Err(Malformed("a string is not followed by CR LF"));
        }
        input.advance(end + 2);
        let mut bytes = input.split_to(length).freeze();
        input.advance(2);
        if kind == b'=' {
            // Three letters of format and a colon come before the text.
            if length < 4 || bytes[3] != b':' {
                return Err(Malformed("a verbatim string has no format"));
            }
            bytes.advance(4);
        }
        let token = if kind == b'!' { Token::Error(bytes) } else { Token::Bulk(bytes) };
        Ok(Cut::Piece(Some(token), 0))
    }
}

enum Cut {
    Piece(Option<Token>, usize),
    More(usize),
}

#[inline]
fn add(values: usize, more: usize) -> Result<usize, Malformed> {
    values.checked_add(more).ok_or(Malformed("a reply has more values than can be counted"))
}

/// The text of a line, cut off with its type and its CR LF.
fn cut_line(input: &mut BytesMut, end: usize) -> Bytes {
    input.advance(1);
    let line = input.split_to(end - 1).freeze();
    input.advance(2);
    line
}

/// Where the CR of the first line stands, behind its type; `None` when the line is not complete.
#[inline]
fn line_end(input: &[u8]) -> Result<Option<usize>, Malformed> {
    match input.iter().take(MAX_LINE).skip(1).position(|&byte| byte == b'\r').map(|at| at + 1) {
        Some(at) => match input.get(at + 1) {
            Some(b'\n') => Ok(Some(at)),
            Some(_) => Err(Malformed("a CR is not followed by LF")),
            None => Ok(None),
        },
        None if input.len() >= MAX_LINE => Err(Malformed("a line is longer than 64 KiB")),
        None => Ok(None),
    }
}

/// A decimal integer with an optional sign, the whole of `digits`.
#[inline]
fn number(digits: &[u8]) -> Result<i64, Malformed> {
    const NO_NUMBER: Malformed = Malformed("a number is not a 64-bit integer in decimal");
    let (negative, digits) = match digits {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, digits),
    };
    if digits.is_empty() || digits.len() > 19 {
        return Err(NO_NUMBER);
    }
    // Nineteen digits always fit a u64.
    let mut value = 0_u64;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return Err(NO_NUMBER);
        }
        value = value * 10 + u64::from(digit);
    }
    if negative { 0_i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() }.ok_or(NO_NUMBER)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `replies` replies, handing the input over in pieces that end at `cuts`.
    fn read(input: &[u8], replies: usize, cuts: &[usize]) -> Result<Vec<Token>, Malformed> {
        let mut reader = Replies::new(1024);
        reader.expect(replies);
        let mut buffer = BytesMut::new();
        let mut fed = 0;
        let mut cuts = cuts.iter().copied().chain([input.len()]);
        let mut tokens = Vec::new();
        loop {
            match reader.next(&mut buffer)? {
                Next::Token(token) => tokens.push(token),
                Next::Done => {
                    assert_eq!(buffer.len() + input.len() - fed, 0, "nothing is left over");
                    return Ok(tokens);
                }
                Next::More(bytes) => {
                    assert!(bytes > 0);
                    let Some(end) = cuts.next() else { return Err(Malformed("cut short")) };
                    buffer.extend_from_slice(&input[fed..end]);
                    fed = end;
                }
            }
        }
    }

    fn bulk(bytes: &'static [u8]) -> Token {
        Token::Bulk(Bytes::from_static(bytes))
    }

    /// One of everything, with a push between replies and an attribute inside one.
    const ALL: &[u8] =
        b"$5\r\nhello\r\n$0\r\n\r\n$-1\r\n*-1\r\n_\r\n:42\r\n:-9223372036854775808\r\n+OK\r\n-ERR no\r\n\
        >2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n*2\r\n*1\r\n:1\r\n|1\r\n+ttl\r\n:3\r\n$1\r\nv\r\n\
        %1\r\n+a\r\n#t\r\n~1\r\n#f\r\n,1.5\r\n(123\r\n=7\r\ntxt:abc\r\n!5\r\nERR x\r\n*0\r\n";

    fn all_tokens() -> Vec<Token> {
        let status = |text: &'static str| Token::Status(Bytes::from_static(text.as_bytes()));
        let error = |text: &'static str| Token::Error(Bytes::from_static(text.as_bytes()));
        vec![
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
        ]
    }

    #[test]
    fn every_type_under_every_cut() {
        assert_eq!(read(ALL, 17, &[]).unwrap(), all_tokens());
        for first in 0..=ALL.len() {
            assert_eq!(read(ALL, 17, &[first]).unwrap(), all_tokens(), "cut at {first}");
            for second in first..=ALL.len() {
                assert_eq!(read(ALL, 17, &[first, second]).unwrap(), all_tokens(), "cut at {first} and {second}");
            }
        }
        let every_byte: Vec<usize> = (0..ALL.len()).collect();
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
            assert!(matches!(&got, Err(error) if error.0 != "cut short"), "{}: {got:?}", bad.escape_ascii());
        }
        assert!(read(&vec![b'+'; MAX_LINE], 1, &[]).unwrap_err().0.contains("64 KiB"));
    }

    #[test]
    fn nesting_costs_neither_stack_nor_memory() {
        let deep = b"*1\r\n".repeat(1_000_000);
        let mut reader = Replies::new(1024);
        reader.expect(1);
        let mut input = BytesMut::from(&deep[..]);
        let mut arrays = 0;
        while let Next::Token(token) = reader.next(&mut input).unwrap() {
            assert_eq!(token, Token::Array(1));
            arrays += 1;
        }
        assert_eq!(arrays, 1_000_000);
        let mut input = BytesMut::from("*4294967295\r\n*4294967296\r\n");
        reader.expect(1);
        assert_eq!(reader.next(&mut input).unwrap(), Next::Token(Token::Array(4_294_967_295)));
        assert!(reader.next(&mut input).is_err());
    }

    #[test]
    fn the_missing_bytes_of_a_string_are_announced() {
        let mut reader = Replies::new(1024);
        reader.expect(1);
        let mut input = BytesMut::from("$1000\r\n");
        assert_eq!(reader.next(&mut input).unwrap(), Next::More(1002));
    }
}
