//! The table of formats that both languages have, and what each can carry.

use std::sync::Arc;
use std::time::Duration;

use dogpile::codec::python::{JsonMeta, Pickle};
use dogpile::codec::{Bare, Full, Seconds, Slice};
use dogpile::codec::{Codec, CodecError, Meta};
use dogpile::{Json, Key, KeyBuf, Msgpack, Raw, Redis, Region, RegionBuilder, Serde, Timestamp};
use serde_json::{Value as AnyJson, json};

use crate::support::Server;
use crate::value::Value;

/// What is known of an entry's creation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Time {
    Unknown,
    /// Whole seconds; so does Python cut it in the metadata of the advanced package, where Rust does not.
    Cut,
    /// Microseconds, in both languages.
    Exact,
}

/// A format: how Rust writes it, and what Python calls it.
#[derive(Clone)]
pub struct Format {
    /// As the Python peer knows it.
    pub name: &'static str,
    codec: Arc<dyn Codec<Value> + Send + Sync>,
    pub time: Time,
    shares: Shares,
}

/// Which values Python writes and Rust reads, and which Rust writes and Python reads.
type Shares = [fn(&Value) -> bool; 2];
const MSGPACK: Shares = [in_msgpack; 2];
const JSON: Shares = [in_json; 2];
const RAW: Shares = [in_raw, in_raw_of_python];
const PICKLE: Shares = [|_| true, in_msgpack];

/// The plain backend of dogpile.cache, and those of `dogpile_backend_redis_advanced`.
pub const OWN: &str = "dogpile.cache.redis";
pub const ADVANCED: &str = "dogpile_backend_redis_advanced";
pub const HSTORE: &str = "dogpile_backend_redis_advanced.hstore";

/// How long the server keeps what is written.
pub const TTL: Duration = Duration::from_secs(300);

impl Format {
    fn new(name: &'static str, codec: impl Codec<Value> + Send + Sync + 'static, time: Time, shares: Shares) -> Self {
        Format { name, codec: Arc::new(codec), time, shares }
    }

    pub fn all() -> Vec<Self> {
        vec![
            Self::new("msgpack.full", Msgpack::<Full>::new(), Time::Cut, MSGPACK),
            Self::new("msgpack.seconds", Msgpack::<Seconds>::new(), Time::Cut, MSGPACK),
            Self::new("msgpack.bare", Msgpack::<Bare>::new(), Time::Unknown, MSGPACK),
            Self::new("msgpack.own", Msgpack::<JsonMeta>::new(), Time::Exact, MSGPACK),
            Self::new("json.full", Json::<Full>::new(), Time::Cut, JSON),
            Self::new("json.seconds", Json::<Seconds>::new(), Time::Cut, JSON),
            Self::new("json.bare", Json::<Bare>::new(), Time::Unknown, JSON),
            Self::new("json.own", Json::<JsonMeta>::new(), Time::Exact, JSON),
            // The same, by serde.
            Self::new("msgpack.full", Serde::<Full>::new(), Time::Cut, MSGPACK),
            Self::new("msgpack.own", Serde::<JsonMeta>::new(), Time::Exact, MSGPACK),
            // Its metadata is read by Python with any time, and written with whole seconds.
            Self::new("pickle.full", Pickle::<Full>::new(), Time::Cut, PICKLE),
            Self::new("pickle.seconds", Pickle::<Seconds>::new(), Time::Cut, PICKLE),
            Self::new("pickle.bare", Pickle::<Bare>::new(), Time::Unknown, PICKLE),
            Self::new("pickle.own", Pickle::<JsonMeta>::new(), Time::Exact, PICKLE),
            Self::new("raw", Raw, Time::Unknown, RAW),
        ]
    }

    pub fn named(name: &str) -> Self {
        Self::all().into_iter().find(|format| format.name == name).unwrap_or_else(|| panic!("no format {name}"))
    }

    /// Python's backends that can have it.
    pub fn backends(&self) -> &'static [&'static str] {
        if self.name.ends_with(".own") { &[OWN, ADVANCED, HSTORE] } else { &[ADVANCED, HSTORE] }
    }

    /// What Python can write and Rust read.
    pub fn python_writes(&self) -> Vec<Value> {
        Value::all().into_iter().filter(|value| value.all_of_it(self.shares[0])).collect()
    }

    /// What Rust can write and Python read.
    pub fn rust_writes(&self) -> Vec<Value> {
        Value::all().into_iter().filter(|value| value.all_of_it(self.shares[1])).collect()
    }

    /// How Rust has it.
    pub fn region(&self, server: &Server) -> RegionBuilder<Redis, Format> {
        Region::builder(server.redis()).codec(self.clone()).ttl(TTL)
    }

    /// The order that makes Python have it. Its settings can be changed.
    pub fn order(&self, server: &Server, backend: &str) -> AnyJson {
        json!({
            "do": "open", "port": server.port, "backend": backend, "codec": self.name,
            // Without one, Python deletes each hash that it makes: by `EXPIRE hash 0`.
            "redis_expiration_time": TTL.as_secs(),
        })
    }
}

impl Codec<Value> for Format {
    fn encode(&self, value: &Value, created: Timestamp, out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.codec.encode(value, created, out)
    }

    fn decode(&self, entry: Slice<'_>) -> Result<(Value, Meta), CodecError> {
        self.codec.decode(entry)
    }
}

fn in_64_bits(int: i128) -> bool {
    u64::try_from(int).is_ok() || i64::try_from(int).is_ok()
}

fn in_msgpack(value: &Value) -> bool {
    !matches!(value, Value::Int(int) if !in_64_bits(*int))
}

fn in_json(value: &Value) -> bool {
    match value {
        Value::Int(int) => in_64_bits(*int),
        Value::Float(float) => float.is_finite(),
        Value::Bytes(_) => false,
        _ => true,
    }
}

fn in_raw(value: &Value) -> bool {
    match value {
        Value::Text(text) => !text.contains('\x7f'),
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Bytes(_) => true,
        _ => false,
    }
}

/// Python fails on reading `i\x7fTrue`, which it writes, and on bytes with its tag.
fn in_raw_of_python(value: &Value) -> bool {
    match value {
        Value::Bool(_) => false,
        Value::Bytes(bytes) => !bytes.contains(&0x7f),
        _ => in_raw(value),
    }
}

/// A key as the Python peer takes it: text, or a pair.
pub fn tagged(key: &KeyBuf) -> AnyJson {
    let text = |bytes| std::str::from_utf8(bytes).unwrap();
    match key.as_key() {
        Key::Plain(key) => json!(text(key)),
        Key::Field { hash, field } => json!([text(hash), text(field)]),
    }
}

/// The same, read.
pub fn untagged(key: &AnyJson) -> KeyBuf {
    match key.as_str() {
        Some(key) => Key::from(key).to_buf(),
        None => Key::from((key[0].as_str().unwrap(), key[1].as_str().unwrap())).to_buf(),
    }
}
