//! What one language writes, the other reads: values, ages and deadlines.

use std::time::{Duration, SystemTime};

use dogpile::{Clock, HashTtl, Key, KeyBuf, Redis, Region, Timestamp};
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

/// As they are shown: so NaN is itself, and -0.0 is not 0.0.
fn assert_same(got: &[Option<Value>], expected: &[Option<Value>], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!(format!("{got:?}"), format!("{expected:?}"), "{what}");
    }
}

#[test]
fn what_python_writes_rust_reads_and_deletes() {
    each(|server, python, format, backend| {
        let (region, values) = (format.region(server).build().unwrap(), format.python_writes());
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
        let (region, values) = (format.region(server).build().unwrap(), format.rust_writes());
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

/// How much later, in seconds, a value that expires after 100 is looked at, and whether it is fresh then.
const LATER: [(u64, bool); 2] = [(90, true), (110, false)];

fn expiring(server: &Server, format: &Format, clock: Clock) -> Region<Redis, Format> {
    format.region(server).clock(clock).stale_after(Duration::from_secs(100)).build().unwrap()
}

#[test]
fn rust_knows_how_old_values_of_python_are() {
    each(|server, python, format, backend| {
        let (value, what) = (Value::Text("v".into()), format!("{} over {backend}", format.name));
        let keys = keys(&[Value::None], backend);
        let before = Timestamp::from(SystemTime::now());
        python_sets(python, &keys, std::slice::from_ref(&value), false);
        let after = Timestamp::from(SystemTime::now());
        let created = expiring(server, format, Clock::system()).get_entry::<Value>(&keys[0]).unwrap().unwrap().created;
        match (format.time, created) {
            (Time::Unknown, None) => {}
            (Time::Cut, Some(created)) => {
                assert_eq!(created.as_micros() % 1_000_000, 0, "{what}");
                assert!((before.as_secs()..=after.as_secs()).contains(&created.as_secs()), "{what}: {created:?}");
            }
            (Time::Exact, Some(created)) => assert!((before..=after).contains(&created), "{what}: {created:?}"),
            (time, created) => panic!("{what}: {time:?} {created:?}"),
        }
        for (passed, fresh) in LATER {
            let fresh = fresh || format.time == Time::Unknown;
            let then = expiring(server, format, Clock::manual(after.plus(Duration::from_secs(passed))));
            assert_eq!(then.get(&keys[0]).unwrap(), fresh.then(|| value.clone()), "{what}, {passed} s later");
            assert_eq!(then.ignoring_expiry().get(&keys[0]).unwrap(), Some(value.clone()), "{what}");
            let made = then.get_or_create(&keys[0], || Ok::<_, ()>(Value::None)).unwrap();
            assert_eq!(made, if fresh { value.clone() } else { Value::None }, "{what}, {passed} s later");
        }
    });
}

#[test]
fn python_knows_how_old_values_of_rust_are() {
    each(|server, python, format, backend| {
        let (value, what) = (Value::Text("v".into()), format!("{} over {backend}", format.name));
        let keys = keys(&[Value::None], backend);
        let rust_sets_at = |time| expiring(server, format, Clock::manual(time)).set(&keys[0], &value).unwrap();

        let before = Timestamp::from(SystemTime::now());
        rust_sets_at(LONG_AGO);
        let created = python.ask(&json!({"do": "created", "key": tagged(&keys[0])}));
        let expected = match format.time {
            Time::Unknown => None,
            _ if format.name.ends_with(".seconds") => Some(json!(LONG_AGO.as_secs())),
            _ => Some(json!(LONG_AGO.as_secs_f64())),
        };
        match expected {
            Some(expected) => assert_eq!(created, json!([expected, 2]), "{what}"),
            // Python takes it for created when it is read.
            None => assert!(created[0].as_f64().unwrap() >= before.as_secs_f64(), "{what}: {created}"),
        }

        let mut open = format.order(server, backend);
        (open["name"], open["expires"]) = (json!("Python"), json!(100));
        python.ask(&open);
        for (passed, fresh) in LATER {
            let fresh = fresh || format.time == Time::Unknown;
            let now = Timestamp::from(SystemTime::now());
            rust_sets_at(Timestamp::from_micros(now.as_micros() - passed * 1_000_000));
            assert_eq!(python_gets(python, &keys, true), [fresh.then(|| value.clone())], "{what}, {passed} s later");
            let made = python.ask(&json!({"do": "get_or_create", "key": tagged(&keys[0])}));
            let expected = if fresh { json!(["v"]) } else { json!(["Python's, number 1"]) };
            assert_eq!(made, expected, "{what}, {passed} s later");
        }
    });
}

/// The server's TTLs, for keys and for hashes under each of the three rules.
#[test]
fn deadlines_are_the_same() {
    let Some(mut python) = Peer::python() else { return };
    let (server, format) = (Server::start(), Format::named("msgpack.seconds"));
    python.ask(&format.order(&server, ADVANCED));
    let region = format.region(&server).build().unwrap();
    let (plain, values) = (keys(&vec![Value::None; 4], ADVANCED), vec![Value::Int(1); 4]);
    python_sets(&mut python, &plain[..1], &values[..1], false);
    python_sets(&mut python, &plain[1..2], &values[..1], true);
    rust_sets(&region, &plain[2..3], &values[..1], false);
    rust_sets(&region, &plain[3..], &values[..1], true);
    for key in &plain {
        let left = server.ask_int(&["PTTL", tagged(key).as_str().unwrap()]);
        assert!((290_000..=300_000).contains(&left), "{key:?} has a TTL of {left} ms");
    }

    // The TTL of a hash that is written to: when it is new, has a TTL of 100, has none.
    let rules = [
        (json!(false), HashTtl::Never, [-1, 100, -1]),
        (json!(null), HashTtl::OnCreate, [300, 100, -1]),
        (json!(true), HashTtl::Always, [300, 300, 300]),
    ];
    for (python_rule, rule, mut expected) in rules {
        let redis = Redis::builder(&server.url()).hash_ttl(rule).build().unwrap();
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
            if by_rust && rule == HashTtl::OnCreate {
                // Where Python leaves a hash without a TTL as it is, Rust gives it one.
                expected[2] = 300;
            }
            assert_eq!([first, second, third].map(ttl), expected, "{rule:?}, by Rust: {by_rust}, many: {many}");
        }
    }
}

/// What only one language has such values for, as Python expressions.
const FOREIGN: [&str; 23] = [
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
    // Too deep, itself in itself, and the same three times.
    "functools.reduce(lambda inner, _: [inner], range(200), 0)",
    "(lambda list: list.append(list) or list)([])",
    "[{'a': [1]}] * 3",
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
