//! [`Listener`]: the connection over which a server tells when leases change, and the thread that listens to it.
//!
//! It is a thread for callers of both faces: it wakes them by their wakers, and works while all runtimes are busy.

pub(crate) mod lease_watchers;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll as Poller, Token, Waker};
use parking_lot::Mutex;
#[cfg(feature = "tls")]
use rustls::{ClientConnection, StreamOwned};

use crate::backend::leases::Watch;
use crate::error::{Error, ErrorKind};
use crate::redis::conn::backoff;
use crate::redis::conn::blocking;
use crate::redis::conn::blocking::{Connection, closed, io_error, late};
use crate::redis::conn::limits::Limits;
use crate::redis::conn::pool::from_now;
#[cfg(feature = "tls")]
use crate::redis::conn::tls_stream::Secured;
use crate::redis::protocol::parser::Messages;
use crate::redis::tracking::lease_watchers::{Keeps, Name, Watches, Watching};
use crate::redis::url::Server;

/// How long a server is not asked again to tell that cannot, or does not let us.
const INABILITY: Duration = Duration::from_secs(10);

/// Listens to one server, from the first watch until it is dropped or the connection breaks.
pub(crate) struct Listener(Arc<Shared>);

struct Shared {
    server: Server,
    limits: Limits,
    state: Mutex<State>,
}

struct State {
    watches: Watches,
    ear: Ear,
    /// How many attempts to listen have come to nothing, since the server last said something.
    failures: u32,
}

/// What the thread is about.
enum Ear {
    /// There is none.
    Closed,
    /// It connects, and looks who watches then.
    Opening,
    /// It listens; the waker is for whoever comes.
    Open(Arc<Waker>),
    /// There is none, and none is to be made before that moment.
    Deaf(Instant),
    /// Nobody will come any more.
    Abandoned,
}

impl Listener {
    pub(crate) fn new(server: &Server, limits: Limits) -> Self {
        let state = State { watches: Watches::default(), ear: Ear::Closed, failures: 0 };
        Listener(Arc::new(Shared { server: server.clone(), limits, state: Mutex::new(state) }))
    }

    /// Ready when the lease may have ended; at once when nobody holds it, or the connection breaks. `None` while nothing
    /// can be heard.
    pub(crate) fn watch(&self, lock: &[u8]) -> Option<Watch> {
        let name = Name::from(lock);
        let mut state = self.0.state.lock();
        let waker = match &state.ear {
            Ear::Open(waker) => Some(Arc::clone(waker)),
            Ear::Opening => None,
            Ear::Abandoned => return None,
            Ear::Deaf(until) if Instant::now() < *until => return None,
            Ear::Closed | Ear::Deaf(_) => {
                let shared = Arc::clone(&self.0);
                let listens = thread::Builder::new().name("dogpile-listen".into()).spawn(move || listen(&shared));
                state.ear = if listens.is_ok() { Ear::Opening } else { Ear::Deaf(from_now(self.0.limits.max_pause)) };
                listens.ok()?;
                None
            }
        };
        let number = state.watches.watch(&name);
        drop(state);
        if let Some(waker) = waker {
            // Where it fails the thread is not there any more, and has woken everybody.
            let _ = waker.wake();
        }
        Some(Box::pin(Watching::new(&self.0, name, number)))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ear = std::mem::replace(&mut self.0.state.lock().ear, Ear::Abandoned);
        if let Ear::Open(waker) = ear {
            let _ = waker.wake();
        }
    }
}

impl Keeps for Shared {
    fn watches<T>(&self, with: impl FnOnce(&mut Watches) -> T) -> T {
        with(&mut self.state.lock().watches)
    }
}

/// The thread of a listener. However it ends, nobody waits for it any more.
fn listen(shared: &Shared) {
    struct Ends<'s>(&'s Shared, Ear);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            let mut state = self.0.state.lock();
            if !matches!(state.ear, Ear::Abandoned) {
                state.ear = std::mem::replace(&mut self.1, Ear::Closed);
            }
            let woken = state.watches.deafen();
            drop(state);
            woken.wake();
        }
    }
    let mut ends = Ends(shared, Ear::Closed);
    if let Err(error) = Ears::open(shared).and_then(|mut ears| ears.listen(shared)) {
        let failures = &mut shared.state.lock().failures;
        *failures = failures.saturating_add(1);
        // It does not speak RESP3, an ACL does not let us, or it is not what it is to be.
        if matches!(error.kind(), ErrorKind::Server | ErrorKind::Refused | ErrorKind::Config) {
            ends.1 = Ear::Deaf(Instant::now() + INABILITY);
        } else if *failures > 1 {
            // A connection that broke after it was of use says nothing about the next one.
            ends.1 = Ear::Deaf(Instant::now() + backoff::after(*failures, shared.limits.max_pause));
        }
    }
}

const SOCKET: Token = Token(0);
const CALLER: Token = Token(1);

/// An open connection that is listened to.
struct Ears {
    poller: Poller,
    /// Held here too: dropped with the listener's, it would not wake any more.
    _waker: Arc<Waker>,
    stream: Stream,
    messages: Messages,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Ears {
    fn open(shared: &Shared) -> Result<Self, Error> {
        let socket = Connection::open_to_listen(&shared.server, shared.limits)?;
        let opened = || {
            let mut stream = Stream::new(socket)?;
            let poller = Poller::new()?;
            stream.register(&poller)?;
            let waker = Arc::new(Waker::new(poller.registry(), CALLER)?);
            let (messages, _waker) = (Messages::new(shared.limits.max_entry), Arc::clone(&waker));
            Ok((Ears { poller, _waker, stream, messages, input: Vec::new(), output: Vec::new() }, waker))
        };
        let (ears, waker) = opened().map_err(|error: io::Error| io_error(&error, "listening to the server"))?;
        let mut state = shared.state.lock();
        if !matches!(state.ear, Ear::Abandoned) {
            state.ear = Ear::Open(waker);
        }
        Ok(ears)
    }

    /// Asks and listens, until the connection breaks or the listener is dropped.
    fn listen(&mut self, shared: &Shared) -> Result<(), Error> {
        let mut events = Events::with_capacity(4);
        let every = shared.limits.response.clamp(MOST_OFTEN, LEAST_OFTEN);
        // What came with the introduction is in no event any more where it was encrypted.
        self.hear(shared)?;
        loop {
            let now = Instant::now();
            let mut state = shared.state.lock();
            if matches!(state.ear, Ear::Abandoned) {
                return Ok(());
            }
            let woken = state.watches.pass(now);
            state.watches.ask_again(now, every);
            state.watches.ask(now, &mut self.output);
            let answer_due = state.watches.asked_since().map(|asked| asked + shared.limits.response.min(YEAR));
            let (next_end, asks_again) = (state.watches.next_end(), state.watches.asks_again_at(every));
            drop(state);
            woken.wake();
            if answer_due.is_some_and(|due| due <= now) {
                return Err(late());
            }
            self.send()?;
            let due = [answer_due, next_end, asks_again].into_iter().flatten().min();
            match self.poller.poll(&mut events, due.map(|due| due.saturating_duration_since(Instant::now()))) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(io_error(&error, "listening to the server"));
                }
                _ => {}
            }
            if events.iter().any(|event| event.token() == SOCKET) {
                self.hear(shared)?;
            }
        }
    }

    fn send(&mut self) -> Result<(), Error> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(sent) => drop(self.output.drain(..sent)),
                // The socket says when there is room.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error(&error, "sending the request")),
            }
        }
        match self.stream.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(io_error(&error, "sending the request")),
            _ => Ok(()),
        }
    }

    /// Reads all that there is.
    fn hear(&mut self, shared: &Shared) -> Result<(), Error> {
        let mut piece = [0; 4096];
        loop {
            let read = match self.stream.read(&mut piece) {
                Ok(0) => return Err(closed()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(io_error(&error, "listening to the server")),
            };
            self.input.extend_from_slice(&piece[..read]);
            let mut rest = &self.input[..];
            while let Some(message) = self.messages.cut(&mut rest)? {
                let mut state = shared.state.lock();
                let woken = state.watches.heard(&message, Instant::now())?;
                state.failures = 0;
                drop(state);
                woken.wake();
            }
            let left = rest.len();
            self.input.drain(..self.input.len() - left);
        }
    }
}

/// How often a server is asked again for what is watched: when it did not answer for as long as it may take, but not more
/// often than the first of these, nor more seldom than the second.
const MOST_OFTEN: Duration = Duration::from_millis(100);
const LEAST_OFTEN: Duration = Duration::from_secs(5);

/// Longer than any timer needs to tell.
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// A socket that does not block.
enum Stream {
    Tcp(mio::net::TcpStream),
    #[cfg(unix)]
    Unix(mio::net::UnixStream),
    #[cfg(feature = "tls")]
    Tls(Box<StreamOwned<ClientConnection, mio::net::TcpStream>>),
}

impl Stream {
    fn new(socket: blocking::Stream) -> io::Result<Self> {
        Ok(match socket {
            blocking::Stream::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                Stream::Tcp(mio::net::TcpStream::from_std(socket))
            }
            #[cfg(unix)]
            blocking::Stream::Unix(socket) => {
                socket.set_nonblocking(true)?;
                Stream::Unix(mio::net::UnixStream::from_std(socket))
            }
            #[cfg(feature = "tls")]
            blocking::Stream::Tls(stream) => {
                let Secured { session, socket } = *stream;
                socket.set_nonblocking(true)?;
                Stream::Tls(Box::new(StreamOwned::new(session, mio::net::TcpStream::from_std(socket))))
            }
        })
    }

    fn register(&mut self, poller: &Poller) -> io::Result<()> {
        let interests = Interest::READABLE | Interest::WRITABLE;
        match self {
            Stream::Tcp(socket) => poller.registry().register(socket, SOCKET, interests),
            #[cfg(unix)]
            Stream::Unix(socket) => poller.registry().register(socket, SOCKET, interests),
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => poller.registry().register(&mut stream.sock, SOCKET, interests),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(socket) => socket.read(into),
            #[cfg(unix)]
            Stream::Unix(socket) => socket.read(into),
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(socket) => socket.write(bytes),
            #[cfg(unix)]
            Stream::Unix(socket) => socket.write(bytes),
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => stream.flush(),
            // Sockets keep nothing back.
            _ => Ok(()),
        }
    }
}
