//! [`Pipeline`]: what the callers of one connection and the task that serves it share. Requests go in, replies come out
//! in the same order; no I/O happens here.

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

/// What may wait to be sent, in bytes, before callers wait for room: a large request more at most.
const MOST_OUTPUT: usize = 1 << 20;

/// The replies to one request, whole.
#[derive(Debug)]
pub(crate) enum Replied {
    /// One reply, which is this string.
    String(Bytes),
    /// So many replies, in one piece.
    Piece(u32, Bytes),
    /// So many replies, in several pieces, cut between tokens.
    Pieces(u32, Box<[Bytes]>),
}

impl Replied {
    /// Gives the replies to `receive`, token by token.
    #[inline]
    pub(crate) fn read(self, max_entry: usize, receive: &mut impl Receive) -> Result<(), Error> {
        match self {
            Replied::String(string) if string.len() <= max_entry => receive.string(string),
            Replied::String(_) => Err(too_long().into()),
            Replied::Piece(replies, piece) => read(replies, &[piece], max_entry, receive),
            Replied::Pieces(replies, pieces) => read(replies, &pieces, max_entry, receive),
        }
    }
}

fn read(count: u32, pieces: &[Bytes], max_entry: usize, receive: &mut impl Receive) -> Result<(), Error> {
    let mut replies = Parser::new(max_entry);
    replies.expect(count as usize);
    pieces.iter().try_for_each(|piece| replies.feed(&mut Chunk::sharing(piece), receive).map(drop))
}

/// What the callers of one connection share with the task that serves it.
pub(crate) struct Pipeline {
    state: Mutex<PipelineState>,
    /// How many requests may be under way.
    most: usize,
    /// Callers who wait because there are so many.
    room: Notify,
    waiting: AtomicUsize,
}

#[derive(Default)]
struct PipelineState {
    is_open: bool,
    /// No requests will come any more.
    is_abandoned: bool,
    /// A reply was none to what was asked.
    is_distrusted: bool,
    /// Commands to be sent.
    output: Vec<u8>,
    /// Their requests.
    queued: Vec<Sent>,
    /// Callers who wait for replies.
    slots: Slab<PendingReply>,
    /// Requests whose replies have not come.
    under_way: usize,
    /// The task that serves the connection, while it has nothing to send.
    server: Option<Waker>,
}

/// A request that was sent, or is about to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// `None` when nobody waits for the replies.
    slot: Option<u32>,
    pub(crate) replies: u32,
}

/// As many as there are commands in memory, so never more.
fn count(replies: usize) -> u32 {
    u32::try_from(replies).expect("a request has less than four thousand million commands")
}

impl Sent {
    /// For whose replies no slot is.
    pub(crate) fn apart(replies: usize) -> Self {
        Sent { slot: None, replies: count(replies) }
    }
}

/// How many bytes a connection has sent and read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moved {
    pub(crate) sent: u64,
    pub(crate) read: u64,
}

/// When a request was sent, and what had moved by then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    pub(crate) at: Instant,
    pub(crate) moved: Moved,
}

/// A caller who waits for replies.
enum PendingReply {
    Waits(Waker),
    Answered(Result<Replied, Error>),
    /// It was dropped; its replies belong to nobody.
    Left,
}

/// Why a request was not taken.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// There are too many; see [`Pipeline::admit`].
    Full,
    /// There is no connection.
    Closed,
}

impl Pipeline {
    pub(crate) fn new(most: usize) -> Self {
        Pipeline { state: Mutex::default(), most, room: Notify::new(), waiting: AtomicUsize::new(0) }
    }

    /// Takes requests from now on.
    pub(crate) fn open(&self) {
        let mut state = self.lock();
        state.is_open = true;
        state.is_distrusted = false;
    }

    pub(crate) fn is_open(&self) -> bool {
        self.lock().is_open
    }

    /// No requests will come any more: the connection may be closed when all replies are there.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.is_abandoned = true;
        let server = state.server.take();
        drop(state);
        server.into_iter().for_each(Waker::wake);
    }

    /// A reply could not be read. If it is none to what was asked, the connection is to be closed, before others get each
    /// other's.
    #[cold]
    pub(crate) fn request_refresh(&self, error: &Error) {
        if error.kind() != ErrorKind::Protocol {
            return;
        }
        let mut state = self.lock();
        state.is_distrusted = true;
        let server = state.server.take();
        drop(state);
        server.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.lock().is_abandoned
    }

    /// Sends the commands that `write` appends, and waits for their replies. `admitted` is who has waited for room.
    pub(crate) fn request<W: Fn(&mut Vec<u8>) -> usize>(&self, write: W, admitted: bool) -> Request<'_, W> {
        Request { pipeline: self, admitted, stage: RequestStage::New(write) }
    }

    /// Sends commands whose replies nobody waits for. Gives back what cannot be sent.
    pub(crate) fn send<W: FnOnce(&mut Vec<u8>) -> usize>(&self, write: W) -> Result<(), W> {
        let mut state = self.lock();
        if !state.is_open {
            drop(state);
            return Err(write);
        }
        let replies = state.write(write);
        let server = if replies > 0 { state.queue(Sent::apart(replies)) } else { None };
        drop(state);
        server.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Waits until there may be room for another request.
    pub(crate) async fn admit(&self, until: Instant) -> Result<(), Error> {
        /// Counts one who waits.
        struct Waits<'p>(&'p AtomicUsize);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let mut room = std::pin::pin!(self.room.notified());
        room.as_mut().enable();
        // Counted under the lock, so that who makes room afterwards sees it.
        let _waits = {
            let state = self.lock();
            if !state.is_open || state.has_room(self.most) {
                return Ok(());
            }
            self.waiting.fetch_add(1, Ordering::Relaxed);
            Waits(&self.waiting)
        };
        timeout_at(until, room).await.map_err(|_| {
            let message = format!("{} requests were under way all the time, and no more may be", self.most);
            Error::new(ErrorKind::Timeout, message)
        })
    }

    /// Gives all that is to be sent to the task that serves the connection: the commands to `output`, which is empty,
    /// and their requests to `sent`. When there is nothing, `waker` is called when there is.
    #[inline]
    pub(crate) fn take_output(
        &self,
        waker: Option<&Waker>,
        output: &mut Vec<u8>,
        sent: impl FnOnce(std::vec::Drain<'_, Sent>),
    ) -> Result<(), Error> {
        let mut state = self.lock();
        if state.is_distrusted {
            return Err(Error::new(ErrorKind::Protocol, "a reply of the server was none to what it was asked"));
        }
        if state.output.is_empty() {
            // It is the waker of one task, our own: cloning and dropping it does no harm under the lock.
            if let (Some(waker), None) = (waker, &state.server) {
                state.server = Some(waker.clone());
            }
            return Ok(());
        }
        // Who waits for room in the output is woken; who waits for replies to come would wait again.
        let room = if state.output.len() < MOST_OUTPUT { 0 } else { self.most.saturating_sub(state.under_way) };
        std::mem::swap(&mut state.output, output);
        sent(state.queued.drain(..));
        drop(state);
        if room > 0 {
            self.make_room(room);
        }
        Ok(())
    }

    /// Hands replies to who waits for them. `woken` is empty afterwards.
    pub(crate) fn answer(&self, replies: impl ExactSizeIterator<Item = (Sent, Replied)>, woken: &mut Vec<Waker>) {
        if replies.len() == 0 {
            return;
        }
        let mut state = self.lock();
        for (sent, replied) in replies {
            state.answer(sent, Ok(replied), woken);
        }
        let room = self.most.saturating_sub(state.under_way);
        drop(state);
        woken.drain(..).for_each(Waker::wake);
        self.make_room(room);
    }

    /// The connection is gone: whoever waits for the replies to `sent`, or for his request to be sent, gets the error.
    pub(crate) fn close(&self, sent: impl Iterator<Item = Sent>, error: &Error) {
        let mut woken = Vec::new();
        let mut state = self.lock();
        state.is_open = false;
        state.output = Vec::new();
        let queued = std::mem::take(&mut state.queued);
        let mut error = error.copy();
        for sent in sent.chain(queued) {
            state.answer(sent, Err(error.copy()), &mut woken);
            // Only the oldest request may be what the server's nonsense came to; the others lost their connection.
            if error.kind() == ErrorKind::Protocol {
                error = Error::new(ErrorKind::Connection, format!("the connection was closed: {error}"));
            }
        }
        let server = state.server.take();
        drop(state);
        drop(server);
        woken.into_iter().for_each(Waker::wake);
        self.make_room(usize::MAX);
    }

    /// Wakes those who wait for room, as many as there is room for.
    fn make_room(&self, most: usize) {
        for _ in 0..self.waiting.load(Ordering::Relaxed).min(most) {
            self.room.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, PipelineState> {
        self.state.lock()
    }
}

impl PipelineState {
    #[inline]
    fn has_room(&self, most: usize) -> bool {
        self.under_way < most && self.output.len() < MOST_OUTPUT
    }

    /// Appends commands to the output: all of them or, if `write` panics, none.
    #[inline]
    fn write(&mut self, write: impl FnOnce(&mut Vec<u8>) -> usize) -> usize {
        struct Undo<'o>(&'o mut Vec<u8>, usize);
        impl Drop for Undo<'_> {
            fn drop(&mut self) {
                self.0.truncate(self.1);
            }
        }
        let before = self.output.len();
        let undo = Undo(&mut self.output, before);
        let replies = write(&mut *undo.0);
        if replies > 0 {
            std::mem::forget(undo);
        }
        replies
    }

    /// The waker to call, outside of the lock.
    #[inline(always)]
    fn queue(&mut self, sent: Sent) -> Option<Waker> {
        self.queued.push(sent);
        self.under_way += 1;
        self.server.take()
    }

    #[inline(always)]
    fn answer(&mut self, sent: Sent, answer: Result<Replied, Error>, woken: &mut Vec<Waker>) {
        self.under_way -= 1;
        let Some(slot) = sent.slot else { return };
        match std::mem::replace(&mut self.slots[slot as usize], PendingReply::Answered(answer)) {
            PendingReply::Waits(waker) => woken.push(waker),
            _ => drop(self.slots.remove(slot as usize)),
        }
    }
}

/// One caller's request. Dropped, its replies are read and belong to nobody.
pub(crate) struct Request<'p, W> {
    pipeline: &'p Pipeline,
    admitted: bool,
    stage: RequestStage<W>,
}

enum RequestStage<W> {
    New(W),
    Sent(u32),
    Done,
}

/// Nothing of it is pinned.
impl<W> Unpin for Request<'_, W> {}

impl<W: Fn(&mut Vec<u8>) -> usize> Future for Request<'_, W> {
    type Output = Result<Result<Replied, Error>, NotTaken>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.stage {
            RequestStage::New(ref write) => match self.pipeline.queue(write, self.admitted, context) {
                Ok(Some(slot)) => {
                    self.stage = RequestStage::Sent(slot);
                    Poll::Pending
                }
                Ok(None) => {
                    self.stage = RequestStage::Done;
                    Poll::Ready(Ok(Ok(Replied::Piece(0, Bytes::new()))))
                }
                Err(not_taken) => {
                    self.stage = RequestStage::Done;
                    Poll::Ready(Err(not_taken))
                }
            },
            RequestStage::Sent(slot) => {
                let Poll::Ready(answer) = self.pipeline.poll_answer(slot, context) else { return Poll::Pending };
                self.stage = RequestStage::Done;
                Poll::Ready(Ok(answer))
            }
            RequestStage::Done => unreachable!("a request is answered once"),
        }
    }
}

impl<W> Drop for Request<'_, W> {
    fn drop(&mut self) {
        if let RequestStage::Sent(slot) = self.stage {
            self.pipeline.leave(slot);
        }
    }
}

impl Pipeline {
    /// The caller's slot; none where nothing was written.
    #[inline(always)]
    fn queue(
        &self,
        write: impl Fn(&mut Vec<u8>) -> usize,
        admitted: bool,
        context: &Context<'_>,
    ) -> Result<Option<u32>, NotTaken> {
        // Wakers run code that is not ours when they are cloned and dropped, so both happen outside of the lock.
        let waker = context.waker().clone();
        let mut state = self.lock();
        if !state.is_open {
            drop(state);
            return Err(NotTaken::Closed);
        }
        // Who was woken for a place gets it, though others may have come in between.
        let has_place = admitted || (state.under_way < self.most && self.waiting.load(Ordering::Relaxed) == 0);
        if !has_place || state.output.len() >= MOST_OUTPUT {
            drop(state);
            return Err(NotTaken::Full);
        }
        let replies = state.write(write);
        if replies == 0 {
            drop(state);
            return Ok(None);
        }
        // There are never so many.
        #[allow(clippy::cast_possible_truncation)]
        let slot = state.slots.insert(PendingReply::Waits(waker)) as u32;
        let server = state.queue(Sent { slot: Some(slot), replies: count(replies) });
        drop(state);
        if let Some(server) = server {
            server.wake();
        }
        Ok(Some(slot))
    }

    #[inline(always)]
    fn poll_answer(&self, slot: u32, context: &Context<'_>) -> Poll<Result<Replied, Error>> {
        let mut state = self.lock();
        match &state.slots[slot as usize] {
            PendingReply::Answered(_) => {
                if let PendingReply::Answered(answer) = state.slots.remove(slot as usize) {
                    return Poll::Ready(answer);
                }
            }
            PendingReply::Waits(known) if known.will_wake(context.waker()) => return Poll::Pending,
            _ => {}
        }
        drop(state);
        self.wait_on(slot, context)
    }

    /// Has another waker called than before, unless the answer comes meanwhile.
    #[cold]
    fn wait_on(&self, slot: u32, context: &Context<'_>) -> Poll<Result<Replied, Error>> {
        let waker = context.waker().clone();
        let mut state = self.lock();
        let old = match &mut state.slots[slot as usize] {
            PendingReply::Waits(known) => std::mem::replace(known, waker),
            PendingReply::Answered(_) => {
                let answered = state.slots.remove(slot as usize);
                drop(state);
                let PendingReply::Answered(answer) = answered else { unreachable!("it was seen") };
                return Poll::Ready(answer);
            }
            PendingReply::Left => unreachable!("who left does not come back"),
        };
        drop(state);
        drop(old);
        Poll::Pending
    }

    #[cold]
    fn leave(&self, slot: u32) {
        let mut state = self.lock();
        let slot = slot as usize;
        let left = match &state.slots[slot] {
            PendingReply::Answered(_) => state.slots.remove(slot),
            _ => std::mem::replace(&mut state.slots[slot], PendingReply::Left),
        };
        drop(state);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct WakeSet(AtomicUsize);

    impl Wake for WakeSet {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn poll<F: Future + Unpin>(future: &mut F, bell: &Arc<WakeSet>) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(&Waker::from(Arc::clone(bell))))
    }

    fn ask(out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(b"*1\r\n$4\r\nPING\r\n");
        1
    }

    /// What was sent, as the connection's task takes it.
    fn take(pipeline: &Pipeline) -> Vec<Sent> {
        let (mut output, mut sent) = (Vec::new(), Vec::new());
        pipeline.take_output(None, &mut output, |requests| sent.extend(requests)).unwrap();
        assert_eq!(output.len(), sent.len() * 14);
        sent
    }

    fn answer(pipeline: &Pipeline, sent: &[Sent], with: &'static [u8]) {
        let replied = |sent: &Sent| (*sent, Replied::String(Bytes::from_static(with)));
        pipeline.answer(sent.iter().map(replied), &mut Vec::new());
    }

    #[test]
    fn each_gets_the_answer_to_what_it_asked() {
        let (pipeline, bells) = (Pipeline::new(10), [0; 3].map(|_| Arc::new(WakeSet::default())));
        assert!(matches!(poll(&mut pipeline.request(ask, false), &bells[0]), Poll::Ready(Err(NotTaken::Closed))));
        pipeline.open();
        let mut requests = [0; 3].map(|_| pipeline.request(ask, false));
        for (request, bell) in requests.iter_mut().zip(&bells) {
            assert!(poll(request, bell).is_pending());
            assert!(poll(request, bell).is_pending(), "it may be looked at again");
        }
        let sent = take(&pipeline);
        answer(&pipeline, &sent[..1], b"first");
        let [first, second, third] = requests;
        // One that leaves, and one that leaves with its answer there, take nothing from the others.
        drop(second);
        answer(&pipeline, &sent[1..2], b"second");
        answer(&pipeline, &sent[2..], b"third");
        assert_eq!(bells.each_ref().map(|bell| bell.0.load(Ordering::Relaxed)), [1, 0, 1]);
        drop(first);
        let mut third = third;
        let answer = poll(&mut third, &bells[2]);
        assert!(matches!(&answer, Poll::Ready(Ok(Ok(Replied::String(text)))) if text == "third"), "{answer:?}");
        assert!(pipeline.lock().slots.is_empty());
        assert_eq!(pipeline.lock().under_way, 0);
    }

    #[test]
    fn those_who_wait_when_it_closes_are_told() {
        let (pipeline, bell) = (Pipeline::new(10), Arc::new(WakeSet::default()));
        pipeline.open();
        let (mut sent, mut queued) = (pipeline.request(ask, false), pipeline.request(ask, false));
        assert!(poll(&mut sent, &bell).is_pending());
        let under_way = take(&pipeline);
        assert!(poll(&mut queued, &bell).is_pending());
        assert!(pipeline.send(ask).is_ok());
        pipeline.close(under_way.into_iter(), &Error::new(ErrorKind::Connection, "gone"));
        assert_eq!(bell.0.load(Ordering::Relaxed), 2);
        for request in [&mut sent, &mut queued] {
            let Poll::Ready(Ok(Err(error))) = poll(request, &bell) else { panic!("was not told") };
            assert_eq!((error.kind(), error.to_string()), (ErrorKind::Connection, "gone".into()));
        }
        assert!(matches!(poll(&mut pipeline.request(ask, false), &bell), Poll::Ready(Err(NotTaken::Closed))));
        assert_eq!(pipeline.lock().under_way, 0);
    }

    #[test]
    fn no_more_are_under_way_than_may_be() {
        let (pipeline, bell) = (Pipeline::new(2), Arc::new(WakeSet::default()));
        pipeline.open();
        let mut requests = [0; 2].map(|_| pipeline.request(ask, false));
        requests.iter_mut().for_each(|request| assert!(poll(request, &bell).is_pending()));
        assert!(matches!(poll(&mut pipeline.request(ask, false), &bell), Poll::Ready(Err(NotTaken::Full))));
        let sent = take(&pipeline);
        answer(&pipeline, &sent[..1], b"room");
        assert!(poll(&mut pipeline.request(ask, false), &bell).is_pending());
    }

    #[test]
    fn commands_are_written_whole_or_not_at_all() {
        let (pipeline, bell) = (Pipeline::new(2), Arc::new(WakeSet::default()));
        pipeline.open();
        let broken = |out: &mut Vec<u8>| -> usize {
            out.extend_from_slice(b"*1\r\n");
            panic!("in the middle");
        };
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = poll(&mut pipeline.request(broken, false), &bell);
        }));
        assert!(polled.is_err());
        assert!(pipeline.lock().output.is_empty() && pipeline.lock().slots.is_empty());
        let nothing = poll(&mut pipeline.request(|_: &mut Vec<u8>| 0, false), &bell);
        assert!(matches!(nothing, Poll::Ready(Ok(Ok(Replied::Piece(0, _))))));
    }
}
