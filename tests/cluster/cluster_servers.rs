//! A cluster of real servers, formed by commands, whose nodes are killed, frozen and told to move slots.

use std::time::{Duration, Instant};

use crate::servers::{LONG, any, at_port, calls, is_in_step, is_primary, live, strings, urls};
use crate::support::{Server, within};

pub const SLOTS: u16 = 16384;

const PRIMARIES: usize = 3;

/// A primary that does not answer for so many milliseconds is replaced.
pub const HASTY: [&str; 2] = ["--cluster-node-timeout", "1000"];

/// Three primaries and a replica of each, all on 127.0.0.1.
///
/// At first the node `n` is a primary of a third of the slots, in order, and `n + 3` its replica.
pub struct ClusterServers {
    pub nodes: Vec<Server>,
}

/// A primary that was killed.
#[derive(Debug)]
pub struct Killed {
    pub node: usize,
    /// Its replicas that run, one of which takes over.
    pub replicas: Vec<usize>,
    pub at: Instant,
}

/// What a node says of one that it knows, which may be itself.
#[derive(Debug, PartialEq)]
struct Known {
    node: usize,
    id: String,
    flags: String,
    primary: String,
    link: String,
    slots: Vec<(u16, u16)>,
}

impl ClusterServers {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// One whose replicas take over within seconds.
    pub fn hasty() -> Self {
        Self::with(&HASTY)
    }

    /// A cluster of servers with more arguments, such as [`HASTY`].
    pub fn with(arguments: &[&str]) -> Self {
        let own = [
            ["--cluster-enabled", "yes"],
            ["--cluster-announce-ip", "127.0.0.1"],
            // A machine with other work is not taken for a server that died.
            ["--cluster-node-timeout", "5000"],
            // A replica may take over however long it heard nothing from its primary.
            ["--cluster-replica-validity-factor", "0"],
            ["--repl-diskless-sync-delay", "0"],
        ];
        let arguments = [own.as_flattened(), arguments].concat();
        let cluster = ClusterServers { nodes: (0..2 * PRIMARIES).map(|_| Server::with(&arguments)).collect() };
        cluster.form();
        cluster
    }

    fn form(&self) {
        for (n, node) in self.nodes.iter().enumerate() {
            // Where two have the same, one of them gets another later.
            assert_eq!(node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()]), "+OK");
        }
        let (primaries, replicas) = self.nodes.split_at(PRIMARIES);
        for (n, primary) in primaries.iter().enumerate() {
            let from = |n| usize::from(SLOTS) * n / PRIMARIES;
            let (first, last) = (from(n).to_string(), (from(n + 1) - 1).to_string());
            assert_eq!(primary.ask(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]), "+OK");
        }
        // They would come to know all of each other from one, but not as soon.
        for (n, node) in self.nodes.iter().enumerate() {
            for other in &self.nodes[..n] {
                assert_eq!(node.ask(&["CLUSTER", "MEET", "127.0.0.1", &other.port.to_string()]), "+OK");
            }
        }
        for (primary, replica) in primaries.iter().zip(replicas) {
            let id = id(primary);
            // It may not know the primary yet.
            within(LONG, "a replica accepts its primary", || replica.ask(&["CLUSTER", "REPLICATE", &id]) == "+OK");
        }
        self.wait_until_whole();
    }

    pub fn urls(&self) -> Vec<String> {
        urls(&self.nodes)
    }

    /// The slot of a key.
    pub fn slot_of(&self, key: &str) -> u16 {
        u16::try_from(any(&self.nodes).ask_int(&["CLUSTER", "KEYSLOT", key])).unwrap()
    }

    /// The primary of a slot, as a node says that runs.
    pub fn primary_of_slot(&self, slot: u16) -> usize {
        let owner = self.owners(any(&self.nodes))[usize::from(slot)];
        owner.unwrap_or_else(|| panic!("nobody has the slot {slot}"))
    }

    /// The nodes that have slots, as a node says that runs.
    pub fn primaries(&self) -> Vec<usize> {
        let mut primaries: Vec<_> = self.owners(any(&self.nodes)).into_iter().flatten().collect();
        primaries.sort_unstable();
        primaries.dedup();
        primaries
    }

    /// The replicas of a node that run, as a node says that runs.
    pub fn replicas_of(&self, n: usize) -> Vec<usize> {
        let known = self.known(any(&self.nodes));
        let id = known.iter().find(|known| known.node == n).map(|known| known.id.clone());
        let is_one = |known: &&Known| Some(&known.primary) == id.as_ref() && self.nodes[known.node].is_live();
        known.iter().filter(is_one).map(|known| known.node).collect()
    }

    /// How often each node ran a command, such as `get`.
    pub fn calls(&self, command: &str) -> Vec<u64> {
        self.nodes.iter().map(|node| if node.is_live() { calls(node, command) } else { 0 }).collect()
    }

    /// Kills the primary of a slot, in the midst of what it does.
    pub fn kill_primary_of(&mut self, slot: u16) -> Killed {
        let node = self.primary_of_slot(slot);
        let replicas = self.replicas_of(node);
        self.nodes[node].stop();
        Killed { node, replicas, at: Instant::now() }
    }

    /// Makes a replica the primary, with the consent of the one before, so that nothing is lost: how long it took.
    pub fn fail_over(&self, replica: usize) -> Duration {
        self.promote(replica, &["CLUSTER", "FAILOVER"])
    }

    /// Makes a replica the primary without asking anybody: how long it took.
    pub fn take_over(&self, replica: usize) -> Duration {
        self.promote(replica, &["CLUSTER", "FAILOVER", "TAKEOVER"])
    }

    /// Ends when the replica says of itself that it is the primary; others may know it later.
    fn promote(&self, replica: usize, command: &[&str]) -> Duration {
        let replica = &self.nodes[replica];
        // Redis goes on counting the votes by which a node became the primary (redis/redis#8753). Were that node a replica
        // again while they count, and its new primary failed, it would not ask for votes but take the slots by the old
        // ones, which no other node accepts, for ever.
        let answer = replica.ask(&["CONFIG", "GET", "cluster-node-timeout"]);
        let timeout: u64 = strings(&answer)[1].parse().unwrap();
        std::thread::sleep(Duration::from_millis(2 * timeout.max(1000)));
        let mut asked: Option<Instant> = None;
        within(LONG, "a replica is the primary", || {
            // A node that could not do it in five seconds has given up.
            if asked.is_none_or(|at| at.elapsed() > Duration::from_secs(6)) {
                assert_eq!(replica.ask(command), "+OK");
                asked = Some(Instant::now());
            }
            is_primary(replica)
        })
    }

    /// Waits until all nodes that run agree on who has each slot, that these run, and that all is well: how long it took.
    pub fn wait_until_recovered(&self, limit: Duration) -> Duration {
        within(limit, "the cluster has recovered", || {
            let owners = self.owners(any(&self.nodes));
            owners.iter().all(|owner| owner.is_some_and(|owner| self.nodes[owner].is_live()))
                && live(&self.nodes).all(|node| is_ok(node) && self.owners(node) == owners)
        })
    }

    /// Waits until each node runs, knows and reaches all the others, and each replica has what its primary has.
    pub fn wait_until_whole(&self) -> Duration {
        assert!(self.nodes.iter().all(Server::is_live), "a node was stopped, or frozen");
        within(LONG, "the cluster is whole", || {
            let known = self.known(&self.nodes[0]);
            let is_well = |it: &Known| {
                let node = &self.nodes[it.node];
                let primary = known.iter().find(|known| known.id == it.primary);
                it.link == "connected"
                    && match it.flags.as_str() {
                        "master" => is_primary(node),
                        "slave" => primary.is_some_and(|known| is_in_step(node, &self.nodes[known.node])),
                        _ => false,
                    }
            };
            known.len() == self.nodes.len()
                && known.iter().all(is_well)
                && self.nodes.iter().all(|node| is_ok(node) && self.known(node) == known)
        })
    }

    /// Begins to move a slot to another primary. From now on its primary sends whoever looks there for a key that it
    /// does not have to the other one, by ASK.
    pub fn begin_migration(&self, slot: u16, to: usize) {
        let (from, to) = (&self.nodes[self.primary_of_slot(slot)], &self.nodes[to]);
        assert_eq!(set_slot(to, slot, &["IMPORTING", &id(from)]), "+OK");
        assert_eq!(set_slot(from, slot, &["MIGRATING", &id(to)]), "+OK");
    }

    /// Moves the keys that are in the slot: how many.
    pub fn move_keys(&self, slot: u16, to: usize) -> usize {
        let (from, port) = (&self.nodes[self.primary_of_slot(slot)], self.nodes[to].port.to_string());
        let mut moved = 0;
        loop {
            let answer = from.ask(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "100"]);
            let keys = strings(&answer);
            if keys.is_empty() {
                return moved;
            }
            let mut command = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000"];
            command.extend(from.password().iter().flat_map(|password| ["AUTH", password]));
            command.push("KEYS");
            command.extend(&keys);
            // They may all have expired meanwhile.
            let answer = from.ask(&command);
            assert!(["+OK", "+NOKEY"].contains(&answer.as_str()), "{answer}");
            moved += keys.len();
        }
    }

    /// Makes the other primary that of the slot. From now on the one before sends all to it, by MOVED.
    pub fn end_migration(&self, slot: u16, to: usize) {
        let from = self.primary_of_slot(slot);
        let id = id(&self.nodes[to]);
        // The new one first: else nobody would have the slot if it failed between the two.
        let others = self.primaries().into_iter().filter(|&n| n != from && n != to);
        for n in [to, from].into_iter().chain(others) {
            assert_eq!(set_slot(&self.nodes[n], slot, &["NODE", &id]), "+OK");
        }
        self.wait_until_recovered(LONG);
    }

    /// Who has each slot, as a node says.
    fn owners(&self, node: &Server) -> Vec<Option<usize>> {
        let mut owners = vec![None; SLOTS.into()];
        for known in self.known(node) {
            for (first, last) in known.slots {
                owners[first.into()..=last.into()].fill(Some(known.node));
            }
        }
        owners
    }

    /// The nodes that a node knows, in order.
    fn known(&self, node: &Server) -> Vec<Known> {
        let answer = node.ask(&["CLUSTER", "NODES"]);
        let mut known: Vec<_> = answer.lines().skip(1).map(|line| self.parse(line)).collect();
        known.sort_by_key(|known| known.node);
        known
    }

    /// `ID HOST:PORT@BUS FLAGS PRIMARY PING PONG EPOCH LINK SLOTS…`
    fn parse(&self, line: &str) -> Known {
        let words: Vec<_> = line.split_whitespace().collect();
        let port = words[1].split(['@', ':']).nth(1).unwrap();
        let slots = words[8..].iter().filter_map(|range| {
            // Those of a migration begin with a bracket.
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some((first.parse().ok()?, last.parse().ok()?))
        });
        Known {
            node: at_port(&self.nodes, port),
            id: words[0].to_string(),
            flags: words[2].replace("myself,", ""),
            primary: words[3].replace('-', ""),
            link: words[7].to_string(),
            slots: slots.collect(),
        }
    }
}

fn id(node: &Server) -> String {
    node.ask(&["CLUSTER", "MYID"]).lines().nth(1).unwrap().to_string()
}

fn is_ok(node: &Server) -> bool {
    node.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
}

fn set_slot(node: &Server, slot: u16, how: &[&str]) -> String {
    let slot = slot.to_string();
    node.ask(&[&["CLUSTER", "SETSLOT", &slot], how].concat())
}

#[test]
fn a_key_moves_to_another_node() {
    let begun = Instant::now();
    let cluster = ClusterServers::start();
    println!("a cluster was up after {:?}", begun.elapsed());
    let slot = cluster.slot_of("{k}");
    let from = cluster.primary_of_slot(slot);
    let to = (from + 1) % PRIMARIES;
    assert_eq!((cluster.primaries(), cluster.replicas_of(from)), (vec![0, 1, 2], vec![from + PRIMARIES]));
    let (source, target) = (&cluster.nodes[from], &cluster.nodes[to]);
    assert_eq!(source.ask(&["SET", "{k}", "1"]), "+OK");
    let moved_to = |node: &Server| format!("-MOVED {slot} 127.0.0.1:{}", node.port);
    assert_eq!(target.ask(&["GET", "{k}"]), moved_to(source));

    cluster.begin_migration(slot, to);
    let ask = format!("-ASK {slot} 127.0.0.1:{}", target.port);
    assert_eq!((source.ask(&["GET", "{k}"]), source.ask(&["GET", "{k}2"])), ("$1\r\n1".into(), ask.clone()));
    assert_eq!(cluster.move_keys(slot, to), 1);
    assert_eq!((source.ask(&["GET", "{k}"]), target.ask(&["GET", "{k}"])), (ask, moved_to(source)));
    cluster.end_migration(slot, to);
    assert_eq!((source.ask(&["GET", "{k}"]), target.ask(&["GET", "{k}"])), (moved_to(target), "$1\r\n1".into()));
    assert_eq!(cluster.primary_of_slot(slot), to);
    assert_eq!(cluster.calls("get")[to], 1, "what was sent elsewhere is not counted");
}

#[test]
fn a_replica_takes_over_from_a_primary_that_is_killed_or_frozen() {
    let mut cluster = ClusterServers::with(&[&HASTY[..], &["--requirepass", "pw", "--masterauth", "pw"]].concat());
    let slot = cluster.slot_of("k");
    let killed = cluster.kill_primary_of(slot);
    let took = cluster.wait_until_recovered(LONG);
    println!("a primary that was killed had a successor after {took:?}");
    assert_eq!(killed.replicas, [cluster.primary_of_slot(slot)]);
    cluster.nodes[killed.node].restart();
    println!("all was well {:?} after it came back", cluster.wait_until_whole());
    assert_eq!(cluster.replicas_of(cluster.primary_of_slot(slot)), [killed.node]);

    println!("it was the primary again after {:?}, by consent", cluster.fail_over(killed.node));
    cluster.wait_until_whole();
    assert_eq!(cluster.primary_of_slot(slot), killed.node);
    println!("and a replica again after {:?}, by force", cluster.take_over(killed.replicas[0]));
    cluster.wait_until_whole();
    assert_eq!(cluster.primary_of_slot(slot), killed.replicas[0]);

    cluster.nodes[killed.replicas[0]].signal("STOP");
    let took = cluster.wait_until_recovered(LONG);
    println!("a primary that froze had a successor after {took:?}");
    cluster.nodes[killed.replicas[0]].signal("CONT");
    println!("all was well {:?} after it thawed", cluster.wait_until_whole());
}
