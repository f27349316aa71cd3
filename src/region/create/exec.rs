//! [`Face`]: how a caller reads, locks and waits, as a thread or as a task.

use std::future::ready;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

#[cfg(feature = "tokio")]
use crate::backend::AsyncBackend;
use crate::backend::Backend;
use crate::backend::leases::Watch;
use crate::batch::{Batch, Found};
use crate::error::Error;
#[cfg(feature = "tokio")]
use crate::exec::Task;
use crate::exec::Thread;
use crate::key::Key;
#[cfg(feature = "tokio")]
use crate::lock::AsyncLock;
use crate::lock::{Attempt, Lock};

/// What the driver of flights does in another way for threads than for tasks.
pub(crate) trait Face<B, L>: Copy {
    /// Holds the lock.
    type Guard: Send;

    /// This thread, if waiting blocks it.
    fn thread(self) -> Option<ThreadId>;

    /// The time by the clock that its timers go by.
    fn clock(self) -> Instant;

    fn get_many(
        self,
        backend: &B,
        keys: &[Key<'_>],
        found: &mut Found,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    fn max_entry(self, backend: &B) -> usize;

    fn try_lock(
        self,
        lock: &L,
        backend: &B,
        key: Key<'_>,
    ) -> impl Future<Output = Result<Option<Self::Guard>, Error>> + Send;

    fn try_lock_and_read(
        self,
        lock: &L,
        backend: &B,
        keys: &[Key<'_>],
    ) -> impl Future<Output = Result<Vec<Attempt<Self::Guard>>, Error>> + Send;

    fn read_or_lock(
        self,
        lock: &L,
        backend: &B,
        key: Key<'_>,
    ) -> impl Future<Output = Result<Attempt<Self::Guard>, Error>> + Send;

    fn store_and_release(
        self,
        lock: &L,
        backend: &B,
        guards: Vec<Self::Guard>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<usize, Error>> + Send;

    fn set_many(
        self,
        backend: &B,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Releases locks, where a guard may be dropped.
    fn release(self, lock: &L, backend: &B, guards: Vec<Self::Guard>);

    /// Tells when the holder of a lock in another process may be done.
    fn watch(self, lock: &L, backend: &B, key: Key<'_>) -> Option<Watch>;

    /// Waits for a future; `None` when that takes too long.
    fn within<F: Future + Send>(
        self,
        deadline: Option<Instant>,
        future: F,
    ) -> impl Future<Output = Option<F::Output>> + Send
    where
        F::Output: Send;
}

impl<B: Backend, L: Lock<B>> Face<B, L> for Thread {
    type Guard = L::Guard;

    fn thread(self) -> Option<ThreadId> {
        Some(thread::current().id())
    }

    fn clock(self) -> Instant {
        Instant::now()
    }

    fn get_many(
        self,
        backend: &B,
        keys: &[Key<'_>],
        found: &mut Found,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        ready(backend.get_many(keys, found))
    }

    fn max_entry(self, backend: &B) -> usize {
        backend.max_entry()
    }

    fn try_lock(
        self,
        lock: &L,
        backend: &B,
        key: Key<'_>,
    ) -> impl Future<Output = Result<Option<L::Guard>, Error>> + Send {
        ready(lock.try_lock(backend, key))
    }

    fn try_lock_and_read(
        self,
        lock: &L,
        backend: &B,
        keys: &[Key<'_>],
    ) -> impl Future<Output = Result<Vec<Attempt<L::Guard>>, Error>> + Send {
        ready(lock.try_lock_and_read(backend, keys))
    }

    fn read_or_lock(
        self,
        lock: &L,
        backend: &B,
        key: Key<'_>,
    ) -> impl Future<Output = Result<Attempt<L::Guard>, Error>> + Send {
        ready(lock.read_or_lock(backend, key))
    }

    fn store_and_release(
        self,
        lock: &L,
        backend: &B,
        guards: Vec<L::Guard>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<usize, Error>> + Send {
        ready(lock.store_and_release(backend, guards, batch, ttl))
    }

    fn set_many(
        self,
        backend: &B,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        ready(backend.set_many(batch, ttl))
    }

    fn release(self, lock: &L, backend: &B, guards: Vec<L::Guard>) {
        lock.release(backend, guards);
    }

    fn watch(self, lock: &L, backend: &B, key: Key<'_>) -> Option<Watch> {
        lock.watch(backend, key)
    }

    fn within<F: Future + Send>(
        self,
        deadline: Option<Instant>,
        future: F,
    ) -> impl Future<Output = Option<F::Output>> + Send
    where
        F::Output: Send,
    {
        let waker = Waker::from(Arc::new(Unparks(thread::current())));
        let mut future = pin!(future);
        ready(loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                break Some(output);
            }
            match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => thread::park(),
                Some(Duration::ZERO) => break None,
                Some(left) => thread::park_timeout(left),
            }
        })
    }
}

/// Wakes a thread that is parked.
struct Unparks(thread::Thread);

impl Wake for Unparks {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(feature = "tokio")]
impl<B: AsyncBackend, L: AsyncLock<B>> Face<B, L> for Task {
    type Guard = L::AsyncGuard;

    fn thread(self) -> Option<ThreadId> {
        None
    }

    fn clock(self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn get_many(
        self,
        backend: &B,
        keys: &[Key<'_>],
        found: &mut Found,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        backend.get_many_async(keys, found)
    }

    fn max_entry(self, backend: &B) -> usize {
        backend.max_entry_async()
    }

    fn try_lock(
        self,
        lock: &L,
        backend: &B,
        key: Key<'_>,
    ) -> impl Future<Output = Result<Option<L::AsyncGuard>, Error>> + Send {
        lock.try_lock_async(backend, key)
    }

    fn try_lock_and_read(
        self,
        lock: &L,
        backend: &B,
        keys: &[Key<'_>],
    ) -> impl Future<Output = Result<Vec<Attempt<L::AsyncGuard>>, Error>> + Send {
        lock.try_lock_and_read_async(backend, keys)
    }

    fn read_or_lock(
        self,
        lock: &L,
        backend: &B,
        key: Key<'_>,
    ) -> impl Future<Output = Result<Attempt<L::AsyncGuard>, Error>> + Send {
        lock.read_or_lock_async(backend, key)
    }

    fn store_and_release(
        self,
        lock: &L,
        backend: &B,
        guards: Vec<L::AsyncGuard>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<usize, Error>> + Send {
        lock.store_and_release_async(backend, guards, batch, ttl)
    }

    fn set_many(
        self,
        backend: &B,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        backend.set_many_async(batch, ttl)
    }

    /// What waits for a guard to be dropped is not this task.
    fn release(self, _: &L, _: &B, guards: Vec<L::AsyncGuard>) {
        drop(guards);
    }

    fn watch(self, lock: &L, backend: &B, key: Key<'_>) -> Option<Watch> {
        lock.watch_async(backend, key)
    }

    async fn within<F: Future + Send>(self, deadline: Option<Instant>, future: F) -> Option<F::Output>
    where
        F::Output: Send,
    {
        match deadline {
            None => Some(future.await),
            Some(deadline) => tokio::time::timeout_at(deadline.into(), future).await.ok(),
        }
    }
}
