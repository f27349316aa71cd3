//! The format `Msgpack`: values as MessagePack, with the same bytes as Python's `msgpack` package.

mod entry;
mod reader;
mod structs;
mod values;

use std::marker::PhantomData;

#[cfg(feature = "serde")]
pub(super) use self::entry::{close_entry, open_entry, write_entry};
pub(super) use self::reader::Number;
pub use self::reader::{Kind, Reader};
pub use self::structs::{__field, __key};
use super::envelope::{DEFAULT_VERSION, Envelope, Seconds, Versioned};
use super::{Codec, CodecError, CodecErrorKind, Meta};
use crate::slice::Slice;
use crate::time::Timestamp;

/// The default codec, which stores values as [MessagePack](https://msgpack.org).
///
/// It encodes types that implement [`Pack`] and decodes types that implement [`Unpack`]: std types,
/// tuples, structs declared with [`msgpack!`](crate::msgpack), and your own implementations.
/// Integers and lengths have their shortest encoding.
///
/// # Cost
///
/// Encoding allocates only to grow `out`. Decoding allocates only what the value itself owns.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::codec::Slice;
/// use dogpile::Timestamp;
/// use dogpile::codec::{Codec, CodecErrorKind, Full, Msgpack};
///
/// let codec = Msgpack::<Full>::new().version(3);
/// let mut entry = Vec::new();
/// codec.encode(&(15, "Ann".to_string()), Timestamp::from_micros(1_471_113_698_761_270), &mut entry)?;
/// let entry = Bytes::from(entry);
///
/// let (value, meta): ((u32, String), _) = codec.decode(Slice::from(&entry))?;
/// assert_eq!(value, (15, "Ann".to_string()));
/// assert_eq!(meta.version, Some(3));
///
/// let newer: Result<((u32, String), _), _> = codec.version(4).decode(Slice::from(&entry));
/// assert_eq!(newer.unwrap_err().kind(), CodecErrorKind::Version);
/// # Ok::<(), dogpile::codec::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Msgpack<E: Envelope = Seconds> {
    version: u64,
    envelope: PhantomData<E>,
}

impl<E: Envelope> Msgpack<E> {
    /// Creates the codec with the default version, 2, if its envelope stores a version.
    #[must_use]
    pub const fn new() -> Self {
        Msgpack { version: DEFAULT_VERSION, envelope: PhantomData }
    }
}

impl<E: Versioned> Msgpack<E> {
    /// Sets the version of the entries that this codec writes and accepts.
    ///
    /// Entries of another version are misses, with the error kind
    /// [`Version`](CodecErrorKind::Version).
    #[must_use]
    pub const fn version(mut self, version: u64) -> Self {
        self.version = version;
        self
    }
}

impl<E: Envelope> Default for Msgpack<E> {
    fn default() -> Self {
        Msgpack::new()
    }
}

impl<V: Pack + Unpack, E: Envelope> Codec<V> for Msgpack<E> {
    #[inline]
    fn encode(&self, value: &V, created: Timestamp, out: &mut Vec<u8>) -> Result<(), CodecError> {
        E::write_head(self.version, created, out);
        entry::write_entry(E::SHAPE, self.version, created, out, |out| value.pack(out))
    }

    // Always inlined, so that the value and its creation time stay in registers until the caller
    // checks their freshness.
    #[inline(always)]
    fn decode(&self, entry: Slice<'_>) -> Result<(V, Meta), CodecError> {
        let (head, entry) = E::read_head(self.version, entry)?;
        let mut reader = entry::open_entry(E::SHAPE, entry)?;
        let payload = V::unpack(&mut reader);
        let (value, meta) = entry::close_entry(E::SHAPE, self.version, entry, &mut reader, payload)?;
        Ok((value, head.unwrap_or(meta)))
    }
}

/// A value that can be encoded as msgpack.
///
/// The macro [`msgpack!`](crate::msgpack) implements this trait for structs. An implementation by
/// hand:
///
/// ```
/// use dogpile::codec::{CodecError, Pack, Reader, Unpack};
///
/// struct Meters(f64);
///
/// impl Pack for Meters {
///     fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
///         self.0.pack(out)
///     }
/// }
///
/// impl Unpack for Meters {
///     fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
///         Ok(Meters(reader.read_f64()?))
///     }
/// }
/// ```
pub trait Pack {
    /// Appends the value to `out`.
    ///
    /// Implementations must append exactly one msgpack value, because the enclosing entry relies on
    /// that.
    ///
    /// # Errors
    ///
    /// Returns an error if msgpack cannot represent the value, such as a string of 4 GiB.
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Appends a slice of values of this type.
    ///
    /// The default writes an array. A type can override it; `u8` writes binary data.
    ///
    /// # Errors
    ///
    /// Returns an error if msgpack cannot represent one of the values, or if the slice has more
    /// than `u32::MAX` items.
    #[inline]
    fn pack_slice(items: &[Self], out: &mut Vec<u8>) -> Result<(), CodecError>
    where
        Self: Sized,
    {
        pack_array_header(items.len(), out)?;
        items.iter().try_for_each(|item| item.pack(out))
    }
}

/// A value that can be decoded from msgpack.
///
/// The macro [`msgpack!`](crate::msgpack) implements this trait for structs. An implementation by
/// hand:
///
/// ```
/// use dogpile::codec::{CodecError, Reader, Unpack};
///
/// struct Meters(f64);
///
/// impl Unpack for Meters {
///     fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
///         Ok(Meters(reader.read_f64()?))
///     }
/// }
/// ```
pub trait Unpack: Sized {
    /// Reads one value.
    ///
    /// Implementations must accept arbitrary bytes without panicking.
    ///
    /// # Errors
    ///
    /// Returns an error if the next bytes are not a value of this type.
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError>;

    /// Reads a sequence of values of this type.
    ///
    /// The default reads an array. A type can override it; `u8` also reads binary data.
    ///
    /// # Errors
    ///
    /// Returns an error if the next value is not a sequence, or if one of its items is not a value
    /// of this type.
    #[inline]
    fn unpack_vec(reader: &mut Reader<'_>) -> Result<Vec<Self>, CodecError> {
        values::read_items(reader, Vec::with_capacity, Vec::push)
    }

    /// Reads a sequence of exactly `N` values of this type.
    ///
    /// # Errors
    ///
    /// Returns an error if the next value is not a sequence of `N` items, or if one of them is not
    /// a value of this type.
    #[inline]
    fn unpack_array<const N: usize>(reader: &mut Reader<'_>) -> Result<[Self; N], CodecError> {
        values::read_array(reader)
    }

    /// Returns the value of a struct field that the encoded map does not contain.
    ///
    /// The default is `None`, which makes decoding the struct fail. For an `Option` the missing
    /// field decodes to `None`, so you can add an optional field to a struct while old entries are
    /// still cached.
    #[inline]
    fn missing() -> Option<Self> {
        None
    }
}

// The functions below handle the short encodings first: these are the most frequent ones, and the
// compiler does not optimize them well through rmp's `Marker`.

/// Appends the header of an array. The caller appends its `len` items afterwards.
///
/// # Errors
///
/// Returns an error if there are more than `u32::MAX` items.
///
/// ```
/// use dogpile::codec::{Pack, pack_array_header};
///
/// let mut out = Vec::new();
/// pack_array_header(2, &mut out)?;
/// 1_u8.pack(&mut out)?;
/// 2_u8.pack(&mut out)?;
/// assert_eq!(out, b"\x92\x01\x02");
/// # Ok::<(), dogpile::codec::CodecError>(())
/// ```
#[inline]
pub fn pack_array_header(len: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
    match u8::try_from(len) {
        Ok(len @ 0..16) => out.push(0x90 | len),
        _ => convert_result(rmp::encode::write_array_len(out, length(len)?))?,
    }
    Ok(())
}

/// Appends the header of a map. The caller appends its `len` pairs of key and value afterwards.
///
/// # Errors
///
/// Returns an error if there are more than `u32::MAX` keys.
///
/// ```
/// use dogpile::codec::{Pack, pack_map_header, pack_str};
///
/// let mut out = Vec::new();
/// pack_map_header(1, &mut out)?;
/// pack_str("id", &mut out)?;
/// 15_u8.pack(&mut out)?;
/// assert_eq!(out, b"\x81\xa2id\x0f");
/// # Ok::<(), dogpile::codec::CodecError>(())
/// ```
#[inline]
pub fn pack_map_header(len: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
    match u8::try_from(len) {
        Ok(len @ 0..16) => out.push(0x80 | len),
        _ => convert_result(rmp::encode::write_map_len(out, length(len)?))?,
    }
    Ok(())
}

/// Appends a string.
///
/// # Errors
///
/// Returns an error if the string is longer than `u32::MAX` bytes.
///
/// ```
/// let mut out = Vec::new();
/// dogpile::codec::pack_str("Ann", &mut out)?;
/// assert_eq!(out, b"\xa3Ann");
/// # Ok::<(), dogpile::codec::CodecError>(())
/// ```
#[inline]
pub fn pack_str(string: &str, out: &mut Vec<u8>) -> Result<(), CodecError> {
    match u8::try_from(string.len()) {
        Ok(len @ 0..32) => out.push(0xa0 | len),
        _ => convert_result(rmp::encode::write_str_len(out, length(string.len())?))?,
    }
    out.extend_from_slice(string.as_bytes());
    Ok(())
}

/// Appends binary data.
///
/// # Errors
///
/// Returns an error if the data is longer than `u32::MAX` bytes.
///
/// ```
/// let mut out = Vec::new();
/// dogpile::codec::pack_bin(&[0, 255], &mut out)?;
/// assert_eq!(out, b"\xc4\x02\x00\xff");
/// # Ok::<(), dogpile::codec::CodecError>(())
/// ```
#[inline]
pub fn pack_bin(data: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
    convert_result(rmp::encode::write_bin_len(out, length(data.len())?))?;
    out.extend_from_slice(data);
    Ok(())
}

/// Converts a length to the largest type that msgpack has for lengths.
#[inline]
fn length(len: usize) -> Result<u32, CodecError> {
    u32::try_from(len).map_err(|_| {
        CodecError::new(
            CodecErrorKind::Unsupported,
            "the value is too long for msgpack, which supports lengths of up to 4294967295",
        )
    })
}

/// Converts the result of rmp's writers.
///
/// Writing to a `Vec` does not fail, so the compiler removes this code.
#[inline]
fn convert_result<T, E>(result: Result<T, E>) -> Result<(), CodecError> {
    match result {
        Ok(_) => Ok(()),
        Err(_) => Err(CodecError::new(CodecErrorKind::Unsupported, "the value cannot be encoded as msgpack")),
    }
}
