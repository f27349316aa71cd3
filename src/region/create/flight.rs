//! [`Flight`]: one caller's way to the value of one key; what it holds while the decision table leads it there.
//!
//! A flight does no I/O. A driver asks for its step, does it, and reports the result here.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::ThreadId;

use bytes::Bytes;

use crate::backend::leases::Watch;
use crate::batch::Batch;
use crate::codec::Codec;
use crate::error::{Error, ErrorKind};
use crate::freshness::{Freshness, Invalidation, MaxAge};
use crate::key::Key;
use crate::lock::Attempt;
use crate::region::call::{cannot_encode, too_large};
use crate::region::create::machine::{Dogpile, Event, Step};
use crate::region::create::single_flight;
use crate::region::create::single_flight::{IfBusy, Joined, Leader, Line, Waiter, Woken};
use crate::region::stats::Counter;
use crate::region::{Reading, Shared};
use crate::time::Timestamp;

/// One caller's way to the value of one key. Dropped at any point, it releases what it holds.
pub(crate) struct Flight<V, G> {
    machine: Dogpile,
    /// What was read last.
    found: Option<Reading<V>>,
    /// There was nothing at all when it was read last, or nothing could be read.
    is_missing: bool,
    /// What was created here, or shared by who created it.
    made: Option<V>,
    // Declared in the order in which they are to be dropped: the lock is released before the line moves on.
    guard: Option<G>,
    place: Option<Place>,
    /// How many lines of keys like this one had ended before the last reading. `None` when that does not say whether
    /// somebody created since.
    read_after: Option<u64>,
    /// Tells when the holder of the lock in another process may be done.
    watch: Option<Watch>,
    /// How often the holder was waited for.
    pub(crate) rounds: u32,
}

/// A flight's place in the line of its key.
enum Place {
    Leads(Leader),
    Waits(Waiter),
}

impl<V, G> Flight<V, G> {
    pub(crate) fn new() -> Self {
        Self::at(Dogpile::new(), None)
    }

    /// A caller that waits for somebody who reads or creates.
    pub(crate) fn waiting(waiter: Waiter) -> Self {
        Self::at(Dogpile::waiting(), Some(Place::Waits(waiter)))
    }

    fn at(machine: Dogpile, place: Option<Place>) -> Self {
        Flight {
            machine,
            found: None,
            is_missing: false,
            made: None,
            guard: None,
            place,
            read_after: None,
            watch: None,
            rounds: 0,
        }
    }

    /// What the driver does next.
    pub(crate) fn step(&self) -> Step {
        self.machine.step()
    }

    /// The entry is about to be read, and so many lines of keys like this one have ended, as far as that is counted.
    pub(crate) fn reads_after(&mut self, ended: Option<u64>) {
        self.read_after = ended;
    }

    /// Takes what reading the entry came to.
    pub(crate) fn read<B, S, L, M, I: Invalidation>(
        &mut self,
        region: &Shared<B, S, L, M, I>,
        read: Result<Option<Reading<V>>, Error>,
    ) -> Result<(), Error> {
        match read {
            Ok(found) => {
                self.is_missing = found.is_none();
                self.keep(found);
                self.machine.on(Event::Found(self.freshness()));
            }
            Err(error) => {
                region.tolerate(error, &region.counters.failed_reads)?;
                self.unreachable();
            }
        }
        Ok(())
    }

    /// The backend could not be read, and the region goes on without it.
    pub(crate) fn unreachable(&mut self) {
        self.is_missing = true;
        self.machine.on(Event::Unreachable);
    }

    /// Leads the line if nobody does. Does not stand in it: whoever has no value waits later, when there is nothing
    /// else to do ([`Flight::stand`]).
    pub(crate) fn join(&mut self, line: &Arc<Line>, key: Key<'_>, thread: Option<ThreadId>) {
        self.place = None;
        match line.join(key, IfBusy::Leave, thread) {
            Some(Joined::Leads(leader)) => self.lead(leader),
            _ => self.machine.on(Event::Busy),
        }
    }

    /// Stands in the line, unless it has ended meanwhile and this caller leads a new one.
    pub(crate) fn stand(&mut self, line: &Arc<Line>, key: Key<'_>, thread: Option<ThreadId>) -> Result<(), Error> {
        if self.place.is_some() {
            return Ok(());
        }
        match line.join(key, IfBusy::Wait, thread) {
            Some(Joined::Leads(leader)) => self.lead(leader),
            Some(Joined::Waits(waiter)) => {
                // Whoever leads now may store without ending the line.
                self.read_after = None;
                self.place = Some(Place::Waits(waiter));
            }
            Some(Joined::Recursion) | None => {
                let message = format!("creating {key}: its creator asks for the value that it is to create");
                return Err(Error::new(ErrorKind::Creator, message));
            }
        }
        Ok(())
    }

    /// Leads the line.
    pub(crate) fn lead(&mut self, leader: Leader) {
        self.place = Some(Place::Leads(leader));
        self.machine.on(Event::Leads);
    }

    /// Gives up the lead while the lock is held in another process, to create something else: those who wait for this
    /// key should not wait for that.
    pub(crate) fn leave_lead(&mut self) {
        self.place = None;
        self.watch = None;
        self.machine.on(Event::Left);
    }

    /// Gives up a place in the line, to do something else than to wait: nobody should be elected who is not looking.
    pub(crate) fn leave(&mut self) {
        self.place = None;
    }

    /// Whether the wait in the line is over.
    pub(crate) fn poll_queue<B, S: Codec<V>, L, M, I: Invalidation>(
        &mut self,
        region: &Shared<B, S, L, M, I>,
        max_age: Option<MaxAge>,
        context: &Context<'_>,
        thread: Option<ThreadId>,
    ) -> Poll<()> {
        let Some(Place::Waits(waiter)) = &mut self.place else { unreachable!("only who stands in line waits") };
        loop {
            let Poll::Ready(woken) = waiter.poll(context, thread) else { return Poll::Pending };
            let event = match woken {
                Woken::Leads(leader) => {
                    self.lead(leader);
                    return Poll::Ready(());
                }
                Woken::Ended => {
                    self.place = None;
                    Event::Unusable
                }
                Woken::Shared(shared) => {
                    let reading = match shared {
                        // It was created just now, so its age does not matter; but it may have been invalidated
                        // meanwhile, and this caller may have asked after that.
                        single_flight::Shared::Made(entry) => region
                            .reading(Some(entry), Some(MaxAge::ANY))
                            .filter(|reading| reading.freshness != Freshness::Absent),
                        single_flight::Shared::Found(entry) => {
                            region.reading(Some(entry), max_age).filter(|reading| reading.freshness == Freshness::Fresh)
                        }
                    };
                    let Some(reading) = reading else {
                        waiter.refuse();
                        continue;
                    };
                    self.made = Some(reading.value);
                    Event::Shared
                }
            };
            self.machine.on(event);
            return Poll::Ready(());
        }
    }

    /// Takes what trying to lock, and reading after that, came to.
    pub(crate) fn locked<B, S: Codec<V>, L, M, I: Invalidation>(
        &mut self,
        region: &Shared<B, S, L, M, I>,
        max_age: Option<MaxAge>,
        attempt: Option<Attempt<G>>,
    ) {
        let Some(Attempt { guard, entry }) = attempt else {
            self.unreachable();
            return;
        };
        self.keep(region.reading(entry, max_age));
        self.locked_as_read(guard);
    }

    /// Whether nobody in this process can have created what was not found, though this caller leads only since then.
    pub(crate) fn knows_entry(&self, line: &Line, key: Key<'_>) -> bool {
        self.read_after == Some(line.ended(line.hash(key)))
    }

    /// Takes the lock, where the entry is known to be as it was read last.
    pub(crate) fn locked_as_read(&mut self, guard: Option<G>) {
        let (is_ours, freshness) = (guard.is_some(), self.freshness());
        self.guard = guard;
        self.machine.on(if is_ours { Event::Locked(freshness) } else { Event::Taken(freshness) });
    }

    /// Gives up waiting, to create for itself.
    pub(crate) fn lose_patience(&mut self) {
        self.place = None;
        self.watch = None;
        self.machine.on(Event::Impatient);
    }

    /// Whether it creates under a lock.
    pub(crate) fn is_locked(&self) -> bool {
        self.guard.is_some()
    }

    /// Watches the holder of the lock, by what `begin` gives if nobody watches yet. Whether something tells when it is
    /// done.
    pub(crate) fn watches(&mut self, begin: impl FnOnce() -> Option<Watch>) -> bool {
        if self.watch.is_none() {
            self.watch = begin();
        }
        self.watch.is_some()
    }

    /// Whether the holder of the lock may be done, as far as something tells.
    pub(crate) fn poll_holder(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(watch) = &mut self.watch else { return Poll::Pending };
        let woken = watch.as_mut().poll(context);
        if woken.is_ready() {
            self.holder_woke();
        }
        woken
    }

    /// The holder of the lock may be done.
    pub(crate) fn holder_woke(&mut self) {
        self.watch = None;
        self.rounds += 1;
        self.machine.on(Event::Woken);
    }

    /// Takes the created value: encodes it into `batch`, gives it to all who wait in the line, and leaves it in the
    /// batch if it is to be stored: it may have `most` bytes, and with `None` it is not.
    pub(crate) fn created<B, S: Codec<V>, L, M, I: Invalidation>(
        &mut self,
        region: &Shared<B, S, L, M, I>,
        key: Key<'_>,
        value: V,
        time: Timestamp,
        most: Option<usize>,
        batch: &mut Batch,
    ) -> Result<(), Error> {
        let before = batch.len();
        let mut event = Event::CreatedUnstored;
        match batch.try_push(key, |out| region.codec.encode(&value, time, out)) {
            Ok(()) => {
                let entry = batch.entry(before);
                if let Some(Place::Leads(leader)) = &self.place {
                    leader.share(single_flight::Shared::Made(Bytes::copy_from_slice(entry)));
                }
                match most {
                    Some(most) if entry.len() > most => {
                        region.tolerate(too_large(key, entry.len()), &region.counters.failed_writes)?;
                    }
                    Some(_) => event = Event::Created,
                    None => {}
                }
            }
            Err(error) if most.is_some() => {
                region.tolerate(cannot_encode(key, &error), &region.counters.failed_writes)?
            }
            Err(_) => {}
        }
        self.made = Some(value);
        self.machine.on(event);
        if self.step() != Step::Store {
            batch.truncate(before);
        }
        Ok(())
    }

    /// The lock, to be released.
    pub(crate) fn take_guard(&mut self) -> Option<G> {
        self.guard.take()
    }

    /// The value was stored, or that was tried.
    pub(crate) fn stored(&mut self) {
        self.machine.on(Event::Stored);
    }

    /// Whether the value is at hand.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.step(), Step::ReturnFound | Step::ReturnShared | Step::ReturnCreated)
    }

    /// Gives the value that was found to all who wait in the line, if this caller leads it.
    pub(crate) fn share_found(&self) {
        if let (Some(Place::Leads(leader)), Step::ReturnFound, Some(found)) = (&self.place, self.step(), &self.found) {
            // A stale value is nothing to wait for: whoever waits has none, and creates.
            if found.freshness == Freshness::Fresh {
                leader.share(single_flight::Shared::Found(found.entry.clone()));
            }
        }
    }

    /// The value, when the flight has ended.
    pub(crate) fn into_value<B, S, L, M, I: Invalidation>(self, region: &Shared<B, S, L, M, I>) -> V {
        let value = match self.step() {
            Step::ReturnFound => self.found.map(|found| {
                if found.freshness == Freshness::Stale {
                    region.counters.served_stale.add(1);
                }
                found.value
            }),
            Step::ReturnShared => {
                region.counters.shared.add(1);
                self.made
            }
            Step::ReturnCreated => self.made,
            step => unreachable!("the flight is still at {step:?}"),
        };
        value.expect("the machine ends where there is a value")
    }

    /// Whether there was nothing at all to be read.
    pub(crate) fn is_missing(&self) -> bool {
        self.is_missing
    }

    /// Whether it waits for another caller's reading.
    pub(crate) fn waits_for_reading(&self) -> bool {
        matches!(&self.place, Some(Place::Waits(waiter)) if waiter.waits_for_reading())
    }

    /// Another caller's reading takes too long.
    pub(crate) fn give_up_reading(&self) {
        if let Some(Place::Waits(waiter)) = &self.place {
            waiter.give_up_reading();
        }
    }

    fn keep(&mut self, found: Option<Reading<V>>) {
        // An entry that was invalidated is as good as none.
        self.found = found.filter(|found| found.freshness != Freshness::Absent);
    }

    /// What the entry that was read last is good for.
    fn freshness(&self) -> Freshness {
        self.found.as_ref().map_or(Freshness::Absent, |found| found.freshness)
    }
}

impl<B, S, L, M, I: Invalidation> Shared<B, S, L, M, I> {
    /// Counts the error of a cache that its callers can do without, or passes it on. A setting that cannot work is no
    /// outage, and would never be noticed.
    pub(crate) fn tolerate(&self, error: Error, counter: &Counter) -> Result<(), Error> {
        if self.fail_closed || error.kind() == ErrorKind::Config {
            return Err(error);
        }
        counter.add(1);
        Ok(())
    }
}
