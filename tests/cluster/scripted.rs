//! What no real server says when it is wanted: by servers that answer each command with what they are told to.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use dogpile::backend::Found;
use dogpile::redis::ReadFrom;
use dogpile::{AsyncBackend, Backend, Cluster, ErrorKind, Key, Sentinel};

use crate::support::{Server, eventually, free_port};

/// Answers each command, its words with spaces between, by `answer`.
fn says(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || talk(stream, |command| answer(command)));
        }
    });
    port
}

/// Requests are small, and come in one piece each.
fn talk(mut stream: TcpStream, answer: impl Fn(&str) -> String) {
    let mut input = [0; 1 << 16];
    while let Ok(read @ 1..) = stream.read(&mut input) {
        let text = String::from_utf8_lossy(&input[..read]).into_owned();
        let mut lines = text.split("\r\n");
        let mut answers = String::new();
        while let Some(count) = lines.next().and_then(|line| line.strip_prefix('*')) {
            let words: Vec<_> = lines.by_ref().take(2 * count.parse::<usize>().unwrap()).skip(1).step_by(2).collect();
            answers.push_str(&answer(&words.join(" ")));
        }
        if stream.write_all(answers.as_bytes()).is_err() {
            return;
        }
    }
}

fn hello(mode: &str) -> String {
    format!("%4\r\n+server\r\n+redis\r\n+version\r\n+7.0.15\r\n+proto\r\n:3\r\n+mode\r\n+{mode}\r\n")
}

/// `CLUSTER SLOTS`: of each range its first slot, its last, and its servers.
fn slots(ranges: &[(u16, u16, &[u16])]) -> String {
    let server = |port: &u16| format!("*3\r\n$9\r\n127.0.0.1\r\n:{port}\r\n$2\r\nid\r\n");
    let range = |(first, last, servers): &(u16, u16, &[u16])| {
        let servers: Vec<_> = servers.iter().map(server).collect();
        format!("*{}\r\n:{first}\r\n:{last}\r\n{}", 2 + servers.len(), servers.concat())
    };
    format!("*{}\r\n{}", ranges.len(), ranges.iter().map(range).collect::<String>())
}

fn info(epoch: u64) -> String {
    let text = format!("cluster_state:ok\r\ncluster_current_epoch:{epoch}\r\n");
    format!("${}\r\n{text}\r\n", text.len())
}

/// A node that answers as one, with a map and its epoch, and otherwise with a line.
fn node(port: &Arc<AtomicU16>, epoch: u64, map: impl Fn(u16) -> String + Send + Sync + 'static, line: &str) -> u16 {
    let (own, line) = (Arc::clone(port), line.to_string());
    let started = says(move |command| match command.split(' ').next().unwrap() {
        "HELLO" => hello("cluster"),
        "CLUSTER" if command.ends_with("INFO") => info(epoch),
        "CLUSTER" => map(own.load(Ordering::SeqCst)),
        "READONLY" => "+OK\r\n".into(),
        _ => line.clone(),
    });
    port.store(started, Ordering::SeqCst);
    started
}

const ENTRY: &str = "$1\r\nv\r\n";

#[test]
fn one_that_is_cut_off_from_the_others_is_not_believed() {
    let dead = free_port();
    let (old, new) = (Arc::new(AtomicU16::new(0)), Arc::new(AtomicU16::new(0)));
    // The upper half was at the dead one, which `old` does not know yet. The slot of "foo" is 12182.
    let stale = node(&old, 3, move |own| slots(&[(0, 8191, &[own]), (8192, 16383, &[dead])]), ENTRY);
    let fresh = node(&new, 4, move |own| slots(&[(0, 8191, &[stale]), (8192, 16383, &[own])]), ENTRY);
    let cluster = Cluster::open([stale, fresh].map(|port| format!("redis://127.0.0.1:{port}"))).unwrap();
    eventually("the other one is asked", || cluster.get(Key::from("foo")).is_ok());
    // From now on `stale` is asked too, and would be believed if it was not behind.
    for _ in 0..200 {
        cluster.get(Key::from("foo")).unwrap();
        let _ = cluster.ping();
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_sentinel_that_is_behind_is_not_believed() {
    let (good, dead) = (Server::start(), free_port());
    let sentinel = |port: u16, epoch: u32| {
        says(move |command| match command.split(' ').nth(1) {
            Some("GET-MASTER-ADDR-BY-NAME") => {
                let port = port.to_string();
                format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len())
            }
            Some("MASTER") => format!("*2\r\n$12\r\nconfig-epoch\r\n$1\r\n{epoch}\r\n"),
            Some("REPLICAS") => "*0\r\n".into(),
            _ => hello("sentinel"),
        })
    };
    let sentinels = [sentinel(dead, 1), sentinel(good.port, 2), sentinel(good.port, 2)];
    let servers = Sentinel::open(sentinels.map(|port| format!("redis://127.0.0.1:{port}")), "name").unwrap();
    eventually("another one is asked", || servers.get(Key::from("k")).is_ok());
}

#[test]
fn an_address_that_is_another_servers_by_now() {
    let other = Server::start();
    assert_eq!(other.ask(&["SET", "foo", "of somebody else"]), "+OK");
    let (own, foreign) = (Arc::new(AtomicU16::new(0)), other.port);
    let port = node(&own, 1, move |own| slots(&[(0, 8191, &[own]), (8192, 16383, &[foreign])]), ENTRY);
    let cluster = Cluster::open([format!("redis://127.0.0.1:{port}")]).unwrap();
    let error = cluster.get(Key::from("foo")).unwrap_err();
    assert!(
        error.kind() == ErrorKind::Connection && error.to_string().contains("no longer part of a cluster"),
        "{error}"
    );
}

#[test]
fn a_replica_that_has_lost_its_cluster() {
    let (primary, replica) = (Arc::new(AtomicU16::new(0)), Arc::new(AtomicU16::new(0)));
    let at = node(&replica, 1, |_| unreachable!("it is not asked"), "-CLUSTERDOWN The cluster is down\r\n");
    let port = node(&primary, 1, move |own| slots(&[(0, 16383, &[own, at])]), ENTRY);
    let urls = [format!("redis://127.0.0.1:{port}")];
    let cluster = Cluster::builder(urls).read_from(ReadFrom::Replicas).build().unwrap();
    for _ in 0..3 {
        assert_eq!(cluster.get(Key::from("foo")).unwrap().unwrap(), "v");
        let mut found = Found::new();
        cluster.get_many(&[Key::from("foo"), Key::from("bar")], &mut found).unwrap();
        assert!(found.iter().all(|entry| entry.is_some()));
    }
}

#[test]
fn moved_to_and_fro_ends_in_an_error() {
    let own = Arc::new(AtomicU16::new(0));
    let port = node(&own, 1, |own| slots(&[(0, 16383, &[own])]), "-MOVED 12182 :1\r\n");
    let cluster = Cluster::open([format!("redis://127.0.0.1:{port}")]).unwrap();
    // To a port where nobody is, on the same host.
    assert_eq!(cluster.get(Key::from("foo")).unwrap_err().kind(), ErrorKind::Connection);
    let own = Arc::new(AtomicU16::new(0));
    let sent = Arc::clone(&own);
    let port = says(move |command| match command.split(' ').next().unwrap() {
        "HELLO" => hello("cluster"),
        "CLUSTER" if command.ends_with("INFO") => info(1),
        "CLUSTER" => slots(&[(0, 16383, &[sent.load(Ordering::SeqCst)])]),
        _ => format!("-MOVED 12182 127.0.0.1:{}\r\n", sent.load(Ordering::SeqCst)),
    });
    own.store(port, Ordering::SeqCst);
    let cluster = Cluster::open([format!("redis://127.0.0.1:{port}")]).unwrap();
    let error = cluster.get(Key::from("foo")).unwrap_err();
    assert!(error.to_string().contains("from one to the other"), "{error}");
}

/// What a primary answers that cannot, and where another one is from then on.
fn moves_when_asked(line: &str) -> [String; 2] {
    let asked = Arc::new(AtomicUsize::new(0));
    let (own, other) = (Arc::new(AtomicU16::new(0)), Arc::new(AtomicU16::new(0)));
    let successor = node(&other, 2, |own| slots(&[(0, 16383, &[own])]), ENTRY);
    let (at, line) = (Arc::clone(&own), line.to_string());
    let port = says(move |command| match command.split(' ').next().unwrap() {
        "HELLO" => hello("cluster"),
        "CLUSTER" if command.ends_with("INFO") => info(2),
        "CLUSTER" if asked.load(Ordering::SeqCst) > 0 => slots(&[(0, 16383, &[successor])]),
        "CLUSTER" => slots(&[(0, 16383, &[at.load(Ordering::SeqCst)])]),
        _ => {
            asked.fetch_add(1, Ordering::SeqCst);
            line.clone()
        }
    });
    own.store(port, Ordering::SeqCst);
    [port, successor].map(|port| format!("redis://127.0.0.1:{port}"))
}

#[test]
fn a_primary_that_cannot_answer_may_be_none_any_more() {
    for line in ["-LOADING Redis is loading the dataset in memory\r\n", "-MASTERDOWN Link with MASTER is down\r\n"] {
        let cluster = Cluster::open(moves_when_asked(line)).unwrap();
        let error = cluster.get(Key::from("foo")).unwrap_err();
        assert!(error.kind() == ErrorKind::Connection && error.to_string().contains(&line[1..8]), "{error}");
        eventually("its successor is asked", || cluster.get(Key::from("foo")).is_ok());
        let mut found = Found::new();
        cluster.get_many(&[Key::from("foo"), Key::from("bar")], &mut found).unwrap();
    }
}

#[test]
fn servers_that_have_no_name_of_the_kind_that_is_preferred() {
    // As of Redis 7.0 with hostnames preferred: `?`, and the address elsewhere; as an array, and as a map.
    for more in ["*2\r\n+ip\r\n+127.0.0.1\r\n", "%1\r\n+ip\r\n+127.0.0.1\r\n"] {
        let there = Arc::new(AtomicU16::new(0));
        let at = node(&there, 1, |_| unreachable!("it is not asked"), ENTRY);
        let map = move |_| {
            let unnamed = format!("*4\r\n+?\r\n:{at}\r\n+id\r\n{more}");
            format!("*1\r\n*3\r\n:0\r\n:16383\r\n{unnamed}")
        };
        let seed = node(&Arc::default(), 1, map, "-ERR not here\r\n");
        // Not by the name that it was asked by.
        let cluster = Cluster::open([format!("redis://localhost:{seed}")]).unwrap();
        assert_eq!(cluster.get(Key::from("foo")).unwrap().unwrap(), "v");
    }
    // Sent to one without a name, of which the map says where it is.
    let cluster = Cluster::open(moves_when_asked("-MOVED 12182 ?:1\r\n")).unwrap();
    assert_eq!(cluster.get(Key::from("foo")).unwrap().unwrap(), "v");
}

#[test]
fn what_servers_say_may_be_longer_than_an_entry() {
    let own = Arc::new(AtomicU16::new(0));
    let port = node(&own, 1, |own| slots(&[(0, 16383, &[own])]), ENTRY);
    let cluster = Cluster::builder([format!("redis://127.0.0.1:{port}")]).max_entry(1).build().unwrap();
    assert_eq!(cluster.get(Key::from("foo")).unwrap().unwrap(), "v");
}

#[test]
fn a_name_that_nobody_knows_is_a_setting_where_all_say_so() {
    let knows_none = || {
        says(|command| match command.split(' ').next().unwrap() {
            "SENTINEL" if command.contains("GET-MASTER") => "*-1\r\n".into(),
            "SENTINEL" => "-ERR No such master with that name\r\n".into(),
            _ => hello("sentinel"),
        })
    };
    let told = |ports: &[u16]| {
        let urls = ports.iter().map(|port| format!("redis://127.0.0.1:{port}"));
        let error = Sentinel::open(urls, "nothing").unwrap().get(Key::from("k")).unwrap_err();
        assert!(ports.iter().all(|port| error.to_string().contains(&port.to_string())), "{error}");
        assert!(error.to_string().contains("the sentinel knows no primary of the name nothing"), "{error}");
        error.kind()
    };
    let (live, other, dead) = (knows_none(), knows_none(), free_port());
    assert_eq!(told(&[live, other]), ErrorKind::Config);
    assert_eq!((told(&[live, dead]), told(&[dead, live])), (ErrorKind::Connection, ErrorKind::Connection));
}

#[test]
fn the_first_answer_of_all_is_waited_for_once() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let of_threads = |cluster: &Cluster| cluster.get(Key::from("foo"));
    let of_tasks = |cluster: &Cluster| runtime.block_on(cluster.get_async(Key::from("foo")));
    for get in [&of_threads as &dyn Fn(&Cluster) -> _, &of_tasks] {
        let silent: Vec<_> = (0..5).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let own = Arc::new(AtomicU16::new(0));
        let port = node(&own, 1, |own| slots(&[(0, 16383, &[own])]), ENTRY);
        let ports = silent.iter().map(|seed| seed.local_addr().unwrap().port()).chain([port]);
        let timeout = Duration::from_millis(200);
        let cluster = Cluster::builder(ports.map(|port| format!("redis://127.0.0.1:{port}")));
        let cluster = cluster.connect_timeout(timeout).response_timeout(timeout).build().unwrap();
        let mut late = 0;
        eventually("the one that answers is asked", || match get(&cluster) {
            Ok(entry) => entry.is_some_and(|entry| entry == "v"),
            // Who has not waited says so.
            Err(error) => {
                late += u32::from(error.kind() == ErrorKind::Timeout);
                false
            }
        });
        assert!(late <= 1, "{late} calls waited, one after the other");
    }
}

#[test]
fn a_first_answer_that_has_come_is_given_to_all() {
    let own = Arc::new(AtomicU16::new(0));
    let port = node(&own, 1, |own| slots(&[(0, 16383, &[own])]), ENTRY);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for _ in 0..200 {
        let cluster = Cluster::open([format!("redis://127.0.0.1:{port}")]).unwrap();
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let cluster = cluster.clone();
                runtime.spawn(async move { cluster.get_async(Key::from("foo")).await.unwrap().is_some() })
            })
            .collect();
        assert!(tasks.into_iter().all(|task| runtime.block_on(task).unwrap()));
    }
}

#[test]
fn a_replica_that_turns_us_away_is_not_needed() {
    let primary = Arc::new(AtomicU16::new(0));
    for answer in ["-ERR max number of clients + cluster connections reached\r\n", "-NOPERM no\r\n"] {
        let at = says(move |_| answer.into());
        let port = node(&primary, 1, move |own| slots(&[(0, 16383, &[own, at])]), ENTRY);
        let urls = [format!("redis://127.0.0.1:{port}")];
        let cluster = Cluster::builder(urls).read_from(ReadFrom::Replicas).build().unwrap();
        for _ in 0..10 {
            assert_eq!(cluster.get(Key::from("foo")).unwrap().unwrap(), "v", "{answer}");
        }
    }
}

#[test]
fn of_a_map_that_is_not_understood_the_rest_is() {
    let own = Arc::new(AtomicU16::new(0));
    // The second range has no server at all; the slot of "foo" is 12182, that of "bar" 5061.
    let map = |own: u16| format!("*2\r\n*3\r\n:0\r\n:8191\r\n*3\r\n+?\r\n:{own}\r\n+id\r\n*2\r\n:8192\r\n:16383\r\n");
    let port = node(&own, 1, map, ENTRY);
    let cluster = Cluster::open([format!("redis://127.0.0.1:{port}")]).unwrap();
    assert_eq!(cluster.get(Key::from("bar")).unwrap().unwrap(), "v");
    let error = cluster.get(Key::from("foo")).unwrap_err();
    assert!(error.to_string().contains("12182"), "{error}");
}
