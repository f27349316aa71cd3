//! Processes whose callers all want one missing value at the same moment, round after round: how many created it, how
//! long after that the others had it, and how many commands that cost the server.
//!
//! Runs on the Redis that `REDIS_URL` names, or on a redis-server that it starts. With `--worker` it is one of the
//! processes, which are told by lines on standard input and answer by lines on standard output.

use std::convert::Infallible;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dogpile::{Redis, RedisLock, Region};
use serde_json::json;

const HELP: &str = "\
Processes whose callers all want one missing value at the same moment: who creates it, and when the others have it.
Runs on the Redis that REDIS_URL names, or on a redis-server that it starts (DOGPILE_TEST_SERVER names another program).

Usage: cargo run --release --example stampede [-- OPTIONS]      (--async needs --features tokio)
  --processes N    processes (default 8)
  --callers N      callers in each (default 8)
  --rounds N       rounds, each with a key of its own (default 10)
  --creator-ms N   how long creating takes (default 200)
  --async          callers are tasks, not threads
  --flushall       flush the server in the middle of each creation
  --json           print one JSON object";

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Clone)]
struct Options {
    processes: usize,
    callers: usize,
    rounds: usize,
    creator: Duration,
    is_async: bool,
    flushes: bool,
    json: bool,
}

fn main() -> Result<(), Failure> {
    let (mut options, mut worker) = (
        Options {
            processes: 8,
            callers: 8,
            rounds: 10,
            creator: Duration::from_millis(200),
            is_async: false,
            flushes: false,
            json: false,
        },
        None,
    );
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        use lexopt::prelude::*;
        match argument {
            Long("processes") => options.processes = arguments.value()?.parse()?,
            Long("callers") => options.callers = arguments.value()?.parse()?,
            Long("rounds") => options.rounds = arguments.value()?.parse()?,
            Long("creator-ms") => options.creator = Duration::from_millis(arguments.value()?.parse()?),
            Long("async") => options.is_async = true,
            Long("flushall") => options.flushes = true,
            Long("json") => options.json = true,
            Long("worker") => worker = Some(arguments.value()?.string()?),
            Long("help") | Short('h') => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if options.processes == 0 || options.callers == 0 || options.rounds == 0 {
        return Err("there must be at least one process, caller and round".into());
    }
    if options.is_async && cfg!(not(feature = "tokio")) {
        return Err("--async needs tasks: cargo run --release --features tokio --example stampede".into());
    }
    match worker {
        Some(url) => work(&url, &options),
        None => lead(&options),
    }
}

/// Since 1970, in microseconds. All processes are on one machine, and so read one clock.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

fn sleep_until(moment: u64) {
    std::thread::sleep(Duration::from_micros(moment.saturating_sub(now())));
}

/// What happened in one process in one round. Moments are of [`now`].
#[derive(Default)]
struct Round {
    /// When each creator was done.
    created: Vec<u64>,
    /// When each caller had a value.
    returned: Vec<u64>,
    errors: Vec<String>,
}

// One of the processes.

/// Does the rounds that it is told of, each in a line: its key and when it starts.
fn work(url: &str, options: &Options) -> Result<(), Failure> {
    let region = Region::builder(Redis::open(url)?).lock(RedisLock::new()).build()?;
    #[cfg(feature = "tokio")]
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let (key, start) = line.split_once(' ').ok_or("a round is a key and a start")?;
        let (start, round) = (start.parse()?, Mutex::new(Round::default()));
        let created = || {
            round.lock().unwrap().created.push(now());
            Ok::<_, Infallible>(format!("the value of {key}"))
        };
        let returned = |got: Result<String, String>| {
            let (returned, mut round) = (now(), round.lock().unwrap());
            match got {
                Ok(value) if value == format!("the value of {key}") => round.returned.push(returned),
                Ok(value) => round.errors.push(format!("got {value}")),
                Err(error) => round.errors.push(error),
            }
        };
        let by_threads = || {
            std::thread::scope(|scope| {
                for _ in 0..options.callers {
                    scope.spawn(|| {
                        sleep_until(start);
                        let create = || {
                            std::thread::sleep(options.creator);
                            created()
                        };
                        returned(region.get_or_create(key, create).map_err(|error| error.to_string()));
                    });
                }
            });
        };
        #[cfg(feature = "tokio")]
        let by_tasks = || {
            use tokio::time::sleep;
            let call = async || {
                sleep(Duration::from_micros(start.saturating_sub(now()))).await;
                let create = async || {
                    sleep(options.creator).await;
                    created()
                };
                returned(region.get_or_create_async(key, create).await.map_err(|error| error.to_string()));
            };
            let calls: Vec<_> = (0..options.callers).map(|_| call()).collect();
            runtime.block_on(join_all(calls));
        };
        #[cfg(not(feature = "tokio"))]
        let by_tasks = || {};
        if options.is_async {
            by_tasks()
        } else {
            by_threads()
        }
        let round = round.into_inner()?;
        let round = json!({ "created": round.created, "returned": round.returned, "errors": round.errors });
        println!("{round}");
    }
    Ok(())
}

/// Runs futures side by side in one task.
#[cfg(feature = "tokio")]
async fn join_all<F: Future<Output = ()>>(futures: Vec<F>) {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        futures.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

// The process that leads.

/// Another process, which ends with this one.
struct Worker {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Worker {
    fn start(url: &str, options: &Options) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--worker").arg(url).arg("--callers").arg(options.callers.to_string());
        command.arg("--creator-ms").arg(options.creator.as_millis().to_string());
        if options.is_async {
            command.arg("--async");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (to, from) = (child.stdin.take().ok_or("no input")?, child.stdout.take().ok_or("no output")?);
        Ok(Worker { child, to, from: BufReader::new(from) })
    }

    /// Adds what happened in it.
    fn report(&mut self, round: &mut Round) -> Result<(), Failure> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        let report: serde_json::Value = serde_json::from_str(&line)?;
        let moments = |name: &str| report[name].as_array().into_iter().flatten().filter_map(serde_json::Value::as_u64);
        round.created.extend(moments("created"));
        round.returned.extend(moments("returned"));
        let errors = report["errors"].as_array().into_iter().flatten();
        round.errors.extend(errors.map(std::string::ToString::to_string));
        Ok(())
    }
}

/// A redis-server of our own, which ends with this process.
struct Server {
    child: Child,
    url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start() -> Result<Self, Failure> {
        let program = std::env::var("DOGPILE_TEST_SERVER").unwrap_or_else(|_| "redis-server".into());
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let child = Command::new(&program)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("{program} cannot be started ({error}): install it, or set REDIS_URL"))?;
        let server = Server { child, url: format!("redis://127.0.0.1:{port}") };
        let (redis, deadline) = (Redis::open(&server.url)?, Instant::now() + Duration::from_secs(10));
        while let Err(error) = redis.ping() {
            if Instant::now() > deadline {
                return Err(error.into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }
}

/// How many commands a server has executed, those of scripts too, since it was asked to forget them.
fn commands(admin: &mut redis::Connection) -> Result<u64, Failure> {
    let stats: String = redis::cmd("INFO").arg("commandstats").query(admin)?;
    let ours =
        |line: &&str| !["info", "config", "flushall"].iter().any(|name| line.contains(&format!("cmdstat_{name}")));
    let calls = |line: &str| line.split_once("calls=")?.1.split_once(',')?.0.parse::<u64>().ok();
    Ok(stats.lines().filter(ours).filter_map(calls).sum())
}

/// The middle one, of a list that is not empty.
fn median<T: Copy + PartialOrd>(values: impl IntoIterator<Item = T>) -> T {
    let mut values: Vec<T> = values.into_iter().collect();
    values.sort_by(|a, b| a.partial_cmp(b).expect("no NaN"));
    values[values.len() / 2]
}

fn lead(options: &Options) -> Result<(), Failure> {
    let (url, _server) = match std::env::var("REDIS_URL") {
        Ok(url) => (url, None),
        Err(_) => {
            let server = Server::start()?;
            (server.url.clone(), Some(server))
        }
    };
    let mut admin = redis::Client::open(url.as_str())?.get_connection()?;
    let workers: Result<Vec<_>, _> = (0..options.processes).map(|_| Worker::start(&url, options)).collect();
    let mut workers = workers?;
    let (mut creators, mut errors, mut executed) = (Vec::new(), Vec::new(), Vec::new());
    // When the first, the median and the last caller returned, in milliseconds after the value existed.
    let mut returned = Vec::new();
    for round in 0..options.rounds {
        redis::cmd("CONFIG").arg("RESETSTAT").exec(&mut admin)?;
        let start = now() + 300_000;
        for worker in &mut workers {
            writeln!(worker.to, "stampede:{}:{round} {start}", std::process::id())?;
        }
        if options.flushes {
            sleep_until(start + u64::try_from(options.creator.as_micros())? / 2);
            redis::cmd("FLUSHALL").exec(&mut admin)?;
        }
        let mut all = Round::default();
        workers.iter_mut().try_for_each(|worker| worker.report(&mut all))?;
        creators.push(all.created.len());
        executed.push(commands(&mut admin)?);
        errors.append(&mut all.errors);
        all.returned.sort_unstable();
        let exists = all.created.iter().min().copied().ok_or("nobody created the value")?;
        #[allow(clippy::cast_precision_loss)]
        let after = |at: usize| all.returned.get(at).map_or(f64::NAN, |at| (*at as f64 - exists as f64) / 1e3);
        if all.returned.is_empty() {
            return Err(format!("nobody got the value: {errors:?}").into());
        }
        returned.push([after(0), after(all.returned.len() / 2), after(all.returned.len() - 1)]);
    }
    let [first, middle, last] = [0, 1, 2].map(|which| median(returned.iter().map(|round| round[which])));
    let commands = median(executed);
    if options.json {
        let callers = options.processes * options.callers;
        let report = json!({
            "processes": options.processes, "callers": callers, "creators": creators, "first_ms": first,
            "median_ms": middle, "last_ms": last, "commands": commands, "errors": errors.len(),
        });
        println!("{report}");
    } else {
        println!("{} processes of {} callers, {} rounds", options.processes, options.callers, options.rounds);
        println!("creators in each round        {creators:?}");
        println!("callers had the value after   {first:.2} ms (first), {middle:.2} ms (median), {last:.2} ms (last)");
        println!("commands the server executed  {commands}");
        println!("errors                        {}", errors.len());
    }
    errors.iter().for_each(|error| eprintln!("{error}"));
    if errors.is_empty() { Ok(()) } else { Err(format!("{} callers got an error", errors.len()).into()) }
}
