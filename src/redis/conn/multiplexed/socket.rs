//! [`AsyncSocket`]: a socket of a task, and how it is opened.

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
use crate::redis::conn::blocking::{closed, io_error, keep_alive, late};
use crate::redis::conn::handshake::{Ask, LONGEST, introduce};
use crate::redis::conn::limits::{Limits, READING, SENDING};
use crate::redis::conn::multiplexed::decoder::Decoder;
use crate::redis::conn::multiplexed::from_now;
use crate::redis::conn::multiplexed::pipeline::{Mark, Moved, Sent};
use crate::redis::protocol::parser::Receive;
use crate::redis::url::{Address, Server};

pub(crate) enum AsyncSocket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// Connects, and introduces us.
pub(crate) async fn connect(server: &Server, limits: Limits) -> Result<(AsyncSocket, Decoder), Error> {
    let connected = AsyncSocket::connect(server, limits.connect).await;
    let stream = connected.map_err(|error| io_error(&error, format_args!("connecting to {}", server.address)))?;
    let mut greeting = Greeting { stream, incoming: Decoder::new(limits.max_entry) };
    let introduced = timeout(limits.response, introduce(&mut greeting, server)).await;
    introduced
        .unwrap_or_else(|_| Err(late()))
        .map_err(|error| error.during(format_args!("connecting to {}", server.address)))?;
    Ok((greeting.stream, greeting.incoming))
}

impl AsyncSocket {
    async fn connect(server: &Server, within: Duration) -> io::Result<Self> {
        match &server.address {
            Address::Tcp(host, port) => {
                let (stream, deadline) = connect_tcp(host, *port, within).await?;
                stream.set_nodelay(true)?;
                keep_alive(socket2::SockRef::from(&stream))?;
                #[cfg(feature = "tls")]
                if let Some(secure) = &server.secure {
                    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::clone(&secure.config));
                    let left = deadline.saturating_duration_since(Instant::now());
                    let stream = in_time(left, connector.connect(secure.name.clone(), stream)).await?;
                    return Ok(AsyncSocket::Tls(Box::new(stream)));
                }
                let _ = deadline;
                Ok(AsyncSocket::Tcp(stream))
            }
            #[cfg(unix)]
            Address::Unix(path) => in_time(within, tokio::net::UnixStream::connect(path)).await.map(AsyncSocket::Unix),
            #[cfg(not(unix))]
            Address::Unix(_) => Err(io::Error::new(io::ErrorKind::Unsupported, "there are no Unix sockets here")),
        }
    }
}

async fn in_time<T>(within: Duration, connect: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(within, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Tries the host's addresses in turn, as threads do: each gets its share of the time that is left. Also until when
/// connecting may take.
async fn connect_tcp(host: &str, port: u16, within: Duration) -> io::Result<(TcpStream, Instant)> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    let addresses: Vec<_> = lookup_host((host, port)).await?.collect();
    let deadline = from_now(within);
    for (address, others) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let left = deadline.saturating_duration_since(Instant::now()) / u32::try_from(others).unwrap_or(u32::MAX);
        match in_time(left, TcpStream::connect(address)).await {
            Ok(stream) => return Ok((stream, deadline)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl AsyncSocket {
    /// Whether there is something to read, or the end.
    pub(crate) fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            AsyncSocket::Tcp(stream) => stream.poll_read_ready(context),
            #[cfg(unix)]
            AsyncSocket::Unix(stream) => stream.poll_read_ready(context),
            // What is there may have been read from the socket already.
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
            // Sockets keep nothing back.
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

/// A connection that is being introduced.
struct Greeting {
    stream: AsyncSocket,
    incoming: Decoder,
}

impl Ask for Greeting {
    async fn ask(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> usize + Send,
        receive: &mut (impl Receive + Send),
    ) -> Result<(), Error> {
        let mut output = Vec::with_capacity(256);
        let mut left = write(&mut output);
        let mark = Mark { at: Instant::now(), moved: Moved::default() };
        // Each by itself, so that what comes before the connection ends is known.
        self.incoming.expect(repeat_n(Sent::apart(1), left), mark);
        let sent = async {
            self.stream.write_all(&output).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error| io_error(&error, SENDING))?;
        let mut answered = VecDeque::new();
        while left > 0 {
            let came = self.stream.read_buf(self.incoming.room()).await;
            if came.map_err(|error| io_error(&error, READING))? == 0 {
                return Err(closed());
            }
            self.incoming.cut(&mut answered)?;
            for (_, replied) in answered.drain(..) {
                replied.read(LONGEST, receive)?;
                left -= 1;
            }
        }
        Ok(())
    }
}
