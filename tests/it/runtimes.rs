//! The connections of tasks when runtimes come and go, run side by side, or rest, and when their handle is dropped.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use dogpile::{ErrorKind, Redis, RedisLock, Region};
use tokio::time::sleep;

use crate::support::{Server, eventually};
use crate::tasks::{comes, multi, no_locks_stay, single, soon};

/// How many connections a server has.
fn connections(server: &Server) -> usize {
    let clients = server.ask(&["CLIENT", "LIST", "TYPE", "normal"]);
    // One of them is the one that asks.
    clients.lines().filter(|line| line.starts_with("id=")).count() - 1
}

fn locked(server: &Server) -> Region<Redis, dogpile::Msgpack, RedisLock> {
    Region::builder(server.redis()).lock(RedisLock::new()).build().unwrap()
}

#[test]
fn runtimes_come_and_go() {
    let server = Server::start();
    let region = locked(&server);
    let connected = || connections(&server);
    for round in 0..10_u64 {
        let runtime = if round % 2 == 0 { single() } else { multi() };
        runtime.block_on(async {
            for key in 0..3 {
                let create = async || Ok::<_, Infallible>(key);
                assert_eq!(soon("a miss", region.get_or_create_async(key, create)).await.unwrap(), key);
            }
        });
        if round % 3 == 0 {
            // Requests are under way when it ends.
            for key in 0..20_u64 {
                let region = region.clone();
                runtime.spawn(async move { while region.get_async::<u64>(key).await.is_ok() {} });
            }
        }
        drop(runtime);
        eventually("its connection is closed", || connected() == 0);
    }
    // Its own connection asks.
    assert_eq!(region.get(1).unwrap(), Some(1_u64));
}

#[test]
fn runtimes_at_the_same_time() {
    let server = Server::start();
    let region = locked(&server);
    // This one has connected, and nobody drives it meanwhile.
    let idle = single();
    idle.block_on(region.set_async("idle", &1_u64)).unwrap();
    // Left with a request under way.
    idle.block_on(async {
        let mut left = Box::pin(region.get_async::<u64>("idle"));
        assert!(poll_fn(|context| Poll::Ready(left.as_mut().poll(context))).await.is_pending());
    });
    let calls = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (region, calls) = (&region, &calls);
            scope.spawn(move || {
                let runtime = if thread % 2 == 0 { single() } else { multi() };
                runtime.block_on(async {
                    for key in 0..20_u64 {
                        let create = async || {
                            calls.fetch_add(1, Ordering::SeqCst);
                            sleep(Duration::from_millis(1)).await;
                            Ok::<_, Infallible>(key)
                        };
                        assert_eq!(soon("a miss", region.get_or_create_async(key, create)).await.unwrap(), key);
                    }
                });
            });
        }
    });
    assert_eq!(calls.into_inner(), 20);
    assert_eq!(idle.block_on(soon("who rested", region.get_async("idle"))).unwrap(), Some(1_u64));
    idle.block_on(no_locks_stay(&server));
}

#[test]
fn futures_may_be_dropped_outside_of_any_runtime() {
    let server = Server::start();
    for rests in [false, true] {
        let region = locked(&server);
        let idle = single();
        if rests {
            // Another runtime has a connection, over which nothing goes now.
            idle.block_on(region.set_async("idle", &1_u64)).unwrap();
        }
        let runtime = multi();
        for (polls, key) in (0..8).zip(100 * u64::from(rests)..) {
            let create = async || {
                sleep(Duration::from_millis(2)).await;
                Ok::<_, Infallible>(1_u64)
            };
            let mut future = Box::pin(region.get_or_create_async(key, create));
            let mut polled = 0;
            runtime.block_on(poll_fn(|context| {
                polled += 1;
                if polled > polls || future.as_mut().poll(context).is_ready() {
                    return Poll::Ready(());
                }
                if polled == polls { Poll::Ready(()) } else { Poll::Pending }
            }));
            drop(future);
            runtime.block_on(async {
                let again = region.get_or_create_async(key, async || Ok::<_, Infallible>(1));
                assert_eq!(soon(&format!("after {polls} polls"), again).await.unwrap(), 1_u64);
                no_locks_stay(&server).await;
            });
        }
    }
    // Polled outside of one, it fails, and says why.
    let region = locked(&server);
    let mut future = pin!(region.get_async::<u64>("k"));
    let Poll::Ready(got) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) else { panic!() };
    assert_eq!(got.unwrap_err().kind(), ErrorKind::Config);
}

#[test]
fn the_handle_may_be_dropped_while_requests_are_under_way() {
    let server = Server::start();
    let connected = || connections(&server);
    for runtime in [single(), multi()] {
        runtime.block_on(async {
            for round in 0..20_u64 {
                let region = locked(&server);
                region.set_async("k", &1_u64).await.unwrap();
                let tasks: Vec<_> = (0..20_u64)
                    .map(|key| {
                        let region = region.clone();
                        tokio::spawn(async move {
                            region
                                .get_or_create_async(key, async || {
                                    sleep(Duration::from_millis(key % 4)).await;
                                    Ok::<_, Infallible>(key)
                                })
                                .await
                        })
                    })
                    .collect();
                drop(region);
                sleep(Duration::from_micros(round * 200)).await;
                for (task, key) in tasks.into_iter().zip(0..) {
                    if key % 2 == 0 {
                        task.abort();
                    } else {
                        assert_eq!(soon("a task", task).await.unwrap().unwrap(), key);
                    }
                }
            }
            no_locks_stay(&server).await;
            comes("all connections are closed", || connected() == 0).await;
        });
    }
}
