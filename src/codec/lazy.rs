//! `LazyMap`: a msgpack map whose values are decoded when they are asked for.

use std::fmt;

use bytes::Bytes;

use super::{CodecError, Pack, Reader, Unpack};
use crate::slice::Slice;

/// A map with text keys, still encoded: it shares the entry's memory and decodes a value when it is asked for.
///
/// For large entries of which few fields are read. Decoding one looks once over the whole map, so that damaged bytes
/// are a miss and not a surprise later, and allocates nothing; [`get`](LazyMap::get) looks over it again and decodes
/// one value. Encoding copies the bytes as they are. Two are equal when their bytes are.
///
/// Where a key comes twice the last counts, as it does for structs and maps.
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
/// # Ok::<(), dogpile::codec::CodecError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct LazyMap {
    /// One msgpack map, whole, with text keys.
    map: Bytes,
}

impl LazyMap {
    /// The map as which `value` is written: a struct of [`msgpack!`](crate::msgpack), a `BTreeMap`. Allocates its
    /// bytes.
    ///
    /// # Errors
    /// When `value` cannot be written, or not as a map with text keys.
    pub fn of<T: Pack + ?Sized>(value: &T) -> Result<Self, CodecError> {
        let mut map = Vec::new();
        value.pack(&mut map)?;
        Bytes::from(map).try_into()
    }

    /// The value of a field, `None` if there is no such field. Allocates what the value owns.
    ///
    /// # Errors
    /// When the field holds something else than a `T`.
    pub fn get<T: Unpack>(&self, name: &str) -> Result<Option<T>, CodecError> {
        self.find(name).map(|mut value| T::unpack(&mut value)).transpose()
    }

    /// Whether there is such a field.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The names of the fields, in the order written.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.fields().filter_map(|(name, _)| std::str::from_utf8(name).ok())
    }

    /// How many fields there are.
    #[must_use]
    pub fn len(&self) -> usize {
        Reader::new(Slice::from(&self.map)).read_map_len().unwrap_or(0)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The map as msgpack.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.map
    }

    /// A reader at the value of a field.
    fn find(&self, name: &str) -> Option<Reader<'_>> {
        self.fields().filter(|(found, _)| *found == name.as_bytes()).last().map(|(_, value)| value)
    }

    /// The fields, each with a reader at its value. The map was checked when it was made, so reading it does not fail.
    fn fields(&self) -> impl Iterator<Item = (&[u8], Reader<'_>)> {
        let mut reader = Reader::new(Slice::from(&self.map));
        let left = reader.read_map_len().unwrap_or(0);
        (0..left).map_while(move |_| {
            let name = reader.read_key().ok()?;
            let value = reader.clone();
            reader.skip_value().ok()?;
            Some((name, value))
        })
    }
}

/// The bytes of a map, which are kept as they are.
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

/// The names of the fields; the values may be large, or secret.
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

    fn view(map: impl Into<Bytes>) -> Result<LazyMap, CodecErrorKind> {
        LazyMap::try_from(map.into()).map_err(|e| e.kind())
    }

    #[test]
    fn values_are_decoded_when_asked_for() {
        let map = view(&b"\x83\xa3one\xcd\x01\x8f\xa3two\xa6foobar\xa4none\xc0"[..]).unwrap();
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
    fn an_entry_keeps_its_bytes() {
        // Not the shortest forms: they stay.
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
        assert!(view(&b"\x80"[..]).unwrap().is_empty());
    }

    #[test]
    fn damage_is_seen_at_once() {
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
            assert_eq!(view(bytes), Err(kind), "{bytes:?}");
        }
        assert_eq!(
            view([&b"\x81\xa1a"[..], &vec![0x91; if cfg!(miri) { 1 << 10 } else { 1 << 20 }]].concat()),
            Err(CodecErrorKind::Length)
        );
        assert_eq!(LazyMap::of(&1).unwrap_err().kind(), CodecErrorKind::Type);
    }
}
