//! Of all callers in both languages one creates a missing value.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::formats::{ADVANCED, Format, HSTORE, OWN};
use crate::peer::Peer;
use crate::support::{Server, eventually};

/// How both languages come to use the same lock.
struct Setting {
    format: &'static str,
    /// Python's backend, and the prefix where it is not the backend's own.
    backend: &'static str,
    lock_prefix: Option<&'static str>,
    /// Rust's prefix.
    prefix: &'static str,
    pair: bool,
}

const SETTINGS: [Setting; 4] = [
    Setting { format: "pickle.own", backend: OWN, lock_prefix: None, prefix: "_lock", pair: false },
    Setting { format: "pickle.own", backend: HSTORE, lock_prefix: None, prefix: "_lok.", pair: true },
    Setting { format: "msgpack.seconds", backend: ADVANCED, lock_prefix: None, prefix: "_lok.", pair: false },
    Setting { format: "json.full", backend: HSTORE, lock_prefix: Some("_lock"), prefix: "_lock", pair: true },
];

impl Setting {
    /// A peer in Python whose lock holds at most so many seconds; for ever, if no number is given.
    fn python(&self, server: &Server, name: &str, lease: Option<u64>) -> Option<Peer> {
        let mut python = Peer::python()?;
        let mut order = Format::named(self.format).order(server, self.backend);
        order["name"] = json!(name);
        order["distributed_lock"] = json!(true);
        order["lock_timeout"] = json!(lease);
        order["lock_prefix"] = json!(self.lock_prefix);
        python.ask(&order);
        Some(python)
    }

    fn rust(&self, server: &Server, name: &str, lease: Duration) -> Peer {
        let mut rust = Peer::rust();
        rust.ask(&json!({
            "do": "open", "port": server.port, "codec": self.format, "name": name, "prefix": self.prefix,
            "lease": lease.as_millis() as u64,
        }));
        rust
    }

    /// The key of this name, and its lock's.
    fn key(&self, name: &str) -> (Json, String) {
        match self.pair {
            true => (json!(["hash", name]), format!("{}hash,{name}", self.prefix)),
            false => (json!(name), format!("{}{name}", self.prefix)),
        }
    }
}

fn create(key: &Json, callers: u64, length: Duration) -> Json {
    json!({"do": "get_or_create", "key": key, "callers": callers, "millis": length.as_millis() as u64})
}

fn creators(server: &Server) -> i64 {
    server.ask_int(&["LLEN", "creators"])
}

/// Tells `holder` to create, and returns when it does.
fn begin(server: &Server, holder: &mut Peer, key: &Json, length: Duration) {
    server.ask(&["DEL", "creators"]);
    holder.tell(&create(key, 1, length));
    eventually("the holder creates", || creators(server) == 1);
}

#[test]
fn who_comes_later_waits_for_the_other_language() {
    for setting in &SETTINGS {
        let server = Server::start();
        let Some(python) = setting.python(&server, "Python", None) else { return };
        let rust = setting.rust(&server, "Rust", Duration::from_secs(10));
        let length = Duration::from_millis(400);
        let mut peers = [python, rust];
        for name in ["Python", "Rust"] {
            let [holder, waiter] = &mut peers;
            let (key, lock) = setting.key(name);
            begin(&server, holder, &key, length);
            assert_eq!(server.ask_int(&["EXISTS", &lock]), 1, "{lock} is not there");
            let asked = Instant::now();
            let got = waiter.ask(&create(&key, 3, Duration::ZERO));
            let waited = asked.elapsed();
            let made = json!(format!("{name}'s, number 1"));
            assert_eq!((holder.answer(), got), (json!([made]), json!([made, made, made])));
            assert!(waited < length + Duration::from_millis(500), "it waited {waited:?}");
            assert_eq!((creators(&server), server.ask_int(&["EXISTS", &lock])), (1, 0));
            peers.reverse();
        }
    }
}

#[test]
fn of_a_stampede_one_creates() {
    for setting in &SETTINGS[..2] {
        let server = Server::start();
        let mut herd = Vec::new();
        for number in 0..4 {
            let Some(python) = setting.python(&server, &format!("Python {number}"), None) else { return };
            herd.push(python);
            herd.push(setting.rust(&server, &format!("Rust {number}"), Duration::from_secs(10)));
        }
        for round in 0..4 {
            server.ask(&["DEL", "creators"]);
            let (key, lock) = setting.key(&format!("round {round}"));
            let order = create(&key, 4, Duration::from_millis(100));
            // Another one is told first, in each round of the other language.
            herd.rotate_left(1);
            herd.iter_mut().for_each(|peer| peer.tell(&order));
            let got: Vec<Json> = herd.iter_mut().map(Peer::answer).collect();
            assert_eq!(creators(&server), 1, "round {round}: {got:?}");
            let creator = server.ask(&["LINDEX", "creators", "0"]);
            let made = json!(format!("{}'s, number 1", creator.lines().nth(1).unwrap()));
            assert_eq!(got, vec![json!([made, made, made, made]); 8], "round {round}");
            assert_eq!(server.ask_int(&["EXISTS", &lock]), 0);
        }
    }
}

/// Whoever waits for a holder that was killed goes on when its lease has ended.
#[test]
fn a_killed_holder_blocks_for_its_lease() {
    let lease = Duration::from_secs(2);
    for setting in &SETTINGS[..2] {
        for killed in ["Python", "Rust"] {
            let server = Server::start();
            let Some(python) = setting.python(&server, "Python", Some(lease.as_secs())) else { return };
            let rust = setting.rust(&server, "Rust", lease);
            let (mut holder, mut waiter, heir) =
                if killed == "Python" { (python, rust, "Rust") } else { (rust, python, "Python") };
            let (key, lock) = setting.key("key");
            begin(&server, &mut holder, &key, Duration::from_secs(60));
            waiter.tell(&create(&key, 2, Duration::ZERO));
            std::thread::sleep(Duration::from_millis(200));
            holder.kill();
            let (left, now) = (server.ask_int(&["PTTL", &lock]), Instant::now());
            assert!(left > 0, "{lock} has no TTL, or is not there: {left}");
            let made = json!(format!("{heir}'s, number 2"));
            assert_eq!(waiter.answer(), json!([made, made]));
            let (waited, left) = (now.elapsed(), Duration::from_millis(left as u64));
            assert!(waited + Duration::from_millis(20) >= left, "{heir} broke the lock after {waited:?} of {left:?}");
            assert!(waited < left + Duration::from_millis(700), "{heir} created {:?} after the lease", waited - left);
            assert_eq!(creators(&server), 2);
        }
    }
}
