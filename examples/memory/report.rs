//! What was measured, as a table that grows row by row, or as JSON.

use dogpile::redis::ServerInfo;
use indicatif::HumanCount;
use serde::Serialize;

use crate::strategies::Strategy;
use crate::{Failure, Options};

/// What the reference takes for `region_redis`, of which all else is a part.
const WHOLE: &str = "region_redis";

#[derive(Serialize)]
pub struct Row {
    pub strategy: &'static str,
    pub bytes: u64,
    pub entries: u64,
    pub seconds: f64,
    #[serde(flatten)]
    pub beside: Option<Beside>,
}

/// What the reference took in the same run.
#[derive(Serialize)]
pub struct Beside {
    pub reference_bytes: u64,
    pub reference_seconds: f64,
    /// Whether its entries are byte for byte ours.
    pub same_bytes: bool,
}

pub struct Report {
    /// What was stored, and where.
    pub title: String,
    pub rows: Vec<Row>,
    full: bool,
    python: bool,
    json: bool,
}

impl Report {
    pub fn new(server: &ServerInfo, options: &Options) -> Self {
        let [major, minor, patch] = server.version;
        let (entries, name) = (HumanCount(options.data.entries()), &server.name);
        let title = format!("Memory of {entries} entries in {name} {major}.{minor}.{patch}");
        let report = Report { title, rows: Vec::new(), full: options.full, python: options.python, json: options.json };
        if !report.json {
            println!("{}\n", report.title);
            print!("{:<25} {:>12} {:>12} {:>7} {:>9} ", "strategy", "bytes", "reference", "of it", "an entry");
            print!("{:>16} {:>8} {:>10}", "of region_redis", "seconds", "entries/s");
            println!("{}", if report.python { "  its seconds  same bytes" } else { "" });
        }
        report
    }

    /// The bytes that the reference took for this: in this run, or as it is known for the whole data set.
    pub fn reference(&self, row: &Row) -> Option<u64> {
        match &row.beside {
            Some(beside) => Some(beside.reference_bytes),
            None => Strategy::named(row.strategy).ok()?.reference.filter(|_| self.full),
        }
    }

    /// What is 100 %: the reference's bytes where they are known, otherwise ours.
    fn whole(&self) -> Option<u64> {
        match self.rows.iter().find(|row| row.strategy == WHOLE) {
            Some(row) => self.reference(row).or(Some(row.bytes)),
            None => Strategy::named(WHOLE).ok()?.reference.filter(|_| self.full),
        }
    }

    pub fn row(&mut self, row: Row) {
        self.rows.push(row);
        if self.json {
            return;
        }
        let row = &self.rows[self.rows.len() - 1];
        let reference = self.reference(row);
        let bytes = |bytes: Option<u64>| bytes.map_or("-".into(), |bytes| HumanCount(bytes).to_string());
        #[allow(clippy::cast_precision_loss)]
        let part =
            |of: Option<u64>| of.map_or("-".into(), |of| format!("{:.1} %", 100.0 * row.bytes as f64 / of as f64));
        #[allow(clippy::cast_precision_loss)]
        let (each, entries) = (row.bytes as f64 / row.entries as f64, row.entries as f64 / row.seconds);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let entries = HumanCount(entries as u64).to_string();
        print!("{:<25} {:>12} {:>12} ", row.strategy, bytes(Some(row.bytes)), bytes(reference));
        print!("{:>7} {each:>9.1} {:>16} {:>8.2} {entries:>10}", part(reference), part(self.whole()), row.seconds);
        match &row.beside {
            None => println!(),
            Some(beside) => {
                println!("{:>13.2}  {}", beside.reference_seconds, if beside.same_bytes { "yes" } else { "no" });
            }
        }
    }

    /// A row that the server has no way to store.
    pub fn lacks(&self, strategy: &Strategy, lacking: &str) {
        if self.json {
            eprintln!("{}: {lacking}", strategy.name);
        } else {
            println!("{:<25} {lacking}", strategy.name);
        }
    }

    pub fn end(&self) -> Result<(), Failure> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(&self.rows)?);
        }
        Ok(())
    }
}
