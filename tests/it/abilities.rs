//! What a server cannot do is found out when a connection is made: what it is, how old it is, which commands it has.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use dogpile::redis::{RedisBuilder, ServerInfo};
use dogpile::{Backend, Error, ErrorKind, HashTtl, Key, Redis, RedisLock, Region};

use crate::support::{Proxy, Server, eventually, speak_resp3, trips_to_connect};

const HOUR: Duration = Duration::from_secs(3600);
const RESP2: [&str; 3] = ["--rename-command", "HELLO", ""];

/// The version of the server that the tests run on, and whether it has `HSETEX`.
fn tested(server: &Server) -> (ServerInfo, bool) {
    let info = ServerInfo::of(&server.redis()).unwrap();
    let has_hsetex = !server.ask(&["HSETEX"]).contains("unknown command");
    (info, has_hsetex)
}

/// Valkey 9.1 keeps from strangers that it does not know `HELLO`.
#[test]
fn passwords_without_resp3() {
    let server = Server::with(&[&RESP2[..], &["--requirepass", "s3cret"]].concat());
    let open = |userinfo: &str| Redis::open(&format!("redis://{userinfo}127.0.0.1:{}/1", server.port)).unwrap();
    open(":s3cret@").ping().unwrap();
    for userinfo in ["", ":wr0ng@", "ann:wr0ng@"] {
        let error = open(userinfo).ping().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(error.to_string().contains("the server refused the user and password"), "{error}");
    }
}

/// What each call comes to with a backend that cannot work: threads' and tasks', of the backend and of a region that goes
/// on without it. All are told the same, at once.
fn told(builder: RedisBuilder) -> String {
    let begun = Instant::now();
    let redis = builder.build().unwrap();
    let mut errors = vec![redis.ping().unwrap_err()];
    let region = Region::builder(redis.clone()).lock(RedisLock::new()).ttl(HOUR).build().unwrap();
    let once = || -> Result<u64, Infallible> { panic!("nobody creates where a setting is wrong") };
    for key in ["a", "b"] {
        errors.push(region.get::<u64>(key).unwrap_err());
        errors.push(region.get_or_create(key, once).unwrap_err().into_create().unwrap_err());
        errors.push(region.get_or_refresh(key, once).unwrap_err().into_create().unwrap_err());
        errors.push(region.set(key, &1_u64).unwrap_err());
    }
    #[cfg(feature = "tokio")]
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            errors.push(redis.ping_async().await.unwrap_err());
            for key in ["a", "b"] {
                let created = region.get_or_create_async(key, async || once()).await;
                errors.push(created.unwrap_err().into_create().unwrap_err());
                errors.push(region.get_async::<u64>(key).await.unwrap_err());
                errors.push(region.set_async(key, &1_u64).await.unwrap_err());
            }
        });
    }
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    let of = |error: &Error| {
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        let text = error.to_string();
        let from = text.find("connecting to").unwrap_or_else(|| panic!("{text}"));
        text[from..].to_string()
    };
    let first = of(&errors[0]);
    errors.iter().for_each(|error| assert_eq!(of(error), first));
    assert_eq!(region.stats().failed_reads, 0);
    first
}

#[test]
fn per_field_needs_a_server_that_has_it() {
    for arguments in [&[][..], &RESP2] {
        let server = Server::with(arguments);
        let (info, has_hsetex) = tested(&server);
        let builder = || Redis::builder(&server.url()).hash_ttl(HashTtl::PerField);
        if has_hsetex {
            let region = Region::builder(builder().build().unwrap()).ttl(HOUR).build().unwrap();
            region.set(("h", "f"), &1_u64).unwrap();
            assert_eq!(region.get(("h", "f")).unwrap(), Some(1_u64));
            assert_eq!(server.ask_int(&["TTL", "h"]), -1, "it is the field that has a TTL");
            continue;
        }
        let version = info.version.map(|number| number.to_string()).join(".");
        let expected = format!(
            "connecting to 127.0.0.1:{}: {} {version} does not support HSETEX, which `HashTtl::PerField` needs: use \
             `ServerInfo::per_field`, which picks a supported mode, or `HashTtl::Stamped`",
            server.port, info.name
        );
        assert_eq!(told(builder()), expected);
        // Reading needs nothing of it, so where others read is not asked.
        let reads = Redis::builder("redis://127.0.0.1:1").reader(&server.url()).hash_ttl(HashTtl::PerField);
        assert_eq!(reads.build().unwrap().get(Key::from(("h", "f"))).unwrap(), None);
        let chosen = builder().hash_ttl(info.per_field(HOUR)).build().unwrap();
        chosen.ping().unwrap();
    }
}

#[test]
fn who_may_not_ask_what_there_is_goes_on() {
    for arguments in [&[][..], &RESP2] {
        let server = Server::with(arguments);
        server.ask(&["ACL", "SETUSER", "ann", "on", ">secret", "~*", "+@all", "-command", "-info", "-select"]);
        let url = format!("redis://ann:secret@127.0.0.1:{}", server.port);
        let redis = Redis::builder(&url).hash_ttl(HashTtl::PerField).build().unwrap();
        redis.ping().unwrap();
        // What it turns out to lack is an error of each write then.
        let written = redis.set(Key::from(("h", "f")), b"1", Some(HOUR));
        let (_, has_hsetex) = tested(&server);
        assert_eq!(written.map_err(|error| error.kind()), if has_hsetex { Ok(()) } else { Err(ErrorKind::Server) });
        let error = Redis::open(&format!("{url}/1")).unwrap().ping().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn a_node_of_a_cluster_is_refused() {
    for arguments in [&[][..], &RESP2] {
        let mut all = vec!["--cluster-enabled", "yes"];
        all.extend(arguments);
        let server = Server::with(&all);
        let expected = format!(
            "connecting to 127.0.0.1:{}: the server is a cluster node, which stores only some of the keys: use `Cluster`",
            server.port
        );
        assert_eq!(told(Redis::builder(&server.url())), expected);
        // Its databases are none of ours to ask for.
        assert_eq!(told(Redis::builder(&format!("{}/1", server.url()))), expected);
        let reader = Redis::builder("redis://127.0.0.1:1").reader(&server.url()).build().unwrap();
        let error = reader.get(Key::from("k")).unwrap_err();
        assert_eq!((error.kind(), error.to_string().ends_with(&expected)), (ErrorKind::Config, true), "{error}");
    }
}

#[test]
fn a_sentinel_is_refused() {
    let server = Server::with(&["--sentinel"]);
    let expected = format!(
        "connecting to 127.0.0.1:{}: the server is a sentinel, which stores no entries: use `Sentinel`",
        server.port
    );
    assert_eq!(told(Redis::builder(&server.url())), expected);
    assert_eq!(told(Redis::builder(&format!("{}/1", server.url()))), expected);
}

/// A server that answers to each of the first commands of a connection, and to nothing else.
fn pretend(answers: &[&'static [u8]]) -> String {
    let answers = answers.to_vec();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("redis://127.0.0.1:{}", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answers = answers.clone();
            std::thread::spawn(move || {
                for answer in answers {
                    if stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
                        let _ = stream.write_all(answer);
                    }
                }
                let _ = stream.read(&mut [0; 4096]);
            });
        }
    });
    url
}

#[test]
fn an_older_redis_is_refused() {
    let told_by = |answers: &[&'static [u8]]| told(Redis::builder(&pretend(answers)));
    let expected = "Redis 6.2.14 is too old: locks and hash TTLs need Redis 7.0 or later, or Valkey";
    let hello = b"%2\r\n+server\r\n+redis\r\n+version\r\n+6.2.14\r\n";
    assert!(told_by(&[hello]).ends_with(expected));
    assert!(told_by(&[b"-ERR unknown command `HELLO`\r\n", b"$20\r\nredis_version:6.2.14\r\n"]).ends_with(expected));
}

#[test]
fn a_proxy_that_says_nothing_is_let_through() {
    let pong = b"+PONG\r\n";
    let silent: [&[&'static [u8]]; 3] = [
        &[b"+OK\r\n", pong, pong],
        &[b"%0\r\n", pong, pong],
        &[b"-ERR unknown command 'HELLO'\r\n", b"-ERR unknown command 'INFO'\r\n", pong, pong],
    ];
    for answers in silent {
        Redis::open(&pretend(answers)).unwrap().ping().unwrap();
    }
}

#[test]
fn connecting_is_one_round_trip() {
    let connects = |arguments: &[&str], prepare: &dyn Fn(&Server), userinfo: &str, db: &str, expiry| {
        let server = Server::with(arguments);
        prepare(&server);
        let proxy = Proxy::before(&server);
        let url = format!("redis://{userinfo}127.0.0.1:{}/{db}", proxy.port);
        let builder = Redis::builder(&url).hash_ttl(expiry);
        // PING itself is one.
        let threads = proxy.count(|| builder.clone().build().unwrap().ping().unwrap()) - 2;
        #[cfg(feature = "tokio")]
        {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let tasks = proxy.count(|| runtime.block_on(builder.build().unwrap().ping_async()).unwrap()) - 2;
            assert_eq!(threads, tasks);
        }
        threads
    };
    let (nothing, on_create) = (|_: &Server| {}, HashTtl::OnCreate);
    let has_hsetex = tested(&Server::start()).1;
    let settled = if has_hsetex { HashTtl::PerField } else { on_create };
    let one = trips_to_connect();
    assert_eq!(connects(&[], &nothing, "", "", on_create), one);
    assert_eq!(connects(&[], &nothing, "", "3", settled), one);
    let user = |server: &Server| drop(server.ask(&["ACL", "SETUSER", "ann", "on", ">pw", "~*", "+@all"]));
    assert_eq!(connects(&[], &user, "ann:pw@", "3", settled), one);
    // Without RESP3 all is said anew, with the question what the server is.
    assert_eq!(connects(&RESP2, &nothing, "", "", on_create), 2);
    assert_eq!(connects(&RESP2, &nothing, "", "3", settled), 2);
    assert_eq!(connects(&RESP2, &user, "ann:pw@", "3", settled), 2);
}

#[test]
fn a_server_that_is_mended_is_used() {
    let mut server = Server::with(&["--cluster-enabled", "yes"]);
    let redis = server.redis();
    assert_eq!(redis.ping().unwrap_err().kind(), ErrorKind::Config);
    #[cfg(feature = "tokio")]
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    #[cfg(feature = "tokio")]
    assert_eq!(runtime.block_on(redis.ping_async()).unwrap_err().kind(), ErrorKind::Config);
    server.replace_argument("yes", "no");
    server.restart();
    eventually("threads use it", || redis.ping().is_ok());
    #[cfg(feature = "tokio")]
    eventually("tasks use it", || runtime.block_on(redis.ping_async()).is_ok());
}

#[test]
fn entries_may_be_shorter_than_what_a_server_says_of_itself() {
    for arguments in [&[][..], &RESP2] {
        let server = Server::with(arguments);
        let redis = Redis::builder(&server.url()).max_entry(5).build().unwrap();
        redis.set(Key::from("k"), b"12345", None).unwrap();
        assert_eq!(redis.get(Key::from("k")).unwrap().unwrap(), "12345");
        server.ask(&["SET", "k", "123456"]);
        assert_eq!(redis.get(Key::from("k")).unwrap_err().kind(), ErrorKind::TooLarge);
        #[cfg(feature = "tokio")]
        {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let read = runtime.block_on(dogpile::AsyncBackend::get_async(&redis, Key::from("k")));
            assert_eq!(read.unwrap_err().kind(), ErrorKind::TooLarge);
        }
    }
}

/// Tasks that wait for a server that is down do not wait for one that cannot do what is wanted.
#[test]
#[cfg(feature = "tokio")]
fn nobody_waits_for_what_will_not_come() {
    let server = Server::with(&["--cluster-enabled", "yes"]);
    let builder = Redis::builder(&server.url()).while_down(dogpile::redis::WhileDown::Wait);
    told(builder.connect_timeout(Duration::from_secs(30)).response_timeout(Duration::from_secs(30)));
}

/// A server that does not tell us when leases change is found out at the first wait, and asked after pauses.
#[test]
fn who_waits_is_woken_where_the_server_does_not_tell() {
    for (arguments, may) in [(&RESP2[..], "+@all"), (&[], "-client"), (&[], "-client|tracking")] {
        let server = Server::with(arguments);
        assert_eq!(server.ask(&["ACL", "SETUSER", "ann", "on", ">pw", "~*", "+@all", may]), "+OK");
        let redis = Redis::open(&format!("redis://ann:pw@127.0.0.1:{}", server.port)).unwrap();
        let region = Region::builder(redis).lock(RedisLock::new()).build().unwrap();
        for key in ["a", "b"] {
            let lock = format!("_lok.{key}");
            server.ask(&["SET", &lock, "another", "PX", "30000"]);
            let begun = Instant::now();
            let created = std::thread::scope(|scope| {
                let waiter = scope.spawn(|| region.get_or_create(key, || Ok::<_, Infallible>(1_u64)).unwrap());
                std::thread::sleep(Duration::from_millis(300));
                server.ask(&["DEL", &lock]);
                waiter.join().unwrap()
            });
            assert_eq!(created, 1);
            let took = begun.elapsed();
            assert!((Duration::from_millis(300)..Duration::from_millis(500)).contains(&took), "{may}: {took:?}");
        }
        // It was asked to tell once, and not at each wait.
        let refused = server.ask(&["INFO", "commandstats"]);
        let asked = refused.lines().filter(|line| line.starts_with("cmdstat_client")).collect::<Vec<_>>().join(" ");
        if may != "+@all" && speak_resp3() {
            assert!(asked.contains("rejected_calls=1,"), "{may}: {asked}");
        }
    }
}

#[test]
fn who_is_refused_does_not_knock_each_time() {
    let server = Server::with(&["--requirepass", "s3cret"]);
    let redis = Redis::open(&format!("redis://:wr0ng@127.0.0.1:{}", server.port)).unwrap();
    let connections = || {
        let info = server.ask(&["INFO", "stats"]);
        let received = info.lines().find_map(|line| line.strip_prefix("total_connections_received:")).unwrap();
        received.trim().parse::<u64>().unwrap()
    };
    let before = connections();
    for _ in 0..1000 {
        let error = redis.get(Key::from("k")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    }
    let knocked = connections() - before;
    assert!(knocked < 20, "{knocked} connections for 1000 calls");
    // From now on it is let in.
    assert_eq!(server.ask(&["CONFIG", "SET", "requirepass", "wr0ng"]), "+OK");
    eventually("it is used", || redis.get(Key::from("k")).is_ok());
}

/// Of Redis 7.0, which repeats what it does not know, with what it was told.
#[test]
#[cfg(feature = "driver")]
fn no_password_in_what_drivers_are_told() {
    let server = Server::with(&RESP2);
    let client = redis::Client::open(format!("redis://:s3cret@127.0.0.1:{}/?protocol=resp3", server.port)).unwrap();
    let error = dogpile::redis::Driver::new(1, move || client.get_connection()).get(Key::from("k")).unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("HELLO") && !shown.contains("s3cret"), "{shown}");
}
