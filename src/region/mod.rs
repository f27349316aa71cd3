//! [`Region`]: values of one kind, where they live, how they are written, who creates them.
//!
//! [`builder`] sets one up, [`call`] reads and writes, [`flight`] carries one caller to one value through the
//! decision table of `engine::dogpile`, [`drive`] is the driver of flights, [`face`] what it does in another way for
//! threads than for tasks, [`function`] makes functions cached.

#[cfg(feature = "tokio")]
mod asynchronous;
mod builder;
mod call;
mod create;
mod function;
mod keys;
mod stats;

use std::fmt;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Duration;

use async_lock::Semaphore;
use bytes::Bytes;

use crate::backend::Backend;
use crate::batch::Batch;
use crate::codec::Msgpack;
use crate::codec::Seconds;
use crate::codec::{Codec, Meta};
use crate::error::{Error, ErrorKind, GetError};
use crate::freshness::{Expiry, Freshness, Invalidate, Invalidation, LocalInvalidation, MaxAge, judge};
use crate::key::{AsKey, Key};
use crate::keymap::{KeyMap, Unmapped};
use crate::lock::LocalLock;
use crate::lock::{Lock, LockSettings};
use crate::region::create::background::Runner;
use crate::region::create::single_flight;
use crate::region::create::single_flight::{Line, Waiter};
use crate::region::keys::{KeyRoom, Room};
use crate::region::stats::Counters;
use crate::slice::Slice;
use crate::time::{Clock, Entry, Now, Timestamp};

pub use self::builder::{AfterPatience, RegionBuilder};
pub use self::call::{Call, StoreAll, StoreIf, StoreRule};
#[cfg(feature = "tokio")]
pub use self::create::background::TaskJob;
pub use self::create::background::ThreadJob;
pub use self::function::{Function, FunctionMany, KeyArgs};
pub use self::stats::Stats;

/// A cache of values: where entries live (`B`), how they are written (`S`), who holds the lock while a value is
/// created (`L`), how keys become the server's (`M`), and what is invalid (`I`).
///
/// A region is a handle; clones are the same region. All methods take `&self` and may be called from many threads.
/// [`Region::get_or_create`] is what it is for. Settings for single calls are made by [`Region::with_expiry`],
/// [`Region::ignoring_expiry`], [`Region::with_ttl`] and [`Region::store_if`].
///
/// ```
/// use std::time::Duration;
/// use dogpile::{Memory, Region};
///
/// let region = Region::builder(Memory::new(64 << 20))
///     .expires_after(Duration::from_secs(3600))
///     .build()?;
///
/// let name: String = region.get_or_create(("user-15", "name"), || load_name(15))?;
/// assert_eq!(name, "Ann");
/// assert_eq!(region.get::<String>(("user-15", "name"))?.as_deref(), Some("Ann"));
/// # fn load_name(_: u64) -> Result<String, std::io::Error> { Ok("Ann".into()) }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Region<B, S = Msgpack<Seconds>, L = LocalLock, M = Unmapped, I = LocalInvalidation> {
    shared: Arc<Shared<B, S, L, M, I>>,
}

/// What the clones of a region share.
pub(crate) struct Shared<B, S, L, M, I> {
    backend: B,
    codec: S,
    lock: L,
    map: M,
    invalidation: I,
    line: Arc<Line>,
    clock: Clock,
    expiry: Expiry,
    /// The same, as ages are compared.
    max_age: MaxAge,
    ttl: Option<Duration>,
    patience: Option<Duration>,
    after_patience: AfterPatience,
    /// Places for those who create, and how many there are.
    creators: Option<(Arc<Semaphore>, usize)>,
    fail_closed: bool,
    thread_runner: Runner<ThreadJob>,
    #[cfg(feature = "tokio")]
    task_runner: Runner<TaskJob>,
    counters: Counters,
}

/// What an entry says, and what it is good for.
pub(crate) struct Understood<V> {
    value: V,
    meta: Meta,
    freshness: Freshness,
}

/// A value that was read, with its entry.
pub(crate) struct Reading<V> {
    value: V,
    entry: Bytes,
    freshness: Freshness,
}

impl<B> Region<B> {
    /// Begins to set up a region over `backend`.
    pub fn builder(backend: B) -> RegionBuilder<B> {
        RegionBuilder::new(backend)
    }
}

impl<B: Backend, S, L: Lock<B>, M: KeyMap, I: Invalidation> Region<B, S, L, M, I> {
    /// The value of `key`; `None` when it is absent, stale or cannot be decoded. One round trip, and no allocation but
    /// what `V` itself needs.
    ///
    /// A cached `None` of an `Option` is `Some(None)`.
    ///
    /// # Errors
    /// When the backend fails.
    #[inline]
    pub fn get<V>(&self, key: impl AsKey) -> Result<Option<V>, Error>
    where
        S: Codec<V>,
    {
        self.call().get(key)
    }

    /// The value of `key` with its creation time, age and version; otherwise as [`Region::get`].
    ///
    /// # Errors
    /// When the backend fails.
    pub fn get_entry<V>(&self, key: impl AsKey) -> Result<Option<Entry<V>>, Error>
    where
        S: Codec<V>,
    {
        self.call().get_entry(key)
    }

    /// The values of `keys`, in their order, duplicates kept. One round trip whatever the keys, none for no keys.
    ///
    /// # Errors
    /// When the backend fails for any of them.
    pub fn get_many<K: AsKey, V>(&self, keys: &[K]) -> Result<Vec<Option<V>>, Error>
    where
        S: Codec<V>,
    {
        self.call().get_many(keys)
    }

    /// Stores a value, in one round trip, and without allocating once the buffers are warm, if its entry has at most
    /// 32 KiB (in `Memory`: no more than the entry that it replaces).
    ///
    /// # Errors
    /// When the value cannot be encoded or the backend fails.
    pub fn set<V>(&self, key: impl AsKey, value: &V) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        self.call().set(key, value)
    }

    /// Stores many values, of duplicates the last, in one round trip.
    ///
    /// # Errors
    /// When a value cannot be encoded, and then nothing was stored; when the backend fails, and then some may have
    /// been.
    pub fn set_many<K: AsKey, V>(&self, entries: &[(K, V)]) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        self.call().set_many(entries)
    }

    /// Deletes a value; it does not matter whether it was there. One round trip.
    ///
    /// # Errors
    /// When the backend fails.
    pub fn delete(&self, key: impl AsKey) -> Result<(), Error> {
        self.delete_many(&[key])
    }

    /// Deletes many values in one round trip, none for no keys.
    ///
    /// # Errors
    /// When the backend fails.
    pub fn delete_many<K: AsKey>(&self, keys: &[K]) -> Result<(), Error> {
        let mut room = KeyRoom::new();
        self.shared.backend.delete_many(&room.map_all(keys, &self.shared.map))
    }

    /// The value of `key`, created if it is not there.
    ///
    /// Of all callers, in all threads and, with a [`RedisLock`](crate::lock::RedisLock), in all processes, one calls
    /// `create`. While a value is stale the others get it as it is; while there is none they wait for the new one. If
    /// `create` fails or panics, the lock is released and the next caller's `create` runs.
    ///
    /// A hit costs one round trip; a miss three at most: read, lock and read again, store and release. With a lock that
    /// no other process knows (the default) it is two, unless others create at the same time, and with
    /// [`RedisLock::lease_on_miss`](crate::lock::RedisLock::lease_on_miss) too. Who comes while another caller of this process
    /// reads the key, or creates it because there was nothing, waits for him instead of reading; if there is something
    /// after all, that costs a round trip more, once for a key that was not found lately. When the backend is out
    /// of reach, `create` runs all the same, once per key at a time in this region and its clones, and its value is
    /// returned ([`RegionBuilder::fail_closed`] makes that an error). A value that cannot be encoded is returned and
    /// cannot be shared, so those who wait create theirs one after the other.
    ///
    /// `create` may get and create other values, but values must not need each other in a circle: that waits for ever,
    /// or as long as the region's [patience](RegionBuilder::patience). Only the shortest circle is told, when `create`
    /// asks for its own key on its own thread.
    ///
    /// # Errors
    /// [`GetError::Create`] with the error of `create`. [`GetError::Cache`] when waiting took longer than the region's
    /// [patience](RegionBuilder::patience), when `create` asks for the very key it is creating, and, if the region
    /// fails closed, when the backend fails.
    #[inline]
    pub fn get_or_create<V, E>(&self, key: impl AsKey, create: impl FnOnce() -> Result<V, E>) -> Result<V, GetError<E>>
    where
        S: Codec<V>,
    {
        self.call().get_or_create(key, create)
    }

    /// The value of `key`, created if it is not there; a stale value is returned at once, to every caller, while it is
    /// created anew in the background.
    ///
    /// As [`Region::get_or_create`], but where a stale value is found nobody waits for the creator: one caller of all
    /// hands it to the region's [runner](RegionBuilder::thread_runner). It takes the lock with it, which is released
    /// when it ends. What goes wrong there is counted in [`Stats`], and the next caller tries again. With no value at
    /// hand this caller creates it, or waits for who does.
    ///
    /// # Errors
    /// As [`Region::get_or_create`].
    ///
    /// ```
    /// use std::time::Duration;
    /// use dogpile::{Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set("rates", &1_u64)?;
    /// let stale = region.with_expiry(Duration::ZERO).get_or_refresh("rates", || Ok::<_, std::io::Error>(2_u64))?;
    /// assert_eq!(stale, 1);
    /// # while region.get::<u64>("rates")? != Some(2) { std::thread::yield_now(); }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get_or_refresh<V, E>(
        &self,
        key: impl AsKey,
        create: impl FnOnce() -> Result<V, E> + Send + 'static,
    ) -> Result<V, GetError<E>>
    where
        B: 'static,
        S: Codec<V> + Send + Sync + 'static,
        L: 'static,
        M: 'static,
        I: 'static,
        V: Send + 'static,
        L::Guard: 'static,
    {
        self.call().get_or_refresh(key, create)
    }

    /// The values of `keys`, in their order, those created that are not there.
    ///
    /// `create` is given the keys that this caller must create, each once, in the order they were asked for, and
    /// returns their values in that order. Values that others are creating are waited for; if they fail, `create` is
    /// called again, with those. Round trips as in [`Region::get_or_create`], for all keys together.
    ///
    /// # Errors
    /// As [`Region::get_or_create`], and when `create` returns another number of values than it was given keys.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set(2, &20_u64)?;
    /// let values: Vec<u64> = region.get_or_create_many(&[1, 2, 3, 1], |missing| {
    ///     assert_eq!(missing, [&1, &3]);
    ///     Ok::<_, std::io::Error>(missing.iter().map(|key| **key as u64 * 10).collect())
    /// })?;
    /// assert_eq!(values, [10, 20, 30, 10]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get_or_create_many<K: AsKey, V: Clone, E>(
        &self,
        keys: &[K],
        create: impl FnMut(&[&K]) -> Result<Vec<V>, E>,
    ) -> Result<Vec<V>, GetError<E>>
    where
        S: Codec<V>,
    {
        self.call().get_or_create_many(keys, create)
    }

    /// Whether somebody is creating the value of `key`: in this process, or, as far as the lock can tell, in another.
    ///
    /// # Errors
    /// When the lock cannot tell.
    pub fn is_locked(&self, key: impl AsKey) -> Result<bool, Error> {
        let mut room = Room::new();
        let key = room.map(&key, &self.shared.map);
        Ok(self.shared.line.is_busy(key) || self.shared.lock.is_locked(&self.shared.backend, key)?)
    }
}

impl<B, S, L, M: KeyMap, I: Invalidation> Region<B, S, L, M, I> {
    /// The same region with another expiry for single calls.
    pub fn with_expiry(&self, expiry: impl Into<Expiry>) -> Call<'_, B, S, L, M, I> {
        self.call().with_expiry(expiry)
    }

    /// The same region for single calls that take entries of any age, invalidated ones too.
    pub fn ignoring_expiry(&self) -> Call<'_, B, S, L, M, I> {
        self.call().ignoring_expiry()
    }

    /// The same region with another TTL for single calls; `None` for none.
    pub fn with_ttl(&self, ttl: impl Into<Option<Duration>>) -> Call<'_, B, S, L, M, I> {
        self.call().with_ttl(ttl)
    }

    /// The same region for single calls that store a created value only if `rule` says so. It is returned, and given
    /// to those who wait for it, in each case.
    pub fn store_if<V, F: Fn(&V) -> bool>(&self, rule: F) -> Call<'_, B, S, L, M, I, StoreIf<F>> {
        self.call().store_if(rule)
    }

    #[inline]
    fn call(&self) -> Call<'_, B, S, L, M, I> {
        Call::new(self)
    }

    /// Makes all that was created up to now stale or absent, as far as the region's [`Invalidation`] reaches. Entries
    /// in a [`Bare`](crate::codec::Bare) envelope have no time and stay.
    pub fn invalidate(&self, how: Invalidate) {
        self.shared.invalidation.invalidate(self.shared.clock.now(), how);
    }

    /// What happened since the region was built.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.counters.read()
    }

    /// Where entries live.
    #[must_use]
    pub fn backend(&self) -> &B {
        &self.shared.backend
    }

    /// What is invalid.
    #[must_use]
    pub fn invalidation(&self) -> &I {
        &self.shared.invalidation
    }
}

impl<B, S, L, M, I: Invalidation> Shared<B, S, L, M, I> {
    /// Decodes and judges an entry. One that cannot be decoded is none.
    #[inline(always)]
    fn understand<V>(&self, entry: Slice<'_>, max_age: Option<MaxAge>, now: &Now<'_>) -> Option<Understood<V>>
    where
        S: Codec<V>,
    {
        match self.codec.decode(entry) {
            Ok((value, meta)) => {
                let freshness = self.freshness(meta.created, max_age, now);
                Some(Understood { value, meta, freshness })
            }
            Err(_) => {
                self.counters.undecodable.add(1);
                None
            }
        }
    }

    /// What an entry that was created then is good for.
    #[inline]
    fn freshness(&self, created: Option<Timestamp>, max_age: Option<MaxAge>, now: &Now<'_>) -> Freshness {
        max_age.map_or(Freshness::Fresh, |max_age| judge(created, max_age, now, &self.invalidation))
    }

    /// The value of an entry that is fresh.
    #[inline(always)]
    fn fresh<V>(&self, entry: Slice<'_>, max_age: Option<MaxAge>, now: &Now<'_>) -> Option<V>
    where
        S: Codec<V>,
    {
        match self.codec.decode(entry) {
            Ok((value, meta)) if self.freshness(meta.created, max_age, now) == Freshness::Fresh => Some(value),
            Ok(_) => None,
            Err(_) => {
                self.counters.undecodable.add(1);
                None
            }
        }
    }

    /// An entry with what it says, kept for those who wait for it.
    fn reading<V>(&self, entry: Option<Bytes>, max_age: Option<MaxAge>) -> Option<Reading<V>>
    where
        S: Codec<V>,
    {
        let entry = entry?;
        let Understood { value, freshness, .. } =
            self.understand(Slice::from(&entry), max_age, &Now::of(&self.clock))?;
        Some(Reading { value, entry, freshness })
    }

    /// How many lines of keys like this one have ended, where that may save a reading.
    #[inline]
    fn lines_ended(&self, hash: u64) -> Option<u64>
    where
        L: LockSettings,
    {
        L::ONLY_THIS_REGION.then(|| self.line.ended(hash))
    }

    /// A key was written, or that was tried: callers of this process find that from now on.
    #[inline]
    fn wrote(&self, key: Key<'_>) {
        self.line.wrote(self.line.hash(key));
    }

    /// Counts an entry that is larger than its key is made for, and warns of the first.
    #[inline]
    fn check_length(&self, key: Key<'_>, bytes: usize)
    where
        M: KeyMap,
    {
        let most = self.map.longest_entry(key);
        if bytes > most && self.counters.oversized.is_first() {
            log::warn!(
                "writing {key}: an entry of {bytes} bytes is over the {most} that such keys are made for; in a bucket it \
                 costs several times the memory. From now on they are counted only, in Stats::oversized"
            );
        }
    }

    fn wrote_all(&self, batch: &Batch) {
        batch.iter().for_each(|(key, _)| self.wrote(key));
    }

    /// A caller is about to read a key, to create it if there is nothing. `Err` where another one in this process does so
    /// already, for all who want it.
    #[inline]
    fn begin_reading(&self, key: Key<'_>, hash: u64, thread: Option<ThreadId>) -> Result<Begun<'_>, Waiter>
    where
        L: LockSettings,
    {
        let claim = self.line.begin_reading(hash, key, thread)?;
        Ok(Begun { claim, lines_ended: self.lines_ended(hash) })
    }

    /// The same for a caller who reads for himself.
    fn begin_alone(&self, key: Key<'_>) -> Begun<'_>
    where
        L: LockSettings,
    {
        Begun { claim: None, lines_ended: self.lines_ended(self.line.hash(key)) }
    }

    /// What reading a key came to; one that holds another type of data is a miss.
    #[inline(always)]
    fn miss_if_wrong_type(&self, read: Result<Option<Bytes>, Error>) -> Result<Option<Bytes>, Error> {
        read.or_else(|error| self.wrong_type(error))
    }

    #[cold]
    fn wrong_type(&self, error: Error) -> Result<Option<Bytes>, Error> {
        if error.kind() != ErrorKind::WrongType {
            return Err(error);
        }
        self.counters.wrong_type.add(1);
        Ok(None)
    }
}

/// A reading that has begun.
pub(crate) struct Begun<'l> {
    /// For others who want the key.
    claim: Option<single_flight::Reading<'l>>,
    /// How many lines of keys like this one had ended before.
    lines_ended: Option<u64>,
}

impl Begun<'_> {
    /// The value was found.
    #[inline]
    fn found<V>(self, value: V) -> V {
        self.claim.into_iter().for_each(single_flight::Reading::found);
        value
    }
}

impl<B, S, L, M, I> Clone for Region<B, S, L, M, I> {
    fn clone(&self) -> Self {
        Region { shared: Arc::clone(&self.shared) }
    }
}

impl<B: fmt::Debug, S, L, M, I> fmt::Debug for Region<B, S, L, M, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("backend", &self.shared.backend)
            .field("expiry", &self.shared.expiry)
            .field("ttl", &self.shared.ttl)
            .field("stats", &self.shared.counters.read())
            .finish_non_exhaustive()
    }
}
