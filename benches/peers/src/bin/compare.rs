//! Measures dogpile and its peers side by side, in rounds: `compare [--rounds N] [--times N] [--only SUBJECT,…]
//! [--json FILE] [--svg FILE]`. scripts/compare runs it.

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use peers::Target;
use peers::meter::{Counting, Sample};
use peers::report::{self, Row};
use peers::subjects::{self, Subject, Work};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Settings {
    rounds: usize,
    times: u32,
    only: Option<Vec<String>>,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
}

fn settings() -> Result<Settings, lexopt::Error> {
    use lexopt::prelude::*;
    let mut settings = Settings { rounds: 11, times: 2000, only: None, json: None, svg: None };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("rounds") => settings.rounds = arguments.value()?.parse()?,
            Long("times") => settings.times = arguments.value()?.parse()?,
            Long("only") => {
                let names = arguments.value()?.string()?;
                settings.only = Some(names.split(',').map(str::to_string).collect());
            }
            Long("json") => settings.json = Some(arguments.value()?.into()),
            Long("svg") => settings.svg = Some(arguments.value()?.into()),
            Long("help") | Short('h') => {
                println!("scripts/compare [--rounds N] [--times N] [--only SUBJECT,…] [--json FILE] [--svg FILE]");
                std::process::exit(0);
            }
            other => return Err(other.unexpected()),
        }
    }
    if settings.rounds == 0 || settings.times == 0 {
        return Err("--rounds and --times must not be 0".into());
    }
    Ok(settings)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let settings = settings()?;
    let target = Target::find();
    let mut subjects = subjects::all(target.url());
    if let Some(only) = &settings.only {
        if let Some(unknown) = only.iter().find(|name| !subjects.iter().any(|subject| subject.name() == *name)) {
            return Err(format!("--only {unknown}: there is no such subject, or it cannot be measured here").into());
        }
        subjects.retain(|subject| only.iter().any(|name| name == subject.name()));
    }
    let rows = measure(&mut subjects, &settings);
    println!("{}", report::table(&rows));
    println!(
        "Medians of {} rounds; in each, every subject in turn did each work {} times (get_many_100: a twentieth of that). \
        The ratio is to the first subject in the same round.",
        settings.rounds, settings.times
    );
    if let Some(path) = &settings.json {
        std::fs::write(path, serde_json::to_string_pretty(&serde_json::json!({ "rows": rows }))?)?;
    }
    if let Some(path) = &settings.svg {
        report::chart(&rows, path)?;
    }
    Ok(())
}

/// All rounds. Each subject takes each turn of a round once in as many rounds as there are subjects.
fn measure(subjects: &mut [Box<dyn Subject>], settings: &Settings) -> Vec<Row> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}").expect("is a template");
    let bar = ProgressBar::new((settings.rounds * Work::ALL.len() * subjects.len()) as u64).with_style(style);
    let mut samples = vec![vec![Vec::<Sample>::new(); subjects.len()]; Work::ALL.len()];
    for round in 0..settings.rounds {
        for (work, samples) in Work::ALL.iter().zip(&mut samples) {
            let times = if *work == Work::GetMany { settings.times.div_ceil(20) } else { settings.times };
            for turn in 0..subjects.len() {
                let at = (turn + round) % subjects.len();
                bar.set_message(format!("{} {}", work.name(), subjects[at].name()));
                samples[at].extend(subjects[at].run(*work, times));
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    let mut rows = Vec::new();
    for (work, samples) in Work::ALL.iter().zip(&samples) {
        let measured = subjects.iter().zip(samples).filter(|(_, samples)| !samples.is_empty());
        let Some((_, first)) = measured.clone().next() else { continue };
        rows.extend(measured.map(|(subject, samples)| Row::of(work.name(), subject.name(), samples, first)));
    }
    rows
}
