//! The codecs against bytes that the Python packages wrote, against damaged bytes, and against themselves.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use bytestring::ByteString;
use dogpile::Timestamp;
#[cfg(feature = "json")]
use dogpile::codec::Json;
#[cfg(feature = "serde")]
use dogpile::codec::Serde;
use dogpile::codec::Slice;
use dogpile::codec::{Bare, Codec, Full, LazyMap, Msgpack, Pack, Raw, RawValue, Seconds, Unpack};
#[cfg(feature = "python")]
use dogpile::codec::{
    CodecErrorKind,
    python::{JsonMeta, Pickle},
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// 1471113698.76127, when all entries of the file were created.
const CREATED: Timestamp = Timestamp::from_micros(1_471_113_698_761_270);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pair {
    one: u32,
    two: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Profile {
    id: u32,
    name: String,
    tags: Vec<String>,
    score: f64,
    nested: BTreeMap<String, Option<u8>>,
}

dogpile::msgpack! {
    Pair { one, two }
    Profile { id, name, tags, score, nested }
}

/// Bytes as serde sees them.
#[derive(Debug, PartialEq)]
struct Blob(Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Blob)
    }
}

/// A row of the file: a value, and its bytes as the packages wrote them.
struct Row(Value);

impl Row {
    fn all() -> Vec<Row> {
        let file: Value = serde_json::from_str(include_str!("data/reference.json")).unwrap();
        let rows: Vec<Row> = file["rows"].as_array().unwrap().iter().cloned().map(Row).collect();
        assert_eq!(rows.len(), 53);
        rows
    }

    fn kind(&self) -> &str {
        self.0["kind"].as_str().unwrap()
    }

    /// The bytes of a column; `None` where the packages refuse the value.
    fn bytes(&self, column: &str) -> Option<Bytes> {
        self.0.get(column)?.as_str().map(|digits| unhex(digits).into())
    }

    fn int(&self) -> i128 {
        let value = &self.0["value"];
        match value.get("$int") {
            Some(digits) => digits.as_str().unwrap().parse().unwrap(),
            None => value.as_i64().unwrap().into(),
        }
    }

    fn octets(&self) -> Vec<u8> {
        unhex(self.0["value"]["$bytes"].as_str().unwrap())
    }

    fn value<T: DeserializeOwned>(&self) -> T {
        serde_json::from_value(self.0["value"].clone()).unwrap()
    }
}

fn unhex(digits: &str) -> Vec<u8> {
    digits.as_bytes().chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn encode<V>(codec: &impl Codec<V>, value: &V) -> Vec<u8> {
    let mut out = Vec::new();
    codec.encode(value, CREATED, &mut out).unwrap();
    out
}

/// A column is read as `value`, with the metadata that its name promises.
fn reads<V: PartialEq + Debug>(row: &Row, column: &str, codec: &impl Codec<V>, value: &V) -> Bytes {
    let entry = row.bytes(column).unwrap_or_else(|| panic!("no {column} in {}", row.0));
    let (read, meta) =
        codec.decode(Slice::from(&entry)).unwrap_or_else(|error| panic!("{column} of {}: {error}", row.0));
    assert_eq!(read, *value, "{column}");
    let (created, version) = match column.split_once('.').map(|(_, envelope)| envelope) {
        Some("seconds") if column == "pickle.seconds" => (Some(Timestamp::from_secs(CREATED.as_secs())), Some(2)),
        Some("seconds") => (Some(Timestamp::from_secs(CREATED.as_secs())), None),
        Some("json" | "pickle") => (Some(CREATED), Some(2)), // of dogpile
        Some("full" | "full.v1_first") => (Some(CREATED), Some(if column.ends_with("v1_first") { 1 } else { 2 })),
        _ => (None, None),
    };
    assert_eq!((meta.created, meta.version), (created, version), "{column}");
    entry
}

/// A column is read as `value`, and `value` is written as that column.
fn both<V: PartialEq + Debug>(row: &Row, column: &str, codec: &impl Codec<V>, value: &V) {
    let entry = reads(row, column, codec, value);
    assert_eq!(encode(codec, value), entry, "{column} of {}", row.0);
}

fn msgpack<V: Pack + Unpack + PartialEq + Debug>(row: &Row, value: &V) {
    both(row, "msgpack.bare", &Msgpack::<Bare>::new(), value);
    both(row, "msgpack.seconds", &Msgpack::<Seconds>::new(), value);
    both(row, "msgpack.full", &Msgpack::<Full>::new(), value);
    reads(row, "msgpack.full.v1_first", &Msgpack::<Full>::new().version(1), value);
}

#[cfg(feature = "serde")]
fn by_serde<V: Serialize + DeserializeOwned + PartialEq + Debug>(row: &Row, value: &V) {
    both(row, "msgpack.bare", &Serde::<Bare>::new(), value);
    both(row, "msgpack.seconds", &Serde::<Seconds>::new(), value);
    both(row, "msgpack.full", &Serde::<Full>::new(), value);
    reads(row, "msgpack.full.v1_first", &Serde::<Full>::new().version(1), value);
}

#[cfg(not(feature = "serde"))]
fn by_serde<V>(_: &Row, _: &V) {}

#[cfg(feature = "json")]
fn json<V: Serialize + DeserializeOwned + PartialEq + Debug>(row: &Row, value: &V) {
    fn one<V: PartialEq + Debug>(row: &Row, column: &str, codec: &impl Codec<V>, value: &V) {
        let entry = reads(row, column, codec, value);
        let ours = encode(codec, value);
        assert!(ours.len() <= entry.len(), "{column} of {}", row.0);
        let parse = |json: &[u8]| serde_json::from_slice::<Value>(json).unwrap();
        assert_eq!(parse(&ours), parse(&entry), "{column}");
    }
    one(row, "json.bare", &Json::<Bare>::new(), value);
    one(row, "json.seconds", &Json::<Seconds>::new(), value);
    one(row, "json.full", &Json::<Full>::new(), value);
    #[cfg(feature = "python")]
    {
        reads(row, "dogpile.json", &Json::<JsonMeta>::new(), value);
        let (ours, theirs) = (encode(&Json::<JsonMeta>::new(), value), row.bytes("dogpile.json").unwrap());
        let payload = encode(&Json::<Bare>::new(), value);
        let head = theirs.iter().position(|byte| *byte == b'|').unwrap() + 1;
        assert_eq!(ours, [&theirs[..head], &payload].concat(), "of {}", row.0);
    }
}

#[cfg(not(feature = "json"))]
fn json<V>(_: &Row, _: &V) {}

/// Read as Python wrote them; what we write has the same head, and is read back.
#[cfg(feature = "python")]
fn pickle<V: Serialize + DeserializeOwned + PartialEq + Debug>(row: &Row, value: &V) {
    let theirs = reads(row, "dogpile.pickle", &Pickle::<JsonMeta>::new(), value);
    reads(row, "pickle.bare", &Pickle::<Bare>::new(), value);
    reads(row, "pickle.seconds", &Pickle::<Seconds>::new(), value);
    // What differs is how the time is written, and both ways are read.
    let entry = row.bytes("pickle.seconds").unwrap();
    let (read, _): (V, _) = Pickle::<Full>::new().decode(Slice::from(&entry)).unwrap();
    assert_eq!(read, *value);

    let head = theirs.iter().position(|byte| *byte == b'|').unwrap() + 1;
    let (ours, payload) = (encode(&Pickle::<JsonMeta>::new(), value), encode(&Pickle::<Bare>::new(), value));
    assert_eq!(ours, [&theirs[..head], &payload].concat(), "of {}", row.0);
    round_trip(Pickle::<JsonMeta>::new(), value);
    round_trip(Pickle::<Full>::new(), value);
    round_trip(Pickle::<Seconds>::new(), value);
    round_trip(Pickle::<Bare>::new(), value);
}

#[cfg(not(feature = "python"))]
fn pickle<V>(_: &Row, _: &V) {}

/// All columns but `raw`.
fn structured<V>(row: &Row, value: V)
where
    V: Pack + Unpack + Serialize + DeserializeOwned + PartialEq + Debug,
{
    msgpack(row, &value);
    by_serde(row, &value);
    json(row, &value);
    pickle(row, &value);
}

fn raw<V: RawValue + PartialEq + Debug>(row: &Row, value: V) {
    both(row, "raw", &Raw, &value);
}

#[test]
fn reference_bytes() {
    for row in Row::all() {
        match row.kind() {
            "int" => {
                let (signed, unsigned) = (i64::try_from(row.int()), u64::try_from(row.int()));
                assert!(signed.is_ok() || unsigned.is_ok());
                if let Ok(value) = signed {
                    structured(&row, value);
                    raw(&row, value);
                }
                if let Ok(value) = unsigned {
                    structured(&row, value);
                    raw(&row, value);
                }
                raw(&row, row.int());
            }
            "float" => structured(&row, row.value::<f64>()),
            "str" => {
                let text: String = row.value();
                structured(&row, text.clone());
                raw(&row, text.clone());
                msgpack(&row, &ByteString::from(text.clone()));
                raw(&row, ByteString::from(text));
            }
            "bytes" => {
                assert_eq!(row.bytes("json.bare"), None);
                msgpack(&row, &row.octets());
                msgpack(&row, &Bytes::from(row.octets()));
                by_serde(&row, &Blob(row.octets()));
                pickle(&row, &Blob(row.octets()));
                raw(&row, row.octets());
                raw(&row, Bytes::from(row.octets()));
            }
            "bool" => {
                structured(&row, row.value::<bool>());
                raw(&row, row.value::<bool>());
            }
            "none" => {
                structured(&row, ());
                structured(&row, None::<String>);
                raw(&row, None::<String>);
            }
            "list" => match serde_json::from_value::<Vec<i64>>(row.0["value"].clone()) {
                Ok(list) => structured(&row, list),
                Err(_) => structured(&row, row.value::<(String, Option<u8>, bool, Vec<i64>)>()),
            },
            "dict" => {
                match row.0["value"].as_object().unwrap().len() {
                    0 => structured(&row, BTreeMap::<String, i64>::new()),
                    2 => structured(&row, row.value::<Pair>()),
                    5 => structured(&row, row.value::<Profile>()),
                    other => panic!("no type for a dict of {other}"),
                }
                let map = LazyMap::try_from(row.bytes("msgpack.bare").unwrap()).unwrap();
                msgpack(&row, &map);
            }
            other => panic!("no test for {other}"),
        }
        // The packages refuse to write these raw, and we have no implementation for their types.
        let refused = matches!(row.kind(), "float" | "list" | "dict");
        assert_eq!(row.bytes("raw").is_none(), refused, "{}", row.0);
    }
}

/// Values that no plain data expresses, as Python 3.11 pickled them.
#[test]
#[cfg(feature = "python")]
fn other_pickles_are_clear_errors() {
    for (class, pickle) in [
        (
            "datetime.datetime",
            &b"\x80\x05\x952\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x02at\x94\x8c\x08datetime\x94\x8c\x08dateti\
              me\x94\x93\x94C\n\x07\xe0\x08\r\x12)&\x00\x00\x00\x94\x85\x94R\x94s."[..],
        ),
        (
            "datetime.date",
            &b"\x80\x02cdatetime\ndate\nq\x00c_codecs\nencode\nq\x01X\x05\x00\x00\x00\x07\xc3\xa0\x08\rq\x02X\
              \x06\x00\x00\x00latin1q\x03\x86q\x04Rq\x05\x85q\x06Rq\x07."[..],
        ),
        (
            "datetime.timedelta",
            &b"\x80\x04\x95'\x00\x00\x00\x00\x00\x00\x00]\x94\x8c\x08datetime\x94\x8c\ttimedelta\x94\x93\x94K\
              \x01K\x00K\x00\x87\x94R\x94a."[..],
        ),
        (
            "decimal.Decimal",
            &b"\x80\x05\x95!\x00\x00\x00\x00\x00\x00\x00\x8c\x07decimal\x94\x8c\x07Decimal\x94\x93\x94\x8c\
              \x031.5\x94\x85\x94R\x94."[..],
        ),
        (
            "uuid.UUID",
            &b"\x80\x05\x95 \x00\x00\x00\x00\x00\x00\x00\x8c\x04uuid\x94\x8c\x04UUID\x94\x93\x94)\x81\x94}\
              \x94\x8c\x03int\x94K\x05sb."[..],
        ),
        (
            "collections.OrderedDict",
            &b"\x80\x05\x95)\x00\x00\x00\x00\x00\x00\x00\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93\
              \x94)R\x94\x8c\x01a\x94K\x01s."[..],
        ),
        (
            "builtins.complex",
            &b"\x80\x05\x95.\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x94\x8c\x07complex\x94\x93\x94G\x00\
              \x00\x00\x00\x00\x00\x00\x00G?\xf0\x00\x00\x00\x00\x00\x00\x86\x94R\x94."[..],
        ),
    ] {
        let pickle = Bytes::from_static(pickle);
        let error = Codec::<Value>::decode(&Pickle::<Bare>::new(), Slice::from(&pickle)).unwrap_err();
        assert_eq!(error.kind(), CodecErrorKind::Type);
        assert_eq!(error.to_string(), format!("the pickle contains a `{class}`, which is not plain data"));
    }
}

/// Whether an entry can be decoded. None may panic.
type Attempt = fn(&Bytes) -> bool;

fn attempt<V, C: Codec<V> + Default>(entry: &Bytes) -> bool {
    C::default().decode(Slice::from(entry)).is_ok()
}

/// Attempts as this type with each envelope: bare, seconds, full.
fn of_msgpack<V: Pack + Unpack>() -> [Attempt; 3] {
    [attempt::<V, Msgpack<Bare>>, attempt::<V, Msgpack<Seconds>>, attempt::<V, Msgpack<Full>>]
}

#[allow(clippy::extra_unused_type_parameters)] // Without the features there is nothing to attempt.
fn of_serde<V: Serialize + DeserializeOwned>() -> Vec<[Attempt; 3]> {
    vec![
        #[cfg(feature = "serde")]
        [attempt::<V, Serde<Bare>>, attempt::<V, Serde<Seconds>>, attempt::<V, Serde<Full>>],
        #[cfg(feature = "json")]
        [attempt::<V, Json<Bare>>, attempt::<V, Json<Seconds>>, attempt::<V, Json<Full>>],
        #[cfg(feature = "python")]
        [attempt::<V, Pickle<Bare>>, attempt::<V, Pickle<Seconds>>, attempt::<V, Pickle<Full>>],
        #[cfg(feature = "python")]
        [attempt::<V, Pickle<Bare>>, attempt::<V, Json<JsonMeta>>, attempt::<V, Pickle<JsonMeta>>],
    ]
}

/// Attempts by the codecs that have envelopes.
fn enveloped() -> Vec<[Attempt; 3]> {
    let mut attempts = vec![
        of_msgpack::<u8>(),
        of_msgpack::<i64>(),
        of_msgpack::<f32>(),
        of_msgpack::<bool>(),
        of_msgpack::<char>(),
        of_msgpack::<Option<ByteString>>(),
        of_msgpack::<Vec<u8>>(),
        of_msgpack::<[u8; 2]>(),
        of_msgpack::<Vec<Box<str>>>(),
        of_msgpack::<HashMap<String, Option<u8>>>(),
        of_msgpack::<(String, Option<u8>, bool, Vec<i64>)>(),
        of_msgpack::<Profile>(),
        of_msgpack::<LazyMap>(),
        of_msgpack::<SystemTime>(),
        of_msgpack::<Duration>(),
    ];
    attempts.extend(of_serde::<u8>());
    attempts.extend(of_serde::<Profile>());
    attempts.extend(of_serde::<Value>());
    attempts
}

/// Attempts by all codecs.
fn attempts() -> Vec<Attempt> {
    let raw: [Attempt; 6] = [
        attempt::<String, Raw>,
        attempt::<ByteString, Raw>,
        attempt::<Option<bool>, Raw>,
        attempt::<Option<Bytes>, Raw>,
        attempt::<Vec<u8>, Raw>,
        attempt::<u64, Raw>,
    ];
    enveloped().into_iter().flatten().chain(raw).collect()
}

const COLUMNS: [&str; 12] = [
    "msgpack.bare",
    "msgpack.seconds",
    "msgpack.full",
    "msgpack.full.v1_first",
    "json.bare",
    "json.seconds",
    "json.full",
    "dogpile.json",
    "dogpile.pickle",
    "pickle.bare",
    "pickle.seconds",
    "raw",
];

#[test]
fn cut_entries_are_errors() {
    let (attempts, enveloped) = (attempts(), enveloped());
    for row in Row::all() {
        for column in COLUMNS {
            let entry = row.bytes(column).unwrap_or_default();
            for end in 0..entry.len() {
                let prefix = entry.slice(..end);
                for attempt in &attempts {
                    let _ = attempt(&prefix);
                }
                if column == "msgpack.seconds" || column == "msgpack.full" {
                    for [_, seconds, full] in &enveloped {
                        assert!(!seconds(&prefix) && !full(&prefix), "{column} of {} cut to {end}", row.0);
                    }
                }
            }
        }
    }
}

#[test]
fn changed_entries_do_not_panic() {
    let attempts = attempts();
    let mut seen = HashSet::new();
    for row in Row::all() {
        for column in COLUMNS {
            let entry = row.bytes(column).unwrap_or_default();
            // Entries of the same kind and length differ in a few bytes only, so do all of the longer ones.
            if entry.len() > 20 || !seen.insert((row.kind().to_owned(), column, entry.len().min(10))) {
                continue;
            }
            let mut changed = entry.to_vec();
            for place in 0..changed.len() {
                for byte in 0..=255 {
                    changed[place] = byte;
                    let changed = Bytes::copy_from_slice(&changed);
                    for attempt in &attempts {
                        let _ = attempt(&changed);
                    }
                }
                changed[place] = entry[place];
            }
        }
    }
}

#[test]
fn random_bytes_do_not_panic() {
    let attempts = attempts();
    let mut random = Random(7);
    for _ in 0..20_000 {
        let entry = Bytes::from(random.bytes(40));
        for attempt in &attempts {
            let _ = attempt(&entry);
        }
    }
}

/// xorshift64*, enough to vary the tests and the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 32) % end
    }

    /// Of any size: as many bits as not.
    fn int(&mut self) -> u64 {
        let bits = self.below(64);
        self.next() >> bits
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.next() as u8).collect()
    }

    fn text(&mut self) -> String {
        (0..self.below(40)).map(|_| char::from_u32(self.int() as u32 & 0xffff).unwrap_or('a')).collect()
    }

    fn many<T>(&mut self, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(20)).map(|_| one(self)).collect()
    }
}

fn round_trip<V: PartialEq + Debug>(codec: impl Codec<V>, value: &V) {
    let entry = Bytes::from(encode(&codec, value));
    let (read, meta) = codec.decode(Slice::from(&entry)).unwrap();
    assert_eq!(read, *value);
    assert!(meta.created.is_none_or(|created| created.as_secs() == CREATED.as_secs()));
}

fn round_trips<V>(value: V)
where
    V: Pack + Unpack + Serialize + DeserializeOwned + PartialEq + Debug,
{
    round_trip(Msgpack::<Bare>::new(), &value);
    round_trip(Msgpack::<Seconds>::new(), &value);
    round_trip(Msgpack::<Full>::new().version(u64::MAX), &value);
    #[cfg(feature = "serde")]
    {
        round_trip(Serde::<Bare>::new(), &value);
        round_trip(Serde::<Seconds>::new(), &value);
        round_trip(Serde::<Full>::new().version(u64::MAX), &value);
        // What one writes, the other reads.
        let entry = Bytes::from(encode(&Serde::<Full>::new(), &value));
        let (read, _): (V, _) = Msgpack::<Full>::new().decode(Slice::from(&entry)).unwrap();
        assert_eq!(read, value);
    }
    #[cfg(feature = "json")]
    {
        round_trip(Json::<Bare>::new(), &value);
        round_trip(Json::<Seconds>::new(), &value);
        round_trip(Json::<Full>::new().version(u64::MAX), &value);
    }
    #[cfg(feature = "python")]
    {
        round_trip(Pickle::<Bare>::new(), &value);
        round_trip(Pickle::<Seconds>::new(), &value);
        round_trip(Pickle::<Full>::new().version(u64::MAX), &value);
        round_trip(Pickle::<JsonMeta>::new().version(u64::MAX), &value);
        round_trip(Msgpack::<JsonMeta>::new().version(u64::MAX), &value);
    }
}

#[test]
fn generated_values_round_trip() {
    let mut random = Random(1);
    for _ in 0..500 {
        let r = &mut random;
        round_trips(r.int());
        round_trips(r.int() as i64);
        round_trips(-(r.int() as i32 as i64));
        round_trips(r.text());
        round_trips((r.int() as u8, r.int() as i16, r.below(2) == 0, r.int() as f64 / 3.0, 'x'));
        round_trips(r.many(|r| (r.below(2) == 0).then(|| r.int() as i32)));
        let bytes = r.bytes(300);
        round_trip(Msgpack::<Seconds>::new(), &Bytes::from(bytes.clone()));
        round_trip(Raw, &Bytes::from(bytes.clone()));
        round_trips(r.many(|r| (r.text(), bytes.clone())).into_iter().collect::<BTreeMap<_, _>>());
        let (name, tags) = (r.text(), r.many(Random::text));
        let nested = r.many(|r| (r.text(), Some(r.int() as u8))).into_iter().collect();
        round_trips(Profile { id: r.int() as u32, name, tags, score: r.int() as f64, nested });

        round_trip(Raw, &(r.int() as i64));
        round_trip(Raw, &Some(r.text().replace('\x7f', "")));
        let micros = Duration::from_micros(r.int() >> 11);
        round_trip(Msgpack::<Seconds>::new(), &micros);
        round_trip(Msgpack::<Seconds>::new(), &(SystemTime::UNIX_EPOCH + micros));
        round_trip(Msgpack::<Seconds>::new(), &(SystemTime::UNIX_EPOCH - micros));
    }
}
