//! Measures dogpile and its peers side by side, in rounds: `compare [--rounds N] [--times N] [--work WORK,…]
//! [--only SUBJECT,…] [--json FILE] [--svg FILE]`. scripts/compare runs it.

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use peers::Target;
use peers::cores::Cores;
use peers::meter::Counting;
use peers::report::{self, Figures, Row};
use peers::subjects::{self, Subject, Work};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Settings {
    rounds: usize,
    times: u32,
    works: Vec<Work>,
    only: Option<Vec<String>>,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
}

fn settings() -> Result<Settings, lexopt::Error> {
    use lexopt::prelude::*;
    let mut settings = Settings { rounds: 11, times: 2000, works: Work::ALL.into(), only: None, json: None, svg: None };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("rounds") => settings.rounds = arguments.value()?.parse()?,
            Long("times") => settings.times = arguments.value()?.parse()?,
            Long("work") => {
                let names = arguments.value()?.string()?;
                let work = |name| Work::ALL.into_iter().find(|work| work.name() == name).ok_or(name);
                settings.works = names.split(',').map(work).collect::<Result<_, _>>().map_err(|unknown| {
                    let all = Work::ALL.map(Work::name).join(", ");
                    format!("--work {unknown}: there is no such work, only {all}")
                })?;
            }
            Long("only") => {
                let names = arguments.value()?.string()?;
                settings.only = Some(names.split(',').map(str::to_string).collect());
            }
            Long("json") => settings.json = Some(arguments.value()?.into()),
            Long("svg") => settings.svg = Some(arguments.value()?.into()),
            Long("help") | Short('h') => {
                println!(
                    "scripts/compare [--rounds N] [--times N] [--work WORK,…] [--only SUBJECT,…] [--json FILE] \
                    [--svg FILE]"
                );
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
    // The reference in Python is a process too, which begins on the core that this one is on.
    let mut cores = Cores::of(target.url());
    cores.together();
    let mut subjects = subjects::all(target.url());
    if let Some(only) = &settings.only {
        if let Some(unknown) = only.iter().find(|name| !subjects.iter().any(|subject| subject.name() == *name)) {
            return Err(format!("--only {unknown}: there is no such subject, or it cannot be measured here").into());
        }
        subjects.retain(|subject| only.iter().any(|name| name == subject.name()));
    }
    let rows = measure(&mut subjects, &settings, &mut cores);
    println!("{}", report::table(&rows));
    println!(
        "Medians of {} rounds; in each, every subject in turn did each work {} times (get_many_100: a twentieth of \
        that; 64 and 256 tasks: 32 times that). {}",
        settings.rounds,
        settings.times,
        report::RATIO
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
fn measure(subjects: &mut [Box<dyn Subject>], settings: &Settings, cores: &mut Cores) -> Vec<Row> {
    let works = &settings.works;
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}").expect("is a template");
    let bar = ProgressBar::new((settings.rounds * works.len() * subjects.len()) as u64).with_style(style);
    let mut figures = vec![vec![Vec::<Figures>::new(); subjects.len()]; works.len()];
    for round in 0..settings.rounds {
        for (work, figures) in works.iter().zip(&mut figures) {
            if work.tasks().is_some() {
                cores.apart()
            } else {
                cores.together()
            }
            for turn in 0..subjects.len() {
                let at = (turn + round) % subjects.len();
                bar.set_message(format!("{} {}", work.name(), subjects[at].name()));
                let sample = subjects[at].run(*work, work.operations(settings.times));
                figures[at].extend(sample.as_ref().map(Figures::of));
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    let mut rows = Vec::new();
    for (work, figures) in works.iter().zip(&figures) {
        let measured = subjects.iter().zip(figures).filter(|(_, rounds)| !rounds.is_empty());
        let Some((_, first)) = measured.clone().next() else { continue };
        rows.extend(measured.map(|(subject, rounds)| Row::of(*work, subject.name(), rounds, first)));
    }
    rows
}
