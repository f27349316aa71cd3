//! Many values at once, and creators that need other values: who creates which, and that nobody waits for ever; on
//! `Memory`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use dogpile::{ErrorKind, GetError, Memory, Region};

use crate::creation::a_moment;
use crate::region::{fine, plain};

#[test]
fn many_are_created_by_whoever_leads_them() {
    let region = plain();
    region.set("b", &"old b".to_string()).unwrap();
    let mut asked = Vec::new();
    let values: Vec<String> = region
        .get_or_create_many(&["a", "b", "c", "a"], |missing| {
            asked.push(missing.iter().map(ToString::to_string).collect::<Vec<_>>());
            fine(missing.iter().map(|key| format!("new {key}")).collect())
        })
        .unwrap();
    assert_eq!(values, ["new a", "old b", "new c", "new a"]);
    assert_eq!(asked, [["a", "c"]]);
    let none: Vec<String> =
        region.get_or_create_many(&[] as &[&str], |_| -> Result<_, Infallible> { panic!() }).unwrap();
    assert!(none.is_empty());
    let error = region.get_or_create_many(&["x", "y"], |_| fine(vec![1_u64])).unwrap_err();
    assert_eq!(error.to_string(), "the cache failed: creating 2 keys: the creator returned 1 values");
    let error = region.get_or_create_many(&["x", "y"], |_| Err::<Vec<u64>, _>("no")).unwrap_err();
    assert!(matches!(error, GetError::Create("no")));
    assert!(!region.is_locked("x").unwrap() && !region.is_locked("y").unwrap());
}

#[test]
fn many_callers_of_overlapping_keys_create_each_once() {
    let region = plain();
    let created = std::sync::Mutex::new(HashMap::<u64, usize>::new());
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let (region, created) = (&region, &created);
            scope.spawn(move || {
                for round in 0..50 {
                    // Each thread asks in another order, which must not make them wait for each other for ever.
                    let keys: Vec<u64> = (0..10).map(|at| round * 10 + (at * (2 * thread + 3) + thread) % 10).collect();
                    let values: Vec<u64> = region
                        .get_or_create_many(&keys, |missing| {
                            for key in missing {
                                *created.lock().unwrap().entry(**key).or_default() += 1;
                            }
                            std::thread::yield_now();
                            fine(missing.iter().map(|key| **key * 2).collect())
                        })
                        .unwrap();
                    assert_eq!(values, keys.iter().map(|key| key * 2).collect::<Vec<_>>());
                }
            });
        }
    });
    let created = created.into_inner().unwrap();
    assert_eq!(created.len(), 500);
    assert!(created.values().all(|times| *times == 1), "{created:?}");
}

#[test]
fn many_wait_for_what_others_create_and_take_over_when_they_fail() {
    let region = plain();
    let entered = Barrier::new(2);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            region.get_or_create("b", || -> Result<u64, &str> {
                entered.wait();
                a_moment();
                Err("no")
            })
        });
        entered.wait();
        let mut asked = Vec::new();
        let values: Vec<u64> = region
            .get_or_create_many(&["a", "b", "c"], |missing| {
                asked.push(missing.iter().map(ToString::to_string).collect::<Vec<_>>());
                fine(missing.iter().map(|key| u64::from(key.as_bytes()[0])).collect())
            })
            .unwrap();
        assert_eq!(values, [97, 98, 99]);
        assert_eq!(asked, [vec!["a", "c"], vec!["b"]]);
        assert!(other.join().unwrap().is_err());
    });
}

/// Fails the test instead of hanging it.
fn within_ten_seconds(work: impl FnOnce() + Send + 'static) {
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        work();
        done.send(()).unwrap();
    });
    wait.recv_timeout(Duration::from_secs(10)).expect("it ends without a panic");
}

#[test]
fn a_creator_may_ask_for_what_its_batch_waits_for() {
    within_ten_seconds(|| {
        let region = plain();
        let (entered, go) = (Barrier::new(2), Barrier::new(2));
        std::thread::scope(|scope| {
            let fails = scope.spawn(|| {
                region.get_or_create("k2", || -> Result<u64, &str> {
                    entered.wait();
                    go.wait();
                    a_moment();
                    Err("no")
                })
            });
            entered.wait();
            let values = region.get_or_create_many(&["k1", "k2"], |missing| {
                if missing.contains(&&"k1") {
                    go.wait();
                    region.get_or_create("k2", || fine(2_u64)).unwrap();
                }
                fine(vec![1_u64; missing.len()])
            });
            assert_eq!(values.unwrap(), [1, 2]);
            assert!(fails.join().unwrap().is_err());
        });
    });
}

#[test]
fn callers_that_need_each_others_values_in_turn_do_not_block_each_other() {
    within_ten_seconds(|| {
        let region = plain();
        let (b_leads, c_leads, a_waits) = (Barrier::new(2), Barrier::new(2), Barrier::new(2));
        std::thread::scope(|scope| {
            // C leads k2 and fails; B leads k1 and needs k2; A wants both.
            let c = scope.spawn(|| {
                region.get_or_create("k2", || -> Result<u64, &str> {
                    c_leads.wait();
                    a_waits.wait();
                    a_moment();
                    Err("no")
                })
            });
            c_leads.wait();
            let b = scope.spawn(|| {
                region.get_or_create("k1", || {
                    b_leads.wait();
                    a_moment();
                    a_moment();
                    region.get_or_create("k2", || fine(2_u64))
                })
            });
            b_leads.wait();
            let a = scope.spawn(|| region.get_or_create_many(&["k1", "k2"], |keys| fine(vec![2_u64; keys.len()])));
            a_waits.wait();
            assert_eq!(a.join().unwrap().unwrap(), [2, 2]);
            assert_eq!(b.join().unwrap().unwrap(), 2);
            assert!(c.join().unwrap().is_err());
        });
    });
}

#[test]
fn nobody_is_elected_while_it_creates_something_else() {
    let region = plain();
    let (c_leads, a_creates) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        let c = scope.spawn(|| {
            region.get_or_create("k2", || -> Result<u64, &str> {
                c_leads.wait();
                a_creates.wait();
                a_moment();
                Err("no")
            })
        });
        c_leads.wait();
        let a = scope.spawn(|| {
            region.get_or_create_many(&["k1", "k2"], |missing| {
                if missing.contains(&&"k1") {
                    a_creates.wait();
                    std::thread::sleep(Duration::from_secs(1));
                }
                fine(vec![1_u64; missing.len()])
            })
        });
        let begun = Instant::now();
        assert!(c.join().unwrap().is_err());
        region.get_or_create("k2", || fine(2_u64)).unwrap();
        assert!(begun.elapsed() < Duration::from_millis(700), "{:?}", begun.elapsed());
        a.join().unwrap().unwrap();
    });
}

#[test]
fn ones_own_creator_does_not_cost_patience() {
    let region = Region::builder(Memory::new(1 << 20)).wait_timeout(Duration::from_millis(150)).build().unwrap();
    let entered = Barrier::new(2);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            region.get_or_create("b", || {
                entered.wait();
                std::thread::sleep(Duration::from_millis(300));
                fine(2_u64)
            })
        });
        entered.wait();
        let values = region.get_or_create_many(&["a", "b"], |keys| {
            std::thread::sleep(Duration::from_millis(250));
            fine(vec![1_u64; keys.len()])
        });
        assert_eq!(values.unwrap(), [1, 2]);
        assert_eq!(other.join().unwrap().unwrap(), 2);
    });
    let endless = Region::builder(Memory::new(1 << 20)).wait_timeout(Duration::MAX).build().unwrap();
    assert_eq!(endless.get_or_create("k", || fine(1_u64)).unwrap(), 1);
}

#[test]
fn waiting_for_very_many_keys_is_quick() {
    let region = plain();
    let keys: Vec<u64> = (0..20_000).collect();
    let entered = Barrier::new(2);
    let create = |missing: &[&u64]| fine(missing.iter().map(|key| **key).collect());
    std::thread::scope(|scope| {
        let leads = scope.spawn(|| {
            region.get_or_create_many(&keys, |missing| {
                entered.wait();
                a_moment();
                create(missing)
            })
        });
        entered.wait();
        let begun = Instant::now();
        assert_eq!(region.get_or_create_many(&keys, create).unwrap(), keys);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!(leads.join().unwrap().unwrap(), keys);
    });
}

#[test]
fn one_value_that_is_too_large_does_not_keep_the_others_out() {
    let region = plain();
    let values: Vec<Vec<u8>> = region
        .get_or_create_many(&[1, 2, 3], |keys| {
            fine(keys.iter().map(|key| vec![0; if **key == 2 { 64 << 20 } else { 10 }]).collect())
        })
        .unwrap();
    assert_eq!(values[1].len(), 64 << 20);
    assert_eq!((region.backend().len(), region.stats().failed_writes), (2, 1));
    let closed = Region::builder(Memory::new(1 << 20)).fail_closed().build().unwrap();
    let error = closed.get_or_create("k", || fine(vec![0_u8; 2 << 20])).unwrap_err();
    assert!(matches!(error, GetError::Cache(error) if error.kind() == ErrorKind::TooLarge));
}
