//! Msgpack: any bytes decode or fail, and what decodes is written and read again as the same.
#![no_main]

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use bytestring::ByteString;
use dogpile::codec::{Codec, LazyMap, Pack, Unpack};
use dogpile::codec::{Bare, Slice};
use dogpile::{Msgpack, Timestamp};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, PartialEq)]
struct Tree {
    name: String,
    children: Vec<Tree>,
    value: Option<Box<Tree>>,
}
dogpile::msgpack! { Tree { name, children, value } }

#[derive(Debug, PartialEq)]
struct Point {
    x: i64,
    y: Option<u8>,
}
dogpile::msgpack! { Point [x, y] }

fn attempt<V: Pack + Unpack + PartialEq + Debug>(entry: &Bytes) {
    let codec = Msgpack::<Bare>::new();
    let Ok((value, _)): Result<(V, _), _> = codec.decode(Slice::from(entry)) else { return };
    let mut out = Vec::new();
    codec.encode(&value, Timestamp::EPOCH, &mut out).expect("what was read can be written");
    // A float takes nine bytes, and may have been an integer of one.
    assert!(out.len() <= entry.len().max(16) * 9, "what is written is about as small as what was read");
    let out = Bytes::from(out);
    let (again, _): (V, _) = codec.decode(Slice::from(&out)).expect("what was written can be read");
    // NaN is no equal of itself; its text is.
    assert!(again == value || format!("{again:?}") == format!("{value:?}"));
}

fuzz_target!(|data: &[u8]| {
    let entry = Bytes::copy_from_slice(data);
    attempt::<u64>(&entry);
    attempt::<i8>(&entry);
    attempt::<f64>(&entry);
    attempt::<f32>(&entry);
    attempt::<char>(&entry);
    attempt::<String>(&entry);
    attempt::<ByteString>(&entry);
    attempt::<Bytes>(&entry);
    attempt::<Vec<u8>>(&entry);
    attempt::<[u8; 4]>(&entry);
    attempt::<Vec<Option<(bool, i32)>>>(&entry);
    attempt::<BTreeMap<String, Vec<f64>>>(&entry);
    attempt::<HashMap<u32, ()>>(&entry);
    attempt::<Tree>(&entry);
    attempt::<Point>(&entry);
    attempt::<LazyMap>(&entry);
    attempt::<SystemTime>(&entry);
    attempt::<Duration>(&entry);
});
