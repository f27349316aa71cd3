//! Reads msgpack values one after the other from an entry.

use std::fmt;

use bytes::Bytes;
use rmp::Marker;

use crate::codec::{CodecError, CodecErrorKind};
use crate::slice::Slice;

/// How deep values may nest through [`Reader::nested`].
const MAX_DEPTH: u8 = 128;

/// A position in an entry, and what can be read from there. [`Unpack`](super::Unpack) is built of these.
///
/// After an error the position means nothing. The methods allocate nothing.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::Slice;
/// use dogpile::codec::{Kind, Reader};
///
/// let entry = Bytes::from_static(b"\x93\x07\xa3Ann\xc4\x02\x00\xff");
/// let mut reader = Reader::new(Slice::from(&entry));
/// assert_eq!(reader.read_array_len()?, 3);
/// assert_eq!(reader.read_int::<u8>()?, 7);
/// assert_eq!(reader.peek()?, Kind::Str);
/// assert_eq!(reader.read_str()?, "Ann");
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

/// What kind of value comes next, as [`Reader::peek`] sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Nothing.
    Nil,
    /// A bool.
    Bool,
    /// An integer, signed or not.
    Int,
    /// A float of 32 or 64 bits.
    Float,
    /// A text.
    Str,
    /// Binary data.
    Bin,
    /// An array of values.
    Array,
    /// A map of keys to values.
    Map,
    /// A type that MessagePack leaves to applications, and none here reads.
    Ext,
}

/// A number as it was written.
#[derive(Clone, Copy)]
pub(in crate::codec) enum Number {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
}

impl<'a> Reader<'a> {
    /// A reader at the start of `entry`.
    #[inline]
    #[must_use]
    pub fn new(entry: Slice<'a>) -> Self {
        Reader { entry, rest: entry.as_bytes(), depth: 0 }
    }

    /// How many bytes are left.
    #[inline]
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// [`Length`](CodecErrorKind::Length) when something is.
    #[inline]
    pub fn finish(&self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(trailing()) }
    }

    /// What kind of value comes next, without reading it.
    ///
    /// # Errors
    /// When nothing is left, or the next byte is the one that msgpack never uses.
    #[inline]
    pub fn peek(&self) -> Result<Kind, CodecError> {
        let marker = Marker::from_u8(*self.rest.first().ok_or_else(too_short)?);
        kind_of(marker).ok_or_else(|| wrong_type("a value", marker))
    }

    /// Reads nil.
    ///
    /// # Errors
    /// When something else comes.
    #[inline]
    pub fn read_nil(&mut self) -> Result<(), CodecError> {
        match self.marker()? {
            Marker::Null => Ok(()),
            other => Err(wrong_type("nil", other)),
        }
    }

    /// Reads nil if it comes next, and says whether it did.
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
    /// When something else comes.
    #[inline]
    pub fn read_bool(&mut self) -> Result<bool, CodecError> {
        match self.marker()? {
            Marker::True => Ok(true),
            Marker::False => Ok(false),
            other => Err(wrong_type("a bool", other)),
        }
    }

    /// Reads an integer of any width and sign.
    ///
    /// # Errors
    /// When something else comes, or an integer that `T` cannot hold.
    #[inline]
    pub fn read_int<T: TryFrom<u64> + TryFrom<i64>>(&mut self) -> Result<T, CodecError> {
        // The short forms first: they are the most frequent, and the compiler does not see through rmp's markers.
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

    /// Reads the header of an array of two, in its short form, and says whether it came.
    #[inline(always)]
    pub(in crate::codec) fn try_pair(&mut self) -> bool {
        let [0x92, rest @ ..] = self.rest else { return false };
        self.rest = rest;
        true
    }

    /// Reads what is left, if that is one integer of 32 bits: the seconds at the end of most entries.
    #[inline(always)]
    pub(in crate::codec) fn read_last_u32(&mut self) -> Option<u32> {
        let [0xce, a, b, c, d] = *self.rest else { return None };
        self.rest = &[];
        Some(u32::from_be_bytes([a, b, c, d]))
    }

    /// Reads a float of either width, or an integer as the nearest float.
    ///
    /// # Errors
    /// When something else comes.
    #[inline]
    #[allow(clippy::cast_precision_loss)]
    pub fn read_f64(&mut self) -> Result<f64, CodecError> {
        Ok(match self.read_number()? {
            Number::Unsigned(n) => n as f64,
            Number::Signed(n) => n as f64,
            Number::Float(n) => n,
        })
    }

    /// Reads a text, in place.
    ///
    /// # Errors
    /// When something else comes, or the text is not UTF-8.
    #[inline]
    pub fn read_str(&mut self) -> Result<&'a str, CodecError> {
        std::str::from_utf8(self.read_key()?).map_err(|_| not_utf8())
    }

    /// Reads binary data, in place.
    ///
    /// # Errors
    /// When something else comes.
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

    /// Reads binary data that shares the entry's memory.
    ///
    /// # Errors
    /// When something else comes.
    #[inline(always)]
    pub fn read_bytes(&mut self) -> Result<Bytes, CodecError> {
        self.read_bin().map(|data| self.share(data))
    }

    /// Reads the header of an array: how many values follow. As many bytes at least are left.
    ///
    /// # Errors
    /// When something else comes, or what is left cannot hold so many values.
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

    /// Reads the header of an array of exactly `len` values.
    ///
    /// # Errors
    /// When something else comes, or an array of another length.
    #[inline]
    pub fn read_array_of(&mut self, len: usize) -> Result<(), CodecError> {
        match self.read_array_len()? {
            found if found == len => Ok(()),
            found => Err(wrong_count(len, found)),
        }
    }

    /// Reads the header of a map: how many keys follow, each with its value. Twice as many bytes at least are left.
    ///
    /// # Errors
    /// When something else comes, or what is left cannot hold so many values.
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

    /// Reads a map's key, which must be a text, in place. The bytes of it: comparing needs no check of UTF-8.
    ///
    /// # Errors
    /// When something else comes.
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
            other => return Err(wrong_type("a text", other)),
        };
        self.take(len)
    }

    /// Reads a value of any kind and forgets it. Takes time in proportion to its bytes, and no stack however deep it
    /// is.
    ///
    /// # Errors
    /// When the value is cut short or not msgpack.
    #[inline]
    pub fn skip_value(&mut self) -> Result<(), CodecError> {
        let mut pending = 1;
        while pending > 0 {
            pending = self.skip_head()?.saturating_add(pending - 1);
            // Every value takes a byte, so this keeps hostile lengths from adding up.
            if pending > self.rest.len() {
                return Err(too_short());
            }
        }
        Ok(())
    }

    /// Runs `read` one level deeper, and refuses the 129th level.
    ///
    /// A type that contains itself must read its insides through this, lest hostile bytes overflow the stack. `Box`,
    /// `Vec` and all other collections do; one of them is in every such type, unless it has a pointer of its own.
    ///
    /// # Errors
    /// Those of `read`, and [`Value`](CodecErrorKind::Value) when the value nests too deeply.
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

    /// Reads a number of any kind.
    #[inline]
    pub(in crate::codec) fn read_number(&mut self) -> Result<Number, CodecError> {
        let marker = self.marker()?;
        self.number(marker)?.ok_or_else(|| wrong_type("a number", marker))
    }

    /// Reads a value of any kind that nests at most 128 levels, as the bytes that it is.
    #[cfg(feature = "serde")]
    pub(in crate::codec) fn read_shallow(&mut self) -> Result<&'a [u8], CodecError> {
        let start = self.rest;
        // How many values are still to come on each open level; the outermost holds the value itself.
        let mut open = [0; MAX_DEPTH as usize + 1];
        open[0] = 1;
        let mut depth = 0;
        loop {
            if open[depth] > 0 {
                open[depth] -= 1;
                let inside = self.skip_head()?;
                if inside > 0 {
                    depth += 1;
                    *open.get_mut(depth).ok_or_else(too_deep)? = inside;
                }
            } else if depth > 0 {
                depth -= 1;
            } else {
                return Ok(&start[..start.len() - self.rest.len()]);
            }
        }
    }

    /// How many bytes of the entry have been read.
    #[inline]
    pub(in crate::codec) fn position(&self) -> usize {
        self.entry.len() - self.rest.len()
    }

    /// The entry's bytes from `start` to here, sharing its memory.
    #[inline]
    pub(in crate::codec) fn since(&self, start: usize) -> Bytes {
        self.share(&self.entry.as_bytes()[start..self.position()])
    }

    /// `part`, which was read from the entry, sharing its memory.
    #[inline(always)]
    pub(in crate::codec) fn share(&self, part: &'a [u8]) -> Bytes {
        self.entry.part(part).to_bytes()
    }

    /// Reads a value up to the values inside of it, and returns how many of those follow.
    #[inline]
    fn skip_head(&mut self) -> Result<usize, CodecError> {
        let (bytes, inside) = match self.marker()? {
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
        Ok(inside)
    }

    /// The number that `marker` begins, if it begins one. Always inline: `read_int` then keeps nothing of the floats,
    /// and takes a third less.
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
    CodecError::new(CodecErrorKind::Length, "the entry ends too early")
}

#[cold]
fn trailing() -> CodecError {
    CodecError::new(CodecErrorKind::Length, "the entry goes on after its end")
}

#[cold]
fn too_deep() -> CodecError {
    CodecError::new(CodecErrorKind::Value, "the value nests too deeply")
}

#[cold]
pub(super) fn not_utf8() -> CodecError {
    CodecError::new(CodecErrorKind::Value, "the text is not UTF-8")
}

#[cold]
fn out_of_range(found: impl fmt::Display) -> CodecError {
    CodecError::new(CodecErrorKind::Value, format!("the integer {found} is out of range"))
}

#[cold]
fn wrong_count(expected: usize, found: usize) -> CodecError {
    CodecError::new(CodecErrorKind::Value, format!("expected {expected} values in the array, found {found}"))
}

#[cold]
fn wrong_type(expected: &'static str, found: Marker) -> CodecError {
    let found = match kind_of(found) {
        Some(Kind::Nil) => "nil",
        Some(Kind::Bool) => "a bool",
        Some(Kind::Int) => "an integer",
        Some(Kind::Float) => "a float",
        Some(Kind::Str) => "a text",
        Some(Kind::Bin) => "binary data",
        Some(Kind::Array) => "an array",
        Some(Kind::Map) => "a map",
        Some(Kind::Ext) => "an extension",
        None => "no msgpack",
    };
    CodecError::new(CodecErrorKind::Type, format!("expected {expected}, found {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Skips the first value and returns how much is left.
    /// Deep enough for any stack; miri, a thousand times slower, need not prove that.
    const DEEP: usize = if cfg!(miri) { 1 << 10 } else { 1 << 20 };

    fn skip(entry: impl Into<Bytes>) -> Result<usize, CodecErrorKind> {
        let entry = entry.into();
        let mut reader = Reader::new(Slice::from(&entry));
        reader.skip_value().map_err(|e| e.kind())?;
        Ok(reader.remaining())
    }

    #[test]
    fn every_kind_is_skipped_whole() {
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
    fn lengths_are_read_where_they_are() {
        assert_eq!(skip(&b"\xc7\x02\x00ab."[..]), Ok(1));
        assert_eq!(skip(&b"\xc8\x00\x02\x00ab."[..]), Ok(1));
        assert_eq!(skip(&b"\xc9\x00\x00\x00\x02\x00ab."[..]), Ok(1));
        assert_eq!(skip(&b"\xdf\x00\x00\x00\x01\xa1a\x05."[..]), Ok(1));
        assert_eq!(skip(&b"\xdd\x00\x00\x00\x02\xc0\xc0."[..]), Ok(1));
    }

    #[test]
    fn hostile_nesting_and_lengths_end() {
        let mut deep = vec![0x91; DEEP];
        assert_eq!(skip(deep.clone()), Err(CodecErrorKind::Length));
        deep.push(0xc0);
        assert_eq!(skip(deep), Ok(0));
        // Headers that promise four billion values each.
        assert_eq!(skip([0xdd, 0xff, 0xff, 0xff, 0xff].repeat(DEEP >> 4)), Err(CodecErrorKind::Length));
        assert_eq!(skip([0xdf, 0xff, 0xff, 0xff, 0xff].repeat(DEEP >> 4)), Err(CodecErrorKind::Length));
        assert_eq!(skip(&b"\xc9\xff\xff\xff\xff"[..]), Err(CodecErrorKind::Length));
    }

    #[test]
    #[cfg(feature = "serde")]
    fn depth_is_counted_without_recursion() {
        let nested = |depth: usize| Bytes::from([vec![0x91; depth], vec![0xc0, 0xc0]].concat());
        let entry = nested(128);
        let mut reader = Reader::new(Slice::from(&entry));
        assert_eq!(reader.read_shallow().unwrap(), &entry[..129]);
        assert_eq!(reader.remaining(), 1);
        assert_eq!(Reader::new(Slice::from(&nested(129))).read_shallow().unwrap_err().kind(), CodecErrorKind::Value);
        assert!(Reader::new(Slice::from(&nested(DEEP))).read_shallow().is_err());
        // Levels that are closed do not count.
        let wide = Bytes::from([&b"\xdc\x04\x00"[..], &b"\x91\xc0".repeat(1024)].concat());
        assert_eq!(Reader::new(Slice::from(&wide)).read_shallow().unwrap().len(), wide.len());
    }

    #[test]
    fn texts_and_data_are_borrowed() {
        let entry = Bytes::from_static(b"\xa1a\xc4\x01b\xc4\x00");
        let mut reader = Reader::new(Slice::from(&entry));
        assert_eq!(reader.read_str().unwrap().as_ptr(), entry[1..].as_ptr());
        assert_eq!(reader.read_bytes().unwrap().as_ptr(), entry[4..].as_ptr());
        assert_eq!(reader.read_bytes().unwrap(), b""[..]);
        assert_eq!(reader.finish(), Ok(()));
        assert_eq!(format!("{reader:?}"), "Reader(7 of 7 bytes)");
    }
}
