//! Codecs: values come back as they were, msgpack is what a naive writer writes, and no damage makes decoding panic.

use std::collections::BTreeMap;
use std::fmt::Debug;

use bytes::Bytes;
use bytestring::ByteString;
use dogpile::Timestamp;
#[cfg(feature = "json")]
use dogpile::codec::Json;
#[cfg(feature = "serde")]
use dogpile::codec::Serde;
use dogpile::codec::Slice;
#[cfg(feature = "python")]
use dogpile::codec::python::{JsonMeta, Pickle};
use dogpile::codec::{
    Bare, Codec, CodecError, CodecErrorKind, Full, Kind, LazyMap, Msgpack, Pack, Raw, RawValue, Reader, Seconds, Unpack,
};
use proptest::prelude::*;
use proptest::sample::Index;
use serde::{Deserialize, Serialize};

use crate::{check, octets};

/// Any value of msgpack.
#[derive(Clone, Debug, PartialEq)]
enum Tree {
    Nil,
    Bool(bool),
    Int(i128),
    Single(Single),
    Double(Double),
    Text(String),
    Data(Vec<u8>),
    Array(Vec<Tree>),
    Map(Vec<(Tree, Tree)>),
}

/// Floats that are equal when their bits are.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Single(f32);
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Double(f64);

impl PartialEq for Single {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl PartialEq for Double {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

/// The naive writer: the shortest form of each value.
impl Tree {
    fn write(&self, out: &mut Vec<u8>) {
        /// A type with its length: in its own byte up to `most`, or behind the byte of a length of 1, 2 or 4 bytes.
        fn head(out: &mut Vec<u8>, len: usize, short: u8, most: usize, long: [Option<u8>; 3]) {
            match (long, len) {
                (_, len) if len <= most => out.push(short | u8::try_from(len).unwrap()),
                ([Some(byte), ..], 0..=0xff) => out.extend([byte, u8::try_from(len).unwrap()]),
                ([_, Some(byte), _], 0..=0xffff) => {
                    out.push(byte);
                    out.extend(u16::try_from(len).unwrap().to_be_bytes());
                }
                ([_, _, byte], _) => {
                    out.push(byte.unwrap());
                    out.extend(u32::try_from(len).unwrap().to_be_bytes());
                }
            }
        }
        match self {
            Tree::Nil => out.push(0xc0),
            Tree::Bool(is) => out.push(if *is { 0xc3 } else { 0xc2 }),
            Tree::Int(int) => {
                let wide = int.to_be_bytes();
                let (marker, bytes) = match int {
                    -32..=127 => (None, 1),
                    128..=0xff => (Some(0xcc), 1),
                    0x100..=0xffff => (Some(0xcd), 2),
                    0x1_0000..=0xffff_ffff => (Some(0xce), 4),
                    0x1_0000_0000.. => (Some(0xcf), 8),
                    -0x80..-32 => (Some(0xd0), 1),
                    -0x8000..-0x80 => (Some(0xd1), 2),
                    -0x8000_0000..-0x8000 => (Some(0xd2), 4),
                    ..-0x8000_0000 => (Some(0xd3), 8),
                };
                out.extend(marker);
                out.extend(&wide[16 - bytes..]);
            }
            Tree::Single(Single(float)) => {
                out.push(0xca);
                out.extend(float.to_bits().to_be_bytes());
            }
            Tree::Double(Double(float)) => {
                out.push(0xcb);
                out.extend(float.to_bits().to_be_bytes());
            }
            Tree::Text(text) => {
                head(out, text.len(), 0xa0, 31, [Some(0xd9), Some(0xda), Some(0xdb)]);
                out.extend(text.as_bytes());
            }
            Tree::Data(data) => {
                match data.len() {
                    // No short form.
                    0 => out.extend([0xc4, 0]),
                    len => head(out, len, 0, 0, [Some(0xc4), Some(0xc5), Some(0xc6)]),
                }
                out.extend(data);
            }
            Tree::Array(items) => {
                head(out, items.len(), 0x90, 15, [None, Some(0xdc), Some(0xdd)]);
                items.iter().for_each(|item| item.write(out));
            }
            Tree::Map(pairs) => {
                head(out, pairs.len(), 0x80, 15, [None, Some(0xde), Some(0xdf)]);
                for (key, value) in pairs {
                    key.write(out);
                    value.write(out);
                }
            }
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }
}

/// Written and read by the crate's own pieces.
impl Pack for Tree {
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        match self {
            Tree::Nil => ().pack(out),
            Tree::Bool(is) => is.pack(out),
            Tree::Int(int) => match u64::try_from(*int) {
                Ok(int) => int.pack(out),
                Err(_) => i64::try_from(*int).unwrap().pack(out),
            },
            Tree::Single(float) => float.pack(out),
            Tree::Double(float) => float.pack(out),
            Tree::Text(text) => text.pack(out),
            Tree::Data(data) => data.pack(out),
            Tree::Array(items) => items.pack(out),
            Tree::Map(pairs) => {
                dogpile::codec::pack_map_header(pairs.len(), out)?;
                pairs.iter().try_for_each(|(key, value)| {
                    key.pack(out)?;
                    value.pack(out)
                })
            }
        }
    }
}

impl Unpack for Tree {
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(match reader.peek()? {
            Kind::Nil => reader.read_nil().map(|()| Tree::Nil)?,
            Kind::Bool => Tree::Bool(reader.read_bool()?),
            Kind::Int if reader.clone().read_int::<u64>().is_ok() => Tree::Int(reader.read_int::<u64>()?.into()),
            Kind::Int => Tree::Int(reader.read_int::<i64>()?.into()),
            Kind::Float => Tree::Double(Double(reader.read_f64()?)),
            Kind::Str => Tree::Text(reader.read_str()?.into()),
            Kind::Bin => Tree::Data(reader.read_bin()?.into()),
            Kind::Array => Tree::Array(Vec::unpack(reader)?),
            Kind::Map => reader
                .nested(|reader| {
                    let pairs = reader.read_map_len()?;
                    (0..pairs).map(|_| Ok((Tree::unpack(reader)?, Tree::unpack(reader)?))).collect()
                })
                .map(Tree::Map)?,
            _ => return Err(CodecError::new(CodecErrorKind::Type, "none of these")),
        })
    }
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        Just(Tree::Nil),
        any::<bool>().prop_map(Tree::Bool),
        int(i64::MIN.into(), u64::MAX.into()).prop_map(Tree::Int),
        any::<u64>().prop_map(|bits| Tree::Double(Double(f64::from_bits(bits)))),
        text().prop_map(Tree::Text),
        octets(70_000).prop_map(Tree::Data),
    ];
    leaf.prop_recursive(4, 80, 20, |inner| {
        let pair = (inner.clone(), inner.clone());
        prop_oneof![
            prop::collection::vec(inner, 0..20).prop_map(Tree::Array),
            prop::collection::vec(pair, 0..20).prop_map(Tree::Map),
        ]
    })
}

/// Integers of all sizes, those around powers of two most of all.
fn int(least: i128, most: i128) -> impl Strategy<Value = i128> {
    let around = (0_u32..65, any::<bool>(), -34_i128..35)
        .prop_map(|(power, negative, near)| if negative { near - (1 << power) } else { near + (1 << power) });
    around.prop_map(move |int| int.clamp(least, most))
}

fn any_int<T: TryFrom<i128> + Debug>(least: impl Into<i128>, most: impl Into<i128>) -> impl Strategy<Value = T> {
    int(least.into(), most.into()).prop_map(|int| T::try_from(int).ok().expect("was clamped"))
}

fn text() -> impl Strategy<Value = String> {
    let long = octets(70_000).prop_map(|bytes| bytes.into_iter().map(|byte| char::from(byte & 0x7f)).collect());
    prop_oneof![2 => ".{0,20}".boxed(), 1 => long.boxed()]
}

/// Something of everything, as structs have it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Sample {
    unsigned: (u8, u16, u32, u64),
    signed: (i8, i16, i32, i64),
    floats: (Single, Double),
    text: String,
    data: Vec<u8>,
    maybe: Option<String>,
    list: Vec<Option<u32>>,
    map: BTreeMap<String, Vec<i64>>,
    by_number: BTreeMap<u16, (bool, char)>,
    child: Option<Box<Sample>>,
}

dogpile::msgpack! {
    Sample { unsigned, signed, floats, text, data, maybe, list, map, by_number, child }
}

impl Pack for Single {
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.0.pack(out)
    }
}

impl Unpack for Single {
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Unpack::unpack(reader).map(Single)
    }
}

impl Pack for Double {
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.0.pack(out)
    }
}

impl Unpack for Double {
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Unpack::unpack(reader).map(Double)
    }
}

impl Sample {
    /// As msgpack has it; serde takes bytes for an array.
    fn tree(&self, bytes_as_array: bool) -> Tree {
        fn ints(all: impl IntoIterator<Item = impl Into<i128>>) -> Tree {
            Tree::Array(all.into_iter().map(|int| Tree::Int(int.into())).collect())
        }
        fn maybe<T>(value: Option<&T>, tree: impl Fn(&T) -> Tree) -> Tree {
            value.map_or(Tree::Nil, tree)
        }
        let key = |name: &str| Tree::Text(name.into());
        let ((a, b, c, d), (e, f, g, h)) = (self.unsigned, self.signed);
        let unsigned = [u64::from(a), b.into(), c.into(), d];
        let signed = [i64::from(e), f.into(), g.into(), h];
        let pair = |(number, (is, char)): (&u16, &(bool, char))| {
            let pair = vec![Tree::Bool(*is), Tree::Text(char.to_string())];
            (Tree::Int((*number).into()), Tree::Array(pair))
        };
        let map = self.map.iter().map(|(name, list)| (key(name), ints(list.iter().copied())));
        let data = if bytes_as_array { ints(self.data.iter().copied()) } else { Tree::Data(self.data.clone()) };
        Tree::Map(vec![
            (key("unsigned"), ints(unsigned)),
            (key("signed"), ints(signed)),
            (key("floats"), Tree::Array(vec![Tree::Single(self.floats.0), Tree::Double(self.floats.1)])),
            (key("text"), Tree::Text(self.text.clone())),
            (key("data"), data),
            (key("maybe"), maybe(self.maybe.as_ref(), |text| Tree::Text(text.clone()))),
            (
                key("list"),
                Tree::Array(self.list.iter().map(|int| maybe(int.as_ref(), |int| Tree::Int((*int).into()))).collect()),
            ),
            (key("map"), Tree::Map(map.collect())),
            (key("by_number"), Tree::Map(self.by_number.iter().map(pair).collect())),
            (key("child"), maybe(self.child.as_ref(), |child| child.tree(bytes_as_array))),
        ])
    }
}

/// `json`: floats that JSON has.
fn sample(json: bool) -> impl Strategy<Value = Sample> {
    let numbers = (
        (any_int(0, u8::MAX), any_int(0, u16::MAX), any_int(0, u32::MAX), any_int(0, u64::MAX)),
        (
            any_int(i8::MIN, i8::MAX),
            any_int(i16::MIN, i16::MAX),
            any_int(i32::MIN, i32::MAX),
            any_int(i64::MIN, i64::MAX),
        ),
        (any::<u32>(), any::<u64>()).prop_map(move |(single, double)| {
            let (single, double) = (f32::from_bits(single), f64::from_bits(double));
            // Read by way of 64 bits, where a signalling NaN becomes a quiet one.
            let single = if single.is_nan() { f32::from_bits(single.to_bits() | 1 << 22) } else { single };
            // JSON has no others.
            let finite = (!json || single.is_finite(), !json || double.is_finite());
            (Single(if finite.0 { single } else { -0.0 }), Double(if finite.1 { double } else { -0.0 }))
        }),
    );
    let map = prop::collection::btree_map(text(), prop::collection::vec(any_int(i64::MIN, i64::MAX), 0..20), 0..3);
    let by_number = prop::collection::btree_map(any_int(0, u16::MAX), any::<(bool, char)>(), 0..20);
    let list = prop::collection::vec(prop::option::of(any_int(0, u32::MAX)), 0..20);
    let parts = (numbers, text(), octets(300), prop::option::of(text()), list, map, by_number);
    let flat = parts.prop_map(|((unsigned, signed, floats), text, data, maybe, list, map, by_number)| Sample {
        unsigned,
        signed,
        floats,
        text,
        data,
        maybe,
        list,
        map,
        by_number,
        child: None,
    });
    prop::collection::vec(flat, 1..4).prop_map(|samples| {
        let nest = |child: Option<Box<Sample>>, parent| Some(Box::new(Sample { child, ..parent }));
        *samples.into_iter().fold(None, nest).expect("is one at least")
    })
}

/// What a codec's envelope should give back of the time, and the naive entry around a payload.
trait Shape {
    fn created(created: Timestamp) -> Option<Timestamp>;
    fn entry(payload: Tree, created: Timestamp) -> Tree;
}

impl Shape for Seconds {
    fn created(created: Timestamp) -> Option<Timestamp> {
        Some(Timestamp::from_secs(created.as_secs()))
    }
    fn entry(payload: Tree, created: Timestamp) -> Tree {
        Tree::Array(vec![payload, Tree::Int(created.as_secs().into())])
    }
}

impl Shape for Full {
    fn created(created: Timestamp) -> Option<Timestamp> {
        Some(created)
    }
    fn entry(payload: Tree, created: Timestamp) -> Tree {
        let text = |name: &str| Tree::Text(name.into());
        let meta = vec![(text("ct"), Tree::Double(Double(created.as_secs_f64()))), (text("v"), Tree::Int(2))];
        Tree::Array(vec![payload, Tree::Map(meta)])
    }
}

impl Shape for Bare {
    fn created(_: Timestamp) -> Option<Timestamp> {
        None
    }
    fn entry(payload: Tree, _: Timestamp) -> Tree {
        payload
    }
}

/// As text, and around what the codec writes; there is no msgpack of it.
#[cfg(feature = "python")]
impl Shape for JsonMeta {
    fn created(created: Timestamp) -> Option<Timestamp> {
        Some(created)
    }
    fn entry(payload: Tree, _: Timestamp) -> Tree {
        payload
    }
}

/// Where an entry is cut, and which byte of it becomes what.
type Damage = (Index, Index, u8);

fn damage() -> impl Strategy<Value = Damage> {
    any::<Damage>()
}

/// All microseconds until 2106, which is as long as a float holds them.
fn time() -> impl Strategy<Value = Timestamp> {
    (0..=u64::from(u32::MAX) * 1_000_000 + 999_999).prop_map(Timestamp::from_micros)
}

/// A value comes back, with its time; and cut or changed in one byte it is whatever, but no panic. The entry.
fn round_trip<E: Shape, V: PartialEq + Debug>(
    codec: &impl Codec<V>,
    value: &V,
    created: Timestamp,
    (cut, at, byte): Damage,
) -> Vec<u8> {
    let mut out = b"before".to_vec();
    codec.encode(value, created, &mut out).unwrap();
    let entry = out.split_off(6);
    assert_eq!(out, b"before");
    let shared = Bytes::from(entry.clone());
    let (read, meta) = codec.decode(Slice::from(&shared)).unwrap();
    assert_eq!(read, *value);
    assert_eq!(meta.created, E::created(created));
    if !entry.is_empty() {
        drop(codec.decode(Slice::from(&shared.slice(..cut.index(entry.len())))));
        let mut changed = entry.clone();
        changed[at.index(entry.len())] = byte;
        drop(codec.decode(Slice::from(&changed.into())));
    }
    entry
}

/// The same, and the entry is what the naive writer writes.
fn as_naive<E: Shape, V: PartialEq + Debug>(
    codec: &impl Codec<V>,
    value: &V,
    payload: Tree,
    created: Timestamp,
    damage: Damage,
) {
    let entry = round_trip::<E, V>(codec, value, created, damage);
    assert!(
        entry == E::entry(payload, created).bytes(),
        "other bytes than the naive writer's: {}",
        entry.escape_ascii()
    );
}

#[test]
fn msgpack_is_what_a_naive_writer_writes() {
    check((tree(), time(), damage()), |(tree, created, damage)| {
        as_naive::<Seconds, _>(&Msgpack::<Seconds>::new(), &tree, tree.clone(), created, damage);
        as_naive::<Full, _>(&Msgpack::<Full>::new(), &tree, tree.clone(), created, damage);
        as_naive::<Bare, _>(&Msgpack::<Bare>::new(), &tree, tree.clone(), created, damage);
    });
}

#[test]
fn msgpack_of_structs_is_what_a_naive_writer_writes() {
    check((sample(false), time(), damage()), |(sample, created, damage)| {
        let tree = sample.tree(false);
        as_naive::<Seconds, _>(&Msgpack::<Seconds>::new(), &sample, tree.clone(), created, damage);
        as_naive::<Full, _>(&Msgpack::<Full>::new(), &sample, tree.clone(), created, damage);
        as_naive::<Bare, _>(&Msgpack::<Bare>::new(), &sample, tree.clone(), created, damage);
    });
}

#[test]
#[cfg(feature = "serde")]
fn serde_is_what_a_naive_writer_writes() {
    check((sample(false), time(), damage()), |(sample, created, damage)| {
        let tree = sample.tree(true);
        as_naive::<Seconds, _>(&Serde::<Seconds>::new(), &sample, tree.clone(), created, damage);
        as_naive::<Full, _>(&Serde::<Full>::new(), &sample, tree.clone(), created, damage);
        as_naive::<Bare, _>(&Serde::<Bare>::new(), &sample, tree.clone(), created, damage);
    });
}

#[test]
#[cfg(feature = "json")]
fn json_comes_back() {
    check((sample(true), time(), damage()), |(sample, created, damage)| {
        round_trip::<Seconds, _>(&Json::<Seconds>::new(), &sample, created, damage);
        round_trip::<Full, _>(&Json::<Full>::new(), &sample, created, damage);
        round_trip::<Bare, _>(&Json::<Bare>::new(), &sample, created, damage);
    });
}

/// The time as `json.dumps` writes it: by an oracle that knows of no shorter digits than those of `Display`.
#[test]
#[cfg(feature = "python")]
fn metadata_stands_before_the_payload() {
    check((tree(), time(), any::<u64>(), damage()), |(tree, created, version, damage)| {
        let codec = Msgpack::<JsonMeta>::new().version(version);
        let entry = round_trip::<JsonMeta, _>(&codec, &tree, created, damage);
        let (secs, micros) = (created.as_secs(), created.as_micros() % 1_000_000);
        let time = format!("{secs}.{micros:06}");
        let time = match time.trim_end_matches('0') {
            whole if whole.ends_with('.') => format!("{whole}0"),
            time => time.to_string(),
        };
        // Less than a tenth of a millisecond has an exponent; there are few such times.
        if created.as_micros() >= 100 {
            let head = format!(r#"{{"ct": {time}, "v": {version}}}|"#);
            assert!(entry == [head.as_bytes(), &tree.bytes()].concat(), "{}", entry.escape_ascii());
        }
        if !matches!(version, u64::MAX) {
            let other: Result<(Tree, _), _> = codec.version(version + 1).decode(Slice::from(&Bytes::from(entry)));
            assert_eq!(other.unwrap_err().kind(), CodecErrorKind::Version);
        }
    });
}

#[test]
#[cfg(feature = "python")]
fn pickles_come_back() {
    check((sample(false), time(), damage()), |(sample, created, damage)| {
        round_trip::<Seconds, _>(&Pickle::<Seconds>::new(), &sample, created, damage);
        round_trip::<Full, _>(&Pickle::<Full>::new(), &sample, created, damage);
        round_trip::<Bare, _>(&Pickle::<Bare>::new(), &sample, created, damage);
        round_trip::<JsonMeta, _>(&Pickle::<JsonMeta>::new(), &sample, created, damage);
    });
}

#[test]
fn raw_comes_back() {
    fn both<V: RawValue + PartialEq + Debug + Clone>(value: &V, damage: Damage) {
        round_trip::<Bare, _>(&Raw, value, Timestamp::EPOCH, damage);
        round_trip::<Bare, _>(&Raw, &Some(value.clone()), Timestamp::EPOCH, damage);
        round_trip::<Bare, _>(&Raw, &None::<V>, Timestamp::EPOCH, damage);
    }
    let numbers = (any_int::<u64>(0, u64::MAX), any_int::<i64>(i64::MIN, i64::MAX), any::<(u128, i128, u8, i8)>());
    check((text(), octets(70_000), numbers, damage()), |(text, data, (unsigned, signed, others), damage)| {
        if text.contains('\x7f') {
            let refused = Raw.encode(&text, Timestamp::EPOCH, &mut Vec::new());
            assert_eq!(refused.unwrap_err().kind(), CodecErrorKind::Unsupported);
        }
        let text = text.replace('\x7f', "");
        both(&text, damage);
        both(&ByteString::from(text), damage);
        both(&data, damage);
        both(&Bytes::from(data), damage);
        both(&unsigned, damage);
        both(&signed, damage);
        both(&others.0, damage);
        both(&others.1, damage);
        both(&others.2, damage);
        both(&others.3, damage);
        both(&(unsigned % 2 == 0), damage);
    });
}

#[test]
fn raw_tells_types_apart() {
    fn is_other<V: RawValue>(entry: &Bytes) -> bool {
        Codec::<V>::decode(&Raw, Slice::from(entry)).is_err()
    }
    check((octets(300), any::<i64>()), |(data, int)| {
        let (mut as_data, mut as_int) = (Vec::new(), Vec::new());
        Raw.encode(&data, Timestamp::EPOCH, &mut as_data).unwrap();
        Raw.encode(&int, Timestamp::EPOCH, &mut as_int).unwrap();
        let (as_data, as_int) = (Bytes::from(as_data), Bytes::from(as_int));
        assert!(is_other::<String>(&as_data) && is_other::<ByteString>(&as_data) && is_other::<i64>(&as_data));
        assert!(is_other::<String>(&as_int) && is_other::<ByteString>(&as_int) && is_other::<Bytes>(&as_int));
    });
}

#[test]
fn any_bytes_are_a_value_or_an_error() {
    fn decode<V>(codec: &impl Codec<V>, entry: &Bytes) {
        drop(codec.decode(Slice::from(entry)));
    }
    check((tree(), time(), prop::collection::vec(damage(), 1..8)), |(tree, created, damages)| {
        // Entries of another type, with more and more damage.
        let mut entry = Seconds::entry(tree, created).bytes();
        for (cut, at, byte) in damages {
            let at = at.index(entry.len());
            entry[at] = byte;
            let entry = Bytes::copy_from_slice(&entry[..cut.index(entry.len() + 1)]);
            decode::<Sample>(&Msgpack::<Seconds>::new(), &entry);
            decode::<Sample>(&Msgpack::<Bare>::new(), &entry);
            decode::<Tree>(&Msgpack::<Full>::new(), &entry);
            decode::<LazyMap>(&Msgpack::<Seconds>::new(), &entry);
            decode::<(Bytes, ByteString)>(&Msgpack::<Bare>::new(), &entry);
            decode::<String>(&Raw, &entry);
            decode::<Option<i8>>(&Raw, &entry);
            #[cfg(feature = "json")]
            decode::<Sample>(&Json::<Full>::new(), &entry);
            #[cfg(feature = "serde")]
            decode::<Sample>(&Serde::<Seconds>::new(), &entry);
            #[cfg(feature = "python")]
            decode::<Sample>(&Pickle::<Bare>::new(), &entry);
        }
    });
}
