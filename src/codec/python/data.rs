//! Checked pickles, as serde reads them.

use std::fmt;

use serde::de::value::{BorrowedStrDeserializer, MapAccessDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{Deserialize, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::graph::{Graph, Id, Node};
use crate::codec::{CodecError, CodecErrorKind};

/// Reads a value of a graph that has been checked: the recursion below relies on that.
pub(super) fn read<'de, T: Deserialize<'de>>(graph: &Graph<'de>, id: Id) -> Result<T, CodecError> {
    graph.check(id)?;
    T::deserialize(Data { graph, id }).map_err(|error| error.0)
}

#[derive(Clone, Copy)]
struct Data<'g, 'de> {
    graph: &'g Graph<'de>,
    id: Id,
}

impl<'g, 'de> Data<'g, 'de> {
    fn many(self, ids: &'g [Id]) -> impl ExactSizeIterator<Item = Self> + 'g
    where
        'de: 'g,
    {
        ids.iter().map(move |id| Data { graph: self.graph, id: *id })
    }

    fn pairs(self, ids: &'g [Id]) -> impl ExactSizeIterator<Item = (Self, Self)> + 'g
    where
        'de: 'g,
    {
        let data = move |id: Id| Data { graph: self.graph, id };
        ids.chunks_exact(2).map(move |pair| (data(pair[0]), data(pair[1])))
    }
}

impl<'de> Deserializer<'de> for Data<'_, 'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.graph.node(self.id) {
            Node::None => visitor.visit_unit(),
            Node::Bool(is) => visitor.visit_bool(*is),
            // Without a sign first, as other formats do: some visitors know nothing else.
            Node::Int(int) => match (u64::try_from(*int), i64::try_from(*int)) {
                (Ok(int), _) => visitor.visit_u64(int),
                (_, Ok(int)) => visitor.visit_i64(int),
                _ => visitor.visit_i128(*int),
            },
            Node::Float(float) => visitor.visit_f64(*float),
            Node::Text(text) => visitor.visit_borrowed_str(text),
            Node::Bytes(bytes) => visitor.visit_borrowed_bytes(bytes),
            Node::Latin1(text) => visitor.visit_byte_buf(latin1(text)?),
            Node::List(items) | Node::Tuple(items) | Node::Set(items) => visit_seq(self.many(items), visitor),
            Node::Dict(items) => {
                let mut map = MapDeserializer::new(self.pairs(items));
                let value = visitor.visit_map(&mut map)?;
                map.end()?;
                Ok(value)
            }
            Node::Class(_) | Node::CachedValue(_) | Node::NoValue => Err(wrong("the pickle holds no plain data")),
        }
    }

    /// Bytes are a sequence of integers, too, if that is asked for: serde takes `Vec<u8>` for one.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.graph.node(self.id) {
            Node::Bytes(bytes) => visit_seq(bytes.iter().copied(), visitor),
            Node::Latin1(text) => visit_seq(latin1(text)?.into_iter(), visitor),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.graph.node(self.id) {
            Node::None => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    /// `"Variant"`, or `{"Variant": what is in it}`.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.graph.node(self.id) {
            Node::Text(variant) => visitor.visit_enum(BorrowedStrDeserializer::new(variant)),
            Node::Dict(pair) if pair.len() == 2 => {
                visitor.visit_enum(MapAccessDeserializer::new(MapDeserializer::new(self.pairs(pair))))
            }
            _ => Err(wrong("the pickle holds neither a text nor a dict of one key where an enum was asked for")),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct map struct
        identifier
    }
}

impl<'de> IntoDeserializer<'de, Error> for Data<'_, 'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

fn visit_seq<'de, T, V>(items: impl Iterator<Item = T>, visitor: V) -> Result<V::Value, Error>
where
    T: IntoDeserializer<'de, Error>,
    V: Visitor<'de>,
{
    let mut seq = SeqDeserializer::new(items);
    let value = visitor.visit_seq(&mut seq)?;
    seq.end()?;
    Ok(value)
}

/// The bytes that a text's characters are.
fn latin1(text: &str) -> Result<Vec<u8>, Error> {
    text.chars().map(|char| u8::try_from(char).map_err(|_| wrong("the pickle holds bytes beyond 255"))).collect()
}

#[cold]
fn wrong(message: &'static str) -> Error {
    Error(CodecError::new(CodecErrorKind::Type, message))
}

/// A `CodecError` to serde, which has but one kind of its own.
#[derive(Debug)]
struct Error(CodecError);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {}

impl serde::de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Error(CodecError::new(CodecErrorKind::Type, message.to_string()))
    }
}
