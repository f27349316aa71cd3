//! What goes where in a cluster, and in a set that sentinels watch.

use std::convert::Infallible;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dogpile::backend::{Batch, Found};
use dogpile::internals;
use dogpile::redis::{ReadFrom, ServerInfo, ServerName, sweep};
use dogpile::{
    Backend, Bucketed, Clock, Cluster, ErrorKind, HashTtl, Key, Lock, Redis, RedisLock, Region, Sentinel, Timestamp,
};

use crate::cluster_servers::ClusterServers;
use crate::sentinel_servers::SentinelServers;
use crate::support::{Server, eventually};

fn get_many(backend: &impl Backend, keys: &[Key<'_>]) -> Vec<Option<Vec<u8>>> {
    let mut found = Found::new();
    backend.get_many(keys, &mut found).unwrap();
    found.iter().map(|entry| entry.map(|entry| entry.to_vec())).collect()
}

#[test]
fn batches_over_all_slots_are_answered_in_order() {
    let servers = ClusterServers::start();
    for expiry in [HashTtl::OnCreate, HashTtl::Stamped { longest: Duration::from_secs(3600) }] {
        let cluster = Cluster::builder(servers.urls()).hash_ttl(expiry).build().unwrap();
        let names: Vec<String> = (0..2000).map(|at| format!("key{at}")).collect();
        let hashes: Vec<String> = (0..50).map(|at| format!("hash{at}")).collect();
        let key = |at: usize| match at % 3 {
            0 => Key::from(names[at].as_str()),
            1 => Key::from((hashes[at % 50].as_str(), names[at].as_str())),
            _ => Key::from(("one hash", names[at].as_str())),
        };
        let entry = |at: usize| format!("{at} of {expiry:?}").repeat(1 + at % 7).into_bytes();
        let mut batch = Batch::new();
        // Some are not there, some are there twice: of these the last counts.
        for at in (0..names.len()).filter(|at| at % 5 != 0) {
            batch.push(key(at), |out| out.extend_from_slice(b"written over"));
            batch.push(key(at), |out| out.extend_from_slice(&entry(at)));
        }
        cluster.set_many(&batch, Some(Duration::from_secs(600))).unwrap();
        let expected = |at: usize| (!at.is_multiple_of(5)).then(|| entry(at));
        let mixed: Vec<usize> = (0..4000).map(|at| at * 7919 % names.len()).collect();
        let keys: Vec<_> = mixed.iter().map(|at| key(*at)).collect();
        assert_eq!(get_many(&cluster, &keys), mixed.iter().map(|at| expected(*at)).collect::<Vec<_>>());
        for few in mixed.chunks(3).take(50) {
            let keys: Vec<_> = few.iter().map(|at| key(*at)).collect();
            assert_eq!(get_many(&cluster, &keys), few.iter().map(|at| expected(*at)).collect::<Vec<_>>());
        }
        // Every server has some of them.
        let sizes: Vec<_> =
            servers.primaries().into_iter().map(|node| servers.nodes[node].ask_int(&["DBSIZE"])).collect();
        assert!(sizes.iter().all(|size| *size > 100), "{sizes:?}");
        cluster.delete_many(&keys[..2000]).unwrap();
        assert!(get_many(&cluster, &keys[..2000]).iter().all(Option::is_none));
        assert_eq!(get_many(&cluster, &[]), Vec::<Option<Vec<u8>>>::new());
    }
}

#[test]
fn locks_are_where_their_entries_are() {
    let servers = ClusterServers::start();
    for expiry in [HashTtl::OnCreate, HashTtl::Stamped { longest: Duration::from_secs(3600) }] {
        let cluster = Cluster::builder(servers.urls()).hash_ttl(expiry).build().unwrap();
        let stamp = if expiry == HashTtl::OnCreate { "" } else { "\u{7f}2" };
        for (key, name) in [
            (Key::from("user-15"), "_lok.{user-15}".to_string()),
            (Key::from("{user-15}|posts"), "_lok.{user-15}|posts".into()),
            (Key::from(("users", "15")), format!("_lok.{{users{stamp}}},15")),
            (Key::from(("{a}users", "15")), "_lok.{a}users,15".into()),
            (Key::from("a}b"), "{20658}_lok.a}b".into()),
        ] {
            let guard = RedisLock::new().try_lock(&cluster, key).unwrap().expect("nobody has it");
            let slot = servers.slot_of(&name);
            let of_entry =
                format!("{}{}", String::from_utf8_lossy(key.server_key()), if name.contains(',') { stamp } else { "" });
            assert_eq!(slot, servers.slot_of(&of_entry), "{key}");
            let primary = &servers.nodes[servers.primary_of_slot(slot)];
            assert_eq!(primary.ask_int(&["EXISTS", &name]), 1, "{key}");
            assert_eq!(internals::lock_name(&cluster, b"_lok.", key).as_key().server_key(), name.as_bytes());
            drop(guard);
            assert_eq!(primary.ask_int(&["EXISTS", &name]), 0, "{key}");
        }
    }
}

/// As many processes are, each with a handle of its own.
#[test]
fn one_creator_of_all() {
    let servers = ClusterServers::start();
    let regions: Vec<_> = (0..3)
        .map(|at| {
            let cluster = Cluster::builder(servers.urls()).build().unwrap();
            let lock = if at == 0 { RedisLock::new().lease_on_miss() } else { RedisLock::new() };
            Region::builder(cluster).lock(lock).build().unwrap()
        })
        .collect();
    const KEYS: usize = 60;
    let (created, barrier) = (AtomicU64::new(0), Barrier::new(12));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for caller in 0..12 {
            let (region, created, barrier) = (&regions[caller % 3], &created, &barrier);
            scope.spawn(move || {
                for key in 0..KEYS {
                    barrier.wait();
                    let create = || {
                        created.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(10));
                        Ok::<_, Infallible>(key as u64)
                    };
                    let value = match key % 2 {
                        0 => region.get_or_create(format!("key{key}").as_str(), create),
                        _ => region.get_or_create((format!("hash{key}").as_str(), "field"), create),
                    };
                    assert_eq!(value.unwrap(), key as u64);
                }
            });
        }
    });
    assert_eq!(created.into_inner(), KEYS as u64);
    // Whoever waits is told by the server of the lock's slot, and does not ask again and again.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let asked: u64 = servers.calls("exists").into_iter().sum();
    assert!(asked < 20, "{asked} questions whether a lock is held");
}

#[test]
fn replicas_are_read_in_turn_where_that_is_wanted() {
    let mut servers = ClusterServers::start();
    let writer = Cluster::open(servers.urls()).unwrap();
    let reader = Cluster::builder(servers.urls()).read_from(ReadFrom::Replicas).build().unwrap();
    let region = Region::builder(reader.clone()).lock(RedisLock::new()).build().unwrap();
    let names: Vec<String> = (0..300).map(|at| format!("key{at}")).collect();
    for name in &names {
        Region::builder(writer.clone()).build().unwrap().set(name.as_str(), &1_u64).unwrap();
    }
    let keys: Vec<_> = names.iter().map(|name| Key::from(name.as_str())).collect();
    eventually("replicas have it all", || get_many(&reader, &keys).iter().all(Option::is_some));
    let primaries = servers.primaries();
    let at_primaries = || primaries.iter().map(|node| servers.calls("get")[*node]).sum::<u64>();
    // The server that was asked where the others are may have learnt of some replicas later.
    eventually("replicas are known of", || {
        let before = at_primaries();
        names.iter().for_each(|name| drop(reader.get(Key::from(name.as_str())).unwrap()));
        at_primaries() == before
    });
    let before = servers.calls("get");
    assert!(names.iter().all(|name| region.get::<u64>(name.as_str()).unwrap() == Some(1)));
    assert!(region.get_many::<_, u64>(&names).unwrap().iter().all(Option::is_some));
    let by_node: Vec<u64> = servers.calls("get").iter().zip(before).map(|(after, before)| after - before).collect();
    for (node, calls) in by_node.iter().enumerate() {
        assert_eq!(primaries.contains(&node), *calls == 0, "{by_node:?}");
    }
    // What is read under a lock is read at the primary, so nobody creates what a replica does not have yet.
    let created = region.get_or_create("new", || Ok::<_, Infallible>(1_u64)).unwrap();
    let again = region.get_or_create("new", || -> Result<u64, Infallible> { panic!("it is there") }).unwrap();
    assert_eq!((created, again), (1, 1));
    // Without a replica the primary is read.
    for replica in (0..6).filter(|node| !primaries.contains(node)) {
        servers.nodes[replica].stop();
    }
    let begun = Instant::now();
    for name in &names {
        assert_eq!(region.get::<u64>(name.as_str()).unwrap(), Some(1));
    }
    assert!(region.get_many::<_, u64>(&names).unwrap().iter().all(Option::is_some));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn every_primary_is_swept() {
    let servers = ClusterServers::start();
    let clock = Clock::manual(Timestamp::from_secs(1_795_403_000));
    let stamped = HashTtl::Stamped { longest: Duration::from_secs(600) };
    let cluster = Cluster::builder(servers.urls()).hash_ttl(stamped).clock(clock.clone()).build().unwrap();
    let region = Region::builder(cluster.clone()).keys(Bucketed::new(16)).build().unwrap();
    for number in 0..1000 {
        let ttl = Duration::from_secs(if number % 2 == 0 { 10 } else { 600 });
        region.with_ttl(ttl).set(format!("user|{number}").as_str(), &number).unwrap();
    }
    assert_eq!(sweep(&cluster, "").unwrap().removed, 0);
    clock.advance(Duration::from_secs(20));
    assert_eq!(region.get::<i32>("user|4").unwrap(), None, "it has expired");
    let swept = sweep(&cluster, "user|").unwrap();
    assert_eq!((swept.removed, swept.hashes), (500, 1000 / 16 + 1));
    assert_eq!(region.get::<i32>("user|5").unwrap(), Some(5));
}

#[test]
fn what_a_cluster_is() {
    let servers = ClusterServers::start();
    let cluster = Cluster::open([servers.urls().remove(4)]).unwrap();
    cluster.ping().unwrap();
    let info = ServerInfo::of(&cluster).unwrap();
    assert!(matches!(info.name, ServerName::Redis | ServerName::Valkey), "{info:?}");
    // A server of a cluster by itself has some of the keys only.
    let error = Redis::open(&servers.nodes[0].url()).unwrap().ping().unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("use `Cluster`"), "{error}");
    let single = Server::start();
    let error = Cluster::open([single.url()]).unwrap().ping().unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("use `Redis`"), "{error}");
    let error = Sentinel::open([single.url()], "cache").unwrap().ping().unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("not a sentinel"), "{error}");
    let of = |urls: &[&str]| Cluster::open(urls.iter().copied()).map(drop).unwrap_err().to_string();
    assert!(of(&[]).contains("named"));
    assert!(of(&["redis://h/1"]).contains("database 0"));
    assert!(of(&["redis://h", "unix:///run/redis.sock"]).contains("socket"));
    assert!(of(&["redis://h", "http://:secret@h"]).contains("scheme is http"));
}

#[test]
fn nobody_is_there() {
    let port = crate::support::free_port();
    let builder = || Cluster::builder([format!("redis://:secret@127.0.0.1:{port}")]);
    let cluster = builder().build().unwrap();
    let begun = Instant::now();
    for _ in 0..100 {
        let error = cluster.get(Key::from("k")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connection, "{error}");
        assert!(!error.to_string().contains("secret") && error.to_string().contains(&port.to_string()), "{error}");
    }
    assert!(!format!("{cluster:?} {:?}", builder()).contains("secret"));
    let region = Region::builder(cluster).lock(RedisLock::new()).build().unwrap();
    assert_eq!(region.get_or_create("k", || Ok::<_, Infallible>(7_u64)).unwrap(), 7);
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_password_is_for_all_servers() {
    let servers = ClusterServers::with(&["--requirepass", "secret", "--masterauth", "secret"]);
    let url = |password: &str| servers.urls()[1].replace("redis://", &format!("redis://:{password}@"));
    let cluster = Cluster::builder([url("secret")]).read_from(ReadFrom::Replicas).build().unwrap();
    cluster.ping().unwrap();
    let error = Cluster::open([url("another")]).unwrap().ping().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(!error.to_string().contains("another"), "{error}");
    assert!(!format!("{cluster:?}").contains("secret"));
}

#[test]
fn sentinels_tell_of_a_name() {
    let passwords = ["--requirepass", "data", "--masterauth", "data"];
    let servers = SentinelServers::with(&passwords, &["--requirepass", "watch"]);
    let urls = || servers.sentinel_urls().into_iter().map(|url| url.replace("redis://", "redis://:watch@"));
    let sentinel = Sentinel::builder(urls(), servers.name())
        .server_password(None, "data")
        .database(3)
        .read_from(ReadFrom::Replicas)
        .build()
        .unwrap();
    sentinel.ping().unwrap();
    sentinel.set(Key::from("k"), b"v", None).unwrap();
    let primary = servers.primary();
    eventually("replicas have it", || sentinel.get(Key::from("k")).unwrap().is_some());
    assert!(!format!("{sentinel:?}").contains("data") && !format!("{sentinel:?}").contains("watch\""));
    let reads: Vec<u64> = servers.nodes.iter().map(|node| crate::servers::calls(node, "get")).collect();
    assert!(reads[primary] == 0 && reads.iter().sum::<u64>() > 0, "{reads:?}");
    let error = Sentinel::builder(urls(), "another").server_password(None, "data").build().unwrap().ping().unwrap_err();
    assert!(error.to_string().contains("no primary of the name another"), "{error}");
    let error =
        Sentinel::builder(urls(), servers.name()).server_password(None, "no").build().unwrap().ping().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    let error = Redis::open(&urls().next().unwrap()).unwrap().ping().unwrap_err();
    assert!(error.to_string().contains("use `Sentinel`"), "{error}");
}
