//! Which cores this process and the server run on: the same one, where each waits for the other; one each, where tasks
//! give both enough to do. `CORES=CLIENT,SERVER` chooses them (0,1), and `CORES=all` leaves both free.
//!
//! Where nobody chooses, a call takes 9 µs or 90, whoever makes it: as the scheduler puts client and server on one core
//! or on two, of which the other must be woken up each time.

use std::path::Path;
use std::process::Command;

use redis::ConnectionAddr;

/// Puts both back where they were when this is dropped.
pub struct Cores {
    /// The client's, which is that of both when they are together, and the server's own. None where both are left free.
    chosen: Vec<String>,
    client: Option<Process>,
    /// `None` where it is not a process of this machine that can be told.
    server: Option<Process>,
    complained: bool,
}

impl Cores {
    #[must_use]
    pub fn of(url: &str) -> Self {
        let chosen = std::env::var("CORES").unwrap_or_else(|_| "0,1".into());
        let chosen = if chosen == "all" { Vec::new() } else { chosen.split(',').map(str::to_string).collect() };
        let server = server(url).and_then(Process::of);
        Cores { chosen, client: Process::of(std::process::id()), server, complained: false }
    }

    /// Both on one core. A server elsewhere is left alone.
    pub fn together(&mut self) {
        let done = match (&self.chosen[..], &self.client) {
            ([], _) => Ok(()),
            (_, None) => Err("there is no taskset".into()),
            ([core, ..], Some(client)) => {
                client.pin(core).and_then(|()| self.server.as_ref().map_or(Ok(()), |server| server.pin(core)))
            }
        };
        self.or_free(done);
    }

    /// Each on a core of its own.
    pub fn apart(&mut self) {
        let done = match (&self.chosen[..], &self.client, &self.server) {
            ([], ..) => Ok(()),
            (_, None, _) => Err("there is no taskset".into()),
            (.., None) => Err("the server's process cannot be told".into()),
            ([_], ..) => Err("CORES names one core".into()),
            ([client_core, server_core, ..], Some(client), Some(server)) => {
                client.pin(client_core).and_then(|()| server.pin(server_core))
            }
        };
        self.or_free(done);
    }

    fn or_free(&mut self, done: Result<(), String>) {
        if let Err(why) = done {
            if !std::mem::replace(&mut self.complained, true) {
                eprintln!("some of this is measured without cores of its own: {why}");
            }
            self.free();
        }
    }

    fn free(&self) {
        for process in self.client.iter().chain(&self.server) {
            let _ = process.pin(&process.free);
        }
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        self.free();
    }
}

struct Process {
    pid: u32,
    /// Where it may run by itself.
    free: String,
}

impl Process {
    fn of(pid: u32) -> Option<Self> {
        let said = taskset(&["-c", "-p", &pid.to_string()]).ok()?;
        Some(Process { pid, free: said.trim().rsplit(": ").next()?.to_string() })
    }

    /// All its threads.
    fn pin(&self, cores: &str) -> Result<(), String> {
        taskset(&["-a", "-c", "-p", cores, &self.pid.to_string()]).map(drop)
    }
}

fn taskset(arguments: &[&str]) -> Result<String, String> {
    let ran = Command::new("taskset").args(arguments).output().map_err(|error| format!("taskset: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    if ran.status.success() { Ok(text(&ran.stdout)) } else { Err(text(&ran.stderr)) }
}

/// The process of a server on this machine. One in a container knows itself by another number, so that is looked at.
fn server(url: &str) -> Option<u32> {
    let client = redis::Client::open(url).ok()?;
    match client.get_connection_info().addr() {
        ConnectionAddr::Unix(_) => (),
        ConnectionAddr::Tcp(host, _) if ["127.0.0.1", "::1", "localhost"].contains(&&**host) => (),
        _ => return None,
    }
    let mut connection = client.get_connection().ok()?;
    let info: redis::InfoDict = redis::cmd("INFO").arg("server").query(&mut connection).ok()?;
    let pid: u32 = info.get("process_id")?;
    let name = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm")).ok()?;
    ["redis", "valkey"].iter().any(|known| name.starts_with(known)).then_some(pid)
}
