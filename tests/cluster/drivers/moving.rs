//! Slots that move from one primary to another, over the `redis` crate.

use std::time::{Duration, Instant};

use dogpile::{Backend, Error, KeyBuf, RedisLock, Region};

use super::{InTasks, batch, client, driver, driver_of_tasks, get_many, runtime, under_load};
use crate::cluster_servers::ClusterServers;
use crate::servers::LONG;

#[test]
fn a_slot_moves() {
    let servers = ClusterServers::start();
    let slot = servers.slot_of("{m}");
    let from = servers.primary_of_slot(slot);
    let keys: Vec<KeyBuf> = (0..60)
        .map(|at| match at % 3 {
            0 => KeyBuf::new().text("{m}").int(at),
            1 => KeyBuf::new().text("{m}h").int(at % 7).next_field().int(at),
            _ => KeyBuf::new().text("elsewhere").int(at),
        })
        .collect();
    let runtime = runtime();
    let threads = driver(client(&servers));
    let tasks = driver_of_tasks(client(&servers), &runtime);
    let in_tasks = InTasks(tasks.clone(), &runtime);
    let region = Region::builder(threads.clone()).lock(RedisLock::new()).build().unwrap();
    let region_of_tasks = Region::builder(tasks).lock(RedisLock::new()).build().unwrap();
    let stage = |what: &str| {
        let backends: [(&dyn Backend, &str); 2] = [(&threads, "threads"), (&in_tasks, "tasks")];
        for (at, (backend, name)) in backends.iter().enumerate() {
            let begun = Instant::now();
            let entry = |key: &KeyBuf| format!("{key} {what} {name}");
            // Half of them alone, then all.
            for key in keys.iter().step_by(2) {
                backend.set(key.as_key(), entry(key).as_bytes(), Some(LONG)).unwrap();
                assert_eq!(backend.get(key.as_key()).unwrap().as_deref(), Some(entry(key).as_bytes()));
            }
            backend.set_many(&batch(keys.iter().map(|key| (key, entry(key)))), Some(LONG)).unwrap();
            for reader in backends {
                let expected: Vec<_> = keys.iter().map(|key| Some(entry(key))).collect();
                assert_eq!(get_many(reader.0, &keys).unwrap(), expected, "{what}, {name}");
            }
            // What is nowhere yet, under locks.
            let new: Vec<String> = (0..10).map(|number| format!("{{m}}{what}{at}{number}")).collect();
            let ones = |count| Ok::<_, Error>(vec![1_u64; count]);
            let made = match at {
                0 => region.get_or_create_many(&new, |keys| ones(keys.len())),
                _ => runtime
                    .block_on(region_of_tasks.get_or_create_many_async(&new, async |keys: Vec<&_>| ones(keys.len()))),
            };
            assert_eq!(made.unwrap(), [1; 10]);
            let more = |number| format!("{{m}}more{what}{at}{number}");
            for key in (0..3).map(more) {
                let made = match at {
                    0 => region.get_or_create(&key, || Ok::<_, Error>(1_u64)),
                    _ => runtime.block_on(region_of_tasks.get_or_create_async(&key, async || Ok::<_, Error>(1_u64))),
                };
                assert_eq!(made.unwrap(), 1);
            }
            let new: Vec<String> = new.into_iter().chain((0..3).map(more)).collect();
            let stats = [region.stats(), region_of_tasks.stats()];
            assert_eq!(region.get_many(&new).unwrap(), [Some(1_u64); 13], "{what}, {name}: {stats:?}");
            assert!(new.iter().all(|key| !region.is_locked(key).unwrap()), "{what}, {name}");
            println!("{what}, {name}: {:?}", begun.elapsed());
        }
        for stats in [region.stats(), region_of_tasks.stats()] {
            assert_eq!(
                stats.failed_reads + stats.failed_locks + stats.failed_writes + stats.lost_locks,
                0,
                "{stats:?}"
            );
        }
    };
    stage("before");
    let to = servers.primaries().into_iter().find(|&n| n != from).unwrap();
    servers.begin_migration(slot, to);
    stage("while none has moved");
    println!("{} keys have moved", servers.move_keys(slot, to));
    stage("while all have moved");
    servers.move_keys(slot, to);
    servers.end_migration(slot, to);
    stage("after");
    let left = servers.nodes[from].ask_int(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]);
    assert_eq!(left, 0, "something was written where the slot had been");
}

#[test]
fn a_slot_moves_under_load() {
    let servers = ClusterServers::start();
    let slot = servers.slot_of("{m}");
    let from = servers.primary_of_slot(slot);
    let to = servers.primaries().into_iter().find(|&n| n != from).unwrap();
    let runtime = runtime();
    let tasks = InTasks(driver_of_tasks(client(&servers), &runtime), &runtime);
    // What is read is what was written, wherever it is.
    let step = |backend: &dyn Backend, thread: usize, number: u32| {
        let keys: Vec<KeyBuf> = (0..4)
            .map(|at| KeyBuf::new().text("{m}").int(thread).text("h").int(at).next_field().int(number % 3))
            .chain([KeyBuf::new().text("{m}").int(thread), KeyBuf::new().text("other").int(number)])
            .collect();
        backend.set_many(&batch(keys.iter().map(|key| (key, number.to_string()))), Some(LONG)).unwrap();
        assert_eq!(get_many(backend, &keys).unwrap(), vec![Some(number.to_string()); keys.len()]);
    };
    let steps = under_load([&driver(client(&servers)), &tasks], step, || {
        for (from, to) in [(from, to), (to, from)] {
            std::thread::sleep(Duration::from_millis(200));
            servers.begin_migration(slot, to);
            std::thread::sleep(Duration::from_millis(200));
            let moved = servers.move_keys(slot, to);
            servers.end_migration(slot, to);
            println!("{moved} keys moved from {from} to {to}");
        }
    });
    for (of_tasks, name) in [(false, "threads"), (true, "tasks")] {
        let took: Vec<Duration> = steps.iter().filter(|step| step.of_tasks == of_tasks).map(|step| step.took).collect();
        println!("{name}: {} steps, at most {:?}", took.len(), took.iter().max().unwrap());
    }
}
