//! How values are written: a format times an envelope.
//!
//! The format says how a value becomes bytes ([`Msgpack`], [`Json`], [`Raw`], [`Serde`]), the envelope what is kept
//! beside it ([`Full`], [`Seconds`], [`Bare`]). `Msgpack<Seconds>` is the default: the payload and the second of its
//! creation, six bytes more than the payload. Entries shared with services in Python: the module `python`.
//!
//! | codec | values | feature |
//! |---|---|---|
//! | [`Msgpack`] | std types, tuples, and structs named in [`msgpack!`](crate::msgpack); [`LazyMap`] | |
//! | [`Raw`] | text, bytes, integers, `Option` of these, as `dogpile_backend_redis_advanced` writes them | |
//! | [`Json`] | anything `Serialize + DeserializeOwned` | `json` |
//! | [`Serde`] | anything `Serialize + DeserializeOwned`, as msgpack | `serde` |
//! | `python::Pickle` | anything `Serialize + DeserializeOwned`, as Python's pickle | `python` |
//!
//! Bytes that cannot be decoded are a miss, counted, and overwritten by the next creation. They are never a panic.

mod envelope;
#[cfg(feature = "json")]
mod json;
mod lazy;
mod msgpack;
#[cfg(feature = "python")]
pub mod python;
mod raw;
#[cfg(feature = "serde")]
mod serde;
mod time;

use std::borrow::Cow;
use std::fmt;

use crate::slice::Slice;
use crate::time::Timestamp;

pub use self::envelope::{Bare, Envelope, Full, Seconds, Versioned};
#[cfg(feature = "json")]
pub use self::json::Json;
pub use self::lazy::LazyMap;
#[doc(hidden)]
pub use self::msgpack::{__field, __key};
pub use self::msgpack::{Kind, Msgpack, Pack, Reader, Unpack, pack_array_header, pack_bin, pack_map_header, pack_str};
pub use self::raw::{Raw, RawValue};
#[cfg(feature = "serde")]
pub use self::serde::Serde;

/// Writes values of type `V` as entries and reads them back.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::codec::{Codec, Msgpack, Seconds};
/// use dogpile::{Slice, Timestamp};
///
/// let codec = Msgpack::<Seconds>::new();
/// let mut entry = Vec::new();
/// codec.encode(&"mellifluous".to_string(), Timestamp::from_secs(1_471_113_698), &mut entry)?;
/// assert_eq!(entry, b"\x92\xabmellifluous\xceW\xafi\xe2");
///
/// let (value, meta): (String, _) = codec.decode(Slice::from(&Bytes::from(entry)))?;
/// assert_eq!(value, "mellifluous");
/// assert_eq!(meta.created, Some(Timestamp::from_secs(1_471_113_698)));
/// # Ok::<(), dogpile::codec::CodecError>(())
/// ```
pub trait Codec<V> {
    /// Appends the entry of `value`, created at `created`, to `out`. Allocates nothing but room in `out`.
    ///
    /// # Errors
    /// When the codec cannot write this value. What it then left in `out` means nothing.
    fn encode(&self, value: &V, created: Timestamp, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Reads an entry. A `V` that is backed by [`Bytes`](bytes::Bytes) shares the entry's memory instead of copying it.
    ///
    /// # Errors
    /// When the bytes are not an entry of a `V` in this codec's version. Any bytes may come; none may panic.
    fn decode(&self, entry: Slice<'_>) -> Result<(V, Meta), CodecError>;
}

/// What an entry's envelope says of its value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Meta {
    /// When the value was created, if the envelope keeps that.
    pub created: Option<Timestamp>,
    /// The version of its encoding, if the envelope keeps one.
    pub version: Option<u64>,
}

impl Meta {
    /// What an envelope that keeps nothing says.
    pub const NONE: Meta = Meta { created: None, version: None };

    /// What an envelope that keeps only the time says.
    #[must_use]
    pub fn created(created: Timestamp) -> Self {
        Meta { created: Some(created), version: None }
    }
}

/// Why a value could not be encoded, or bytes not decoded.
///
/// As small as a pointer, so that the results of reading fit into registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodecError(Box<(CodecErrorKind, Cow<'static, str>)>);

/// What kind of trouble a [`CodecError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CodecErrorKind {
    /// The entry ends too early, or goes on after its end.
    Length,
    /// The bytes hold another type than was asked for.
    Type,
    /// The type is right, the value is not: out of range, not UTF-8, nested too deeply, a missing field.
    Value,
    /// The entry was written by another version of the code, see [`Full`].
    Version,
    /// The entry says that there is no value (`NO_VALUE` of `dogpile.cache`).
    NoValue,
    /// The codec has no way to write this value.
    Unsupported,
}

impl CodecError {
    /// An error with a sentence of its own.
    #[cold]
    pub fn new(kind: CodecErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        CodecError(Box::new((kind, message.into())))
    }

    /// What kind of error this is.
    #[must_use]
    pub fn kind(&self) -> CodecErrorKind {
        self.0.0
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.1)
    }
}

impl std::error::Error for CodecError {}
