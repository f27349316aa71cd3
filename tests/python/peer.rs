//! Processes that are told what to do by lines of JSON: the Python packages, or this library.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value as Json;

/// Leaves out what needs Python.
const WITHOUT: &str = "DOGPILE_WITHOUT_PYTHON";

/// A process that ends with this one at the latest.
pub struct Peer {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// The Python packages; `None` where they are left out.
    pub fn python() -> Option<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/peer.py");
        Some(Self::start(Command::new(interpreter()?).arg(script)))
    }

    /// This library, in this test binary once more.
    pub fn rust() -> Self {
        let mut program = Command::new(std::env::current_exe().unwrap());
        Self::start(program.args(["--exact", "child::child", "--nocapture"]).env(crate::child::IS_CHILD, "1"))
    }

    fn start(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Peer { process, input, output }
    }

    /// Gives it an order, which it begins at once.
    pub fn tell(&mut self, order: &Json) {
        writeln!(self.input, "{order}").unwrap();
    }

    /// What it answers to the first order that it has not answered yet.
    pub fn answer(&mut self) -> Json {
        self.try_answer().unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same, or why it could not be done.
    fn try_answer(&mut self) -> Result<Json, String> {
        // The test harness has some lines of its own.
        let line = self.output.by_ref().lines().map(Result::unwrap).find(|line| line.starts_with('{'));
        let mut answer: Json = serde_json::from_str(&line.expect("it is there to answer")).unwrap();
        match answer["error"].as_str() {
            Some(error) => Err(error.into()),
            None => Ok(answer["answer"].take()),
        }
    }

    pub fn ask(&mut self, order: &Json) -> Json {
        self.tell(order);
        self.answer()
    }

    pub fn try_ask(&mut self, order: &Json) -> Result<Json, String> {
        self.tell(order);
        self.try_answer()
    }

    /// Ends it at once, whatever it does.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The Python that has the packages, made once; `None` where it is left out.
fn interpreter() -> Option<&'static str> {
    static INTERPRETER: OnceLock<Option<Result<String, String>>> = OnceLock::new();
    let made = INTERPRETER.get_or_init(|| {
        if std::env::var_os(WITHOUT).is_some_and(|without| !without.is_empty()) {
            // Not by a macro: what those print is hidden where tests pass.
            let _ = writeln!(std::io::stderr(), "tests with Python are LEFT OUT: {WITHOUT} is set");
            return None;
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/python");
        let ran = Command::new(script).arg(concat!(env!("CARGO_TARGET_TMPDIR"), "/python")).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_string();
        Some(if ran.status.success() { Ok(said(&ran.stdout)) } else { Err(said(&ran.stderr)) })
    });
    made.as_ref().map(|made| match made {
        Ok(python) => python.as_str(),
        Err(why) => panic!(
            "no Python with the reference's packages can be made here: scripts/test installs Python, PyPI must be in \
             reach, {WITHOUT}=1 leaves these tests out\n{why}"
        ),
    })
}
