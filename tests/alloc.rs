//! Promises on allocations, counted on the thread that makes the call.

#[path = "it/support.rs"]
#[allow(dead_code)]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use dogpile::{Backend, Codec, Key, KeyBuf, Lock, Memory, Msgpack, Prefix, RedisLock, Region, Seconds};

use support::Server;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    // The thread's counter may be gone when the thread ends.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: all requests go to the system's allocator as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(old, layout, size) }
    }
    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of a thousand calls, once a hundred have warmed the buffers up.
fn allocations(mut call: impl FnMut()) -> usize {
    (0..100).for_each(|_| call());
    let before = ALLOCATIONS.get();
    (0..1000).for_each(|_| call());
    ALLOCATIONS.get() - before
}

/// Hits and writes of one value, under a plain key and as a field, allocate so much in a thousand calls: nothing.
fn nothing_for<V, B, L>(region: &Region<B, Msgpack<Seconds>, L, Prefix>, kind: &str, value: &V)
where
    V: PartialEq,
    B: Backend,
    L: Lock<B>,
    Msgpack<Seconds>: Codec<V>,
{
    let plain = format!("a plain key of {kind}");
    for (name, key) in [("plain", Key::from(&*plain)), ("field", Key::from((kind, "field")))] {
        let set = allocations(|| region.set(key, value).unwrap());
        assert_eq!(set, 0, "set of {kind}, {name}");
        let get = allocations(|| assert!(region.get::<V>(key).unwrap().as_ref() == Some(value)));
        assert_eq!(get, 0, "get of {kind}, {name}");
        let create = || -> Result<V, Infallible> { panic!("it is there") };
        let hit = allocations(|| assert!(region.get_or_create(key, create).unwrap() == *value));
        assert_eq!(hit, 0, "get_or_create hit of {kind}, {name}");
        let set = allocations(|| region.set(key, value).unwrap());
        assert_eq!(set, 0, "set of {kind} after hits, {name}");
    }
    let entry = allocations(|| assert!(region.get_entry::<V>(&*plain).unwrap().is_some()));
    assert_eq!(entry, 0, "get_entry of {kind}");
    let miss = allocations(|| assert!(region.get::<V>("no such key").unwrap().is_none()));
    assert_eq!(miss, 0, "get of what is not there");
}

fn nothing_on<B: Backend, L: Lock<B>>(region: &Region<B, Msgpack<Seconds>, L, Prefix>) {
    nothing_for(region, "u64", &15_u64);
    nothing_for(region, "pair", &(15_u64, -1.5_f64));
    nothing_for(region, "text", &ByteString::from("mellifluous"));
    nothing_for(region, "binary", &Bytes::from_static(&[0xff; 64]));
    // Integers and built keys are keys without allocating.
    region.set((15, 7), &1_u64).unwrap();
    assert_eq!(allocations(|| assert_eq!(region.get((15, 7)).unwrap(), Some(1_u64))), 0);
    let built = || KeyBuf::new().text("user-").int(15).next_field().int(7);
    region.set(built(), &1_u64).unwrap();
    assert_eq!(allocations(|| assert_eq!(region.get(built()).unwrap(), Some(1_u64))), 0);
}

/// `get_many` allocates its answer and its lists, however many keys there are.
fn a_constant_for_many<B: Backend, L: Lock<B>>(region: &Region<B, Msgpack<Seconds>, L, Prefix>, most: usize) {
    for many in [10_u64, 100] {
        let keys: Vec<u64> = (0..many).collect();
        region.set_many(&keys.iter().map(|key| (*key, *key)).collect::<Vec<_>>()).unwrap();
        let each = allocations(|| {
            assert!(region.get_many::<_, u64>(&keys).unwrap().iter().all(Option::is_some));
        });
        assert!(each <= most * 1000, "get_many of {many}: {each} in a thousand calls");
    }
}

#[test]
fn memory() {
    let region = Region::builder(Memory::new(64 << 20)).keys(Prefix::new("app:"));
    let region = region.expires_after(Duration::from_secs(60)).ttl(Duration::from_secs(90)).build().unwrap();
    nothing_on(&region);
    a_constant_for_many(&region, 5);
}

#[test]
fn redis() {
    let server = Server::start();
    let region = Region::builder(server.redis()).keys(Prefix::new("app:")).lock(RedisLock::new());
    let region = region.expires_after(Duration::from_secs(60)).ttl(Duration::from_secs(90)).build().unwrap();
    nothing_on(&region);
    a_constant_for_many(&region, 4);
}

#[test]
#[cfg(unix)]
fn redis_over_a_unix_socket_and_resp2() {
    let server = Server::with(&["--rename-command", "HELLO", ""]);
    let redis = dogpile::Redis::open(&format!("unix://{}", server.socket().display())).unwrap();
    nothing_on(&Region::builder(redis).keys(Prefix::new("app:")).build().unwrap());
}
