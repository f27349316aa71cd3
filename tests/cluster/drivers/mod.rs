//! Clusters over the `redis` crate: the suites, what they mean, and what they share with ours.

mod failing;
mod moving;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dogpile::{
    AsyncBackend, AsyncClusterDriver, AsyncLock, Backend, Batch, Cluster, ClusterDriver, Discard, Error, ErrorKind,
    Found, HashExpiry, Key, KeyBuf, Lock, RedisLock, ServerInfo, sweep, sweep_async, testing,
};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_read_routing::RandomReplicaStrategy;
use tokio::runtime::Runtime;

use crate::cluster_servers::ClusterServers;
use crate::servers::LONG;
use crate::support::{eventually, within};

const STAMPED: HashExpiry = HashExpiry::Stamped { longest: Duration::from_secs(3600) };

const RESPONSE: Duration = Duration::from_secs(1);

/// As the docs say.
fn client(servers: &ClusterServers) -> ClusterClientBuilder {
    ClusterClient::builder(servers.urls())
        .connection_timeout(Duration::from_millis(500))
        .response_timeout(RESPONSE)
        .retries(3)
        .min_retry_wait(10)
        .max_retry_wait(100)
}

fn driver(client: ClusterClientBuilder) -> ClusterDriver {
    ClusterDriver::new(4, client.build().unwrap())
}

fn driver_of_tasks(client: ClusterClientBuilder, runtime: &Runtime) -> AsyncClusterDriver {
    runtime.block_on(AsyncClusterDriver::connect(client.build().unwrap())).unwrap()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// What tasks do, for threads.
struct InTasks<'r, B>(B, &'r Runtime);

impl<B: AsyncBackend> Backend for InTasks<'_, B> {
    fn get(&self, key: Key<'_>) -> Result<Option<Bytes>, Error> {
        self.1.block_on(self.0.get_async(key))
    }
    fn get_many(&self, keys: &[Key<'_>], found: &mut Found) -> Result<(), Error> {
        self.1.block_on(self.0.get_many_async(keys, found))
    }
    fn set(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
        self.1.block_on(self.0.set_async(key, entry, ttl))
    }
    fn set_many(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error> {
        self.1.block_on(self.0.set_many_async(batch, ttl))
    }
    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        self.1.block_on(self.0.delete_many_async(keys))
    }
}

/// Does the same over both drivers.
fn over_both(client: impl Fn() -> ClusterClientBuilder, check: impl Fn(&dyn Backend, &str)) {
    check(&driver(client()), "threads");
    let runtime = runtime();
    check(&InTasks(driver_of_tasks(client(), &runtime), &runtime), "tasks");
}

fn get_many(backend: &(impl Backend + ?Sized), keys: &[KeyBuf]) -> Result<Vec<Option<String>>, Error> {
    let keys: Vec<Key<'_>> = keys.iter().map(KeyBuf::as_key).collect();
    let mut found = Found::new();
    backend.get_many(&keys, &mut found)?;
    Ok(found.iter().map(|entry| entry.map(|entry| String::from_utf8_lossy(&entry).into_owned())).collect())
}

fn batch<'k>(entries: impl IntoIterator<Item = (&'k KeyBuf, String)>) -> Batch {
    let mut batch = Batch::new();
    for (key, entry) in entries {
        batch.push(key.as_key(), |out| out.extend_from_slice(entry.as_bytes()));
    }
    batch
}

fn discard() -> RedisLock<Discard> {
    RedisLock::new().lease_on_miss().when_lost(Discard)
}

/// Does something again and again over both drivers until told to stop, in threads of their own: what each came to, and
/// how long it took.
fn under_load<T: Send>(
    backends: [&dyn Backend; 2],
    step: impl Fn(&dyn Backend, usize, u32) -> T + Sync,
    meanwhile: impl FnOnce(),
) -> Vec<Step<T>> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..12)
            .map(|thread| {
                let (is_over, step) = (&is_over, &step);
                scope.spawn(move || {
                    let mut steps = Vec::new();
                    for number in 0.. {
                        if is_over.load(Ordering::Relaxed) {
                            break;
                        }
                        let begun = Instant::now();
                        let outcome = step(backends[thread % 2], thread, number);
                        steps.push(Step { of_tasks: thread % 2 == 1, begun, took: begun.elapsed(), outcome });
                    }
                    steps
                })
            })
            .collect();
        meanwhile();
        is_over.store(true, Ordering::Relaxed);
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

struct Step<T> {
    of_tasks: bool,
    begun: Instant,
    took: Duration,
    outcome: T,
}

#[test]
fn suites() {
    let servers = ClusterServers::start();
    let plain = driver(client(&servers));
    testing::backend(&plain, "suite:");
    testing::lock(&plain, &RedisLock::new(), &RedisLock::new(), "lock:");
    testing::lock(&plain, &discard(), &discard(), "discard:");
    let stamped = driver(client(&servers).use_protocol(redis::ProtocolVersion::RESP3)).hash_expiry(STAMPED);
    testing::backend(&stamped, "stamped:");
    testing::lock(&stamped, &discard(), &discard(), "stamped:");
}

#[test]
fn suites_of_tasks() {
    let servers = ClusterServers::start();
    let runtime = runtime();
    let plain = driver_of_tasks(client(&servers), &runtime);
    testing::backend_async(&plain, &runtime, "suite:");
    testing::lock_async(&plain, &RedisLock::new(), &RedisLock::new(), &runtime, "lock:");
    testing::lock_async(&plain, &discard(), &discard(), &runtime, "discard:");
    let resp3 = client(&servers).use_protocol(redis::ProtocolVersion::RESP3);
    let stamped = driver_of_tasks(resp3, &runtime).hash_expiry(STAMPED);
    testing::backend_async(&stamped, &runtime, "stamped:");
    testing::lock_async(&stamped, &discard(), &discard(), &runtime, "stamped:");
}

#[test]
fn answers_are_in_the_callers_order() {
    let servers = ClusterServers::start();
    over_both(
        || client(&servers),
        |backend, name| {
            let mut keys: Vec<KeyBuf> = (0..200).map(|at| KeyBuf::new().text(&format!("{name}{at}"))).collect();
            keys.extend((0..50).map(|at| KeyBuf::new().text(&format!("{{{name}}}{at}"))));
            keys.extend((0..100).map(|at| KeyBuf::new().text(&format!("{name}h{}", at % 20)).next_field().int(at)));
            let absent: Vec<KeyBuf> = (0..100).map(|at| KeyBuf::new().text(&format!("{name}absent{at}"))).collect();
            let mixed = |at: usize| &keys[at * 101 % keys.len()];
            let entries = (0..keys.len()).map(|at| (mixed(at), format!("old{}", at % 7)));
            let entries = entries.chain((0..keys.len()).map(|at| (mixed(at), mixed(at).to_string())));
            backend.set_many(&batch(entries), Some(Duration::from_secs(60))).unwrap();
            let (mut asked, mut expected) = (Vec::new(), Vec::new());
            for at in 0..2 * keys.len() {
                asked.push(mixed(at).clone());
                expected.push(Some(mixed(at).to_string()));
                asked.push(absent[at % absent.len()].clone());
                expected.push(None);
            }
            assert_eq!(get_many(backend, &asked).unwrap(), expected, "{name}");
            let some: Vec<Key<'_>> = (0..150).map(|at| mixed(at).as_key()).collect();
            backend.delete_many(&some).unwrap();
            let left = get_many(backend, &keys).unwrap().into_iter().flatten().count();
            assert_eq!(left, keys.len() - 150, "{name}");
        },
    );
}

#[test]
fn an_error_is_that_of_its_command() {
    let servers = ClusterServers::start();
    let node = &servers.nodes[servers.primary_of_slot(servers.slot_of("{t}"))];
    assert_eq!(node.ask(&["RPUSH", "{t}list", "member"]), ":1");
    over_both(
        || client(&servers),
        |backend, name| {
            let field = |hash: &str| KeyBuf::new().text(hash).next_field().text("f");
            let keys =
                [field("{t}h"), KeyBuf::new().text("{t}k"), field("{t}list"), field("{t}i"), KeyBuf::new().text("k")];
            let good = keys.iter().filter(|key| **key != keys[2]).map(|key| (key, key.to_string()));
            backend.set_many(&batch(good), None).unwrap();
            let expected: Vec<_> = keys.iter().map(|key| (*key != keys[2]).then(|| key.to_string())).collect();
            assert_eq!(get_many(backend, &keys).unwrap(), expected, "{name}");
            let error = backend.get("{t}list".into()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WrongType, "{error}");
            // The others are stored nevertheless.
            let error = backend.set_many(&batch(keys.iter().map(|key| (key, "new".into()))), None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WrongType, "{error}");
            let found = get_many(backend, &keys).unwrap();
            assert_eq!(found.iter().flatten().filter(|entry| *entry == "new").count(), 4, "{name}");
        },
    );
}

#[test]
fn entries_and_locks_are_shared_with_ours() {
    let servers = ClusterServers::start();
    let runtime = runtime();
    let cluster = |expiry| Cluster::builder(servers.urls()).hash_expiry(expiry).build().unwrap();
    let keys: Vec<KeyBuf> = (0..40)
        .map(|at| match at % 4 {
            0 => KeyBuf::new().text("plain").int(at),
            1 => KeyBuf::new().text("{tag}").int(at),
            2 => KeyBuf::new().text("a}b").int(at),
            _ => KeyBuf::new().text("hash").int(at % 5).next_field().int(at),
        })
        .collect();
    for expiry in [HashExpiry::OnCreate, STAMPED] {
        let ours = cluster(expiry);
        let threads = driver(client(&servers)).hash_expiry(expiry);
        let tasks = driver_of_tasks(client(&servers), &runtime).hash_expiry(expiry);
        let in_tasks = InTasks(tasks.clone(), &runtime);
        let backends: [&dyn Backend; 3] = [&ours, &threads, &in_tasks];
        for (at, writer) in backends.iter().enumerate() {
            let entry = format!("of {at}");
            writer.set_many(&batch(keys.iter().map(|key| (key, entry.clone()))), Some(LONG)).unwrap();
            for reader in backends {
                let found = get_many(reader, &keys).unwrap();
                assert!(found.iter().all(|found| found.as_ref() == Some(&entry)), "{found:?}");
                let one = reader.get(keys[at].as_key()).unwrap();
                assert_eq!(one.as_deref(), Some(entry.as_bytes()));
            }
        }
        let lock = RedisLock::new();
        for key in &keys {
            let key = key.as_key();
            let is_free_for_others = |ours_too: bool, threads_too: bool| {
                let ours = ours_too && lock.try_lock(&ours, key).unwrap().is_some();
                let threads = threads_too && lock.try_lock(&threads, key).unwrap().is_some();
                ours || threads
            };
            let held = lock.try_lock(&ours, key).unwrap().unwrap();
            assert!(lock.is_locked(&threads, key).unwrap() && !is_free_for_others(false, true), "{key}");
            assert!(runtime.block_on(lock.try_lock_async(&tasks, key)).unwrap().is_none(), "{key}");
            drop(held);
            let held = lock.try_lock(&threads, key).unwrap().unwrap();
            assert!(lock.is_locked(&ours, key).unwrap() && !is_free_for_others(true, false), "{key}");
            drop(held);
            let held = runtime.block_on(lock.try_lock_async(&tasks, key)).unwrap().unwrap();
            assert!(lock.is_locked(&ours, key).unwrap() && !is_free_for_others(true, true), "{key}");
            runtime.block_on(async { drop(held) });
            eventually("a task's lock is free", || !lock.is_locked(&ours, key).unwrap());
        }
    }
}

#[test]
fn all_servers_are_asked_at_the_same_time() {
    let servers = ClusterServers::start();
    let keys: Vec<KeyBuf> = (0..30).map(|at| KeyBuf::new().text("k").int(at)).collect();
    over_both(
        || client(&servers),
        |backend, name| {
            backend.set_many(&batch(keys.iter().map(|key| (key, "entry".into()))), None).unwrap();
            for frozen in servers.primaries() {
                let before = servers.calls("get");
                std::thread::scope(|scope| {
                    servers.nodes[frozen].signal("STOP");
                    let found = scope.spawn(|| get_many(backend, &keys));
                    eventually("the others have answered", || {
                        let after = servers.calls("get");
                        servers.primaries().iter().all(|&n| n == frozen || after[n] > before[n])
                    });
                    servers.nodes[frozen].signal("CONT");
                    let found = found.join().unwrap().unwrap();
                    assert!(found.iter().all(Option::is_some), "{name}");
                });
            }
        },
    );
}

/// Servers do not name replicas that have nothing.
fn wait_for_replicas(servers: &ClusterServers, keys: &[KeyBuf]) {
    driver(client(servers)).set_many(&batch(keys.iter().map(|key| (key, "first".into()))), None).unwrap();
    within(LONG, "each server names all of them", || {
        let is_named = |slots: &str| servers.nodes.iter().all(|node| slots.contains(&format!(":{}\r\n", node.port)));
        servers.nodes.iter().all(|node| is_named(&node.ask(&["CLUSTER", "SLOTS"])))
    });
}

#[test]
fn reads_go_to_replicas_as_the_client_says() {
    let servers = ClusterServers::start();
    let keys: Vec<KeyBuf> = (0..30).map(|at| KeyBuf::new().text("k").int(at)).collect();
    wait_for_replicas(&servers, &keys);
    let client = || client(&servers).read_routing_strategy(RandomReplicaStrategy);
    let by_replicas = |command| servers.calls(command)[3..].iter().sum::<u64>();
    over_both(client, |backend, name| {
        let before = by_replicas("get");
        backend.set_many(&batch(keys.iter().map(|key| (key, name.to_string()))), None).unwrap();
        eventually("replicas have them", || {
            get_many(backend, &keys).unwrap().iter().all(|entry| entry.as_deref() == Some(name))
        });
        assert_eq!(backend.get(keys[0].as_key()).unwrap().as_deref(), Some(name.as_bytes()));
        assert!(by_replicas("get") > before + 30, "{name}");
    });
    // What is read under a lock is not read from a replica, nor is the lock itself.
    let reads = || by_replicas("get") + by_replicas("exists");
    let (lock, before) = (RedisLock::new(), reads());
    let keys: Vec<Key<'_>> = keys.iter().map(KeyBuf::as_key).collect();
    let threads = driver(client());
    let attempts = lock.try_lock_and_read(&threads, &keys).unwrap();
    assert!(attempts.iter().all(|attempt| attempt.entry.is_some() && attempt.guard.is_some()));
    assert!(lock.is_locked(&threads, keys[0]).unwrap());
    drop(attempts);
    let runtime = runtime();
    let tasks = driver_of_tasks(client(), &runtime);
    runtime.block_on(async {
        let attempts = lock.try_lock_and_read_async(&tasks, &keys).await.unwrap();
        assert!(attempts.iter().all(|attempt| attempt.entry.is_some() && attempt.guard.is_some()));
        assert!(lock.is_locked_async(&tasks, keys[0]).await.unwrap());
    });
    assert_eq!(reads(), before);
}

#[test]
fn servers_tell_what_they_are_and_are_swept() {
    let servers = ClusterServers::start();
    let runtime = runtime();
    let threads = driver(client(&servers)).hash_expiry(STAMPED);
    let tasks = driver_of_tasks(client(&servers), &runtime).hash_expiry(STAMPED);
    let info = ServerInfo::of(&threads).unwrap();
    assert_eq!(runtime.block_on(ServerInfo::of_async(&tasks)).unwrap(), info);
    let keys: Vec<KeyBuf> = (0..300).map(|at| KeyBuf::new().text("h").int(at / 10).next_field().int(at)).collect();
    for of_tasks in [false, true] {
        let all = batch(keys.iter().map(|key| (key, "entry".into())));
        let mut short = all.clone();
        short.truncate(150);
        threads.set_many(&all, Some(LONG)).unwrap();
        threads.set_many(&short, Some(Duration::from_secs(1))).unwrap();
        std::thread::sleep(Duration::from_millis(2100));
        let swept =
            if of_tasks { runtime.block_on(sweep_async(&tasks, "h")).unwrap() } else { sweep(&threads, "h").unwrap() };
        assert_eq!((swept.hashes, swept.removed), (30, 150));
    }
}

#[test]
fn errors_say_where_and_no_password() {
    let mut servers = ClusterServers::with(&["--requirepass", "hunter2", "--masterauth", "hunter2"]);
    let runtime = runtime();
    let refused = driver(client(&servers).password("swordfish")).get("k".into()).unwrap_err();
    println!("{refused:?}");
    let tasks = client(&servers).password("swordfish").build().unwrap();
    let refused_tasks = runtime.block_on(AsyncClusterDriver::connect(tasks)).unwrap_err();
    println!("{refused_tasks:?}");
    assert_eq!([refused.kind(), refused_tasks.kind()], [ErrorKind::Refused; 2]);
    let with_password = || client(&servers).password("hunter2");
    let (threads, tasks) = (driver(with_password()), driver_of_tasks(with_password(), &runtime));
    let in_tasks = InTasks(tasks.clone(), &runtime);
    threads.set("k".into(), b"entry", None).unwrap();
    assert_eq!(in_tasks.get("k".into()).unwrap().as_deref(), Some(&b"entry"[..]));
    let mut said = vec![refused.to_string(), refused_tasks.to_string(), format!("{threads:?} {tasks:?}")];
    servers.nodes.iter_mut().for_each(|node| node.stop());
    for backend in [&threads as &dyn Backend, &in_tasks] {
        for _ in 0..3 {
            let begun = Instant::now();
            let error = backend.get("k".into()).unwrap_err();
            println!("{error:?}, after {:?}", begun.elapsed());
            assert!(matches!(error.kind(), ErrorKind::Connection | ErrorKind::Timeout), "{error:?}");
            said.push(error.to_string());
        }
    }
    assert!(said.iter().all(|said| !said.contains("hunter2") && !said.contains("swordfish")), "{said:?}");
}
