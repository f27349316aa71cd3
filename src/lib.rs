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

mod backend;
mod bell;
mod buffer;
pub mod codec;
pub mod engine;
mod entry;
mod error;
mod face;
mod float;
mod key;
mod keymap;
mod lock;
mod policy;
mod region;
mod request;
#[cfg(all(test, feature = "tokio"))]
mod simulation;
mod slice;
mod stamp;
#[cfg(feature = "testing")]
pub mod testing;

#[cfg(feature = "memory")]
pub use backend::Memory;
#[cfg(feature = "tls")]
pub use backend::Tls;
pub use backend::{
    Access, Backend, Cluster, ClusterNodes, Exchange, ExchangeSettings, Leases, OneServer, ReadFrom, Redis,
    RedisBuilder, Route, Sentinel, SentinelServers, ServerInfo, ServerName, Swept, Watch, sweep,
};
#[cfg(feature = "tokio")]
pub use backend::{AsyncBackend, AsyncExchange, AsyncLeases, WhileDown, sweep_async};
#[cfg(all(feature = "driver", feature = "tokio"))]
pub use backend::AsyncDriver;
#[cfg(feature = "driver")]
pub use backend::Driver;
#[cfg(feature = "json")]
pub use codec::Json;
#[cfg(feature = "serde")]
pub use codec::Serde;
pub use codec::{Bare, Codec, Full, Msgpack, Raw, Seconds};
pub use entry::{Clock, Entry, Timestamp};
pub use error::{Error, ErrorKind, GetError};
pub use key::{AsKey, Digits, Key, KeyBuf, KeyPart, Scratch};
pub use keymap::{Bucketed, Digest, KeyMap, Prefix, Unmapped};
#[cfg(feature = "tokio")]
pub use lock::AsyncLock;
pub use lock::{AfterLoss, Attempt, Discard, LocalLock, Lock, LockSettings, LostLease, RedisGuard, RedisLock, Store};
pub use policy::{Expiry, Freshness, Invalidate, Invalidation, LocalInvalidation};
#[cfg(feature = "tokio")]
pub use region::TaskJob;
pub use region::{
    AfterPatience, Call, Function, FunctionMany, KeyArgs, Region, RegionBuilder, Stats, StoreAll, StoreIf, StoreRule,
    ThreadJob,
};
pub use request::{Batch, Found, HashExpiry, Lease, Parts};
pub use slice::Slice;

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
