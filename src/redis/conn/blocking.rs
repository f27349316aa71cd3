//! A blocking connection to a Redis server: its socket, its buffers and its parser.

use std::future::ready;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::error::{Error, ErrorKind};
use crate::exec::poll_ready;
use crate::redis::conn::handshake;
use crate::redis::conn::handshake::{PeerInfo, RoundTrip, negotiate};
use crate::redis::conn::limits::{Limits, MAX_IDLE_CAPACITY, MIN_PROGRESS, READ_SIZE, READING, SENDING};
use crate::redis::conn::pool::{ExchangeError, PoolConnection, from_now};
use crate::redis::conn::reply::ReplyReader;
#[cfg(feature = "tls")]
use crate::redis::conn::tls_stream::TlsStream;
use crate::redis::protocol::batch::server_error;
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::commands;
use crate::redis::protocol::parser::{Fed, Parser, Receive};
use crate::redis::url::{Address, Server};

/// How long a connection is idle before the operating system sends keepalive probes.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A connection that one thread uses at a time.
pub(crate) struct BlockingConnection {
    stream: BlockingSocket,
    parser: Parser,
    /// Encoded commands to send.
    output: Vec<u8>,
    input: Input,
    response_timeout: Duration,
}

/// The socket of a [`BlockingConnection`].
pub(crate) enum BlockingSocket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixStream),
    #[cfg(feature = "tls")]
    Tls(Box<TlsStream>),
}

impl BlockingConnection {
    /// Connects and performs the handshake: RESP3 if the server supports it, RESP2 otherwise.
    pub(crate) fn open(server: &Server, limits: Limits) -> Result<Self, Error> {
        Self::open_with_peer_info(server, limits).map(|(connection, _)| connection)
    }

    /// Connects, enables client tracking for the keys that this connection reads, and returns its
    /// socket.
    ///
    /// # Errors
    /// [`ErrorKind::Server`] or [`ErrorKind::Refused`] if the server does not offer client
    /// tracking.
    pub(crate) fn open_for_tracking(server: &Server, limits: Limits) -> Result<BlockingSocket, Error> {
        let (mut connection, peer) = Self::open_with_peer_info(server, limits)?;
        if !peer.resp3 {
            return Err(Error::new(
                ErrorKind::Server,
                format!("{}: the server does not support RESP3", server.address),
            ));
        }
        let mut replies = ReplyReader::default();
        poll_ready(connection.round_trip(commands::track, &mut replies))?;
        replies.first_error().map_or(Ok(()), |refused| Err(server_error(refused)))?;
        Ok(connection.stream)
    }

    /// Sends commands and collects their replies as copies. For rare requests only.
    pub(crate) fn query(&mut self, write: impl FnOnce(&mut Vec<u8>) -> usize + Send) -> Result<ReplyReader, Error> {
        let mut replies = ReplyReader::default();
        poll_ready(self.round_trip(write, &mut replies))?;
        Ok(replies)
    }

    /// Opens a connection and also returns what the server reported about itself.
    fn open_with_peer_info(server: &Server, limits: Limits) -> Result<(Self, PeerInfo), Error> {
        let stream = BlockingSocket::connect(server, limits)
            .map_err(|error| io_error(&error, format_args!("connecting to {}", server.address)))?;
        let mut connection = BlockingConnection {
            stream,
            parser: Parser::new(handshake::MAX_STRING),
            output: Vec::with_capacity(512),
            input: Input::new(),
            response_timeout: limits.response,
        };
        let peer = poll_ready(negotiate(&mut connection, server))
            .map_err(|error| error.during(format_args!("connecting to {}", server.address)))?;
        connection.parser = Parser::new(limits.max_entry);
        Ok((connection, peer))
    }

    /// Frees the memory of a large request.
    #[inline]
    fn shrink(&mut self) {
        if self.output.capacity() > MAX_IDLE_CAPACITY {
            self.output = Vec::with_capacity(512);
        }
    }
}

impl RoundTrip for BlockingConnection {
    fn round_trip(
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
    fn send(&mut self) -> Result<(), ExchangeError> {
        self.stream.write_all(&self.output, &self.response_timeout).map_err(|error| fail(error, true))
    }

    #[inline(always)]
    fn receive(&mut self, replies: usize, receive: &mut impl Receive) -> Result<(), ExchangeError> {
        let mut nothing_delivered = true;
        self.parser.expect(replies);
        let mut timer = ProgressTimer::new();
        let mut missing = 1;
        loop {
            self.input
                .read(&mut self.stream, missing, &mut timer, &self.response_timeout)
                .map_err(|error| fail(error, nothing_delivered))?;
            let mut chunk = self.input.chunk();
            let received = chunk.rest().len();
            let fed = self.parser.feed(&mut chunk, receive).map_err(|error| fail(error, false))?;
            let left = chunk.rest().len();
            match fed {
                Fed::Done if left == 0 => {
                    self.input.clear();
                    self.shrink();
                    return Ok(());
                }
                // Only push messages may follow the last reply. The next request would take
                // anything else for its reply.
                Fed::Done => {
                    self.parser.feed_pushes(&mut chunk).map_err(|error| fail(error, false))?;
                    let left = chunk.rest().len();
                    self.input.put_back(left);
                    self.shrink();
                    return Ok(());
                }
                Fed::More(more) => {
                    missing = more;
                    nothing_delivered &= left == received;
                    self.input.put_back(left);
                }
            }
        }
    }
}

/// Wraps the error of an exchange, given whether the receiver has seen no part of the replies.
#[cold]
fn fail(error: Error, nothing_delivered: bool) -> ExchangeError {
    let broke_early = nothing_delivered && error.kind() == ErrorKind::Connection;
    ExchangeError { error, broke_early }
}

/// The read buffer.
///
/// Safe code reads into initialized memory only, so the socket fills a buffer that is zeroed once,
/// and the receiver copies what it keeps. Entries are small: zeroing new memory for each of them
/// would cost more than the copy.
struct Input {
    buffer: Vec<u8>,
    /// The number of bytes in `buffer` that were read and not yet parsed.
    filled: usize,
    /// A string that did not fit in `buffer`, with its own memory.
    large: Option<Bytes>,
    /// Holds the copies of kept entries. Its memory is reused as soon as all of them are dropped.
    arena: BytesMut,
}

impl Input {
    fn new() -> Self {
        Input { buffer: vec![0; READ_SIZE], filled: 0, large: None, arena: BytesMut::with_capacity(READ_SIZE) }
    }

    /// Reads at least `missing` more bytes: into `buffer` if they fit, otherwise into `large`.
    #[inline(always)]
    fn read(
        &mut self,
        stream: &mut BlockingSocket,
        missing: usize,
        timer: &mut ProgressTimer,
        response_timeout: &Duration,
    ) -> Result<(), Error> {
        let needed = self.filled + missing;
        if needed > self.buffer.len() {
            return self.read_large(stream, needed, timer, response_timeout);
        }
        loop {
            self.filled += stream.read(&mut self.buffer[self.filled..], timer, response_timeout)?;
            if self.filled >= needed {
                return Ok(());
            }
        }
    }

    /// Reads a large string into its final memory.
    ///
    /// The memory grows as bytes arrive. The announced length alone must not allocate.
    #[cold]
    fn read_large(
        &mut self,
        stream: &mut BlockingSocket,
        needed: usize,
        timer: &mut ProgressTimer,
        response_timeout: &Duration,
    ) -> Result<(), Error> {
        // The length of a long line is not announced, so the buffer doubles.
        let wanted = needed.max(2 * self.filled);
        let mut received = self.buffer[..self.filled].to_vec();
        let mut filled = self.filled;
        while filled < needed {
            if filled == received.len() {
                let room = wanted.min(2 * filled.max(READ_SIZE));
                received.reserve_exact(room - filled);
                received.resize(room, 0);
            }
            filled += stream.read(&mut received[filled..], timer, response_timeout)?;
        }
        received.truncate(filled);
        self.large = Some(received.into());
        Ok(())
    }

    /// Returns the bytes that were read and not yet parsed.
    #[inline]
    fn chunk(&mut self) -> Chunk<'_> {
        match &self.large {
            Some(large) => Chunk::sharing(large),
            None => Chunk::copying(&self.buffer[..self.filled], &mut self.arena),
        }
    }

    /// Keeps the last `left` bytes: the start of a token whose end was not read yet.
    #[cold]
    fn put_back(&mut self, left: usize) {
        match self.large.take() {
            None => self.buffer.copy_within(self.filled - left..self.filled, 0),
            Some(large) => {
                // `left` is bounded by the longest line, so the buffer stays small.
                self.buffer.resize(self.buffer.len().max(left), 0);
                self.buffer[..left].copy_from_slice(&large[large.len() - left..]);
            }
        }
        self.filled = left;
    }

    /// Empties the buffer after all bytes were parsed.
    #[inline]
    fn clear(&mut self) {
        self.filled = 0;
        if self.large.is_some() {
            self.large = None;
        }
    }
}

/// Returns the error for a connection that the server closed.
#[cold]
pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Connection, "the server closed the connection")
}

/// The deadline of a request or reply that takes more than one read or write.
///
/// It moves on by the response timeout whenever [`MIN_PROGRESS`] bytes were transferred.
pub(crate) struct ProgressTimer {
    /// Set at the second read or write.
    deadline: Option<Instant>,
    /// The bytes since the deadline was set; 0 before the first read or write.
    moved: u64,
}

impl ProgressTimer {
    #[inline]
    pub(crate) fn new() -> Self {
        ProgressTimer { deadline: None, moved: 0 }
    }

    /// Counts `moved` bytes and fails if the transfer makes too little progress.
    ///
    /// The first call does not read the clock. The socket's own timeout limits the first read or
    /// write, and most requests and replies need only one.
    #[inline]
    pub(crate) fn check(&mut self, moved: usize, response_timeout: &Duration) -> Result<(), Error> {
        if self.moved == 0 {
            self.moved = moved as u64;
            return Ok(());
        }
        self.check_clock(moved, response_timeout)
    }

    #[cold]
    fn check_clock(&mut self, moved: usize, response_timeout: &Duration) -> Result<(), Error> {
        let now = Instant::now();
        self.moved += moved as u64;
        if self.moved >= MIN_PROGRESS {
            self.moved = 1;
            self.deadline = None;
        }
        if now > *self.deadline.get_or_insert_with(|| from_now(*response_timeout)) {
            let message =
                format!("timed out: less than 1 MiB moved within the response timeout of {response_timeout:?}");
            return Err(Error::new(ErrorKind::Timeout, message));
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
                    let tls = TlsStream::handshake(stream, secure, deadline)?;
                    tls.socket.set_read_timeout(Some(limits.response))?;
                    tls.socket.set_write_timeout(Some(limits.response))?;
                    return Ok(BlockingSocket::Tls(Box::new(tls)));
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
            Address::Unix(_) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "this platform does not support Unix sockets"))
            }
        }
    }

    /// Returns whether an idle socket is unusable: at its end, failed, or holding unexpected bytes.
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
        let peeked = socket.set_nonblocking(true).and_then(|()| socket.peek(&mut [std::mem::MaybeUninit::uninit()]));
        let would_block = matches!(&peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        !would_block || socket.set_nonblocking(false).is_err()
    }

    /// Reads at least one byte, within the timeouts.
    #[inline(always)]
    fn read(
        &mut self,
        into: &mut [u8],
        timer: &mut ProgressTimer,
        response_timeout: &Duration,
    ) -> Result<usize, Error> {
        loop {
            let read = match self {
                BlockingSocket::Tcp(stream) => stream.read(into),
                #[cfg(unix)]
                BlockingSocket::Unix(stream) => stream.read(into),
                #[cfg(feature = "tls")]
                BlockingSocket::Tls(stream) => {
                    let read = stream.read(into, timer, response_timeout)?;
                    return if read == 0 { Err(closed()) } else { Ok(read) };
                }
            };
            match read {
                Ok(0) => return Err(closed()),
                Ok(read) => {
                    timer.check(read, response_timeout).map_err(|error| error.during(READING))?;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error(&error, READING)),
            }
        }
    }

    #[inline(always)]
    fn write_all(&mut self, mut bytes: &[u8], response_timeout: &Duration) -> Result<(), Error> {
        let mut timer = None;
        loop {
            let written = match self {
                BlockingSocket::Tcp(stream) => stream.write(bytes),
                #[cfg(unix)]
                BlockingSocket::Unix(stream) => stream.write(bytes),
                #[cfg(feature = "tls")]
                BlockingSocket::Tls(stream) => return stream.write_all(bytes, response_timeout),
            };
            match written {
                Ok(written) if written == bytes.len() => return Ok(()),
                Ok(0) => return Err(io_error(&io::ErrorKind::WriteZero.into(), SENDING)),
                Ok(written) => {
                    bytes = &bytes[written..];
                    let timer = timer.get_or_insert_with(ProgressTimer::new);
                    timer.check(written, response_timeout).map_err(|error| error.during(SENDING))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error(&error, SENDING)),
            }
        }
    }
}

/// Enables TCP keepalive, which detects a peer that vanished without closing the connection.
pub(crate) fn keep_alive(socket: socket2::SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE))
}

/// Connects to a Unix socket.
///
/// If the server's backlog is full, connecting fails without a way to wait for room, so it is
/// retried until the timeout.
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

/// Connects to the first of the host's addresses that accepts, and returns the deadline for the
/// rest of the setup.
///
/// Each address gets an equal share of the time that is left. `timeout` does not include the DNS
/// lookup, which takes as long as the system's resolver does.
fn connect_tcp(host: &str, port: u16, timeout: Duration) -> io::Result<(TcpStream, Instant)> {
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the host name resolves to no address");
    let addresses: Vec<_> = (host, port).to_socket_addrs()?.collect();
    let deadline = from_now(timeout);
    for (address, remaining) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let left = deadline.saturating_duration_since(Instant::now()) / u32::try_from(remaining).unwrap_or(u32::MAX);
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(address, left) {
            Ok(stream) => return Ok((stream, deadline)),
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

/// Returns the error for a reply that did not arrive within the response timeout.
#[cold]
pub(crate) fn timed_out() -> Error {
    io_error(&io::ErrorKind::TimedOut.into(), READING)
}

/// Converts an I/O error, with what was being done as context.
#[cold]
pub(crate) fn io_error(error: &io::Error, doing: impl std::fmt::Display) -> Error {
    match error.kind() {
        // On Unix, an expired socket timeout is reported as `WouldBlock`.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Error::new(ErrorKind::Timeout, format!("{doing}: timed out (see `connect_timeout` and `response_timeout`)"))
        }
        _ => Error::new(ErrorKind::Connection, format!("{doing}: {error}")),
    }
}
