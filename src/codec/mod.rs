//! Codecs: how values are encoded as cache entries and decoded again.
//!
//! A codec combines a format with an envelope:
//!
//! - The format defines how a value becomes bytes: [`Msgpack`], [`Json`], [`Raw`], [`Serde`].
//! - The envelope defines which metadata is stored with the value: [`Full`], [`Seconds`], [`Bare`].
//!
//! The default is `Msgpack<Seconds>`: the value and its creation time in whole seconds. This
//! envelope adds six bytes to the value. For entries that are shared with Python services, see the
//! module `python` (feature `python`).
//!
//! | codec | values | feature |
//! |---|---|---|
//! | [`Msgpack`] | std types, tuples, and structs declared with [`msgpack!`](crate::msgpack); [`LazyMap`] | |
//! | [`Raw`] | strings, bytes, integers and `Option`s of these, as `dogpile_backend_redis_advanced` writes them | |
//! | [`Json`] | any `Serialize + DeserializeOwned` type | `json` |
//! | [`Serde`] | any `Serialize + DeserializeOwned` type, as msgpack | `serde` |
//! | `python::Pickle` | any `Serialize + DeserializeOwned` type, as a Python pickle | `python` |
//!
//! An entry that cannot be decoded is a miss: the region counts it in
//! [`Stats::undecodable`](crate::Stats::undecodable), and the next creation overwrites it. Decoding
//! never panics, whatever the bytes are.

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

pub use crate::slice::Slice;
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

/// Encodes values of type `V` as cache entries and decodes them.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::codec::{Codec, Msgpack, Seconds};
/// use dogpile::codec::Slice;
/// use dogpile::Timestamp;
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
    /// Appends the encoded entry of `value`, with the creation time `created`, to `out`.
    ///
    /// # Errors
    ///
    /// Returns an error if the codec cannot encode this value. `out` may then contain a partial
    /// entry, which must be discarded.
    ///
    /// # Cost
    ///
    /// The codecs of this module allocate only to grow `out`. `python::Pickle` additionally
    /// allocates four bytes for each `char`.
    fn encode(&self, value: &V, created: Timestamp, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Decodes an entry into its value and metadata.
    ///
    /// Implementations must accept arbitrary bytes without panicking, because anyone with access to
    /// the server can write entries.
    ///
    /// # Errors
    ///
    /// Returns an error if the bytes are not an entry of a `V` in this codec's version.
    ///
    /// # Cost
    ///
    /// A value that is backed by [`Bytes`](bytes::Bytes) can share the entry's memory instead of
    /// copying it.
    fn decode(&self, entry: Slice<'_>) -> Result<(V, Meta), CodecError>;
}

/// Metadata that an entry's envelope stores with the value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Meta {
    /// The creation time of the value, if the envelope stores it.
    pub created: Option<Timestamp>,
    /// The version of the encoding, if the envelope stores it.
    pub version: Option<u64>,
}

impl Meta {
    /// The metadata of an envelope that stores none, such as [`Bare`].
    pub const NONE: Meta = Meta { created: None, version: None };

    /// Creates the metadata of an envelope that stores only the creation time, such as [`Seconds`].
    ///
    /// ```
    /// use dogpile::Timestamp;
    /// use dogpile::codec::Meta;
    ///
    /// let meta = Meta::created(Timestamp::from_secs(7));
    /// assert_eq!((meta.created, meta.version), (Some(Timestamp::from_secs(7)), None));
    /// ```
    #[must_use]
    pub fn created(created: Timestamp) -> Self {
        Meta { created: Some(created), version: None }
    }
}

/// An error of encoding a value or decoding an entry.
///
/// The type is as small as a pointer, so that the results of the many small read operations fit
/// into registers.
///
/// ```
/// use dogpile::codec::{CodecError, CodecErrorKind};
///
/// let error = CodecError::new(CodecErrorKind::Value, "the temperature is below absolute zero");
/// assert_eq!(error.kind(), CodecErrorKind::Value);
/// assert_eq!(error.to_string(), "the temperature is below absolute zero");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodecError(Box<(CodecErrorKind, Cow<'static, str>)>);

/// The kind of a [`CodecError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CodecErrorKind {
    /// The entry is truncated or has trailing bytes.
    Length,
    /// The entry contains a different type than the requested one.
    Type,
    /// The entry contains the requested type, but its value is invalid.
    ///
    /// For example, a number is out of range, a string is not UTF-8, the nesting is too deep, or a
    /// field is missing.
    Value,
    /// The entry has a different version than the codec expects (see [`Full`]).
    Version,
    /// The entry is the marker for "no value" (`NO_VALUE` in `dogpile.cache`).
    NoValue,
    /// The codec cannot represent this value.
    Unsupported,
}

impl CodecError {
    /// Creates an error with a custom message.
    #[cold]
    pub fn new(kind: CodecErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        CodecError(Box::new((kind, message.into())))
    }

    /// Returns the kind of this error.
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
