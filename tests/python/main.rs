//! This library beside the Python packages that it succeeds, on the same entries, keys and locks.
#![cfg(unix)]

mod child;
mod entries;
mod formats;
mod functions;
mod locks;
mod peer;
// Some of it is for other tests.
#[allow(dead_code)]
#[path = "../it/support.rs"]
mod support;
mod typed;
mod value;
