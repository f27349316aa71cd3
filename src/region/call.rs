//! [`Call`]: a region with settings for single calls, and what reads and writes.

use std::future::ready;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::backend::Backend;
use crate::batch::{Batch, Found};
use crate::buffer::Buffer;
use crate::codec::{Codec, CodecError};
use crate::error::{Error, ErrorKind, GetError};
use crate::exec::{Thread, now};
use crate::freshness::{Expiry, Freshness, Invalidation, MaxAge};
use crate::key::{AsKey, Key};
use crate::keymap::KeyMap;
use crate::lock::{Attempt, Lock, LockSettings};
use crate::region::create::Drive;
use crate::region::create::exec::Face;
use crate::region::create::flight::Flight;
use crate::region::create::machine::Step;
use crate::region::create::single_flight::Waiter;
use crate::region::keys::{KeyRoom, Room};
use crate::region::{Begun, Reading, Region, Shared, Understood};
use crate::slice::Slice;
use crate::time::{Entry, Now};

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
    region: &'r Region<B, S, L, M, I>,
    pub(crate) settings: Settings<F>,
}

/// What a call may have another way than its region.
#[derive(Clone, Debug)]
pub(crate) struct Settings<F> {
    /// `None`: entries of any age.
    pub(crate) max_age: Option<MaxAge>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) rule: F,
}

impl<F> Settings<F> {
    pub(crate) fn by_ref(&self) -> Settings<&F> {
        Settings { max_age: self.max_age, ttl: self.ttl, rule: &self.rule }
    }
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
    pub(crate) fn new(region: &'r Region<B, S, L, M, I>) -> Self {
        let settings = Settings { max_age: Some(region.shared.max_age), ttl: region.shared.ttl, rule: StoreAll };
        Call { region, settings }
    }
}

impl<'r, B, S, L, M, I, F> Call<'r, B, S, L, M, I, F> {
    /// See [`Region::with_expiry`].
    pub fn with_expiry(mut self, expiry: impl Into<Expiry>) -> Self {
        self.settings.max_age = Some(MaxAge::from(expiry.into()));
        self
    }

    /// See [`Region::ignoring_expiry`].
    pub fn ignoring_expiry(mut self) -> Self {
        self.settings.max_age = None;
        self
    }

    /// See [`Region::with_ttl`].
    pub fn with_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.settings.ttl = ttl.into();
        self
    }

    /// See [`Region::store_if`].
    pub fn store_if<V, G: Fn(&V) -> bool>(self, rule: G) -> Call<'r, B, S, L, M, I, StoreIf<G>> {
        let Settings { max_age, ttl, .. } = self.settings;
        Call { region: self.region, settings: Settings { max_age, ttl, rule: StoreIf(rule) } }
    }

    pub(crate) fn region(&self) -> &'r Region<B, S, L, M, I> {
        self.region
    }

    #[inline]
    pub(crate) fn shared(&self) -> &'r Shared<B, S, L, M, I> {
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
            let entry = region.miss_if_wrong_type(region.backend.get(key))?;
            Ok(entry
                .and_then(|entry| region.fresh(Slice::from(&entry), self.settings.max_age, &Now::of(&region.clock))))
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
        let now = Now::of(&self.shared().clock);
        let region = self.shared();
        let read = self.with_key(&key, |key| region.backend.get(key));
        let entry = region.miss_if_wrong_type(read)?;
        Ok(self.fresh_entry(entry, &now))
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
        let region = self.shared();
        let keys = room.map_all(keys, &region.map);
        let mut found = Found::new();
        region.backend.get_many(&keys, &mut found)?;
        Ok(self.fresh_values(&found))
    }

    /// See [`Region::set`].
    ///
    /// # Errors
    /// When the value cannot be encoded or the backend fails.
    pub fn set<V>(&self, key: impl AsKey, value: &V) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        self.with_key(&key, |key| {
            let mut entry = Buffer::take();
            self.encode(key, value, &mut entry)?;
            let stored = self.shared().backend.set(key, &entry, self.settings.ttl);
            self.shared().wrote(key);
            stored
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
    pub(crate) fn set_all<'v, K: AsKey + 'v, V: 'v>(
        &self,
        entries: impl Iterator<Item = (&'v K, &'v V)>,
    ) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        let batch = self.encode_all(entries)?;
        let stored = self.shared().backend.set_many(&batch, self.settings.ttl);
        self.shared().wrote_all(&batch);
        stored
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
            let hash = region.line.hash(key);
            if !region.line.was_found(hash) {
                return self.find_or_create(key, hash, create);
            }
            let begun = Begun { claim: None, lines_ended: region.lines_ended(hash) };
            match self.judge(region.miss_if_wrong_type(region.backend.get(key))) {
                Ok(fresh) => Ok(fresh),
                Err(first) => self.create_one(key, Start::Read(begun, first), create),
            }
        })
    }

    /// The way of a key that was not found lately. Apart from the others, so that a hit has few instructions.
    #[cold]
    fn find_or_create<V, E>(
        &self,
        key: Key<'_>,
        hash: u64,
        create: impl FnOnce() -> Result<V, E>,
    ) -> Result<V, GetError<E>>
    where
        S: Codec<V>,
        F: StoreRule<V>,
    {
        let region = self.shared();
        let start = match region.begin_reading(key, hash, Face::<B, L>::thread(Thread)) {
            Ok(begun) if begun.claim.is_some() && region.lock.reads_and_locks() => {
                match now(self.read_or_lock(Thread, key, begun)) {
                    Ok(fresh) => return Ok(fresh),
                    Err(start) => start,
                }
            }
            Ok(begun) => match self.judge(region.miss_if_wrong_type(region.backend.get(key))) {
                Ok(fresh) => return Ok(begun.found(fresh)),
                Err(first) => Start::Read(begun, first),
            },
            Err(waiter) => Start::Waits(waiter),
        };
        self.create_one(key, start, create)
    }

    #[cold]
    pub(crate) fn create_one<V, E>(
        &self,
        key: Key<'_>,
        start: Start<'_, V, L::Guard>,
        create: impl FnOnce() -> Result<V, E>,
    ) -> Result<V, GetError<E>>
    where
        S: Codec<V>,
        F: StoreRule<V>,
    {
        now(self.create_one_on(Thread, key, start, || ready(create())))
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
        now(self.create_many_on(Thread, keys, keys, |missing| ready(create(&missing))))
    }

    #[inline]
    pub(crate) fn with_key<R>(&self, key: &impl AsKey, then: impl FnOnce(Key<'_>) -> R) -> R {
        then(Room::new().map(key, &self.shared().map))
    }
}

/// What the first reading came to, where it is no fresh value.
pub(crate) type First<V> = Result<Option<Reading<V>>, Error>;

/// How a caller begins who did not find a fresh value.
pub(crate) enum Start<'l, V, G> {
    /// He has read.
    Read(Begun<'l>, First<V>),
    /// He has read, and tried to lock where there was nothing.
    ReadAndLocked(Begun<'l>, Option<G>),
    /// Somebody else in this process reads or creates.
    Waits(Waiter),
}

impl<B, S, L, M, I: Invalidation, F> Call<'_, B, S, L, M, I, F> {
    /// The fresh value of an entry that was read, or what else that came to.
    #[inline(always)]
    pub(crate) fn judge<V>(&self, read: Result<Option<Bytes>, Error>) -> Result<V, First<V>>
    where
        S: Codec<V>,
    {
        let region = self.shared();
        let Some(entry) = read.map_err(Err)? else { return Err(Ok(None)) };
        match region.understand(Slice::from(&entry), self.settings.max_age, &Now::of(&region.clock)) {
            Some(Understood { value, freshness: Freshness::Fresh, .. }) => Ok(value),
            other => Err(Ok(other.map(|Understood { value, freshness, .. }| Reading { value, entry, freshness }))),
        }
    }

    /// Brings a flight to its end that goes on after the first reading.
    pub(crate) async fn create_one_on<A: Face<B, L>, V, E, R>(
        &self,
        face: A,
        key: Key<'_>,
        start: Start<'_, V, A::Guard>,
        create: impl FnOnce() -> R,
    ) -> Result<V, GetError<E>>
    where
        S: Codec<V>,
        L: LockSettings,
        M: KeyMap,
        F: StoreRule<V>,
        R: Future<Output = Result<V, E>>,
    {
        let mut flights = [self.begun(face, key, start)?];
        Drive::new(face, self.shared(), self.settings.by_ref(), &[key], &mut flights).run_one(create).await?;
        let [flight] = flights;
        Ok(flight.into_value(self.shared()))
    }

    /// Brings the flights of many keys to their end. `create` is given those of `items` whose keys are missing; there are
    /// as many items as keys.
    pub(crate) async fn create_many_on<'k, A: Face<B, L>, K: AsKey, T, V: Clone, E, R>(
        &self,
        face: A,
        keys: &[K],
        items: &'k [T],
        mut create: impl FnMut(Vec<&'k T>) -> R,
    ) -> Result<Vec<V>, GetError<E>>
    where
        S: Codec<V>,
        L: LockSettings,
        M: KeyMap,
        F: StoreRule<V>,
        R: Future<Output = Result<Vec<V>, E>>,
    {
        let mut room = KeyRoom::new();
        let keys = room.map_all(keys, &self.shared().map);
        let distinct = Distinct::of(&keys);
        let keys = distinct.keys(&keys);
        let mut flights: Vec<_> = keys.iter().map(|_| Flight::new()).collect();
        let mut drive = Drive::new(face, self.shared(), self.settings.by_ref(), &keys, &mut flights);
        // Not by a closure around `create`, whose futures would borrow from here: the compiler cannot tell of such a
        // call that it may change threads.
        while let Some(creation) = drive.missing().await? {
            let missing = creation.missing.iter().map(|&at| &items[distinct.firsts[at]]).collect();
            let values = create(missing).await.map_err(GetError::Create)?;
            drive.created(creation, values).await?;
        }
        drop(drive);
        Ok(distinct.spread(flights.into_iter().map(|flight| flight.into_value(self.shared()))))
    }

    /// The fresh value of an entry that is read and, where there is none, locked in the same round trip.
    pub(crate) async fn read_or_lock<'l, A: Face<B, L>, V>(
        &self,
        face: A,
        key: Key<'_>,
        begun: Begun<'l>,
    ) -> Result<V, Start<'l, V, A::Guard>>
    where
        S: Codec<V>,
    {
        let region = self.shared();
        let (entry, guard) = match face.read_or_lock(&region.lock, &region.backend, key).await {
            Ok(Attempt { guard, entry: None }) => return Err(Start::ReadAndLocked(begun, guard)),
            Ok(Attempt { guard, entry }) => (Ok(entry), guard),
            Err(error) => (Err(error), None),
        };
        // A lock that was taken though there is an entry is not needed.
        drop(guard);
        match self.judge(region.miss_if_wrong_type(entry)) {
            Ok(fresh) => Ok(begun.found(fresh)),
            Err(first) => Err(Start::Read(begun, first)),
        }
    }

    /// A flight that goes on from there.
    pub(crate) fn begun<A: Face<B, L>, V>(
        &self,
        face: A,
        key: Key<'_>,
        start: Start<'_, V, A::Guard>,
    ) -> Result<Flight<V, A::Guard>, Error> {
        let (begun, first, attempt) = match start {
            Start::Waits(waiter) => return Ok(Flight::waiting(waiter)),
            Start::Read(begun, first) => (begun, first, None),
            Start::ReadAndLocked(begun, guard) => (begun, Ok(None), Some(guard)),
        };
        let mut flight = Flight::new();
        flight.reads_after(begun.lines_ended);
        flight.read(self.shared(), first)?;
        match begun.claim {
            Some(claim) if !flight.is_missing() => claim.found(),
            Some(claim) => claim.missed(key, face.thread()).into_iter().for_each(|leader| flight.lead(leader)),
            None => {}
        }
        if let Some(guard) = attempt {
            if flight.step() == Step::Join {
                flight.join(&self.shared().line, key, face.thread());
            }
            // Unless somebody leads who began to without that; then the lock is not needed.
            if flight.step() == Step::TryLock {
                flight.locked_as_read(guard);
            }
        }
        Ok(flight)
    }

    /// An entry with what is known of it, if it is fresh.
    pub(crate) fn fresh_entry<V>(&self, entry: Option<Bytes>, now: &Now<'_>) -> Option<Entry<V>>
    where
        S: Codec<V>,
    {
        let understood = self.shared().understand(Slice::from(&entry?), self.settings.max_age, now)?;
        let Understood { value, meta, .. } = Some(understood).filter(|entry| entry.freshness == Freshness::Fresh)?;
        let age = meta.created.map(|created| now.get().since(created));
        Some(Entry { value, created: meta.created, age, version: meta.version })
    }

    /// The values of many entries, those that are fresh.
    pub(crate) fn fresh_values<V>(&self, found: &Found) -> Vec<Option<V>>
    where
        S: Codec<V>,
    {
        let region = self.shared();
        let now = Now::of(&region.clock);
        found.iter().map(|entry| entry.and_then(|entry| region.fresh(entry, self.settings.max_age, &now))).collect()
    }

    /// The entry of a value that is written now.
    pub(crate) fn encode<V>(&self, key: Key<'_>, value: &V, entry: &mut Vec<u8>) -> Result<(), Error>
    where
        S: Codec<V>,
        M: KeyMap,
    {
        let region = self.shared();
        let now = region.invalidation.stamp(region.clock.now());
        region.codec.encode(value, now, entry).map_err(|error| cannot_encode(key, &error))?;
        region.check_length(key, entry.len());
        Ok(())
    }

    /// The entries of values that are written now.
    pub(crate) fn encode_all<'v, K: AsKey + 'v, V: 'v>(
        &self,
        entries: impl Iterator<Item = (&'v K, &'v V)>,
    ) -> Result<Batch, Error>
    where
        S: Codec<V>,
        M: KeyMap,
    {
        let region = self.shared();
        let now = region.invalidation.stamp(region.clock.now());
        let mut batch = Batch::with_capacity(entries.size_hint().0);
        for (key, value) in entries {
            let mut room = Room::new();
            let key = room.map(key, &region.map);
            let pushed = batch.try_push(key, |out| region.codec.encode(value, now, out));
            pushed.map_err(|error| cannot_encode(key, &error))?;
            region.check_length(key, batch.entry(batch.len() - 1).len());
        }
        Ok(batch)
    }
}

/// Which of a call's keys are the same.
struct Distinct {
    /// The position of the first of each distinct key.
    firsts: Vec<usize>,
    /// For every key the number of its distinct one.
    numbers: Vec<usize>,
}

impl Distinct {
    fn of(keys: &[Key<'_>]) -> Self {
        let mut known = std::collections::HashMap::with_capacity_and_hasher(keys.len(), ahash::RandomState::new());
        let mut firsts = Vec::with_capacity(keys.len());
        let number = |(at, key)| {
            *known.entry(key).or_insert_with(|| {
                firsts.push(at);
                firsts.len() - 1
            })
        };
        let numbers = keys.iter().enumerate().map(number).collect();
        Distinct { firsts, numbers }
    }

    /// The distinct ones of `keys`.
    fn keys<'k>(&self, keys: &[Key<'k>]) -> SmallVec<[Key<'k>; 1]> {
        self.firsts.iter().map(|&at| keys[at]).collect()
    }

    /// The values of the distinct keys, in every place that wants them.
    fn spread<V: Clone>(&self, values: impl Iterator<Item = V>) -> Vec<V> {
        let mut values: Vec<_> = values.map(Some).collect();
        // Each value goes to the last place that wants it; the places before get clones.
        let mut wanted = vec![0_usize; values.len()];
        self.numbers.iter().for_each(|&at| wanted[at] += 1);
        let value = |&at: &usize| {
            wanted[at] -= 1;
            let value = if wanted[at] == 0 { values[at].take() } else { values[at].clone() };
            value.expect("is there until its last place took it")
        };
        self.numbers.iter().map(value).collect()
    }
}

#[cold]
pub(crate) fn too_large(key: Key<'_>, bytes: usize) -> Error {
    Error::new(ErrorKind::TooLarge, format!("writing {key}: an entry of {bytes} bytes is over the backend's limit"))
}

#[cold]
pub(crate) fn cannot_encode(key: Key<'_>, error: &CodecError) -> Error {
    Error::new(ErrorKind::Codec, format!("writing {key}: {error}"))
}
