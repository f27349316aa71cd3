//! Who is measured: each does the same work in its own way, as its documentation shows it.

mod asynchronous;
mod blocking;
mod embedded;
mod reference;

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
}

impl Work {
    pub const ALL: [Work; 5] = [Work::GetHit, Work::Set, Work::GetMany, Work::GetOrCreateHit, Work::GetOrCreateMiss];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Work::GetHit => "get_hit",
            Work::Set => "set",
            Work::GetMany => "get_many_100",
            Work::GetOrCreateHit => "get_or_create_hit",
            Work::GetOrCreateMiss => "get_or_create_miss",
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

/// All that are there; the reference if Python is found.
#[must_use]
pub fn all(url: &str) -> Vec<Box<dyn Subject>> {
    let mut subjects = blocking::subjects(url);
    subjects.extend(asynchronous::subjects(url));
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
