//! Cuts what a server sends (RESP2 and RESP3) into tokens, as it arrives, without copying.

use std::fmt;

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

/// What [`Replies::next`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next<'a> {
    /// The next token.
    Token(Token<'a>),
    /// The input ends inside a token. At least so many more bytes must follow what is left of it.
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

/// The longest line (status, error, number) that is read.
const MAX_LINE: usize = 64 * 1024;

/// Reads a known number of replies.
///
/// It keeps only counters: nesting costs no stack and no memory, whatever the server sends. Pushes and attributes of
/// RESP3 between and inside replies are read over.
///
/// ```
/// use dogpile::engine::replies::{Next, Replies, Token};
///
/// let mut replies = Replies::new(512 * 1024 * 1024);
/// replies.expect(1);
/// let mut input = &b"$5\r\nhel"[..];
/// assert_eq!(replies.next(&mut input)?, Next::More(4));
/// let mut input = &b"$5\r\nhello\r\n"[..];
/// assert_eq!(replies.next(&mut input)?, Next::Token(Token::Bulk(b"hello")));
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

    /// Takes the next token off the front of `input`. What is left of an incomplete one must be given again, with more.
    ///
    /// # Errors
    /// When `input` does not begin with RESP. The reader is then of no further use.
    #[inline]
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Next<'a>, Malformed> {
        // Nearly every token of a cache's replies is a short string that is all there.
        if self.skipping == 0 {
            if self.pending == 0 {
                return Ok(Next::Done);
            }
            if let Some((bytes, rest)) = cut_short_bulk(input, self.max_bulk) {
                *input = rest;
                self.pending -= 1;
                return Ok(Next::Token(Token::Bulk(bytes)));
            }
        }
        self.next_of_any_kind(input)
    }

    fn next_of_any_kind<'a>(&mut self, input: &mut &'a [u8]) -> Result<Next<'a>, Malformed> {
        loop {
            if self.pending == 0 && self.skipping == 0 {
                return Ok(Next::Done);
            }
            let (piece, values, rest) = match self.cut(input)? {
                Cut::More(bytes) => return Ok(Next::More(bytes)),
                Cut::Piece(piece, values, rest) => (piece, values, rest),
            };
            *input = rest;
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
            return Err(Malformed("a string is longer than the limit for values"));
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

/// A complete string of less than a thousand bytes, if that comes next. Finds no faults: what it does not take is read
/// the long way.
#[inline]
fn cut_short_bulk(input: &[u8], max_bulk: usize) -> Option<(&[u8], &[u8])> {
    let digit = |byte: u8| usize::from(byte - b'0');
    let (length, rest) = match input {
        [b'$', a @ b'0'..=b'9', b'\r', b'\n', rest @ ..] => (digit(*a), rest),
        [b'$', a @ b'0'..=b'9', b @ b'0'..=b'9', b'\r', b'\n', rest @ ..] => (10 * digit(*a) + digit(*b), rest),
        [b'$', a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', b'\r', b'\n', rest @ ..] => {
            (100 * digit(*a) + 10 * digit(*b) + digit(*c), rest)
        }
        _ => return None,
    };
    match rest.split_at_checked(length)? {
        (bytes, [b'\r', b'\n', rest @ ..]) if length <= max_bulk => Some((bytes, rest)),
        _ => None,
    }
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
type Line<'a> = (&'a [u8], &'a [u8]);

/// The first line; `None` when it is not complete.
fn cut_line(input: &[u8]) -> Result<Option<Line<'_>>, Malformed> {
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
    use super::*;

    /// Reads `replies` replies, handing the input over in pieces that end at `cuts`.
    fn read<'a>(input: &'a [u8], replies: usize, cuts: &[usize]) -> Result<Vec<Token<'a>>, Malformed> {
        let mut reader = Replies::new(1024);
        reader.expect(replies);
        let mut cuts = cuts.iter().copied().chain([input.len()]);
        let (mut at, mut fed) = (0, 0);
        let mut tokens = Vec::new();
        loop {
            let mut piece = &input[at..fed];
            let next = reader.next(&mut piece)?;
            at = fed - piece.len();
            match next {
                Next::Token(token) => tokens.push(token),
                Next::Done => {
                    assert_eq!(at, input.len(), "nothing is left over");
                    return Ok(tokens);
                }
                Next::More(bytes) => {
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

    fn all_tokens() -> Vec<Token<'static>> {
        let status = |text: &'static str| Token::Status(text.as_bytes());
        let error = |text: &'static str| Token::Error(text.as_bytes());
        let bulk = |bytes: &'static [u8]| Token::Bulk(bytes);
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
        assert!(read(&vec![b'+'; MAX_LINE + 1], 1, &[]).unwrap_err().0.contains("64 KiB"));
    }

    #[test]
    fn nesting_costs_neither_stack_nor_memory() {
        let deep = b"*1\r\n".repeat(1_000_000);
        let mut reader = Replies::new(1024);
        reader.expect(1);
        let mut input = &deep[..];
        let mut arrays = 0;
        while let Next::Token(token) = reader.next(&mut input).unwrap() {
            assert_eq!(token, Token::Array(1));
            arrays += 1;
        }
        assert_eq!(arrays, 1_000_000);
        let mut input = &b"*4294967295\r\n*4294967296\r\n"[..];
        reader.expect(1);
        assert_eq!(reader.next(&mut input).unwrap(), Next::Token(Token::Array(4_294_967_295)));
        assert!(reader.next(&mut input).is_err());
    }

    #[test]
    fn the_missing_bytes_of_a_string_are_announced() {
        let mut reader = Replies::new(1024);
        reader.expect(1);
        let mut input = &b"$1000\r\n"[..];
        assert_eq!(reader.next(&mut input).unwrap(), Next::More(1002));
    }
}
