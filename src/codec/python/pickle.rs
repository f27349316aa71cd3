//! The format `Pickle`: any type that serde supports, as a Python pickle of plain data.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::JsonMeta;
use super::data;
use super::graph::{Graph, GraphNode, Id};
use crate::codec::envelope::{DEFAULT_VERSION, Envelope, Shape, Versioned};
use crate::codec::json::FullMeta;
use crate::codec::{Codec, CodecError, CodecErrorKind, Meta};
use crate::slice::Slice;
use crate::time::Timestamp;

/// A codec that stores any `Serialize + DeserializeOwned` type as a Python pickle of plain data.
///
/// Pickle is the default format of `dogpile.cache`. The envelope selects the compatible Python
/// configuration:
///
/// | codec | compatible with |
/// |---|---|
/// | `Pickle<JsonMeta>` (default) | `dogpile.cache` since 1.1, with its default serializer |
/// | `Pickle<Full>` | `dogpile.cache` before 1.1: a pickled `CachedValue` |
/// | `Pickle<Seconds>` | `Serializer_PickleIntTime_ProxyBackend`: a pickled `CachedValue` with the time in whole seconds |
/// | `Pickle<Bare>` | `Serializer_PickleNoMeta_ProxyBackend`: only the payload |
///
/// # Decoding
///
/// The codec reads pickles of the protocols 2 to 5 with `None`, bools, integers of up to 128 bits,
/// floats, strings, bytes, lists, tuples, sets and dicts. Values may be shared. Sets are read like
/// lists. Bytes can also be read as a `Vec<u8>`, or as a `String` if they are valid UTF-8.
///
/// Decoding never calls code that a pickle names. These pickles are rejected:
///
/// - Objects of other classes, such as dates, decimals or your own, are errors of the kind
///   [`Type`](CodecErrorKind::Type). The message contains the name of the class.
/// - Values that nest more than 128 levels deep or contain themselves are errors of the kind
///   [`Value`](CodecErrorKind::Value).
/// - So are values that would be larger than both 16 MiB and 128 times the pickle if each shared
///   value were copied.
/// - A pickled `NO_VALUE` is an error of the kind [`NoValue`](CodecErrorKind::NoValue).
///
/// # Encoding
///
/// The codec writes protocol 3 through `serde-pickle`, which every Python 3 reads. Structs are
/// dicts of their fields, tuples are tuples, and enums are `"Variant"` or `{"Variant": …}`. A
/// `Vec<u8>` is a list of integers unless it is annotated with `serde_bytes`. `i128` and `u128` are
/// errors of the kind [`Unsupported`](CodecErrorKind::Unsupported).
///
/// # Cost
///
/// Encoding allocates only to grow `out`, plus four bytes for each `char`. Decoding allocates
/// tables in addition to the value. They take up to 75 times the size of the entry if the entry
/// contains only small values. If untrusted parties can write entries, limit the entry size with
/// [`max_entry`](crate::redis::RedisBuilder::max_entry).
///
/// ```
/// use bytes::Bytes;
/// use dogpile::codec::{Codec, python::Pickle};
/// use dogpile::codec::Slice;
/// use dogpile::Timestamp;
///
/// // Python stored this entry with region.set(key, {"one": 399}).
/// let entry = b"{\"ct\": 1471113698.76127, \"v\": 2}|\x80\x05\x95\x0d\0\0\0\0\0\0\0}\x94\x8c\x03one\x94M\x8f\x01s.";
///
/// let codec: Pickle = Pickle::new();
/// let (value, meta) = codec.decode(Slice::from(&Bytes::from_static(entry)))?;
/// let value: std::collections::BTreeMap<String, u32> = value;
/// assert_eq!(value["one"], 399);
/// assert_eq!(meta.created, Some(Timestamp::from_micros(1_471_113_698_761_270)));
///
/// // Python can read this entry.
/// let mut entry = Vec::new();
/// codec.encode(&value, Timestamp::from_micros(1_471_113_698_761_270), &mut entry)?;
/// assert_eq!(entry, b"{\"ct\": 1471113698.76127, \"v\": 2}|\x80\x03}(X\x03\0\0\0oneJ\x8f\x01\0\0u.");
/// # Ok::<(), dogpile::codec::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Pickle<E: Envelope = JsonMeta> {
    version: u64,
    envelope: PhantomData<E>,
}

impl<E: Envelope> Pickle<E> {
    /// Creates the codec with the default version, 2, if its envelope stores a version.
    #[must_use]
    pub const fn new() -> Self {
        Pickle { version: DEFAULT_VERSION, envelope: PhantomData }
    }
}

impl<E: Versioned> Pickle<E> {
    /// Sets the version of the entries that this codec writes and accepts.
    ///
    /// Entries of another version are misses, with the error kind
    /// [`Version`](CodecErrorKind::Version).
    ///
    /// ```
    /// use dogpile::codec::python::{JsonMeta, Pickle};
    ///
    /// let codec = Pickle::<JsonMeta>::new().version(3);
    /// ```
    #[must_use]
    pub const fn version(mut self, version: u64) -> Self {
        self.version = version;
        self
    }
}

impl<E: Envelope> Default for Pickle<E> {
    fn default() -> Self {
        Pickle::new()
    }
}

impl<V: Serialize + DeserializeOwned, E: Envelope> Codec<V> for Pickle<E> {
    fn encode(&self, value: &V, created: Timestamp, out: &mut Vec<u8>) -> Result<(), CodecError> {
        E::write_head(self.version, created, out);
        out.extend_from_slice(b"\x80\x03");
        match E::SHAPE {
            Shape::Bare => write(value, out)?,
            Shape::Seconds => write_cached(value, created.as_secs(), self.version, out)?,
            Shape::Full => write_cached(value, created.as_secs_f64(), self.version, out)?,
        }
        out.push(b'.');
        Ok(())
    }

    fn decode(&self, entry: Slice<'_>) -> Result<(V, Meta), CodecError> {
        let (head, entry) = E::read_head(self.version, entry)?;
        let graph = Graph::read(entry.as_bytes())?;
        let (payload, meta) = match E::SHAPE {
            Shape::Bare => (graph.root(), Meta::NONE),
            Shape::Seconds | Shape::Full => read_cached(&graph, self.version)?,
        };
        if let GraphNode::NoValue = graph.node(payload) {
            return Err(CodecError::new(CodecErrorKind::NoValue, "the entry is the marker for no value (NO_VALUE)"));
        }
        Ok((data::read(&graph, payload)?, head.unwrap_or(meta)))
    }
}

/// Appends `CachedValue(value, {"ct": …, "v": …})`, which Python constructs like any named tuple.
fn write_cached<V: Serialize>(
    value: &V,
    created: impl Serialize,
    version: u64,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    out.extend_from_slice(b"cdogpile.cache.api\nCachedValue\n");
    write(value, out)?;
    out.extend_from_slice(b"}(X\x02\0\0\0ct");
    write(&created, out)?;
    out.extend_from_slice(b"X\x01\0\0\0v");
    write(&version, out)?;
    out.extend_from_slice(b"u\x86\x81");
    Ok(())
}

/// Returns the payload and the metadata of a pickled `CachedValue`.
///
/// Another version is reported before the payload is deserialized. However, building the graph has
/// already rejected classes that are not supported.
fn read_cached(graph: &Graph<'_>, version: u64) -> Result<(Id, Meta), CodecError> {
    let GraphNode::CachedValue([payload, meta]) = graph.node(graph.root()) else {
        return Err(CodecError::new(CodecErrorKind::Type, "the pickle is not a `CachedValue`"));
    };
    let meta: FullMeta = data::read(graph, *meta)?;
    Ok((*payload, meta.check(version)?))
}

/// Appends the opcodes of a value.
fn write<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let start = out.len();
    value
        .serialize(&mut serde_pickle::Serializer::new(&mut *out, serde_pickle::SerOptions::new()))
        .map_err(|error| CodecError::new(CodecErrorKind::Unsupported, error.to_string()))?;
    // serde-pickle truncates the lengths of longer strings and bytes to 32 bits.
    if u32::try_from(out.len() - start).is_err() {
        return Err(CodecError::new(
            CodecErrorKind::Unsupported,
            "the value is too large: pickles of 4 GiB or more cannot be written",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fmt::Debug;

    use bytes::Bytes;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::codec::{Bare, Full, Seconds};

    const CREATED: Timestamp = Timestamp::from_micros(1_471_113_698_761_270);

    /// A type whose visitor accepts only unsigned integers.
    #[derive(Debug, PartialEq)]
    struct Unsigned(u64);

    impl Serialize for Unsigned {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_u64(self.0)
        }
    }

    impl<'de> Deserialize<'de> for Unsigned {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl serde::de::Visitor<'_> for Visitor {
                type Value = Unsigned;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an unsigned integer")
                }
                fn visit_u64<E>(self, int: u64) -> Result<Unsigned, E> {
                    Ok(Unsigned(int))
                }
            }
            deserializer.deserialize_any(Visitor)
        }
    }

    #[test]
    fn presents_nonnegative_integers_as_unsigned() {
        round_trip(&[Unsigned(0), Unsigned(5), Unsigned(u64::MAX)].map(Box::new));
    }

    #[test]
    fn reads_rows_that_share_long_names() {
        // names = ["n" * 60 + str(i) …]; pickle.dumps([dict.fromkeys(names) for _ in range(rows)])
        let (columns, rows) = (30_u8, 10_000);
        let mut pickle = b"\x80\x04](".to_vec();
        for row in 0..rows {
            pickle.extend(b"}(");
            for column in 0..columns {
                if row == 0 {
                    pickle.extend(b"\x8c\x3e");
                    pickle.extend([b'n'; 60]);
                    pickle.extend(format!("{column:02}").bytes());
                    pickle.push(0x94);
                } else {
                    pickle.extend([b'h', column]);
                }
                pickle.push(b'N');
            }
            pickle.push(b'u');
        }
        pickle.extend(b"e.");
        let (read, _) = decode::<Vec<BTreeMap<String, ()>>, _>(Pickle::<Bare>::new(), pickle).unwrap();
        assert_eq!((read.len(), read[rows - 1].len()), (rows, columns.into()));
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Tree {
        Leaf,
        Branch(Box<Tree>),
        Fork(Box<Tree>, Box<Tree>),
        Pair { left: Box<Tree>, right: Box<Tree> },
    }

    fn encode<V: Serialize + DeserializeOwned, E: Envelope>(codec: Pickle<E>, value: &V) -> Vec<u8> {
        let mut out = Vec::new();
        codec.encode(value, CREATED, &mut out).unwrap();
        out
    }

    fn decode<V, E>(codec: Pickle<E>, entry: impl Into<Bytes>) -> Result<(V, Meta), CodecErrorKind>
    where
        V: Serialize + DeserializeOwned,
        E: Envelope,
    {
        codec.decode(Slice::from(&entry.into())).map_err(|error| error.kind())
    }

    fn bare<V: Serialize + DeserializeOwned>(entry: &'static [u8]) -> Result<V, CodecErrorKind> {
        decode(Pickle::<Bare>::new(), entry).map(|(value, _)| value)
    }

    fn round_trip<V: Serialize + DeserializeOwned + PartialEq + Debug>(value: &V) {
        fn one<V, E>(codec: Pickle<E>, value: &V, meta: Meta)
        where
            V: Serialize + DeserializeOwned + PartialEq + Debug,
            E: Envelope,
        {
            let (read, found): (V, _) = decode(codec, encode(codec, value)).unwrap();
            assert_eq!((&read, found), (value, meta));
        }
        let created = |created, version| Meta { created: Some(created), version: Some(version) };
        one(Pickle::<Bare>::new(), value, Meta::NONE);
        one(Pickle::<Seconds>::new(), value, created(Timestamp::from_secs(CREATED.as_secs()), 2));
        one(Pickle::<Full>::new().version(u64::MAX), value, created(CREATED, u64::MAX));
        one(Pickle::<JsonMeta>::new().version(u64::MAX), value, created(CREATED, u64::MAX));
    }

    /// One value of every kind, as Python 3.11 writes it in the protocols 2 to 5.
    const EVERYTHING: [&[u8]; 4] = [
        b"\x80\x02(N\x88J\xff\xff\xff\xff\x8a\t\xff\xff\xff\xff\xff\xff\xff\xff\x00\x8a\x08\x00\x00\x00\
          \x00\x00\x00\x00\x80\x8a\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7fG?\
          \xb9\x99\x99\x99\x99\x99\x9aX\t\x00\x00\x00\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9eq\x00c_codecs\nen\
          code\nq\x01X\x03\x00\x00\x00\x00\xc3\xbfq\x02X\x06\x00\x00\x00latin1q\x03\x86q\x04Rq\x05c__built\
          in__\nbytearray\nq\x06h\x01X\x02\x00\x00\x00abq\x07h\x03\x86q\x08Rq\t\x85q\nRq\x0bc__builtin__\n\
          bytes\nq\x0c)Rq\rK\x01\x85q\x0ec__builtin__\nset\nq\x0f]q\x10K\x03a\x85q\x11Rq\x12c__builtin__\n\
          frozenset\nq\x13]q\x14K\x04a\x85q\x15Rq\x16]q\x17(]q\x18(X\x01\x00\x00\x00aq\x19X\x02\x00\x00\
          \x00\xc3\xa9q\x1aeh\x18e}q\x1b(J\xfb\xff\xff\xffX\x01\x00\x00\x00xq\x1cJp\x11\x01\x00X\x01\x00\
          \x00\x00yq\x1dutq\x1e.",
        b"\x80\x03(N\x88J\xff\xff\xff\xff\x8a\t\xff\xff\xff\xff\xff\xff\xff\xff\x00\x8a\x08\x00\x00\x00\
          \x00\x00\x00\x00\x80\x8a\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7fG?\
          \xb9\x99\x99\x99\x99\x99\x9aX\t\x00\x00\x00\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9eq\x00C\x02\x00\
          \xffq\x01cbuiltins\nbytearray\nq\x02C\x02abq\x03\x85q\x04Rq\x05C\x00q\x06K\x01\x85q\x07cbuiltins\
          \nset\nq\x08]q\tK\x03a\x85q\nRq\x0bcbuiltins\nfrozenset\nq\x0c]q\rK\x04a\x85q\x0eRq\x0f]q\x10(]q\
          \x11(X\x01\x00\x00\x00aq\x12X\x02\x00\x00\x00\xc3\xa9q\x13eh\x11e}q\x14(J\xfb\xff\xff\xffX\x01\
          \x00\x00\x00xq\x15Jp\x11\x01\x00X\x01\x00\x00\x00yq\x16utq\x17.",
        b"\x80\x04\x95\xa9\x00\x00\x00\x00\x00\x00\x00(N\x88J\xff\xff\xff\xff\x8a\t\xff\xff\xff\xff\xff\
          \xff\xff\xff\x00\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80\x8a\x10\xff\xff\xff\xff\xff\xff\xff\xff\
          \xff\xff\xff\xff\xff\xff\xff\x7fG?\xb9\x99\x99\x99\x99\x99\x9a\x8c\t\xe6\x97\xa5\xe6\x9c\xac\xe8\
          \xaa\x9e\x94C\x02\x00\xff\x94\x8c\x08builtins\x94\x8c\tbytearray\x94\x93\x94C\x02ab\x94\x85\x94R\
          \x94C\x00\x94K\x01\x85\x94\x8f\x94(K\x03\x90(K\x04\x91\x94]\x94(]\x94(\x8c\x01a\x94\x8c\x02\xc3\
          \xa9\x94eh\re}\x94(J\xfb\xff\xff\xff\x8c\x01x\x94Jp\x11\x01\x00\x8c\x01y\x94ut\x94.",
        b"\x80\x05\x95\x93\x00\x00\x00\x00\x00\x00\x00(N\x88J\xff\xff\xff\xff\x8a\t\xff\xff\xff\xff\xff\
          \xff\xff\xff\x00\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80\x8a\x10\xff\xff\xff\xff\xff\xff\xff\xff\
          \xff\xff\xff\xff\xff\xff\xff\x7fG?\xb9\x99\x99\x99\x99\x99\x9a\x8c\t\xe6\x97\xa5\xe6\x9c\xac\xe8\
          \xaa\x9e\x94C\x02\x00\xff\x94\x96\x02\x00\x00\x00\x00\x00\x00\x00ab\x94C\x00\x94K\x01\x85\x94\
          \x8f\x94(K\x03\x90(K\x04\x91\x94]\x94(]\x94(\x8c\x01a\x94\x8c\x02\xc3\xa9\x94eh\x08e}\x94(J\xfb\
          \xff\xff\xff\x8c\x01x\x94Jp\x11\x01\x00\x8c\x01y\x94ut\x94.",
    ];

    type Everything = (
        (Option<u8>, bool, i64, u64, i64, i128, f64, String),
        (Vec<u8>, Vec<u8>, Vec<u8>, (u8,), BTreeSet<u8>, BTreeSet<u8>, [[String; 2]; 2], BTreeMap<i64, char>),
    );

    #[test]
    fn reads_every_kind_of_value_in_every_protocol() {
        for pickle in EVERYTHING {
            let graph = Graph::read(pickle).unwrap();
            let read: Halves = data::read(&graph, graph.root()).unwrap();
            let shared = || ["a".to_string(), "é".to_string()];
            let first = (None, true, -1, u64::MAX, i64::MIN, i128::MAX, 0.1, "日本語".to_string());
            let map = BTreeMap::from([(-5, 'x'), (70_000, 'y')]);
            let second = (
                vec![0, 0xff],
                b"ab".to_vec(),
                vec![],
                (1,),
                BTreeSet::from([3]),
                BTreeSet::from([4]),
                [shared(), shared()],
                map,
            );
            assert_eq!(read.0, (first, second));
        }
    }

    /// A tuple of sixteen values, which does not implement `Debug`, as two tuples of eight.
    struct Halves(Everything);

    impl<'de> Deserialize<'de> for Halves {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let (a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p) = Deserialize::deserialize(deserializer)?;
            Ok(Halves(((a, b, c, d, e, f, g, h), (i, j, k, l, m, n, o, p))))
        }
    }

    #[test]
    fn values_round_trip() {
        let leaf = || Box::new(Tree::Leaf);
        round_trip(&Tree::Pair { left: leaf(), right: Box::new(Tree::Branch(leaf())) });
        round_trip(&vec![Tree::Leaf, Tree::Fork(leaf(), leaf())]);
        round_trip(&(1_u8, "é".to_string(), 'x', Some(-1.5), None::<u8>));
        round_trip(&((), [0_u8; 0], Vec::<u8>::new(), BTreeMap::<u8, u8>::new()));
        round_trip(&BTreeMap::from([(u64::MAX, i64::MIN), (0, i64::MAX)]));
        round_trip(&(0..3000).collect::<Vec<u32>>());
        round_trip(&(0..3000).map(|n| (n, n.to_string())).collect::<BTreeMap<_, _>>());
        let mut out = Vec::new();
        let refused = Pickle::<Bare>::new().encode(&i128::MAX, CREATED, &mut out).unwrap_err();
        assert_eq!(refused.kind(), CodecErrorKind::Unsupported);
    }

    #[test]
    fn writes_the_expected_bytes() {
        assert_eq!(encode(Pickle::<Bare>::new(), &5_u8), b"\x80\x03K\x05.");
        assert_eq!(
            encode(Pickle::<Seconds>::new(), &5_u8),
            b"\x80\x03cdogpile.cache.api\nCachedValue\nK\x05\
              }(X\x02\0\0\0ctJ\xe2i\xafWX\x01\0\0\0vJ\x02\0\0\0u\x86\x81."
        );
        assert_eq!(
            encode(Pickle::<Full>::default(), &5_u8),
            b"\x80\x03cdogpile.cache.api\nCachedValue\nK\x05\
              }(X\x02\0\0\0ctGA\xd5\xeb\xdax\xb0\xb8\xa6X\x01\0\0\0vJ\x02\0\0\0u\x86\x81."
        );
    }

    #[test]
    fn reads_bytes_as_a_sequence_of_integers() {
        assert_eq!(bare(b"\x80\x03C\x02a\xff."), Ok(vec![b'a', 0xff]));
        assert_eq!(bare(b"\x80\x03C\x02a\xff."), Ok([b'a', 0xff]));
        assert_eq!(bare(b"\x80\x03C\x02a\xff."), Err::<[u8; 3], _>(CodecErrorKind::Type));
        assert_eq!(bare(b"\x80\x03C\x02a\xff."), Err::<String, _>(CodecErrorKind::Type));
    }

    #[test]
    fn reports_the_kind_of_invalid_values() {
        assert_eq!(bare(b"\x80\x03K\x05."), Err::<bool, _>(CodecErrorKind::Type));
        assert_eq!(bare(b"\x80\x03M\0\x01."), Err::<u8, _>(CodecErrorKind::Type));
        assert_eq!(bare(b"\x80\x03K\x05K\x06K\x07\x87."), Err::<(u8, u8), _>(CodecErrorKind::Type));
        assert_eq!(bare(b"\x80\x03K\x05."), Err::<Tree, _>(CodecErrorKind::Type));
        assert_eq!(bare(b"\x80\x03}."), Err::<Tree, _>(CodecErrorKind::Type));
        assert_eq!(bare(b"\x80\x03K\x05.."), Err::<u8, _>(CodecErrorKind::Length));
        assert_eq!(bare(b""), Err::<u8, _>(CodecErrorKind::Length));
        // Protocol 2 encodes bytes as a Latin-1 string, which cannot contain a euro sign.
        let euro = b"\x80\x02c_codecs\nencode\nX\x03\0\0\0\xe2\x82\xacX\x06\0\0\0latin1\x86R.";
        assert_eq!(bare(euro), Err::<Vec<u8>, _>(CodecErrorKind::Type));
    }

    #[test]
    fn reports_no_value_as_its_own_kind() {
        // pickle.dumps(NO_VALUE), and CachedValue(NO_VALUE, {"ct": 1, "v": 2}).
        let two = b"\x80\x02cdogpile.cache.api\nNoValue\nq\0X\x07\0\0\0NoValueq\x01\x85q\x02Rq\x03.";
        let four = b"\x80\x04\x95\x27\0\0\0\0\0\0\0\x8c\x11dogpile.cache.api\x94\x8c\x07NoValue\x94\x93\x94h\x01\x85\
            \x94R\x94.";
        let cached = b"\x80\x02cdogpile.cache.api\nCachedValue\ncdogpile.cache.api\nNoValue\nX\x07\0\0\0NoValue\x85R\
            }(X\x02\0\0\0ctK\x01X\x01\0\0\0vK\x02u\x86\x81.";
        assert_eq!(bare(two), Err::<u8, _>(CodecErrorKind::NoValue));
        assert_eq!(bare(four), Err::<u8, _>(CodecErrorKind::NoValue));
        assert_eq!(decode::<u8, _>(Pickle::<Seconds>::new(), &cached[..]), Err(CodecErrorKind::NoValue));
        assert_eq!(bare(cached), Err::<u8, _>(CodecErrorKind::Type));
    }

    #[test]
    fn rejects_invalid_cached_values() {
        let wrapped = |inside: &[u8]| {
            let pickle = [b"\x80\x02cdogpile.cache.api\nCachedValue\nK\x05", inside, b"."].concat();
            decode::<u8, _>(Pickle::<Full>::new(), pickle)
        };
        let meta = Meta { created: Some(Timestamp::from_secs(1)), version: Some(2) };
        for inside in [
            &b"}(X\x02\0\0\0ctK\x01X\x01\0\0\0vK\x02u\x86\x81"[..],
            b"}(X\x01\0\0\0vK\x02X\x01\0\0\0x]X\x02\0\0\0ctG?\xf0\0\0\0\0\0\0u\x86R",
        ] {
            assert_eq!(wrapped(inside), Ok((5, meta)));
        }
        for (inside, kind) in [
            (&b"}(X\x02\0\0\0ctK\x01X\x01\0\0\0vK\x03u\x86\x81"[..], CodecErrorKind::Version),
            (b"}(X\x02\0\0\0ctK\x01u\x86\x81", CodecErrorKind::Value),
            (b"}(X\x01\0\0\0vK\x02u\x86\x81", CodecErrorKind::Value),
            (b"}(X\x02\0\0\0ctJ\xff\xff\xff\xffX\x01\0\0\0vK\x02u\x86\x81", CodecErrorKind::Value),
            (b"}(X\x02\0\0\0ctNX\x01\0\0\0vK\x02u\x86\x81", CodecErrorKind::Type),
            (b"]\x86\x81", CodecErrorKind::Type),
            (b"\x85\x81", CodecErrorKind::Type),
            (b"", CodecErrorKind::Type),
        ] {
            assert_eq!(wrapped(inside), Err(kind), "{}", inside.escape_ascii());
        }
        assert_eq!(decode::<u8, _>(Pickle::<Full>::new(), &b"\x80\x03K\x05."[..]), Err(CodecErrorKind::Type));
        // The payload of another version may have another type.
        let newer = encode(Pickle::<Full>::new().version(3), &"five".to_string());
        assert_eq!(decode::<u8, _>(Pickle::<Full>::new(), newer), Err(CodecErrorKind::Version));
        let newer = encode(Pickle::<JsonMeta>::new().version(3), &"five".to_string());
        assert_eq!(decode::<u8, _>(Pickle::<JsonMeta>::new(), newer), Err(CodecErrorKind::Version));
    }

    #[test]
    fn rejects_truncated_entries() {
        for pickle in EVERYTHING {
            for end in 0..pickle.len() {
                assert!(Graph::read(&pickle[..end]).is_err());
            }
        }
        let entry = Bytes::from(encode(Pickle::<Full>::new(), &vec!["a".to_string()]));
        for end in 0..entry.len() {
            assert!(decode::<Vec<String>, _>(Pickle::<Full>::new(), entry.slice(..end)).is_err());
        }
    }
}
