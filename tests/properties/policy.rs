//! Expiry and invalidation: random times of writing, reading and invalidating, against what was promised.
#![cfg(feature = "memory")]

use std::convert::Infallible;
use std::time::Duration;

use dogpile::codec::Envelope;
use dogpile::codec::{Bare, Full, Seconds};
use dogpile::{Clock, Codec, Expiry, Invalidate, LocalLock, Memory, Msgpack, Region, Timestamp};
use proptest::prelude::*;

use crate::check;

#[derive(Clone, Debug)]
enum Step {
    Set(u8),
    /// Microseconds.
    Wait(u64),
    /// So many times in a row.
    Invalidate(bool, u8),
    Get(u8),
    GetOrCreate(u8),
    /// The creator invalidates: what it made may be made of old data.
    CreateAndInvalidate(u8, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || 0_u8..3;
    let micros = prop_oneof![0_u64..3, 0_u64..1_000_000, 0_u64..5_000_000, 0_u64..100_000_000, Just(1_000_000)];
    let step = prop_oneof![
        4 => key().prop_map(Step::Set),
        5 => micros.prop_map(Step::Wait),
        2 => (any::<bool>(), prop_oneof![9 => 1_u8..3, 1 => 60_u8..100]).prop_map(|(hard, times)| Step::Invalidate(hard, times)),
        6 => key().prop_map(Step::Get),
        2 => key().prop_map(Step::GetOrCreate),
        1 => (key(), any::<bool>()).prop_map(|(key, hard)| Step::CreateAndInvalidate(key, hard)),
    ];
    prop::collection::vec(step, 0..40)
}

/// An entry that was stored, as its writer saw it.
#[derive(Clone, Copy)]
struct Stored {
    value: u64,
    created: Timestamp,
    /// How often the region had been invalidated when it began to be made.
    invalidations: u64,
}

/// What an envelope may make of a time.
trait Precision: Envelope {
    /// Whether it keeps any.
    const KEEPS: bool = true;
    /// Whether an entry of that time may count as younger than it is, by up to a second.
    fn is_whole_second(created: Timestamp) -> bool;
}

impl Precision for Seconds {
    fn is_whole_second(_: Timestamp) -> bool {
        true
    }
}

impl Precision for Full {
    fn is_whole_second(created: Timestamp) -> bool {
        created.as_micros().is_multiple_of(1_000_000)
    }
}

impl Precision for Bare {
    const KEEPS: bool = false;
    fn is_whole_second(_: Timestamp) -> bool {
        true
    }
}

/// Whether an entry must be found fresh; `None` where both would do.
fn is_fresh<E: Precision>(stored: Stored, expiry: Expiry, now: Timestamp, invalidations: u64) -> Option<bool> {
    if !E::KEEPS {
        return Some(true);
    }
    if stored.invalidations < invalidations {
        return Some(false);
    }
    let Expiry::After(most) = expiry else { return Some(true) };
    let age = now.since(stored.created);
    if age < most {
        return Some(true);
    }
    // Each invalidation may have moved the times that entries get by a second, and the first to a whole one.
    let moved =
        if E::is_whole_second(stored.created) { 1 } else { 0 } + if invalidations > 0 { invalidations + 1 } else { 0 };
    if age >= most + Duration::from_secs(moved) { Some(false) } else { None }
}

fn run<E: Precision>(steps: &[Step], start: Timestamp, expiry: Expiry)
where
    Msgpack<E>: Codec<u64>,
{
    let clock = Clock::manual(start);
    let region: Region<Memory, Msgpack<E>, LocalLock> = Region::builder(Memory::new(1 << 20))
        .codec(Msgpack::<E>::new())
        .clock(clock.clone())
        .stale_after(expiry)
        .build()
        .unwrap();
    let mut model = [None::<Stored>; 3];
    let (mut value, mut invalidations) = (0, 0);
    let how = |hard| if hard { Invalidate::Hard } else { Invalidate::Soft };
    for step in steps {
        value += 1;
        let now = clock.now();
        let fresh = |stored: Option<Stored>| match stored {
            None => Some(false),
            Some(stored) => is_fresh::<E>(stored, expiry, now, invalidations),
        };
        match *step {
            Step::Set(key) => {
                region.set(key, &value).unwrap();
                model[usize::from(key)] = Some(Stored { value, created: now, invalidations });
            }
            Step::Wait(micros) => clock.advance(Duration::from_micros(micros)),
            Step::Invalidate(hard, times) => {
                for _ in 0..times {
                    region.invalidate(how(hard));
                    invalidations += 1;
                }
            }
            Step::Get(key) => {
                let stored = model[usize::from(key)];
                let got: Option<u64> = region.get(key).unwrap();
                assert_eq!(region.get_many(&[key, key]).unwrap(), [got, got]);
                assert_eq!(region.get_entry(key).unwrap().map(|entry| entry.value), got);
                if let Some(got) = got {
                    assert_eq!(Some(got), stored.map(|stored| stored.value));
                }
                if let Some(fresh) = fresh(stored) {
                    assert_eq!(got.is_some(), fresh, "get of {key} at {now:?}");
                }
                assert_eq!(region.ignoring_expiry().get(key).unwrap(), stored.map(|stored| stored.value));
            }
            Step::GetOrCreate(key) | Step::CreateAndInvalidate(key, _) => {
                let stored = model[usize::from(key)];
                let mut created = false;
                let got = region.get_or_create(key, || {
                    created = true;
                    if let Step::CreateAndInvalidate(_, hard) = *step {
                        region.invalidate(how(hard));
                    }
                    Ok::<_, Infallible>(value)
                });
                // Alone, a caller creates what is stale, too.
                let expected = if created { Some(value) } else { stored.map(|stored| stored.value) };
                assert_eq!(Some(got.unwrap()), expected);
                if let Some(fresh) = fresh(stored) {
                    assert_eq!(created, !fresh, "creation of {key} at {now:?}");
                }
                if created {
                    model[usize::from(key)] = Some(Stored { value, created: now, invalidations });
                    invalidations += u64::from(matches!(step, Step::CreateAndInvalidate(..)));
                }
            }
        }
    }
}

/// From the start of a second or within it.
fn start() -> impl Strategy<Value = Timestamp> {
    prop_oneof![Just(0), 0_u64..1_000_000].prop_map(|micros| Timestamp::from_micros(1_471_113_698_000_000 + micros))
}

fn expiry() -> impl Strategy<Value = Expiry> {
    prop_oneof![
        Just(Expiry::Never),
        (1_u64..3_000_000).prop_map(|micros| Expiry::After(Duration::from_micros(micros))),
        (1_u64..120).prop_map(|seconds| Expiry::After(Duration::from_secs(seconds))),
    ]
}

#[test]
fn entries_are_fresh_as_long_as_promised() {
    check((steps(), start(), expiry()), |(steps, start, expiry)| {
        run::<Seconds>(&steps, start, expiry);
        run::<Full>(&steps, start, expiry);
        run::<Bare>(&steps, start, expiry);
    });
}

/// Each invalidation within a second moves the time of what is created next by a second. After sixty-one of them that was
/// taken for the time of a clock that is wrong, and nothing was fresh any more.
#[test]
fn many_invalidations_in_a_second_leave_new_entries_fresh() {
    let steps = [Step::Invalidate(false, 61), Step::Set(0), Step::Get(0), Step::GetOrCreate(0)];
    run::<Seconds>(&steps, Timestamp::from_secs(1_471_113_698), Expiry::After(Duration::from_secs(60)));
    run::<Full>(&steps, Timestamp::from_secs(1_471_113_698), Expiry::After(Duration::from_secs(60)));
}
