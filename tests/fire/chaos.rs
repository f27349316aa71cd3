//! Everything at once and at random: processes that call all the time, a server that is flushed, frozen, killed and
//! started again, and processes that are killed and started.
//!
//! `DOGPILE_FIRE_SEED` makes the same choices again, and `DOGPILE_FIRE_SECONDS` says for how long.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::child::{Child, Orders, say};
use crate::dice::Dice;
use crate::ledger::{Ledger, wrong};
use crate::process::{Face, How, Policy, Process, Settings};
use crate::support::{Server, eventually};

const PROCESSES: usize = 8;
const CALLERS: u64 = 4;
const KEYS: [&str; 6] = ["a", "b", "c", "d", "hash/e", "hash/f"];

const LEASE: u64 = 1_000;
const TIMEOUT: u64 = 300;

/// How long a call may take. Who waits for a key may wait for a lease that nobody holds, then for a timeout to read and
/// one to store, then for a creator, a few times over on a machine that is busy: creators fail, and the server freezes
/// again.
const LONGEST: Duration = Duration::from_secs(15);

/// What is worth a word.
const SLOW: Duration = Duration::from_secs(2);

/// How long there is peace at the end, until everybody uses the server and its locks again, and how long that is looked
/// at.
const RECOVERY: Duration = Duration::from_secs(3);
const PEACE: Duration = Duration::from_secs(2);

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{variable} is {value}")))
}

/// Since 1970, in microseconds, by the clock that all processes read.
fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()
}

// One of the processes.

/// Calls all the time, until nobody is there to tell it anything any more. With the line `peace` it notes how often the
/// server failed it until then.
pub fn roam(settings: &Settings, file: &Path) {
    let file = Mutex::new(OpenOptions::new().create(true).append(true).open(file).unwrap());
    // Each line is written at once and as a whole: what was said is there even if this process is killed.
    let note = move |what: &str| file.lock().unwrap().write_all(format!("{what} @{}\n", now()).as_bytes()).unwrap();
    let note: crate::process::Note = Arc::new(note);
    let process = Process::open(settings, Arc::clone(&note));
    // With leases that were lost because this process stood still for so long.
    let troubles = || process.failures() + process.stats().lost_leases;
    let is_over = AtomicBool::new(false);
    let calls: Vec<Mutex<Option<(Instant, String)>>> = (0..CALLERS).map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for (caller, call) in calls.iter().enumerate() {
            let (process, is_over, note) = (&process, &is_over, &note);
            let mut dice = Dice::new(settings.seed + 1 + caller as u64);
            scope.spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
                    let (how, keys) = choose(&mut dice);
                    let (begun, what) = (Instant::now(), format!("{how:?} {keys:?}"));
                    *call.lock().unwrap() = Some((begun, what.clone()));
                    process.ask(how, &keys);
                    *call.lock().unwrap() = None;
                    if begun.elapsed() > SLOW {
                        note(&format!("slow {:?} {what}", begun.elapsed()));
                    }
                    std::thread::sleep(Duration::from_millis(dice.between(0, 20)));
                }
            });
        }
        // Whether any call hangs.
        let watches = scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) || calls.iter().any(|call| call.lock().unwrap().is_some()) {
                for call in &calls {
                    if let Some((begun, what)) = &*call.lock().unwrap()
                        && begun.elapsed() > LONGEST
                    {
                        note(&format!("hangs {what}"));
                        say("hangs");
                        std::process::exit(1);
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        say("ready");
        for line in std::io::stdin().lines().map_while(Result::ok) {
            note(&format!("{line} {} {:?}", troubles(), process.stats()));
        }
        is_over.store(true, Ordering::SeqCst);
        watches.join().unwrap();
    });
    note(&format!("over {} {:?}", troubles(), process.stats()));
    // Of the background, nothing is waited for.
    std::process::exit(0);
}

/// What a caller asks for.
fn choose(dice: &mut Dice) -> (How, Vec<String>) {
    let first = dice.between(0, KEYS.len() as u64 - 1) as usize;
    let how = [How::Create, How::Create, How::Refresh, How::Many][dice.between(0, 3) as usize];
    let many = if matches!(how, How::Many) { dice.between(1, 4) as usize } else { 1 };
    (how, (0..many).map(|at| KEYS[(first + at) % KEYS.len()].to_string()).collect())
}

// The process that leads.

struct Chaos {
    dice: Dice,
    server: Server,
    dir: PathBuf,
    ledger: Arc<Ledger>,
    children: Vec<(String, Child)>,
    started: usize,
    begun: Instant,
    /// Whether there is no server.
    is_dead: bool,
    /// What was done, for whoever looks for the cause of a failure.
    story: File,
}

impl Chaos {
    fn start_child(&mut self) -> (String, Child) {
        let number = self.started;
        self.started += 1;
        let name = format!("p{number}");
        let settings = Settings {
            // Half of them threads; faces, policies and ways to read in all combinations.
            policy: Policy::ALL[(number / 2) % 2],
            lease_on_miss: number % 4 >= 2,
            lease: LEASE,
            timeout: TIMEOUT,
            creator: (1, 150),
            fails_one_in: 8,
            stale_after: Some(120),
            ttl: Some(400),
            seed: self.dice.roll() >> 1,
            ..Settings::new(&name, &self.server.url(), Face::of(number))
        };
        let child = Child::with(&Orders::Roam(settings, self.dir.join(&name)), &name, &self.ledger);
        (name, child)
    }

    fn tell(&mut self, what: &str) {
        let line = format!("{:?} {what} @{}\n", self.begun.elapsed(), now());
        self.story.write_all(line.as_bytes()).unwrap();
    }

    fn pause(&mut self, least: u64, most: u64) {
        std::thread::sleep(Duration::from_millis(self.dice.between(least, most)));
    }

    /// Does one thing of those that go wrong.
    fn act(&mut self) {
        match self.dice.between(0, 10) {
            0..=2 if !self.is_dead => {
                self.tell("flush");
                self.server.ask(&["FLUSHALL"]);
            }
            3 if !self.is_dead => {
                self.tell("hang up");
                self.server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
            }
            4 | 5 if !self.is_dead => {
                self.tell("freeze");
                self.server.signal("STOP");
                // Shorter and longer than the timeouts.
                if self.dice.one_in(2) {
                    self.pause(20, TIMEOUT / 2)
                } else {
                    self.pause(TIMEOUT, 5 * TIMEOUT)
                }
                // Some processes and servers die meanwhile.
                if self.dice.one_in(3) {
                    self.kill_child();
                }
                if self.dice.one_in(5) {
                    self.stop();
                } else {
                    self.server.signal("CONT");
                }
                self.tell("thaw");
            }
            6 | 7 => {
                if self.is_dead {
                    self.revive();
                } else {
                    self.stop();
                    self.pause(0, 4 * TIMEOUT);
                }
            }
            8 | 9 => self.kill_child(),
            10 => {
                // One that holds a lock loses it meanwhile.
                let at = self.any_child();
                self.tell(&format!("freeze {}", self.children[at].0));
                self.children[at].1.signal("STOP");
                self.pause(20, 2 * LEASE);
                self.children[at].1.signal("CONT");
                self.tell(&format!("thaw {}", self.children[at].0));
            }
            _ => self.revive(),
        }
        self.pause(0, 400);
    }

    fn any_child(&mut self) -> usize {
        self.dice.between(0, self.children.len() as u64 - 1) as usize
    }

    /// Kills a process, and starts another one.
    fn kill_child(&mut self) {
        let at = self.any_child();
        self.tell(&format!("kill {}", self.children[at].0));
        self.children[at].1.kill();
        self.children[at] = self.start_child();
    }

    fn stop(&mut self) {
        self.tell("stop");
        self.server.stop();
        self.is_dead = true;
    }

    fn revive(&mut self) {
        self.tell("start");
        self.server.restart();
        self.is_dead = false;
    }
}

#[test]
fn chaos() {
    let seconds = number("DOGPILE_FIRE_SECONDS").unwrap_or(10);
    let seed = number("DOGPILE_FIRE_SEED").unwrap_or_else(|| u64::try_from(now() % 1_000_000_000).unwrap());
    println!("chaos of {seconds} s, DOGPILE_FIRE_SEED={seed}");
    let dir = std::env::temp_dir().join(format!("dogpile-fire-{}-{seed}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut chaos = Chaos {
        dice: Dice::new(seed),
        server: Server::start(),
        story: File::create(dir.join("story")).unwrap(),
        dir: dir.clone(),
        ledger: Arc::new(Ledger::default()),
        children: Vec::new(),
        started: 0,
        begun: Instant::now(),
        is_dead: false,
    };
    for _ in 0..PROCESSES {
        let child = chaos.start_child();
        chaos.children.push(child);
    }
    chaos.ledger.wait_for("ready", PROCESSES, LONGEST);
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < deadline {
        chaos.act();
        assert_eq!(chaos.ledger.count("hangs"), 0, "a call hangs; see {} (seed {seed})", dir.display());
    }
    if chaos.is_dead {
        chaos.revive();
    }
    // In the end there is peace, and the locks are of use again.
    std::thread::sleep(RECOVERY);
    let peace = now();
    chaos.tell("peace");
    chaos.children.iter_mut().for_each(|(_, child)| child.tell("peace"));
    std::thread::sleep(PEACE);
    chaos.tell("over");
    let mut unwell = Vec::new();
    for (name, child) in &mut chaos.children {
        if !child.ends_well(LONGEST + Duration::from_secs(5)) {
            unwell.push(name.clone());
        }
    }
    let report = Report::read(&dir);
    println!("{report:?}; {:?}", report.slowest());
    let problems = report.problems(peace);
    assert!(
        unwell.is_empty() && problems.is_empty(),
        "seed {seed}, see {}: {problems:#?}; did not end: {unwell:?}",
        dir.display()
    );
    assert!(report.count("made") > 100 && report.count("got") > 1000, "a lot happened: {report:?}");
    let server = &chaos.server;
    eventually("all locks are gone", || server.ask(&["KEYS", "_lok.*"]) == "*0");
    std::fs::remove_dir_all(&dir).unwrap();
}

/// What the processes wrote down.
struct Report {
    /// Of each process, what it said and when.
    said: HashMap<String, Vec<(String, u128)>>,
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} processes:", self.said.len())?;
        ["began", "made", "failed", "got", "refused", "lost", "slow"]
            .iter()
            .try_for_each(|word| write!(f, " {word} {}", self.count(word)))
    }
}

impl Report {
    fn read(dir: &Path) -> Self {
        let mut said = HashMap::new();
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if name == "story" {
                continue;
            }
            let lines = std::fs::read_to_string(entry.path()).unwrap();
            let parse = |line: &str| {
                let (what, at) = line.rsplit_once(" @")?;
                Some((what.to_string(), at.parse().ok()?))
            };
            let lines =
                lines.lines().map(|line| parse(line).unwrap_or_else(|| panic!("{name} wrote {line:?}"))).collect();
            said.insert(name, lines);
        }
        Report { said }
    }

    fn lines(&self) -> impl Iterator<Item = &str> + Clone {
        self.said.values().flatten().map(|(what, _)| what.as_str())
    }

    fn count(&self, word: &str) -> usize {
        self.lines().filter(|line| line.split(' ').next() == Some(word)).count()
    }

    /// The longest call of those that are worth a word.
    fn slowest(&self) -> Option<&str> {
        let slow = self.lines().filter_map(|line| {
            let seconds = line.strip_prefix("slow ")?.split('s').next()?;
            Some((seconds.parse::<f64>().ok()?, line))
        });
        slow.max_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, line)| line)
    }

    /// What should not have happened.
    fn problems(&self, peace: u128) -> Vec<String> {
        let mut problems: Vec<_> = wrong(self.lines()).into_iter().map(str::to_string).collect();
        problems.extend(self.overlaps(peace));
        problems
    }

    /// Creators of one key that ran at the same time in several processes when there was peace, and the server did all
    /// that those processes asked of it.
    fn overlaps(&self, peace: u128) -> Vec<String> {
        let mut creations: HashMap<&str, Vec<(u128, u128, &str)>> = HashMap::new();
        for (name, lines) in &self.said {
            let failures = |word: &str| {
                let (line, _) = lines.iter().find(|(line, _)| line.split(' ').next() == Some(word))?;
                line.split(' ').nth(1)?.parse::<u64>().ok()
            };
            if failures("peace").is_none() || failures("peace") != failures("over") {
                continue;
            }
            let mut running = HashMap::new();
            for (line, at) in lines {
                let mut words = line.split(' ');
                let (word, key) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                match word {
                    "began" => drop(running.insert(key, *at)),
                    "made" | "failed" => {
                        let began = running.remove(key).unwrap_or(*at);
                        if began >= peace {
                            creations.entry(key).or_default().push((began, *at, name));
                        }
                    }
                    _ => {}
                }
            }
        }
        let mut overlaps = Vec::new();
        for (key, creations) in &mut creations {
            creations.sort_unstable();
            for pair in creations.windows(2) {
                if pair[1].0 < pair[0].1 {
                    overlaps.push(format!("{key} was created in {} and {} at once: {pair:?}", pair[0].2, pair[1].2));
                }
            }
        }
        overlaps
    }
}
