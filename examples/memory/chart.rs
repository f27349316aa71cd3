//! The memory of each strategy as bars, ours above the reference's.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::Failure;
use crate::report::Report;

const WIDTH: i32 = 860;
/// Above the bars, and below them.
const HEAD: i32 = 62;
const FOOT: i32 = 28;
/// Where bars begin, and the longest ends.
const LEFT: i32 = 210;
const RIGHT: i32 = 770;
/// Of one bar, and between two strategies.
const BAR: i32 = 11;
const GAP: i32 = 9;

const OURS: RGBColor = RGBColor(200, 80, 40);
const REFERENCE: RGBColor = RGBColor(150, 175, 205);
const GRID: RGBColor = RGBColor(228, 228, 228);

pub fn draw(report: &Report, path: &Path) -> Result<(), Failure> {
    let bars: Vec<_> = report.rows.iter().map(|row| (row.strategy, row.bytes, report.reference(row))).collect();
    let most = bars.iter().map(|(_, ours, reference)| (*ours).max(reference.unwrap_or(0))).max().unwrap_or(0);
    let rows_height: i32 = bars.iter().map(|(.., reference)| height(*reference)).sum();
    let bottom = HEAD + rows_height;
    let size = (WIDTH.unsigned_abs(), (bottom + FOOT).unsigned_abs());
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: i32, align: HPos| {
        TextStyle::from(("sans-serif", size).into_font()).color(&BLACK).pos(Pos::new(align, VPos::Center))
    };

    root.draw(&Text::new(report.title.clone(), (12, 20), text(16, HPos::Left)))?;
    let known = bars.iter().any(|(.., reference)| reference.is_some());
    let legend = [("dogpile", OURS, 12), ("the reference, in Python", REFERENCE, 102)];
    for (name, color, at) in legend.into_iter().take(if known { 2 } else { 1 }) {
        root.draw(&Rectangle::new([(at, 37), (at + BAR, 37 + BAR)], color.filled()))?;
        root.draw(&Text::new(name, (at + 17, 43), text(12, HPos::Left)))?;
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
    let x = |bytes: u64| LEFT + (bytes as f64 / most as f64 * f64::from(RIGHT - LEFT)) as i32;
    let step = step(most);
    for bytes in (0..=most).step_by(usize::try_from(step)?) {
        root.draw(&PathElement::new([(x(bytes), HEAD - 4), (x(bytes), bottom)], GRID))?;
        root.draw(&Text::new(tick(bytes), (x(bytes), bottom + 12), text(11, HPos::Center)))?;
    }
    let mut y = HEAD;
    for (name, ours, reference) in bars {
        let middle = y + (height(reference) - GAP) / 2;
        root.draw(&Text::new(name, (LEFT - 10, middle), text(13, HPos::Right)))?;
        let mut top = y;
        for (bytes, color) in [(Some(ours), OURS), (reference, REFERENCE)] {
            let Some(bytes) = bytes else { continue };
            root.draw(&Rectangle::new([(LEFT, top), (x(bytes), top + BAR)], color.filled()))?;
            root.draw(&Text::new(megabytes(bytes), (x(bytes) + 6, top + BAR / 2 + 1), text(11, HPos::Left)))?;
            top += BAR;
        }
        y += height(reference);
    }
    root.present()?;
    Ok(())
}

/// Of the bars of one strategy, with the gap below.
fn height(reference: Option<u64>) -> i32 {
    BAR + reference.map_or(0, |_| BAR) + GAP
}

/// Between two lines of the grid: 1, 2 or 5 and zeros, so that there are 4 to 10.
fn step(most: u64) -> u64 {
    let ten = 10_u64.pow((most / 4).max(1).ilog10());
    [5, 2, 1].map(|times| times * ten).into_iter().find(|step| most / step >= 4).unwrap_or(1)
}

fn megabytes(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let megabytes = bytes as f64 / 1e6;
    if megabytes < 10.0 { format!("{megabytes:.2} MB") } else { format!("{megabytes:.1} MB") }
}

/// Of a line of the grid, which is a round number.
fn tick(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let megabytes = bytes as f64 / 1e6;
    format!("{megabytes} MB")
}
