//! Leases in a Redis server: one creator of several regions, which stand for processes; what redis-py sees of them;
//! and leases that are lost.

use std::convert::Infallible;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dogpile::backend::Batch;
use dogpile::codec::Seconds;
use dogpile::freshness::LocalInvalidation;
use dogpile::internals;
use dogpile::keymap::Identity;
use dogpile::lock::OnLeaseLost;
use dogpile::{Clock, ErrorKind, Key, Lock, Msgpack, Redis, RedisLock, Region, Timestamp};

use crate::support::{Proxy, Server, eventually};

type Locked = Region<Redis, Msgpack<Seconds>, RedisLock, Identity, LocalInvalidation>;

fn region(server: &Server) -> Locked {
    Region::builder(server.redis()).lock(RedisLock::new()).build().unwrap()
}

fn lost(server: &Server, on_lost: OnLeaseLost) -> Locked {
    Region::builder(server.redis()).lock(RedisLock::new().on_lease_lost(on_lost)).build().unwrap()
}

#[test]
fn one_of_all_processes_creates() {
    let server = Server::start();
    let regions: Vec<Locked> = (0..4).map(|_| region(&server)).collect();
    for key in [Key::from("k"), Key::from(("h", "f"))] {
        let (calls, barrier) = (AtomicUsize::new(0), Barrier::new(32));
        std::thread::scope(|scope| {
            for at in 0..32 {
                let (region, calls, barrier) = (&regions[at % 4], &calls, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let value = region.get_or_create(key, || {
                        calls.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(50));
                        Ok::<_, Infallible>(15_u64)
                    });
                    assert_eq!(value.unwrap(), 15);
                });
            }
        });
        assert_eq!(calls.into_inner(), 1);
    }
    assert_eq!(server.ask(&["KEYS", "_lok.*"]), "*0", "all locks are released");
}

#[test]
fn one_of_all_processes_renews_what_is_stale() {
    let server = Server::start();
    let clock = Clock::manual(Timestamp::from_micros(1_699_999_999_999_999));
    let regions: Vec<Locked> = (0..4)
        .map(|_| {
            let builder = Region::builder(server.redis()).lock(RedisLock::new()).clock(clock.clone());
            builder.stale_after(Duration::from_secs(10)).build().unwrap()
        })
        .collect();
    regions[0].set("k", &1_u64).unwrap();
    clock.advance(Duration::from_secs(10));
    let calls = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for region in &regions {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let begun = Instant::now();
                        let mut created = false;
                        let value = region.get_or_create("k", || {
                            created = true;
                            calls.fetch_add(1, Ordering::SeqCst);
                            std::thread::sleep(Duration::from_millis(300));
                            Ok::<_, Infallible>(2_u64)
                        });
                        assert!(matches!(value, Ok(1 | 2)));
                        assert!(
                            created || begun.elapsed() < Duration::from_millis(250),
                            "nobody waits for what is stale"
                        );
                    }
                });
            }
        }
    });
    assert_eq!(calls.into_inner(), 1);
}

#[test]
fn many_keys_of_many_processes_are_created_once() {
    let server = Server::start();
    let regions: Vec<Locked> = (0..3).map(|_| region(&server)).collect();
    let calls = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..6_usize {
            let (regions, calls) = (&regions, &calls);
            scope.spawn(move || {
                for round in 0..5 {
                    let keys: Vec<_> = (0..20).map(|at| ("h", round * 20 + (at * 3 + thread * 7) % 20)).collect();
                    let values: Vec<u64> = regions[thread % 3]
                        .get_or_create_many(&keys, |missing| {
                            calls.fetch_add(missing.len(), Ordering::SeqCst);
                            std::thread::sleep(Duration::from_millis(2));
                            Ok::<_, Infallible>(missing.iter().map(|key| key.1 as u64).collect())
                        })
                        .unwrap();
                    assert_eq!(values, keys.iter().map(|key| key.1 as u64).collect::<Vec<_>>());
                }
            });
        }
    });
    assert_eq!(calls.into_inner(), 100);
    assert_eq!(server.ask(&["KEYS", "_lok.*"]), "*0");
}

#[test]
fn redis_py_would_recognise_the_lock() {
    let server = Server::start();
    let region = region(&server);
    region
        .get_or_create(("h", "f"), || {
            assert!(region.is_locked(("h", "f")).unwrap());
            let token = server.ask(&["GET", "_lok.h,f"]);
            let digits = token.strip_prefix("$32\r\n").expect("32 digits");
            assert!(digits.bytes().all(|digit| b"0123456789abcdef".contains(&digit)));
            let left = server.ask_int(&["PTTL", "_lok.h,f"]);
            assert!((9_000..=10_000).contains(&left), "{left}");
            Ok::<_, Infallible>(1_u64)
        })
        .unwrap();
    assert_eq!(server.ask(&["EXISTS", "_lok.h,f"]), ":0");
    // A foreign holder keeps us out until its lock is gone, whatever we have waited for.
    server.ask(&["SET", "_lok.k", "somebody", "PX", "300"]);
    assert!(region.is_locked("k").unwrap());
    let begun = Instant::now();
    assert_eq!(region.get_or_create("k", || Ok::<_, Infallible>(1_u64)).unwrap(), 1);
    assert!(begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
    assert_eq!(server.ask(&["EXISTS", "_lok.k"]), ":0");
}

#[test]
fn a_foreign_holder_that_stores_is_waited_for() {
    let server = Server::start();
    let region = region(&server);
    server.ask(&["SET", "_lok.k", "somebody", "PX", "30000"]);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| region.get_or_create("k", || -> Result<u64, Infallible> { panic!("is locked") }));
        std::thread::sleep(Duration::from_millis(30));
        Region::builder(server.redis()).build().unwrap().set("k", &7_u64).unwrap();
        server.ask(&["DEL", "_lok.k"]);
        assert_eq!(waits.join().unwrap().unwrap(), 7);
    });
    assert_eq!(server.ask(&["EXISTS", "_lok.k"]), ":0", "who waited did not lock");
}

#[test]
fn patience_ends_while_another_process_holds_the_lock() {
    let server = Server::start();
    let lock = RedisLock::new();
    let region = Region::builder(server.redis()).lock(lock).wait_timeout(Duration::from_millis(60)).build().unwrap();
    server.ask(&["SET", "_lok.k", "somebody", "PX", "30000"]);
    let begun = Instant::now();
    let error = region.get_or_create("k", || Ok::<_, Infallible>(1_u64)).unwrap_err();
    assert!(matches!(error, dogpile::GetError::Cache(error) if error.kind() == ErrorKind::Timeout));
    assert!((60..2_000).contains(&begun.elapsed().as_millis()));
    assert!(server.ask(&["GET", "_lok.k"]).ends_with("somebody"), "the holder's lock is untouched");
}

#[test]
fn a_creator_that_fails_or_panics_releases() {
    let server = Server::start();
    let region = region(&server);
    assert!(region.get_or_create("k", || Err::<u64, _>("no")).is_err());
    assert_eq!(server.ask(&["EXISTS", "_lok.k"]), ":0");
    let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        region.get_or_create("k", || -> Result<u64, Infallible> { panic!("as it should") })
    }));
    assert!(panics.is_err());
    assert_eq!(server.ask(&["EXISTS", "_lok.k"]), ":0");
    let unstored = region.store_if(|_: &u64| false).get_or_create("k", || Ok::<_, Infallible>(1_u64));
    assert_eq!(unstored.unwrap(), 1);
    assert_eq!(server.ask(&["DBSIZE"]), ":0");
}

/// Creates a value and loses the lease meanwhile; the value is returned in each case.
fn create_and_lose(server: &Server, region: &Locked, key: Key<'_>) {
    let value = region.get_or_create(key, || {
        assert_eq!(server.ask(&["FLUSHALL"]), "+OK");
        Ok::<_, Infallible>(1_u64)
    });
    assert_eq!(value.unwrap(), 1);
}

#[test]
fn a_value_whose_lease_was_lost_is_stored_or_discarded() {
    let server = Server::start();
    for key in [Key::from("k"), Key::from(("h", "f"))] {
        let region = lost(&server, OnLeaseLost::Store);
        create_and_lose(&server, &region, key);
        assert_eq!(region.stats().lost_leases, 1);
        assert_eq!(region.get(key).unwrap(), Some(1_u64));

        server.ask(&["FLUSHALL"]);
        let region = lost(&server, OnLeaseLost::Discard);
        create_and_lose(&server, &region, key);
        assert_eq!(region.get::<u64>(key).unwrap(), None);
        assert_eq!(region.stats().lost_leases, 1);
    }
}

#[test]
fn who_took_the_lease_meanwhile_keeps_it() {
    let server = Server::start();
    let region = lost(&server, OnLeaseLost::Discard);
    let value = region.get_or_create("k", || {
        server.ask(&["SET", "_lok.k", "somebody else"]);
        server.ask(&["SET", "k", "newer"]);
        Ok::<_, Infallible>(1_u64)
    });
    assert_eq!(value.unwrap(), 1);
    assert!(server.ask(&["GET", "_lok.k"]).ends_with("somebody else"));
    assert!(server.ask(&["GET", "k"]).ends_with("newer"), "a newer value is not overwritten");
}

#[test]
fn a_value_stored_under_its_lease_has_its_ttl() {
    let server = Server::start();
    let lock = RedisLock::new().on_lease_lost(OnLeaseLost::Discard);
    let region = Region::builder(server.redis()).lock(lock).ttl(Duration::from_secs(60)).build().unwrap();
    region.get_or_create("k", || Ok::<_, Infallible>(1_u64)).unwrap();
    region.get_or_create(("h", "f"), || Ok::<_, Infallible>(1_u64)).unwrap();
    for key in ["k", "h"] {
        assert!((59_000..=60_000).contains(&server.ask_int(&["PTTL", key])));
    }
    assert_eq!(region.get_many::<_, u64>(&[Key::from("k"), ("h", "f").into()]).unwrap(), [Some(1), Some(1)]);
}

#[test]
fn settings_that_cannot_work() {
    let redis = Redis::open("redis://127.0.0.1").unwrap();
    let build = |lock| Region::builder(redis.clone()).lock(lock).build();
    assert_eq!(build(RedisLock::new().prefix("")).unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(build(RedisLock::new().lease(Duration::ZERO)).unwrap_err().kind(), ErrorKind::Config);
}

#[test]
fn a_holder_that_died_blocks_for_the_rest_of_its_lease_only() {
    let server = Server::start();
    server.ask(&["SET", "_lok.k", "somebody who died", "PX", "300"]);
    let begun = Instant::now();
    assert_eq!(region(&server).get_or_create("k", || Ok::<_, Infallible>(2_u64)).unwrap(), 2);
    assert!((250..1000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    assert_eq!(server.ask(&["EXISTS", "_lok.k"]), ":0");
}

#[test]
fn a_lease_is_renewed_while_its_creator_runs() {
    let server = Server::start();
    let locked = || Region::builder(server.redis()).lock(RedisLock::new().lease(Duration::from_millis(300))).build();
    let (holder, other) = (locked().unwrap(), locked().unwrap());
    let entered = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (keys, create) = (["k", "l"], |keys: &[&&str]| {
                entered.wait();
                std::thread::sleep(Duration::from_millis(1500));
                Ok::<_, Infallible>(keys.iter().map(|_| 1_u64).collect())
            });
            assert_eq!(holder.get_or_create_many(&keys, create).unwrap(), [1, 1]);
        });
        entered.wait();
        let begun = Instant::now();
        let nobody = || -> Result<u64, Infallible> { panic!("somebody else creates") };
        assert_eq!(other.get_or_create("l", nobody).unwrap(), 1);
        assert!(begun.elapsed() > Duration::from_millis(1200), "{:?}", begun.elapsed());
    });
    assert_eq!(server.ask(&["KEYS", "_lok.*"]), "*0");
}

#[test]
fn a_lease_that_was_lost_is_not_renewed() {
    let server = Server::start();
    let lock = RedisLock::new().lease(Duration::from_millis(150));
    let region = Region::builder(server.redis()).lock(lock).build().unwrap();
    let create = || {
        server.ask(&["SET", "_lok.k", "somebody else", "PX", "60000"]);
        std::thread::sleep(Duration::from_millis(400));
        Ok::<_, Infallible>(1_u64)
    };
    region.get_or_create("k", create).unwrap();
    let left = server.ask_int(&["PTTL", "_lok.k"]);
    assert!((50_000..59_800).contains(&left), "{left}");
    let scripts = server.ask(&["INFO", "commandstats"]);
    // One renewal, and the release.
    assert!(scripts.contains("cmdstat_eval:calls=2,"), "{scripts}");
}

#[test]
fn a_lease_that_is_refused_leaves_no_lock_behind() {
    let server = Server::start();
    for (user, forbidden) in [("noget", "-mget"), ("noset", "-set")] {
        let set_user = ["ACL", "SETUSER", user, "on", ">pw", "~*", "+@all", forbidden];
        assert_eq!(server.ask(&set_user), "+OK");
        let redis = Redis::open(&format!("redis://{user}:pw@127.0.0.1:{}", server.port)).unwrap();
        let region = Region::builder(redis).lock(RedisLock::new()).build().unwrap();
        assert_eq!(region.get_or_create("k", || Ok::<_, Infallible>(1_u64)).unwrap(), 1);
        assert_eq!(server.ask(&["KEYS", "_lok.*"]), "*0", "{forbidden}");
    }
}

#[test]
fn a_lease_whose_connection_broke_is_asked_for_again() {
    let server = Server::start();
    // The reading goes elsewhere, so it does not find out that the connection broke.
    let replica = Server::start();
    let redis = Redis::builder(&server.url()).reader(&replica.url()).build().unwrap();
    let region = Region::builder(redis).lock(RedisLock::new()).build().unwrap();
    region.set("warm", &1_u64).unwrap();
    server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
    assert_eq!(region.get_or_create("k", || Ok::<_, Infallible>(1_u64)).unwrap(), 1);
    assert_eq!(region.stats().failed_locks, 0);
    assert!(server.ask_int(&["EXISTS", "k"]) == 1 && server.ask_int(&["EXISTS", "_lok.k"]) == 0);
}

#[test]
fn a_held_lock_does_not_hold_up_the_other_keys_of_a_batch() {
    let server = Server::start();
    let region = region(&server);
    server.ask(&["SET", "_lok.a", "somebody", "PX", "1500"]);
    server.ask(&["SET", "_lok.b", "somebody", "PX", "200"]);
    std::thread::scope(|scope| {
        let both =
            scope.spawn(|| region.get_or_create_many(&["a", "b"], |keys| Ok::<_, Infallible>(vec![1_u64; keys.len()])));
        std::thread::sleep(Duration::from_millis(20));
        let begun = Instant::now();
        assert_eq!(region.get_or_create("b", || Ok::<_, Infallible>(1_u64)).unwrap(), 1);
        assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
        assert_eq!(both.join().unwrap().unwrap(), [1, 1]);
    });
}

#[test]
fn nobody_waits_for_a_creator_of_something_else_while_another_process_holds_the_lock() {
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let server = Server::start();
        let region = region(&server);
        server.ask(&["SET", "_lok.k1", "somebody", "PX", "300"]);
        let (a_creates, b_creates) = (Barrier::new(2), Barrier::new(2));
        std::thread::scope(|scope| {
            // A's creator of k2 needs k3, and B's of k3 needs k1, which A wants too but does not create.
            let a = scope.spawn(|| {
                region.get_or_create_many(&["k1", "k2"], |missing| {
                    if missing.contains(&&"k2") {
                        a_creates.wait();
                        b_creates.wait();
                        region.get_or_create("k3", || Ok::<_, Infallible>(3_u64)).unwrap();
                    }
                    Ok::<_, Infallible>(vec![1_u64; missing.len()])
                })
            });
            a_creates.wait();
            let b = scope.spawn(|| {
                region.get_or_create("k3", || {
                    b_creates.wait();
                    region.get_or_create("k1", || Ok::<_, Infallible>(1_u64))
                })
            });
            assert_eq!(a.join().unwrap().unwrap(), [1, 1]);
            assert_eq!(b.join().unwrap().unwrap(), 1);
        });
        // And the creator of one key may itself wait for another one of its batch.
        server.ask(&["SET", "_lok.x", "somebody", "PX", "300"]);
        let values = region.get_or_create_many(&["x", "y"], |missing| {
            if missing.contains(&&"y") {
                assert_eq!(region.get_or_create("x", || Ok::<_, Infallible>(1_u64)).unwrap(), 1);
            }
            Ok::<_, Infallible>(vec![1_u64; missing.len()])
        });
        assert_eq!(values.unwrap(), [1, 1]);
        done.send(()).unwrap();
    });
    wait.recv_timeout(Duration::from_secs(10)).expect("it ends without a panic");
}

#[test]
fn a_connection_that_was_closed_while_the_creator_ran_does_not_lose_the_value() {
    let server = Server::start();
    let region = lost(&server, OnLeaseLost::Discard);
    let value = region.get_or_create("k", || {
        server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
        // The news of it has to arrive.
        std::thread::sleep(Duration::from_millis(20));
        Ok::<_, Infallible>(1_u64)
    });
    assert_eq!(value.unwrap(), 1);
    assert_eq!(region.get("k").unwrap(), Some(1_u64));
    assert_eq!((server.ask_int(&["EXISTS", "_lok.k"]), region.stats().failed_writes), (0, 0));
}

#[test]
fn a_store_that_the_server_refuses_releases_all_the_same() {
    let server = Server::start();
    server.ask(&["SET", "h", "no hash"]);
    let proxy = Proxy::before(&server);
    let redis = || Redis::builder(&proxy.url()).connections(1).build().unwrap();
    let stores = Region::builder(redis()).lock(RedisLock::new()).build().unwrap();
    let discards = Region::builder(redis()).lock(RedisLock::new().on_lease_lost(OnLeaseLost::Discard)).build().unwrap();
    let create = || Ok::<_, Infallible>(1_u64);
    for warm in [&"a", &"b"] {
        stores.get::<u64>(warm).unwrap();
        discards.get::<u64>(warm).unwrap();
    }
    assert_eq!(proxy.count(|| assert_eq!(stores.get_or_create(("h", "f"), create).unwrap(), 1)), 3);
    assert_eq!(proxy.count(|| assert_eq!(discards.get_or_create(("h", "f"), create).unwrap(), 1)), 3);
    assert_eq!((stores.stats().failed_writes, discards.stats().failed_writes), (1, 1));
    assert_eq!(server.ask(&["KEYS", "_lok.*"]), "*0");
}

#[test]
fn nothing_to_lock_is_nothing_to_ask() {
    let server = Server::start();
    let redis = server.redis();
    let begun = Instant::now();
    assert!(internals::lease(&redis, &[], Duration::from_secs(1)).unwrap().is_empty());
    assert!(internals::release(&redis, &[]).unwrap().is_empty());
    assert!(internals::set_and_release(&redis, &[], &Batch::new(), None, true).unwrap().is_empty());
    assert!(begun.elapsed() < Duration::from_millis(500));
}

#[test]
fn what_a_leader_found_is_judged_by_who_gets_it() {
    // The replica lags behind: it knows nothing of an entry that the primary has, and that is half an hour old.
    let (primary, replica) = (Server::start(), Server::start());
    let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
    let redis = Redis::builder(&primary.url()).reader(&replica.url()).build().unwrap();
    let slow = SlowLock(RedisLock::new());
    let region = Region::builder(redis).lock(slow).clock(clock.clone()).build().unwrap();
    region.set("k", &1_u64).unwrap();
    clock.advance(Duration::from_secs(1800));
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| {
            region.with_stale_after(Duration::from_secs(3600)).get_or_create("k", || Ok::<_, Infallible>(2_u64))
        });
        eventually("somebody leads", || region.is_locked("k").unwrap());
        let strict = region.with_stale_after(Duration::from_secs(5)).get_or_create("k", || Ok::<_, Infallible>(3_u64));
        assert_eq!(strict.unwrap(), 3);
        assert_eq!(patient.join().unwrap().unwrap(), 1);
    });
}

/// Takes its time to lock.
struct SlowLock(RedisLock);

impl dogpile::lock::LockSettings for SlowLock {}

impl Lock<Redis> for SlowLock {
    type Guard = <RedisLock as Lock<Redis>>::Guard;

    fn try_lock(&self, backend: &Redis, key: Key<'_>) -> Result<Option<Self::Guard>, dogpile::Error> {
        self.0.try_lock(backend, key)
    }

    fn try_lock_and_read(
        &self,
        backend: &Redis,
        keys: &[Key<'_>],
    ) -> Result<Vec<dogpile::lock::Attempt<Self::Guard>>, dogpile::Error> {
        std::thread::sleep(Duration::from_millis(100));
        self.0.try_lock_and_read(backend, keys)
    }

    fn is_locked(&self, backend: &Redis, key: Key<'_>) -> Result<bool, dogpile::Error> {
        self.0.is_locked(backend, key)
    }
}
