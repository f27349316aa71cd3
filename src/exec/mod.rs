//! [`Exec`]: how a caller waits, as a thread that blocks or as a task that is woken.
//!
//! Everything that both kinds of callers do is written once, as async functions over the async
//! traits ([`AsyncBackend`](crate::AsyncBackend), [`AsyncLock`](crate::AsyncLock), the transport).
//! A blocking call passes an adapter whose futures have done their work when they are created. The
//! whole function is therefore ready at its first poll, and [`poll_ready`] takes its output without
//! an executor.

pub(crate) mod periodic;

use std::future::ready;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread, ThreadId};
use std::time::{Duration, Instant};

use self::periodic::{Job, PeriodicHandle};

/// What a thread and a task do differently, apart from I/O.
pub(crate) trait Exec: Copy + Send + Sync + 'static {
    /// Returns the current thread if waiting blocks it.
    fn thread(self) -> Option<ThreadId>;

    /// Returns the time of the clock that [`Exec::timeout`] goes by.
    fn now(self) -> Instant;

    /// Waits for `future`, at most until `deadline`. Returns `None` if the deadline passes first.
    fn timeout<F: Future + Send>(
        self,
        deadline: Option<Instant>,
        future: F,
    ) -> impl Future<Output = Option<F::Output>> + Send
    where
        F::Output: Send;

    /// Runs `job` every `period` until it is done or cancelled.
    ///
    /// Returns `None` if there is nothing that could run it, such as outside of a runtime.
    fn every(period: Duration, job: Job) -> Option<PeriodicHandle>;
}

/// A caller that is a thread. Waiting blocks it.
#[derive(Clone, Copy, Debug)]
pub struct Blocking;

/// A caller that is a task of a tokio runtime.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug)]
pub struct Async;

/// Returns the output of a future that waits only by blocking.
///
/// # Panics
/// If the future is pending: it then awaited something that does not block.
#[inline(always)]
pub(crate) fn poll_ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("a blocking call awaits only futures that are ready"),
    }
}

impl Exec for Blocking {
    fn thread(self) -> Option<ThreadId> {
        Some(thread::current().id())
    }

    fn now(self) -> Instant {
        Instant::now()
    }

    fn timeout<F: Future + Send>(
        self,
        deadline: Option<Instant>,
        future: F,
    ) -> impl Future<Output = Option<F::Output>> + Send
    where
        F::Output: Send,
    {
        let waker = Waker::from(Arc::new(ThreadWaker(thread::current())));
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

    fn every(period: Duration, job: Job) -> Option<PeriodicHandle> {
        Some(periodic::every_by_thread(period, job))
    }
}

#[cfg(feature = "tokio")]
impl Exec for Async {
    fn thread(self) -> Option<ThreadId> {
        None
    }

    fn now(self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    async fn timeout<F: Future + Send>(self, deadline: Option<Instant>, future: F) -> Option<F::Output>
    where
        F::Output: Send,
    {
        match deadline {
            None => Some(future.await),
            Some(deadline) => tokio::time::timeout_at(deadline.into(), future).await.ok(),
        }
    }

    fn every(period: Duration, job: Job) -> Option<PeriodicHandle> {
        periodic::every_by_task(period, job)
    }
}

/// Unparks a thread.
struct ThreadWaker(Thread);

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
