//! Load: eight processes that mix everything on a cluster, in the midst of which a primary is killed and slots move. Each
//! value that a caller gets is one that a creator made for its key, calls fail in the outage only, and no process grows.
//!
//! `DOGPILE_LOAD_SECONDS` says for how long, and callers then make as many calls as two cores allow; else they leave room
//! for other tests. Figures of use, and leaks if there are any, show with
//! `DOGPILE_LOAD_SECONDS=180 cargo test --release --all-features --test cluster load:: -- --nocapture`.

#[path = "../fire/dice.rs"]
mod dice;
mod figures;
mod outcome;
mod process;
mod values;

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child as OsChild, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use self::figures::{Report, now};
use self::outcome::{Outcome, SETTLING, Times};
use self::process::Settings;
use self::values::Space;
use crate::cluster_servers::ClusterServers;

/// What a child is to do; where it is not there, this is no child.
const ORDERS: &str = "DOGPILE_LOAD_CHILD";

/// What stands before a line that is ours: the test harness has some of its own.
const MARK: &str = "load: ";

/// How long slots take to move.
const MOVING: Duration = Duration::from_millis(500);

// One of the processes.

/// Not a test, but what runs in the processes that the test starts.
#[test]
fn child() {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    let settings = serde_json::from_str(&orders).unwrap();
    let report = process::run(&settings, || {
        // Until whoever started this process has enough, or has gone.
        let _ = std::io::stdin().lines().count();
    });
    say(&report);
    // Of the background, nothing is waited for.
    std::process::exit(0);
}

fn say(report: &Report) {
    // In one piece, and not behind what the harness says.
    let line = format!("\n{MARK}{}\n", serde_json::to_string(report).unwrap());
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

// The process that leads.

struct Child {
    settings: Settings,
    process: OsChild,
    output: Lines<BufReader<ChildStdout>>,
}

impl Child {
    fn start(settings: Settings) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "load::child", "--nocapture"])
            .env(ORDERS, serde_json::to_string(&settings).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        Child { settings, process, output }
    }

    /// Lets it end.
    fn release(&mut self) {
        self.process.stdin = None;
    }

    /// What it has to say in the end, if it comes to that.
    fn report(&mut self) -> Option<Report> {
        let report = self.output.by_ref().map_while(Result::ok).find_map(|line| {
            let report = line.strip_prefix(MARK)?;
            Some(serde_json::from_str(report).unwrap())
        });
        self.process.wait().unwrap();
        report
    }
}

/// Who calls. Processes that share a space agree on how entries are written, and on nothing else.
fn settings(urls: &[String], pause: u64) -> Vec<Settings> {
    use Space::{Buckets, Plain, Raw};
    let processes = [
        // Callers that are threads and tasks; whether replicas are read, misses take leases, and what is lost is discarded.
        (Plain, 4, 0, false, false, false),
        (Plain, 0, 8, false, true, false),
        (Plain, 4, 0, true, true, true),
        (Plain, 2, 6, false, false, true),
        (Raw, 4, 0, false, false, false),
        (Raw, 0, 8, true, true, false),
        (Buckets, 2, 6, false, true, false),
        (Buckets, 0, 8, false, false, true),
    ];
    let of = processes.len();
    let settings = |(number, (space, threads, tasks, reads_replicas, lease_on_miss, discards))| {
        let (threads, tasks) = if cfg!(feature = "tokio") { (threads, tasks) } else { (threads + tasks, 0) };
        Settings {
            number,
            of,
            urls: urls.to_vec(),
            space,
            threads,
            tasks,
            reads_replicas,
            lease_on_miss,
            discards,
            pause,
        }
    };
    processes.into_iter().enumerate().map(settings).collect()
}

/// How far it is.
struct Story {
    begun: Instant,
    length: Duration,
}

impl Story {
    /// Goes on at a part of the time.
    fn wait_for(&self, part: f64) {
        std::thread::sleep(self.length.mul_f64(part).saturating_sub(self.begun.elapsed()));
    }

    fn tell(&self, what: &str) {
        println!("{:6.1} s  {what}", self.begun.elapsed().as_secs_f64());
    }
}

/// Moves a slot with many keys of each space to another primary, as slowly as one that holds a lot: when it began and
/// ended.
fn move_slots(servers: &ClusterServers, story: &Story, number: usize) -> (u64, u64) {
    let begun = now();
    let moves = Space::ALL.map(|space| {
        let slot = servers.slot_of(&space.tag(number));
        let (from, primaries) = (servers.primary_of_slot(slot), servers.primaries());
        (slot, from, *primaries.iter().cycle().skip(number).find(|other| **other != from).unwrap())
    });
    story.tell("slots begin to move");
    moves.iter().for_each(|(slot, _, to)| servers.begin_migration(*slot, *to));
    std::thread::sleep(MOVING);
    for (slot, from, to) in moves {
        let keys = servers.move_keys(slot, to);
        std::thread::sleep(MOVING / 3);
        servers.end_migration(slot, to);
        story.tell(&format!("the slot {slot}, at last with {keys} keys, was moved from node {from} to node {to}"));
    }
    (begun, now())
}

#[test]
fn processes_mix_everything_while_a_primary_is_killed() {
    let asked = std::env::var("DOGPILE_LOAD_SECONDS").ok().map(|seconds| seconds.parse().unwrap());
    let (length, pause) = asked.map_or((20, 20_000), |length| (length, 6_000));
    // So long that a server which waits for its turn is not taken for dead.
    let mut servers = ClusterServers::with(&["--cluster-node-timeout", "2000"]);
    let mut children: Vec<_> = settings(&servers.urls(), pause).into_iter().map(Child::start).collect();
    let (story, begun) = (Story { begun: Instant::now(), length: Duration::from_secs(length) }, now());
    let mut primaries = servers.primaries();

    story.wait_for(0.15);
    let first_move = move_slots(&servers, &story, 1);
    story.wait_for(0.4);
    let elected_before = servers.primaries() != primaries;
    let killed_at = now();
    let killed = servers.kill_primary_of(servers.slot_of(&Space::Plain.tag(0)));
    story.tell(&format!("node {} was killed", killed.node));
    let took = servers.wait_until_recovered(Duration::from_secs(60));
    let recovered = now();
    story.tell(&format!("the cluster has recovered, after {took:.1?}"));
    primaries.retain(|node| *node != killed.node);
    primaries.extend(&killed.replicas);
    primaries.sort_unstable();
    std::thread::sleep(Duration::from_millis(SETTLING));
    story.wait_for(0.65);
    servers.nodes[killed.node].restart();
    let took = servers.wait_until_whole();
    story.tell(&format!("node {} was started again, and is a replica after {took:.1?}", killed.node));
    story.wait_for(0.8);
    let second_move = move_slots(&servers, &story, 2);
    story.wait_for(1.0);
    let times = Times { begun, moved: [first_move, second_move], killed: killed_at, recovered, ended: now() };
    let elected = elected_before || servers.primaries() != primaries;

    children.iter_mut().for_each(Child::release);
    let said = children.iter_mut().map(|child| (child.settings.clone(), child.report()));
    let (well, ill): (Vec<_>, Vec<_>) = said.partition(|(_, report)| report.is_some());
    let reports = well.into_iter().filter_map(|(settings, report)| Some((settings, report?))).collect();
    let outcome = Outcome { reports, times };
    outcome.print();
    let mut problems = outcome.problems();
    problems.extend(ill.iter().map(|(settings, _)| format!("p{} ended without a word", settings.number)));
    if elected {
        problems.push("the servers had no time for each other, and took one for dead that was not".to_string());
    }
    assert!(problems.is_empty(), "{problems:#?}");
}
