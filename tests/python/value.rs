//! Values that both languages have, and how they are told to the other one.

use std::collections::BTreeMap;
use std::fmt;

use dogpile::codec::Slice;
use dogpile::codec::{CodecError, CodecErrorKind, Kind, Pack, RawValue, Reader, Unpack, pack_bin};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value as Json, json};

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Dict(BTreeMap<String, Value>),
}

use Value::{Bool, Bytes, Dict, Float, Int, List, Text};

impl Value {
    /// Values of all kinds.
    pub fn all() -> Vec<Value> {
        let ints = [0, 1, -1, 10, 127, 128, 255, 256, -32, -33, -128, -129, 65_535, 65_536, -32_769];
        let wide =
            [31, 32, 53, 63].into_iter().flat_map(|bits| [(1 << bits) - 1, 1 << bits, -(1 << bits), -(1 << bits) - 1]);
        let big = [(1 << 64) - 1, 1 << 64, 1 << 70, -(1 << 100), i128::MAX, i128::MIN];
        let floats = [0.0, -0.0, 1.0, -1.5, 0.1, 1e300, 5e-324, 1e16, 1_471_113_698.761_27, f64::INFINITY];
        let texts =
            ["", "a", "mellifluous", "é", "日本語 🎉", "\0", "\n\"\\/\u{1f}", "\u{7f}", "i12", "null", "|", "{}|"];
        let long =
            [31, 32, 255, 256, 65_535, 65_536, 300_000].map(|len| Text("é".repeat(len / 2) + &"x".repeat(len % 2)));
        let bytes: [&[u8]; 6] = [b"", b"abc", b"\0", b"\xff\xfe", b"\x7f", b"a|b"];
        let dict = |pairs: &[(&str, Value)]| Dict(pairs.iter().map(|(k, v)| ((*k).to_string(), v.clone())).collect());
        let profile = dict(&[
            ("id", Int(1_234_567)),
            ("name", Text("Ann Exämple".into())),
            ("score", Float(17.25)),
            ("active", Bool(true)),
            ("nothing", Value::None),
            ("tags", List(vec![Text("reader".into()), Text("editor".into())])),
            ("", dict(&[("deeper", List(vec![dict(&[("still", Int(-1))]), List(vec![])]))])),
        ]);
        let many = List((0..1000).map(Int).collect());
        let wide_dict = Dict((0..300).map(|at| (format!("field {at}"), Int(at))).collect());
        let nested = (0..50).fold(Value::None, |inner, _| List(vec![inner]));
        [Value::None, Bool(true), Bool(false)]
            .into_iter()
            .chain(ints.into_iter().chain(wide).chain(big).map(Int))
            .chain(floats.map(Float))
            .chain(texts.map(|text| Text(text.into())))
            .chain(long)
            .chain(bytes.map(|bytes| Bytes(bytes.into())))
            .chain([List(vec![]), dict(&[]), profile.clone(), many, wide_dict, nested])
            .chain([List(vec![Value::None, Bool(true), Int(5), Float(0.5), Text("a".into()), profile])])
            .collect()
    }

    /// Whether this and all that is in it is so.
    pub fn all_of_it(&self, is_so: fn(&Value) -> bool) -> bool {
        is_so(self)
            && match self {
                List(items) => items.iter().all(|item| item.all_of_it(is_so)),
                Dict(pairs) => pairs.values().all(|item| item.all_of_it(is_so)),
                _ => true,
            }
    }

    /// As JSON that tells all types apart, as the Python peer does it.
    pub fn tagged(&self) -> Json {
        match self {
            Value::None => Json::Null,
            Bool(is) => json!(is),
            Int(int) => match i64::try_from(*int) {
                Ok(int) => json!(int),
                Err(_) => json!({"$": "int", "digits": int.to_string()}),
            },
            Float(float) if float.is_finite() => json!(float),
            Float(float) => json!({"$": "float", "digits": float.to_string()}),
            Text(text) => json!(text),
            Bytes(bytes) => json!({"$": "bytes", "hex": bytes.iter().map(|b| format!("{b:02x}")).collect::<String>()}),
            List(items) => items.iter().map(Value::tagged).collect(),
            Dict(pairs) => pairs.iter().map(|(key, item)| (key.clone(), item.tagged())).collect(),
        }
    }

    /// What [`tagged`](Self::tagged) or the Python peer wrote; `None` for nothing in the cache.
    pub fn untagged(json: &Json) -> Option<Value> {
        let text = |key: &str| json[key].as_str().unwrap();
        Some(match (json, json["$"].as_str()) {
            (_, Some("missing")) => return None,
            (_, Some("int")) => Int(text("digits").parse().unwrap()),
            (_, Some("float")) => Float(text("digits").parse().unwrap()),
            (_, Some("bytes")) => {
                let octet = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap();
                Bytes(text("hex").as_bytes().chunks(2).map(octet).collect())
            }
            (Json::Null, _) => Value::None,
            (Json::Bool(is), _) => Bool(*is),
            (Json::Number(number), _) => match number.as_i64() {
                Some(int) => Int(int.into()),
                None => Float(number.as_f64().unwrap()),
            },
            (Json::String(text), _) => Text(text.clone()),
            (Json::Array(items), _) => List(items.iter().map(|item| Value::untagged(item).unwrap()).collect()),
            (Json::Object(pairs), _) => {
                Dict(pairs.iter().map(|(key, item)| (key.clone(), Value::untagged(item).unwrap())).collect())
            }
        })
    }
}

fn unsupported() -> CodecError {
    CodecError::new(CodecErrorKind::Unsupported, "this codec has no such values")
}

impl Pack for Value {
    fn pack(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        match self {
            Value::None => ().pack(out),
            Bool(is) => is.pack(out),
            Int(int) => match (u64::try_from(*int), i64::try_from(*int)) {
                (Ok(int), _) => int.pack(out),
                (_, Ok(int)) => int.pack(out),
                _ => Err(unsupported()),
            },
            Float(float) => float.pack(out),
            Text(text) => text.pack(out),
            Bytes(bytes) => pack_bin(bytes, out),
            List(items) => items.pack(out),
            Dict(pairs) => pairs.pack(out),
        }
    }
}

impl Unpack for Value {
    fn unpack(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(match reader.peek()? {
            Kind::Nil => {
                reader.read_nil()?;
                Value::None
            }
            Kind::Bool => Bool(reader.read_bool()?),
            Kind::Int => Int(reader.read_int()?),
            Kind::Float => Float(reader.read_f64()?),
            Kind::Str => Text(String::unpack(reader)?),
            Kind::Bin => Bytes(reader.read_bin()?.to_vec()),
            Kind::Array => List(reader.nested(Vec::unpack)?),
            Kind::Map => Dict(reader.nested(BTreeMap::unpack)?),
            _ => return Err(unsupported()),
        })
    }
}

impl RawValue for Value {
    fn write(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        match self {
            Value::None => Option::<bool>::None.write(out),
            Bool(is) => is.write(out),
            Int(int) => int.write(out),
            Text(text) => text.write(out),
            Bytes(bytes) => bytes.write(out),
            Float(_) | List(_) | Dict(_) => Err(unsupported()),
        }
    }

    fn read(entry: Slice<'_>) -> Result<Self, CodecError> {
        let or_none = Option::<String>::read(entry).map(|text| text.map_or(Value::None, Text));
        or_none
            .or_else(|_| bool::read(entry).map(Bool))
            .or_else(|_| i128::read(entry).map(Int))
            .or_else(|_| Vec::read(entry).map(Bytes))
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::None => serializer.serialize_none(),
            Bool(is) => is.serialize(serializer),
            Int(int) => match (u64::try_from(*int), i64::try_from(*int)) {
                (Ok(int), _) => int.serialize(serializer),
                (_, Ok(int)) => int.serialize(serializer),
                _ => int.serialize(serializer),
            },
            Float(float) => float.serialize(serializer),
            Text(text) => text.serialize(serializer),
            Bytes(bytes) => serializer.serialize_bytes(bytes),
            List(items) => items.serialize(serializer),
            Dict(pairs) => pairs.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::None)
            }

            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::None)
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
                Value::deserialize(deserializer)
            }

            fn visit_bool<E>(self, is: bool) -> Result<Value, E> {
                Ok(Bool(is))
            }

            fn visit_i64<E>(self, int: i64) -> Result<Value, E> {
                Ok(Int(int.into()))
            }

            fn visit_u64<E>(self, int: u64) -> Result<Value, E> {
                Ok(Int(int.into()))
            }

            fn visit_i128<E>(self, int: i128) -> Result<Value, E> {
                Ok(Int(int))
            }

            fn visit_f64<E>(self, float: f64) -> Result<Value, E> {
                Ok(Float(float))
            }

            fn visit_str<E>(self, text: &str) -> Result<Value, E> {
                Ok(Text(text.into()))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Value, E> {
                Ok(Bytes(bytes.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Value, A::Error> {
                let mut dict = BTreeMap::new();
                while let Some((key, item)) = pairs.next_entry()? {
                    dict.insert(key, item);
                }
                Ok(Dict(dict))
            }
        }

        deserializer.deserialize_any(Any)
    }
}
