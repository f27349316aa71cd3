//! Processes of our own: this test binary once more, which is told by lines on its standard input and says by lines on
//! its standard output what happens in it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child as OsChild, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::ledger::Ledger;
use crate::process::{Process, Settings};

/// What a child is to do; where it is not there, this is no child.
const ORDERS: &str = "DOGPILE_FIRE_CHILD";

/// What stands before a line that is ours: the test harness has some of its own.
const MARK: &str = "fire: ";

/// What a child is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Orders {
    /// Callers ask when they are told to.
    Call(Settings),
    /// Callers ask for whatever they like, and write what happens to a file.
    Roam(Settings, std::path::PathBuf),
}

/// A process of our own, which ends with this one at the latest.
pub struct Child {
    process: OsChild,
    input: Option<ChildStdin>,
}

impl Child {
    /// One whose callers ask when they are told to; what is said there is noted in the ledger.
    pub fn start(settings: &Settings, ledger: &Arc<Ledger>) -> Self {
        Self::with(&Orders::Call(settings.clone()), &settings.name, ledger)
    }

    pub fn with(orders: &Orders, name: &str, ledger: &Arc<Ledger>) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child::child", "--nocapture"])
            .env(ORDERS, serde_json::to_string(orders).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (process.stdin.take(), BufReader::new(process.stdout.take().unwrap()));
        let (ledger, name) = (Arc::clone(ledger), name.to_string());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(what) = line.strip_prefix(MARK) {
                    ledger.note(&name, what);
                }
            }
        });
        Child { process, input }
    }

    /// So many callers ask for a key at once. It says `done` when they have ended.
    pub fn call(&mut self, callers: usize, key: &str) {
        self.tell(&format!("call {callers} {key}"));
    }

    pub fn tell(&mut self, what: &str) {
        writeln!(self.input.as_mut().unwrap(), "{what}").unwrap();
    }

    /// Ends it at once, whatever it does: by SIGKILL, where there are signals.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Sends it a signal such as `STOP`.
    #[cfg(unix)]
    pub fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Whether it ends by itself, without a failure, now that nobody will tell it anything any more.
    pub fn ends_well(&mut self, at_most: Duration) -> bool {
        self.input = None;
        let deadline = Instant::now() + at_most;
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Says something to the process that started this one.
pub fn say(what: &str) {
    // In one piece, and not behind what the harness says.
    let line = format!("\n{MARK}{what}\n");
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

/// Not a test, but what runs in the processes that tests start.
#[test]
fn child() {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    match serde_json::from_str(&orders).unwrap() {
        Orders::Call(settings) => call(&settings),
        #[cfg(unix)]
        Orders::Roam(settings, file) => crate::chaos::roam(&settings, &file),
        #[cfg(not(unix))]
        Orders::Roam(..) => unreachable!("chaos needs signals"),
    }
}

fn call(settings: &Settings) {
    let process = Arc::new(Process::open(settings, Arc::new(say)));
    say("ready");
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<_> = line.split(' ').collect();
        let ["call", callers, key] = words[..] else { panic!("what is {line:?}?") };
        let (process, callers, key) = (Arc::clone(&process), callers.parse().unwrap(), key.to_string());
        std::thread::spawn(move || {
            process.callers(callers, &key);
            say(&format!("done {key}"));
        });
    }
    // Whoever started this process has gone, or has no use for it; its callers need not end.
    std::process::exit(0);
}
