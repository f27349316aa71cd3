//! A redis-server of our own, and how much memory what it stores takes.

use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Failure;

/// Ends with this value, unless it is [let go](Server::let_go).
pub struct Server {
    child: Option<Child>,
    port: u16,
    /// What it took when it was empty.
    empty: u64,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Server {
    pub fn start() -> Result<Self, Failure> {
        let program = std::env::var("DOGPILE_TEST_SERVER").unwrap_or_else(|_| "redis-server".into());
        // Another process may take the port before the server does; it then ends, and another port is tried.
        let mut why = String::new();
        for _ in 0..5 {
            let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
            let child = Command::new(&program)
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
                .args(["--hash-max-listpack-entries", "512", "--hash-max-listpack-value", "64"])
                .args(["--enable-debug-command", "local", "--loglevel", "warning"])
                // What it remembers of commands would count as memory of entries.
                .args(["--latency-tracking", "no", "--slowlog-log-slower-than", "-1"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .map_err(|error| {
                    format!("{program} cannot be started ({error}): install it, or name another in DOGPILE_TEST_SERVER")
                })?;
            let mut server = Server { child: Some(child), port, empty: 0 };
            if server.came_up(&mut why)? {
                server.empty = server.used()?;
                return Ok(server);
            }
        }
        Err(format!("{program} ended as soon as it was started. It said: {}", why.trim()).into())
    }

    /// Whether it answers; if it ended instead, `why` is what it said.
    fn came_up(&mut self, why: &mut String) -> Result<bool, Failure> {
        let (deadline, child) = (Instant::now() + Duration::from_secs(10), self.child.as_mut().expect("was started"));
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port))?;
        while child.try_wait()?.is_none() {
            // Another server at this port is none of ours: ours ends.
            if client.get_connection().is_ok() && child.try_wait()?.is_none() {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Err(format!("the server does not answer at port {}", self.port).into());
            }
            sleep(Duration::from_millis(5));
        }
        *why = String::new();
        child.stdout.take().expect("is piped").read_to_string(why)?;
        Ok(false)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Lets it run when this process has ended. It then is of the system's care, or of whoever kills it.
    pub fn let_go(mut self) -> u16 {
        self.child = None;
        self.port
    }

    pub fn connect(&self) -> Result<redis::Connection, Failure> {
        Ok(redis::Client::open(self.url())?.get_connection()?)
    }

    /// How many bytes its entries take, once its hash tables have their final size: a table that grows is there twice
    /// until all of it has been moved.
    pub fn taken(&self) -> Result<u64, Failure> {
        let mut admin = self.connect()?;
        // Tables are moved for a millisecond at each tick.
        let ticks =
            |hz: u32, admin: &mut redis::Connection| redis::cmd("CONFIG").arg("SET").arg("hz").arg(hz).exec(admin);
        ticks(500, &mut admin)?;
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let tables: String = redis::cmd("DEBUG").arg("HTSTATS").arg(0).query(&mut admin)?;
            if !tables.contains("rehashing target") {
                break;
            }
            if Instant::now() > deadline {
                return Err("the server's hash tables still grow after two minutes".into());
            }
            sleep(Duration::from_millis(20));
        }
        ticks(10, &mut admin)?;
        drop(admin);
        Ok(self.used()?.saturating_sub(self.empty))
    }

    /// Its memory while nobody but we is connected.
    fn used(&self) -> Result<u64, Failure> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let info: String = redis::cmd("INFO").query(&mut self.connect()?)?;
            let figure = |name: &str| {
                let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                let value = value.ok_or_else(|| format!("the server's INFO has no {name}"))?;
                Ok::<u64, Failure>(value.trim().parse()?)
            };
            if figure("connected_clients")? == 1 {
                return figure("used_memory");
            }
            if Instant::now() > deadline {
                return Err("somebody else is connected to the server".into());
            }
            sleep(Duration::from_millis(20));
        }
    }
}
