//! What is particular to a Redis server: hashes and their TTL, round trips, URLs, users, other types at a key.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dogpile::backend::Batch;
use dogpile::codec::Bare;
use dogpile::{Backend, ErrorKind, HashTtl, Key, Msgpack, Redis, RedisLock, Region};

use crate::support::{Proxy, Server};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn the_ttl_of_a_hash_has_three_states() {
    let server = Server::start();
    let region = |expiry| {
        let redis = Redis::builder(&server.url()).hash_ttl(expiry).build().unwrap();
        Region::builder(redis).ttl(HOUR).build().unwrap()
    };
    let ttl = |hash: &str| server.ask_int(&["PTTL", hash]);
    let shorten = |hash: &str| assert_eq!(server.ask(&["EXPIRE", hash, "60"]), ":1");
    for batched in [false, true] {
        let set = |expiry, hash: &str, field: u64| {
            let region = region(expiry);
            if batched {
                region.set_many(&[((hash, field), field), ((hash, field + 100), field)]).unwrap();
            } else {
                region.set((hash, field), &field).unwrap();
            }
        };
        server.ask(&["FLUSHALL"]);
        set(HashTtl::Never, "never", 1);
        assert_eq!(ttl("never"), -1);
        set(HashTtl::OnCreate, "create", 1);
        assert!((3_590_000..=3_600_000).contains(&ttl("create")));
        shorten("create");
        set(HashTtl::OnCreate, "create", 2);
        assert!(ttl("create") <= 60_000, "a hash keeps its TTL");
        // A hash that lost its TTL, such as one whose writer died in between, gets one.
        set(HashTtl::OnCreate, "never", 2);
        assert!(ttl("never") > 60_000);
        set(HashTtl::Always, "create", 3);
        assert!(ttl("create") > 60_000);
        set(HashTtl::Never, "create", 4);
        assert!(ttl("create") > 60_000);
    }
    let none = Region::builder(server.redis()).build().unwrap();
    none.set(("no ttl", 1), &1_u64).unwrap();
    none.set("no ttl either", &1_u64).unwrap();
    assert_eq!((ttl("no ttl"), ttl("no ttl either")), (-1, -1));
    // No time at all is a millisecond, and takes only this entry with it.
    none.with_ttl(Duration::ZERO).set("short", &1_u64).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(none.get::<u64>("short").unwrap(), None);
}

#[test]
fn everything_is_one_round_trip() {
    let server = Server::start();
    let proxy = Proxy::before(&server);
    let redis = |expiry| Redis::builder(&proxy.url()).connections(1).hash_ttl(expiry).build().unwrap();
    for expiry in [HashTtl::Never, HashTtl::OnCreate, HashTtl::Always] {
        let region = Region::builder(redis(expiry)).ttl(HOUR).build().unwrap();
        region.get::<u64>("warm up").unwrap();
        let mixed: Vec<_> = (0..50_u64)
            .map(|at| (Key::from("k").to_buf().int(at), at))
            .chain((0..50).map(|at| (Key::from(("h", "")).to_buf().int(at), at)))
            .collect();
        let keys: Vec<_> = mixed.iter().map(|(key, _)| key).collect();
        assert_eq!(proxy.count(|| region.set("k", &1_u64).unwrap()), 1);
        assert_eq!(proxy.count(|| region.set(("h", "f"), &1_u64).unwrap()), 1, "{expiry:?}");
        assert_eq!(proxy.count(|| assert_eq!(region.get("k").unwrap(), Some(1_u64))), 1);
        assert_eq!(proxy.count(|| assert_eq!(region.get(("h", "f")).unwrap(), Some(1_u64))), 1);
        assert_eq!(proxy.count(|| region.set_many(&mixed).unwrap()), 1);
        let read = |keys: &[_]| assert!(region.get_many::<_, u64>(keys).unwrap().iter().all(Option::is_some));
        assert_eq!(proxy.count(|| read(&keys)), 1);
        let hit = || region.get_or_create("k", || -> Result<u64, Infallible> { panic!("it is there") }).unwrap();
        assert_eq!(proxy.count(|| assert_eq!(hit(), 1)), 1);
        assert_eq!(proxy.count(|| region.delete_many(&keys).unwrap()), 1);
        assert_eq!(proxy.count(|| assert!(region.get_many::<_, u64>(&[] as &[&str]).unwrap().is_empty())), 0);
    }
    // A miss that only this process can fill: read, store.
    let region = Region::builder(redis(HashTtl::OnCreate)).ttl(HOUR).build().unwrap();
    region.get::<u64>("warm up").unwrap();
    let create = |key| region.get_or_create((key, "f"), || Ok::<u64, Infallible>(1)).unwrap();
    assert_eq!(proxy.count(|| assert_eq!(create("missing"), 1)), 2);
    let create =
        |keys: &[&str]| region.get_or_create_many(keys, |keys| Ok::<_, Infallible>(vec![1_u64; keys.len()])).unwrap();
    assert_eq!(proxy.count(|| assert_eq!(create(&["one", "two", "three"]), [1; 3])), 2);
    // A miss that other processes may fill: read, lock and read again, store and release.
    for lost in [false, true] {
        let builder = || Region::builder(redis(HashTtl::OnCreate)).ttl(HOUR);
        let lock = RedisLock::new();
        let create = |key: &str| -> usize {
            let once = || Ok::<u64, Infallible>(1);
            if lost {
                let region =
                    builder().lock(lock.clone().on_lease_lost(dogpile::lock::OnLeaseLost::Discard)).build().unwrap();
                region.get::<u64>("warm up").unwrap();
                proxy.count(|| assert_eq!(region.get_or_create((key, "f"), once).unwrap(), 1))
            } else {
                let region = builder().lock(lock.clone()).build().unwrap();
                region.get::<u64>("warm up").unwrap();
                proxy.count(|| assert_eq!(region.get_or_create((key, "f"), once).unwrap(), 1))
            }
        };
        assert_eq!(create(if lost { "missing1" } else { "missing2" }), 3);
    }
    let region = Region::builder(redis(HashTtl::OnCreate)).lock(RedisLock::new()).build().unwrap();
    region.get::<u64>("warm up").unwrap();
    let many: Vec<String> = (0..100).map(|at| format!("miss{at}")).collect();
    let create = || region.get_or_create_many(&many, |keys| Ok::<_, Infallible>(vec![1_u64; keys.len()])).unwrap();
    assert_eq!(proxy.count(|| assert_eq!(create().len(), 100)), 3, "a hundred misses cost as much as one");
    // And so does a creator that fails: read, lock and read again, release.
    let fail = || assert!(region.get_or_create_many(&["x", "y", "z"], |_| Err::<Vec<u64>, _>("no")).is_err());
    assert_eq!(proxy.count(fail), 3);
    assert_eq!(server.ask(&["KEYS", "_lok.*"]), "*0");
}

#[test]
fn another_type_at_the_key() {
    let server = Server::start();
    let region = Region::builder(server.redis()).build().unwrap();
    assert_eq!(server.ask(&["RPUSH", "list", "1"]), ":1");
    assert_eq!(server.ask(&["SET", "text", "1"]), "+OK");
    assert_eq!(region.get::<u64>("list").unwrap(), None);
    assert_eq!(region.get::<u64>(("list", "f")).unwrap(), None);
    assert_eq!(region.get::<u64>(("text", "f")).unwrap(), None);
    assert_eq!(region.stats().wrong_type, 3);
    region.set(("hash", "f"), &7_u64).unwrap();
    let found = region.get_many::<_, u64>(&[Key::from("list"), ("list", "f").into(), ("hash", "f").into()]).unwrap();
    assert_eq!(found, [None, None, Some(7)]);
    // A plain entry overwrites what is there; a field cannot, and its value is returned all the same.
    assert_eq!(region.get_or_create("list", || Ok::<_, Infallible>(8_u64)).unwrap(), 8);
    assert_eq!(region.get("list").unwrap(), Some(8_u64));
    assert_eq!(region.get_or_create(("text", "f"), || Ok::<_, Infallible>(9_u64)).unwrap(), 9);
    assert_eq!(region.stats().failed_writes, 1);
    let error = region.set(("text", "f"), &9_u64).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongType);
    assert!(error.to_string().starts_with("writing text,f: the server answered \"WRONGTYPE"), "{error}");
    // The connection is still in step.
    assert_eq!(region.get(("hash", "f")).unwrap(), Some(7_u64));
}

#[test]
fn corrupt_bytes_are_misses_that_heal() {
    let server = Server::start();
    let region = Region::builder(server.redis()).build().unwrap();
    for entry in ["", "garbage", "\u{7f}", "{\"v\":1}"] {
        server.ask(&["SET", "k", entry]);
        server.ask(&["HSET", "h", "f", entry]);
        assert_eq!(region.get::<u64>("k").unwrap(), None);
        assert_eq!(region.get_many::<_, u64>(&[Key::from("k"), ("h", "f").into()]).unwrap(), [None, None]);
        for key in [Key::from("k"), Key::from(("h", "f"))] {
            assert_eq!(region.get_or_create(key, || Ok::<_, Infallible>(1_u64)).unwrap(), 1);
            assert_eq!(region.get(key).unwrap(), Some(1_u64));
        }
    }
    assert_eq!(region.stats().undecodable, 20);
}

#[test]
fn large_entries() {
    let server = Server::start();
    let region = Region::builder(server.redis()).codec(Msgpack::<Bare>::new()).build().unwrap();
    let large = Bytes::from((0..64_u32 << 20).map(|at| at.to_le_bytes()[1]).collect::<Vec<u8>>());
    region.set("large", &large).unwrap();
    assert!(region.get::<Bytes>("large").unwrap().unwrap() == large);
    assert!(
        region.get_many::<_, Bytes>(&["large", "large"]).unwrap().iter().all(|found| found.as_ref() == Some(&large))
    );
    region.delete("large").unwrap();
    // What the server would refuse, and close the connection for, is not sent.
    let too_large = Bytes::from(vec![0; 512 << 20]);
    let begun = Instant::now();
    let error = region.set("too large", &too_large).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(error.to_string(), "writing too large: an entry of 536870917 bytes is over the limit of 536870912");
    assert_eq!(region.get_or_create("too large", || Ok::<_, Infallible>(too_large)).unwrap().len(), 512 << 20);
    assert_eq!(region.stats().failed_writes, 1);
    assert!(begun.elapsed() < Duration::from_secs(60));
    // A reader with a limit of its own gets a clear error, and the next connection is in step.
    let small = Redis::builder(&server.url()).max_entry(1000).build().unwrap();
    region.set("k", &Bytes::from(vec![0; 1001])).unwrap();
    let error = small.get(Key::from("k")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("longer than the limit for values"), "{error}");
    small.set(Key::from("k"), b"small", None).unwrap();
    assert_eq!(small.get(Key::from("k")).unwrap().unwrap(), "small");
    let mut batch = Batch::new();
    batch.push(Key::from("a"), |out| out.push(0));
    batch.push(Key::from("b"), |out| out.resize(out.len() + 1001, 0));
    assert_eq!(small.set_many(&batch, None).unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(small.get(Key::from("a")).unwrap(), None, "nothing of the batch was sent");
}

#[test]
fn an_empty_key_is_a_key() {
    let server = Server::start();
    let region = Region::builder(server.redis()).lock(RedisLock::new()).build().unwrap();
    assert_eq!(region.get::<u64>("").unwrap(), None);
    assert_eq!(region.get_or_create("", || Ok::<_, Infallible>(1_u64)).unwrap(), 1);
    assert_eq!(region.get("").unwrap(), Some(1_u64));
    assert_eq!(region.get_or_create(("", ""), || Ok::<_, Infallible>(2_u64)).unwrap(), 2);
    assert_eq!(region.get::<u64>(("", "")).unwrap(), None, "the empty key is no hash, so the field was not stored");
}

#[test]
fn very_many_keys() {
    let server = Server::start();
    let region = Region::builder(server.redis()).ttl(HOUR).build().unwrap();
    let entries: Vec<(u64, u64)> = (0..30_000).map(|at| (at, at)).collect();
    region.set_many(&entries).unwrap();
    let keys: Vec<u64> = (0..30_001).rev().collect();
    let found = region.get_many::<_, u64>(&keys).unwrap();
    assert_eq!(found[0], None);
    assert!(found[1..].iter().zip(&keys[1..]).all(|(found, key)| *found == Some(*key)));
    region.delete_many(&keys).unwrap();
    assert_eq!(server.ask_int(&["DBSIZE"]), 0);
    let fields: Vec<_> = (0..30_000_u64).map(|at| ((at % 1000, at), at)).collect();
    region.set_many(&fields).unwrap();
    let keys: Vec<_> = fields.iter().map(|(key, _)| *key).collect();
    assert!(region.get_many::<_, u64>(&keys).unwrap().iter().zip(&fields).all(|(found, (_, at))| *found == Some(*at)));
}

#[test]
fn users_passwords_and_databases() {
    let server = Server::with(&["--requirepass", "s3cret", "--databases", "4"]);
    let ann = ["AUTH", "s3cret"];
    let mut commands = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    std::io::Write::write_all(
        &mut commands,
        format!(
            "{}\r\nACL SETUSER ann on >p@ss ~* +@all\r\nACL SETUSER old on >pw ~* +@all -hello\r\nQUIT\r\n",
            ann.join(" ")
        )
        .as_bytes(),
    )
    .unwrap();
    let mut answers = String::new();
    std::io::Read::read_to_string(&mut commands, &mut answers).unwrap();
    assert_eq!(answers, "+OK\r\n".repeat(4));

    let open =
        |userinfo: &str, db: &str| Redis::open(&format!("redis://{userinfo}127.0.0.1:{}/{db}", server.port)).unwrap();
    for userinfo in [":s3cret@", "ann:p%40ss@", "default:s3cret@", "old:pw@"] {
        let redis = open(userinfo, "2");
        redis.ping().unwrap();
        redis.set(Key::from(userinfo), b"1", None).unwrap();
        assert_eq!(open(":s3cret@", "2").get(Key::from(userinfo)).unwrap().unwrap(), "1");
        assert_eq!(open(":s3cret@", "").get(Key::from(userinfo)).unwrap(), None, "another database");
        let shown = format!("{redis:?} {:?}", Region::builder(redis.clone()).build().unwrap());
        assert!(!["s3cret", "p@ss", "p%40ss", "pw\""].iter().any(|secret| shown.contains(secret)), "{shown}");
    }
    for (userinfo, db, what) in [
        ("", "", "user and password"),
        (":wr0ng@", "", "user and password"),
        ("ann:wr0ng@", "", "user and password"),
        ("nobody:wr0ng@", "", "user and password"),
        (":s3cret@", "4", "database"),
    ] {
        let error = open(userinfo, db).get(Key::from("k")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(error.to_string().contains(&format!("the server refused the {what}")), "{error}");
        assert!(!error.to_string().contains("wr0ng") && !error.to_string().contains("s3cret"), "{error}");
    }
    // A cache that refuses us is out of reach as any other.
    let region = Region::builder(open(":wr0ng@", "")).build().unwrap();
    assert_eq!(region.get_or_create("k", || Ok::<_, Infallible>(1_u64)).unwrap(), 1);
}

#[test]
fn urls_that_are_of_no_use_are_told_at_once() {
    for url in ["", "redis:/", "http://127.0.0.1", "rediss://127.0.0.1/x", "redis://127.0.0.1/x"] {
        assert_eq!(Redis::open(url).unwrap_err().kind(), ErrorKind::Config, "{url}");
    }
    #[cfg(not(feature = "tls"))]
    assert_eq!(Redis::open("rediss://127.0.0.1").unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(Redis::builder("redis://h").reader("redis://h/x").build().unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(Redis::builder("redis://h").connections(0).build().unwrap_err().kind(), ErrorKind::Config);
    let endless = Redis::builder("redis://127.0.0.1:1").response_timeout(Duration::MAX).connect_timeout(Duration::MAX);
    let error = endless.connections(usize::MAX).build().unwrap().ping().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection, "no clock overflows");
    let zero = Duration::ZERO;
    assert_eq!(Redis::builder("redis://h").connect_timeout(zero).build().unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(Redis::builder("redis://h").response_timeout(zero).build().unwrap_err().kind(), ErrorKind::Config);
    let error = Redis::open("redis://no-such-host.invalid").unwrap().ping().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert!(error.to_string().starts_with("connecting to no-such-host.invalid:6379: "), "{error}");
    let error = Redis::open("unix:///no/such/socket").unwrap().ping().unwrap_err();
    assert!(error.to_string().starts_with("connecting to /no/such/socket: "), "{error}");
}

#[test]
fn reads_may_go_to_another_server() {
    let (primary, replica) = (Server::start(), Server::start());
    let redis = Redis::builder(&primary.url()).reader(&replica.url()).build().unwrap();
    redis.ping().unwrap();
    let region = Region::builder(redis).lock(RedisLock::new()).build().unwrap();
    region.set("k", &1_u64).unwrap();
    assert_eq!(region.get::<u64>("k").unwrap(), None, "the two are no real pair");
    assert_eq!(region.get_or_create("k", || Ok::<_, Infallible>(2_u64)).unwrap(), 1, "who locks asks the primary");
    assert_eq!(primary.ask_int(&["DBSIZE"]), 1);
    assert_eq!(replica.ask_int(&["DBSIZE"]), 0);
    replica.ask(&["SET", "r", "\u{7}"]);
    let bare = Region::builder(region.backend().clone()).codec(Msgpack::<Bare>::new()).build().unwrap();
    assert_eq!(bare.get_many(&["r", "k"]).unwrap(), [Some(7_u64), None]);
}

#[test]
fn a_server_with_too_many_clients_says_so() {
    let server = Server::with(&["--maxclients", "1"]);
    let _only = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let messages: Vec<String> = (0..20).map(|_| server.redis().ping().unwrap_err().to_string()).collect();
    assert!(messages.iter().any(|message| message.contains("max number of clients")), "{messages:?}");
}
