//! The wire protocol, without I/O: commands, replies, batches, and the slots of a cluster.
//!
//! `commands` writes keys as commands, `parser` cuts what a server sends into tokens, `chunk` keeps what
//! the tokens borrow, `batch` brings the replies for many keys into the caller's order, `slot` tells which
//! part of a cluster a key belongs to, and `routing` which command goes to which server. Blocking and
//! async connections use the same modules.

pub(crate) mod batch;
pub mod chunk;
pub(crate) mod commands;
pub mod parser;
pub(crate) mod routing;
pub(crate) mod slot;
