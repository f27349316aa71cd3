//! What was measured, as a table, as rows for programs, and as a chart.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use plotters::prelude::*;
use serde::Serialize;

use crate::meter::Sample;

/// One subject at one work: medians over all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub work: &'static str,
    pub subject: &'static str,
    pub ops_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub cpu_us_per_op: f64,
    pub allocs_per_op: Option<f64>,
    /// How many times the first subject's time of the same round this subject's took.
    #[serde(skip)]
    pub ratio: f64,
}

impl Row {
    /// From the samples of all rounds, and those of the first subject in the same rounds.
    #[must_use]
    pub fn of(work: &'static str, subject: &'static str, samples: &[Sample], first: &[Sample]) -> Row {
        let median = |value: &dyn Fn(&Sample) -> f64| median(samples.iter().map(value).collect());
        let operations = |sample: &Sample| f64::from(sample.operations);
        Row {
            work,
            subject,
            ops_per_s: median(&|sample| sample.took.len() as f64 / sample.took.iter().sum::<Duration>().as_secs_f64()),
            p50_us: median(&|sample| percentile(sample, 50)),
            p99_us: median(&|sample| percentile(sample, 99)),
            cpu_us_per_op: median(&|sample| sample.cpu.as_secs_f64() * 1e6 / operations(sample)),
            allocs_per_op: samples[0]
                .allocations
                .map(|_| median(&|sample| sample.allocations.unwrap_or_default() as f64 / operations(sample))),
            ratio: self::median(
                samples
                    .iter()
                    .zip(first)
                    .map(|(sample, first)| percentile(sample, 50) / percentile(first, 50))
                    .collect(),
            ),
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// In microseconds.
fn percentile(sample: &Sample, percent: usize) -> f64 {
    let mut took = sample.took.clone();
    took.sort();
    took[(took.len() - 1) * percent / 100].as_secs_f64() * 1e6
}

/// A table for people.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    for (at, row) in rows.iter().enumerate() {
        if at == 0 || rows[at - 1].work != row.work {
            let _ = writeln!(
                out,
                "\n{:<20} {:>10} {:>10} {:>10} {:>7} {:>10} {:>9}",
                row.work, "ops/s", "p50 µs", "p99 µs", "ratio", "CPU µs/op", "allocs/op"
            );
        }
        let allocations = row.allocs_per_op.map_or("-".into(), |allocations| format!("{allocations:.2}"));
        let _ = writeln!(
            out,
            "  {:<18} {:>10.0} {:>10.2} {:>10.2} {:>7.2} {:>10.2} {allocations:>9}",
            row.subject, row.ops_per_s, row.p50_us, row.p99_us, row.ratio, row.cpu_us_per_op
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

/// Writes the medians as points on a logarithmic scale, since they go from a tenth of a microsecond to hundreds.
///
/// # Errors
/// When the file cannot be written.
pub fn chart(rows: &[Row], path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let works = rows.chunk_by(|a, b| a.work == b.work).count() as i32;
    let height = works * TITLE + rows.len() as i32 * BAR + 30;
    let root = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let least = rows.iter().map(|row| row.p50_us).fold(f64::MAX, f64::min).log10().floor();
    let most = rows.iter().map(|row| row.p50_us).fold(f64::MIN, f64::max).log10().ceil();
    let x = |micros: f64| LEFT + ((micros.log10() - least) / (most - least) * f64::from(RIGHT - LEFT)) as i32;
    let text = |size: u32| TextStyle::from(("sans-serif", size).into_font()).color(&BLACK);
    for power in least as i32..=most as i32 {
        let at = x(10_f64.powi(power));
        root.draw(&PathElement::new([(at, TITLE - 6), (at, height - 24)], RGBColor(225, 225, 225)))?;
        root.draw(&Text::new(format!("{} µs", 10_f64.powi(power)), (at - 14, height - 20), text(11)))?;
    }
    let mut y = 0;
    for work in rows.chunk_by(|a, b| a.work == b.work) {
        root.draw(&Text::new(format!("{}: median time", work[0].work), (8, y + 14), text(13)))?;
        y += TITLE;
        for row in work {
            let color =
                if row.subject.starts_with("dogpile") { RGBColor(200, 80, 40) } else { RGBColor(120, 150, 190) };
            root.draw(&Text::new(row.subject, (8, y + 2), text(12)))?;
            let (at, middle) = (x(row.p50_us), y + BAR / 2);
            root.draw(&PathElement::new([(LEFT, middle), (RIGHT, middle)], RGBColor(240, 240, 240)))?;
            root.draw(&Circle::new((at, middle), 5, color.filled()))?;
            root.draw(&Text::new(format!("{:.2}", row.p50_us), (at + 10, y + 3), text(11)))?;
            y += BAR;
        }
    }
    root.present()?;
    Ok(())
}
