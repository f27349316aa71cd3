//! Asynchronous clients of Redis, with read-through written by hand over them: fred and rustis; and the crate hitbox.
//! Each runs on a runtime of one thread, one operation after the other.

use std::time::Duration;

use bytes::Bytes;
use fred::prelude::{ClientLike, Expiration, KeysInterface};
use fred::types::MultipleKeys;
use hitbox_fn::prelude::PolicyConfig;
use hitbox_redis::{ConnectionMode, RedisBackend};
use rustis::commands::{SetExpiration, StringCommands};
use rustis::resp::BulkString;
use tokio::runtime::Runtime;

use super::{Keys, Subject, TTL, Work, decode, encode};
use crate::Profile;
use crate::meter::Sample;

pub(super) fn subjects(url: &str) -> Vec<Box<dyn Subject>> {
    vec![Box::new(Fred::new(url)), Box::new(Rustis::new(url)), Box::new(Hitbox::new(url))]
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

struct Fred {
    keys: Keys,
    runtime: Runtime,
    client: fred::clients::Client,
}

impl Fred {
    fn new(url: &str) -> Self {
        let (runtime, config) = (runtime(), fred::prelude::Config::from_url(url).expect("the URL is good"));
        let client = fred::prelude::Builder::from_config(config).build().expect("the settings are good");
        runtime.block_on(async { client.init().await }).expect("the server is there");
        Fred { keys: Keys::of("fred"), runtime, client }
    }
}

impl Subject for Fred {
    fn name(&self) -> &'static str {
        self.keys.name
    }

    fn run(&mut self, work: Work, times: u32) -> Option<Sample> {
        let (keys, client) = (&mut self.keys, &self.client);
        let expires = || Some(Expiration::EX(TTL.cast_signed()));
        let set = async |key: &str, value: &Profile| {
            client.set::<(), _, _>(key, &encode(value)[..], expires(), None, false).await.unwrap();
        };
        let get_or_create = async |key: &str| match client.get::<Option<Bytes>, _>(key).await.unwrap() {
            Some(entry) => decode(&entry),
            None => {
                let value = Profile::sample();
                set(key, &value).await;
                value
            }
        };
        let value = Profile::sample();
        Some(self.runtime.block_on(async {
            set(&keys.one, &Profile::sample()).await;
            for key in &keys.hundred {
                set(key, &Profile::sample()).await;
            }
            let hundred = MultipleKeys::from(keys.hundred.clone());
            match work {
                Work::GetHit => {
                    Sample::of_async(times, async || {
                        let entry: Option<Bytes> = client.get(&*keys.one).await.unwrap();
                        decode(&entry.unwrap());
                    })
                    .await
                }
                Work::Set => Sample::of_async(times, async || set(&keys.one, &value).await).await,
                Work::GetMany => {
                    Sample::of_async(times, async || {
                        let entries: Vec<Option<Bytes>> = client.mget(hundred.clone()).await.unwrap();
                        let found: Vec<_> = entries.iter().map(|entry| entry.as_deref().map(decode)).collect();
                        assert!(found.iter().all(Option::is_some));
                    })
                    .await
                }
                Work::GetOrCreateHit => Sample::of_async(times, async || drop(get_or_create(&keys.one).await)).await,
                Work::GetOrCreateMiss => {
                    Sample::of_async(times, async || drop(get_or_create(&keys.unused()).await)).await
                }
            }
        }))
    }
}

struct Rustis {
    keys: Keys,
    runtime: Runtime,
    client: rustis::client::Client,
}

impl Rustis {
    fn new(url: &str) -> Self {
        let runtime = runtime();
        let client = runtime.block_on(rustis::client::Client::connect(url)).expect("the server is there");
        Rustis { keys: Keys::of("rustis"), runtime, client }
    }
}

impl Subject for Rustis {
    fn name(&self) -> &'static str {
        self.keys.name
    }

    fn run(&mut self, work: Work, times: u32) -> Option<Sample> {
        let (keys, client) = (&mut self.keys, &self.client);
        let set = async |key: &str, value: &Profile| {
            let entry = BulkString::from(encode(value));
            client.set_with_options(key, entry, None, SetExpiration::Ex(TTL)).await.unwrap();
        };
        let get_or_create = async |key: &str| match client.get::<Option<BulkString>>(key).await.unwrap() {
            Some(entry) => decode(entry.as_bytes()),
            None => {
                let value = Profile::sample();
                set(key, &value).await;
                value
            }
        };
        let value = Profile::sample();
        Some(self.runtime.block_on(async {
            set(&keys.one, &Profile::sample()).await;
            for key in &keys.hundred {
                set(key, &Profile::sample()).await;
            }
            match work {
                Work::GetHit => {
                    Sample::of_async(times, async || {
                        let entry: Option<BulkString> = client.get(&keys.one).await.unwrap();
                        decode(entry.unwrap().as_bytes());
                    })
                    .await
                }
                Work::Set => Sample::of_async(times, async || set(&keys.one, &value).await).await,
                Work::GetMany => {
                    Sample::of_async(times, async || {
                        let entries: Vec<Option<BulkString>> = client.mget(&keys.hundred).await.unwrap();
                        let found: Vec<_> =
                            entries.iter().map(|entry| entry.as_ref().map(|entry| decode(entry.as_bytes()))).collect();
                        assert!(found.iter().all(Option::is_some));
                    })
                    .await
                }
                Work::GetOrCreateHit => Sample::of_async(times, async || drop(get_or_create(&keys.one).await)).await,
                Work::GetOrCreateMiss => {
                    Sample::of_async(times, async || drop(get_or_create(&keys.unused()).await)).await
                }
            }
        }))
    }
}

/// hitbox remembers what functions return: it has get_or_create only.
struct Hitbox {
    keys: Keys,
    runtime: Runtime,
    cache: hitbox_fn::Cache<RedisBackend, hitbox::concurrency::NoopConcurrencyManager, hitbox::DisabledOffload>,
}

#[hitbox_fn::cached]
async fn profile(key: String) -> Profile {
    let _ = key;
    Profile::sample()
}

impl Hitbox {
    fn new(url: &str) -> Self {
        let backend = RedisBackend::builder().connection(ConnectionMode::single(url)).build();
        let policy = PolicyConfig::builder().ttl(Duration::from_secs(TTL)).build();
        let cache = hitbox_fn::Cache::builder().backend(backend.expect("the settings are good")).policy(policy).build();
        Hitbox { keys: Keys::of("hitbox"), runtime: runtime(), cache }
    }
}

impl Subject for Hitbox {
    fn name(&self) -> &'static str {
        self.keys.name
    }

    fn run(&mut self, work: Work, times: u32) -> Option<Sample> {
        let (keys, cache) = (&mut self.keys, &self.cache);
        let get_or_create = async |key: String| profile(key).cache(cache).await;
        match work {
            Work::GetOrCreateHit => Some(self.runtime.block_on(async {
                get_or_create(keys.one.clone()).await;
                Sample::of_async(times, async || drop(get_or_create(keys.one.clone()).await)).await
            })),
            Work::GetOrCreateMiss => {
                Some(self.runtime.block_on(async {
                    Sample::of_async(times, async || drop(get_or_create(keys.unused()).await)).await
                }))
            }
            _ => None,
        }
    }
}
