#![doc = include_str!("../README.md")]
//!
//! # The way through the code
//!
//! [`Region`] is the door. [`key`](Key), [`keymap`](KeyMap), [`entry`](Entry), [`policy`](Expiry) and
//! [`error`](Error) are the words it uses; [`codec`] turns values into bytes; [`engine`] decides and speaks RESP,
//! without I/O; [`backend`](Backend) is where entries live; [`lock`](Lock) is who may create; the region puts them
//! together.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backend;
mod batch;
mod buffer;
pub mod codec;
mod error;
mod exec;
mod float;
pub mod freshness;
mod key;
pub mod keymap;
pub mod lock;
pub mod redis;
pub mod region;
#[cfg(all(test, feature = "tokio"))]
mod simulation;
mod slice;
#[cfg(feature = "testing")]
pub mod testing;
mod time;
mod wake_set;

#[cfg(feature = "tokio")]
pub use backend::AsyncBackend;
pub use backend::Backend;
#[cfg(feature = "memory")]
pub use backend::Memory;
#[cfg(feature = "json")]
pub use codec::Json;
#[cfg(feature = "serde")]
pub use codec::Serde;
pub use codec::{Codec, Msgpack, Raw};
pub use error::{Error, ErrorKind, GetError};
pub use freshness::{Expiry, Invalidate};
pub use key::{AsKey, Key, KeyBuf};
pub use keymap::{Bucketed, KeyMap};
#[cfg(feature = "tokio")]
pub use lock::AsyncLock;
pub use lock::{LocalLock, Lock, RedisLock};
pub use region::{Function, Region, RegionBuilder, Stats};
pub use time::{Clock, Entry, Timestamp};

pub use crate::redis::{Cluster, HashExpiry, Redis, Sentinel};

/// The decisions behind this crate and the measurements behind them.
#[cfg(doc)]
#[doc = include_str!("../DESIGN.md")]
pub mod design {}

/// Which way to store what, by the memory that it takes.
#[cfg(doc)]
#[doc = include_str!("../docs/choosing.md")]
pub mod choosing {}

/// What changed from version to version.
#[cfg(doc)]
#[doc = include_str!("../CHANGELOG.md")]
pub mod changelog {}
