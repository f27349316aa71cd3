//! What one language writes, the other reads: values, ages and deadlines.

use std::time::{Duration, SystemTime};

use dogpile::{Clock, HashExpiry, Key, KeyBuf, Redis, Region, Timestamp};
use serde_json::{Value as Json, json};

use crate::formats::{ADVANCED, Format, HSTORE, TTL, Time, tagged};
use crate::peer::Peer;
use crate::support::Server;
use crate::value::Value;

/// 1471113698.76127, long ago.
const LONG_AGO: Timestamp = Timestamp::from_micros(1_471_113_698_761_270);

/// Calls `test` for each format with each of Python's backends, which are then empty and opened.
fn each(mut test: impl FnMut(&Server, &mut Peer, &Format, &str)) {
    let Some(mut python) = Peer::python() else { return };
    let server = Server::start();
    for format in Format::all() {
        for backend in format.backends() {
            server.ask(&["FLUSHALL"]);
            python.ask(&format.order(&server, backend));
            test(&server, &mut python, &format, backend);
        }
    }
}

/// A key for each value: plain ones; in hashes where the backend knows them, some of each.
fn keys(values: &[Value], backend: &str) -> Vec<KeyBuf> {
    let key = |at: usize| match at % 8 {
        0..7 if backend == HSTORE => Key::from((&format!("hash {}", at % 4), &format!("fïeld {at}"))).to_buf(),
        _ => KeyBuf::new().text("kéy ").int(at),
    };
    (0..values.len()).map(key).collect()
}

fn tagged_all(keys: &[KeyBuf]) -> Json {
    keys.iter().map(tagged).collect()
}

/// What Python has under these keys.
fn python_gets(python: &mut Peer, keys: &[KeyBuf], many: bool) -> Vec<Option<Value>> {
    let answer = python.ask(&json!({"do": "get", "keys": tagged_all(keys), "many": many}));
    answer.as_array().unwrap().iter().map(Value::untagged).collect()
}

fn python_sets(python: &mut Peer, keys: &[KeyBuf], values: &[Value], many: bool) {
    let entries: Vec<_> = keys.iter().zip(values).map(|(key, value)| json!([tagged(key), value.tagged()])).collect();
    python.ask(&json!({"do": "set", "entries": entries, "many": many}));
}

fn rust_gets(region: &Region<Redis, Format>, keys: &[KeyBuf], many: bool) -> Vec<Option<Value>> {
    if many {
        return region.get_many(keys).unwrap();
    }
    keys.iter().map(|key| region.get(key).unwrap()).collect()
}

fn rust_sets(region: &Region<Redis, Format>, keys: &[KeyBuf], values: &[Value], many: bool) {
    let entries: Vec<_> = keys.iter().zip(values.iter().cloned()).collect();
    if many {
        return region.set_many(&entries).unwrap();
    }
    entries.iter().for_each(|(key, value)| region.set(key, value).unwrap());
}

/// What is to be found: all the values, twice the first, and nothing.
fn asked(keys: &[KeyBuf], values: &[Value]) -> (Vec<KeyBuf>, Vec<Option<Value>>) {
    let absent = [Key::from("absent").to_buf()];
    let found = values.iter().chain(&values[..1]).cloned().map(Some).chain([None]);
    (keys.iter().chain(&keys[..1]).chain(&absent).cloned().collect(), found.collect())
}

fn assert_same(got: &[Option<Value>], expected: &[Option<Value>], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!(format!("{got:?}"), format!("{expected:?}"), "{what}");
    }
}

#[test]
fn what_python_writes_rust_reads_and_deletes() {
    each(|server, python, format, backend| {
        let (region, values) = (format.region(server).build().unwrap(), format.from_python());
        let keys = keys(&values, backend);
        let (asked, expected) = asked(&keys, &values);
        for many in [false, true] {
            let what = format!("{} over {backend}, many: {many}", format.name);
            python_sets(python, &keys, &values, many);
            assert_same(&rust_gets(&region, &asked, many), &expected, &what);
            region.delete_many(&keys).unwrap();
            assert_eq!(python_gets(python, &keys, many), vec![None; keys.len()], "{what}");
            assert_eq!(server.ask_int(&["DBSIZE"]), 0);
        }
        assert_eq!(region.stats().undecodable, 0);
    });
}

#[test]
fn what_rust_writes_python_reads_and_deletes() {
    each(|server, python, format, backend| {
        let (region, values) = (format.region(server).build().unwrap(), format.from_rust());
        let keys = keys(&values, backend);
        let (asked, expected) = asked(&keys, &values);
        for many in [false, true] {
            let what = format!("{} over {backend}, many: {many}", format.name);
            rust_sets(&region, &keys, &values, many);
            assert_same(&python_gets(python, &asked, many), &expected, &what);
            python.ask(&json!({"do": "delete", "keys": tagged_all(&keys), "many": many}));
            assert_eq!(rust_gets(&region, &keys, many), vec![None; keys.len()], "{what}");
            assert_eq!(server.ask_int(&["DBSIZE"]), 0);
        }
    });
}

/// Both agree on when an entry was created, and so on when it is stale.
#[test]
fn ages_are_the_same() {
    each(|server, python, format, backend| {
        let (value, what) = (Value::Text("v".into()), format!("{} over {backend}", format.name));
        let keys = keys(&[Value::None, Value::None], backend);
        let at = |clock| format.region(server).clock(clock).expires_after(Duration::from_secs(100)).build().unwrap();
        let mut open = format.order(server, backend);

        // Python wrote it just now.
        let before = Timestamp::from(SystemTime::now());
        python_sets(python, &keys[..1], &[value.clone()], false);
        let after = Timestamp::from(SystemTime::now());
        let created = at(Clock::system()).get_entry::<Value>(&keys[0]).unwrap().unwrap().created;
        match (format.time, created) {
            (Time::Unknown, None) => {}
            (Time::Cut, Some(created)) => {
                assert_eq!(created.as_micros() % 1_000_000, 0, "{what}");
                assert!((before.as_secs()..=after.as_secs()).contains(&created.as_secs()), "{what}: {created:?}");
            }
            (Time::Exact, Some(created)) => {
                assert_ne!(created.as_micros() % 1_000_000, 0, "{what}");
                assert!((before..=after).contains(&created), "{what}: {created:?}");
            }
            (time, created) => panic!("{what}: {time:?} {created:?}"),
        }
        let ages = format.time != Time::Unknown;
        for (passed, fresh) in [(98, true), (102, !ages)] {
            let then = at(Clock::manual(after.plus(Duration::from_secs(passed))));
            assert_eq!(then.get::<Value>(&keys[0]).unwrap().is_some(), fresh, "{what}, {passed} s later");
            assert_eq!(then.ignoring_expiry().get::<Value>(&keys[0]).unwrap(), Some(value.clone()), "{what}");
            let served = then.get_or_create(&keys[0], || Ok::<_, ()>(Value::Int(passed.into()))).unwrap();
            assert_eq!(served, if fresh { value.clone() } else { Value::Int(passed.into()) }, "{what}");
        }

        // Rust wrote it a while ago.
        for (passed, fresh) in [(98, true), (102, !ages)] {
            let now = Timestamp::from(SystemTime::now());
            let then = Timestamp::from_micros(now.as_micros() - passed * 1_000_000);
            at(Clock::manual(then)).set(&keys[1], &value).unwrap();
            open["expires"] = json!(100);
            python.ask(&open);
            let expected = if fresh { value.clone() } else { Value::Text("Python's, number 1".into()) };
            assert_eq!(
                python_gets(python, &keys[1..], true),
                [fresh.then(|| value.clone())],
                "{what}, {passed} s later"
            );
            server.ask(&["DEL", "creators"]);
            open["name"] = json!("Python");
            python.ask(&open);
            let created = python.ask(&json!({"do": "get_or_create", "key": tagged(&keys[1])}));
            assert_eq!(Value::untagged(&created[0]), Some(expected), "{what}, {passed} s later");
        }

        // Rust wrote it long ago.
        at(Clock::manual(LONG_AGO)).set(&keys[1], &value).unwrap();
        open["expires"] = json!(null);
        python.ask(&open);
        let created = python.ask(&json!({"do": "created", "key": tagged(&keys[1])}));
        assert_eq!(created[1], 2, "{what}");
        match format.time {
            Time::Unknown => assert!(created[0].as_f64().unwrap() >= before.as_secs_f64(), "{what}: {created}"),
            _ if format.name.ends_with(".seconds") => assert_eq!(created[0], LONG_AGO.as_secs(), "{what}"),
            _ => assert_eq!(created[0].as_f64().unwrap().to_bits(), LONG_AGO.as_secs_f64().to_bits(), "{what}"),
        }
    });
}

/// The server's TTLs, for keys and for hashes under each of the three rules.
#[test]
fn deadlines_are_the_same() {
    let Some(mut python) = Peer::python() else { return };
    let (server, format) = (Server::start(), Format::named("msgpack.seconds"));
    let ttl = |key: &str| match server.ask_int(&["PTTL", key]) {
        left @ 290_001..=300_000 => assert!(left > 0),
        left => panic!("{key} has a TTL of {left} ms"),
    };
    python.ask(&format.order(&server, ADVANCED));
    let region = format.region(&server).build().unwrap();
    let (plain, values) = (keys(&vec![Value::None; 4], ADVANCED), vec![Value::Int(1); 4]);
    python_sets(&mut python, &plain[..1], &values[..1], false);
    python_sets(&mut python, &plain[1..2], &values[..1], true);
    rust_sets(&region, &plain[2..3], &values[..1], false);
    rust_sets(&region, &plain[3..], &values[..1], true);
    plain.iter().for_each(|key| ttl(std::str::from_utf8(key.as_key().server_key()).unwrap()));

    // The TTL of a hash that is written to: when it is new, has a TTL of 100, has none.
    let rules = [
        (json!(false), HashExpiry::Never, [-1, 100, -1]),
        (json!(null), HashExpiry::OnCreate, [300, 100, -1]),
        (json!(true), HashExpiry::Always, [300, 300, 300]),
    ];
    for (python_rule, rule, mut expected) in rules {
        let redis = Redis::builder(&server.url()).hash_expiry(rule).build().unwrap();
        let region = Region::builder(redis).codec(format.clone()).ttl(TTL).build().unwrap();
        let mut open = format.order(&server, HSTORE);
        open["redis_expiration_time_hash"] = python_rule;
        python.ask(&open);
        for (by_rust, many) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut write = |field: &str| {
                let keys = [Key::from(("hash", field)).to_buf()];
                if by_rust {
                    rust_sets(&region, &keys, &values[..1], many);
                } else {
                    python_sets(&mut python, &keys, &values[..1], many);
                }
            };
            server.ask(&["FLUSHALL"]);
            write("first");
            let first = server.ask_int(&["TTL", "hash"]);
            server.ask(&["EXPIRE", "hash", "100"]);
            write("second");
            let second = server.ask_int(&["TTL", "hash"]);
            server.ask(&["PERSIST", "hash"]);
            write("third");
            let third = server.ask_int(&["TTL", "hash"]);
            let ttl = |seconds: i64| if seconds < 0 { -1 } else { (seconds + 5) / 100 * 100 };
            if by_rust && rule == HashExpiry::OnCreate {
                // Where Python leaves a hash without a TTL as it is, Rust gives it one.
                expected[2] = 300;
            }
            assert_eq!([first, second, third].map(ttl), expected, "{rule:?}, by Rust: {by_rust}, many: {many}");
        }
    }
}

/// What only one language has such values for, as Python expressions.
const FOREIGN: [&str; 20] = [
    "datetime.datetime(2020, 1, 2, 3, 4, 5)",
    "datetime.timedelta(1)",
    "decimal.Decimal('1.5')",
    "pathlib.PurePosixPath('/a')",
    "complex(1, 2)",
    "{1, 2}",
    "{1: 'a'}",
    "{None: 'a'}",
    "{(1, 2): 'a'}",
    "float('nan')",
    "(1, (2, 3))",
    "'\\ud800'",
    "10 ** 40",
    "msgpack.ExtType(5, b'abc')",
    "msgpack.Timestamp(5)",
    "range(5)",
    "bytearray(b'abc')",
    "Exception('a')",
    "len",
    "NO_VALUE",
];

/// What Python writes and Rust cannot read is a miss there, which the next creation overwrites; what Rust does read is
/// what Python reads.
#[test]
fn what_rust_cannot_read_is_a_miss() {
    each(|server, python, format, backend| {
        let region = format.region(server).build().unwrap();
        let keys = keys(&[Value::None], backend);
        let mut misses = 0;
        for expression in FOREIGN {
            let entry = json!([tagged(&keys[0]), {"$": "python", "expression": expression}]);
            if python.try_ask(&json!({"do": "set", "entries": [entry]})).is_err() {
                // The format refuses it.
                continue;
            }
            let what = format!("{expression} as {} over {backend}", format.name);
            match region.get::<Value>(&keys[0]).unwrap() {
                // JSON has one kind of numbers, and serde_json reads those beyond 64 bits as floats.
                Some(value) if expression == "10 ** 40" => assert_eq!(value, Value::Float(1e40), "{what}"),
                Some(value) => assert_same(&[Some(value)], &python_gets(python, &keys, false), &what),
                None => {
                    misses += 1;
                    assert_eq!(region.stats().undecodable, misses, "{what}");
                    let made = region.get_or_create(&keys[0], || Ok::<_, ()>(Value::Text("made".into()))).unwrap();
                    misses += 1;
                    assert_eq!(region.stats().undecodable, misses, "{what}");
                    assert_eq!(python_gets(python, &keys, false), [Some(made)], "{what}");
                }
            }
        }
        assert!(misses > 0, "{} has all that there is in Python", format.name);
    });
}
