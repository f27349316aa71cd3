//! Caches inside of the process: dogpile over its own memory, moka, quick_cache. They pay no round
//! trip, and are so quick that a hundred operations are timed together, lest the clock be measured. `set` takes values
//! that it owns, so it is given clones.

use std::convert::Infallible;

use dogpile::Memory;

use super::blocking::Dogpile;
use super::{Keys, Subject, Work};
use crate::Profile;
use crate::meter::Sample;

/// How many operations are timed together.
const GROUP: u32 = 100;

pub(super) fn subjects() -> Vec<Box<dyn Subject>> {
    vec![
        Box::new(Dogpile::new("dogpile_memory", Memory::new(64 << 20), GROUP)),
        Box::new(Embedded { keys: Keys::of("moka"), cache: moka::sync::Cache::new(100_000) }),
        Box::new(Embedded { keys: Keys::of("quick_cache"), cache: quick_cache::sync::Cache::new(100_000) }),
    ]
}

/// What is asked of a cache.
trait Cache {
    fn get(&self, key: &str) -> Option<Profile>;
    fn set(&self, key: String, value: Profile);
    fn get_or_create(&self, key: &str);
}

impl Cache for moka::sync::Cache<String, Profile> {
    fn get(&self, key: &str) -> Option<Profile> {
        self.get(key)
    }

    fn set(&self, key: String, value: Profile) {
        self.insert(key, value);
    }

    fn get_or_create(&self, key: &str) {
        self.get_with_by_ref(key, Profile::sample);
    }
}

impl Cache for quick_cache::sync::Cache<String, Profile> {
    fn get(&self, key: &str) -> Option<Profile> {
        self.get(key)
    }

    fn set(&self, key: String, value: Profile) {
        self.insert(key, value);
    }

    fn get_or_create(&self, key: &str) {
        self.get_or_insert_with(key, || Ok::<_, Infallible>(Profile::sample())).unwrap();
    }
}

struct Embedded<C> {
    keys: Keys,
    cache: C,
}

impl<C: Cache> Subject for Embedded<C> {
    fn name(&self) -> &'static str {
        self.keys.name
    }

    fn run(&mut self, work: Work, times: u32) -> Option<Sample> {
        let (keys, cache, value) = (&mut self.keys, &self.cache, Profile::sample());
        cache.set(keys.one.clone(), value.clone());
        keys.hundred.iter().for_each(|key| cache.set(key.clone(), value.clone()));
        Some(match work {
            Work::GetHit => Sample::of(times, GROUP, || assert!(cache.get(&keys.one).is_some())),
            Work::Set => Sample::of(times, GROUP, || cache.set(keys.one.clone(), value.clone())),
            Work::GetMany => Sample::of(times, GROUP, || {
                let found: Vec<_> = keys.hundred.iter().map(|key| cache.get(key)).collect();
                assert!(found.iter().all(Option::is_some));
            }),
            Work::GetOrCreateHit => Sample::of(times, GROUP, || cache.get_or_create(&keys.one)),
            Work::GetOrCreateMiss => Sample::of(times, GROUP, || cache.get_or_create(&keys.unused())),
            _ => return None,
        })
    }
}
