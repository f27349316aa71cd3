//! [`Flight`]: one caller's way to the value of one key, and what it holds on that way.
//!
//! A flight does no I/O. The creation driver asks for its step, performs it, and reports the outcome
//! here.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::ThreadId;

use bytes::Bytes;

use super::machine::{CreationMachine, Event, Step};
use super::single_flight::{IfBusy, Joined, Leader, Role, SharedEntry, SingleFlight, WaitOutcome, Waiter};
use crate::batch::Batch;
use crate::codec::Codec;
use crate::error::{Error, ErrorKind};
use crate::freshness::{Freshness, Invalidation, MaxAge};
use crate::key::Key;
use crate::lock::{Attempt, Watch};
use crate::region::core::{DecodedEntry, Scope, cannot_encode, too_large};
use crate::region::stats::Counters;
use crate::time::Timestamp;

/// One caller's way to the value of one key. Dropped at any point, it releases what it holds.
pub(crate) struct Flight<V, G> {
    machine: CreationMachine,
    /// The entry that was read last.
    found: Option<DecodedEntry<V>>,
    /// The last read found no entry, or failed.
    is_missing: bool,
    /// The value that was created here, or shared by the leader.
    created: Option<V>,
    // Declared in the order of dropping: the lock is released before the lead is passed on.
    guard: Option<G>,
    role: Role,
    /// How many flights of keys like this one had ended before the last read. `None` if the number does
    /// not tell whether a creation has ended since.
    flights_ended: Option<u64>,
    /// Is ready when the holder of the lock in another process may be done.
    watch: Option<Watch>,
    /// How often this caller has waited for the holder of the lock.
    pub(crate) rounds: u32,
}

impl<V, G> Flight<V, G> {
    /// Starts with a read.
    pub(crate) fn new() -> Self {
        Self::start(CreationMachine::new(), Role::Bystander)
    }

    /// Starts by waiting for another caller, which reads or creates.
    pub(crate) fn waiting(waiter: Waiter) -> Self {
        Self::start(CreationMachine::waiting(), Role::Waiter(waiter))
    }

    fn start(machine: CreationMachine, role: Role) -> Self {
        Flight {
            machine,
            found: None,
            is_missing: false,
            created: None,
            guard: None,
            role,
            flights_ended: None,
            watch: None,
            rounds: 0,
        }
    }

    /// Returns what the driver does next.
    pub(crate) fn step(&self) -> Step {
        self.machine.step()
    }

    fn on(&mut self, event: Event) {
        self.machine.on(event, self.role.is_leader());
    }

    /// Notes that the entry is about to be read, after so many flights of keys like this one.
    pub(crate) fn begin_read(&mut self, flights_ended: Option<u64>) {
        self.flights_ended = flights_ended;
    }

    /// Takes the outcome of reading the entry.
    pub(crate) fn finish_read<S, M, I: Invalidation>(
        &mut self,
        scope: Scope<'_, S, M, I>,
        read: Result<Option<DecodedEntry<V>>, Error>,
    ) -> Result<(), Error> {
        match read {
            Ok(found) => {
                self.is_missing = found.is_none();
                self.keep(found);
                self.on(Event::Found(self.freshness()));
            }
            Err(error) => {
                scope.tolerate(error, &scope.core.counters.failed_reads)?;
                self.unreachable();
            }
        }
        Ok(())
    }

    /// Goes on without the backend, which could not be read or locked.
    pub(crate) fn unreachable(&mut self) {
        self.is_missing = true;
        self.on(Event::Unreachable);
    }

    /// Leads the flight of the key unless another caller does. Does not wait: a caller without a value
    /// waits when it has nothing else to do ([`Flight::await_leader`]).
    pub(crate) fn join(&mut self, flights: &Arc<SingleFlight>, key: Key<'_>, thread: Option<ThreadId>) {
        self.role = Role::Bystander;
        match flights.join(key, IfBusy::Leave, thread) {
            Some(Joined::Leads(leader)) => self.lead(leader),
            _ => self.on(Event::Busy),
        }
    }

    /// Becomes a waiter, or the leader if the flight has ended meanwhile.
    pub(crate) fn await_leader(
        &mut self,
        flights: &Arc<SingleFlight>,
        key: Key<'_>,
        thread: Option<ThreadId>,
    ) -> Result<(), Error> {
        if !matches!(self.role, Role::Bystander) {
            return Ok(());
        }
        match flights.join(key, IfBusy::Wait, thread) {
            Some(Joined::Leads(leader)) => self.lead(leader),
            Some(Joined::Waits(waiter)) => {
                // The current leader may store a value without ending the flight.
                self.flights_ended = None;
                self.role = Role::Waiter(waiter);
            }
            Some(Joined::Recursion) | None => {
                let message = format!("creating {key}: the creator asks for the key that it is creating");
                return Err(Error::new(ErrorKind::Creator, message));
            }
        }
        Ok(())
    }

    /// Takes the lead of the flight.
    pub(crate) fn lead(&mut self, leader: Leader) {
        self.role = Role::Leader(leader);
        self.on(Event::Leads);
    }

    /// Gives up the lead while another process holds the lock, to create something else: no caller
    /// should wait for this key until that is done.
    pub(crate) fn give_up_lead(&mut self) {
        self.role = Role::Bystander;
        self.watch = None;
        self.on(Event::LeadGivenUp);
    }

    /// Leaves the flight to do something else than to wait. A caller that does not wait must not be
    /// promoted.
    pub(crate) fn leave(&mut self) {
        self.role = Role::Bystander;
    }

    /// Polls the wait for the leader.
    pub(crate) fn poll_leader<S: Codec<V>, M, I: Invalidation>(
        &mut self,
        scope: Scope<'_, S, M, I>,
        context: &Context<'_>,
        thread: Option<ThreadId>,
    ) -> Poll<()> {
        let Role::Waiter(waiter) = &mut self.role else { unreachable!("only a waiter polls the leader") };
        loop {
            let Poll::Ready(outcome) = waiter.poll(context, thread) else { return Poll::Pending };
            let event = match outcome {
                WaitOutcome::Promoted(leader) => {
                    self.lead(leader);
                    return Poll::Ready(());
                }
                WaitOutcome::Ended => {
                    self.role = Role::Bystander;
                    Event::Unusable
                }
                WaitOutcome::Shared(shared) => {
                    let usable = match shared {
                        // A value that was created just now is taken at any age. It may have been invalidated
                        // meanwhile, and this caller may have asked after that.
                        SharedEntry::Created(entry) => scope
                            .core
                            .decoded(Some(entry), Some(MaxAge::ANY))
                            .filter(|entry| entry.freshness != Freshness::Invalid),
                        SharedEntry::Found(entry) => {
                            scope.decoded(Some(entry)).filter(|entry| entry.freshness == Freshness::Fresh)
                        }
                    };
                    let Some(usable) = usable else {
                        waiter.refuse();
                        continue;
                    };
                    self.created = Some(usable.value);
                    Event::Shared
                }
            };
            self.on(event);
            return Poll::Ready(());
        }
    }

    /// Takes the outcome of trying the lock and then reading.
    pub(crate) fn locked<S: Codec<V>, M, I: Invalidation>(
        &mut self,
        scope: Scope<'_, S, M, I>,
        attempt: Option<Attempt<G>>,
    ) {
        let Some(Attempt { guard, entry }) = attempt else {
            self.unreachable();
            return;
        };
        self.keep(scope.decoded(entry));
        self.locked_as_read(guard);
    }

    /// Returns whether no creation of this process can have ended since the last read, although this
    /// caller leads only since then.
    pub(crate) fn knows_entry(&self, flights: &SingleFlight, key: Key<'_>) -> bool {
        self.flights_ended == Some(flights.ended(flights.hash(key)))
    }

    /// Takes the outcome of trying the lock, if the entry is known to be as it was read last.
    pub(crate) fn locked_as_read(&mut self, guard: Option<G>) {
        let (is_locked, freshness) = (guard.is_some(), self.freshness());
        self.guard = guard;
        self.on(if is_locked { Event::Locked(freshness) } else { Event::Taken(freshness) });
    }

    /// Stops waiting, to create the value for this caller.
    pub(crate) fn time_out(&mut self) {
        self.role = Role::Bystander;
        self.watch = None;
        self.on(Event::WaitTimeout);
    }

    /// Returns whether it holds the lock.
    pub(crate) fn is_locked(&self) -> bool {
        self.guard.is_some()
    }

    /// Watches the holder of the lock, with the watch that `begin` returns unless there is one. Returns
    /// whether there is a watch now.
    pub(crate) fn watch_holder(&mut self, begin: impl FnOnce() -> Option<Watch>) -> bool {
        if self.watch.is_none() {
            self.watch = begin();
        }
        self.watch.is_some()
    }

    /// Polls the watch of the lock's holder. Without a watch it is pending for ever.
    pub(crate) fn poll_holder(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(watch) = &mut self.watch else { return Poll::Pending };
        let woken = watch.as_mut().poll(context);
        if woken.is_ready() {
            self.holder_woke();
        }
        woken
    }

    /// Notes that the holder of the lock may be done.
    pub(crate) fn holder_woke(&mut self) {
        self.watch = None;
        self.rounds += 1;
        self.on(Event::Woken);
    }

    /// Takes the created value, encodes it into `batch` and shares it with the waiters.
    ///
    /// The entry stays in the batch if it is to be stored. `max_entry` is the size that the backend
    /// takes, or `None` if the value is not to be stored.
    pub(crate) fn finish_creation<S: Codec<V>, M, I: Invalidation>(
        &mut self,
        scope: Scope<'_, S, M, I>,
        key: Key<'_>,
        value: V,
        time: Timestamp,
        max_entry: Option<usize>,
        batch: &mut Batch,
    ) -> Result<(), Error> {
        let before = batch.len();
        let failed_writes = &scope.core.counters.failed_writes;
        let mut event = Event::CreatedUnstored;
        match batch.try_push(key, |out| scope.core.codec.encode(&value, time, out)) {
            Ok(()) => {
                let entry = batch.entry(before);
                if let Role::Leader(leader) = &self.role {
                    leader.share(SharedEntry::Created(Bytes::copy_from_slice(entry)));
                }
                match max_entry {
                    Some(max) if entry.len() > max => {
                        scope.tolerate(too_large(key, entry.len()), failed_writes)?;
                    }
                    Some(_) => event = Event::Created,
                    None => {}
                }
            }
            Err(error) if max_entry.is_some() => scope.tolerate(cannot_encode(key, &error), failed_writes)?,
            Err(_) => {}
        }
        self.created = Some(value);
        self.on(event);
        if self.step() != Step::Store {
            batch.truncate(before);
        }
        Ok(())
    }

    /// Takes the guard, to release the lock.
    pub(crate) fn take_guard(&mut self) -> Option<G> {
        self.guard.take()
    }

    /// Notes that the store has ended, with or without success.
    pub(crate) fn stored(&mut self) {
        self.on(Event::Stored);
    }

    /// Returns whether there is a value to return.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.step(), Step::ReturnFound | Step::ReturnShared | Step::ReturnCreated)
    }

    /// Shares the value that was found with the waiters, if this caller leads them.
    pub(crate) fn share_found(&self) {
        if let (Role::Leader(leader), Step::ReturnFound, Some(found)) = (&self.role, self.step(), &self.found) {
            // A stale value helps no waiter: a waiter has none, and creates.
            if found.freshness == Freshness::Fresh {
                leader.share(SharedEntry::Found(found.entry.clone()));
            }
        }
    }

    /// Returns the value of a flight that has ended.
    pub(crate) fn into_value(self, counters: &Counters) -> V {
        let value = match self.step() {
            Step::ReturnFound => self.found.map(|found| {
                if found.freshness == Freshness::Stale {
                    counters.stale_hits.add(1);
                }
                found.value
            }),
            Step::ReturnShared => {
                counters.coalesced.add(1);
                self.created
            }
            Step::ReturnCreated => self.created,
            step => unreachable!("the flight is still at {step:?}"),
        };
        value.expect("the machine ends only with a value")
    }

    /// Returns whether the last read found no entry at all.
    pub(crate) fn is_missing(&self) -> bool {
        self.is_missing
    }

    /// Returns whether it waits for the read of another caller.
    pub(crate) fn awaits_read(&self) -> bool {
        matches!(&self.role, Role::Waiter(waiter) if waiter.awaits_read())
    }

    /// Stops waiting for the read of another caller, which takes too long.
    pub(crate) fn give_up_read(&self) {
        if let Role::Waiter(waiter) = &self.role {
            waiter.give_up_read();
        }
    }

    fn keep(&mut self, found: Option<DecodedEntry<V>>) {
        // An invalidated entry counts as none.
        self.found = found.filter(|found| found.freshness != Freshness::Invalid);
    }

    /// Judges the entry that was read last.
    fn freshness(&self) -> Freshness {
        self.found.as_ref().map_or(Freshness::Invalid, |found| found.freshness)
    }
}
