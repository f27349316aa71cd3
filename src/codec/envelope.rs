//! Envelopes: what an entry keeps beside its payload.

use super::{CodecError, CodecErrorKind, Meta};
use crate::slice::Slice;
use crate::time::Timestamp;

/// What an entry keeps beside its payload. A parameter of every format, resolved at compile time.
pub trait Envelope: sealed::Sealed + Copy + Default + Send + Sync + 'static {
    /// Which of the three the format writes.
    #[doc(hidden)]
    const SHAPE: Shape;

    /// Writes what stands before the format's own bytes: nothing, mostly.
    #[doc(hidden)]
    #[inline(always)]
    fn write_head(_version: u64, _created: Timestamp, _out: &mut Vec<u8>) {}

    /// Takes that off, and what it says instead of the format's own envelope.
    #[doc(hidden)]
    #[inline(always)]
    fn read_head(_version: u64, entry: Slice<'_>) -> Result<(Option<Meta>, Slice<'_>), CodecError> {
        Ok((None, entry))
    }
}

/// An envelope that keeps a version: codecs with one of these have the method `version`.
pub trait Versioned: Envelope {}

/// `[payload, {"ct": seconds as a float, "v": version}]`: creation to the microsecond, and a version.
///
/// Entries of another version are misses, so a service that changes the meaning of its data writes another one
/// (`Msgpack::<Full>::new().version(3)`) and never reads the old. The default is 2, as in `dogpile.cache`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Full;

/// `[payload, seconds]`: creation in whole seconds, rounded down. The default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seconds;

/// The payload alone, the smallest. Its age is unknown: it expires by the server's TTL only, and invalidating a region
/// does not reach it.
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

/// Which envelope; formats match on it, and the compiler folds the match away.
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

/// The version that `dogpile.cache` writes since 1.1, and we too unless told otherwise.
pub(super) const DEFAULT_VERSION: u64 = 2;

/// The metadata of a [`Versioned`] envelope from its two numbers, when they are those of an entry that `version` may
/// read.
pub(super) fn full_meta(created: Option<f64>, found: Option<u64>, version: u64) -> Result<Meta, CodecError> {
    let Some(found) = found else {
        return Err(CodecError::new(CodecErrorKind::Value, "the entry's metadata has no version `v`"));
    };
    if found != version {
        return Err(CodecError::new(CodecErrorKind::Version, format!("the entry has version {found}, not {version}")));
    }
    let created = created.and_then(Timestamp::from_secs_f64).ok_or_else(|| {
        CodecError::new(CodecErrorKind::Value, "the entry's metadata has no creation time `ct` after 1970")
    })?;
    Ok(Meta { created: Some(created), version: Some(found) })
}
