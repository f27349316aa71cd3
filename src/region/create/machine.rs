//! The decision table: who reads, locks, creates, waits, and what comes of it.
//!
//! A machine stands for one caller and one key. Its driver does what [`Dogpile::step`] says and reports by
//! [`Dogpile::on`] what came of it; the driver holds the values, the place in the line and the lock, the machine only
//! knows which of them there are. The same machine serves threads and tasks, single keys and batches.
//!
//! Why a winner reads again (`TryLock` reads after locking): between this caller's read and its lock another one may
//! have read, locked, created, stored and released. That holds for stale values too: of two callers that saw the same
//! stale entry, the second gets the lock when the first is done, and would create once more.

use crate::freshness::Freshness;

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// Read the entry: `Found` or `Unreachable`.
    Read,
    /// Join the line of this process for the key: `Leads`, or `Busy` if somebody else leads.
    Join,
    /// Wait in the line until something happens: `Shared`, `Unusable` or `Leads`.
    Queue,
    /// Take the lock that other processes see, and read the entry after that unless nobody can have created it since it
    /// was read: `Locked`, `Taken` or `Unreachable`.
    TryLock,
    /// Wait for the holder of the lock in another process: `Woken`, or `Left` to do something else first.
    AwaitHolder,
    /// Call the creator: `Created` or, when the value is not to be stored, `CreatedUnstored`. Its failure ends all.
    Create,
    /// Store the created value and release the lock: `Stored`, whatever came of it.
    Store,
    /// Return the value read last.
    ReturnFound,
    /// Return the value that the leader of the line created.
    ReturnShared,
    /// Return the value that was created here.
    ReturnCreated,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Found(Freshness),
    /// The backend or the lock cannot be reached, and the region goes on without them.
    Unreachable,
    Leads,
    Busy,
    Shared,
    /// What the leader shared was of no use to this caller (of another type, or invalid by now), or was no value because
    /// there is one to be read; and the leader has left.
    Unusable,
    Locked(Freshness),
    Taken(Freshness),
    Woken,
    /// The patience is over, and the caller is to create for itself.
    Impatient,
    /// The lead was given up, because the driver has values to create and nobody should wait for that.
    Left,
    Created,
    CreatedUnstored,
    Stored,
}

/// One caller's way to one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Dogpile {
    step: Step,
    /// The last reading found a stale value, so nobody needs to wait.
    stale: bool,
    /// This caller leads the line of its process.
    leads: bool,
    /// The backend did not answer, so it is not asked again.
    cut_off: bool,
}

impl Dogpile {
    /// A caller that knows nothing yet.
    #[inline]
    pub(crate) fn new() -> Self {
        Dogpile { step: Step::Read, stale: false, leads: false, cut_off: false }
    }

    /// A caller that need not read, because somebody else in this process does, or knows already that there is nothing.
    pub(crate) fn waiting() -> Self {
        Dogpile { step: Step::Queue, ..Self::new() }
    }

    /// What to do next.
    #[inline]
    pub(crate) fn step(&self) -> Step {
        self.step
    }

    /// Takes what came of the step.
    ///
    /// # Panics
    /// On an event that is no outcome of the step: the driver is wrong.
    #[inline]
    pub(crate) fn on(&mut self, event: Event) {
        use Freshness::{Absent, Fresh, Stale};
        if let Event::Found(found) | Event::Locked(found) | Event::Taken(found) = event {
            self.stale = found == Stale;
        }
        self.leads = (self.leads || event == Event::Leads) && event != Event::Left;
        self.cut_off |= event == Event::Unreachable;
        self.step = match (self.step, event) {
            (Step::Read, Event::Found(Fresh)) => Step::ReturnFound,
            (Step::Read, Event::Found(Stale | Absent)) if self.leads => Step::TryLock,
            (Step::Read, Event::Unreachable) if self.leads => Step::Create,
            (Step::Read, Event::Found(Stale | Absent) | Event::Unreachable) => Step::Join,

            (Step::Join | Step::Queue, Event::Leads) if self.cut_off => Step::Create,
            (Step::Join | Step::Queue, Event::Leads) => Step::TryLock,
            (Step::Join, Event::Busy) if self.stale => Step::ReturnFound,
            (Step::Join, Event::Busy) => Step::Queue,
            (Step::Queue, Event::Shared) => Step::ReturnShared,
            (Step::Queue, Event::Unusable) if self.cut_off => Step::Join,
            (Step::Queue, Event::Unusable) => Step::Read,

            (Step::TryLock, Event::Locked(Fresh) | Event::Taken(Fresh | Stale)) => Step::ReturnFound,
            (Step::TryLock, Event::Locked(Stale | Absent)) => Step::Create,
            (Step::TryLock, Event::Taken(Absent)) => Step::AwaitHolder,
            // A new value could not be stored, so it is worth no more than the stale one at hand.
            (Step::TryLock, Event::Unreachable) if self.stale => Step::ReturnFound,
            (Step::TryLock, Event::Unreachable) => Step::Create,
            // The holder has stored the value, or given up: only reading tells.
            (Step::AwaitHolder, Event::Woken) => Step::Read,
            (Step::AwaitHolder, Event::Left) => Step::Queue,
            (Step::Queue | Step::AwaitHolder, Event::Impatient) => Step::Create,

            (Step::Create, Event::Created) if self.cut_off => Step::ReturnCreated,
            (Step::Create, Event::Created) => Step::Store,
            (Step::Create, Event::CreatedUnstored) | (Step::Store, Event::Stored) => Step::ReturnCreated,

            (step, event) => unreachable!("{event:?} is no outcome of {step:?}"),
        };
    }
}

/// What must hold before each step, told from the events alone: the oracle of tests and of the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) mod model {
    use super::*;

    const FRESHNESS: [Freshness; 3] = [Freshness::Fresh, Freshness::Stale, Freshness::Absent];

    /// All that may come of a step, as drivers report it.
    pub(crate) fn outcomes(step: Step) -> Vec<Event> {
        match step {
            Step::Read => FRESHNESS.map(Event::Found).into_iter().chain([Event::Unreachable]).collect(),
            Step::Join => vec![Event::Leads, Event::Busy],
            Step::Queue => vec![Event::Shared, Event::Unusable, Event::Leads, Event::Impatient],
            Step::TryLock => FRESHNESS
                .map(Event::Locked)
                .into_iter()
                .chain(FRESHNESS.map(Event::Taken))
                .chain([Event::Unreachable])
                .collect(),
            Step::AwaitHolder => vec![Event::Woken, Event::Left, Event::Impatient],
            Step::Create => vec![Event::Created, Event::CreatedUnstored],
            Step::Store => vec![Event::Stored],
            Step::ReturnFound | Step::ReturnShared | Step::ReturnCreated => vec![],
        }
    }

    /// What a driver holds, told from the events alone.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub(crate) struct Model {
        found: Option<Freshness>,
        leads: bool,
        locked: bool,
        unreachable: bool,
        impatient: bool,
        created: bool,
        shared: bool,
    }

    impl Model {
        pub(crate) fn on(mut self, event: Event) -> Self {
            if let Event::Found(found) | Event::Locked(found) | Event::Taken(found) = event {
                self.found = Some(found).filter(|found| *found != Freshness::Absent);
            }
            self.leads = (self.leads || event == Event::Leads) && event != Event::Left;
            self.locked |= matches!(event, Event::Locked(_));
            self.unreachable |= event == Event::Unreachable;
            self.impatient |= event == Event::Impatient;
            self.created |= matches!(event, Event::Created | Event::CreatedUnstored);
            self.shared |= event == Event::Shared;
            self
        }

        /// What must hold before a driver does `step`.
        pub(crate) fn check(self, step: Step) {
            match step {
                Step::Read => assert!(!self.unreachable && !self.created && !self.locked),
                Step::Join => assert!(!self.leads && self.found != Some(Freshness::Fresh)),
                Step::Queue => assert!(!self.leads && self.found.is_none(), "nobody waits with a value at hand"),
                Step::TryLock => assert!(self.leads && !self.locked && !self.unreachable && !self.created),
                Step::AwaitHolder => assert!(self.leads && !self.locked && self.found.is_none()),
                Step::Create => {
                    assert!(!self.created && self.found != Some(Freshness::Fresh));
                    assert!(self.leads || self.impatient, "one creates for all, or is impatient");
                    let reason = self.locked || self.unreachable || self.impatient;
                    assert!(reason, "nobody creates unlocked but when cut off, or impatient");
                }
                Step::Store => assert!((self.locked || self.impatient) && self.created && !self.unreachable),
                Step::ReturnFound => assert!(self.found.is_some() && !self.created),
                Step::ReturnShared => assert!(self.shared && !self.created),
                Step::ReturnCreated => assert!(self.created),
            }
        }
    }

    /// Walks the table by the outcomes that `choices` pick, and checks each step.
    #[cfg(fuzzing)]
    pub(crate) fn walk(choices: &[u8]) {
        let (mut machine, mut model) = (Dogpile::new(), Model::default());
        for choice in choices {
            model.check(machine.step());
            let outcomes = outcomes(machine.step());
            let Some(event) = outcomes.get(usize::from(*choice) % outcomes.len().max(1)) else { return };
            machine.on(*event);
            model = model.on(*event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::model::{Model, outcomes};
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_state_that_can_be_reached_is_sound() {
        let mut seen = HashSet::new();
        let mut open = vec![(Dogpile::new(), Model::default()), (Dogpile::waiting(), Model::default())];
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
                next.on(event);
                open.push((next, model.on(event)));
            }
        }
        assert_eq!(ends.len(), 3, "each way to return is reached");
        assert!(seen.len() > 20, "{}", seen.len());
    }

    /// The whole table: for each step, each outcome and each state, the next step.
    #[test]
    fn the_table() {
        use Event::*;
        use Freshness::{Absent, Fresh, Stale};
        let walk = |events: &[Event]| {
            let mut machine = Dogpile::new();
            events.iter().for_each(|event| machine.on(*event));
            machine.step()
        };
        for (events, step) in [
            (&[][..], Step::Read),
            (&[Found(Fresh)], Step::ReturnFound),
            (&[Found(Stale)], Step::Join),
            (&[Found(Absent)], Step::Join),
            (&[Unreachable], Step::Join),
            (&[Found(Stale), Busy], Step::ReturnFound),
            (&[Found(Absent), Busy], Step::Queue),
            (&[Unreachable, Busy], Step::Queue),
            (&[Found(Stale), Leads], Step::TryLock),
            (&[Found(Absent), Leads], Step::TryLock),
            (&[Unreachable, Leads], Step::Create),
            (&[Unreachable, Leads, Created], Step::ReturnCreated),
            (&[Found(Absent), Busy, Shared], Step::ReturnShared),
            (&[Found(Absent), Busy, Unusable], Step::Read),
            (&[Unreachable, Busy, Unusable], Step::Join),
            (&[Found(Absent), Busy, Leads], Step::TryLock),
            (&[Unreachable, Busy, Leads], Step::Create),
            (&[Found(Stale), Leads, Locked(Fresh)], Step::ReturnFound),
            (&[Found(Stale), Leads, Locked(Stale)], Step::Create),
            (&[Found(Stale), Leads, Locked(Absent)], Step::Create),
            (&[Found(Stale), Leads, Taken(Fresh)], Step::ReturnFound),
            (&[Found(Stale), Leads, Taken(Stale)], Step::ReturnFound),
            (&[Found(Stale), Leads, Taken(Absent)], Step::AwaitHolder),
            (&[Found(Stale), Leads, Unreachable], Step::ReturnFound),
            (&[Found(Absent), Leads, Unreachable], Step::Create),
            (&[Found(Absent), Leads, Taken(Absent), Woken], Step::Read),
            (&[Found(Absent), Leads, Taken(Absent), Woken, Found(Fresh)], Step::ReturnFound),
            (&[Found(Absent), Leads, Taken(Absent), Woken, Found(Absent)], Step::TryLock),
            (&[Found(Absent), Leads, Taken(Absent), Woken, Found(Stale)], Step::TryLock),
            (&[Found(Absent), Leads, Taken(Absent), Woken, Unreachable], Step::Create),
            (&[Found(Absent), Leads, Taken(Absent), Left], Step::Queue),
            (&[Found(Absent), Leads, Taken(Absent), Left, Leads], Step::TryLock),
            (&[Found(Absent), Leads, Taken(Absent), Left, Shared], Step::ReturnShared),
            (&[Found(Absent), Busy, Impatient], Step::Create),
            (&[Found(Absent), Leads, Taken(Absent), Impatient], Step::Create),
            (&[Found(Absent), Leads, Taken(Absent), Impatient, Created], Step::Store),
            (&[Unreachable, Busy, Impatient, Created], Step::ReturnCreated),
            (&[Found(Absent), Leads, Locked(Absent), Created], Step::Store),
            (&[Found(Absent), Leads, Locked(Absent), CreatedUnstored], Step::ReturnCreated),
            (&[Found(Absent), Leads, Locked(Absent), Created, Stored], Step::ReturnCreated),
        ] {
            assert_eq!(walk(events), step, "{events:?}");
        }
    }

    #[test]
    #[should_panic(expected = "Stored is no outcome of Read")]
    fn a_driver_that_is_wrong_is_told() {
        Dogpile::new().on(Event::Stored);
    }
}
