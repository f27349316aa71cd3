//! The line and its readings under shuttle, which runs threads in orders that chance makes: RUSTFLAGS="--cfg shuttle".
//!
//! A schedule that fails is printed, and `shuttle::replay` runs it again.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use shuttle::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use shuttle::thread;

use crate::key::Key;
use crate::region::create::single_flight::{IfBusy, Joined, Leader, SharedEntry, SingleFlight, WaitOutcome, Waiter};

/// Two keys, one of which every caller wants.
const KEYS: [Key<'_>; 2] = [Key::Plain(b"k"), Key::Plain(b"l")];

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// What callers share: the line, and a cache that holds one value a key, if any.
struct Scene {
    line: Arc<SingleFlight>,
    stored: [AtomicU64; 2],
    creating: [AtomicUsize; 2],
    created: [AtomicUsize; 2],
    /// Counts what happens.
    time: AtomicU64,
}

/// What is stored by who does not create. Created values are the time when their creator began.
const STORED: u64 = u64::MAX;

/// What a caller does otherwise than the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Creates,
    /// Its creator fails.
    Fails,
    /// It is dropped while it reads.
    LeavesReading,
    /// It is dropped while it waits.
    LeavesLine,
    /// It stores without standing in line, and wants the value after that.
    Stores,
}

impl Scene {
    fn call(&self, at: usize, way: Way) -> Option<u64> {
        let (key, hash) = (KEYS[at], self.line.hash(KEYS[at]));
        let mut stored_at = 0;
        if way == Way::Stores {
            self.stored[at].store(STORED, Ordering::SeqCst);
            stored_at = self.now();
            self.line.wrote(hash);
        }
        loop {
            let waiter = match self.line.begin_read(hash, key, None) {
                Err(waiter) => waiter,
                Ok(reading) => {
                    let found = self.stored[at].load(Ordering::SeqCst);
                    if way == Way::LeavesReading {
                        return None;
                    }
                    if found != 0 {
                        reading.into_iter().for_each(crate::region::create::single_flight::SharedRead::found);
                        return Some(found);
                    }
                    let leader = reading.and_then(|reading| reading.missed(key, None));
                    match leader.map(Joined::Leads).or_else(|| self.line.join(key, IfBusy::Wait, None)) {
                        Some(Joined::Leads(leader)) => return self.lead(at, way, &leader),
                        Some(Joined::Waits(waiter)) => waiter,
                        _ => unreachable!("it waits if somebody leads"),
                    }
                }
            };
            match self.wait(waiter, way) {
                None => return None,
                Some(WaitOutcome::Shared(SharedEntry::Created(entry) | SharedEntry::Found(entry))) => {
                    let value = u64::from_le_bytes(entry[..].try_into().unwrap());
                    assert!(value > stored_at, "who stored is told what began to be created before");
                    return Some(value);
                }
                Some(WaitOutcome::Promoted(leader)) => return self.lead(at, way, &leader),
                Some(WaitOutcome::Ended) => {}
            }
        }
    }

    fn now(&self) -> u64 {
        1 + self.time.fetch_add(1, Ordering::SeqCst)
    }

    fn wait(&self, mut waiter: Waiter, way: Way) -> Option<WaitOutcome> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            match waiter.poll(&Context::from_waker(&waker), None) {
                Poll::Ready(woken) => return Some(woken),
                Poll::Pending if way == Way::LeavesLine => return None,
                Poll::Pending => thread::park(),
            }
        }
    }

    /// Reads again, and creates if there is nothing.
    fn lead(&self, at: usize, way: Way, leader: &Leader) -> Option<u64> {
        let found = self.stored[at].load(Ordering::SeqCst);
        if found != 0 {
            leader.share(SharedEntry::Found(Bytes::copy_from_slice(&found.to_le_bytes())));
            return Some(found);
        }
        assert_eq!(self.creating[at].fetch_add(1, Ordering::SeqCst), 0, "two create at the same time");
        let value = self.now();
        self.created[at].fetch_add(1, Ordering::SeqCst);
        thread::yield_now();
        self.creating[at].fetch_sub(1, Ordering::SeqCst);
        if way == Way::Fails {
            self.created[at].fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        leader.share(SharedEntry::Created(Bytes::copy_from_slice(&value.to_le_bytes())));
        self.stored[at].store(value, Ordering::SeqCst);
        Some(value)
    }
}

fn explore(ways: &'static [(usize, Way)]) {
    let scene = move || {
        let scene = Arc::new(Scene {
            line: Arc::new(SingleFlight::new()),
            stored: Default::default(),
            creating: Default::default(),
            created: Default::default(),
            time: Default::default(),
        });
        let callers: Vec<_> = ways
            .iter()
            .map(|&(at, way)| {
                let scene = Arc::clone(&scene);
                thread::spawn(move || scene.call(at, way))
            })
            .collect();
        for (caller, (_, way)) in callers.into_iter().zip(ways) {
            let got = caller.join().unwrap();
            assert!(got.is_some() || !matches!(way, Way::Creates | Way::Stores), "{way:?} got nothing");
        }
        for (at, key) in KEYS.into_iter().enumerate() {
            assert!(!scene.line.is_loading(key), "somebody still stands in line");
            assert!(scene.created[at].load(Ordering::SeqCst) <= 1, "it was created twice");
            // Nothing that a caller left behind keeps the next one waiting.
            assert!(scene.call(at, Way::Creates).is_some());
        }
    };
    // Every wake-up that is lost is a deadlock, which shuttle reports.
    shuttle::check_random(scene, 3_000);
    shuttle::check_pct(scene, 3_000, 3);
}

#[test]
fn callers_that_create() {
    explore(&[(0, Way::Creates), (0, Way::Creates), (0, Way::Creates)]);
}

#[test]
fn callers_that_fail() {
    explore(&[(0, Way::Creates), (0, Way::Fails), (0, Way::Creates), (0, Way::Fails)]);
}

#[test]
fn callers_that_leave() {
    explore(&[(0, Way::LeavesReading), (0, Way::Creates), (0, Way::LeavesLine), (0, Way::Creates)]);
}

#[test]
fn callers_that_find_what_they_stored() {
    explore(&[(0, Way::Creates), (0, Way::Stores), (0, Way::Creates), (0, Way::Fails)]);
}

#[test]
fn callers_that_find_what_others_store() {
    explore(&[(0, Way::Stores), (0, Way::Creates), (0, Way::LeavesReading), (1, Way::Creates), (1, Way::Fails)]);
}
