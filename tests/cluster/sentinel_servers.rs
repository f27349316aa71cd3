//! A primary and its replicas with Sentinel over them, all real servers.

use std::time::{Duration, Instant};

use crate::servers::{LONG, any, at_port, info, is_in_step, is_primary, live, strings, urls};
use crate::support::{Server, within};

/// What the sentinels call the primary, whichever it is.
const NAME: &str = "cache";

/// A primary, which is the node 0 at first, two replicas, and three sentinels, all on 127.0.0.1.
pub struct SentinelServers {
    pub nodes: Vec<Server>,
    pub sentinels: Vec<Server>,
}

impl SentinelServers {
    pub fn start() -> Self {
        Self::with(&[], &[])
    }

    /// Nodes and sentinels with more arguments, such as `--requirepass`. Nodes with a password also need it as
    /// `--masterauth`.
    pub fn with(of_nodes: &[&str], of_sentinels: &[&str]) -> Self {
        let of_nodes = [&["--repl-diskless-sync-delay", "0"], of_nodes].concat();
        let of_sentinels = [&["--sentinel"], of_sentinels].concat();
        let servers = |arguments: &[&str]| (0..3).map(|_| Server::with(arguments)).collect();
        let set = SentinelServers { nodes: servers(&of_nodes), sentinels: servers(&of_sentinels) };
        set.form();
        set
    }

    fn form(&self) {
        let port = self.nodes[0].port.to_string();
        let replicas = &self.nodes[1..];
        for replica in replicas {
            assert_eq!(replica.ask(&["REPLICAOF", "127.0.0.1", &port]), "+OK");
            // It is still one when it starts again.
            assert_eq!(replica.ask(&["CONFIG", "REWRITE"]), "+OK");
        }
        // Sentinels look for replicas only every ten seconds.
        within(LONG, "replicas are in step", || replicas.iter().all(|replica| is_in_step(replica, &self.nodes[0])));
        for sentinel in &self.sentinels {
            assert_eq!(sentinel.ask(&["SENTINEL", "MONITOR", NAME, "127.0.0.1", &port, "2"]), "+OK");
            let mut set = vec!["SENTINEL", "SET", NAME, "down-after-milliseconds", "1000"];
            set.extend(["failover-timeout", "3000", "parallel-syncs", "1"]);
            set.extend(self.nodes[0].password().iter().flat_map(|password| ["auth-pass", password]));
            assert_eq!(sentinel.ask(&set), "+OK");
        }
        within(LONG, "the sentinels know each other, and all is well", || {
            self.sentinels.iter().all(|sentinel| {
                info(sentinel, "sentinel", "master0")
                    .is_some_and(|is| is.contains("status=ok") && is.ends_with("slaves=2,sentinels=3"))
            })
        });
    }

    pub fn name(&self) -> &str {
        NAME
    }

    pub fn sentinel_urls(&self) -> Vec<String> {
        urls(&self.sentinels)
    }

    /// The primary, as a sentinel says that runs.
    pub fn primary(&self) -> usize {
        self.primary_by(any(&self.sentinels))
    }

    fn primary_by(&self, sentinel: &Server) -> usize {
        let answer = sentinel.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]);
        at_port(&self.nodes, strings(&answer)[1])
    }

    /// Kills the primary, in the midst of what it does: which one it was.
    pub fn kill_primary(&mut self) -> usize {
        let primary = self.primary();
        self.nodes[primary].stop();
        primary
    }

    /// Has a sentinel make another node the primary, without asking the others.
    pub fn fail_over(&self) {
        // It does not while it knows of no good replica, or has just done it.
        within(LONG, "a sentinel begins", || any(&self.sentinels).ask(&["SENTINEL", "FAILOVER", NAME]) == "+OK");
    }

    /// Waits until all sentinels that run agree on another primary than the old one, and it says so too: how long it took.
    pub fn wait_for_new_primary(&self, old: usize, limit: Duration) -> Duration {
        within(limit, "there is a new primary", || {
            let new = self.primary();
            new != old
                && self.nodes[new].is_live()
                && is_primary(&self.nodes[new])
                && live(&self.sentinels).all(|sentinel| self.primary_by(sentinel) == new)
        })
    }

    /// Waits until each node that runs is the primary or in step with it.
    pub fn wait_until_whole(&self) -> Duration {
        within(LONG, "all nodes are in step", || {
            let primary = &self.nodes[self.primary()];
            is_primary(primary) && live(&self.nodes).all(|node| node.port == primary.port || is_in_step(node, primary))
        })
    }
}

#[test]
fn sentinels_name_a_successor() {
    // The sentinels need the password of each other to vote.
    let pw = ["--requirepass", "pw", "--masterauth", "pw"];
    let mut set = SentinelServers::with(&pw, &["--requirepass", "other"]);
    set.sentinels[0].stop();
    let old = set.kill_primary();
    let took = set.wait_for_new_primary(old, LONG);
    println!("a primary that was killed had a successor after {took:?}");
    set.nodes[old].restart();
    println!("all was well {:?} after it came back", set.wait_until_whole());
    assert_ne!(set.primary(), old);
}

#[test]
fn a_sentinel_that_is_told_names_a_successor() {
    let begun = Instant::now();
    let set = SentinelServers::start();
    println!("a set was up after {:?}", begun.elapsed());
    assert_eq!((set.name(), set.sentinel_urls().len(), set.primary()), ("cache", 3, 0));
    set.fail_over();
    println!("a sentinel that was told had a successor after {:?}", set.wait_for_new_primary(0, LONG));
}
