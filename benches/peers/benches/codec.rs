//! Writing and reading one struct as an entry: our codecs, beside rmp-serde and serde_json.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};
use dogpile::codec::LazyMap;
use dogpile::codec::{Bare, Full, Seconds, Slice};
use dogpile::{Codec, Json, Msgpack, Serde, Timestamp};
use peers::Profile;

const CREATED: Timestamp = Timestamp::from_secs(1_700_000_000);

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("codec");
    let value = Profile::sample();
    both(&mut group, "msgpack_seconds", &Msgpack::<Seconds>::new(), &value);
    both(&mut group, "msgpack_full", &Msgpack::<Full>::new(), &value);
    both(&mut group, "msgpack_bare", &Msgpack::<Bare>::new(), &value);
    both(&mut group, "serde_seconds", &Serde::<Seconds>::new(), &value);
    both(&mut group, "json_seconds", &Json::<Seconds>::new(), &value);

    let pair = (&value, 1_700_000_000_u64);
    let mut out = Vec::with_capacity(512);
    group.bench_function("encode/rmp_serde", |bencher| {
        bencher.iter(|| {
            out.clear();
            rmp_serde::encode::write_named(&mut out, black_box(&pair)).unwrap();
        });
    });
    let entry = out.clone();
    group.bench_function("decode/rmp_serde", |bencher| {
        bencher.iter(|| rmp_serde::from_slice::<(Profile, u64)>(black_box(&entry)).unwrap());
    });
    group.bench_function("encode/serde_json", |bencher| {
        bencher.iter(|| {
            out.clear();
            serde_json::to_writer(&mut out, black_box(&pair)).unwrap();
        });
    });
    let text = out.clone();
    group.bench_function("decode/serde_json", |bencher| {
        bencher.iter(|| serde_json::from_slice::<(Profile, u64)>(black_box(&text)).unwrap());
    });
    let codec = Msgpack::<Seconds>::new();
    let entry = Bytes::from(encoded(&codec, &value));
    group.bench_function("one_field/lazy_map", |bencher| {
        bencher.iter(|| {
            let (map, _): (LazyMap, _) = codec.decode(Slice::from(black_box(&entry))).unwrap();
            map.get::<f64>("score").unwrap()
        });
    });
    group.finish();
    criterion.final_summary();
}

fn encoded(codec: &impl Codec<Profile>, value: &Profile) -> Vec<u8> {
    let mut out = Vec::new();
    codec.encode(value, CREATED, &mut out).unwrap();
    out
}

fn both(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, codec: &impl Codec<Profile>, value: &Profile) {
    let mut out = Vec::with_capacity(512);
    group.bench_function(format!("encode/{name}"), |bencher| {
        bencher.iter(|| {
            out.clear();
            codec.encode(black_box(value), CREATED, &mut out).unwrap();
        });
    });
    let entry = Bytes::from(encoded(codec, value));
    group.bench_function(format!("decode/{name}"), |bencher| {
        bencher.iter(|| codec.decode(Slice::from(black_box(&entry))).unwrap());
    });
}
