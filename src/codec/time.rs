//! Encodes dates, times and durations in msgpack, as tagged maps.
//!
//! The tags are those of the experimental serializer in `dogpile_backend_redis_advanced`.
//!
//! | value | map | types |
//! |---|---|---|
//! | point in time | `{"__datetime__": true, "0": seconds since 1970}` | `SystemTime`, `jiff::Timestamp` |
//! | date | `{"__date__": true, "0": "YYYYMMDD"}` | `jiff::civil::Date` |
//! | duration | `{"__timedelta__": true, "0": seconds}` | `Duration`, `jiff::SignedDuration` |
//!
//! Whole seconds are an integer, all others a float. Values are truncated to microseconds, because
//! Python does not support a finer resolution. A float represents microseconds exactly for about
//! two centuries around 1970.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::msgpack::Number;
use super::{CodecError, CodecErrorKind, Pack, Reader, Unpack, pack_map_header, pack_str};

const DATETIME: &str = "__datetime__";
const TIMEDELTA: &str = "__timedelta__";
const MICROS: i128 = 1_000_000;

/// `{"__datetime__": true, "0": seconds since 1970}`, to the microsecond. Times before 1970 are
/// negative.
impl Pack for SystemTime {
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let micros = match self.duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_micros().cast_signed(),
            Err(before) => -before.duration().as_micros().cast_signed(),
        };
        pack_tagged(DATETIME, out, |out| pack_seconds(micros, out))
    }
}

impl Unpack for SystemTime {
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let micros = unpack_tagged(DATETIME, reader, unpack_seconds)?;
        let distance = duration_from_micros(micros.saturating_abs())?;
        let time = if micros < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
        time.ok_or_else(out_of_range)
    }
}

/// `{"__timedelta__": true, "0": seconds}`, to the microsecond.
impl Pack for Duration {
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        pack_tagged(TIMEDELTA, out, |out| pack_seconds(self.as_micros().cast_signed(), out))
    }
}

/// Rejects negative durations, which Python can write.
impl Unpack for Duration {
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        duration_from_micros(unpack_tagged(TIMEDELTA, reader, unpack_seconds)?)
    }
}

#[cfg(feature = "jiff")]
mod with_jiff {
    use jiff::civil::Date;
    use jiff::{SignedDuration, Timestamp};

    use super::{
        CodecError, CodecErrorKind, DATETIME, MICROS, Pack, Reader, TIMEDELTA, Unpack, out_of_range, pack_seconds,
        pack_str, pack_tagged, unpack_seconds, unpack_tagged,
    };

    const DATE: &str = "__date__";

    /// `{"__datetime__": true, "0": seconds since 1970}`, to the microsecond.
    impl Pack for Timestamp {
        fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
            pack_tagged(DATETIME, out, |out| pack_seconds(self.as_microsecond().into(), out))
        }
    }

    impl Unpack for Timestamp {
        fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
            let micros = unpack_tagged(DATETIME, reader, unpack_seconds)?;
            let micros = i64::try_from(micros).map_err(|_| out_of_range())?;
            Timestamp::from_microsecond(micros).map_err(|_| out_of_range())
        }
    }

    /// `{"__timedelta__": true, "0": seconds}`, to the microsecond.
    impl Pack for SignedDuration {
        fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
            pack_tagged(TIMEDELTA, out, |out| pack_seconds(self.as_micros(), out))
        }
    }

    impl Unpack for SignedDuration {
        #[allow(clippy::cast_possible_truncation)]
        fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
            let micros = unpack_tagged(TIMEDELTA, reader, unpack_seconds)?;
            let seconds = i64::try_from(micros / MICROS).map_err(|_| out_of_range())?;
            Ok(SignedDuration::new(seconds, (micros % MICROS) as i32 * 1000))
        }
    }

    /// `{"__date__": true, "0": "YYYYMMDD"}`. Years before 0 cannot be encoded.
    impl Pack for Date {
        fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
            let year = u32::try_from(self.year()).map_err(|_| {
                CodecError::new(
                    CodecErrorKind::Unsupported,
                    format!("the date {self} cannot be encoded: its year is negative"),
                )
            })?;
            let mut number = year * 10_000 + u32::from(self.month().unsigned_abs()) * 100;
            number += u32::from(self.day().unsigned_abs());
            let mut digits = [b'0'; 8];
            for digit in digits.iter_mut().rev() {
                *digit += (number % 10) as u8;
                number /= 10;
            }
            let digits = std::str::from_utf8(&digits).expect("digits are ASCII");
            pack_tagged(DATE, out, |out| pack_str(digits, out))
        }
    }

    impl Unpack for Date {
        fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
            let digits = unpack_tagged(DATE, reader, Reader::read_str)?;
            parse(digits.as_bytes()).ok_or_else(out_of_range)
        }
    }

    fn parse(digits: &[u8]) -> Option<Date> {
        let digits: &[u8; 8] = digits.try_into().ok()?;
        let mut number = 0;
        for digit in digits {
            number = number * 10 + char::from(*digit).to_digit(10)?;
        }
        let year = i16::try_from(number / 10_000).ok()?;
        let month = i8::try_from(number / 100 % 100).ok()?;
        let day = i8::try_from(number % 100).ok()?;
        Date::new(year, month, day).ok()
    }
}

/// Appends `{tag: true, "0": …}`; the closure `value` appends the value.
fn pack_tagged(
    tag: &str,
    out: &mut Vec<u8>,
    value: impl FnOnce(&mut Vec<u8>) -> Result<(), CodecError>,
) -> Result<(), CodecError> {
    pack_map_header(2, out)?;
    pack_str(tag, out)?;
    true.pack(out)?;
    pack_str("0", out)?;
    value(out)
}

/// Reads `{tag: true, "0": …}` with the keys in any order; the closure `value` reads the value.
///
/// Unknown keys are skipped.
fn unpack_tagged<'a, T>(
    tag: &str,
    reader: &mut Reader<'a>,
    value: impl Fn(&mut Reader<'a>) -> Result<T, CodecError>,
) -> Result<T, CodecError> {
    let (mut tagged, mut found) = (false, None);
    for _ in 0..reader.read_map_len()? {
        match reader.read_key()? {
            key if key == tag.as_bytes() => tagged = reader.read_bool()?,
            b"0" => found = Some(value(reader)?),
            _ => reader.skip_value()?,
        }
    }
    if !tagged {
        return Err(CodecError::new(CodecErrorKind::Type, format!("the map has no tag {tag}")));
    }
    found.ok_or_else(|| CodecError::new(CodecErrorKind::Value, format!("the map with the tag {tag} has no value `0`")))
}

/// Appends seconds as an integer if they are whole, otherwise as a float.
#[allow(clippy::cast_precision_loss)]
fn pack_seconds(micros: i128, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let seconds = micros / MICROS;
    if micros % MICROS != 0 {
        (micros as f64 / 1e6).pack(out)
    } else if let Ok(seconds) = u64::try_from(seconds) {
        seconds.pack(out)
    } else if let Ok(seconds) = i64::try_from(seconds) {
        seconds.pack(out)
    } else {
        (seconds as f64).pack(out)
    }
}

/// Reads seconds and rounds them to the nearest microsecond. Returns microseconds.
#[allow(clippy::cast_possible_truncation)]
fn unpack_seconds(reader: &mut Reader<'_>) -> Result<i128, CodecError> {
    match reader.read_number()? {
        Number::Unsigned(seconds) => Ok(i128::from(seconds) * MICROS),
        Number::Signed(seconds) => Ok(i128::from(seconds) * MICROS),
        // The cast saturates. The callers' types cannot represent the saturated values, so they
        // report an error.
        Number::Float(seconds) if !seconds.is_nan() => Ok((seconds * 1e6).round() as i128),
        Number::Float(_) => Err(out_of_range()),
    }
}

fn duration_from_micros(micros: i128) -> Result<Duration, CodecError> {
    let seconds = u64::try_from(micros.div_euclid(MICROS)).map_err(|_| out_of_range())?;
    let micros = u32::try_from(micros.rem_euclid(MICROS)).map_err(|_| out_of_range())?;
    Ok(Duration::new(seconds, micros * 1000))
}

#[cold]
fn out_of_range() -> CodecError {
    CodecError::new(CodecErrorKind::Value, "the date, time or duration is out of range")
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use crate::slice::Slice;
    use bytes::Bytes;

    use super::*;

    fn pack<T: Pack>(value: T) -> Vec<u8> {
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
    fn assert_round_trip<T: Pack + Unpack + PartialEq + Debug + Copy>(value: T, bytes: &[u8]) {
        assert_eq!(pack(value), bytes, "{value:?}");
        assert_eq!(unpack(bytes.to_vec()), Ok(value));
    }

    fn tagged(tag: &str, value: &[u8]) -> Vec<u8> {
        [&[0x82, 0xa0 | tag.len() as u8], tag.as_bytes(), b"\xc3\xa10", value].concat()
    }

    /// Numbers of seconds that none of the types can represent, and values that are not numbers.
    fn invalid_seconds() -> Vec<Vec<u8>> {
        let floats = [1e300, -1e300, 1e20, f64::MAX, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        floats.into_iter().map(pack).chain([pack("1"), pack(()), vec![0x90], pack(())]).collect()
    }

    #[test]
    fn std_times_round_trip() {
        let second = |n| UNIX_EPOCH + Duration::from_secs(n);
        assert_round_trip(UNIX_EPOCH, &tagged(DATETIME, b"\x00"));
        assert_round_trip(second(1_471_113_698), &tagged(DATETIME, b"\xceW\xafi\xe2"));
        assert_round_trip(UNIX_EPOCH - Duration::from_secs(2), &tagged(DATETIME, b"\xfe"));
        assert_round_trip(UNIX_EPOCH - Duration::from_millis(1500), &tagged(DATETIME, &pack(-1.5)));
        assert_round_trip(
            second(1_471_113_698) + Duration::from_micros(761_270),
            &tagged(DATETIME, b"\xcbA\xd5\xeb\xdax\xb0\xb8\xa6"),
        );
        let later = second(5) + Duration::from_nanos(1_000_999);
        assert_eq!(unpack(pack(later)), Ok(second(5) + Duration::from_micros(1000)));
    }

    #[test]
    fn std_durations_round_trip() {
        assert_round_trip(Duration::ZERO, &tagged(TIMEDELTA, b"\x00"));
        assert_round_trip(Duration::from_micros(1), &tagged(TIMEDELTA, &pack(1e-6)));
        assert_round_trip(Duration::from_millis(1500), &tagged(TIMEDELTA, &pack(1.5)));
        assert_round_trip(Duration::from_secs(u64::MAX), &tagged(TIMEDELTA, &pack(u64::MAX)));
        assert_eq!(unpack::<Duration>(tagged(TIMEDELTA, b"\xff")), Err(CodecErrorKind::Value));
        assert_eq!(unpack::<Duration>(tagged(TIMEDELTA, &pack(-0.5))), Err(CodecErrorKind::Value));
        // The nearest float is longer than the longest duration.
        assert_eq!(unpack::<Duration>(pack(Duration::MAX)), Err(CodecErrorKind::Value));
    }

    #[test]
    fn reads_keys_in_any_order_and_skips_unknown_keys() {
        assert_eq!(unpack(&b"\x83\xa10\x05\xa1z\x91\xc0\xad__timedelta__\xc3"[..]), Ok(Duration::from_secs(5)));
        for (bytes, kind) in [
            (&b"\x82\xa10\x05\xad__timedelta__\xc2"[..], CodecErrorKind::Type),
            (b"\x82\xa10\x05\xac__datetime__\xc3", CodecErrorKind::Type),
            (b"\x82\xa10\x05\xad__timedelta__\x01", CodecErrorKind::Type),
            (b"\x81\xa10\x05", CodecErrorKind::Type),
            (b"\x81\xad__timedelta__\xc3", CodecErrorKind::Value),
            (b"\x05", CodecErrorKind::Type),
        ] {
            assert_eq!(unpack::<Duration>(bytes), Err(kind), "{bytes:?}");
        }
    }

    #[test]
    fn rejects_invalid_seconds() {
        for value in invalid_seconds() {
            assert!(unpack::<SystemTime>(tagged(DATETIME, &value)).is_err(), "{value:?}");
            assert!(unpack::<Duration>(tagged(TIMEDELTA, &value)).is_err(), "{value:?}");
        }
        for value in [pack(u64::MAX), pack(i64::MIN), pack(i64::MAX)] {
            let _ = unpack::<SystemTime>(tagged(DATETIME, &value));
        }
    }

    #[cfg(feature = "jiff")]
    #[test]
    fn jiff_values_round_trip() {
        use jiff::civil::{Date, date};
        use jiff::{SignedDuration, Timestamp};

        let time = Timestamp::from_microsecond(1_471_113_698_761_270).unwrap();
        assert_round_trip(time, &tagged(DATETIME, b"\xcbA\xd5\xeb\xdax\xb0\xb8\xa6"));
        assert_round_trip(Timestamp::from_second(-2).unwrap(), &tagged(DATETIME, b"\xfe"));
        assert!(unpack::<Timestamp>(pack(Timestamp::MIN)).is_ok());
        assert_eq!(unpack(pack(SystemTime::from(time))), Ok(time));

        assert_round_trip(SignedDuration::from_millis(-1500), &tagged(TIMEDELTA, &pack(-1.5)));
        assert_round_trip(SignedDuration::from_secs(i64::MIN), &tagged(TIMEDELTA, &pack(i64::MIN)));
        assert_round_trip(SignedDuration::from_secs(i64::MAX), &tagged(TIMEDELTA, &pack(i64::MAX)));

        assert_round_trip(date(2016, 8, 13), &tagged("__date__", b"\xa820160813"));
        assert_round_trip(date(9, 1, 2), &tagged("__date__", b"\xa800090102"));
        assert_round_trip(Date::MAX, &tagged("__date__", b"\xa899991231"));
        assert_eq!(Date::MIN.pack(&mut Vec::new()).unwrap_err().kind(), CodecErrorKind::Unsupported);

        for value in invalid_seconds() {
            assert!(unpack::<Timestamp>(tagged(DATETIME, &value)).is_err(), "{value:?}");
            assert!(unpack::<SignedDuration>(tagged(TIMEDELTA, &value)).is_err(), "{value:?}");
            assert!(unpack::<Date>(tagged("__date__", &value)).is_err(), "{value:?}");
        }
        for digits in ["99999999", "20160230", "2016081", "201608130", "2016-8-1", "+0160813", "２0160", ""] {
            assert_eq!(unpack::<Date>(tagged("__date__", &pack(digits))), Err(CodecErrorKind::Value), "{digits}");
        }
    }
}
