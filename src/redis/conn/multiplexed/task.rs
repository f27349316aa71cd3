//! [`ConnectionTask`]: an open connection that tasks share: sends their requests, hands on the replies, and finds out when the
//! server does not answer.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::error::Error;
use crate::redis::conn::blocking::{closed, io_error, late};
use crate::redis::conn::limits::{KEEP, PROGRESS, READING};
use crate::redis::conn::multiplexed::decoder::Decoder;
use crate::redis::conn::multiplexed::pipeline::{Mark, Moved, Replied, Sent};
use crate::redis::conn::multiplexed::socket::AsyncSocket;
use crate::redis::conn::multiplexed::{MultiplexedConnection, YEAR, ended};

/// Parser are handed on in portions of so many at least, and in so many portions at most.
const PORTION: usize = 8;

/// How far a round of sending and reading came.
enum Progress {
    Moved,
    /// There are replies left to hand on, after others had their turn.
    More,
    None,
}

/// An open connection. Dropped, it is closed, and whoever waits for replies gets an error.
pub(crate) struct ConnectionTask<'l> {
    link: &'l MultiplexedConnection,
    stream: AsyncSocket,
    incoming: Decoder,
    output: Vec<u8>,
    written: usize,
    /// Whether the stream may keep some of it back.
    unflushed: bool,
    /// Parser that were not handed on yet.
    answered: VecDeque<(Sent, Replied)>,
    /// How many to hand on at once.
    portion: usize,
    woken: Vec<Waker>,
    /// Since when `output` is being sent.
    sending_since: Option<Instant>,
    /// How many bytes were sent and read.
    moved: Moved,
    /// WakeSetWaker when the oldest request should have been answered; set when there is one and it is not.
    timer: Pin<Box<Sleep>>,
    is_set: bool,
    /// From when the time of the oldest request counts, where enough has moved meanwhile; with when that was sent.
    extended: Option<(Instant, Mark)>,
    broken_by: Option<Error>,
}

impl Drop for ConnectionTask<'_> {
    fn drop(&mut self) {
        let error = self.broken_by.take().unwrap_or_else(ended);
        // What came before it broke is as good as ever.
        self.hand_on(usize::MAX);
        self.link.pipeline.close(self.incoming.give_up(), &error);
    }
}

impl<'l> ConnectionTask<'l> {
    pub(crate) fn new(link: &'l MultiplexedConnection, stream: AsyncSocket, incoming: Decoder) -> Self {
        ConnectionTask {
            link,
            stream,
            incoming,
            output: Vec::with_capacity(4096),
            written: 0,
            unflushed: false,
            answered: VecDeque::new(),
            portion: PORTION,
            woken: Vec::new(),
            sending_since: None,
            moved: Moved::default(),
            timer: Box::pin(sleep_until(Instant::now())),
            is_set: false,
            extended: None,
            broken_by: None,
        }
    }

    /// Sends and reads until the connection breaks, and why; `None` when nobody needs it any more.
    pub(crate) async fn serve(mut self) -> Option<Error> {
        let error = poll_fn(|context| self.poll(context)).await?;
        self.broken_by = Some(error.copy());
        Some(error)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Error>> {
        loop {
            match self.exchange(context) {
                Ok(Progress::Moved) => {}
                Ok(Progress::More) => {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Ok(Progress::None) => break,
                Err(error) => return Poll::Ready(Some(error)),
            }
        }
        if self.incoming.oldest().is_none() && self.link.pipeline.is_abandoned() {
            return Poll::Ready(None);
        }
        self.poll_timer(context).map(Some)
    }

    /// Sends what there is, hands on what came, and reads.
    #[inline]
    fn exchange(&mut self, context: &mut Context<'_>) -> Result<Progress, Error> {
        let sent = self.send(context)?;
        self.moved.sent += sent as u64;
        // Who gets a reply now may send the next request before the others get theirs: server and tasks work at the same
        // time then, and not in turns.
        if self.answered.len() > self.portion {
            self.hand_on(self.portion);
            return Ok(Progress::More);
        }
        self.hand_on(usize::MAX);
        let read = self.read(context)?;
        self.moved.read += read as u64;
        Ok(if sent + read > 0 { Progress::Moved } else { Progress::None })
    }

    fn hand_on(&mut self, most: usize) {
        let most = most.min(self.answered.len());
        self.link.pipeline.answer(self.answered.drain(..most), &mut self.woken);
    }

    /// Sends what there is: how many bytes.
    #[inline]
    fn send(&mut self, context: &mut Context<'_>) -> Result<usize, Error> {
        let mut moved = 0;
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
            if self.output.capacity() > KEEP {
                self.output = Vec::with_capacity(4096);
            }
            let (incoming, moved) = (&mut self.incoming, self.moved);
            // Who comes back by himself need not be woken.
            let waker = (self.answered.len() <= self.portion).then(|| context.waker());
            let mut since = None;
            self.link.pipeline.take_output(waker, &mut self.output, |requests| {
                let at = Instant::now();
                since = Some(at);
                incoming.expect(requests, Mark { at, moved });
            })?;
            self.sending_since = since;
        }
        while self.written < self.output.len() {
            let left = &self.output[self.written..];
            match Pin::new(&mut self.stream).poll_write(context, left) {
                Poll::Ready(Ok(0)) => {
                    return Err(io_error(&std::io::ErrorKind::WriteZero.into(), "sending the request"));
                }
                Poll::Ready(Ok(bytes)) => {
                    self.written += bytes;
                    self.unflushed = true;
                    moved += bytes;
                }
                Poll::Ready(Err(error)) => return Err(io_error(&error, "sending the request")),
                Poll::Pending => break,
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.stream).poll_flush(context) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(io_error(&error, "sending the request")),
                Poll::Pending => {}
            }
        }
        Ok(moved)
    }

    /// Reads what there is: how many bytes.
    #[inline]
    fn read(&mut self, context: &mut Context<'_>) -> Result<usize, Error> {
        // Parser that were handed on just now still hold the room that could be used again: it is looked for when
        // something has come.
        if !self.incoming.has_room() && self.stream.poll_read_ready(context).is_pending() {
            return Ok(0);
        }
        match pin!(self.stream.read_buf(self.incoming.room())).poll(context) {
            Poll::Ready(Ok(0)) => Err(closed()),
            Poll::Ready(Ok(bytes)) => {
                self.incoming.cut(&mut self.answered)?;
                self.portion = PORTION.max(self.answered.len() / PORTION);
                Ok(bytes)
            }
            Poll::Ready(Err(error)) => Err(io_error(&error, READING)),
            Poll::Pending => Ok(0),
        }
    }

    /// Ready when the oldest request has waited for too long: for the response timeout, and again for each in which enough
    /// moved of what is large.
    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<Error> {
        let Some(oldest) = self.incoming.oldest() else { return Poll::Pending };
        if self.is_set && !self.timer.is_elapsed() {
            return Poll::Pending;
        }
        let mut from = match self.extended {
            Some((sent, from)) if sent == oldest.at => from,
            _ => oldest,
        };
        let (now, response) = (Instant::now(), self.link.limits.response.min(YEAR));
        if now >= from.at + response {
            // What is sent counts as long as it may be the oldest request itself.
            let is_being_sent = self.sending_since == Some(oldest.at) && self.written < self.output.len();
            let sent = if is_being_sent { self.moved.sent - from.moved.sent } else { 0 };
            if sent + self.moved.read - from.moved.read < PROGRESS {
                return Poll::Ready(late());
            }
            from = Mark { at: now, moved: self.moved };
            self.extended = Some((oldest.at, from));
        }
        self.is_set = true;
        self.timer.as_mut().reset(from.at + response);
        // Asks to be woken, also where the task's budget is used up: nobody asks once more.
        let _ = pin!(unconstrained(self.timer.as_mut())).poll(context);
        Poll::Pending
    }
}
