//! [`Decoder`]: splits the bytes from the server into the replies to each request.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::error::Error;
use crate::redis::conn::limits::{MAX_IDLE_CAPACITY, READ_SIZE};
use crate::redis::conn::multiplexed::pipeline::{Checkpoint, RawReplies, SentRequest};
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::parser::{Fed, Parser, Receive, Strings, Token};

/// The default limit of servers for strings (`proto-max-bulk-len`).
///
/// A lower limit for entries is applied by the caller that reads a reply. One large entry must not
/// break the connection that all callers share.
const MAX_BULK: usize = 512 * 1024 * 1024;

/// The read buffer of a connection, and the requests whose replies are pending.
pub(crate) struct Decoder {
    /// The bytes that were read and not yet decoded. Its memory is reused once no reply shares it.
    input: BytesMut,
    /// The input length that is needed to decode anything.
    needed: usize,
    parser: Parser,
    /// The parts that have arrived of the replies to the first request of `sent`.
    parts: Vec<Bytes>,
    sent: VecDeque<SentRequest>,
    /// For each group of requests that were sent together, their number and checkpoint.
    checkpoints: VecDeque<(usize, Checkpoint)>,
}

impl Decoder {
    pub(crate) fn new(max_entry: usize) -> Self {
        Decoder {
            input: BytesMut::with_capacity(READ_SIZE),
            needed: 1,
            parser: Parser::new(max_entry.max(MAX_BULK)),
            parts: Vec::new(),
            sent: VecDeque::new(),
            checkpoints: VecDeque::new(),
        }
    }

    /// Registers requests that are sent together.
    #[inline]
    pub(crate) fn expect(&mut self, requests: impl ExactSizeIterator<Item = SentRequest>, checkpoint: Checkpoint) {
        self.checkpoints.push_back((requests.len(), checkpoint));
        self.sent.extend(requests);
    }

    /// Returns the checkpoint of the oldest request whose replies are incomplete.
    pub(crate) fn oldest(&self) -> Option<Checkpoint> {
        self.checkpoints.front().map(|(_, checkpoint)| *checkpoint)
    }

    /// Removes and returns the requests whose replies are incomplete, after the connection broke.
    pub(crate) fn take_pending(&mut self) -> impl Iterator<Item = SentRequest> {
        self.checkpoints.clear();
        self.sent.drain(..)
    }

    /// Removes the first request, whose replies are complete.
    #[inline(always)]
    fn complete_first(&mut self) {
        self.sent.pop_front();
        if let Some((left, _)) = self.checkpoints.front_mut() {
            *left -= 1;
            if *left == 0 {
                self.checkpoints.pop_front();
            }
        }
    }

    /// Returns whether the read buffer has enough room for the next read.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.input.capacity() - self.input.len() >= self.read_size()
    }

    /// Returns the read buffer with room for the next read. Reuses its memory if no reply shares
    /// it.
    #[inline]
    pub(crate) fn read_buffer(&mut self) -> &mut BytesMut {
        if !self.has_room() {
            self.input.reserve(self.read_size().max(READ_SIZE));
        }
        &mut self.input
    }

    /// Returns the size of the next read.
    ///
    /// The buffer for a large string grows as its bytes arrive. The announced length alone must not
    /// allocate.
    fn read_size(&self) -> usize {
        let received = self.input.len();
        self.needed.saturating_sub(received).clamp(READ_SIZE / 4, received.max(READ_SIZE))
    }

    /// Moves the complete replies from the input to `completed`.
    ///
    /// Push messages between replies are dropped. Those before or within a reply stay part of it,
    /// and its reader skips them.
    pub(crate) fn decode(&mut self, completed: &mut VecDeque<(SentRequest, RawReplies)>) -> Result<(), Error> {
        if self.input.len() < self.needed {
            return Ok(());
        }
        let input = self.input.split().freeze();
        let mut chunk = Chunk::sharing(&input);
        let mut start = 0;
        let missing = loop {
            let Some(&first) = self.sent.front() else {
                match self.parser.feed_pushes(&mut chunk)? {
                    Fed::Done => break 1,
                    Fed::More(missing) => break missing,
                }
            };
            if chunk.rest().is_empty() {
                break 1;
            }
            if first.replies == 1
                && let Some(string) = self.parser.cut_string(&mut chunk)
            {
                let place = chunk.place(string);
                start = place.end + 2;
                self.complete_first();
                completed.push_back((first, RawReplies::String(input.slice(place))));
                continue;
            }
            if !self.parser.is_reading() {
                self.parser.expect(first.replies as usize);
            }
            let fed = self.parser.feed(&mut chunk, &mut SkipTokens)?;
            let end = input.len() - chunk.rest().len();
            let part = input.slice(start..end);
            start = end;
            match fed {
                Fed::Done => {
                    self.complete_first();
                    let replied = if self.parts.is_empty() {
                        RawReplies::Contiguous(first.replies, part)
                    } else {
                        self.parts.push(part);
                        RawReplies::Split(first.replies, std::mem::take(&mut self.parts).into())
                    };
                    completed.push_back((first, replied));
                }
                Fed::More(missing) => {
                    if !part.is_empty() {
                        self.parts.push(part);
                    }
                    break missing;
                }
            }
        };
        let rest = chunk.rest();
        if input.len() > MAX_IDLE_CAPACITY {
            self.input = BytesMut::with_capacity(READ_SIZE);
        }
        self.input.extend_from_slice(rest);
        self.needed = rest.len() + missing;
        Ok(())
    }
}

/// A receiver that ignores all tokens. The decoder only needs the ends of replies.
struct SkipTokens;

impl Receive for SkipTokens {
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
    use crate::redis::conn::multiplexed::pipeline::ByteCounts;

    fn now() -> Checkpoint {
        Checkpoint { at: tokio::time::Instant::now(), counts: ByteCounts::default() }
    }

    /// Feeds the input in parts that end at `cuts`, and formats the replies to requests that expect
    /// the given numbers of replies.
    fn decode(input: &[u8], requests: &[usize], cuts: &[usize]) -> Result<Vec<String>, Error> {
        let mut decoder = Decoder::new(1 << 20);
        decoder.expect(requests.iter().map(|replies| SentRequest::without_caller(*replies)), now());
        let (mut completed, mut at) = (VecDeque::new(), 0);
        for end in cuts.iter().copied().chain([input.len()]) {
            decoder.read_buffer().extend_from_slice(&input[at..end]);
            at = end;
            decoder.decode(&mut completed)?;
        }
        completed
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
    fn decodes_replies_at_any_split_and_skips_pushes() {
        let whole = decode(INPUT, &[1, 1, 2, 1], &[]).unwrap();
        assert_eq!(whole.len(), 4);
        assert_eq!(whole[0], format!("{:?} ", Token::Bulk(b"ab")));
        assert_eq!(whole[2], format!("{:?} {:?} ", Token::Status(b"OK"), Token::Int(7)));
        assert_eq!(whole[3], format!("{:?} ", Token::Bulk(b"mellifluous!")));
        // Miri is about a thousand times slower.
        let step = if cfg!(miri) { 13 } else { 1 };
        for first in (0..=INPUT.len()).step_by(step) {
            for second in (first..=INPUT.len()).step_by(step) {
                assert_eq!(decode(INPUT, &[1, 1, 2, 1], &[first, second]).unwrap(), whole, "{first} {second}");
            }
        }
    }

    #[test]
    fn rejects_replies_without_a_request() {
        let error = decode(b"$1\r\na\r\n$1\r\nb\r\n", &[1], &[]).unwrap_err();
        assert_eq!(error.to_string(), "the server sent 7 bytes more than it was asked for");
        assert!(decode(b"$1\r\na\r\n?", &[1, 1], &[]).is_err());
    }

    #[test]
    fn decodes_a_large_string_from_many_reads() {
        let size = if cfg!(miri) { 1_000 } else { 100_000 };
        let large = format!("*2\r\n${size}\r\n{}\r\n$3\r\nend\r\n", "x".repeat(size));
        let cuts: Vec<usize> = (0..large.len()).step_by(777).collect();
        let shown = decode(large.as_bytes(), &[1], &cuts).unwrap();
        assert!(shown[0].len() > size && shown.len() == 1);
    }

    #[test]
    fn reuses_the_buffer_once_replies_are_dropped() {
        let (mut decoder, mut completed) = (Decoder::new(1 << 20), VecDeque::new());
        let begin = decoder.read_buffer().as_ptr();
        for _ in 0..if cfg!(miri) { 20 } else { 1000 } {
            decoder.expect([SentRequest::without_caller(1)].into_iter(), now());
            decoder.read_buffer().extend_from_slice(b"$50\r\n01234567890123456789012345678901234567890123456789\r\n");
            decoder.decode(&mut completed).unwrap();
            completed.clear();
        }
        assert!(decoder.read_buffer().as_ptr().addr() - begin.addr() < READ_SIZE, "the memory is reused");
    }
}
