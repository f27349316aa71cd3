//! [`ConnectionTask`] drives an open multiplexed connection: it sends requests, delivers replies
//! and detects a server that does not reply.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::error::Error;
use crate::redis::conn::blocking::{closed, io_error, timed_out};
use crate::redis::conn::limits::{MAX_IDLE_CAPACITY, MIN_PROGRESS, READING, SENDING};
use crate::redis::conn::multiplexed::decoder::Decoder;
use crate::redis::conn::multiplexed::pipeline::{ByteCounts, Checkpoint, RawReplies, SentRequest};
use crate::redis::conn::multiplexed::socket::AsyncSocket;
use crate::redis::conn::multiplexed::{MultiplexedConnection, YEAR, ended};

/// The smallest number of replies to deliver at once, and the largest number of batches per read.
const DELIVERY_BATCH: usize = 8;

/// The outcome of a round of sending and reading.
enum Progress {
    Transferred,
    /// Replies are left to deliver, after other tasks have run.
    More,
    None,
}

/// An open connection.
///
/// Dropping it closes the connection and fails the pending requests.
pub(crate) struct ConnectionTask<'l> {
    connection: &'l MultiplexedConnection,
    stream: AsyncSocket,
    decoder: Decoder,
    output: Vec<u8>,
    written: usize,
    /// Whether the stream may hold unflushed bytes.
    unflushed: bool,
    /// Replies that were not delivered yet.
    completed: VecDeque<(SentRequest, RawReplies)>,
    /// The number of replies to deliver before the next round.
    batch: usize,
    wakers: Vec<Waker>,
    /// When the current `output` was taken.
    sending_since: Option<Instant>,
    /// The bytes sent and read so far.
    counts: ByteCounts,
    /// Expires at the deadline of the oldest request. Set if `is_set`.
    timer: Pin<Box<Sleep>>,
    is_set: bool,
    /// The start of the current timeout of the oldest request, if transfers have extended it, and
    /// when that request was sent.
    extended: Option<(Instant, Checkpoint)>,
    broken_by: Option<Error>,
}

impl Drop for ConnectionTask<'_> {
    fn drop(&mut self) {
        let error = self.broken_by.take().unwrap_or_else(ended);
        // Replies that arrived before the failure are valid.
        self.deliver(usize::MAX);
        self.connection.pipeline.close(self.decoder.take_pending(), &error);
    }
}

impl<'l> ConnectionTask<'l> {
    pub(crate) fn new(connection: &'l MultiplexedConnection, stream: AsyncSocket, decoder: Decoder) -> Self {
        ConnectionTask {
            connection,
            stream,
            decoder,
            output: Vec::with_capacity(4096),
            written: 0,
            unflushed: false,
            completed: VecDeque::new(),
            batch: DELIVERY_BATCH,
            wakers: Vec::new(),
            sending_since: None,
            counts: ByteCounts::default(),
            timer: Box::pin(sleep_until(Instant::now())),
            is_set: false,
            extended: None,
            broken_by: None,
        }
    }

    /// Drives the connection until it breaks and returns the error, or `None` after a shutdown.
    pub(crate) async fn serve(mut self) -> Option<Error> {
        let error = poll_fn(|context| self.poll(context)).await?;
        self.broken_by = Some(error.copy());
        Some(error)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Error>> {
        loop {
            match self.exchange(context) {
                Ok(Progress::Transferred) => {}
                Ok(Progress::More) => {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Ok(Progress::None) => break,
                Err(error) => return Poll::Ready(Some(error)),
            }
        }
        if self.decoder.oldest().is_none() && self.connection.pipeline.is_shut_down() {
            return Poll::Ready(None);
        }
        self.poll_timer(context).map(Some)
    }

    /// Sends queued requests, delivers replies and reads.
    #[inline]
    fn exchange(&mut self, context: &mut Context<'_>) -> Result<Progress, Error> {
        let sent = self.send(context)?;
        self.counts.sent += sent as u64;
        // A task that gets its reply now can send its next request while the others still wait.
        // Server and tasks then work at the same time instead of taking turns.
        if self.completed.len() > self.batch {
            self.deliver(self.batch);
            return Ok(Progress::More);
        }
        self.deliver(usize::MAX);
        let read = self.read(context)?;
        self.counts.read += read as u64;
        Ok(if sent + read > 0 { Progress::Transferred } else { Progress::None })
    }

    fn deliver(&mut self, max: usize) {
        let max = max.min(self.completed.len());
        self.connection.pipeline.deliver(self.completed.drain(..max), &mut self.wakers);
    }

    /// Sends queued requests and returns the number of bytes.
    #[inline]
    fn send(&mut self, context: &mut Context<'_>) -> Result<usize, Error> {
        let mut sent = 0;
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
            if self.output.capacity() > MAX_IDLE_CAPACITY {
                self.output = Vec::with_capacity(4096);
            }
            let (decoder, counts) = (&mut self.decoder, self.counts);
            // If more replies are left to deliver, the task is polled again anyway and needs no
            // waker.
            let waker = (self.completed.len() <= self.batch).then(|| context.waker());
            let mut since = None;
            self.connection.pipeline.take_output(waker, &mut self.output, |requests| {
                let at = Instant::now();
                since = Some(at);
                decoder.expect(requests, Checkpoint { at, counts });
            })?;
            self.sending_since = since;
        }
        while self.written < self.output.len() {
            let left = &self.output[self.written..];
            match Pin::new(&mut self.stream).poll_write(context, left) {
                Poll::Ready(Ok(0)) => {
                    return Err(io_error(&std::io::ErrorKind::WriteZero.into(), SENDING));
                }
                Poll::Ready(Ok(bytes)) => {
                    self.written += bytes;
                    self.unflushed = true;
                    sent += bytes;
                }
                Poll::Ready(Err(error)) => return Err(io_error(&error, SENDING)),
                Poll::Pending => break,
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.stream).poll_flush(context) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(io_error(&error, SENDING)),
                Poll::Pending => {}
            }
        }
        Ok(sent)
    }

    /// Reads available bytes, parses them and returns their number.
    #[inline]
    fn read(&mut self, context: &mut Context<'_>) -> Result<usize, Error> {
        // Delivered replies may still share the memory of the read buffer. It can be reused only
        // once they are dropped, so new memory is not allocated before there is something to read.
        if !self.decoder.has_room() && self.stream.poll_read_ready(context).is_pending() {
            return Ok(0);
        }
        match pin!(self.stream.read_buf(self.decoder.read_buffer())).poll(context) {
            Poll::Ready(Ok(0)) => Err(closed()),
            Poll::Ready(Ok(bytes)) => {
                self.decoder.decode(&mut self.completed)?;
                self.batch = DELIVERY_BATCH.max(self.completed.len() / DELIVERY_BATCH);
                Ok(bytes)
            }
            Poll::Ready(Err(error)) => Err(io_error(&error, READING)),
            Poll::Pending => Ok(0),
        }
    }

    /// Returns the timeout error once the oldest request has waited for too long.
    ///
    /// A request waits for one response timeout, and for another one each time that
    /// [`MIN_PROGRESS`] bytes were transferred within the last.
    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<Error> {
        let Some(oldest) = self.decoder.oldest() else { return Poll::Pending };
        if self.is_set && !self.timer.is_elapsed() {
            return Poll::Pending;
        }
        let mut from = match self.extended {
            Some((sent, from)) if sent == oldest.at => from,
            _ => oldest,
        };
        let (now, response) = (Instant::now(), self.connection.limits.response.min(YEAR));
        if now >= from.at + response {
            // Sent bytes count only while they may belong to the oldest request.
            let is_being_sent = self.sending_since == Some(oldest.at) && self.written < self.output.len();
            let sent = if is_being_sent { self.counts.sent - from.counts.sent } else { 0 };
            if sent + self.counts.read - from.counts.read < MIN_PROGRESS {
                return Poll::Ready(timed_out());
            }
            from = Checkpoint { at: now, counts: self.counts };
            self.extended = Some((oldest.at, from));
        }
        self.is_set = true;
        self.timer.as_mut().reset(from.at + response);
        // `unconstrained`, because the timer must register its waker even if the task's budget is
        // used up.
        let _ = pin!(unconstrained(self.timer.as_mut())).poll(context);
        Poll::Pending
    }
}
