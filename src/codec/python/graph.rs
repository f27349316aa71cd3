//! The values of a pickle, as nodes that refer to each other by number.
//!
//! A pickle is a program: a hostile one nests without end, refers to itself, or is a kilobyte that means gigabytes. So
//! what a node holds is measured, without recursion, before anyone visits it.

use std::borrow::Cow;

use crate::codec::{CodecError, CodecErrorKind};

/// How many levels a value may nest, as in msgpack.
const MAX_DEPTH: usize = 128;

/// What a value may take once everything that is shared in the pickle is written out: so many times the pickle, which
/// is more than values that share nothing take, and never less than `MIN_SIZE`.
const MAX_GROWTH: usize = 128;
const MIN_SIZE: usize = 16 << 20;
/// What each value takes beside its bytes.
const NODE_SIZE: usize = 16;

/// The number of a node.
pub(super) type Id = u32;

/// A value, or what takes part in making one.
#[derive(Debug)]
pub(super) enum Node<'a> {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// Bytes as protocol 2 has them: a text whose characters they are.
    Latin1(&'a str),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Set(Vec<Id>),
    /// Key, value, key, value.
    Dict(Vec<Id>),
    Class(Class),
    /// `dogpile.cache.api.CachedValue`: payload and metadata.
    CachedValue([Id; 2]),
    /// `dogpile.cache.api.NO_VALUE`.
    NoValue,
}

/// A class or function that takes part in making plain data, or is the envelope's.
#[derive(Clone, Copy, Debug)]
pub(super) enum Class {
    Set,
    Bytes,
    /// `_codecs.encode`, by which protocol 2 writes bytes.
    Encode,
    Bytearray,
    CachedValue,
    NoValue,
}

/// The values of a pickle.
#[derive(Debug)]
pub(super) struct Graph<'a> {
    nodes: Vec<Node<'a>>,
    root: Id,
    max_size: usize,
}

impl<'a> Graph<'a> {
    /// Of a pickle of so many bytes, which says how much may be shared.
    pub(super) fn new(nodes: Vec<Node<'a>>, root: Id, bytes: usize) -> Self {
        Graph { nodes, root, max_size: bytes.saturating_mul(MAX_GROWTH).max(MIN_SIZE) }
    }

    /// The value that the pickle is.
    pub(super) fn root(&self) -> Id {
        self.root
    }

    pub(super) fn node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id as usize]
    }

    /// That a value is plain data, and can be visited with everything in it: no deeper and no larger than it may be.
    pub(super) fn check(&self, id: Id) -> Result<(), CodecError> {
        let mut seen = vec![Seen::Never; self.nodes.len()];
        // From the value to where we are, with how many of each one's insides have been looked at.
        let mut path = vec![(id, 0)];
        while let Some((id, looked)) = path.last_mut() {
            if let Some(inside) = self.node(*id).insides().get(*looked) {
                *looked += 1;
                match seen[*inside as usize] {
                    Seen::Never if path.len() > MAX_DEPTH => return Err(too_deep()),
                    Seen::Never => {
                        seen[*inside as usize] = Seen::Above;
                        path.push((*inside, 0));
                    }
                    Seen::Above => return Err(value("the pickle holds a value that contains itself")),
                    Seen::Measured { .. } => {}
                }
            } else {
                seen[*id as usize] = self.measure(*id, &seen)?;
                path.pop();
            }
        }
        Ok(())
    }

    /// The measures of a node from those of its insides.
    fn measure(&self, id: Id, seen: &[Seen]) -> Result<Seen, CodecError> {
        let own = match self.node(id) {
            Node::Text(text) | Node::Latin1(text) => text.len(),
            Node::Bytes(bytes) => bytes.len(),
            Node::Class(_) | Node::CachedValue(_) | Node::NoValue => {
                return Err(wrong("the pickle holds a class or object inside of its value, which is not plain data"));
            }
            _ => 0,
        };
        let (mut depth, mut size) = (0, own.saturating_add(NODE_SIZE));
        for inside in self.node(id).insides() {
            if let Seen::Measured { depth: inner, size: more } = seen[*inside as usize] {
                depth = depth.max(inner + 1);
                size = size.saturating_add(more);
            }
        }
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        if size > self.max_size {
            return Err(value("the pickle refers to the same values so often that it would be too large"));
        }
        Ok(Seen::Measured { depth, size })
    }
}

/// What is known of a node while a graph is checked.
#[derive(Clone, Copy)]
enum Seen {
    Never,
    /// On the way to where we are.
    Above,
    Measured {
        depth: usize,
        size: usize,
    },
}

impl Node<'_> {
    fn insides(&self) -> &[Id] {
        match self {
            Node::List(items) | Node::Tuple(items) | Node::Set(items) | Node::Dict(items) => items,
            Node::CachedValue(parts) => parts,
            _ => &[],
        }
    }

    pub(super) fn list(&mut self) -> Option<&mut Vec<Id>> {
        if let Node::List(items) = self { Some(items) } else { None }
    }

    pub(super) fn set(&mut self) -> Option<&mut Vec<Id>> {
        if let Node::Set(items) = self { Some(items) } else { None }
    }

    pub(super) fn dict(&mut self) -> Option<&mut Vec<Id>> {
        if let Node::Dict(items) = self { Some(items) } else { None }
    }
}

#[cold]
pub(super) fn wrong(message: impl Into<Cow<'static, str>>) -> CodecError {
    CodecError::new(CodecErrorKind::Type, message)
}

#[cold]
pub(super) fn value(message: &'static str) -> CodecError {
    CodecError::new(CodecErrorKind::Value, message)
}

#[cold]
fn too_deep() -> CodecError {
    value("the pickle nests more than 128 levels deep")
}
