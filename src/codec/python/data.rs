//! A serde deserializer over the graph of a decoded pickle.

use std::fmt;

use serde::de::value::{BorrowedStrDeserializer, MapAccessDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{Deserialize, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::graph::{Graph, GraphNode, Id};
use crate::codec::{CodecError, CodecErrorKind};

/// Deserializes the value at the node `id` after the graph has been checked.
///
/// The check limits the depth and the size of the value, so the recursion of the deserializer is
/// safe.
pub(super) fn read<'de, T: Deserialize<'de>>(graph: &Graph<'de>, id: Id) -> Result<T, CodecError> {
    graph.check(id)?;
    T::deserialize(NodeDeserializer { graph, id }).map_err(|error| error.0)
}

#[derive(Clone, Copy)]
struct NodeDeserializer<'g, 'de> {
    graph: &'g Graph<'de>,
    id: Id,
}

impl<'g, 'de> NodeDeserializer<'g, 'de> {
    fn items(self, ids: &'g [Id]) -> impl ExactSizeIterator<Item = Self> + 'g
    where
        'de: 'g,
    {
        ids.iter().map(move |id| NodeDeserializer { graph: self.graph, id: *id })
    }

    fn pairs(self, ids: &'g [Id]) -> impl ExactSizeIterator<Item = (Self, Self)> + 'g
    where
        'de: 'g,
    {
        let deserializer_at = move |id: Id| NodeDeserializer { graph: self.graph, id };
        ids.chunks_exact(2).map(move |pair| (deserializer_at(pair[0]), deserializer_at(pair[1])))
    }
}

impl<'de> Deserializer<'de> for NodeDeserializer<'_, 'de> {
    type Error = DataError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
        match self.graph.node(self.id) {
            GraphNode::None => visitor.visit_unit(),
            GraphNode::Bool(is) => visitor.visit_bool(*is),
            // Try `u64` first, as other formats do, because some visitors accept only unsigned
            // integers.
            GraphNode::Int(int) => match (u64::try_from(*int), i64::try_from(*int)) {
                (Ok(int), _) => visitor.visit_u64(int),
                (_, Ok(int)) => visitor.visit_i64(int),
                _ => visitor.visit_i128(*int),
            },
            GraphNode::Float(float) => visitor.visit_f64(*float),
            GraphNode::Str(string) => visitor.visit_borrowed_str(string),
            GraphNode::Bytes(bytes) => visitor.visit_borrowed_bytes(bytes),
            GraphNode::Latin1(string) => visitor.visit_byte_buf(latin1(string)?),
            GraphNode::List(items) | GraphNode::Tuple(items) | GraphNode::Set(items) => {
                visit_seq(self.items(items), visitor)
            }
            GraphNode::Dict(items) => {
                let mut map = MapDeserializer::new(self.pairs(items));
                let value = visitor.visit_map(&mut map)?;
                map.end()?;
                Ok(value)
            }
            GraphNode::Class(_) | GraphNode::CachedValue(_) | GraphNode::NoValue => {
                Err(type_error("the pickle contains a value that is not plain data"))
            }
        }
    }

    // Bytes can also be read as a sequence of integers, because serde treats `Vec<u8>` as one.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
        match self.graph.node(self.id) {
            GraphNode::Bytes(bytes) => visit_seq(bytes.iter().copied(), visitor),
            GraphNode::Latin1(string) => visit_seq(latin1(string)?.into_iter(), visitor),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, DataError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, DataError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
        match self.graph.node(self.id) {
            GraphNode::None => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, DataError> {
        visitor.visit_newtype_struct(self)
    }

    // An enum is `"Variant"` or `{"Variant": content}`.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DataError> {
        match self.graph.node(self.id) {
            GraphNode::Str(variant) => visitor.visit_enum(BorrowedStrDeserializer::new(variant)),
            GraphNode::Dict(pair) if pair.len() == 2 => {
                visitor.visit_enum(MapAccessDeserializer::new(MapDeserializer::new(self.pairs(pair))))
            }
            _ => Err(type_error("expected an enum in the pickle, as a string or a dict with one key")),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct map struct
        identifier
    }
}

impl<'de> IntoDeserializer<'de, DataError> for NodeDeserializer<'_, 'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

fn visit_seq<'de, T, V>(items: impl Iterator<Item = T>, visitor: V) -> Result<V::Value, DataError>
where
    T: IntoDeserializer<'de, DataError>,
    V: Visitor<'de>,
{
    let mut seq = SeqDeserializer::new(items);
    let value = visitor.visit_seq(&mut seq)?;
    seq.end()?;
    Ok(value)
}

/// Converts a string to bytes, one byte for each character.
fn latin1(string: &str) -> Result<Vec<u8>, DataError> {
    string
        .chars()
        .map(|char| {
            u8::try_from(char).map_err(|_| type_error("the pickle contains Latin-1 bytes with a character above 255"))
        })
        .collect()
}

#[cold]
fn type_error(message: &'static str) -> DataError {
    DataError(CodecError::new(CodecErrorKind::Type, message))
}

/// A `CodecError` that implements serde's error trait. Errors from serde have the kind `Type`.
#[derive(Debug)]
struct DataError(CodecError);

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for DataError {}

impl serde::de::Error for DataError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        DataError(CodecError::new(CodecErrorKind::Type, message.to_string()))
    }
}
