//! Envelopes: the metadata that an entry stores with its payload.

use super::{CodecError, CodecErrorKind, Meta};
use crate::slice::Slice;
use crate::time::Timestamp;

/// The metadata that an entry stores with its payload.
///
/// Every format except [`Raw`](super::Raw) takes an envelope as a type parameter, so the choice is
/// resolved at compile time. The trait is sealed; its implementations are [`Full`], [`Seconds`],
/// [`Bare`] and, with the feature `python`, `python::JsonMeta`.
pub trait Envelope: sealed::Sealed + Copy + Default + Send + Sync + 'static {
    /// The shape of the entry that the format itself writes.
    #[doc(hidden)]
    const SHAPE: Shape;

    /// Appends the header that precedes the format's own bytes. Most envelopes have none.
    #[doc(hidden)]
    #[inline(always)]
    fn write_head(_version: u64, _created: Timestamp, _out: &mut Vec<u8>) {}

    /// Strips the header from `entry` and returns the metadata in it, if any, with the remaining
    /// bytes.
    ///
    /// This metadata replaces the metadata that the format reads.
    #[doc(hidden)]
    #[inline(always)]
    fn read_head(_version: u64, entry: Slice<'_>) -> Result<(Option<Meta>, Slice<'_>), CodecError> {
        Ok((None, entry))
    }
}

/// An envelope that stores a version.
///
/// Codecs with such an envelope have a method `version`, for example
/// [`Msgpack::version`](super::Msgpack::version).
pub trait Versioned: Envelope {}

/// The envelope with the creation time in microseconds and a version.
///
/// An entry is `[payload, {"ct": seconds as a float, "v": version}]`.
///
/// Entries of another version are misses. If the meaning of your data changes, choose a new version
/// (`Msgpack::<Full>::new().version(3)`), and old entries are never read. The default version is 2,
/// as in `dogpile.cache`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Full;

/// The default envelope, with the creation time in whole seconds, rounded down.
///
/// An entry is `[payload, seconds]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seconds;

/// The smallest envelope: the payload without metadata.
///
/// The age of such an entry is unknown. It expires only through the server's TTL, and invalidating
/// a region has no effect on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bare;

impl Envelope for Full {
    const SHAPE: Shape = Shape::Full;
}

impl Versioned for Full {}

impl Envelope for Seconds {
    const SHAPE: Shape = Shape::Seconds;
}

impl Envelope for Bare {
    const SHAPE: Shape = Shape::Bare;
}

/// The shape of an entry as the format writes it.
///
/// Formats match on this constant, and the compiler eliminates the branches that are not taken.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Full,
    Seconds,
    Bare,
}

pub(super) mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Full {}
    impl Sealed for super::Seconds {}
    impl Sealed for super::Bare {}
}

/// The version of entries unless the codec sets another one: the version that `dogpile.cache`
/// writes since 1.1.
pub(super) const DEFAULT_VERSION: u64 = 2;

/// Validates the two metadata fields of a [`Versioned`] envelope against the expected `version`.
pub(super) fn full_meta(created: Option<f64>, found: Option<u64>, version: u64) -> Result<Meta, CodecError> {
    let Some(found) = found else {
        return Err(CodecError::new(CodecErrorKind::Value, "the metadata of the entry has no version `v`"));
    };
    if found != version {
        return Err(CodecError::new(
            CodecErrorKind::Version,
            format!("the entry has version {found}, expected {version}"),
        ));
    }
    let created = created.and_then(Timestamp::from_secs_f64).ok_or_else(|| {
        CodecError::new(
            CodecErrorKind::Value,
            "the metadata of the entry has no valid creation time `ct` (seconds since 1970)",
        )
    })?;
    Ok(Meta { created: Some(created), version: Some(found) })
}
