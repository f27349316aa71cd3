//! Pickles: any bytes decode or fail, what decodes is not far larger than what it came from, and is written and read
//! again as the same.
#![no_main]

use std::collections::BTreeMap;

use bytes::Bytes;
use dogpile::codec::Codec;
use dogpile::codec::python::{JsonMeta, Pickle};
use dogpile::codec::{Bare, Full, Seconds, Slice};
use dogpile::Timestamp;
use libfuzzer_sys::fuzz_target;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Serialize, Deserialize)]
enum Tree {
    Leaf,
    Branch(Box<Tree>),
    Pair { left: Box<Tree>, right: Box<Tree> },
}

fn attempt<V>(codec: impl Codec<V>, entry: &Bytes) -> Option<V> {
    codec.decode(Slice::from(entry)).ok().map(|(value, _)| value)
}

/// How many values a value is.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(items) => items.values().map(count).sum(),
        _ => 0,
    }
}

fn check(entry: &Bytes) {
    attempt::<Vec<(u8, String)>>(Pickle::<JsonMeta>::new(), entry);
    attempt::<BTreeMap<i64, Vec<u8>>>(Pickle::<Seconds>::new(), entry);
    attempt::<Value>(Pickle::<Full>::new(), entry);
    attempt::<Tree>(Pickle::<Bare>::new(), entry);
    attempt::<i128>(Pickle::<Bare>::new(), entry);
    let Some(value) = attempt::<Value>(Pickle::<Bare>::new(), entry) else { return };
    assert!(count(&value) <= 1 << 20, "the limit is 16 MiB, at 16 bytes for each");
    let mut out = Vec::new();
    Pickle::<Bare>::new().encode(&value, Timestamp::EPOCH, &mut out).expect("what was read can be written");
    // Of what is shared, and of what is nested deeply, more may be written than can be read.
    let Some(again) = attempt::<Value>(Pickle::<Bare>::new(), &Bytes::from(out)) else { return };
    assert_eq!(again, value);
}

fuzz_target!(|data: &[u8]| {
    check(&Bytes::copy_from_slice(data));
    // The same as opcodes, without the chance to miss beginning or end.
    check(&Bytes::from([b"\x80\x04", data, b"."].concat()));
    let wrapped = [b"\x80\x02cdogpile.cache.api\nCachedValue\n", data, b"\x86\x81."].concat();
    attempt::<Value>(Pickle::<Full>::new(), &Bytes::from(wrapped));
});
