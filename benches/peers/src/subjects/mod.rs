//! Who is measured: each does the same work in its own way, as its documentation shows it.

mod asynchronous;
mod blocking;
mod embedded;
mod limit;
mod reference;
mod tasks;

use crate::Profile;
use crate::meter::Sample;

/// What a cache is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    GetHit,
    Set,
    GetMany,
    GetOrCreateHit,
    GetOrCreateMiss,
    /// As many tasks as it says, which share one connection, get at the same time.
    Get1Task,
    Get64Tasks,
    Get256Tasks,
    GetOrCreate64Tasks,
}

impl Work {
    pub const ALL: [Work; 9] = [
        Work::GetHit,
        Work::Set,
        Work::GetMany,
        Work::GetOrCreateHit,
        Work::GetOrCreateMiss,
        Work::Get1Task,
        Work::Get64Tasks,
        Work::Get256Tasks,
        Work::GetOrCreate64Tasks,
    ];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Work::GetHit => "get_hit",
            Work::Set => "set",
            Work::GetMany => "get_many_100",
            Work::GetOrCreateHit => "get_or_create_hit",
            Work::GetOrCreateMiss => "get_or_create_miss",
            Work::Get1Task => "get_1_task",
            Work::Get64Tasks => "get_64_tasks",
            Work::Get256Tasks => "get_256_tasks",
            Work::GetOrCreate64Tasks => "get_or_create_64_tasks",
        }
    }

    /// How many tasks share a connection. `None` where operations come one after the other.
    #[must_use]
    pub fn tasks(self) -> Option<u32> {
        match self {
            Work::Get1Task => Some(1),
            Work::Get64Tasks | Work::GetOrCreate64Tasks => Some(64),
            Work::Get256Tasks => Some(256),
            _ => None,
        }
    }

    /// How often it is done where `times` are asked for, as one takes longer than another.
    #[must_use]
    pub fn operations(self, times: u32) -> u32 {
        match self {
            Work::GetMany => times.div_ceil(20),
            Work::Get64Tasks | Work::Get256Tasks | Work::GetOrCreate64Tasks => times.saturating_mul(32),
            _ => times,
        }
    }
}

/// One cache, ready to work.
pub trait Subject {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// Does some work so many times. `None` where it has no such thing.
    fn run(&mut self, work: Work, times: u32) -> Option<Sample>;
}

/// All that are there; those in other programs if these are found.
#[must_use]
pub fn all(url: &str) -> Vec<Box<dyn Subject>> {
    let mut subjects = blocking::subjects(url);
    subjects.extend(asynchronous::subjects(url));
    subjects.extend(tasks::subjects(url));
    subjects.extend(limit::subject(url));
    subjects.extend(embedded::subjects());
    subjects.extend(reference::subject(url));
    subjects
}

/// How long entries live, in seconds.
const TTL: u64 = 300;

/// The keys that a subject works with: its own, since each writes in its own form.
struct Keys {
    name: &'static str,
    one: String,
    hundred: Vec<String>,
    missed: u64,
}

impl Keys {
    fn of(name: &'static str) -> Self {
        let hundred = (0..100).map(|at| format!("{name}|many-{at}")).collect();
        Keys { name, one: format!("{name}|one"), hundred, missed: 0 }
    }

    /// A key that was never used.
    fn unused(&mut self) -> String {
        self.missed += 1;
        format!("{}|missed-{}-{}", self.name, std::process::id(), self.missed)
    }
}

/// An entry as peers without a codec of their own write it: msgpack by rmp-serde, with a time.
fn encode(value: &Profile) -> Vec<u8> {
    rmp_serde::to_vec_named(&(value, 1_700_000_000_u64)).expect("can be written")
}

fn decode(entry: &[u8]) -> Profile {
    let (value, _): (Profile, u64) = rmp_serde::from_slice(entry).expect("was written by encode");
    value
}
