//! What is known of the servers turns out to be wrong: it is put in doubt, and put right.

use std::net::TcpListener;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use dogpile::backend::Found;
use dogpile::redis::ReadFrom;
use dogpile::{AsyncBackend, Backend, Cluster, Error, ErrorKind, Key, Redis, RedisLock, Region, Sentinel};

use crate::cluster_servers::ClusterServers;
use crate::sentinel_servers::SentinelServers;
use crate::support::{eventually, free_port};

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
    let mut servers = ClusterServers::hasty();
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

#[test]
fn reading_from_replicas_puts_nothing_in_doubt() {
    let servers = ClusterServers::start();
    let cluster = Cluster::builder(servers.urls()).read_from(ReadFrom::Replicas).build().unwrap();
    let region = Region::builder(cluster).lock(RedisLock::new()).build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let releases = || ["evalsha", "eval"].iter().flat_map(|command| servers.calls(command)).sum::<u64>();
    let fail =
        || runtime.block_on(region.get_or_create_async("k", async || Err::<u64, _>(std::io::Error::other("no"))));
    // Each server learns the script first. Then what is known is old enough to be asked for again, by each of these.
    fail().unwrap_err();
    std::thread::sleep(Duration::from_secs(6));
    let before = releases();
    for _ in 0..100 {
        fail().unwrap_err();
    }
    eventually("all leases are released", || releases() - before >= 100);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(releases() - before, 100, "each once");
}
