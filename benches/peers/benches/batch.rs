//! A hundred entries at once: plain keys, fields of hashes, both; beside the redis crate.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use dogpile::{Backend, Key, Memory, Redis, Region};
use peers::{Target, VALUE, field_keys, plain_keys};

fn main() {
    let target = Target::find();
    let mut criterion = Criterion::default().configure_from_args();
    let (plain, fields) = (plain_keys(), field_keys());
    let plain: Vec<Key<'_>> = plain.iter().map(|key| Key::from(&**key)).collect();
    let fields: Vec<Key<'_>> = fields.iter().map(|(hash, field)| Key::from((hash, field))).collect();
    let mixed: Vec<Key<'_>> = plain[..50].iter().chain(&fields).copied().collect();

    let mut group = criterion.benchmark_group("batch_redis");
    group.throughput(Throughput::Elements(100));
    let redis = Redis::open(target.url()).unwrap();
    ours(&mut group, "plain", redis.clone(), &plain);
    ours(&mut group, "mixed", redis, &mixed);
    let mut connection = redis::Client::open(target.url()).unwrap().get_connection().unwrap();
    let names = plain_keys();
    group.bench_function("get_many/redis_mget", |bencher| {
        bencher.iter(|| redis::Commands::mget::<_, Vec<Option<Vec<u8>>>>(&mut connection, black_box(&names)).unwrap());
    });
    group.bench_function("get_many/redis_pipeline", |bencher| {
        bencher.iter(|| {
            let mut pipe = redis::pipe();
            pipe.mget(&names[..50]);
            for hash in 0..10 {
                let fields: Vec<String> = (0..5).map(|at| format!("field-{}", at * 10 + hash)).collect();
                pipe.hmget(format!("hash-{hash}"), fields);
            }
            pipe.query::<Vec<Vec<Option<Vec<u8>>>>>(&mut connection).unwrap()
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("batch_memory");
    group.throughput(Throughput::Elements(100));
    ours(&mut group, "mixed", Memory::new(64 << 20), &mixed);
    let moka = moka::sync::Cache::<String, Bytes>::new(1000);
    names.iter().for_each(|name| moka.insert(name.clone(), Bytes::from_static(&VALUE)));
    group.bench_function("get_many/moka_in_turn", |bencher| {
        bencher.iter(|| names.iter().map(|name| moka.get(black_box(name))).collect::<Vec<_>>());
    });
    group.finish();
    criterion.final_summary();
}

fn ours<B: Backend>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, backend: B, keys: &[Key<'_>]) {
    let hour = Duration::from_secs(3600);
    let region = Region::builder(backend).stale_after(hour).ttl(hour).build().unwrap();
    let entries: Vec<_> = keys.iter().map(|key| (*key, Bytes::from_static(&VALUE))).collect();
    region.set_many(&entries).unwrap();
    group.bench_function(format!("get_many/dogpile_{name}"), |bencher| {
        bencher.iter(|| region.get_many::<_, Bytes>(black_box(keys)).unwrap());
    });
    group.bench_function(format!("set_many/dogpile_{name}"), |bencher| {
        bencher.iter(|| region.set_many(black_box(&entries)).unwrap());
    });
    group.bench_function(format!("get_or_create_many/dogpile_{name}"), |bencher| {
        bencher.iter(|| region.get_or_create_many(black_box(keys), |_| Err::<Vec<Bytes>, _>("all are there")).unwrap());
    });
}
