//! Callers that are tasks: futures that are dropped wherever they wait, many tasks, and tasks and threads together.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dogpile::{AsyncBackend, AsyncLock, ErrorKind, GetError, LocalLock, Memory, Msgpack, Redis, RedisLock, Region};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::region::fine;
use crate::support::Server;

/// Far less than a lease takes to end by itself, and far more than a machine with other work needs.
pub const SOON: Duration = Duration::from_secs(5);

pub type Of<B, L> = Region<B, Msgpack, L>;

pub fn single() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub fn multi() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap()
}

/// What comes soon, or the test fails.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what}: it hangs"))
}

/// Waits until something is so, and lets other tasks work meanwhile.
pub async fn comes(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "it never came that {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

pub async fn no_locks_stay(server: &Server) {
    comes("no lock is left", || server.ask(&["KEYS", "_lok.*"]) == "*0").await;
}

/// A key that was not used before.
pub fn new_key() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1_000_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A creator that waits a few times.
pub async fn create(value: u64) -> Result<u64, Infallible> {
    tokio::task::yield_now().await;
    sleep(Duration::from_millis(1)).await;
    tokio::task::yield_now().await;
    Ok(value)
}

pub async fn create_many(keys: Vec<&u64>) -> Result<Vec<u64>, Infallible> {
    create(0).await?;
    Ok(keys.iter().map(|key| **key * 10).collect())
}

pub async fn anew_is<B: AsyncBackend, L: AsyncLock<B>>(region: &Of<B, L>, key: u64, value: u64) {
    assert_eq!(soon("another call", region.get_or_create_async(key, async || fine(value))).await.unwrap(), value);
}

#[test]
fn ten_thousand_tasks_want_one_missing_key() {
    let server = Server::start();
    for runtime in [single(), multi()] {
        let locked = Region::builder(server.redis()).lock(RedisLock::new()).build().unwrap();
        runtime.block_on(ten_thousand(Region::builder(server.redis()).build().unwrap()));
        runtime.block_on(ten_thousand(locked));
        runtime.block_on(ten_thousand(Region::builder(Memory::new(1 << 20)).build().unwrap()));
    }
}

async fn ten_thousand<B, L>(region: Of<B, L>)
where
    B: AsyncBackend + 'static,
    L: AsyncLock<B> + 'static,
    L::AsyncGuard: 'static,
{
    let (key, calls) = (new_key(), Arc::new(AtomicUsize::new(0)));
    let tasks: Vec<_> = (0..10_000)
        .map(|_| {
            let (region, calls) = (region.clone(), Arc::clone(&calls));
            tokio::spawn(async move {
                let create = async || {
                    calls.fetch_add(1, Ordering::SeqCst);
                    sleep(Duration::from_millis(20)).await;
                    fine(15_u64)
                };
                assert_eq!(region.get_or_create_async(key, create).await.unwrap(), 15);
            })
        })
        .collect();
    for task in tasks {
        timeout(Duration::from_secs(30), task).await.expect("it hangs").unwrap();
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    let stats = region.stats();
    assert_eq!((stats.creations, stats.failed_reads, stats.failed_locks, stats.failed_writes), (1, 0, 0, 0));
    assert!(!region.is_locked_async(key).await.unwrap());
}

#[test]
fn ten_thousand_tasks_share_sixteen_places() {
    let server = Server::start();
    for runtime in [single(), multi()] {
        runtime.block_on(async {
            // Whoever waits for room waits as long as connecting and answering may take: much longer than it does here.
            let redis = Redis::builder(&server.url()).in_flight(16).response_timeout(Duration::from_secs(20));
            let region = Region::builder(redis.build().unwrap()).build().unwrap();
            let entries: Vec<(u64, u64)> = (0..10_000).map(|key| (key, key * 3)).collect();
            region.set_many_async(&entries).await.unwrap();
            let tasks: Vec<_> = (0..10_000_u64)
                .map(|key| {
                    let region = region.clone();
                    tokio::spawn(async move {
                        if key % 7 == 0 {
                            // Gives up while it waits for room, or for its reply.
                            let _ = timeout(Duration::from_micros(key), region.get_async::<u64>(key)).await;
                        }
                        assert_eq!(region.get_async(key).await.unwrap(), Some(key * 3));
                    })
                })
                .collect();
            for task in tasks {
                timeout(Duration::from_secs(30), task).await.expect("it hangs").unwrap();
            }
        });
    }
}

#[test]
fn one_of_threads_and_tasks_creates() {
    let server = Server::start();
    let runtime = multi();
    let locked = || Region::builder(server.redis()).lock(RedisLock::new()).build().unwrap();
    let (region, other) = (locked(), locked());
    let memory = Region::builder(Memory::new(1 << 20)).build().unwrap();
    for round in 0..10_u64 {
        let calls = Arc::new(AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for at in 0..16 {
                let (region, memory) = (if at % 4 < 2 { &region } else { &other }, &memory);
                let (called, calls) = (Arc::clone(&calls), &calls);
                if at % 2 == 0 {
                    let create = || {
                        calls.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(5));
                        fine(round)
                    };
                    scope.spawn(move || {
                        assert_eq!(region.get_or_create(round, create).unwrap(), round);
                        assert_eq!(memory.get_or_create(round, create).unwrap(), round);
                    });
                } else {
                    let (region, memory) = (region.clone(), memory.clone());
                    let task = runtime.spawn(async move {
                        let create = || async {
                            called.fetch_add(1, Ordering::SeqCst);
                            sleep(Duration::from_millis(5)).await;
                            fine(round)
                        };
                        assert_eq!(region.get_or_create_async(round, create).await.unwrap(), round);
                        assert_eq!(memory.get_or_create_async(round, create).await.unwrap(), round);
                    });
                    let runtime = &runtime;
                    scope.spawn(move || runtime.block_on(task).unwrap());
                }
            }
        });
        assert_eq!(calls.load(Ordering::SeqCst), 2, "once in each backend");
    }
    runtime.block_on(no_locks_stay(&server));
}

#[test]
fn a_creator_that_fails_hands_on_to_threads_and_tasks() {
    let runtime = multi();
    let region = Region::builder(Memory::new(1 << 20)).build().unwrap();
    for round in 0..20_u64 {
        std::thread::scope(|scope| {
            let (began, begin) = std::sync::mpsc::channel();
            let (region, runtime) = (&region, &runtime);
            let task_fails = round % 2 == 0;
            if task_fails {
                let region = region.clone();
                runtime.spawn(async move {
                    let create = async || {
                        began.send(()).unwrap();
                        sleep(Duration::from_millis(5)).await;
                        Err::<u64, _>("no")
                    };
                    assert!(region.get_or_create_async(round, create).await.is_err());
                });
            } else {
                scope.spawn(move || {
                    let create = || {
                        began.send(()).unwrap();
                        std::thread::sleep(Duration::from_millis(5));
                        Err::<u64, _>("no")
                    };
                    assert!(region.get_or_create(round, create).is_err());
                });
            }
            begin.recv().unwrap();
            let begun = Instant::now();
            if task_fails {
                assert_eq!(region.get_or_create(round, || fine(round)).unwrap(), round);
            } else {
                let value = runtime.block_on(region.get_or_create_async(round, async || fine(round)));
                assert_eq!(value.unwrap(), round);
            }
            assert!(begun.elapsed() < SOON);
        });
    }
}

#[test]
fn a_creator_that_panics_or_is_aborted_releases() {
    let server = Server::start();
    for runtime in [single(), multi()] {
        runtime.block_on(async {
            let region = Region::builder(server.redis()).lock(RedisLock::new()).build().unwrap();
            let panics = region.clone();
            let create = async || -> Result<u64, Infallible> { panic!("as it should") };
            let task = tokio::spawn(async move { panics.get_or_create_async("k", create).await.is_ok() });
            assert!(task.await.unwrap_err().is_panic());
            anew_is(&region, 1, 1).await;
            no_locks_stay(&server).await;
            let (sleeps, began) = (region.clone(), Arc::new(Notify::new()));
            let begins = Arc::clone(&began);
            let task = tokio::spawn(async move {
                let create = async || {
                    begins.notify_one();
                    std::future::pending::<Result<u64, Infallible>>().await
                };
                sleeps.get_or_create_async(2, create).await.is_ok()
            });
            began.notified().await;
            assert!(region.is_locked_async(2).await.unwrap());
            task.abort();
            anew_is(&region, 2, 2).await;
            no_locks_stay(&server).await;
            assert_eq!(region.stats().failed_creations, 2);
            region.delete_many_async(&[1, 2]).await.unwrap();
        });
    }
}

/// The checks are made by the compiler.
#[test]
fn futures_of_all_methods_may_change_threads() {
    fn goes<F: Future + Send>(future: F) -> F {
        future
    }
    fn moves<F: Future<Output: Send> + Send + 'static>(runtime: &Runtime, future: F) -> F::Output {
        runtime.block_on(runtime.spawn(future)).unwrap()
    }
    let server = Server::start();
    let runtime = multi();
    let region = Region::builder(server.redis()).lock(RedisLock::new()).build().unwrap();
    let at = region.clone();
    moves(&runtime, async move {
        let keys = vec![String::from("a"), String::from("b")];
        goes(at.set_async("a", &1_u64)).await.unwrap();
        goes(at.set_many_async(&[("b", 2_u64)])).await.unwrap();
        assert_eq!(goes(at.get_async(&keys[0])).await.unwrap(), Some(1_u64));
        assert_eq!(goes(at.get_entry_async::<u64>("b")).await.unwrap().unwrap().value, 2);
        assert_eq!(goes(at.get_many_async(&keys)).await.unwrap(), [Some(1_u64), Some(2)]);
        assert!(!goes(at.is_locked_async("a")).await.unwrap());
        goes(at.delete_async("a")).await.unwrap();
        goes(at.delete_many_async(&keys)).await.unwrap();
        assert_eq!(goes(at.get_or_create_async(("h", "f"), || create(3))).await.unwrap(), 3);
        assert_eq!(goes(at.get_or_refresh_async("c", || create(4))).await.unwrap(), 4);
        goes(at.backend().ping_async()).await.unwrap();
        let call = at.with_ttl(Duration::from_secs(60)).store_if(|value: &u64| *value > 5);
        assert_eq!(goes(call.get_or_create_async("d", || create(5))).await.unwrap(), 5);
        assert_eq!(goes(call.get_async::<u64>("d")).await.unwrap(), None);
    });
    let at = region.clone();
    moves(&runtime, async move {
        let more = String::from("10");
        let again = more.clone();
        let add = async move |n: &u64| Ok::<_, Infallible>(n + more.parse::<u64>().unwrap());
        let sum = at.async_function("sum", add);
        assert_eq!(goes(sum.call_async(&7)).await.unwrap(), 17);
        assert_eq!(goes(sum.refresh_async(&7)).await.unwrap(), 17);
        goes(sum.set_async(&7, &18)).await.unwrap();
        assert_eq!(goes(sum.get_async(&7)).await.unwrap(), Some(18));
        goes(sum.invalidate_async(&7)).await.unwrap();
        let sums = at.async_function_many("sum", async move |all: &[&u64]| {
            Ok::<_, Infallible>(all.iter().map(|n| **n + again.parse::<u64>().unwrap()).collect())
        });
        assert_eq!(goes(sums.call_async(&[1, 2, 1])).await.unwrap(), [11, 12, 11]);
        assert_eq!(goes(sums.refresh_async(&[1, 2])).await.unwrap(), [11, 12]);
        goes(sums.set_async(&[(1, 5)])).await.unwrap();
        assert_eq!(goes(sums.get_async(&[1, 2, 3])).await.unwrap(), [Some(5), Some(12), None]);
        goes(sums.invalidate_async(&[1, 2])).await.unwrap();
    });
    let at = region.clone();
    let values: Vec<u64> = moves(&runtime, async move {
        let keys: Vec<u64> = vec![1, 2, 1];
        let factor = String::from("10");
        let create = async |missing: Vec<&u64>| {
            sleep(Duration::from_millis(1)).await;
            Ok::<_, Infallible>(missing.iter().map(|key| **key * factor.parse::<u64>().unwrap()).collect())
        };
        at.get_or_create_many_async(&keys, create).await.unwrap()
    });
    assert_eq!(values, [10, 20, 10]);
}

#[test]
fn creators_that_stay_in_one_thread_may_hold_what_cannot_leave_it() {
    let server = Server::start();
    let runtime = single();
    let local = tokio::task::LocalSet::new();
    let region = Rc::new(Region::builder(server.redis()).lock(RedisLock::new()).build().unwrap());
    local.block_on(&runtime, async {
        let tasks: Vec<_> = (0..10)
            .map(|_| {
                let (region, value) = (Rc::clone(&region), Rc::new(7_u64));
                tokio::task::spawn_local(async move {
                    let create = async || {
                        let value = Rc::clone(&value);
                        sleep(Duration::from_millis(2)).await;
                        Ok::<u64, Rc<str>>(*value)
                    };
                    assert_eq!(region.get_or_create_async("k", create).await.unwrap(), 7);
                    let create = async |missing: Vec<&u64>| {
                        sleep(Duration::from_millis(2)).await;
                        Ok::<_, Rc<str>>(missing.iter().map(|key| **key + *value).collect())
                    };
                    assert_eq!(region.get_or_create_many_async(&[1, 2], create).await.unwrap(), [8, 9]);
                })
            })
            .collect();
        for task in tasks {
            soon("a local task", task).await.unwrap();
        }
    });
    assert_eq!(region.stats().creations, 3);
}

#[test]
fn batches_of_tasks_create_each_key_once() {
    let server = Server::start();
    let runtime = multi();
    let region = || Region::builder(server.redis()).lock(RedisLock::new()).build().unwrap();
    for regions in [[region(), region()], {
        let same = region();
        [same.clone(), same]
    }] {
        let first = new_key() * 1_000;
        let (calls, present) = (Arc::new(AtomicUsize::new(0)), first + 3);
        regions[0].set(present, &(present * 10)).unwrap();
        let tasks: Vec<_> = (0..8_u64)
            .map(|at| {
                let (region, calls) = (regions[at as usize % 2].clone(), Arc::clone(&calls));
                runtime.spawn(async move {
                    for round in 0..5 {
                        // Each in another order, which must not make them wait for each other.
                        let keys: Vec<u64> = (0..10).map(|key| first + round * 5 + (key * 3 + at) % 10).collect();
                        let calls = Arc::clone(&calls);
                        let create = async |missing: Vec<&u64>| {
                            assert!(!missing.contains(&&present));
                            calls.fetch_add(missing.len(), Ordering::SeqCst);
                            create_many(missing).await
                        };
                        let values = region.get_or_create_many_async(&keys, create).await.unwrap();
                        assert_eq!(values, keys.iter().map(|key| key * 10).collect::<Vec<_>>());
                    }
                })
            })
            .collect();
        for task in tasks {
            runtime.block_on(soon("a batch", task)).unwrap();
        }
        assert_eq!(calls.load(Ordering::SeqCst), 29, "of thirty keys, one was there");
    }
    runtime.block_on(no_locks_stay(&server));
}

#[test]
fn patience_of_tasks_ends() {
    async fn impatient<B, L>(region: Of<B, L>)
    where
        B: AsyncBackend + 'static,
        L: AsyncLock<B> + 'static,
        L::AsyncGuard: 'static,
    {
        let (leads, began) = (region.clone(), Arc::new(Notify::new()));
        let (begins, key) = (Arc::clone(&began), new_key());
        let leads = tokio::spawn(async move {
            let create = async || {
                begins.notify_one();
                std::future::pending::<Result<u64, Infallible>>().await
            };
            leads.get_or_create_async(key, create).await
        });
        began.notified().await;
        let begun = Instant::now();
        let error = soon("one", region.get_or_create_async(key, || create(1))).await.unwrap_err();
        assert!(matches!(&error, GetError::Cache(error) if error.kind() == ErrorKind::Timeout), "{error}");
        assert!(begun.elapsed() >= Duration::from_millis(60), "{:?}", begun.elapsed());
        // What can be created is, before this one waits for the rest.
        let keys = [new_key(), key, new_key()];
        let error = soon("a batch", region.get_or_create_many_async(&keys, create_many)).await.unwrap_err();
        assert!(matches!(&error, GetError::Cache(error) if error.kind() == ErrorKind::Timeout), "{error}");
        assert_eq!(region.get_async(keys[0]).await.unwrap(), Some(keys[0] * 10));
        leads.abort();
        anew_is(&region, key, 2).await;
    }
    let server = Server::start();
    for runtime in [single(), multi()] {
        let patience = Duration::from_millis(60);
        let redis = || Region::builder(server.redis()).wait_timeout(patience);
        runtime.block_on(impatient(redis().lock(RedisLock::new()).build().unwrap()));
        runtime.block_on(impatient(redis().lock(LocalLock).build().unwrap()));
        runtime.block_on(impatient(Region::builder(Memory::new(1 << 20)).wait_timeout(patience).build().unwrap()));
        runtime.block_on(no_locks_stay(&server));
    }
}
