//! What all processes together came to: what should not have been, and tables.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::figures::{Calls, Report, Size, What};
use super::process::{LEASE, Settings};
use super::values::KEYS;

/// After how many milliseconds clients have found what the servers have agreed on: the map of servers is asked for anew
/// within a pause of a second, and who waited for a server that was killed does so for another one at most.
pub const SETTLING: u64 = 2000;

/// What no call takes but in the outage, on a busy machine either. Creators take a tenth of a second at most; who waits
/// longer than this waits for a lease that nobody holds.
const LONGEST: Duration = LEASE.saturating_sub(Duration::from_millis(1500));

/// How much a process may grow after the first fifth of the time: a quarter, and so many KiB, threads and files. The
/// busier a machine is, the more connections to each of six servers its threads need at once.
const MORE: Size = Size { memory: 8 << 10, threads: 24, files: 48 };

/// When what happened, in milliseconds since 1970.
pub struct Times {
    pub begun: u64,
    /// When slots moved, from and to.
    pub moved: [(u64, u64); 2],
    pub killed: u64,
    pub recovered: u64,
    pub ended: u64,
}

impl Times {
    fn settled(&self) -> u64 {
        self.recovered + SETTLING
    }

    fn outage(&self) -> (u64, u64) {
        (self.killed, self.settled())
    }

    /// After so many fifths of the time.
    fn fifths(&self, fifths: u64) -> u64 {
        self.begun + (self.ended - self.begun) * fifths / 5
    }

    fn seconds(&self, moment: u64) -> f64 {
        (moment as f64 - self.begun as f64) / 1000.0
    }

    fn since_the_kill(&self, moment: u64) -> f64 {
        (moment as f64 - self.killed as f64) / 1000.0
    }
}

/// What all processes said.
pub struct Outcome {
    pub reports: Vec<(Settings, Report)>,
    pub times: Times,
}

impl Outcome {
    /// What should not have been.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (settings, report) in &self.reports {
            let of_this = [
                report.wrong.clone(),
                unreadable(report),
                self.unmade(settings, report),
                self.failed(report),
                self.slow(report),
                self.grown(report),
            ];
            problems.extend(of_this.concat().iter().map(|problem| format!("p{}: {problem}", settings.number)));
        }
        let seldom = self.totals().into_iter().filter(|(_, calls)| calls.ended < 10);
        problems.extend(seldom.map(|(what, calls)| format!("{what:?} was called {} times only", calls.ended)));
        problems
    }

    /// Values that the process saw, whose creation had not begun.
    fn unmade(&self, settings: &Settings, report: &Report) -> Vec<String> {
        let mut unmade = Vec::new();
        for (maker, made) in &self.reports {
            for key in 0..KEYS {
                let (seen, begun) = (report.seen[maker.number][key], made.begun[key]);
                if seen > begun || (seen > 0 && maker.space != settings.space) {
                    unmade.push(format!("the value {seen} of p{} for the key {key}, which made {begun}", maker.number));
                }
            }
        }
        unmade
    }

    /// What failed though all servers were there.
    fn failed(&self, report: &Report) -> Vec<String> {
        let times = &self.times;
        let not_in_outage = report.failures.iter().filter(|it| it.first < times.killed || it.last > times.settled());
        let mut failed: Vec<_> = not_in_outage
            .map(|it| format!("{} {:?} failed at {:.2} s: {}", it.count, it.what, times.seconds(it.last), it.message))
            .collect();
        // A store that is conditional on its lease needs lock and entry at one server, so there is none while their slot
        // moves.
        let [first, second] = times.moved;
        let troubles = report.troubles_without(&[first, times.outage(), second]);
        if troubles > 0 {
            failed.push(format!("the servers did not do what the region asked, {troubles} times"));
        }
        failed
    }

    fn slow(&self, report: &Report) -> Vec<String> {
        let (from, to) = self.times.outage();
        let slow = report.slow.iter().filter(|slow| {
            let is_in_outage = slow.began < to && slow.began + slow.took.as_millis() as u64 > from;
            // Who has a lock may be unable to release it before all is well again.
            slow.took > if is_in_outage { LEASE + Duration::from_millis(SETTLING) } else { LONGEST }
        });
        slow.map(|slow| {
            format!("{} took {:.2?}, from {:.2} s on", slow.what, slow.took, self.times.seconds(slow.began))
        })
        .collect()
    }

    fn grown(&self, report: &Report) -> Vec<String> {
        let [Some(early), _, Some(late)] = self.sizes(report) else { return Vec::new() };
        let grew = |early, late, more| late > early + early / 4 + more;
        let is_larger = grew(early.memory, late.memory, MORE.memory)
            || grew(early.threads, late.threads, MORE.threads)
            || grew(early.files, late.files, MORE.files);
        is_larger.then(|| format!("it grew from {early:?} to {late:?}")).into_iter().collect()
    }

    /// After a fifth of the time, three fifths, and in the end.
    fn sizes(&self, report: &Report) -> [Option<Size>; 3] {
        [1, 3, 5].map(|fifths| report.size_at(self.times.fifths(fifths)))
    }

    fn totals(&self) -> BTreeMap<What, Calls> {
        let mut totals: BTreeMap<_, _> = What::ALL.into_iter().map(|what| (what, Calls::default())).collect();
        for (what, calls) in self.reports.iter().flat_map(|(_, report)| &report.calls) {
            totals.entry(*what).or_default().add(calls);
        }
        totals
    }

    pub fn print(&self) {
        self.print_processes();
        self.print_calls();
        self.print_spans();
        self.print_failures();
        self.print_slow();
    }

    fn rate(&self, calls: &Calls) -> f64 {
        calls.ended as f64 / self.times.seconds(self.times.ended)
    }

    fn print_processes(&self) {
        let columns = "calls/s  created  awaited    stale  lost  longest ms  MB: 20 %, 60 %, end  threads    files";
        println!("\n{:31} {columns}", "process");
        for (settings, report) in &self.reports {
            let Settings { number, space, threads, tasks, .. } = settings;
            let (space, callers) = (format!("{space:?}"), format!("{threads} threads, {tasks} tasks"));
            let calls = report.all_calls();
            let [created, awaited, stale, lost] = ["created", "awaited", "stale", "lost"].map(|name| report.stat(name));
            print!("p{number} {space:7} {callers:20} {:8.0}", self.rate(&calls));
            print!(" {created:8} {awaited:8} {stale:8} {lost:5} {:11.1}", millis(&calls));
            if let [Some(early), Some(middle), Some(late)] = self.sizes(report) {
                let [at, then, last] = [early, middle, late].map(|size| size.memory as f64 / 1024.0);
                print!(" {at:8.1} {then:6.1} {last:6.1}");
                print!("  {:4} {:3}  {:4} {:3}", early.threads, late.threads, early.files, late.files);
            }
            println!();
        }
    }

    fn print_calls(&self) {
        println!("\ncall               calls   calls/s  failed  refused  dropped  longest ms");
        let (totals, mut all) = (self.totals(), Calls::default());
        totals.values().for_each(|calls| all.add(calls));
        let row = |name: &str, calls: &Calls| {
            let Calls { ended, failed, refused, dropped, .. } = calls;
            let (rate, longest) = (self.rate(calls), millis(calls));
            println!("{name:15} {ended:8} {rate:9.0} {failed:7} {refused:8} {dropped:8} {longest:11.1}");
        };
        totals.iter().for_each(|(what, calls)| row(&format!("{what:?}"), calls));
        row("all", &all);
    }

    /// Before, in and after the outage.
    fn print_spans(&self) {
        println!("\nwhen                       calls/s  failed  longest ms");
        let (killed, settled) = self.times.outage();
        let spans = [
            ("before", self.times.begun, killed),
            ("outage, and 2 s", killed, settled),
            ("after", settled, self.times.ended),
        ];
        // A second that is only in part before or after the outage is of the outage.
        let span_of = |second: u64| match second * 1000 {
            from if from + 1000 <= killed => 0,
            from if from < settled => 1,
            _ => 2,
        };
        for (span, (name, from, to)) in spans.into_iter().enumerate() {
            let (mut calls, mut seconds) = (Calls::default(), BTreeSet::new());
            for (second, these) in self.reports.iter().flat_map(|(_, report)| &report.seconds) {
                if span_of(*second) == span {
                    calls.add(these);
                    seconds.insert(second);
                }
            }
            let rate = calls.ended as f64 / seconds.len().max(1) as f64;
            let (from, to) = (self.times.seconds(from), self.times.seconds(to));
            println!("{name:15} {from:5.1} … {to:5.1} {rate:7.0} {:7} {:11.1}", calls.failed, millis(&calls));
        }
    }

    fn print_failures(&self) {
        let reports = || self.reports.iter().map(|(_, report)| report);
        let sum = |name| reports().map(|report| report.stat(name)).sum::<u64>();
        let moving: u64 = reports().map(|report| report.troubles_without(&[self.times.outage()])).sum();
        let [reads, locks, writes] = ["reads", "locks", "writes"].map(sum);
        println!(
            "\nregions went on without {reads} readings, {locks} locks and {writes} stores, {moving} not in the outage"
        );
        let failures = || reports().flat_map(|report| &report.failures);
        let (first, last) = (failures().map(|it| it.first).min(), failures().map(|it| it.last).max());
        if let (Some(first), Some(last)) = (first, last) {
            let [first, last] = [first, last].map(|moment| self.times.since_the_kill(moment));
            println!("calls failed from {first:.2} to {last:.2} s after the kill:");
        }
        let mut kinds: BTreeMap<_, (u64, &str)> = BTreeMap::new();
        for it in failures() {
            kinds.entry((&it.kind, it.what)).or_insert((0, &it.message)).0 += it.count;
        }
        for ((kind, what), (count, message)) in kinds {
            println!("{count:7} {:15} {kind:10} such as: {message:.150}", format!("{what:?}"));
        }
    }

    fn print_slow(&self) {
        let mut slow: Vec<_> = Vec::new();
        for (settings, report) in &self.reports {
            slow.extend(report.slow.iter().map(|slow| (settings.number, slow)));
        }
        slow.sort_unstable_by_key(|(_, slow)| Reverse(slow.took));
        println!("{} calls took more than half a second", slow.len());
        for (process, slow) in slow.iter().take(10) {
            let since = self.times.since_the_kill(slow.began);
            println!("  {:.2?} by p{process}, from {since:.2} s after the kill on, {}", slow.took, slow.what);
        }
    }
}

fn millis(calls: &Calls) -> f64 {
    calls.longest as f64 / 1000.0
}

fn unreadable(report: &Report) -> Vec<String> {
    let counts = ["undecodable", "wrong type"].map(|name| (name, report.stat(name)));
    counts.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{count} entries were {name}")).collect()
}
