//! Who creates a value and who waits: threads, failures, invalidations, a backend that is down; on `Memory`.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use bytestring::ByteString;
use dogpile::backend::Batch;
use dogpile::{Backend, ErrorKind, GetError, Invalidate, Key, Memory, Region};

use crate::region::{SECOND, clocked, fine, plain};
use crate::support::eventually;

/// Waits until somebody waits in the line: a moment is enough, since nothing else is left to do.
pub(crate) fn a_moment() {
    std::thread::sleep(Duration::from_millis(30));
}

#[test]
fn what_is_invalidated_while_it_is_created_is_not_valid() {
    let (builder, clock) = clocked();
    let region = builder.build().unwrap();
    let value = region.get_or_create("k", || {
        clock.advance(2 * SECOND);
        region.invalidate(Invalidate::Hard);
        clock.advance(2 * SECOND);
        fine(1_u64)
    });
    assert_eq!(value.unwrap(), 1);
    assert_eq!(region.get::<u64>("k").unwrap(), None, "it may be made of what was there before");
}

#[test]
fn one_of_many_threads_creates() {
    let region = plain();
    let calls = AtomicUsize::new(0);
    let barrier = Barrier::new(32);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                barrier.wait();
                let value = region.get_or_create("k", || {
                    calls.fetch_add(1, Ordering::SeqCst);
                    assert!(region.is_locked("k").unwrap());
                    a_moment();
                    fine(15_u64)
                });
                assert_eq!(value.unwrap(), 15);
            });
        }
    });
    assert_eq!(calls.into_inner(), 1);
    assert!(!region.is_locked("k").unwrap());
    let stats = region.stats();
    assert_eq!((stats.creations, stats.failed_creations), (1, 0));
    assert!(stats.coalesced <= 31);
}

#[test]
fn a_stale_value_is_served_while_one_creates() {
    let (builder, clock) = clocked();
    let region = builder.stale_after(10 * SECOND).build().unwrap();
    region.set("k", &1_u64).unwrap();
    clock.advance(10 * SECOND);
    let (created, go) = (AtomicUsize::new(0), Barrier::new(2));
    std::thread::scope(|scope| {
        let creator = scope.spawn(|| {
            region.get_or_create("k", || {
                created.fetch_add(1, Ordering::SeqCst);
                go.wait();
                go.wait();
                fine(2_u64)
            })
        });
        go.wait();
        // The creator is at work: nobody waits, nobody else creates.
        for _ in 0..10 {
            let value = region.get_or_create("k", || -> Result<u64, Infallible> { panic!("one creates") });
            assert_eq!(value.unwrap(), 1);
        }
        go.wait();
        assert_eq!(creator.join().unwrap().unwrap(), 2);
    });
    assert_eq!((region.get("k").unwrap(), region.stats().stale_hits), (Some(2_u64), 10));
}

#[test]
fn who_wins_a_race_for_a_stale_value_reads_again() {
    let (builder, clock) = clocked();
    let region = builder.stale_after(10 * SECOND).build().unwrap();
    region.set("k", &1_u64).unwrap();
    clock.advance(10 * SECOND);
    let created = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let value = region.get_or_create("k", || {
                        created.fetch_add(1, Ordering::SeqCst);
                        fine(2_u64)
                    });
                    assert!(matches!(value, Ok(1 | 2)));
                }
            });
        }
    });
    assert_eq!(created.into_inner(), 1);
}

#[test]
fn a_creator_that_fails_lets_the_next_one_try() {
    let region = plain();
    let calls = AtomicUsize::new(0);
    let results: Vec<Result<u64, GetError<String>>> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    region.get_or_create("k", || {
                        let call = calls.fetch_add(1, Ordering::SeqCst);
                        a_moment();
                        if call < 3 { Err(format!("no {call}")) } else { Ok(15) }
                    })
                })
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert_eq!(calls.into_inner(), 4, "each failure elects one more");
    assert_eq!(results.iter().filter(|result| matches!(result, Ok(15))).count(), 5);
    let mut errors: Vec<String> =
        results.into_iter().filter_map(Result::err).map(|error| error.into_create().unwrap()).collect();
    errors.sort();
    assert_eq!(errors, ["no 0", "no 1", "no 2"]);
    assert_eq!((region.stats().failed_creations, region.stats().creations), (3, 1));
}

#[test]
fn a_creator_that_panics_lets_the_next_one_try() {
    let region = plain();
    let entered = Barrier::new(2);
    std::thread::scope(|scope| {
        let panics = scope.spawn(|| {
            catch_unwind(AssertUnwindSafe(|| {
                region.get_or_create("k", || -> Result<u64, Infallible> {
                    entered.wait();
                    a_moment();
                    panic!("as it should")
                })
            }))
            .is_err()
        });
        entered.wait();
        let value = region.get_or_create("k", || fine(15_u64));
        assert_eq!(value.unwrap(), 15);
        assert!(panics.join().unwrap());
    });
    assert!(!region.is_locked("k").unwrap());
    assert_eq!(region.stats().failed_creations, 1);
}

#[test]
fn a_creator_that_asks_for_its_own_value_is_told() {
    let region = plain();
    let error = region
        .get_or_create("k", || region.get_or_create("k", || fine(1_u64)).map_err(|error| error.to_string()))
        .unwrap_err()
        .into_create()
        .unwrap();
    assert!(error.contains("creating k: the creator asks for the key that it is creating"), "{error}");
    // Another key is fine.
    let value = region.get_or_create("k", || region.get_or_create("other", || fine(1_u64)));
    assert_eq!(value.unwrap(), 1);
}

#[test]
fn patience_ends() {
    let region = Region::builder(Memory::new(1 << 20)).wait_timeout(Duration::from_millis(50)).build().unwrap();
    let entered = Barrier::new(2);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            region.get_or_create("k", || {
                entered.wait();
                entered.wait();
                fine(15_u64)
            })
        });
        entered.wait();
        let begun = Instant::now();
        let error = region.get_or_create("k", || fine(16_u64)).unwrap_err();
        assert!(matches!(&error, GetError::Cache(error) if error.kind() == ErrorKind::Timeout), "{error}");
        assert!(begun.elapsed() >= Duration::from_millis(50));
        entered.wait();
        assert_eq!(slow.join().unwrap().unwrap(), 15);
    });
    assert_eq!(
        Region::builder(Memory::new(1)).wait_timeout(Duration::ZERO).build().unwrap_err().kind(),
        ErrorKind::Config
    );
}

#[test]
fn what_is_not_to_be_stored_is_still_shared() {
    let region = plain();
    let calls = AtomicUsize::new(0);
    let entered = Barrier::new(2);
    let unstored = |value: u64| {
        region.store_if(|value: &u64| *value > 100).get_or_create("k", || {
            calls.fetch_add(1, Ordering::SeqCst);
            entered.wait();
            a_moment();
            fine(value)
        })
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| unstored(1));
        entered.wait();
        let others: Vec<_> = (0..4).map(|_| scope.spawn(|| region.get_or_create("k", || fine(2_u64)))).collect();
        assert_eq!(first.join().unwrap().unwrap(), 1);
        for other in others {
            // Who came too late for the first value created a second one.
            assert!(matches!(other.join().unwrap(), Ok(1 | 2)));
        }
    });
    assert_eq!(calls.into_inner(), 1);
    region.delete("k").unwrap();
    assert_eq!(region.store_if(|value: &u64| *value > 100).get_or_create("k", || fine(7_u64)).unwrap(), 7);
    assert_eq!(region.get::<u64>("k").unwrap(), None);
    assert_eq!(region.store_if(|value: &u64| *value > 100).get_or_create("k", || fine(700_u64)).unwrap(), 700);
    assert_eq!(region.get("k").unwrap(), Some(700_u64));
}

#[test]
fn blocking_callers_of_clones_share_one_line() {
    let region = plain();
    let twin = region.clone();
    let entered = Barrier::new(2);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            region.get_or_create("k", || {
                entered.wait();
                a_moment();
                fine(ByteString::from("first"))
            })
        });
        entered.wait();
        assert_eq!(twin.get_or_create("k", || fine(ByteString::from("second"))).unwrap(), "first");
        assert_eq!(first.join().unwrap().unwrap(), "first");
    });
}

#[test]
fn many_callers_after_an_invalidation_make_one_new_value() {
    for how in [Invalidate::Hard, Invalidate::Soft] {
        let region = plain();
        region.set("k", &1_u64).unwrap();
        region.invalidate(how);
        let (calls, barrier) = (AtomicUsize::new(0), Barrier::new(8));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    let value = region.get_or_create("k", || {
                        calls.fetch_add(1, Ordering::SeqCst);
                        a_moment();
                        fine(2_u64)
                    });
                    let expected: &[u64] = if how == Invalidate::Hard { &[2] } else { &[1, 2] };
                    assert!(expected.contains(&value.unwrap()));
                });
            }
        });
        assert_eq!(calls.into_inner(), 1, "{how:?}");
    }
}

#[test]
fn who_asks_after_an_invalidation_does_not_get_what_was_begun_before() {
    let region = plain();
    let calls = AtomicUsize::new(0);
    let entered = Barrier::new(2);
    std::thread::scope(|scope| {
        let old = scope.spawn(|| {
            region.get_or_create("k", || {
                entered.wait();
                entered.wait();
                a_moment();
                fine(1_u64)
            })
        });
        entered.wait();
        region.invalidate(Invalidate::Hard);
        let (calls, region) = (&calls, &region);
        let new: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(move || {
                    region.get_or_create("k", || {
                        calls.fetch_add(1, Ordering::SeqCst);
                        fine(2_u64)
                    })
                })
            })
            .collect();
        entered.wait();
        assert!(new.into_iter().all(|new| new.join().unwrap().unwrap() == 2));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        assert_eq!(old.join().unwrap().unwrap(), 1);
    });
    assert_eq!(region.get("k").unwrap(), Some(2_u64));
}

#[test]
fn callers_who_want_another_type_wait_and_create() {
    let region = plain();
    let calls = AtomicUsize::new(0);
    let entered = Barrier::new(2);
    std::thread::scope(|scope| {
        let text = scope.spawn(|| {
            // Shared before it is stored, and the store takes its time.
            region.store_if(|_: &String| true).get_or_create("k", || {
                entered.wait();
                a_moment();
                fine("text".to_string())
            })
        });
        entered.wait();
        let (calls, region) = (&calls, &region);
        let numbers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(move || {
                    region.get_or_create("k", || {
                        calls.fetch_add(1, Ordering::SeqCst);
                        fine(7_u64)
                    })
                })
            })
            .collect();
        assert!(numbers.into_iter().all(|number| number.join().unwrap().unwrap() == 7));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        assert_eq!(text.join().unwrap().unwrap(), "text");
    });
    assert!(region.stats().undecodable <= 16, "nobody looks again and again: {:?}", region.stats());
}

/// A backend that fails when told to.
struct Flaky {
    inner: Memory,
    fails: std::sync::atomic::AtomicBool,
}

impl Flaky {
    fn check(&self) -> Result<(), dogpile::Error> {
        if self.fails.load(Ordering::SeqCst) { Err(dogpile::Error::new(ErrorKind::Connection, "down")) } else { Ok(()) }
    }
}

impl Backend for Flaky {
    fn get(&self, key: Key<'_>) -> Result<Option<bytes::Bytes>, dogpile::Error> {
        self.check()?;
        self.inner.get(key)
    }
    fn get_many(&self, keys: &[Key<'_>], found: &mut dogpile::backend::Found) -> Result<(), dogpile::Error> {
        self.check()?;
        self.inner.get_many(keys, found)
    }
    fn set(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), dogpile::Error> {
        self.check()?;
        self.inner.set(key, entry, ttl)
    }
    fn set_many(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), dogpile::Error> {
        self.check()?;
        self.inner.set_many(batch, ttl)
    }
    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), dogpile::Error> {
        self.check()?;
        self.inner.delete_many(keys)
    }
}

#[test]
fn a_backend_that_is_down_does_not_stop_creation_and_one_still_creates() {
    let flaky = || Flaky { inner: Memory::new(1 << 20), fails: true.into() };
    let region = Region::builder(flaky()).build().unwrap();
    assert_eq!(region.get::<u64>("k").unwrap_err().kind(), ErrorKind::Connection);
    assert_eq!(region.set("k", &1_u64).unwrap_err().kind(), ErrorKind::Connection);
    let calls = AtomicUsize::new(0);
    let entered = Barrier::new(2);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            region.get_or_create("k", || {
                calls.fetch_add(1, Ordering::SeqCst);
                entered.wait();
                a_moment();
                fine(15_u64)
            })
        });
        entered.wait();
        let others: Vec<_> =
            (0..8).map(|_| scope.spawn(|| region.get_or_create("k", || fine(15_u64)).unwrap())).collect();
        assert!(others.into_iter().all(|other| other.join().unwrap() == 15));
        assert_eq!(first.join().unwrap().unwrap(), 15);
    });
    assert_eq!(calls.into_inner(), 1);
    let many: Vec<u64> = region.get_or_create_many(&["a", "b"], |keys| fine(vec![1; keys.len()])).unwrap();
    assert_eq!(many, [1, 1]);
    assert!(region.stats().failed_reads >= 2);
    assert!(region.backend().inner.is_empty(), "nothing is stored in what is down");

    region.backend().fails.store(false, Ordering::SeqCst);
    assert_eq!(region.get_or_create("k", || fine(16_u64)).unwrap(), 16);
    assert_eq!(region.get("k").unwrap(), Some(16_u64));
    // It fails between reading and storing.
    let value = region.get_or_create("late", || {
        region.backend().fails.store(true, Ordering::SeqCst);
        fine(17_u64)
    });
    assert_eq!(value.unwrap(), 17);
    assert_eq!(region.stats().failed_writes, 1);

    let closed = Region::builder(flaky()).fail_closed().build().unwrap();
    let error = closed.get_or_create("k", || -> Result<u64, Infallible> { panic!("fails closed") }).unwrap_err();
    assert!(matches!(error, GetError::Cache(error) if error.kind() == ErrorKind::Connection));
    assert!(closed.get_or_create_many(&["k"], |_| -> Result<Vec<u64>, Infallible> { panic!("fails closed") }).is_err());
    eventually("the line is empty", || !closed.is_locked("k").unwrap());
}

/// Does something between the reading of an entry and its return, once.
struct Between<F> {
    inner: Memory,
    then: Mutex<Option<F>>,
}

impl<F: FnOnce() + Send> Backend for Between<F> {
    fn get(&self, key: Key<'_>) -> Result<Option<bytes::Bytes>, dogpile::Error> {
        let found = self.inner.get(key);
        let then = self.then.lock().unwrap().take();
        then.into_iter().for_each(|then| then());
        found
    }
    fn get_many(&self, keys: &[Key<'_>], found: &mut dogpile::backend::Found) -> Result<(), dogpile::Error> {
        let read = self.inner.get_many(keys, found);
        let then = self.then.lock().unwrap().take();
        then.into_iter().for_each(|then| then());
        read
    }
    fn set(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), dogpile::Error> {
        self.inner.set(key, entry, ttl)
    }
    fn set_many(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), dogpile::Error> {
        self.inner.set_many(batch, ttl)
    }
    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), dogpile::Error> {
        self.inner.delete_many(keys)
    }
}

#[test]
fn who_leads_after_another_created_does_not_create_again() {
    type Then = Box<dyn FnOnce() + Send>;
    for many in [false, true] {
        let backend = Between { inner: Memory::new(1 << 20), then: Mutex::<Option<Then>>::new(None) };
        let region = Region::builder(backend).build().unwrap();
        let other = region.clone();
        // Not by `get_or_create`, which would wait for the reading that is under way.
        let create_first = move || assert_eq!(other.get_or_create_many(&["k"], |_| fine(vec![1_u64])).unwrap(), [1]);
        *region.backend().then.lock().unwrap() = Some(Box::new(create_first));
        let value = if many {
            region.get_or_create_many(&["k"], |_| fine(vec![2_u64])).unwrap()[0]
        } else {
            region.get_or_create("k", || fine(2_u64)).unwrap()
        };
        assert_eq!(value, 1, "it had missed the entry before the other one created it");
        assert_eq!(region.stats().creations, 1);
    }
}
