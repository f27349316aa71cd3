//! One blocking connection to a Redis server: a socket, what is to be sent, what was read.

use std::future::ready;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::error::{Error, ErrorKind};
use crate::exec::poll_ready;
use crate::redis::conn::handshake;
use crate::redis::conn::handshake::{Ask, Introduced, introduce};
use crate::redis::conn::limits::{KEEP, Limits, PIECE, PROGRESS, READING, SENDING};
use crate::redis::conn::pool::{Failed, PoolConnection, from_now};
use crate::redis::conn::reply::ReplyReader;
#[cfg(feature = "tls")]
use crate::redis::conn::tls_stream::TlsStream;
use crate::redis::protocol::batch::server_error;
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::commands;
use crate::redis::protocol::parser::{Fed, Parser, Receive};
use crate::redis::url::{Address, Server};

/// How long a connection is idle before the system asks whether its other end is there.
const KEEPALIVE: Duration = Duration::from_secs(30);

pub(crate) struct BlockingConnection {
    stream: BlockingSocket,
    replies: Parser,
    /// Commands, to be sent.
    output: Vec<u8>,
    input: Input,
    response: Duration,
}

pub(crate) enum BlockingSocket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixStream),
    #[cfg(feature = "tls")]
    Tls(Box<TlsStream>),
}

impl BlockingConnection {
    /// Connects, and introduces itself: RESP3 where the server knows it, RESP2 otherwise.
    pub(crate) fn open(server: &Server, limits: Limits) -> Result<Self, Error> {
        Self::introduced(server, limits).map(|(connection, _)| connection)
    }

    /// Connects, and asks to be told when keys change that this connection has asked for: only the socket is needed after
    /// that. An error of [`ErrorKind::Server`] or [`ErrorKind::Refused`] says that this server does not tell us.
    pub(crate) fn open_to_listen(server: &Server, limits: Limits) -> Result<BlockingSocket, Error> {
        let (mut connection, introduced) = Self::introduced(server, limits)?;
        if !introduced.resp3 {
            return Err(Error::new(ErrorKind::Server, format!("{} does not speak RESP3", server.address)));
        }
        let mut answers = ReplyReader::default();
        poll_ready(connection.ask(commands::track, &mut answers))?;
        answers.refusal().map_or(Ok(()), |refused| Err(server_error(refused)))?;
        Ok(connection.stream)
    }

    /// Sends commands that are seldom sent, and waits for so many answers.
    pub(crate) fn ask_all(&mut self, write: impl FnOnce(&mut Vec<u8>) -> usize + Send) -> Result<ReplyReader, Error> {
        let mut answers = ReplyReader::default();
        poll_ready(self.ask(write, &mut answers))?;
        Ok(answers)
    }

    /// A new connection, and what the server said of itself.
    fn introduced(server: &Server, limits: Limits) -> Result<(Self, Introduced), Error> {
        let stream = BlockingSocket::connect(server, limits)
            .map_err(|error| io_error(&error, format_args!("connecting to {}", server.address)))?;
        let mut connection = BlockingConnection {
            stream,
            replies: Parser::new(handshake::LONGEST),
            output: Vec::with_capacity(512),
            input: Input::new(),
            response: limits.response,
        };
        let introduced = poll_ready(introduce(&mut connection, server))
            .map_err(|error| error.during(format_args!("connecting to {}", server.address)))?;
        connection.replies = Parser::new(limits.max_entry);
        Ok((connection, introduced))
    }

    /// Gives up what a large request needed.
    #[inline]
    fn shrink(&mut self) {
        if self.output.capacity() > KEEP {
            self.output = Vec::with_capacity(512);
        }
    }
}

impl Ask for BlockingConnection {
    fn ask(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> usize + Send,
        receive: &mut (impl Receive + Send),
    ) -> impl Future<Output = Result<(), Error>> + Send {
        self.output.clear();
        let replies = write(&mut self.output);
        ready(self.exchange(replies, receive).map_err(|failed| failed.error))
    }
}

impl PoolConnection for BlockingConnection {
    #[inline]
    fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    fn is_closed(&mut self) -> bool {
        self.stream.is_closed()
    }

    #[inline(always)]
    fn send(&mut self) -> Result<(), Failed> {
        self.stream.write_all(&self.output, &self.response).map_err(|error| fail(error, true))
    }

    #[inline(always)]
    fn receive(&mut self, replies: usize, receive: &mut impl Receive) -> Result<(), Failed> {
        let mut untouched = true;
        self.replies.expect(replies);
        let mut patience = ProgressTimer::new();
        let mut missing = 1;
        loop {
            self.input
                .read(&mut self.stream, missing, &mut patience, &self.response)
                .map_err(|error| fail(error, untouched))?;
            let mut chunk = self.input.chunk();
            let came = chunk.rest().len();
            let fed = self.replies.feed(&mut chunk, receive).map_err(|error| fail(error, false))?;
            let left = chunk.rest().len();
            match fed {
                Fed::Done if left == 0 => {
                    self.input.clear();
                    self.shrink();
                    return Ok(());
                }
                // What was not asked for would be taken for the answer to the next request, if it was not pushed.
                Fed::Done => {
                    self.replies.feed_pushes(&mut chunk).map_err(|error| fail(error, false))?;
                    let left = chunk.rest().len();
                    self.input.put_back(left);
                    self.shrink();
                    return Ok(());
                }
                Fed::More(more) => {
                    missing = more;
                    untouched &= left == came;
                    self.input.put_back(left);
                }
            }
        }
    }
}

/// Of an exchange of whose replies nothing was handed on, or something.
#[cold]
fn fail(error: Error, untouched: bool) -> Failed {
    let broke_early = untouched && error.kind() == ErrorKind::Connection;
    Failed { error, broke_early }
}

/// What was read. It goes into a piece of memory that was written before, as safe code needs, and what is kept of it is
/// copied from there: entries are small, and writing zeros to where they stay would cost more than copying them.
struct Input {
    piece: Vec<u8>,
    /// How much of the piece holds what came and was not yet cut into tokens.
    filled: usize,
    /// What did not fit the piece.
    large: Option<Bytes>,
    /// Where kept entries stand one behind the other. Its memory is used again as soon as nobody holds any of it.
    arena: BytesMut,
}

impl Input {
    fn new() -> Self {
        Input { piece: vec![0; PIECE], filled: 0, large: None, arena: BytesMut::with_capacity(PIECE) }
    }

    /// Reads at least `missing` more bytes. They are in the piece then; or in memory of their own, if they are too
    /// many.
    #[inline(always)]
    fn read(
        &mut self,
        stream: &mut BlockingSocket,
        missing: usize,
        patience: &mut ProgressTimer,
        response: &Duration,
    ) -> Result<(), Error> {
        let needed = self.filled + missing;
        if needed > self.piece.len() {
            return self.read_large(stream, needed, patience, response);
        }
        loop {
            self.filled += stream.read(&mut self.piece[self.filled..], patience, response)?;
            if self.filled >= needed {
                return Ok(());
            }
        }
    }

    /// Reads a large string to where it stays. Room is made as it comes, since its length is only announced.
    #[cold]
    fn read_large(
        &mut self,
        stream: &mut BlockingSocket,
        needed: usize,
        patience: &mut ProgressTimer,
        response: &Duration,
    ) -> Result<(), Error> {
        // A long line does not say how long it is.
        let wanted = needed.max(2 * self.filled);
        let mut came = self.piece[..self.filled].to_vec();
        let mut filled = self.filled;
        while filled < needed {
            if filled == came.len() {
                let room = wanted.min(2 * filled.max(PIECE));
                came.reserve_exact(room - filled);
                came.resize(room, 0);
            }
            filled += stream.read(&mut came[filled..], patience, response)?;
        }
        came.truncate(filled);
        self.large = Some(came.into());
        Ok(())
    }

    /// What was read and not yet cut.
    #[inline]
    fn chunk(&mut self) -> Chunk<'_> {
        match &self.large {
            Some(large) => Chunk::sharing(large),
            None => Chunk::copying(&self.piece[..self.filled], &mut self.arena),
        }
    }

    /// Of what was read, only the last `left` bytes are still to be cut: a token whose end has not come yet.
    #[cold]
    fn put_back(&mut self, left: usize) {
        match self.large.take() {
            None => self.piece.copy_within(self.filled - left..self.filled, 0),
            Some(large) => {
                // No more than a line has.
                self.piece.resize(self.piece.len().max(left), 0);
                self.piece[..left].copy_from_slice(&large[large.len() - left..]);
            }
        }
        self.filled = left;
    }

    /// All of what was read has been cut.
    #[inline]
    fn clear(&mut self) {
        self.filled = 0;
        if self.large.is_some() {
            self.large = None;
        }
    }
}

#[cold]
pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Connection, "the server closed the connection")
}

/// How long a request or a reply that has begun may still take.
pub(crate) struct ProgressTimer {
    /// Told from the second piece on.
    until: Option<Instant>,
    /// Nothing before the first piece.
    moved: u64,
}

impl ProgressTimer {
    #[inline]
    pub(crate) fn new() -> Self {
        ProgressTimer { until: None, moved: 0 }
    }

    /// Looks at the clock from the second piece on: the first is bounded by the socket's own timeout, and most requests
    /// and replies need no second one.
    #[inline]
    pub(crate) fn check(&mut self, moved: usize, response: &Duration) -> Result<(), Error> {
        if self.moved == 0 {
            self.moved = moved as u64;
            return Ok(());
        }
        self.check_clock(moved, response)
    }

    #[cold]
    fn check_clock(&mut self, moved: usize, response: &Duration) -> Result<(), Error> {
        let now = Instant::now();
        self.moved += moved as u64;
        if self.moved >= PROGRESS {
            self.moved = 1;
            self.until = None;
        }
        if now > *self.until.get_or_insert_with(|| from_now(*response)) {
            return Err(Error::new(ErrorKind::Timeout, format!("it took more than {response:?}")));
        }
        Ok(())
    }
}

impl BlockingSocket {
    fn connect(server: &Server, limits: Limits) -> io::Result<Self> {
        match &server.address {
            Address::Tcp(host, port) => {
                let (stream, deadline) = connect_tcp(host, *port, limits.connect)?;
                stream.set_nodelay(true)?;
                keep_alive(socket2::SockRef::from(&stream))?;
                #[cfg(feature = "tls")]
                if let Some(secure) = &server.secure {
                    let secured = TlsStream::shake_hands(stream, secure, deadline)?;
                    secured.socket.set_read_timeout(Some(limits.response))?;
                    secured.socket.set_write_timeout(Some(limits.response))?;
                    return Ok(BlockingSocket::Tls(Box::new(secured)));
                }
                let _ = deadline;
                stream.set_read_timeout(Some(limits.response))?;
                stream.set_write_timeout(Some(limits.response))?;
                Ok(BlockingSocket::Tcp(stream))
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                let stream = connect_unix(path, limits.connect)?;
                stream.set_read_timeout(Some(limits.response))?;
                stream.set_write_timeout(Some(limits.response))?;
                Ok(BlockingSocket::Unix(stream))
            }
            #[cfg(not(unix))]
            Address::Unix(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "there are no Unix sockets here")),
        }
    }

    /// Whether the end has come, an error, or bytes that nobody asked for.
    fn is_closed(&self) -> bool {
        let socket = match self {
            BlockingSocket::Tcp(stream) => socket2::SockRef::from(stream),
            #[cfg(unix)]
            BlockingSocket::Unix(stream) => socket2::SockRef::from(stream),
            #[cfg(feature = "tls")]
            BlockingSocket::Tls(stream) if stream.has_more() => return true,
            #[cfg(feature = "tls")]
            BlockingSocket::Tls(stream) => socket2::SockRef::from(&stream.socket),
        };
        let looked = socket.set_nonblocking(true).and_then(|()| socket.peek(&mut [std::mem::MaybeUninit::uninit()]));
        let nothing_there = matches!(&looked, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        !nothing_there || socket.set_nonblocking(false).is_err()
    }

    /// Reads something, unless that is too late.
    #[inline(always)]
    fn read(&mut self, into: &mut [u8], patience: &mut ProgressTimer, response: &Duration) -> Result<usize, Error> {
        loop {
            let read = match self {
                BlockingSocket::Tcp(stream) => stream.read(into),
                #[cfg(unix)]
                BlockingSocket::Unix(stream) => stream.read(into),
                #[cfg(feature = "tls")]
                BlockingSocket::Tls(stream) => {
                    let read = stream.read(into, patience, response)?;
                    return if read == 0 { Err(closed()) } else { Ok(read) };
                }
            };
            match read {
                Ok(0) => return Err(closed()),
                Ok(read) => {
                    patience.check(read, response).map_err(|error| error.during(READING))?;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error(&error, READING)),
            }
        }
    }

    #[inline(always)]
    fn write_all(&mut self, mut bytes: &[u8], response: &Duration) -> Result<(), Error> {
        let mut patience = None;
        loop {
            let written = match self {
                BlockingSocket::Tcp(stream) => stream.write(bytes),
                #[cfg(unix)]
                BlockingSocket::Unix(stream) => stream.write(bytes),
                #[cfg(feature = "tls")]
                BlockingSocket::Tls(stream) => return stream.write_all(bytes, response),
            };
            match written {
                Ok(written) if written == bytes.len() => return Ok(()),
                Ok(0) => return Err(io_error(&io::ErrorKind::WriteZero.into(), SENDING)),
                Ok(written) => {
                    bytes = &bytes[written..];
                    let patience = patience.get_or_insert_with(ProgressTimer::new);
                    patience.check(written, response).map_err(|error| error.during(SENDING))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error(&error, SENDING)),
            }
        }
    }
}

/// Finds out about an idle connection whose other end is gone without a word.
pub(crate) fn keep_alive(socket: socket2::SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE))
}

/// Connects to a Unix socket. One whose server accepts nobody has no room for us, and does not say when it will.
#[cfg(unix)]
fn connect_unix(path: &std::path::Path, timeout: Duration) -> io::Result<std::os::unix::net::UnixStream> {
    let deadline = from_now(timeout);
    let address = socket2::SockAddr::unix(path)?;
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    loop {
        match socket.connect(&address) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error),
            Ok(()) => break,
        }
    }
    socket.set_nonblocking(false)?;
    Ok(std::os::fd::OwnedFd::from(socket).into())
}

/// Tries the host's addresses in turn, all within `timeout`: each gets its share of the time that is left. Looking the
/// host up takes as long as the system's resolver does. Also until when connecting may take.
fn connect_tcp(host: &str, port: u16, timeout: Duration) -> io::Result<(TcpStream, Instant)> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    let addresses: Vec<_> = (host, port).to_socket_addrs()?.collect();
    let deadline = from_now(timeout);
    for (address, others) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let left = deadline.saturating_duration_since(Instant::now()) / u32::try_from(others).unwrap_or(u32::MAX);
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(address, left) {
            Ok(stream) => return Ok((stream, deadline)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The answer did not come in time.
#[cold]
pub(crate) fn late() -> Error {
    io_error(&io::ErrorKind::TimedOut.into(), READING)
}

#[cold]
pub(crate) fn io_error(error: &io::Error, doing: impl std::fmt::Display) -> Error {
    match error.kind() {
        // A socket whose timeout is over says that it would block.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Error::new(ErrorKind::Timeout, format!("{doing}: the time for it is over"))
        }
        _ => Error::new(ErrorKind::Connection, format!("{doing}: {error}")),
    }
}
