//! What a region reads, writes, expires and invalidates: on `Memory`, with a clock that is moved by hand.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dogpile::codec::{Bare, Full};
use dogpile::keymap::{Digest, Prefix};
use dogpile::{
    Backend, Clock, ErrorKind, Expiry, GetError, Invalidate, Key, KeyBuf, Memory, Msgpack, Raw, Region, RegionBuilder,
    Timestamp,
};

/// The last moment of a second: an envelope of whole seconds then says when a value was created, to the microsecond.
const START: Timestamp = Timestamp::from_micros(1_699_999_999_999_999);
pub const SECOND: Duration = Duration::from_secs(1);

pub fn clocked() -> (RegionBuilder<Memory>, Clock) {
    let clock = Clock::manual(START);
    let memory = Memory::with_clock(64 << 20, clock.clone());
    (Region::builder(memory).clock(clock.clone()), clock)
}

pub fn plain() -> Region<Memory> {
    Region::builder(Memory::new(64 << 20)).build().unwrap()
}

pub fn fine<V>(value: V) -> Result<V, Infallible> {
    Ok(value)
}

#[test]
fn a_cached_none_is_not_a_miss() {
    let region = plain();
    assert_eq!(region.get::<Option<u64>>("k").unwrap(), None);
    region.set("k", &None::<u64>).unwrap();
    assert_eq!(region.get::<Option<u64>>("k").unwrap(), Some(None));
    let value = region.get_or_create("k", || -> Result<Option<u64>, Infallible> { panic!("it is there") });
    assert_eq!(value.unwrap(), None);
}

#[test]
fn an_entry_knows_when_it_was_created() {
    let (builder, clock) = clocked();
    let region = builder.codec(Msgpack::<Full>::new()).build().unwrap();
    assert!(region.get_entry::<u64>("k").unwrap().is_none());
    region.set("k", &15_u64).unwrap();
    clock.advance(5 * SECOND);
    let entry = region.get_entry::<u64>("k").unwrap().unwrap();
    assert_eq!((entry.value, entry.created, entry.age, entry.version), (15, Some(START), Some(5 * SECOND), Some(2)));
    let bare = Region::builder(Memory::new(1 << 20)).codec(Msgpack::<Bare>::new()).build().unwrap();
    bare.set("k", &15_u64).unwrap();
    let entry = bare.get_entry::<u64>("k").unwrap().unwrap();
    assert_eq!((entry.created, entry.age, entry.version), (None, None, None));
}

#[test]
fn expiry_is_of_the_region_or_of_the_call() {
    let (builder, clock) = clocked();
    let region = builder.stale_after(10 * SECOND).build().unwrap();
    region.set("k", &15_u64).unwrap();
    clock.advance(9 * SECOND);
    assert_eq!(region.get("k").unwrap(), Some(15_u64));
    assert_eq!(region.with_stale_after(9 * SECOND).get::<u64>("k").unwrap(), None);
    clock.advance(SECOND);
    assert_eq!(region.get::<u64>("k").unwrap(), None);
    assert_eq!(region.get_entry::<u64>("k").unwrap(), None);
    assert_eq!(region.get_many::<_, u64>(&["k"]).unwrap(), [None]);
    assert_eq!(region.ignoring_expiry().get("k").unwrap(), Some(15_u64));
    assert_eq!(region.with_stale_after(Expiry::Never).get("k").unwrap(), Some(15_u64));
    assert_eq!(region.with_stale_after(11 * SECOND).get_or_create("k", || fine(16_u64)).unwrap(), 15);
    assert_eq!(region.get_or_create("k", || fine(16_u64)).unwrap(), 16);
    assert_eq!(region.get("k").unwrap(), Some(16_u64));
}

#[test]
fn the_ttl_is_of_the_region_or_of_the_call() {
    let (builder, clock) = clocked();
    let region = builder.ttl(10 * SECOND).build().unwrap();
    region.set("a", &1_u64).unwrap();
    region.with_ttl(20 * SECOND).set("b", &2_u64).unwrap();
    region.with_ttl(None).set_many(&[("c", 3_u64)]).unwrap();
    region.get_or_create("d", || fine(4_u64)).unwrap();
    let all = |region: &Region<Memory>| region.get_many::<_, u64>(&["a", "b", "c", "d"]).unwrap();
    assert_eq!(all(&region), [Some(1), Some(2), Some(3), Some(4)]);
    clock.advance(10 * SECOND);
    assert_eq!(all(&region), [None, Some(2), Some(3), None]);
    clock.advance(10 * SECOND);
    assert_eq!(all(&region), [None, None, Some(3), None]);
}

#[test]
fn many_in_the_callers_order_with_duplicates() {
    let region = plain();
    assert_eq!(region.get_many::<&str, u64>(&[]).unwrap(), []);
    region.set_many::<&str, u64>(&[]).unwrap();
    region.delete_many::<&str>(&[]).unwrap();
    region.set_many(&[(1, 10_u64), (2, 20), (1, 11)]).unwrap();
    assert_eq!(region.get_many(&[2, 1, 3, 2]).unwrap(), [Some(20_u64), Some(11), None, Some(20)]);
    region.delete_many(&[1, 1, 3]).unwrap();
    assert_eq!(region.get_many(&[1, 2]).unwrap(), [None, Some(20_u64)]);
    region.set_many(&[(("h", 1), 10_u64), (("h", 2), 20)]).unwrap();
    assert_eq!(region.get(("h", "2")).unwrap(), Some(20_u64));
    region.delete(("h", 2)).unwrap();
    assert_eq!(region.get::<u64>(("h", "2")).unwrap(), None);
}

#[test]
fn key_maps_apply_to_all() {
    let memory = Memory::new(1 << 20);
    let region = Region::builder(memory).keys((Prefix::new("app:"), Digest::from_length(20))).build().unwrap();
    region.set("k", &1_u64).unwrap();
    region.set_many(&[("a rather long key, all in all", 2_u64)]).unwrap();
    region.get_or_create(("h", "f"), || fine(3_u64)).unwrap();
    assert!(region.backend().get(Key::from("app:k")).unwrap().is_some());
    assert!(region.backend().get(Key::from(("app:h", "f"))).unwrap().is_some());
    assert_eq!(region.get_many(&["a rather long key, all in all"]).unwrap(), [Some(2_u64)]);
    assert_eq!(region.backend().len(), 3);
    region.delete_many(&["k", "a rather long key, all in all"]).unwrap();
    assert_eq!(region.backend().len(), 1);
}

#[test]
fn undecodable_entries_are_misses_that_heal() {
    let region = plain();
    for bytes in [&b""[..], b"\xc1", b"\x92\xa1a", b"not msgpack at all", b"\x92\x05\x06\x07"] {
        let before = region.stats().undecodable;
        region.backend().set(Key::from("k"), bytes, None).unwrap();
        assert_eq!(region.get::<u64>("k").unwrap(), None);
        assert_eq!(region.get_many::<_, u64>(&["k"]).unwrap(), [None]);
        assert_eq!(region.stats().undecodable - before, 2);
        assert_eq!(region.get_or_create("k", || fine(7_u64)).unwrap(), 7);
        assert_eq!(region.get("k").unwrap(), Some(7_u64), "it was overwritten");
    }
    region.set("k", &"text".to_string()).unwrap();
    assert_eq!(region.get::<u64>("k").unwrap(), None, "an entry of another type is a miss too");
    let newer = Region::builder(Memory::new(1 << 20)).codec(Msgpack::<Full>::new().version(3)).build().unwrap();
    let mut old = Vec::new();
    dogpile::Codec::encode(&Msgpack::<Full>::new(), &7_u64, START, &mut old).unwrap();
    newer.backend().set(Key::from("k"), &old, None).unwrap();
    assert_eq!(newer.get::<u64>("k").unwrap(), None, "an entry of another version is a miss");
}

#[test]
fn a_value_that_cannot_be_encoded_is_returned_and_not_stored() {
    let region = Region::builder(Memory::new(1 << 20)).codec(Raw).build().unwrap();
    let bad = "with \x7f inside".to_string();
    assert_eq!(region.set("k", &bad).unwrap_err().kind(), ErrorKind::Codec);
    assert_eq!(region.set_many(&[("a", "fine".to_string()), ("k", bad.clone())]).unwrap_err().kind(), ErrorKind::Codec);
    assert!(region.backend().is_empty(), "nothing is stored of a batch that cannot be encoded");
    assert_eq!(region.get_or_create("k", || fine(bad.clone())).unwrap(), bad);
    assert_eq!((region.stats().failed_writes, region.backend().len()), (1, 0));
    let closed = Region::builder(Memory::new(1 << 20)).codec(Raw).fail_closed().build().unwrap();
    let error = closed.get_or_create("k", || fine(bad.clone())).unwrap_err();
    assert!(matches!(error, GetError::Cache(error) if error.kind() == ErrorKind::Codec));
    assert!(!closed.is_locked("k").unwrap());
}

#[test]
fn invalidation_is_hard_or_soft() {
    let (builder, clock) = clocked();
    let region = builder.build().unwrap();
    region.set("k", &1_u64).unwrap();
    region.invalidate(Invalidate::Soft);
    assert_eq!(region.get::<u64>("k").unwrap(), None);
    assert_eq!(region.ignoring_expiry().get("k").unwrap(), Some(1_u64));
    // Created anew by one while others get the stale value: here the only caller creates.
    assert_eq!(region.get_or_create("k", || fine(2_u64)).unwrap(), 2);
    assert_eq!(region.get("k").unwrap(), Some(2_u64), "what is created in the second of the invalidation is valid");
    region.invalidate(Invalidate::Hard);
    assert_eq!(region.get::<u64>("k").unwrap(), None);
    region.set("k", &3_u64).unwrap();
    assert_eq!(region.get("k").unwrap(), Some(3_u64));
    clock.advance(100 * SECOND);
    assert_eq!(region.get("k").unwrap(), Some(3_u64));
}

#[test]
fn cached_functions() {
    let region = plain();
    let calls = AtomicUsize::new(0);
    let name = region.function("users:name", |(id, upper): &(u64, bool)| {
        calls.fetch_add(1, Ordering::SeqCst);
        fine(format!("{}{id}", if *upper { "USER" } else { "user" }))
    });
    assert_eq!(name.key(&(15, true)), KeyBuf::from("users:name|15 True"));
    assert_eq!(name.call(&(15, true)).unwrap(), "USER15");
    assert_eq!(name.call(&(15, true)).unwrap(), "USER15");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(name.get(&(15, false)).unwrap(), None);
    name.set(&(15, false), &"set".to_string()).unwrap();
    assert_eq!(name.call(&(15, false)).unwrap(), "set");
    assert_eq!(name.refresh(&(15, false)).unwrap(), "user15");
    assert_eq!(name.get(&(15, false)).unwrap().as_deref(), Some("user15"));
    name.invalidate(&(15, true)).unwrap();
    assert_eq!(region.get::<String>("users:name|15 True").unwrap(), None);
    assert_eq!(name.original()(&(1, false)).unwrap(), "user1");

    let lengths = region.function_many("len", |texts: &[&String]| {
        calls.fetch_add(texts.len(), Ordering::SeqCst);
        fine(texts.iter().map(|text| text.len() as u64).collect())
    });
    let texts = ["a", "bbb", "a", "cc"].map(String::from);
    calls.store(0, Ordering::SeqCst);
    assert_eq!(lengths.call(&texts).unwrap(), [1, 3, 1, 2]);
    assert_eq!(lengths.call(&texts).unwrap(), [1, 3, 1, 2]);
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    lengths.set(&[("bbb".into(), 30)]).unwrap();
    assert_eq!(lengths.get(&texts).unwrap(), [Some(1), Some(30), Some(1), Some(2)]);
    assert_eq!(lengths.refresh(&texts).unwrap(), [1, 3, 1, 2]);
    lengths.invalidate(&texts[..2]).unwrap();
    assert_eq!(lengths.get(&texts).unwrap(), [None, None, None, Some(2)]);

    let keyed = region.function("f", |id: &u64| fine(*id)).keyed_by(|id| KeyBuf::from(("numbers", &*id.to_string())));
    assert_eq!(keyed.call(&7).unwrap(), 7);
    assert_eq!(region.get(("numbers", 7)).unwrap(), Some(7_u64));
}

#[test]
fn short_expiries_are_worth_something_in_whole_seconds() {
    let clock = Clock::manual(Timestamp::from_micros(1_700_000_000_900_000));
    let region = Region::builder(Memory::new(1 << 20)).clock(clock.clone());
    let region = region.stale_after(Duration::from_millis(500)).build().unwrap();
    region.set("k", &1_u64).unwrap();
    clock.advance(Duration::from_millis(400));
    assert_eq!(region.get("k").unwrap(), Some(1_u64));
    clock.advance(Duration::from_millis(1100));
    assert_eq!(region.get::<u64>("k").unwrap(), None);
}

#[test]
fn regions_may_share_a_backend_or_choose_one_at_run_time() {
    let memory = std::sync::Arc::new(Memory::new(1 << 20));
    let (one, other) = (Region::builder(memory.clone()).build().unwrap(), Region::builder(memory).build().unwrap());
    one.set("k", &1_u64).unwrap();
    assert_eq!(other.get("k").unwrap(), Some(1_u64));
    let chosen: std::sync::Arc<dyn Backend> = std::sync::Arc::new(Memory::new(1 << 20));
    let region = Region::builder(chosen).build().unwrap();
    assert_eq!(region.get_or_create("k", || fine(2_u64)).unwrap(), 2);
    let nested = region.get_or_create("a", || region.get_or_create("b", || Err::<u64, _>("no")));
    assert!(matches!(nested.map_err(GetError::flatten), Err(GetError::Create("no"))));
}
