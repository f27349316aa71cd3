//! The creation driver: performs the steps of many flights at once, each kind in one round trip.

pub(crate) mod background;
pub(crate) mod caller;
pub(crate) mod flight;
pub(crate) mod machine;
pub(crate) mod single_flight;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use async_lock::SemaphoreGuardArc;
use smallvec::SmallVec;

use self::caller::Caller;
use self::flight::Flight;
use self::machine::Step;
use crate::backend::AsyncBackend;
use crate::batch::{Batch, Found};
use crate::codec::Codec;
use crate::error::{Error, ErrorKind, GetError};
use crate::exec::Exec;
use crate::freshness::{Freshness, Invalidation};
use crate::key::Key;
use crate::keymap::KeyMap;
use crate::lock::AsyncLock;
use crate::region::options::OnWaitTimeout;
use crate::region::stats::Counter;
use crate::slice::Slice;
use crate::time::Timestamp;
use crate::wake_set::{WakeSet, WakeSetWaker};

/// The flights of a call and what they need. However the call ends, the locks that they still hold are
/// released together.
pub(crate) struct CreationDriver<'d, X: Exec, B: AsyncBackend, L: AsyncLock<B>, S, M, I, V> {
    caller: Caller<'d, X, B, L, S, M, I>,
    keys: &'d [Key<'d>],
    flights: &'d mut [Flight<V, L::AsyncGuard>],
    /// How much longer this call may wait for others.
    wait_left: Option<Duration>,
}

impl<X: Exec, B: AsyncBackend, L: AsyncLock<B>, S, M, I, V> Drop for CreationDriver<'_, X, B, L, S, M, I, V> {
    fn drop(&mut self) {
        self.release(|_| true);
    }
}

impl<X: Exec, B: AsyncBackend, L: AsyncLock<B>, S, M, I, V> CreationDriver<'_, X, B, L, S, M, I, V> {
    /// Returns the flights whose next step is `step`.
    fn flights_at(&self, step: Step) -> SmallVec<[usize; 4]> {
        (0..self.flights.len()).filter(|&at| self.flights[at].step() == step).collect()
    }

    fn keys_of(&self, flights: &[usize]) -> SmallVec<[Key<'_>; 4]> {
        flights.iter().map(|&at| self.keys[at]).collect()
    }

    /// Releases the locks of some flights: at most one round trip.
    fn release(&mut self, which: impl Fn(&Flight<V, L::AsyncGuard>) -> bool) {
        let flights = self.flights.iter_mut().filter(|flight| which(flight));
        let guards: Vec<_> = flights.filter_map(Flight::take_guard).collect();
        if !guards.is_empty() {
            self.caller.lock.release(self.caller.backend, guards);
        }
    }

    /// Ends the roles and locks of the flights that have ended. Their waiters get what was found.
    fn settle(&mut self) {
        self.flights.iter().for_each(Flight::share_found);
        self.release(Flight::has_ended);
        self.flights.iter_mut().filter(|flight| flight.has_ended()).for_each(Flight::leave);
    }
}

impl<'d, X, B, L, S, M, I, V> CreationDriver<'d, X, B, L, S, M, I, V>
where
    X: Exec,
    B: AsyncBackend,
    L: AsyncLock<B>,
    S: Codec<V>,
    M: KeyMap,
    I: Invalidation,
    V: 'static,
{
    /// Takes one flight for each key.
    pub(crate) fn new(
        caller: Caller<'d, X, B, L, S, M, I>,
        keys: &'d [Key<'d>],
        flights: &'d mut [Flight<V, L::AsyncGuard>],
    ) -> Self {
        CreationDriver { caller, keys, flights, wait_left: caller.scope.options.wait_timeout }
    }

    /// Drives a single flight to its end. Calls the creator at most once.
    pub(crate) async fn run_one<R: Future<Output = Result<V, E>>, E>(
        mut self,
        create: impl FnOnce() -> R,
    ) -> Result<(), GetError<E>> {
        if let Some(creation) = self.next_creation().await? {
            let value = create().await.map_err(GetError::Create)?;
            self.finish_creation(creation, vec![value]).await?;
        }
        Ok(())
    }

    /// Goes on until this call has values to create. Returns `None` when all flights have ended.
    ///
    /// The driver waits last, when it has nothing to create, and for everything that is missing at
    /// once. When a wait ends with something to do, it leaves the other flights first. So no caller
    /// waits for a caller that waits, and a waiter that does something else is never promoted.
    pub(crate) async fn next_creation(&mut self) -> Result<Option<PendingCreation<'d>>, Error> {
        let (core, thread) = (self.caller.scope.core, self.caller.exec.thread());
        loop {
            self.read().await?;
            for at in self.flights_at(Step::Join) {
                self.flights[at].join(&core.flights, self.keys[at], thread);
            }
            self.lock().await?;
            // What was found must not be held back while this caller creates.
            self.settle();
            let missing = self.flights_at(Step::Create);
            if !missing.is_empty() {
                self.flights_at(Step::AwaitHolder).into_iter().for_each(|at| self.flights[at].give_up_lead());
                let permit = self.permit().await?;
                let failure = CountUnlessDone(&core.counters.failed_creations);
                let started = core.invalidation.stamp(core.clock.now());
                return Ok(Some(PendingCreation { missing, started, failure, permit }));
            }
            // An entry that has gone, or a shared value that cannot be used, leaves something to do.
            if self.flights.iter().any(|flight| matches!(flight.step(), Step::Read | Step::Join | Step::TryLock)) {
                continue;
            }
            if self.flights.iter().all(Flight::has_ended) {
                return Ok(None);
            }
            self.wait().await?;
        }
    }

    /// Waits for a permit to create, if the number of creations is limited.
    async fn permit(&mut self) -> Result<Option<SemaphoreGuardArc>, Error> {
        let Some((permits, max)) = &self.caller.scope.core.creations else { return Ok(None) };
        if let Some(permit) = permits.try_acquire_arc() {
            return Ok(Some(permit));
        }
        let exec = self.caller.exec;
        let start = exec.now();
        let permit = exec.timeout(self.wait_deadline(), permits.acquire_arc()).await;
        self.spend_wait(start);
        permit.map(Some).ok_or_else(|| {
            let first = self.keys.first().copied().unwrap_or(Key::Plain(b""));
            let message = format!(
                "creating {first}: {max} creations (max_creations) were running until the wait_timeout of the region"
            );
            Error::new(ErrorKind::Timeout, message)
        })
    }

    /// Waits for creations of other callers until there is something to do, or the wait times out.
    async fn wait(&mut self) -> Result<(), Error> {
        let waiting = self.flights_at(Step::AwaitLeader);
        for &at in &waiting {
            let (flights, thread) = (&self.caller.scope.core.flights, self.caller.exec.thread());
            self.flights[at].await_leader(flights, self.keys[at], thread)?;
        }
        // If one of them leads instead, there is something to do.
        if waiting.iter().all(|&at| self.flights[at].step() == Step::AwaitLeader) {
            if self.wait_left == Some(Duration::ZERO) {
                return self.time_out();
            }
            let start = self.caller.exec.now();
            self.wait_for_others().await;
            self.spend_wait(start);
        }
        for &at in &waiting {
            if self.flights[at].step() == Step::AwaitLeader {
                self.flights[at].leave();
            }
        }
        Ok(())
    }

    /// Subtracts the time since `start` from what this call may still wait.
    fn spend_wait(&mut self, start: Instant) {
        self.wait_left = self.wait_left.map(|left| left.saturating_sub(self.caller.exec.now() - start));
    }

    /// Returns when the wait times out. An instant that the clock cannot represent never comes.
    fn wait_deadline(&self) -> Option<Instant> {
        self.wait_left.and_then(|left| self.caller.exec.now().checked_add(left))
    }

    /// Ends the wait: with an error, or by creating the values for this caller.
    fn time_out(&mut self) -> Result<(), Error> {
        let (scope, waiting) = (self.caller.scope, self.waiting());
        scope.core.counters.wait_timeouts.add(waiting.len());
        if scope.options.on_wait_timeout == OnWaitTimeout::Fail {
            let first = self.keys[waiting[0]];
            let message =
                format!("waiting for another caller to create {first}: the wait_timeout of the region has passed");
            return Err(Error::new(ErrorKind::Timeout, message));
        }
        waiting.iter().for_each(|&at| self.flights[at].time_out());
        Ok(())
    }

    /// Returns the flights whose values other callers create, in this process or another one.
    fn waiting(&self) -> SmallVec<[usize; 4]> {
        let waits = |at: &usize| matches!(self.flights[*at].step(), Step::AwaitLeader | Step::AwaitHolder);
        (0..self.flights.len()).filter(waits).collect()
    }

    /// Waits until all waits are over, one of them leaves something to do, or the wait times out. Polls
    /// only the flights that were woken.
    async fn wait_for_others(&mut self) {
        let waiting = self.waiting();
        let wake_set = Arc::new(WakeSet::new());
        let wakers: Vec<Waker> = waiting.iter().map(|&at| WakeSetWaker::waker(&wake_set, at)).collect();
        let waker_of = |at: usize| &wakers[waiting.binary_search(&at).unwrap_or_default()];
        let (exec, scope) = (self.caller.exec, self.caller.scope);
        let thread = exec.thread();
        // Locks without a watch are polled after a pause.
        let unwatched = self.watch_holders();
        let pause = unwatched.iter().map(|&at| poll_pause(self.flights[at].rounds)).min();
        let (poll_at, times_out_at) = (pause.map(|pause| exec.now() + pause), self.wait_deadline());
        let awaits_read = waiting.iter().any(|&at| self.flights[at].awaits_read());
        let mut read_ends_at = awaits_read.then(|| exec.now() + MAX_READ_WAIT);
        let mut left = waiting.len();
        let mut woken = waiting.to_vec();
        loop {
            let mut has_work = false;
            for at in woken {
                let (flight, mut context) = (&mut self.flights[at], Context::from_waker(waker_of(at)));
                let polled = match flight.step() {
                    Step::AwaitLeader => flight.poll_leader(scope, &context, thread),
                    Step::AwaitHolder => flight.poll_holder(&mut context),
                    _ => Poll::Pending,
                };
                if polled.is_ready() {
                    if flight.has_ended() {
                        flight.leave();
                        left -= 1;
                    } else {
                        has_work = true;
                    }
                }
            }
            if left == 0 || has_work {
                return;
            }
            let deadline = [poll_at, times_out_at, read_ends_at].into_iter().flatten().min();
            woken = match exec.timeout(deadline, poll_fn(|context| wake_set.poll(context))).await {
                Some(woken) => woken,
                None if deadline == read_ends_at => {
                    // The waiters are woken, and read for themselves.
                    waiting.iter().for_each(|&at| self.flights[at].give_up_read());
                    read_ends_at = None;
                    Vec::new()
                }
                None if deadline == poll_at => {
                    return unwatched.iter().for_each(|&at| self.flights[at].holder_woke());
                }
                None => return,
            };
        }
    }

    /// Watches the locks that other processes hold. Returns the flights whose locks cannot be watched.
    fn watch_holders(&mut self) -> SmallVec<[usize; 4]> {
        let caller = self.caller;
        let mut unwatched = self.flights_at(Step::AwaitHolder);
        unwatched.retain(|at| {
            if self.flights[*at].rounds == 0 {
                caller.scope.core.counters.remote_waits.add(1);
            }
            let begin = || caller.lock.watch(caller.backend, self.keys[*at]);
            !self.flights[*at].watch_holder(begin)
        });
        unwatched
    }

    /// Reads for all flights that need it: one round trip.
    async fn read(&mut self) -> Result<(), Error> {
        let reading = self.flights_at(Step::Read);
        if reading.is_empty() {
            return Ok(());
        }
        let (scope, backend) = (self.caller.scope, self.caller.backend);
        let mut found = Found::new();
        for &at in &reading {
            let hash = scope.core.flights.hash(self.keys[at]);
            self.flights[at].begin_read(scope.core.flights_ended(hash, L::ONLY_THIS_REGION));
        }
        let read = backend.get_many_async(&self.keys_of(&reading), &mut found).await.and_then(|()| {
            if found.len() == reading.len() {
                return Ok(());
            }
            let message = format!("reading {} keys: the backend returned {} entries", reading.len(), found.len());
            Err(Error::new(ErrorKind::Protocol, message))
        });
        match read {
            Ok(()) => reading.iter().zip(found.iter()).try_for_each(|(&at, entry)| {
                self.flights[at].finish_read(scope, Ok(scope.decoded(entry.map(Slice::to_bytes))))
            }),
            Err(error) => {
                // Counted once for the batch.
                scope.tolerate(error, &scope.core.counters.failed_reads)?;
                reading.iter().for_each(|&at| self.flights[at].unreachable());
                Ok(())
            }
        }
    }

    /// Tries the locks of all flights that lead, and reads once more: one round trip.
    async fn lock(&mut self) -> Result<(), Error> {
        let Caller { backend, lock, scope, .. } = self.caller;
        let mut locking = self.flights_at(Step::TryLock);
        if L::ONLY_THIS_REGION {
            locking = self.lock_as_read(locking).await?;
        }
        if locking.is_empty() {
            return Ok(());
        }
        let attempts = match lock.try_lock_and_read_async(backend, &self.keys_of(&locking)).await {
            Ok(attempts) => attempts,
            Err(error) => {
                scope.tolerate(error, &scope.core.counters.failed_locks)?;
                Vec::new()
            }
        };
        // If a lock returns too few attempts, the other flights go on without a lock.
        let mut attempts = attempts.into_iter();
        for at in locking {
            self.flights[at].locked(scope, attempts.next());
        }
        Ok(())
    }

    /// Locks without another read those flights for which no creation can have ended since the last
    /// one. Returns the others.
    async fn lock_as_read(&mut self, locking: SmallVec<[usize; 4]>) -> Result<SmallVec<[usize; 4]>, Error> {
        let Caller { backend, lock, scope, .. } = self.caller;
        let mut others = SmallVec::new();
        for at in locking {
            if !self.flights[at].knows_entry(&scope.core.flights, self.keys[at]) {
                others.push(at);
                continue;
            }
            match lock.try_lock_async(backend, self.keys[at]).await {
                Ok(guard) => self.flights[at].locked_as_read(guard),
                Err(error) => {
                    scope.tolerate(error, &scope.core.counters.failed_locks)?;
                    self.flights[at].unreachable();
                }
            }
        }
        Ok(others)
    }

    /// Takes the created values, shares them and stores them.
    pub(crate) async fn finish_creation(&mut self, creation: PendingCreation<'_>, values: Vec<V>) -> Result<(), Error> {
        let PendingCreation { missing, started, failure, permit } = creation;
        if values.len() != missing.len() {
            return Err(wrong_number(missing.len(), values.len()));
        }
        std::mem::forget(failure);
        drop(permit);
        let scope = self.caller.scope;
        scope.core.counters.creations.add(values.len());
        // If the region was invalidated during the creation, the value may be made of older data.
        let time = match scope.core.invalidation.judge(started) {
            Freshness::Fresh => scope.core.invalidation.stamp(scope.core.clock.now()),
            _ => started,
        };
        let max_entry = self.caller.backend.max_entry();
        let (mut locked, mut unlocked) = (Batch::with_capacity(missing.len()), Batch::new());
        for (&at, value) in missing.iter().zip(values) {
            let max_entry = scope.options.stores(&value).then_some(max_entry);
            let batch = if self.flights[at].is_locked() { &mut locked } else { &mut unlocked };
            self.flights[at].finish_creation(scope, self.keys[at], value, time, max_entry, batch)?;
        }
        self.store(&locked, &unlocked).await?;
        self.settle();
        Ok(())
    }

    /// Stores the created values and releases their locks: one round trip. The values of a call that
    /// timed out have no lock and are stored in another round trip.
    async fn store(&mut self, locked: &Batch, unlocked: &Batch) -> Result<(), Error> {
        let Caller { backend, lock, scope, .. } = self.caller;
        let (core, ttl) = (scope.core, scope.options.ttl);
        let storing = self.flights_at(Step::Store);
        locked.iter().chain(unlocked.iter()).for_each(|(key, entry)| core.check_length(key, entry.len()));
        if !locked.is_empty() {
            let guards = storing.iter().filter_map(|&at| self.flights[at].take_guard()).collect();
            match lock.store_and_release_async(backend, guards, locked, ttl).await {
                Ok(lost) => core.counters.lost_leases.add(lost),
                Err(error) => scope.tolerate(error, &core.counters.failed_writes)?,
            }
        }
        if !unlocked.is_empty() {
            let stored = backend.set_many_async(unlocked, ttl).await;
            stored.or_else(|error| scope.tolerate(error, &core.counters.failed_writes))?;
        }
        storing.iter().for_each(|&at| self.flights[at].stored());
        Ok(())
    }
}

/// The error of a creator that returned another number of values than it got keys.
pub(crate) fn wrong_number(keys: usize, values: usize) -> Error {
    Error::new(ErrorKind::Creator, format!("creating {keys} keys: the creator returned {values} values"))
}

/// How long a call waits for the read of another caller, which may be a task that is not polled.
const MAX_READ_WAIT: Duration = Duration::from_millis(20);

/// Returns how long to wait before a lock is polled again.
fn poll_pause(round: u32) -> Duration {
    Duration::from_millis(5 << round.min(3))
}

/// Values that this call must create.
pub(crate) struct PendingCreation<'d> {
    /// The positions of their flights.
    pub(crate) missing: SmallVec<[usize; 4]>,
    /// The time that an entry written at the start of the creation would get.
    started: Timestamp,
    failure: CountUnlessDone<'d>,
    /// Allows another creation when it is dropped, if their number is limited.
    permit: Option<SemaphoreGuardArc>,
}

/// Counts a creation that fails, panics, or is dropped before it is done.
struct CountUnlessDone<'c>(&'c Counter);

impl Drop for CountUnlessDone<'_> {
    fn drop(&mut self) {
        self.0.add(1);
    }
}
