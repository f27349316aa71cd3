//! Tasks that share a connection do not suffer from each other, and it is found out when the server is silent.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use dogpile::{AsyncBackend, ErrorKind, Key, Memory, Redis, Region};
use tokio::runtime::{Builder, Runtime};
use tokio::time::sleep;

use crate::support::Server;

const TIMEOUT: Duration = Duration::from_millis(300);

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A server that greets, and then does as it is told with each connection.
fn server(talk: impl Fn(TcpStream) + Clone + Send + 'static) -> Redis {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("redis://127.0.0.1:{}", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let talk = talk.clone();
            std::thread::spawn(move || {
                if matches!(stream.read(&mut [0; 4096]), Ok(1..)) && stream.write_all(b"%1\r\n+proto\r\n:3\r\n").is_ok()
                {
                    talk(stream);
                }
            });
        }
    });
    Redis::builder(&url).response_timeout(TIMEOUT).build().unwrap()
}

#[test]
fn a_large_reply_may_take_longer_as_long_as_it_moves() {
    let redis = server(|mut stream| {
        let mut asked = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut asked) {
            if !asked[..read].windows(5).any(|word| word == b"large") {
                stream.write_all(b"$1\r\na\r\n").unwrap();
                continue;
            }
            stream.write_all(b"$10485760\r\n").unwrap();
            for _ in 0..80 {
                if stream.write_all(&[b'x'; 1 << 17]).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(8));
            }
            stream.write_all(b"\r\n").unwrap();
        }
    });
    runtime().block_on(async {
        // The timer was set for another request, at any time before.
        for pause in [0, 10, 100] {
            redis.get_async(Key::from("small")).await.unwrap();
            sleep(Duration::from_millis(pause)).await;
            let begun = Instant::now();
            assert_eq!(redis.get_async(Key::from("large")).await.unwrap().unwrap().len(), 10 << 20);
            assert!(begun.elapsed() > TIMEOUT, "it was too quick to show anything");
        }
    });
}

#[test]
fn a_reply_that_stops_in_the_middle_ends_in_a_timeout() {
    let redis = server(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        stream.write_all(b"*100000\r\n").unwrap();
        // Small strings, each in a write of its own, use up what a task of tokio may do in one go.
        for _ in 0..3_000 {
            stream.write_all(b"$1\r\na\r\n").unwrap();
        }
        std::thread::sleep(Duration::from_secs(10));
    });
    runtime().block_on(async {
        let keys = vec![Key::from("k"); 100_000];
        let mut found = dogpile::backend::Found::new();
        let begun = Instant::now();
        let asked = redis.get_many_async(&keys, &mut found);
        let error = tokio::time::timeout(Duration::from_secs(5), asked).await.expect("it waits for ever").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(begun.elapsed() < Duration::from_secs(2));
    });
}

#[test]
fn what_others_send_keeps_no_request_waiting() {
    // It reads nothing any more.
    let redis = server(|_stream| std::thread::sleep(Duration::from_secs(10)));
    runtime().block_on(async {
        redis.ping_async().await.unwrap_err();
        let writer = redis.clone();
        let writes = tokio::spawn(async move {
            loop {
                let writer = writer.clone();
                tokio::spawn(async move { writer.set_async(Key::from("w"), &[0; 100_000], None).await });
                sleep(Duration::from_millis(10)).await;
            }
        });
        let begun = Instant::now();
        redis.get_async(Key::from("k")).await.unwrap_err();
        assert!(begun.elapsed() < 2 * TIMEOUT, "{:?}", begun.elapsed());
        writes.abort();
    });
}

#[test]
fn an_entry_over_the_limit_fails_who_reads_it_and_nobody_else() {
    let server = Server::start();
    for (key, size) in [("large", 5_000), ("short", 500), ("small", 1)] {
        server.ask(&["SET", key, &"x".repeat(size)]);
    }
    let redis = Redis::builder(&server.url()).max_entry(400).build().unwrap();
    runtime().block_on(async {
        for _ in 0..20 {
            let reads: Vec<_> = (0..20)
                .map(|at| {
                    let (redis, key) = (redis.clone(), ["small", "large", "small", "short"][at % 4]);
                    (key, tokio::spawn(async move { redis.get_async(Key::from(key)).await }))
                })
                .collect();
            for (key, read) in reads {
                match (key, read.await.unwrap()) {
                    ("small", found) => assert_eq!(found.unwrap().unwrap(), "x"),
                    (_, found) => assert_eq!(found.unwrap_err().kind(), ErrorKind::TooLarge),
                }
            }
        }
    });
    let clients = server.ask_int(&["CLIENT", "ID"]);
    assert!(clients < 20, "connections were broken: {clients} were made");
}

#[test]
fn nobody_starves_who_waits_for_room() {
    let server = Server::start();
    let redis = Redis::builder(&server.url()).in_flight(8).build().unwrap();
    runtime().block_on(async {
        let until = Instant::now() + Duration::from_secs(1);
        let tasks: Vec<_> = (0..12)
            .map(|_| {
                let redis = redis.clone();
                tokio::spawn(async move {
                    let (mut slowest, mut times) = (Duration::ZERO, 0_u32);
                    while Instant::now() < until {
                        let begun = Instant::now();
                        redis.get_async(Key::from("k")).await.unwrap();
                        slowest = slowest.max(begun.elapsed());
                        times += 1;
                    }
                    (slowest, times)
                })
            })
            .collect();
        for task in tasks {
            let (slowest, times) = task.await.unwrap();
            assert!(slowest < Duration::from_millis(500) && times > 10, "{times} times, once in {slowest:?}");
        }
    });
}

#[test]
fn without_a_runtime_callers_are_told() {
    let server = Server::start();
    let region = Region::builder(server.redis()).build().unwrap();
    let create = async || -> Result<u64, std::io::Error> { panic!("nobody would notice") };
    let mut future = Box::pin(region.get_or_create_async("k", create));
    let polled = future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    let std::task::Poll::Ready(Err(dogpile::GetError::Cache(error))) = polled else { panic!("{polled:?}") };
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[test]
fn patience_goes_by_the_clock_of_the_runtime() {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let region = Region::builder(Memory::new(1 << 20)).wait_timeout(Duration::from_secs(2)).build().unwrap();
    runtime.block_on(async {
        let leads = region.clone();
        tokio::spawn(async move {
            let create = async || {
                sleep(Duration::from_secs(100)).await;
                Ok::<_, std::convert::Infallible>(1_u64)
            };
            leads.get_or_create_async("k", create).await.unwrap();
        });
        tokio::task::yield_now().await;
        let begun = tokio::time::Instant::now();
        let waits = region.get_or_create_async("k", async || Ok::<_, std::convert::Infallible>(2_u64));
        assert!(matches!(waits.await, Err(dogpile::GetError::Cache(error)) if error.kind() == ErrorKind::Timeout));
        assert_eq!(begun.elapsed().as_secs(), 2);
    });
}
