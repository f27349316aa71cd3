//! Backends against a map: sequences of operations on plain keys and fields of several hashes.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::Duration;

use dogpile::backend::{Batch, Found};
use dogpile::{Backend, Key, KeyBuf};
#[cfg(feature = "memory")]
use dogpile::{Clock, Memory, Timestamp};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::support::Server;
use crate::{check, octets};

#[derive(Clone, Debug)]
enum Step {
    /// The TTL is in hours.
    Set(Name, Vec<u8>, Option<u16>),
    SetMany(Vec<(Name, Vec<u8>)>, Option<u16>),
    Get(Name),
    GetMany(Vec<Name>),
    DeleteMany(Vec<Name>),
    /// So many minutes pass.
    Wait(u16),
    /// Some of an entry that was found is held, and must not change.
    Hold(Name, Index),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Name {
    Plain(u8),
    Field(u8, u8),
}

impl Name {
    /// The case is part of the key, so that cases do not see each other's entries.
    fn key(self, case: u32) -> KeyBuf {
        let key = KeyBuf::new().int(case);
        match self {
            Name::Plain(key_of) => key.text("p").int(key_of),
            Name::Field(hash, field) => key.text("h").int(hash).next_field().int(field),
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name =
        || prop_oneof![(0_u8..10).prop_map(Name::Plain), (0_u8..14, 0_u8..4).prop_map(|(h, f)| Name::Field(h, f))];
    let names = || prop::collection::vec(name(), 0..60);
    let ttl = || prop::option::of(1_u16..10);
    let entries = prop::collection::vec((name(), octets(70_000)), 0..40);
    let step = prop_oneof![
        4 => (name(), octets(70_000), ttl()).prop_map(|(name, entry, ttl)| Step::Set(name, entry, ttl)),
        3 => (entries, ttl()).prop_map(|(entries, ttl)| Step::SetMany(entries, ttl)),
        4 => name().prop_map(Step::Get),
        4 => names().prop_map(Step::GetMany),
        1 => names().prop_map(Step::DeleteMany),
        2 => (0_u16..400).prop_map(Step::Wait),
        2 => (name(), any::<Index>()).prop_map(|(name, at)| Step::Hold(name, at)),
    ];
    prop::collection::vec(step, 0..25)
}

fn run(backend: &impl Backend, case: u32, steps: &[Step], wait: Option<&dyn Fn(Duration)>) {
    const HOUR: Duration = Duration::from_secs(3600);
    // Of each name the entry, and when it goes.
    let mut model: HashMap<Name, (&[u8], Option<Duration>)> = HashMap::new();
    let (mut now, mut held, mut found) = (Duration::ZERO, Vec::new(), Found::new());
    for step in steps {
        match step {
            Step::Set(name, entry, ttl) => {
                let ttl = ttl.map(|hours| HOUR * hours.into());
                backend.set(name.key(case).as_key(), entry, ttl).unwrap();
                model.insert(*name, (entry, ttl.map(|ttl| now + ttl)));
            }
            Step::SetMany(entries, ttl) => {
                let ttl = ttl.map(|hours| HOUR * hours.into());
                let mut batch = Batch::new();
                for (name, entry) in entries {
                    batch.push(name.key(case).as_key(), |out| out.extend_from_slice(entry));
                    model.insert(*name, (entry, ttl.map(|ttl| now + ttl)));
                }
                backend.set_many(&batch, ttl).unwrap();
            }
            Step::Get(name) => {
                let entry = backend.get(name.key(case).as_key()).unwrap();
                assert_eq!(entry.as_deref(), model.get(name).map(|(entry, _)| *entry));
            }
            Step::GetMany(names) => {
                let keys: Vec<KeyBuf> = names.iter().map(|name| name.key(case)).collect();
                backend.get_many(&keys.iter().map(KeyBuf::as_key).collect::<Vec<Key<'_>>>(), &mut found).unwrap();
                assert_eq!(found.len(), names.len());
                for (entry, name) in found.iter().zip(names) {
                    assert_eq!(entry.as_deref(), model.get(name).map(|(entry, _)| *entry), "{name:?}");
                }
            }
            Step::DeleteMany(names) => {
                let keys: Vec<KeyBuf> = names.iter().map(|name| name.key(case)).collect();
                backend.delete_many(&keys.iter().map(KeyBuf::as_key).collect::<Vec<Key<'_>>>()).unwrap();
                model.retain(|name, _| !names.contains(name));
            }
            Step::Wait(minutes) => {
                if let Some(wait) = wait {
                    let by = Duration::from_secs(60 * u64::from(*minutes));
                    wait(by);
                    now += by;
                    model.retain(|_, (_, goes)| goes.is_none_or(|goes| goes > now));
                }
            }
            Step::Hold(name, at) => {
                if let Some(entry) = backend.get(name.key(case).as_key()).unwrap() {
                    let from = at.index(entry.len() + 1);
                    held.push((entry.slice(from..), &model[name].0[from..]));
                }
            }
        }
    }
    for (held, entry) in held {
        assert_eq!(held, entry, "an entry changed while it was held");
    }
}

#[test]
#[cfg(feature = "memory")]
fn memory_is_a_map() {
    check(steps(), |steps| {
        let clock = Clock::manual(Timestamp::from_secs(1_471_113_698));
        let memory = Memory::with_clock(1 << 30, clock.clone());
        run(&memory, 0, &steps, Some(&|by| clock.advance(by)));
    });
}

/// Each field of a hash has the hash's TTL here, so no TTL ends within a case.
fn is_a_map(backend: &impl Backend) {
    let case = Cell::new(0);
    check(steps(), |steps| {
        case.set(case.get() + 1);
        run(backend, case.get(), &steps, None);
    });
}

#[test]
fn redis_is_a_map() {
    let server = Server::start();
    is_a_map(&server.redis());
}

#[test]
#[cfg(feature = "driver")]
fn a_driver_is_a_map() {
    let server = Server::start();
    let client = redis::Client::open(server.url()).unwrap();
    is_a_map(&dogpile::redis::Driver::new(1, move || client.get_connection()));
}
