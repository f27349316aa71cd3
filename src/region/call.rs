//! [`Call`]: a region with settings for single calls, and what reads and writes.

use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use super::drive::Drive;
use super::flight::Flight;
use super::keys::KeyRoom;
use super::{Reading, Region, Shared, Understood};
use crate::backend::Backend;
use crate::buffer::with_buffer;
use crate::codec::{Codec, CodecError};
use crate::entry::{Entry, Now};
use crate::error::{Error, ErrorKind, GetError};
use crate::face::{Thread, now};
use crate::key::{AsKey, Key, KeyBuf, Scratch};
use crate::keymap::KeyMap;
use crate::lock::Lock;
use crate::policy::{Expiry, Freshness, Invalidation, MaxAge};
use crate::request::{Batch, Found};
use crate::slice::Slice;

/// A region with settings for single calls, made by [`Region::with_expiry`] and its like.
///
/// ```
/// use std::time::Duration;
/// use dogpile::{Memory, Region};
///
/// let region = Region::builder(Memory::new(1 << 20)).build()?;
/// let found: Option<String> = region
///     .with_expiry(Duration::from_secs(5))
///     .store_if(|name: &Option<String>| name.is_some())
///     .get_or_create("user-15|name", || Ok::<_, std::io::Error>(None))?;
/// assert_eq!(found, None);
/// assert_eq!(region.get::<Option<String>>("user-15|name")?, None, "it was not stored");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
#[derive(Debug)]
pub struct Call<'r, B, S, L, M, I, F = StoreAll> {
    pub(super) region: &'r Region<B, S, L, M, I>,
    /// `None`: entries of any age.
    pub(super) max_age: Option<MaxAge>,
    pub(super) ttl: Option<Duration>,
    pub(super) rule: F,
}

/// Which created values are stored.
pub trait StoreRule<V> {
    /// Whether `value` is.
    fn stores(&self, value: &V) -> bool;
}

/// Every created value is stored.
#[derive(Clone, Copy, Debug)]
pub struct StoreAll;

impl<V> StoreRule<V> for StoreAll {
    fn stores(&self, _: &V) -> bool {
        true
    }
}

/// Created values are stored if a predicate says so.
#[derive(Clone, Copy, Debug)]
pub struct StoreIf<F>(F);

impl<V, F: Fn(&V) -> bool> StoreRule<V> for StoreIf<F> {
    fn stores(&self, value: &V) -> bool {
        (self.0)(value)
    }
}

impl<'r, B, S, L, M, I> Call<'r, B, S, L, M, I> {
    #[inline]
    pub(super) fn new(region: &'r Region<B, S, L, M, I>) -> Self {
        Call { region, max_age: Some(region.shared.max_age), ttl: region.shared.ttl, rule: StoreAll }
    }
}

impl<'r, B, S, L, M, I, F> Call<'r, B, S, L, M, I, F> {
    /// See [`Region::with_expiry`].
    pub fn with_expiry(mut self, expiry: impl Into<Expiry>) -> Self {
        self.max_age = Some(MaxAge::from(expiry.into()));
        self
    }

    /// See [`Region::ignoring_expiry`].
    pub fn ignoring_expiry(mut self) -> Self {
        self.max_age = None;
        self
    }

    /// See [`Region::with_ttl`].
    pub fn with_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.ttl = ttl.into();
        self
    }

    /// See [`Region::store_if`].
    pub fn store_if<V, G: Fn(&V) -> bool>(self, rule: G) -> Call<'r, B, S, L, M, I, StoreIf<G>> {
        Call { region: self.region, max_age: self.max_age, ttl: self.ttl, rule: StoreIf(rule) }
    }

    #[inline]
    pub(super) fn shared(&self) -> &'r Shared<B, S, L, M, I> {
        &self.region.shared
    }
}

impl<B: Backend, S, L: Lock<B>, M: KeyMap, I: Invalidation, F> Call<'_, B, S, L, M, I, F> {
    /// See [`Region::get`].
    ///
    /// # Errors
    /// When the backend fails.
    #[inline]
    pub fn get<V>(&self, key: impl AsKey) -> Result<Option<V>, Error>
    where
        S: Codec<V>,
    {
        let region = self.shared();
        self.with_key(&key, |key| {
            let entry = self.read(key)?;
            Ok(entry.and_then(|entry| region.fresh(Slice::from(&entry), self.max_age, &Now::of(&region.clock))))
        })
    }

    /// See [`Region::get_entry`].
    ///
    /// # Errors
    /// When the backend fails.
    pub fn get_entry<V>(&self, key: impl AsKey) -> Result<Option<Entry<V>>, Error>
    where
        S: Codec<V>,
    {
        let region = self.shared();
        let now = Now::of(&region.clock);
        let entry = self.with_key(&key, |key| self.read(key))?;
        let understood = entry.and_then(|entry| region.understand(Slice::from(&entry), self.max_age, &now));
        let fresh = understood.filter(|understood| understood.freshness == Freshness::Fresh);
        Ok(fresh.map(|Understood { value, meta, .. }| Entry {
            value,
            created: meta.created,
            age: meta.created.map(|created| now.get().since(created)),
            version: meta.version,
        }))
    }

    /// See [`Region::get_many`].
    ///
    /// # Errors
    /// When the backend fails for any of them.
    pub fn get_many<K: AsKey, V>(&self, keys: &[K]) -> Result<Vec<Option<V>>, Error>
    where
        S: Codec<V>,
    {
        let mut room = KeyRoom::new();
        let keys = room.map_all(keys, &self.shared().map);
        let region = self.shared();
        let mut found = Found::new();
        region.backend.get_many(&keys, &mut found)?;
        let now = Now::of(&region.clock);
        Ok(found.iter().map(|entry| entry.and_then(|entry| region.fresh(entry, self.max_age, &now))).collect())
    }

    /// See [`Region::set`].
    ///
    /// # Errors
    /// When the value cannot be encoded or the backend fails.
    pub fn set<V>(&self, key: impl AsKey, value: &V) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        let region = self.shared();
        self.with_key(&key, |key| {
            with_buffer(|entry| {
                let now = region.invalidation.stamp(region.clock.now());
                region.codec.encode(value, now, entry).map_err(|error| cannot_encode(key, &error))?;
                region.backend.set(key, entry, self.ttl)
            })
        })
    }

    /// See [`Region::set_many`].
    ///
    /// # Errors
    /// When a value cannot be encoded or the backend fails.
    pub fn set_many<K: AsKey, V>(&self, entries: &[(K, V)]) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        self.set_all(entries.iter().map(|(key, value)| (key, value)))
    }

    /// Stores the values of an iterator in one round trip.
    pub(super) fn set_all<'v, K: AsKey + 'v, V: 'v>(
        &self,
        entries: impl Iterator<Item = (&'v K, &'v V)>,
    ) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        let region = self.shared();
        let now = region.invalidation.stamp(region.clock.now());
        let mut batch = Batch::with_capacity(entries.size_hint().0);
        for (key, value) in entries {
            self.with_key(key, |key| {
                let pushed = batch.try_push(key, |out| region.codec.encode(value, now, out));
                pushed.map_err(|error| cannot_encode(key, &error))
            })?;
        }
        region.backend.set_many(&batch, self.ttl)
    }

    /// See [`Region::get_or_create`].
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn get_or_create<V, E>(&self, key: impl AsKey, create: impl FnOnce() -> Result<V, E>) -> Result<V, GetError<E>>
    where
        S: Codec<V>,
        F: StoreRule<V>,
    {
        let region = self.shared();
        self.with_key(&key, |key| {
            let ended = region.lines_ended(key);
            let first = match self.read(key) {
                Ok(Some(entry)) => {
                    match region.understand(Slice::from(&entry), self.max_age, &Now::of(&region.clock)) {
                        Some(Understood { value, freshness: Freshness::Fresh, .. }) => return Ok(value),
                        other => {
                            Ok(other.map(|Understood { value, freshness, .. }| Reading { value, entry, freshness }))
                        }
                    }
                }
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            self.create_one(key, ended, first, create)
        })
    }

    #[cold]
    fn create_one<V, E>(
        &self,
        key: Key<'_>,
        ended: Option<u64>,
        first: Result<Option<Reading<V>>, Error>,
        create: impl FnOnce() -> Result<V, E>,
    ) -> Result<V, GetError<E>>
    where
        S: Codec<V>,
        F: StoreRule<V>,
    {
        let mut flight = Flight::new();
        flight.reads_after(ended);
        flight.read(self.shared(), first)?;
        let mut flights = [flight];
        let mut create = Some(create);
        now(Drive::new(Thread, self, &[key], &mut flights).run(async |_: &[usize]| {
            let create = create.take().expect("a value is created once");
            create().map(|value| vec![value])
        }))?;
        let [flight] = flights;
        Ok(flight.into_value(self.shared()))
    }

    /// See [`Region::get_or_create_many`].
    ///
    /// # Errors
    /// As there.
    pub fn get_or_create_many<K: AsKey, V: Clone, E>(
        &self,
        keys: &[K],
        mut create: impl FnMut(&[&K]) -> Result<Vec<V>, E>,
    ) -> Result<Vec<V>, GetError<E>>
    where
        S: Codec<V>,
        F: StoreRule<V>,
    {
        self.create_many(keys, |missing| {
            let missing: Vec<&K> = missing.iter().map(|&at| &keys[at]).collect();
            create(&missing)
        })
    }

    /// The same, with a creator that is given positions in `keys`.
    pub(super) fn create_many<K: AsKey, V: Clone, E>(
        &self,
        keys: &[K],
        mut create: impl FnMut(&[usize]) -> Result<Vec<V>, E>,
    ) -> Result<Vec<V>, GetError<E>>
    where
        S: Codec<V>,
        F: StoreRule<V>,
    {
        let region = self.shared();
        let mut room = KeyRoom::new();
        let keys = room.map_all(keys, &region.map);
        let (firsts, places) = distinct(&keys);
        let keys: SmallVec<[Key<'_>; 1]> = firsts.iter().map(|&at| keys[at]).collect();
        let mut flights: Vec<_> = keys.iter().map(|_| Flight::new()).collect();
        now(Drive::new(Thread, self, &keys, &mut flights).run(async |missing: &[usize]| {
            let missing: Vec<usize> = missing.iter().map(|&at| firsts[at]).collect();
            create(&missing)
        }))?;
        let mut values: Vec<_> = flights.into_iter().map(|flight| Some(flight.into_value(region))).collect();
        // Each value goes to the last place that wants it; the places before get clones.
        let mut wanted = vec![0_usize; values.len()];
        places.iter().for_each(|&at| wanted[at] += 1);
        let value = |&at: &usize| {
            wanted[at] -= 1;
            let value = if wanted[at] == 0 { values[at].take() } else { values[at].clone() };
            value.expect("is there until its last place took it")
        };
        Ok(places.iter().map(value).collect())
    }

    #[inline]
    fn with_key<R>(&self, key: &impl AsKey, then: impl FnOnce(Key<'_>) -> R) -> R {
        let map = &self.shared().map;
        match key.as_borrowed_key() {
            Some(key) if map.keeps(key) => then(key),
            _ => {
                let (mut scratch, mut room) = (Scratch::new(), KeyBuf::new());
                then(map.map(key.as_key(&mut scratch), &mut room))
            }
        }
    }

    /// The entry of a key; one of another type is none.
    #[inline]
    fn read(&self, key: Key<'_>) -> Result<Option<Bytes>, Error> {
        let region = self.shared();
        match region.backend.get(key) {
            Err(error) => region.miss_if_wrong_type(error),
            found => found,
        }
    }
}

/// The position of the first of each distinct key, and for every key the number of its distinct one.
fn distinct(keys: &[Key<'_>]) -> (Vec<usize>, Vec<usize>) {
    let mut numbers = std::collections::HashMap::with_capacity_and_hasher(keys.len(), ahash::RandomState::new());
    let mut firsts = Vec::with_capacity(keys.len());
    let number = |(at, key)| {
        *numbers.entry(key).or_insert_with(|| {
            firsts.push(at);
            firsts.len() - 1
        })
    };
    let places = keys.iter().enumerate().map(number).collect();
    (firsts, places)
}

#[cold]
pub(super) fn too_large(key: Key<'_>, bytes: usize) -> Error {
    Error::new(ErrorKind::TooLarge, format!("writing {key}: an entry of {bytes} bytes is over the backend's limit"))
}

#[cold]
pub(super) fn cannot_encode(key: Key<'_>, error: &CodecError) -> Error {
    Error::new(ErrorKind::Codec, format!("writing {key}: {error}"))
}
