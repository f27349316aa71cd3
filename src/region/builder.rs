//! [`RegionBuilder`]: sets up a region.

use std::sync::Arc;
use std::time::Duration;

use async_lock::Semaphore;

use crate::codec::{Msgpack, Seconds};
use crate::error::{Error, ErrorKind};
use crate::freshness::{Expiry, Invalidation, LocalInvalidation};
use crate::keymap::{Identity, KeyMap};
use crate::lock::{LocalLock, LockSettings};
use crate::region::core::Core;
use crate::region::create::single_flight::SingleFlight;
use crate::region::options::{CallOptions, OnWaitTimeout, Options};
#[cfg(feature = "tokio")]
use crate::region::runner::TaskJob;
use crate::region::runner::{JobRunner, ThreadJob};
use crate::region::stats::Counters;
use crate::region::{Region, RegionInner};
use crate::time::Clock;

/// Sets up a [`Region`]. Made by [`Region::builder`].
///
/// ```
/// use std::time::Duration;
///
/// use dogpile::keymap::Prefix;
/// use dogpile::{Memory, Region};
///
/// let region = Region::builder(Memory::new(64 << 20))
///     .keys(Prefix::new("shop:"))
///     .stale_after(Duration::from_secs(300))
///     .ttl(Duration::from_secs(3600))
///     .wait_timeout(Duration::from_secs(10))
///     .build()?;
/// region.set("user-15", &15_u64)?;
/// # Ok::<(), dogpile::Error>(())
/// ```
#[must_use]
#[derive(Clone, Debug)]
pub struct RegionBuilder<B, S = Msgpack<Seconds>, L = LocalLock, M = Identity, I = LocalInvalidation> {
    backend: B,
    codec: S,
    lock: L,
    map: M,
    invalidation: I,
    common: Common,
}

/// The settings that do not depend on a type parameter.
#[derive(Clone, Debug)]
struct Common {
    clock: Clock,
    options: Options,
    max_creations: Option<usize>,
    thread_runner: JobRunner<ThreadJob>,
    #[cfg(feature = "tokio")]
    task_runner: JobRunner<TaskJob>,
}

impl<B> RegionBuilder<B> {
    pub(super) fn new(backend: B) -> Self {
        RegionBuilder {
            backend,
            codec: Msgpack::new(),
            lock: LocalLock,
            map: Identity,
            invalidation: LocalInvalidation::default(),
            common: Common {
                clock: Clock::system(),
                options: Options::default(),
                max_creations: None,
                thread_runner: JobRunner::threads(),
                #[cfg(feature = "tokio")]
                task_runner: JobRunner::tokio(),
            },
        }
    }
}

impl<B, S, L: LockSettings, M: KeyMap, I: Invalidation> RegionBuilder<B, S, L, M, I> {
    /// Sets how values are encoded. Default: [`Msgpack<Seconds>`].
    pub fn codec<T>(self, codec: T) -> RegionBuilder<B, T, L, M, I> {
        let RegionBuilder { backend, lock, map, invalidation, common, .. } = self;
        RegionBuilder { backend, codec, lock, map, invalidation, common }
    }

    /// Sets the lock between processes. Default: [`LocalLock`], which lets each process create.
    pub fn lock<T: LockSettings>(self, lock: T) -> RegionBuilder<B, S, T, M, I> {
        let RegionBuilder { backend, codec, map, invalidation, common, .. } = self;
        RegionBuilder { backend, codec, lock, map, invalidation, common }
    }

    /// Sets how keys are mapped to the backend's. Default: [`Identity`].
    pub fn keys<T: KeyMap>(self, map: T) -> RegionBuilder<B, S, L, T, I> {
        let RegionBuilder { backend, codec, lock, invalidation, common, .. } = self;
        RegionBuilder { backend, codec, lock, map, invalidation, common }
    }

    /// Sets how invalidations are remembered. Default: [`LocalInvalidation`], in this process.
    pub fn invalidation<T: Invalidation>(self, invalidation: T) -> RegionBuilder<B, S, L, M, T> {
        let RegionBuilder { backend, codec, lock, map, common, .. } = self;
        RegionBuilder { backend, codec, lock, map, invalidation, common }
    }

    /// Sets all options at once. Those that are set afterwards replace them one by one.
    pub fn options(mut self, options: &Options) -> Self {
        self.common.options = options.clone();
        self
    }

    /// Sets the soft expiry: how old an entry gets before it is stale. Default: [`Expiry::Never`].
    ///
    /// One caller then creates the value anew, and the others get the stale one. See
    /// [`ttl`](RegionBuilder::ttl) for when an entry disappears.
    pub fn stale_after(mut self, age: impl Into<Expiry>) -> Self {
        self.common.options.stale_after = age.into();
        self
    }

    /// Sets the hard expiry: how long the backend keeps an entry. Default: as long as it has room.
    ///
    /// The TTL is kept to the millisecond and is at least one. It must exceed the soft expiry for stale
    /// values to be served. For fields of hashes see [`HashTtl`](crate::HashTtl).
    pub fn ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.common.options.ttl = ttl.into();
        self
    }

    /// Sets how long a call waits in all for creations of other callers. Default: without limit.
    ///
    /// Waiting for a permit of [`max_creations`](RegionBuilder::max_creations) counts, the call's own
    /// creator does not.
    pub fn wait_timeout(mut self, at_most: impl Into<Option<Duration>>) -> Self {
        self.common.options.wait_timeout = at_most.into();
        self
    }

    /// Sets what happens to a call that has waited too long. Default: [`OnWaitTimeout::Fail`].
    pub fn on_wait_timeout(mut self, what: OnWaitTimeout) -> Self {
        self.common.options.on_wait_timeout = what;
        self
    }

    /// Makes `get_or_create` fail if the backend or the lock fails.
    ///
    /// By default the creator runs, its value is returned, and [`Stats`](crate::Stats) counts the error.
    pub fn fail_closed(mut self) -> Self {
        self.common.options.fail_closed = true;
        self
    }

    /// Limits how many creations of this region run at once in this process. Default: no limit.
    ///
    /// The limit protects what the creators query while the server is down and nothing is found. Other
    /// callers wait for a permit with their keys locked. A creation of many keys counts as one. A
    /// creator that asks the same region for other keys needs another permit, and may wait for ever if
    /// such creators hold all of them: use two regions then.
    pub fn max_creations(mut self, max: impl Into<Option<usize>>) -> Self {
        self.common.max_creations = max.into();
        self
    }

    /// Sets what runs the creators of [`Region::get_or_refresh`], such as a thread pool.
    ///
    /// Default: each in a thread of its own, and at most 16 at once; further ones are dropped, and the
    /// next caller tries again.
    ///
    /// ```
    /// use dogpile::region::ThreadJob;
    /// use dogpile::{Memory, Region};
    ///
    /// let (sender, jobs) = std::sync::mpsc::channel::<ThreadJob>();
    /// std::thread::spawn(move || jobs.into_iter().for_each(|job| job()));
    /// let region = Region::builder(Memory::new(1 << 20)).thread_runner(move |job| drop(sender.send(job))).build()?;
    /// # let _: Region<Memory> = region;
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn thread_runner(mut self, run: impl Fn(ThreadJob) + Send + Sync + 'static) -> Self {
        self.common.thread_runner = JobRunner::new(run);
        self
    }

    /// Sets what runs the creators of [`Region::get_or_refresh_async`], such as a `TaskTracker`.
    ///
    /// Default: a task of the caller's tokio runtime. A runtime that shuts down drops its tasks and
    /// cannot release their leases, which then live until they expire. A service that stops cleanly
    /// sets its own runner and waits for its tasks.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20))
    ///     .task_runner(|job| drop(tokio::spawn(job)))
    ///     .build()?;
    /// # let _: Region<Memory> = region;
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    #[cfg(feature = "tokio")]
    pub fn task_runner(mut self, run: impl Fn(TaskJob) + Send + Sync + 'static) -> Self {
        self.common.task_runner = JobRunner::new(run);
        self
    }

    /// Sets the clock by which entries are dated and judged. Default: the system's.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.common.clock = clock;
        self
    }

    /// Builds the region. It connects to nothing yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for settings that cannot work: those of the lock, a `wait_timeout` of zero, or
    /// `max_creations` of zero.
    pub fn build(self) -> Result<Region<B, S, L, M, I>, Error> {
        let RegionBuilder { backend, codec, lock, map, invalidation, common } = self;
        let refuse = |what| Err(Error::new(ErrorKind::Config, what));
        lock.check()?;
        if common.options.wait_timeout == Some(Duration::ZERO) {
            return refuse("building a region: wait_timeout is zero, so no caller could wait for a value");
        }
        if common.max_creations == Some(0) {
            return refuse("building a region: max_creations is zero, so no value could be created");
        }
        let core = Core {
            codec,
            map,
            invalidation,
            flights: Arc::new(SingleFlight::new()),
            clock: common.clock,
            creations: common.max_creations.map(|max| (Arc::new(Semaphore::new(max)), max)),
            counters: Counters::default(),
        };
        let inner = RegionInner {
            backend,
            lock,
            core,
            thread_runner: common.thread_runner,
            #[cfg(feature = "tokio")]
            task_runner: common.task_runner,
        };
        Ok(Region { inner: Arc::new(inner), options: CallOptions::new(common.options) })
    }
}
