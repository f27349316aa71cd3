//! How much memory the reference's data set takes in Redis, stored in its fourteen ways and in ours, one after the other
//! on empty servers that this starts.

mod chart;
mod data;
mod python;
mod report;
mod server;
mod strategies;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use dogpile::redis::ServerInfo;
use dogpile::{Clock, Redis, Timestamp};
use indicatif::{ProgressBar, ProgressStyle};

use crate::data::Data;
use crate::python::{Python, contents};
use crate::report::{Beside, Report, Row};
use crate::server::Server;
use crate::strategies::{Filler, STRATEGIES, Strategy};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const HELP: &str = "\
Stores the reference's data set, 1,100,000 entries, in its 14 ways and in ours, and prints how much memory each takes.
Each has an empty redis-server of its own (DOGPILE_TEST_SERVER names another program).

Usage: cargo run --release --features python --example memory [-- OPTIONS]
  --scale F      a part of the data set, such as 0.01 (default 1)
  --only NAME    only this strategy; may be given several times
  --python       fill by the reference itself, too, in Python, and compare what it stores with what we store; the first
                 time, its packages come from PyPI
  --json         print an array of rows instead of the table
  --chart FILE   draw the memory as bars, as SVG
  --keep         leave the last server running, with all it stores";

struct Options {
    data: Data,
    strategies: Vec<&'static Strategy>,
    /// Whether all of the data set is stored, so that the reference's figures are known.
    full: bool,
    python: bool,
    json: bool,
    chart: Option<PathBuf>,
    keep: bool,
}

fn main() -> ExitCode {
    let fails = |error: Failure, code| {
        eprintln!("memory: {error}");
        ExitCode::from(code)
    };
    match options() {
        Ok(None) => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        Ok(Some(options)) => run(&options).map_or_else(|error| fails(error, 1), |()| ExitCode::SUCCESS),
        Err(error) => fails(format!("{error} (--help tells what there is)").into(), 2),
    }
}

/// What is asked for; `None` is help.
fn options() -> Result<Option<Options>, Failure> {
    use lexopt::prelude::*;
    let (mut scale, mut only) = (1.0, Vec::new());
    let (mut python, mut json, mut chart, mut keep) = (false, false, None, false);
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("scale") => scale = arguments.value()?.parse()?,
            Long("only") => only.push(Strategy::named(&arguments.value()?.string()?)?),
            Long("python") => python = true,
            Long("json") => json = true,
            Long("chart") => chart = Some(arguments.value()?.into()),
            Long("keep") => keep = true,
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    if !(scale > 0.0 && scale <= 1.0) {
        return Err(format!("--scale {scale}: it is a part of the data set, over 0 and up to 1").into());
    }
    let strategies = if only.is_empty() { STRATEGIES.iter().collect() } else { only };
    Ok(Some(Options { data: Data::scaled(scale), strategies, full: scale == 1.0, python, json, chart, keep }))
}

fn run(options: &Options) -> Result<(), Failure> {
    let python = options.python.then(Python::find).transpose()?;
    let server = ServerInfo::of(&Redis::open(&Server::start()?.url())?)?;
    let mut report = Report::new(&server, options);
    let mut last = None;
    for &strategy in &options.strategies {
        if let Some(lacking) = strategy.lacking(&server) {
            report.lacks(strategy, &lacking);
            continue;
        }
        // This machine need not have memory for two.
        drop(last.take());
        let beside = match &python {
            Some(python) if strategy.reference.is_some() => Some(beside(python, strategy, &server, options)?),
            _ => None,
        };
        let started = Server::start()?;
        let seconds = fill(strategy, &started, &server, options.data, Clock::system())?;
        let bytes = started.taken()?;
        report.row(Row { strategy: strategy.name, bytes, entries: options.data.entries(), seconds, beside });
        last = Some(started);
    }
    report.end()?;
    if report.rows.is_empty() {
        return Err("this server can store nothing of what was asked for".into());
    }
    if let Some(path) = &options.chart {
        chart::draw(&report, path).map_err(|error| format!("{} cannot be drawn: {error}", path.display()))?;
    }
    if let (true, Some(server)) = (options.keep, last) {
        eprintln!("the server is left running at port {}", server.let_go());
    }
    Ok(())
}

/// How many seconds it takes to fill an empty server.
fn fill(strategy: &Strategy, to: &Server, server: &ServerInfo, data: Data, clock: Clock) -> Result<f64, Failure> {
    let progress = progress(strategy.name, data);
    let begun = Instant::now();
    strategy.fill(&Filler { url: &to.url(), server, data, clock, progress: &progress })?;
    progress.finish_and_clear();
    Ok(begun.elapsed().as_secs_f64())
}

/// What the reference makes of the same strategy, and whether it stores the same bytes.
fn beside(python: &Python, strategy: &Strategy, server: &ServerInfo, options: &Options) -> Result<Beside, Failure> {
    let theirs = Server::start()?;
    let progress = progress(&format!("{} in Python", strategy.name), options.data);
    let seconds = python.fill(strategy.name, &theirs, options.data, None, &progress)?;
    progress.finish_and_clear();
    let bytes = theirs.taken()?;
    drop(theirs);

    // A small part, all made at one moment. Its microseconds are a float that Python and we round alike.
    let (data, created) = (Data::scaled(0.001), Timestamp::from_micros(1_471_113_698_761_270));
    let (theirs, ours) = (Server::start()?, Server::start()?);
    python.fill(strategy.name, &theirs, data, Some(created), &ProgressBar::hidden())?;
    fill(strategy, &ours, server, data, Clock::manual(created))?;
    let (theirs, ours) = (contents(&theirs)?, contents(&ours)?);
    let same = theirs.iter().filter(|(key, entry)| ours.get(*key) == Some(*entry)).count();
    let all = theirs.len().max(ours.len());
    if strategy.same_bytes && same < all {
        return Err(format!("{}: of {all} entries only {same} are those of the reference", strategy.name).into());
    }
    Ok(Beside { reference_bytes: bytes, reference_seconds: seconds, same_bytes: same == all })
}

/// On standard error, where that is a terminal.
fn progress(name: &str, data: Data) -> ProgressBar {
    let style = "{msg:<34} {bar:40} {human_pos}/{human_len} {per_sec}";
    let style = ProgressStyle::with_template(style).expect("is a template");
    ProgressBar::new(data.entries()).with_style(style).with_message(name.to_string())
}
