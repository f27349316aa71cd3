//! What creators and callers said, in order: who made which value, and who got which.
//!
//! A line is a word, a key, and what there is to say about it: `began k`, `made k VALUE`, `failed k` and `twice k` of
//! creators, `lost k` of a policy, `got k VALUE`, `refused k` (the creator's own error) and `error k WHY` of callers.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use std::sync::{Condvar, Mutex};

/// What was said.
#[derive(Clone, Debug)]
pub struct Line {
    pub at: Instant,
    /// The process that said it.
    pub who: String,
    pub what: String,
}

#[derive(Default)]
pub struct Ledger {
    lines: Mutex<Vec<Line>>,
    added: Condvar,
}

impl Ledger {
    pub fn note(&self, who: &str, what: &str) {
        let line = Line { at: Instant::now(), who: who.to_string(), what: what.to_string() };
        self.lines.lock().unwrap().push(line);
        self.added.notify_all();
    }

    /// What was said that begins with these words.
    pub fn said(&self, words: &str) -> Vec<Line> {
        self.lines.lock().unwrap().iter().filter(|line| begins_with(&line.what, words)).cloned().collect()
    }

    pub fn count(&self, words: &str) -> usize {
        self.said(words).len()
    }

    /// Waits until something was said so many times: the last of these lines.
    pub fn wait_for(&self, words: &str, times: usize, at_most: Duration) -> Line {
        let deadline = Instant::now() + at_most;
        let mut lines = self.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().filter(|line| begins_with(&line.what, words)).nth(times - 1) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{words:?} was not said {times} times in {at_most:?}: {lines:#?}");
            lines = self.added.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Fails unless each value that a caller got was made for its key by a creator, nobody got an error that is not its
    /// creator's own, and no process created a key twice at once.
    pub fn check(&self) {
        let lines = self.lines.lock().unwrap();
        let wrong = wrong(lines.iter().map(|line| line.what.as_str()));
        assert!(wrong.is_empty(), "{wrong:#?} in {lines:#?}");
    }
}

/// Those lines of a whole ledger that should not be there.
pub fn wrong<'l>(lines: impl Iterator<Item = &'l str> + Clone) -> Vec<&'l str> {
    let made: HashSet<_> = lines.clone().filter_map(|line| line.strip_prefix("made ")).collect();
    let is_wrong = |line: &&str| match line.split_once(' ') {
        Some(("got", value)) => !made.contains(value),
        Some((word, _)) => matches!(word, "twice" | "error" | "hangs"),
        None => false,
    };
    lines.filter(is_wrong).collect()
}

fn begins_with(line: &str, words: &str) -> bool {
    line.strip_prefix(words).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

#[test]
fn a_ledger_shows_what_is_wrong() {
    let ledger = Ledger::default();
    for line in ["began k", "made k 1", "got k 1", "made kk 2", "got kk 2", "failed k", "refused k"] {
        ledger.note("a", line);
    }
    ledger.check();
    assert_eq!((ledger.count("made"), ledger.count("made k"), ledger.count("made kk 2")), (2, 1, 1));
    let lines = ["made k 1", "made l 2", "got l 1", "got k 3", "got k 1", "twice k", "error k no", "hangs k"];
    assert_eq!(wrong(lines.into_iter()), ["got l 1", "got k 3", "twice k", "error k no", "hangs k"]);
}
