//! `LazyMap`: a msgpack map that decodes its values on access.

use std::fmt;

use bytes::Bytes;

use super::{CodecError, Pack, Reader, Unpack};
use crate::slice::Slice;

/// An encoded map with string keys that decodes its values on access.
///
/// Use it for large entries of which you read only a few fields. The map shares the entry's memory.
///
/// If a key occurs more than once, the last occurrence wins, as for structs and maps. Two maps are
/// equal if their encoded bytes are equal.
///
/// # Cost
///
/// - Decoding a `LazyMap` scans the whole map once, so a damaged entry is a miss instead of a later
///   error. It does not allocate.
/// - [`get`](LazyMap::get) scans the map again and decodes one value.
/// - Encoding copies the bytes unchanged.
///
/// ```
/// use dogpile::codec::LazyMap;
///
/// struct Profile { id: u32, name: String }
/// dogpile::msgpack! { Profile { id, name } }
///
/// let profile = LazyMap::of(&Profile { id: 15, name: "Ann".into() })?;
/// assert_eq!(profile.get("name")?, Some("Ann".to_string()));
/// assert_eq!(profile.get::<u8>("age")?, None);
/// assert_eq!(profile.keys().collect::<Vec<_>>(), ["id", "name"]);
/// assert!(profile.contains("id") && profile.len() == 2 && !profile.is_empty());
/// assert_eq!(LazyMap::try_from(profile.as_bytes().clone())?, profile);
/// # Ok::<(), dogpile::codec::CodecError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct LazyMap {
    /// Exactly one complete msgpack map with string keys.
    map: Bytes,
}

impl LazyMap {
    /// Encodes `value` as a map.
    ///
    /// `value` is, for example, a struct declared with [`msgpack!`](crate::msgpack) or a
    /// `BTreeMap`.
    ///
    /// # Errors
    ///
    /// Returns an error if `value` cannot be encoded, or if it is not encoded as a map with string
    /// keys.
    ///
    /// # Cost
    ///
    /// Allocates the buffer for the encoded map.
    pub fn of<T: Pack + ?Sized>(value: &T) -> Result<Self, CodecError> {
        let mut map = Vec::new();
        value.pack(&mut map)?;
        Bytes::from(map).try_into()
    }

    /// Decodes the value of the field `name`, or returns `None` if there is no such field.
    ///
    /// # Errors
    ///
    /// Returns an error if the value of the field is not a `T`.
    ///
    /// # Cost
    ///
    /// Scans the map and allocates only what the decoded value owns.
    pub fn get<T: Unpack>(&self, name: &str) -> Result<Option<T>, CodecError> {
        self.find(name).map(|mut value| T::unpack(&mut value)).transpose()
    }

    /// Returns whether the map has a field `name`.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Iterates over the names of the fields in the order in which they are encoded.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.fields().filter_map(|(name, _)| std::str::from_utf8(name).ok())
    }

    /// Returns the number of fields. A key that occurs twice counts twice.
    #[must_use]
    pub fn len(&self) -> usize {
        Reader::new(Slice::from(&self.map)).read_map_len().unwrap_or(0)
    }

    /// Returns whether the map has no fields.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the encoded map.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.map
    }

    /// Returns a reader positioned at the value of the field `name`.
    fn find(&self, name: &str) -> Option<Reader<'_>> {
        self.fields().filter(|(found, _)| *found == name.as_bytes()).last().map(|(_, value)| value)
    }

    /// Iterates over the names of the fields, each with a reader positioned at its value.
    ///
    /// The constructors validate the map, so none of these reads fails.
    fn fields(&self) -> impl Iterator<Item = (&[u8], Reader<'_>)> {
        let mut reader = Reader::new(Slice::from(&self.map));
        let len = reader.read_map_len().unwrap_or(0);
        (0..len).map_while(move |_| {
            let name = reader.read_key().ok()?;
            let value = reader.clone();
            reader.skip_value().ok()?;
            Some((name, value))
        })
    }
}

/// Validates an encoded map and keeps its bytes unchanged.
impl TryFrom<Bytes> for LazyMap {
    type Error = CodecError;

    fn try_from(map: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::new(Slice::from(&map));
        let map = LazyMap::unpack(&mut reader)?;
        reader.finish()?;
        Ok(map)
    }
}

impl Pack for LazyMap {
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(&self.map);
        Ok(())
    }
}

impl Unpack for LazyMap {
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let start = reader.position();
        for _ in 0..reader.read_map_len()? {
            reader.read_str()?;
            reader.skip_value()?;
        }
        Ok(LazyMap { map: reader.since(start) })
    }
}

/// Shows only the names of the fields, because the values may be large or secret.
impl fmt::Debug for LazyMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LazyMap ")?;
        f.debug_set().entries(self.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytestring::ByteString;

    use super::*;
    use crate::codec::{Codec, CodecErrorKind, Msgpack, Seconds};
    use crate::time::Timestamp;

    fn decode(map: impl Into<Bytes>) -> Result<LazyMap, CodecErrorKind> {
        LazyMap::try_from(map.into()).map_err(|e| e.kind())
    }

    #[test]
    fn decodes_values_on_access() {
        let map = decode(&b"\x83\xa3one\xcd\x01\x8f\xa3two\xa6foobar\xa4none\xc0"[..]).unwrap();
        assert_eq!(map.len(), 3);
        assert!(!map.is_empty());
        assert_eq!(map.get("one"), Ok(Some(399_u32)));
        let two: ByteString = map.get("two").unwrap().unwrap();
        assert_eq!(two, "foobar");
        assert_eq!(two.as_ptr(), map.as_bytes()[13..].as_ptr());
        assert_eq!(map.get::<u8>("three"), Ok(None));
        assert_eq!(map.get::<Option<u8>>("none"), Ok(Some(None)));
        assert_eq!(map.get::<u8>("one").unwrap_err().kind(), CodecErrorKind::Value);
        assert!(map.contains("none") && !map.contains("on"));
        assert_eq!(map.keys().collect::<Vec<_>>(), ["one", "two", "none"]);
        assert_eq!(format!("{map:?}"), r#"LazyMap {"one", "two", "none"}"#);
    }

    #[test]
    fn keeps_the_bytes_of_the_entry() {
        // The entry does not use the shortest encodings. They must survive the round trip.
        let entry = Bytes::from_static(b"\x92\xde\x00\x01\xa1a\xcd\x00\x01\xceW\xafi\xe2");
        let codec = Msgpack::<Seconds>::new();
        let (map, meta): (LazyMap, _) = codec.decode(Slice::from(&entry)).unwrap();
        assert_eq!(map.as_bytes(), &entry[1..9]);
        assert_eq!(map.get("a"), Ok(Some(1)));
        let mut out = Vec::new();
        codec.encode(&map, meta.created.unwrap(), &mut out).unwrap();
        assert_eq!(out, entry);
        assert_eq!(meta.created, Some(Timestamp::from_secs(1_471_113_698)));
    }

    #[test]
    fn maps_nest() {
        let inner = LazyMap::of(&BTreeMap::from([("k", 1_u8)])).unwrap();
        let outer = LazyMap::of(&BTreeMap::from([("inner", inner.clone())])).unwrap();
        assert_eq!(outer.get("inner"), Ok(Some(inner)));
        assert!(decode(&b"\x80"[..]).unwrap().is_empty());
    }

    #[test]
    fn rejects_damaged_maps_on_construction() {
        for (bytes, kind) in [
            (&b""[..], CodecErrorKind::Length),
            (b"\x81", CodecErrorKind::Length),
            (b"\x81\xa1a", CodecErrorKind::Length),
            (b"\x81\xa1a\x92\x01", CodecErrorKind::Length),
            (b"\x80\x80", CodecErrorKind::Length),
            (b"\xdf\xff\xff\xff\xff\xa1a\x01", CodecErrorKind::Length),
            (b"\x90", CodecErrorKind::Type),
            (b"\x81\x01\x01", CodecErrorKind::Type),
            (b"\x81\xa1a\xc1", CodecErrorKind::Type),
            (b"\x81\xa1\xff\x01", CodecErrorKind::Value),
        ] {
            assert_eq!(decode(bytes), Err(kind), "{bytes:?}");
        }
        assert_eq!(
            decode([&b"\x81\xa1a"[..], &vec![0x91; if cfg!(miri) { 1 << 10 } else { 1 << 20 }]].concat()),
            Err(CodecErrorKind::Length)
        );
        assert_eq!(LazyMap::of(&1).unwrap_err().kind(), CodecErrorKind::Type);
    }
}
