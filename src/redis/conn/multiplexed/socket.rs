//! [`AsyncSocket`]: the socket of a multiplexed connection, and how it is opened.

use std::collections::VecDeque;
use std::io;
use std::iter::repeat_n;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};

use crate::error::Error;
use crate::redis::conn::blocking::{closed, io_error, keep_alive, timed_out};
use crate::redis::conn::handshake::{MAX_STRING, RoundTrip, negotiate};
use crate::redis::conn::limits::{Limits, READING, SENDING};
use crate::redis::conn::multiplexed::decoder::Decoder;
use crate::redis::conn::multiplexed::from_now;
use crate::redis::conn::multiplexed::pipeline::{ByteCounts, Checkpoint, SentRequest};
use crate::redis::protocol::parser::Receive;
use crate::redis::url::{Address, Server};

/// The socket of a multiplexed connection.
pub(crate) enum AsyncSocket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// Connects and performs the handshake.
pub(crate) async fn connect(server: &Server, limits: Limits) -> Result<(AsyncSocket, Decoder), Error> {
    let connected = AsyncSocket::connect(server, limits.connect).await;
    let stream = connected.map_err(|error| io_error(&error, format_args!("connecting to {}", server.address)))?;
    let mut handshake = HandshakeSocket { stream, decoder: Decoder::new(limits.max_entry) };
    let negotiated = timeout(limits.response, negotiate(&mut handshake, server)).await;
    negotiated
        .unwrap_or_else(|_| Err(timed_out()))
        .map_err(|error| error.during(format_args!("connecting to {}", server.address)))?;
    Ok((handshake.stream, handshake.decoder))
}

impl AsyncSocket {
    async fn connect(server: &Server, connect_timeout: Duration) -> io::Result<Self> {
        match &server.address {
            Address::Tcp(host, port) => {
                let (stream, deadline) = connect_tcp(host, *port, connect_timeout).await?;
                stream.set_nodelay(true)?;
                keep_alive(socket2::SockRef::from(&stream))?;
                #[cfg(feature = "tls")]
                if let Some(secure) = &server.secure {
                    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::clone(&secure.config));
                    let left = deadline.saturating_duration_since(Instant::now());
                    let stream = with_timeout(left, connector.connect(secure.name.clone(), stream)).await?;
                    return Ok(AsyncSocket::Tls(Box::new(stream)));
                }
                let _ = deadline;
                Ok(AsyncSocket::Tcp(stream))
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                with_timeout(connect_timeout, tokio::net::UnixStream::connect(path)).await.map(AsyncSocket::Unix)
            }
            #[cfg(not(unix))]
            Address::Unix(_) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "this platform does not support Unix sockets"))
            }
        }
    }
}

/// Limits the time of an attempt to connect.
async fn with_timeout<T>(limit: Duration, connect: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Connects to the first of the host's addresses that accepts, and returns the deadline for the
/// rest of the setup.
///
/// Each address gets an equal share of the time that is left, as for blocking connections.
async fn connect_tcp(host: &str, port: u16, connect_timeout: Duration) -> io::Result<(TcpStream, Instant)> {
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the host name resolves to no address");
    let addresses: Vec<_> = lookup_host((host, port)).await?.collect();
    let deadline = from_now(connect_timeout);
    for (address, remaining) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let left = deadline.saturating_duration_since(Instant::now()) / u32::try_from(remaining).unwrap_or(u32::MAX);
        match with_timeout(left, TcpStream::connect(address)).await {
            Ok(stream) => return Ok((stream, deadline)),
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

impl AsyncSocket {
    /// Polls for readable bytes or the end of the stream.
    pub(crate) fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            AsyncSocket::Tcp(stream) => stream.poll_read_ready(context),
            #[cfg(unix)]
            AsyncSocket::Unix(stream) => stream.poll_read_ready(context),
            // The TLS session may already hold bytes that the socket does not show.
            #[cfg(feature = "tls")]
            AsyncSocket::Tls(_) => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncRead for AsyncSocket {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AsyncSocket::Tcp(stream) => Pin::new(stream).poll_read(context, into),
            #[cfg(unix)]
            AsyncSocket::Unix(stream) => Pin::new(stream).poll_read(context, into),
            #[cfg(feature = "tls")]
            AsyncSocket::Tls(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for AsyncSocket {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            AsyncSocket::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            #[cfg(unix)]
            AsyncSocket::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            #[cfg(feature = "tls")]
            AsyncSocket::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            #[cfg(feature = "tls")]
            AsyncSocket::Tls(stream) => Pin::new(stream).poll_flush(context),
            // Plain sockets have no write buffer.
            _ => {
                let _ = context;
                Poll::Ready(Ok(()))
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AsyncSocket::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            #[cfg(unix)]
            AsyncSocket::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            #[cfg(feature = "tls")]
            AsyncSocket::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// A connection during its handshake.
struct HandshakeSocket {
    stream: AsyncSocket,
    decoder: Decoder,
}

impl RoundTrip for HandshakeSocket {
    async fn round_trip(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> usize + Send,
        receive: &mut (impl Receive + Send),
    ) -> Result<(), Error> {
        let mut output = Vec::with_capacity(256);
        let mut left = write(&mut output);
        let checkpoint = Checkpoint { at: Instant::now(), counts: ByteCounts::default() };
        // Each reply counts as a request of its own, so that those that arrive before the
        // connection ends are delivered.
        self.decoder.expect(repeat_n(SentRequest::without_caller(1), left), checkpoint);
        let sent = async {
            self.stream.write_all(&output).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error| io_error(&error, SENDING))?;
        let mut completed = VecDeque::new();
        while left > 0 {
            let received = self.stream.read_buf(self.decoder.read_buffer()).await;
            if received.map_err(|error| io_error(&error, READING))? == 0 {
                return Err(closed());
            }
            self.decoder.decode(&mut completed)?;
            for (_, replied) in completed.drain(..) {
                replied.read(MAX_STRING, receive)?;
                left -= 1;
            }
        }
        Ok(())
    }
}
