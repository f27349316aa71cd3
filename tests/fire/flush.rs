//! `FLUSHALL` takes values and locks away while creators run: nobody sees an error, and few create anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::child::Child;
use crate::ledger::Ledger;
use crate::limit::all_limited;
use crate::process::{Face, Policy, Process, Settings};
use crate::support::{Server, eventually};

const SOON: Duration = Duration::from_secs(15);

/// Far less than what is left of a lease that was flushed: who waits for it is told.
const TOLD: Duration = Duration::from_secs(6);

/// What must hold however often everything was flushed while `callers` wanted one key.
fn check(server: &Server, ledger: &Ledger, key: &str, callers: usize, flushes: usize) {
    ledger.check();
    assert_eq!(ledger.count(&format!("got {key}")), callers, "everybody gets a value");
    // Each flush lets one creator more begin, beside those that run.
    let made = ledger.count(&format!("made {key}"));
    assert!((1..=1 + flushes).contains(&made), "{made} creators, {flushes} flushes");
    // Locks of tasks are released by word that nobody waits for.
    eventually("all locks are gone", || server.ask(&["KEYS", "_lok.*"]) == "*0");
}

fn settings(server: &Server, at: usize, policy: Policy) -> Settings {
    // Two of the callers' faces, with and without reading by a script.
    Settings {
        policy,
        creator: (300, 300),
        lease_on_miss: at >= 2,
        ..Settings::new(format!("p{at}"), &server.url(), Face::of(at))
    }
}

#[test]
fn regions_go_on_when_everything_is_flushed() {
    all_limited(Policy::ALL, flush_regions);
}

fn flush_regions(policy: Policy) {
    let server = Server::start();
    let ledger = Arc::new(Ledger::default());
    let processes: Vec<_> = (0..4).map(|at| Process::noted(&settings(&server, at, policy), &ledger)).collect();
    for (key, flushes) in [("once", 1), ("often", 3), ("hash/field", 1)] {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            processes.iter().for_each(|process| drop(scope.spawn(|| process.callers(4, key))));
            for flush in 1..=flushes {
                ledger.wait_for(&format!("began {key}"), flush, SOON);
                std::thread::sleep(Duration::from_millis(60));
                assert_eq!(server.ask(&["FLUSHALL"]), "+OK");
            }
        });
        assert!(begun.elapsed() < TOLD, "{:?}", begun.elapsed());
        check(&server, &ledger, key, 16, flushes);
    }
    let lost: u64 = processes.iter().map(|process| process.stats().lost_leases).sum();
    assert!((3..=5).contains(&lost), "{lost} leases were lost in 5 flushes of 3 keys");
}

#[test]
fn processes_go_on_when_everything_is_flushed() {
    let server = Server::start();
    for policy in Policy::ALL {
        let ledger = Arc::new(Ledger::default());
        let mut children: Vec<_> = (0..4).map(|at| Child::start(&settings(&server, at, policy), &ledger)).collect();
        ledger.wait_for("ready", 4, SOON);
        for key in ["a", "b"] {
            children.iter_mut().for_each(|child| child.call(4, key));
            ledger.wait_for(&format!("began {key}"), 1, SOON);
            std::thread::sleep(Duration::from_millis(60));
            assert_eq!(server.ask(&["FLUSHALL"]), "+OK");
            ledger.wait_for(&format!("done {key}"), 4, TOLD);
            check(&server, &ledger, key, 16, 1);
        }
        assert!(children.iter_mut().all(|child| child.ends_well(SOON)));
    }
}
