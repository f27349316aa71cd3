//! Every backend, codec and lock of the crate passes the suites that the crate ships.

use std::time::Duration;

use dogpile::codec::{Bare, Full, Seconds};
use dogpile::{HashTtl, Memory, Msgpack, Raw, Redis, RedisLock, testing};

use crate::support::Server;
#[cfg(feature = "driver")]
use crate::support::speak_resp3;

#[test]
fn memory() {
    testing::backend(&Memory::new(256 << 20), "suite:");
}

#[test]
fn redis() {
    let server = Server::start();
    testing::backend(&server.redis(), "suite:");
    let one = Redis::builder(&server.url()).connections(1).hash_ttl(HashTtl::Always).build().unwrap();
    testing::backend(&one, "another:");
    for (at, expiry) in fields_of_their_own(&server).into_iter().enumerate() {
        let redis = Redis::builder(&server.url()).hash_ttl(expiry).build().unwrap();
        testing::backend(&redis, &format!("own{at}:"));
        let discard = || RedisLock::new().on_lease_lost(dogpile::lock::OnLeaseLost::Discard);
        testing::lock(&redis, &discard(), &discard(), &format!("own{at}:"));
    }
}

/// Each field has a TTL of its own: by stamps of each length, and by the server where it can.
fn fields_of_their_own(server: &Server) -> Vec<HashTtl> {
    let stamped = |seconds| HashTtl::Stamped { longest: Duration::from_secs(seconds) };
    let by_server = dogpile::redis::ServerInfo::of(&server.redis()).unwrap().per_field(Duration::from_secs(3600));
    vec![stamped(50), stamped(3600), stamped(86_400), stamped(u64::MAX), by_server]
}

#[test]
fn redis_resp2() {
    // A server that does not know HELLO speaks RESP2.
    let server = Server::with(&["--rename-command", "HELLO", ""]);
    testing::backend(&server.redis(), "suite:");
    testing::lock(&server.redis(), &RedisLock::new(), &RedisLock::new(), "lock:");
    let stamped = Redis::builder(&server.url()).hash_ttl(STAMPED).build().unwrap();
    testing::backend(&stamped, "stamped:");
    testing::lock(&stamped, &RedisLock::new(), &RedisLock::new(), "stamped:");
}

const STAMPED: HashTtl = HashTtl::Stamped { longest: Duration::from_secs(3600) };

#[test]
#[cfg(unix)]
fn redis_over_a_unix_socket() {
    let server = Server::start();
    let redis = Redis::open(&format!("unix://{}", server.socket().display())).unwrap();
    testing::backend(&redis, "suite:");
}

/// What the `redis` crate is told to speak: it does not find out what the server can.
#[cfg(feature = "driver")]
fn protocols() -> &'static [&'static str] {
    if speak_resp3() { &["resp2", "resp3"] } else { &["resp2"] }
}

#[test]
#[cfg(feature = "driver")]
fn driver() {
    let server = Server::start();
    for protocol in protocols() {
        let client = redis::Client::open(format!("{}/?protocol={protocol}", server.url())).unwrap();
        let driver = dogpile::redis::Driver::new(4, move || client.get_connection());
        testing::backend(&driver, &format!("{protocol}:"));
        testing::lock(&driver, &RedisLock::new(), &RedisLock::new(), &format!("{protocol}:"));
        let client = redis::Client::open(format!("{}/?protocol={protocol}", server.url())).unwrap();
        let stamped = dogpile::redis::Driver::new(4, move || client.get_connection()).hash_ttl(STAMPED);
        testing::backend(&stamped, &format!("stamped, {protocol}:"));
    }
}

#[test]
fn redis_lock() {
    let server = Server::start();
    let lock = || RedisLock::new().lease(Duration::from_secs(30));
    testing::lock(&server.redis(), &lock(), &lock(), "lock:");
    let discard = || lock().prefix("_lock").on_lease_lost(dogpile::lock::OnLeaseLost::Discard);
    testing::lock(&server.redis(), &discard(), &discard(), "lock:");
}

#[test]
fn codecs() {
    let texts = ["".to_string(), "mellifluous".into(), "日本語".into(), "x".repeat(70_000)];
    testing::codec(&Msgpack::<Seconds>::new(), &texts);
    testing::codec(&Msgpack::<Full>::new(), &[Some(1_i64), None, Some(i64::MIN)]);
    testing::codec(&Msgpack::<Bare>::new(), &[vec![(1_u8, "a".to_string())], vec![]]);
    testing::codec(&Raw, &texts);
    testing::codec(&Raw, &[Some(15_i64), None]);
    #[cfg(feature = "json")]
    {
        testing::codec(&dogpile::Json::<Seconds>::new(), &texts);
        testing::codec(&dogpile::Json::<Full>::new(), &[1.5_f64, 0.1, 1e300]);
    }
    #[cfg(feature = "serde")]
    testing::codec(&dogpile::Serde::<Full>::new(), &[vec![(1_u8, "a".to_string())], vec![]]);
}

/// The same for callers that are tasks, of one thread and of several.
#[cfg(feature = "tokio")]
mod tasks {
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtimes() -> [Runtime; 2] {
        let several = Builder::new_multi_thread().worker_threads(2).enable_all().build();
        [Builder::new_current_thread().enable_all().build(), several].map(Result::unwrap)
    }

    #[test]
    fn memory() {
        for runtime in runtimes() {
            testing::backend_async(&Memory::new(256 << 20), &runtime, "suite:");
        }
    }

    #[test]
    fn redis() {
        let server = Server::start();
        let redis = server.redis();
        for (at, runtime) in runtimes().iter().enumerate() {
            testing::backend_async(&redis, runtime, &format!("suite{at}:"));
            testing::lock_async(&redis, &RedisLock::new(), &RedisLock::new(), runtime, &format!("lock{at}:"));
        }
        let one = Redis::builder(&server.url()).in_flight(1).hash_ttl(HashTtl::Always).build().unwrap();
        testing::backend_async(&one, &runtimes()[1], "another:");
        for (at, expiry) in fields_of_their_own(&server).into_iter().enumerate() {
            let redis = Redis::builder(&server.url()).hash_ttl(expiry).build().unwrap();
            testing::backend_async(&redis, &runtimes()[1], &format!("own{at}:"));
        }
    }

    #[test]
    fn redis_resp2() {
        let server = Server::with(&["--rename-command", "HELLO", ""]);
        testing::backend_async(&server.redis(), &runtimes()[0], "suite:");
        testing::lock_async(&server.redis(), &RedisLock::new(), &RedisLock::new(), &runtimes()[1], "lock:");
    }

    #[test]
    #[cfg(feature = "driver")]
    fn driver() {
        let server = Server::start();
        let runtime = &runtimes()[1];
        for protocol in super::protocols() {
            let client = redis::Client::open(format!("{}/?protocol={protocol}", server.url())).unwrap();
            let connection = runtime.block_on(client.get_multiplexed_async_connection()).unwrap();
            let driver = dogpile::redis::AsyncDriver::new(connection);
            testing::backend_async(&driver, runtime, &format!("{protocol}:"));
            testing::lock_async(&driver, &RedisLock::new(), &RedisLock::new(), runtime, &format!("{protocol}:"));
            let connection = runtime.block_on(client.get_multiplexed_async_connection()).unwrap();
            let stamped = dogpile::redis::AsyncDriver::new(connection).hash_ttl(STAMPED);
            testing::backend_async(&stamped, runtime, &format!("stamped, {protocol}:"));

            let manager = runtime.block_on(client.get_connection_manager()).unwrap();
            testing::backend_async(
                &dogpile::redis::AsyncDriver::new(manager),
                runtime,
                &format!("manager, {protocol}:"),
            );
        }
    }

    #[test]
    #[cfg(feature = "driver")]
    fn a_manager_connects_again() {
        let mut server = Server::start();
        let client = redis::Client::open(server.url()).unwrap();
        runtimes()[0].block_on(async {
            let manager = client.get_connection_manager().await.unwrap();
            let region = dogpile::Region::builder(dogpile::redis::AsyncDriver::new(manager)).build().unwrap();
            region.set_async("k", &1_u64).await.unwrap();
            server.restart();
            let created = region.get_or_create_async("k", async || Ok::<_, std::convert::Infallible>(2_u64)).await;
            assert_eq!(created.unwrap(), 2);
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while region.set_async("k", &3_u64).await.is_err() {
                assert!(std::time::Instant::now() < deadline, "it never connected again");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(region.get_async("k").await.unwrap(), Some(3_u64));
        });
    }

    #[test]
    #[cfg(unix)]
    fn redis_over_a_unix_socket() {
        let server = Server::start();
        let redis = Redis::open(&format!("unix://{}", server.socket().display())).unwrap();
        testing::backend_async(&redis, &runtimes()[1], "suite:");
    }
}
