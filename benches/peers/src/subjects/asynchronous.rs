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
use crate::meter::Sample;
use crate::{Profile, runtime};

pub(super) fn subjects(url: &str) -> Vec<Box<dyn Subject>> {
    vec![Box::new(fred(url)), Box::new(rustis(url)), Box::new(Hitbox::new(url))]
}

/// What read-through needs of a client.
trait Client {
    /// Many keys, in the form that the client takes without making it anew for each call.
    type Many: Clone;

    fn many(keys: &[String]) -> Self::Many;
    async fn get(&self, key: &str) -> Option<Profile>;
    async fn get_many(&self, keys: &Self::Many) -> Vec<Option<Profile>>;
    async fn set(&self, key: &str, value: &Profile);
}

/// Read-through as it is written by hand: GET, and on a miss SET with EX. Nothing keeps callers from creating at once.
struct ByHand<C> {
    keys: Keys,
    runtime: Runtime,
    client: C,
}

impl<C: Client> ByHand<C> {
    async fn get_or_create(client: &C, key: &str) {
        if client.get(key).await.is_none() {
            client.set(key, &Profile::sample()).await;
        }
    }
}

impl<C: Client> Subject for ByHand<C> {
    fn name(&self) -> &'static str {
        self.keys.name
    }

    fn run(&mut self, work: Work, times: u32) -> Option<Sample> {
        let (keys, client) = (&mut self.keys, &self.client);
        let (value, many) = (Profile::sample(), C::many(&keys.hundred));
        self.runtime.block_on(async {
            client.set(&keys.one, &value).await;
            for key in &keys.hundred {
                client.set(key, &value).await;
            }
            Some(match work {
                Work::GetHit => Sample::of_async(times, async || assert!(client.get(&keys.one).await.is_some())).await,
                Work::Set => Sample::of_async(times, async || client.set(&keys.one, &value).await).await,
                Work::GetMany => {
                    Sample::of_async(times, async || {
                        assert!(client.get_many(&many).await.iter().all(Option::is_some));
                    })
                    .await
                }
                Work::GetOrCreateHit => {
                    Sample::of_async(times, async || Self::get_or_create(client, &keys.one).await).await
                }
                Work::GetOrCreateMiss => {
                    Sample::of_async(times, async || Self::get_or_create(client, &keys.unused()).await).await
                }
                _ => return None,
            })
        })
    }
}

fn fred(url: &str) -> ByHand<fred::clients::Client> {
    let (runtime, config) = (runtime(), fred::prelude::Config::from_url(url).expect("the URL is good"));
    let client = fred::prelude::Builder::from_config(config).build().expect("the settings are good");
    runtime.block_on(async { client.init().await }).expect("the server is there");
    ByHand { keys: Keys::of("fred"), runtime, client }
}

impl Client for fred::clients::Client {
    type Many = MultipleKeys;

    fn many(keys: &[String]) -> MultipleKeys {
        MultipleKeys::from(keys.to_vec())
    }

    async fn get(&self, key: &str) -> Option<Profile> {
        let entry: Option<Bytes> = KeysInterface::get(self, key).await.unwrap();
        entry.as_deref().map(decode)
    }

    async fn get_many(&self, keys: &MultipleKeys) -> Vec<Option<Profile>> {
        let entries: Vec<Option<Bytes>> = self.mget(keys.clone()).await.unwrap();
        entries.iter().map(|entry| entry.as_deref().map(decode)).collect()
    }

    async fn set(&self, key: &str, value: &Profile) {
        let expires = Some(Expiration::EX(TTL.cast_signed()));
        KeysInterface::set::<(), _, _>(self, key, &encode(value)[..], expires, None, false).await.unwrap();
    }
}

fn rustis(url: &str) -> ByHand<rustis::client::Client> {
    let runtime = runtime();
    let client = runtime.block_on(rustis::client::Client::connect(url)).expect("the server is there");
    ByHand { keys: Keys::of("rustis"), runtime, client }
}

impl Client for rustis::client::Client {
    type Many = Vec<String>;

    fn many(keys: &[String]) -> Vec<String> {
        keys.to_vec()
    }

    async fn get(&self, key: &str) -> Option<Profile> {
        let entry: Option<BulkString> = StringCommands::get(self, key).await.unwrap();
        entry.map(|entry| decode(entry.as_bytes()))
    }

    async fn get_many(&self, keys: &Vec<String>) -> Vec<Option<Profile>> {
        let entries: Vec<Option<BulkString>> = self.mget(keys).await.unwrap();
        entries.iter().map(|entry| entry.as_ref().map(|entry| decode(entry.as_bytes()))).collect()
    }

    async fn set(&self, key: &str, value: &Profile) {
        let entry = BulkString::from(encode(value));
        self.set_with_options(key, entry, None, SetExpiration::Ex(TTL)).await.unwrap();
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
