//! Throws requests at processes of the service, all at once, for one report: while nobody has it, while it is cached,
//! and while it is stale. Fails unless all were answered and the report was made once, not at all, and once.
//!
//! `scripts/demo-service` runs it.

use std::error::Error;
use std::io;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HELP: &str = "\
Throws requests at a report of the service that nobody has, and again while it is cached and when it is stale.

Usage: load [OPTIONS] URL...     the URLs of the processes, http://127.0.0.1:3000
  --requests N         requests at once (default 200)
  --stale-after-ms N   when the report is stale (default 61000)
  --json               print one JSON object";

struct Options {
    requests: usize,
    stale_after: Duration,
    json: bool,
    /// Host and port of each process.
    hosts: Vec<String>,
}

/// What one volley came to.
struct Round {
    name: &'static str,
    answered: usize,
    creators: u64,
    /// How often the creator should have run.
    expected: u64,
    /// In order.
    times: Vec<Duration>,
}

/// What the processes counted, together.
struct Counts {
    /// Reports that were begun.
    creators: u64,
    /// Values that were created, of which the caches know.
    created: u64,
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let Some(options) = options()? else {
        println!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    };
    // A report that no run before asked for.
    let id = SystemTime::UNIX_EPOCH.elapsed()?.as_millis();
    let path = format!("/reports/{id}");

    let cold = volley("cold", 1, &path, &options).await?;
    let warm = volley("warm", 0, &path, &options).await?;
    tokio::time::sleep(options.stale_after).await;
    let stale = volley("stale", 1, &path, &options).await?;
    let rounds = [cold, warm, stale];

    if options.json {
        println!("{}", as_json(&rounds, &options));
    } else {
        println!("{} requests at once for {path}, over {} processes:\n", options.requests, options.hosts.len());
        println!("         answers 200   creator ran      median     slowest");
        for Round { name, answered, creators, times, .. } in &rounds {
            let (median, slowest) = (millis(median(times)), millis(slowest(times)));
            println!("{name:<8} {answered:>11}   {creators:>11}  {median:>7.1} ms  {slowest:>7.1} ms");
        }
    }
    let as_expected = |round: &Round| round.answered == options.requests && round.creators == round.expected;
    if let Some(round) = rounds.iter().find(|round| !as_expected(round)) {
        let Round { name, answered, creators, expected, .. } = round;
        eprintln!(
            "{name}: {answered} of {} requests were answered, and the creator ran {creators} times, not {expected}",
            options.requests
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// All requests at once, in turn to the processes.
async fn volley(name: &'static str, expected: u64, path: &str, options: &Options) -> Result<Round, Box<dyn Error>> {
    let before = counts(&options.hosts).await?;
    let mut connections = Vec::with_capacity(options.requests);
    for host in options.hosts.iter().cycle().take(options.requests) {
        connections.push(TcpStream::connect(host).await.map_err(|error| format!("connecting to {host}: {error}"))?);
    }
    let ask = async |connection, path: String| {
        let begun = Instant::now();
        let (status, _) = get(connection, &path).await?;
        Ok::<_, io::Error>((status, begun.elapsed()))
    };
    let tasks: Vec<_> =
        connections.into_iter().map(|connection| tokio::spawn(ask(connection, path.to_owned()))).collect();
    let (mut answered, mut times) = (0, Vec::with_capacity(options.requests));
    for task in tasks {
        let (status, time) = task.await??;
        answered += usize::from(status == 200);
        times.push(time);
    }
    times.sort_unstable();

    // A stale report is made anew after its requests were answered.
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut after = counts(&options.hosts).await?;
    while after.created < before.created + expected && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
        after = counts(&options.hosts).await?;
    }
    Ok(Round { name, answered, creators: after.creators - before.creators, expected, times })
}

async fn counts(hosts: &[String]) -> Result<Counts, Box<dyn Error>> {
    let mut counts = Counts { creators: 0, created: 0 };
    for host in hosts {
        let connection = TcpStream::connect(host).await.map_err(|error| format!("connecting to {host}: {error}"))?;
        let (_, stats) = get(connection, "/stats").await?;
        let stats: Value = serde_json::from_str(&stats)?;
        let count = |name| stats.pointer(name).and_then(Value::as_u64).ok_or_else(|| format!("no {name} in {stats}"));
        counts.creators += count("/creators/reports")?;
        counts.created += count("/region/creations")?;
    }
    Ok(counts)
}

/// One request, the only one on its connection: the status and the body.
async fn get(mut connection: TcpStream, path: &str) -> io::Result<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: service\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    let parsed = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    });
    parsed.ok_or_else(|| io::Error::other(format!("this is not an answer of HTTP: {answer}")))
}

fn as_json(rounds: &[Round], options: &Options) -> Value {
    let rounds = rounds.iter().map(|round| {
        let figures = json!({
            "answers_200": round.answered,
            "creators": round.creators,
            "median_ms": millis(median(&round.times)),
            "slowest_ms": millis(slowest(&round.times)),
        });
        (round.name.to_owned(), figures)
    });
    let rounds: serde_json::Map<_, _> = rounds.collect();
    json!({ "requests": options.requests, "processes": options.hosts.len(), "rounds": rounds })
}

fn median(times: &[Duration]) -> Duration {
    times[times.len() / 2]
}

fn slowest(times: &[Duration]) -> Duration {
    times[times.len() - 1]
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The options, or `None` when only help is wanted.
fn options() -> Result<Option<Options>, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options { requests: 200, stale_after: Duration::from_secs(61), json: false, hosts: Vec::new() };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("requests") => options.requests = arguments.value()?.parse::<NonZeroUsize>()?.get(),
            Long("stale-after-ms") => options.stale_after = Duration::from_millis(arguments.value()?.parse()?),
            Long("json") => options.json = true,
            Long("help") | Short('h') => return Ok(None),
            Value(url) => {
                let url = url.string()?;
                let host = url.strip_prefix("http://").ok_or_else(|| format!("{url} does not begin with http://"))?;
                options.hosts.push(host.trim_end_matches('/').to_owned());
            }
            other => return Err(other.unexpected()),
        }
    }
    if options.hosts.is_empty() {
        return Err("there is no URL to ask; see --help".into());
    }
    Ok(Some(options))
}
