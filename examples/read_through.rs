//! The main job: threads that all want a missing value, hits, and a stale round.
//!
//! Runs on `Memory`, or on the Redis that `REDIS_URL` names. `--json` prints the same as one object.

use std::convert::Infallible;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dogpile::codec::Full;
use dogpile::{Backend, GetError, Lock, Memory, Msgpack, Redis, RedisLock, Region};
use serde_json::json;

const HELP: &str = "\
Threads that all want a missing value: one creates it, the others wait; then hits; then a stale value, which all but
one get at once. Runs on Memory, or on the Redis that REDIS_URL names.

Usage: cargo run --release --example read_through [-- OPTIONS]
  --callers N      threads (default 8)
  --creator-ms N   how long creating takes (default 200)
  --hits N         hits to time (default 100000)
  --json           print one JSON object";

struct Options {
    callers: usize,
    creator: Duration,
    hits: u32,
    json: bool,
}

/// What one caller got.
struct Answer {
    value: String,
    after: Duration,
    created: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(options) = options()? else {
        println!("{HELP}");
        return Ok(());
    };
    // Half a second of freshness, and a minute until the entry goes altogether.
    let (fresh, ttl) = (Duration::from_millis(500), Duration::from_secs(60));
    match std::env::var("REDIS_URL") {
        Ok(url) => {
            let redis = Redis::open(&url)?;
            redis.ping()?;
            let builder = Region::builder(redis).codec(Msgpack::<Full>::new()).lock(RedisLock::new());
            run("Redis", &builder.stale_after(fresh).ttl(ttl).build()?, fresh, &options)
        }
        Err(_) => {
            let builder = Region::builder(Memory::new(64 << 20)).codec(Msgpack::<Full>::new());
            run("Memory", &builder.stale_after(fresh).ttl(ttl).build()?, fresh, &options)
        }
    }
}

fn run<B: Backend, L: Lock<B>>(
    backend: &str,
    region: &Region<B, Msgpack<Full>, L>,
    fresh: Duration,
    options: &Options,
) -> Result<(), Box<dyn std::error::Error>> {
    let key = format!("read_through:{}", std::process::id());
    let reports = AtomicU64::new(0);
    let create = || {
        std::thread::sleep(options.creator);
        Ok::<_, Infallible>(format!("report {}", reports.fetch_add(1, Ordering::SeqCst) + 1))
    };

    let missing = all_at_once(options.callers, region, &key, create)?;

    let mut times = Vec::with_capacity(options.hits as usize);
    // Hits may take longer than the value is fresh, so they take it at any age.
    let hits = region.ignoring_expiry();
    for _ in 0..options.hits {
        let begun = Instant::now();
        hits.get::<String>(&key)?.ok_or("the value is gone")?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();

    std::thread::sleep(fresh);
    let stale = all_at_once(options.callers, region, &key, create)?;
    region.delete(&key)?;

    if options.json {
        let round = |answers: &[Answer]| {
            json!({
                "creators": answers.iter().filter(|answer| answer.created).count(),
                "values": answers.iter().map(|answer| &answer.value).collect::<Vec<_>>(),
                "returned_ms": answers.iter().map(|answer| millis(answer.after)).collect::<Vec<_>>(),
            })
        };
        let result = json!({
            "backend": backend,
            "callers": options.callers,
            "creator_ms": millis(options.creator),
            "missing": round(&missing),
            "hits": { "count": options.hits, "median_us": millis(median) * 1e3 },
            "stale": round(&stale),
        });
        println!("{result}");
        return Ok(());
    }
    println!("Read-through on {backend}: {} threads, a creator takes {:?}.", options.callers, options.creator);
    println!("\nNobody has the value:");
    print_round(&missing, "waited for it");
    println!("\n{} hits: {:.2} µs each (median)", options.hits, millis(median) * 1e3);
    println!("\nThe value is stale ({fresh:?} old):");
    print_round(&stale, "got the old one at once");
    Ok(())
}

/// All callers ask at the same moment.
fn all_at_once<B: Backend, L: Lock<B>>(
    callers: usize,
    region: &Region<B, Msgpack<Full>, L>,
    key: &str,
    create: impl Fn() -> Result<String, Infallible> + Sync,
) -> Result<Vec<Answer>, GetError<Infallible>> {
    let barrier = Barrier::new(callers);
    std::thread::scope(|scope| {
        let ask = || {
            barrier.wait();
            let begun = Instant::now();
            let mut created = false;
            let value = region.get_or_create(key, || {
                created = true;
                create()
            })?;
            Ok(Answer { value, after: begun.elapsed(), created })
        };
        let threads: Vec<_> = (0..callers).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no caller panics")).collect()
    })
}

fn print_round(answers: &[Answer], others: &str) {
    for (at, answer) in answers.iter().enumerate() {
        let how = if answer.created { "created it" } else { others };
        println!("  caller {:<3} {} after {:7.2} ms   {how}", at + 1, answer.value, millis(answer.after));
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The options, or `None` when only help is wanted.
fn options() -> Result<Option<Options>, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options { callers: 8, creator: Duration::from_millis(200), hits: 100_000, json: false };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("callers") => options.callers = arguments.value()?.parse::<std::num::NonZeroUsize>()?.get(),
            Long("creator-ms") => options.creator = Duration::from_millis(arguments.value()?.parse()?),
            Long("hits") => options.hits = arguments.value()?.parse()?,
            Long("json") => options.json = true,
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(options))
}
