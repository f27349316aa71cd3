//! [`TlsStream`]: an encrypted socket of threads.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConnection;

use crate::error::Error;
use crate::redis::conn::blocking::{ProgressTimer, io_error};
use crate::redis::conn::limits::{READING, SENDING};
use crate::redis::tls::Secure;

/// An encrypted socket. How long it may take is measured by what comes over the socket, not by what is decrypted: a record
/// may be 16 KiB, and whoever sends one byte of it after the other is as late as without encryption.
pub(crate) struct TlsStream {
    pub(crate) session: ClientConnection,
    pub(crate) socket: TcpStream,
}

impl TlsStream {
    /// Makes a connection an encrypted one, until a moment. Changes the timeouts of the socket.
    pub(crate) fn shake_hands(socket: TcpStream, secure: &Secure, deadline: Instant) -> io::Result<Self> {
        let session =
            ClientConnection::new(Arc::clone(&secure.config), secure.name.clone()).map_err(io::Error::other)?;
        let mut secured = TlsStream { session, socket };
        while secured.session.is_handshaking() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            secured.socket.set_read_timeout(Some(left))?;
            secured.socket.set_write_timeout(Some(left))?;
            if secured.session.wants_write() {
                secured.push()?;
            } else if secured.pull()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(secured)
    }

    /// Whether something was read that nobody asked for: bytes, or the end.
    pub(crate) fn has_more(&self) -> bool {
        !self.session.wants_read()
    }

    /// Reads what was decrypted, and from the socket until something is.
    pub(crate) fn read(
        &mut self,
        into: &mut [u8],
        patience: &mut ProgressTimer,
        response: &Duration,
    ) -> Result<usize, Error> {
        loop {
            match self.session.reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.map_err(|error| io_error(&error, READING)),
            }
            // What the other side wants to be told, such as that keys change.
            self.push_all(patience, response)?;
            let came = self.pull().map_err(|error| io_error(&error, READING))?;
            // After the end there is something to read: that.
            if came > 0 {
                patience.check(came, response).map_err(|error| error.during(READING))?;
            }
        }
    }

    /// Encrypts and sends.
    pub(crate) fn write_all(&mut self, mut bytes: &[u8], response: &Duration) -> Result<(), Error> {
        let mut patience = ProgressTimer::new();
        while !bytes.is_empty() {
            // It takes as much as it has room for.
            let taken = self.session.writer().write(bytes).map_err(|error| io_error(&error, SENDING))?;
            bytes = &bytes[taken..];
            self.push_all(&mut patience, response)?;
        }
        Ok(())
    }

    fn push_all(&mut self, patience: &mut ProgressTimer, response: &Duration) -> Result<(), Error> {
        while self.session.wants_write() {
            match self.push() {
                Ok(0) => return Err(io_error(&io::ErrorKind::WriteZero.into(), SENDING)),
                Ok(went) => patience.check(went, response).map_err(|error| error.during(SENDING))?,
                Err(error) => return Err(io_error(&error, SENDING)),
            }
        }
        Ok(())
    }

    /// Sends some of what is encrypted.
    fn push(&mut self) -> io::Result<usize> {
        loop {
            match self.session.write_tls(&mut self.socket) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                went => return went,
            }
        }
    }

    /// Takes what comes, once.
    fn pull(&mut self) -> io::Result<usize> {
        let came = loop {
            match self.session.read_tls(&mut self.socket) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                came => break came?,
            }
        };
        match self.session.process_new_packets() {
            Ok(_) => Ok(came),
            Err(error) => {
                // The server is told why, if it still listens.
                let _ = self.session.write_tls(&mut self.socket);
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
        }
    }
}
