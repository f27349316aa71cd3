//! The reference itself, in Python: fills a server in the same way, and what it stored is compared with ours.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use dogpile::Timestamp;
use indicatif::ProgressBar;

use crate::Failure;
use crate::data::Data;
use crate::server::Server;

/// An interpreter that has the reference's packages.
pub struct Python(PathBuf);

impl Python {
    /// Makes it where it is not there yet, which needs PyPI.
    pub fn find() -> Result<Self, Failure> {
        // Where the tests have it, too: in tmp of target, beside release/examples.
        let program = std::env::current_exe()?;
        let folder = program.ancestors().nth(3).ok_or("an example is in release/examples")?.join("tmp/python");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/python");
        let made = Command::new(script).arg(folder).stderr(Stdio::inherit()).output();
        let made = made.map_err(|error| format!("{script} cannot be run: {error}"))?;
        if !made.status.success() {
            return Err(format!("{script} made no Python with the reference's packages, see above").into());
        }
        Ok(Python(String::from_utf8(made.stdout)?.trim().into()))
    }

    /// Fills an empty server, and says how many seconds that took. The entries' time of creation is `created`, or now.
    pub fn fill(
        &self,
        strategy: &str,
        server: &Server,
        data: Data,
        created: Option<Timestamp>,
        progress: &ProgressBar,
    ) -> Result<f64, Failure> {
        let mut command = Command::new(&self.0);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/memory/fill.py")).arg(strategy);
        command.args([server.port().into(), data.integers, data.named].map(|number| number.to_string()));
        command.args(created.map(|created| created.as_secs_f64().to_string()));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        // Each line is how many entries there are by now, and after how many seconds.
        let (mut seconds, mut said) = (None, String::new());
        for line in BufReader::new(child.stdout.take().ok_or("no output")?).lines() {
            said = line?;
            let (entries, after) = said.split_once(' ').ok_or_else(|| format!("fill.py says {said:?}"))?;
            progress.set_position(entries.parse()?);
            seconds = Some(after.parse()?);
        }
        match seconds {
            Some(seconds) if child.wait()?.success() => Ok(seconds),
            _ => Err(format!("fill.py failed after {said:?}").into()),
        }
    }
}

/// Of keys and fields, which plain keys have none of.
type Contents = BTreeMap<(Vec<u8>, Vec<u8>), Stored>;

#[derive(PartialEq)]
pub struct Stored {
    entry: Vec<u8>,
    /// Whether the key, or the whole hash, expires.
    expires: bool,
}

/// All that a server has.
pub fn contents(server: &Server) -> Result<Contents, Failure> {
    let mut admin = server.connect()?;
    let mut all = Contents::new();
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(&mut admin)?;
    for key in keys {
        let (kind, ttl): (String, i64) = redis::pipe().cmd("TYPE").arg(&key).cmd("TTL").arg(&key).query(&mut admin)?;
        let entries: Vec<(Vec<u8>, Vec<u8>)> = if kind == "hash" {
            redis::cmd("HGETALL").arg(&key).query(&mut admin)?
        } else {
            vec![(Vec::new(), redis::cmd("GET").arg(&key).query(&mut admin)?)]
        };
        let stored = |(field, entry)| ((key.clone(), field), Stored { entry, expires: ttl >= 0 });
        all.extend(entries.into_iter().map(stored));
    }
    Ok(all)
}
