//! What is decided and what is said on the wire: pure, without sockets, clocks or locks.
//!
//! `dogpile` decides who creates a value and who waits, `plan` turns keys into commands, [`replies`] cuts what a
//! server sends into tokens, [`chunk`] keeps what they borrow, `batch` brings the answers to many keys into their
//! caller's order. Blocking and asynchronous drivers use the same rooms.

pub(crate) mod batch;
pub mod chunk;
pub(crate) mod commands;
pub mod parser;
pub(crate) mod routing;
pub(crate) mod slot;
