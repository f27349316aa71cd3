//! The blocking driver of flights: does what each one's next step is, many at once where that is one round trip.

use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::call::{Call, StoreRule};
use super::flight::Flight;
use super::stats::Counter;
use crate::backend::Backend;
use crate::codec::Codec;
use crate::engine::dogpile::Step;
use crate::error::{Error, ErrorKind, GetError};
use crate::key::Key;
use crate::keymap::KeyMap;
use crate::lock::{Attempt, Lock};
use crate::policy::{Freshness, Invalidation};
use crate::request::{Batch, Found};
use crate::slice::Slice;

/// Brings every flight to its end. `create` is given the numbers of those whose values it is to create.
///
/// Waiting comes last, when this caller has nothing left to create: so nobody waits for a caller that waits. It waits
/// for other processes before it waits for other threads, because the thread that leads a key may be waiting here.
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
    let region = call.shared();
    let thread = Some(thread::current().id());
    // A patience that no clock can tell has no end.
    let deadline = region.patience.and_then(|patience| Instant::now().checked_add(patience));
    loop {
        read(call, keys, flights)?;
        for at in which(flights, Step::Join) {
            flights[at].join(&region.line, keys[at], thread)?;
        }
        lock(call, keys, flights)?;
        let batch = create_missing(call, keys, flights, &mut create)?;
        store(call, flights, &batch)?;
        for flight in flights.iter_mut() {
            if matches!(flight.step(), Step::ReturnFound | Step::ReturnShared | Step::ReturnCreated) {
                flight.settle();
            }
        }
        // A stale entry that went, or a share that was of no use, brings a flight back to these.
        if flights.iter().any(|flight| matches!(flight.step(), Step::Read | Step::Join | Step::TryLock)) {
            continue;
        }
        if let Some(&at) = which(flights, Step::AwaitHolder).first() {
            let at_most = time_left(deadline, keys[at])?;
            let waited = region.lock.wait(&region.backend, keys[at], flights[at].rounds, at_most);
            let is_reachable = waited.is_ok();
            waited.or_else(|error| region.tolerate(error, &region.counters.failed_locks))?;
            flights[at].holder_woke(is_reachable);
        } else if let Some(&at) = which(flights, Step::Queue).first() {
            let waker = Waker::from(Arc::new(Unpark(thread::current())));
            let context = Context::from_waker(&waker);
            while flights[at].poll_queue(region, &context, thread).is_pending() {
                match deadline {
                    None => thread::park(),
                    Some(_) => thread::park_timeout(time_left(deadline, keys[at])?),
                }
            }
        } else {
            return Ok(());
        }
    }
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
    match region.backend.get_many(&of(keys, &reading), &mut found) {
        Ok(()) => reading.iter().zip(found.iter()).try_for_each(|(&at, entry)| {
            flights[at].read(region, Ok(region.reading(entry.map(Slice::to_bytes), call.expiry)))
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
    let locking = which(flights, Step::TryLock);
    if locking.is_empty() {
        return Ok(());
    }
    let attempts = match region.lock.try_lock_and_read(&region.backend, &of(keys, &locking)) {
        Ok(attempts) => attempts.into_iter().map(Some).collect(),
        Err(error) => {
            region.tolerate(error, &region.counters.failed_locks)?;
            Vec::new()
        }
    };
    // A lock that answers for too few keys is as good as none for the others.
    let mut attempts: std::vec::IntoIter<Option<Attempt<L::Guard>>> = attempts.into_iter();
    for at in locking {
        flights[at].locked(region, call.expiry, attempts.next().flatten());
    }
    Ok(())
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
    let mut batch = Batch::new();
    let missing = which(flights, Step::Create);
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
    let guards = storing.iter().map(|&at| flights[at].take_guard()).collect();
    let stored = region.lock.store_and_release(&region.backend, guards, batch, call.ttl);
    stored.or_else(|error| region.tolerate(error, &region.counters.failed_writes))?;
    storing.iter().for_each(|&at| flights[at].stored());
    Ok(())
}

/// A creator that returned another number of values than it was given keys.
pub(super) fn wrong_number(keys: usize, values: usize) -> Error {
    Error::new(ErrorKind::Creator, format!("creating {keys} keys: the creator returned {values} values"))
}

fn time_left(deadline: Option<Instant>, key: Key<'_>) -> Result<Duration, Error> {
    let Some(deadline) = deadline else { return Ok(Duration::MAX) };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        let message = format!("waiting for somebody else to create {key}: the region's patience is over");
        return Err(Error::new(ErrorKind::Timeout, message));
    }
    Ok(left)
}

/// Counts a creator that fails or panics.
struct CountUnlessDone<'c>(&'c Counter);

impl Drop for CountUnlessDone<'_> {
    fn drop(&mut self) {
        self.0.add(1);
    }
}

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
