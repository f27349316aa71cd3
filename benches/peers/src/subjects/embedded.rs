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
        Box::new(Moka { keys: Keys::of("moka"), cache: moka::sync::Cache::new(100_000) }),
        Box::new(QuickCache { keys: Keys::of("quick_cache"), cache: quick_cache::sync::Cache::new(100_000) }),
    ]
}

struct Moka {
    keys: Keys,
    cache: moka::sync::Cache<String, Profile>,
}

impl Subject for Moka {
    fn name(&self) -> &'static str {
        self.keys.name
    }

    fn run(&mut self, work: Work, times: u32) -> Option<Sample> {
        let (keys, cache) = (&mut self.keys, &self.cache);
        let value = Profile::sample();
        cache.insert(keys.one.clone(), value.clone());
        keys.hundred.iter().for_each(|key| cache.insert(key.clone(), Profile::sample()));
        Some(match work {
            Work::GetHit => Sample::of(times, GROUP, || assert!(cache.get(&keys.one).is_some())),
            Work::Set => Sample::of(times, GROUP, || cache.insert(keys.one.clone(), value.clone())),
            Work::GetMany => Sample::of(times, GROUP, || {
                let found: Vec<_> = keys.hundred.iter().map(|key| cache.get(key)).collect();
                assert!(found.iter().all(Option::is_some));
            }),
            Work::GetOrCreateHit => Sample::of(times, GROUP, || {
                cache.get_with_by_ref(&keys.one, Profile::sample);
            }),
            Work::GetOrCreateMiss => Sample::of(times, GROUP, || {
                cache.get_with(keys.unused(), Profile::sample);
            }),
        })
    }
}

struct QuickCache {
    keys: Keys,
    cache: quick_cache::sync::Cache<String, Profile>,
}

impl Subject for QuickCache {
    fn name(&self) -> &'static str {
        self.keys.name
    }

    fn run(&mut self, work: Work, times: u32) -> Option<Sample> {
        let (keys, cache) = (&mut self.keys, &self.cache);
        let value = Profile::sample();
        cache.insert(keys.one.clone(), value.clone());
        keys.hundred.iter().for_each(|key| cache.insert(key.clone(), Profile::sample()));
        Some(match work {
            Work::GetHit => Sample::of(times, GROUP, || assert!(cache.get(&keys.one).is_some())),
            Work::Set => Sample::of(times, GROUP, || cache.insert(keys.one.clone(), value.clone())),
            Work::GetMany => Sample::of(times, GROUP, || {
                let found: Vec<_> = keys.hundred.iter().map(|key| cache.get(key)).collect();
                assert!(found.iter().all(Option::is_some));
            }),
            Work::GetOrCreateHit => Sample::of(times, GROUP, || {
                cache.get_or_insert_with(&keys.one, || Ok::<_, Infallible>(Profile::sample())).unwrap();
            }),
            Work::GetOrCreateMiss => Sample::of(times, GROUP, || {
                cache.get_or_insert_with(&keys.unused(), || Ok::<_, Infallible>(Profile::sample())).unwrap();
            }),
        })
    }
}
