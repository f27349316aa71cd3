//! The values of a pickle, as a graph of nodes with depth and size limits.
//!
//! A pickle is a program. A hostile one can nest without limit, refer to itself, or expand from a
//! kilobyte to gigabytes. Therefore the graph is measured without recursion before it is
//! deserialized.

use std::borrow::Cow;

use crate::codec::{CodecError, CodecErrorKind};

/// The maximum nesting depth of a value, as for msgpack.
const MAX_DEPTH: usize = 128;

/// The maximum ratio of the expanded size of a value to the size of its pickle.
///
/// The expanded size counts a shared value each time it is referenced. Values without sharing
/// always stay below this ratio.
const MAX_EXPANSION: usize = 128;
/// An expanded size that is always allowed.
const MIN_SIZE_LIMIT: usize = 16 << 20;
/// The assumed size of a node, in addition to its string or bytes.
const NODE_SIZE: usize = 16;

/// The index of a node.
pub(super) type Id = u32;

/// A value in a pickle, or a class or object that the pickle uses to construct one.
#[derive(Debug)]
pub(super) enum GraphNode<'a> {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(&'a str),
    Bytes(&'a [u8]),
    /// Bytes in the encoding of protocol 2: a string with one character per byte.
    Latin1(&'a str),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Set(Vec<Id>),
    /// Keys and values alternate.
    Dict(Vec<Id>),
    Class(Class),
    /// A `dogpile.cache.api.CachedValue`, with its payload and metadata.
    CachedValue([Id; 2]),
    /// The marker `dogpile.cache.api.NO_VALUE`.
    NoValue,
}

/// A class or function that constructs plain data or belongs to the envelope.
#[derive(Clone, Copy, Debug)]
pub(super) enum Class {
    Set,
    Bytes,
    /// `_codecs.encode`, which protocol 2 uses to construct bytes.
    Encode,
    Bytearray,
    CachedValue,
    NoValue,
}

/// The values of a pickle.
#[derive(Debug)]
pub(super) struct Graph<'a> {
    nodes: Vec<GraphNode<'a>>,
    root: Id,
    max_size: usize,
}

impl<'a> Graph<'a> {
    /// Creates the graph of a pickle of `pickle_len` bytes, which determines the size limit.
    pub(super) fn new(nodes: Vec<GraphNode<'a>>, root: Id, pickle_len: usize) -> Self {
        Graph { nodes, root, max_size: pickle_len.saturating_mul(MAX_EXPANSION).max(MIN_SIZE_LIMIT) }
    }

    /// Returns the value that the whole pickle encodes.
    pub(super) fn root(&self) -> Id {
        self.root
    }

    pub(super) fn node(&self, id: Id) -> &GraphNode<'a> {
        &self.nodes[id as usize]
    }

    /// Checks that the value at `id` is plain data within the depth and size limits.
    ///
    /// After this check the value can be visited recursively.
    pub(super) fn check(&self, id: Id) -> Result<(), CodecError> {
        let mut checks = vec![NodeCheck::Unvisited; self.nodes.len()];
        // The path from the value to the current node, with the number of visited children of each
        // node.
        let mut path = vec![(id, 0)];
        while let Some((id, visited)) = path.last_mut() {
            if let Some(child) = self.node(*id).children().get(*visited) {
                *visited += 1;
                match checks[*child as usize] {
                    NodeCheck::Unvisited if path.len() > MAX_DEPTH => return Err(too_deep()),
                    NodeCheck::Unvisited => {
                        checks[*child as usize] = NodeCheck::OnPath;
                        path.push((*child, 0));
                    }
                    NodeCheck::OnPath => return Err(value_error("the pickle contains a value that contains itself")),
                    NodeCheck::Measured { .. } => {}
                }
            } else {
                checks[*id as usize] = self.measure(*id, &checks)?;
                path.pop();
            }
        }
        Ok(())
    }

    /// Computes the depth and size of a node from those of its children.
    fn measure(&self, id: Id, checks: &[NodeCheck]) -> Result<NodeCheck, CodecError> {
        let own = match self.node(id) {
            GraphNode::Str(string) | GraphNode::Latin1(string) => string.len(),
            GraphNode::Bytes(bytes) => bytes.len(),
            GraphNode::Class(_) | GraphNode::CachedValue(_) | GraphNode::NoValue => {
                return Err(type_error("the value in the pickle contains a class or object that is not plain data"));
            }
            _ => 0,
        };
        let (mut depth, mut size) = (0, own.saturating_add(NODE_SIZE));
        for child in self.node(id).children() {
            if let NodeCheck::Measured { depth: child_depth, size: child_size } = checks[*child as usize] {
                depth = depth.max(child_depth + 1);
                size = size.saturating_add(child_size);
            }
        }
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        if size > self.max_size {
            return Err(value_error(
                "the pickle references shared values so often that the decoded value would be too large",
            ));
        }
        Ok(NodeCheck::Measured { depth, size })
    }
}

/// The state of a node while the graph is checked.
#[derive(Clone, Copy)]
enum NodeCheck {
    Unvisited,
    /// The node is on the current path.
    OnPath,
    Measured {
        depth: usize,
        size: usize,
    },
}

impl GraphNode<'_> {
    fn children(&self) -> &[Id] {
        match self {
            GraphNode::List(items) | GraphNode::Tuple(items) | GraphNode::Set(items) | GraphNode::Dict(items) => items,
            GraphNode::CachedValue(parts) => parts,
            _ => &[],
        }
    }

    pub(super) fn list(&mut self) -> Option<&mut Vec<Id>> {
        if let GraphNode::List(items) = self { Some(items) } else { None }
    }

    pub(super) fn set(&mut self) -> Option<&mut Vec<Id>> {
        if let GraphNode::Set(items) = self { Some(items) } else { None }
    }

    pub(super) fn dict(&mut self) -> Option<&mut Vec<Id>> {
        if let GraphNode::Dict(items) = self { Some(items) } else { None }
    }
}

#[cold]
pub(super) fn type_error(message: impl Into<Cow<'static, str>>) -> CodecError {
    CodecError::new(CodecErrorKind::Type, message)
}

#[cold]
pub(super) fn value_error(message: &'static str) -> CodecError {
    CodecError::new(CodecErrorKind::Value, message)
}

#[cold]
fn too_deep() -> CodecError {
    value_error("the pickle nests more than 128 levels deep")
}
