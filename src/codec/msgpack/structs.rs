//! The macro `msgpack!`: structs as maps of their fields, or as arrays.

use super::Unpack;
use crate::codec::{CodecError, CodecErrorKind};

/// Implements [`Pack`](crate::codec::Pack) and [`Unpack`](crate::codec::Unpack) for structs, by naming their fields.
///
/// In braces a struct is a map, whose keys are the fields' names unless another is given. It is written in the order
/// named here, and read in any order; unknown keys are skipped, and of a key that comes twice the last counts. A field
/// that does not come is an error, an `Option` is `None`.
///
/// In brackets a struct is an array of exactly these fields. It is smaller, and no field can be added to it later.
///
/// Where you would leave out a field, name all others: a struct can only be read whole. Structs with type parameters
/// need implementations by hand.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::Slice;
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

/// A field's value, or what stands for it when the map did not have it.
#[doc(hidden)]
#[inline]
pub fn __field<T: Unpack>(found: Option<T>, name: &'static str) -> Result<T, CodecError> {
    found.or_else(T::missing).ok_or_else(|| missing(name))
}

/// The key of a field: its name, without the `r#` of a raw identifier.
#[doc(hidden)]
#[must_use]
pub const fn __key(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}

#[cold]
fn missing(name: &'static str) -> CodecError {
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

    // The names of two fields are those of the macro's own variables.
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
        Msgpack::<Bare>::new().decode(crate::Slice::from(&entry.into())).map(|(value, _)| value)
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
    fn maps_are_read_in_any_order() {
        let entry = &b"\x85\xa8children\x90\xa5other\x81\xc0\x90\xa4type\xa1a\xa2id\x01\xa2id\x02"[..];
        let value = Profile { id: 2, r#type: "a".into(), ..Profile::default() };
        assert_eq!(decode(entry), Ok(value));
        // The lazy view takes the last of two as well.
        assert_eq!(decode::<LazyMap>(entry).unwrap().get("id"), Ok(Some(2)));
    }

    #[test]
    fn missing_fields_are_named() {
        let error = decode::<Profile>(&b"\x81\xa2id\x01"[..]).unwrap_err();
        assert_eq!(error.kind(), CodecErrorKind::Value);
        assert_eq!(error.to_string(), "the entry has no field Profile.r#type");
        assert_eq!(decode::<Profile>(&b"\x81\x01\x02"[..]).unwrap_err().kind(), CodecErrorKind::Type);
        for (entry, kind) in [(&b"\x91\x01"[..], CodecErrorKind::Value), (b"\x80", CodecErrorKind::Type)] {
            assert_eq!(decode::<Point>(entry).unwrap_err().kind(), kind);
        }
    }

    #[test]
    fn hostile_depth_of_a_recursive_struct_is_an_error() {
        let entry = b"\x81\xa8children\x91".repeat(100_000);
        assert_eq!(decode::<Profile>(entry).unwrap_err().kind(), CodecErrorKind::Value);
    }
}
