//! Servers that stop, freeze, come back, cut connections or talk nonsense: nothing hangs, and creation goes on.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dogpile::{Backend, ErrorKind, GetError, Key, Redis, RedisLock, Region};

use crate::support::{Server, eventually};

fn quick(server: &Server) -> Redis {
    Redis::builder(&server.url())
        .connect_timeout(Duration::from_millis(300))
        .response_timeout(Duration::from_millis(300))
        .build()
        .unwrap()
}

#[test]
fn a_server_that_is_down_is_an_ordinary_day() {
    let mut server = Server::start();
    let region = Region::builder(quick(&server)).lock(RedisLock::new()).build().unwrap();
    region.set("k", &1_u64).unwrap();
    server.stop();
    let begun = Instant::now();
    let error = region.get::<u64>("k").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert!(error.to_string().starts_with(&format!("reading k: connecting to 127.0.0.1:{}: ", server.port)), "{error}");
    assert_eq!(region.set("k", &1_u64).unwrap_err().kind(), ErrorKind::Connection);
    assert_eq!(region.delete("k").unwrap_err().kind(), ErrorKind::Connection);
    assert_eq!(region.get_many::<_, u64>(&["k"]).unwrap_err().kind(), ErrorKind::Connection);
    assert_eq!(region.is_locked("k").unwrap_err().kind(), ErrorKind::Connection);

    let calls = AtomicUsize::new(0);
    let create = || {
        calls.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(100));
        Ok::<_, Infallible>(2_u64)
    };
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(region.get_or_create("k", create).unwrap(), 2));
        }
    });
    assert_eq!(calls.into_inner(), 1, "one of this process creates");
    assert!(region.stats().failed_reads > 0);
    assert!(begun.elapsed() < Duration::from_secs(3));

    server.restart();
    assert_eq!(region.get_or_create("k", || Ok::<_, Infallible>(3_u64)).unwrap(), 3);
    assert_eq!(region.get("k").unwrap(), Some(3_u64), "all goes on by itself");
}

#[test]
fn a_region_may_fail_closed() {
    let mut server = Server::start();
    let region = Region::builder(quick(&server)).lock(RedisLock::new()).fail_closed().build().unwrap();
    let stop = || {
        server.stop();
        Ok::<_, Infallible>(1_u64)
    };
    let error = region.get_or_create("k", stop).unwrap_err();
    assert!(matches!(error, GetError::Cache(error) if error.kind() == ErrorKind::Connection));
    let error = region.get_or_create("k", || -> Result<u64, Infallible> { panic!("fails closed") }).unwrap_err();
    assert!(matches!(error, GetError::Cache(error) if error.kind() == ErrorKind::Connection));
}

#[test]
fn a_server_that_dies_while_a_value_is_created() {
    let mut server = Server::start();
    let region = Region::builder(quick(&server)).lock(RedisLock::new()).build().unwrap();
    let begun = Instant::now();
    let value = region.get_or_create("k", || {
        server.stop();
        Ok::<_, Infallible>(1_u64)
    });
    assert_eq!(value.unwrap(), 1, "the created value is not lost");
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert_eq!(region.stats().failed_writes, 1);
    server.restart();
    let value = region.get_or_create("k", || {
        server.restart();
        Ok::<_, Infallible>(2_u64)
    });
    assert_eq!(value.unwrap(), 2);
    assert_eq!(region.get("k").unwrap(), Some(2_u64), "an emptied server is filled again");
}

#[test]
fn idle_connections_that_broke_are_replaced() {
    let mut server = Server::start();
    let region = Region::builder(server.redis()).ttl(Duration::from_secs(60)).build().unwrap();
    let entries = [(("h", 1), 1_u64)];
    for round in 0..3 {
        region.set("k", &1_u64).unwrap();
        assert_eq!(server.ask(&["CLIENT", "KILL", "TYPE", "normal"]).split(':').next(), Some(""));
        match round {
            0 => assert_eq!(region.get("k").unwrap(), Some(1_u64)),
            1 => region.set_many(&entries).unwrap(),
            _ => {
                server.restart();
                assert_eq!(region.get::<u64>("k").unwrap(), None);
            }
        }
    }
    // A lease is not asked for twice; one more connection is enough all the same, because the reading before it found
    // the broken one.
    let locked = Region::builder(server.redis()).lock(RedisLock::new()).build().unwrap();
    locked.get::<u64>("k").unwrap();
    server.restart();
    assert_eq!(locked.get_or_create("k", || Ok::<_, Infallible>(5_u64)).unwrap(), 5);
    assert_eq!((locked.get("k").unwrap(), locked.stats().failed_locks), (Some(5_u64), 0));
}

#[test]
fn a_frozen_server_costs_its_timeout_and_its_late_answers_go_to_nobody() {
    let server = Server::start();
    let region = Region::builder(quick(&server)).build().unwrap();
    region.set("a", &1_u64).unwrap();
    region.set("b", &2_u64).unwrap();
    server.signal("STOP");
    let begun = Instant::now();
    let error = region.get::<u64>("a").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(
        error.to_string(),
        "reading a: waiting for the server's reply: timed out (see `connect_timeout` and `response_timeout`)"
    );
    assert!((250..1_500).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    assert_eq!(region.get_or_create("a", || Ok::<_, Infallible>(3_u64)).unwrap(), 3);
    // More than a socket buffer holds.
    let error = region.set("a", &vec![0_u8; 64 << 20]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    server.signal("CONT");
    eventually("the server answers", || region.get("b").is_ok_and(|value| value == Some(2_u64)));
    for _ in 0..100 {
        assert_eq!(region.get("a").unwrap(), Some(1_u64));
        assert_eq!(region.get("b").unwrap(), Some(2_u64));
    }
}

/// Something that accepts connections and is no Redis server.
fn stranger(talk: impl Fn(&mut std::net::TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("redis://127.0.0.1:{}", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            talk(&mut stream);
        }
    });
    url
}

#[test]
fn strangers_that_talk_nonsense_or_nothing() {
    let http = b"HTTP/1.1 400 Bad Request\r\n\r\n";
    for (answer, kind) in [
        (&http[..], ErrorKind::Protocol),
        (b"$99999999999\r\n", ErrorKind::TooLarge),
        (b"*-7\r\n", ErrorKind::Protocol),
        (b"+OK", ErrorKind::Connection),
        (b"", ErrorKind::Connection),
        (&[0; 100], ErrorKind::Protocol),
    ] {
        let redis = Redis::open(&stranger(move |stream| drop(stream.write_all(answer)))).unwrap();
        let error = redis.get(Key::from("k")).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
    // One that says nothing, and one that says too little too slowly.
    for drip in [false, true] {
        let url = stranger(move |stream| {
            for byte in b"+".iter().chain(&[b'x'; 1000]) {
                std::thread::sleep(Duration::from_millis(20));
                if drip && stream.write_all(&[*byte]).is_err() {
                    break;
                }
            }
        });
        let redis = Redis::builder(&url).response_timeout(Duration::from_millis(200)).build().unwrap();
        let begun = Instant::now();
        assert_eq!(redis.get(Key::from("k")).unwrap_err().kind(), ErrorKind::Timeout);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
}

#[test]
fn threads_wait_for_a_connection_when_all_are_in_use() {
    let server = Server::start();
    let redis = Redis::builder(&server.url()).connections(2).build().unwrap();
    let region = Region::builder(redis).build().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..16_u64 {
            let region = &region;
            scope.spawn(move || {
                for at in 0..200_u64 {
                    region.set(thread, &at).unwrap();
                    assert_eq!(region.get(thread).unwrap(), Some(at));
                }
            });
        }
    });
    let clients = server.ask(&["CLIENT", "LIST", "TYPE", "normal"]);
    assert!(clients.lines().filter(|line| line.starts_with("id=")).count() <= 3, "{clients}");
}

#[test]
fn a_server_that_is_out_of_memory_keeps_callers_going() {
    let server = Server::with(&["--maxmemory", "1000000", "--maxmemory-policy", "noeviction"]);
    let region = Region::builder(server.redis()).lock(RedisLock::new()).build().unwrap();
    let error = (0..100_u64).find_map(|at| region.set(at, &vec![0_u8; 100_000]).err()).expect("it is full");
    assert_eq!(error.kind(), ErrorKind::Server);
    assert!(error.to_string().contains("OOM"), "{error}");
    assert_eq!(region.get_or_create("k", || Ok::<_, Infallible>(1_u64)).unwrap(), 1);
    assert_eq!(region.get::<u64>("k").unwrap(), None);
}

#[test]
fn a_batch_on_a_frozen_server_costs_few_timeouts() {
    let server = Server::start();
    let region = Region::builder(quick(&server)).lock(RedisLock::new()).build().unwrap();
    let keys: Vec<u64> = (0..10).collect();
    for fails in [false, true] {
        let begun = Instant::now();
        let values = region.get_or_create_many(&keys, |keys| {
            server.signal("STOP");
            if fails { Err("no") } else { Ok(vec![1_u64; keys.len()]) }
        });
        assert_eq!(values.is_err(), fails);
        assert!(begun.elapsed() < Duration::from_millis(1_000), "{:?}", begun.elapsed());
        server.signal("CONT");
        eventually("the server answers", || region.delete_many(&keys).is_ok());
        server.ask(&["FLUSHALL"]);
    }
}

#[test]
fn a_peer_that_takes_a_request_too_slowly_is_given_up() {
    let url = stranger(|stream| {
        // Answers to HELLO and reads on, but hardly.
        let _ = stream.write_all(b"+OK\r\n");
        let mut piece = vec![0; 16 << 10];
        while stream.read(&mut piece).is_ok_and(|read| read > 0) {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let redis = Redis::builder(&url).response_timeout(Duration::from_millis(200)).build().unwrap();
    let begun = Instant::now();
    let error = redis.set(Key::from("k"), &vec![0; 64 << 20], None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn a_large_answer_may_take_longer_than_the_timeout_while_it_moves() {
    let url = stranger(|stream| {
        let _ = stream.write_all(b"+OK\r\n");
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"$8388608\r\n");
        for piece in 0..8 {
            std::thread::sleep(Duration::from_millis(100));
            let _ = stream.write_all(&vec![piece; 1 << 20]);
        }
        let _ = stream.write_all(b"\r\n");
    });
    let redis = Redis::builder(&url).response_timeout(Duration::from_millis(300)).build().unwrap();
    let begun = Instant::now();
    let entry = redis.get(Key::from("k")).unwrap().unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(700));
    assert!(entry.len() == 8 << 20 && entry.chunks(1 << 20).zip(0..).all(|(piece, at)| piece == [at; 1 << 20]));
}

#[test]
#[cfg(unix)]
fn a_unix_socket_that_nobody_accepts_from_is_given_up() {
    let server = Server::with(&["--tcp-backlog", "1"]);
    server.signal("STOP");
    let url = format!("unix://{}", server.socket().display());
    let begun = Instant::now();
    for _ in 0..6 {
        let quick = Redis::builder(&url).response_timeout(Duration::from_millis(200));
        let quick = quick.connect_timeout(Duration::from_millis(200)).build().unwrap();
        let error = quick.ping().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    server.signal("CONT");
}

#[test]
fn long_errors_and_pushes_do_not_get_in_the_way() {
    let long = format!("-ERR {}\r\n", "x".repeat(40_000));
    let url = stranger(move |stream| {
        let mut request = [0; 4096];
        let push = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n";
        let member = b"$1\r\n\x07\r\n";
        let answers: [&[&[u8]]; 4] =
            [&[b"+OK\r\n"], &[long.as_bytes()], &[push, member], &[b"*2\r\n", member, push, member]];
        for answer in answers {
            // In pieces, some of which arrive by themselves.
            for piece in answer.concat().chunks(7_000) {
                stream.write_all(piece).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
            let _ = stream.read(&mut request);
        }
    });
    let redis = Redis::builder(&url).connections(1).build().unwrap();
    let region = Region::builder(redis).codec(dogpile::Msgpack::<dogpile::codec::Bare>::new()).build().unwrap();
    let error = region.get::<u64>("k").unwrap_err();
    assert_eq!((error.kind(), error.to_string().len() > 40_000), (ErrorKind::Server, true));
    assert_eq!(region.get::<u64>("k").unwrap(), Some(7), "the connection is still in step");
    assert_eq!(region.get_many::<_, u64>(&["k", "l"]).unwrap(), [Some(7), Some(7)]);
}

#[test]
fn what_goes_once_only_does_not_wait_for_its_own_place() {
    let server = Server::start();
    let redis = Redis::builder(&server.url()).connections(1).build().unwrap();
    let region = Region::builder(redis)
        .lock(RedisLock::new().on_lease_lost(dogpile::lock::OnLeaseLost::Discard))
        .build()
        .unwrap();
    let begun = Instant::now();
    let create = || {
        // The connection is idle while the creator runs, and is closed meanwhile.
        assert!(server.ask(&["CLIENT", "KILL", "TYPE", "normal"]).starts_with(':'));
        Ok::<_, Infallible>(1_u64)
    };
    assert_eq!(region.get_or_create("k", create).unwrap(), 1);
    assert_eq!(region.stats().failed_writes, 0);
    assert_eq!(region.get("k").unwrap(), Some(1_u64), "it was stored");
    assert!(begun.elapsed() < Duration::from_millis(900));
}

#[test]
fn one_answer_that_does_not_come_is_no_outage() {
    // A server that answers everything but one key.
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("redis://127.0.0.1:{}", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut asked = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut asked) {
                    let is_about = |word: &[u8]| asked[..read].windows(word.len()).any(|part| part == word);
                    if is_about(b"slow") {
                        std::thread::sleep(Duration::from_secs(2));
                        return;
                    }
                    let answer: &[u8] = if is_about(b"HELLO") { b"%1\r\n+proto\r\n:3\r\n" } else { b"$1\r\na\r\n" };
                    stream.write_all(answer).unwrap();
                }
            });
        }
    });
    let redis = Redis::builder(&url).response_timeout(Duration::from_millis(300)).build().unwrap();
    let get = |key: &str| dogpile::Backend::get(&redis, key.into());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let begun = std::time::Instant::now();
                while begun.elapsed() < Duration::from_secs(1) {
                    get("quick").unwrap();
                }
            });
        }
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(get("slow").unwrap_err().kind(), ErrorKind::Timeout);
    });
}

#[test]
fn who_waits_for_another_does_not_wait_for_a_server_that_freezes() {
    let server = Server::start();
    let timeout = Duration::from_millis(300);
    let region = Region::builder(quick(&server)).lock(RedisLock::new()).build().unwrap();
    server.ask(&["SET", "_lok.k", "another", "PX", "60000"]);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| region.get_or_create("k", || Ok::<_, std::io::Error>(1_u64)).unwrap());
        // It was told how long the lease lives, and all is silent.
        std::thread::sleep(2 * timeout);
        assert!(!waiter.is_finished());
        server.signal("STOP");
        let begun = Instant::now();
        assert_eq!(waiter.join().unwrap(), 1);
        assert!(begun.elapsed() < 10 * timeout, "{:?}", begun.elapsed());
    });
    server.signal("CONT");
}
