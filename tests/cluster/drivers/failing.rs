//! Primaries and replicas that fail under load, over the `redis` crate.

use std::time::{Duration, Instant};

use dogpile::{Backend, KeyBuf};
use redis::cluster_read_routing::RandomReplicaStrategy;

use super::{
    InTasks, RESPONSE, batch, client, driver, driver_of_tasks, get_many, over_both, runtime, under_load,
    wait_for_replicas,
};
use crate::cluster_servers::{ClusterServers, HASTY};
use crate::servers::LONG;

#[test]
fn a_primary_dies_under_load() {
    a_primary_fails_under_load(|servers, slot| drop(servers.kill_primary_of(slot)));
}

#[test]
fn a_primary_freezes_under_load() {
    a_primary_fails_under_load(|servers, slot| servers.nodes[servers.primary_of_slot(slot)].signal("STOP"));
}

fn a_primary_fails_under_load(fail: impl FnOnce(&mut ClusterServers, u16)) {
    let mut servers = ClusterServers::with(&[&HASTY[..], &["--cluster-require-full-coverage", "no"]].concat());
    let slot = servers.slot_of("k0");
    let dead = servers.primary_of_slot(slot);
    let of_dead: Vec<bool> =
        (0..50).map(|at| servers.primary_of_slot(servers.slot_of(&format!("k{at}"))) == dead).collect();
    let runtime = runtime();
    let threads = driver(client(&servers));
    let tasks = InTasks(driver_of_tasks(client(&servers), &runtime), &runtime);
    let step = |backend: &dyn Backend, thread: usize, number: u32| {
        std::thread::sleep(Duration::from_millis(2));
        let at = (thread + number as usize) % 50;
        let key = KeyBuf::new().text("k").int(at);
        let outcome = backend.set(key.as_key(), b"entry", Some(LONG)).and_then(|()| backend.get(key.as_key()));
        (of_dead[at], outcome.map(|entry| assert_eq!(entry.as_deref(), Some(&b"entry"[..]))))
    };
    let (mut killed, mut recovered) = (Instant::now(), Instant::now());
    let steps = under_load([&threads, &tasks], step, || {
        std::thread::sleep(Duration::from_millis(500));
        killed = Instant::now();
        fail(&mut servers, slot);
        println!("a successor after {:?}", servers.wait_until_recovered(LONG));
        recovered = Instant::now();
        std::thread::sleep(Duration::from_secs(3));
    });
    for (of_tasks, name) in [(false, "threads"), (true, "tasks")] {
        for (of_dead, keys) in [(true, "its keys"), (false, "other keys")] {
            let steps = || steps.iter().filter(|step| step.of_tasks == of_tasks && step.outcome.0 == of_dead);
            let failed = steps().filter(|step| step.outcome.1.is_err());
            let last = failed.clone().map(|step| (step.begun + step.took).saturating_duration_since(killed)).max();
            let longest = steps().map(|step| step.took).max().unwrap();
            let longest_good = steps().filter(|step| step.outcome.1.is_ok()).map(|step| step.took).max().unwrap();
            println!(
                "{name}, {keys}: {} of {} failed, the last {last:?} after the kill; the longest took {longest:?}, of those \
                 that did not fail {longest_good:?}; of {:?}",
                failed.clone().count(),
                steps().count(),
                failed.clone().map(|step| step.outcome.1.as_ref().unwrap_err().to_string()).next(),
            );
            // A step is two calls, each of which may wait for a connection, for another to be made, and for an answer.
            assert!(longest < 2 * (RESPONSE + Duration::from_secs(2)), "{name}, {keys}: {longest:?}");
            let late = failed.filter(|step| step.begun > recovered + Duration::from_secs(1)).count();
            assert_eq!(late, 0, "{name}, {keys}");
        }
    }
}

#[test]
fn a_replica_dies() {
    let mut servers = ClusterServers::start();
    let keys: Vec<KeyBuf> = (0..30).map(|at| KeyBuf::new().text("k").int(at)).collect();
    wait_for_replicas(&servers, &keys);
    let runtime = runtime();
    let client = || client(&servers).read_routing_strategy(RandomReplicaStrategy);
    let (threads, tasks) = (driver(client()), InTasks(driver_of_tasks(client(), &runtime), &runtime));
    let step = |backend: &dyn Backend, _, number: u32| {
        std::thread::sleep(Duration::from_millis(2));
        let one = backend.get(keys[number as usize % keys.len()].as_key()).map(|_| ());
        one.and_then(|()| get_many(backend, &keys).map(|_| ()))
    };
    // Some requests are under way when it dies.
    for backend in [&threads as &dyn Backend, &tasks] {
        get_many(backend, &keys).unwrap();
    }
    servers.nodes[4].stop();
    let steps = under_load([&threads, &tasks], step, || std::thread::sleep(Duration::from_secs(5)));
    for (of_tasks, name) in [(false, "threads"), (true, "tasks")] {
        let steps = || steps.iter().filter(|step| step.of_tasks == of_tasks);
        let failed = steps().find_map(|step| step.outcome.as_ref().err());
        println!("{name}: {} steps, at most {:?}", steps().count(), steps().map(|step| step.took).max().unwrap());
        assert!(failed.is_none(), "{name}: {failed:?}");
    }
}

#[test]
fn connections_that_broke_are_made_anew() {
    let servers = ClusterServers::start();
    let keys: Vec<KeyBuf> = (0..30).map(|at| KeyBuf::new().text("k").int(at)).collect();
    over_both(
        || client(&servers),
        |backend, name| {
            backend.set_many(&batch(keys.iter().map(|key| (key, name.to_string()))), None).unwrap();
            for _ in 0..3 {
                // One that was made just now, and breaks, says something about the servers.
                std::thread::sleep(Duration::from_millis(1100));
                for node in &servers.nodes {
                    node.ask_int(&["CLIENT", "KILL", "TYPE", "normal"]);
                }
                let begun = Instant::now();
                let found = loop {
                    match get_many(backend, &keys) {
                        Ok(found) => break found,
                        // Of the crate's asynchronous connections, when all break at the same time, some hang for good. One
                        // that does so is found out by requests that are not answered in time.
                        Err(error) => assert!(name == "tasks" && begun.elapsed() < 3 * RESPONSE, "{name}: {error}"),
                    }
                };
                println!("{name}: found again after {:?}", begun.elapsed());
                assert_eq!(found, vec![Some(name.to_string()); keys.len()]);
            }
        },
    );
}
