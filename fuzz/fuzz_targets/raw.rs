//! Raw: any bytes decode or fail, and what decodes is written again as the same bytes.
#![no_main]

use bytes::Bytes;
use bytestring::ByteString;
use dogpile::codec::{Codec, RawValue};
use dogpile::{Raw, Timestamp};
use dogpile::codec::Slice;
use libfuzzer_sys::fuzz_target;

fn attempt<V: RawValue>(entry: &Bytes) -> bool {
    let Ok((value, _)): Result<(V, _), _> = Raw.decode(Slice::from(entry)) else { return false };
    let mut out = Vec::new();
    Raw.encode(&value, Timestamp::EPOCH, &mut out).expect("what was read can be written");
    assert_eq!(out, entry[..], "each value has one form");
    true
}

fuzz_target!(|data: &[u8]| {
    let entry = Bytes::copy_from_slice(data);
    let kinds =
        [attempt::<ByteString>(&entry), attempt::<Bytes>(&entry), attempt::<i128>(&entry), attempt::<bool>(&entry)];
    assert!(kinds.iter().filter(|is| **is).count() <= 1, "an entry is of one kind");
    attempt::<String>(&entry);
    attempt::<u64>(&entry);
    attempt::<Option<i8>>(&entry);
});
