//! The connection over which a server tells of leases is cut in the middle of what it tells: who waits looks again at
//! once, not when the lease would have ended.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::ledger::Ledger;
use crate::limit::all_limited;
use crate::process::{Face, Process, Settings};
use crate::support::Server;

/// Stands before a server, and can cut a connection within the next push on it.
struct Shears {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// How many bytes of the next push are let through before its connection is cut.
    keeps: Mutex<Option<usize>>,
    cuts: AtomicUsize,
    /// After a cut, whoever comes is accepted and gets no answer.
    then_deaf: AtomicBool,
    is_deaf: AtomicBool,
    is_over: AtomicBool,
}

impl Shears {
    fn before(server: &Server) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let (port, target) = (listener.local_addr().unwrap().port(), server.port);
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            let mut silent = Vec::new();
            for client in listener.incoming().flatten() {
                if shared.is_over.load(Ordering::SeqCst) {
                    return;
                }
                if shared.is_deaf.load(Ordering::SeqCst) {
                    silent.push(client);
                    continue;
                }
                let server = TcpStream::connect(("127.0.0.1", target)).unwrap();
                let (client2, server2) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let state = Arc::clone(&shared);
                std::thread::spawn(move || forward(client, server, |_| None));
                std::thread::spawn(move || forward(server2, client2, |piece| state.cuts_at(piece)));
            }
        });
        Shears { port, state }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn cut_next(&self, keeps: usize) {
        *self.state.keeps.lock().unwrap() = Some(keeps);
    }

    fn cuts(&self) -> usize {
        self.state.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Shears {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl State {
    /// How much of this piece goes through, if not all.
    fn cuts_at(&self, piece: &[u8]) -> Option<usize> {
        let mut keeps = self.keeps.lock().unwrap();
        // A server sends a push as a whole, over a connection that is quiet otherwise.
        let (start, kept) = (piece.windows(PUSH.len()).position(|part| part == PUSH)?, keeps.take()?);
        self.cuts.fetch_add(1, Ordering::SeqCst);
        self.is_deaf.store(self.then_deaf.load(Ordering::SeqCst), Ordering::SeqCst);
        Some((start + kept).min(piece.len() - 1))
    }
}

/// How a push begins that tells of a key.
const PUSH: &[u8] = b">2\r\n$10\r\ninvalidate\r\n";

fn forward(mut from: TcpStream, mut to: TcpStream, cuts_at: impl Fn(&[u8]) -> Option<usize>) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let cut = cuts_at(&buffer[..read]);
        if to.write_all(&buffer[..cut.unwrap_or(read)]).is_err() || cut.is_some() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Far less than the lease, and far more than looking again takes.
const SOON: Duration = Duration::from_secs(3);

/// Cuts the next push after so many bytes while others wait for a holder. How long after the value was made they had it.
fn cut(face: Face, shears: &Shears, holder: &Process, waits: &Process, ledger: &Ledger, key: &str, keeps: usize) {
    let before = shears.cuts();
    std::thread::scope(|scope| {
        scope.spawn(|| holder.call(key));
        ledger.wait_for(&format!("began {key}"), 1, SOON);
        shears.cut_next(keeps);
        waits.callers(4, key);
    });
    let returned = Instant::now();
    assert_eq!(shears.cuts(), before + 1, "the push was cut");
    ledger.check();
    assert_eq!(ledger.count(&format!("got {key}")), 5);
    let made = ledger.said(&format!("made {key}"));
    assert_eq!(made.len(), 1, "only the holder creates");
    let waited = returned.saturating_duration_since(made[0].at);
    println!("{face:?}: with {keeps} bytes of a push, all had the value {waited:?} after it was made");
    assert!(waited < SOON, "{waited:?}");
}

#[test]
fn a_push_that_is_cut_wakes_who_waits() {
    all_limited(Face::ALL, |face| {
        let server = Server::start();
        let shears = Shears::before(&server);
        let ledger = Arc::new(Ledger::default());
        // Nothing is told but the end of the lease: it would be renewed after ten seconds, and end after 30.
        let holder = Settings { creator: (300, 300), lease: 30_000, ..Settings::new("h", &server.url(), face) };
        let holder = Process::noted(&holder, &ledger);
        let waits = Settings { lease: 30_000, ..Settings::new("w", &shears.url(), face) };
        let waits = Process::noted(&waits, &ledger);
        // Nothing of it, its type, half of its name, all but the key, all but the end.
        for (round, keeps) in [0, 1, 14, PUSH.len(), usize::MAX / 2].into_iter().enumerate() {
            cut(face, &shears, &holder, &waits, &ledger, &format!("k{round}"), keeps);
        }
    });
}

#[test]
fn a_push_that_is_cut_while_the_holder_creates_wakes_nobody_for_good() {
    all_limited(Face::ALL, |face| {
        let server = Server::start();
        let shears = Shears::before(&server);
        let ledger = Arc::new(Ledger::default());
        // The first push tells that the lease was renewed, after a second; the value is there half a second
        // later.
        let lease = 3_000;
        let holder = Settings { creator: (1_500, 1_500), lease, ..Settings::new("h", &server.url(), face) };
        let holder = Process::noted(&holder, &ledger);
        let waits = Process::noted(&Settings { lease, ..Settings::new("w", &shears.url(), face) }, &ledger);
        cut(face, &shears, &holder, &waits, &ledger, "k", 14);
    });
}

#[test]
fn who_cannot_be_told_any_more_asks() {
    all_limited(Face::ALL, |face| {
        let server = Server::start();
        let shears = Shears::before(&server);
        let ledger = Arc::new(Ledger::default());
        // A push is cut that tells of a renewal, after a second, and nobody can listen anew.
        let lease = 3_000;
        let holder = Settings { creator: (2_500, 2_500), lease, ..Settings::new("h", &server.url(), face) };
        let holder = Process::noted(&holder, &ledger);
        let waits = Process::noted(&Settings { lease, ..Settings::new("w", &shears.url(), face) }, &ledger);
        shears.state.then_deaf.store(true, Ordering::SeqCst);
        cut(face, &shears, &holder, &waits, &ledger, "k", 14);
    });
}
