//! Promises on allocations of tasks, whose connection runs on the same thread, and is counted with them.

use std::convert::Infallible;

use bytes::Bytes;
use dogpile::codec::Seconds;
use dogpile::keymap::Prefix;
use dogpile::{AsyncBackend, AsyncLock, Cluster, Key, LocalLock, Memory, Msgpack, RedisLock, Region};
use tokio::runtime::{Builder, Runtime};

use super::ALLOCATIONS;
use super::support::Server;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Allocations of a thousand calls, once a hundred have warmed the buffers up.
async fn allocations(mut call: impl AsyncFnMut()) -> usize {
    for _ in 0..100 {
        call().await;
    }
    let before = ALLOCATIONS.get();
    for _ in 0..1000 {
        call().await;
    }
    ALLOCATIONS.get() - before
}

async fn nothing_on<B: AsyncBackend, L: AsyncLock<B>>(region: &Region<B, Msgpack<Seconds>, L, Prefix>) {
    let value = Bytes::from_static(&[7; 64]);
    for key in [Key::from("plain"), Key::from(("hash", "field"))] {
        let set = allocations(async || region.set_async(key, &value).await.unwrap()).await;
        assert_eq!(set, 0, "set of {key}");
        let get = allocations(async || assert_eq!(region.get_async(key).await.unwrap().as_ref(), Some(&value))).await;
        assert_eq!(get, 0, "get of {key}");
        let create = async || -> Result<Bytes, Infallible> { panic!("it is there") };
        let hit = allocations(async || assert_eq!(region.get_or_create_async(key, create).await.unwrap(), value)).await;
        assert_eq!(hit, 0, "get_or_create hit of {key}");
    }
    let miss = async || assert!(region.get_async::<Bytes>("no such key").await.unwrap().is_none());
    assert_eq!(allocations(miss).await, 0, "get of what is not there");
}

#[test]
fn one_task() {
    let server = Server::start();
    let memory = Region::builder(Memory::new(64 << 20)).keys(Prefix::new("app:")).build().unwrap();
    let redis = Region::builder(server.redis()).keys(Prefix::new("app:"));
    let redis = redis.lock(RedisLock::new()).build().unwrap();
    let server = super::cluster_server();
    let cluster = Region::builder(Cluster::open([server.url()]).unwrap()).keys(Prefix::new("app:"));
    let cluster = cluster.lock(RedisLock::new()).build().unwrap();
    runtime().block_on(async {
        nothing_on(&memory).await;
        nothing_on(&redis).await;
        nothing_on(&cluster).await;
    });
}

/// What tasks that share a connection allocate together, for each of so many hits or writes.
#[test]
fn many_tasks() {
    const TIMES: usize = 200;
    let server = Server::start();
    let redis = dogpile::Redis::open(&server.url()).unwrap();
    let region = Region::builder(redis).lock(LocalLock).build().unwrap();
    runtime().block_on(async {
        for tasks in [64, 256] {
            let work = |times: usize| {
                let region = region.clone();
                async move {
                    let each = |task: usize| {
                        let region = region.clone();
                        tokio::spawn(async move {
                            let value = Bytes::from(vec![7; 64]);
                            region.set_async(task, &value).await.unwrap();
                            for _ in 0..times {
                                assert_eq!(region.get_async(task).await.unwrap().as_ref(), Some(&value));
                            }
                        })
                    };
                    let tasks: Vec<_> = (0..tasks).map(each).collect();
                    let before = ALLOCATIONS.get();
                    for task in tasks {
                        task.await.unwrap();
                    }
                    ALLOCATIONS.get() - before
                }
            };
            work(10).await;
            // Both make the same tasks, so that only the operations differ.
            let (few, many) = (work(TIMES).await, work(2 * TIMES).await);
            let each = many.saturating_sub(few) as f64 / (tasks * TIMES) as f64;
            assert!(each <= 0.1, "{tasks} tasks: {each} a GET");
        }
    });
}
