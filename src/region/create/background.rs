//! Stale-while-revalidate for every caller: stale values are returned at once and created anew in the
//! background.

use std::future::ready;

use super::caller::{AfterFirstRead, Caller};
use super::flight::Flight;
use super::machine::Step;
use crate::backend::{AsyncBackend, Backend, BlockingBackend};
use crate::codec::Codec;
use crate::error::{Error, GetError};
#[cfg(feature = "tokio")]
use crate::exec::Async;
use crate::exec::{Blocking, Exec, poll_ready};
use crate::freshness::{Freshness, Invalidation};
use crate::key::{AsKey, Key, KeyBuf};
use crate::keymap::KeyMap;
use crate::lock::{AsyncLock, BlockingLock, Lock};
use crate::region::Region;
use crate::region::core::{DecodedEntry, FirstRead};
use crate::region::keys::KeySpace;

/// A creation that goes on apart from the call that began it. If it is dropped, its lock and its role
/// are released.
struct Refresh<R, V, G> {
    region: R,
    key: KeyBuf,
    flight: Flight<V, G>,
}

impl<'r, X, B, L, S, M, I> Caller<'r, X, B, L, S, M, I>
where
    X: Exec,
    B: AsyncBackend,
    L: AsyncLock<B>,
    M: KeyMap,
    I: Invalidation,
{
    /// Begins to refresh a stale value, unless another caller of this process does. The flight leads, so
    /// that no other one begins, and has not tried the lock yet.
    fn begin_refresh<V>(
        &self,
        key: Key<'_>,
        read: FirstRead<'_>,
        stale: &DecodedEntry<V>,
    ) -> Result<Option<Flight<V, L::AsyncGuard>>, Error>
    where
        S: Codec<V>,
    {
        let core = self.scope.core;
        if core.flights.is_loading(key) {
            return Ok(None);
        }
        let again = self.scope.decoded(Some(stale.entry.clone()));
        let mut flight = self.begin_flight(key, AfterFirstRead::Read(read, Ok(again)))?;
        if flight.step() != Step::Join {
            // It is fresh now: a clock was set back, or the invalidation has changed.
            return Ok(None);
        }
        flight.join(&core.flights, key, None);
        Ok((flight.step() == Step::TryLock).then_some(flight))
    }

    /// Returns the stale value, after `run` has got the refresh if this caller begins one.
    fn refresh<V>(
        &self,
        key: Key<'_>,
        read: FirstRead<'_>,
        stale: DecodedEntry<V>,
        run: impl FnOnce(Flight<V, L::AsyncGuard>),
    ) -> Result<V, Error>
    where
        S: Codec<V>,
    {
        if let Some(flight) = self.begin_refresh(key, read, &stale)? {
            run(flight);
        }
        self.scope.core.counters.stale_hits.add(1);
        Ok(stale.value)
    }
}

impl<B, S, L, M, I> Region<B, S, L, M, I>
where
    B: Backend + 'static,
    S: Send + Sync + 'static,
    L: Lock<B> + 'static,
    M: KeyMap + 'static,
    I: Invalidation + 'static,
{
    /// Returns the value of `key`; a stale one is returned at once to every caller, and created anew in
    /// the background.
    ///
    /// As [`get_or_create`](Region::get_or_create), but no caller waits for a creator if there is a stale
    /// value: one of them hands its creator and the lock to the
    /// [runner](crate::RegionBuilder::thread_runner) of the region. Errors in the background are
    /// counted in [`Stats`](crate::Stats), and the next caller tries again. If there is no value, this
    /// caller creates it or waits for the caller that does.
    ///
    /// # Errors
    /// As [`get_or_create`](Region::get_or_create).
    ///
    /// # Cost
    /// A fresh or stale hit takes one round trip.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use dogpile::{Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set("rates", &1_u64)?;
    /// let always_stale = region.with_stale_after(Duration::ZERO);
    /// let stale = always_stale.get_or_refresh("rates", || Ok::<_, std::io::Error>(2_u64))?;
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
        S: Codec<V>,
        V: Send + 'static,
        L::Guard: 'static,
    {
        let (core, mut space) = (&self.inner.core, KeySpace::new());
        let key = space.map(&key, &core.map);
        let (backend, lock) = (BlockingBackend(&self.inner.backend), BlockingLock(&self.inner.lock));
        let caller = self.caller(Blocking, &backend, &lock);
        // Not shared with another caller, whose read might find nothing that is fresh for this one.
        let read = core.begin_own_read(core.flights.hash(key), L::ONLY_THIS_REGION);
        match caller.scope.fresh_or(self.inner.backend.get(key)) {
            Ok(fresh) => Ok(fresh),
            Err(Ok(Some(stale))) if stale.freshness == Freshness::Stale => {
                Ok(caller.refresh(key, read, stale, |flight| {
                    let refresh = Refresh { region: self.clone(), key: key.to_buf(), flight };
                    self.inner.thread_runner.run(Box::new(move || refresh.run_blocking(create)));
                })?)
            }
            Err(not_fresh) => {
                let after = AfterFirstRead::Read(read, not_fresh);
                poll_ready(caller.create_one(key, after, || ready(create())))
            }
        }
    }
}

impl<B, S, L, M, I, V> Refresh<Region<B, S, L, M, I>, V, L::Guard>
where
    B: Backend,
    S: Codec<V>,
    L: Lock<B>,
    M: KeyMap,
    I: Invalidation,
    V: 'static,
{
    /// Creates the value and stores it. Errors are counted.
    fn run_blocking<E>(self, create: impl FnOnce() -> Result<V, E>) {
        let (backend, lock) = (BlockingBackend(&self.region.inner.backend), BlockingLock(&self.region.inner.lock));
        let caller = self.region.caller(Blocking, &backend, &lock);
        let mut flight = [self.flight];
        let _ = poll_ready(caller.drive(self.key.as_key(), &mut flight, || ready(create())));
    }
}

#[cfg(feature = "tokio")]
impl<B, S, L, M, I> Region<B, S, L, M, I>
where
    B: AsyncBackend + 'static,
    S: Send + Sync + 'static,
    L: AsyncLock<B> + 'static,
    M: KeyMap + 'static,
    I: Invalidation + 'static,
{
    /// Returns the value of `key`; a stale one is returned at once to every caller, and created anew by
    /// a task of its own.
    ///
    /// As [`get_or_create_async`](Region::get_or_create_async), but no caller waits for a creator if
    /// there is a stale value: one of them hands its creator and the lock to the
    /// [runner](crate::RegionBuilder::task_runner) of the region. If that drops the task, the lock is
    /// released. Errors in the background are counted in [`Stats`](crate::Stats), and the next caller
    /// tries again.
    ///
    /// # Errors
    /// As [`get_or_create_async`](Region::get_or_create_async).
    ///
    /// # Cancel safety
    /// Dropping the future does not stop a creation that was handed to the runner.
    ///
    /// # Cost
    /// A fresh or stale hit takes one round trip.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set_async("rates", &1_u64).await?;
    /// let always_stale = region.with_stale_after(Duration::ZERO);
    /// let stale = always_stale.get_or_refresh_async("rates", async || Ok::<_, std::io::Error>(2_u64)).await?;
    /// assert_eq!(stale, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_or_refresh_async<V, E, R>(
        &self,
        key: impl AsKey,
        create: impl FnOnce() -> R + Send + 'static,
    ) -> Result<V, GetError<E>>
    where
        S: Codec<V>,
        V: Send + 'static,
        E: Send + 'static,
        R: Future<Output = Result<V, E>> + Send + 'static,
        L::AsyncGuard: 'static,
    {
        let (core, mut space) = (&self.inner.core, KeySpace::new());
        let key = space.map(&key, &core.map);
        let caller = self.caller(Async, &self.inner.backend, &self.inner.lock);
        let read = core.begin_own_read(core.flights.hash(key), L::ONLY_THIS_REGION);
        match caller.scope.fresh_or(self.inner.backend.get_async(key).await) {
            Ok(fresh) => Ok(fresh),
            Err(Ok(Some(stale))) if stale.freshness == Freshness::Stale => {
                Ok(caller.refresh(key, read, stale, |flight| {
                    let refresh = Refresh { region: self.clone(), key: key.to_buf(), flight };
                    self.inner.task_runner.run(Box::pin(refresh.run_async(create)));
                })?)
            }
            Err(not_fresh) => caller.create_one(key, AfterFirstRead::Read(read, not_fresh), create).await,
        }
    }
}

#[cfg(feature = "tokio")]
impl<B, S, L, M, I, V> Refresh<Region<B, S, L, M, I>, V, L::AsyncGuard>
where
    B: AsyncBackend,
    S: Codec<V>,
    L: AsyncLock<B>,
    M: KeyMap,
    I: Invalidation,
    V: 'static,
{
    /// Creates the value and stores it. Errors are counted.
    async fn run_async<E, R: Future<Output = Result<V, E>>>(self, create: impl FnOnce() -> R) {
        let caller = self.region.caller(Async, &self.region.inner.backend, &self.region.inner.lock);
        let mut flight = [self.flight];
        let _ = caller.drive(self.key.as_key(), &mut flight, create).await;
    }
}
