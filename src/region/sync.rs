//! The blocking driver of flights: does what each one's next step is, many at once where that is one round trip.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};
use std::thread::{self, Thread, ThreadId};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::Shared;
use super::call::{Call, StoreRule};
use super::flight::Flight;
use super::stats::Counter;
use crate::backend::Backend;
use crate::codec::Codec;
use crate::engine::dogpile::Step;
use crate::error::{Error, ErrorKind, GetError};
use crate::key::Key;
use crate::keymap::KeyMap;
use crate::lock::Lock;
use crate::policy::{Freshness, Invalidation};
use crate::request::{Batch, Found};
use crate::slice::Slice;

/// Brings every flight to its end. `create` is given the numbers of those whose values it is to create.
///
/// Waiting comes last, when this caller has nothing left to create, and it waits for all that is missing at once; who
/// waits and has to do something leaves the lines that it stands in. So nobody waits for a caller that waits, and
/// nobody is elected who is not looking.
pub(super) fn drive<'r, B, S, L, M, I, F, V, E>(
    call: &Call<'r, B, S, L, M, I, F>,
    keys: &[Key<'_>],
    flights: &mut [Flight<'r, V, L::Guard>],
    mut create: impl FnMut(&[usize]) -> Result<Vec<V>, E>,
) -> Result<(), GetError<E>>
where
    B: Backend,
    S: Codec<V>,
    L: Lock<B>,
    M: KeyMap,
    I: Invalidation,
    F: StoreRule<V>,
{
    let landing = Landing { region: call.shared(), flights };
    let region = landing.region;
    let thread = Some(thread::current().id());
    let mut patience = region.patience;
    loop {
        let flights = &mut *landing.flights;
        read(call, keys, flights)?;
        for at in which(flights, Step::Join) {
            flights[at].join(&region.line, keys[at], thread);
        }
        lock(call, keys, flights)?;
        // Nobody should wait for what is here already, or with another process, while this caller creates.
        settle(region, flights);
        if !which(flights, Step::Create).is_empty() {
            which(flights, Step::AwaitHolder).into_iter().for_each(|at| flights[at].leave_lead());
        }
        let batch = create_missing(call, keys, flights, &mut create)?;
        store(call, flights, &batch)?;
        settle(region, flights);
        // An entry that went, or a share that was of no use, leaves more to do at once.
        if flights.iter().any(|flight| matches!(flight.step(), Step::Read | Step::Join | Step::TryLock)) {
            continue;
        }
        let (waiting, holders) = (which(flights, Step::Queue), which(flights, Step::AwaitHolder));
        let Some(&first) = holders.first().or(waiting.first()) else { return Ok(()) };
        // Who waits for another process does not see what happens in a line, and so does not stand in it.
        if holders.is_empty() {
            for &at in &waiting {
                flights[at].stand(&region.line, keys[at], thread)?;
            }
        }
        // Unless one of them leads instead, and so has something to do.
        if waiting.iter().all(|&at| flights[at].step() == Step::Queue) {
            if patience == Some(Duration::ZERO) {
                let message =
                    format!("waiting for somebody else to create {}: the region's patience is over", keys[first]);
                return Err(Error::new(ErrorKind::Timeout, message).into());
            }
            let begun = Instant::now();
            if holders.is_empty() {
                wait_in_line(call, flights, &waiting, thread, patience);
            } else {
                let others = holders.len() + waiting.len() > 1;
                await_holders(region, keys, flights, &holders, patience, others)?;
            }
            patience = patience.map(|patience| patience.saturating_sub(begun.elapsed()));
        }
        for &at in &waiting {
            if flights[at].step() == Step::Queue {
                flights[at].leave();
            }
        }
    }
}

/// The flights of a call. However the call ends, the locks that they still hold are released together.
struct Landing<'f, 'r, B: Backend, S, L: Lock<B>, M, I, V> {
    region: &'r Shared<B, S, L, M, I>,
    flights: &'f mut [Flight<'r, V, L::Guard>],
}

impl<B: Backend, S, L: Lock<B>, M, I, V> Drop for Landing<'_, '_, B, S, L, M, I, V> {
    fn drop(&mut self) {
        release(self.region, self.flights, |_| true);
    }
}

/// Releases the locks of some flights: one round trip, none if there are none.
fn release<B: Backend, S, L: Lock<B>, M, I, V>(
    region: &Shared<B, S, L, M, I>,
    flights: &mut [Flight<'_, V, L::Guard>],
    which: impl Fn(&Flight<'_, V, L::Guard>) -> bool,
) {
    let guards: Vec<_> = flights.iter_mut().filter(|flight| which(flight)).filter_map(Flight::take_guard).collect();
    if !guards.is_empty() {
        region.lock.release(&region.backend, guards);
    }
}

/// Gives up locks and lines of the flights that have ended; those who wait in the lines get what was found.
fn settle<B: Backend, S, L: Lock<B>, M, I, V>(region: &Shared<B, S, L, M, I>, flights: &mut [Flight<'_, V, L::Guard>]) {
    flights.iter().for_each(Flight::share_found);
    release(region, flights, |flight| flight.has_ended());
    flights.iter_mut().filter(|flight| flight.has_ended()).for_each(Flight::leave);
}

/// Waits in the lines until all waits are over, one of them leaves something to do, or `patience` ends. Only the
/// flights that were woken are looked at.
fn wait_in_line<B: Backend, S: Codec<V>, L: Lock<B>, M: KeyMap, I: Invalidation, F, V>(
    call: &Call<'_, B, S, L, M, I, F>,
    flights: &mut [Flight<'_, V, L::Guard>],
    waiting: &[usize],
    thread: Option<ThreadId>,
    patience: Option<Duration>,
) {
    let region = call.shared();
    // A patience that no clock can tell has no end.
    let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
    let bell = Arc::new(Bell { thread: thread::current(), woken: Mutex::default() });
    let wakers: Vec<Waker> =
        waiting.iter().map(|&at| Waker::from(Arc::new(Rings { bell: Arc::clone(&bell), at }))).collect();
    let waker_of = |at: usize| &wakers[waiting.binary_search(&at).unwrap_or_default()];
    let mut left = waiting.len();
    let mut look: Vec<usize> = waiting.to_vec();
    loop {
        for at in look {
            if flights[at].step() != Step::Queue {
                continue;
            }
            if flights[at].poll_queue(region, call.max_age, &Context::from_waker(waker_of(at)), thread).is_ready() {
                if !flights[at].has_ended() {
                    return;
                }
                flights[at].leave();
                left -= 1;
            }
        }
        if left == 0 {
            return;
        }
        look = loop {
            let woken = std::mem::take(&mut *bell.woken.lock().unwrap_or_else(PoisonError::into_inner));
            if !woken.is_empty() {
                break woken;
            }
            match deadline {
                None => thread::park(),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return;
                    }
                    thread::park_timeout(left);
                }
            }
        };
    }
}

/// Waits until a holder of a lock in another process may be done; then all of them are asked for.
fn await_holders<B: Backend, S, L: Lock<B>, M, I: Invalidation, V>(
    region: &Shared<B, S, L, M, I>,
    keys: &[Key<'_>],
    flights: &mut [Flight<'_, V, L::Guard>],
    holders: &[usize],
    patience: Option<Duration>,
    others: bool,
) -> Result<(), Error> {
    const DAY: Duration = Duration::from_secs(86_400);
    const MOMENT: Duration = Duration::from_millis(100);
    let longest = holders.iter().copied().min_by_key(|&at| flights[at].rounds).unwrap_or_default();
    // One is waited for, and the others are looked at in between.
    let at_most = patience.unwrap_or(DAY).min(if others { MOMENT } else { DAY });
    let waited = region.lock.wait(&region.backend, keys[longest], flights[longest].rounds, at_most);
    let is_reachable = waited.is_ok();
    waited.or_else(|error| region.tolerate(error, &region.counters.failed_locks))?;
    holders.iter().for_each(|&at| flights[at].holder_woke(is_reachable));
    Ok(())
}

/// The flights whose next step is `step`.
fn which<V, G>(flights: &[Flight<'_, V, G>], step: Step) -> SmallVec<[usize; 4]> {
    (0..flights.len()).filter(|&at| flights[at].step() == step).collect()
}

fn of<'k>(keys: &[Key<'k>], which: &[usize]) -> SmallVec<[Key<'k>; 4]> {
    which.iter().map(|&at| keys[at]).collect()
}

/// Reads for all flights that need it: one round trip.
fn read<B: Backend, S: Codec<V>, L: Lock<B>, M: KeyMap, I: Invalidation, F, V>(
    call: &Call<'_, B, S, L, M, I, F>,
    keys: &[Key<'_>],
    flights: &mut [Flight<'_, V, L::Guard>],
) -> Result<(), Error> {
    let region = call.shared();
    let reading = which(flights, Step::Read);
    if reading.is_empty() {
        return Ok(());
    }
    let mut found = Found::new();
    reading.iter().for_each(|&at| flights[at].reads_after(region.lines_ended(keys[at])));
    let answered = region.backend.get_many(&of(keys, &reading), &mut found).and_then(|()| {
        if found.len() == reading.len() {
            return Ok(());
        }
        let message = format!("reading {} keys: the backend answered for {}", reading.len(), found.len());
        Err(Error::new(ErrorKind::Protocol, message))
    });
    match answered {
        Ok(()) => reading.iter().zip(found.iter()).try_for_each(|(&at, entry)| {
            flights[at].read(region, Ok(region.reading(entry.map(Slice::to_bytes), call.max_age)))
        }),
        Err(error) => {
            // Counted once; each flight only learns of it.
            region.tolerate(error, &region.counters.failed_reads)?;
            reading.iter().for_each(|&at| flights[at].unreachable());
            Ok(())
        }
    }
}

/// Locks, and reads once more, for all flights that lead: one round trip.
fn lock<B: Backend, S: Codec<V>, L: Lock<B>, M: KeyMap, I: Invalidation, F, V>(
    call: &Call<'_, B, S, L, M, I, F>,
    keys: &[Key<'_>],
    flights: &mut [Flight<'_, V, L::Guard>],
) -> Result<(), Error> {
    let region = call.shared();
    let mut locking = which(flights, Step::TryLock);
    if L::ONLY_THIS_REGION {
        locking = lock_as_read(region, keys, flights, locking)?;
    }
    if locking.is_empty() {
        return Ok(());
    }
    let attempts = match region.lock.try_lock_and_read(&region.backend, &of(keys, &locking)) {
        Ok(attempts) => attempts,
        Err(error) => {
            region.tolerate(error, &region.counters.failed_locks)?;
            Vec::new()
        }
    };
    // A lock that answers for too few keys is as good as none for the others.
    let mut attempts = attempts.into_iter();
    for at in locking {
        flights[at].locked(region, call.max_age, attempts.next());
    }
    Ok(())
}

/// Locks without another reading where nobody can have created since the last one, and returns the others of `locking`.
fn lock_as_read<B: Backend, S, L: Lock<B>, M, I: Invalidation, V>(
    region: &Shared<B, S, L, M, I>,
    keys: &[Key<'_>],
    flights: &mut [Flight<'_, V, L::Guard>],
    locking: SmallVec<[usize; 4]>,
) -> Result<SmallVec<[usize; 4]>, Error> {
    let mut others = SmallVec::new();
    for at in locking {
        if !flights[at].knows_entry(&region.line, keys[at]) {
            others.push(at);
            continue;
        }
        match region.lock.try_lock(&region.backend, keys[at]) {
            Ok(guard) => flights[at].locked_as_read(guard),
            Err(error) => {
                region.tolerate(error, &region.counters.failed_locks)?;
                flights[at].unreachable();
            }
        }
    }
    Ok(others)
}

/// Creates what is to be created, in one call; the batch is what is to be stored of it.
fn create_missing<'r, B, S, L, M, I, F, V, E>(
    call: &Call<'r, B, S, L, M, I, F>,
    keys: &[Key<'_>],
    flights: &mut [Flight<'r, V, L::Guard>],
    create: impl FnOnce(&[usize]) -> Result<Vec<V>, E>,
) -> Result<Batch, GetError<E>>
where
    B: Backend,
    S: Codec<V>,
    L: Lock<B>,
    M: KeyMap,
    I: Invalidation,
    F: StoreRule<V>,
{
    let region = call.shared();
    let missing = which(flights, Step::Create);
    let mut batch = Batch::with_capacity(missing.len());
    if missing.is_empty() {
        return Ok(batch);
    }
    let failure = CountUnlessDone(&region.counters.failed_creations);
    let started = region.invalidation.stamp(region.clock.now());
    let values = create(&missing).map_err(GetError::Create)?;
    if values.len() != missing.len() {
        return Err(wrong_number(missing.len(), values.len()).into());
    }
    std::mem::forget(failure);
    region.counters.created.add(values.len());
    // What was invalidated while it was created may be made of what was there before.
    let time = match region.invalidation.judge(started) {
        Freshness::Fresh => region.invalidation.stamp(region.clock.now()),
        _ => started,
    };
    for (&at, value) in missing.iter().zip(values) {
        flights[at].created(call, keys[at], value, time, &mut batch)?;
    }
    Ok(batch)
}

/// Stores what was created and releases its locks: one round trip.
fn store<B: Backend, S, L: Lock<B>, M: KeyMap, I: Invalidation, F, V>(
    call: &Call<'_, B, S, L, M, I, F>,
    flights: &mut [Flight<'_, V, L::Guard>],
    batch: &Batch,
) -> Result<(), Error> {
    let region = call.shared();
    let storing = which(flights, Step::Store);
    if storing.is_empty() {
        return Ok(());
    }
    let guards = storing.iter().filter_map(|&at| flights[at].take_guard()).collect();
    let stored = region.lock.store_and_release(&region.backend, guards, batch, call.ttl);
    stored.or_else(|error| region.tolerate(error, &region.counters.failed_writes))?;
    storing.iter().for_each(|&at| flights[at].stored());
    Ok(())
}

/// A creator that returned another number of values than it was given keys.
pub(super) fn wrong_number(keys: usize, values: usize) -> Error {
    Error::new(ErrorKind::Creator, format!("creating {keys} keys: the creator returned {values} values"))
}

/// Counts a creator that fails or panics.
struct CountUnlessDone<'c>(&'c Counter);

impl Drop for CountUnlessDone<'_> {
    fn drop(&mut self) {
        self.0.add(1);
    }
}

/// A thread that is parked, and the flights that it is woken for.
struct Bell {
    thread: Thread,
    woken: Mutex<Vec<usize>>,
}

/// Wakes the thread for one flight.
struct Rings {
    bell: Arc<Bell>,
    at: usize,
}

impl Wake for Rings {
    fn wake(self: Arc<Self>) {
        self.bell.woken.lock().unwrap_or_else(PoisonError::into_inner).push(self.at);
        self.bell.thread.unpark();
    }
}
