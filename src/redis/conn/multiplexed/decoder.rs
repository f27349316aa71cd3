//! [`Decoder`]: cuts what a server sends into the replies to one request after the other.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::error::Error;
use crate::redis::conn::limits::{KEEP, PIECE};
use crate::redis::conn::multiplexed::pipeline::{Mark, Replied, Sent};
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::parser::{Fed, Parser, Receive, Strings, Token};

/// The longest string that servers keep, unless they are told otherwise. What a caller takes may be less; that is his
/// business, and not that of all who share the connection.
const MAX_BULK: usize = 512 * 1024 * 1024;

/// What came from the server, and the requests that it is to be the replies to.
pub(crate) struct Decoder {
    /// What came and was not handed on. Its memory is used again when nobody holds any of it.
    input: BytesMut,
    /// With fewer bytes than these nothing can be cut.
    needed: usize,
    replies: Parser,
    /// What came already of the replies to the first of `sent`.
    pieces: Vec<Bytes>,
    sent: VecDeque<Sent>,
    /// When they were sent, so many of them together.
    marks: VecDeque<(usize, Mark)>,
}

impl Decoder {
    pub(crate) fn new(max_entry: usize) -> Self {
        Decoder {
            input: BytesMut::with_capacity(PIECE),
            needed: 1,
            replies: Parser::new(max_entry.max(MAX_BULK)),
            pieces: Vec::new(),
            sent: VecDeque::new(),
            marks: VecDeque::new(),
        }
    }

    /// These are sent now, together.
    #[inline]
    pub(crate) fn expect(&mut self, requests: impl ExactSizeIterator<Item = Sent>, mark: Mark) {
        self.marks.push_back((requests.len(), mark));
        self.sent.extend(requests);
    }

    /// When the oldest request was sent whose replies are not all there.
    pub(crate) fn oldest(&self) -> Option<Mark> {
        self.marks.front().map(|(_, mark)| *mark)
    }

    /// The requests whose replies are not all there; none will come.
    pub(crate) fn give_up(&mut self) -> impl Iterator<Item = Sent> {
        self.marks.clear();
        self.sent.drain(..)
    }

    /// All replies to the first request are there.
    #[inline(always)]
    fn is_answered(&mut self) {
        self.sent.pop_front();
        if let Some((left, _)) = self.marks.front_mut() {
            *left -= 1;
            if *left == 0 {
                self.marks.pop_front();
            }
        }
    }

    /// Whether there is room to read to.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.input.capacity() - self.input.len() >= self.wanted()
    }

    /// Where to read to, with room for some more: that of what nobody holds any more, or new.
    #[inline]
    pub(crate) fn room(&mut self) -> &mut BytesMut {
        if !self.has_room() {
            self.input.reserve(self.wanted().max(PIECE));
        }
        &mut self.input
    }

    /// How much room there should be. A large string gets its room as it comes, since its length is only announced.
    fn wanted(&self) -> usize {
        let came = self.input.len();
        self.needed.saturating_sub(came).clamp(PIECE / 4, came.max(PIECE))
    }

    /// Cuts off the replies that are complete. What is pushed belongs to none; before and inside of replies whoever
    /// takes these reads over it.
    pub(crate) fn cut(&mut self, answered: &mut VecDeque<(Sent, Replied)>) -> Result<(), Error> {
        if self.input.len() < self.needed {
            return Ok(());
        }
        let input = self.input.split().freeze();
        let mut chunk = Chunk::sharing(&input);
        let mut start = 0;
        let missing = loop {
            let Some(&first) = self.sent.front() else {
                match self.replies.feed_pushes(&mut chunk)? {
                    Fed::Done => break 1,
                    Fed::More(missing) => break missing,
                }
            };
            if chunk.rest().is_empty() {
                break 1;
            }
            if first.replies == 1
                && let Some(string) = self.replies.cut_string(&mut chunk)
            {
                let place = chunk.place(string);
                start = place.end + 2;
                self.is_answered();
                answered.push_back((first, Replied::String(input.slice(place))));
                continue;
            }
            if !self.replies.is_reading() {
                self.replies.expect(first.replies as usize);
            }
            let fed = self.replies.feed(&mut chunk, &mut Ignore)?;
            let end = input.len() - chunk.rest().len();
            let piece = input.slice(start..end);
            start = end;
            match fed {
                Fed::Done => {
                    self.is_answered();
                    let replied = if self.pieces.is_empty() {
                        Replied::Piece(first.replies, piece)
                    } else {
                        self.pieces.push(piece);
                        Replied::Pieces(first.replies, std::mem::take(&mut self.pieces).into())
                    };
                    answered.push_back((first, replied));
                }
                Fed::More(missing) => {
                    if !piece.is_empty() {
                        self.pieces.push(piece);
                    }
                    break missing;
                }
            }
        };
        let rest = chunk.rest();
        if input.len() > KEEP {
            self.input = BytesMut::with_capacity(PIECE);
        }
        self.input.extend_from_slice(rest);
        self.needed = rest.len() + missing;
        Ok(())
    }
}

/// Only where replies end matters here; whoever takes them reads them.
struct Ignore;

impl Receive for Ignore {
    fn token(&mut self, _: Token<'_>, _: &mut Chunk<'_>) -> Result<(), Error> {
        Ok(())
    }

    #[inline]
    fn strings(&mut self, strings: &mut Strings<'_>, _: &mut Chunk<'_>) -> Result<(), Error> {
        strings.for_each(drop);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::conn::multiplexed::pipeline::Moved;

    fn now() -> Mark {
        Mark { at: tokio::time::Instant::now(), moved: Moved::default() }
    }

    /// Feeds the input in pieces that end at `cuts`, and shows what each of the requests, which expect so many replies,
    /// was answered.
    fn answers(input: &[u8], requests: &[usize], cuts: &[usize]) -> Result<Vec<String>, Error> {
        let mut incoming = Decoder::new(1 << 20);
        incoming.expect(requests.iter().map(|replies| Sent::apart(*replies)), now());
        let (mut answered, mut at) = (VecDeque::new(), 0);
        for end in cuts.iter().copied().chain([input.len()]) {
            incoming.room().extend_from_slice(&input[at..end]);
            at = end;
            incoming.cut(&mut answered)?;
        }
        answered
            .into_iter()
            .map(|(_, replied)| {
                let mut tokens = String::new();
                replied.read(1 << 20, &mut |token: Token<'_>, _: &mut Chunk<'_>| {
                    tokens += &format!("{token:?} ");
                    Ok(())
                })?;
                Ok(tokens)
            })
            .collect()
    }

    const INPUT: &[u8] = b">2\r\n$3\r\nfoo\r\n:1\r\n$2\r\nab\r\n*2\r\n$1\r\nc\r\n>1\r\n+p\r\n$-1\r\n+OK\r\n:7\r\n\
        >1\r\n$1\r\nq\r\n|1\r\n+k\r\n+v\r\n$12\r\nmellifluous!\r\n>1\r\n$1\r\nr\r\n";

    #[test]
    fn every_cut_gives_each_request_its_replies_and_no_push() {
        let whole = answers(INPUT, &[1, 1, 2, 1], &[]).unwrap();
        assert_eq!(whole.len(), 4);
        assert_eq!(whole[0], format!("{:?} ", Token::Bulk(b"ab")));
        assert_eq!(whole[2], format!("{:?} {:?} ", Token::Status(b"OK"), Token::Int(7)));
        assert_eq!(whole[3], format!("{:?} ", Token::Bulk(b"mellifluous!")));
        // Miri is a thousand times slower.
        let step = if cfg!(miri) { 13 } else { 1 };
        for first in (0..=INPUT.len()).step_by(step) {
            for second in (first..=INPUT.len()).step_by(step) {
                assert_eq!(answers(INPUT, &[1, 1, 2, 1], &[first, second]).unwrap(), whole, "{first} {second}");
            }
        }
    }

    #[test]
    fn what_nobody_asked_for_breaks_the_connection() {
        let error = answers(b"$1\r\na\r\n$1\r\nb\r\n", &[1], &[]).unwrap_err();
        assert_eq!(error.to_string(), "the server sent 7 bytes more than it was asked for");
        assert!(answers(b"$1\r\na\r\n?", &[1, 1], &[]).is_err());
    }

    #[test]
    fn large_strings_come_in_pieces() {
        let size = if cfg!(miri) { 1_000 } else { 100_000 };
        let large = format!("*2\r\n${size}\r\n{}\r\n$3\r\nend\r\n", "x".repeat(size));
        let cuts: Vec<usize> = (0..large.len()).step_by(777).collect();
        let shown = answers(large.as_bytes(), &[1], &cuts).unwrap();
        assert!(shown[0].len() > size && shown.len() == 1);
    }

    #[test]
    fn room_is_used_again_when_nobody_holds_any_of_it() {
        let (mut incoming, mut answered) = (Decoder::new(1 << 20), VecDeque::new());
        let begin = incoming.room().as_ptr();
        for _ in 0..if cfg!(miri) { 20 } else { 1000 } {
            incoming.expect([Sent::apart(1)].into_iter(), now());
            incoming.room().extend_from_slice(b"$50\r\n01234567890123456789012345678901234567890123456789\r\n");
            incoming.cut(&mut answered).unwrap();
            answered.clear();
        }
        assert!(incoming.room().as_ptr().addr() - begin.addr() < PIECE, "it is the same memory");
    }
}
