//! The reference in Python, in a process and an environment of its own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde::Deserialize;

use super::{Subject, Work};
use crate::meter::Sample;

/// The reference, if Python is found and its packages can be installed.
pub(super) fn subject(url: &str) -> Option<Box<dyn Subject>> {
    match Reference::start(url) {
        Ok(reference) => Some(Box::new(reference)),
        Err(why) => {
            eprintln!("without the reference in Python: {why}");
            None
        }
    }
}

struct Reference {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

/// What its script answers with. Times are in nanoseconds.
#[derive(Deserialize)]
struct Answer {
    took: Vec<u64>,
    cpu: u64,
}

impl Reference {
    fn start(url: &str) -> Result<Self, String> {
        let python = environment()?;
        let mut child = Command::new(python)
            .args(["-c", include_str!("reference.py"), url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let (to, from) = (child.stdin.take().expect("is piped"), child.stdout.take().expect("is piped"));
        let mut reference = Reference { child, to, from: BufReader::new(from) };
        reference.ask("get_hit", 1).ok_or("its script does not work here")?;
        Ok(reference)
    }

    fn ask(&mut self, work: &str, times: u32) -> Option<Answer> {
        writeln!(self.to, "{work} {times}").and_then(|()| self.to.flush()).ok()?;
        let mut line = String::new();
        self.from.read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }
}

impl Subject for Reference {
    fn name(&self) -> &'static str {
        "python"
    }

    fn run(&mut self, work: Work, times: u32) -> Option<Sample> {
        if work.tasks().is_some() {
            return None;
        }
        let answer = self.ask(work.name(), times).expect("the script that worked at first works on");
        let took: Vec<_> = answer.took.into_iter().map(Duration::from_nanos).collect();
        let (elapsed, cpu) = (took.iter().sum(), Some(Duration::from_nanos(answer.cpu)));
        Some(Sample { took, elapsed, cpu, allocations: None, operations: times })
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The Python of a virtual environment that has the reference, made where it is not there yet.
fn environment() -> Result<String, String> {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut script = Command::new(format!("{root}/../../scripts/python"));
    let ran = script.arg(format!("{root}/target/python")).output().map_err(|error| error.to_string())?;
    if ran.status.success() {
        return Ok(String::from_utf8_lossy(&ran.stdout).trim_end().into());
    }
    Err(String::from_utf8_lossy(&ran.stderr).lines().last().unwrap_or_default().into())
}
