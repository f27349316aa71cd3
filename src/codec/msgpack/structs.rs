//! The macro `msgpack!`, which encodes structs as maps or arrays of their fields.

use super::Unpack;
use crate::codec::{CodecError, CodecErrorKind};

/// Implements [`Pack`](crate::codec::Pack) and [`Unpack`](crate::codec::Unpack) for structs.
///
/// List all fields of each struct. The brackets select the encoding:
///
/// - `Name { field, … }` encodes the struct as a map. The key of a field is its name, or the string
///   after a colon. Fields are written in the listed order and read in any order. Unknown keys are
///   skipped. If a key occurs more than once, the last occurrence wins. A missing field is an
///   error, except that an `Option` becomes `None`.
/// - `Name [field, …]` encodes the struct as an array of exactly these fields. The encoding is
///   smaller, but you cannot add a field later.
///
/// The macro does not support structs with type parameters or with fields that are not encoded.
/// Implement the traits by hand for those.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::codec::Slice;
/// use dogpile::codec::{Bare, Codec, Msgpack};
/// use dogpile::Timestamp;
///
/// #[derive(Debug, PartialEq)]
/// struct Profile {
///     id: u32,
///     name: String,
///     kind: Option<String>,
///     seen: Point,
/// }
///
/// #[derive(Debug, PartialEq)]
/// struct Point {
///     x: f32,
///     y: f32,
/// }
///
/// dogpile::msgpack! {
///     Profile { id, name, kind: "type", seen }
///     Point [x, y]
/// }
///
/// let ann = Profile { id: 15, name: "Ann".into(), kind: None, seen: Point { x: 1.0, y: 2.0 } };
/// let codec = Msgpack::<Bare>::new();
/// let mut entry = Vec::new();
/// codec.encode(&ann, Timestamp::EPOCH, &mut entry)?;
/// assert!(entry.starts_with(b"\x84\xa2id\x0f\xa4name\xa3Ann\xa4type\xc0\xa4seen\x92"));
/// let (read, _): (Profile, _) = codec.decode(Slice::from(&Bytes::from(entry)))?;
/// assert_eq!(read, ann);
/// # Ok::<(), dogpile::codec::CodecError>(())
/// ```
#[macro_export]
macro_rules! msgpack {
    (@key $field:ident) => {
        const { $crate::codec::__key(::core::stringify!($field)) }
    };
    (@key $field:ident $key:literal) => {
        $key
    };

    (@impl $name:ident { $($field:ident $(: $key:literal)?),* $(,)? }) => {
        impl $crate::codec::Pack for $name {
            fn pack(&self, out: &mut ::std::vec::Vec<u8>) -> ::core::result::Result<(), $crate::codec::CodecError> {
                const KEYS: &[&str] = &[$($crate::msgpack!(@key $field $($key)?)),*];
                $crate::codec::pack_map_header(KEYS.len(), out)?;
                $(
                    $crate::codec::pack_str($crate::msgpack!(@key $field $($key)?), out)?;
                    $crate::codec::Pack::pack(&self.$field, out)?;
                )*
                ::core::result::Result::Ok(())
            }
        }

        impl $crate::codec::Unpack for $name {
            fn unpack(
                reader: &mut $crate::codec::Reader<'_>,
            ) -> ::core::result::Result<Self, $crate::codec::CodecError> {
                $(let mut $field = ::core::option::Option::None;)*
                for _ in 0..reader.read_map_len()? {
                    let key = reader.read_key()?;
                    $(
                        if key == $crate::msgpack!(@key $field $($key)?).as_bytes() {
                            $field = ::core::option::Option::Some($crate::codec::Unpack::unpack(reader)?);
                            continue;
                        }
                    )*
                    let _ = key;
                    reader.skip_value()?;
                }
                ::core::result::Result::Ok(Self {
                    $($field: $crate::codec::__field($field, ::core::concat!(
                        ::core::stringify!($name), ".", ::core::stringify!($field)
                    ))?,)*
                })
            }
        }
    };

    (@impl $name:ident [ $($field:ident),* $(,)? ]) => {
        impl $crate::codec::Pack for $name {
            fn pack(&self, out: &mut ::std::vec::Vec<u8>) -> ::core::result::Result<(), $crate::codec::CodecError> {
                const FIELDS: &[&str] = &[$(::core::stringify!($field)),*];
                $crate::codec::pack_array_header(FIELDS.len(), out)?;
                $($crate::codec::Pack::pack(&self.$field, out)?;)*
                ::core::result::Result::Ok(())
            }
        }

        impl $crate::codec::Unpack for $name {
            fn unpack(
                reader: &mut $crate::codec::Reader<'_>,
            ) -> ::core::result::Result<Self, $crate::codec::CodecError> {
                const FIELDS: &[&str] = &[$(::core::stringify!($field)),*];
                reader.read_array_of(FIELDS.len())?;
                ::core::result::Result::Ok(Self { $($field: $crate::codec::Unpack::unpack(reader)?,)* })
            }
        }
    };

    ($($name:ident $fields:tt)*) => {
        $($crate::msgpack!(@impl $name $fields);)*
    };
}

/// Returns the value of a field, or the default of a missing field if its type has one.
#[doc(hidden)]
#[inline]
pub fn __field<T: Unpack>(found: Option<T>, name: &'static str) -> Result<T, CodecError> {
    found.or_else(T::missing).ok_or_else(|| missing_field(name))
}

/// Returns the key of a field: its name without the `r#` of a raw identifier.
#[doc(hidden)]
#[must_use]
pub const fn __key(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}

#[cold]
fn missing_field(name: &'static str) -> CodecError {
    CodecError::new(CodecErrorKind::Value, format!("the entry has no field {name}"))
}

#[cfg(test)]
mod tests {
    use crate::codec::{Bare, Codec, CodecError, CodecErrorKind, LazyMap, Msgpack, Pack, Unpack};
    use crate::time::Timestamp;
    use bytes::Bytes;

    #[derive(Debug, PartialEq, Default)]
    struct Profile {
        id: u64,
        r#type: String,
        reader: Option<u8>,
        key: Vec<Profile>,
    }

    #[derive(Debug, PartialEq)]
    struct Point {
        x: i8,
        y: i8,
    }

    #[derive(Debug, PartialEq)]
    struct Unit;

    #[derive(Debug, PartialEq)]
    struct Nothing {}

    // Two fields have the names of variables inside the macro, which must not conflict.
    crate::msgpack! {
        Profile { id, r#type, reader, key: "children" }
        Point [x, y,]
        Unit {}
        Nothing []
    }

    fn encode<V: Pack + Unpack>(value: &V) -> Vec<u8> {
        let mut out = Vec::new();
        Msgpack::<Bare>::new().encode(value, Timestamp::EPOCH, &mut out).unwrap();
        out
    }

    fn decode<V: Pack + Unpack>(entry: impl Into<Bytes>) -> Result<V, CodecError> {
        Msgpack::<Bare>::new().decode(crate::codec::Slice::from(&entry.into())).map(|(value, _)| value)
    }

    #[test]
    fn structs_round_trip() {
        let child = Profile { id: 1, r#type: "b".into(), reader: Some(3), key: vec![] };
        let value = Profile { id: 300, r#type: "a".into(), reader: None, key: vec![child] };
        let entry = encode(&value);
        assert!(entry.starts_with(b"\x84\xa2id\xcd\x01\x2c\xa4type\xa1a\xa6reader\xc0\xa8children\x91\x84"));
        assert_eq!(decode(entry), Ok(value));
        assert_eq!(encode(&Point { x: 1, y: -1 }), b"\x92\x01\xff");
        assert_eq!(decode(&b"\x92\x01\xff"[..]), Ok(Point { x: 1, y: -1 }));
        assert_eq!(encode(&Unit), b"\x80");
        assert_eq!(decode(&b"\x81\xa1a\x05"[..]), Ok(Unit));
        assert_eq!(encode(&Nothing {}), b"\x90");
        assert_eq!(decode(&b"\x90"[..]), Ok(Nothing {}));
    }

    #[test]
    fn reads_maps_with_keys_in_any_order() {
        let entry = &b"\x85\xa8children\x90\xa5other\x81\xc0\x90\xa4type\xa1a\xa2id\x01\xa2id\x02"[..];
        let value = Profile { id: 2, r#type: "a".into(), ..Profile::default() };
        assert_eq!(decode(entry), Ok(value));
        // `LazyMap` also returns the last occurrence of a key.
        assert_eq!(decode::<LazyMap>(entry).unwrap().get("id"), Ok(Some(2)));
    }

    #[test]
    fn names_the_missing_field() {
        let error = decode::<Profile>(&b"\x81\xa2id\x01"[..]).unwrap_err();
        assert_eq!(error.kind(), CodecErrorKind::Value);
        assert_eq!(error.to_string(), "the entry has no field Profile.r#type");
        assert_eq!(decode::<Profile>(&b"\x81\x01\x02"[..]).unwrap_err().kind(), CodecErrorKind::Type);
        for (entry, kind) in [(&b"\x91\x01"[..], CodecErrorKind::Value), (b"\x80", CodecErrorKind::Type)] {
            assert_eq!(decode::<Point>(entry).unwrap_err().kind(), kind);
        }
    }

    #[test]
    fn rejects_deeply_nested_recursive_structs() {
        let entry = b"\x81\xa8children\x91".repeat(100_000);
        assert_eq!(decode::<Profile>(entry).unwrap_err().kind(), CodecErrorKind::Value);
    }
}
