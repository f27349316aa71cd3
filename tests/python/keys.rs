//! Keys that are made: of the arguments of cached functions, and by digests.

use dogpile::codec::python::function_name;
use dogpile::keymap::Digest;
use dogpile::region::KeyArgs;
use serde_json::{Value as Json, json};

use crate::formats::{ADVANCED, Format, OWN};
use crate::peer::Peer;
use crate::support::Server;
use crate::value::Value;

/// Calls both functions with the same arguments, without and with a namespace, first one and then the other.
fn share<A: KeyArgs + 'static>(server: &Server, python: &mut Peer, arguments: A, tagged: &Json) {
    let region = Format::named("pickle.own").region(server).build().unwrap();
    for (namespace, rust_first) in [(None, false), (None, true), (Some("v 2"), false), (Some("v 2"), true)] {
        server.ask(&["FLUSHALL"]);
        let made = Value::Text("Rust's".into());
        let joined = region.function(&function_name("__main__", "joined", namespace), |_| Ok::<_, ()>(made.clone()));
        let first = rust_first.then(|| joined.call(&arguments).unwrap());
        let answer = python.ask(&json!({"do": "call", "arguments": tagged, "namespace": namespace}));
        assert_eq!(joined.key(&arguments).as_key(), answer[0].as_str().unwrap().into());
        let then = Value::untagged(&answer[1]).unwrap();
        assert_eq!(joined.call(&arguments).unwrap(), then, "{tagged}");
        assert_eq!(then == made, rust_first, "{tagged}: {then:?}");
        assert_eq!(first.unwrap_or_else(|| then.clone()), then, "{tagged}");
        assert_eq!(server.ask_int(&["DBSIZE"]), 1);
    }
}

#[test]
fn functions_share_their_entries() {
    let Some(mut python) = Peer::python() else { return };
    let server = Server::start();
    python.ask(&Format::named("pickle.own").order(&server, OWN));
    let mut share_all = |arguments: &[Json]| {
        for tagged in arguments {
            let argument = Value::untagged(tagged).unwrap();
            match argument {
                Value::None => share(&server, &mut python, None::<i64>, &json!([tagged])),
                Value::Bool(is) => share(&server, &mut python, is, &json!([tagged])),
                Value::Int(int) => share(&server, &mut python, int, &json!([tagged])),
                Value::Float(float) => share(&server, &mut python, float, &json!([tagged])),
                Value::Text(text) => share(&server, &mut python, text, &json!([tagged])),
                other => panic!("{other:?} is no argument"),
            }
        }
    };
    let arguments = Value::all().into_iter().filter(|value| match value {
        Value::Text(text) => text.len() < 1000,
        Value::Bytes(_) | Value::List(_) | Value::Dict(_) => false,
        _ => true,
    });
    share_all(&arguments.map(|value| value.tagged()).collect::<Vec<_>>());
    // Where Python begins to write exponents, and ends.
    let floats =
        [1e15, 9_999_999_999_999_998.0, 123_456_789_012_345_680.0, 1e22, 1e-4, 0.000_123, 1e-5, 1.5e-7, -2.5e-300];
    let odd = [f64::NAN, f64::NEG_INFINITY, f64::MAX, f64::MIN_POSITIVE, 100.0, 1.0 / 3.0];
    share_all(&floats.iter().chain(&odd).map(|float| Value::Float(*float).tagged()).collect::<Vec<_>>());

    share(&server, &mut python, (), &json!([]));
    share(&server, &mut python, (15_u64, 0.5, None::<String>), &json!([15, 0.5, null]));
    share(&server, &mut python, (true, "a b", Some("c"), Some(-1.0)), &json!([true, "a b", "c", -1.0]));
}

#[test]
fn functions_of_many_share_their_entries() {
    let Some(mut python) = Peer::python() else { return };
    let (server, format) = (Server::start(), Format::named("pickle.own"));
    python.ask(&format.order(&server, OWN));
    let region = format.region(&server).build().unwrap();
    let doubled = region.function_many(&function_name("__main__", "doubled", Some("v2")), |numbers: &[&f64]| {
        Ok::<_, ()>(numbers.iter().map(|number| Value::Text(format!("Rust's {number:?}"))).collect())
    });
    let texts = |texts: &[&str]| texts.iter().map(|text| Value::Text((*text).into())).collect::<Vec<_>>();
    assert_eq!(doubled.call(&[1.5, 2.0]).unwrap(), texts(&["Rust's 1.5", "Rust's 2.0"]));
    let answer = python.ask(&json!({"do": "call_many", "arguments": [2.0, 1e16, 1.5], "namespace": "v2"}));
    assert_eq!(answer, json!(["Rust's 2.0", "Python's 1e+16", "Rust's 1.5"]));
    assert_eq!(doubled.call(&[3.0, 1e16]).unwrap(), texts(&["Rust's 3.0", "Python's 1e+16"]));
}

/// Lengths are compared in characters.
#[test]
fn digests_are_the_same() {
    let Some(mut python) = Peer::python() else { return };
    let (server, format) = (Server::start(), Format::named("msgpack.seconds"));
    let short = "k".repeat(39);
    for (mangler, digest, keys) in [
        (json!(0), Digest::always(), ["", "key", "schlüssel 🎉", &short]),
        (json!(40), Digest::from_length(40), ["", &"é".repeat(39), &short, &"k".repeat(40)]),
    ] {
        let mut open = format.order(&server, ADVANCED);
        open["mangled_from"] = mangler;
        python.ask(&open);
        let region = format.region(&server).keys(digest).build().unwrap();
        for key in keys {
            server.ask(&["FLUSHALL"]);
            python.ask(&json!({"do": "set", "entries": [[key, "Python's"]]}));
            assert_eq!(region.get::<Value>(key).unwrap(), Some(Value::Text("Python's".into())), "{key}");
            region.set(key, &Value::Text("Rust's".into())).unwrap();
            assert_eq!(python.ask(&json!({"do": "get", "keys": [key]})), json!(["Rust's"]), "{key}");
            assert_eq!(server.ask_int(&["DBSIZE"]), 1);
        }
    }
}
