//! Clusters pass the suites that the crate ships, and mean the same as one server.

use std::time::Duration;

use dogpile::lock::OnLeaseLost;
use dogpile::redis::ReadFrom;
use dogpile::{Cluster, HashTtl, RedisLock, Sentinel, testing};

use crate::cluster_servers::ClusterServers;
use crate::sentinel_servers::SentinelServers;

#[test]
fn suites() {
    let servers = ClusterServers::start();
    let cluster = || Cluster::builder(servers.urls());
    let plain = cluster().build().unwrap();
    testing::backend(&plain, "suite:");
    testing::lock(&plain, &RedisLock::new(), &RedisLock::new(), "lock:");
    let discard = || RedisLock::new().lease_on_miss().on_lease_lost(OnLeaseLost::Discard);
    testing::lock(&plain, &discard(), &discard(), "discard:");
    let one = cluster().connections(1).hash_ttl(HashTtl::Always).build().unwrap();
    testing::backend(&one, "another:");
    for seconds in [50, 3600] {
        let stamped = HashTtl::Stamped { longest: Duration::from_secs(seconds) };
        let stamped = cluster().hash_ttl(stamped).build().unwrap();
        testing::backend(&stamped, &format!("stamped{seconds}:"));
        testing::lock(&stamped, &discard(), &discard(), &format!("stamped{seconds}:"));
    }
    // What replicas have may lag behind, and the suite reads what it wrote at once: only that it goes through.
    let replicas = cluster().read_from(ReadFrom::Replicas).build().unwrap();
    replicas.ping().unwrap();
}

#[test]
fn suites_of_tasks() {
    let servers = ClusterServers::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let cluster = Cluster::open(servers.urls()).unwrap();
    testing::backend_async(&cluster, &runtime, "suite:");
    testing::lock_async(&cluster, &RedisLock::new(), &RedisLock::new(), &runtime, "lock:");
}

#[test]
fn sentinel() {
    let servers = SentinelServers::start();
    let sentinel = || Sentinel::builder(servers.sentinel_urls(), servers.name());
    let plain = sentinel().build().unwrap();
    testing::backend(&plain, "suite:");
    testing::lock(&plain, &RedisLock::new(), &RedisLock::new(), "lock:");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    testing::backend_async(&plain, &runtime, "tasks:");
    testing::lock_async(&plain, &RedisLock::new(), &RedisLock::new(), &runtime, "tasks:");
    let replicas = sentinel().read_from(ReadFrom::Replicas).build().unwrap();
    replicas.ping().unwrap();
}
