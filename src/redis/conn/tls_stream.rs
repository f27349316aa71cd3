//! [`TlsStream`]: a blocking TLS socket.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConnection;

use crate::error::Error;
use crate::redis::conn::blocking::{ProgressTimer, io_error};
use crate::redis::conn::limits::{READING, SENDING};
use crate::redis::tls::TlsParams;

/// A blocking socket with a TLS session.
///
/// Timeouts count the bytes on the socket, not the decrypted ones. A record can be 16 KiB, and a
/// peer that sends it byte by byte must time out as it does without TLS.
pub(crate) struct TlsStream {
    pub(crate) session: ClientConnection,
    pub(crate) socket: TcpStream,
}

impl TlsStream {
    /// Performs the TLS handshake, which must end before `deadline`. It changes the timeouts of the
    /// socket.
    pub(crate) fn handshake(socket: TcpStream, params: &TlsParams, deadline: Instant) -> io::Result<Self> {
        let session =
            ClientConnection::new(Arc::clone(&params.config), params.name.clone()).map_err(io::Error::other)?;
        let mut stream = TlsStream { session, socket };
        while stream.session.is_handshaking() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            stream.socket.set_read_timeout(Some(left))?;
            stream.socket.set_write_timeout(Some(left))?;
            if stream.session.wants_write() {
                stream.write_socket()?;
            } else if stream.read_socket()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(stream)
    }

    /// Returns whether the session holds unread data or the end of the stream.
    pub(crate) fn has_more(&self) -> bool {
        !self.session.wants_read()
    }

    /// Reads decrypted bytes. Reads from the socket as long as there are none.
    pub(crate) fn read(
        &mut self,
        into: &mut [u8],
        timer: &mut ProgressTimer,
        response_timeout: &Duration,
    ) -> Result<usize, Error> {
        loop {
            match self.session.reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.map_err(|error| io_error(&error, READING)),
            }
            // TLS may have to send messages of its own, such as a key update.
            self.flush(timer, response_timeout)?;
            let received = self.read_socket().map_err(|error| io_error(&error, READING))?;
            // 0 bytes are the end of the stream, which the next read from the session returns.
            if received > 0 {
                timer.check(received, response_timeout).map_err(|error| error.during(READING))?;
            }
        }
    }

    /// Encrypts and sends all bytes.
    pub(crate) fn write_all(&mut self, mut bytes: &[u8], response_timeout: &Duration) -> Result<(), Error> {
        let mut timer = ProgressTimer::new();
        while !bytes.is_empty() {
            // The session accepts only as much as its buffer has room for.
            let taken = self.session.writer().write(bytes).map_err(|error| io_error(&error, SENDING))?;
            bytes = &bytes[taken..];
            self.flush(&mut timer, response_timeout)?;
        }
        Ok(())
    }

    /// Sends all encrypted bytes.
    fn flush(&mut self, timer: &mut ProgressTimer, response_timeout: &Duration) -> Result<(), Error> {
        while self.session.wants_write() {
            match self.write_socket() {
                Ok(0) => return Err(io_error(&io::ErrorKind::WriteZero.into(), SENDING)),
                Ok(written) => timer.check(written, response_timeout).map_err(|error| error.during(SENDING))?,
                Err(error) => return Err(io_error(&error, SENDING)),
            }
        }
        Ok(())
    }

    /// Sends encrypted bytes with one write.
    fn write_socket(&mut self) -> io::Result<usize> {
        loop {
            match self.session.write_tls(&mut self.socket) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => return written,
            }
        }
    }

    /// Receives encrypted bytes with one read, and decrypts them.
    fn read_socket(&mut self) -> io::Result<usize> {
        let received = loop {
            match self.session.read_tls(&mut self.socket) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => break received?,
            }
        };
        match self.session.process_new_packets() {
            Ok(_) => Ok(received),
            Err(error) => {
                // Send the TLS alert, if the server still reads.
                let _ = self.session.write_tls(&mut self.socket);
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
        }
    }
}
