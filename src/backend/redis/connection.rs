//! One blocking connection to a Redis server: a socket, what is to be sent, what was read.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::super::pool::{Failed, Wire, from_now};
use super::config::{Address, Server};
use crate::engine::batch::server_error;
use crate::engine::plan;
use crate::engine::replies::{Next, Replies, Token};
use crate::error::{Error, ErrorKind};

/// What a connection is given to work with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) connect: Duration,
    pub(super) response: Duration,
    pub(super) max_entry: usize,
}

/// How much is read at once, unless a string is larger.
const PIECE: usize = 16 * 1024;

/// What may stay allocated in a connection that goes back to its pool.
const KEEP: usize = 256 * 1024;

/// A reply that takes longer than the response timeout may go on as long as so many bytes arrive within each.
const PROGRESS: u64 = 1 << 20;

pub(super) struct Connection {
    stream: Stream,
    replies: Replies,
    /// Commands, to be sent.
    output: Vec<u8>,
    input: Input,
    response: Duration,
}

enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixStream),
}

impl Connection {
    /// Connects, and introduces itself: RESP3 where the server knows it, RESP2 otherwise.
    pub(super) fn open(server: &Server, limits: Limits) -> Result<Self, Error> {
        let stream = Stream::connect(&server.address, limits)
            .map_err(|error| io_error(&error, format_args!("connecting to {}", server.address)))?;
        let mut connection = Connection {
            stream,
            replies: Replies::new(limits.max_entry),
            output: Vec::with_capacity(512),
            input: Input::new(),
            response: limits.response,
        };
        connection.introduce(server).map_err(|error| error.during(format_args!("connecting to {}", server.address)))?;
        Ok(connection)
    }

    fn introduce(&mut self, server: &Server) -> Result<(), Error> {
        let (user, password) = (server.user.as_deref(), server.password.as_deref());
        if let Err(refused) = self.ask(|out| plan::hello(out, user, password))? {
            // Any other answer than these may come from a server, or a proxy, that does not know HELLO.
            if refused.starts_with(b"WRONGPASS") || refused.starts_with(b"NOAUTH") {
                return Err(refusal(&refused, "user and password"));
            }
            if let Some(password) = password {
                self.ask(|out| plan::auth(out, user, password))?
                    .map_err(|refused| refusal(&refused, "user and password"))?;
            }
        }
        if server.db != 0 {
            self.ask(|out| plan::select(out, server.db))?.map_err(|refused| refusal(&refused, "database"))?;
        }
        Ok(())
    }

    /// One command of which only matters whether the server obeyed.
    fn ask(&mut self, write: impl FnOnce(&mut Vec<u8>) -> usize) -> Result<Result<(), Bytes>, Error> {
        let mut refused = None;
        self.output.clear();
        let replies = write(&mut self.output);
        let take = |token: Token<'_>, chunk: &Bytes| {
            if let Token::Error(error) = token {
                refused.get_or_insert_with(|| chunk.slice_ref(error));
            }
            Ok(())
        };
        self.exchange(replies, take).map_err(|failed| failed.error)?;
        Ok(refused.map_or(Ok(()), Err))
    }

    /// Gives up what a large request needed.
    #[inline]
    fn shrink(&mut self) {
        if self.output.capacity() > KEEP {
            self.output = Vec::with_capacity(512);
        }
    }
}

impl Wire for Connection {
    #[inline]
    fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    #[inline]
    fn exchange(
        &mut self,
        replies: usize,
        mut take: impl FnMut(Token<'_>, &Bytes) -> Result<(), Error>,
    ) -> Result<(), Failed> {
        let mut untouched = true;
        let fail = |error: Error, untouched: bool| {
            let broke_early = untouched && error.kind() == ErrorKind::Connection;
            Failed { error, broke_early }
        };
        if let Err(error) = self.stream.write_all(&self.output) {
            return Err(fail(io_error(&error, "sending the request"), true));
        }
        self.replies.expect(replies);
        let mut patience = None;
        let mut missing = 1;
        loop {
            // Tokens are borrowed from what is here by now, and who keeps one shares it.
            let chunk = self
                .input
                .read(&mut self.stream, missing, &mut patience, self.response)
                .map_err(|error| fail(error, untouched))?;
            let mut rest = &chunk[..];
            missing = loop {
                match self.replies.next(&mut rest) {
                    Ok(Next::Token(token)) => {
                        untouched = false;
                        take(token, &chunk).map_err(|error| fail(error, false))?;
                    }
                    Ok(Next::More(missing)) => break missing,
                    Ok(Next::Done) => {
                        self.shrink();
                        // What was not asked for would be taken for the answer to the next request.
                        return if rest.is_empty() { Ok(()) } else { Err(fail(surplus(rest.len()), false)) };
                    }
                    Err(malformed) => {
                        let message = format!("reading the server's answer: {malformed}");
                        return Err(fail(Error::new(ErrorKind::Protocol, message), false));
                    }
                }
            };
            self.input.put_back(rest);
        }
    }
}

/// What was read. It goes into a piece of memory that was written before, as safe code needs, and what came is copied
/// from there: a reply is small, and writing zeros to where it stays would cost more than copying it.
struct Input {
    piece: Box<[u8]>,
    /// What came and was not yet shared. Its memory is used again as soon as nobody holds what was shared from it.
    came: BytesMut,
}

impl Input {
    fn new() -> Self {
        Input { piece: vec![0; PIECE].into(), came: BytesMut::with_capacity(PIECE) }
    }

    /// What there is once at least `missing` more bytes have come.
    #[inline]
    fn read(
        &mut self,
        stream: &mut Stream,
        missing: usize,
        patience: &mut Option<Patience>,
        response: Duration,
    ) -> Result<Bytes, Error> {
        let needed = self.came.len() + missing;
        if missing <= self.piece.len() {
            while self.came.len() < needed {
                let read = check_read(stream.read(&mut self.piece), patience, response)?;
                self.came.extend_from_slice(&self.piece[..read]);
            }
            Ok(self.came.split().freeze())
        } else {
            self.read_large(stream, needed, patience, response)?;
            // Its memory is not kept for later.
            Ok(std::mem::replace(&mut self.came, BytesMut::with_capacity(PIECE)).freeze())
        }
    }

    /// Reads a large string to where it stays. Room is made as it comes, since its length is only announced.
    #[cold]
    fn read_large(
        &mut self,
        stream: &mut Stream,
        needed: usize,
        patience: &mut Option<Patience>,
        response: Duration,
    ) -> Result<(), Error> {
        let mut filled = self.came.len();
        while filled < needed {
            if filled == self.came.len() {
                self.came.resize(needed.min(2 * filled.max(PIECE)), 0);
            }
            filled += check_read(stream.read(&mut self.came[filled..]), patience, response)?;
        }
        Ok(())
    }

    /// Keeps the start of a token whose end has not come yet.
    fn put_back(&mut self, rest: &[u8]) {
        self.came.extend_from_slice(rest);
    }
}

/// How much was read, if anything was and it is not too late.
#[inline]
fn check_read(read: io::Result<usize>, patience: &mut Option<Patience>, response: Duration) -> Result<usize, Error> {
    match read {
        Ok(0) => Err(Error::new(ErrorKind::Connection, "the server closed the connection")),
        Ok(read) => {
            match patience {
                // The first read is bounded by the socket's own timeout, and most replies need no second one.
                None => *patience = Some(Patience { until: None, read: 0 }),
                Some(patience) => patience.check(read, response)?,
            }
            Ok(read)
        }
        Err(error) => Err(io_error(&error, "waiting for the server's answer")),
    }
}

/// How long a reply that has begun may still take.
struct Patience {
    /// Told from the second read on.
    until: Option<Instant>,
    read: u64,
}

impl Patience {
    fn check(&mut self, read: usize, response: Duration) -> Result<(), Error> {
        let now = Instant::now();
        self.read += read as u64;
        if self.read >= PROGRESS {
            self.read = 0;
            self.until = None;
        }
        if now > *self.until.get_or_insert_with(|| from_now(response)) {
            return Err(Error::new(ErrorKind::Timeout, format!("the server's answer took more than {response:?}")));
        }
        Ok(())
    }
}

impl Stream {
    fn connect(address: &Address, limits: Limits) -> io::Result<Self> {
        match address {
            Address::Tcp(host, port) => {
                let stream = connect_tcp(host, *port, limits.connect)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(limits.response))?;
                stream.set_write_timeout(Some(limits.response))?;
                Ok(Stream::Tcp(stream))
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                let stream = std::os::unix::net::UnixStream::connect(path)?;
                stream.set_read_timeout(Some(limits.response))?;
                stream.set_write_timeout(Some(limits.response))?;
                Ok(Stream::Unix(stream))
            }
            #[cfg(not(unix))]
            Address::Unix(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "there are no Unix sockets here")),
        }
    }

    #[inline]
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match self {
                Stream::Tcp(stream) => stream.read(into),
                #[cfg(unix)]
                Stream::Unix(stream) => stream.read(into),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.write_all(bytes),
            #[cfg(unix)]
            Stream::Unix(stream) => stream.write_all(bytes),
        }
    }
}

/// Tries the host's addresses in turn, all within `timeout`.
fn connect_tcp(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let deadline = from_now(timeout);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cold]
fn io_error(error: &io::Error, doing: impl std::fmt::Display) -> Error {
    match error.kind() {
        // A socket whose timeout is over says that it would block.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Error::new(ErrorKind::Timeout, format!("{doing}: the time for it is over"))
        }
        _ => Error::new(ErrorKind::Connection, format!("{doing}: {error}")),
    }
}

#[cold]
fn surplus(bytes: usize) -> Error {
    Error::new(ErrorKind::Protocol, format!("the server sent {bytes} bytes more than it was asked for"))
}

#[cold]
fn refusal(answer: &[u8], what: &str) -> Error {
    Error::new(ErrorKind::Refused, format!("the server refused the {what}: {}", server_error(answer)))
}
