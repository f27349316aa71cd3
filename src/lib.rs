//! A read-through cache over Redis or Valkey. When a value is missing, exactly one caller of all
//! threads, tasks and processes creates it; the others wait for it, or get the stale value until the
//! new one is there. A hit is one round trip, and allocates nothing.
//!
//! # Async
//!
//! A [`Region`] is the cache: a backend, a codec, a lock and options. It is a cheap handle; clone it
//! into your tasks. [`Region::get_or_create_async`] returns the cached value, or runs the creator and
//! stores what it returns. Async methods need the feature `tokio`, and a runtime with I/O and timers.
//!
//! ```rust
//! # #[cfg(feature = "tokio")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use dogpile::{Memory, Region};
//!
//! // `Memory` needs no server; use `Redis::open("redis://127.0.0.1")?` instead.
//! let region = Region::builder(Memory::new(64 << 20))
//!     .stale_after(Duration::from_secs(60)) // one caller then creates the value anew
//!     .ttl(Duration::from_secs(3600))       // the backend forgets it
//!     .build()?;
//!
//! let name: String = region.get_or_create_async("user-15|name", async || load_name(15).await).await?;
//! assert_eq!(name, "Ann");
//!
//! // A stale value is returned at once, while a task of its own creates the new one.
//! let name = region.get_or_refresh_async("user-15|name", || load_name(15)).await?;
//! assert_eq!(name, "Ann");
//! # async fn load_name(_: u64) -> Result<String, std::io::Error> { Ok("Ann".into()) }
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "tokio"))]
//! # fn main() {}
//! ```
//!
//! # Blocking
//!
//! The methods without a suffix block. Threads and tasks share their regions, and wait for the same
//! creation.
//!
//! ```rust,no_run
//! use std::time::Duration;
//! use dogpile::{Redis, RedisLock, Region};
//!
//! #[derive(Clone)]
//! struct Profile { id: u64, name: String, tags: Vec<String> }
//! dogpile::msgpack! { Profile { id, name, tags } }
//!
//! let region = Region::builder(Redis::open("redis://:password@127.0.0.1:6379/0")?)
//!     .lock(RedisLock::new()) // one creator among all processes
//!     .stale_after(Duration::from_secs(3600))
//!     .ttl(Duration::from_secs(7200))
//!     .build()?;
//!
//! // A pair is a field of a Redis hash, and integers are keys too.
//! let profile: Profile = region.get_or_create(("profiles", 15), || load(15))?;
//!
//! // A batch is one round trip. The creator gets the keys that this caller must create.
//! let keys = [("profiles", 15), ("profiles", 16)];
//! let profiles: Vec<Profile> = region.get_or_create_many(&keys, |missing| {
//!     missing.iter().map(|(_, id)| load(*id)).collect::<Result<_, _>>()
//! })?;
//! # fn load(id: u64) -> Result<Profile, std::io::Error> {
//! #     Ok(Profile { id, name: "Ann".into(), tags: vec![] })
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! If the server is down, the creator runs, once per key at a time in this region, and its value is
//! returned. [`RegionBuilder::fail_closed`] makes an outage an error instead.
//!
//! # Choose the parts
//!
//! | part | default | others |
//! |---|---|---|
//! | backend | none: you choose | [`Memory`], [`Redis`], [`Cluster`], [`Sentinel`], [`redis::Driver`] |
//! | codec | [`Msgpack`], with [`codec::Seconds`] | [`Json`], [`Serde`], [`Raw`], [`Pickle`] |
//! | lock | [`LocalLock`]: one creator in each process | [`RedisLock`]: one in all processes |
//! | keys | as they are | [`keymap::Prefix`], [`keymap::Digest`], [`Bucketed`] |
//!
//! [`Pickle`]: codec::python::Pickle
//!
//! - One process, or tests: `Memory` with `LocalLock`.
//! - Several processes, and creators that are cheap: `Redis` with `LocalLock`.
//! - Several processes, and creators that are expensive: `Redis` with `RedisLock`.
//! - Types with `serde` derives: `Serde` or `Json`. Types of your own without: [`msgpack!`].
//! - Many small values: `Bucketed`, at about a tenth of the memory.
//!
//! # Where to read on
//!
//! | page | when you |
//! |---|---|
//! | [keys](crate::docs::keys) | name entries, as keys or fields of hashes |
//! | [codecs](crate::docs::codecs) | choose a format, use serde, change a type |
//! | [memory](crate::docs::memory) | store many small values |
//! | [freshness](crate::docs::freshness) | set expiry, invalidate, plan for failures |
//! | [locks](crate::docs::locks) | prevent stampedes among processes |
//! | [deployments](crate::docs::deployments) | connect to servers, clusters, Sentinel, TLS, ACLs |
//! | [python](crate::docs::python) | share a cache with `dogpile.cache` |
//! | [testing](crate::docs::testing) | test a service, or a backend of your own |
//! | [observability](crate::docs::observability) | watch a cache in production |
//! | [performance](crate::docs::performance) | want the measurements, and to repeat them |
//!
//! # Follow a hit
//!
//! A blocking [`Region::get`] on Redis passes five functions. Paths are in `src/`.
//!
//! 1. [`Region::get`] (`region/mod.rs`) maps the key with the region's [`KeyMap`] and asks the
//!    backend. If the backend finds another Redis type at the key, that is a miss.
//! 2. [`Backend::get`], for all Redis backends in `redis/store.rs`, chooses the command (`GET` or
//!    `HGET`, written by `redis/protocol/commands`) and receives one reply. The transport chooses the
//!    server.
//! 3. `Pool::exchange` (`redis/conn/pool.rs`) takes an idle connection, has the command written into
//!    its buffer, and puts it back afterwards. If the connection was closed while it was idle, the
//!    request is sent once more over a new one.
//! 4. `Connection::exchange` (`redis/conn/blocking.rs`) makes one write and one read. The parser
//!    (`Replies::feed` in `redis/protocol/parser.rs`) cuts the reply from what was read, and the entry
//!    is copied to the connection's arena.
//! 5. [`Codec::decode`] returns the value and the time of its creation.
//!    `freshness::judge` (`freshness.rs`) compares that time with the invalidations and `stale_after`.
//!    If the value is fresh, `Region::get` returns it.
//!
//! An async hit differs in steps 3 and 4: `Pipeline::queue` (`redis/conn/multiplexed/pipeline.rs`)
//! appends the command to the output of the shared connection, whose task writes it, cuts the reply
//! (`decoder.rs`), and wakes the caller.
//!
//! # Follow a miss
//!
//! [`Region::get_or_create`] with a [`RedisLock`], for a key that is missing. Paths are in
//! `src/region/create/` unless they say otherwise. Both kinds of callers use these functions: they are
//! `async`, and for a blocking caller everything that they await is ready at once (`exec/`).
//!
//! 1. **First read.** `shared_reads.rs` says whether this process found the key recently. If not, this
//!    caller reads for all: concurrent callers wait for its result. `Backend::get` returns nothing.
//!    With `lease_on_miss`, one script reads and takes the lease.
//! 2. **Flight.** The caller gets a flight (`flight.rs`), which holds its entry in the single-flight
//!    table, its lock and its value. The flight asks the decision table (`machine.rs`) for its next
//!    step; the table is pure, and a test walks all of its states.
//! 3. **Creation driver.** `mod.rs` does the I/O of these steps, for one key or many, in a loop: read,
//!    join, lock, create, store. If nothing else is left to do, it waits for other callers.
//! 4. **Join.** `single_flight.rs` makes this caller the leader of the key. Callers that come later
//!    wait for it there. If a stale value was found, they return that instead.
//! 5. **Lock.** `Lock::try_lock_and_read` (`lock/redis.rs`, over `redis/leases.rs`) takes the lease
//!    and reads the entry again in one round trip, because another process may have created the value
//!    since the first read. If another process holds the lease, the caller waits for a notification
//!    (`redis/tracking`), and reads. [`LocalLock`] needs no round trip here, unless another creation
//!    in the same shard of the single-flight table ended meanwhile.
//! 6. **Create.** The driver returns to its caller, which runs the creator. Meanwhile
//!    `exec/periodic.rs` renews the lease (`lock/lease.rs`) at each third of its life.
//! 7. **Share and store.** The driver encodes the value and gives the entry to the waiters of this
//!    process. `Lock::store_and_release` then stores it and releases the lease in one round trip. That
//!    change of the lock notifies the waiters in other processes.
//!
//! If the creator fails, panics, or is dropped, the lease is released and the next waiter is promoted.
//! If the first read failed, the lock and the store are left out: the value is created, shared and
//! returned.
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
#[cfg(any(fuzzing, feature = "testing"))]
#[doc(hidden)]
pub mod internals;
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

#[cfg(feature = "memory")]
pub use backend::Memory;
pub use backend::{AsyncBackend, Backend};
#[cfg(feature = "json")]
pub use codec::Json;
#[cfg(feature = "serde")]
pub use codec::Serde;
pub use codec::{Codec, Msgpack, Raw};
pub use error::{Error, ErrorKind, GetError};
pub use freshness::{Expiry, Invalidate};
pub use key::{AsKey, Key, KeyBuf};
pub use keymap::{Bucketed, KeyMap};
pub use lock::{AsyncLock, LocalLock, Lock, RedisLock};
pub use region::{Function, Options, Region, RegionBuilder, Stats};
pub use time::{Clock, Entry, Timestamp};

pub use crate::redis::{Cluster, HashTtl, Redis, Sentinel};

/// The pages of `docs/`, one per task.
#[cfg(all(
    doc,
    any(
        not(doctest),
        all(
            feature = "memory",
            feature = "python",
            feature = "serde",
            feature = "testing",
            feature = "tokio",
            feature = "tls"
        )
    )
))]
pub mod docs {
    #[doc = include_str!("../docs/codecs.md")]
    pub mod codecs {}
    #[doc = include_str!("../docs/deployments.md")]
    pub mod deployments {}
    #[doc = include_str!("../docs/freshness.md")]
    pub mod freshness {}
    #[doc = include_str!("../docs/keys.md")]
    pub mod keys {}
    #[doc = include_str!("../docs/locks.md")]
    pub mod locks {}
    #[doc = include_str!("../docs/memory.md")]
    pub mod memory {}
    #[doc = include_str!("../docs/observability.md")]
    pub mod observability {}
    #[doc = include_str!("../docs/performance.md")]
    pub mod performance {}
    #[doc = include_str!("../docs/python.md")]
    pub mod python {}
    #[doc = include_str!("../docs/testing.md")]
    pub mod testing {}
    #[doc = include_str!("../DESIGN.md")]
    pub mod design {}
    #[doc = include_str!("../CHANGELOG.md")]
    pub mod changelog {}
}

/// The examples of the README, as doctests.
#[cfg(all(doctest, feature = "memory", feature = "serde", feature = "tokio"))]
#[doc = include_str!("../README.md")]
mod readme {}
