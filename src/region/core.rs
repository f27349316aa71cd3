//! [`Core`]: what a region knows apart from its backend and lock: how entries are decoded, judged
//! and counted.

use std::sync::Arc;
use std::thread::ThreadId;

use async_lock::Semaphore;
use bytes::Bytes;

use crate::batch::{Batch, Found};
use crate::codec::{Codec, CodecError, Meta};
use crate::error::{Error, ErrorKind};
use crate::freshness::{Freshness, Invalidation, MaxAge, judge};
use crate::key::{AsKey, Key};
use crate::keymap::KeyMap;
use crate::region::create::single_flight::{SharedRead, SingleFlight, Waiter};
use crate::region::keys::KeySpace;
use crate::region::options::CallOptions;
use crate::region::stats::{Counter, Counters};
use crate::slice::Slice;
use crate::time::{Clock, Entry, Now, Timestamp};

/// What all handles of a region share, apart from its backend and lock.
pub(crate) struct Core<S, M, I> {
    pub(crate) codec: S,
    pub(crate) map: M,
    pub(crate) invalidation: I,
    pub(crate) flights: Arc<SingleFlight>,
    pub(crate) clock: Clock,
    /// The permits of creations and how many there are, if their number is limited.
    pub(crate) creations: Option<(Arc<Semaphore>, usize)>,
    pub(crate) counters: Counters,
}

/// A value that was read, and what its entry says about it.
pub(crate) struct Judged<V> {
    pub(crate) value: V,
    pub(crate) meta: Meta,
    pub(crate) freshness: Freshness,
}

/// A value that was read, with the entry that it was decoded from.
pub(crate) struct DecodedEntry<V> {
    pub(crate) value: V,
    pub(crate) entry: Bytes,
    pub(crate) freshness: Freshness,
}

/// The first read of a call, while it is under way.
pub(crate) struct FirstRead<'f> {
    /// Other callers of this process wait for this read.
    pub(crate) shared: Option<SharedRead<'f>>,
    /// How many flights of keys like this one had ended before it, if that can save a second read.
    pub(crate) flights_ended: Option<u64>,
}

impl FirstRead<'_> {
    /// The value was found: those who wait read for themselves.
    #[inline]
    pub(crate) fn found<V>(self, value: V) -> V {
        self.shared.into_iter().for_each(SharedRead::found);
        value
    }
}

impl<S, M, I: Invalidation> Core<S, M, I> {
    /// Decodes an entry and judges its age. An entry that cannot be decoded counts as missing.
    #[inline(always)]
    pub(crate) fn judged<V>(&self, entry: Slice<'_>, max_age: Option<MaxAge>, now: &Now<'_>) -> Option<Judged<V>>
    where
        S: Codec<V>,
    {
        match self.codec.decode(entry) {
            Ok((value, meta)) => {
                let freshness = self.freshness(meta.created, max_age, now);
                Some(Judged { value, meta, freshness })
            }
            Err(_) => {
                self.counters.undecodable.add(1);
                None
            }
        }
    }

    /// Judges an entry by its time of creation.
    #[inline]
    fn freshness(&self, created: Option<Timestamp>, max_age: Option<MaxAge>, now: &Now<'_>) -> Freshness {
        max_age.map_or(Freshness::Fresh, |max_age| judge(created, max_age, now, &self.invalidation))
    }

    /// Returns the value of an entry if it is fresh.
    #[inline(always)]
    pub(crate) fn fresh<V>(&self, entry: Slice<'_>, max_age: Option<MaxAge>, now: &Now<'_>) -> Option<V>
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

    /// Decodes an entry and keeps its bytes for callers that wait for it.
    pub(crate) fn decoded<V>(&self, entry: Option<Bytes>, max_age: Option<MaxAge>) -> Option<DecodedEntry<V>>
    where
        S: Codec<V>,
    {
        let entry = entry?;
        let Judged { value, freshness, .. } = self.judged(Slice::from(&entry), max_age, &Now::of(&self.clock))?;
        Some(DecodedEntry { value, entry, freshness })
    }

    /// Returns an entry with its metadata if it is fresh.
    pub(crate) fn fresh_entry<V>(
        &self,
        entry: Option<Bytes>,
        max_age: Option<MaxAge>,
        now: &Now<'_>,
    ) -> Option<Entry<V>>
    where
        S: Codec<V>,
    {
        let judged = self.judged(Slice::from(&entry?), max_age, now)?;
        let Judged { value, meta, .. } = Some(judged).filter(|entry| entry.freshness == Freshness::Fresh)?;
        let age = meta.created.map(|created| now.get().since(created));
        Some(Entry { value, created: meta.created, age, version: meta.version })
    }

    /// Returns the values of those entries that are fresh.
    pub(crate) fn fresh_values<V>(&self, found: &Found, max_age: Option<MaxAge>) -> Vec<Option<V>>
    where
        S: Codec<V>,
    {
        let now = Now::of(&self.clock);
        found.iter().map(|entry| entry.and_then(|entry| self.fresh(entry, max_age, &now))).collect()
    }

    /// Encodes a value that is written now.
    pub(crate) fn encode<V>(&self, key: Key<'_>, value: &V, entry: &mut Vec<u8>) -> Result<(), Error>
    where
        S: Codec<V>,
        M: KeyMap,
    {
        let now = self.invalidation.stamp(self.clock.now());
        self.codec.encode(value, now, entry).map_err(|error| cannot_encode(key, &error))?;
        self.check_length(key, entry.len());
        Ok(())
    }

    /// Encodes values that are written now.
    pub(crate) fn encode_all<'v, K: AsKey + 'v, V: 'v>(
        &self,
        entries: impl Iterator<Item = (&'v K, &'v V)>,
    ) -> Result<Batch, Error>
    where
        S: Codec<V>,
        M: KeyMap,
    {
        let now = self.invalidation.stamp(self.clock.now());
        let mut batch = Batch::with_capacity(entries.size_hint().0);
        for (key, value) in entries {
            let mut space = KeySpace::new();
            let key = space.map(key, &self.map);
            let pushed = batch.try_push(key, |out| self.codec.encode(value, now, out));
            pushed.map_err(|error| cannot_encode(key, &error))?;
            self.check_length(key, batch.entry(batch.len() - 1).len());
        }
        Ok(batch)
    }

    /// Turns an error into a miss if the key holds another type of data.
    #[inline(always)]
    pub(crate) fn miss_if_wrong_type(&self, read: Result<Option<Bytes>, Error>) -> Result<Option<Bytes>, Error> {
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

impl<S, M, I> Core<S, M, I> {
    /// Returns how many flights of keys like this one have ended, if that can save a second read.
    #[inline]
    pub(crate) fn flights_ended(&self, hash: u64, only_this_region: bool) -> Option<u64> {
        only_this_region.then(|| self.flights.ended(hash))
    }

    /// Begins the first read of a key that this caller creates if it is missing. Returns a waiter if
    /// another caller of this process reads or creates it already.
    #[inline]
    pub(crate) fn begin_shared_read(
        &self,
        key: Key<'_>,
        hash: u64,
        only_this_region: bool,
        thread: Option<ThreadId>,
    ) -> Result<FirstRead<'_>, Waiter> {
        let shared = self.flights.begin_read(hash, key, thread)?;
        Ok(FirstRead { shared, flights_ended: self.flights_ended(hash, only_this_region) })
    }

    /// Begins a first read that is shared with no other caller.
    pub(crate) fn begin_own_read(&self, hash: u64, only_this_region: bool) -> FirstRead<'_> {
        FirstRead { shared: None, flights_ended: self.flights_ended(hash, only_this_region) }
    }

    /// Tells other callers of this process that a key was written, or may have been.
    #[inline]
    pub(crate) fn wrote(&self, key: Key<'_>) {
        self.flights.wrote(self.flights.hash(key));
    }

    /// Tells other callers of this process that the keys of a batch were written, or may have been.
    pub(crate) fn wrote_all(&self, batch: &Batch) {
        batch.iter().for_each(|(key, _)| self.wrote(key));
    }

    /// Counts an entry that is larger than its key is made for, and warns of the first.
    #[inline]
    pub(crate) fn check_length(&self, key: Key<'_>, bytes: usize)
    where
        M: KeyMap,
    {
        let most = self.map.longest_entry(key);
        if bytes > most && self.counters.oversized.is_first() {
            log::warn!(
                "writing {key}: the entry has {bytes} bytes, more than the {most} that keep a bucket compact; \
                 the bucket takes several times the memory. Further ones are only counted, in Stats::oversized"
            );
        }
    }
}

/// What the creation of a value goes by, apart from backend and lock.
pub(crate) struct Scope<'r, S, M, I> {
    pub(crate) core: &'r Core<S, M, I>,
    pub(crate) options: &'r CallOptions,
}

impl<S, M, I> Clone for Scope<'_, S, M, I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, M, I> Copy for Scope<'_, S, M, I> {}

impl<S, M, I> Scope<'_, S, M, I> {
    /// Counts an error of the cache that the caller can do without, or returns it.
    ///
    /// An error of kind `Config` is always returned: it is no outage, and would stay unnoticed.
    pub(crate) fn tolerate(&self, error: Error, counter: &Counter) -> Result<(), Error> {
        if self.options.fail_closed || error.kind() == ErrorKind::Config {
            return Err(error);
        }
        counter.add(1);
        Ok(())
    }
}

impl<S, M, I: Invalidation> Scope<'_, S, M, I> {
    /// Decodes an entry and judges it by the age that this call accepts.
    pub(crate) fn decoded<V>(&self, entry: Option<Bytes>) -> Option<DecodedEntry<V>>
    where
        S: Codec<V>,
    {
        self.core.decoded(entry, self.options.max_age)
    }
}

#[cold]
pub(crate) fn too_large(key: Key<'_>, bytes: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!("writing {key}: an entry of {bytes} bytes is over the limit of the backend"),
    )
}

#[cold]
pub(crate) fn cannot_encode(key: Key<'_>, error: &CodecError) -> Error {
    Error::new(ErrorKind::Codec, format!("writing {key}: {error}"))
}
