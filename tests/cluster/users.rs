//! Users with the permissions that docs/deployments.md lists, and no others.

use dogpile::redis::ReadFrom;
use dogpile::{Cluster, HashTtl, RedisLock, Region, Sentinel, testing};

use crate::cluster_servers::ClusterServers;
use crate::sentinel_servers::SentinelServers;
use crate::support::Server;

/// The line of docs/deployments.md, word for word.
fn permissions(of: &str) -> Vec<String> {
    let page = include_str!("../../docs/deployments.md");
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("ACL SETUSER {of} on >password ")));
    line.unwrap_or_else(|| panic!("docs/deployments.md has a user {of}")).split(' ').map(Into::into).collect()
}

/// Makes a user on each of some servers.
fn add_user(servers: &[Server], user: &str) {
    let permissions = permissions(user);
    for server in servers {
        let mut command = vec!["ACL", "SETUSER", user, "on", ">s3cret"];
        command.extend(permissions.iter().map(String::as_str));
        assert_eq!(server.ask(&command), "+OK");
    }
}

fn with_user(urls: Vec<String>, user: &str) -> Vec<String> {
    urls.into_iter().map(|url| url.replace("redis://", &format!("redis://{user}:s3cret@"))).collect()
}

/// None of the commands of a run was refused.
fn nothing_was_refused(servers: &[Server]) {
    for server in servers {
        let log = server.ask(&["ACL", "LOG"]);
        assert_eq!(log, "*0", "{log}");
    }
}

#[test]
fn of_a_cluster() {
    let servers = ClusterServers::start();
    add_user(&servers.nodes, "cache");
    let cluster = || Cluster::builder(with_user(servers.urls(), "cache"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let stamped = HashTtl::Stamped { longest: std::time::Duration::from_secs(3600) };
    for expiry in [HashTtl::OnCreate, stamped] {
        let cluster = cluster().hash_ttl(expiry).build().unwrap();
        cluster.ping().unwrap();
        let name = format!("{expiry:?}:");
        testing::backend(&cluster, &name);
        testing::lock(&cluster, &RedisLock::new(), &RedisLock::new().lease_on_miss(), &name);
        testing::backend_async(&cluster, &runtime, &name);
        if matches!(expiry, HashTtl::Stamped { .. }) {
            dogpile::redis::sweep(&cluster, "").unwrap();
        }
    }
    let replicas = cluster().read_from(ReadFrom::Replicas).build().unwrap();
    replicas.ping().unwrap();
    let region = Region::builder(replicas).lock(RedisLock::new()).build().unwrap();
    for key in 0..100_u64 {
        assert_eq!(region.get_or_create(key, || Ok::<_, std::io::Error>(key)).unwrap(), key);
    }
    nothing_was_refused(&servers.nodes);
}

#[test]
fn of_sentinels() {
    let servers = SentinelServers::start();
    add_user(&servers.sentinels, "watcher");
    add_user(&servers.nodes, "cache");
    let builder = Sentinel::builder(with_user(servers.sentinel_urls(), "watcher"), servers.name());
    let sentinel = builder.server_password(Some("cache"), "s3cret").read_from(ReadFrom::Replicas).build().unwrap();
    sentinel.ping().unwrap();
    let region = Region::builder(sentinel).lock(RedisLock::new()).build().unwrap();
    for key in 0..100_u64 {
        assert_eq!(region.get_or_create(key, || Ok::<_, std::io::Error>(key)).unwrap(), key);
    }
    nothing_was_refused(&servers.nodes);
    nothing_was_refused(&servers.sentinels);
}
