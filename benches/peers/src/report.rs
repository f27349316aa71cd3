//! What was measured, as a table, as rows for programs, and as a chart.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use plotters::prelude::*;
use serde::Serialize;

use crate::meter::Sample;
use crate::subjects::Work;

/// What a ratio is of, and to what. (One operation of many at the same time mostly waits behind the others.)
pub const RATIO: &str = "The ratio is to the first subject in the same round: of p50; where tasks share a connection, \
    of the whole time divided by the operations, so that 0.50 is twice the throughput.";

/// What one sample comes to. `None` is what is not known.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figures {
    pub ops_per_s: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub p999_us: Option<f64>,
    pub cpu_us_per_op: Option<f64>,
    pub allocs_per_op: Option<f64>,
}

impl Figures {
    /// # Panics
    /// When nothing was done.
    #[must_use]
    pub fn of(sample: &Sample) -> Self {
        let operations = f64::from(sample.operations);
        let mut took = sample.took.clone();
        took.sort_unstable();
        let percentile = |permille: usize| Some(micros(*took.get(took.len().checked_sub(1)? * permille / 1000)?));
        Figures {
            ops_per_s: operations / sample.elapsed.as_secs_f64(),
            p50_us: percentile(500),
            p99_us: percentile(990),
            p999_us: percentile(999),
            cpu_us_per_op: sample.cpu.map(|cpu| micros(cpu) / operations),
            allocs_per_op: sample.allocations.map(|allocations| allocations as f64 / operations),
        }
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// One subject at one work: medians over all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub work: &'static str,
    pub subject: &'static str,
    #[serde(flatten)]
    pub figures: Figures,
    /// See `RATIO`.
    #[serde(skip)]
    pub ratio: f64,
}

impl Row {
    /// From the figures of all rounds, and those of the first subject in the same rounds.
    #[must_use]
    pub fn of(work: Work, subject: &'static str, rounds: &[Figures], first: &[Figures]) -> Row {
        let median_known =
            |figure: fn(&Figures) -> Option<f64>| Some(median(rounds.iter().map(figure).collect::<Option<_>>()?));
        // As RATIO says.
        let time = |figures: &Figures| match figures.p50_us {
            Some(p50) if work.tasks().is_none() => p50,
            _ => 1e6 / figures.ops_per_s,
        };
        Row {
            work: work.name(),
            subject,
            figures: Figures {
                ops_per_s: median(rounds.iter().map(|figures| figures.ops_per_s).collect()),
                p50_us: median_known(|figures| figures.p50_us),
                p99_us: median_known(|figures| figures.p99_us),
                p999_us: median_known(|figures| figures.p999_us),
                cpu_us_per_op: median_known(|figures| figures.cpu_us_per_op),
                allocs_per_op: median_known(|figures| figures.allocs_per_op),
            },
            ratio: median(rounds.iter().zip(first).map(|(figures, first)| time(figures) / time(first)).collect()),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A table for people.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let known = |figure: Option<f64>| figure.map_or("-".into(), |figure| format!("{figure:.2}"));
    for (at, row) in rows.iter().enumerate() {
        if at == 0 || rows[at - 1].work != row.work {
            let _ = writeln!(
                out,
                "\n{:<22} {:>10} {:>10} {:>10} {:>10} {:>7} {:>10} {:>9}",
                row.work, "ops/s", "p50 µs", "p99 µs", "p99.9 µs", "ratio", "CPU µs/op", "allocs/op"
            );
        }
        let figures = &row.figures;
        let _ = writeln!(
            out,
            "  {:<20} {:>10.0} {:>10} {:>10} {:>10} {:>7.2} {:>10} {:>9}",
            row.subject,
            figures.ops_per_s,
            known(figures.p50_us),
            known(figures.p99_us),
            known(figures.p999_us),
            row.ratio,
            known(figures.cpu_us_per_op),
            known(figures.allocs_per_op)
        );
    }
    out
}

const WIDTH: i32 = 820;
const BAR: i32 = 18;
const TITLE: i32 = 34;
/// Where the scale begins and ends.
const LEFT: i32 = 130;
const RIGHT: i32 = 740;

/// Writes the medians as points on a logarithmic scale, since they go from a tenth of a microsecond to hundreds. Rows
/// without one are left out.
///
/// # Errors
/// When the file cannot be written.
pub fn chart(rows: &[Row], path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let rows: Vec<_> = rows.iter().filter_map(|row| Some((row, row.figures.p50_us?))).collect();
    let works = rows.chunk_by(|(a, _), (b, _)| a.work == b.work).count() as i32;
    let height = works * TITLE + rows.len() as i32 * BAR + 30;
    let root = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let least = rows.iter().map(|(_, p50)| *p50).fold(f64::MAX, f64::min).log10().floor();
    let most = rows.iter().map(|(_, p50)| *p50).fold(f64::MIN, f64::max).log10().ceil();
    let x = |micros: f64| LEFT + ((micros.log10() - least) / (most - least) * f64::from(RIGHT - LEFT)) as i32;
    let text = |size: u32| TextStyle::from(("sans-serif", size).into_font()).color(&BLACK);
    for power in least as i32..=most as i32 {
        let at = x(10_f64.powi(power));
        root.draw(&PathElement::new([(at, TITLE - 6), (at, height - 24)], RGBColor(225, 225, 225)))?;
        root.draw(&Text::new(format!("{} µs", 10_f64.powi(power)), (at - 14, height - 20), text(11)))?;
    }
    let mut y = 0;
    for work in rows.chunk_by(|(a, _), (b, _)| a.work == b.work) {
        root.draw(&Text::new(format!("{}: median time", work[0].0.work), (8, y + 14), text(13)))?;
        y += TITLE;
        for (row, p50) in work {
            let color =
                if row.subject.starts_with("dogpile") { RGBColor(200, 80, 40) } else { RGBColor(120, 150, 190) };
            root.draw(&Text::new(row.subject, (8, y + 2), text(12)))?;
            let (at, middle) = (x(*p50), y + BAR / 2);
            root.draw(&PathElement::new([(LEFT, middle), (RIGHT, middle)], RGBColor(240, 240, 240)))?;
            root.draw(&Circle::new((at, middle), 5, color.filled()))?;
            root.draw(&Text::new(format!("{p50:.2}"), (at + 10, y + 3), text(11)))?;
            y += BAR;
        }
    }
    root.present()?;
    Ok(())
}
