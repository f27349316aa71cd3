//! Proof by simulation: regions, their lines, locks and renewals run against a simulated server, under a clock that jumps
//! to whatever comes next, through schedules that chance makes: delays, orders, losses, crashes, leases that end.
//!
//! `DOGPILE_SCHEDULES` says how many are tried. A schedule that fails is printed with its seed, and
//! `DOGPILE_SEED=seed cargo test --all-features --lib simulation` runs it again, the same.

mod server;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::error::{ErrorKind, GetError};
use crate::key::Key;
use crate::lock::RedisLock;
use crate::lock::on_lost::{AfterLoss, LostLease};
use crate::region::AfterPatience;
use crate::region::Region;
use crate::simulation::server::{Handle, RESPONSE, Shared, World, lock};

/// Numbers that follow from a seed.
#[derive(Clone)]
struct Random(u64);

impl Random {
    /// The next one of splitmix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.next() % most.max(1)
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// What may happen in a schedule.
#[derive(Clone, Debug)]
struct Plan {
    processes: usize,
    callers: usize,
    calls: usize,
    keys: usize,
    delay: Duration,
    lease: Duration,
    /// How long creators take, in milliseconds.
    creators: (u64, u64),
    ttl: Option<Duration>,
    reads_and_locks: bool,
    stores_when_lost: bool,
    patience: Option<(Duration, AfterPatience)>,
    max_creators: Option<usize>,
    /// Of a hundred creators so many fail, and of a hundred calls so many are dropped on their way.
    fails: u64,
    drops: u64,
    /// Of a thousand requests so many break their connection.
    cuts: u64,
    flushes: bool,
    evicts: bool,
    freezes: bool,
    restarts: bool,
    crashes: bool,
    deafens: bool,
}

impl Plan {
    fn of(random: &mut Random) -> Self {
        let calm = random.one_in(3);
        let mut may = |many| !calm && random.one_in(many);
        let (flushes, evicts, freezes, restarts) = (may(3), may(4), may(4), may(5));
        let (crashes, deafens, cuts, hurried) = (may(4), may(3), may(3), may(6));
        let lease = random.one_of(&[200, 1000, 10_000]);
        Plan {
            processes: 1 + random.below(3) as usize,
            callers: 1 + random.below(3) as usize,
            calls: 1 + random.below(3) as usize,
            keys: 1 + random.below(2) as usize,
            delay: random.millis(0, 6),
            lease: Duration::from_millis(lease),
            creators: random.one_of(&[(0, 0), (0, 20), (30, 60), (lease / 2, lease * 2)]),
            ttl: random.one_of(&[None, Some(20), Some(200)]).map(Duration::from_millis),
            reads_and_locks: random.one_in(2),
            stores_when_lost: random.one_in(2),
            patience: hurried.then(|| {
                let what = random.one_of(&[AfterPatience::Fail, AfterPatience::Create]);
                (random.millis(1, 100), what)
            }),
            max_creators: random.one_in(5).then_some(1),
            fails: if random.one_in(2) { 0 } else { 30 },
            drops: if random.one_in(2) { 0 } else { 30 },
            cuts: if cuts { 50 } else { 0 },
            flushes,
            evicts,
            freezes,
            restarts,
            crashes,
            deafens,
        }
    }

    /// Nothing goes wrong but creators, and no lease ends before it is released.
    fn is_calm(&self) -> bool {
        let faults = [self.flushes, self.evicts, self.freezes, self.restarts, self.crashes, self.deafens];
        self.cuts == 0 && !faults.contains(&true)
    }

    /// No message and its answer take longer, while nobody is frozen.
    fn turn(&self) -> Duration {
        2 * (self.delay + Duration::from_millis(2))
    }
}

/// Says what is to happen to a value whose lease was lost.
struct Policy(bool);

impl LostLease for Policy {
    fn lost(&self, _: Key<'_>) -> AfterLoss {
        if self.0 { AfterLoss::Store } else { AfterLoss::Discard }
    }
}

/// What creators did.
#[derive(Default)]
struct Facts {
    /// The values that were made, by key, and when their creators were done.
    made: BTreeMap<u64, BTreeMap<u64, Instant>>,
    /// How many creators run, by process and key.
    running: BTreeMap<(usize, u64), usize>,
    /// How many creators of a process and key began.
    begun: BTreeMap<(usize, u64), u64>,
    next: u64,
}

struct Schedule {
    plan: Plan,
    world: Shared,
    facts: Mutex<Facts>,
    over: AtomicU64,
}

type Of = Region<Handle, crate::codec::Msgpack, RedisLock<Policy>>;

/// A creator that runs. Dropped, it runs no more.
struct Runs<'s> {
    schedule: &'s Schedule,
    process: usize,
    key: u64,
}

impl<'s> Runs<'s> {
    fn begin(schedule: &'s Schedule, process: usize, key: u64) -> Self {
        let (mut world, mut facts) = (lock(&schedule.world), schedule.facts());
        world.note(format_args!("process {process} creates {key}"));
        let plan = &schedule.plan;
        let running = facts.running.entry((process, key)).or_default();
        *running += 1;
        assert!(*running == 1 || plan.patience.is_some(), "two creators of {key} run in process {process}");
        let begun = facts.begun.entry((process, key)).or_default();
        *begun += 1;
        let begun = *begun;
        let granted = world.granted.get(&(process, format!("_lok.{key}").into_bytes())).copied().unwrap_or(0);
        let may_lack_lock = plan.patience.is_some() || world.failed.contains(&process);
        assert!(may_lack_lock || begun <= granted, "process {process} creates {key} without a lease");
        if plan.is_calm() && plan.patience.is_none() {
            let all: usize = facts.running.iter().filter(|((_, other), _)| *other == key).map(|(_, many)| many).sum();
            assert_eq!(all, 1, "two processes create {key} under live leases");
        }
        Runs { schedule, process, key }
    }

    fn made(&self) -> u64 {
        let mut facts = self.schedule.facts();
        facts.next += 1;
        let value = facts.next;
        facts.made.entry(self.key).or_default().insert(value, Instant::now());
        value
    }
}

impl Drop for Runs<'_> {
    fn drop(&mut self) {
        *self.schedule.facts().running.entry((self.process, self.key)).or_default() -= 1;
    }
}

impl Schedule {
    fn random<T>(&self, choose: impl FnOnce(&mut Random) -> T) -> T {
        choose(&mut lock(&self.world).random)
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // A caller that found something wrong says so; the others go on.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn create(&self, process: usize, key: u64) -> Result<u64, &'static str> {
        let runs = Runs::begin(self, process, key);
        let (from, to) = self.plan.creators;
        let (takes, fails) = self.random(|random| (random.millis(from, to), random.below(100) < self.plan.fails));
        if !takes.is_zero() {
            sleep(takes).await;
        }
        if fails { Err("it failed") } else { Ok(runs.made()) }
    }

    /// Checks what a caller got, and that he did not wait for what had been there.
    fn got(&self, key: u64, value: u64, begun: Instant) {
        let facts = self.facts();
        let made = facts.made.get(&key).and_then(|made| made.get(&value)).copied();
        let Some(made) = made else { panic!("the value {value} of {key} was made by no creator of it") };
        if self.plan.is_calm()
            && self.plan.patience.is_none()
            && self.plan.max_creators.is_none()
            && self.plan.keys == 1
        {
            let late = begun.max(made).elapsed();
            // Storing, the push, and reading; and as much again for who came in between.
            assert!(late <= 8 * self.plan.turn(), "a caller got {value} of {key} only {late:?} after it was made");
        }
    }

    async fn call(&self, process: usize, region: &Of) {
        let keys = self.plan.keys as u64;
        let (many, key) = self.random(|random| (random.one_in(4), random.below(keys)));
        let begun = Instant::now();
        let result = if many {
            let keys: Vec<u64> = (0..keys).collect();
            let create = async |missing: Vec<&u64>| {
                let mut values = Vec::new();
                // All of them run at once.
                let runs: Vec<_> = missing.iter().map(|key| Runs::begin(self, process, **key)).collect();
                let (from, to) = self.plan.creators;
                let takes = self.random(|random| random.millis(from, to));
                sleep(takes).await;
                values.extend(runs.iter().map(Runs::made));
                Ok(values)
            };
            let got = region.get_or_create_many_async(&keys, create).await;
            got.map(|values| keys.iter().zip(values).for_each(|(key, value)| self.got(*key, value, begun)))
        } else {
            let got = region.get_or_create_async(key, || self.create(process, key)).await;
            got.map(|value| self.got(key, value, begun))
        };
        match result {
            Ok(()) | Err(GetError::Create("it failed")) => {}
            Err(GetError::Create(other)) => panic!("{other} is no error of a creator"),
            Err(GetError::Cache(error)) => {
                let is_patience = matches!(self.plan.patience, Some((_, AfterPatience::Fail)))
                    || self.plan.patience.is_some() && self.plan.max_creators.is_some();
                assert!(is_patience && error.kind() == ErrorKind::Timeout, "a caller got an error: {error}");
            }
        }
    }

    async fn caller(&self, process: usize, region: Of) {
        for _ in 0..self.plan.calls {
            let (pause, drops, after) = self.random(|random| {
                let drops = random.below(100) < self.plan.drops;
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

    fn region(&self) -> Of {
        let plan = &self.plan;
        let mut lock = RedisLock::new().lease(plan.lease);
        if plan.reads_and_locks {
            lock = lock.lease_on_miss();
        }
        let builder = Region::builder(Handle::new(&self.world)).lock(lock.when_lost(Policy(plan.stores_when_lost)));
        let mut builder = builder.ttl(plan.ttl).max_creators(plan.max_creators);
        if let Some((patience, what)) = plan.patience {
            builder = builder.patience(patience).after_patience(what);
        }
        builder.build().unwrap()
    }

    /// Lets things go wrong, until all calls have ended.
    async fn fate(self: Arc<Self>, mut callers: Vec<Vec<tokio::task::AbortHandle>>) {
        while self.over.load(Ordering::Relaxed) == 0 {
            let pause = self.random(|random| random.millis(1, 80));
            sleep(pause).await;
            let plan = &self.plan;
            let mut world = lock(&self.world);
            match world.random.below(6) {
                0 if plan.flushes => world.flush(),
                1 if plan.evicts => world.evict(),
                2 if plan.freezes => {
                    let long = world.random.millis(1, 2 * RESPONSE.as_millis() as u64);
                    world.note(format_args!("the server is frozen for {long:?}"));
                    world.frozen_until = Some(Instant::now() + long);
                }
                3 if plan.restarts => {
                    let long = world.random.millis(0, 500);
                    world.note(format_args!("the server is restarted, which takes {long:?}"));
                    world.flush();
                    world.down_until = Some(Instant::now() + long);
                    for link in world.links.clone() {
                        link.cut(&mut world);
                    }
                }
                4 if plan.crashes && callers.len() > 1 => {
                    let process = callers.len() - 1;
                    world.note(format_args!("process {process} crashes"));
                    world.links[process].die();
                    drop(world);
                    callers.pop().into_iter().flatten().for_each(|caller| caller.abort());
                }
                5 if plan.deafens => {
                    let process = world.random.below(plan.processes as u64) as usize;
                    let link = Arc::clone(&world.links[process]);
                    link.cut(&mut world);
                }
                _ => {}
            }
        }
    }
}

/// Runs one schedule. What is wrong panics.
async fn run(plan: Plan, world: Shared) {
    let schedule = Arc::new(Schedule { plan, world, facts: Mutex::default(), over: AtomicU64::new(0) });
    let plan = &schedule.plan;
    let (mut callers, mut handles) = (Vec::new(), Vec::new());
    for process in 0..plan.processes {
        let region = schedule.region();
        let of_process = (0..plan.callers).map(|_| {
            let (schedule, region) = (Arc::clone(&schedule), region.clone());
            tokio::spawn(async move { schedule.caller(process, region).await })
        });
        let of_process: Vec<_> = of_process.collect();
        handles.push(of_process.iter().map(tokio::task::JoinHandle::abort_handle).collect());
        callers.extend(of_process);
    }
    let fate = tokio::spawn(Arc::clone(&schedule).fate(handles));
    // Every caller ends: a wake-up that is lost costs a lease at most, and no more than each call may wait for all others.
    let calls = (plan.processes * plan.callers * plan.calls) as u32;
    let each = Duration::from_millis(plan.creators.1) + 2 * plan.lease + 8 * RESPONSE + 50 * plan.turn();
    let bound = 3 * calls * each + Duration::from_secs(10);
    for caller in callers {
        match timeout(bound, caller).await {
            Err(_) => panic!("a caller waits for ever"),
            Ok(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Ok(_) => {}
        }
    }
    schedule.over.store(1, Ordering::Relaxed);
    let _ = fate.await;
    // Releases are on their way, and what was not released ends by itself.
    let rest = if plan.is_calm() && plan.drops == 0 { 8 * plan.turn() } else { plan.lease + 4 * RESPONSE };
    sleep(rest).await;
    let mut world = lock(&schedule.world);
    let locks = world.locks();
    assert!(locks.is_empty(), "{locks:?} outlive their creators");
    let facts = schedule.facts();
    assert!(facts.running.values().all(|running| *running == 0));
    if plan.is_calm() && plan.drops == 0 && plan.ttl.is_none() && plan.patience.is_none() {
        assert!(facts.made.values().all(|made| made.len() == 1), "what was there was created once more");
    }
}

/// Runs the schedule of a seed: what happened, and with its plan if something is wrong.
fn try_seed(seed: u64) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let mut random = Random(seed);
    let plan = Plan::of(&mut random);
    let _inside = runtime.enter();
    let world = Arc::new(Mutex::new(World::new(random, plan.delay, plan.cuts)));
    let shown = format!("{plan:?}");
    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(run(plan, Arc::clone(&world)))));
    let trace = lock(&world).trace().to_string();
    match ran {
        Ok(()) => Ok(trace),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let what = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
            Err(format!("DOGPILE_SEED={seed}: {what}\n{shown}\n{trace}"))
        }
    }
}

#[test]
fn no_schedule_breaks_a_promise() {
    if let Ok(seed) = std::env::var("DOGPILE_SEED") {
        if let Err(failure) = try_seed(seed.parse().expect("a seed is a number")) {
            panic!("{failure}");
        }
        return;
    }
    let many: u64 = std::env::var("DOGPILE_SCHEDULES").map_or(1_000, |many| many.parse().expect("a number"));
    let next = AtomicU64::new(0);
    let failure = Mutex::new(None::<String>);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while failure.lock().unwrap().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= many {
                        return;
                    }
                    if let Err(what) = try_seed(seed) {
                        failure.lock().unwrap().get_or_insert(what);
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
fn schedules_are_replayed() {
    let trace = |seed| try_seed(seed).unwrap_or_else(|failure| panic!("{failure}"));
    for seed in 0..20 {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
    assert_ne!(trace(1), trace(2));
}
