//! Sets up a [`Region`].

use std::sync::Arc;
use std::time::Duration;

use async_lock::Semaphore;

use crate::codec::Msgpack;
use crate::codec::Seconds;
use crate::error::{Error, ErrorKind};
use crate::freshness::{Expiry, Invalidation, LocalInvalidation};
use crate::keymap::{KeyMap, Unmapped};
use crate::lock::LocalLock;
use crate::lock::LockSettings;
#[cfg(feature = "tokio")]
use crate::region::create::background::TaskJob;
use crate::region::create::background::{Runner, ThreadJob};
use crate::region::create::single_flight::Line;
use crate::region::stats::Counters;
use crate::region::{Region, Shared};
use crate::time::Clock;

/// Settings of a [`Region`], from [`Region::builder`].
#[must_use]
#[derive(Clone, Debug)]
pub struct RegionBuilder<B, S = Msgpack<Seconds>, L = LocalLock, M = Unmapped, I = LocalInvalidation> {
    backend: B,
    codec: S,
    lock: L,
    map: M,
    invalidation: I,
    clock: Clock,
    expiry: Expiry,
    ttl: Option<Duration>,
    patience: Option<Duration>,
    after_patience: AfterPatience,
    max_creators: Option<usize>,
    fail_closed: bool,
    thread_runner: Runner<ThreadJob>,
    #[cfg(feature = "tokio")]
    task_runner: Runner<TaskJob>,
}

/// What becomes of a caller whose patience is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AfterPatience {
    /// It gets an error of [`ErrorKind::Timeout`]. The default.
    #[default]
    Fail,
    /// It creates for itself, beside whoever is about it, and stores what it created. Where all places of
    /// [creators](RegionBuilder::max_creators) are taken it gets the error all the same.
    Create,
}

impl<B> RegionBuilder<B> {
    pub(crate) fn new(backend: B) -> Self {
        RegionBuilder {
            backend,
            codec: Msgpack::new(),
            lock: LocalLock,
            map: Unmapped,
            invalidation: LocalInvalidation::default(),
            clock: Clock::system(),
            expiry: Expiry::Never,
            ttl: None,
            patience: None,
            after_patience: AfterPatience::Fail,
            max_creators: None,
            fail_closed: false,
            thread_runner: Runner::threads(),
            #[cfg(feature = "tokio")]
            task_runner: Runner::tokio(),
        }
    }
}

impl<B, S, L: LockSettings, M: KeyMap, I: Invalidation> RegionBuilder<B, S, L, M, I> {
    /// How values are written. Default: [`Msgpack<Seconds>`].
    pub fn codec<T>(self, codec: T) -> RegionBuilder<B, T, L, M, I> {
        self.with(|_, lock, map, invalidation| (codec, lock, map, invalidation))
    }

    /// Who may create a value, among processes. Default: [`LocalLock`], one in each.
    pub fn lock<T: LockSettings>(self, lock: T) -> RegionBuilder<B, S, T, M, I> {
        self.with(|codec, _, map, invalidation| (codec, lock, map, invalidation))
    }

    /// How keys become the server's. Default: as they are.
    pub fn keys<T: KeyMap>(self, map: T) -> RegionBuilder<B, S, L, T, I> {
        self.with(|codec, lock, _, invalidation| (codec, lock, map, invalidation))
    }

    /// What is invalid. Default: [`LocalInvalidation`], what this process invalidated.
    pub fn invalidation<T: Invalidation>(self, invalidation: T) -> RegionBuilder<B, S, L, M, T> {
        self.with(|codec, lock, map, _| (codec, lock, map, invalidation))
    }

    fn with<S2, L2, M2, I2>(
        self,
        change: impl FnOnce(S, L, M, I) -> (S2, L2, M2, I2),
    ) -> RegionBuilder<B, S2, L2, M2, I2> {
        let (codec, lock, map, invalidation) = change(self.codec, self.lock, self.map, self.invalidation);
        RegionBuilder {
            backend: self.backend,
            codec,
            lock,
            map,
            invalidation,
            clock: self.clock,
            expiry: self.expiry,
            ttl: self.ttl,
            patience: self.patience,
            after_patience: self.after_patience,
            max_creators: self.max_creators,
            fail_closed: self.fail_closed,
            thread_runner: self.thread_runner,
            #[cfg(feature = "tokio")]
            task_runner: self.task_runner,
        }
    }

    /// How old an entry gets before it is stale: one caller then creates the value anew, the others use the old one.
    /// Default: [`Expiry::Never`]. See [`RegionBuilder::ttl`] for when it goes altogether.
    pub fn expires_after(mut self, age: impl Into<Expiry>) -> Self {
        self.expiry = age.into();
        self
    }

    /// How long the backend keeps an entry, to the millisecond and at least one. Default: as long as it has room. For
    /// stale values to be served it must be longer than the expiry. In a hash see
    /// [`HashExpiry`](crate::redis::HashExpiry).
    pub fn ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.ttl = ttl.into();
        self
    }

    /// How long a caller waits, in all, for values that others create, and for a place among the
    /// [creators](RegionBuilder::max_creators); its own creator does not count. Default: as long as it takes. See
    /// [`RegionBuilder::after_patience`].
    pub fn patience(mut self, at_most: impl Into<Option<Duration>>) -> Self {
        self.patience = at_most.into();
        self
    }

    /// What becomes of a caller whose patience is over. Default: [`AfterPatience::Fail`].
    pub fn after_patience(mut self, what: AfterPatience) -> Self {
        self.after_patience = what;
        self
    }

    /// How many creators of this region may run at once in this process, so that what they ask is not overrun when the
    /// server is down and nothing is found. Others wait for their turn, with their keys locked. A creator of many keys is
    /// one. A creator that asks the same region for other keys needs a place more, and may wait for ever where all places
    /// are held by such: give it a region of its own. Default: any number.
    pub fn max_creators(mut self, most: impl Into<Option<usize>>) -> Self {
        self.max_creators = most.into();
        self
    }

    /// Makes `get_or_create` fail when the backend or the lock does. By default the creator runs, its value is returned
    /// and the trouble counted in [`Stats`](crate::region::stats::Stats).
    pub fn fail_closed(mut self) -> Self {
        self.fail_closed = true;
        self
    }

    /// Who runs the creators of [`Region::get_or_refresh`], such as a pool of threads. Default: each in a thread of its
    /// own, up to 16 at once; what is over that is dropped, and the next caller tries again.
    ///
    /// ```
    /// use dogpile::{Memory, Region, ThreadJob};
    ///
    /// let (sender, jobs) = std::sync::mpsc::channel::<ThreadJob>();
    /// std::thread::spawn(move || jobs.into_iter().for_each(|job| job()));
    /// let region = Region::builder(Memory::new(1 << 20)).thread_runner(move |job| drop(sender.send(job))).build()?;
    /// # let _: Region<Memory> = region;
    /// # Ok::<(), dogpile::Error>(())
    /// ```
    pub fn thread_runner(mut self, run: impl Fn(ThreadJob) + Send + Sync + 'static) -> Self {
        self.thread_runner = Runner::new(run);
        self
    }

    /// Who runs the creators of [`Region::get_or_refresh_async`]. Default: each in a task of the tokio runtime that its
    /// caller is in. A runtime that shuts down drops them and can no longer release their locks in a server, which then
    /// last as long as their leases. A program that stops cleanly brings its own runner, and waits for what it runs.
    #[cfg(feature = "tokio")]
    pub fn task_runner(mut self, run: impl Fn(TaskJob) + Send + Sync + 'static) -> Self {
        self.task_runner = Runner::new(run);
        self
    }

    /// Where the region reads the time. Default: the system's clock.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The region. Connects to nothing yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for settings that cannot work: of the lock, a patience of zero, no creators.
    pub fn build(self) -> Result<Region<B, S, L, M, I>, Error> {
        self.lock.check()?;
        if self.patience == Some(Duration::ZERO) {
            return Err(Error::new(ErrorKind::Config, "with no patience at all nobody can wait for a value"));
        }
        if self.max_creators == Some(0) {
            return Err(Error::new(ErrorKind::Config, "with no creators at all nobody can create a value"));
        }
        Ok(Region {
            shared: Arc::new(Shared {
                backend: self.backend,
                codec: self.codec,
                lock: self.lock,
                map: self.map,
                invalidation: self.invalidation,
                line: Arc::new(Line::new()),
                clock: self.clock,
                expiry: self.expiry,
                max_age: self.expiry.into(),
                ttl: self.ttl,
                patience: self.patience,
                after_patience: self.after_patience,
                creators: self.max_creators.map(|most| (Arc::new(Semaphore::new(most)), most)),
                fail_closed: self.fail_closed,
                thread_runner: self.thread_runner,
                #[cfg(feature = "tokio")]
                task_runner: self.task_runner,
                counters: Counters::default(),
            }),
        })
    }
}
