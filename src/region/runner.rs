//! Runners of background creations, and the default ones.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A creation that runs in the background of threads.
///
/// If it is dropped without being run, its lock is released and the value stays stale until another
/// caller asks for it.
pub type ThreadJob = Box<dyn FnOnce() + Send>;

/// A creation that runs in the background of tasks.
///
/// It may be dropped at any time: its lock is released, and the value stays stale until another caller
/// asks for it. If it is dropped together with its runtime, the lock may stay until its lease expires;
/// a service that stops cleanly waits for its jobs first, for example with the `TaskTracker` of tokio-util.
#[cfg(feature = "tokio")]
pub type TaskJob = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs jobs in the background.
pub(crate) struct JobRunner<J>(Arc<dyn Fn(J) + Send + Sync>);

impl<J> JobRunner<J> {
    pub(crate) fn new(run: impl Fn(J) + Send + Sync + 'static) -> Self {
        JobRunner(Arc::new(run))
    }

    pub(crate) fn run(&self, job: J) {
        (self.0)(job);
    }
}

/// How many threads the default runner starts at once. It drops further jobs.
const MAX_THREADS: usize = 16;

impl JobRunner<ThreadJob> {
    /// Runs each job in a thread of its own.
    pub(crate) fn threads() -> Self {
        let running = Arc::new(AtomicUsize::new(0));
        Self::new(move |job| {
            /// Counts down when a thread has ended or was not started.
            struct CountDown(Arc<AtomicUsize>);
            impl Drop for CountDown {
                fn drop(&mut self) {
                    self.0.fetch_sub(1, Ordering::Relaxed);
                }
            }
            let before = running.fetch_add(1, Ordering::Relaxed);
            let count_down = CountDown(Arc::clone(&running));
            if before < MAX_THREADS {
                // If the system has no thread to give, the job is dropped.
                let _ = std::thread::Builder::new().name("dogpile-refresh".into()).spawn(move || {
                    let _count_down = count_down;
                    job();
                });
            }
        })
    }
}

#[cfg(feature = "tokio")]
impl JobRunner<TaskJob> {
    /// Spawns each job on the current runtime. Outside of a runtime it drops the job.
    pub(crate) fn tokio() -> Self {
        Self::new(|job| {
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(job);
            }
        })
    }
}

impl<J> Clone for JobRunner<J> {
    fn clone(&self) -> Self {
        JobRunner(Arc::clone(&self.0))
    }
}

impl<J> fmt::Debug for JobRunner<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobRunner")
    }
}
