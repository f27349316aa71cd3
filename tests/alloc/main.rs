//! Promises on allocations, counted on the thread that makes the call: tables of what each operation allocates.

#[cfg(feature = "tls")]
#[path = "../it/certificates.rs"]
#[allow(dead_code)]
mod certificates;
#[path = "../it/support.rs"]
#[allow(dead_code)]
mod support;
#[cfg(feature = "tokio")]
mod tasks;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
#[cfg(feature = "json")]
use dogpile::Json;
#[cfg(feature = "serde")]
use dogpile::Serde;
use dogpile::codec::Envelope;
#[cfg(feature = "python")]
use dogpile::codec::python::{JsonMeta, Pickle};
use dogpile::codec::{Bare, Full, Seconds};
use dogpile::keymap::Prefix;
use dogpile::{
    AsKey, Backend, Bucketed, Cluster, Codec, HashTtl, Invalidate, Key, KeyBuf, KeyMap, LocalLock, Lock, Memory,
    Msgpack, Raw, RedisLock, Region,
};

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
fn nothing_for<V, B, L, M: KeyMap>(region: &Region<B, Msgpack<Seconds>, L, M>, kind: &str, value: &V)
where
    V: PartialEq + 'static,
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

fn nothing_on<B: Backend, L: Lock<B>, M: KeyMap>(region: &Region<B, Msgpack<Seconds>, L, M>) {
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
fn a_constant_for_many<B: Backend, L: Lock<B>, M: KeyMap>(region: &Region<B, Msgpack<Seconds>, L, M>, most: usize) {
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
    let region = region.stale_after(Duration::from_secs(60)).ttl(Duration::from_secs(90)).build().unwrap();
    nothing_on(&region);
    a_constant_for_many(&region, 5);
}

#[test]
fn redis() {
    let server = Server::start();
    let region = Region::builder(server.redis()).keys(Prefix::new("app:")).lock(RedisLock::new());
    let region = region.stale_after(Duration::from_secs(60)).ttl(Duration::from_secs(90)).build().unwrap();
    nothing_on(&region);
    a_constant_for_many(&region, 4);
}

/// A cluster of one server.
fn cluster_server() -> Server {
    let server = Server::with(&["--cluster-enabled", "yes"]);
    assert_eq!(server.ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]), "+OK");
    support::eventually("the cluster is one", || server.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
    server
}

#[test]
fn cluster() {
    let server = cluster_server();
    let region = Region::builder(Cluster::open([server.url()]).unwrap()).keys(Prefix::new("app:"));
    let region = region.lock(RedisLock::new()).stale_after(Duration::from_secs(60)).ttl(Duration::from_secs(90));
    let region = region.build().unwrap();
    nothing_on(&region);
    // The commands, one for each server's part, the replies' places and the answer; more where buffers grow.
    a_constant_for_many(&region, 30);
}

#[test]
fn buckets() {
    let server = Server::start();
    let stamped = HashTtl::Stamped { longest: Duration::from_secs(3600) };
    for expiry in [HashTtl::OnCreate, stamped] {
        let redis = dogpile::Redis::builder(&server.url()).hash_ttl(expiry).build().unwrap();
        let region = Region::builder(redis).keys(Bucketed::new(256).others(10)).ttl(Duration::from_secs(90));
        let region = region.build().unwrap();
        nothing_on(&region);
        a_constant_for_many(&region, 4);
        region.set(15, &1_u64).unwrap();
        assert_eq!(allocations(|| assert_eq!(region.get(15).unwrap(), Some(1_u64))), 0);
    }
}

#[test]
#[cfg(unix)]
fn redis_over_a_unix_socket_and_resp2() {
    let server = Server::with(&["--rename-command", "HELLO", ""]);
    let redis = dogpile::Redis::open(&format!("unix://{}", server.socket().display())).unwrap();
    nothing_on(&Region::builder(redis).keys(Prefix::new("app:")).build().unwrap());
}

/// What rustls allocates: a record that is sent, and one that came.
#[test]
#[cfg(feature = "tls")]
fn encrypted() {
    let certificates = certificates::Certificates::new("allocations");
    let (_server, port) = certificates.serve(&["--tls-auth-clients", "no"]);
    let redis = dogpile::Redis::builder(&format!("rediss://127.0.0.1:{port}")).tls(certificates.trust());
    let region = Region::builder(redis.build().unwrap()).build().unwrap();
    region.set("k", &15_u64).unwrap();
    assert!(allocations(|| assert_eq!(region.get("k").unwrap(), Some(15_u64))) <= 2000);
    assert!(allocations(|| region.set("k", &15_u64).unwrap()) <= 2000);
}

// ---- Tables: a row for each operation, a column for each backend, kind of key or type of value. ----
//
// A cell is the number of allocations of every single call, once the buffers are warm, its creator's own included (one
// for the `Vec` of many values). A cell of two numbers is of a batch of 10 keys and of one of 100. Values are `u64`, which
// allocate nothing themselves. For `Driver` a cell is the most that the best call may need: the `redis` crate allocates
// too, by its version and by how the answer arrives.

const BACKENDS: &str = "
operation                      | Memory  | Redis   | Redis, RedisLock | Driver  | Driver, RedisLock
with_ttl, set                  | 0       | 0       | 0                | 2       | 2
with_stale_after, get          | 0       | 0       | 0                | 4       | 4
ignoring_expiry, get           | 0       | 0       | 0                | 4       | 4
store_if, get_or_create, miss  | 6       | 6       | 15               | 9       | 22
clone, stats                   | 0       | 0       | 0                | 0       | 0
Function::set                  | 0       | 0       | 0                | 2       | 2
Function::get                  | 0       | 0       | 0                | 4       | 4
Function::call, hit            | 0       | 0       | 0                | 4       | 4
Function::refresh              | 0       | 0       | 0                | 2       | 2
Function::call, miss           | 8       | 6       | 16               | 11      | 23
Function::invalidate           | 0       | 0       | 0                | 2       | 2
FunctionMany::set              | 8, 11   | 8, 11   | 8, 11            | 12, 18  | 12, 18
FunctionMany::get              | 5, 5    | 4, 4    | 4, 4             | 30, 213 | 30, 213
FunctionMany::call, hit        | 14, 17  | 13, 16  | 13, 16           | 39, 225 | 39, 225
FunctionMany::refresh          | 10, 13  | 10, 13  | 10, 13           | 14, 20  | 14, 20
FunctionMany::call, miss       | 70, 448 | 50, 248 | 65, 269          | 58, 259 | 78, 288
FunctionMany::invalidate       | 2, 2    | 2, 2    | 2, 2             | 4, 4    | 4, 4
set                            | 0       | 0       | 0                | 2       | 2
get                            | 0       | 0       | 0                | 4       | 4
get, first since it was stored | 0       | 0       | 0                | 4       | 4
get, nothing there             | 0       | 0       | 0                | 2       | 2
get_entry                      | 0       | 0       | 0                | 4       | 4
set after get                  | 0       | 0       | 0                | 2       | 2
set, nothing there             | 2       | 0       | 0                | 2       | 2
delete                         | 0       | 0       | 0                | 2       | 2
delete, nothing there          | 0       | 0       | 0                | 2       | 2
is_locked                      | 0       | 0       | 1                | 0       | 3
get_or_create, hit             | 0       | 0       | 0                | 4       | 4
get_or_create, miss            | 7       | 5       | 15               | 10      | 22
set_many                       | 6, 9    | 6, 9    | 6, 9             | 10, 16  | 10, 16
get_many                       | 4, 4    | 3, 3    | 3, 3             | 29, 212 | 29, 212
get_or_create_many, hit        | 13, 16  | 12, 15  | 12, 15           | 38, 224 | 38, 224
delete_many                    | 1, 1    | 1, 1    | 1, 1             | 3, 3    | 3, 3
get_many, nothing there        | 3, 3    | 3, 3    | 3, 3             | 6, 6    | 6, 6
get_or_create_many, miss       | 68, 446 | 48, 246 | 63, 267          | 56, 257 | 76, 286
get_or_create, stale           | 7       | 5       | 15               | 12      | 26
";

const KEYS_IN_MEMORY: &str = "
operation                      | text    | integer | field   | 10 hashes | KeyBuf  | prefixed
set                            | 0       | 0       | 0       | 0         | 0       | 0
get                            | 0       | 0       | 0       | 0         | 0       | 0
get, first since it was stored | 0       | 0       | 0       | 0         | 0       | 0
get, nothing there             | 0       | 0       | 0       | 0         | 0       | 0
get_entry                      | 0       | 0       | 0       | 0         | 0       | 0
set after get                  | 0       | 0       | 0       | 0         | 0       | 0
set, nothing there             | 2       | 2       | 2       | 2         | 2       | 2
delete                         | 0       | 0       | 0       | 0         | 0       | 0
delete, nothing there          | 0       | 0       | 0       | 0         | 0       | 0
is_locked                      | 0       | 0       | 0       | 0         | 0       | 0
get_or_create, hit             | 0       | 0       | 0       | 0         | 0       | 0
get_or_create, miss            | 7       | 7       | 8       | 8         | 9       | 8
set_many                       | 6, 9    | 6, 9    | 6, 10   | 6, 9      | 7, 10   | 6, 10
get_many                       | 4, 4    | 5, 5    | 4, 4    | 5, 5      | 4, 4    | 5, 5
get_or_create_many, hit        | 13, 16  | 14, 17  | 13, 16  | 14, 17    | 13, 16  | 14, 17
delete_many                    | 1, 1    | 2, 2    | 1, 1    | 2, 2      | 1, 1    | 2, 2
get_many, nothing there        | 3, 3    | 4, 4    | 3, 3    | 4, 4      | 3, 3    | 4, 4
get_or_create_many, miss       | 68, 446 | 69, 447 | 68, 447 | 69, 447   | 69, 447 | 69, 448
get_or_create, stale           | 7       | 7       | 8       | 8         | 9       | 8
";

const KEYS_IN_REDIS: &str = "
operation                      | text    | integer | field   | 10 hashes | KeyBuf  | prefixed
set                            | 0       | 0       | 0       | 0         | 0       | 0
get                            | 0       | 0       | 0       | 0         | 0       | 0
get, first since it was stored | 0       | 0       | 0       | 0         | 0       | 0
get, nothing there             | 0       | 0       | 0       | 0         | 0       | 0
get_entry                      | 0       | 0       | 0       | 0         | 0       | 0
set after get                  | 0       | 0       | 0       | 0         | 0       | 0
set, nothing there             | 0       | 0       | 0       | 0         | 0       | 0
delete                         | 0       | 0       | 0       | 0         | 0       | 0
delete, nothing there          | 0       | 0       | 0       | 0         | 0       | 0
is_locked                      | 0       | 0       | 0       | 0         | 0       | 0
get_or_create, hit             | 0       | 0       | 0       | 0         | 0       | 0
get_or_create, miss            | 5       | 5       | 6       | 6         | 7       | 6
set_many                       | 6, 9    | 6, 9    | 6, 10   | 7, 10     | 8, 22   | 6, 10
get_many                       | 3, 3    | 4, 4    | 3, 3    | 5, 5      | 4, 15   | 4, 4
get_or_create_many, hit        | 12, 15  | 13, 16  | 12, 15  | 14, 17    | 13, 27  | 13, 16
delete_many                    | 1, 1    | 2, 2    | 1, 1    | 3, 3      | 2, 13   | 2, 2
get_many, nothing there        | 3, 3    | 4, 4    | 3, 3    | 5, 5      | 4, 15   | 4, 4
get_or_create_many, miss       | 48, 246 | 49, 247 | 48, 247 | 51, 249   | 51, 271 | 49, 248
get_or_create, stale           | 5       | 5       | 6       | 6         | 7       | 6
";

const CODECS: &str = "
value        | Msgpack | Msgpack<Full> | Msgpack<Bare> | Raw | Json | Json<Full> | Serde | Serde<Full> | Msgpack<JsonMeta> | Pickle
u64          | 0       | 0             | 0             | 0   | 0    | 0          | 0     | 0           | 0                 | 4
String       | 1       | 1             | 1             | 1   | 1    | 1          | 1     | 1           | 1                 | 5
Some(String) | 1       | 1             | 1             | 1   | 1    | 1          | 1     | 1           | 1                 | 5
None         | 0       | 0             | 0             | 0   | 0    | 0          | 0     | 0           | 0                 | 4
Bytes        | 0       | 0             | 0             | 0   | -    | -          | -     | -           | 0                 | -
ByteString   | 0       | 0             | 0             | 0   | -    | -          | -     | -           | 0                 | -
Vec<u8>      | 1       | 1             | 1             | 1   | -    | -          | -     | -           | 1                 | -
(u64, f64)   | 0       | 0             | 0             | -   | 0    | 0          | 0     | 0           | 0                 | 7
ten Strings  | 11      | 11            | 11            | -   | 13   | 13         | 11    | 11          | 11                | 22
struct       | 2       | 2             | 2             | -   | 2    | 2          | 2     | 2           | 2                 | 14
";

/// What each operation was seen to allocate.
type Column = Vec<(&'static str, String)>;

/// Compares what was counted with the column of that name.
fn check(table: &str, name: &str, counted: &[(&'static str, String)]) {
    check_by(table, name, counted, |told, counted| told == counted);
}

/// The same where the table tells the most that may be: of calls that differ, the best.
#[cfg(feature = "driver")]
fn check_most(table: &str, name: &str, counted: &[(&'static str, String)]) {
    let best = |cell: &str| -> Vec<usize> {
        cell.split(',').map(|of| of.split('-').next().unwrap().trim().parse().unwrap()).collect()
    };
    check_by(table, name, counted, |told, counted| best(counted).iter().zip(best(told)).all(|(of, most)| *of <= most));
}

fn check_by(table: &str, name: &str, counted: &[(&'static str, String)], holds: impl Fn(&str, &str) -> bool) {
    let mut lines = table.trim().lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let at = lines.next().and_then(|head| head.iter().position(|head| *head == name)).expect("a column of that name");
    let told: Vec<_> = lines.map(|row| (row[0], row[at])).filter(|(_, cell)| *cell != "-").collect();
    let rows: Vec<&str> = counted.iter().map(|(row, _)| *row).collect();
    assert_eq!(rows, told.iter().map(|(row, _)| *row).collect::<Vec<_>>(), "the rows of the table, {name}");
    let wrong = told.iter().zip(counted).filter(|((_, told), (_, counted))| !holds(told, counted));
    let wrong: Vec<_> = wrong.map(|((row, told), (_, counted))| format!("{row}: {counted}, not {told}")).collect();
    assert!(wrong.is_empty(), "{name} allocates otherwise than the table says:\n{}", wrong.join("\n"));
}

/// Allocations of one call, once a hundred have warmed the buffers up. `prepare` comes before each and is not counted.
fn each(mut prepare: impl FnMut(), mut call: impl FnMut()) -> String {
    let mut counted = || {
        prepare();
        let before = ALLOCATIONS.get();
        call();
        ALLOCATIONS.get() - before
    };
    for _ in 0..100 {
        counted();
    }
    let (least, most) = (0..100).map(|_| counted()).fold((usize::MAX, 0), |(l, m), now| (l.min(now), m.max(now)));
    if least == most { most.to_string() } else { format!("{least}-{most}") }
}

/// The same for batches of ten and of a hundred keys.
fn batches(mut count: impl FnMut(usize) -> String) -> String {
    [10, 100].map(&mut count).join(", ")
}

fn created<V>(value: V) -> Result<V, Infallible> {
    Ok(value)
}

/// All that a region does with keys, which are `key` of 0 and up.
fn operations<B, L, M, K>(region: &Region<B, Msgpack<Seconds>, L, M>, key: impl Fn(u64) -> K) -> Column
where
    B: Backend,
    L: Lock<B>,
    M: KeyMap,
    K: AsKey,
{
    let keys: Vec<K> = (0..100).map(&key).collect();
    let entries: Vec<(K, u64)> = (0..100).map(|at| (key(at), at)).collect();
    let (one, absent) = (&keys[0], &key(1000));
    let nothing = || ();
    let set = || region.set(one, &7_u64).unwrap();
    let delete = || region.delete(one).unwrap();
    let get = || region.get::<u64>(one).unwrap();
    let create = || assert_eq!(region.get_or_create(one, || created(7_u64)).unwrap(), 7);
    let is_locked = || assert!(!region.is_locked(one).unwrap());
    let get_many = |n| assert_eq!(region.get_many::<_, u64>(&keys[..n]).unwrap().len(), n);
    let set_many = |n| region.set_many(&entries[..n]).unwrap();
    let delete_many = |n| region.delete_many(&keys[..n]).unwrap();
    let create_many = |n| {
        let values = region.get_or_create_many(&keys[..n], |missing| created(vec![7_u64; missing.len()]));
        assert_eq!(values.unwrap().len(), n);
    };
    let outdate = || {
        set();
        region.invalidate(Invalidate::Soft);
    };
    vec![
        ("set", each(nothing, set)),
        ("get", each(nothing, || assert_eq!(get(), Some(7)))),
        ("get, first since it was stored", {
            each(
                || {
                    delete();
                    set();
                },
                || assert_eq!(get(), Some(7)),
            )
        }),
        ("get, nothing there", each(nothing, || assert_eq!(region.get::<u64>(absent).unwrap(), None))),
        ("get_entry", each(nothing, || assert!(region.get_entry::<u64>(one).unwrap().is_some()))),
        ("set after get", { each(|| assert!(get().is_some()), set) }),
        ("set, nothing there", each(delete, set)),
        ("delete", each(set, delete)),
        ("delete, nothing there", each(nothing, delete)),
        ("is_locked", each(nothing, is_locked)),
        ("get_or_create, hit", {
            set();
            each(nothing, create)
        }),
        ("get_or_create, miss", each(delete, create)),
        ("set_many", batches(|n| each(nothing, || set_many(n)))),
        ("get_many", batches(|n| each(nothing, || get_many(n)))),
        ("get_or_create_many, hit", batches(|n| each(nothing, || create_many(n)))),
        ("delete_many", batches(|n| each(|| set_many(n), || delete_many(n)))),
        ("get_many, nothing there", {
            delete_many(100);
            batches(|n| each(nothing, || get_many(n)))
        }),
        ("get_or_create_many, miss", batches(|n| each(|| delete_many(n), || create_many(n)))),
        // Last, since it moves the times of entries ahead by a second each time.
        ("get_or_create, stale", each(outdate, create)),
    ]
}

/// All that cached functions do.
fn functions<B: Backend, L: Lock<B>>(region: &Region<B, Msgpack<Seconds>, L>) -> Column {
    let nothing = || ();
    let one = region.function("one", |n: &u64| created(*n));
    let many = region.function_many("many", |n: &[&u64]| created(n.iter().map(|n| **n).collect::<Vec<u64>>()));
    let arguments: Vec<u64> = (0..100).collect();
    let results: Vec<(u64, u64)> = (0..100).map(|n| (n, n)).collect();
    let call = || assert_eq!(one.call(&7).unwrap(), 7);
    let invalidate = || one.invalidate(&7).unwrap();
    let set_many = |n| many.set(&results[..n]).unwrap();
    let call_many = |n| assert_eq!(many.call(&arguments[..n]).unwrap(), arguments[..n]);
    let invalidate_many = |n| many.invalidate(&arguments[..n]).unwrap();
    vec![
        ("Function::set", each(nothing, || one.set(&7, &7).unwrap())),
        ("Function::get", each(nothing, || assert_eq!(one.get(&7).unwrap(), Some(7)))),
        ("Function::call, hit", each(nothing, call)),
        ("Function::refresh", each(nothing, || assert_eq!(one.refresh(&7).unwrap(), 7))),
        ("Function::call, miss", each(invalidate, call)),
        ("Function::invalidate", each(call, invalidate)),
        ("FunctionMany::set", batches(|n| each(nothing, || set_many(n)))),
        ("FunctionMany::get", batches(|n| each(nothing, || assert_eq!(many.get(&arguments[..n]).unwrap().len(), n)))),
        ("FunctionMany::call, hit", batches(|n| each(nothing, || call_many(n)))),
        ("FunctionMany::refresh", {
            batches(|n| each(nothing, || assert_eq!(many.refresh(&arguments[..n]).unwrap().len(), n)))
        }),
        ("FunctionMany::call, miss", batches(|n| each(|| invalidate_many(n), || call_many(n)))),
        ("FunctionMany::invalidate", batches(|n| each(|| set_many(n), || invalidate_many(n)))),
    ]
}

/// What the settings of a call and what a region tells of itself allocate: nothing, on any backend.
fn settings<B: Backend, L: Lock<B>>(region: &Region<B, Msgpack<Seconds>, L>) -> Column {
    let minute = Duration::from_secs(60);
    let nothing = || ();
    let set = || region.with_ttl(minute).set("settings", &7_u64).unwrap();
    let get = || region.with_stale_after(minute).get::<u64>("settings").unwrap();
    vec![
        ("with_ttl, set", each(nothing, set)),
        ("with_stale_after, get", each(nothing, || assert_eq!(get(), Some(7)))),
        ("ignoring_expiry, get", {
            each(nothing, || assert_eq!(region.ignoring_expiry().get("settings").unwrap(), Some(7_u64)))
        }),
        ("store_if, get_or_create, miss", {
            let never = region.store_if(|_: &u64| false);
            each(nothing, || {
                assert_eq!(never.get_or_create("never", || created(7_u64)).unwrap(), 7);
            })
        }),
        ("clone, stats", each(nothing, || assert_eq!(region.clone().stats().failed_reads, 0))),
    ]
}

/// The column of a backend.
fn column<B: Backend, L: Lock<B>>(backend: B, lock: L) -> Column {
    let region = Region::builder(backend).lock(lock).ttl(Duration::from_secs(9000)).build().unwrap();
    let mut counted = settings(&region);
    counted.extend(functions(&region));
    counted.extend(operations(&region, |at| at.to_string()));
    counted
}

#[test]
fn table_of_memory() {
    check(BACKENDS, "Memory", &column(Memory::new(64 << 20), LocalLock));
}

#[test]
fn table_of_redis() {
    let server = Server::start();
    check(BACKENDS, "Redis", &column(server.redis(), LocalLock));
    check(BACKENDS, "Redis, RedisLock", &column(server.redis(), RedisLock::new()));
}

#[test]
#[cfg(feature = "driver")]
fn table_of_driver() {
    let server = Server::start();
    let driver = || {
        let client = redis::Client::open(server.url()).unwrap();
        dogpile::redis::Driver::new(2, move || client.get_connection())
    };
    // The redis crate's own allocations are among these, and another version of it may make fewer.
    check_most(BACKENDS, "Driver", &column(driver(), LocalLock));
    check_most(BACKENDS, "Driver, RedisLock", &column(driver(), RedisLock::new()));
}

/// Each kind of key on one backend.
fn keys_as_in_table<B: Backend>(table: &str, backend: impl Fn() -> B) {
    let region = || Region::builder(backend()).build().unwrap();
    let prefixed = Region::builder(backend()).keys(Prefix::new("app:")).build().unwrap();
    let built = |at| KeyBuf::new().text("user-").int(at).next_field().text("name");
    check(table, "text", &operations(&region(), |at| at.to_string()));
    check(table, "integer", &operations(&region(), |at| at));
    check(table, "field", &operations(&region(), |at| ("hash", at.to_string())));
    check(table, "10 hashes", &operations(&region(), |at| (at % 10, at)));
    check(table, "KeyBuf", &operations(&region(), built));
    check(table, "prefixed", &operations(&prefixed, |at| at.to_string()));
}

#[test]
fn table_of_keys_in_memory() {
    keys_as_in_table(KEYS_IN_MEMORY, || Memory::new(64 << 20));
}

#[test]
fn table_of_keys_in_redis() {
    let server = Server::start();
    keys_as_in_table(KEYS_IN_REDIS, || {
        server.ask(&["FLUSHALL"]);
        server.redis()
    });
}

/// What hits of one value allocate.
fn hit<S: Codec<V> + Send + Sync, V: PartialEq + 'static>(codec: S, value: &V) -> String {
    let region = Region::builder(Memory::new(1 << 20)).codec(codec).build().unwrap();
    region.set("key", value).unwrap();
    let get = each(|| (), || assert!(region.get::<V>("key").unwrap().as_ref() == Some(value)));
    let create = || -> Result<V, Infallible> { panic!("it is there") };
    assert_eq!(each(|| (), || assert!(region.get_or_create("key", create).unwrap() == *value)), get);
    get
}

#[derive(PartialEq, serde::Serialize, serde::Deserialize)]
struct User {
    id: u64,
    name: String,
    score: f64,
    friends: Vec<u32>,
}

dogpile::msgpack! { User { id, name, score, friends } }

/// Hits of what every codec reads.
fn plain_values<S: Codec<u64> + Codec<String> + Codec<Option<String>> + Copy + Send + Sync>(codec: S) -> Column {
    let text = || "mellifluous".to_string();
    vec![
        ("u64", hit(codec, &u64::MAX)),
        ("String", hit(codec, &text())),
        ("Some(String)", hit(codec, &Some(text()))),
        ("None", hit(codec, &None::<String>)),
    ]
}

/// Hits of what is read as bytes.
fn bytes<S: Codec<Bytes> + Codec<ByteString> + Codec<Vec<u8>> + Copy + Send + Sync>(codec: S) -> Column {
    vec![
        ("Bytes", hit(codec, &Bytes::from_static(&[0xff; 64]))),
        ("ByteString", hit(codec, &ByteString::from("mellifluous"))),
        ("Vec<u8>", hit(codec, &vec![0xff_u8; 64])),
    ]
}

/// Hits of what has parts.
fn compound<S: Codec<(u64, f64)> + Codec<Vec<String>> + Codec<User> + Copy + Send + Sync>(codec: S) -> Column {
    let user = User { id: 15, name: "Ann".into(), score: -1.5, friends: vec![16, 17] };
    vec![
        ("(u64, f64)", hit(codec, &(15_u64, -1.5_f64))),
        ("ten Strings", hit(codec, &vec!["Ann".to_string(); 10])),
        ("struct", hit(codec, &user)),
    ]
}

#[test]
fn table_of_codecs() {
    fn msgpack<E: Envelope>(name: &str) {
        let codec = Msgpack::<E>::new();
        check(CODECS, name, &[plain_values(codec), bytes(codec), compound(codec)].concat());
    }
    msgpack::<Seconds>("Msgpack");
    msgpack::<Full>("Msgpack<Full>");
    msgpack::<Bare>("Msgpack<Bare>");
    check(CODECS, "Raw", &[plain_values(Raw), bytes(Raw)].concat());
    #[cfg(feature = "json")]
    {
        check(CODECS, "Json", &[plain_values(Json::<Seconds>::new()), compound(Json::<Seconds>::new())].concat());
        check(CODECS, "Json<Full>", &[plain_values(Json::<Full>::new()), compound(Json::<Full>::new())].concat());
    }
    #[cfg(feature = "serde")]
    {
        let (seconds, full) = (Serde::<Seconds>::new(), Serde::<Full>::new());
        check(CODECS, "Serde", &[plain_values(seconds), compound(seconds)].concat());
        check(CODECS, "Serde<Full>", &[plain_values(full), compound(full)].concat());
    }
    #[cfg(feature = "python")]
    {
        msgpack::<JsonMeta>("Msgpack<JsonMeta>");
        let pickle = Pickle::<JsonMeta>::new();
        check(CODECS, "Pickle", &[plain_values(pickle), compound(pickle)].concat());
    }
}
