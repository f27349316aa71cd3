//! What a process counts and measures while it calls.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dogpile::{Error, Stats};
use serde::{Deserialize, Serialize};

/// Ways to call a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum What {
    Get,
    GetMany,
    GetOrCreate,
    GetOrCreateMany,
    GetOrRefresh,
    Set,
    SetMany,
    Delete,
    DeleteMany,
    Invalidate,
}

impl What {
    pub const ALL: [What; 10] = [
        What::Get,
        What::GetMany,
        What::GetOrCreate,
        What::GetOrCreateMany,
        What::GetOrRefresh,
        What::Set,
        What::SetMany,
        What::Delete,
        What::DeleteMany,
        What::Invalidate,
    ];
}

/// What became of calls of one kind.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Calls {
    pub ended: u64,
    pub failed: u64,
    /// Whose own creator failed.
    pub refused: u64,
    /// Whose future was dropped.
    pub dropped: u64,
    /// In microseconds.
    pub longest: u64,
}

impl Calls {
    pub fn add(&mut self, other: &Calls) {
        self.ended += other.ended;
        self.failed += other.failed;
        self.refused += other.refused;
        self.dropped += other.dropped;
        self.longest = self.longest.max(other.longest);
    }
}

/// Calls of a kind that failed in the same way at nearly the same time.
#[derive(Debug, Serialize, Deserialize)]
pub struct Failures {
    pub first: u64,
    pub last: u64,
    pub what: What,
    pub kind: String,
    pub count: u64,
    /// The first's.
    pub message: String,
}

/// Failures that come within so many milliseconds are one line of a report, or reports would be too long.
const NEARLY: u64 = 50;

/// A call that took long.
#[derive(Debug, Serialize, Deserialize)]
pub struct Slow {
    pub began: u64,
    pub took: Duration,
    pub what: String,
}

/// What is worth a word.
const SLOW: Duration = Duration::from_millis(500);

/// How many such words are enough.
const ENOUGH: usize = 100;

/// What a process is like at a moment.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sample {
    pub at: u64,
    /// How often the servers did not do what the region asked of them, where that was no failure of a call.
    pub troubles: u64,
    /// Where the system tells it.
    pub size: Option<Size>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
/// What a process takes of the system.
pub struct Size {
    /// Resident, in KiB.
    pub memory: u64,
    pub threads: u64,
    pub files: u64,
}

impl Size {
    /// Of this process.
    fn now() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let number =
            |name| status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok();
        let files = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
        Some(Size { memory: number("VmRSS:")?, threads: number("Threads:")?, files })
    }
}

/// All that a process has to say in the end. Times are in milliseconds since 1970, by the clock that all processes read.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub calls: BTreeMap<What, Calls>,
    /// The same by the second in which calls began.
    pub seconds: BTreeMap<u64, Calls>,
    pub failures: Vec<Failures>,
    pub slow: Vec<Slow>,
    pub samples: Vec<Sample>,
    pub stats: Vec<(String, u64)>,
    /// For each key, how many creations began.
    pub begun: Vec<u64>,
    /// For each process and key, the last of its creations whose value was seen.
    pub seen: Vec<Vec<u64>>,
    /// What should not have been.
    pub wrong: Vec<String>,
}

/// How a call ended.
pub enum End {
    Well,
    Failed(Error),
    Refused,
    Dropped,
}

impl Report {
    /// Notes a call that began then and has ended.
    pub fn note(&mut self, what: What, keys: &[usize], began: u64, took: Duration, end: &End) {
        let one = |is_so| u64::from(is_so);
        let call = Calls {
            ended: 1,
            failed: one(matches!(end, End::Failed(_))),
            refused: one(matches!(end, End::Refused)),
            dropped: one(matches!(end, End::Dropped)),
            longest: took.as_micros() as u64,
        };
        self.calls.entry(what).or_default().add(&call);
        self.seconds.entry(began / 1000).or_default().add(&call);
        if took > SLOW && self.slow.len() < ENOUGH {
            self.slow.push(Slow { began, took, what: format!("{what:?} of {keys:?}") });
        }
        if let End::Failed(error) = end {
            self.note_failure(what, error);
        }
    }

    fn note_failure(&mut self, what: What, error: &Error) {
        let (now, kind) = (now(), format!("{:?}", error.kind()));
        let mut recent = self.failures.iter_mut().rev().take_while(|failures| now < failures.first + NEARLY);
        match recent.find(|failures| failures.what == what && failures.kind == kind) {
            Some(failures) => {
                failures.last = now;
                failures.count += 1;
            }
            None => {
                let message = error.to_string();
                self.failures.push(Failures { first: now, last: now, what, kind, count: 1, message });
            }
        }
    }

    pub fn note_sample(&mut self, stats: &Stats) {
        let troubles = stats.failed_reads + stats.failed_locks + stats.failed_writes;
        self.samples.push(Sample { at: now(), troubles, size: Size::now() });
    }

    pub fn note_stats(&mut self, stats: &Stats) {
        let all = [
            ("created", stats.creations),
            ("shared", stats.coalesced),
            ("awaited", stats.remote_waits),
            ("stale", stats.stale_hits),
            ("lost", stats.lost_leases),
            ("undecodable", stats.undecodable),
            ("wrong type", stats.wrong_type),
            ("reads", stats.failed_reads),
            ("locks", stats.failed_locks),
            ("writes", stats.failed_writes),
        ];
        self.stats = all.map(|(name, number)| (name.to_string(), number)).into();
    }

    /// Notes what should not be, unless there is more than enough of it.
    pub fn note_wrong(&mut self, what: String) {
        if self.wrong.len() < ENOUGH {
            self.wrong.push(what);
        }
    }

    pub fn stat(&self, name: &str) -> u64 {
        self.stats.iter().find(|(other, _)| other == name).map_or(0, |(_, number)| *number)
    }

    pub fn all_calls(&self) -> Calls {
        let mut all = Calls::default();
        self.calls.values().for_each(|calls| all.add(calls));
        all
    }

    /// How often the servers did not do what the region asked of them, as far as that may have been at another time than
    /// these.
    pub fn troubles_without(&self, spans: &[(u64, u64)]) -> u64 {
        let pairs = self.samples.windows(2).map(|pair| (pair[0], pair[1]));
        let is_in =
            |(before, after): &(Sample, Sample)| spans.iter().any(|(from, to)| before.at < *to && after.at > *from);
        pairs.filter(|pair| !is_in(pair)).map(|(before, after)| after.troubles - before.troubles).sum()
    }

    /// What the process was like at a moment, by the last sample before.
    pub fn size_at(&self, moment: u64) -> Option<Size> {
        self.samples.iter().rev().find(|sample| sample.at <= moment)?.size
    }
}

/// Since 1970, in milliseconds.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}
