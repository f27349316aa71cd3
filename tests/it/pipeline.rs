//! The connection that tasks share, when it is cut, stalled, slow, pushed to, used from several runtimes, or dropped.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dogpile::redis::{RedisBuilder, WhileDown};
use dogpile::{ErrorKind, Redis, RedisLock, Region};
use tokio::time::{sleep, timeout};

use crate::support::{Server, trips_to_connect};
use crate::tasks::{SOON, multi, no_locks_stay, single, soon};

/// Stands before a server. `answer` forwards what the server sends on each connection, which has a number; the answers
/// to the handshake have passed already.
fn between(server: &Server, answer: impl Fn(usize, &mut TcpStream, &mut TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let (port, target) = (listener.local_addr().unwrap().port(), server.port);
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for (number, mut client) in listener.incoming().flatten().enumerate() {
            let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
            server.set_nodelay(true).unwrap();
            client.set_nodelay(true).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || {
                if (0..trips_to_connect()).all(|_| pass(&mut server, &mut client)) {
                    answer(number, &mut server, &mut client);
                }
                let _ = client.shutdown(Shutdown::Both);
                let _ = server.shutdown(Shutdown::Both);
            });
        }
    });
    format!("redis://127.0.0.1:{port}")
}

/// Forwards one piece.
fn pass(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    let mut piece = vec![0; 1 << 16];
    from.read(&mut piece).is_ok_and(|came| came > 0 && to.write_all(&piece[..came]).is_ok())
}

/// Not stopped by other work of this machine, and still no wait for ever.
fn patient(url: &str) -> RedisBuilder {
    Redis::builder(url).response_timeout(SOON)
}

fn hasty(url: &str) -> Redis {
    let timeout = Duration::from_millis(200);
    Redis::builder(url).connect_timeout(timeout).response_timeout(timeout).build().unwrap()
}

#[test]
fn a_connection_may_be_cut_after_any_byte() {
    let server = Server::start();
    let direct = Region::builder(server.redis()).build().unwrap();
    let keys: Vec<u64> = (0..4).collect();
    let text = |key: &u64| format!("value {key}");
    direct.set_many(&keys.iter().map(|key| (*key, text(key))).collect::<Vec<_>>()).unwrap();
    let allowed = Arc::new(AtomicUsize::new(0));
    let (most, cuts) = (Arc::clone(&allowed), Arc::new(AtomicUsize::new(0)));
    let cut = Arc::clone(&cuts);
    let url = between(&server, move |_, from, to| {
        // Each round cuts one connection, whichever comes first.
        let most = most.swap(usize::MAX, Ordering::SeqCst);
        let mut left = most;
        let mut piece = [0; 4096];
        while let Ok(came @ 1..) = from.read(&mut piece) {
            let now = came.min(left);
            if to.write_all(&piece[..now]).is_err() {
                return;
            }
            left -= now;
            if left == 0 {
                cut.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
    });
    for runtime in [single(), multi()] {
        runtime.block_on(async {
            for bytes in 0.. {
                allowed.store(bytes, Ordering::SeqCst);
                let before = cuts.load(Ordering::SeqCst);
                let redis = patient(&url).build().unwrap();
                let region = Region::builder(redis).lock(RedisLock::new()).build().unwrap();
                let reads: Vec<_> = keys
                    .iter()
                    .map(|key| {
                        let (region, key) = (region.clone(), *key);
                        tokio::spawn(async move { (key, region.get_async::<String>(key).await) })
                    })
                    .collect();
                for read in reads {
                    let (key, got) = soon("a read", read).await.unwrap();
                    // What only reads is sent again, once.
                    assert_eq!(got.unwrap(), Some(text(&key)), "cut after {bytes}");
                }
                let many = soon("many", region.get_many_async::<_, String>(&keys)).await.unwrap();
                assert_eq!(many, keys.iter().map(|key| Some(text(key))).collect::<Vec<_>>());
                soon("a write", region.set_async(9, &text(&9))).await.unwrap();
                let create = async || Ok::<_, Infallible>(text(&10));
                let made = soon("a miss", region.get_or_create_async(10, create)).await.unwrap();
                assert_eq!(made, text(&10));
                assert_eq!(soon("a read", region.get_async::<String>(10)).await.unwrap(), Some(text(&10)));
                region.delete_async(10).await.unwrap();
                no_locks_stay(&server).await;
                if cuts.load(Ordering::SeqCst) == before {
                    assert!(bytes > 4 * text(&0).len());
                    break;
                }
            }
        });
    }
}

#[test]
fn what_goes_once_only_fails_when_its_connection_is_cut() {
    let server = Server::start();
    let cut = Arc::new(AtomicUsize::new(usize::MAX));
    let left = Arc::clone(&cut);
    let url = between(&server, move |_, from, to| while left.load(Ordering::SeqCst) > 0 && pass(from, to) {});
    multi().block_on(async {
        let lock = RedisLock::new().on_lease_lost(dogpile::lock::OnLeaseLost::Discard);
        let region = Region::builder(patient(&url).build().unwrap()).lock(lock).build().unwrap();
        for round in 0..5_u64 {
            let create = async || {
                cut.store(0, Ordering::SeqCst);
                Ok::<_, Infallible>(round)
            };
            assert_eq!(soon("a miss", region.get_or_create_async(round, create)).await.unwrap(), round);
            cut.store(usize::MAX, Ordering::SeqCst);
            // Whether it was stored nobody knows; that it may be had, everybody.
            let value = soon("a hit or miss", region.get_or_create_async(round, async || Ok::<_, Infallible>(round)));
            assert_eq!(value.await.unwrap(), round);
        }
        no_locks_stay(&server).await;
    });
}

#[test]
fn a_lease_is_released_though_its_connection_broke_meanwhile() {
    let server = Server::start();
    for runtime in [single(), multi()] {
        runtime.block_on(async {
            let region = Region::builder(server.redis()).lock(RedisLock::new()).build().unwrap();
            let create = async || {
                // As a server does with connections that it finds idle for too long.
                assert!(server.ask(&["CLIENT", "KILL", "TYPE", "normal"]).starts_with(':'));
                sleep(Duration::from_millis(20)).await;
                Err::<u64, _>("no")
            };
            region.get_or_create_async("k", create).await.unwrap_err();
            no_locks_stay(&server).await;
        });
    }
}

#[test]
fn a_server_that_freezes_and_comes_back() {
    let server = Server::start();
    for runtime in [single(), multi()] {
        runtime.block_on(async {
            let region = Region::builder(hasty(&server.url())).build().unwrap();
            for key in 0..10_u64 {
                region.set_async(key, &key).await.unwrap();
            }
            server.signal("STOP");
            let begun = Instant::now();
            let error = soon("a read", region.get_async::<u64>(1)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
            assert!(begun.elapsed() >= Duration::from_millis(190), "{:?}", begun.elapsed());
            let create = async || Ok::<_, Infallible>(7_u64);
            assert_eq!(soon("a miss", region.get_or_create_async(1, create)).await.unwrap(), 7);
            // Once it is known to be down, nobody waits.
            sleep(Duration::from_millis(500)).await;
            let begun = Instant::now();
            let error = soon("a read", region.get_async::<u64>(1)).await.unwrap_err();
            assert!(error.kind() == ErrorKind::Connection && error.to_string().contains("timed out"), "{error}");
            assert!(begun.elapsed() < Duration::from_millis(150), "{:?}", begun.elapsed());
            server.signal("CONT");
            let begun = Instant::now();
            while soon("a read", region.get_async(2)).await.ok() != Some(Some(2_u64)) {
                assert!(begun.elapsed() < SOON);
                sleep(Duration::from_millis(5)).await;
            }
            for key in (0..10_u64).cycle().take(200) {
                assert_eq!(region.get_async(key).await.unwrap(), Some(key));
            }
        });
    }
}

#[test]
fn a_server_that_dies_and_comes_back() {
    for runtime in [single(), multi()] {
        let mut server = Server::start();
        let builder = || Redis::builder(&server.url()).max_backoff(Duration::from_millis(50));
        let fails = Region::builder(builder().build().unwrap()).build().unwrap();
        let waits = builder().while_down(WhileDown::Wait).response_timeout(SOON).build().unwrap();
        let waits = Region::builder(waits).build().unwrap();
        runtime.block_on(async {
            fails.set_async("k", &1_u64).await.unwrap();
            assert_eq!(waits.get_async("k").await.unwrap(), Some(1_u64));
            server.stop();
            for _ in 0..5 {
                let error = soon("a read", fails.get_async::<u64>("k")).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Connection, "{error}");
                let told = error.to_string();
                assert!(told.starts_with("reading k: ") && told.contains("connecting to 127.0.0.1"), "{error}");
            }
            let waiters: Vec<_> = (0..50_u64)
                .map(|key| {
                    let waits = waits.clone();
                    tokio::spawn(async move {
                        if key % 2 == 0 {
                            // Gives up meanwhile.
                            let _ = timeout(Duration::from_millis(key), waits.get_async::<u64>(key)).await;
                        }
                        waits.set_async(key, &key).await.unwrap();
                        waits.get_async::<u64>(key).await
                    })
                })
                .collect();
            sleep(Duration::from_millis(200)).await;
            assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
            server.restart();
            for (waiter, key) in waiters.into_iter().zip(0..) {
                assert_eq!(soon("who waits", waiter).await.unwrap().unwrap(), Some(key));
            }
            let begun = Instant::now();
            while soon("a read", fails.get_async(3)).await.ok() != Some(Some(3_u64)) {
                assert!(begun.elapsed() < SOON);
                sleep(Duration::from_millis(5)).await;
            }
        });
    }
}

#[test]
fn who_waits_for_a_server_that_stays_down_waits_so_long() {
    let mut server = Server::start();
    let timeout = Duration::from_millis(150);
    let redis = Redis::builder(&server.url()).while_down(WhileDown::Wait).connect_timeout(timeout);
    let region = Region::builder(redis.response_timeout(timeout).build().unwrap()).build().unwrap();
    single().block_on(async {
        server.stop();
        let begun = Instant::now();
        let error = soon("a read", region.get_async::<u64>("k")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connection, "{error}");
        assert!(begun.elapsed() >= Duration::from_millis(290), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_reply_that_comes_too_late_is_given_to_nobody_else() {
    let server = Server::start();
    let url = between(&server, |_, from, to| {
        loop {
            let mut piece = vec![0; 1 << 16];
            let Ok(came @ 1..) = from.read(&mut piece) else { return };
            std::thread::sleep(Duration::from_millis(3));
            if to.write_all(&piece[..came]).is_err() {
                return;
            }
        }
    });
    for runtime in [single(), multi()] {
        runtime.block_on(async {
            let region = Region::builder(patient(&url).build().unwrap()).build().unwrap();
            let entries: Vec<(u64, u64)> = (0..50).map(|key| (key, key + 1000)).collect();
            region.set_many_async(&entries).await.unwrap();
            let given_up = AtomicUsize::new(0);
            for at in 0..100_u64 {
                let (late, next) = (at % 50, (at + 7) % 50);
                if timeout(Duration::from_millis(1), region.get_async::<u64>(late)).await.is_err() {
                    given_up.fetch_add(1, Ordering::Relaxed);
                }
                assert_eq!(soon("the next", region.get_async(next)).await.unwrap(), Some(next + 1000));
            }
            assert!(given_up.into_inner() > 0);
        });
    }
}

#[test]
fn a_reply_after_the_response_timeout_is_given_to_nobody() {
    let server = Server::start();
    let slow = Arc::new(AtomicUsize::new(0));
    let is_slow = Arc::clone(&slow);
    let url = between(&server, move |_, from, to| {
        let mut piece = vec![0; 1 << 16];
        while let Ok(came @ 1..) = from.read(&mut piece) {
            if is_slow.load(Ordering::SeqCst) > 0 {
                std::thread::sleep(Duration::from_millis(400));
            }
            if to.write_all(&piece[..came]).is_err() {
                return;
            }
        }
    });
    single().block_on(async {
        let region = Region::builder(hasty(&url)).build().unwrap();
        region.set_async("a", &1_u64).await.unwrap();
        region.set_async("b", &2_u64).await.unwrap();
        slow.store(1, Ordering::SeqCst);
        let error = soon("a slow one", region.get_async::<u64>("a")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        slow.store(0, Ordering::SeqCst);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(600) {
            // An error while it is connected again; a wrong value never.
            if let Ok(value) = soon("the next", region.get_async::<u64>("b")).await {
                assert_eq!(value, Some(2));
            }
            sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(region.get_async("a").await.unwrap(), Some(1_u64));
    });
}

#[test]
fn a_stall_is_noticed_after_a_long_reply_began() {
    // A peer that sends as fast as it can be read, for longer than its time, and then nothing any more.
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("redis://127.0.0.1:{}", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(b"+OK\r\n");
                let mut asked = [0; 1024];
                let came = stream.read(&mut asked).unwrap_or(0);
                // One large string, or many small ones.
                let large = asked[..came].starts_with(b"*2");
                let _ = stream.write_all(if large { b"$500000000\r\n" } else { b"*500000000\r\n" });
                let piece = if large { vec![b'x'; 1 << 16] } else { b"$3\r\nfoo\r\n".repeat(5_000) };
                let begun = Instant::now();
                // Less than was announced, on however fast a machine.
                for _ in 0..400_000_000 / piece.len() {
                    if begun.elapsed() > Duration::from_millis(300) || stream.write_all(&piece).is_err() {
                        break;
                    }
                }
                std::thread::sleep(2 * SOON);
            });
        }
    });
    for runtime in [single(), multi()] {
        runtime.block_on(async {
            let region = || {
                let redis = Redis::builder(&url).response_timeout(Duration::from_millis(50)).build().unwrap();
                Region::builder(redis).build().unwrap()
            };
            let error = soon("a read", region().get_async::<u64>("k")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
            let error = soon("reads", region().get_many_async::<_, u64>(&["k", "l"])).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        });
    }
}

#[test]
fn pushes_are_no_replies() {
    const PUSH: &[u8] = b">2\r\n$3\r\nfoo\r\n$3\r\nbar\r\n";
    let server = Server::start();
    let url = between(&server, |number, from, to| {
        // Each connection has its own way: so many bytes of a reply, then so many of the push, each by itself.
        let (inside, split) = (number % 5, number / 5 % (PUSH.len() + 1));
        let mut piece = vec![0; 1 << 16];
        let mut send = |bytes: &[u8]| {
            std::thread::sleep(Duration::from_micros(100));
            bytes.is_empty() || to.write_all(bytes).is_ok()
        };
        let mut sends = |_: ()| -> Option<()> {
            let came = from.read(&mut piece).ok().filter(|came| *came > 0)?;
            // Before the reply, behind its first token, or behind it, while nobody asks.
            let reply = &piece[..came];
            let token = reply.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let at = match inside {
                0 => 0,
                1 if reply[0] == b'*' => token,
                2 => came,
                _ => 0,
            };
            let twice = usize::from(inside == 3);
            let (before, after) = reply.split_at(at);
            let fine = send(before) && (0..twice).all(|_| send(PUSH)) && send(&PUSH[..split]) && send(&PUSH[split..]);
            (fine && send(after) && (inside != 4 || send(PUSH))).then_some(())
        };
        while sends(()).is_some() {}
    });
    let runtime = multi();
    for round in 0..5 * (PUSH.len() + 1) / 2 {
        // A connection of tasks and one of threads.
        let region = Region::builder(patient(&url).connections(1).build().unwrap()).build().unwrap();
        let check = |from: u64| {
            for key in from..from + 3 {
                region.set(key, &(key * 2)).unwrap();
                assert_eq!(region.get(key).unwrap(), Some(key * 2), "round {round}");
            }
            assert_eq!(region.get_many(&[from, from + 1, 999]).unwrap(), [Some(from * 2), Some(from * 2 + 2), None]);
            assert_eq!(region.get::<u64>(999).unwrap(), None);
        };
        let check_async = async |from: u64| {
            for key in from..from + 3 {
                region.set_async(key, &(key * 2)).await.unwrap();
                assert_eq!(region.get_async(key).await.unwrap(), Some(key * 2), "round {round}");
            }
            let many = region.get_many_async(&[from, from + 1, 999]).await.unwrap();
            assert_eq!(many, [Some(from * 2), Some(from * 2 + 2), None]);
            assert_eq!(region.get_async::<u64>(999).await.unwrap(), None);
        };
        if round % 2 == 0 {
            check(0);
        }
        runtime.block_on(soon("tasks", async { tokio::join!(check_async(10), check_async(20), check_async(30)) }));
    }
}

#[test]
fn large_requests_wait_for_each_other() {
    let server = Server::start();
    for runtime in [single(), multi()] {
        runtime.block_on(async {
            let region = Region::builder(patient(&server.url()).build().unwrap()).build().unwrap();
            let tasks: Vec<_> = (0..40_u8)
                .map(|at| {
                    let region = region.clone();
                    tokio::spawn(async move {
                        let value = vec![u64::from(at); 100_000];
                        region.set_async(u64::from(at), &value).await.unwrap();
                        assert_eq!(region.get_async(u64::from(at)).await.unwrap(), Some(value));
                    })
                })
                .collect();
            for task in tasks {
                timeout(Duration::from_secs(30), task).await.expect("it hangs").unwrap();
            }
        });
    }
}
