//! [`Error`], an opaque cache error with a kind, and [`GetError`], which adds the creator's error.

use std::fmt;

/// The category of an [`Error`].
///
/// ```
/// use dogpile::{Error, ErrorKind};
///
/// fn is_transient(error: &Error) -> bool {
///     matches!(error.kind(), ErrorKind::Connection | ErrorKind::Timeout)
/// }
/// # assert!(is_transient(&Error::new(ErrorKind::Timeout, "")));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting is invalid, or the server does not support it.
    ///
    /// Invalid settings, such as a malformed URL or a limit of zero, are reported when the region
    /// or the backend is built. Missing server support is reported when a connection is
    /// established. A region returns this error even where it otherwise continues without its
    /// backend.
    Config,
    /// The server could not be reached, or the connection was lost.
    Connection,
    /// The server did not reply in time, or another caller did not create the value in time.
    Timeout,
    /// The server rejected the user name, the password or the database.
    Refused,
    /// The key holds a value of another Redis type, such as a list.
    WrongType,
    /// The server replied with any other error.
    Server,
    /// The server's reply is not valid RESP, or does not match the command.
    Protocol,
    /// The value cannot be encoded.
    Codec,
    /// The entry or the key is larger than the backend accepts.
    TooLarge,
    /// A creator violated its contract.
    ///
    /// It returned a wrong number of values, or it requested the key that it was creating.
    Creator,
}

/// The error of a cache operation: a message, and a [kind](ErrorKind) to match on.
///
/// The message names the operation and its key or server, and never contains a password. It
/// includes the message of the cause, so [`source`](std::error::Error::source) returns `None`.
///
/// The size of an `Error` is one pointer.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
}

impl Error {
    /// Creates an error for a [`Backend`](crate::Backend) or [`Lock`](crate::Lock) of your own.
    ///
    /// The message says what was being done, to what, and what went wrong. It should not contain
    /// secrets.
    ///
    /// ```
    /// use dogpile::{Error, ErrorKind};
    ///
    /// let error = Error::new(ErrorKind::Connection, "reading user-15: the disk is offline");
    /// assert_eq!(error.to_string(), "reading user-15: the disk is offline");
    /// ```
    #[cold]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner { kind, message: message.into() }))
    }

    /// Returns the category of this error.
    ///
    /// ```
    /// use dogpile::{Error, ErrorKind};
    ///
    /// let error = Error::new(ErrorKind::Timeout, "reading user-15: no reply within 1s");
    /// assert_eq!(error.kind(), ErrorKind::Timeout);
    /// ```
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Clones the error, for another caller that has to report it.
    ///
    /// `Error` does not implement `Clone`, which would be part of the public API.
    #[cold]
    pub(crate) fn copy(&self) -> Self {
        Error::new(self.0.kind, self.0.message.clone())
    }

    /// Returns `true` if the server is unreachable or does not reply.
    ///
    /// An immediate retry would fail as well.
    pub(crate) fn is_out_of_reach(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Connection | ErrorKind::Timeout)
    }

    /// Prepends the operation during which the error occurred to the message.
    ///
    /// ```
    /// use dogpile::{Error, ErrorKind};
    ///
    /// let error = Error::new(ErrorKind::Timeout, "no reply within 1s").during("reading user-15");
    /// assert_eq!(error.to_string(), "reading user-15: no reply within 1s");
    /// ```
    #[cold]
    #[must_use]
    pub fn during(mut self, doing: impl fmt::Display) -> Self {
        self.0.message = format!("{doing}: {}", self.0.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({:?})", self.0.kind, self.0.message)
    }
}

impl std::error::Error for Error {}

/// The error of a read that may create the value: the cache failed, or the creator did.
///
/// In functions that return `anyhow::Error`, `Box<dyn Error>` or similar types, `?` converts it. To
/// get the creator's error back, use [`GetError::into_create`].
///
/// ```
/// use dogpile::{GetError, Memory, Region};
///
/// let region = Region::builder(Memory::new(1 << 20)).build()?;
/// match region.get_or_create("user-15", || "fifteen".parse::<u64>()) {
///     Ok(id) => println!("{id}"),
///     Err(GetError::Cache(error)) => eprintln!("the cache failed: {error}"),
///     Err(GetError::Create(error)) => eprintln!("not a number: {error}"),
/// }
/// # Ok::<(), dogpile::Error>(())
/// ```
#[derive(Debug)]
pub enum GetError<E> {
    /// The cache failed.
    ///
    /// By default, an unreachable server does not get here, because the creator runs all the same.
    /// Most errors are timeouts: another caller took too long to create the value.
    Cache(Error),
    /// The creator failed with this error.
    ///
    /// Nothing was stored, and the next caller runs its creator.
    Create(E),
}

impl<E> GetError<E> {
    /// Returns the creator's error, or the cache's error as `Err`.
    ///
    /// With `?`, a function passes on the errors of the cache, and then handles the errors of its
    /// creator.
    ///
    /// # Errors
    ///
    /// The cache's error, if it was not the creator that failed.
    ///
    /// ```
    /// use dogpile::GetError;
    ///
    /// let error = GetError::Create("no such user");
    /// assert_eq!(error.into_create()?, "no such user");
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn into_create(self) -> Result<E, Error> {
        match self {
            GetError::Cache(error) => Err(error),
            GetError::Create(error) => Ok(error),
        }
    }
}

impl<E> GetError<GetError<E>> {
    /// Flattens the nested error of a creator that itself reads or creates another value.
    ///
    /// A cache error of the inner read becomes a cache error of the outer one.
    ///
    /// ```
    /// use dogpile::GetError;
    ///
    /// let error = GetError::Create(GetError::Create("no such user"));
    /// assert!(matches!(error.flatten(), GetError::Create("no such user")));
    /// ```
    #[must_use]
    pub fn flatten(self) -> GetError<E> {
        match self {
            GetError::Cache(error) => GetError::Cache(error),
            GetError::Create(inner) => inner,
        }
    }
}

impl<E> From<Error> for GetError<E> {
    fn from(error: Error) -> Self {
        GetError::Cache(error)
    }
}

impl<E: fmt::Display> fmt::Display for GetError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GetError::Cache(error) => write!(f, "the cache failed: {error}"),
            GetError::Create(error) => write!(f, "the value could not be created: {error}"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for GetError<E> {}
