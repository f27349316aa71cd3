//! The envelope `JsonMeta`: a JSON header with the metadata before the payload.

use crate::codec::envelope::{Envelope, Shape, Versioned, sealed::Sealed};
use crate::codec::json::{FullMeta, read};
use crate::codec::{CodecError, CodecErrorKind, Meta};
use crate::float::Repr;
use crate::slice::Slice;
use crate::time::Timestamp;

/// The envelope that `dogpile.cache` uses since version 1.1, for all serializers.
///
/// An entry is `{"ct": seconds as a float, "v": version}|payload`. The metadata is written byte for
/// byte as Python writes it. It is read with its keys in any order, and unknown keys are skipped.
///
/// The metadata is read before the payload, so an entry of another version is always reported as
/// such, whatever its payload is.
///
/// # Cost
///
/// Writing the metadata does not allocate. Reading it does not allocate either, unless its keys
/// contain escapes.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::codec::{Codec, CodecErrorKind, python::JsonMeta};
/// use dogpile::{Json, Timestamp};
/// use dogpile::codec::Slice;
///
/// let codec = Json::<JsonMeta>::new();
/// let mut entry = Vec::new();
/// codec.encode(&vec![1, 2], Timestamp::from_micros(1_471_113_698_761_270), &mut entry)?;
/// assert_eq!(entry, br#"{"ct": 1471113698.76127, "v": 2}|[1,2]"#);
///
/// let entry = Bytes::from(entry);
/// let (value, meta): (Vec<u8>, _) = codec.decode(Slice::from(&entry))?;
/// assert_eq!((value, meta.version), (vec![1, 2], Some(2)));
///
/// let newer: Result<(Vec<u8>, _), _> = codec.version(3).decode(Slice::from(&entry));
/// assert_eq!(newer.unwrap_err().kind(), CodecErrorKind::Version);
/// # Ok::<(), dogpile::codec::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonMeta;

impl Sealed for JsonMeta {}

impl Versioned for JsonMeta {}

// The formats write a bare payload, because all the metadata is in the header before it.
impl Envelope for JsonMeta {
    const SHAPE: Shape = Shape::Bare;

    fn write_head(version: u64, created: Timestamp, out: &mut Vec<u8>) {
        out.extend_from_slice(br#"{"ct": "#);
        out.extend_from_slice(Repr::new(created.as_secs_f64()).as_bytes());
        out.extend_from_slice(br#", "v": "#);
        out.extend_from_slice(itoa::Buffer::new().format(version).as_bytes());
        out.extend_from_slice(b"}|");
    }

    // The metadata ends at the first `|`, as in Python.
    fn read_head(version: u64, entry: Slice<'_>) -> Result<(Option<Meta>, Slice<'_>), CodecError> {
        let bytes = entry.as_bytes();
        let separator = bytes.iter().position(|byte| *byte == b'|');
        let meta: FullMeta = read(&bytes[..separator.unwrap_or(bytes.len())])?;
        let Some(separator) = separator else {
            return Err(CodecError::new(
                CodecErrorKind::Length,
                "the entry is truncated: no payload follows the metadata",
            ));
        };
        Ok((Some(meta.check(version)?), entry.part(&bytes[separator + 1..])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Codec, Json, Msgpack};
    use bytes::Bytes;

    fn read_u8(entry: &'static str) -> Result<(u8, Meta), CodecErrorKind> {
        Json::<JsonMeta>::new().decode(Slice::from(&Bytes::from_static(entry.as_bytes()))).map_err(|e| e.kind())
    }

    #[test]
    fn writes_the_same_metadata_as_python() {
        for (micros, version, entry) in [
            (1_471_113_698_761_270, 2, r#"{"ct": 1471113698.76127, "v": 2}|5"#),
            (1_471_113_698_000_000, 2, r#"{"ct": 1471113698.0, "v": 2}|5"#),
            (0, 0, r#"{"ct": 0.0, "v": 0}|5"#),
            (1, u64::MAX, r#"{"ct": 1e-06, "v": 18446744073709551615}|5"#),
        ] {
            let mut out = Vec::new();
            let codec = Json::<JsonMeta>::new().version(version);
            codec.encode(&5, Timestamp::from_micros(micros), &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), entry);
        }
    }

    #[test]
    fn reads_metadata_with_keys_in_any_order() {
        let meta = Meta { created: Some(Timestamp::from_secs(1)), version: Some(2) };
        for entry in [
            r#"{"ct": 1.0, "v": 2}|5"#,
            r#"{"v":2,"ct":1}|5"#,
            r#" { "x" : [{"ct": 7}], "\u0063t" : 1e0, "v" : 2 } | 5"#,
        ] {
            assert_eq!(read_u8(entry), Ok((5, meta)), "{entry}");
        }
    }

    #[test]
    fn rejects_invalid_metadata() {
        for (entry, kind) in [
            ("", CodecErrorKind::Length),
            ("|5", CodecErrorKind::Length),
            (r#"{"ct": 1.0, "v""#, CodecErrorKind::Length),
            (r#"{"ct": 1.0, "v": 2}"#, CodecErrorKind::Length),
            (r#"{"ct": 1.0, "v": 2}|"#, CodecErrorKind::Length),
            (r#"{"ct": 1.0, "v": 2}|5 5"#, CodecErrorKind::Length),
            (r#"{"ct": 1.0, "v": 2} 5|5"#, CodecErrorKind::Length),
            (r#"{"x|": 1, "ct": 1.0, "v": 2}|5"#, CodecErrorKind::Length),
            (r#"{"ct": 1.0}|5"#, CodecErrorKind::Value),
            (r#"{"v": 2}|5"#, CodecErrorKind::Value),
            (r#"{"ct": -1.0, "v": 2}|5"#, CodecErrorKind::Value),
            (r#"{"ct": NaN, "v": 2}|5"#, CodecErrorKind::Type),
            (r#"[1.0, 2]|5"#, CodecErrorKind::Type),
            ("\u{1}|5", CodecErrorKind::Type),
            (r#"{"ct": 1.0, "v": 2}|"5""#, CodecErrorKind::Type),
        ] {
            assert_eq!(read_u8(entry), Err(kind), "{entry}");
        }
    }

    #[test]
    fn reports_another_version_for_any_payload() {
        assert_eq!(read_u8(r#"{"ct": 1.0, "v": 3}|"#), Err(CodecErrorKind::Version));
        assert_eq!(read_u8(r#"{"ct": 1.0, "v": 1}|"five""#), Err(CodecErrorKind::Version));
    }

    #[test]
    fn shares_the_memory_of_the_entry() {
        let mut out = Vec::new();
        let codec = Msgpack::<JsonMeta>::new();
        codec.encode(&Bytes::from_static(b"|data"), Timestamp::EPOCH, &mut out).unwrap();
        let entry = Bytes::from(out);
        let (data, _): (Bytes, _) = codec.decode(Slice::from(&entry)).unwrap();
        assert_eq!(data.as_ptr(), entry[entry.len() - 5..].as_ptr());
    }
}
