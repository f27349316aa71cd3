//! Plain keys in small hashes, entries in them that expire by themselves, and what a server says of itself.

use std::thread::sleep;
use std::time::Duration;

use dogpile::backend::Batch;
use dogpile::codec::Bare;
use dogpile::keymap::Prefix;
use dogpile::lock::OnLeaseLost;
use dogpile::redis::{ServerInfo, ServerName, sweep};
use dogpile::{Backend, Bucketed, Clock, ErrorKind, HashTtl, Key, Msgpack, Redis, RedisLock, Region, Timestamp};

use crate::support::{Proxy, Server};

const HOUR: Duration = Duration::from_secs(3600);
const STAMPED: HashTtl = HashTtl::Stamped { longest: HOUR };

fn redis(server: &Server, expiry: HashTtl) -> Redis {
    Redis::builder(&server.url()).hash_ttl(expiry).build().unwrap()
}

/// A backend whose stamps go by a clock that a test moves.
fn stamped(server: &Server, expiry: HashTtl) -> (Redis, Clock) {
    let clock = Clock::manual(Timestamp::from_secs(1_795_403_000));
    (Redis::builder(&server.url()).hash_ttl(expiry).clock(clock.clone()).build().unwrap(), clock)
}

fn entries(of: &[(Key<'_>, &str)]) -> Batch {
    let mut batch = Batch::new();
    of.iter().for_each(|(key, entry)| batch.push(*key, |out| out.extend_from_slice(entry.as_bytes())));
    batch
}

fn read(backend: &impl Backend, key: Key<'_>) -> Option<String> {
    backend.get(key).unwrap().map(|entry| String::from_utf8_lossy(&entry).into_owned())
}

#[test]
fn plain_keys_are_fields_of_listpacks() {
    let server = Server::with(&["--hash-max-listpack-entries", "100"]);
    let info = ServerInfo::of(&server.redis()).unwrap();
    assert_eq!((info.max_listpack_entries, info.max_listpack_value), (100, 64));
    let map = Bucketed::for_server(&info).others(2);
    assert_eq!(map.width(), Some(100));
    let region = Region::builder(server.redis())
        .codec(Msgpack::<Bare>::new())
        .keys((map, Prefix::new("shop:")))
        .build()
        .unwrap();
    let users: Vec<(String, u64)> = (0..1000).map(|n| (format!("user|{n}"), n)).collect();
    region.set_many(&users).unwrap();
    region.set("about", &7_u64).unwrap();
    region.set(("users", "5"), &5_u64).unwrap();
    assert_eq!(server.ask_int(&["DBSIZE"]), 12);
    assert_eq!(server.ask_int(&["HLEN", "shop:user|#9"]), 100);
    assert!(server.ask(&["OBJECT", "ENCODING", "shop:user|#9"]).contains("listpack"));

    assert_eq!(region.get::<u64>("user|999").unwrap(), Some(999));
    assert_eq!(region.get::<u64>(("users", "5")).unwrap(), Some(5));
    let keys: Vec<_> = users.iter().map(|(key, _)| key.as_str()).chain(["about", "user|1000"]).collect();
    let found: Vec<Option<u64>> = region.get_many(&keys).unwrap();
    assert_eq!(found[..1000], (0..1000).map(Some).collect::<Vec<_>>());
    assert_eq!(found[1000..], [Some(7), None]);
    region.delete("user|999").unwrap();
    assert_eq!(server.ask_int(&["HLEN", "shop:user|#9"]), 99);
    let made: u64 = region.get_or_create("user|999", || Ok::<_, std::convert::Infallible>(8)).unwrap();
    assert_eq!((made, server.ask_int(&["HLEN", "shop:user|#9"])), (8, 100));

    assert_eq!(region.stats().oversized, 0);
    region.set("user|5", &1_u64).unwrap();
    let long: Region<_, _, _, _> = Region::builder(server.redis())
        .codec(Msgpack::<Bare>::new())
        .keys((map, Prefix::new("shop:")))
        .build()
        .unwrap();
    long.set("user|5", &"x".repeat(70)).unwrap();
    long.set_many(&[("user|6", "x".repeat(70)), ("user|7", "x".to_string())]).unwrap();
    long.set(("a hash of the caller's own", 7), &"x".repeat(70)).unwrap();
    let _: String = long.get_or_create("user|2000", || Ok::<_, std::io::Error>("x".repeat(70))).unwrap();
    long.set("a key that ends with no number and is longer than what fits into a bucket", &"x".repeat(70)).unwrap();
    assert_eq!(long.stats().oversized, 3, "other keys are made for any length");
    assert!(server.ask(&["OBJECT", "ENCODING", "shop:user|#0"]).contains("hashtable"));
}

#[test]
fn one_creator_under_locks_of_buckets() {
    let server = Server::start();
    for expiry in [HashTtl::OnCreate, STAMPED, ServerInfo::of(&server.redis()).unwrap().per_field(HOUR)] {
        for reads in [false, true] {
            server.ask(&["FLUSHALL"]);
            let region = |lock| {
                let keys = Bucketed::new(128);
                Region::builder(redis(&server, expiry)).keys(keys).lock(lock).ttl(HOUR).build().unwrap()
            };
            let lock = if reads { RedisLock::new().lease_on_miss() } else { RedisLock::new() };
            let created = std::sync::atomic::AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let value: u64 = region(lock.clone())
                            .get_or_create("user|1000", || {
                                created.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                                sleep(Duration::from_millis(30));
                                Ok::<_, std::io::Error>(7)
                            })
                            .unwrap();
                        assert_eq!(value, 7);
                    });
                }
            });
            assert_eq!(created.into_inner(), 1, "{expiry:?} {reads}");
            assert_eq!(server.ask_int(&["EXISTS", "_lok.user|#7,104"]), 0);
        }
    }
}

#[test]
fn stamped_entries_expire_one_by_one() {
    let server = Server::start();
    let (redis, clock) = stamped(&server, STAMPED);
    let (a, b, plain) = (Key::from(("h", "a")), Key::from(("h", "b")), Key::from("p"));
    redis.set(a, b"one", Some(Duration::from_secs(10))).unwrap();
    redis.set_many(&entries(&[(b, "two"), (plain, "three")]), Some(Duration::from_secs(20))).unwrap();
    assert_eq!(server.ask_int(&["HSTRLEN", "h\x7f2", "a"]), 5, "two bytes of stamp");
    let ttl = server.ask_int(&["PTTL", "h\x7f2"]);
    assert!((20_000..=28_000).contains(&ttl), "the hash outlives its youngest entry: {ttl}");

    let mut found = dogpile::backend::Found::new();
    let mut all = || {
        redis.get_many(&[b, plain, a, Key::from(("h", "c"))], &mut found).unwrap();
        let entry = |at| found.get(at).map(|entry| String::from_utf8_lossy(&entry).into_owned());
        [entry(0), entry(1), entry(2), entry(3)]
    };
    let some = |text: &str| Some(text.to_string());
    assert_eq!(all(), [some("two"), some("three"), some("one"), None]);
    clock.advance(Duration::from_secs(9));
    assert_eq!(read(&redis, a), some("one"));
    clock.advance(Duration::from_secs(1));
    assert_eq!(read(&redis, a), None);
    assert_eq!(all(), [some("two"), some("three"), None, None], "a plain entry has the server's TTL");
    redis.delete_many(&[b]).unwrap();
    assert_eq!(server.ask_int(&["HLEN", "h\x7f2"]), 1);

    // Without a TTL an entry gets the longest, and one that is longer is cut.
    redis.set(b, b"two", None).unwrap();
    let ttl = server.ask_int(&["TTL", "h\x7f2"]);
    assert!((3_600..=4_600).contains(&ttl), "{ttl}");
    redis.set(b, b"two", Some(Duration::from_secs(1_000_000))).unwrap();
    clock.advance(HOUR - Duration::from_secs(1));
    assert_eq!(read(&redis, b), some("two"));
    clock.advance(Duration::from_secs(1));
    assert_eq!(read(&redis, b), None);
}

#[test]
fn a_write_that_stretches_a_hash_removes_what_has_expired() {
    let server = Server::start();
    let (redis, clock) = stamped(&server, STAMPED);
    let field = |field| Key::Field { hash: b"h", field };
    let ttl = |seconds| Some(Duration::from_secs(seconds));
    let fields: Vec<_> = (0..3000).map(|n| n.to_string()).collect();
    let many: Vec<_> = fields.iter().map(|name| (field(name.as_bytes()), "x")).collect();
    redis.set_many(&entries(&many), ttl(100)).unwrap();
    redis.set(field(b"long"), b"x", ttl(120)).unwrap();
    assert_eq!(server.ask_int(&["HLEN", "h\x7f2"]), 3001);
    clock.advance(Duration::from_secs(101));
    redis.set(field(b"short"), b"x", ttl(5)).unwrap();
    assert_eq!(server.ask_int(&["HLEN", "h\x7f2"]), 3002, "a write that needs no longer life looks for nothing");
    redis.set(field(b"new"), b"x", ttl(200)).unwrap();
    assert_eq!(server.ask_int(&["HLEN", "h\x7f2"]), 3);
    assert_eq!(read(&redis, field(b"long")), Some("x".into()));
    // One whose life somebody made endless begins anew: nobody can tell for how long its stamps have been expired.
    assert_eq!(server.ask(&["PERSIST", "h\x7f2"]), ":1");
    redis.set(field(b"other"), b"x", ttl(5)).unwrap();
    assert!(server.ask_int(&["TTL", "h\x7f2"]) > 0);
    assert_eq!(server.ask_int(&["HLEN", "h\x7f2"]), 1);
}

#[test]
fn a_hash_goes_with_its_youngest_entry() {
    let server = Server::start();
    let redis = redis(&server, HashTtl::Stamped { longest: Duration::from_secs(50) });
    redis.set(Key::from(("h", "f")), b"x", Some(Duration::from_millis(100))).unwrap();
    assert_eq!(server.ask_int(&["EXISTS", "h\x7f1"]), 1);
    sleep(Duration::from_millis(1200));
    assert_eq!(read(&redis, Key::from(("h", "f"))), None);
    sleep(Duration::from_millis(1200));
    assert_eq!(server.ask_int(&["EXISTS", "h\x7f1"]), 0);
}

#[test]
fn a_lease_is_taken_where_an_entry_has_expired() {
    let server = Server::start();
    let (redis, clock) = stamped(&server, STAMPED);
    let region = Region::builder(redis)
        .keys(Bucketed::new(128))
        .lock(RedisLock::new().lease_on_miss())
        .ttl(Duration::from_secs(10))
        .clock(clock.clone())
        .build()
        .unwrap();
    let create = |value: u64| region.get_or_create("1000", || Ok::<_, std::io::Error>(value)).unwrap();
    assert_eq!((create(1), create(2)), (1, 1));
    clock.advance(Duration::from_secs(11));
    assert_eq!((create(3), create(4)), (3, 3));
    assert_eq!(server.ask_int(&["EXISTS", "_lok.#7,104"]), 0);
    // A lock that somebody else holds is waited for, not passed by.
    clock.advance(Duration::from_secs(11));
    server.ask(&["SET", "_lok.#7,104", "another", "PX", "300"]);
    let begun = std::time::Instant::now();
    assert_eq!(create(5), 5);
    assert!(begun.elapsed() > Duration::from_millis(250));
}

#[test]
fn what_is_stored_only_under_its_lease_is_stamped_too() {
    let server = Server::start();
    for expiry in [STAMPED, ServerInfo::of(&server.redis()).unwrap().per_field(HOUR)] {
        server.ask(&["FLUSHALL"]);
        let region = Region::builder(redis(&server, expiry))
            .lock(RedisLock::new().on_lease_lost(OnLeaseLost::Discard))
            .ttl(Duration::from_millis(1500))
            .build()
            .unwrap();
        let create = |key, lose: bool| {
            region.get_or_create(key, || {
                if lose {
                    server.ask(&["DEL", "_lok.h,b"]);
                }
                Ok::<_, std::io::Error>(1_u64)
            })
        };
        assert_eq!(create(("h", "a"), false).unwrap(), 1);
        assert_eq!(create(("h", "b"), true).unwrap(), 1);
        assert_eq!(region.get::<u64>(("h", "a")).unwrap(), Some(1));
        assert_eq!(region.get::<u64>(("h", "b")).unwrap(), None, "its lease was lost");
        assert_eq!(region.stats().lost_leases, 1);
        sleep(Duration::from_millis(2600));
        assert_eq!(region.get::<u64>(("h", "a")).unwrap(), None, "{expiry:?}");
        // A key of another type: an error that is counted, and a lock that is released.
        server.ask(&["SET", if expiry == STAMPED { "w\x7f2" } else { "w" }, "text"]);
        assert_eq!(create(("w", "a"), false).unwrap(), 1);
        assert_eq!(region.stats().failed_writes, 1);
        assert_eq!(server.ask_int(&["EXISTS", "_lok.w,a"]), 0);
    }
}

#[test]
fn a_sweep_removes_what_has_expired() {
    let server = Server::start();
    let (redis, clock) = stamped(&server, STAMPED);
    let keys = Bucketed::new(10);
    let region = Region::builder(redis.clone()).keys((keys, Prefix::new("s*[p:"))).build().unwrap();
    let other = Region::builder(redis.clone()).keys((keys, Prefix::new("sxp:"))).build().unwrap();
    let users = |from: u64| (from..from + 7000).map(|n| (n, n)).collect::<Vec<_>>();
    region.with_ttl(Duration::from_secs(10)).set_many(&users(0)).unwrap();
    region.with_ttl(Duration::from_secs(30)).set_many(&users(3500)).unwrap();
    other.with_ttl(Duration::from_secs(10)).set_many(&users(0)).unwrap();
    server.ask(&["SET", "s*[p:text\x7f2", "x"]);
    server.ask(&["HSET", "s*[p:not ours", "f", "x"]);
    assert_eq!(sweep(&redis, "s*[p:").unwrap().removed, 0);
    clock.advance(Duration::from_secs(10));
    let swept = sweep(&redis, "s*[p:").unwrap();
    assert_eq!((swept.hashes, swept.removed), (1050, 3500));
    assert_eq!(server.ask_int(&["DBSIZE"]), 700 + 700 + 2, "a hash without fields is gone");
    assert_eq!(sweep(&redis, "").unwrap().removed, 7000);
    assert_eq!(region.get::<u64>(5000).unwrap(), Some(5000));
    let unstamped = sweep(&server.redis(), "s").unwrap_err();
    assert_eq!(unstamped.kind(), ErrorKind::Config);
    let gone = Redis::open("redis://127.0.0.1:1").unwrap();
    assert_eq!(ServerInfo::of(&gone).unwrap_err().kind(), ErrorKind::Connection);
}

#[test]
fn what_is_accepted_is_found_again() {
    let server = Server::start();
    let redis = Redis::builder(&server.url()).hash_ttl(STAMPED).max_entry(1000).build().unwrap();
    let set = |key: Key<'_>, bytes| redis.set(key, &vec![b'x'; bytes], Some(HOUR)).map_err(|error| error.kind());
    let (plain, field) = (Key::from("p"), Key::from(("h", "f")));
    assert_eq!((set(plain, 1000), set(field, 998)), (Ok(()), Ok(())));
    assert_eq!((set(plain, 1001), set(field, 999)), (Err(ErrorKind::TooLarge), Err(ErrorKind::TooLarge)));
    assert_eq!(read(&redis, plain).unwrap().len(), 1000);
    assert_eq!(read(&redis, field).unwrap().len(), 998);
}

#[test]
fn stamped_and_unstamped_entries_never_meet() {
    let server = Server::start();
    let key = Key::from(("h", "f"));
    let all = [
        HashTtl::OnCreate,
        STAMPED,
        HashTtl::Stamped { longest: Duration::from_secs(50) },
        HashTtl::Stamped { longest: Duration::from_secs(86_400) },
        HashTtl::Stamped { longest: Duration::MAX },
    ];
    for (at, expiry) in all.into_iter().enumerate() {
        redis(&server, expiry).set(key, at.to_string().as_bytes(), Some(Duration::from_secs(50))).unwrap();
    }
    for (at, expiry) in all.into_iter().enumerate() {
        assert_eq!(read(&redis(&server, expiry), key), Some(at.to_string()));
    }
    assert_eq!(server.ask_int(&["DBSIZE"]), 5);
}

#[test]
fn fields_have_ttls_of_their_own_where_the_server_can() {
    let server = Server::start();
    let info = ServerInfo::of(&server.redis()).unwrap();
    let expiry = info.per_field(HOUR);
    let redis = redis(&server, expiry);
    let (a, b) = (Key::from(("h", "a")), Key::from(("h", "b")));
    redis.set(a, b"one", Some(Duration::from_secs(1))).unwrap();
    redis.set_many(&entries(&[(b, "two"), (Key::from(("h", "c")), "three")]), Some(HOUR)).unwrap();
    assert_eq!(read(&redis, a), Some("one".into()));
    let hash = if info.keeps_listpacks_per_field() {
        assert_eq!((info.name, expiry), (ServerName::Redis, HashTtl::PerField));
        "h"
    } else {
        "h\x7f2"
    };
    let encoding = server.ask(&["OBJECT", "ENCODING", hash]);
    assert!(encoding.contains("listpack"), "{encoding}");
    sleep(Duration::from_millis(2100));
    assert_eq!((read(&redis, a), read(&redis, b)), (None, Some("two".into())));
}

#[test]
fn buckets_cost_no_round_trips() {
    let server = Server::start();
    let proxy = Proxy::before(&server);
    for expiry in [STAMPED, ServerInfo::of(&server.redis()).unwrap().per_field(HOUR)] {
        let redis = Redis::builder(&proxy.url()).connections(1).hash_ttl(expiry).build().unwrap();
        redis.ping().unwrap();
        let region = Region::builder(redis).keys(Bucketed::new(256).others(3)).ttl(HOUR).build().unwrap();
        let count = |what: &str, work: &dyn Fn()| assert_eq!(proxy.count(work), 1, "{what} {expiry:?}");
        let many: Vec<_> = (0..1000_u64).map(|n| (n, n)).collect();
        let names = ["a", "b", "c", "d"];
        let first = proxy.count(|| region.set(1000, &1_u64).unwrap());
        assert_eq!(first, if expiry == STAMPED { 2 } else { 1 }, "the server learns the script");
        count("set", &|| region.set(1000, &1_u64).unwrap());
        count("set_many", &|| region.set_many(&many).unwrap());
        count("set_many by name", &|| region.set_many(&names.map(|name| (name, 1_u64))).unwrap());
        count("get", &|| assert_eq!(region.get::<u64>(1000).unwrap(), Some(1)));
        count("get_many", &|| assert_eq!(region.get_many::<_, u64>(&names).unwrap(), [Some(1); 4]));
        count("delete_many", &|| region.delete_many(&[1, 1000, 5000]).unwrap());
        server.ask(&["SCRIPT", "FLUSH"]);
        region.set_many(&many).unwrap();
        assert_eq!(region.get::<u64>(999).unwrap(), Some(999));
        server.ask(&["SCRIPT", "FLUSH"]);
        let created = region.get_or_create(5000, || Ok::<_, std::io::Error>(7_u64)).unwrap();
        assert_eq!((created, region.get(5000).unwrap()), (7, Some(7_u64)));
        server.ask(&["SCRIPT", "FLUSH"]);
    }
}
