//! [`SingleFlight`]: the table of keys that callers of this process are reading or creating.
//!
//! The first caller that wants a missing value leads the flight of its key, and the others wait for
//! it (single-flight, or request coalescing). Threads and tasks wait alike: a waiter is a [`Waker`],
//! and that of a thread unparks it. The leader shares its value with all waiters at once; if it leaves
//! without a value, the first waiter is promoted.
//!
//! Which caller reads and which one loads is decided here alone: [`Phase`] says what the caller in
//! front of an entry does, and [`Role`] which part a caller has. Before a key has an entry, only the
//! first read of it is shared, through [`shared_reads`], which costs a hit one load.

mod shared_reads;
#[cfg(all(test, shuttle))]
mod shuttle_tests;
mod sync;

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::ThreadId;

use bytes::Bytes;

use self::shared_reads::{ReadClaim, STATE_BITS, SharedReads};
use self::sync::{AtomicU64, Mutex, MutexGuard, Ordering};
use crate::key::{Key, KeyBuf};

/// All keys that callers of this process are reading or creating.
pub(crate) struct SingleFlight {
    shards: Box<[FlightShard]>,
    reads: SharedReads,
    hasher: ahash::RandomState,
}

/// The entries of keys with a common part of their hash.
#[derive(Default)]
struct FlightShard {
    entries: Mutex<Entries>,
    /// How many of its flights have ended.
    ended: AtomicU64,
}

type Entries = HashMap<KeyBuf, Arc<Mutex<InFlightEntry>>, ahash::RandomState>;

/// What a leader shares with its waiters: an encoded entry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SharedEntry {
    /// The leader created its value.
    Created(Bytes),
    /// The leader found it. It may be too old for other callers.
    Found(Bytes),
}

/// A key that a caller creates, or will create if its read finds nothing.
struct InFlightEntry {
    phase: Phase,
    /// The thread of the leader, if that would wait for itself for ever.
    leader: Option<ThreadId>,
    next_ticket: u64,
    /// The waiters in the order of their tickets.
    waiting: VecDeque<(u64, Option<Waker>)>,
    /// The ticket of a waiter that was promoted and has not taken the lead yet.
    promoted: Option<u64>,
    shared: Option<SharedEntry>,
    /// The leader has left after sharing, and the entry is no longer in the table.
    has_ended: bool,
}

/// What the caller in front of an entry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It reads a key of this hash, and leads if there is no entry.
    Reading(u64),
    /// It leads, and the key of this hash had no entry when it was read. Callers that come now need
    /// not read.
    LoadingMissing(u64),
    /// It leads, and there may be an entry. Callers that come now read for themselves.
    Loading,
}

/// The part of one caller in the flight of its key.
pub(crate) enum Role {
    /// It has no part yet, or none any more.
    Bystander,
    /// It leads the flight and loads the value.
    Leader(Leader),
    /// It waits for the leader, or for the read of another caller.
    Waiter(Waiter),
}

impl Role {
    pub(crate) fn is_leader(&self) -> bool {
        matches!(self, Role::Leader(_))
    }
}

impl InFlightEntry {
    fn new(phase: Phase, leader: Option<ThreadId>) -> Self {
        InFlightEntry {
            phase,
            leader,
            next_ticket: 0,
            waiting: VecDeque::new(),
            promoted: None,
            shared: None,
            has_ended: false,
        }
    }

    /// Adds a waiter and returns its ticket.
    fn add_waiter(&mut self) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.push_back((ticket, None));
        ticket
    }

    /// Ends the flight without a leader or a successor. Always returns `true`.
    fn end(&mut self, woken: &mut Vec<Waker>) -> bool {
        self.has_ended = true;
        woken.append(&mut self.take_wakers());
        true
    }

    /// Takes the wakers of all waiters. They are woken outside of all locks, since wakers may run code
    /// of the caller.
    fn take_wakers(&mut self) -> Vec<Waker> {
        self.waiting.iter_mut().filter_map(|(_, waker)| waker.take()).collect()
    }

    /// Finds a waiter. The waiters are in the order of their tickets.
    fn position(&self, ticket: u64) -> Result<usize, usize> {
        self.waiting.binary_search_by_key(&ticket, |(ticket, _)| *ticket)
    }
}

/// The outcome of joining a flight.
pub(crate) enum Joined {
    Leads(Leader),
    Waits(Waiter),
    /// The calling thread leads already: it would wait for itself.
    Recursion,
}

/// Whether to wait if another caller leads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum IfBusy {
    Wait,
    Leave,
}

impl SingleFlight {
    pub(crate) fn new() -> Self {
        let shards = (0..64).map(|_| FlightShard::default()).collect();
        SingleFlight { shards, reads: SharedReads::new(), hasher: ahash::RandomState::new() }
    }

    /// Returns the hash by which the table knows a key.
    #[inline]
    pub(crate) fn hash(&self, key: Key<'_>) -> u64 {
        self.hasher.hash_one(key) & !STATE_BITS
    }

    /// Notes that this process has written the key of this hash. A read that begins from now on finds
    /// it, and must not be told by an earlier read that it is missing.
    #[inline]
    pub(crate) fn wrote(&self, hash: u64) {
        if self.reads.invalidate(hash) {
            self.dismiss_waiters(hash);
        }
    }

    /// Lets the waiters of a read read for themselves, and lets callers that come now read although
    /// another caller leads.
    #[cold]
    fn dismiss_waiters(&self, hash: u64) {
        let mut entries = lock(&self.shard(hash).entries);
        let mut woken = Vec::new();
        entries.retain(|_, entry| {
            let mut entry = lock(entry);
            if entry.phase == Phase::LoadingMissing(hash) {
                entry.phase = Phase::Loading;
            }
            entry.phase != Phase::Reading(hash) || !entry.end(&mut woken)
        });
        drop(entries);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Begins the read of a key that the caller creates if it is missing.
    ///
    /// If another caller reads the key, or creates it because it was missing, this one waits for it
    /// and is spared a read that would find nothing. Keys that were found recently are read by each
    /// caller for itself.
    #[inline]
    pub(crate) fn begin_read<'f>(
        self: &'f Arc<Self>,
        hash: u64,
        key: Key<'_>,
        thread: Option<ThreadId>,
    ) -> Result<Option<SharedRead<'f>>, Waiter> {
        if self.was_found(hash) {
            return Ok(None);
        }
        match self.reads.begin(hash) {
            ReadClaim::Own => Ok(Some(SharedRead { flights: self, hash, has_ended: false })),
            ReadClaim::Other => self.await_read(hash, key, thread).map_or(Ok(None), Err),
            ReadClaim::Unshared => Ok(None),
        }
    }

    /// Returns whether the last read of the key of this hash found it, as far as is known.
    #[inline]
    pub(crate) fn was_found(&self, hash: u64) -> bool {
        self.reads.was_found(hash)
    }

    #[cold]
    fn await_read(self: &Arc<Self>, hash: u64, key: Key<'_>, thread: Option<ThreadId>) -> Option<Waiter> {
        let owned = key.to_buf();
        let waiter =
            |key, entry, ticket| Some(Waiter { flights: Arc::clone(self), key, entry, ticket, refused: false });
        let mut entries = lock(&self.shard(hash).entries);
        if let Some(entry) = entries.get(&owned) {
            let mut state = lock(entry);
            // The leader may have found an entry that this caller must see, and a thread must not wait for
            // itself.
            if state.phase == Phase::Loading || (thread.is_some() && state.leader == thread) {
                return None;
            }
            let ticket = state.add_waiter();
            drop(state);
            return waiter(owned, Arc::clone(entry), ticket);
        }
        // Under the lock that the reader takes when it learns that a caller waits.
        if !self.reads.join(hash) {
            return None;
        }
        let mut entry = InFlightEntry::new(Phase::Reading(hash), None);
        let ticket = entry.add_waiter();
        let entry = Arc::new(Mutex::new(entry));
        entries.insert(owned.clone(), Arc::clone(&entry));
        waiter(owned, entry, ticket)
    }

    /// Returns how many flights of keys like this one have ended. If the number is the same before a
    /// read and when its caller begins to lead, no caller that used the table has stored a value since.
    #[inline]
    pub(crate) fn ended(&self, hash: u64) -> u64 {
        self.shard(hash).ended.load(Ordering::Acquire)
    }

    /// Leads the flight of `key`, or waits for its leader. Returns `None` if another caller leads and
    /// `if_busy` is [`IfBusy::Leave`]. `thread` is the thread that waiting would block.
    pub(crate) fn join(self: &Arc<Self>, key: Key<'_>, if_busy: IfBusy, thread: Option<ThreadId>) -> Option<Joined> {
        let (owned, hash) = (key.to_buf(), self.hash(key));
        let mut entries = lock(&self.shard(hash).entries);
        let Some(entry) = entries.get(&owned) else {
            let entry = Arc::new(Mutex::new(InFlightEntry::new(Phase::Loading, thread)));
            entries.insert(owned.clone(), Arc::clone(&entry));
            return Some(Joined::Leads(Leader { flights: Arc::clone(self), key: owned, entry, read: None }));
        };
        if if_busy == IfBusy::Leave {
            return None;
        }
        let entry = Arc::clone(entry);
        let mut state = lock(&entry);
        if state.shared.is_none() && thread.is_some() && state.leader == thread {
            return Some(Joined::Recursion);
        }
        let ticket = state.add_waiter();
        drop(state);
        Some(Joined::Waits(Waiter { flights: Arc::clone(self), key: owned, entry, ticket, refused: false }))
    }

    /// Returns whether a caller of this process creates the value of `key`.
    pub(crate) fn is_loading(&self, key: Key<'_>) -> bool {
        let entries = lock(&self.shard(self.hash(key)).entries);
        entries.get(&key.to_buf()).is_some_and(|entry| !matches!(lock(entry).phase, Phase::Reading(_)))
    }

    #[inline]
    fn shard(&self, hash: u64) -> &FlightShard {
        #[allow(clippy::cast_possible_truncation)] // any bits of the hash will do
        let shard = (hash >> 8) as usize % self.shards.len();
        &self.shards[shard]
    }
}

/// A read that other callers may wait for. If it is dropped, they read for themselves.
#[must_use]
pub(crate) struct SharedRead<'f> {
    flights: &'f Arc<SingleFlight>,
    hash: u64,
    has_ended: bool,
}

impl SharedRead<'_> {
    /// Ends the read of a key that was found. From now on each caller reads it for itself.
    pub(crate) fn found(mut self) {
        self.has_ended = true;
        if self.flights.reads.end(self.hash, true) {
            self.flights.dismiss_waiters(self.hash);
        }
    }

    /// Ends the read of a key that is missing. This caller leads its flight, and callers that come now
    /// need not read. Returns `None` if another caller leads or the key was written meanwhile.
    pub(crate) fn missed(mut self, key: Key<'_>, thread: Option<ThreadId>) -> Option<Leader> {
        self.has_ended = true;
        let (flights, hash, owned) = (self.flights, self.hash, key.to_buf());
        let mut entries = lock(&flights.shard(hash).entries);
        // One step from reading to leading: a write either finds a read to invalidate, or its
        // invalidation is found here.
        if !flights.reads.lead(hash) {
            return None;
        }
        let entry = entries
            .entry(owned.clone())
            .or_insert_with(|| Arc::new(Mutex::new(InFlightEntry::new(Phase::Reading(hash), None))));
        let entry = Arc::clone(entry);
        let mut state = lock(&entry);
        let leads = state.phase == Phase::Reading(hash);
        if leads {
            (state.phase, state.leader) = (Phase::LoadingMissing(hash), thread);
        }
        drop(state);
        // Waiters that want another key of the same hash read for themselves.
        let mut woken = Vec::new();
        entries.retain(|_, entry| {
            let mut state = lock(entry);
            state.phase != Phase::Reading(hash) || !state.end(&mut woken)
        });
        if !leads {
            flights.reads.end(hash, false);
        }
        drop(entries);
        woken.into_iter().for_each(Waker::wake);
        leads.then(|| Leader { flights: Arc::clone(flights), key: owned, entry, read: Some(hash) })
    }
}

impl Drop for SharedRead<'_> {
    fn drop(&mut self) {
        if !self.has_ended && self.flights.reads.end(self.hash, false) {
            self.flights.dismiss_waiters(self.hash);
        }
    }
}

/// The lead of a flight. If it is dropped after sharing a value, the flight ends; otherwise the next
/// waiter is promoted.
pub(crate) struct Leader {
    flights: Arc<SingleFlight>,
    key: KeyBuf,
    entry: Arc<Mutex<InFlightEntry>>,
    /// The key's hash, if the lead began with a shared read that found nothing.
    read: Option<u64>,
}

impl Leader {
    /// Shares an entry with all waiters, and with callers that come until the lead is dropped.
    pub(crate) fn share(&self, shared: SharedEntry) {
        let mut entry = lock(&self.entry);
        entry.shared = Some(shared);
        let woken = entry.take_wakers();
        drop(entry);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if let Some(hash) = self.read {
            self.flights.reads.end(hash, false);
        }
        promote_next(&self.flights, &self.key, &self.entry);
    }
}

/// Ends the flight if there is a value or no waiter; otherwise promotes the first waiter.
fn promote_next(flights: &SingleFlight, key: &KeyBuf, entry: &Mutex<InFlightEntry>) {
    let shard = flights.shard(flights.hash(key.as_key()));
    let mut entries = lock(&shard.entries);
    let mut state = lock(entry);
    state.leader = None;
    state.promoted = None;
    // The promoted waiter has read before, or reads once it has the lock. Callers that come now read for
    // themselves.
    state.phase = Phase::Loading;
    if state.shared.is_some() || state.waiting.is_empty() {
        // Counted under the lock that the next leader takes, so that it sees the new count.
        shard.ended.fetch_add(1, Ordering::Release);
        entries.remove(key);
        state.has_ended = true;
        // The waiters that refused what was shared.
        let woken = state.take_wakers();
        drop(state);
        drop(entries);
        woken.into_iter().for_each(Waker::wake);
        return;
    }
    drop(entries);
    let Some((ticket, waker)) = state.waiting.pop_front() else { return };
    state.promoted = Some(ticket);
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// A caller that waits in a flight. If it is dropped, it leaves the flight.
pub(crate) struct Waiter {
    flights: Arc<SingleFlight>,
    key: KeyBuf,
    entry: Arc<Mutex<InFlightEntry>>,
    ticket: u64,
    refused: bool,
}

/// The outcome of a wait.
pub(crate) enum WaitOutcome {
    /// The leader has shared its value.
    Shared(SharedEntry),
    /// The leader has left without a value, and this caller leads now.
    Promoted(Leader),
    /// The leader has left after sharing a value that this caller [refused](Waiter::refuse), or after a
    /// read that found an entry.
    Ended,
}

impl Waiter {
    /// Refuses what was shared, and waits on until the leader has left.
    pub(crate) fn refuse(&mut self) {
        self.refused = true;
    }

    /// Returns whether this caller waits for the read of another one.
    pub(crate) fn awaits_read(&self) -> bool {
        matches!(lock(&self.entry).phase, Phase::Reading(_))
    }

    /// Stops waiting for a read that takes too long: its task may not be polled. All waiters read for
    /// themselves.
    pub(crate) fn give_up_read(&self) {
        let phase = lock(&self.entry).phase;
        if let Phase::Reading(hash) = phase {
            self.flights.wrote(hash);
        }
    }

    /// Polls the wait. `thread` is the thread that waiting would block. Must not be called again after
    /// it was ready.
    pub(crate) fn poll(&mut self, context: &Context<'_>, thread: Option<ThreadId>) -> Poll<WaitOutcome> {
        // Cloning and dropping wakers may run code of the caller, so both happen outside of the lock.
        let mut waker = Some(context.waker().clone());
        let mut entry = lock(&self.entry);
        if let (Some(shared), false) = (&entry.shared, self.refused) {
            return Poll::Ready(WaitOutcome::Shared(shared.clone()));
        }
        if entry.has_ended {
            return Poll::Ready(WaitOutcome::Ended);
        }
        if entry.promoted == Some(self.ticket) {
            entry.promoted = None;
            entry.leader = thread;
            drop(entry);
            let (flights, key, entry) = (Arc::clone(&self.flights), self.key.clone(), Arc::clone(&self.entry));
            return Poll::Ready(WaitOutcome::Promoted(Leader { flights, key, entry, read: None }));
        }
        if let Ok(at) = entry.position(self.ticket) {
            std::mem::swap(&mut entry.waiting[at].1, &mut waker);
        }
        drop(entry);
        Poll::Pending
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut entry = lock(&self.entry);
        let left = entry.position(self.ticket).ok().and_then(|at| entry.waiting.remove(at));
        let was_promoted = entry.promoted == Some(self.ticket);
        drop(entry);
        drop(left);
        if was_promoted {
            promote_next(&self.flights, &self.key, &self.entry);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code of this crate panics while it holds such a lock, so a poisoned state is sound.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    const KEY: Key<'_> = Key::Plain(b"k");

    /// Counts how often it is woken.
    #[derive(Default)]
    struct WakeSet(AtomicUsize);

    impl Wake for WakeSet {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn lead(line: &Arc<SingleFlight>) -> Leader {
        match line.join(KEY, IfBusy::Wait, None) {
            Some(Joined::Leads(leader)) => leader,
            _ => panic!("somebody else leads"),
        }
    }

    fn wait(line: &Arc<SingleFlight>) -> Waiter {
        match line.join(KEY, IfBusy::Wait, None) {
            Some(Joined::Waits(waiter)) => waiter,
            _ => panic!("nobody leads"),
        }
    }

    fn poll(waiter: &mut Waiter, bell: &Arc<WakeSet>) -> Poll<WaitOutcome> {
        let waker = Waker::from(Arc::clone(bell));
        waiter.poll(&Context::from_waker(&waker), None)
    }

    #[test]
    fn a_value_reaches_all_who_wait_and_who_come_while_it_is_stored() {
        let line = Arc::new(SingleFlight::new());
        let leader = lead(&line);
        assert!(line.is_loading(KEY));
        let (mut first, mut second) = (wait(&line), wait(&line));
        let bells = [Arc::new(WakeSet::default()), Arc::new(WakeSet::default())];
        assert!(poll(&mut first, &bells[0]).is_pending());
        assert!(poll(&mut second, &bells[1]).is_pending());
        leader.share(SharedEntry::Created(Bytes::from_static(b"v")));
        let mut late = wait(&line);
        for waiter in [&mut first, &mut second, &mut late] {
            assert!(
                matches!(poll(waiter, &bells[0]), Poll::Ready(WaitOutcome::Shared(SharedEntry::Created(entry))) if entry == "v")
            );
        }
        drop(leader);
        assert!(!line.is_loading(KEY));
        assert!(matches!(poll(&mut first, &bells[0]), Poll::Ready(WaitOutcome::Shared(_))), "it stays to be had");
        assert_eq!(bells.map(|bell| bell.0.load(Ordering::Relaxed)), [1, 1]);
    }

    #[test]
    fn a_leader_that_fails_hands_on_to_the_first_who_still_waits() {
        let line = Arc::new(SingleFlight::new());
        let leader = lead(&line);
        let bells = [0; 3].map(|_| Arc::new(WakeSet::default()));
        let mut waiters: Vec<_> = (0..3).map(|_| wait(&line)).collect();
        for (waiter, bell) in waiters.iter_mut().zip(&bells) {
            assert!(poll(waiter, bell).is_pending());
        }
        drop(waiters.remove(0));
        drop(leader);
        assert_eq!(bells.each_ref().map(|bell| bell.0.load(Ordering::Relaxed)), [0, 1, 0]);
        // The one that was elected leaves before it looks; the next is elected.
        drop(waiters.remove(0));
        assert_eq!(bells.each_ref().map(|bell| bell.0.load(Ordering::Relaxed)), [0, 1, 1]);
        assert!(line.is_loading(KEY), "nobody else may lead meanwhile");
        let Poll::Ready(WaitOutcome::Promoted(leader)) = poll(&mut waiters[0], &bells[2]) else {
            panic!("was elected")
        };
        drop(waiters);
        assert!(line.is_loading(KEY));
        drop(leader);
        assert!(!line.is_loading(KEY));
    }

    #[test]
    fn who_refuses_what_was_shared_waits_until_its_leader_has_left() {
        let line = Arc::new(SingleFlight::new());
        let leader = lead(&line);
        let mut waiter = wait(&line);
        let bell = Arc::new(WakeSet::default());
        leader.share(SharedEntry::Created(Bytes::from_static(b"v")));
        assert!(matches!(poll(&mut waiter, &bell), Poll::Ready(WaitOutcome::Shared(_))));
        waiter.refuse();
        assert!(poll(&mut waiter, &bell).is_pending());
        assert_eq!(bell.0.load(Ordering::Relaxed), 0);
        drop(leader);
        assert_eq!(bell.0.load(Ordering::Relaxed), 1);
        assert!(matches!(poll(&mut waiter, &bell), Poll::Ready(WaitOutcome::Ended)));
        assert!(!line.is_loading(KEY));
    }

    #[test]
    fn nobody_has_to_wait() {
        let line = Arc::new(SingleFlight::new());
        let leader = lead(&line);
        assert!(line.join(KEY, IfBusy::Leave, None).is_none());
        assert!(matches!(line.join(Key::from("other"), IfBusy::Leave, None), Some(Joined::Leads(_))));
        drop(leader);
        assert!(matches!(line.join(KEY, IfBusy::Leave, None), Some(Joined::Leads(_))));
    }

    #[test]
    fn a_thread_that_would_wait_for_itself_is_told() {
        let line = Arc::new(SingleFlight::new());
        let me = Some(std::thread::current().id());
        let Some(Joined::Leads(leader)) = line.join(KEY, IfBusy::Wait, me) else { panic!("nobody else leads") };
        assert!(matches!(line.join(KEY, IfBusy::Wait, me), Some(Joined::Recursion)));
        assert!(matches!(line.join(KEY, IfBusy::Wait, None), Some(Joined::Waits(_))));
        drop(leader);
        assert!(!line.is_loading(KEY));
    }

    #[test]
    fn many_threads_lead_one_after_the_other() {
        struct Unpark(std::thread::Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        // Miri is a thousand times slower.
        let times = if cfg!(miri) { 20 } else { 2_000 };
        let line = Arc::new(SingleFlight::new());
        let (leading, led) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
                    for _ in 0..times {
                        let leader = match line.join(KEY, IfBusy::Wait, None) {
                            Some(Joined::Leads(leader)) => leader,
                            Some(Joined::Waits(mut waiter)) => loop {
                                match waiter.poll(&Context::from_waker(&waker), None) {
                                    Poll::Ready(WaitOutcome::Promoted(leader)) => break leader,
                                    Poll::Ready(_) => unreachable!("nobody shares"),
                                    Poll::Pending => std::thread::park(),
                                }
                            },
                            _ => unreachable!(),
                        };
                        assert_eq!(leading.fetch_add(1, Ordering::SeqCst), 0);
                        led.fetch_add(1, Ordering::Relaxed);
                        leading.fetch_sub(1, Ordering::SeqCst);
                        drop(leader);
                    }
                });
            }
        });
        assert_eq!(led.into_inner(), 8 * times);
        assert!(!line.is_loading(KEY));
    }
}
