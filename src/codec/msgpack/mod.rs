//! The format `Msgpack`: values as MessagePack, byte for byte as Python's `msgpack` writes them.

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

/// Values as [MessagePack](https://msgpack.org), each in its shortest form: the default codec.
///
/// Writes what [`Pack`] says and reads what [`Unpack`] says: std types, tuples, structs named in
/// [`msgpack!`](crate::msgpack), and your own implementations. Encoding allocates only room in `out`, decoding only
/// what the value itself owns.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::Slice;
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
    /// The codec with this envelope.
    #[must_use]
    pub const fn new() -> Self {
        Msgpack { version: DEFAULT_VERSION, envelope: PhantomData }
    }
}

impl<E: Versioned> Msgpack<E> {
    /// Writes and reads entries of this version only; those of others are misses.
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

    /// Always inline: value and time then go straight to where they are judged, not through memory.
    #[inline(always)]
    fn decode(&self, entry: Slice<'_>) -> Result<(V, Meta), CodecError> {
        let (head, entry) = E::read_head(self.version, entry)?;
        let mut reader = entry::open_entry(E::SHAPE, entry)?;
        let payload = V::unpack(&mut reader);
        let (value, meta) = entry::close_entry(E::SHAPE, self.version, entry, &mut reader, payload)?;
        Ok((value, head.unwrap_or(meta)))
    }
}

/// A value that can be written as msgpack.
///
/// [`msgpack!`](crate::msgpack) implements it for structs. By hand it is as short:
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
    /// Appends the value to `out`. Exactly one msgpack value: the entry around it relies on that.
    ///
    /// # Errors
    /// When msgpack has no way to write it, such as a text of 4 GiB.
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Appends a slice of such values: an array, unless the type knows better (`u8` writes binary).
    ///
    /// # Errors
    /// As [`pack`](Pack::pack).
    #[inline]
    fn pack_slice(items: &[Self], out: &mut Vec<u8>) -> Result<(), CodecError>
    where
        Self: Sized,
    {
        pack_array_header(items.len(), out)?;
        items.iter().try_for_each(|item| item.pack(out))
    }
}

/// A value that can be read from msgpack. See [`Pack`] for an example.
pub trait Unpack: Sized {
    /// Reads one value. Any bytes may come; none may panic.
    ///
    /// # Errors
    /// When the bytes hold something else.
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError>;

    /// Reads a sequence of such values: an array, unless the type knows better (`u8` reads binary too).
    ///
    /// # Errors
    /// As [`unpack`](Unpack::unpack).
    #[inline]
    fn unpack_vec(reader: &mut Reader<'_>) -> Result<Vec<Self>, CodecError> {
        values::read_items(reader, Vec::with_capacity, Vec::push)
    }

    /// Reads a sequence of exactly `N` such values.
    ///
    /// # Errors
    /// As [`unpack`](Unpack::unpack).
    #[inline]
    fn unpack_array<const N: usize>(reader: &mut Reader<'_>) -> Result<[Self; N], CodecError> {
        values::read_array(reader)
    }

    /// What a field of a struct becomes when the map does not name it: an error for `None`, the default.
    ///
    /// An `Option` becomes `None`, so a field can be added to a struct while old entries are still cached.
    #[inline]
    fn missing() -> Option<Self> {
        None
    }
}

// Short forms first, here and below: they are the most frequent, and the compiler does not see through rmp's markers.

/// Appends the header of an array; its `len` items come after.
///
/// # Errors
/// When there are more than `u32::MAX` items.
#[inline]
pub fn pack_array_header(len: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
    match u8::try_from(len) {
        Ok(len @ 0..16) => out.push(0x90 | len),
        _ => written(rmp::encode::write_array_len(out, length(len)?))?,
    }
    Ok(())
}

/// Appends the header of a map; its `len` keys, each with its value, come after.
///
/// # Errors
/// When there are more than `u32::MAX` keys.
#[inline]
pub fn pack_map_header(len: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
    match u8::try_from(len) {
        Ok(len @ 0..16) => out.push(0x80 | len),
        _ => written(rmp::encode::write_map_len(out, length(len)?))?,
    }
    Ok(())
}

/// Appends a text.
///
/// # Errors
/// When it is longer than `u32::MAX` bytes.
#[inline]
pub fn pack_str(text: &str, out: &mut Vec<u8>) -> Result<(), CodecError> {
    match u8::try_from(text.len()) {
        Ok(len @ 0..32) => out.push(0xa0 | len),
        _ => written(rmp::encode::write_str_len(out, length(text.len())?))?,
    }
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

/// Appends binary data.
///
/// # Errors
/// When it is longer than `u32::MAX` bytes.
#[inline]
pub fn pack_bin(data: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
    written(rmp::encode::write_bin_len(out, length(data.len())?))?;
    out.extend_from_slice(data);
    Ok(())
}

/// The length of anything, as msgpack counts.
#[inline]
fn length(len: usize) -> Result<u32, CodecError> {
    u32::try_from(len).map_err(|_| CodecError::new(CodecErrorKind::Unsupported, "msgpack counts to 4294967295 only"))
}

/// What rmp's writers return. Writing to a `Vec` does not fail, so the compiler leaves nothing of this.
#[inline]
fn written<T, E>(result: Result<T, E>) -> Result<(), CodecError> {
    match result {
        Ok(_) => Ok(()),
        Err(_) => Err(CodecError::new(CodecErrorKind::Unsupported, "the entry cannot be written")),
    }
}
