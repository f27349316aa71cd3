//! JSON: any bytes decode or fail, and what decodes is written and read again as the same.
#![no_main]

use bytes::Bytes;
use dogpile::codec::Codec;
use dogpile::codec::{Bare, Full, Seconds, Slice};
use dogpile::{Json, Timestamp};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let entry = Bytes::copy_from_slice(data);
    let entry = Slice::from(&entry);
    let _: Result<(Vec<(u8, String)>, _), _> = Json::<Full>::new().decode(entry);
    let _: Result<(f64, _), _> = Json::<Seconds>::new().decode(entry);
    let Ok((value, _)): Result<(Value, _), _> = Json::<Bare>::new().decode(entry) else { return };
    let mut out = Vec::new();
    let time = Timestamp::from_micros(1_471_113_698_761_270);
    Json::<Bare>::new().encode(&value, time, &mut out).expect("what was read can be written");
    let out = Bytes::from(out);
    let (again, _): (Value, _) = Json::<Bare>::new().decode(Slice::from(&out)).expect("what was written can be read");
    assert_eq!(again, value);
});
