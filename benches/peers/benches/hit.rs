//! One entry: reading, creating and storing it, on Redis and inside of the process, beside peers.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};
use dogpile::{AsKey, Backend, Memory, Redis, Region};
use dogpile::redis::Driver;
use peers::{Target, VALUE};

fn main() {
    let target = Target::find();
    let mut criterion = Criterion::default().configure_from_args();

    let mut group = criterion.benchmark_group("hit_redis");
    let (plain, field) = ("a-plain-key", ("a-hash", "a-field"));
    let redis = || Redis::open(target.url()).unwrap();
    ours(&mut group, "dogpile_plain", redis(), &plain);
    ours(&mut group, "dogpile_field", redis(), &field);
    let url = target.url().to_string();
    let driver = Driver::new(1, move || redis::Client::open(&*url)?.get_connection());
    ours(&mut group, "dogpile_driver", driver, &plain);
    let mut connection = redis::Client::open(target.url()).unwrap().get_connection().unwrap();
    let get = redis::cmd("GET").arg("a-plain-key").get_packed_command();
    group.bench_function("get/redis_packed", |bencher| {
        bencher.iter(|| redis::ConnectionLike::req_packed_command(&mut connection, black_box(&get)).unwrap());
    });
    group.bench_function("get/redis", |bencher| {
        bencher.iter(|| redis::Commands::get::<_, Option<Vec<u8>>>(&mut connection, black_box("a-plain-key")).unwrap());
    });
    group.finish();

    let mut group = criterion.benchmark_group("hit_memory");
    ours(&mut group, "dogpile_plain", Memory::new(64 << 20), &plain);
    ours(&mut group, "dogpile_field", Memory::new(64 << 20), &field);
    let value = Bytes::from_static(&VALUE);
    let moka = moka::sync::Cache::<String, Bytes>::new(1000);
    moka.insert("a-plain-key".into(), value.clone());
    group.bench_function("get/moka", |bencher| bencher.iter(|| moka.get(black_box("a-plain-key")).unwrap()));
    let quick = quick_cache::sync::Cache::<String, Bytes>::new(1000);
    quick.insert("a-plain-key".into(), value);
    group.bench_function("get/quick_cache", |bencher| bencher.iter(|| quick.get(black_box("a-plain-key")).unwrap()));
    group.finish();
    criterion.final_summary();
}

fn ours<B: Backend>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, backend: B, key: &impl AsKey) {
    let hour = Duration::from_secs(3600);
    let region = Region::builder(backend).stale_after(hour).ttl(hour).build().unwrap();
    let value = Bytes::from_static(&VALUE);
    region.set(key, &value).unwrap();
    group.bench_function(format!("get/{name}"), |bencher| {
        bencher.iter(|| region.get::<Bytes>(black_box(key)).unwrap().unwrap());
    });
    group.bench_function(format!("get_or_create/{name}"), |bencher| {
        bencher.iter(|| region.get_or_create(black_box(key), || Err::<Bytes, _>("is there")).unwrap());
    });
    group.bench_function(format!("set/{name}"), |bencher| {
        bencher.iter(|| region.set(black_box(key), black_box(&value)).unwrap());
    });
}
