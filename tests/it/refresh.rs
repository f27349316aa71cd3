//! Values that are created anew in the background, of threads and of tasks, while all go on with the stale ones.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};

use dogpile::codec::Seconds;
use dogpile::freshness::{Freshness, Invalidation, LocalInvalidation};
use dogpile::keymap::Identity;
use dogpile::region::ThreadJob;
use dogpile::{Clock, Invalidate, Memory, Msgpack, Redis, RedisLock, Region, RegionBuilder, Timestamp};

use crate::region::{SECOND, clocked, fine};
use crate::support::{Server, eventually};

type Leased = RegionBuilder<Redis, Msgpack<Seconds>, RedisLock, Identity, LocalInvalidation>;

/// Regions over a server, with leases and a clock in common.
fn leased(server: &Server) -> (impl Fn() -> Leased, Clock) {
    let clock = Clock::manual(Timestamp::from_micros(1_699_999_999_999_999));
    let (redis, known) = (server.redis(), clock.clone());
    let builder = move || {
        let builder = Region::builder(redis.clone()).lock(RedisLock::new()).clock(known.clone());
        builder.stale_after(10 * SECOND)
    };
    (builder, clock)
}

#[test]
fn a_stale_value_is_returned_at_once_and_one_creates() {
    let server = Server::start();
    let (builder, clock) = leased(&server);
    let regions = [builder().build().unwrap(), builder().build().unwrap()];
    regions[0].set("k", &1_u64).unwrap();
    clock.advance(10 * SECOND);
    let (calls, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(2)));
    std::thread::scope(|scope| {
        for at in 0..8 {
            let (region, calls, go) = (&regions[at % 2], Arc::clone(&calls), Arc::clone(&go));
            scope.spawn(move || {
                for _ in 0..20 {
                    let (calls, go) = (Arc::clone(&calls), Arc::clone(&go));
                    let value = region.get_or_refresh("k", move || {
                        calls.fetch_add(1, Ordering::SeqCst);
                        go.wait();
                        fine(2_u64)
                    });
                    assert_eq!(value.unwrap(), 1);
                }
            });
        }
    });
    // All have theirs, and the creator waits for us.
    eventually("one creates", || calls.load(Ordering::SeqCst) == 1);
    assert_eq!(server.ask(&["EXISTS", "_lok.k"]), ":1");
    assert!(regions.iter().all(|region| region.is_locked("k").unwrap()));
    go.wait();
    eventually("the new value is there", || regions[1].get("k").unwrap() == Some(2_u64));
    eventually("the lock is released", || !regions.iter().any(|region| region.is_locked("k").unwrap()));
    assert_eq!(server.ask(&["KEYS", "_lok.*"]), "*0");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(regions[0].get_or_refresh("k", || -> Result<u64, Infallible> { panic!("it is fresh") }).unwrap(), 2);
    assert_eq!(regions.iter().map(|region| region.stats().stale_hits).sum::<u64>(), 160);
}

#[test]
fn without_a_value_its_caller_creates() {
    let region = Region::builder(Memory::new(1 << 20)).thread_runner(|_| panic!("nothing is stale")).build().unwrap();
    let here = std::thread::current().id();
    let create = move || {
        assert_eq!(std::thread::current().id(), here);
        fine(1_u64)
    };
    assert_eq!(region.get_or_refresh("k", create).unwrap(), 1);
    assert_eq!(region.get("k").unwrap(), Some(1_u64));
    assert!(region.get_or_refresh("l", || Err::<u64, _>("no")).is_err());
}

#[test]
fn a_creator_that_fails_or_panics_in_the_background_lets_the_next_one_try() {
    let server = Server::start();
    let (builder, clock) = leased(&server);
    let region = builder().build().unwrap();
    region.set("k", &1_u64).unwrap();
    clock.advance(10 * SECOND);
    for panics in [false, true] {
        let create = move || if panics { panic!("as it should") } else { Err::<u64, _>("no") };
        assert_eq!(region.get_or_refresh("k", create).unwrap(), 1);
        eventually("it failed", || region.stats().failed_creations == 1 + u64::from(panics));
        eventually("it released", || !region.is_locked("k").unwrap());
        assert_eq!(server.ask(&["KEYS", "_lok.*"]), "*0");
    }
    assert_eq!(region.get_or_refresh("k", || fine(2_u64)).unwrap(), 1);
    eventually("the new value is there", || region.get("k").unwrap() == Some(2_u64));
}

#[test]
fn runners_may_drop_keep_or_run_their_jobs_at_once() {
    let (sender, jobs) = mpsc::channel::<ThreadJob>();
    let how = Arc::new(AtomicUsize::new(0));
    let known = Arc::clone(&how);
    let (builder, clock) = clocked();
    let region = builder
        .stale_after(10 * SECOND)
        .thread_runner(move |job| match known.load(Ordering::SeqCst) {
            0 => drop(job),
            1 => sender.send(job).unwrap(),
            _ => job(),
        })
        .build()
        .unwrap();
    region.set("k", &1_u64).unwrap();
    clock.advance(10 * SECOND);
    for _ in 0..3 {
        assert_eq!(region.get_or_refresh("k", || -> Result<u64, Infallible> { panic!("is dropped") }).unwrap(), 1);
        assert!(!region.is_locked("k").unwrap(), "who drops the job releases the lead");
    }
    how.store(1, Ordering::SeqCst);
    for kept in [false, true] {
        assert_eq!(region.get_or_refresh("k", || fine(2_u64)).unwrap(), 1);
        assert!(region.is_locked("k").unwrap());
        assert_eq!(region.get_or_refresh("k", || fine(3_u64)).unwrap(), 1);
        let job = jobs.try_recv().unwrap();
        assert!(jobs.try_recv().is_err(), "one job at a time");
        if kept {
            std::thread::spawn(job).join().unwrap();
            assert_eq!(region.get("k").unwrap(), Some(2_u64));
        } else {
            drop(job);
        }
        assert!(!region.is_locked("k").unwrap());
    }
    clock.advance(10 * SECOND);
    how.store(2, Ordering::SeqCst);
    assert_eq!(region.get_or_refresh("k", || fine(4_u64)).unwrap(), 2);
    assert_eq!(region.get("k").unwrap(), Some(4_u64));
}

#[test]
fn what_is_over_the_most_threads_is_tried_again() {
    let (builder, clock) = clocked();
    let region = builder.stale_after(10 * SECOND).build().unwrap();
    let keys: Vec<u64> = (0..40).collect();
    region.set_many(&keys.iter().map(|key| (*key, 1_u64)).collect::<Vec<_>>()).unwrap();
    clock.advance(10 * SECOND);
    let (sender, receiver) = mpsc::channel::<()>();
    let go = Arc::new(Mutex::new(receiver));
    let running = Arc::new(AtomicUsize::new(0));
    for key in &keys {
        let (go, running) = (Arc::clone(&go), Arc::clone(&running));
        let value = region.get_or_refresh(key, move || {
            running.fetch_add(1, Ordering::SeqCst);
            // Until the other end is dropped.
            let _ = go.lock().unwrap().recv();
            fine(2_u64)
        });
        assert_eq!(value.unwrap(), 1);
    }
    eventually("sixteen run", || running.load(Ordering::SeqCst) == 16);
    assert_eq!(keys.iter().filter(|key| region.is_locked(**key).unwrap()).count(), 16);
    drop(sender);
    eventually("all are created", || {
        let values = keys.iter().map(|key| region.get_or_refresh(key, || fine(2_u64)).unwrap());
        values.filter(|value| *value == 2).count() == keys.len()
    });
}

#[test]
fn who_has_no_value_waits_for_a_refresh_under_way() {
    let (builder, clock) = clocked();
    let region = builder.stale_after(10 * SECOND).build().unwrap();
    region.set("k", &1_u64).unwrap();
    clock.advance(10 * SECOND);
    let (began, begin) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let refreshed = region.get_or_refresh("k", move || {
        began.send(()).unwrap();
        let _ = wait.recv();
        fine(2_u64)
    });
    assert_eq!(refreshed.unwrap(), 1);
    begin.recv().unwrap();
    region.delete("k").unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| region.get_or_create("k", || -> Result<u64, Infallible> { panic!("one creates") }));
        crate::creation::a_moment();
        assert!(!waits.is_finished());
        go.send(()).unwrap();
        assert_eq!(waits.join().unwrap().unwrap(), 2);
    });
}

/// Says of everything that it is stale, and the next time that it is fresh.
#[derive(Default)]
struct Fickle(AtomicUsize);

impl Invalidation for Fickle {
    fn judge(&self, _: Timestamp) -> Freshness {
        [Freshness::Stale, Freshness::Fresh][self.0.fetch_add(1, Ordering::SeqCst) % 2]
    }
    fn invalidate(&self, _: Timestamp, _: Invalidate) {}
}

#[test]
fn what_was_stale_may_be_fresh_when_it_is_looked_at_again() {
    // As with a clock that is set back meanwhile.
    let region = Region::builder(Memory::new(1 << 20)).invalidation(Fickle::default()).build().unwrap();
    region.set("k", &1_u64).unwrap();
    assert_eq!(region.get_or_refresh("k", || fine(2_u64)).unwrap(), 1);
}

#[cfg(feature = "tokio")]
mod tasks {
    use std::time::{Duration, Instant};

    use dogpile::LocalLock;
    use dogpile::region::TaskJob;
    use tokio::sync::Notify;
    use tokio::time::sleep;

    use super::*;
    use crate::tasks::{SOON, comes, multi, no_locks_stay, single, soon};

    #[test]
    fn a_stale_value_is_returned_at_once_and_one_creates() {
        for runtime in [single(), multi()] {
            let server = Server::start();
            let (builder, clock) = leased(&server);
            let regions = [builder().build().unwrap(), builder().build().unwrap()];
            runtime.block_on(async {
                regions[0].set_async("k", &1_u64).await.unwrap();
                clock.advance(10 * SECOND);
                let (calls, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
                let tasks: Vec<_> = (0..200)
                    .map(|at| {
                        let (region, calls, go) = (regions[at % 2].clone(), Arc::clone(&calls), Arc::clone(&go));
                        tokio::spawn(async move {
                            let create = || async move {
                                calls.fetch_add(1, Ordering::SeqCst);
                                go.notified().await;
                                fine(2_u64)
                            };
                            assert_eq!(region.get_or_refresh_async("k", create).await.unwrap(), 1);
                        })
                    })
                    .collect();
                for task in tasks {
                    soon("a caller", task).await.unwrap();
                }
                comes("one creates", || calls.load(Ordering::SeqCst) == 1).await;
                assert_eq!(server.ask(&["EXISTS", "_lok.k"]), ":1");
                for region in &regions {
                    assert!(region.is_locked_async("k").await.unwrap());
                }
                go.notify_one();
                soon("the new value", async { while regions[1].get_async("k").await.unwrap() != Some(2_u64) {} }).await;
                no_locks_stay(&server).await;
                soon("the lead", async { while regions[0].is_locked_async("k").await.unwrap() {} }).await;
                assert_eq!(calls.load(Ordering::SeqCst), 1);
                assert_eq!(regions.iter().map(|region| region.stats().stale_hits).sum::<u64>(), 200);
            });
        }
    }

    #[test]
    fn a_creator_that_fails_or_panics_in_the_background_lets_the_next_one_try() {
        let server = Server::start();
        let (builder, clock) = leased(&server);
        let region = builder().build().unwrap();
        multi().block_on(async {
            region.set_async("k", &1_u64).await.unwrap();
            clock.advance(10 * SECOND);
            for panics in [false, true] {
                let create = move || async move {
                    sleep(Duration::from_millis(1)).await;
                    if panics { panic!("as it should") } else { Err::<u64, _>("no") }
                };
                assert_eq!(region.get_or_refresh_async("k", create).await.unwrap(), 1);
                comes("it failed", || region.stats().failed_creations == 1 + u64::from(panics)).await;
                soon("its release", async { while region.is_locked_async("k").await.unwrap() {} }).await;
                no_locks_stay(&server).await;
            }
            assert_eq!(region.get_or_refresh_async("k", || async { fine(2_u64) }).await.unwrap(), 1);
            soon("the new value", async { while region.get_async("k").await.unwrap() != Some(2_u64) {} }).await;
        });
    }

    #[test]
    fn a_job_may_be_dropped_wherever_it_waits() {
        let server = Server::start();
        let (sender, jobs) = mpsc::channel::<TaskJob>();
        let (builder, clock) = leased(&server);
        let region = builder().task_runner(move |job| sender.send(job).unwrap()).build().unwrap();
        let other = builder().build().unwrap();
        single().block_on(async {
            region.set_async("k", &1_u64).await.unwrap();
            clock.advance(10 * SECOND);
            for polls in 0.. {
                let create = || async {
                    tokio::task::yield_now().await;
                    sleep(Duration::from_millis(1)).await;
                    fine(2_u64)
                };
                assert_eq!(region.get_or_refresh_async("k", create).await.unwrap(), 1);
                assert!(region.is_locked_async("k").await.unwrap());
                assert_eq!(region.get_or_refresh_async("k", create).await.unwrap(), 1);
                let mut job = jobs.try_recv().unwrap();
                assert!(jobs.try_recv().is_err(), "one job at a time");
                let mut polled = 0;
                let run = std::future::poll_fn(|context| {
                    if polled == polls {
                        return std::task::Poll::Ready(false);
                    }
                    polled += 1;
                    job.as_mut().poll(context).map(|()| true)
                });
                let is_done = soon("a job", run).await;
                drop(job);
                no_locks_stay(&server).await;
                // In this process the lead is free too, so whoever needs the value creates it.
                let begun = Instant::now();
                if is_done {
                    assert_eq!(region.get_async("k").await.unwrap(), Some(2_u64));
                    break;
                }
                other.delete_async("k").await.unwrap();
                assert_eq!(soon("a miss", region.get_or_create_async("k", async || fine(1_u64))).await.unwrap(), 1);
                assert!(begun.elapsed() < SOON);
                clock.advance(10 * SECOND);
            }
        });
    }

    #[test]
    fn without_a_runtime_the_job_is_dropped() {
        let (builder, clock) = clocked();
        let region = builder.lock(LocalLock).stale_after(10 * SECOND).build().unwrap();
        region.set("k", &1_u64).unwrap();
        clock.advance(10 * SECOND);
        let refreshed = {
            let call = region.get_or_refresh_async("k", || async { fine(2_u64) });
            let mut future = std::pin::pin!(call);
            future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
        };
        assert!(matches!(refreshed, std::task::Poll::Ready(Ok(1))));
        assert!(!region.is_locked("k").unwrap());
        // A runtime that ends drops it too.
        let runtime = single();
        let pending = || async { std::future::pending::<Result<u64, Infallible>>().await };
        assert_eq!(runtime.block_on(region.get_or_refresh_async("k", pending)).unwrap(), 1);
        assert!(region.is_locked("k").unwrap());
        drop(runtime);
        assert!(!region.is_locked("k").unwrap());
        multi().block_on(async {
            assert_eq!(region.get_or_refresh_async("k", || async { fine(2_u64) }).await.unwrap(), 1);
            soon("the new value", async {
                while region.get_async("k").await.unwrap() != Some(2_u64) {
                    sleep(Duration::from_millis(1)).await;
                }
            })
            .await;
        });
    }

    #[test]
    fn what_was_stale_may_be_fresh_when_it_is_looked_at_again() {
        let region = Region::builder(Memory::new(1 << 20)).invalidation(Fickle::default()).build().unwrap();
        region.set("k", &1_u64).unwrap();
        let value = single().block_on(region.get_or_refresh_async("k", || async { fine(2_u64) }));
        assert_eq!(value.unwrap(), 1);
    }
}

/// A cache whose first reading takes its time.
#[derive(Clone)]
struct Slow(Arc<Memory>, Arc<AtomicUsize>);

impl dogpile::Backend for Slow {
    fn get(&self, key: dogpile::Key<'_>) -> Result<Option<bytes::Bytes>, dogpile::Error> {
        let entry = self.0.get(key);
        if self.1.fetch_add(1, Ordering::SeqCst) == 0 {
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        entry
    }

    fn get_many(&self, keys: &[dogpile::Key<'_>], found: &mut dogpile::backend::Found) -> Result<(), dogpile::Error> {
        self.0.get_many(keys, found)
    }

    fn set(&self, key: dogpile::Key<'_>, entry: &[u8], ttl: Option<std::time::Duration>) -> Result<(), dogpile::Error> {
        self.0.set(key, entry, ttl)
    }

    fn set_many(
        &self,
        batch: &dogpile::backend::Batch,
        ttl: Option<std::time::Duration>,
    ) -> Result<(), dogpile::Error> {
        self.0.set_many(batch, ttl)
    }

    fn delete_many(&self, keys: &[dogpile::Key<'_>]) -> Result<(), dogpile::Error> {
        self.0.delete_many(keys)
    }
}

#[test]
fn a_stale_value_is_not_waited_for_behind_another_reading() {
    let backend = Slow(Arc::new(Memory::new(1 << 20)), Arc::default());
    let region = Region::builder(backend.clone()).build().unwrap();
    region.set("k", &1_u64).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(5));
    std::thread::scope(|scope| {
        scope.spawn(|| region.ignoring_expiry().get_or_create("k", || fine(9_u64)).unwrap());
        eventually("it reads", || backend.1.load(Ordering::SeqCst) == 1);
        let (here, background) = (std::thread::current().id(), Arc::new(AtomicUsize::new(0)));
        let ran = Arc::clone(&background);
        let create = move || {
            assert_ne!(std::thread::current().id(), here);
            ran.fetch_add(1, Ordering::SeqCst);
            fine(2_u64)
        };
        assert_eq!(region.with_stale_after(std::time::Duration::ZERO).get_or_refresh("k", create).unwrap(), 1);
        eventually("it is created in the background", || background.load(Ordering::SeqCst) == 1);
    });
}
