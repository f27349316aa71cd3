//! The line of this process: callers that want the same missing value stand in it, the first one leads.
//!
//! Waiters are [`Waker`]s, so a thread (whose waker unparks it) and a task wait in the same line. The leader gives its
//! value to all of them at once; a leader that leaves without one hands its place to the waiter that came first.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::ThreadId;

use bytes::Bytes;

use crate::key::{Key, KeyBuf};
use crate::region::create::shared_reads::{Claim, Readings, STATE};
use crate::region::create::sync::{AtomicU64, Mutex, MutexGuard, Ordering};

/// All keys that somebody in this process is creating.
pub(crate) struct Line {
    shards: Box<[Shard]>,
    readings: Readings,
    hasher: ahash::RandomState,
}

/// The keys whose hash ends alike.
#[derive(Default)]
struct Shard {
    places: Mutex<Places>,
    /// How many of its lines have ended.
    ended: AtomicU64,
}

type Places = HashMap<KeyBuf, Arc<Mutex<Place>>, ahash::RandomState>;

/// What a leader gives to those who wait: an entry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shared {
    /// Of a value that it created.
    Made(Bytes),
    /// That it found, which others may find too old.
    Found(Bytes),
}

/// One key that somebody is creating, or is to create if his reading finds nothing.
struct Place {
    stage: Stage,
    /// The thread that leads, if it is one that would wait for itself for ever.
    leader: Option<ThreadId>,
    /// Numbers the waiters.
    next: u64,
    waiting: VecDeque<(u64, Option<Waker>)>,
    /// The waiter that the lead was handed to and that has not taken it yet.
    elected: Option<u64>,
    /// What the leader shared.
    shared: Option<Shared>,
    /// The leader left after sharing, and nobody stands here any more.
    ended: bool,
}

/// How far whoever has a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// He reads a key of this hash, and leads if there is nothing.
    Reads(u64),
    /// He leads, and there was nothing to be read at the key of this hash.
    Missing(u64),
    /// He leads, and there may be something to be read.
    Leads,
}

impl Place {
    fn new(stage: Stage, leader: Option<ThreadId>) -> Self {
        Place { stage, leader, next: 0, waiting: VecDeque::new(), elected: None, shared: None, ended: false }
    }

    /// Another one who waits: its number.
    fn stand(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        self.waiting.push_back((number, None));
        number
    }

    /// Nobody leads, and nobody is to lead.
    fn end(&mut self, woken: &mut Vec<Waker>) -> bool {
        self.ended = true;
        woken.append(&mut self.wakers());
        true
    }

    /// Those who wait and are to be woken, outside of all locks: wakers may run code that is not ours.
    fn wakers(&mut self) -> Vec<Waker> {
        self.waiting.iter_mut().filter_map(|(_, waker)| waker.take()).collect()
    }

    /// Where a waiter stands; they stand in the order of their numbers.
    fn stands_at(&self, number: u64) -> Result<usize, usize> {
        self.waiting.binary_search_by_key(&number, |(number, _)| *number)
    }
}

/// How a caller stands after joining.
pub(crate) enum Joined {
    Leads(Leader),
    Waits(Waiter),
    /// This very thread leads already: it would wait for itself.
    Recursion,
}

/// Whether to stand in line when somebody leads already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum IfBusy {
    Wait,
    Leave,
}

impl Line {
    pub(crate) fn new() -> Self {
        let shards = (0..64).map(|_| Shard::default()).collect();
        Line { shards, readings: Readings::new(), hasher: ahash::RandomState::new() }
    }

    /// What names a key here.
    #[inline]
    pub(crate) fn hash(&self, key: Key<'_>) -> u64 {
        self.hasher.hash_one(key) & !STATE
    }

    /// The key of this hash was written by this process: whoever reads it from now on is to find that, and not to be told
    /// by those who read before that it is missing.
    #[inline]
    pub(crate) fn wrote(&self, hash: u64) {
        if self.readings.spoil(hash) {
            self.dismiss(hash);
        }
    }

    /// Those who wait for a reading read for themselves, and those who come find that whoever leads may have missed
    /// something.
    #[cold]
    fn dismiss(&self, hash: u64) {
        let mut places = lock(&self.shard(hash).places);
        let mut woken = Vec::new();
        places.retain(|_, place| {
            let mut state = lock(place);
            if state.stage == Stage::Missing(hash) {
                state.stage = Stage::Leads;
            }
            state.stage != Stage::Reads(hash) || !state.end(&mut woken)
        });
        drop(places);
        woken.into_iter().for_each(Waker::wake);
    }

    /// The key of this hash is about to be read, by a caller who creates it if there is nothing. Where another caller
    /// reads it already, or is creating it because there was nothing, this one waits for him: he is spared a reading that
    /// would find nothing. Keys that were found lately are read by each caller by himself.
    #[inline]
    pub(crate) fn begin_reading<'l>(
        self: &'l Arc<Self>,
        hash: u64,
        key: Key<'_>,
        thread: Option<ThreadId>,
    ) -> Result<Option<Reading<'l>>, Waiter> {
        if self.was_found(hash) {
            return Ok(None);
        }
        match self.readings.claim(hash) {
            Claim::Ours => Ok(Some(Reading { line: self, hash, is_over: false })),
            Claim::Theirs => self.wait_for_reading(hash, key, thread).map_or(Ok(None), Err),
            Claim::None => Ok(None),
        }
    }

    /// Whether the key of this hash was found when it was read last, as far as that is known.
    #[inline]
    pub(crate) fn was_found(&self, hash: u64) -> bool {
        self.readings.was_found(hash)
    }

    #[cold]
    fn wait_for_reading(self: &Arc<Self>, hash: u64, key: Key<'_>, thread: Option<ThreadId>) -> Option<Waiter> {
        let owned = key.to_buf();
        let waiter = |key, place, number| Some(Waiter { line: Arc::clone(self), key, place, number, refused: false });
        let mut places = lock(&self.shard(hash).places);
        if let Some(place) = places.get(&owned) {
            let mut state = lock(place);
            // Whoever leads may have found something that this caller is to get; and a thread must not wait for itself.
            if state.stage == Stage::Leads || (thread.is_some() && state.leader == thread) {
                return None;
            }
            let number = state.stand();
            drop(state);
            return waiter(owned, Arc::clone(place), number);
        }
        // Under the lock that whoever reads takes after this, if he learns of it.
        if !self.readings.wait(hash) {
            return None;
        }
        let mut place = Place::new(Stage::Reads(hash), None);
        let number = place.stand();
        let place = Arc::new(Mutex::new(place));
        places.insert(owned.clone(), Arc::clone(&place));
        waiter(owned, place, number)
    }

    /// How many lines of keys like this one have ended. If a caller that begins to lead finds the same number as before
    /// its last reading, nobody who stood in this line stored meanwhile what it did not find.
    #[inline]
    pub(crate) fn ended(&self, hash: u64) -> u64 {
        self.shard(hash).ended.load(Ordering::Acquire)
    }

    /// Leads the line for `key`, or stands in it, or neither (`None`) if somebody leads and `if_busy` says so.
    /// `thread` is the caller's, if it would block it.
    pub(crate) fn join(self: &Arc<Self>, key: Key<'_>, if_busy: IfBusy, thread: Option<ThreadId>) -> Option<Joined> {
        let (owned, hash) = (key.to_buf(), self.hash(key));
        let mut places = lock(&self.shard(hash).places);
        let Some(place) = places.get(&owned) else {
            let place = Arc::new(Mutex::new(Place::new(Stage::Leads, thread)));
            places.insert(owned.clone(), Arc::clone(&place));
            return Some(Joined::Leads(Leader { line: Arc::clone(self), key: owned, place, claim: None }));
        };
        if if_busy == IfBusy::Leave {
            return None;
        }
        let place = Arc::clone(place);
        let mut state = lock(&place);
        if state.shared.is_none() && thread.is_some() && state.leader == thread {
            return Some(Joined::Recursion);
        }
        let number = state.stand();
        drop(state);
        Some(Joined::Waits(Waiter { line: Arc::clone(self), key: owned, place, number, refused: false }))
    }

    /// Whether somebody in this process is creating the value of `key`.
    pub(crate) fn is_busy(&self, key: Key<'_>) -> bool {
        let places = lock(&self.shard(self.hash(key)).places);
        places.get(&key.to_buf()).is_some_and(|place| !matches!(lock(place).stage, Stage::Reads(_)))
    }

    #[inline]
    fn shard(&self, hash: u64) -> &Shard {
        #[allow(clippy::cast_possible_truncation)] // any bits of the hash do
        let shard = (hash >> 8) as usize % self.shards.len();
        &self.shards[shard]
    }
}

/// The reading of a key, which others may wait for. Dropped, they read for themselves.
#[must_use]
pub(crate) struct Reading<'l> {
    line: &'l Arc<Line>,
    hash: u64,
    is_over: bool,
}

impl Reading<'_> {
    /// The key was found; it will be read by each caller by himself.
    pub(crate) fn found(mut self) {
        self.is_over = true;
        if self.line.readings.end(self.hash, true) {
            self.line.dismiss(self.hash);
        }
    }

    /// There was nothing: this caller leads those who want the key, and those who come need not read to learn that. `None`
    /// where somebody else leads, or the key was written meanwhile.
    pub(crate) fn missed(mut self, key: Key<'_>, thread: Option<ThreadId>) -> Option<Leader> {
        self.is_over = true;
        let (line, hash, owned) = (self.line, self.hash, key.to_buf());
        let mut places = lock(&line.shard(hash).places);
        // In one step from the reading to the lead: whoever writes the key either finds that there is something to spoil, or
        // is found to have spoiled it.
        if !line.readings.lead(hash) {
            return None;
        }
        let place =
            places.entry(owned.clone()).or_insert_with(|| Arc::new(Mutex::new(Place::new(Stage::Reads(hash), None))));
        let place = Arc::clone(place);
        let mut state = lock(&place);
        let leads = state.stage == Stage::Reads(hash);
        if leads {
            (state.stage, state.leader) = (Stage::Missing(hash), thread);
        }
        drop(state);
        // Those who want another key of the same hash.
        let mut woken = Vec::new();
        places.retain(|_, place| {
            let mut state = lock(place);
            state.stage != Stage::Reads(hash) || !state.end(&mut woken)
        });
        if !leads {
            line.readings.end(hash, false);
        }
        drop(places);
        woken.into_iter().for_each(Waker::wake);
        leads.then(|| Leader { line: Arc::clone(line), key: owned, place, claim: Some(hash) })
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if !self.is_over && self.line.readings.end(self.hash, false) {
            self.line.dismiss(self.hash);
        }
    }
}

/// The lead of a line. Dropped, it ends the line if a value was shared, and else hands it on.
pub(crate) struct Leader {
    line: Arc<Line>,
    key: KeyBuf,
    place: Arc<Mutex<Place>>,
    /// The key's hash, if those who come next need not read to learn that it is missing.
    claim: Option<u64>,
}

impl Leader {
    /// Gives an entry to all who wait, and to those who come until the lead is dropped.
    pub(crate) fn share(&self, shared: Shared) {
        let mut place = lock(&self.place);
        place.shared = Some(shared);
        let woken = place.wakers();
        drop(place);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if let Some(hash) = self.claim {
            self.line.readings.end(hash, false);
        }
        hand_on(&self.line, &self.key, &self.place);
    }
}

/// Ends the line if there is a value or nobody waits, or else elects the first waiter.
fn hand_on(line: &Line, key: &KeyBuf, place: &Mutex<Place>) {
    let shard = line.shard(line.hash(key.as_key()));
    let mut places = lock(&shard.places);
    let mut state = lock(place);
    state.leader = None;
    state.elected = None;
    // Whoever is elected has read before, or reads when it has the lock; those who come now read for themselves.
    state.stage = Stage::Leads;
    if state.shared.is_some() || state.waiting.is_empty() {
        // Under the lock that the next one to lead takes, and so seen by it.
        shard.ended.fetch_add(1, Ordering::Release);
        places.remove(key);
        state.ended = true;
        // Those who refused what was shared.
        let woken = state.wakers();
        drop(state);
        drop(places);
        woken.into_iter().for_each(Waker::wake);
        return;
    }
    drop(places);
    let Some((number, waker)) = state.waiting.pop_front() else { return };
    state.elected = Some(number);
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// A place in the line. Dropped, it is given up.
pub(crate) struct Waiter {
    line: Arc<Line>,
    key: KeyBuf,
    place: Arc<Mutex<Place>>,
    number: u64,
    refused: bool,
}

/// What a waiter waited for.
pub(crate) enum Woken {
    /// The value is there.
    Shared(Shared),
    /// The leader left without a value, and this caller leads now.
    Leads(Leader),
    /// The leader left, after sharing a value that this caller [refused](Waiter::refuse), or after a reading that found
    /// something.
    Ended,
}

impl Waiter {
    /// Has no use for what was shared, and waits on, until its leader has left.
    pub(crate) fn refuse(&mut self) {
        self.refused = true;
    }

    /// Whether somebody reads the key, and this one waits for what he finds.
    pub(crate) fn waits_for_reading(&self) -> bool {
        matches!(lock(&self.place).stage, Stage::Reads(_))
    }

    /// A reading takes too long: who reads may rest. Nobody waits for it any more, but all read for themselves.
    pub(crate) fn give_up_reading(&self) {
        let stage = lock(&self.place).stage;
        if let Stage::Reads(hash) = stage {
            self.line.wrote(hash);
        }
    }

    /// Whether the wait is over; if not, the context's waker is called when it may be. `thread` is the caller's, if it
    /// would block it. Must not be called again after it was over.
    pub(crate) fn poll(&mut self, context: &Context<'_>, thread: Option<ThreadId>) -> Poll<Woken> {
        // Wakers run code that is not ours when they are cloned and dropped, so both happen outside of the lock.
        let mut waker = Some(context.waker().clone());
        let mut place = lock(&self.place);
        if let (Some(shared), false) = (&place.shared, self.refused) {
            return Poll::Ready(Woken::Shared(shared.clone()));
        }
        if place.ended {
            return Poll::Ready(Woken::Ended);
        }
        if place.elected == Some(self.number) {
            place.elected = None;
            place.leader = thread;
            drop(place);
            let (line, key, place) = (Arc::clone(&self.line), self.key.clone(), Arc::clone(&self.place));
            return Poll::Ready(Woken::Leads(Leader { line, key, place, claim: None }));
        }
        if let Ok(at) = place.stands_at(self.number) {
            std::mem::swap(&mut place.waiting[at].1, &mut waker);
        }
        drop(place);
        Poll::Pending
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut place = lock(&self.place);
        let left = place.stands_at(self.number).ok().and_then(|at| place.waiting.remove(at));
        let was_elected = place.elected == Some(self.number);
        drop(place);
        drop(left);
        if was_elected {
            hand_on(&self.line, &self.key, &self.place);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing of ours panics while such a lock is held, so a poisoned state is a sound one.
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
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn lead(line: &Arc<Line>) -> Leader {
        match line.join(KEY, IfBusy::Wait, None) {
            Some(Joined::Leads(leader)) => leader,
            _ => panic!("somebody else leads"),
        }
    }

    fn wait(line: &Arc<Line>) -> Waiter {
        match line.join(KEY, IfBusy::Wait, None) {
            Some(Joined::Waits(waiter)) => waiter,
            _ => panic!("nobody leads"),
        }
    }

    fn poll(waiter: &mut Waiter, bell: &Arc<Bell>) -> Poll<Woken> {
        let waker = Waker::from(Arc::clone(bell));
        waiter.poll(&Context::from_waker(&waker), None)
    }

    #[test]
    fn a_value_reaches_all_who_wait_and_who_come_while_it_is_stored() {
        let line = Arc::new(Line::new());
        let leader = lead(&line);
        assert!(line.is_busy(KEY));
        let (mut first, mut second) = (wait(&line), wait(&line));
        let bells = [Arc::new(Bell::default()), Arc::new(Bell::default())];
        assert!(poll(&mut first, &bells[0]).is_pending());
        assert!(poll(&mut second, &bells[1]).is_pending());
        leader.share(Shared::Made(Bytes::from_static(b"v")));
        let mut late = wait(&line);
        for waiter in [&mut first, &mut second, &mut late] {
            assert!(matches!(poll(waiter, &bells[0]), Poll::Ready(Woken::Shared(Shared::Made(entry))) if entry == "v"));
        }
        drop(leader);
        assert!(!line.is_busy(KEY));
        assert!(matches!(poll(&mut first, &bells[0]), Poll::Ready(Woken::Shared(_))), "it stays to be had");
        assert_eq!(bells.map(|bell| bell.0.load(Ordering::Relaxed)), [1, 1]);
    }

    #[test]
    fn a_leader_that_fails_hands_on_to_the_first_who_still_waits() {
        let line = Arc::new(Line::new());
        let leader = lead(&line);
        let bells = [0; 3].map(|_| Arc::new(Bell::default()));
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
        assert!(line.is_busy(KEY), "nobody else may lead meanwhile");
        let Poll::Ready(Woken::Leads(leader)) = poll(&mut waiters[0], &bells[2]) else { panic!("was elected") };
        drop(waiters);
        assert!(line.is_busy(KEY));
        drop(leader);
        assert!(!line.is_busy(KEY));
    }

    #[test]
    fn who_refuses_what_was_shared_waits_until_its_leader_has_left() {
        let line = Arc::new(Line::new());
        let leader = lead(&line);
        let mut waiter = wait(&line);
        let bell = Arc::new(Bell::default());
        leader.share(Shared::Made(Bytes::from_static(b"v")));
        assert!(matches!(poll(&mut waiter, &bell), Poll::Ready(Woken::Shared(_))));
        waiter.refuse();
        assert!(poll(&mut waiter, &bell).is_pending());
        assert_eq!(bell.0.load(Ordering::Relaxed), 0);
        drop(leader);
        assert_eq!(bell.0.load(Ordering::Relaxed), 1);
        assert!(matches!(poll(&mut waiter, &bell), Poll::Ready(Woken::Ended)));
        assert!(!line.is_busy(KEY));
    }

    #[test]
    fn nobody_has_to_wait() {
        let line = Arc::new(Line::new());
        let leader = lead(&line);
        assert!(line.join(KEY, IfBusy::Leave, None).is_none());
        assert!(matches!(line.join(Key::from("other"), IfBusy::Leave, None), Some(Joined::Leads(_))));
        drop(leader);
        assert!(matches!(line.join(KEY, IfBusy::Leave, None), Some(Joined::Leads(_))));
    }

    #[test]
    fn a_thread_that_would_wait_for_itself_is_told() {
        let line = Arc::new(Line::new());
        let me = Some(std::thread::current().id());
        let Some(Joined::Leads(leader)) = line.join(KEY, IfBusy::Wait, me) else { panic!("nobody else leads") };
        assert!(matches!(line.join(KEY, IfBusy::Wait, me), Some(Joined::Recursion)));
        assert!(matches!(line.join(KEY, IfBusy::Wait, None), Some(Joined::Waits(_))));
        drop(leader);
        assert!(!line.is_busy(KEY));
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
        let line = Arc::new(Line::new());
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
                                    Poll::Ready(Woken::Leads(leader)) => break leader,
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
        assert!(!line.is_busy(KEY));
    }
}
