//! Structs here are dicts there.

use dogpile::codec::Codec;
use dogpile::codec::python::{JsonMeta, Pickle};
use dogpile::codec::{Full, Seconds};
use dogpile::{Json, Msgpack, Region, Serde};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::formats::{ADVANCED, Format};
use crate::peer::Peer;
use crate::support::Server;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Profile {
    id: u32,
    name: String,
    score: f64,
    active: bool,
    email: Option<String>,
    tags: Vec<String>,
    address: Address,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Address {
    street: (String, u16),
}

dogpile::msgpack! {
    Profile { id, name, score, active, email, tags, address }
    Address { street }
}

fn shares(server: &Server, python: &mut Peer, format: &str, codec: impl Codec<Profile>) {
    server.ask(&["FLUSHALL"]);
    python.ask(&Format::named(format).order(server, ADVANCED));
    let region = Region::builder(server.redis()).codec(codec).build().unwrap();
    let profile = Profile {
        id: 15,
        name: "Ann Exämple".into(),
        score: 17.25,
        active: true,
        email: None,
        tags: vec!["reader".into(), "editor".into()],
        address: Address { street: ("Weg".into(), 7) },
    };
    let dict = json!({
        "id": 15, "name": "Ann Exämple", "score": 17.25, "active": true, "email": null, "tags": ["reader", "editor"],
        "address": {"street": ["Weg", 7]},
    });
    region.set("rust", &profile).unwrap();
    assert_eq!(python.ask(&json!({"do": "get", "keys": ["rust"]})), json!([dict]), "{format}");

    python.ask(&json!({"do": "set", "entries": [["python", dict]]}));
    assert_eq!(region.get::<Profile>("python").unwrap(), Some(profile.clone()), "{format}");

    // Python's dicts come in any order, with more in them and without what is None, and have integers for floats.
    let mut other = dict;
    let score = other.as_object_mut().unwrap().remove("score").unwrap();
    assert_eq!(score, 17.25);
    other.as_object_mut().unwrap().remove("email");
    other["more"] = json!([{"of": "it"}]);
    other["score"] = json!(17);
    python.ask(&json!({"do": "set", "entries": [["python", other]]}));
    assert_eq!(region.get::<Profile>("python").unwrap(), Some(Profile { score: 17.0, ..profile }), "{format}");
}

#[test]
fn structs_are_dicts() {
    let Some(mut python) = Peer::python() else { return };
    let server = Server::start();
    shares(&server, &mut python, "msgpack.full", Msgpack::<Full>::new());
    shares(&server, &mut python, "msgpack.seconds", Serde::<Seconds>::new());
    shares(&server, &mut python, "json.seconds", Json::<Seconds>::new());
    shares(&server, &mut python, "pickle.own", Pickle::<JsonMeta>::new());
    shares(&server, &mut python, "pickle.seconds", Pickle::<Seconds>::new());
}
