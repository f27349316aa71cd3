//! Encrypted connections: of threads, of tasks, and of those who listen; certificates of both sides.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dogpile::redis::{RedisBuilder, Tls};
use dogpile::{Backend, Cluster, ErrorKind, Key, Redis, RedisLock, Region, Sentinel, testing};

use crate::certificates::Certificates;
use crate::support::{Server, eventually, speak_resp3};

fn at(port: u16) -> RedisBuilder {
    Redis::builder(&format!("rediss://127.0.0.1:{port}"))
}

#[test]
fn threads() {
    let certificates = Certificates::new("threads");
    for arguments in [&["--tls-auth-clients", "yes"][..], &["--tls-auth-clients", "no", "--tls-protocols", "TLSv1.2"]] {
        let (_server, port) = certificates.serve(arguments);
        let redis = at(port).tls(certificates.with_client()).build().unwrap();
        redis.ping().unwrap();
        testing::backend(&redis, "suite:");
        testing::lock(&redis, &RedisLock::new(), &RedisLock::new(), "lock:");
    }
}

#[test]
#[cfg(feature = "tokio")]
fn tasks() {
    let certificates = Certificates::new("tasks");
    let (_server, port) = certificates.serve(&["--tls-auth-clients", "yes"]);
    let redis = at(port).tls(certificates.with_client()).build().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(redis.ping_async()).unwrap();
    testing::backend_async(&redis, &runtime, "suite:");
    testing::lock_async(&redis, &RedisLock::new(), &RedisLock::new(), &runtime, "lock:");

    // Much in both directions at once.
    let region: Region<_, _> = Region::builder(redis).build().unwrap();
    runtime.block_on(async {
        let tasks: Vec<_> = (0..64_u64)
            .map(|at| {
                let region = region.clone();
                tokio::spawn(async move {
                    let value = format!("{at} ").repeat(200_000);
                    region.set_async(at, &value).await.unwrap();
                    assert!(region.get_async::<String>(at).await.unwrap() == Some(value));
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

#[test]
fn who_waits_is_told_over_an_encrypted_connection() {
    let certificates = Certificates::new("told");
    let (server, port) = certificates.serve(&["--tls-auth-clients", "no"]);
    let region = || {
        let redis = at(port).tls(certificates.trust()).build().unwrap();
        Region::builder(redis).lock(RedisLock::new()).build().unwrap()
    };
    // The second round finds a listening connection that was silent for a while.
    let waits = region();
    for round in 0..3_u64 {
        server.ask(&["SET", &format!("_lok.{round}"), "another", "PX", "30000"]);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let waiter =
                scope.spawn(|| waits.get_or_create(round, || Ok::<_, std::io::Error>(begun.elapsed())).unwrap());
            std::thread::sleep(Duration::from_millis(200));
            server.ask(&["DEL", &format!("_lok.{round}")]);
            let created = waiter.join().unwrap();
            assert!((Duration::from_millis(200)..Duration::from_millis(400)).contains(&created), "{created:?}");
        });
    }
    assert_eq!(waits.stats().remote_waits, 3);
    assert_eq!(server.ask(&["CLIENT", "LIST"]).matches("flags=t").count(), usize::from(speak_resp3()), "it listens");
}

#[test]
fn who_is_not_trusted_is_not_talked_to() {
    let (certificates, others) = (Certificates::new("ours"), Certificates::new("others"));
    let (_server, port) = certificates.serve(&["--tls-auth-clients", "yes"]);
    let refused = |builder: RedisBuilder| {
        let begun = Instant::now();
        let redis = builder.build().unwrap();
        let error = redis.ping().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connection, "{error}");
        #[cfg(feature = "tokio")]
        {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let of_tasks = runtime.block_on(redis.ping_async()).unwrap_err();
            assert_eq!(of_tasks.kind(), ErrorKind::Connection, "{of_tasks}");
        }
        assert!(begun.elapsed() < Duration::from_millis(900));
        error.to_string()
    };
    let told = refused(at(port).tls(others.with_client()));
    assert!(told.contains("UnknownIssuer") && told.contains(&format!("127.0.0.1:{port}")), "{told}");
    let told = refused(at(port).tls(certificates.with_client().server_name("another.example").unwrap()));
    assert!(told.contains("another.example"), "{told}");
    at(port).tls(certificates.with_client().server_name("cache.example").unwrap()).build().unwrap().ping().unwrap();
    // The server does not trust us: we show nothing, or what it does not know.
    refused(at(port).tls(certificates.trust()));
    refused(at(port).tls(certificates.trust().client(&others.client[0], &others.client[1]).unwrap()));
    // What the system trusts does not include an authority of our own.
    if Tls::system().is_ok() {
        refused(at(port));
    }
}

#[test]
fn the_other_side_speaks_another_language() {
    let certificates = Certificates::new("languages");
    let (server, port) = certificates.serve(&["--tls-auth-clients", "no"]);
    let timeout = Duration::from_millis(300);
    let encrypted = at(server.port).tls(certificates.trust()).connect_timeout(timeout).response_timeout(timeout);
    let plain = Redis::builder(&format!("redis://127.0.0.1:{port}")).response_timeout(timeout).connect_timeout(timeout);
    for redis in [encrypted.build().unwrap(), plain.build().unwrap()] {
        let begun = Instant::now();
        let error = redis.ping().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Connection | ErrorKind::Timeout), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{error}");
    }
}

#[test]
fn users_over_encrypted_connections() {
    let certificates = Certificates::new("users");
    let (server, port) = certificates.serve(&["--tls-auth-clients", "no"]);
    server.ask(&["ACL", "SETUSER", "ann", "on", ">secret", "~*", "+@all"]);
    let open = |user: &str| {
        Redis::builder(&format!("rediss://{user}@127.0.0.1:{port}/3")).tls(certificates.trust()).build().unwrap()
    };
    open("ann:secret").ping().unwrap();
    let refused = open("ann:other-secret").ping().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    let shown = format!("{refused} {refused:?} {:?}", open("ann:secret"));
    assert!(!shown.contains("secret"), "{shown}");
}

#[test]
fn settings_that_cannot_work() {
    let certificates = Certificates::new("settings");
    let other = Certificates::new("another key");
    let kind = |made: Result<Tls, dogpile::Error>| {
        let error = made.unwrap_err();
        // Neither as it is, nor as a list of its bytes.
        assert!(!error.to_string().contains("BEGIN") && !error.to_string().contains("45, 45"), "{error}");
        error.kind()
    };
    assert_eq!(kind(Tls::trusting("")), ErrorKind::Config);
    assert_eq!(kind(Tls::trusting("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----")), ErrorKind::Config);
    assert_eq!(kind(Tls::trusting("-----BEGIN CERTIFICATE-----\n!")), ErrorKind::Config);
    let [chain, key] = &certificates.client;
    assert_eq!(kind(certificates.trust().client("", key)), ErrorKind::Config);
    assert_eq!(kind(certificates.trust().client(chain, "no key")), ErrorKind::Config);
    assert_eq!(kind(certificates.trust().client(chain, &other.client[1])), ErrorKind::Config);
    // A key in the wrong place, whose lines were lost, or whose end.
    let lost = format!("{chain}{}", key.replace('\n', " "));
    let cut = format!("{chain}{}", &key[..key.len() / 2]);
    for pem in [&lost, &cut, &key.replace('\n', "\\n")] {
        assert_eq!(kind(Tls::trusting(pem)), ErrorKind::Config);
        assert_eq!(kind(certificates.trust().client(pem, key)), ErrorKind::Config);
        assert_eq!(kind(certificates.trust().client(chain, pem)), ErrorKind::Config);
    }
    assert_eq!(kind(certificates.trust().server_name("no name at all")), ErrorKind::Config);
    let plain = Redis::builder("redis://127.0.0.1").tls(certificates.trust()).build().unwrap_err();
    assert_eq!(plain.kind(), ErrorKind::Config);
    let shown = format!("{:?}", certificates.with_client());
    assert!(!shown.contains("PRIVATE") && shown.contains("client: true"), "{shown}");
}

#[test]
fn who_sends_one_byte_after_the_other_is_late() {
    let certificates = Certificates::new("drip");
    let (_server, port) = certificates.serve(&["--tls-auth-clients", "no"]);
    let is_slow = Arc::new(AtomicBool::new(false));
    let slow = Arc::clone(&is_slow);
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = between.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in between.incoming().flatten() {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
            let (mut asks, mut asked) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut asks, &mut asked));
            let (slow, mut client) = (Arc::clone(&slow), client);
            std::thread::spawn(move || {
                for byte in std::io::BufReader::new(server).bytes().map_while(Result::ok) {
                    if slow.load(Ordering::SeqCst) {
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    if client.write_all(&[byte]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let timeout = Duration::from_millis(300);
    let redis = at(own).tls(certificates.trust()).response_timeout(timeout).connect_timeout(3 * timeout);
    let redis = redis.build().unwrap();
    redis.set(Key::from("k"), &[b'v'; 1000], None).unwrap();
    is_slow.store(true, Ordering::SeqCst);
    // Over a connection that is there, and over one that has to be made.
    for _ in 0..2 {
        let begun = Instant::now();
        let error = redis.get(Key::from("k")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(begun.elapsed() < 5 * timeout, "{:?}", begun.elapsed());
    }
}

#[test]
fn a_cluster() {
    let certificates = Certificates::new("cluster");
    let node =
        || certificates.serve(&["--cluster-enabled", "yes", "--tls-cluster", "yes", "--tls-auth-clients", "yes"]);
    let nodes = [node(), node()];
    for ((server, _), slots) in nodes.iter().zip([["0", "8191"], ["8192", "16383"]]) {
        assert_eq!(server.ask(&["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]]), "+OK");
    }
    // Each has its place in the cluster by its encrypted port.
    assert_eq!(nodes[0].0.ask(&["CLUSTER", "MEET", "127.0.0.1", &nodes[1].1.to_string()]), "+OK");
    let is_whole = |server: &Server| server.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
    eventually("the cluster is one", || nodes.iter().all(|(server, _)| is_whole(server)));
    let cluster = |tls| Cluster::builder([format!("rediss://127.0.0.1:{}", nodes[0].1)]).tls(tls).build().unwrap();
    for tls in [certificates.with_client(), certificates.with_client().server_name("cache.example").unwrap()] {
        let cluster = cluster(tls);
        cluster.ping().unwrap();
        testing::backend(&cluster, "suite:");
        testing::lock(&cluster, &RedisLock::new(), &RedisLock::new(), "lock:");
    }
    assert_eq!(cluster(certificates.trust()).ping().unwrap_err().kind(), ErrorKind::Connection);
    // A slot that moves is told of by an encrypted address. That of "foo" is 12182.
    let cluster = cluster(certificates.with_client());
    cluster.set(Key::from("foo"), b"before", None).unwrap();
    nodes[1].0.ask(&["DEL", "foo"]);
    let id = nodes[0].0.ask(&["CLUSTER", "MYID"]).lines().last().unwrap().to_string();
    for (server, _) in &nodes {
        assert_eq!(server.ask(&["CLUSTER", "SETSLOT", "12182", "NODE", &id]), "+OK");
    }
    assert!(cluster.get(Key::from("foo")).unwrap().is_none());
    cluster.set(Key::from("foo"), b"after", None).unwrap();
    assert!(nodes[0].0.ask(&["GET", "foo"]).ends_with("after"));
}

#[test]
fn sentinels_and_servers_each_encrypted_or_not() {
    let certificates = Certificates::new("sentinels");
    let (server, port) = certificates.serve(&["--tls-auth-clients", "no"]);
    let (sentinel, sentinel_port) =
        certificates.serve(&["--sentinel", "--tls-replication", "yes", "--tls-auth-clients", "no"]);
    for (name, port) in [("encrypted", port), ("plain", server.port)] {
        assert_eq!(sentinel.ask(&["SENTINEL", "MONITOR", name, "127.0.0.1", &port.to_string(), "1"]), "+OK");
    }
    let builder = |is_encrypted: bool, name: &str| match is_encrypted {
        true => Sentinel::builder([format!("rediss://127.0.0.1:{sentinel_port}")], name).tls(certificates.trust()),
        false => Sentinel::builder([sentinel.url()], name),
    };
    for servers in [
        builder(true, "encrypted"),
        builder(true, "plain").server_tls(None),
        builder(false, "encrypted").server_tls(certificates.trust()),
        builder(false, "plain"),
    ] {
        let servers = servers.build().unwrap();
        servers.ping().unwrap();
        testing::backend(&servers, "suite:");
    }
    // A server that is asked in the clear and answers in TLS, and the other way around.
    let timeout = Duration::from_millis(500);
    for servers in [builder(true, "plain"), builder(false, "encrypted")] {
        let servers = servers.response_timeout(timeout).connect_timeout(timeout).build().unwrap();
        let error = servers.ping().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Connection | ErrorKind::Timeout), "{error}");
    }
}
