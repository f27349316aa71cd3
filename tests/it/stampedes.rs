//! Many callers that want one missing value: how often the server is asked, who is woken when, and whose patience ends.
//! Regions on handles of their own stand for processes.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use dogpile::region::OnWaitTimeout;
use dogpile::{ErrorKind, GetError, Memory, Msgpack, Redis, RedisLock, Region};

use crate::region::fine;
use crate::support::{Proxy, Server, eventually, speak_resp3};

type Locked = Region<Redis, Msgpack, RedisLock>;

fn locked(redis: Redis) -> Locked {
    Region::builder(redis).lock(RedisLock::new()).build().unwrap()
}

/// Which commands the server has executed since it was asked to forget them, those in scripts too, in alphabetical order.
fn commands(server: &Server) -> Vec<(String, u64)> {
    let stats = server.ask(&["INFO", "commandstats"]);
    let lines = stats.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="));
    let counted = lines.map(|(name, rest)| (name.to_string(), rest.split(',').next().unwrap().parse().unwrap()));
    let mut counted: Vec<_> =
        counted.filter(|(name, _)| !["info", "config|resetstat", "quit"].contains(&&**name)).collect();
    counted.sort();
    counted
}

fn count(server: &Server, work: impl FnOnce()) -> Vec<(String, u64)> {
    server.ask(&["CONFIG", "RESETSTAT"]);
    work();
    commands(server)
}

fn named(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
    expected.iter().map(|(name, calls)| ((*name).to_string(), *calls)).collect()
}

/// Takes a lock as a process of the reference would, which says nothing about it.
fn foreign(server: &Server, key: &str, millis: &str) {
    server.ask(&["SET", &format!("_lok.{key}"), "somebody else", "NX", "PX", millis]);
}

#[test]
fn a_cold_miss_costs_three_round_trips_and_two_by_script() {
    let server = Server::start();
    let proxy = Proxy::before(&server);
    let two = RedisLock::new().lease_on_miss();
    for key in [dogpile::Key::from("k"), ("h", "f").into()] {
        let read = if matches!(key, dogpile::Key::Plain(_)) { "get" } else { "hget" };
        let many = if matches!(key, dogpile::Key::Plain(_)) { "mget" } else { "hmget" };
        let write = if matches!(key, dogpile::Key::Plain(_)) { "set" } else { "hset" };
        for (lock, trips) in [(RedisLock::new(), 3), (two.clone(), 2)] {
            let region = Region::builder(Redis::open(&proxy.url()).unwrap()).lock(lock).build().unwrap();
            region.get::<u64>("another").unwrap();
            let create = || assert_eq!(region.get_or_create(key, || fine(15_u64)).unwrap(), 15);
            let mut took = 0;
            let executed = count(&server, || took = proxy.count(create));
            assert_eq!(took, trips, "{executed:?}");
            let calls = |name| executed.iter().filter(|(other, _)| *other == name).map(|(_, calls)| calls).sum::<u64>();
            // The release reads and deletes the lock by script.
            assert_eq!(calls("del"), 1, "{executed:?}");
            assert_eq!(calls("eval"), if trips == 3 { 1 } else { 2 }, "{executed:?}");
            assert_eq!(calls(many), if trips == 3 { 1 } else { 0 }, "{executed:?}");
            assert!(calls(read) >= 1 && calls(write) >= 1, "{executed:?}");
            // A hit is one, of either kind.
            let hit = || assert_eq!(region.get_or_create(key, || -> Result<u64, Infallible> { panic!() }).unwrap(), 15);
            assert_eq!(proxy.count(hit), 1);
            assert_eq!(count(&server, hit), named(&[(read, 1)]));
            region.delete(key).unwrap();
        }
    }
}

#[test]
fn what_is_found_by_the_script_that_would_lock() {
    let server = Server::start();
    let lock = || RedisLock::new().lease_on_miss();
    let (ours, other) = (Region::builder(server.redis()).lock(lock()), Region::builder(server.redis()).lock(lock()));
    let (ours, other) = (ours.build().unwrap(), other.build().unwrap());
    for key in [dogpile::Key::from("k"), ("h", "f").into()] {
        ours.set(key, &1_u64).unwrap();
        assert_eq!(other.get_or_create(key, || -> Result<u64, Infallible> { panic!() }).unwrap(), 1);
        assert_eq!(server.ask(&["KEYS", "_lok.*"]), "*0", "what is there needs no lock");
    }
    // Another type of data is a miss.
    server.ask(&["LPUSH", "list", "x"]);
    assert_eq!(ours.get_or_create("list", || fine(2_u64)).unwrap(), 2);
    assert_eq!(other.get::<u64>("list").unwrap(), Some(2));
    // And what is of no use.
    server.ask(&["SET", "rubbish", "\u{1}?"]);
    assert_eq!(ours.get_or_create("rubbish", || fine("good".to_string())).unwrap(), "good");
    assert_eq!(server.ask(&["KEYS", "_lok.*"]), "*0");
    // A lock that another process holds.
    foreign(&server, "held", "200");
    assert_eq!(ours.get_or_create("held", || fine(3_u64)).unwrap(), 3);
    assert_eq!(ours.stats().remote_waits, 1);
}

#[test]
fn a_stampede_of_processes_asks_the_server_seldom() {
    let server = Server::start();
    let regions: Vec<Locked> = (0..8).map(|_| locked(server.redis())).collect();
    // Connections are opened, and those that listen.
    foreign(&server, "warm", "50");
    std::thread::scope(|scope| {
        for region in &regions {
            scope.spawn(|| region.get_or_create("warm", || fine(0_u64)).unwrap());
        }
    });
    for key in ["a", "b", "c"] {
        let (calls, barrier) = (AtomicUsize::new(0), Barrier::new(64));
        let executed = count(&server, || {
            std::thread::scope(|scope| {
                for at in 0..64 {
                    let (region, calls, barrier) = (&regions[at % 8], &calls, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        let value = region.get_or_create(key, || {
                            calls.fetch_add(1, Ordering::SeqCst);
                            std::thread::sleep(Duration::from_millis(200));
                            fine(15_u64)
                        });
                        assert_eq!(value.unwrap(), 15);
                    });
                }
            });
        });
        assert_eq!(calls.into_inner(), 1);
        let all: u64 = executed.iter().map(|(_, calls)| calls).sum();
        // Where servers do not tell, who waits asks again and again.
        assert!(all <= 64 || !speak_resp3(), "{all} commands: {executed:?}");
    }
    let stats = regions.iter().map(Region::stats);
    assert!(stats.clone().map(|stats| stats.remote_waits).sum::<u64>() >= 3 * 7);
    assert_eq!(stats.map(|stats| stats.creations).sum::<u64>(), 4);
}

#[test]
fn who_waits_for_another_process_is_woken_at_once() {
    let server = Server::start();
    let region = locked(server.redis());
    let free = ["DEL", "_lok.k"];
    let taken = ["SET", "_lok.k", "a third", "PX", "60000"];
    let ways: [(&str, &[&[&str]]); 5] = [
        ("released", &[&["SET", "k", "\u{7}"], &free]),
        ("released without a value", &[&free]),
        ("flushed", &[&["FLUSHALL"]]),
        ("taken by another one, and released", &[&taken, &free]),
        ("deaf for a moment", &[&["CLIENT", "KILL", "TYPE", "normal"], &free]),
    ];
    for (way, words) in ways {
        foreign(&server, "k", "60000");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let value: u64 = region.get_or_create("k", || fine(7)).unwrap();
                (value, Instant::now())
            });
            // Nobody asks for the life of a lease over RESP2: who waits cannot be told by that.
            let asked = || !speak_resp3() || commands(&server).iter().any(|(name, _)| name == "pttl");
            eventually("it waits", asked);
            std::thread::sleep(Duration::from_millis(100));
            for words in words {
                server.ask(words);
                std::thread::sleep(Duration::from_millis(30));
            }
            let done = Instant::now();
            let (value, woken) = waiter.join().unwrap();
            assert!(value == 7, "{way}");
            // Far less than the lease.
            assert!(woken.saturating_duration_since(done) < Duration::from_secs(5), "{way}");
        });
        server.ask(&["FLUSHALL"]);
        server.ask(&["CONFIG", "RESETSTAT"]);
    }
    // A lease whose time is over is nobody's, whether the server says so or not.
    foreign(&server, "l", "300");
    let begun = Instant::now();
    assert_eq!(region.get_or_create("l", || fine(1_u64)).unwrap(), 1);
    assert!((250..2000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
}

#[test]
fn who_cannot_be_told_asks_again() {
    let server = Server::start();
    assert_eq!(server.ask(&["ACL", "SETUSER", "deaf", "on", ">pw", "~*", "+@all", "-client"]), "+OK");
    let region = locked(Redis::open(&format!("redis://deaf:pw@127.0.0.1:{}", server.port)).unwrap());
    foreign(&server, "k", "60000");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| region.get_or_create("k", || fine(1_u64)).unwrap());
        std::thread::sleep(Duration::from_millis(200));
        assert!(!waiter.is_finished());
        server.ask(&["DEL", "_lok.k"]);
        assert_eq!(waiter.join().unwrap(), 1);
    });
    assert_eq!(region.stats().remote_waits, 1, "one value was waited for, however often that was asked");
}

#[test]
fn many_keys_of_many_processes_are_waited_for_together() {
    let server = Server::start();
    let region = locked(server.redis());
    let keys: Vec<String> = (0..50).map(|key| key.to_string()).collect();
    keys.iter().for_each(|key| foreign(&server, key, "60000"));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let create =
                |missing: &[&String]| fine(missing.iter().map(|key| key.parse().unwrap()).collect::<Vec<u64>>());
            region.get_or_create_many(&keys, create).unwrap()
        });
        for key in &keys {
            server.ask(&["DEL", &format!("_lok.{key}")]);
        }
        assert_eq!(waiter.join().unwrap(), (0..50).collect::<Vec<u64>>());
    });
    assert_eq!(server.ask(&["KEYS", "_lok.*"]), "*0");
}

#[test]
fn patience_ends_in_an_error_or_in_a_creation_of_ones_own() {
    let server = Server::start();
    let patient = |what| {
        let builder = Region::builder(server.redis()).lock(RedisLock::new()).wait_timeout(Duration::from_millis(100));
        builder.on_wait_timeout(what).build().unwrap()
    };
    let (fails, creates) = (patient(OnWaitTimeout::Fail), patient(OnWaitTimeout::Create));
    foreign(&server, "k", "60000");
    let begun = Instant::now();
    let error = fails.get_or_create("k", || fine(1_u64)).unwrap_err();
    assert!(matches!(&error, GetError::Cache(error) if error.kind() == ErrorKind::Timeout), "{error}");
    assert_eq!(creates.get_or_create("k", || fine(2_u64)).unwrap(), 2);
    assert!((200..2000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    assert_eq!((fails.stats().wait_timeouts, creates.stats().wait_timeouts), (1, 1));
    assert_eq!(fails.get("k").unwrap(), Some(2_u64), "it is stored");
    assert!(server.ask(&["GET", "_lok.k"]).ends_with("somebody else"), "the other one's lock stays");

    // Of many keys, those that are free are created under their locks, and the others beside who is about them.
    foreign(&server, "m", "60000");
    let mut asked = Vec::new();
    let values = creates.get_or_create_many(&["l", "m"], |missing| {
        asked.extend(missing.iter().map(|key| (**key).to_string()));
        fine(missing.iter().map(|_| 3_u64).collect())
    });
    assert_eq!(values.unwrap(), [3, 3]);
    assert_eq!(asked, ["l", "m"]);
    assert_eq!(fails.get_many(&["l", "m"]).unwrap(), [Some(3_u64), Some(3)]);
    assert_eq!(server.ask(&["EXISTS", "_lok.l"]), ":0");

    // In the line of one's own process too.
    let (entered, left) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let create = || {
                entered.wait();
                left.wait();
                fine(4_u64)
            };
            assert_eq!(creates.get_or_create("n", create).unwrap(), 4);
        });
        entered.wait();
        assert_eq!(creates.get_or_create("n", || fine(5_u64)).unwrap(), 5);
        left.wait();
    });
}

#[test]
fn creators_may_be_limited() {
    let region = Region::builder(Memory::new(1 << 20)).max_creations(2).build().unwrap();
    let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let create = |key: usize| {
        most.fetch_max(1 + running.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(10));
        running.fetch_sub(1, Ordering::SeqCst);
        if key.is_multiple_of(3) { Err("no") } else { Ok(key) }
    };
    std::thread::scope(|scope| {
        for key in 0..16 {
            let (region, create) = (&region, &create);
            scope.spawn(move || {
                assert_eq!(region.get_or_create(key as u64, || create(key)).is_ok(), !key.is_multiple_of(3))
            });
        }
    });
    assert_eq!(most.into_inner(), 2);
    let none = Region::builder(Memory::new(1 << 20)).max_creations(0).build();
    assert_eq!(none.unwrap_err().kind(), ErrorKind::Config);

    // Who has no patience for a place gets an error.
    let builder = Region::builder(Memory::new(1 << 20)).max_creations(1).wait_timeout(Duration::from_millis(50));
    let region = builder.build().unwrap();
    let (entered, left) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            region.get_or_create(1, || {
                entered.wait();
                left.wait();
                fine(1_u64)
            })
        });
        entered.wait();
        let error = region.get_or_create(2, || fine(2_u64)).unwrap_err();
        assert!(error.to_string().contains("1 creations (max_creations) were running"), "{error}");
        left.wait();
    });
    assert_eq!(region.get_or_create(2, || fine(2_u64)).unwrap(), 2);
}

#[test]
fn a_thread_that_reads_again_in_its_creator_is_told() {
    let region = Region::builder(Memory::new(1 << 20)).build().unwrap();
    let got =
        region.get_or_create("k", || region.get_or_create("k", || fine(1_u64)).map_err(|error| error.to_string()));
    let Err(GetError::Create(error)) = got else { panic!("{got:?}") };
    assert!(error.contains("asks for the key that it is creating"), "{error}");
}

#[test]
fn what_one_stores_one_reads_while_others_read() {
    let server = Server::start();
    let region = Arc::new(locked(server.redis()));
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let region = &region;
            scope.spawn(move || {
                for round in 0..300 {
                    // Every key is read for the first time by all of them, and was written by one before.
                    let key = round * 4 + thread;
                    region.set(key, &key).unwrap();
                    let nobody = || -> Result<u64, Infallible> { panic!("it was stored") };
                    assert_eq!(region.get_or_create(key, nobody).unwrap(), key);
                    let other = round * 4 + (thread + 1) % 4;
                    let value: u64 = region.get_or_create(other, || fine(other)).unwrap();
                    assert_eq!(value, other);
                }
            });
        }
    });
}

#[test]
fn who_stores_while_another_creates_finds_what_he_stored() {
    let region = Region::builder(Memory::new(1 << 20)).build().unwrap();
    let created = region.get_or_create("k", || {
        // Another thread, which must not wait for this creator: it waits for that thread.
        let stores = || {
            region.set("k", &7_u64).unwrap();
            region.get_or_create("k", || fine(9_u64)).unwrap()
        };
        assert_eq!(std::thread::scope(|scope| scope.spawn(stores).join().unwrap()), 7);
        let stores_many = || {
            region.set_many(&[("k", 8_u64)]).unwrap();
            region.get_or_create("k", || fine(9_u64)).unwrap()
        };
        assert_eq!(std::thread::scope(|scope| scope.spawn(stores_many).join().unwrap()), 8);
        fine(1_u64)
    });
    assert_eq!(created.unwrap(), 1);
}

#[test]
fn who_takes_an_entry_of_any_age_does_not_wait_for_a_new_one() {
    let region = Region::builder(Memory::new(1 << 20)).build().unwrap();
    region.set("k", &1_u64).unwrap();
    std::thread::sleep(Duration::from_millis(2));
    region.invalidate(dogpile::Invalidate::Hard);
    let created = region.get_or_create("k", || {
        let takes = || region.ignoring_expiry().get_or_create("k", || fine(3_u64)).unwrap();
        assert_eq!(std::thread::scope(|scope| scope.spawn(takes).join().unwrap()), 1);
        fine(2_u64)
    });
    assert_eq!(created.unwrap(), 2);
}

#[test]
fn listeners_end_with_their_handles() {
    let server = Server::start();
    for _ in 0..5 {
        let region = locked(server.redis());
        foreign(&server, "k", "30");
        assert_eq!(region.get_or_create("k", || fine(1_u64)).unwrap(), 1);
        region.delete("k").unwrap();
    }
    let listening = || server.ask(&["CLIENT", "LIST"]).lines().filter(|line| line.contains("cmd=pttl")).count();
    eventually("nobody listens any more", || listening() == 0);
}

#[test]
fn a_server_that_hangs_does_not_cost_the_leases_of_another() {
    let (hangs, healthy) = (Server::start(), Server::start());
    let locked = |server: &Server| {
        let lock = RedisLock::new().lease(Duration::from_millis(600));
        Region::builder(server.redis()).lock(lock).build().unwrap()
    };
    let (first, second) = (locked(&hangs), locked(&healthy));
    let (entered, left) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let create = || {
                entered.wait();
                left.wait();
                fine(1_u64)
            };
            assert_eq!(first.get_or_create("k", create).unwrap(), 1);
        });
        entered.wait();
        hangs.signal("STOP");
        let create = || {
            for _ in 0..50 {
                std::thread::sleep(Duration::from_millis(50));
                assert!(healthy.ask_int(&["PTTL", "_lok.k"]) > 0, "the lease was lost");
            }
            fine(2_u64)
        };
        assert_eq!(second.get_or_create("k", create).unwrap(), 2);
        left.wait();
        hangs.signal("CONT");
    });
}

#[test]
fn a_lease_of_no_time_is_no_trouble() {
    let server = Server::start();
    let lock = RedisLock::new().lease(Duration::from_nanos(1));
    let region = Region::builder(server.redis()).lock(lock).build().unwrap();
    let create = || {
        std::thread::sleep(Duration::from_millis(100));
        fine(1_u64)
    };
    assert_eq!(region.get_or_create("k", create).unwrap(), 1);
}

#[cfg(feature = "tokio")]
mod tasks {
    use super::*;
    use crate::tasks::{multi, single, soon};
    use tokio::time::sleep;

    #[test]
    fn tasks_are_woken_and_their_leases_are_renewed() {
        let server = Server::start();
        for (runtime, key) in [(single(), 1), (multi(), 2)] {
            let builder = || Region::builder(server.redis()).lock(RedisLock::new().lease(Duration::from_millis(300)));
            let (holder, other) = (builder().build().unwrap(), builder().build().unwrap());
            runtime.block_on(async {
                let (began, begins) = tokio::sync::oneshot::channel();
                let creates = tokio::spawn(async move {
                    let create = async || {
                        began.send(()).unwrap();
                        sleep(Duration::from_millis(1200)).await;
                        fine(1_u64)
                    };
                    holder.get_or_create_async(key, create).await.unwrap();
                    Instant::now()
                });
                begins.await.unwrap();
                let nobody = async || -> Result<u64, Infallible> { panic!("somebody else creates") };
                assert_eq!(soon("the value", other.get_or_create_async(key, nobody)).await.unwrap(), 1);
                assert!(creates.await.unwrap().elapsed() < Duration::from_millis(500));
            });
        }
        assert_eq!(server.ask(&["KEYS", "_lok.*"]), "*0");
    }

    #[test]
    fn tasks_miss_in_two_round_trips_by_script() {
        let server = Server::start();
        let proxy = Proxy::before(&server);
        let lock = RedisLock::new().lease_on_miss();
        let region = Region::builder(Redis::open(&proxy.url()).unwrap()).lock(lock).build().unwrap();
        let runtime = single();
        runtime.block_on(region.get_async::<u64>("another")).unwrap();
        let create = || {
            let create = region.get_or_create_async("k", async || fine(1_u64));
            assert_eq!(runtime.block_on(create).unwrap(), 1);
        };
        assert_eq!(proxy.count(create), 2);
        assert_eq!(proxy.count(create), 1);
    }

    #[test]
    fn a_reading_that_rests_keeps_nobody_waiting_long() {
        let server = Server::start();
        let region = locked(server.redis());
        single().block_on(async {
            region.set_async("k", &7_u64).await.unwrap();
            let mut rests = Box::pin(region.get_or_create_async("k", async || fine(1_u64)));
            // As in a `select!` whose other branch was taken.
            let polled = std::future::poll_fn(|context| std::task::Poll::Ready(rests.as_mut().poll(context))).await;
            assert!(polled.is_pending());
            let nobody = async || -> Result<u64, Infallible> { panic!("it is there") };
            assert_eq!(soon("a hit", region.get_or_create_async("k", nobody)).await.unwrap(), 7);
            // A call that blocks the thread of the task that reads.
            let other = region.clone();
            let reads = tokio::spawn(async move { other.get_or_create_async("l", async || fine(1_u64)).await });
            tokio::task::yield_now().await;
            assert_eq!(region.get_or_create("l", || fine(2_u64)).unwrap(), 2);
            assert_eq!(soon("who was blocked", reads).await.unwrap().unwrap(), 2);
        });
    }

    #[test]
    fn tasks_wait_for_a_place_among_the_creators() {
        let region = Region::builder(Memory::new(1 << 20)).max_creations(1).build().unwrap();
        single().block_on(async {
            let calls: Vec<_> = (0..20_u64)
                .map(|key| {
                    let region = region.clone();
                    tokio::spawn(async move {
                        let create = async || {
                            sleep(Duration::from_millis(1)).await;
                            fine(key)
                        };
                        // Some are dropped while they wait, or create.
                        let call = region.get_or_create_async(key, create);
                        let _ = tokio::time::timeout(Duration::from_millis(1 + key % 7), call).await;
                    })
                })
                .collect();
            for call in calls {
                soon("a call", call).await.unwrap();
            }
            let last = region.get_or_create_async(100_u64, async || fine(1_u64));
            assert_eq!(soon("the last", last).await.unwrap(), 1);
        });
    }
}
