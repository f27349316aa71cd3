//! The decision table: which caller reads, locks, creates or waits, and what follows from the outcome.
//!
//! A machine stands for one caller and one key. Its driver performs [`CreationMachine::step`] and
//! reports the outcome to [`CreationMachine::on`]. The driver holds the values, the role in the
//! single-flight table and the lock. The machine holds none of them, does no I/O, and is the same for
//! threads and tasks, for single keys and batches.
//!
//! # Why the winner of a lock reads again
//! Between the first read of this caller and its lock, another caller may have read, locked, created,
//! stored and released. `TryLock` therefore reads after locking. The same holds for stale values: of
//! two callers that saw the same stale entry, the second gets the lock when the first is done, and
//! would create once more.

use crate::freshness::Freshness;

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// Read the entry: `Found` or `Unreachable`.
    Read,
    /// Lead the flight of the key, if no other caller of this process does: `Leads` or `Busy`.
    Join,
    /// Wait for the leader of the flight: `Shared`, `Unusable`, `Leads` or `WaitTimeout`.
    AwaitLeader,
    /// Take the lock between processes, then read the entry, unless no creation can have ended since it
    /// was read: `Locked`, `Taken` or `Unreachable`.
    TryLock,
    /// Wait for the process that holds the lock: `Woken`, `WaitTimeout`, or `LeadGivenUp` to do
    /// something else first.
    AwaitHolder,
    /// Call the creator: `Created`, or `CreatedUnstored` if the value is not to be stored. A failure of
    /// the creator ends the call.
    Create,
    /// Store the created value and release the lock: `Stored`, whatever the outcome.
    Store,
    /// Return the value that was read last.
    ReturnFound,
    /// Return the value that the leader of the flight shared.
    ReturnShared,
    /// Return the value that was created here.
    ReturnCreated,
}

/// The outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The entry was read. `Invalid` stands for no entry, too.
    Found(Freshness),
    /// The backend or the lock cannot be reached, and the call goes on without them.
    Unreachable,
    /// This caller leads the flight now.
    Leads,
    /// Another caller of this process leads the flight.
    Busy,
    /// The leader shared its value.
    Shared,
    /// The leader has left and its value cannot be used: it is of another type, was invalidated, or
    /// the leader found a value that every caller reads for itself.
    Unusable,
    /// The lock was free; the entry as it was read after that.
    Locked(Freshness),
    /// Another process holds the lock; the entry as it was read after that.
    Taken(Freshness),
    /// The holder of the lock may be done.
    Woken,
    /// The call has waited for as long as it may and creates the value for itself.
    WaitTimeout,
    /// The lead was given up: the driver has other values to create, which no caller should wait for.
    LeadGivenUp,
    /// The creator has returned a value to be stored.
    Created,
    /// The creator has returned a value that is not stored.
    CreatedUnstored,
    /// The store has ended, with or without success.
    Stored,
}

/// The state of one caller on its way to one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CreationMachine {
    step: Step,
    /// The last read found a stale value, so this caller need not wait.
    is_stale: bool,
    /// The backend did not answer, so it is not asked again.
    is_cut_off: bool,
}

impl CreationMachine {
    /// Creates the machine of a caller that has not read yet.
    #[inline]
    pub(crate) fn new() -> Self {
        CreationMachine { step: Step::Read, is_stale: false, is_cut_off: false }
    }

    /// Creates the machine of a caller that need not read: another caller of this process does so, or
    /// knows that there is no entry.
    pub(crate) fn waiting() -> Self {
        CreationMachine { step: Step::AwaitLeader, ..Self::new() }
    }

    /// Returns what to do next.
    #[inline]
    pub(crate) fn step(&self) -> Step {
        self.step
    }

    /// Takes the outcome of the step. `is_leader` tells whether the caller leads the flight of its key
    /// after the event.
    ///
    /// # Panics
    /// If the event is no outcome of the step.
    #[inline]
    pub(crate) fn on(&mut self, event: Event, is_leader: bool) {
        use Freshness::{Fresh, Invalid, Stale};
        if let Event::Found(found) | Event::Locked(found) | Event::Taken(found) = event {
            self.is_stale = found == Stale;
        }
        self.is_cut_off |= event == Event::Unreachable;
        self.step = match (self.step, event) {
            (Step::Read, Event::Found(Fresh)) => Step::ReturnFound,
            (Step::Read, Event::Found(Stale | Invalid)) if is_leader => Step::TryLock,
            (Step::Read, Event::Unreachable) if is_leader => Step::Create,
            (Step::Read, Event::Found(Stale | Invalid) | Event::Unreachable) => Step::Join,

            (Step::Join | Step::AwaitLeader, Event::Leads) if self.is_cut_off => Step::Create,
            (Step::Join | Step::AwaitLeader, Event::Leads) => Step::TryLock,
            (Step::Join, Event::Busy) if self.is_stale => Step::ReturnFound,
            (Step::Join, Event::Busy) => Step::AwaitLeader,
            (Step::AwaitLeader, Event::Shared) => Step::ReturnShared,
            (Step::AwaitLeader, Event::Unusable) if self.is_cut_off => Step::Join,
            (Step::AwaitLeader, Event::Unusable) => Step::Read,

            (Step::TryLock, Event::Locked(Fresh) | Event::Taken(Fresh | Stale)) => Step::ReturnFound,
            (Step::TryLock, Event::Locked(Stale | Invalid)) => Step::Create,
            (Step::TryLock, Event::Taken(Invalid)) => Step::AwaitHolder,
            // A new value could not be stored, so it is worth no more than the stale one.
            (Step::TryLock, Event::Unreachable) if self.is_stale => Step::ReturnFound,
            (Step::TryLock, Event::Unreachable) => Step::Create,
            // The holder has stored the value or given up: only another read tells.
            (Step::AwaitHolder, Event::Woken) => Step::Read,
            (Step::AwaitHolder, Event::LeadGivenUp) => Step::AwaitLeader,
            (Step::AwaitLeader | Step::AwaitHolder, Event::WaitTimeout) => Step::Create,

            (Step::Create, Event::Created) if self.is_cut_off => Step::ReturnCreated,
            (Step::Create, Event::Created) => Step::Store,
            (Step::Create, Event::CreatedUnstored) | (Step::Store, Event::Stored) => Step::ReturnCreated,

            (step, event) => unreachable!("{event:?} is no outcome of {step:?}"),
        };
    }
}

/// What must hold before each step, derived from the events alone: the oracle of tests and the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) mod model {
    use super::*;

    const FRESHNESS: [Freshness; 3] = [Freshness::Fresh, Freshness::Stale, Freshness::Invalid];

    /// Returns all outcomes of a step, as drivers report them.
    pub(crate) fn outcomes(step: Step) -> Vec<Event> {
        match step {
            Step::Read => FRESHNESS.map(Event::Found).into_iter().chain([Event::Unreachable]).collect(),
            Step::Join => vec![Event::Leads, Event::Busy],
            Step::AwaitLeader => vec![Event::Shared, Event::Unusable, Event::Leads, Event::WaitTimeout],
            Step::TryLock => FRESHNESS
                .map(Event::Locked)
                .into_iter()
                .chain(FRESHNESS.map(Event::Taken))
                .chain([Event::Unreachable])
                .collect(),
            Step::AwaitHolder => vec![Event::Woken, Event::LeadGivenUp, Event::WaitTimeout],
            Step::Create => vec![Event::Created, Event::CreatedUnstored],
            Step::Store => vec![Event::Stored],
            Step::ReturnFound | Step::ReturnShared | Step::ReturnCreated => vec![],
        }
    }

    /// What a driver holds, derived from the events alone.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub(crate) struct Model {
        found: Option<Freshness>,
        pub(crate) leads: bool,
        locked: bool,
        unreachable: bool,
        timed_out: bool,
        created: bool,
        shared: bool,
    }

    impl Model {
        pub(crate) fn on(mut self, event: Event) -> Self {
            if let Event::Found(found) | Event::Locked(found) | Event::Taken(found) = event {
                self.found = Some(found).filter(|found| *found != Freshness::Invalid);
            }
            self.leads = (self.leads || event == Event::Leads) && event != Event::LeadGivenUp;
            self.locked |= matches!(event, Event::Locked(_));
            self.unreachable |= event == Event::Unreachable;
            self.timed_out |= event == Event::WaitTimeout;
            self.created |= matches!(event, Event::Created | Event::CreatedUnstored);
            self.shared |= event == Event::Shared;
            self
        }

        /// Checks what must hold before a driver performs `step`.
        pub(crate) fn check(self, step: Step) {
            match step {
                Step::Read => assert!(!self.unreachable && !self.created && !self.locked),
                Step::Join => assert!(!self.leads && self.found != Some(Freshness::Fresh)),
                Step::AwaitLeader => assert!(!self.leads && self.found.is_none(), "no caller waits that has a value"),
                Step::TryLock => assert!(self.leads && !self.locked && !self.unreachable && !self.created),
                Step::AwaitHolder => assert!(self.leads && !self.locked && self.found.is_none()),
                Step::Create => {
                    assert!(!self.created && self.found != Some(Freshness::Fresh));
                    assert!(self.leads || self.timed_out, "only the leader creates, or a caller that timed out");
                    let reason = self.locked || self.unreachable || self.timed_out;
                    assert!(reason, "no caller creates without the lock unless cut off or timed out");
                }
                Step::Store => assert!((self.locked || self.timed_out) && self.created && !self.unreachable),
                Step::ReturnFound => assert!(self.found.is_some() && !self.created),
                Step::ReturnShared => assert!(self.shared && !self.created),
                Step::ReturnCreated => assert!(self.created),
            }
        }
    }

    /// Walks the table by the outcomes that `choices` select, and checks each step.
    #[cfg(fuzzing)]
    pub(crate) fn walk(choices: &[u8]) {
        let (mut machine, mut model) = (CreationMachine::new(), Model::default());
        for choice in choices {
            model.check(machine.step());
            let outcomes = outcomes(machine.step());
            let Some(event) = outcomes.get(usize::from(*choice) % outcomes.len().max(1)) else { return };
            model = model.on(*event);
            machine.on(*event, model.leads);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::model::{Model, outcomes};
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_reachable_state_is_sound() {
        let mut seen = HashSet::new();
        let mut open = vec![(CreationMachine::new(), Model::default()), (CreationMachine::waiting(), Model::default())];
        let mut ends = HashSet::new();
        while let Some((machine, model)) = open.pop() {
            if !seen.insert((machine, model)) {
                continue;
            }
            model.check(machine.step());
            let outcomes = outcomes(machine.step());
            if outcomes.is_empty() {
                ends.insert(machine.step());
            }
            for event in outcomes {
                let mut next = machine;
                let model = model.on(event);
                next.on(event, model.leads);
                open.push((next, model));
            }
        }
        assert_eq!(ends.len(), 3, "every way to return is reached");
        assert!(seen.len() > 20, "{}", seen.len());
    }

    /// The whole table: the next step for each step, outcome and state.
    #[test]
    fn the_table() {
        use Event::*;
        use Freshness::{Fresh, Invalid, Stale};
        let walk = |events: &[Event]| {
            let (mut machine, mut model) = (CreationMachine::new(), Model::default());
            for event in events {
                model = model.on(*event);
                machine.on(*event, model.leads);
            }
            machine.step()
        };
        for (events, step) in [
            (&[][..], Step::Read),
            (&[Found(Fresh)], Step::ReturnFound),
            (&[Found(Stale)], Step::Join),
            (&[Found(Invalid)], Step::Join),
            (&[Unreachable], Step::Join),
            (&[Found(Stale), Busy], Step::ReturnFound),
            (&[Found(Invalid), Busy], Step::AwaitLeader),
            (&[Unreachable, Busy], Step::AwaitLeader),
            (&[Found(Stale), Leads], Step::TryLock),
            (&[Found(Invalid), Leads], Step::TryLock),
            (&[Unreachable, Leads], Step::Create),
            (&[Unreachable, Leads, Created], Step::ReturnCreated),
            (&[Found(Invalid), Busy, Shared], Step::ReturnShared),
            (&[Found(Invalid), Busy, Unusable], Step::Read),
            (&[Unreachable, Busy, Unusable], Step::Join),
            (&[Found(Invalid), Busy, Leads], Step::TryLock),
            (&[Unreachable, Busy, Leads], Step::Create),
            (&[Found(Stale), Leads, Locked(Fresh)], Step::ReturnFound),
            (&[Found(Stale), Leads, Locked(Stale)], Step::Create),
            (&[Found(Stale), Leads, Locked(Invalid)], Step::Create),
            (&[Found(Stale), Leads, Taken(Fresh)], Step::ReturnFound),
            (&[Found(Stale), Leads, Taken(Stale)], Step::ReturnFound),
            (&[Found(Stale), Leads, Taken(Invalid)], Step::AwaitHolder),
            (&[Found(Stale), Leads, Unreachable], Step::ReturnFound),
            (&[Found(Invalid), Leads, Unreachable], Step::Create),
            (&[Found(Invalid), Leads, Taken(Invalid), Woken], Step::Read),
            (&[Found(Invalid), Leads, Taken(Invalid), Woken, Found(Fresh)], Step::ReturnFound),
            (&[Found(Invalid), Leads, Taken(Invalid), Woken, Found(Invalid)], Step::TryLock),
            (&[Found(Invalid), Leads, Taken(Invalid), Woken, Found(Stale)], Step::TryLock),
            (&[Found(Invalid), Leads, Taken(Invalid), Woken, Unreachable], Step::Create),
            (&[Found(Invalid), Leads, Taken(Invalid), LeadGivenUp], Step::AwaitLeader),
            (&[Found(Invalid), Leads, Taken(Invalid), LeadGivenUp, Leads], Step::TryLock),
            (&[Found(Invalid), Leads, Taken(Invalid), LeadGivenUp, Shared], Step::ReturnShared),
            (&[Found(Invalid), Busy, WaitTimeout], Step::Create),
            (&[Found(Invalid), Leads, Taken(Invalid), WaitTimeout], Step::Create),
            (&[Found(Invalid), Leads, Taken(Invalid), WaitTimeout, Created], Step::Store),
            (&[Unreachable, Busy, WaitTimeout, Created], Step::ReturnCreated),
            (&[Found(Invalid), Leads, Locked(Invalid), Created], Step::Store),
            (&[Found(Invalid), Leads, Locked(Invalid), CreatedUnstored], Step::ReturnCreated),
            (&[Found(Invalid), Leads, Locked(Invalid), Created, Stored], Step::ReturnCreated),
        ] {
            assert_eq!(walk(events), step, "{events:?}");
        }
    }

    #[test]
    #[should_panic(expected = "Stored is no outcome of Read")]
    fn an_event_that_is_no_outcome_panics() {
        CreationMachine::new().on(Event::Stored, false);
    }
}
