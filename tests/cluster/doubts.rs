//! What is known of the servers turns out to be wrong: it is put in doubt, and put right.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use dogpile::{AsyncBackend, Backend, Cluster, Error, ErrorKind, Found, Key, ReadFrom, Redis, Sentinel};

use crate::cluster_servers::ClusterServers;
use crate::sentinel_servers::SentinelServers;
use crate::support::{Server, eventually, free_port};

fn names(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("key{at}")).collect()
}

/// A key of the first primary's.
fn key_of_first(servers: &ClusterServers) -> String {
    let of_first = |name: &String| servers.primary_of_slot(servers.slot_of(name)) == 0;
    names(1000).into_iter().find(of_first).expect("a third of them is")
}

#[test]
fn a_server_that_has_left_the_cluster() {
    let servers = ClusterServers::start();
    let cluster = Cluster::open(servers.urls()).unwrap();
    let name = key_of_first(&servers);
    cluster.set(Key::from(name.as_str()), b"v", None).unwrap();
    servers.fail_over(servers.replicas_of(0)[0]);
    servers.wait_until_whole();
    assert_eq!(servers.nodes[0].ask(&["CLUSTER", "RESET", "HARD"]), "+OK");
    eventually("the key is found where it is by now", || matches!(cluster.get(Key::from(name.as_str())), Ok(Some(_))));
}

#[test]
fn a_slot_that_nobody_had() {
    let servers = ClusterServers::with(&["--cluster-require-full-coverage", "no"]);
    let name = key_of_first(&servers);
    let slot = servers.slot_of(&name).to_string();
    servers.nodes.iter().for_each(|node| drop(node.ask(&["CLUSTER", "DELSLOTS", &slot])));
    let cluster = Cluster::open(servers.urls()).unwrap();
    eventually("nobody has it", || cluster.get(Key::from(name.as_str())).is_err());
    let error = cluster.get(Key::from(name.as_str())).unwrap_err();
    assert!(error.kind() == ErrorKind::Connection, "{error}");
    assert_eq!(servers.nodes[0].ask(&["CLUSTER", "ADDSLOTS", &slot]), "+OK");
    eventually("somebody has it", || cluster.get(Key::from(name.as_str())).is_ok());
}

#[test]
fn a_ping_finds_the_new_primary() {
    let mut servers = ClusterServers::start();
    let cluster = Cluster::open(servers.urls()).unwrap();
    cluster.ping().unwrap();
    servers.kill_primary_of(0);
    servers.wait_until_recovered(Duration::from_secs(60));
    eventually("all are there", || cluster.ping().is_ok());

    let mut servers = SentinelServers::start();
    let sentinel = Sentinel::open(servers.sentinel_urls(), servers.name()).unwrap();
    sentinel.ping().unwrap();
    let old = servers.kill_primary();
    servers.wait_for_new_primary(old, Duration::from_secs(60));
    eventually("it is there", || sentinel.ping().is_ok());
}

#[test]
fn batches_find_the_new_primary_at_once() {
    let servers = ClusterServers::start();
    let names = names(300);
    let keys: Vec<_> = names.iter().map(|name| Key::from(name.as_str())).collect();
    let clusters: Vec<_> = (0..20).map(|_| Cluster::open(servers.urls()).unwrap()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let read = |cluster: &Cluster| {
        cluster.get_many(&keys, &mut Found::new()).unwrap();
        runtime.block_on(cluster.get_many_async(&keys, &mut Found::new())).unwrap();
    };
    clusters.iter().for_each(read);
    servers.fail_over(servers.replicas_of(0)[0]);
    servers.wait_until_whole();
    clusters.iter().for_each(read);
}

#[test]
fn servers_that_freeze_cost_one_timeout() {
    let servers = ClusterServers::start();
    let names = names(300);
    let keys: Vec<_> = names.iter().map(|name| Key::from(name.as_str())).collect();
    let timeout = Duration::from_millis(500);
    let cluster = Cluster::builder(servers.urls()).response_timeout(timeout).connect_timeout(timeout).build().unwrap();
    cluster.get_many(&keys, &mut Found::new()).unwrap();
    servers.nodes.iter().for_each(|node| node.signal("STOP"));
    for _ in 0..2 {
        let begun = Instant::now();
        let error = cluster.get_many(&keys, &mut Found::new()).unwrap_err();
        let took = begun.elapsed();
        assert!(error.kind() == ErrorKind::Timeout && took < 2 * timeout, "{took:?}: {error}");
    }
    servers.nodes.iter().for_each(|node| node.signal("CONT"));
}

#[test]
fn seeds_that_do_not_answer_are_waited_for_by_one() {
    let seeds: Vec<_> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let urls = seeds.iter().map(|seed| format!("redis://{}", seed.local_addr().unwrap()));
    let timeout = Duration::from_millis(200);
    let cluster = Cluster::builder(urls).response_timeout(timeout).connect_timeout(timeout).build().unwrap();
    let (begun, mut calls, mut slow) = (Instant::now(), 0, 0);
    while begun.elapsed() < Duration::from_secs(4) {
        let began = Instant::now();
        cluster.get(Key::from("k")).unwrap_err();
        calls += 1;
        slow += u32::from(began.elapsed() > timeout / 2);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(calls > 100 && slow < 5, "{slow} of {calls} calls waited");
}

#[test]
fn tasks_without_a_runtime_are_told() {
    fn poll(future: impl Future<Output = Result<Option<bytes::Bytes>, Error>>) -> ErrorKind {
        match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(error)) => error.kind(),
            other => panic!("{other:?}"),
        }
    }
    let url = format!("redis://127.0.0.1:{}", free_port());
    assert_eq!(poll(Redis::open(&url).unwrap().get_async(Key::from("k"))), ErrorKind::Config);
    assert_eq!(poll(Cluster::open([url.as_str()]).unwrap().get_async(Key::from("k"))), ErrorKind::Config);
    assert_eq!(poll(Sentinel::open([url.as_str()], "name").unwrap().get_async(Key::from("k"))), ErrorKind::Config);
}

/// Says what no real server says when it is wanted: answers each command, its words with spaces between, by `answer`.
fn says(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || talk(stream, |command| answer(command)));
        }
    });
    port
}

/// Requests are small, and come in one piece each.
fn talk(mut stream: TcpStream, answer: impl Fn(&str) -> String) {
    let mut input = [0; 1 << 16];
    while let Ok(read @ 1..) = stream.read(&mut input) {
        let text = String::from_utf8_lossy(&input[..read]).into_owned();
        let mut lines = text.split("\r\n");
        let mut answers = String::new();
        while let Some(count) = lines.next().and_then(|line| line.strip_prefix('*')) {
            let words: Vec<_> = lines.by_ref().take(2 * count.parse::<usize>().unwrap()).skip(1).step_by(2).collect();
            answers.push_str(&answer(&words.join(" ")));
        }
        if stream.write_all(answers.as_bytes()).is_err() {
            return;
        }
    }
}

fn hello(mode: &str) -> String {
    format!("%4\r\n+server\r\n+redis\r\n+version\r\n+7.0.15\r\n+proto\r\n:3\r\n+mode\r\n+{mode}\r\n")
}

/// `CLUSTER SLOTS`: of each range its first slot, its last, and its servers.
fn slots(ranges: &[(u16, u16, &[u16])]) -> String {
    let server = |port: &u16| format!("*3\r\n$9\r\n127.0.0.1\r\n:{port}\r\n$2\r\nid\r\n");
    let range = |(first, last, servers): &(u16, u16, &[u16])| {
        let servers: Vec<_> = servers.iter().map(server).collect();
        format!("*{}\r\n:{first}\r\n:{last}\r\n{}", 2 + servers.len(), servers.concat())
    };
    format!("*{}\r\n{}", ranges.len(), ranges.iter().map(range).collect::<String>())
}

fn info(epoch: u64) -> String {
    let text = format!("cluster_state:ok\r\ncluster_current_epoch:{epoch}\r\n");
    format!("${}\r\n{text}\r\n", text.len())
}

/// A node that answers as one, with a map and its epoch, and otherwise with a line.
fn node(port: &Arc<AtomicU16>, epoch: u64, map: impl Fn(u16) -> String + Send + Sync + 'static, line: &str) -> u16 {
    let (own, line) = (Arc::clone(port), line.to_string());
    let started = says(move |command| match command.split(' ').next().unwrap() {
        "HELLO" => hello("cluster"),
        "CLUSTER" if command.ends_with("INFO") => info(epoch),
        "CLUSTER" => map(own.load(Ordering::SeqCst)),
        "READONLY" => "+OK\r\n".into(),
        _ => line.clone(),
    });
    port.store(started, Ordering::SeqCst);
    started
}

const ENTRY: &str = "$1\r\nv\r\n";

#[test]
fn one_that_is_cut_off_from_the_others_is_not_believed() {
    let dead = free_port();
    let (old, new) = (Arc::new(AtomicU16::new(0)), Arc::new(AtomicU16::new(0)));
    // The upper half was at the dead one, which `old` does not know yet. The slot of "foo" is 12182.
    let stale = node(&old, 3, move |own| slots(&[(0, 8191, &[own]), (8192, 16383, &[dead])]), ENTRY);
    let fresh = node(&new, 4, move |own| slots(&[(0, 8191, &[stale]), (8192, 16383, &[own])]), ENTRY);
    let cluster = Cluster::open([stale, fresh].map(|port| format!("redis://127.0.0.1:{port}"))).unwrap();
    eventually("the other one is asked", || cluster.get(Key::from("foo")).is_ok());
    // From now on `stale` is asked too, and would be believed if it was not behind.
    for _ in 0..200 {
        cluster.get(Key::from("foo")).unwrap();
        let _ = cluster.ping();
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_sentinel_that_is_behind_is_not_believed() {
    let (good, dead) = (Server::start(), free_port());
    let sentinel = |port: u16, epoch: u32| {
        says(move |command| match command.split(' ').nth(1) {
            Some("GET-MASTER-ADDR-BY-NAME") => {
                let port = port.to_string();
                format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len())
            }
            Some("MASTER") => format!("*2\r\n$12\r\nconfig-epoch\r\n$1\r\n{epoch}\r\n"),
            Some("REPLICAS") => "*0\r\n".into(),
            _ => hello("sentinel"),
        })
    };
    let sentinels = [sentinel(dead, 1), sentinel(good.port, 2), sentinel(good.port, 2)];
    let servers = Sentinel::open(sentinels.map(|port| format!("redis://127.0.0.1:{port}")), "name").unwrap();
    eventually("another one is asked", || servers.get(Key::from("k")).is_ok());
}

#[test]
fn an_address_that_is_another_servers_by_now() {
    let other = Server::start();
    assert_eq!(other.ask(&["SET", "foo", "of somebody else"]), "+OK");
    let (own, foreign) = (Arc::new(AtomicU16::new(0)), other.port);
    let port = node(&own, 1, move |own| slots(&[(0, 8191, &[own]), (8192, 16383, &[foreign])]), ENTRY);
    let cluster = Cluster::open([format!("redis://127.0.0.1:{port}")]).unwrap();
    let error = cluster.get(Key::from("foo")).unwrap_err();
    assert!(error.kind() == ErrorKind::Connection && error.to_string().contains("not part of a cluster"), "{error}");
}

#[test]
fn a_replica_that_has_lost_its_cluster() {
    let (primary, replica) = (Arc::new(AtomicU16::new(0)), Arc::new(AtomicU16::new(0)));
    let at = node(&replica, 1, |_| unreachable!("it is not asked"), "-CLUSTERDOWN The cluster is down\r\n");
    let port = node(&primary, 1, move |own| slots(&[(0, 16383, &[own, at])]), ENTRY);
    let urls = [format!("redis://127.0.0.1:{port}")];
    let cluster = Cluster::builder(urls).read_from(ReadFrom::Replicas).build().unwrap();
    for _ in 0..3 {
        assert_eq!(cluster.get(Key::from("foo")).unwrap().unwrap(), "v");
        let mut found = Found::new();
        cluster.get_many(&[Key::from("foo"), Key::from("bar")], &mut found).unwrap();
        assert!(found.iter().all(|entry| entry.is_some()));
    }
}

#[test]
fn moved_to_and_fro_ends_in_an_error() {
    let own = Arc::new(AtomicU16::new(0));
    let port = node(&own, 1, |own| slots(&[(0, 16383, &[own])]), "-MOVED 12182 :1\r\n");
    let cluster = Cluster::open([format!("redis://127.0.0.1:{port}")]).unwrap();
    // To a port where nobody is, on the same host.
    assert_eq!(cluster.get(Key::from("foo")).unwrap_err().kind(), ErrorKind::Connection);
    let own = Arc::new(AtomicU16::new(0));
    let sent = Arc::clone(&own);
    let port = says(move |command| match command.split(' ').next().unwrap() {
        "HELLO" => hello("cluster"),
        "CLUSTER" if command.ends_with("INFO") => info(1),
        "CLUSTER" => slots(&[(0, 16383, &[sent.load(Ordering::SeqCst)])]),
        _ => format!("-MOVED 12182 127.0.0.1:{}\r\n", sent.load(Ordering::SeqCst)),
    });
    own.store(port, Ordering::SeqCst);
    let cluster = Cluster::open([format!("redis://127.0.0.1:{port}")]).unwrap();
    let error = cluster.get(Key::from("foo")).unwrap_err();
    assert!(error.to_string().contains("from one to the other"), "{error}");
}
