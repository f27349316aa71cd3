//! What can go wrong: one opaque error with a kind, and the creator's own error beside it.

use std::fmt;

/// What kind of trouble an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting that cannot work: a malformed URL, a limit of zero, found when the region or backend is built; or a
    /// server that cannot do what is set, found when it is connected to. Regions pass it on also where they go on without
    /// their backend.
    Config,
    /// The server could not be reached, or the connection broke.
    Connection,
    /// The server or a creator did not answer in time.
    Timeout,
    /// The server refused the user, the password or the database.
    Refused,
    /// The key holds another kind of data than was written to it, such as a list.
    WrongType,
    /// The server answered with another error.
    Server,
    /// The server's answer is not RESP, or not an answer to what was asked.
    Protocol,
    /// The value cannot be encoded.
    Codec,
    /// The entry or key is larger than the backend accepts.
    TooLarge,
    /// A creator broke its contract: a wrong number of values, or it asked for the key that it was creating.
    Creator,
}

/// Why an operation on the cache failed: one sentence, and a [kind](ErrorKind) to match on.
///
/// The sentence names what was being done and to what, never a password. It already contains the cause's own words,
/// so [`source`](std::error::Error::source) is empty.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
}

impl Error {
    /// An error of your own [backend](crate::backend::Backend) or [lock](crate::lock::Lock): a kind and one sentence.
    #[cold]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner { kind, message: message.into() }))
    }

    /// What kind of error this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The same error for another one whom it concerns.
    #[cold]
    pub(crate) fn copy(&self) -> Self {
        Error::new(self.0.kind, self.0.message.clone())
    }

    /// Whether the server did not answer, or there is no connection to it: it is in vain to ask again at once.
    pub(crate) fn is_out_of_reach(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Connection | ErrorKind::Timeout)
    }

    /// The same error with what was being done put before it.
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

/// Why a value could not be had: the cache failed, or its creator did.
///
/// With `anyhow`, `Box<dyn Error>` and the like, `?` works as it is; [`GetError::into_create`] takes the creator's
/// error out.
#[derive(Debug)]
pub enum GetError<E> {
    /// The cache failed. By default only waiting too long gets here: an unreachable cache lets the creator run.
    Cache(Error),
    /// The creator failed, with its own error. Nothing was stored, and the next caller creates.
    Create(E),
}

impl<E> GetError<E> {
    /// The creator's error, or this one as a cache's error.
    ///
    /// # Errors
    /// The cache's error, where it was not the creator that failed.
    pub fn into_create(self) -> Result<E, Error> {
        match self {
            GetError::Cache(error) => Err(error),
            GetError::Create(error) => Ok(error),
        }
    }
}

impl<E> GetError<GetError<E>> {
    /// One error of the two that a creator has which itself gets or creates another value.
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
