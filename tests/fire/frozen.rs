//! Servers that freeze, and that are dead: nobody hangs, each process creates once at a time, and all goes on by itself
//! when the server is back.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dogpile::lock::{Attempt, LockSettings};
use dogpile::{Error, Key, Lock, Redis, RedisLock, Region};

use crate::ledger::Ledger;
use crate::limit::{all_limited, limited};
use crate::process::{Face, Process, Settings, one_of_all_creates};
use crate::support::{Server, eventually};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_server_that_freezes_hangs_nobody() {
    limited(freeze);
}

fn freeze() {
    let server = Server::start();
    let ledger = Arc::new(Ledger::default());
    // As many processes of each face.
    let settings = |at| Settings {
        lease: 1_000,
        timeout: 500,
        creator: (300, 600),
        seed: at as u64,
        ..Settings::new(format!("p{at}"), &server.url(), Face::of(at))
    };
    let processes: Vec<_> = (0..4).map(|at| Process::noted(&settings(at), &ledger)).collect();
    one_of_all_creates(&processes, &ledger, "before");
    for round in 0..2 {
        let (key, other) = (format!("k{round}"), format!("l{round}"));
        let begun = Instant::now();
        std::thread::scope(|scope| {
            // Another process holds the lock in each round.
            scope.spawn(|| processes[round].callers(4, &key));
            ledger.wait_for(&format!("began {key}"), 1, SOON);
            processes.iter().for_each(|process| drop(scope.spawn(|| process.callers(4, &key))));
            std::thread::sleep(Duration::from_millis(150));
            server.signal("STOP");
            processes.iter().for_each(|process| drop(scope.spawn(|| process.callers(4, &other))));
        });
        let took = begun.elapsed();
        println!("round {round}: all had a value after {took:?} with a frozen server");
        // What is left of a lease, three timeouts of each process that had not noticed yet, and two creators.
        assert!(took < Duration::from_secs(6), "{took:?}");
        assert_eq!(ledger.count(&format!("got {key}")), 20);
        assert_eq!(ledger.count(&format!("got {other}")), 16);
        server.signal("CONT");
        for process in &processes {
            eventually("the server answers", || process.is_reached());
        }
        one_of_all_creates(&processes, &ledger, &format!("after{round}"));
        // A lock that the server gave to nobody when it woke up ends by itself.
        let begun = Instant::now();
        processes.iter().for_each(|process| process.call(&key));
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
    ledger.check();
    eventually("all locks are gone", || server.ask(&["KEYS", "_lok.*"]) == "*0");
}

/// How a server is out of reach.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outage {
    Dead,
    Frozen,
}

#[test]
fn a_dead_server_costs_no_timeout_a_call() {
    all_limited(Face::ALL, |face| outage(Outage::Dead, face));
}

#[test]
fn a_frozen_server_costs_few_timeouts() {
    all_limited(Face::ALL, |face| outage(Outage::Frozen, face));
}

fn outage(how: Outage, face: Face) {
    const CALLS: u32 = 200;
    let mut server = Server::start();
    let ledger = Arc::new(Ledger::default());
    let settings = |name, creator| Settings { timeout: 300, creator, ..Settings::new(name, &server.url(), face) };
    let quick = Process::noted(&settings("quick", (0, 0)), &ledger);
    let slow = [0, 1].map(|at| Process::noted(&settings(["a", "b"][at], (800, 800)), &ledger));
    quick.call("before");
    one_of_all_creates(&slow, &ledger, "before");
    match how {
        Outage::Dead => server.stop(),
        Outage::Frozen => server.signal("STOP"),
    }
    let begun = Instant::now();
    (0..CALLS).for_each(|call| quick.call(&format!("q{call}")));
    let took = begun.elapsed();
    println!("{face:?}: {CALLS} calls took {took:?} with a server that is {how:?}");
    // A few calls find out, and then one is made each second at most to see whether it is back.
    assert!(took < Duration::from_millis(300) * CALLS / 10, "{took:?}");
    // Each process creates a value once.
    std::thread::scope(|scope| slow.iter().for_each(|process| drop(scope.spawn(|| process.callers(16, "k")))));
    assert_eq!((ledger.count("made k"), ledger.count("got k")), (2, 32));
    // Nothing was stored, and nothing more is made at once than one value in each.
    std::thread::scope(|scope| slow.iter().for_each(|process| drop(scope.spawn(|| process.callers(4, "k")))));
    assert_eq!((ledger.count("made k"), ledger.count("got k")), (4, 40));
    match how {
        Outage::Dead => server.restart(),
        Outage::Frozen => server.signal("CONT"),
    }
    for process in slow.iter().chain([&quick]) {
        eventually("the server answers", || process.is_reached());
    }
    one_of_all_creates(&slow, &ledger, "after");
    quick.call("after");
    quick.call("after");
    assert_eq!(ledger.count("made after"), 1, "it is stored");
    ledger.check();
}

// A frozen server takes a lease when it thaws that was asked for long before; for nobody, if nobody releases it. Without
// `lease_on_miss` that needs a freeze between the reading and the lock.
#[test]
fn a_thaw_leaves_no_locks_to_nobody() {
    let cases = Face::ALL.into_iter().flat_map(|face| [(face, false), (face, true)]);
    all_limited(cases, |(face, lease_on_miss)| thaw(face, lease_on_miss));
}

fn thaw(face: Face, lease_on_miss: bool) {
    let server = Server::start();
    let ledger = Arc::new(Ledger::default());
    let settings = |name| Settings { timeout: 300, lease_on_miss, ..Settings::new(name, &server.url(), face) };
    let process = Process::noted(&settings("froze"), &ledger);
    let other = Process::noted(&settings("came later"), &ledger);
    process.call("before");
    server.signal("STOP");
    let call_all = |process: &Process| {
        std::thread::scope(|scope| (0..8).for_each(|at| drop(scope.spawn(move || process.call(&format!("k{at}"))))));
    };
    // Each has its value, by a creator of its own.
    call_all(&process);
    server.signal("CONT");
    eventually("the server answers", || process.is_reached());
    let locks = server.ask(&["KEYS", "_lok.*"]);
    let begun = Instant::now();
    call_all(&other);
    let took = begun.elapsed();
    ledger.check();
    let locks = locks.lines().next().unwrap_or_default();
    println!("{face:?}, lease_on_miss {lease_on_miss}: {locks} locks of nobody, which kept others for {took:?}");
    assert!(took < Duration::from_secs(3), "{face:?}, lease_on_miss {lease_on_miss}: {locks}, {took:?}");
}

// The same with the default lock: the server freezes after the reading and before the lock.
#[test]
fn a_lock_whose_answer_came_too_late_is_released() {
    let server = Arc::new(Server::start());
    let redis = Redis::builder(&server.url()).response_timeout(Duration::from_millis(300)).build().unwrap();
    let lock = FreezingLock(RedisLock::new(), Arc::clone(&server));
    let froze = Region::builder(redis).lock(lock).build().unwrap();
    assert_eq!(froze.get_or_create("k", || Ok::<_, Infallible>(1_u64)).unwrap(), 1);
    server.signal("CONT");
    let other = Region::builder(server.redis()).lock(RedisLock::new()).build().unwrap();
    let begun = Instant::now();
    assert_eq!(other.get_or_create("k", || Ok::<_, Infallible>(2_u64)).unwrap(), 2);
    let took = begun.elapsed();
    println!("a lock of nobody kept another process for {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
}

/// Its server freezes when it is asked for.
struct FreezingLock(RedisLock, Arc<Server>);

impl LockSettings for FreezingLock {}

impl Lock<Redis> for FreezingLock {
    type Guard = <RedisLock as Lock<Redis>>::Guard;

    fn try_lock(&self, backend: &Redis, key: Key<'_>) -> Result<Option<Self::Guard>, Error> {
        self.1.signal("STOP");
        self.0.try_lock(backend, key)
    }

    fn try_lock_and_read(&self, backend: &Redis, keys: &[Key<'_>]) -> Result<Vec<Attempt<Self::Guard>>, Error> {
        self.1.signal("STOP");
        self.0.try_lock_and_read(backend, keys)
    }

    fn is_locked(&self, backend: &Redis, key: Key<'_>) -> Result<bool, Error> {
        self.0.is_locked(backend, key)
    }
}
