//! Blocking caches over Redis: dogpile, a cache written by hand over the redis crate, and cached.

use std::convert::Infallible;
use std::time::Duration;

use cached::{ConcurrentCached, RedisCache};
use dogpile::{Backend, Redis, Region};
use dogpile::redis::Driver;
use redis::Commands;

use super::{Keys, Subject, TTL, Work};
use crate::Profile;
use crate::meter::Sample;

pub(super) fn subjects(url: &str) -> Vec<Box<dyn Subject>> {
    let driver_url = url.to_string();
    let driver = Driver::new(16, move || redis::Client::open(&*driver_url)?.get_connection());
    let connection = redis::Client::open(url).and_then(|client| client.get_connection()).expect("the server is there");
    let cached = RedisCache::builder("cached").connection_string(url).ttl(Duration::from_secs(TTL)).build();
    vec![
        Box::new(Dogpile::new("dogpile", Redis::open(url).expect("the URL is good"), 1)),
        Box::new(Dogpile::new("dogpile_driver", driver, 1)),
        Box::new(ByHand { keys: Keys::of("redis"), connection }),
        Box::new(Cached { keys: Keys::of("cached"), cache: cached.expect("the server is there") }),
    ]
}

/// dogpile, with everything at its default but the times.
pub(super) struct Dogpile<B> {
    keys: Keys,
    region: Region<B>,
    /// How many operations are timed together.
    group: u32,
}

impl<B: Backend> Dogpile<B> {
    pub(super) fn new(name: &'static str, backend: B, group: u32) -> Self {
        let hour = Duration::from_secs(3600);
        let region = Region::builder(backend).stale_after(hour).ttl(Duration::from_secs(TTL)).build();
        Dogpile { keys: Keys::of(name), region: region.expect("the settings are good"), group }
    }
}

impl<B: Backend> Subject for Dogpile<B> {
    fn name(&self) -> &'static str {
        self.keys.name
    }

    fn run(&mut self, work: Work, times: u32) -> Option<Sample> {
        let (keys, region, value) = (&mut self.keys, &self.region, Profile::sample());
        region.set(&keys.one, &value).unwrap();
        let hundred: Vec<_> = keys.hundred.iter().map(|key| (key, Profile::sample())).collect();
        region.set_many(&hundred).unwrap();
        Some(match work {
            Work::GetHit => Sample::of(times, self.group, || {
                let found: Option<Profile> = region.get(&keys.one).unwrap();
                assert!(found.is_some());
            }),
            Work::Set => Sample::of(times, self.group, || region.set(&keys.one, &value).unwrap()),
            Work::GetMany => Sample::of(times, self.group, || {
                let found: Vec<Option<Profile>> = region.get_many(&keys.hundred).unwrap();
                assert!(found.iter().all(Option::is_some));
            }),
            Work::GetOrCreateHit => Sample::of(times, self.group, || {
                let _: Profile = region.get_or_create(&keys.one, || Ok::<_, Infallible>(Profile::sample())).unwrap();
            }),
            Work::GetOrCreateMiss => Sample::of(times, self.group, || {
                let _: Profile =
                    region.get_or_create(keys.unused(), || Ok::<_, Infallible>(Profile::sample())).unwrap();
            }),
            _ => return None,
        })
    }
}

/// Read-through as it is written by hand: GET, and on a miss SET with EX. Nothing keeps callers from creating at once.
struct ByHand {
    keys: Keys,
    connection: redis::Connection,
}

impl Subject for ByHand {
    fn name(&self) -> &'static str {
        self.keys.name
    }

    fn run(&mut self, work: Work, times: u32) -> Option<Sample> {
        let (keys, connection) = (&mut self.keys, &mut self.connection);
        let value = Profile::sample();
        let entry = super::encode(&value);
        connection.set_ex::<_, _, ()>(&keys.one, &entry, TTL).unwrap();
        for key in &keys.hundred {
            connection.set_ex::<_, _, ()>(key, &entry, TTL).unwrap();
        }
        let get_or_create = |connection: &mut redis::Connection, key: &str| match connection.get(key).unwrap() {
            Some::<Vec<u8>>(entry) => super::decode(&entry),
            None => {
                let value = Profile::sample();
                connection.set_ex::<_, _, ()>(key, super::encode(&value), TTL).unwrap();
                value
            }
        };
        Some(match work {
            Work::GetHit => Sample::of(times, 1, || {
                let entry: Option<Vec<u8>> = connection.get(&keys.one).unwrap();
                super::decode(&entry.unwrap());
            }),
            Work::Set => Sample::of(times, 1, || {
                connection.set_ex::<_, _, ()>(&keys.one, super::encode(&value), TTL).unwrap();
            }),
            Work::GetMany => Sample::of(times, 1, || {
                let entries: Vec<Option<Vec<u8>>> = connection.mget(&keys.hundred).unwrap();
                let found: Vec<Option<Profile>> =
                    entries.iter().map(|entry| entry.as_deref().map(super::decode)).collect();
                assert!(found.iter().all(Option::is_some));
            }),
            Work::GetOrCreateHit => Sample::of(times, 1, || {
                get_or_create(connection, &keys.one);
            }),
            Work::GetOrCreateMiss => Sample::of(times, 1, || {
                get_or_create(connection, &keys.unused());
            }),
            _ => return None,
        })
    }
}

/// The crate cached: values as JSON, a pool of connections, no batches.
struct Cached {
    keys: Keys,
    cache: RedisCache<String, Profile>,
}

impl Subject for Cached {
    fn name(&self) -> &'static str {
        self.keys.name
    }

    fn run(&mut self, work: Work, times: u32) -> Option<Sample> {
        let (keys, cache) = (&mut self.keys, &self.cache);
        let value = Profile::sample();
        cache.cache_set(keys.one.clone(), value.clone()).unwrap();
        Some(match work {
            Work::GetHit => Sample::of(times, 1, || assert!(cache.cache_get(&keys.one).unwrap().is_some())),
            Work::Set => Sample::of(times, 1, || {
                cache.cache_set(keys.one.clone(), value.clone()).unwrap();
            }),
            Work::GetOrCreateHit => Sample::of(times, 1, || {
                cache.cache_get_or_set_with(keys.one.clone(), Profile::sample).unwrap();
            }),
            Work::GetOrCreateMiss => Sample::of(times, 1, || {
                cache.cache_get_or_set_with(keys.unused(), Profile::sample).unwrap();
            }),
            _ => return None,
        })
    }
}
