//! The format `Json`: any type that serde supports, as JSON.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::envelope::{DEFAULT_VERSION, Envelope, Seconds, Shape, Versioned, full_meta};
use super::{Codec, CodecError, CodecErrorKind, Meta};
use crate::slice::Slice;
use crate::time::Timestamp;

/// A codec that stores any `Serialize + DeserializeOwned` type as JSON.
///
/// It is based on `serde_json` and suits entries that people or programs in other languages read.
/// It reads the output of Python's `json` module, except `NaN` and `Infinity`. Its own output has
/// no spaces, and non-ASCII characters are UTF-8 where Python escapes them.
///
/// - Infinities and NaN become `null`, because JSON cannot express them.
/// - Entries that nest more than 127 levels deep are written but cannot be read.
/// - serde does not distinguish a wrong type from an invalid value. Both are errors of the kind
///   [`Type`](CodecErrorKind::Type).
///
/// ```
/// use bytes::Bytes;
/// use dogpile::codec::Slice;
/// use dogpile::Timestamp;
/// use dogpile::codec::{Codec, Full, Json};
///
/// let codec = Json::<Full>::new();
/// let mut entry = Vec::new();
/// codec.encode(&vec!["a".to_string(); 2], Timestamp::from_micros(1_471_113_698_761_270), &mut entry)?;
/// assert_eq!(entry, br#"[["a","a"],{"ct":1471113698.76127,"v":2}]"#);
/// let (value, _): (Vec<String>, _) = codec.decode(Slice::from(&Bytes::from(entry)))?;
/// assert_eq!(value, ["a", "a"]);
/// # Ok::<(), dogpile::codec::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Json<E: Envelope = Seconds> {
    version: u64,
    envelope: PhantomData<E>,
}

impl<E: Envelope> Json<E> {
    /// Creates the codec with the default version, 2, if its envelope stores a version.
    #[must_use]
    pub const fn new() -> Self {
        Json { version: DEFAULT_VERSION, envelope: PhantomData }
    }
}

impl<E: Versioned> Json<E> {
    /// Sets the version of the entries that this codec writes and accepts.
    ///
    /// Entries of another version are misses, with the error kind
    /// [`Version`](CodecErrorKind::Version).
    ///
    /// ```
    /// use dogpile::codec::{Full, Json};
    ///
    /// let codec = Json::<Full>::new().version(3);
    /// ```
    #[must_use]
    pub const fn version(mut self, version: u64) -> Self {
        self.version = version;
        self
    }
}

impl<E: Envelope> Default for Json<E> {
    fn default() -> Self {
        Json::new()
    }
}

impl<V: Serialize + DeserializeOwned, E: Envelope> Codec<V> for Json<E> {
    fn encode(&self, value: &V, created: Timestamp, out: &mut Vec<u8>) -> Result<(), CodecError> {
        E::write_head(self.version, created, out);
        match E::SHAPE {
            Shape::Bare => write(value, out),
            Shape::Seconds => write(&(value, created.as_secs()), out),
            Shape::Full => {
                let meta = FullMeta { ct: Some(created.as_secs_f64()), v: Some(self.version) };
                write(&(value, meta), out)
            }
        }
    }

    fn decode(&self, entry: Slice<'_>) -> Result<(V, Meta), CodecError> {
        let (head, entry) = E::read_head(self.version, entry)?;
        let (value, meta) = match E::SHAPE {
            Shape::Bare => (read(entry.as_bytes())?, Meta::NONE),
            Shape::Seconds => {
                let (value, seconds) = read(entry.as_bytes())?;
                (value, Meta::created(Timestamp::from_secs(seconds)))
            }
            Shape::Full => {
                let (value, meta): (V, FullMeta) =
                    read(entry.as_bytes()).map_err(|error| self.prefer_version_error(entry, error))?;
                (value, meta.check(self.version)?)
            }
        };
        Ok((value, head.unwrap_or(meta)))
    }
}

impl<E: Envelope> Json<E> {
    /// Returns a version error if the entry has another version, and `error` otherwise.
    ///
    /// Another version may store payloads of another type, so a payload error alone is misleading.
    #[cold]
    fn prefer_version_error(&self, entry: Slice<'_>, error: CodecError) -> CodecError {
        let meta = read(entry.as_bytes()).and_then(|(IgnoredAny, meta): (_, FullMeta)| meta.check(self.version));
        match meta {
            Err(mismatch) if mismatch.kind() == CodecErrorKind::Version => mismatch,
            _ => error,
        }
    }
}

fn write<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    serde_json::to_writer(out, value).map_err(|error| CodecError::new(CodecErrorKind::Unsupported, error.to_string()))
}

pub(super) fn read<T: DeserializeOwned>(entry: &[u8]) -> Result<T, CodecError> {
    let mut json = serde_json::Deserializer::from_slice(entry);
    let value = T::deserialize(&mut json).map_err(|error| {
        let kind = if error.is_eof() { CodecErrorKind::Length } else { CodecErrorKind::Type };
        CodecError::new(kind, error.to_string())
    })?;
    json.end().map_err(|error| CodecError::new(CodecErrorKind::Length, error.to_string()))?;
    Ok(value)
}

/// The metadata map of the envelope `Full`.
///
/// `Deserialize` is written by hand because a derived implementation would also accept an array.
pub(super) struct FullMeta {
    ct: Option<f64>,
    v: Option<u64>,
}

impl FullMeta {
    /// Converts the map into validated metadata if it has the expected `version`.
    pub(super) fn check(&self, version: u64) -> Result<Meta, CodecError> {
        full_meta(self.ct, self.v, version)
    }
}

impl Serialize for FullMeta {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("ct", &self.ct)?;
        map.serialize_entry("v", &self.v)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for FullMeta {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FullMetaVisitor;

        impl<'de> Visitor<'de> for FullMetaVisitor {
            type Value = FullMeta;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of metadata")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FullMeta, A::Error> {
                let mut meta = FullMeta { ct: None, v: None };
                while let Some(key) = map.next_key()? {
                    match key {
                        MetaKey::Ct => meta.ct = Some(map.next_value()?),
                        MetaKey::V => meta.v = Some(map.next_value()?),
                        MetaKey::Other => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(meta)
            }
        }

        deserializer.deserialize_map(FullMetaVisitor)
    }
}

/// A key of the metadata map, decoded without an allocation.
enum MetaKey {
    Ct,
    V,
    Other,
}

impl<'de> Deserialize<'de> for MetaKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MetaKeyVisitor;

        impl Visitor<'_> for MetaKeyVisitor {
            type Value = MetaKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a metadata key")
            }

            fn visit_str<E>(self, name: &str) -> Result<MetaKey, E> {
                Ok(match name {
                    "ct" => MetaKey::Ct,
                    "v" => MetaKey::V,
                    _ => MetaKey::Other,
                })
            }
        }

        deserializer.deserialize_identifier(MetaKeyVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Bare, Full};
    use bytes::Bytes;

    fn encode<E: Envelope>(codec: Json<E>, value: impl Serialize + DeserializeOwned) -> String {
        let mut out = Vec::new();
        codec.encode(&value, Timestamp::from_micros(1_471_113_698_761_270), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn full(entry: &'static str) -> Result<(u8, Meta), CodecErrorKind> {
        Json::<Full>::new().decode(Slice::from(&Bytes::from_static(entry.as_bytes()))).map_err(|e| e.kind())
    }

    fn seconds(entry: &'static str) -> Result<(u8, Meta), CodecErrorKind> {
        Json::<Seconds>::new().decode(Slice::from(&Bytes::from_static(entry.as_bytes()))).map_err(|e| e.kind())
    }

    #[test]
    fn writes_compact_entries() {
        assert_eq!(encode(Json::<Bare>::new(), (1, "é".to_string())), r#"[1,"é"]"#);
        assert_eq!(encode(Json::<Seconds>::default(), 1), "[1,1471113698]");
        assert_eq!(encode(Json::<Full>::new().version(7), 1), r#"[1,{"ct":1471113698.76127,"v":7}]"#);
    }

    #[test]
    fn reads_full_metadata_with_keys_in_any_order() {
        let meta = Meta { created: Some(Timestamp::from_secs(1)), version: Some(2) };
        for entry in [
            r#"[5,{"ct":1.0,"v":2}]"#,
            r#" [ 5 , { "v" : 2 , "ct" : 1 } ] "#,
            r#"[5,{"x":[{"ct":2}],"\u0063t":1,"\u0076":2,"":null}]"#,
        ] {
            assert_eq!(full(entry), Ok((5, meta)), "{entry}");
        }
    }

    #[test]
    fn rejects_invalid_metadata() {
        for (entry, kind) in [
            (r#"[5,{"ct":1}]"#, CodecErrorKind::Value),
            (r#"[5,{"v":2}]"#, CodecErrorKind::Value),
            (r#"[5,{"ct":-1,"v":2}]"#, CodecErrorKind::Value),
            (r#"[5,{"ct":null,"v":2}]"#, CodecErrorKind::Type),
            (r#"[5,{"ct":"1","v":2}]"#, CodecErrorKind::Type),
            (r#"[5,{"ct":NaN,"v":2}]"#, CodecErrorKind::Type),
            (r#"[5,{"ct":1e999,"v":2}]"#, CodecErrorKind::Type),
            (r#"[5,{"ct":1,"v":null}]"#, CodecErrorKind::Type),
            (r#"[5,{"ct":1,"v":2.0}]"#, CodecErrorKind::Type),
            (r#"[5,{"ct":1,"v":-2}]"#, CodecErrorKind::Type),
            (r#"[5,[1,2]]"#, CodecErrorKind::Type),
            (r#"[5,1]"#, CodecErrorKind::Type),
            (r#"[5]"#, CodecErrorKind::Type),
            (r#"5"#, CodecErrorKind::Type),
            (r#"[5,{"ct":1,"v":2},0]"#, CodecErrorKind::Type),
            (r#"[5,{"ct":1,"v":2}]]"#, CodecErrorKind::Length),
            (r#"[5,{"ct":1,"v":2}"#, CodecErrorKind::Length),
            ("", CodecErrorKind::Length),
            (r#"[5,{"ct":1,"v":3}]"#, CodecErrorKind::Version),
            (r#"["another type",{"ct":1,"v":3}]"#, CodecErrorKind::Version),
            (r#"["another type",{"ct":1,"v":2}]"#, CodecErrorKind::Type),
        ] {
            assert_eq!(full(entry), Err(kind), "{entry}");
        }
        assert_eq!(seconds("[5, 7]"), Ok((5, Meta::created(Timestamp::from_secs(7)))));
        for entry in ["[5,7.0]", "[5,-7]", "[5,null]", "[5,\"7\"]", "[5]", "[5,7,7]", "5", "{}"] {
            assert_eq!(seconds(entry), Err(CodecErrorKind::Type), "{entry}");
        }
    }

    #[test]
    fn rejects_deeply_nested_entries() {
        #[derive(Serialize, Deserialize)]
        enum Tree {
            Leaf,
            Branch(Box<Tree>),
        }
        for level in [r#"{"Branch":"#, "[", r#"{"a":"#] {
            let entry = Bytes::from(level.repeat(100_000));
            let decoded: Result<(Tree, Meta), _> = Json::<Bare>::new().decode(Slice::from(&entry));
            assert!(decoded.is_err());
            let decoded: Result<(Tree, Meta), _> = Json::<Full>::new().decode(Slice::from(&entry));
            assert!(decoded.is_err());
        }
        assert!(matches!(
            Json::<Bare>::new().decode(Slice::from(&Bytes::from_static(b"\"Leaf\""))),
            Ok((Tree::Leaf, _))
        ));
    }
}
