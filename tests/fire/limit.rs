//! A limit for tests whose callers might hang, so that they fail then.

use std::io::Write;
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Far more than any test here takes on a busy machine, but for chaos, which has limits of its own.
const LONGEST: Duration = Duration::from_secs(60);

/// Does the work of a test in a thread of its own, which is left behind when it takes too long.
pub fn limited(work: impl FnOnce() + Send + 'static) {
    let (done, waits) = channel();
    let thread = std::thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    match waits.recv_timeout(LONGEST) {
        Ok(()) => {}
        Err(RecvTimeoutError::Timeout) => give_up(),
        Err(RecvTimeoutError::Disconnected) => std::panic::resume_unwind(thread.join().unwrap_err()),
    }
}

/// Ends all tests, and what this process started: what hangs does not stop its servers any more.
fn give_up() -> ! {
    let test = std::thread::current();
    // Not by a macro, whose output the harness would keep to itself.
    let _ = writeln!(std::io::stderr(), "{}: somebody hangs", test.name().unwrap_or("a test"));
    let _ = Command::new("pkill").args(["-KILL", "-P", &std::process::id().to_string()]).status();
    std::process::exit(101)
}

/// The same for several cases at once.
pub fn all_limited<C: Send + 'static>(cases: impl IntoIterator<Item = C>, work: impl Fn(C) + Copy + Send + 'static) {
    let cases: Vec<_> = cases.into_iter().collect();
    limited(move || {
        std::thread::scope(|scope| cases.into_iter().for_each(|case| drop(scope.spawn(move || work(case)))));
    });
}
