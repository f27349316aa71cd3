//! [`Pipeline`]: the state that the callers of a multiplexed connection share with its connection
//! task.
//!
//! Requests go in and replies come out in the same order. This module does no I/O.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use slab::Slab;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, ErrorKind};
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::parser::{Parser, Receive, too_long};

/// The number of unsent bytes at which further requests wait for room. One large request may exceed
/// it.
const MAX_OUTPUT: usize = 1 << 20;

/// The complete replies to one request, not decoded yet.
#[derive(Debug)]
pub(crate) enum RawReplies {
    /// A single reply that is this string.
    String(Bytes),
    /// This many replies in one buffer.
    Contiguous(u32, Bytes),
    /// This many replies in several buffers, which are split between tokens.
    Split(u32, Box<[Bytes]>),
}

impl RawReplies {
    /// Passes the replies to `receive`, token by token.
    #[inline]
    pub(crate) fn read(self, max_entry: usize, receive: &mut impl Receive) -> Result<(), Error> {
        match self {
            RawReplies::String(string) if string.len() <= max_entry => receive.string(string),
            RawReplies::String(_) => Err(too_long().into()),
            RawReplies::Contiguous(replies, part) => read(replies, &[part], max_entry, receive),
            RawReplies::Split(replies, parts) => read(replies, &parts, max_entry, receive),
        }
    }
}

/// Passes `count` replies in `parts` to `receive`, token by token.
fn read(count: u32, parts: &[Bytes], max_entry: usize, receive: &mut impl Receive) -> Result<(), Error> {
    let mut parser = Parser::new(max_entry);
    parser.expect(count as usize);
    parts.iter().try_for_each(|part| parser.feed(&mut Chunk::sharing(part), receive).map(drop))
}

/// The queue of requests and the slots of replies of one connection.
pub(crate) struct Pipeline {
    state: Mutex<PipelineState>,
    /// The largest number of requests in flight.
    max_in_flight: usize,
    /// Notified when a waiting request may be queued.
    room: Notify,
    waiting: AtomicUsize,
}

#[derive(Default)]
struct PipelineState {
    /// Whether there is a connection that takes requests.
    is_open: bool,
    /// Whether the connection is to be closed once all replies have arrived.
    is_shut_down: bool,
    /// Whether a reply did not match its request, so that later replies cannot be trusted.
    is_out_of_step: bool,
    /// Encoded commands that were not sent yet.
    output: Vec<u8>,
    /// The requests in `output`.
    queued: Vec<SentRequest>,
    /// The state of each caller that waits for replies.
    slots: Slab<PendingReply>,
    /// The number of requests whose replies have not arrived.
    in_flight: usize,
    /// The waker of the connection task, while the task has nothing to send.
    task: Option<Waker>,
}

/// A request that was sent or is queued.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SentRequest {
    /// `None` if no caller waits for the replies.
    slot: Option<u32>,
    pub(crate) replies: u32,
}

/// Converts a number of replies. The commands of a request are in memory, so it always fits.
fn count(replies: usize) -> u32 {
    u32::try_from(replies).expect("the commands of a request fit in memory, so there are fewer than 2^32")
}

impl SentRequest {
    /// A request without a slot, so that no caller gets its replies.
    pub(crate) fn without_caller(replies: usize) -> Self {
        SentRequest { slot: None, replies: count(replies) }
    }
}

/// The bytes that a connection has sent and read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ByteCounts {
    pub(crate) sent: u64,
    pub(crate) read: u64,
}

/// When a request was sent, and the byte counts at that time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) at: Instant,
    pub(crate) counts: ByteCounts,
}

/// The state of a caller that waits for replies.
enum PendingReply {
    Waiting(Waker),
    Received(Result<RawReplies, Error>),
    /// The caller was dropped. The replies are discarded.
    Cancelled,
}

/// The reason why a request was not queued.
#[derive(Debug)]
pub(crate) enum NotQueued {
    /// Too many requests are in flight. Wait with [`Pipeline::wait_for_room`].
    Full,
    /// There is no connection.
    Closed,
}

impl Pipeline {
    pub(crate) fn new(max_in_flight: usize) -> Self {
        Pipeline { state: Mutex::default(), max_in_flight, room: Notify::new(), waiting: AtomicUsize::new(0) }
    }

    /// Starts to accept requests, after the connection was opened.
    pub(crate) fn open(&self) {
        let mut state = self.lock();
        state.is_open = true;
        state.is_out_of_step = false;
    }

    /// Returns whether there is a connection that takes requests.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().is_open
    }

    /// Lets the connection task close the connection once all replies have arrived.
    ///
    /// No requests may follow.
    pub(crate) fn shut_down(&self) {
        let mut state = self.lock();
        state.is_shut_down = true;
        let task = state.task.take();
        drop(state);
        task.into_iter().for_each(Waker::wake);
    }

    /// Closes the connection if the error means that a reply did not match its request.
    ///
    /// Otherwise later requests could get each other's replies.
    #[cold]
    pub(crate) fn close_on_protocol_error(&self, error: &Error) {
        if error.kind() != ErrorKind::Protocol {
            return;
        }
        let mut state = self.lock();
        state.is_out_of_step = true;
        let task = state.task.take();
        drop(state);
        task.into_iter().for_each(Waker::wake);
    }

    /// Returns whether [`shut_down`](Pipeline::shut_down) was called.
    pub(crate) fn is_shut_down(&self) -> bool {
        self.lock().is_shut_down
    }

    /// Creates a request that sends the commands appended by `write` and waits for their replies.
    ///
    /// `has_waited` says whether the caller has waited for room.
    pub(crate) fn request<W: Fn(&mut Vec<u8>) -> usize>(&self, write: W, has_waited: bool) -> Request<'_, W> {
        Request { pipeline: self, has_waited, stage: RequestStage::New(write) }
    }

    /// Sends commands without waiting for their replies. Returns `write` if there is no connection.
    pub(crate) fn send<W: FnOnce(&mut Vec<u8>) -> usize>(&self, write: W) -> Result<(), W> {
        let mut state = self.lock();
        if !state.is_open {
            drop(state);
            return Err(write);
        }
        let replies = state.write(write);
        let task = if replies > 0 { state.queue(SentRequest::without_caller(replies)) } else { None };
        drop(state);
        task.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Waits until there may be room for another request.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] if `until` passes.
    pub(crate) async fn wait_for_room(&self, until: Instant) -> Result<(), Error> {
        /// Counts a waiting caller until it is dropped.
        struct WaitingGuard<'p>(&'p AtomicUsize);
        impl Drop for WaitingGuard<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let mut room = std::pin::pin!(self.room.notified());
        room.as_mut().enable();
        // Counted under the lock, so that a request that completes afterwards sees the count.
        let _waiting = {
            let state = self.lock();
            if !state.is_open || state.has_room(self.max_in_flight) {
                return Ok(());
            }
            self.waiting.fetch_add(1, Ordering::Relaxed);
            WaitingGuard(&self.waiting)
        };
        timeout_at(until, room).await.map_err(|_| {
            let message = format!(
                "waiting to send the request: {} were in flight all the time (see `in_flight`)",
                self.max_in_flight
            );
            Error::new(ErrorKind::Timeout, message)
        })
    }

    /// Moves all queued requests to the connection task.
    ///
    /// The commands go to `output`, which is empty, and the requests to `sent`. If there are none,
    /// `waker` is called as soon as there are.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] if an earlier reply did not match its request.
    #[inline]
    pub(crate) fn take_output(
        &self,
        waker: Option<&Waker>,
        output: &mut Vec<u8>,
        sent: impl FnOnce(std::vec::Drain<'_, SentRequest>),
    ) -> Result<(), Error> {
        let mut state = self.lock();
        if state.is_out_of_step {
            return Err(Error::new(ErrorKind::Protocol, "the server sent an unexpected reply to an earlier request"));
        }
        if state.output.is_empty() {
            // The waker is the connection task's own, so cloning and dropping it under the lock
            // cannot deadlock.
            if let (Some(waker), None) = (waker, &state.task) {
                state.task = Some(waker.clone());
            }
            return Ok(());
        }
        // Wake callers that wait for room in the output. Callers that wait because too many
        // requests are in flight would only wait again.
        let room = if state.output.len() < MAX_OUTPUT { 0 } else { self.max_in_flight.saturating_sub(state.in_flight) };
        std::mem::swap(&mut state.output, output);
        sent(state.queued.drain(..));
        drop(state);
        if room > 0 {
            self.make_room(room);
        }
        Ok(())
    }

    /// Delivers replies to their callers. Leaves `wakers` empty.
    pub(crate) fn deliver(
        &self,
        replies: impl ExactSizeIterator<Item = (SentRequest, RawReplies)>,
        wakers: &mut Vec<Waker>,
    ) {
        if replies.len() == 0 {
            return;
        }
        let mut state = self.lock();
        for (sent, replied) in replies {
            state.deliver(sent, Ok(replied), wakers);
        }
        let room = self.max_in_flight.saturating_sub(state.in_flight);
        drop(state);
        wakers.drain(..).for_each(Waker::wake);
        self.make_room(room);
    }

    /// Closes the pipeline and fails all requests: those in `sent` and those that are still queued.
    pub(crate) fn close(&self, sent: impl Iterator<Item = SentRequest>, error: &Error) {
        let mut wakers = Vec::new();
        let mut state = self.lock();
        state.is_open = false;
        state.output = Vec::new();
        let queued = std::mem::take(&mut state.queued);
        let mut error = error.copy();
        for sent in sent.chain(queued) {
            state.deliver(sent, Err(error.copy()), &mut wakers);
            // An unexpected reply may concern only the oldest request. The others lost their
            // connection.
            if error.kind() == ErrorKind::Protocol {
                error = Error::new(ErrorKind::Connection, format!("the connection was closed: {error}"));
            }
        }
        let task = state.task.take();
        drop(state);
        drop(task);
        wakers.into_iter().for_each(Waker::wake);
        self.make_room(usize::MAX);
    }

    /// Wakes up to `count` callers that wait for room.
    fn make_room(&self, count: usize) {
        for _ in 0..self.waiting.load(Ordering::Relaxed).min(count) {
            self.room.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, PipelineState> {
        self.state.lock()
    }
}

impl PipelineState {
    /// Returns whether another request may be queued.
    #[inline]
    fn has_room(&self, max_in_flight: usize) -> bool {
        self.in_flight < max_in_flight && self.output.len() < MAX_OUTPUT
    }

    /// Appends commands to the output: all of them or, if `write` panics, none.
    #[inline]
    fn write(&mut self, write: impl FnOnce(&mut Vec<u8>) -> usize) -> usize {
        struct TruncateOnDrop<'o>(&'o mut Vec<u8>, usize);
        impl Drop for TruncateOnDrop<'_> {
            fn drop(&mut self) {
                self.0.truncate(self.1);
            }
        }
        let before = self.output.len();
        let guard = TruncateOnDrop(&mut self.output, before);
        let replies = write(&mut *guard.0);
        if replies > 0 {
            std::mem::forget(guard);
        }
        replies
    }

    /// Queues a request. Returns the connection task's waker, to be called outside of the lock.
    #[inline(always)]
    fn queue(&mut self, sent: SentRequest) -> Option<Waker> {
        self.queued.push(sent);
        self.in_flight += 1;
        self.task.take()
    }

    /// Completes a request and collects the waker of its caller.
    #[inline(always)]
    fn deliver(&mut self, sent: SentRequest, reply: Result<RawReplies, Error>, wakers: &mut Vec<Waker>) {
        self.in_flight -= 1;
        let Some(slot) = sent.slot else { return };
        match std::mem::replace(&mut self.slots[slot as usize], PendingReply::Received(reply)) {
            PendingReply::Waiting(waker) => wakers.push(waker),
            _ => drop(self.slots.remove(slot as usize)),
        }
    }
}

/// A request of one caller.
///
/// # Cancel safety
/// If it is dropped, commands that were queued are still sent, and their replies are discarded.
pub(crate) struct Request<'p, W> {
    pipeline: &'p Pipeline,
    has_waited: bool,
    stage: RequestStage<W>,
}

enum RequestStage<W> {
    /// Not queued yet. Holds the closure that writes the commands.
    New(W),
    /// Queued or sent. Holds the slot of the replies.
    Sent(u32),
    Done,
}

// No field is pinned.
impl<W> Unpin for Request<'_, W> {}

impl<W: Fn(&mut Vec<u8>) -> usize> Future for Request<'_, W> {
    type Output = Result<Result<RawReplies, Error>, NotQueued>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.stage {
            RequestStage::New(ref write) => match self.pipeline.queue(write, self.has_waited, context) {
                Ok(Some(slot)) => {
                    self.stage = RequestStage::Sent(slot);
                    Poll::Pending
                }
                Ok(None) => {
                    self.stage = RequestStage::Done;
                    Poll::Ready(Ok(Ok(RawReplies::Contiguous(0, Bytes::new()))))
                }
                Err(not_queued) => {
                    self.stage = RequestStage::Done;
                    Poll::Ready(Err(not_queued))
                }
            },
            RequestStage::Sent(slot) => {
                let Poll::Ready(reply) = self.pipeline.poll_reply(slot, context) else { return Poll::Pending };
                self.stage = RequestStage::Done;
                Poll::Ready(Ok(reply))
            }
            RequestStage::Done => unreachable!("a request is received once"),
        }
    }
}

impl<W> Drop for Request<'_, W> {
    fn drop(&mut self) {
        if let RequestStage::Sent(slot) = self.stage {
            self.pipeline.cancel(slot);
        }
    }
}

impl Pipeline {
    /// Queues a request and returns its slot, or `None` if `write` appended nothing.
    #[inline(always)]
    fn queue(
        &self,
        write: impl Fn(&mut Vec<u8>) -> usize,
        has_waited: bool,
        context: &Context<'_>,
    ) -> Result<Option<u32>, NotQueued> {
        // Cloning and dropping a waker runs foreign code, so both happen outside of the lock.
        let waker = context.waker().clone();
        let mut state = self.lock();
        if !state.is_open {
            drop(state);
            return Err(NotQueued::Closed);
        }
        // A caller that was woken for room gets it, even if others have arrived since.
        let has_room =
            has_waited || (state.in_flight < self.max_in_flight && self.waiting.load(Ordering::Relaxed) == 0);
        if !has_room || state.output.len() >= MAX_OUTPUT {
            drop(state);
            return Err(NotQueued::Full);
        }
        let replies = state.write(write);
        if replies == 0 {
            drop(state);
            return Ok(None);
        }
        // Slots are limited by `max_in_flight` and by memory, far below 2^32.
        #[allow(clippy::cast_possible_truncation)]
        let slot = state.slots.insert(PendingReply::Waiting(waker)) as u32;
        let task = state.queue(SentRequest { slot: Some(slot), replies: count(replies) });
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
        Ok(Some(slot))
    }

    /// Takes the replies of a slot, or registers the waker of the caller.
    #[inline(always)]
    fn poll_reply(&self, slot: u32, context: &Context<'_>) -> Poll<Result<RawReplies, Error>> {
        let mut state = self.lock();
        match &state.slots[slot as usize] {
            PendingReply::Received(_) => {
                if let PendingReply::Received(reply) = state.slots.remove(slot as usize) {
                    return Poll::Ready(reply);
                }
            }
            PendingReply::Waiting(known) if known.will_wake(context.waker()) => return Poll::Pending,
            _ => {}
        }
        drop(state);
        self.replace_waker(slot, context)
    }

    /// Replaces the waker of a slot, unless the replies have arrived meanwhile.
    #[cold]
    fn replace_waker(&self, slot: u32, context: &Context<'_>) -> Poll<Result<RawReplies, Error>> {
        let waker = context.waker().clone();
        let mut state = self.lock();
        let old = match &mut state.slots[slot as usize] {
            PendingReply::Waiting(known) => std::mem::replace(known, waker),
            PendingReply::Received(_) => {
                let received = state.slots.remove(slot as usize);
                drop(state);
                let PendingReply::Received(reply) = received else { unreachable!("the reply was received above") };
                return Poll::Ready(reply);
            }
            PendingReply::Cancelled => unreachable!("a cancelled request is not polled"),
        };
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// Gives up a request whose caller was dropped.
    #[cold]
    fn cancel(&self, slot: u32) {
        let mut state = self.lock();
        let slot = slot as usize;
        let old = match &state.slots[slot] {
            PendingReply::Received(_) => state.slots.remove(slot),
            _ => std::mem::replace(&mut state.slots[slot], PendingReply::Cancelled),
        };
        drop(state);
        drop(old);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    /// Counts its wake-ups.
    #[derive(Default)]
    struct WakeCounter(AtomicUsize);

    impl Wake for WakeCounter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn poll<F: Future + Unpin>(future: &mut F, wake_count: &Arc<WakeCounter>) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(&Waker::from(Arc::clone(wake_count))))
    }

    fn ping(out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(b"*1\r\n$4\r\nPING\r\n");
        1
    }

    /// Takes the queued requests, as the connection task does.
    fn take_sent(pipeline: &Pipeline) -> Vec<SentRequest> {
        let (mut output, mut sent) = (Vec::new(), Vec::new());
        pipeline.take_output(None, &mut output, |requests| sent.extend(requests)).unwrap();
        assert_eq!(output.len(), sent.len() * 14);
        sent
    }

    fn deliver(pipeline: &Pipeline, sent: &[SentRequest], with: &'static [u8]) {
        let replied = |sent: &SentRequest| (*sent, RawReplies::String(Bytes::from_static(with)));
        pipeline.deliver(sent.iter().map(replied), &mut Vec::new());
    }

    #[test]
    fn delivers_each_reply_to_its_request() {
        let (pipeline, wakes) = (Pipeline::new(10), [0; 3].map(|_| Arc::new(WakeCounter::default())));
        assert!(matches!(poll(&mut pipeline.request(ping, false), &wakes[0]), Poll::Ready(Err(NotQueued::Closed))));
        pipeline.open();
        let mut requests = [0; 3].map(|_| pipeline.request(ping, false));
        for (request, wake_count) in requests.iter_mut().zip(&wakes) {
            assert!(poll(request, wake_count).is_pending());
            assert!(poll(request, wake_count).is_pending(), "polling again changes nothing");
        }
        let sent = take_sent(&pipeline);
        deliver(&pipeline, &sent[..1], b"first");
        let [first, second, third] = requests;
        // A request that is dropped before or after its reply arrives does not affect the others.
        drop(second);
        deliver(&pipeline, &sent[1..2], b"second");
        deliver(&pipeline, &sent[2..], b"third");
        assert_eq!(wakes.each_ref().map(|wake_count| wake_count.0.load(Ordering::Relaxed)), [1, 0, 1]);
        drop(first);
        let mut third = third;
        let reply = poll(&mut third, &wakes[2]);
        assert!(matches!(&reply, Poll::Ready(Ok(Ok(RawReplies::String(text)))) if text == "third"), "{reply:?}");
        assert!(pipeline.lock().slots.is_empty());
        assert_eq!(pipeline.lock().in_flight, 0);
    }

    #[test]
    fn closing_fails_the_waiting_requests() {
        let (pipeline, wake_count) = (Pipeline::new(10), Arc::new(WakeCounter::default()));
        pipeline.open();
        let (mut sent, mut queued) = (pipeline.request(ping, false), pipeline.request(ping, false));
        assert!(poll(&mut sent, &wake_count).is_pending());
        let in_flight = take_sent(&pipeline);
        assert!(poll(&mut queued, &wake_count).is_pending());
        assert!(pipeline.send(ping).is_ok());
        pipeline.close(in_flight.into_iter(), &Error::new(ErrorKind::Connection, "gone"));
        assert_eq!(wake_count.0.load(Ordering::Relaxed), 2);
        for request in [&mut sent, &mut queued] {
            let Poll::Ready(Ok(Err(error))) = poll(request, &wake_count) else { panic!("expected an error") };
            assert_eq!((error.kind(), error.to_string()), (ErrorKind::Connection, "gone".into()));
        }
        assert!(matches!(poll(&mut pipeline.request(ping, false), &wake_count), Poll::Ready(Err(NotQueued::Closed))));
        assert_eq!(pipeline.lock().in_flight, 0);
    }

    #[test]
    fn limits_the_requests_in_flight() {
        let (pipeline, wake_count) = (Pipeline::new(2), Arc::new(WakeCounter::default()));
        pipeline.open();
        let mut requests = [0; 2].map(|_| pipeline.request(ping, false));
        requests.iter_mut().for_each(|request| assert!(poll(request, &wake_count).is_pending()));
        assert!(matches!(poll(&mut pipeline.request(ping, false), &wake_count), Poll::Ready(Err(NotQueued::Full))));
        let sent = take_sent(&pipeline);
        deliver(&pipeline, &sent[..1], b"room");
        assert!(poll(&mut pipeline.request(ping, false), &wake_count).is_pending());
    }

    #[test]
    fn discards_commands_if_writing_panics() {
        let (pipeline, wake_count) = (Pipeline::new(2), Arc::new(WakeCounter::default()));
        pipeline.open();
        let broken = |out: &mut Vec<u8>| -> usize {
            out.extend_from_slice(b"*1\r\n");
            panic!("while writing");
        };
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = poll(&mut pipeline.request(broken, false), &wake_count);
        }));
        assert!(polled.is_err());
        assert!(pipeline.lock().output.is_empty() && pipeline.lock().slots.is_empty());
        let nothing = poll(&mut pipeline.request(|_: &mut Vec<u8>| 0, false), &wake_count);
        assert!(matches!(nothing, Poll::Ready(Ok(Ok(RawReplies::Contiguous(0, _))))));
    }
}
