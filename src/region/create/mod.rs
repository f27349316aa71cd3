//! The driver of flights, for both faces: does what each one's next step is, many at once where that is one round trip.

pub(crate) mod background;
pub(crate) mod exec;
pub(crate) mod flight;
pub(crate) mod machine;
pub(crate) mod shared_reads;
#[cfg(all(test, shuttle))]
mod shuttle_tests;
pub(crate) mod single_flight;
mod sync;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use async_lock::SemaphoreGuardArc;
use smallvec::SmallVec;

use crate::batch::{Batch, Found};
use crate::codec::Codec;
use crate::error::{Error, ErrorKind, GetError};
use crate::freshness::{Freshness, Invalidation};
use crate::key::Key;
use crate::keymap::KeyMap;
use crate::lock::LockSettings;
use crate::region::AfterPatience;
use crate::region::Shared;
use crate::region::call::{Settings, StoreRule};
use crate::region::create::exec::Face;
use crate::region::create::flight::Flight;
use crate::region::create::machine::Step;
use crate::region::stats::Counter;
use crate::slice::Slice;
use crate::time::Timestamp;
use crate::wake_set::{Bell, Rings};

/// The flights of a call, and what they need. However the call ends, the locks that they still hold are released
/// together.
pub(crate) struct Drive<'d, A: Face<B, L>, B, S, L, M, I, F, V> {
    face: A,
    region: &'d Shared<B, S, L, M, I>,
    settings: Settings<&'d F>,
    keys: &'d [Key<'d>],
    flights: &'d mut [Flight<V, A::Guard>],
    /// How long this caller still waits for others.
    patience: Option<Duration>,
}

impl<A: Face<B, L>, B, S, L, M, I, F, V> Drop for Drive<'_, A, B, S, L, M, I, F, V> {
    fn drop(&mut self) {
        self.release(|_| true);
    }
}

impl<A: Face<B, L>, B, S, L, M, I, F, V> Drive<'_, A, B, S, L, M, I, F, V> {
    /// The flights whose next step is `step`.
    fn which(&self, step: Step) -> SmallVec<[usize; 4]> {
        (0..self.flights.len()).filter(|&at| self.flights[at].step() == step).collect()
    }

    fn keys_of(&self, which: &[usize]) -> SmallVec<[Key<'_>; 4]> {
        which.iter().map(|&at| self.keys[at]).collect()
    }

    /// Releases the locks of some flights: one round trip at most, none if there are none.
    fn release(&mut self, which: impl Fn(&Flight<V, A::Guard>) -> bool) {
        let flights = self.flights.iter_mut().filter(|flight| which(flight));
        let guards: Vec<_> = flights.filter_map(Flight::take_guard).collect();
        if !guards.is_empty() {
            let region = self.region;
            self.face.release(&region.lock, &region.backend, guards);
        }
    }

    /// Gives up locks and lines of the flights that have ended; those who wait in the lines get what was found.
    fn settle(&mut self) {
        self.flights.iter().for_each(Flight::share_found);
        self.release(Flight::has_ended);
        self.flights.iter_mut().filter(|flight| flight.has_ended()).for_each(Flight::leave);
    }
}

impl<'d, A, B, S, L, M, I, F, V> Drive<'d, A, B, S, L, M, I, F, V>
where
    A: Face<B, L>,
    S: Codec<V>,
    L: LockSettings,
    M: KeyMap,
    I: Invalidation,
    F: StoreRule<V>,
{
    /// Takes over one flight for each key.
    pub(crate) fn new(
        face: A,
        region: &'d Shared<B, S, L, M, I>,
        settings: Settings<&'d F>,
        keys: &'d [Key<'d>],
        flights: &'d mut [Flight<V, A::Guard>],
    ) -> Self {
        Drive { face, region, settings, keys, flights, patience: region.patience }
    }

    /// Brings a single flight to its end. Its creator is called once at most.
    pub(crate) async fn run_one<R: Future<Output = Result<V, E>>, E>(
        mut self,
        create: impl FnOnce() -> R,
    ) -> Result<(), GetError<E>> {
        if let Some(creation) = self.missing().await? {
            let value = create().await.map_err(GetError::Create)?;
            self.created(creation, vec![value]).await?;
        }
        Ok(())
    }

    /// Goes on until there is something to create; `None` when all flights have ended.
    ///
    /// Waiting comes last, when this caller has nothing left to create, and it waits for all that is missing at once;
    /// who waits and has to do something leaves the lines that it stands in. So nobody waits for a caller that waits,
    /// and nobody is elected who is not looking.
    pub(crate) async fn missing(&mut self) -> Result<Option<Creation<'d>>, Error> {
        let (region, thread) = (self.region, self.face.thread());
        loop {
            self.read().await?;
            for at in self.which(Step::Join) {
                self.flights[at].join(&region.line, self.keys[at], thread);
            }
            self.lock().await?;
            // Nobody should wait for what is here already, or with another process, while this caller creates.
            self.settle();
            let missing = self.which(Step::Create);
            if !missing.is_empty() {
                self.which(Step::AwaitHolder).into_iter().for_each(|at| self.flights[at].leave_lead());
                let permit = self.permit().await?;
                let failure = CountUnlessDone(&region.counters.failed_creations);
                let started = region.invalidation.stamp(region.clock.now());
                return Ok(Some(Creation { missing, started, failure, permit }));
            }
            // An entry that went, or a share that was of no use, leaves more to do at once.
            if self.flights.iter().any(|flight| matches!(flight.step(), Step::Read | Step::Join | Step::TryLock)) {
                continue;
            }
            if self.flights.iter().all(Flight::has_ended) {
                return Ok(None);
            }
            self.wait().await?;
        }
    }

    /// Waits until one creator more may run, where their number is limited.
    async fn permit(&mut self) -> Result<Option<SemaphoreGuardArc>, Error> {
        let Some((places, most)) = &self.region.creators else { return Ok(None) };
        if let Some(permit) = places.try_acquire_arc() {
            return Ok(Some(permit));
        }
        let begun = self.face.clock();
        let permit = self.face.within(self.patience_ends(), places.acquire_arc()).await;
        self.spend_patience(begun);
        permit.map(Some).ok_or_else(|| {
            let message =
                format!("waiting to create a value: {most} creators ran until the region's patience was over");
            Error::new(ErrorKind::Timeout, message)
        })
    }

    /// Waits for values that others create, until there is something to do, or the patience ends.
    async fn wait(&mut self) -> Result<(), Error> {
        let queued = self.which(Step::Queue);
        for &at in &queued {
            self.flights[at].stand(&self.region.line, self.keys[at], self.face.thread())?;
        }
        // Unless one of them leads instead, and so has something to do.
        if queued.iter().all(|&at| self.flights[at].step() == Step::Queue) {
            if self.patience == Some(Duration::ZERO) {
                return self.lose_patience();
            }
            let begun = self.face.clock();
            self.wait_for_others().await;
            self.spend_patience(begun);
        }
        for &at in &queued {
            if self.flights[at].step() == Step::Queue {
                self.flights[at].leave();
            }
        }
        Ok(())
    }

    /// What was waited since then is not waited again.
    fn spend_patience(&mut self, begun: Instant) {
        self.patience = self.patience.map(|patience| patience.saturating_sub(self.face.clock() - begun));
    }

    /// The moment when the patience ends. One that no clock can tell does not come.
    fn patience_ends(&self) -> Option<Instant> {
        self.patience.and_then(|patience| self.face.clock().checked_add(patience))
    }

    /// The patience is over: an error, or the caller creates for itself.
    fn lose_patience(&mut self) -> Result<(), Error> {
        let (region, waiting) = (self.region, self.waiting());
        region.counters.impatient.add(waiting.len());
        if region.after_patience == AfterPatience::Fail {
            let first = self.keys[waiting[0]];
            let message = format!("waiting for somebody else to create {first}: the region's patience is over");
            return Err(Error::new(ErrorKind::Timeout, message));
        }
        waiting.iter().for_each(|&at| self.flights[at].lose_patience());
        Ok(())
    }

    /// The flights whose values others create, in this process or in another one.
    fn waiting(&self) -> SmallVec<[usize; 4]> {
        let waits = |at: &usize| matches!(self.flights[*at].step(), Step::Queue | Step::AwaitHolder);
        (0..self.flights.len()).filter(waits).collect()
    }

    /// Waits until all waits are over, one of them leaves something to do, or the patience ends. Only the flights that
    /// were woken are looked at.
    async fn wait_for_others(&mut self) {
        let waiting = self.waiting();
        let bell = Arc::new(Bell::new());
        let wakers: Vec<Waker> = waiting.iter().map(|&at| Rings::waker(&bell, at)).collect();
        let waker_of = |at: usize| &wakers[waiting.binary_search(&at).unwrap_or_default()];
        let (region, max_age, thread) = (self.region, self.settings.max_age, self.face.thread());
        // Holders of locks that nothing tells of are asked for again after a pause.
        let untold = self.watch_holders();
        let pause = untold.iter().map(|&at| pause(self.flights[at].rounds)).min();
        let (asks_again, patience_ends) = (pause.map(|pause| self.face.clock() + pause), self.patience_ends());
        let behind_reading = waiting.iter().any(|&at| self.flights[at].waits_for_reading());
        let mut reading_ends = behind_reading.then(|| self.face.clock() + LONGEST_READING);
        let mut left = waiting.len();
        let mut look = waiting.to_vec();
        loop {
            let mut has_to_do = false;
            for at in look {
                let (flight, mut context) = (&mut self.flights[at], Context::from_waker(waker_of(at)));
                let woken = match flight.step() {
                    Step::Queue => flight.poll_queue(region, max_age, &context, thread),
                    Step::AwaitHolder => flight.poll_holder(&mut context),
                    _ => Poll::Pending,
                };
                if woken.is_ready() {
                    if flight.has_ended() {
                        flight.leave();
                        left -= 1;
                    } else {
                        has_to_do = true;
                    }
                }
            }
            if left == 0 || has_to_do {
                return;
            }
            let deadline = [asks_again, patience_ends, reading_ends].into_iter().flatten().min();
            look = match self.face.within(deadline, poll_fn(|context| bell.poll(context))).await {
                Some(woken) => woken,
                None if deadline == reading_ends => {
                    // They are woken, and read.
                    waiting.iter().for_each(|&at| self.flights[at].give_up_reading());
                    reading_ends = None;
                    Vec::new()
                }
                None if deadline == asks_again => {
                    return untold.iter().for_each(|&at| self.flights[at].holder_woke());
                }
                None => return,
            };
        }
    }

    /// Watches the holders of locks in other processes. Those that nothing tells of are returned.
    fn watch_holders(&mut self) -> SmallVec<[usize; 4]> {
        let mut untold = self.which(Step::AwaitHolder);
        untold.retain(|at| {
            if self.flights[*at].rounds == 0 {
                self.region.counters.awaited.add(1);
            }
            let begin = || self.face.watch(&self.region.lock, &self.region.backend, self.keys[*at]);
            !self.flights[*at].watches(begin)
        });
        untold
    }

    /// Reads for all flights that need it: one round trip.
    async fn read(&mut self) -> Result<(), Error> {
        let reading = self.which(Step::Read);
        if reading.is_empty() {
            return Ok(());
        }
        let region = self.region;
        let mut found = Found::new();
        reading
            .iter()
            .for_each(|&at| self.flights[at].reads_after(region.lines_ended(region.line.hash(self.keys[at]))));
        let answered = self.face.get_many(&region.backend, &self.keys_of(&reading), &mut found).await.and_then(|()| {
            if found.len() == reading.len() {
                return Ok(());
            }
            let message = format!("reading {} keys: the backend answered for {}", reading.len(), found.len());
            Err(Error::new(ErrorKind::Protocol, message))
        });
        match answered {
            Ok(()) => reading.iter().zip(found.iter()).try_for_each(|(&at, entry)| {
                self.flights[at].read(region, Ok(region.reading(entry.map(Slice::to_bytes), self.settings.max_age)))
            }),
            Err(error) => {
                // Counted once; each flight only learns of it.
                region.tolerate(error, &region.counters.failed_reads)?;
                reading.iter().for_each(|&at| self.flights[at].unreachable());
                Ok(())
            }
        }
    }

    /// Locks, and reads once more, for all flights that lead: one round trip.
    async fn lock(&mut self) -> Result<(), Error> {
        let region = self.region;
        let mut locking = self.which(Step::TryLock);
        if L::ONLY_THIS_REGION {
            locking = self.lock_as_read(locking).await?;
        }
        if locking.is_empty() {
            return Ok(());
        }
        let attempts = self.face.try_lock_and_read(&region.lock, &region.backend, &self.keys_of(&locking)).await;
        let attempts = match attempts {
            Ok(attempts) => attempts,
            Err(error) => {
                region.tolerate(error, &region.counters.failed_locks)?;
                Vec::new()
            }
        };
        // A lock that answers for too few keys is as good as none for the others.
        let mut attempts = attempts.into_iter();
        for at in locking {
            self.flights[at].locked(region, self.settings.max_age, attempts.next());
        }
        Ok(())
    }

    /// Locks without another reading where nobody can have created since the last one, and returns the others of
    /// `locking`.
    async fn lock_as_read(&mut self, locking: SmallVec<[usize; 4]>) -> Result<SmallVec<[usize; 4]>, Error> {
        let region = self.region;
        let mut others = SmallVec::new();
        for at in locking {
            if !self.flights[at].knows_entry(&region.line, self.keys[at]) {
                others.push(at);
                continue;
            }
            match self.face.try_lock(&region.lock, &region.backend, self.keys[at]).await {
                Ok(guard) => self.flights[at].locked_as_read(guard),
                Err(error) => {
                    region.tolerate(error, &region.counters.failed_locks)?;
                    self.flights[at].unreachable();
                }
            }
        }
        Ok(others)
    }

    /// Takes what was created, shares it and stores it.
    pub(crate) async fn created(&mut self, creation: Creation<'_>, values: Vec<V>) -> Result<(), Error> {
        let Creation { missing, started, failure, permit } = creation;
        if values.len() != missing.len() {
            return Err(wrong_number(missing.len(), values.len()));
        }
        std::mem::forget(failure);
        drop(permit);
        let region = self.region;
        region.counters.created.add(values.len());
        // What was invalidated while it was created may be made of what was there before.
        let time = match region.invalidation.judge(started) {
            Freshness::Fresh => region.invalidation.stamp(region.clock.now()),
            _ => started,
        };
        let most = self.face.max_entry(&region.backend);
        let (mut locked, mut unlocked) = (Batch::with_capacity(missing.len()), Batch::new());
        for (&at, value) in missing.iter().zip(values) {
            let most = self.settings.rule.stores(&value).then_some(most);
            let batch = if self.flights[at].is_locked() { &mut locked } else { &mut unlocked };
            self.flights[at].created(region, self.keys[at], value, time, most, batch)?;
        }
        self.store(&locked, &unlocked).await?;
        self.settle();
        Ok(())
    }

    /// Stores what was created and releases its locks: one round trip. What was created for impatience has no lock.
    async fn store(&mut self, locked: &Batch, unlocked: &Batch) -> Result<(), Error> {
        let (region, ttl) = (self.region, self.settings.ttl);
        let storing = self.which(Step::Store);
        locked.iter().chain(unlocked.iter()).for_each(|(key, entry)| region.check_length(key, entry.len()));
        if !locked.is_empty() {
            let guards = storing.iter().filter_map(|&at| self.flights[at].take_guard()).collect();
            match self.face.store_and_release(&region.lock, &region.backend, guards, locked, ttl).await {
                Ok(lost) => region.counters.lost_locks.add(lost),
                Err(error) => region.tolerate(error, &region.counters.failed_writes)?,
            }
        }
        if !unlocked.is_empty() {
            let stored = self.face.set_many(&region.backend, unlocked, ttl).await;
            stored.or_else(|error| region.tolerate(error, &region.counters.failed_writes))?;
        }
        storing.iter().for_each(|&at| self.flights[at].stored());
        Ok(())
    }
}

/// A creator that returned another number of values than it was given keys.
pub(crate) fn wrong_number(keys: usize, values: usize) -> Error {
    Error::new(ErrorKind::Creator, format!("creating {keys} keys: the creator returned {values} values"))
}

/// How long to wait for another caller's reading: that of a task may rest, because nobody polls it.
const LONGEST_READING: Duration = Duration::from_millis(20);

/// How long to wait for another process before it is asked again whether it is done.
fn pause(round: u32) -> Duration {
    Duration::from_millis(5 << round.min(3))
}

/// Values that are being created.
pub(crate) struct Creation<'d> {
    /// The numbers of their flights.
    pub(crate) missing: SmallVec<[usize; 4]>,
    /// What an entry of the time when it began would be stamped with.
    started: Timestamp,
    failure: CountUnlessDone<'d>,
    /// Lets another creator run, where their number is limited.
    permit: Option<SemaphoreGuardArc>,
}

/// Counts a creator that fails, panics, or is dropped before it is done.
struct CountUnlessDone<'c>(&'c Counter);

impl Drop for CountUnlessDone<'_> {
    fn drop(&mut self) {
        self.0.add(1);
    }
}
