//! Values that are created anew in the background, while callers go on with the stale ones.

use std::fmt;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::backend::Backend;
use crate::codec::Codec;
use crate::error::{Error, GetError};
#[cfg(feature = "tokio")]
use crate::exec::Task;
use crate::exec::{Thread, now};
use crate::freshness::{Freshness, Invalidation};
use crate::key::{AsKey, Key, KeyBuf};
use crate::keymap::KeyMap;
use crate::lock::{Lock, LockSettings};
use crate::region::call::{Call, Settings, Start, StoreRule};
use crate::region::create::Drive;
use crate::region::create::exec::Face;
use crate::region::create::flight::Flight;
use crate::region::create::machine::Step;
use crate::region::{Begun, Reading, Region};

/// A creator that is to run in the background of threads. Dropped without being run, it releases what it holds, and
/// the value stays stale until another caller asks.
pub type ThreadJob = Box<dyn FnOnce() + Send>;

/// A creator that is to run in the background of tasks. Dropped at any time, it releases what it holds, and the value
/// stays stale until another caller asks. Dropped with its runtime, it may leave a lock to the end of its lease: wait for
/// it before that, as with a `TaskTracker` of tokio-util.
#[cfg(feature = "tokio")]
pub type TaskJob = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Who runs jobs in the background.
pub(crate) struct Runner<J>(Arc<dyn Fn(J) + Send + Sync>);

impl<J> Runner<J> {
    pub(crate) fn new(run: impl Fn(J) + Send + Sync + 'static) -> Self {
        Runner(Arc::new(run))
    }
}

/// Each job in a thread of its own, and no more than so many at once: what is over that is dropped.
const MOST_THREADS: usize = 16;

impl Runner<ThreadJob> {
    pub(crate) fn threads() -> Self {
        let running = Arc::new(AtomicUsize::new(0));
        Self::new(move |job| {
            /// Counts a thread that has ended, or did not begin.
            struct Ended(Arc<AtomicUsize>);
            impl Drop for Ended {
                fn drop(&mut self) {
                    self.0.fetch_sub(1, Ordering::Relaxed);
                }
            }
            let before = running.fetch_add(1, Ordering::Relaxed);
            let ended = Ended(Arc::clone(&running));
            if before < MOST_THREADS {
                // Where the system has no thread to give, the job is dropped.
                let _ = std::thread::Builder::new().name("dogpile-refresh".into()).spawn(move || {
                    let _ended = ended;
                    job();
                });
            }
        })
    }
}

#[cfg(feature = "tokio")]
impl Runner<TaskJob> {
    pub(crate) fn tokio() -> Self {
        // Where there is no runtime of tokio, the job is dropped.
        Self::new(|job| {
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(job);
            }
        })
    }
}

impl<J> Clone for Runner<J> {
    fn clone(&self) -> Self {
        Runner(Arc::clone(&self.0))
    }
}

impl<J> fmt::Debug for Runner<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Runner")
    }
}

/// A stale value's way to a new one, apart from the call that began it. Dropped, it releases what it holds.
struct Refresh<A: Face<B, L>, B, S, L, M, I, F, V> {
    face: A,
    region: Region<B, S, L, M, I>,
    key: KeyBuf,
    settings: Settings<F>,
    flight: Flight<V, A::Guard>,
}

impl<A, B, S, L, M, I, F, V> Refresh<A, B, S, L, M, I, F, V>
where
    A: Face<B, L>,
    S: Codec<V>,
    L: LockSettings,
    I: Invalidation,
    M: KeyMap,
    F: StoreRule<V>,
{
    /// The way to a new value, if nobody in this process is on it. It goes on from where its call is: with the lead, so
    /// that others are not, and before the lock.
    fn begin(
        face: A,
        call: &Call<'_, B, S, L, M, I, F>,
        key: Key<'_>,
        begun: Begun<'_>,
        stale: &Reading<V>,
    ) -> Result<Option<Self>, Error>
    where
        F: Clone,
    {
        let (region, settings) = (call.shared(), call.settings.clone());
        if region.line.is_busy(key) {
            return Ok(None);
        }
        let again = region.reading(Some(stale.entry.clone()), settings.max_age);
        let mut flight = call.begun(face, key, Start::Read(begun, Ok(again)))?;
        if flight.step() != Step::Join {
            // It is fresh by now: a clock was set back, or what is invalid changed.
            return Ok(None);
        }
        flight.join(&region.line, key, None);
        let leads = flight.step() == Step::TryLock;
        Ok(leads.then(|| Refresh { face, region: call.region().clone(), key: key.to_buf(), settings, flight }))
    }

    /// Creates the value, and stores it. What goes wrong is counted.
    async fn run<R: Future<Output = Result<V, E>>, E>(mut self, create: impl FnOnce() -> R) {
        let (region, settings, keys) = (&self.region.shared, self.settings.by_ref(), [self.key.as_key()]);
        let flight = std::slice::from_mut(&mut self.flight);
        let _ = Drive::new(self.face, region, settings, &keys, flight).run_one(create).await;
    }
}

impl<B, S, L: LockSettings, M: KeyMap, I: Invalidation, F: Clone> Call<'_, B, S, L, M, I, F> {
    /// The stale value. If nobody in this process creates the new one, the way to that is handed to `run`.
    fn refresh<A: Face<B, L>, V>(
        &self,
        face: A,
        key: Key<'_>,
        begun: Begun<'_>,
        stale: Reading<V>,
        run: impl FnOnce(Refresh<A, B, S, L, M, I, F, V>),
    ) -> Result<V, Error>
    where
        S: Codec<V>,
        F: StoreRule<V>,
    {
        if let Some(refresh) = Refresh::begin(face, self, key, begun, &stale)? {
            run(refresh);
        }
        self.shared().counters.served_stale.add(1);
        Ok(stale.value)
    }
}

impl<B, S, L, M, I, F> Call<'_, B, S, L, M, I, F>
where
    B: Backend + 'static,
    S: Send + Sync + 'static,
    L: Lock<B> + 'static,
    M: KeyMap + 'static,
    I: Invalidation + 'static,
{
    /// See [`Region::get_or_refresh`].
    ///
    /// # Errors
    /// As there.
    pub fn get_or_refresh<V, E>(
        &self,
        key: impl AsKey,
        create: impl FnOnce() -> Result<V, E> + Send + 'static,
    ) -> Result<V, GetError<E>>
    where
        S: Codec<V>,
        F: StoreRule<V> + Clone + Send + 'static,
        V: Send + 'static,
        L::Guard: 'static,
    {
        let region = self.shared();
        self.with_key(&key, |key| {
            // Not behind another caller's reading, which might find nothing that is fresh for this one.
            let begun = region.begin_alone(key);
            match self.judge(region.miss_if_wrong_type(region.backend.get(key))) {
                Ok(fresh) => Ok(begun.found(fresh)),
                Err(Ok(Some(stale))) if stale.freshness == Freshness::Stale => {
                    let run = |refresh: Refresh<Thread, _, _, _, _, _, _, _>| {
                        (region.thread_runner.0)(Box::new(move || now(refresh.run(|| ready(create())))));
                    };
                    Ok(self.refresh(Thread, key, begun, stale, run)?)
                }
                Err(first) => self.create_one(key, Start::Read(begun, first), create),
            }
        })
    }
}

#[cfg(feature = "tokio")]
impl<B, S, L, M, I, F> Call<'_, B, S, L, M, I, F>
where
    B: crate::backend::AsyncBackend + 'static,
    S: Send + Sync + 'static,
    L: crate::lock::AsyncLock<B> + 'static,
    M: KeyMap + 'static,
    I: Invalidation + 'static,
{
    /// See [`Region::get_or_refresh_async`].
    ///
    /// # Errors
    /// As there.
    pub async fn get_or_refresh_async<V, E, R>(
        &self,
        key: impl AsKey,
        create: impl FnOnce() -> R + Send + 'static,
    ) -> Result<V, GetError<E>>
    where
        S: Codec<V>,
        F: StoreRule<V> + Clone + Send + Sync + 'static,
        V: Send + 'static,
        E: Send + 'static,
        R: Future<Output = Result<V, E>> + Send + 'static,
        L::AsyncGuard: 'static,
    {
        let region = self.shared();
        let mut room = crate::region::keys::Room::new();
        let key = room.map(&key, &region.map);
        let begun = region.begin_alone(key);
        match self.judge(region.miss_if_wrong_type(region.backend.get_async(key).await)) {
            Ok(fresh) => Ok(begun.found(fresh)),
            Err(Ok(Some(stale))) if stale.freshness == Freshness::Stale => {
                let run = |refresh: Refresh<Task, _, _, _, _, _, _, _>| {
                    (region.task_runner.0)(Box::pin(refresh.run(create)));
                };
                Ok(self.refresh(Task, key, begun, stale, run)?)
            }
            Err(first) => self.create_one_on(Task, key, Start::Read(begun, first), create).await,
        }
    }
}
