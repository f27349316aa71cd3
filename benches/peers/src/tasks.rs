//! Clients that many tasks share over one connection. Each reads and writes 64 bytes, in the cheapest form that it has.

use std::convert::Infallible;
use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use dogpile::{Redis, Region};
use fred::prelude::{ClientLike, Expiration, KeysInterface};
use redis::aio::MultiplexedConnection;
use rustis::commands::{SetExpiration, StringCommands};
use rustis::resp::BulkString;
use tokio::runtime::Runtime;

use crate::{VALUE, runtime};

/// How long entries live, in seconds.
const TTL: u64 = 3600;

/// What tasks ask of a client. A clone is a handle of the same connection.
pub trait Client: Clone + Send + 'static {
    /// A value as it was read: it owns its bytes, or shares in them.
    type Value: Deref<Target = [u8]> + Send;

    fn connect(url: &str) -> impl Future<Output = Self>;
    fn get(&mut self, key: &str) -> impl Future<Output = Option<Self::Value>> + Send;
    /// Puts `VALUE` there.
    fn set(&mut self, key: &str) -> impl Future<Output = ()> + Send;

    /// Read-through as it is written by hand. Nothing keeps tasks from creating at once.
    fn get_or_create(&mut self, key: &str) -> impl Future<Output = ()> + Send {
        async move {
            if self.get(key).await.is_none() {
                self.set(key).await;
            }
        }
    }
}

/// A client, connected, and the runtime of one thread that its connection and all tasks live on.
pub struct Shared<C> {
    pub runtime: Runtime,
    pub client: C,
}

impl<C: Client> Shared<C> {
    #[must_use]
    pub fn connect(url: &str) -> Self {
        let runtime = runtime();
        let client = runtime.block_on(C::connect(url));
        Shared { runtime, client }
    }
}

/// How many of all operations each task does, so that they are exactly as many.
pub fn divide(operations: u32, tasks: u32) -> impl Iterator<Item = u32> {
    (0..tasks).map(move |task| operations / tasks + u32::from(task < operations % tasks))
}

impl Client for MultiplexedConnection {
    type Value = Vec<u8>;

    async fn connect(url: &str) -> Self {
        let client = redis::Client::open(url).expect("the URL is good");
        client.get_multiplexed_async_connection().await.expect("the server is there")
    }

    async fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        redis::AsyncCommands::get(self, key).await.unwrap()
    }

    async fn set(&mut self, key: &str) {
        redis::AsyncCommands::set_ex(self, key, &VALUE, TTL).await.unwrap()
    }
}

impl Client for fred::clients::Client {
    type Value = Bytes;

    async fn connect(url: &str) -> Self {
        let config = fred::prelude::Config::from_url(url).expect("the URL is good");
        let client = fred::prelude::Builder::from_config(config).build().expect("the settings are good");
        client.init().await.expect("the server is there");
        client
    }

    async fn get(&mut self, key: &str) -> Option<Bytes> {
        KeysInterface::get(self, key).await.unwrap()
    }

    async fn set(&mut self, key: &str) {
        let expires = Some(Expiration::EX(TTL.cast_signed()));
        KeysInterface::set(self, key, Bytes::from_static(&VALUE), expires, None, false).await.unwrap()
    }
}

impl Client for rustis::client::Client {
    type Value = BulkString;

    async fn connect(url: &str) -> Self {
        rustis::client::Client::connect(url).await.expect("the server is there")
    }

    async fn get(&mut self, key: &str) -> Option<BulkString> {
        StringCommands::get(&*self, key).await.unwrap()
    }

    async fn set(&mut self, key: &str) {
        let value = BulkString::from(Bytes::from_static(&VALUE));
        self.set_with_options(key, value, None, SetExpiration::Ex(TTL)).await.unwrap();
    }
}

impl Client for Region<Redis> {
    type Value = Bytes;

    async fn connect(url: &str) -> Self {
        let ttl = Duration::from_secs(TTL);
        let redis = Redis::open(url).expect("the URL is good");
        Region::builder(redis).stale_after(ttl).ttl(ttl).build().expect("the settings are good")
    }

    async fn get(&mut self, key: &str) -> Option<Bytes> {
        self.get_async(key).await.unwrap()
    }

    async fn set(&mut self, key: &str) {
        self.set_async(key, &Bytes::from_static(&VALUE)).await.unwrap();
    }

    async fn get_or_create(&mut self, key: &str) {
        let create = async || Ok::<_, Infallible>(Bytes::from_static(&VALUE));
        let _: Bytes = self.get_or_create_async(key, create).await.unwrap();
    }
}
