//! A region as one process has it, on a connection of its own; its callers, which are threads or tasks; and its
//! creators, which say what they do.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dogpile::codec::Full;
use dogpile::freshness::LocalInvalidation;
use dogpile::keymap::Identity;
use dogpile::lock::OnLeaseLost;
use dogpile::{GetError, Key, Msgpack, Redis, RedisLock, Region, Stats};
use serde::{Deserialize, Serialize};

use crate::dice::Dice;
use crate::ledger::Ledger;

/// What callers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Face {
    Threads,
    #[cfg(feature = "tokio")]
    Tasks,
}

impl Face {
    #[cfg(feature = "tokio")]
    pub const ALL: [Face; 2] = [Face::Threads, Face::Tasks];
    #[cfg(not(feature = "tokio"))]
    pub const ALL: [Face; 1] = [Face::Threads];

    /// Each in turn.
    pub fn of(number: usize) -> Self {
        Self::ALL[number % Self::ALL.len()]
    }
}

/// What is done with a value whose lease was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    Store,
    Discard,
}

impl Policy {
    pub const ALL: [Policy; 2] = [Policy::Store, Policy::Discard];
}

/// How a process is set up. Times are in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    pub name: String,
    pub url: String,
    pub face: Face,
    pub policy: Policy,
    pub lease: u64,
    pub lease_on_miss: bool,
    /// To connect, and to answer.
    pub timeout: u64,
    /// How long creators take, at least and at most.
    pub creator: (u64, u64),
    /// One of so many creators fails; none of zero.
    pub fails_one_in: u64,
    pub stale_after: Option<u64>,
    pub ttl: Option<u64>,
    pub seed: u64,
}

impl Settings {
    pub fn new(name: impl Into<String>, url: &str, face: Face) -> Self {
        Settings {
            name: name.into(),
            url: url.to_string(),
            face,
            policy: Policy::Store,
            lease: 10_000,
            lease_on_miss: false,
            timeout: 1_000,
            creator: (0, 0),
            fails_one_in: 0,
            stale_after: None,
            ttl: None,
            seed: 0,
        }
    }
}

/// How a caller asks.
#[derive(Clone, Copy, Debug)]
pub enum How {
    Create,
    Refresh,
    /// For many keys at once.
    Many,
}

/// Hears what creators and callers say.
pub type Note = Arc<dyn Fn(&str) + Send + Sync>;

/// A region as one process has it.
pub struct Process {
    calls: Box<dyn Calls>,
    maker: Arc<Maker>,
    next_call: AtomicU64,
    note: Note,
}

impl Process {
    pub fn open(settings: &Settings, note: Note) -> Self {
        let maker = Arc::new(Maker {
            name: settings.name.clone(),
            length: settings.creator,
            fails_one_in: settings.fails_one_in,
            dice: Mutex::new(Dice::new(settings.seed)),
            running: Mutex::default(),
            next: AtomicU64::new(0),
            note: Arc::clone(&note),
        });
        let calls = match settings.policy {
            Policy::Store => calls(settings, OnLeaseLost::Store),
            Policy::Discard => calls(settings, OnLeaseLost::Discard),
        };
        Process { calls, maker, next_call: AtomicU64::new(0), note }
    }

    /// One that says everything to a ledger.
    pub fn noted(settings: &Settings, ledger: &Arc<Ledger>) -> Self {
        let (ledger, name) = (Arc::clone(ledger), settings.name.clone());
        Self::open(settings, Arc::new(move |what| ledger.note(&name, what)))
    }

    /// One caller asks for a key, and says what it got.
    pub fn call(&self, key: &str) {
        self.ask(How::Create, &[key.to_string()]);
    }

    /// So many callers ask for a key at once.
    pub fn callers(&self, many: usize, key: &str) {
        std::thread::scope(|scope| (0..many).for_each(|_| drop(scope.spawn(|| self.call(key)))));
    }

    /// One caller asks for keys, for one of them unless it is for many, and says what it got.
    pub fn ask(&self, how: How, keys: &[String]) {
        let call = self.next_call.fetch_add(1, Ordering::Relaxed);
        let noted = |what: String| (self.note)(&what);
        match self.calls.ask(how, keys, call, &self.maker) {
            Ok(values) => keys.iter().zip(values).for_each(|(key, value)| noted(format!("got {key} {value}"))),
            Err(GetError::Create(failed)) if failed == call => noted(format!("refused {}", keys[0])),
            Err(GetError::Create(failed)) => noted(format!("error {} that of call {failed}, not of {call}", keys[0])),
            Err(GetError::Cache(error)) => noted(format!("error {} {error}", keys[0])),
        }
    }

    pub fn stats(&self) -> Stats {
        self.calls.stats()
    }

    /// How often the server did not do what it was asked.
    pub fn failures(&self) -> u64 {
        let stats = self.stats();
        stats.failed_reads + stats.failed_locks + stats.failed_writes
    }

    /// Whether the server answers.
    pub fn is_reached(&self) -> bool {
        self.calls.is_reached()
    }
}

/// What creates values, and says so.
struct Maker {
    name: String,
    length: (u64, u64),
    fails_one_in: u64,
    dice: Mutex<Dice>,
    running: Mutex<HashSet<String>>,
    next: AtomicU64,
    note: Note,
}

/// A creator that runs.
struct Making<'m> {
    maker: &'m Maker,
    key: String,
    call: u64,
    length: Duration,
}

impl Maker {
    fn begin(&self, key: &str, call: u64) -> Making<'_> {
        (self.note)(&format!("began {key}"));
        if !self.running.lock().unwrap().insert(key.to_string()) {
            (self.note)(&format!("twice {key}"));
        }
        let length = Duration::from_millis(self.dice.lock().unwrap().between(self.length.0, self.length.1));
        Making { maker: self, key: key.to_string(), call, length }
    }

    fn make(&self, key: &str, call: u64) -> Result<String, u64> {
        let making = self.begin(key, call);
        std::thread::sleep(making.length);
        making.end()
    }

    #[cfg(feature = "tokio")]
    async fn make_async(&self, key: &str, call: u64) -> Result<String, u64> {
        let making = self.begin(key, call);
        tokio::time::sleep(making.length).await;
        making.end()
    }
}

impl Making<'_> {
    /// The value, which nobody else makes, or the number of the call, as an error.
    fn end(self) -> Result<String, u64> {
        let Making { maker, key, call, .. } = &self;
        if maker.dice.lock().unwrap().one_in(maker.fails_one_in) {
            (maker.note)(&format!("failed {key}"));
            return Err(*call);
        }
        let value = format!("{key}#{}.{}", maker.name, maker.next.fetch_add(1, Ordering::Relaxed));
        // Written down first: whoever gets the value, it is known that it was made.
        (maker.note)(&format!("made {key} {value}"));
        Ok(value)
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.maker.running.lock().unwrap().remove(&self.key);
    }
}

/// A region of any policy, with callers of either face.
trait Calls: Send + Sync {
    fn ask(&self, how: How, keys: &[String], call: u64, maker: &Arc<Maker>) -> Result<Vec<String>, GetError<u64>>;

    fn stats(&self) -> Stats;

    fn is_reached(&self) -> bool;
}

type Locked = Region<Redis, Msgpack<Full>, RedisLock, Identity, LocalInvalidation>;

fn calls(settings: &Settings, on_lost: OnLeaseLost) -> Box<dyn Calls> {
    let (lease, timeout) = (Duration::from_millis(settings.lease), Duration::from_millis(settings.timeout));
    let redis = Redis::builder(&settings.url).connect_timeout(timeout).response_timeout(timeout).build().unwrap();
    let mut lock = RedisLock::new().lease(lease);
    if settings.lease_on_miss {
        lock = lock.lease_on_miss();
    }
    let builder = Region::builder(redis).codec(Msgpack::<Full>::default()).lock(lock.on_lease_lost(on_lost));
    let mut builder = builder.ttl(settings.ttl.map(Duration::from_millis));
    if let Some(age) = settings.stale_after {
        builder = builder.stale_after(Duration::from_millis(age));
    }
    let region = builder.build().unwrap();
    match settings.face {
        Face::Threads => Box::new(Threads(region)),
        #[cfg(feature = "tokio")]
        Face::Tasks => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            Box::new(Tasks { region, runtime })
        }
    }
}

/// The key of a name; `hash/field` is a field.
fn key(name: &str) -> Key<'_> {
    match name.split_once('/') {
        Some((hash, field)) => Key::from((hash, field)),
        None => Key::from(name),
    }
}

struct Threads(Locked);

impl Calls for Threads {
    fn ask(&self, how: How, keys: &[String], call: u64, maker: &Arc<Maker>) -> Result<Vec<String>, GetError<u64>> {
        let Threads(region) = self;
        let name = keys[0].clone();
        match how {
            How::Create => region.get_or_create(key(&keys[0]), || maker.make(&name, call)).map(|value| vec![value]),
            How::Refresh => {
                let maker = Arc::clone(maker);
                region.get_or_refresh(key(&keys[0]), move || maker.make(&name, call)).map(|value| vec![value])
            }
            How::Many => {
                let keys: Vec<_> = keys.iter().map(|name| Named(name.clone())).collect();
                region.get_or_create_many(&keys, |missing| {
                    let begun: Vec<_> = missing.iter().map(|Named(name)| maker.begin(name, call)).collect();
                    std::thread::sleep(begun[0].length);
                    begun.into_iter().map(Making::end).collect()
                })
            }
        }
    }

    fn stats(&self) -> Stats {
        self.0.stats()
    }

    fn is_reached(&self) -> bool {
        self.0.backend().ping().is_ok()
    }
}

/// A key by its name.
struct Named(String);

impl dogpile::AsKey for Named {
    fn as_key<'k>(&'k self, _: &'k mut dogpile::keymap::Scratch) -> Key<'k> {
        key(&self.0)
    }
}

#[cfg(feature = "tokio")]
struct Tasks {
    region: Locked,
    runtime: tokio::runtime::Runtime,
}

#[cfg(feature = "tokio")]
impl Calls for Tasks {
    fn ask(&self, how: How, keys: &[String], call: u64, maker: &Arc<Maker>) -> Result<Vec<String>, GetError<u64>> {
        let (region, keys, maker) = (self.region.clone(), keys.to_vec(), Arc::clone(maker));
        let name = keys[0].clone();
        let one = |value| vec![value];
        // A task of the runtime, as a server would have one for each request.
        let task = match how {
            How::Create => self.runtime.spawn(async move {
                region.get_or_create_async(key(&name), || maker.make_async(&name, call)).await.map(one)
            }),
            How::Refresh => self.runtime.spawn(async move {
                let create = async move || maker.make_async(&name, call).await;
                region.get_or_refresh_async(key(&keys[0]), create).await.map(one)
            }),
            How::Many => self.runtime.spawn(async move {
                let keys: Vec<_> = keys.into_iter().map(Named).collect();
                let create = |missing: Vec<&Named>| {
                    let missing: Vec<_> = missing.into_iter().map(|Named(name)| name.clone()).collect();
                    let maker = Arc::clone(&maker);
                    async move {
                        let begun: Vec<_> = missing.iter().map(|name| maker.begin(name, call)).collect();
                        tokio::time::sleep(begun[0].length).await;
                        begun.into_iter().map(Making::end).collect()
                    }
                };
                region.get_or_create_many_async(&keys, create).await
            }),
        };
        self.runtime.block_on(task).unwrap()
    }

    fn stats(&self) -> Stats {
        self.region.stats()
    }

    fn is_reached(&self) -> bool {
        self.runtime.block_on(self.region.backend().ping_async()).is_ok()
    }
}

/// Fails unless locks are of use: of all these processes one creates a missing value. A round in which a server answered
/// too late, because the machine is busy, says nothing and is made again.
pub fn one_of_all_creates(processes: &[Process], ledger: &Ledger, key: &str) {
    for round in 0..5 {
        let key = format!("{key}-{round}");
        let failures = || processes.iter().map(Process::failures).sum::<u64>();
        let before = failures();
        std::thread::scope(|scope| {
            for process in processes {
                scope.spawn(|| process.callers(2, &key));
            }
        });
        let created = ledger.count(&format!("made {key}"));
        if created == 1 {
            return;
        }
        assert!(failures() > before, "{created} of all processes created {key}, and the server did all it was asked");
    }
    panic!("in no round the server did all that it was asked");
}
