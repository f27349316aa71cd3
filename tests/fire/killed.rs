//! A process that holds a lock is killed: the others wait for the rest of its lease, and no longer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::child::Child;
use crate::ledger::Ledger;
use crate::limit::all_limited;
use crate::process::{Face, Settings};
use crate::support::Server;

const SOON: Duration = Duration::from_secs(15);

/// The time that a waiter needs on a busy machine to begin when nothing keeps it any more. Far less than a creator of
/// the holder would have taken, and than a lease that nobody shortened.
const SLACK: Duration = Duration::from_millis(1500);

#[test]
fn a_holder_that_is_killed_blocks_for_the_rest_of_its_lease() {
    all_limited(Face::ALL, kill_a_holder);
}

fn kill_a_holder(face: Face) {
    let server = Server::start();
    let ledger = Arc::new(Ledger::default());
    let settings = |name: &str, face| Settings { lease: 500, ..Settings::new(name, &server.url(), face) };
    for round in 0..2 {
        let key = format!("k{round}");
        let endless = Settings { creator: (60_000, 60_000), ..settings("holder", face) };
        let mut holder = Child::start(&endless, &ledger);
        let waits = |at| Settings { creator: (50, 50), ..settings(&format!("waiter{at}"), Face::of(at)) };
        let mut waiters: Vec<_> = (0..3).map(|at| Child::start(&waits(at), &ledger)).collect();
        ledger.wait_for("ready", 4 * (round + 1), SOON);
        holder.call(2, &key);
        ledger.wait_for(&format!("began {key}"), 1, SOON);
        waiters.iter_mut().for_each(|waiter| waiter.call(4, &key));
        // Longer than a lease, which is renewed.
        std::thread::sleep(Duration::from_millis(900));
        assert_eq!(ledger.count(&format!("began {key}")), 1, "the lease is renewed");
        holder.kill();
        let killed = Instant::now();
        let left = u64::try_from(server.ask_int(&["PTTL", &format!("_lok.{key}")])).unwrap_or(0);
        assert!(left <= 500, "{left}");
        let began = ledger.wait_for(&format!("began {key}"), 2, SOON);
        assert!(began.who.starts_with("waiter"));
        let waited = began.at.saturating_duration_since(killed);
        println!("{face:?}: {left} ms of the lease were left, and a waiter began after {waited:?}");
        assert!(waited < Duration::from_millis(left) + SLACK, "{waited:?} for {left} ms");
        ledger.wait_for(&format!("done {key}"), 3, SOON);
        assert_eq!(ledger.count(&format!("made {key}")), 1, "exactly one of the others creates");
        assert_eq!(ledger.count(&format!("got {key}")), 12);
        assert!(waiters.iter_mut().all(|waiter| waiter.ends_well(SOON)));
    }
    ledger.check();
}
