//! Real servers for tests, and a proxy that counts round trips.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dogpile::Redis;

/// The file to which a server writes what it was told while it ran, where it does that.
const CONFIGURATION: &str = "server.conf";

/// A server process of its own, on a free port of 127.0.0.1, stopped when this is dropped.
pub struct Server {
    child: Option<Child>,
    frozen: AtomicBool,
    pub port: u16,
    dir: PathBuf,
    arguments: Vec<String>,
}

impl Server {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// A server with more arguments, such as `--requirepass pw`.
    pub fn with(arguments: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("dogpile-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(CONFIGURATION), "").unwrap();
        let mut arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_string()).collect();
        arguments.extend(more_arguments(&arguments));
        let mut server = Server { child: None, frozen: AtomicBool::new(false), port: 0, dir, arguments };
        // Another process may take a port between its choice and its use, so a server that does not come up is tried
        // again on another one.
        for _ in 0..5 {
            server.port = free_port();
            if server.launch() {
                return server;
            }
        }
        panic!("no server came up; see {}", server.dir.join("log").display());
    }

    fn launch(&mut self) -> bool {
        let program = std::env::var("DOGPILE_TEST_SERVER").unwrap_or_else(|_| "redis-server".into());
        let child = Command::new(&program)
            .arg(CONFIGURATION)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--logfile", "log", "--unixsocket", "socket"])
            .args(&self.arguments)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program} cannot be started ({error}): scripts/test installs one"));
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            // Any answer will do: it may ask for a password.
            if self.answers() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut answer = [0];
        stream.write_all(b"PING\r\n").is_ok() && stream.read(&mut answer).is_ok_and(|read| read == 1)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    pub fn redis(&self) -> Redis {
        Redis::open(&self.url()).unwrap()
    }

    /// Stops the process; its port stays this server's.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        *self.frozen.get_mut() = false;
    }

    /// Starts the process again, empty but for its configuration, on the same port.
    pub fn restart(&mut self) {
        self.stop();
        assert!(self.launch(), "the server did not come up again on port {}", self.port);
    }

    /// What the process is started with from the next time on.
    pub fn replace_argument(&mut self, old: &str, new: &str) {
        self.arguments.iter_mut().filter(|argument| *argument == old).for_each(|argument| *argument = new.into());
    }

    /// Sends the process a signal such as `STOP`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
        match name {
            "STOP" => self.frozen.store(true, Ordering::SeqCst),
            "CONT" => self.frozen.store(false, Ordering::SeqCst),
            _ => {}
        }
    }

    /// Whether it was neither stopped nor frozen.
    pub fn is_live(&self) -> bool {
        self.child.is_some() && !self.frozen.load(Ordering::SeqCst)
    }

    /// The password that it was started with.
    pub fn password(&self) -> Option<&str> {
        let at = self.arguments.iter().position(|argument| argument == "--requirepass")?;
        Some(&self.arguments[at + 1])
    }

    /// Runs one command of words, after the password if there is one, and returns the answer as it came.
    pub fn ask(&self, words: &[&str]) -> String {
        self.try_ask(words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// The same where the server may be gone, or cut the connection.
    pub fn try_ask(&self, words: &[&str]) -> io::Result<String> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut stream = BufReader::new(stream);
        let login = self.password().map(|password| ["AUTH", password]);
        let mut answer = Vec::new();
        for words in login.iter().map(<[_; 2]>::as_slice).chain([words]) {
            let mut command = format!("*{}\r\n", words.len()).into_bytes();
            for word in words {
                command.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
            }
            stream.get_mut().write_all(&command)?;
            answer.clear();
            read_answer(&mut stream, &mut answer)?;
        }
        Ok(String::from_utf8_lossy(&answer).trim_end().to_string())
    }

    /// The answer as an integer.
    pub fn ask_int(&self, words: &[&str]) -> i64 {
        let answer = self.ask(words);
        answer.strip_prefix(':').and_then(|int| int.parse().ok()).unwrap_or_else(|| panic!("{words:?}: {answer}"))
    }
}

/// Reads one answer as it comes.
fn read_answer(from: &mut impl BufRead, answer: &mut Vec<u8>) -> io::Result<()> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    answer.extend(line.bytes());
    let (kind, length) = line.trim_end().split_at(1);
    match (kind, length.parse()) {
        ("$", Ok(length @ 0..)) => {
            let begin = answer.len();
            answer.resize(begin + length as usize + 2, 0);
            from.read_exact(&mut answer[begin..])
        }
        ("*", Ok(length)) => (0..length).try_for_each(|_| read_answer(from, answer)),
        _ => Ok(()),
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(Path::new(&self.dir));
    }
}

/// What every server is started with besides, by `DOGPILE_TEST_ARGS`: words, of which `""` is an empty one. A test that
/// renames a command by itself gets none of it, since none can be renamed twice.
fn more_arguments(arguments: &[String]) -> Vec<String> {
    let more = std::env::var("DOGPILE_TEST_ARGS").unwrap_or_default();
    if arguments.iter().any(|argument| argument == "--rename-command") {
        return Vec::new();
    }
    more.split_whitespace().map(|word| word.trim_matches('"').to_string()).collect()
}

/// Whether the servers of this run know `HELLO`; those that do not, by `DOGPILE_TEST_ARGS`, speak RESP2 and tell nobody
/// when leases change.
pub fn speak_resp3() -> bool {
    !more_arguments(&[]).iter().any(|argument| argument == "HELLO")
}

/// The round trips of a connection before its first request.
pub fn trips_to_connect() -> usize {
    if speak_resp3() { 1 } else { 2 }
}

/// A port where nobody listens. It is not one of those that connections are given at their other end, so that a server
/// which was stopped finds it free when it starts again. Nor are the ports 10000 above these, which are those of the
/// links between the servers of a cluster.
pub fn free_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 12_000..22_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that were started one after the other begin far from each other.
    let first = std::process::id() % 10_000 * 6181;
    loop {
        let number = first + u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + (number % u32::from(PORTS.end - PORTS.start)) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Stands before a server and counts how often the talk turns from the server to the client: a round trip each.
pub struct Proxy {
    pub port: u16,
    turns: Arc<AtomicUsize>,
}

impl Proxy {
    pub fn before(server: &Server) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let (port, target) = (listener.local_addr().unwrap().port(), server.port);
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&turns);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(("127.0.0.1", target)).unwrap();
                let turns = Arc::clone(&counted);
                // Whether the last bytes on this connection came from the client.
                let asked = Arc::new(AtomicUsize::new(0));
                let (client2, server2, asked2) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap(), Arc::clone(&asked));
                std::thread::spawn(move || forward(client, server, || asked.store(1, Ordering::SeqCst)));
                std::thread::spawn(move || {
                    forward(server2, client2, || {
                        turns.fetch_add(asked2.swap(0, Ordering::SeqCst), Ordering::SeqCst);
                    });
                });
            }
        });
        Proxy { port, turns }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The round trips that `work` makes.
    pub fn count(&self, work: impl FnOnce()) -> usize {
        let before = self.turns.load(Ordering::SeqCst);
        work();
        self.turns.load(Ordering::SeqCst) - before
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, mut note: impl FnMut()) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        note();
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Waits until something is so.
pub fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    within(Duration::from_secs(10), what, is_so);
}

/// Waits until something is so, looking more seldom the longer that may take: how long it took.
pub fn within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < limit, "it never came that {what}");
        std::thread::sleep(limit / 10_000);
    }
    begun.elapsed()
}
