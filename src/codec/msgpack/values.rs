//! Msgpack encodings of the types of std, `bytes` and `bytestring`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hash};

use bytes::Bytes;
use bytestring::ByteString;

use super::reader::not_utf8;
use super::{Kind, Pack, Reader, Unpack, convert_result, pack_array_header, pack_bin, pack_map_header, pack_str};
use crate::codec::{CodecError, CodecErrorKind};

macro_rules! integers {
    ($write:ident, $wide:ty: $($int:ty)*) => {$(
        impl Pack for $int {
            #[inline]
            fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
                convert_result(rmp::encode::$write(out, *self as $wide))
            }
        }

        impl Unpack for $int {
            #[inline]
            fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
                reader.read_int()
            }
        }
    )*};
}

integers!(write_uint, u64: u16 u32 u64 usize);
integers!(write_sint, i64: i8 i16 i32 i64 isize);

/// A single `u8` is an integer. Slices, arrays and `Vec`s of `u8` are binary data.
impl Pack for u8 {
    #[inline]
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        convert_result(rmp::encode::write_uint(out, u64::from(*self)))
    }

    #[inline]
    fn pack_slice(items: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
        pack_bin(items, out)
    }
}

/// Sequences of `u8` are read from binary data or from arrays of integers.
impl Unpack for u8 {
    #[inline]
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        reader.read_int()
    }

    #[inline]
    fn unpack_vec(reader: &mut Reader<'_>) -> Result<Vec<u8>, CodecError> {
        match reader.peek()? {
            Kind::Array => read_items(reader, Vec::with_capacity, Vec::push),
            _ => reader.read_bin().map(<[u8]>::to_vec),
        }
    }

    #[inline]
    fn unpack_array<const N: usize>(reader: &mut Reader<'_>) -> Result<[u8; N], CodecError> {
        match reader.peek()? {
            Kind::Array => read_array(reader),
            _ => reader.read_bin()?.try_into().map_err(|_| {
                CodecError::new(
                    CodecErrorKind::Value,
                    format!("expected {N} bytes of binary data, found another length"),
                )
            }),
        }
    }
}

impl Pack for f32 {
    #[inline]
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        convert_result(rmp::encode::write_f32(out, *self))
    }
}

/// 64-bit floats are narrowed, and integers are rounded.
impl Unpack for f32 {
    #[inline]
    #[allow(clippy::cast_possible_truncation)]
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(reader.read_f64()? as f32)
    }
}

impl Pack for f64 {
    #[inline]
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        convert_result(rmp::encode::write_f64(out, *self))
    }
}

/// 32-bit floats are widened, and integers are rounded.
impl Unpack for f64 {
    #[inline]
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        reader.read_f64()
    }
}

impl Pack for bool {
    #[inline]
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        convert_result(rmp::encode::write_bool(out, *self))
    }
}

impl Unpack for bool {
    #[inline]
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        reader.read_bool()
    }
}

/// Encoded as nil.
impl Pack for () {
    #[inline]
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        convert_result(rmp::encode::write_nil(out))
    }
}

impl Unpack for () {
    #[inline]
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        reader.read_nil()
    }
}

/// Encoded as a string of one character.
impl Pack for char {
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        pack_str(self.encode_utf8(&mut [0; 4]), out)
    }
}

impl Unpack for char {
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let mut chars = reader.read_str()?.chars();
        match (chars.next(), chars.next()) {
            (Some(char), None) => Ok(char),
            _ => Err(CodecError::new(CodecErrorKind::Value, "expected a string of one character")),
        }
    }
}

impl Pack for str {
    #[inline]
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        pack_str(self, out)
    }
}

impl Pack for String {
    #[inline]
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        pack_str(self, out)
    }
}

impl Unpack for String {
    #[inline]
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        reader.read_str().map(str::to_owned)
    }
}

impl Unpack for Box<str> {
    #[inline]
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        reader.read_str().map(Into::into)
    }
}

/// Encoded as a string.
impl Pack for ByteString {
    #[inline]
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        pack_str(self, out)
    }
}

/// Shares the entry's memory.
impl Unpack for ByteString {
    #[inline]
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let string = reader.read_key()?;
        reader.share(string).try_into().map_err(|_| not_utf8())
    }
}

/// Encoded as binary data.
impl Pack for Bytes {
    #[inline]
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        pack_bin(self, out)
    }
}

/// Shares the entry's memory.
impl Unpack for Bytes {
    #[inline(always)]
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        reader.read_bytes()
    }
}

impl<T: Pack + ?Sized> Pack for &T {
    #[inline]
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        (**self).pack(out)
    }
}

impl<T: Pack + ?Sized> Pack for Box<T> {
    #[inline]
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        (**self).pack(out)
    }
}

impl<T: Unpack> Unpack for Box<T> {
    #[inline]
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        reader.nested(T::unpack).map(Box::new)
    }

    #[inline]
    fn missing() -> Option<Self> {
        T::missing().map(Box::new)
    }
}

/// Encodes `None` as nil.
///
/// A value that is itself encoded as nil becomes `None`: `Some(None)` and `Some(())` are read as
/// `None`.
impl<T: Pack> Pack for Option<T> {
    #[inline]
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        match self {
            Some(value) => value.pack(out),
            None => ().pack(out),
        }
    }
}

impl<T: Unpack> Unpack for Option<T> {
    #[inline]
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        if reader.try_nil() { Ok(None) } else { T::unpack(reader).map(Some) }
    }

    #[inline]
    fn missing() -> Option<Self> {
        Some(None)
    }
}

impl<T: Pack> Pack for [T] {
    #[inline]
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        T::pack_slice(self, out)
    }
}

impl<T: Pack, const N: usize> Pack for [T; N] {
    #[inline]
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        T::pack_slice(self, out)
    }
}

impl<T: Unpack, const N: usize> Unpack for [T; N] {
    #[inline]
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        T::unpack_array(reader)
    }
}

impl<T: Pack> Pack for Vec<T> {
    #[inline]
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        T::pack_slice(self, out)
    }
}

impl<T: Unpack> Unpack for Vec<T> {
    #[inline]
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        T::unpack_vec(reader)
    }
}

/// Encoded as an array, even for `u8`.
impl<T: Pack> Pack for VecDeque<T> {
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        pack_items(self, out)
    }
}

impl<T: Unpack> Unpack for VecDeque<T> {
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        read_items(reader, VecDeque::with_capacity, VecDeque::push_back)
    }
}

/// Encoded as an array.
impl<T: Pack> Pack for BTreeSet<T> {
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        pack_items(self, out)
    }
}

impl<T: Unpack + Ord> Unpack for BTreeSet<T> {
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        read_items(reader, |_| BTreeSet::new(), BTreeSet::insert)
    }
}

/// Encoded as an array.
impl<T: Pack, S> Pack for HashSet<T, S> {
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        pack_items(self, out)
    }
}

impl<T: Unpack + Hash + Eq, S: BuildHasher + Default> Unpack for HashSet<T, S> {
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let new = |capacity| HashSet::with_capacity_and_hasher(capacity, S::default());
        read_items(reader, new, HashSet::insert)
    }
}

impl<K: Pack, V: Pack> Pack for BTreeMap<K, V> {
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        pack_pairs(self, out)
    }
}

impl<K: Unpack + Ord, V: Unpack> Unpack for BTreeMap<K, V> {
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        read_pairs(reader, |_| BTreeMap::new(), BTreeMap::insert)
    }
}

impl<K: Pack, V: Pack, S> Pack for HashMap<K, V, S> {
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        pack_pairs(self, out)
    }
}

impl<K: Unpack + Hash + Eq, V: Unpack, S: BuildHasher + Default> Unpack for HashMap<K, V, S> {
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let new = |capacity| HashMap::with_capacity_and_hasher(capacity, S::default());
        read_pairs(reader, new, HashMap::insert)
    }
}

macro_rules! tuples {
    ($($len:literal: $($name:ident $index:tt)+;)*) => {$(
        impl<$($name: Pack),+> Pack for ($($name,)+) {
            #[inline]
            fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
                pack_array_header($len, out)?;
                $(self.$index.pack(out)?;)+
                Ok(())
            }
        }

        impl<$($name: Unpack),+> Unpack for ($($name,)+) {
            #[inline]
            fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
                reader.read_array_of($len)?;
                Ok(($($name::unpack(reader)?,)+))
            }
        }
    )*};
}

tuples! {
    1: A 0;
    2: A 0 B 1;
    3: A 0 B 1 C 2;
    4: A 0 B 1 C 2 D 3;
    5: A 0 B 1 C 2 D 3 E 4;
    6: A 0 B 1 C 2 D 3 E 4 F 5;
    7: A 0 B 1 C 2 D 3 E 4 F 5 G 6;
    8: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7;
    9: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8;
    10: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8 J 9;
    11: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8 J 9 K 10;
    12: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8 J 9 K 10 L 11;
}

/// Appends an array.
fn pack_items<'a, T: Pack + 'a>(
    items: impl IntoIterator<Item = &'a T, IntoIter: ExactSizeIterator>,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let mut items = items.into_iter();
    pack_array_header(items.len(), out)?;
    items.try_for_each(|item| item.pack(out))
}

/// Appends a map.
fn pack_pairs<'a, K: Pack + 'a, V: Pack + 'a>(
    pairs: impl IntoIterator<Item = (&'a K, &'a V), IntoIter: ExactSizeIterator>,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let mut pairs = pairs.into_iter();
    pack_map_header(pairs.len(), out)?;
    pairs.try_for_each(|(key, value)| {
        key.pack(out)?;
        value.pack(out)
    })
}

/// Reads an array into a collection.
#[inline]
pub(super) fn read_items<T: Unpack, C, R>(
    reader: &mut Reader<'_>,
    with_capacity: impl FnOnce(usize) -> C,
    add: impl Fn(&mut C, T) -> R,
) -> Result<C, CodecError> {
    reader.nested(|reader| {
        let len = reader.read_array_len()?;
        let mut items = with_capacity(initial_capacity::<T>(len));
        for _ in 0..len {
            add(&mut items, T::unpack(reader)?);
        }
        Ok(items)
    })
}

/// Reads a map into a collection.
///
/// `add` must let the last value of a repeated key win, as in Python.
#[inline]
fn read_pairs<K: Unpack, V: Unpack, C, R>(
    reader: &mut Reader<'_>,
    with_capacity: impl FnOnce(usize) -> C,
    add: impl Fn(&mut C, K, V) -> R,
) -> Result<C, CodecError> {
    reader.nested(|reader| {
        let len = reader.read_map_len()?;
        let mut pairs = with_capacity(initial_capacity::<(K, V)>(len));
        for _ in 0..len {
            add(&mut pairs, K::unpack(reader)?, V::unpack(reader)?);
        }
        Ok(pairs)
    })
}

/// Reads an array of exactly `N` items without an allocation.
#[inline]
pub(super) fn read_array<T: Unpack, const N: usize>(reader: &mut Reader<'_>) -> Result<[T; N], CodecError> {
    reader.read_array_of(N)?;
    let mut items = [const { None }; N];
    for item in &mut items {
        *item = Some(T::unpack(reader)?);
    }
    Ok(items.map(|item| item.expect("every item was just read")))
}

/// Returns the initial capacity of a collection of `len` items: at most 64 KiB.
///
/// An entry has at least one byte for each declared item, but an item may take more memory than
/// that. Beyond 64 KiB the collection grows as items are read.
#[inline]
fn initial_capacity<T>(len: usize) -> usize {
    len.min((1 << 16) / size_of::<T>().max(1))
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;
    use crate::slice::Slice;

    /// A length that needs more than two bytes. Sixteen times this nesting depth would overflow any
    /// stack. Under Miri, which is a thousand times slower, it is smaller.
    const MANY: usize = if cfg!(miri) { 1_000 } else { 70_000 };

    fn pack<T: Pack + ?Sized>(value: &T) -> Vec<u8> {
        let mut out = Vec::new();
        value.pack(&mut out).unwrap();
        out
    }

    fn unpack<T: Unpack>(bytes: impl Into<Bytes>) -> Result<T, CodecErrorKind> {
        let bytes = bytes.into();
        let mut reader = Reader::new(Slice::from(&bytes));
        let value = T::unpack(&mut reader).map_err(|e| e.kind())?;
        reader.finish().map_err(|e| e.kind())?;
        Ok(value)
    }

    /// Asserts that `value` is encoded as `bytes` and decoded from them.
    fn assert_round_trip<T: Pack + Unpack + PartialEq + Debug>(value: T, bytes: &'static [u8]) {
        assert_eq!(pack(&value), bytes, "{value:?}");
        assert_eq!(unpack::<T>(bytes), Ok(value));
    }

    #[test]
    fn writes_the_shortest_integers() {
        assert_round_trip(0_u8, b"\x00");
        assert_round_trip(127_u64, b"\x7f");
        assert_round_trip(128_i64, b"\xcc\x80");
        assert_round_trip(255_u8, b"\xcc\xff");
        assert_round_trip(256_u16, b"\xcd\x01\x00");
        assert_round_trip(65_536_usize, b"\xce\x00\x01\x00\x00");
        assert_round_trip(u64::MAX, b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff");
        assert_round_trip(i64::MAX, b"\xcf\x7f\xff\xff\xff\xff\xff\xff\xff");
        assert_round_trip(-32_i8, b"\xe0");
        assert_round_trip(-33_isize, b"\xd0\xdf");
        assert_round_trip(-129_i16, b"\xd1\xff\x7f");
        assert_round_trip(-32_769_i32, b"\xd2\xff\xff\x7f\xff");
        assert_round_trip(i64::MIN, b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00");
    }

    #[test]
    fn reads_integers_of_any_width_that_fit() {
        for bytes in [&b"\x05"[..], b"\xcc\x05", b"\xcd\x00\x05", b"\xd0\x05", b"\xd2\x00\x00\x00\x05"] {
            assert_eq!(unpack::<u8>(bytes), Ok(5));
            assert_eq!(unpack::<i64>(bytes), Ok(5));
        }
        assert_eq!(unpack::<i8>(&b"\xd3\xff\xff\xff\xff\xff\xff\xff\x80"[..]), Ok(-128));
        for (result, kind) in [
            (unpack::<u8>(&b"\xcd\x01\x00"[..]).map(u64::from), CodecErrorKind::Value),
            (unpack::<u8>(&b"\xff"[..]).map(u64::from), CodecErrorKind::Value),
            (unpack::<i8>(&b"\xcc\x80"[..]).map(|_| 0), CodecErrorKind::Value),
            (unpack::<i64>(&b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff"[..]).map(|_| 0), CodecErrorKind::Value),
            (unpack::<u64>(&b"\xca\x00\x00\x00\x00"[..]), CodecErrorKind::Type),
            (unpack::<u64>(&b"\xc3"[..]), CodecErrorKind::Type),
            (unpack::<u64>(&b"\xa11"[..]), CodecErrorKind::Type),
            (unpack::<u64>(&b"\xcd\x00"[..]), CodecErrorKind::Length),
        ] {
            assert_eq!(result, Err(kind));
        }
    }

    #[test]
    fn reads_floats_from_all_numbers() {
        assert_round_trip(1.5_f32, b"\xca\x3f\xc0\x00\x00");
        assert_round_trip(1.5_f64, b"\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00");
        for bytes in [&b"\x03"[..], b"\xca\x40\x40\x00\x00", b"\xcb\x40\x08\x00\x00\x00\x00\x00\x00", b"\xd0\x03"] {
            assert_eq!(unpack::<f32>(bytes), Ok(3.0));
            assert_eq!(unpack::<f64>(bytes), Ok(3.0));
        }
        assert_eq!(unpack::<f64>(&b"\xff"[..]), Ok(-1.0));
        assert_eq!(unpack::<f32>(pack(&1e300_f64)), Ok(f32::INFINITY));
        assert!(unpack::<f64>(pack(&f64::NAN)).unwrap().is_nan());
        assert_eq!(unpack::<f64>(&b"\xc0"[..]), Err(CodecErrorKind::Type));
    }

    #[test]
    fn scalars_round_trip() {
        assert_round_trip(true, b"\xc3");
        assert_round_trip(false, b"\xc2");
        assert_round_trip((), b"\xc0");
        assert_round_trip('é', b"\xa2\xc3\xa9");
        assert_round_trip(Some(1_u8), b"\x01");
        assert_round_trip(None::<u8>, b"\xc0");
        assert_round_trip(Box::new(1_u8), b"\x01");
        assert_round_trip(Box::<str>::from("a"), b"\xa1a");
        assert_eq!(pack("a"), b"\xa1a");
        assert_eq!(unpack::<char>(&b"\xa2ab"[..]), Err(CodecErrorKind::Value));
        assert_eq!(unpack::<char>(&b"\xa0"[..]), Err(CodecErrorKind::Value));
        assert_eq!(unpack::<Option<Option<u8>>>(pack(&Some(None::<u8>))), Ok(None));
        assert_eq!(unpack::<String>(&b"\xa1\xff"[..]), Err(CodecErrorKind::Value));
        assert_eq!(unpack::<ByteString>(&b"\xa1\xff"[..]), Err(CodecErrorKind::Value));
        assert_eq!(unpack::<String>(&b"\xc4\x01a"[..]), Err(CodecErrorKind::Type));
    }

    #[test]
    fn writes_u8_sequences_as_binary_data_and_reads_them_from_arrays() {
        assert_round_trip(vec![1_u8, 255], b"\xc4\x02\x01\xff");
        assert_round_trip([1_u8, 255], b"\xc4\x02\x01\xff");
        assert_round_trip(Bytes::from_static(b"ab"), b"\xc4\x02ab");
        assert_eq!(pack(&b"ab"[..]), b"\xc4\x02ab");
        assert_eq!(unpack::<Vec<u8>>(&b"\x92\x01\xcc\xff"[..]), Ok(vec![1, 255]));
        assert_eq!(unpack::<[u8; 2]>(&b"\x92\x01\xcc\xff"[..]), Ok([1, 255]));
        assert_eq!(unpack::<[u8; 3]>(&b"\xc4\x02\x01\xff"[..]), Err(CodecErrorKind::Value));
        assert_eq!(unpack::<Vec<u8>>(&b"\xa1a"[..]), Err(CodecErrorKind::Type));
        assert_eq!(unpack::<Bytes>(&b"\xa1a"[..]), Err(CodecErrorKind::Type));
        assert_eq!(pack(&vec![0_u8; 256])[..3], b"\xc5\x01\x00"[..]);
        assert_eq!(pack(&vec![0_u8; 65_536])[..5], b"\xc6\x00\x01\x00\x00"[..]);
    }

    #[test]
    fn collections_round_trip() {
        assert_round_trip(vec![1_u16, 2], b"\x92\x01\x02");
        assert_round_trip([1_u16, 2], b"\x92\x01\x02");
        assert_round_trip([String::new()], b"\x91\xa0");
        assert_round_trip(VecDeque::from([1_u8, 2]), b"\x92\x01\x02");
        assert_round_trip(BTreeSet::from([1_u8, 2]), b"\x92\x01\x02");
        assert_round_trip(HashSet::<u8>::from([1]), b"\x91\x01");
        assert_round_trip(BTreeMap::from([(1_u8, 'a'), (2, 'b')]), b"\x82\x01\xa1a\x02\xa1b");
        assert_round_trip(HashMap::<String, _>::from([("a".into(), None::<bool>)]), b"\x81\xa1a\xc0");
        assert_round_trip((1_u8,), b"\x91\x01");
        assert_round_trip(
            (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12),
            b"\x9c\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c",
        );
        assert_eq!(pack(&["a"; 16][..])[..3], b"\xdc\x00\x10"[..]);
        assert_eq!(pack(&(0..16_u8).map(|n| (n, n)).collect::<BTreeMap<_, _>>())[..3], b"\xde\x00\x10"[..]);
        assert_eq!(unpack::<BTreeMap<u8, u8>>(&b"\x82\x01\x02\x01\x03"[..]), Ok(BTreeMap::from([(1, 3)])));
        assert_eq!(unpack::<(u8, u8)>(&b"\x93\x01\x02\x03"[..]), Err(CodecErrorKind::Value));
        assert_eq!(unpack::<[u16; 2]>(&b"\x91\x01"[..]), Err(CodecErrorKind::Value));
    }

    #[test]
    fn rejects_hostile_lengths_without_allocating() {
        assert_eq!(unpack::<Vec<String>>(&b"\xdd\xff\xff\xff\xff\xa0"[..]), Err(CodecErrorKind::Length));
        assert_eq!(unpack::<HashMap<u8, u8>>(&b"\xdf\xff\xff\xff\xff\x01\x01"[..]), Err(CodecErrorKind::Length));
        assert_eq!(unpack::<String>(&b"\xdb\xff\xff\xff\xffa"[..]), Err(CodecErrorKind::Length));
        assert_eq!(unpack::<Vec<u8>>(&b"\xc6\xff\xff\xff\xffa"[..]), Err(CodecErrorKind::Length));
        assert!(initial_capacity::<[u64; 512]>(usize::MAX) * size_of::<[u64; 512]>() <= 1 << 16);
        assert_eq!(unpack::<Vec<()>>(pack(&vec![(); MANY])), Ok(vec![(); MANY]));
    }

    #[test]
    fn limits_the_recursion_depth() {
        #[derive(Debug, PartialEq)]
        struct List(Option<Box<List>>);

        impl Unpack for List {
            fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
                reader.read_array_of(1)?;
                Ok(List(Unpack::unpack(reader)?))
            }
        }

        let deep = |depth| [vec![0x91; depth], vec![0xc0]].concat();
        assert!(unpack::<List>(deep(129)).is_ok());
        assert_eq!(unpack::<List>(deep(130)), Err(CodecErrorKind::Value));
        assert_eq!(unpack::<List>(deep(16 * MANY)), Err(CodecErrorKind::Value));
    }
}
