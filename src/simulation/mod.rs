//! Deterministic simulation tests of regions, locks and lease renewal.
//!
//! Regions of several simulated processes run against a simulated server, with tokio's paused
//! clock, which advances to the next timer as soon as all tasks are idle. A seed determines a
//! schedule: message delays and their order, lost connections, crashes, server restarts, evictions
//! and expiring leases. Assertions check the guarantees of the crate throughout.
//!
//! `DOGPILE_SCHEDULES` sets the number of schedules to run. A failing schedule is printed with its
//! seed, and `DOGPILE_SEED=seed cargo test --all-features --lib simulation` repeats it exactly.

mod server;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::error::{ErrorKind, GetError};
use crate::lock::{OnLeaseLost, RedisLock};
use crate::region::{OnWaitTimeout, Region};
use crate::simulation::server::{RESPONSE_TIMEOUT, SimBackend, SimShared, SimWorld, lock};

/// A deterministic random number generator (splitmix64).
#[derive(Clone)]
struct SimRandom(u64);

impl SimRandom {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }

    fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }
}

/// The parameters of a schedule: its size, its settings, and the faults that may occur.
#[derive(Clone, Debug)]
struct SimPlan {
    processes: usize,
    callers: usize,
    calls: usize,
    keys: usize,
    max_delay: Duration,
    lease: Duration,
    /// The shortest and the longest run time of a creator, in milliseconds.
    creation_millis: (u64, u64),
    ttl: Option<Duration>,
    lease_on_miss: bool,
    store_if_lost: bool,
    wait_timeout: Option<(Duration, OnWaitTimeout)>,
    max_creations: Option<usize>,
    /// The percentage of creators that fail.
    failure_percent: u64,
    /// The percentage of calls whose future is dropped before it completes.
    drop_percent: u64,
    /// The number of requests per thousand during which the connection is lost.
    disconnect_permille: u64,
    flushes: bool,
    evicts: bool,
    freezes: bool,
    restarts: bool,
    crashes: bool,
    /// Whether the connections that receive invalidation messages are lost.
    loses_tracking: bool,
}

impl SimPlan {
    fn of(random: &mut SimRandom) -> Self {
        let is_fault_free = random.one_in(3);
        let mut fault = |n| !is_fault_free && random.one_in(n);
        let (flushes, evicts, freezes, restarts) = (fault(3), fault(4), fault(4), fault(5));
        let (crashes, loses_tracking, disconnects, has_wait_timeout) = (fault(4), fault(3), fault(3), fault(6));
        let lease = random.pick(&[200, 1000, 10_000]);
        SimPlan {
            processes: 1 + random.below(3) as usize,
            callers: 1 + random.below(3) as usize,
            calls: 1 + random.below(3) as usize,
            keys: 1 + random.below(2) as usize,
            max_delay: random.millis(0, 6),
            lease: Duration::from_millis(lease),
            creation_millis: random.pick(&[(0, 0), (0, 20), (30, 60), (lease / 2, lease * 2)]),
            ttl: random.pick(&[None, Some(20), Some(200)]).map(Duration::from_millis),
            lease_on_miss: random.one_in(2),
            store_if_lost: random.one_in(2),
            wait_timeout: has_wait_timeout.then(|| {
                let then = random.pick(&[OnWaitTimeout::Fail, OnWaitTimeout::Create]);
                (random.millis(1, 100), then)
            }),
            max_creations: random.one_in(5).then_some(1),
            failure_percent: if random.one_in(2) { 0 } else { 30 },
            drop_percent: if random.one_in(2) { 0 } else { 30 },
            disconnect_permille: if disconnects { 50 } else { 0 },
            flushes,
            evicts,
            freezes,
            restarts,
            crashes,
            loses_tracking,
        }
    }

    /// Returns `true` if the only faults are failing creators.
    ///
    /// No lease then expires before it is released.
    fn is_fault_free(&self) -> bool {
        let faults = [self.flushes, self.evicts, self.freezes, self.restarts, self.crashes, self.loses_tracking];
        self.disconnect_permille == 0 && !faults.contains(&true)
    }

    /// The longest round trip while the server is not frozen.
    fn max_round_trip(&self) -> Duration {
        2 * (self.max_delay + Duration::from_millis(2))
    }
}

/// The observed actions of all creators.
#[derive(Default)]
struct Observations {
    /// The created values by key, and the time at which their creators completed.
    created: BTreeMap<u64, BTreeMap<u64, Instant>>,
    /// The number of running creators, by process and key.
    running: BTreeMap<(usize, u64), usize>,
    /// The number of creators that were started, by process and key.
    started: BTreeMap<(usize, u64), u64>,
    next: u64,
}

struct Simulation {
    plan: SimPlan,
    world: SimShared,
    observations: Mutex<Observations>,
    is_over: AtomicU64,
}

type SimRegion = Region<SimBackend, crate::codec::Msgpack, RedisLock>;

/// A running creator; it ends when this is dropped.
struct RunningCreation<'s> {
    simulation: &'s Simulation,
    process: usize,
    key: u64,
}

impl<'s> RunningCreation<'s> {
    fn start(simulation: &'s Simulation, process: usize, key: u64) -> Self {
        let (mut world, mut observations) = (lock(&simulation.world), simulation.observations());
        world.note(format_args!("process {process} creates {key}"));
        let plan = &simulation.plan;
        let running = observations.running.entry((process, key)).or_default();
        *running += 1;
        assert!(
            *running == 1 || plan.wait_timeout.is_some(),
            "two creators of {key} run in process {process} at the same time"
        );
        let started = observations.started.entry((process, key)).or_default();
        *started += 1;
        let started = *started;
        let granted = world.granted.get(&(process, format!("_lok.{key}").into_bytes())).copied().unwrap_or(0);
        let may_lack_lock = plan.wait_timeout.is_some() || world.failed.contains(&process);
        assert!(may_lack_lock || started <= granted, "process {process} creates {key} without holding its lease");
        if plan.is_fault_free() && plan.wait_timeout.is_none() {
            let total: usize =
                observations.running.iter().filter(|((_, other), _)| *other == key).map(|(_, count)| count).sum();
            assert_eq!(total, 1, "two processes create {key} at the same time, although no lease expired");
        }
        RunningCreation { simulation, process, key }
    }

    fn finish(&self) -> u64 {
        let mut observations = self.simulation.observations();
        observations.next += 1;
        let value = observations.next;
        observations.created.entry(self.key).or_default().insert(value, Instant::now());
        value
    }
}

impl Drop for RunningCreation<'_> {
    fn drop(&mut self) {
        *self.simulation.observations().running.entry((self.process, self.key)).or_default() -= 1;
    }
}

impl Simulation {
    fn random<T>(&self, choose: impl FnOnce(&mut SimRandom) -> T) -> T {
        choose(&mut lock(&self.world).random)
    }

    fn observations(&self) -> MutexGuard<'_, Observations> {
        // An assertion of one caller fails the test; the poisoned mutex must not hide its message.
        self.observations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn create(&self, process: usize, key: u64) -> Result<u64, &'static str> {
        let creation = RunningCreation::start(self, process, key);
        let (shortest, longest) = self.plan.creation_millis;
        let (run_time, fails) =
            self.random(|random| (random.millis(shortest, longest), random.below(100) < self.plan.failure_percent));
        if !run_time.is_zero() {
            sleep(run_time).await;
        }
        if fails { Err("simulated failure") } else { Ok(creation.finish()) }
    }

    /// Checks that a caller got a value of the key, and got it promptly after it was created.
    fn check_value(&self, key: u64, value: u64, started: Instant) {
        let observations = self.observations();
        let created = observations.created.get(&key).and_then(|created| created.get(&value)).copied();
        let Some(created) = created else { panic!("the value {value} was not created by a creator of {key}") };
        if self.plan.is_fault_free()
            && self.plan.wait_timeout.is_none()
            && self.plan.max_creations.is_none()
            && self.plan.keys == 1
        {
            let latency = started.max(created).elapsed();
            // One round trip each for storing, the invalidation message and reading, doubled for
            // callers that arrived in between.
            assert!(
                latency <= 8 * self.plan.max_round_trip(),
                "a caller got {value} of {key} only {latency:?} after it was created"
            );
        }
    }

    async fn call(&self, process: usize, region: &SimRegion) {
        let keys = self.plan.keys as u64;
        let (is_many, key) = self.random(|random| (random.one_in(4), random.below(keys)));
        let started = Instant::now();
        let result = if is_many {
            let keys: Vec<u64> = (0..keys).collect();
            let create = async |missing: Vec<&u64>| {
                let mut values = Vec::new();
                // All creations of the batch run at the same time.
                let creations: Vec<_> =
                    missing.iter().map(|key| RunningCreation::start(self, process, **key)).collect();
                let (shortest, longest) = self.plan.creation_millis;
                let run_time = self.random(|random| random.millis(shortest, longest));
                sleep(run_time).await;
                values.extend(creations.iter().map(RunningCreation::finish));
                Ok(values)
            };
            let got = region.get_or_create_many_async(&keys, create).await;
            got.map(|values| keys.iter().zip(values).for_each(|(key, value)| self.check_value(*key, value, started)))
        } else {
            let got = region.get_or_create_async(key, || self.create(process, key)).await;
            got.map(|value| self.check_value(key, value, started))
        };
        match result {
            Ok(()) | Err(GetError::Create("simulated failure")) => {}
            Err(GetError::Create(other)) => panic!("{other} is not the error of a simulated creator"),
            Err(GetError::Cache(error)) => {
                let is_wait_timeout = matches!(self.plan.wait_timeout, Some((_, OnWaitTimeout::Fail)))
                    || self.plan.wait_timeout.is_some() && self.plan.max_creations.is_some();
                assert!(
                    is_wait_timeout && error.kind() == ErrorKind::Timeout,
                    "a caller got an unexpected error: {error}"
                );
            }
        }
    }

    async fn caller(&self, process: usize, region: SimRegion) {
        for _ in 0..self.plan.calls {
            let (pause, drops, after) = self.random(|random| {
                let drops = random.below(100) < self.plan.drop_percent;
                (random.millis(0, 30), drops, random.millis(0, 100))
            });
            sleep(pause).await;
            let call = self.call(process, &region);
            if drops {
                let _ = timeout(after, call).await;
            } else {
                call.await;
            }
        }
    }

    fn region(&self) -> SimRegion {
        let plan = &self.plan;
        let mut lock = RedisLock::new().lease(plan.lease);
        if plan.lease_on_miss {
            lock = lock.lease_on_miss();
        }
        let on_lost = if plan.store_if_lost { OnLeaseLost::Store } else { OnLeaseLost::Discard };
        let builder = Region::builder(SimBackend::new(&self.world)).lock(lock.on_lease_lost(on_lost));
        let mut builder = builder.ttl(plan.ttl).max_creations(plan.max_creations);
        if let Some((wait_timeout, then)) = plan.wait_timeout {
            builder = builder.wait_timeout(wait_timeout).on_wait_timeout(then);
        }
        builder.build().unwrap()
    }

    /// Injects faults until all callers are done.
    async fn inject_faults(self: Arc<Self>, mut callers: Vec<Vec<tokio::task::AbortHandle>>) {
        while self.is_over.load(Ordering::Relaxed) == 0 {
            let pause = self.random(|random| random.millis(1, 80));
            sleep(pause).await;
            let plan = &self.plan;
            let mut world = lock(&self.world);
            match world.random.below(6) {
                0 if plan.flushes => world.flush(),
                1 if plan.evicts => world.evict(),
                2 if plan.freezes => {
                    let duration = world.random.millis(1, 2 * RESPONSE_TIMEOUT.as_millis() as u64);
                    world.note(format_args!("the server freezes for {duration:?}"));
                    world.frozen_until = Some(Instant::now() + duration);
                }
                3 if plan.restarts => {
                    let duration = world.random.millis(0, 500);
                    world.note(format_args!("the server restarts and is down for {duration:?}"));
                    world.flush();
                    world.down_until = Some(Instant::now() + duration);
                    for client in world.clients.clone() {
                        client.lose_tracking(&mut world);
                    }
                }
                4 if plan.crashes && callers.len() > 1 => {
                    let process = callers.len() - 1;
                    world.note(format_args!("process {process} crashes"));
                    world.clients[process].crash();
                    drop(world);
                    callers.pop().into_iter().flatten().for_each(|caller| caller.abort());
                }
                5 if plan.loses_tracking => {
                    let process = world.random.below(plan.processes as u64) as usize;
                    let client = Arc::clone(&world.clients[process]);
                    client.lose_tracking(&mut world);
                }
                _ => {}
            }
        }
    }
}

/// Runs one schedule.
///
/// # Panics
///
/// If a guarantee is violated.
async fn run(plan: SimPlan, world: SimShared) {
    let simulation = Arc::new(Simulation { plan, world, observations: Mutex::default(), is_over: AtomicU64::new(0) });
    let plan = &simulation.plan;
    let (mut callers, mut handles) = (Vec::new(), Vec::new());
    for process in 0..plan.processes {
        let region = simulation.region();
        let tasks = (0..plan.callers).map(|_| {
            let (simulation, region) = (Arc::clone(&simulation), region.clone());
            tokio::spawn(async move { simulation.caller(process, region).await })
        });
        let tasks: Vec<_> = tasks.collect();
        handles.push(tasks.iter().map(tokio::task::JoinHandle::abort_handle).collect());
        callers.extend(tasks);
    }
    let fault_task = tokio::spawn(Arc::clone(&simulation).inject_faults(handles));
    // A lost wake-up delays a caller by at most one lease, and each call may have to wait for all
    // others. A caller that takes longer is stuck.
    let calls = (plan.processes * plan.callers * plan.calls) as u32;
    let each = Duration::from_millis(plan.creation_millis.1)
        + 2 * plan.lease
        + 8 * RESPONSE_TIMEOUT
        + 50 * plan.max_round_trip();
    let bound = 3 * calls * each + Duration::from_secs(10);
    for caller in callers {
        match timeout(bound, caller).await {
            Err(_) => panic!("a caller waits forever"),
            Ok(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Ok(_) => {}
        }
    }
    simulation.is_over.store(1, Ordering::Relaxed);
    let _ = fault_task.await;
    // Wait for releases that are in flight, and for unreleased leases to expire.
    let drain_time = if plan.is_fault_free() && plan.drop_percent == 0 {
        8 * plan.max_round_trip()
    } else {
        plan.lease + 4 * RESPONSE_TIMEOUT
    };
    sleep(drain_time).await;
    let mut world = lock(&simulation.world);
    let locks = world.held_locks();
    assert!(locks.is_empty(), "the leases {locks:?} outlive their creators");
    let observations = simulation.observations();
    assert!(observations.running.values().all(|running| *running == 0));
    if plan.is_fault_free() && plan.drop_percent == 0 && plan.ttl.is_none() && plan.wait_timeout.is_none() {
        assert!(
            observations.created.values().all(|created| created.len() == 1),
            "a value that was stored is created again"
        );
    }
}

/// Runs the schedule of a seed and returns its trace.
///
/// # Errors
///
/// The message of the violated assertion, with the seed, the plan and the trace.
fn run_seed(seed: u64) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let mut random = SimRandom(seed);
    let plan = SimPlan::of(&mut random);
    let _inside = runtime.enter();
    let world = Arc::new(Mutex::new(SimWorld::new(random, plan.max_delay, plan.disconnect_permille)));
    let plan_text = format!("{plan:?}");
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(run(plan, Arc::clone(&world)))));
    let trace = lock(&world).trace().to_string();
    match result {
        Ok(()) => Ok(trace),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let message = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked");
            Err(format!("DOGPILE_SEED={seed}: {message}\n{plan_text}\n{trace}"))
        }
    }
}

#[test]
fn random_schedules_violate_no_guarantee() {
    if let Ok(seed) = std::env::var("DOGPILE_SEED") {
        if let Err(failure) = run_seed(seed.parse().expect("a seed is a number")) {
            panic!("{failure}");
        }
        return;
    }
    let count: u64 = std::env::var("DOGPILE_SCHEDULES").map_or(1_000, |count| count.parse().expect("a number"));
    let next = AtomicU64::new(0);
    let failure = Mutex::new(None::<String>);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while failure.lock().unwrap().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        return;
                    }
                    if let Err(message) = run_seed(seed) {
                        failure.lock().unwrap().get_or_insert(message);
                    }
                }
            });
        }
    });
    if let Some(failure) = failure.into_inner().unwrap() {
        panic!("{failure}");
    }
}

#[test]
fn a_seed_replays_its_schedule() {
    let trace = |seed| run_seed(seed).unwrap_or_else(|failure| panic!("{failure}"));
    for seed in 0..20 {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
    assert_ne!(trace(1), trace(2));
}
