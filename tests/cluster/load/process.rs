//! One of the processes: callers of a region that do everything there is to do, and look at each value they get.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dogpile::codec::Full;
use dogpile::keymap::Prefix;
use dogpile::lock::OnLeaseLost;
use dogpile::redis::ReadFrom;
use dogpile::{
    Bucketed, Cluster, Codec, GetError, HashTtl, Invalidate, KeyMap, Msgpack, Raw, RedisLock, Region, Stats,
};
use serde::{Deserialize, Serialize};

use super::dice::Dice;
use super::figures::{End, Report, What, now};
use super::values::{Creation, KEYS, KIND, Name, Space};

/// To connect, and to answer.
const TIMEOUT: Duration = Duration::from_millis(500);

/// How long what a process locked stays locked if it is not released.
pub const LEASE: Duration = Duration::from_secs(5);

/// A call that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(20);

/// How a process is set up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    pub number: usize,
    /// How many processes there are.
    pub of: usize,
    pub urls: Vec<String>,
    pub space: Space,
    /// Callers.
    pub threads: usize,
    pub tasks: usize,
    pub reads_replicas: bool,
    pub lease_on_miss: bool,
    /// What was made under a lease that was lost.
    pub discards: bool,
    /// How long callers pause between calls at most, in microseconds, so that servers find the time for each other.
    pub pause: u64,
}

/// Calls until `wait` ends: what came of it.
pub fn run(settings: &Settings, wait: impl FnOnce()) -> Report {
    let mut lock = RedisLock::new().lease(LEASE);
    if settings.lease_on_miss {
        lock = lock.lease_on_miss();
    }
    match settings.discards {
        true => run_with(settings, lock.on_lease_lost(OnLeaseLost::Discard), wait),
        false => run_with(settings, lock.on_lease_lost(OnLeaseLost::Store), wait),
    }
}

fn run_with(settings: &Settings, lock: RedisLock, wait: impl FnOnce()) -> Report {
    let cluster = Cluster::builder(settings.urls.clone()).connect_timeout(TIMEOUT).response_timeout(TIMEOUT);
    let cluster = cluster.read_from(if settings.reads_replicas { ReadFrom::Replicas } else { ReadFrom::Primaries });
    let cluster = match settings.space {
        Space::Buckets => cluster.hash_ttl(HashTtl::Stamped { longest: Duration::from_secs(10) }),
        _ => cluster,
    };
    let region = Region::builder(cluster.build().unwrap()).lock(lock);
    match settings.space {
        Space::Plain => {
            let region = region.codec(Msgpack::<Full>::new()).stale_after(Duration::from_millis(300));
            call_until(settings, region.build().unwrap(), wait)
        }
        Space::Raw => call_until(settings, region.codec(Raw).build().unwrap(), wait),
        Space::Buckets => {
            let region = region.keys((Bucketed::new(64).others(8), Prefix::new("buckets:")));
            call_until(settings, region.stale_after(Duration::from_secs(1)).build().unwrap(), wait)
        }
    }
}

fn call_until<S, M>(settings: &Settings, region: Locked<S, M>, wait: impl FnOnce()) -> Report
where
    S: Codec<String> + Send + Sync + 'static,
    M: KeyMap + 'static,
{
    let log = Arc::new(Log {
        is_over: AtomicBool::new(false),
        report: Mutex::new(Report { seen: vec![vec![0; KEYS]; settings.of], ..Report::default() }),
        under_way: (0..settings.threads + settings.tasks).map(|_| Mutex::new(None)).collect(),
        calls: AtomicU64::new(0),
    });
    let begun = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let maker = Arc::new(Maker { space: settings.space, process: settings.number, begun });
    let (names, pause, log) = (settings.space.names(), settings.pause, &log);
    let callers = Callers { region, maker: Arc::clone(&maker), names, pause, log: Arc::clone(log) };
    let callers = &Arc::new(callers);
    std::thread::scope(|scope| {
        for number in 0..settings.threads {
            scope.spawn(move || callers.thread(number));
        }
        #[cfg(feature = "tokio")]
        if settings.tasks > 0 {
            scope.spawn(|| callers.tasks(settings.threads..settings.threads + settings.tasks));
        }
        scope.spawn(|| log.watch(|| callers.region.stats()));
        wait();
        log.is_over.store(true, Ordering::SeqCst);
    });
    let mut report = log.report.lock().unwrap();
    report.note_stats(&callers.region.stats());
    report.begun = maker.begun.iter().map(|begun| begun.load(Ordering::SeqCst)).collect();
    std::mem::take(&mut report)
}

type Locked<S, M> = Region<Cluster, S, RedisLock, M>;

/// What creates values.
struct Maker {
    space: Space,
    process: usize,
    /// For each key, how many creations began.
    begun: Vec<AtomicU64>,
}

impl Maker {
    fn begin(&self, key: usize) -> Creation {
        let number = self.begun[key].fetch_add(1, Ordering::SeqCst) + 1;
        Creation { space: self.space, key, process: self.process, number }
    }

    fn begin_all(&self, names: &[&Name]) -> (Vec<Creation>, Duration) {
        let creations: Vec<_> = names.iter().map(|name| self.begin(name.number)).collect();
        let length = creations.iter().map(Creation::length).max().unwrap_or_default();
        (creations, length)
    }

    /// The values of keys, or the number of the call, as an error.
    fn make(&self, names: &[&Name], call: u64) -> Result<Vec<String>, u64> {
        let (creations, length) = self.begin_all(names);
        std::thread::sleep(length);
        end_all(&creations, call)
    }

    #[cfg(feature = "tokio")]
    async fn make_async(&self, names: &[&Name], call: u64) -> Result<Vec<String>, u64> {
        let (creations, length) = self.begin_all(names);
        tokio::time::sleep(length).await;
        end_all(&creations, call)
    }

    /// A value to be set.
    fn value(&self, name: &Name) -> String {
        std::iter::repeat_with(|| self.begin(name.number)).find(|creation| !creation.fails()).unwrap().value()
    }

    fn entries<'n>(&self, names: &'n [Name]) -> Vec<(&'n Name, String)> {
        names.iter().map(|name| (name, self.value(name))).collect()
    }
}

fn end_all(creations: &[Creation], call: u64) -> Result<Vec<String>, u64> {
    let end = |creation: &Creation| if creation.fails() { Err(call) } else { Ok(creation.value()) };
    creations.iter().map(end).collect()
}

/// The only one of its kind.
fn single(values: Vec<String>) -> String {
    values.into_iter().next().unwrap()
}

/// What a caller asks for.
struct Asked {
    call: u64,
    what: What,
    /// At least one, and only that unless it is for many.
    names: Vec<Name>,
    ttl: Duration,
    how: Invalidate,
    /// When its future is dropped.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))]
    patience: Option<Duration>,
}

impl Asked {
    fn numbers(&self) -> Vec<usize> {
        self.names.iter().map(|name| name.number).collect()
    }
}

/// How often each way to call is chosen, of a thousand times.
const CHOICES: [(What, u64); 10] = [
    (What::Get, 250),
    (What::GetMany, 120),
    (What::GetOrCreate, 280),
    (What::GetOrCreateMany, 100),
    (What::GetOrRefresh, 119),
    (What::Set, 60),
    (What::SetMany, 25),
    (What::Delete, 30),
    (What::DeleteMany, 15),
    (What::Invalidate, 1),
];

/// What callers got, in the order of the keys.
type Answer = Result<Vec<Option<String>>, GetError<u64>>;

/// All who call in a process.
struct Callers<S, M> {
    region: Locked<S, M>,
    maker: Arc<Maker>,
    names: Vec<Name>,
    pause: u64,
    log: Arc<Log>,
}

impl<S, M> Callers<S, M>
where
    S: Codec<String> + Send + Sync + 'static,
    M: KeyMap + 'static,
{
    fn choose(&self, dice: &mut Dice) -> Asked {
        let mut at = dice.between(1, 1000);
        let (what, _) = CHOICES
            .into_iter()
            .find(|(_, often)| {
                let is_it = at <= *often;
                at = at.saturating_sub(*often);
                is_it
            })
            .unwrap();
        let is_for_many = matches!(what, What::GetMany | What::GetOrCreateMany | What::SetMany | What::DeleteMany);
        let many = if is_for_many { dice.between(1, 12) } else { 1 };
        // Half of all are for few keys, which many callers want at once.
        let most = if dice.one_in(2) { KEYS - 1 } else { 15 } as u64;
        let first = dice.between(0, most) as usize;
        // Half of the many are of one kind, and have the same hash tag if they have any.
        let is_of_a_kind = dice.one_in(2);
        let other = |at| if is_of_a_kind { (first + at * KIND) % KEYS } else { dice.between(0, most) as usize };
        let numbers: Vec<_> = [first].into_iter().chain((1..many as usize).map(other)).collect();
        Asked {
            call: self.log.calls.fetch_add(1, Ordering::Relaxed),
            what,
            names: numbers.into_iter().map(|number| self.names[number].clone()).collect(),
            ttl: Duration::from_millis(dice.between(200, 3000)),
            how: if dice.one_in(2) { Invalidate::Hard } else { Invalidate::Soft },
            patience: dice.one_in(10).then(|| Duration::from_millis(dice.between(0, 8))),
        }
    }

    /// A caller that is a thread.
    fn thread(&self, number: usize) {
        let mut dice = self.dice(number);
        while !self.log.is_over() {
            let asked = self.choose(&mut dice);
            let begun = self.log.begin(number, &asked);
            let answer = self.ask(&asked);
            self.end(number, &asked, begun, Some(answer));
            std::thread::sleep(self.pause(&mut dice));
        }
    }

    fn ask(&self, asked: &Asked) -> Answer {
        let region = self.region.with_ttl(asked.ttl);
        let (call, names, first) = (asked.call, &asked.names, &asked.names[0]);
        let make = |names: &[&Name]| self.maker.make(names, call);
        Ok(match asked.what {
            What::Get => vec![region.get(first)?],
            What::GetMany => region.get_many(names)?,
            What::GetOrCreate => vec![Some(region.get_or_create(first, || make(&[first]).map(single))?)],
            What::GetOrCreateMany => {
                region.get_or_create_many(names, |missing| make(missing))?.into_iter().map(Some).collect()
            }
            What::GetOrRefresh => {
                let (maker, name) = (Arc::clone(&self.maker), first.clone());
                vec![Some(region.get_or_refresh(first, move || maker.make(&[&name], call).map(single))?)]
            }
            What::Set => region.set(first, &self.maker.value(first)).map(none)?,
            What::SetMany => region.set_many(&self.maker.entries(names)).map(none)?,
            What::Delete => self.region.delete(first).map(none)?,
            What::DeleteMany => self.region.delete_many(names).map(none)?,
            What::Invalidate => {
                self.region.invalidate(asked.how);
                Vec::new()
            }
        })
    }

    /// Notes what a call came to: nothing, if its future was dropped.
    fn end(&self, caller: usize, asked: &Asked, begun: Begun, answer: Option<Answer>) {
        let took = begun.moment.elapsed();
        *self.log.under_way[caller].lock().unwrap() = None;
        // Looked at before others have to wait for the report.
        let values = answer.iter().flatten().flat_map(|values| asked.names.iter().zip(values));
        let values = values.filter_map(|(name, value)| Some((name.number, value.as_ref()?)));
        let seen: Vec<_> = values.map(|(key, value)| self.look(key, value)).collect();
        let mut report = self.log.report.lock().unwrap();
        for creation in seen {
            match creation {
                Ok(creation) => {
                    let seen = &mut report.seen[creation.process][creation.key];
                    *seen = creation.number.max(*seen);
                }
                Err(wrong) => report.note_wrong(format!("{:?}: {wrong}", asked.what)),
            }
        }
        let end = match answer {
            None => End::Dropped,
            Some(Ok(_)) => End::Well,
            Some(Err(GetError::Cache(error))) => End::Failed(error),
            Some(Err(GetError::Create(call))) => {
                if call != asked.call {
                    report.note_wrong(format!("{:?} got the error of another call's creator", asked.what));
                }
                End::Refused
            }
        };
        report.note(asked.what, &asked.numbers(), begun.at, took, &end);
    }

    /// Who made a value that a caller got for a key, or what is wrong with it.
    fn look(&self, key: usize, value: &str) -> Result<Creation, String> {
        let space = self.maker.space;
        Creation::of(value)
            .filter(|creation| (creation.space, creation.key) == (space, key))
            .ok_or_else(|| format!("nobody made for the key {key} of {space:?}: {value:.100} ({} bytes)", value.len()))
    }

    fn pause(&self, dice: &mut Dice) -> Duration {
        Duration::from_micros(dice.between(0, self.pause))
    }

    fn dice(&self, caller: usize) -> Dice {
        Dice::new((self.maker.process * 1000 + caller) as u64)
    }
}

/// Who writes gets nothing.
fn none(_: ()) -> Vec<Option<String>> {
    Vec::new()
}

#[cfg(feature = "tokio")]
impl<S, M> Callers<S, M>
where
    S: Codec<String> + Send + Sync + 'static,
    M: KeyMap + 'static,
{
    /// Callers that are tasks of one runtime.
    fn tasks(self: &Arc<Self>, numbers: std::ops::Range<usize>) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let tasks: Vec<_> = numbers.map(|number| runtime.spawn(Arc::clone(self).task(number))).collect();
        tasks.into_iter().for_each(|task| runtime.block_on(task).unwrap());
    }

    async fn task(self: Arc<Self>, number: usize) {
        let mut dice = self.dice(number);
        while !self.log.is_over() {
            let asked = self.choose(&mut dice);
            let begun = self.log.begin(number, &asked);
            let answer = match asked.patience {
                None => Some(self.ask_async(&asked).await),
                Some(patience) => tokio::time::timeout(patience, self.ask_async(&asked)).await.ok(),
            };
            self.end(number, &asked, begun, answer);
            tokio::time::sleep(self.pause(&mut dice)).await;
        }
    }

    async fn ask_async(&self, asked: &Asked) -> Answer {
        let region = self.region.with_ttl(asked.ttl);
        let (call, names, first) = (asked.call, &asked.names, &asked.names[0]);
        let make = |names: Vec<Name>| {
            let maker = Arc::clone(&self.maker);
            async move { maker.make_async(&names.iter().collect::<Vec<_>>(), call).await }
        };
        let make_one = |name: &Name| {
            let made = make(vec![name.clone()]);
            async move { made.await.map(single) }
        };
        Ok(match asked.what {
            What::Get => vec![region.get_async(first).await?],
            What::GetMany => region.get_many_async(names).await?,
            What::GetOrCreate => vec![Some(region.get_or_create_async(first, || make_one(first)).await?)],
            What::GetOrCreateMany => {
                let make = |missing: Vec<&Name>| make(missing.into_iter().cloned().collect());
                region.get_or_create_many_async(names, make).await?.into_iter().map(Some).collect()
            }
            What::GetOrRefresh => {
                let made = make_one(first);
                vec![Some(region.get_or_refresh_async(first, move || made).await?)]
            }
            What::Set => region.set_async(first, &self.maker.value(first)).await.map(none)?,
            What::SetMany => region.set_many_async(&self.maker.entries(names)).await.map(none)?,
            What::Delete => self.region.delete_async(first).await.map(none)?,
            What::DeleteMany => self.region.delete_many_async(names).await.map(none)?,
            What::Invalidate => {
                self.region.invalidate(asked.how);
                Vec::new()
            }
        })
    }
}

/// What callers share that is the same for all kinds of regions.
struct Log {
    is_over: AtomicBool,
    report: Mutex<Report>,
    /// Of each caller, since when, and what it asks for.
    under_way: Vec<Mutex<Option<(Instant, String)>>>,
    calls: AtomicU64,
}

/// When a call began, by both clocks.
struct Begun {
    at: u64,
    moment: Instant,
}

impl Log {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn begin(&self, caller: usize, asked: &Asked) -> Begun {
        let begun = Begun { at: now(), moment: Instant::now() };
        let what = format!("{:?} of {:?}", asked.what, asked.numbers());
        *self.under_way[caller].lock().unwrap() = Some((begun.moment, what));
        begun
    }

    /// Measures each second, and ends the process if a call hangs.
    fn watch(&self, stats: impl Fn() -> Stats) {
        let mut next = Instant::now();
        while !self.is_over() || self.under_way.iter().any(|call| call.lock().unwrap().is_some()) {
            if Instant::now() >= next {
                next += Duration::from_secs(1);
                self.report.lock().unwrap().note_sample(&stats());
            }
            for call in &self.under_way {
                if let Some((begun, what)) = &*call.lock().unwrap()
                    && begun.elapsed() > LONGEST
                {
                    let mut report = self.report.lock().unwrap();
                    report.note_wrong(format!("a call hangs: {what}"));
                    super::say(&report);
                    std::process::exit(1);
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.report.lock().unwrap().note_sample(&stats());
    }
}
