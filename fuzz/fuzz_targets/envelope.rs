//! Envelopes: what is written in one is read from it with its time and version, whatever stands before it; and any bytes
//! decode or fail in all of them alike.
#![no_main]

use bytes::Bytes;
use dogpile::codec::{Codec, CodecErrorKind};
use dogpile::codec::{Bare, Full, Seconds, Slice};
use dogpile::{Json, Msgpack, Serde, Timestamp};
use libfuzzer_sys::fuzz_target;

/// Later times do not fit a float of seconds to the microsecond.
const LAST: u64 = 4_294_967_296_000_000;

fn round_trip(codec: &impl Codec<(u64, String)>, value: &(u64, String), time: Timestamp, resolution: u64) {
    let mut out = b"before".to_vec();
    codec.encode(value, time, &mut out).expect("is written");
    let entry = Bytes::from(out.split_off(6));
    let (read, meta) = codec.decode(Slice::from(&entry)).expect("is read");
    assert_eq!(read, *value);
    if let Some(created) = meta.created {
        assert_eq!(created.as_micros() / resolution, time.as_micros() / resolution);
    }
}

fuzz_target!(|data: (u64, String, u64, u64, &[u8])| {
    let (number, text, time, version, bytes) = data;
    let (value, time) = ((number, text), Timestamp::from_micros(time % LAST));
    round_trip(&Msgpack::<Seconds>::new(), &value, time, 1_000_000);
    round_trip(&Msgpack::<Full>::new().version(version), &value, time, 1);
    round_trip(&Msgpack::<Bare>::new(), &value, time, 1);
    round_trip(&Json::<Seconds>::new(), &value, time, 1_000_000);
    round_trip(&Json::<Full>::new().version(version), &value, time, 1);
    round_trip(&Serde::<Seconds>::new(), &value, time, 1_000_000);
    round_trip(&Serde::<Full>::new().version(version), &value, time, 1);

    let mut out = Vec::new();
    Msgpack::<Full>::new().version(version).encode(&number, time, &mut out).expect("is written");
    let out = Bytes::from(out);
    let other: Result<(u64, _), _> = Msgpack::<Full>::new().version(!version).decode(Slice::from(&out));
    assert_eq!(other.unwrap_err().kind(), CodecErrorKind::Version);

    let entry = Bytes::copy_from_slice(bytes);
    let entry = Slice::from(&entry);
    let _: Result<(Vec<String>, _), _> = Serde::<Bare>::new().decode(entry);
    let ours: Result<(Vec<u8>, _), _> = Msgpack::<Full>::new().decode(entry);
    let _: Result<(Vec<u8>, _), _> = Msgpack::<Seconds>::new().decode(entry);
    if let Ok((_, meta)) = ours {
        assert_eq!(meta.version, Some(2));
        assert!(meta.created.is_some());
    }
});
