//! Proof by fire: real servers and processes of our own that are flushed, frozen, cut off and killed.

#[cfg(unix)]
mod chaos;
mod child;
mod cut;
mod dice;
mod flush;
#[cfg(unix)]
mod frozen;
mod killed;
mod ledger;
mod limit;
mod process;
// Some of it is for other tests.
#[allow(dead_code)]
#[path = "../it/support.rs"]
mod support;
