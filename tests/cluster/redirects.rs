//! Slots that move from one server to another, while they are asked for.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dogpile::backend::{Batch, Found};
use dogpile::internals::{self, Lease};
use dogpile::lock::{OnLeaseLost, RedisGuard};

use dogpile::{AsyncLock, Backend, Cluster, ErrorKind, HashTtl, Key, Lock, RedisLock, Region};

use crate::cluster_servers::ClusterServers;
use crate::support::eventually;

/// Keys of one slot: plain ones, and fields.
fn names(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("{{moving}}{at}")).collect()
}

fn keys(names: &[String]) -> Vec<Key<'_>> {
    names
        .iter()
        .enumerate()
        .map(|(at, name)| match at % 2 {
            0 => Key::from(name.as_str()),
            _ => Key::from(("{moving}hash", name.as_str())),
        })
        .collect()
}

fn get_many(backend: &impl Backend, keys: &[Key<'_>]) -> Vec<Option<String>> {
    let mut found = Found::new();
    backend.get_many(keys, &mut found).unwrap();
    found.iter().map(|entry| entry.map(|entry| String::from_utf8(entry.to_vec()).unwrap())).collect()
}

fn set_many(backend: &impl Backend, keys: &[Key<'_>], entry: &str) {
    let mut batch = Batch::new();
    keys.iter().for_each(|key| batch.push(*key, |out| out.extend_from_slice(entry.as_bytes())));
    backend.set_many(&batch, None).unwrap();
}

/// Writes, reads and deletes the keys in every way, one by one and together, beside keys of other slots.
fn use_all(cluster: &Cluster, keys: &[Key<'_>], round: &str) {
    let others: Vec<String> = (0..20).map(|at| format!("other{at}")).collect();
    let mut all = keys.to_vec();
    all.extend(others.iter().map(|name| Key::from(name.as_str())));
    // Twice, in another order.
    all.extend(keys.iter().rev());
    set_many(cluster, &all, round);
    assert_eq!(get_many(cluster, &all), vec![Some(round.to_string()); all.len()]);
    for key in keys {
        let entry = format!("{round} {key}");
        cluster.set(*key, entry.as_bytes(), Some(Duration::from_secs(100))).unwrap();
        assert_eq!(cluster.get(*key).unwrap().unwrap(), entry.as_bytes());
    }
    assert_eq!(get_many(cluster, keys), keys.iter().map(|key| Some(format!("{round} {key}"))).collect::<Vec<_>>());
    cluster.delete_many(&all[..keys.len() / 2]).unwrap();
    let left = get_many(cluster, keys).into_iter().map(|entry| entry.is_some());
    assert!(left.eq((0..keys.len()).map(|at| at >= keys.len() / 2)));
}

/// Takes leases, stores under them and releases them; also by scripts for lock and entry, which need both at one server.
fn lock_all(cluster: &Cluster, keys: &[Key<'_>], scripts: bool) {
    let locks = [RedisLock::new(), RedisLock::new().lease_on_miss()];
    for lock in &locks {
        let guards: Vec<_> =
            keys.iter().map(|key| lock.try_lock(cluster, *key).unwrap().expect("nobody has it")).collect();
        assert!(keys.iter().all(|key| lock.try_lock(cluster, *key).unwrap().is_none()));
        drop(guards);
        let guards = lock.try_lock_and_read(cluster, keys).unwrap();
        let guards: Vec<_> = guards.into_iter().map(|attempt| attempt.guard.expect("nobody has it")).collect();
        let mut batch = Batch::new();
        keys.iter().for_each(|key| batch.push(*key, |out| out.extend_from_slice(b"stored")));
        assert_eq!(lock.store_and_release(cluster, guards, &batch, None).unwrap(), 0, "none was lost");
        if scripts {
            // Stores that are conditional.
            let discard = lock.clone().on_lease_lost(OnLeaseLost::Discard);
            let attempts = discard.try_lock_and_read(cluster, keys).unwrap();
            let guards = attempts.into_iter().map(|attempt| attempt.guard.expect("nobody has it")).collect();
            assert_eq!(discard.store_and_release(cluster, guards, &batch, None).unwrap(), 0, "none was lost");
        }
        assert_eq!(get_many(cluster, keys), vec![Some("stored".to_string()); keys.len()]);
        assert!(keys.iter().all(|key| {
            !internals::is_leased(cluster, internals::lock_name(&cluster, b"_lok.", *key).as_key().server_key())
                .unwrap()
        }));
        for key in keys {
            cluster.delete_many(&[*key]).unwrap();
            let attempt = lock.read_or_lock(cluster, *key).unwrap();
            assert!(attempt.guard.is_some() && attempt.entry.is_none());
        }
    }
}

#[test]
fn a_slot_that_moves_is_followed() {
    let servers = ClusterServers::start();
    let names = names(12);
    let keys = keys(&names);
    let slot = servers.slot_of("{moving}");
    for expiry in [HashTtl::OnCreate, HashTtl::Stamped { longest: Duration::from_secs(3600) }] {
        let (from, primaries) = (servers.primary_of_slot(slot), servers.primaries());
        let to = *primaries.iter().find(|other| **other != from).unwrap();
        let cluster = || Cluster::builder(servers.urls()).hash_ttl(expiry).build().unwrap();
        // One that knows the map from before, and one that comes in the midst of it each time.
        let old = cluster();
        use_all(&old, &keys, "before");
        servers.begin_migration(slot, to);
        for cluster in [&old, &cluster()] {
            use_all(cluster, &keys, "half of it is there");
            lock_all(cluster, &keys, false);
            use_all(cluster, &keys, "some of it is there");
        }
        servers.move_keys(slot, to);
        for cluster in [&old, &cluster()] {
            use_all(cluster, &keys, "all of it is there");
            lock_all(cluster, &keys, false);
        }
        servers.move_keys(slot, to);
        servers.end_migration(slot, to);
        for cluster in [&old, &cluster()] {
            use_all(cluster, &keys, "after");
            lock_all(cluster, &keys, true);
        }
        // By now it is known, and nobody is sent anywhere.
        std::thread::sleep(Duration::from_millis(200));
        let before = servers.calls("get");
        old.get(keys[0]).unwrap();
        let after = servers.calls("get");
        assert_eq!((after[to] - before[to], after[from] - before[from]), (1, 0));
    }
}

#[test]
fn nobody_sees_a_wrong_value_while_slots_move() {
    let servers = ClusterServers::start();
    let region = Region::builder(Cluster::open(servers.urls()).unwrap()).lock(RedisLock::new()).build().unwrap();
    let slot = servers.slot_of("{moving}");
    let (is_over, calls, created) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (region, is_over, calls, created) = (&region, &is_over, &calls, &created);
            scope.spawn(move || {
                for round in thread.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let key = format!("{{moving}}{}", round % 40);
                    let create = || {
                        created.fetch_add(1, Ordering::Relaxed);
                        Ok::<_, Infallible>(format!("value of {key}"))
                    };
                    match round % 5 {
                        0 => region.delete(key.as_str()).unwrap(),
                        1 => region.set(key.as_str(), &format!("value of {key}")).unwrap(),
                        _ => assert_eq!(region.get_or_create(key.as_str(), create).unwrap(), format!("value of {key}")),
                    }
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let primaries = servers.primaries();
        for round in 0..6 {
            let from = servers.primary_of_slot(slot);
            let to = *primaries.iter().cycle().skip(round).find(|other| **other != from).unwrap();
            servers.begin_migration(slot, to);
            std::thread::sleep(Duration::from_millis(50));
            while servers.move_keys(slot, to) > 0 {}
            servers.end_migration(slot, to);
            std::thread::sleep(Duration::from_millis(50));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let stats = region.stats();
    let failed = stats.failed_reads + stats.failed_writes + stats.failed_locks;
    println!(
        "{} calls, {} created, {failed} failed while a slot moved six times",
        calls.into_inner(),
        created.into_inner()
    );
    assert_eq!(failed, 0);
}

/// A slot that is on its way, of which one key is where it was.
fn half_way() -> (ClusterServers, u16, usize, Cluster) {
    let servers = ClusterServers::start();
    let slot = servers.slot_of("{moving}");
    let from = servers.primary_of_slot(slot);
    let to = *servers.primaries().iter().find(|other| **other != from).unwrap();
    let cluster = Cluster::open(servers.urls()).unwrap();
    cluster.set(Key::from("{moving}1"), b"old", None).unwrap();
    servers.begin_migration(slot, to);
    (servers, slot, to, cluster)
}

#[test]
fn no_lock_is_left_where_a_slot_moves() {
    let (servers, slot, to, cluster) = half_way();
    let key = Key::from("{moving}1");
    let is_free = |cluster: &Cluster| !RedisLock::new().is_locked(cluster, key).unwrap();

    // Entry and lock are at two servers, so nothing can be stored under a condition; the lock is released all the same.
    let lock = RedisLock::new().on_lease_lost(OnLeaseLost::Discard);
    let guards = lock.try_lock_and_read(&cluster, &[key]).unwrap().into_iter().map(|attempt| attempt.guard.unwrap());
    let mut batch = Batch::new();
    batch.push(key, |out| out.extend_from_slice(b"new"));
    let stored = lock.store_and_release(&cluster, guards.collect(), &batch, None);
    assert_eq!(stored.unwrap_err().kind(), ErrorKind::Connection);
    eventually("the lock is released", || is_free(&cluster));

    // Without a condition each is done where it is, and told of.
    let (name, token) = (internals::lock_name(&cluster, b"_lok.", key), [b'a'; 32]);
    let lease = Lease { lock: name.as_key().server_key(), token: &token, key };
    let leased = internals::lease(&cluster, &[lease], Duration::from_secs(10)).unwrap();
    assert_eq!(leased, [(true, Some("old".into()))]);
    assert_eq!(internals::set_and_release(&cluster, &[lease], &batch, None, false).unwrap(), [true]);
    assert_eq!(cluster.get(key).unwrap().unwrap(), "new");

    // Tasks send word, and nobody reads the answer.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let lock = RedisLock::new();
    let drop_guard = |guard| runtime.block_on(async { drop::<RedisGuard<Cluster>>(guard) });
    let guard = || runtime.block_on(lock.try_lock_async(&cluster, key)).unwrap().unwrap();
    drop_guard(guard());
    eventually("the lock is released", || is_free(&cluster));
    let before_it_moved = guard();
    while servers.move_keys(slot, to) > 0 {}
    servers.end_migration(slot, to);
    // Somebody else finds out that it has moved.
    assert!(!is_free(&cluster));
    drop_guard(before_it_moved);
    eventually("the lock is released", || is_free(&cluster));
}

#[test]
fn who_waits_while_a_slot_moves_does_not_ask_all_the_time() {
    let (servers, _, _, cluster) = half_way();
    let region = |cluster| Region::builder(cluster).lock(RedisLock::new()).build().unwrap();
    let (creates, waits) = (region(cluster), region(Cluster::open(servers.urls()).unwrap()));
    let before: u64 = ["get", "set"].iter().flat_map(|command| servers.calls(command)).sum();
    std::thread::scope(|scope| {
        let create = || {
            std::thread::sleep(Duration::from_secs(1));
            Ok::<_, Infallible>(1_u64)
        };
        scope.spawn(move || assert_eq!(creates.get_or_create("{moving}new", create).unwrap(), 1));
        std::thread::sleep(Duration::from_millis(200));
        let value = waits.get_or_create("{moving}new", || -> Result<u64, Infallible> { panic!("it is being created") });
        assert_eq!(value.unwrap(), 1);
    });
    let after: u64 = ["get", "set"].iter().flat_map(|command| servers.calls(command)).sum();
    assert!(after - before < 300, "{} commands in a second", after - before);
}
