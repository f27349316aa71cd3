//! Reads and writes msgpack envelopes around a payload, independent of how the payload is encoded.

use super::{Pack, Reader, pack_array_header, pack_map_header, pack_str};
use crate::codec::envelope::{Shape, full_meta};
use crate::codec::{CodecError, CodecErrorKind, Meta};
use crate::slice::Slice;
use crate::time::Timestamp;

/// Appends an entry; the closure `payload` appends the payload, exactly one msgpack value.
#[inline]
pub(in crate::codec) fn write_entry(
    shape: Shape,
    version: u64,
    created: Timestamp,
    out: &mut Vec<u8>,
    payload: impl FnOnce(&mut Vec<u8>) -> Result<(), CodecError>,
) -> Result<(), CodecError> {
    match shape {
        Shape::Bare => payload(out),
        Shape::Seconds => {
            pack_array_header(2, out)?;
            payload(out)?;
            created.as_secs().pack(out)
        }
        Shape::Full => {
            pack_array_header(2, out)?;
            payload(out)?;
            pack_map_header(2, out)?;
            pack_str("ct", out)?;
            created.as_secs_f64().pack(out)?;
            pack_str("v", out)?;
            version.pack(out)
        }
    }
}

/// Returns a reader positioned at the payload of an entry, one msgpack value.
#[inline(always)]
pub(in crate::codec) fn open_entry(shape: Shape, entry: Slice<'_>) -> Result<Reader<'_>, CodecError> {
    let mut reader = Reader::new(entry);
    if shape != Shape::Bare {
        read_pair(&mut reader)?;
    }
    Ok(reader)
}

/// Reads the metadata after the payload and checks that the entry ends there.
///
/// `payload` is the result of reading the payload with `reader`. If it is an error, the entry may
/// have another version, which takes precedence.
#[inline(always)]
pub(in crate::codec) fn close_entry<V>(
    shape: Shape,
    version: u64,
    entry: Slice<'_>,
    reader: &mut Reader<'_>,
    payload: Result<V, CodecError>,
) -> Result<(V, Meta), CodecError> {
    let value = match payload {
        Ok(value) => value,
        Err(error) if shape == Shape::Full => return Err(prefer_version_error(version, entry, error)),
        Err(error) => return Err(error),
    };
    let meta = match shape {
        Shape::Bare => Meta::NONE,
        Shape::Seconds => {
            let seconds = match reader.read_last_u32() {
                Some(seconds) => u64::from(seconds),
                None => reader.read_int()?,
            };
            Meta::created(Timestamp::from_secs(seconds))
        }
        Shape::Full => read_full(version, reader)?,
    };
    reader.finish()?;
    Ok((value, meta))
}

/// Reads the header of the pair of payload and metadata.
#[inline(always)]
fn read_pair(reader: &mut Reader<'_>) -> Result<(), CodecError> {
    if reader.try_pair() {
        return Ok(());
    }
    match reader.read_array_len()? {
        2 => Ok(()),
        _ => Err(CodecError::new(CodecErrorKind::Length, "the entry is not a pair of payload and metadata")),
    }
}

/// Reads the metadata map of `Full`, with its keys in any order. Unknown keys are skipped.
#[inline]
fn read_full(version: u64, reader: &mut Reader<'_>) -> Result<Meta, CodecError> {
    let (mut created, mut found) = (None, None);
    for _ in 0..reader.read_map_len()? {
        match reader.read_key()? {
            b"ct" => created = Some(reader.read_f64()?),
            b"v" => found = Some(reader.read_int()?),
            _ => reader.skip_value()?,
        }
    }
    full_meta(created, found, version)
}

/// Returns a version error if the entry has another version, and `error` otherwise.
///
/// Another version may store payloads of another type, so a payload error alone is misleading.
#[cold]
fn prefer_version_error(version: u64, entry: Slice<'_>, error: CodecError) -> CodecError {
    let mut reader = Reader::new(entry);
    let meta = read_pair(&mut reader).and_then(|()| reader.skip_value()).and_then(|()| read_full(version, &mut reader));
    match meta {
        Err(mismatch) if mismatch.kind() == CodecErrorKind::Version => mismatch,
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Msgpack;
    use crate::codec::{Bare, Codec, CodecError, CodecErrorKind, Full, Meta, Seconds};
    use crate::slice::Slice;
    use crate::time::Timestamp;
    use bytes::Bytes;

    fn full(entry: &'static [u8]) -> Result<(u8, Meta), CodecErrorKind> {
        Msgpack::<Full>::new().decode(Slice::from(&Bytes::from_static(entry))).map_err(|e| e.kind())
    }

    fn seconds(entry: &'static [u8]) -> Result<u64, CodecErrorKind> {
        let decoded: Result<(u8, Meta), CodecError> =
            Msgpack::<Seconds>::new().decode(Slice::from(&Bytes::from_static(entry)));
        decoded.map(|(_, meta)| meta.created.unwrap().as_secs()).map_err(|e| e.kind())
    }

    #[test]
    fn rounds_seconds_down() {
        let mut out = Vec::new();
        Msgpack::<Seconds>::new().encode(&5, Timestamp::from_micros(1_471_113_698_999_999), &mut out).unwrap();
        assert_eq!(out, b"\x92\x05\xceW\xafi\xe2");
    }

    #[test]
    fn rejects_invalid_seconds() {
        assert_eq!(seconds(b"\x92\x05\x07"), Ok(7));
        assert_eq!(seconds(b"\xdc\x00\x02\x05\xd3\x00\x00\x00\x00\x00\x00\x00\x07"), Ok(7));
        for (entry, kind) in [
            (&b"\x92\x05\xff"[..], CodecErrorKind::Value),
            (b"\x92\x05\xca\x3f\x80\x00\x00", CodecErrorKind::Type),
            (b"\x92\x05\xc0", CodecErrorKind::Type),
            (b"\x92\x05\x80", CodecErrorKind::Type),
            (b"\x91\x05", CodecErrorKind::Length),
            (b"\x93\x05\x07\x07", CodecErrorKind::Length),
            (b"\x92\x05\x07\x00", CodecErrorKind::Length),
            (b"\x92\x05", CodecErrorKind::Length),
            (b"\x05", CodecErrorKind::Type),
            (b"", CodecErrorKind::Length),
        ] {
            assert_eq!(seconds(entry), Err(kind), "{entry:?}");
        }
    }

    #[test]
    fn reads_full_metadata_with_keys_in_any_order() {
        let meta = Meta { created: Some(Timestamp::from_secs(1)), version: Some(2) };
        for entry in [
            &b"\x92\x05\x82\xa2ct\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00\xa1v\x02"[..],
            b"\x92\x05\x82\xa1v\x02\xa2ct\xca\x3f\x80\x00\x00",
            b"\x92\x05\x82\xa1v\x02\xa2ct\x01",
            b"\x92\x05\x84\xa1x\x93\x01\x81\xc0\xc0\xa0\xa1v\x02\xa1\xff\xc0\xa2ct\x01",
        ] {
            assert_eq!(full(entry), Ok((5, meta)), "{entry:?}");
        }
    }

    #[test]
    fn rejects_invalid_full_metadata() {
        for (entry, kind) in [
            (&b"\x92\x05\x82\xa2ct\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00\xa1v\x02"[..], CodecErrorKind::Value),
            (b"\x92\x05\x82\xa2ct\xff\xa1v\x02", CodecErrorKind::Value),
            (b"\x92\x05\x81\xa1v\x02", CodecErrorKind::Value),
            (b"\x92\x05\x81\xa2ct\x01", CodecErrorKind::Value),
            (b"\x92\x05\x80", CodecErrorKind::Value),
            (b"\x92\x05\x82\xa2ct\xc0\xa1v\x02", CodecErrorKind::Type),
            (b"\x92\x05\x82\xa2ct\xa11\xa1v\x02", CodecErrorKind::Type),
            (b"\x92\x05\x82\xa2ct\x01\xa1v\xc0", CodecErrorKind::Type),
            (b"\x92\x05\x82\xa2ct\x01\xa1v\xff", CodecErrorKind::Value),
            (b"\x92\x05\x92\x01\x02", CodecErrorKind::Type),
            (b"\x92\x05\x01", CodecErrorKind::Type),
            (b"\x92\x05\x82\xa2ct\x01\x07\x02", CodecErrorKind::Type),
            (b"\x92\x05\x82\xa2ct\x01\xa1v\x02\xc0", CodecErrorKind::Length),
            (b"\x93\x05\x82\xa2ct\x01\xa1v\x02\xc0", CodecErrorKind::Length),
            (b"\x92\x05\x82\xa2ct\x01\xa1v\x03", CodecErrorKind::Version),
        ] {
            assert_eq!(full(entry), Err(kind), "{entry:?}");
        }
    }

    #[test]
    fn distinguishes_another_version_from_a_damaged_payload() {
        // The payload is a string: a valid type in version 3, a wrong type in version 2.
        assert_eq!(full(b"\x92\xa15\x82\xa2ct\x01\xa1v\x03"), Err(CodecErrorKind::Version));
        assert_eq!(full(b"\x92\xa15\x82\xa2ct\x01\xa1v\x02"), Err(CodecErrorKind::Type));
    }

    #[test]
    fn reads_a_bare_entry_without_metadata() {
        let decode = |entry: &'static [u8]| -> Result<(u8, Meta), CodecError> {
            Msgpack::<Bare>::new().decode(Slice::from(&Bytes::from_static(entry)))
        };
        assert_eq!(decode(b"\x05"), Ok((5, Meta::NONE)));
        assert_eq!(decode(b"\x05\x05").unwrap_err().kind(), CodecErrorKind::Length);
        assert_eq!(decode(b"").unwrap_err().kind(), CodecErrorKind::Length);
    }
}
