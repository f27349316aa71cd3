//! `Reader`: decodes msgpack values from an entry, one after the other.

use std::fmt;

use bytes::Bytes;
use rmp::Marker;

use crate::codec::{CodecError, CodecErrorKind};
use crate::slice::Slice;

/// The maximum nesting depth of values that are read through [`Reader::nested`].
const MAX_DEPTH: u8 = 128;

/// A cursor that decodes msgpack values from an entry.
///
/// Implementations of [`Unpack`](super::Unpack) use its methods. After an error the position is
/// unspecified.
///
/// # Cost
///
/// The methods allocate only to report an error.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::codec::Slice;
/// use dogpile::codec::{Kind, Reader};
///
/// let entry = Bytes::from_static(b"\x93\x07\xa3Ann\xc4\x02\x00\xff");
/// let mut reader = Reader::new(Slice::from(&entry));
/// assert_eq!(reader.read_array_len()?, 3);
/// assert_eq!(reader.read_int::<u8>()?, 7);
/// assert_eq!(reader.peek()?, Kind::Str);
/// assert_eq!(reader.read_str()?, "Ann");
/// assert_eq!(reader.remaining(), 4);
/// assert_eq!(reader.read_bytes()?, b"\x00\xff"[..]);
/// reader.finish()?;
/// # Ok::<(), dogpile::codec::CodecError>(())
/// ```
#[derive(Clone)]
pub struct Reader<'a> {
    entry: Slice<'a>,
    rest: &'a [u8],
    depth: u8,
}

/// The kind of a msgpack value, as returned by [`Reader::peek`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Nil, the encoding of `None` and `()`.
    Nil,
    /// A bool.
    Bool,
    /// An integer, signed or not.
    Int,
    /// A float of 32 or 64 bits.
    Float,
    /// A string.
    Str,
    /// Binary data.
    Bin,
    /// An array of values.
    Array,
    /// A map of keys to values.
    Map,
    /// An application-specific extension type. The types of this crate do not read it.
    Ext,
}

/// A number in the representation in which it is encoded.
#[derive(Clone, Copy)]
pub(in crate::codec) enum Number {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
}

impl<'a> Reader<'a> {
    /// Creates a reader at the start of `entry`.
    #[inline]
    #[must_use]
    pub fn new(entry: Slice<'a>) -> Self {
        Reader { entry, rest: entry.as_bytes(), depth: 0 }
    }

    /// Returns the number of bytes that have not been read.
    #[inline]
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Checks that the whole entry has been read.
    ///
    /// # Errors
    ///
    /// Returns an error of the kind [`Length`](CodecErrorKind::Length) if bytes are left.
    #[inline]
    pub fn finish(&self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(trailing()) }
    }

    /// Returns the kind of the next value without reading it.
    ///
    /// # Errors
    ///
    /// Returns an error if the entry ends here, or if the next byte is the one that msgpack
    /// reserves.
    #[inline]
    pub fn peek(&self) -> Result<Kind, CodecError> {
        let marker = Marker::from_u8(*self.rest.first().ok_or_else(too_short)?);
        kind_of(marker).ok_or_else(|| wrong_type("a value", marker))
    }

    /// Reads nil, the encoding of `None` and `()`.
    ///
    /// # Errors
    ///
    /// Returns an error if the next value is not nil.
    ///
    /// ```
    /// # use dogpile::codec::{Reader, Slice};
    /// # let entry = bytes::Bytes::from_static(b"\xc0\xc0\x05");
    /// let mut reader = Reader::new(Slice::from(&entry)); // nil, nil, 5
    /// reader.read_nil()?;
    /// assert!(reader.try_nil());
    /// assert!(!reader.try_nil());
    /// assert_eq!(reader.read_int::<u8>()?, 5);
    /// # Ok::<(), dogpile::codec::CodecError>(())
    /// ```
    #[inline]
    pub fn read_nil(&mut self) -> Result<(), CodecError> {
        match self.marker()? {
            Marker::Null => Ok(()),
            other => Err(wrong_type("nil", other)),
        }
    }

    /// Reads nil if it is the next value, and returns whether it was.
    #[inline]
    pub fn try_nil(&mut self) -> bool {
        match self.rest.split_first() {
            Some((&0xc0, rest)) => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// Reads a bool.
    ///
    /// # Errors
    ///
    /// Returns an error if the next value is not a bool.
    ///
    /// ```
    /// # use dogpile::codec::{Reader, Slice};
    /// # let entry = bytes::Bytes::from_static(b"\xc3");
    /// assert!(Reader::new(Slice::from(&entry)).read_bool()?);
    /// # Ok::<(), dogpile::codec::CodecError>(())
    /// ```
    #[inline]
    pub fn read_bool(&mut self) -> Result<bool, CodecError> {
        match self.marker()? {
            Marker::True => Ok(true),
            Marker::False => Ok(false),
            other => Err(wrong_type("a bool", other)),
        }
    }

    /// Reads an integer that is encoded with any width and sign.
    ///
    /// # Errors
    ///
    /// Returns an error if the next value is not an integer, or if it is out of range for `T`.
    #[inline]
    pub fn read_int<T: TryFrom<u64> + TryFrom<i64>>(&mut self) -> Result<T, CodecError> {
        // One-byte integers first: they are the most frequent, and the compiler does not optimize
        // them well through rmp's `Marker`.
        if let Some((&byte @ 0..0x80, rest)) = self.rest.split_first() {
            self.rest = rest;
            return T::try_from(u64::from(byte)).map_err(|_| out_of_range(byte));
        }
        let marker = self.marker()?;
        match self.number(marker)? {
            Some(Number::Unsigned(n)) => T::try_from(n).map_err(|_| out_of_range(n)),
            Some(Number::Signed(n)) => T::try_from(n).map_err(|_| out_of_range(n)),
            _ => Err(wrong_type("an integer", marker)),
        }
    }

    /// Reads the one-byte header of an array of two items if it is next, and returns whether it
    /// was.
    #[inline(always)]
    pub(in crate::codec) fn try_pair(&mut self) -> bool {
        let [0x92, rest @ ..] = self.rest else { return false };
        self.rest = rest;
        true
    }

    /// Reads the rest of the entry if it is exactly one unsigned 32-bit integer.
    ///
    /// Most entries end with their creation time in this encoding.
    #[inline(always)]
    pub(in crate::codec) fn read_last_u32(&mut self) -> Option<u32> {
        let [0xce, a, b, c, d] = *self.rest else { return None };
        self.rest = &[];
        Some(u32::from_be_bytes([a, b, c, d]))
    }

    /// Reads a float of either width, or an integer as the nearest float.
    ///
    /// # Errors
    ///
    /// Returns an error if the next value is not a number.
    ///
    /// ```
    /// # use dogpile::codec::{Reader, Slice};
    /// # let entry = bytes::Bytes::from_static(b"\x05\xca\x3f\xc0\x00\x00");
    /// let mut reader = Reader::new(Slice::from(&entry)); // 5, 1.5
    /// assert_eq!((reader.read_f64()?, reader.read_f64()?), (5.0, 1.5));
    /// # Ok::<(), dogpile::codec::CodecError>(())
    /// ```
    #[inline]
    #[allow(clippy::cast_precision_loss)]
    pub fn read_f64(&mut self) -> Result<f64, CodecError> {
        Ok(match self.read_number()? {
            Number::Unsigned(n) => n as f64,
            Number::Signed(n) => n as f64,
            Number::Float(n) => n,
        })
    }

    /// Reads a string, borrowed from the entry.
    ///
    /// # Errors
    ///
    /// Returns an error if the next value is not a string, or if the string is not valid UTF-8.
    #[inline]
    pub fn read_str(&mut self) -> Result<&'a str, CodecError> {
        std::str::from_utf8(self.read_key()?).map_err(|_| not_utf8())
    }

    /// Reads binary data, borrowed from the entry.
    ///
    /// # Errors
    ///
    /// Returns an error if the next value is not binary data.
    ///
    /// ```
    /// # use dogpile::codec::{Reader, Slice};
    /// # let entry = bytes::Bytes::from_static(b"\xc4\x02\x00\xff");
    /// assert_eq!(Reader::new(Slice::from(&entry)).read_bin()?, [0, 255]);
    /// # Ok::<(), dogpile::codec::CodecError>(())
    /// ```
    #[inline(always)]
    pub fn read_bin(&mut self) -> Result<&'a [u8], CodecError> {
        if let [0xc4, len, rest @ ..] = self.rest {
            self.rest = rest;
            return self.take(usize::from(*len));
        }
        self.read_long_bin()
    }

    fn read_long_bin(&mut self) -> Result<&'a [u8], CodecError> {
        let len = match self.marker()? {
            Marker::Bin8 => self.len8()?,
            Marker::Bin16 => self.len16()?,
            Marker::Bin32 => self.len32()?,
            other => return Err(wrong_type("binary data", other)),
        };
        self.take(len)
    }

    /// Reads binary data as `Bytes` that share the entry's memory.
    ///
    /// # Errors
    ///
    /// Returns an error if the next value is not binary data.
    #[inline(always)]
    pub fn read_bytes(&mut self) -> Result<Bytes, CodecError> {
        self.read_bin().map(|data| self.share(data))
    }

    /// Reads the header of an array and returns the number of its items.
    ///
    /// The entry has at least this many bytes left, so the number is a safe bound for loops. It is
    /// not a safe capacity: an item can take more memory than its encoding.
    ///
    /// # Errors
    ///
    /// Returns an error if the next value is not an array, or if the rest of the entry is too short
    /// for its items.
    #[inline]
    pub fn read_array_len(&mut self) -> Result<usize, CodecError> {
        let len = match self.marker()? {
            Marker::FixArray(len) => usize::from(len),
            Marker::Array16 => self.len16()?,
            Marker::Array32 => self.len32()?,
            other => return Err(wrong_type("an array", other)),
        };
        if len > self.rest.len() { Err(too_short()) } else { Ok(len) }
    }

    /// Reads the header of an array of exactly `len` items.
    ///
    /// # Errors
    ///
    /// Returns an error if the next value is not an array, or if it has another length.
    ///
    /// ```
    /// # use dogpile::codec::{Reader, Slice};
    /// # let entry = bytes::Bytes::from_static(b"\x92\x01\x02");
    /// let mut reader = Reader::new(Slice::from(&entry)); // [1, 2]
    /// reader.read_array_of(2)?;
    /// assert_eq!((reader.read_int::<u8>()?, reader.read_int::<u8>()?), (1, 2));
    /// # Ok::<(), dogpile::codec::CodecError>(())
    /// ```
    #[inline]
    pub fn read_array_of(&mut self, len: usize) -> Result<(), CodecError> {
        match self.read_array_len()? {
            found if found == len => Ok(()),
            found => Err(wrong_count(len, found)),
        }
    }

    /// Reads the header of a map and returns the number of its pairs of key and value.
    ///
    /// The entry has at least twice as many bytes left, so the number is a safe bound for loops.
    ///
    /// # Errors
    ///
    /// Returns an error if the next value is not a map, or if the rest of the entry is too short
    /// for its pairs.
    ///
    /// ```
    /// # use dogpile::codec::{Reader, Slice};
    /// # let entry = bytes::Bytes::from_static(b"\x82\xa2id\x0f\xa3new\x91\xc0");
    /// let mut reader = Reader::new(Slice::from(&entry)); // {"id": 15, "new": [nil]}
    /// let mut id = None;
    /// for _ in 0..reader.read_map_len()? {
    ///     match reader.read_key()? {
    ///         b"id" => id = Some(reader.read_int::<u32>()?),
    ///         _ => reader.skip_value()?,
    ///     }
    /// }
    /// assert_eq!(id, Some(15));
    /// # Ok::<(), dogpile::codec::CodecError>(())
    /// ```
    #[inline]
    pub fn read_map_len(&mut self) -> Result<usize, CodecError> {
        let len = match self.marker()? {
            Marker::FixMap(len) => usize::from(len),
            Marker::Map16 => self.len16()?,
            Marker::Map32 => self.len32()?,
            other => return Err(wrong_type("a map", other)),
        };
        if len > self.rest.len() / 2 { Err(too_short()) } else { Ok(len) }
    }

    /// Reads a map key, which must be a string, borrowed from the entry.
    ///
    /// Returns the key as bytes, because comparing it with a known name does not require valid
    /// UTF-8.
    ///
    /// # Errors
    ///
    /// Returns an error if the next value is not a string.
    #[inline]
    pub fn read_key(&mut self) -> Result<&'a [u8], CodecError> {
        if let Some((&byte @ 0xa0..0xc0, rest)) = self.rest.split_first() {
            self.rest = rest;
            return self.take(usize::from(byte & 31));
        }
        let len = match self.marker()? {
            Marker::FixStr(len) => usize::from(len),
            Marker::Str8 => self.len8()?,
            Marker::Str16 => self.len16()?,
            Marker::Str32 => self.len32()?,
            other => return Err(wrong_type("a string", other)),
        };
        self.take(len)
    }

    /// Skips the next value, of any kind.
    ///
    /// # Errors
    ///
    /// Returns an error if the value is truncated or is not valid msgpack.
    ///
    /// # Cost
    ///
    /// Takes time proportional to the encoded size of the value and constant stack space, whatever
    /// the nesting depth.
    #[inline]
    pub fn skip_value(&mut self) -> Result<(), CodecError> {
        let mut pending = 1;
        while pending > 0 {
            pending = self.skip_header()?.saturating_add(pending - 1);
            // Every value takes at least one byte, so this check rejects hostile lengths before
            // they add up.
            if pending > self.rest.len() {
                return Err(too_short());
            }
        }
        Ok(())
    }

    /// Runs `read` one nesting level deeper, up to 128 levels.
    ///
    /// A recursive type must read its nested values through this method. Otherwise hostile bytes
    /// could overflow the stack. The implementations for `Box`, `Vec` and all other collections
    /// call it, and a recursive type usually contains one of these. Call it yourself only in a type
    /// with a smart pointer of its own.
    ///
    /// # Errors
    ///
    /// Returns an error of the kind [`Value`](CodecErrorKind::Value) if the value nests more than
    /// 128 levels deep, and otherwise the error of `read`.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use dogpile::codec::{CodecError, Reader, Unpack};
    ///
    /// struct List(Option<Arc<List>>);
    ///
    /// impl Unpack for List {
    ///     fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
    ///         if reader.try_nil() {
    ///             return Ok(List(None));
    ///         }
    ///         reader.read_array_of(1)?;
    ///         reader.nested(List::unpack).map(|next| List(Some(Arc::new(next))))
    ///     }
    /// }
    /// ```
    #[inline]
    pub fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, CodecError>) -> Result<T, CodecError> {
        if self.depth == MAX_DEPTH {
            return Err(too_deep());
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// Reads an integer or a float.
    #[inline]
    pub(in crate::codec) fn read_number(&mut self) -> Result<Number, CodecError> {
        let marker = self.marker()?;
        self.number(marker)?.ok_or_else(|| wrong_type("a number", marker))
    }

    /// Returns the encoded bytes of the next value, which must nest at most 128 levels deep.
    #[cfg(feature = "serde")]
    pub(in crate::codec) fn read_shallow(&mut self) -> Result<&'a [u8], CodecError> {
        let start = self.rest;
        // The number of values that remain on each open level. Level 0 contains only the value
        // itself.
        let mut open = [0; MAX_DEPTH as usize + 1];
        open[0] = 1;
        let mut depth = 0;
        loop {
            if open[depth] > 0 {
                open[depth] -= 1;
                let nested = self.skip_header()?;
                if nested > 0 {
                    depth += 1;
                    *open.get_mut(depth).ok_or_else(too_deep)? = nested;
                }
            } else if depth > 0 {
                depth -= 1;
            } else {
                return Ok(&start[..start.len() - self.rest.len()]);
            }
        }
    }

    /// Returns the number of bytes that have been read.
    #[inline]
    pub(in crate::codec) fn position(&self) -> usize {
        self.entry.len() - self.rest.len()
    }

    /// Returns the bytes from the position `start` to the current one, which share the entry's
    /// memory.
    #[inline]
    pub(in crate::codec) fn since(&self, start: usize) -> Bytes {
        self.share(&self.entry.as_bytes()[start..self.position()])
    }

    /// Converts `part`, which was borrowed from the entry, into `Bytes` that share the entry's
    /// memory.
    #[inline(always)]
    pub(in crate::codec) fn share(&self, part: &'a [u8]) -> Bytes {
        self.entry.part(part).to_bytes()
    }

    /// Reads a value except for its nested values, and returns the number of nested values that
    /// follow.
    #[inline]
    fn skip_header(&mut self) -> Result<usize, CodecError> {
        let (bytes, nested) = match self.marker()? {
            Marker::Null | Marker::False | Marker::True | Marker::FixPos(_) | Marker::FixNeg(_) => return Ok(0),
            Marker::U8 | Marker::I8 => (1, 0),
            Marker::U16 | Marker::I16 | Marker::FixExt1 => (2, 0),
            Marker::FixExt2 => (3, 0),
            Marker::U32 | Marker::I32 | Marker::F32 => (4, 0),
            Marker::FixExt4 => (5, 0),
            Marker::U64 | Marker::I64 | Marker::F64 => (8, 0),
            Marker::FixExt8 => (9, 0),
            Marker::FixExt16 => (17, 0),
            Marker::FixStr(len) => (usize::from(len), 0),
            Marker::Str8 | Marker::Bin8 => (self.len8()?, 0),
            Marker::Str16 | Marker::Bin16 => (self.len16()?, 0),
            Marker::Str32 | Marker::Bin32 => (self.len32()?, 0),
            Marker::Ext8 => (self.len8()? + 1, 0),
            Marker::Ext16 => (self.len16()? + 1, 0),
            Marker::Ext32 => (self.len32()?.saturating_add(1), 0),
            Marker::FixArray(len) => (0, usize::from(len)),
            Marker::Array16 => (0, self.len16()?),
            Marker::Array32 => (0, self.len32()?),
            Marker::FixMap(len) => (0, 2 * usize::from(len)),
            Marker::Map16 => (0, 2 * self.len16()?),
            Marker::Map32 => (0, self.len32()?.saturating_mul(2)),
            Marker::Reserved => return Err(wrong_type("a value", Marker::Reserved)),
        };
        self.take(bytes)?;
        Ok(nested)
    }

    /// Reads the rest of the number after its marker. Returns `None` if `marker` does not start a
    /// number.
    ///
    /// It is always inlined: the compiler then removes the floats from `read_int`, which takes a
    /// third less time.
    #[inline(always)]
    fn number(&mut self, marker: Marker) -> Result<Option<Number>, CodecError> {
        Ok(Some(match marker {
            Marker::FixPos(n) => Number::Unsigned(n.into()),
            Marker::FixNeg(n) => Number::Signed(n.into()),
            Marker::U8 => Number::Unsigned(u8::from_be_bytes(self.take_array()?).into()),
            Marker::U16 => Number::Unsigned(u16::from_be_bytes(self.take_array()?).into()),
            Marker::U32 => Number::Unsigned(u32::from_be_bytes(self.take_array()?).into()),
            Marker::U64 => Number::Unsigned(u64::from_be_bytes(self.take_array()?)),
            Marker::I8 => Number::Signed(i8::from_be_bytes(self.take_array()?).into()),
            Marker::I16 => Number::Signed(i16::from_be_bytes(self.take_array()?).into()),
            Marker::I32 => Number::Signed(i32::from_be_bytes(self.take_array()?).into()),
            Marker::I64 => Number::Signed(i64::from_be_bytes(self.take_array()?)),
            Marker::F32 => Number::Float(f32::from_be_bytes(self.take_array()?).into()),
            Marker::F64 => Number::Float(f64::from_be_bytes(self.take_array()?)),
            _ => return Ok(None),
        }))
    }

    #[inline]
    fn marker(&mut self) -> Result<Marker, CodecError> {
        let [byte] = self.take_array()?;
        Ok(Marker::from_u8(byte))
    }

    #[inline]
    fn len8(&mut self) -> Result<usize, CodecError> {
        Ok(usize::from(u8::from_be_bytes(self.take_array()?)))
    }

    #[inline]
    fn len16(&mut self) -> Result<usize, CodecError> {
        Ok(usize::from(u16::from_be_bytes(self.take_array()?)))
    }

    #[inline]
    fn len32(&mut self) -> Result<usize, CodecError> {
        Ok(u32::from_be_bytes(self.take_array()?) as usize)
    }

    #[inline]
    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(too_short)?;
        self.rest = rest;
        Ok(*taken)
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(too_short)?;
        self.rest = rest;
        Ok(taken)
    }
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader({} of {} bytes)", self.position(), self.entry.len())
    }
}

fn kind_of(marker: Marker) -> Option<Kind> {
    Some(match marker {
        Marker::Null => Kind::Nil,
        Marker::False | Marker::True => Kind::Bool,
        Marker::FixPos(_) | Marker::U8 | Marker::U16 | Marker::U32 | Marker::U64 => Kind::Int,
        Marker::FixNeg(_) | Marker::I8 | Marker::I16 | Marker::I32 | Marker::I64 => Kind::Int,
        Marker::F32 | Marker::F64 => Kind::Float,
        Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => Kind::Str,
        Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => Kind::Bin,
        Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => Kind::Array,
        Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => Kind::Map,
        Marker::FixExt1 | Marker::FixExt2 | Marker::FixExt4 | Marker::FixExt8 | Marker::FixExt16 => Kind::Ext,
        Marker::Ext8 | Marker::Ext16 | Marker::Ext32 => Kind::Ext,
        Marker::Reserved => return None,
    })
}

#[cold]
fn too_short() -> CodecError {
    CodecError::new(CodecErrorKind::Length, "the entry is truncated")
}

#[cold]
fn trailing() -> CodecError {
    CodecError::new(CodecErrorKind::Length, "the entry has trailing bytes")
}

#[cold]
fn too_deep() -> CodecError {
    CodecError::new(CodecErrorKind::Value, "the value nests more than 128 levels deep")
}

#[cold]
pub(super) fn not_utf8() -> CodecError {
    CodecError::new(CodecErrorKind::Value, "the string is not valid UTF-8")
}

#[cold]
fn out_of_range(found: impl fmt::Display) -> CodecError {
    CodecError::new(CodecErrorKind::Value, format!("the integer {found} is out of range"))
}

#[cold]
fn wrong_count(expected: usize, found: usize) -> CodecError {
    CodecError::new(CodecErrorKind::Value, format!("expected an array of {expected} items, found {found} items"))
}

#[cold]
fn wrong_type(expected: &'static str, found: Marker) -> CodecError {
    let found = match kind_of(found) {
        Some(Kind::Nil) => "nil",
        Some(Kind::Bool) => "a bool",
        Some(Kind::Int) => "an integer",
        Some(Kind::Float) => "a float",
        Some(Kind::Str) => "a string",
        Some(Kind::Bin) => "binary data",
        Some(Kind::Array) => "an array",
        Some(Kind::Map) => "a map",
        Some(Kind::Ext) => "an extension",
        None => "a byte that msgpack reserves",
    };
    CodecError::new(CodecErrorKind::Type, format!("expected {expected}, found {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A nesting depth that would overflow any stack. Under Miri, which is a thousand times slower,
    /// it is smaller.
    const DEEP: usize = if cfg!(miri) { 1 << 10 } else { 1 << 20 };

    /// Skips the first value and returns the number of remaining bytes.
    fn skip(entry: impl Into<Bytes>) -> Result<usize, CodecErrorKind> {
        let entry = entry.into();
        let mut reader = Reader::new(Slice::from(&entry));
        reader.skip_value().map_err(|e| e.kind())?;
        Ok(reader.remaining())
    }

    #[test]
    fn skips_values_of_every_kind() {
        for marker in 0..=255_u8 {
            let mut entry = vec![marker];
            entry.extend([0; 64]);
            let length = match marker {
                0xc1 => {
                    assert_eq!(skip(entry), Err(CodecErrorKind::Type));
                    continue;
                }
                0x80..=0x8f => 1 + 2 * usize::from(marker & 0xf),
                0x90..=0x9f => 1 + usize::from(marker & 0xf),
                0xa0..=0xbf => 1 + usize::from(marker & 0x1f),
                0xc4 | 0xd9 | 0xcc | 0xd0 => 2,
                0xc5 | 0xda | 0xdc | 0xde | 0xcd | 0xd1 | 0xd4 | 0xc7 => 3,
                0xc8 | 0xd5 => 4,
                0xc6 | 0xdb | 0xdd | 0xdf | 0xca | 0xce | 0xd2 => 5,
                0xc9 | 0xd6 => 6,
                0xcb | 0xcf | 0xd3 => 9,
                0xd7 => 10,
                0xd8 => 18,
                _ => 1,
            };
            assert_eq!(skip(entry.clone()), Ok(65 - length), "{marker:#x}");
            assert_eq!(Reader::new(Slice::from(&Bytes::from(entry.clone()))).peek().is_ok(), marker != 0xc1);
            entry.truncate(length - 1);
            assert_eq!(skip(entry), Err(CodecErrorKind::Length), "{marker:#x}");
        }
    }

    #[test]
    fn skips_values_with_long_lengths() {
        assert_eq!(skip(&b"\xc7\x02\x00ab."[..]), Ok(1));
        assert_eq!(skip(&b"\xc8\x00\x02\x00ab."[..]), Ok(1));
        assert_eq!(skip(&b"\xc9\x00\x00\x00\x02\x00ab."[..]), Ok(1));
        assert_eq!(skip(&b"\xdf\x00\x00\x00\x01\xa1a\x05."[..]), Ok(1));
        assert_eq!(skip(&b"\xdd\x00\x00\x00\x02\xc0\xc0."[..]), Ok(1));
    }

    #[test]
    fn handles_hostile_nesting_and_lengths_without_recursion() {
        let mut deep = vec![0x91; DEEP];
        assert_eq!(skip(deep.clone()), Err(CodecErrorKind::Length));
        deep.push(0xc0);
        assert_eq!(skip(deep), Ok(0));
        // Each header declares four billion values.
        assert_eq!(skip([0xdd, 0xff, 0xff, 0xff, 0xff].repeat(DEEP >> 4)), Err(CodecErrorKind::Length));
        assert_eq!(skip([0xdf, 0xff, 0xff, 0xff, 0xff].repeat(DEEP >> 4)), Err(CodecErrorKind::Length));
        assert_eq!(skip(&b"\xc9\xff\xff\xff\xff"[..]), Err(CodecErrorKind::Length));
    }

    #[test]
    #[cfg(feature = "serde")]
    fn limits_the_depth_without_recursion() {
        let nested = |depth: usize| Bytes::from([vec![0x91; depth], vec![0xc0, 0xc0]].concat());
        let entry = nested(128);
        let mut reader = Reader::new(Slice::from(&entry));
        assert_eq!(reader.read_shallow().unwrap(), &entry[..129]);
        assert_eq!(reader.remaining(), 1);
        assert_eq!(Reader::new(Slice::from(&nested(129))).read_shallow().unwrap_err().kind(), CodecErrorKind::Value);
        assert!(Reader::new(Slice::from(&nested(DEEP))).read_shallow().is_err());
        // Closed levels do not count.
        let wide = Bytes::from([&b"\xdc\x04\x00"[..], &b"\x91\xc0".repeat(1024)].concat());
        assert_eq!(Reader::new(Slice::from(&wide)).read_shallow().unwrap().len(), wide.len());
    }

    #[test]
    fn borrows_strings_and_binary_data() {
        let entry = Bytes::from_static(b"\xa1a\xc4\x01b\xc4\x00");
        let mut reader = Reader::new(Slice::from(&entry));
        assert_eq!(reader.read_str().unwrap().as_ptr(), entry[1..].as_ptr());
        assert_eq!(reader.read_bytes().unwrap().as_ptr(), entry[4..].as_ptr());
        assert_eq!(reader.read_bytes().unwrap(), b""[..]);
        assert_eq!(reader.finish(), Ok(()));
        assert_eq!(format!("{reader:?}"), "Reader(7 of 7 bytes)");
    }
}
