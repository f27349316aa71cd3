//! The format `Serde`: any type that serde supports, as msgpack.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::envelope::{DEFAULT_VERSION, Envelope, Seconds, Versioned};
use super::msgpack::{Reader, close_entry, open_entry, write_entry};
use super::{Codec, CodecError, CodecErrorKind, Meta};
use crate::slice::Slice;
use crate::time::Timestamp;

/// A codec that stores any `Serialize + DeserializeOwned` type as msgpack.
///
/// It is based on `rmp-serde`. Structs are maps of their fields. The entries equal those of
/// [`Msgpack`](super::Msgpack) if a type's serde and [`Pack`](super::Pack) implementations describe
/// the same data. One common difference: serde treats `Vec<u8>` as an array of integers unless it
/// is annotated with `serde_bytes`.
///
/// Values that nest more than 128 levels deep are written but cannot be read: the codec limits the
/// depth itself because `rmp-serde` does not limit the recursion of enums.
///
/// # Cost
///
/// Decoding always copies; no value shares the entry's memory.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::codec::Slice;
/// use dogpile::Timestamp;
/// use dogpile::codec::{Codec, Seconds, Serde};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// enum Shape { Circle { radius: u32 }, Dot }
///
/// let codec = Serde::<Seconds>::new();
/// let mut entry = Vec::new();
/// codec.encode(&Shape::Dot, Timestamp::from_secs(1_471_113_698), &mut entry)?;
/// assert_eq!(entry, b"\x92\xa3Dot\xceW\xafi\xe2");
/// let (shape, _): (Shape, _) = codec.decode(Slice::from(&Bytes::from(entry)))?;
/// assert!(matches!(shape, Shape::Dot));
/// # Ok::<(), dogpile::codec::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Serde<E: Envelope = Seconds> {
    version: u64,
    envelope: PhantomData<E>,
}

impl<E: Envelope> Serde<E> {
    /// Creates the codec with the default version, 2, if its envelope stores a version.
    #[must_use]
    pub const fn new() -> Self {
        Serde { version: DEFAULT_VERSION, envelope: PhantomData }
    }
}

impl<E: Versioned> Serde<E> {
    /// Sets the version of the entries that this codec writes and accepts.
    ///
    /// Entries of another version are misses, with the error kind
    /// [`Version`](CodecErrorKind::Version).
    ///
    /// ```
    /// use dogpile::codec::{Full, Serde};
    ///
    /// let codec = Serde::<Full>::new().version(3);
    /// ```
    #[must_use]
    pub const fn version(mut self, version: u64) -> Self {
        self.version = version;
        self
    }
}

impl<E: Envelope> Default for Serde<E> {
    fn default() -> Self {
        Serde::new()
    }
}

impl<V: Serialize + DeserializeOwned, E: Envelope> Codec<V> for Serde<E> {
    fn encode(&self, value: &V, created: Timestamp, out: &mut Vec<u8>) -> Result<(), CodecError> {
        E::write_head(self.version, created, out);
        write_entry(E::SHAPE, self.version, created, out, |out| {
            value
                .serialize(&mut rmp_serde::Serializer::new(out).with_struct_map())
                .map_err(|error| CodecError::new(CodecErrorKind::Unsupported, error.to_string()))
        })
    }

    fn decode(&self, entry: Slice<'_>) -> Result<(V, Meta), CodecError> {
        let (head, entry) = E::read_head(self.version, entry)?;
        let mut reader = open_entry(E::SHAPE, entry)?;
        let payload = read_payload(&mut reader);
        let (value, meta) = close_entry(E::SHAPE, self.version, entry, &mut reader, payload)?;
        Ok((value, head.unwrap_or(meta)))
    }
}

/// Deserializes the payload after its nesting depth has been checked.
///
/// rmp-serde limits the depth of arrays and maps but not of enums, so hostile bytes could overflow
/// the stack without this check.
fn read_payload<V: DeserializeOwned>(reader: &mut Reader<'_>) -> Result<V, CodecError> {
    rmp_serde::from_slice(reader.read_shallow()?)
        .map_err(|error| CodecError::new(error_kind(&error), error.to_string()))
}

#[cold]
fn error_kind(error: &rmp_serde::decode::Error) -> CodecErrorKind {
    use rmp_serde::decode::Error;
    match error {
        Error::InvalidMarkerRead(_) | Error::InvalidDataRead(_) => CodecErrorKind::Length,
        Error::LengthMismatch(_) | Error::OutOfRange | Error::Utf8Error(_) | Error::DepthLimitExceeded => {
            CodecErrorKind::Value
        }
        _ => CodecErrorKind::Type,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::codec::{Bare, Full, Msgpack};
    use bytes::Bytes;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Tree {
        Leaf,
        Branch(Box<Tree>),
        Pair { left: Box<Tree>, right: Box<Tree> },
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Named {
        id: u32,
        tags: Vec<String>,
        extra: Option<BTreeMap<String, f64>>,
    }

    fn round_trip<V: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug, E: Envelope>(
        codec: Serde<E>,
        value: V,
    ) {
        let mut out = Vec::new();
        codec.encode(&value, Timestamp::from_secs(7), &mut out).unwrap();
        let (read, _): (V, _) = codec.decode(Slice::from(&Bytes::from(out))).unwrap();
        assert_eq!(read, value);
    }

    fn decode<V: DeserializeOwned + Serialize>(entry: impl Into<Bytes>) -> Result<V, CodecErrorKind> {
        Serde::<Bare>::new().decode(Slice::from(&entry.into())).map(|(value, _)| value).map_err(|e| e.kind())
    }

    #[test]
    fn values_round_trip() {
        let tree = || Tree::Pair { left: Box::new(Tree::Leaf), right: Box::new(Tree::Branch(Box::new(Tree::Leaf))) };
        round_trip(Serde::<Bare>::new(), tree());
        round_trip(Serde::<Seconds>::new(), tree());
        round_trip(Serde::<Full>::new().version(9), tree());
        round_trip(Serde::<Seconds>::new(), vec![1_u8, 255]);
        round_trip(Serde::<Seconds>::new(), None::<u8>);
        let extra = Some(BTreeMap::from([("a".into(), 0.5)]));
        round_trip(Serde::<Full>::default(), Named { id: 5, tags: vec!["a".into()], extra });
    }

    #[test]
    fn writes_structs_as_maps() {
        let mut out = Vec::new();
        let value = Named { id: 5, tags: vec![], extra: None };
        Serde::<Bare>::new().encode(&value, Timestamp::EPOCH, &mut out).unwrap();
        assert_eq!(out, b"\x83\xa2id\x05\xa4tags\x90\xa5extra\xc0");
        assert_eq!(decode(&b"\x83\xa4tags\x90\xa1x\x91\xc0\xa2id\x05"[..]), Ok(value));
    }

    #[test]
    fn distinguishes_other_versions_from_damaged_entries() {
        let mut out = Vec::new();
        Msgpack::<Full>::new().version(3).encode(&"a".to_string(), Timestamp::EPOCH, &mut out).unwrap();
        let decoded: Result<(u8, Meta), _> = Serde::<Full>::new().decode(Slice::from(&Bytes::from(out)));
        assert_eq!(decoded.unwrap_err().kind(), CodecErrorKind::Version);
        assert_eq!(decode::<u8>(&b"\x05\x05"[..]), Err(CodecErrorKind::Length));
        assert_eq!(decode::<u8>(&b""[..]), Err(CodecErrorKind::Length));
        assert_eq!(decode::<u8>(&b"\xa1a"[..]), Err(CodecErrorKind::Type));
        assert_eq!(decode::<(u8, u8)>(&b"\x93\x01\x02\x03"[..]), Err(CodecErrorKind::Value));
    }

    #[test]
    fn rejects_deeply_nested_entries() {
        for level in [&b"\x81\xa6Branch"[..], b"\x81\x01", b"\x91"] {
            assert_eq!(decode::<Tree>([&level.repeat(100_000)[..], b"\xa4Leaf"].concat()), Err(CodecErrorKind::Value));
        }
        let deep = |depth| [&b"\x81\xa6Branch".repeat(depth)[..], b"\xa4Leaf"].concat();
        assert!(decode::<Tree>(deep(128)).is_ok());
        assert_eq!(decode::<Tree>(deep(129)), Err(CodecErrorKind::Value));
    }
}
