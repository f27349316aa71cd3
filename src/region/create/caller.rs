//! [`Caller`]: the entry points to a creation, for one key and for many.

use bytes::Bytes;
use smallvec::SmallVec;

use super::CreationDriver;
use super::flight::Flight;
use super::machine::Step;
use super::single_flight::Waiter;
use crate::backend::AsyncBackend;
use crate::codec::Codec;
use crate::error::{Error, GetError};
use crate::exec::Exec;
use crate::freshness::{Freshness, Invalidation};
use crate::key::{AsKey, Key};
use crate::keymap::KeyMap;
use crate::lock::{AsyncLock, Attempt};
use crate::region::core::{DecodedEntry, FirstRead, Judged, Scope};
use crate::region::keys::KeySpaces;
use crate::slice::Slice;
use crate::time::Now;

/// The outcome of a first read that found no fresh value.
pub(crate) type NotFresh<V> = Result<Option<DecodedEntry<V>>, Error>;

/// Where a call stands after its first read found no fresh value.
pub(crate) enum AfterFirstRead<'f, V, G> {
    /// It has read.
    Read(FirstRead<'f>, NotFresh<V>),
    /// It has read, found nothing, and tried the lock in the same round trip.
    ReadAndLocked(FirstRead<'f>, Option<G>),
    /// It waits for another caller of this process, which reads or creates the value.
    Waits(Waiter),
}

/// One call: how it waits, what it reads and locks, and its options.
///
/// A blocking call passes the adapters [`BlockingBackend`](crate::backend::BlockingBackend) and
/// [`BlockingLock`](crate::lock::BlockingLock); the code below is the same for both.
pub(crate) struct Caller<'r, X, B, L, S, M, I> {
    pub(crate) exec: X,
    pub(crate) backend: &'r B,
    pub(crate) lock: &'r L,
    pub(crate) scope: Scope<'r, S, M, I>,
}

impl<X: Exec, B, L, S, M, I> Clone for Caller<'_, X, B, L, S, M, I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<X: Exec, B, L, S, M, I> Copy for Caller<'_, X, B, L, S, M, I> {}

impl<S, M, I: Invalidation> Scope<'_, S, M, I> {
    /// Returns the value that was read if it is fresh, or else what was read.
    #[inline(always)]
    pub(crate) fn fresh_or<V>(&self, read: Result<Option<Bytes>, Error>) -> Result<V, NotFresh<V>>
    where
        S: Codec<V>,
    {
        let Some(entry) = self.core.miss_if_wrong_type(read).map_err(Err)? else { return Err(Ok(None)) };
        match self.core.judged(Slice::from(&entry), self.options.max_age, &Now::of(&self.core.clock)) {
            Some(Judged { value, freshness: Freshness::Fresh, .. }) => Ok(value),
            other => Err(Ok(other.map(|Judged { value, freshness, .. }| DecodedEntry { value, entry, freshness }))),
        }
    }
}

impl<'r, X, B, L, S, M, I> Caller<'r, X, B, L, S, M, I>
where
    X: Exec,
    B: AsyncBackend,
    L: AsyncLock<B>,
    M: KeyMap,
    I: Invalidation,
{
    /// Reads a key that was not found recently, together with other callers of this process. Returns
    /// the value if it is fresh.
    pub(crate) async fn read_shared<V>(
        &self,
        key: Key<'_>,
        hash: u64,
    ) -> Result<V, AfterFirstRead<'r, V, L::AsyncGuard>>
    where
        S: Codec<V>,
    {
        let core = self.scope.core;
        let read = match core.begin_shared_read(key, hash, L::ONLY_THIS_REGION, self.exec.thread()) {
            Ok(read) => read,
            Err(waiter) => return Err(AfterFirstRead::Waits(waiter)),
        };
        if read.shared.is_some() && self.lock.reads_and_locks() {
            // Boxed, since it is rare and its size would be part of every call's future.
            return Box::pin(self.read_or_lock(key, read)).await;
        }
        match self.scope.fresh_or(self.backend.get_async(key).await) {
            Ok(fresh) => Ok(read.found(fresh)),
            Err(not_fresh) => Err(AfterFirstRead::Read(read, not_fresh)),
        }
    }

    /// Reads a key and, if there is no entry, tries its lock in the same round trip.
    async fn read_or_lock<V>(
        &self,
        key: Key<'_>,
        read: FirstRead<'r>,
    ) -> Result<V, AfterFirstRead<'r, V, L::AsyncGuard>>
    where
        S: Codec<V>,
    {
        let (entry, guard) = match self.lock.read_or_lock_async(self.backend, key).await {
            Ok(Attempt { guard, entry: None }) => return Err(AfterFirstRead::ReadAndLocked(read, guard)),
            Ok(Attempt { guard, entry }) => (Ok(entry), guard),
            Err(error) => (Err(error), None),
        };
        // A lock that was taken although there is an entry is not needed.
        drop(guard);
        match self.scope.fresh_or(entry) {
            Ok(fresh) => Ok(read.found(fresh)),
            Err(not_fresh) => Err(AfterFirstRead::Read(read, not_fresh)),
        }
    }

    /// Gets or creates the value of a key whose first read found no fresh value.
    pub(crate) async fn create_one<V: 'static, E, R>(
        &self,
        key: Key<'_>,
        after: AfterFirstRead<'r, V, L::AsyncGuard>,
        create: impl FnOnce() -> R,
    ) -> Result<V, GetError<E>>
    where
        S: Codec<V>,
        R: Future<Output = Result<V, E>>,
    {
        let mut flight = [self.begin_flight(key, after)?];
        self.drive(key, &mut flight, create).await?;
        let [flight] = flight;
        Ok(flight.into_value(&self.scope.core.counters))
    }

    /// Drives a single flight to its end.
    pub(crate) async fn drive<V: 'static, E, R>(
        &self,
        key: Key<'_>,
        flight: &mut [Flight<V, L::AsyncGuard>; 1],
        create: impl FnOnce() -> R,
    ) -> Result<(), GetError<E>>
    where
        S: Codec<V>,
        R: Future<Output = Result<V, E>>,
    {
        CreationDriver::new(*self, &[key], flight).run_one(create).await
    }

    /// Gets or creates the values of many keys. `create` gets those of `items` whose keys are missing;
    /// there are as many items as keys.
    pub(crate) async fn create_many<'k, K: AsKey, T, V: Clone + 'static, E, R>(
        &self,
        keys: &[K],
        items: &'k [T],
        mut create: impl FnMut(Vec<&'k T>) -> R,
    ) -> Result<Vec<V>, GetError<E>>
    where
        S: Codec<V>,
        R: Future<Output = Result<Vec<V>, E>>,
    {
        let mut space = KeySpaces::new();
        let keys = space.map_all(keys, &self.scope.core.map);
        let distinct = Distinct::of(&keys);
        let keys = distinct.keys(&keys);
        let mut flights: Vec<_> = keys.iter().map(|_| Flight::new()).collect();
        let mut driver = CreationDriver::new(*self, &keys, &mut flights);
        // The loop stands here and not behind a closure around `create`: the compiler cannot prove that a
        // future which borrows from such a closure is `Send`.
        while let Some(creation) = driver.next_creation().await? {
            let missing = creation.missing.iter().map(|&at| &items[distinct.firsts[at]]).collect();
            let values = create(missing).await.map_err(GetError::Create)?;
            driver.finish_creation(creation, values).await?;
        }
        drop(driver);
        let counters = &self.scope.core.counters;
        Ok(distinct.spread(flights.into_iter().map(|flight| flight.into_value(counters))))
    }

    /// Makes a flight that goes on where the first read has ended.
    pub(crate) fn begin_flight<V>(
        &self,
        key: Key<'_>,
        after: AfterFirstRead<'_, V, L::AsyncGuard>,
    ) -> Result<Flight<V, L::AsyncGuard>, Error> {
        let (read, not_fresh, attempt) = match after {
            AfterFirstRead::Waits(waiter) => return Ok(Flight::waiting(waiter)),
            AfterFirstRead::Read(read, not_fresh) => (read, not_fresh, None),
            AfterFirstRead::ReadAndLocked(read, guard) => (read, Ok(None), Some(guard)),
        };
        let thread = self.exec.thread();
        let mut flight = Flight::new();
        flight.begin_read(read.flights_ended);
        flight.finish_read(self.scope, not_fresh)?;
        match read.shared {
            Some(shared) if !flight.is_missing() => shared.found(),
            Some(shared) => shared.missed(key, thread).into_iter().for_each(|leader| flight.lead(leader)),
            None => {}
        }
        if let Some(guard) = attempt {
            if flight.step() == Step::Join {
                flight.join(&self.scope.core.flights, key, thread);
            }
            // If another caller leads by now, the lock is not needed.
            if flight.step() == Step::TryLock {
                flight.locked_as_read(guard);
            }
        }
        Ok(flight)
    }
}

/// Which keys of a call are the same.
struct Distinct {
    /// The position of the first of each distinct key.
    firsts: Vec<usize>,
    /// For each key the number of its distinct key.
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

    /// Returns the distinct keys.
    fn keys<'k>(&self, keys: &[Key<'k>]) -> SmallVec<[Key<'k>; 1]> {
        self.firsts.iter().map(|&at| keys[at]).collect()
    }

    /// Returns for each key the value of its distinct key.
    fn spread<V: Clone>(&self, values: impl Iterator<Item = V>) -> Vec<V> {
        let mut values: Vec<_> = values.map(Some).collect();
        // The last key that needs a value takes it; those before get clones.
        let mut needed = vec![0_usize; values.len()];
        self.numbers.iter().for_each(|&at| needed[at] += 1);
        let value = |&at: &usize| {
            needed[at] -= 1;
            let value = if needed[at] == 0 { values[at].take() } else { values[at].clone() };
            value.expect("the value is there until its last key takes it")
        };
        self.numbers.iter().map(value).collect()
    }
}
