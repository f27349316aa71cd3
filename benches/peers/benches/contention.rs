//! One cache used by 1 to 8 threads at once: hits on one key, on keys of their own, and creations of the same keys.

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, measurement::WallTime};
use dogpile::{Backend, Memory, Redis, Region};
use peers::{Target, VALUE};

const THREADS: [u64; 4] = [1, 2, 4, 8];

fn main() {
    let target = Target::find();
    let mut criterion = Criterion::default().configure_from_args();

    let mut group = criterion.benchmark_group("contention_redis");
    ours(&mut group, &region(Redis::open(target.url()).unwrap()));
    let pool: Vec<_> = (0..8)
        .map(|_| std::sync::Mutex::new(redis::Client::open(target.url()).unwrap().get_connection().unwrap()))
        .collect();
    threads(&mut group, "get/redis_own_connections", |thread, _| {
        let mut connection = pool[thread as usize].lock().unwrap();
        let found: Option<Vec<u8>> = redis::Commands::get(&mut *connection, "shared").unwrap();
        assert!(found.is_some());
    });
    group.finish();

    let mut group = criterion.benchmark_group("contention_memory");
    ours(&mut group, &region(Memory::new(64 << 20)));
    let moka = moka::sync::Cache::<String, Bytes>::new(100_000);
    moka.insert("shared".into(), Bytes::from_static(&VALUE));
    threads(&mut group, "get/moka", |_, _| drop(black_box(moka.get("shared"))));
    threads(&mut group, "create/moka", |_, number| {
        black_box(moka.get_with(format!("created-{number}"), || Bytes::from_static(&VALUE)));
    });
    let quick = quick_cache::sync::Cache::<String, Bytes>::new(100_000);
    quick.insert("shared".into(), Bytes::from_static(&VALUE));
    threads(&mut group, "get/quick_cache", |_, _| drop(black_box(quick.get("shared"))));
    threads(&mut group, "create/quick_cache", |_, number| {
        let create = || Ok::<_, Infallible>(Bytes::from_static(&VALUE));
        black_box(quick.get_or_insert_with(&format!("created-{number}"), create).unwrap());
    });
    group.finish();
    criterion.final_summary();
}

fn region<B: Backend>(backend: B) -> Region<B> {
    let hour = Duration::from_secs(3600);
    Region::builder(backend).stale_after(hour).ttl(hour).build().unwrap()
}

fn ours<B: Backend>(group: &mut BenchmarkGroup<'_, WallTime>, region: &Region<B>) {
    region.set("shared", &Bytes::from_static(&VALUE)).unwrap();
    (0..8_u64).for_each(|thread| region.set(("own", thread), &Bytes::from_static(&VALUE)).unwrap());
    threads(group, "get/dogpile_same_key", |_, _| assert!(region.get::<Bytes>("shared").unwrap().is_some()));
    threads(group, "get/dogpile_own_key", |thread, _| {
        assert!(region.get::<Bytes>(("own", thread)).unwrap().is_some());
    });
    // All threads go through the same new keys: whoever comes first creates, the others wait or find.
    threads(group, "create/dogpile", |_, number| {
        let key = |number| format!("created-{}-{number}", std::process::id());
        let create = || Ok::<_, Infallible>(Bytes::from_static(&VALUE));
        black_box(region.get_or_create(key(number), create).unwrap());
    });
}

/// Measures `operation(thread, number)` on so many threads at once; numbers begin where the last measurement ended.
fn threads(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, operation: impl Fn(u64, u64) + Sync) {
    let first = AtomicU64::new(0);
    for threads in THREADS {
        group.bench_function(BenchmarkId::new(name, threads), |bencher| {
            bencher.iter_custom(|times| {
                let first = first.fetch_add(times, Ordering::Relaxed);
                let (begin, end) = (Barrier::new(threads as usize + 1), Barrier::new(threads as usize + 1));
                std::thread::scope(|scope| {
                    for thread in 0..threads {
                        let (begin, end, operation) = (&begin, &end, &operation);
                        scope.spawn(move || {
                            begin.wait();
                            (first..first + times).for_each(|number| operation(thread, number));
                            end.wait();
                        });
                    }
                    begin.wait();
                    let start = Instant::now();
                    end.wait();
                    start.elapsed()
                })
            });
        });
    }
}
