//! [`TrackingConnection`]: the connection over which a server announces changes of leases.
//!
//! One thread per server reads it, for blocking and asynchronous callers alike: it wakes both
//! through their wakers, and it works even while all runtimes are busy.

pub(crate) mod lease_watchers;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll as Poller, Token, Waker};
use parking_lot::Mutex;
#[cfg(feature = "tls")]
use rustls::{ClientConnection, StreamOwned};

use crate::error::{Error, ErrorKind};
use crate::redis::conn::backoff;
use crate::redis::conn::blocking;
use crate::redis::conn::blocking::{BlockingConnection, closed, io_error, timed_out};
use crate::redis::conn::limits::Limits;
use crate::redis::conn::pool::from_now;
#[cfg(feature = "tls")]
use crate::redis::conn::tls_stream::TlsStream;
use crate::redis::protocol::parser::Messages;
use crate::redis::tracking::lease_watchers::{LeaseWatch, LeaseWatchers, LockName, SharedWatchers};
use crate::redis::transport::Watch;
use crate::redis::url::Server;

/// How long a server is not asked for tracking again after it turned out to be unable or unwilling.
const UNSUPPORTED_BACKOFF: Duration = Duration::from_secs(10);

/// The tracking connection to one server.
///
/// It is opened by the first [`watch`](Self::watch) and closed when this is dropped. After a
/// failure, the next watch opens it again.
pub(crate) struct TrackingConnection(Arc<TrackingInner>);

struct TrackingInner {
    server: Server,
    limits: Limits,
    state: Mutex<TrackingState>,
}

struct TrackingState {
    watchers: LeaseWatchers,
    thread: ThreadState,
    /// How many connections in a row failed since the server last sent a message.
    failures: u32,
}

/// The state of the thread that reads the connection.
enum ThreadState {
    /// No thread is running.
    Stopped,
    /// The thread connects; it queries the watched leases once it is connected.
    Connecting,
    /// The thread listens; the waker tells it about a new watcher.
    Listening(Arc<Waker>),
    /// No thread is running, and none is started before this moment.
    Backoff(Instant),
    /// The [`TrackingConnection`] was dropped.
    Abandoned,
}

impl TrackingConnection {
    pub(crate) fn new(server: &Server, limits: Limits) -> Self {
        let state = TrackingState { watchers: LeaseWatchers::default(), thread: ThreadState::Stopped, failures: 0 };
        TrackingConnection(Arc::new(TrackingInner { server: server.clone(), limits, state: Mutex::new(state) }))
    }

    /// Returns a future that completes when the lease may have ended.
    ///
    /// It completes immediately if the lease is not held, and also if the connection breaks.
    /// Returns `None` while the server cannot be tracked. This does not block.
    pub(crate) fn watch(&self, lock: &[u8]) -> Option<Watch> {
        let name = LockName::from(lock);
        let mut state = self.0.state.lock();
        let waker = match &state.thread {
            ThreadState::Listening(waker) => Some(Arc::clone(waker)),
            ThreadState::Connecting => None,
            ThreadState::Abandoned => return None,
            ThreadState::Backoff(until) if Instant::now() < *until => return None,
            ThreadState::Stopped | ThreadState::Backoff(_) => {
                let inner = Arc::clone(&self.0);
                let spawned = thread::Builder::new().name("dogpile-tracking".into()).spawn(move || run(&inner));
                state.thread = if spawned.is_ok() {
                    ThreadState::Connecting
                } else {
                    ThreadState::Backoff(from_now(self.0.limits.max_backoff))
                };
                spawned.ok()?;
                None
            }
        };
        let id = state.watchers.watch(&name);
        drop(state);
        if let Some(waker) = waker {
            // This fails only after the thread has ended, and then it has woken all watchers.
            let _ = waker.wake();
        }
        Some(Box::pin(LeaseWatch::new(&self.0, name, id)))
    }
}

impl Drop for TrackingConnection {
    fn drop(&mut self) {
        let thread = std::mem::replace(&mut self.0.state.lock().thread, ThreadState::Abandoned);
        if let ThreadState::Listening(waker) = thread {
            let _ = waker.wake();
        }
    }
}

impl SharedWatchers for TrackingInner {
    fn with_watchers<T>(&self, with: impl FnOnce(&mut LeaseWatchers) -> T) -> T {
        with(&mut self.state.lock().watchers)
    }
}

/// The body of the thread. However it ends, it wakes all watchers.
fn run(inner: &TrackingInner) {
    /// Sets the state that follows and wakes all watchers, also if the thread panics.
    struct TrackingEnd<'s>(&'s TrackingInner, ThreadState);
    impl Drop for TrackingEnd<'_> {
        fn drop(&mut self) {
            let mut state = self.0.state.lock();
            if !matches!(state.thread, ThreadState::Abandoned) {
                state.thread = std::mem::replace(&mut self.1, ThreadState::Stopped);
            }
            let woken = state.watchers.close();
            drop(state);
            woken.wake();
        }
    }
    let mut end = TrackingEnd(inner, ThreadState::Stopped);
    if let Err(error) = TrackingLoop::open(inner).and_then(|mut tracking| tracking.run(inner)) {
        let failures = &mut inner.state.lock().failures;
        *failures = failures.saturating_add(1);
        // The server does not speak RESP3, an ACL forbids tracking, or the server has another role.
        if matches!(error.kind(), ErrorKind::Server | ErrorKind::Refused | ErrorKind::Config) {
            end.1 = ThreadState::Backoff(Instant::now() + UNSUPPORTED_BACKOFF);
        } else if *failures > 1 {
            // The first failure after a working connection causes no backoff, since most likely
            // only that connection broke.
            end.1 = ThreadState::Backoff(Instant::now() + backoff::after(*failures, inner.limits.max_backoff));
        }
    }
}

const SOCKET: Token = Token(0);
const WAKEUP: Token = Token(1);

/// An open tracking connection and the event loop over it.
struct TrackingLoop {
    poller: Poller,
    /// Keeps the waker alive: without it, a wakeup just before the [`TrackingConnection`] drops its
    /// handle would be lost.
    _waker: Arc<Waker>,
    stream: TrackingSocket,
    messages: Messages,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl TrackingLoop {
    fn open(inner: &TrackingInner) -> Result<Self, Error> {
        let socket = BlockingConnection::open_for_tracking(&inner.server, inner.limits)?;
        let opened = || {
            let mut stream = TrackingSocket::new(socket)?;
            let poller = Poller::new()?;
            stream.register(&poller)?;
            let waker = Arc::new(Waker::new(poller.registry(), WAKEUP)?);
            let (messages, _waker) = (Messages::new(inner.limits.max_entry), Arc::clone(&waker));
            Ok((TrackingLoop { poller, _waker, stream, messages, input: Vec::new(), output: Vec::new() }, waker))
        };
        let (tracking, waker) =
            opened().map_err(|error: io::Error| io_error(&error, "reading from the tracking connection"))?;
        let mut state = inner.state.lock();
        if !matches!(state.thread, ThreadState::Abandoned) {
            state.thread = ThreadState::Listening(waker);
        }
        Ok(tracking)
    }

    /// Sends queries and processes messages until the connection breaks or is abandoned.
    fn run(&mut self, inner: &TrackingInner) -> Result<(), Error> {
        let mut events = Events::with_capacity(4);
        let every = inner.limits.response.clamp(MIN_REQUERY_INTERVAL, MAX_REQUERY_INTERVAL);
        // TLS may have decrypted messages together with the reply to the handshake; no event
        // announces them.
        self.receive(inner)?;
        loop {
            let now = Instant::now();
            let mut state = inner.state.lock();
            if matches!(state.thread, ThreadState::Abandoned) {
                return Ok(());
            }
            let woken = state.watchers.expire(now);
            state.watchers.requery_if_silent(now, every);
            state.watchers.write_queries(now, &mut self.output);
            let reply_due = state.watchers.oldest_query().map(|sent| sent + inner.limits.response.min(YEAR));
            let (next_end, next_requery) = (state.watchers.next_end(), state.watchers.next_requery(every));
            drop(state);
            woken.wake();
            if reply_due.is_some_and(|due| due <= now) {
                return Err(timed_out());
            }
            self.send()?;
            let due = [reply_due, next_end, next_requery].into_iter().flatten().min();
            match self.poller.poll(&mut events, due.map(|due| due.saturating_duration_since(Instant::now()))) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(io_error(&error, "reading from the tracking connection"));
                }
                _ => {}
            }
            if events.iter().any(|event| event.token() == SOCKET) {
                self.receive(inner)?;
            }
        }
    }

    /// Sends the queries that were written, as far as the socket accepts them.
    fn send(&mut self) -> Result<(), Error> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(sent) => drop(self.output.drain(..sent)),
                // An event announces when the socket accepts more.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error(&error, "writing to the tracking connection")),
            }
        }
        match self.stream.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                Err(io_error(&error, "writing to the tracking connection"))
            }
            _ => Ok(()),
        }
    }

    /// Reads and processes all messages that have arrived.
    fn receive(&mut self, inner: &TrackingInner) -> Result<(), Error> {
        let mut buffer = [0; 4096];
        loop {
            let read = match self.stream.read(&mut buffer) {
                Ok(0) => return Err(closed()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(io_error(&error, "reading from the tracking connection")),
            };
            self.input.extend_from_slice(&buffer[..read]);
            let mut rest = &self.input[..];
            while let Some(message) = self.messages.cut(&mut rest)? {
                let mut state = inner.state.lock();
                let woken = state.watchers.on_message(&message, Instant::now())?;
                state.failures = 0;
                drop(state);
                woken.wake();
            }
            let unread = rest.len();
            self.input.drain(..self.input.len() - unread);
        }
    }
}

/// The bounds of the period after which watched leases are queried again, which is the response
/// timeout.
const MIN_REQUERY_INTERVAL: Duration = Duration::from_millis(100);
const MAX_REQUERY_INTERVAL: Duration = Duration::from_secs(5);

/// Longer than any timer has to run; it keeps sums of times from overflowing.
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// A nonblocking socket, encrypted or not.
enum TrackingSocket {
    Tcp(mio::net::TcpStream),
    #[cfg(unix)]
    Unix(mio::net::UnixStream),
    #[cfg(feature = "tls")]
    Tls(Box<StreamOwned<ClientConnection, mio::net::TcpStream>>),
}

impl TrackingSocket {
    fn new(socket: blocking::BlockingSocket) -> io::Result<Self> {
        Ok(match socket {
            blocking::BlockingSocket::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                TrackingSocket::Tcp(mio::net::TcpStream::from_std(socket))
            }
            #[cfg(unix)]
            blocking::BlockingSocket::Unix(socket) => {
                socket.set_nonblocking(true)?;
                TrackingSocket::Unix(mio::net::UnixStream::from_std(socket))
            }
            #[cfg(feature = "tls")]
            blocking::BlockingSocket::Tls(stream) => {
                let TlsStream { session, socket } = *stream;
                socket.set_nonblocking(true)?;
                TrackingSocket::Tls(Box::new(StreamOwned::new(session, mio::net::TcpStream::from_std(socket))))
            }
        })
    }

    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        let interests = Interest::READABLE | Interest::WRITABLE;
        match self {
            TrackingSocket::Tcp(socket) => poller.registry().register(socket, SOCKET, interests),
            #[cfg(unix)]
            TrackingSocket::Unix(socket) => poller.registry().register(socket, SOCKET, interests),
            #[cfg(feature = "tls")]
            TrackingSocket::Tls(stream) => poller.registry().register(&mut stream.sock, SOCKET, interests),
        }
    }
}

impl Read for TrackingSocket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            TrackingSocket::Tcp(socket) => socket.read(into),
            #[cfg(unix)]
            TrackingSocket::Unix(socket) => socket.read(into),
            #[cfg(feature = "tls")]
            TrackingSocket::Tls(stream) => stream.read(into),
        }
    }
}

impl Write for TrackingSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            TrackingSocket::Tcp(socket) => socket.write(bytes),
            #[cfg(unix)]
            TrackingSocket::Unix(socket) => socket.write(bytes),
            #[cfg(feature = "tls")]
            TrackingSocket::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            #[cfg(feature = "tls")]
            TrackingSocket::Tls(stream) => stream.flush(),
            // Plain sockets do not buffer.
            _ => Ok(()),
        }
    }
}
