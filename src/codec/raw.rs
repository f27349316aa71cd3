//! The format `Raw`: strings as they are, other values with a one-letter type tag.

use bytes::Bytes;
use bytestring::ByteString;

use super::{Codec, CodecError, CodecErrorKind, Meta};
use crate::slice::Slice;
use crate::time::Timestamp;

/// Terminates the letter that tags a value's type.
///
/// A string with this byte could be mistaken for a tagged value, so such strings are rejected.
const TAG_END: u8 = 0x7f;
const NONE: &[u8] = b"@\x7fNone";
const NO_VALUE: &[u8] = b"@\x7fNO_VALUE";
const TRUE: &[u8] = b"i\x7fTrue";
const FALSE: &[u8] = b"i\x7fFalse";

/// A codec that stores strings, bytes and integers without metadata.
///
/// It is compatible with `Serializer_Raw_ProxyBackend` of the Python package
/// `dogpile_backend_redis_advanced`. The entries have no metadata, so they expire only through the
/// server's TTL.
///
/// | value | entry |
/// |---|---|
/// | string | the string in UTF-8; strings with `\x7f` are rejected |
/// | bytes | `b\x7f` and the bytes |
/// | integer | `i\x7f` and the decimal digits |
/// | bool | `i\x7fTrue` or `i\x7fFalse`, because Python's bools are integers |
/// | `None` | `@\x7fNone` |
///
/// An entry can only be read as the type that it was written as; for example, `i\x7f5` is not a
/// string. The entry `@\x7fNO_VALUE` is an error of the kind [`NoValue`](CodecErrorKind::NoValue)
/// and therefore a miss.
///
/// This codec also reads bools and bytes that contain `\x7f`. The Python implementation writes them
/// but fails to read them.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::codec::Slice;
/// use dogpile::Timestamp;
/// use dogpile::codec::{Codec, Raw};
///
/// let mut entry = Vec::new();
/// Raw.encode(&-12, Timestamp::EPOCH, &mut entry)?;
/// assert_eq!(entry, b"i\x7f-12");
/// let (string, _): (String, _) = Raw.decode(Slice::from(&Bytes::from_static(b"mellifluous")))?;
/// assert_eq!(string, "mellifluous");
/// # Ok::<(), dogpile::codec::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Raw;

/// A value that the codec [`Raw`] can encode and decode.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::codec::Slice;
/// use dogpile::codec::{CodecError, RawValue};
///
/// struct UserId(u64);
///
/// impl RawValue for UserId {
///     fn write(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
///         self.0.write(out)
///     }
///     fn read(entry: Slice<'_>) -> Result<Self, CodecError> {
///         u64::read(entry).map(UserId)
///     }
/// }
/// ```
pub trait RawValue: Sized {
    /// Appends the encoded value to `out`.
    ///
    /// # Errors
    ///
    /// Returns an error of the kind [`Unsupported`](CodecErrorKind::Unsupported) if the encoded
    /// value would be read as another type.
    fn write(&self, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Decodes a value from the whole `entry`.
    ///
    /// Implementations must accept arbitrary bytes without panicking.
    ///
    /// # Errors
    ///
    /// Returns an error if the bytes are not an encoded value of this type.
    fn read(entry: Slice<'_>) -> Result<Self, CodecError>;
}

impl<V: RawValue> Codec<V> for Raw {
    #[inline]
    fn encode(&self, value: &V, _created: Timestamp, out: &mut Vec<u8>) -> Result<(), CodecError> {
        value.write(out)
    }

    #[inline]
    fn decode(&self, entry: Slice<'_>) -> Result<(V, Meta), CodecError> {
        if *entry == *NO_VALUE {
            return Err(CodecError::new(CodecErrorKind::NoValue, "the entry is the marker for no value (NO_VALUE)"));
        }
        Ok((V::read(entry)?, Meta::NONE))
    }
}

impl RawValue for String {
    fn write(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        write_str(self, out)
    }

    fn read(entry: Slice<'_>) -> Result<Self, CodecError> {
        read_str(entry).map(str::to_owned)
    }
}

impl RawValue for Box<str> {
    fn write(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        write_str(self, out)
    }

    fn read(entry: Slice<'_>) -> Result<Self, CodecError> {
        read_str(entry).map(Into::into)
    }
}

/// A string that shares the entry's memory.
impl RawValue for ByteString {
    fn write(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        write_str(self, out)
    }

    fn read(entry: Slice<'_>) -> Result<Self, CodecError> {
        check_untagged(entry)?;
        entry.to_bytes().try_into().map_err(|_| not_utf8())
    }
}

/// Bytes that share the entry's memory.
impl RawValue for Bytes {
    fn write(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        write_tagged(b'b', self, out);
        Ok(())
    }

    fn read(entry: Slice<'_>) -> Result<Self, CodecError> {
        read_tagged(b'b', entry).map(|data| entry.part(data).to_bytes())
    }
}

impl RawValue for Vec<u8> {
    fn write(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        write_tagged(b'b', self, out);
        Ok(())
    }

    fn read(entry: Slice<'_>) -> Result<Self, CodecError> {
        read_tagged(b'b', entry).map(<[u8]>::to_vec)
    }
}

impl RawValue for bool {
    fn write(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(if *self { TRUE } else { FALSE });
        Ok(())
    }

    fn read(entry: Slice<'_>) -> Result<Self, CodecError> {
        match &entry[..] {
            TRUE => Ok(true),
            FALSE => Ok(false),
            _ => Err(wrong_type()),
        }
    }
}

/// `None` is `@\x7fNone`. For nested options, `Some(None)` is read as `None`.
impl<T: RawValue> RawValue for Option<T> {
    fn write(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        match self {
            Some(value) => value.write(out),
            None => {
                out.extend_from_slice(NONE);
                Ok(())
            }
        }
    }

    fn read(entry: Slice<'_>) -> Result<Self, CodecError> {
        if *entry == *NONE { Ok(None) } else { T::read(entry).map(Some) }
    }
}

macro_rules! integers {
    ($($int:ty)*) => {$(
        impl RawValue for $int {
            fn write(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
                write_tagged(b'i', itoa::Buffer::new().format(*self).as_bytes(), out);
                Ok(())
            }

            fn read(entry: Slice<'_>) -> Result<Self, CodecError> {
                read_decimal(entry)?.parse().map_err(|_| {
                    CodecError::new(CodecErrorKind::Value, "the integer is out of range")
                })
            }
        }
    )*};
}

integers!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);

fn write_str(string: &str, out: &mut Vec<u8>) -> Result<(), CodecError> {
    if string.as_bytes().contains(&TAG_END) {
        return Err(CodecError::new(
            CodecErrorKind::Unsupported,
            r"a string that contains \x7f cannot be encoded with the codec Raw",
        ));
    }
    out.extend_from_slice(string.as_bytes());
    Ok(())
}

fn read_str(entry: Slice<'_>) -> Result<&str, CodecError> {
    check_untagged(entry)?;
    std::str::from_utf8(entry.as_bytes()).map_err(|_| not_utf8())
}

fn check_untagged(entry: Slice<'_>) -> Result<(), CodecError> {
    if entry.contains(&TAG_END) { Err(wrong_type()) } else { Ok(()) }
}

fn write_tagged(letter: u8, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&[letter, TAG_END]);
    out.extend_from_slice(value);
}

fn read_tagged(letter: u8, entry: Slice<'_>) -> Result<&[u8], CodecError> {
    entry.as_bytes().strip_prefix(&[letter, TAG_END]).ok_or_else(wrong_type)
}

/// Returns the digits of an integer if they are exactly as Python writes them.
///
/// A plus sign, leading zeros, `-0` and underscores are rejected.
fn read_decimal(entry: Slice<'_>) -> Result<&str, CodecError> {
    let number = read_tagged(b'i', entry)?;
    match number.strip_prefix(b"-").unwrap_or(number) {
        b"0" if number == b"0" => {}
        [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => {}
        _ => return Err(wrong_type()),
    }
    std::str::from_utf8(number).map_err(|_| wrong_type())
}

#[cold]
fn wrong_type() -> CodecError {
    CodecError::new(CodecErrorKind::Type, "the entry contains a value of another type")
}

#[cold]
fn not_utf8() -> CodecError {
    CodecError::new(CodecErrorKind::Value, "the string is not valid UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode<V: RawValue>(value: V) -> Result<Vec<u8>, CodecErrorKind> {
        let mut out = Vec::new();
        Raw.encode(&value, Timestamp::EPOCH, &mut out).map_err(|e| e.kind())?;
        Ok(out)
    }

    fn decode<V: RawValue>(entry: &'static [u8]) -> Result<V, CodecErrorKind> {
        Raw.decode(Slice::from(&Bytes::from_static(entry))).map(|(value, _)| value).map_err(|e| e.kind())
    }

    /// Asserts that `value` is encoded as `entry` and decoded from it.
    fn assert_round_trip<V: RawValue + Clone + PartialEq + std::fmt::Debug>(value: V, entry: &'static [u8]) {
        assert_eq!(encode(value.clone()).unwrap(), entry);
        assert_eq!(decode(entry), Ok(value));
    }

    #[test]
    fn values_round_trip() {
        assert_round_trip(String::new(), b"");
        assert_round_trip(Box::<str>::from("é"), b"\xc3\xa9");
        assert_round_trip(ByteString::from("i12"), b"i12");
        assert_round_trip(Bytes::new(), b"b\x7f");
        assert_round_trip(vec![0, 0x7f, 0xff], b"b\x7f\x00\x7f\xff");
        assert_round_trip(Bytes::from_static(b"b\x7fa"), b"b\x7fb\x7fa");
        assert_round_trip(true, b"i\x7fTrue");
        assert_round_trip(false, b"i\x7fFalse");
        assert_round_trip(Some(5), b"i\x7f5");
        assert_round_trip(None::<String>, b"@\x7fNone");
        assert_round_trip(0_u8, b"i\x7f0");
        assert_round_trip(i64::MIN, b"i\x7f-9223372036854775808");
        assert_round_trip(i128::MIN, b"i\x7f-170141183460469231731687303715884105728");
    }

    #[test]
    fn shares_the_memory_of_the_entry() {
        let entry = Bytes::from_static(b"b\x7fabc");
        assert_eq!(Bytes::read(Slice::from(&entry)).unwrap().as_ptr(), entry[2..].as_ptr());
        let entry = Bytes::from_static(b"abc");
        assert_eq!(ByteString::read(Slice::from(&entry)).unwrap().as_ptr(), entry.as_ptr());
    }

    #[test]
    fn rejects_strings_with_the_tag_terminator() {
        for string in ["\x7f", "i\x7f5", "abc\x7f"] {
            assert_eq!(encode(string.to_string()), Err(CodecErrorKind::Unsupported));
            assert_eq!(encode(Some(ByteString::from(string))), Err(CodecErrorKind::Unsupported));
        }
    }

    #[test]
    fn rejects_values_of_another_type() {
        for entry in [&b"i\x7f5"[..], b"b\x7fabc", b"@\x7fNone", b"a\x7f", b"i\x7fTrue"] {
            assert_eq!(decode::<String>(entry), Err(CodecErrorKind::Type));
            assert_eq!(decode::<ByteString>(entry), Err(CodecErrorKind::Type));
        }
        for entry in [&b"5"[..], b"", b"i", b"i\x7f", b"i\x7f-", b"i\x7f+5", b"i\x7f05", b"i\x7f-0", b"i\x7f00"] {
            assert_eq!(decode::<i64>(entry), Err(CodecErrorKind::Type), "{entry:?}");
        }
        for entry in [&b"i\x7f 5"[..], b"i\x7f5 ", b"i\x7f1_0", b"i\x7f1.0", b"i\x7fTrue", b"b\x7f5", b"@\x7fNone"] {
            assert_eq!(decode::<i64>(entry), Err(CodecErrorKind::Type), "{entry:?}");
        }
        assert_eq!(decode::<Vec<u8>>(b"abc"), Err(CodecErrorKind::Type));
        assert_eq!(decode::<Vec<u8>>(b"i\x7f5"), Err(CodecErrorKind::Type));
        assert_eq!(decode::<bool>(b"i\x7f1"), Err(CodecErrorKind::Type));
        assert_eq!(decode::<bool>(b"True"), Err(CodecErrorKind::Type));
    }

    #[test]
    fn distinguishes_invalid_values_from_wrong_types() {
        assert_eq!(decode::<u8>(b"i\x7f256"), Err(CodecErrorKind::Value));
        assert_eq!(decode::<u8>(b"i\x7f-1"), Err(CodecErrorKind::Value));
        assert_eq!(decode::<u64>(b"i\x7f99999999999999999999999999999999999999999"), Err(CodecErrorKind::Value));
        assert_eq!(decode::<String>(b"\xff"), Err(CodecErrorKind::Value));
        assert_eq!(decode::<ByteString>(b"\xff"), Err(CodecErrorKind::Value));
    }

    #[test]
    fn reports_no_value_as_its_own_kind() {
        assert_eq!(decode::<String>(NO_VALUE), Err(CodecErrorKind::NoValue));
        assert_eq!(decode::<Option<u8>>(NO_VALUE), Err(CodecErrorKind::NoValue));
        assert_eq!(decode::<Vec<u8>>(b"b\x7fNO_VALUE"), Ok(b"NO_VALUE".to_vec()));
    }
}
