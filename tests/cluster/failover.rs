//! A primary that is killed under load: no wrong value, no call beyond its timeouts, and all is well when another server
//! has taken its place.

use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dogpile::redis::{ReadFrom, RedisBuilder};
use dogpile::{AsyncBackend, AsyncLock, Backend, Cluster, Key, Lock, RedisLock, Region, Sentinel};

use crate::cluster_servers::ClusterServers;
use crate::sentinel_servers::SentinelServers;
use crate::support::{Server, eventually, within};

/// To connect, and to answer.
const TIMEOUT: Duration = Duration::from_millis(250);

/// A call reads, locks and stores; one of these may wait for a connection that cannot be opened, and one for an answer.
/// The rest is for the machine, which does more than this at the time.
const LONGEST: Duration = Duration::from_millis(4 * 250 + 1000);

fn hurried<T>(builder: RedisBuilder<T>) -> RedisBuilder<T> {
    builder.connect_timeout(TIMEOUT).response_timeout(TIMEOUT)
}

const KEYS: usize = 300;

fn key(number: usize) -> String {
    format!("key{}", number % KEYS)
}

/// What callers of a region saw, since they began.
struct Load {
    begun: Instant,
    is_over: AtomicBool,
    calls: AtomicU64,
    created: AtomicU64,
    longest: Mutex<Duration>,
    /// When a read that said whether the server could be asked last failed.
    last_failure: Mutex<Option<Instant>>,
}

impl Load {
    fn new() -> Self {
        Load {
            begun: Instant::now(),
            is_over: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            created: AtomicU64::new(0),
            longest: Mutex::default(),
            last_failure: Mutex::default(),
        }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn create(&self, key: &str) -> Result<String, Infallible> {
        self.created.fetch_add(1, Ordering::Relaxed);
        Ok(format!("value of {key}"))
    }

    /// Takes what a call came to that began then.
    fn note(&self, began: Instant, failed: bool) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut longest = self.longest.lock().unwrap();
        *longest = began.elapsed().max(*longest);
        if failed {
            *self.last_failure.lock().unwrap() = Some(Instant::now());
        }
    }

    /// A thread that calls in many ways.
    fn thread<B: Backend>(&self, region: &Region<B, dogpile::Msgpack, RedisLock>, number: usize)
    where
        RedisLock: Lock<B>,
    {
        for round in (number * 7..).take_while(|_| !self.is_over()) {
            let (key, began) = (key(round), Instant::now());
            match round % 6 {
                0 => {
                    let found = region.get::<String>(key.as_str());
                    self.note(began, found.is_err());
                    let found = found.unwrap_or_default();
                    assert!(found.as_ref().is_none_or(|value| *value == format!("value of {key}")), "{key}: {found:?}");
                }
                1 => {
                    let keys: Vec<_> = (round..round + 10).map(self::key).collect();
                    let created = region.get_or_create_many(&keys, |missing| {
                        missing.iter().map(|key| self.create(key)).collect::<Result<Vec<_>, _>>()
                    });
                    assert_eq!(created.unwrap(), keys.iter().map(|key| format!("value of {key}")).collect::<Vec<_>>());
                    self.note(began, false);
                }
                2 => {
                    let deleted = region.delete(key.as_str());
                    self.note(began, deleted.is_err());
                }
                _ => {
                    let value = region.get_or_create(key.as_str(), || self.create(&key)).unwrap();
                    assert_eq!(value, format!("value of {key}"));
                    self.note(began, false);
                }
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// A task that does the same.
    async fn task<B: AsyncBackend>(&self, region: &Region<B, dogpile::Msgpack, RedisLock>, number: usize)
    where
        RedisLock: AsyncLock<B>,
    {
        for round in (number * 7..).take_while(|_| !self.is_over()) {
            let (key, began) = (key(round), Instant::now());
            if round % 4 == 0 {
                let found = region.get_async::<String>(key.as_str()).await;
                self.note(began, found.is_err());
                let found = found.unwrap_or_default();
                assert!(found.as_ref().is_none_or(|value| *value == format!("value of {key}")), "{key}: {found:?}");
            } else {
                let value = region.get_or_create_async(key.as_str(), async || self.create(&key)).await.unwrap();
                assert_eq!(value, format!("value of {key}"));
                self.note(began, false);
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    }
}

/// Callers of both faces before, while and after `fail` makes a server fail and waits until the others have agreed on what
/// comes in its place, for which it says how long it took.
fn under_load<B>(what: &str, backend: B, fail: impl FnOnce() -> Duration)
where
    B: Backend + AsyncBackend + 'static,
    RedisLock: Lock<B> + AsyncLock<B>,
{
    let region = Region::builder(backend).lock(RedisLock::new()).ttl(Duration::from_secs(60)).build().unwrap();
    let load = Load::new();
    std::thread::scope(|scope| {
        for number in 0..3 {
            let (load, region) = (&load, &region);
            scope.spawn(move || load.thread(region, number));
        }
        scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::join!(load.task(&region, 3), load.task(&region, 4), load.task(&region, 5));
            });
        });
        std::thread::sleep(Duration::from_millis(500));
        assert!(load.last_failure.lock().unwrap().is_none(), "all is well before");
        let failed = Instant::now();
        let recovered = fail();
        let recovered_at = Instant::now();
        // The map of servers is asked for anew within a pause of a second.
        std::thread::sleep(Duration::from_millis(2500));
        let last = load.last_failure.lock().unwrap().take();
        let settled = Instant::now();
        std::thread::sleep(Duration::from_millis(1000));
        let after = *load.last_failure.lock().unwrap();
        load.is_over.store(true, Ordering::Relaxed);
        println!(
            "{what}: {} calls in {:.1?}, {} created; the servers recovered in {recovered:.2?}, the last failure was {:.2?} \
             after it all began to fail; the longest call took {:.0?}",
            load.calls.load(Ordering::Relaxed),
            load.begun.elapsed(),
            load.created.load(Ordering::Relaxed),
            last.map(|last| last - failed).unwrap_or_default(),
            load.longest.lock().unwrap(),
        );
        assert!(after.is_none(), "something failed {:.2?} after the servers had recovered", after.unwrap() - settled);
        assert!(last.is_none_or(|last| last < recovered_at + Duration::from_secs(2)));
    });
    let longest = *load.longest.lock().unwrap();
    assert!(longest < LONGEST, "a call took {longest:?}");
}

#[test]
fn a_primary_of_a_cluster_that_is_killed() {
    let mut servers = ClusterServers::hasty();
    let cluster = hurried(Cluster::builder(servers.urls())).build().unwrap();
    under_load("a cluster's primary was killed", cluster, || {
        servers.kill_primary_of(0);
        servers.wait_until_recovered(Duration::from_secs(30))
    });
}

#[test]
fn a_primary_of_a_cluster_that_is_killed_while_replicas_are_read() {
    let mut servers = ClusterServers::hasty();
    let cluster = hurried(Cluster::builder(servers.urls())).read_from(ReadFrom::Replicas).build().unwrap();
    under_load("a cluster's primary was killed, replicas are read", cluster, || {
        servers.kill_primary_of(0);
        servers.wait_until_recovered(Duration::from_secs(30))
    });
}

#[test]
fn a_primary_of_a_cluster_that_freezes() {
    let servers = ClusterServers::hasty();
    let cluster = hurried(Cluster::builder(servers.urls())).build().unwrap();
    let frozen = servers.primary_of_slot(0);
    under_load("a cluster's primary froze", cluster, || {
        servers.nodes[frozen].signal("STOP");
        servers.wait_until_recovered(Duration::from_secs(30))
    });
}

#[test]
fn a_primary_of_a_cluster_that_makes_way() {
    let servers = ClusterServers::hasty();
    let cluster = hurried(Cluster::builder(servers.urls())).build().unwrap();
    let replica = servers.replicas_of(servers.primary_of_slot(0))[0];
    under_load("a cluster's replica took over in peace", cluster, || {
        servers.fail_over(replica);
        servers.wait_until_recovered(Duration::from_secs(30))
    });
}

#[test]
fn a_primary_that_sentinels_watch_is_killed() {
    let mut servers = SentinelServers::start();
    let sentinel = hurried(Sentinel::builder(servers.sentinel_urls(), servers.name())).build().unwrap();
    under_load("a primary that sentinels watch was killed", sentinel, || {
        let old = servers.kill_primary();
        servers.wait_for_new_primary(old, Duration::from_secs(30))
    });
}

#[test]
fn a_primary_that_sentinels_watch_makes_way() {
    let servers = SentinelServers::start();
    let sentinel = hurried(Sentinel::builder(servers.sentinel_urls(), servers.name())).build().unwrap();
    under_load("sentinels were told to fail over", sentinel, || {
        let old = servers.primary();
        servers.fail_over();
        servers.wait_for_new_primary(old, Duration::from_secs(30))
    });
}

/// Of a task, which sends word when it drops its lease, and does not wait for an answer.
#[test]
fn a_lease_whose_release_was_sent_to_a_server_that_froze() {
    let (cluster_servers, sentinel_servers) = (ClusterServers::hasty(), SentinelServers::start());
    let cluster = hurried(Cluster::builder(cluster_servers.urls())).build().unwrap();
    let sentinels = Sentinel::builder(sentinel_servers.sentinel_urls(), sentinel_servers.name());
    let primary = &cluster_servers.nodes[cluster_servers.primary_of_slot(cluster_servers.slot_of("k"))];
    released_by_the_successor(cluster, primary);
    released_by_the_successor(hurried(sentinels).build().unwrap(), &sentinel_servers.nodes[sentinel_servers.primary()]);
}

fn released_by_the_successor<B>(backend: B, primary: &Server)
where
    B: Backend + AsyncBackend + 'static,
    RedisLock: Lock<B> + AsyncLock<B>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // Far longer than the test waits.
    let lock = RedisLock::new().lease(Duration::from_secs(600));
    let guard = runtime.block_on(lock.try_lock_async(&backend, Key::from("k"))).unwrap().unwrap();
    eventually("its replicas have it", || primary.ask_int(&["WAIT", "1", "100"]) > 0);
    primary.signal("STOP");
    runtime.block_on(async { drop(guard) });
    let is_free = || matches!(Lock::is_locked(&lock, &backend, Key::from("k")), Ok(false));
    within(Duration::from_secs(30), "the successor releases it", is_free);
}
