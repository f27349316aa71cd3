//! Cached functions: what one in Python made, one in Rust finds, and the other way round.

use dogpile::KeyArgs;
use dogpile::codec::python::function_name;
use serde_json::{Value as Json, json};

use crate::formats::{Format, OWN};
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
