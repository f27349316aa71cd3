//! Periodic jobs, such as the renewal of leases: one thread of the process runs those of blocking
//! callers, and one task of each tokio runtime those of its tasks.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
#[cfg(feature = "tokio")]
use tokio::sync::Notify;

use super::poll_ready;

/// Something that is done once every period.
pub(crate) trait Periodic: Send + Sync {
    /// Does it once. Returns whether it is to be done again.
    fn run(self: Arc<Self>) -> Pin<Box<dyn Future<Output = bool> + Send>>;
}

/// A periodic job, and how long it lives.
#[derive(Clone)]
pub(crate) enum Job {
    /// Ends when its owner drops it.
    WhileOwned(Weak<dyn Periodic>),
    /// Runs until it reports that it is done.
    UntilDone(Arc<dyn Periodic>),
}

impl Job {
    /// Returns `None` if the owner has dropped the job.
    fn get(&self) -> Option<Arc<dyn Periodic>> {
        match self {
            Job::WhileOwned(job) => job.upgrade(),
            Job::UntilDone(job) => Some(Arc::clone(job)),
        }
    }
}

/// Identifies a scheduled job.
pub(crate) struct PeriodicHandle {
    schedule: Arc<dyn Cancel>,
    id: u64,
}

impl PeriodicHandle {
    /// Ends the job when the returned guard is dropped.
    pub(crate) fn cancel_on_drop(self) -> CancelOnDrop {
        CancelOnDrop(self)
    }
}

/// Ends its job when it is dropped.
pub(crate) struct CancelOnDrop(PeriodicHandle);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.schedule.cancel(self.0.id);
    }
}

trait Cancel: Send + Sync {
    fn cancel(&self, id: u64);
}

/// How long the thread or task stays when nothing is scheduled any more.
const IDLE: Duration = Duration::from_secs(10);

/// How many due times of cancelled jobs may stay in the heap before it is cleaned.
const MAX_CANCELLED: usize = 64;

/// How many threads run at once the jobs that are due at once.
const MAX_PARALLEL: usize = 8;

/// Which jobs there are and when each is due. Its memory is reused from job to job.
struct Schedule<J> {
    jobs: HashMap<u64, Scheduled<J>, ahash::RandomState>,
    /// When each job is due, the earliest first, with some that were cancelled.
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    next_id: u64,
    /// Whether a thread or a task runs the schedule.
    has_runner: bool,
}

struct Scheduled<J> {
    period: Duration,
    job: J,
}

impl<J: Clone> Schedule<J> {
    fn new() -> Self {
        // Enough for a few leases at a time, so that these do not allocate.
        Schedule {
            jobs: HashMap::default(),
            due: BinaryHeap::with_capacity(2 * MAX_CANCELLED),
            next_id: 0,
            has_runner: false,
        }
    }

    /// Schedules `job` every `period` from `now` on. Returns its id.
    fn add(&mut self, now: Instant, period: Duration, job: J) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        // An instant that the clock cannot represent never comes.
        if let Some(due) = now.checked_add(period) {
            self.jobs.insert(id, Scheduled { period, job });
            self.due.push(Reverse((due, id)));
        }
        id
    }

    fn remove(&mut self, id: u64) -> Option<Scheduled<J>> {
        let removed = self.jobs.remove(&id);
        if self.due.len() > 2 * self.jobs.len() + MAX_CANCELLED {
            self.due.retain(|Reverse((_, id))| self.jobs.contains_key(id));
        }
        removed
    }

    fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Returns when the first job is due, or a cancelled one would be.
    fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// Takes the jobs that are due by `now`, and schedules each again a period later.
    fn take_due(&mut self, now: Instant) -> Vec<(u64, J)> {
        let mut taken = Vec::new();
        // With a period of zero a job is due again at once: it waits for the next call.
        let mut due_again = Vec::new();
        while self.next_due().is_some_and(|due| due <= now) {
            let Some(Reverse((_, id))) = self.due.pop() else { break };
            let Some(scheduled) = self.jobs.get(&id) else { continue };
            taken.push((id, scheduled.job.clone()));
            due_again.extend(now.checked_add(scheduled.period).map(|due| Reverse((due, id))));
        }
        self.due.extend(due_again);
        taken
    }
}

/// A schedule and the means to wake its runner.
struct Runner<W> {
    schedule: Mutex<Schedule<Job>>,
    changed: W,
}

impl<W: Send + Sync + 'static> Runner<W> {
    fn new(changed: W) -> Self {
        Runner { schedule: Mutex::new(Schedule::new()), changed }
    }

    /// Schedules a job. `start` starts a thread or task if none runs the schedule; `notify` tells a
    /// running one that another job is due first now.
    fn every(
        self: &Arc<Self>,
        now: Instant,
        period: Duration,
        job: Job,
        notify: impl FnOnce(&W),
        start: impl FnOnce(&Arc<Self>) -> bool,
    ) -> PeriodicHandle {
        let mut schedule = self.schedule.lock();
        let before = schedule.next_due();
        let id = schedule.add(now, period, job);
        let (is_first, had_runner) = (schedule.next_due() != before, schedule.has_runner);
        schedule.has_runner = true;
        drop(schedule);
        if !had_runner && !start(self) {
            self.schedule.lock().has_runner = false;
        } else if is_first {
            notify(&self.changed);
        }
        PeriodicHandle { schedule: Arc::clone(self) as Arc<dyn Cancel>, id }
    }
}

impl<W: Send + Sync> Cancel for Runner<W> {
    fn cancel(&self, id: u64) {
        // Dropping the job may run code of the backend, so it happens outside of the lock.
        let job = self.schedule.lock().remove(id);
        drop(job);
    }
}

/// The right to run a schedule. However the runner ends, the next job starts another.
struct RunnerGuard<W> {
    runner: Arc<Runner<W>>,
    is_running: bool,
}

impl<W> RunnerGuard<W> {
    fn new(runner: &Arc<Runner<W>>) -> Self {
        RunnerGuard { runner: Arc::clone(runner), is_running: true }
    }

    /// Ends if nothing is scheduled. Decided under the lock, so that a later job starts another
    /// runner.
    fn end_if_empty(&mut self) -> bool {
        let mut schedule = self.runner.schedule.lock();
        self.is_running = !schedule.is_empty();
        schedule.has_runner = self.is_running;
        !self.is_running
    }
}

impl<W> Drop for RunnerGuard<W> {
    fn drop(&mut self) {
        if self.is_running {
            self.runner.schedule.lock().has_runner = false;
        }
    }
}

/// Runs a job by the thread of this process.
pub(super) fn every_by_thread(period: Duration, job: Job) -> PeriodicHandle {
    static RUNNER: LazyLock<Arc<Runner<Condvar>>> = LazyLock::new(|| Arc::new(Runner::new(Condvar::new())));
    let notify = |changed: &Condvar| {
        changed.notify_one();
    };
    // If the system has no thread to give, leases expire at the end of their life.
    let start = |runner: &Arc<Runner<Condvar>>| start_thread(RunnerGuard::new(runner));
    RUNNER.every(Instant::now(), period, job, notify, start)
}

fn start_thread(guard: RunnerGuard<Condvar>) -> bool {
    thread::Builder::new().name("dogpile-renew".into()).spawn(move || run_by_thread(guard)).is_ok()
}

fn run_by_thread(mut guard: RunnerGuard<Condvar>) {
    loop {
        let mut schedule = guard.runner.schedule.lock();
        let due = schedule.take_due(Instant::now());
        let (next, has_others) = (schedule.next_due(), schedule.jobs.len() > 1);
        if !due.is_empty() {
            drop(schedule);
            // A server that hangs must not delay the jobs of others: another thread runs the
            // schedule meanwhile, and several threads share what is due at once.
            let stays = !has_others || !guard.replace();
            thread::scope(|scope| {
                let runner = &guard.runner;
                let mut shares = due.chunks(due.len().div_ceil(MAX_PARALLEL));
                let own = shares.next();
                for share in shares {
                    if thread::Builder::new().spawn_scoped(scope, || run_all(runner, share)).is_err() {
                        run_all(runner, share);
                    }
                }
                own.into_iter().for_each(|own| run_all(runner, own));
            });
            if !stays {
                return;
            }
            continue;
        }
        let until = next.unwrap_or_else(|| Instant::now() + IDLE);
        let timed_out = guard.runner.changed.wait_until(&mut schedule, until).timed_out();
        drop(schedule);
        if next.is_none() && timed_out && guard.end_if_empty() {
            return;
        }
    }
}

fn run_all(runner: &Runner<Condvar>, due: &[(u64, Job)]) {
    for (id, job) in due {
        let Some(job) = job.get() else { continue };
        // A panic of a backend has no caller that it could be passed on to.
        let again = std::panic::catch_unwind(AssertUnwindSafe(|| poll_ready(job.run())));
        if !again.unwrap_or(false) {
            runner.cancel(*id);
        }
    }
}

impl RunnerGuard<Condvar> {
    /// Lets another thread run the schedule. Returns `false` if the system has none to give.
    fn replace(&mut self) -> bool {
        let next = RunnerGuard::new(&self.runner);
        self.is_running = false;
        let replaced = start_thread(next);
        if !replaced {
            // Dropping the guard of the thread that did not start has cleared the flag.
            self.is_running = true;
            self.runner.schedule.lock().has_runner = true;
        }
        replaced
    }
}

/// Runs a job by the task of the current runtime. Returns `None` outside of one.
#[cfg(feature = "tokio")]
pub(super) fn every_by_task(period: Duration, job: Job) -> Option<PeriodicHandle> {
    type OfRuntime = (tokio::runtime::Id, Weak<Runner<Notify>>);
    static RUNNERS: Mutex<Vec<OfRuntime>> = Mutex::new(Vec::new());
    let runtime = tokio::runtime::Handle::try_current().ok()?;
    let mut runners = RUNNERS.lock();
    let known = runners.iter().find(|(id, _)| *id == runtime.id()).and_then(|(_, runner)| runner.upgrade());
    let runner = known.unwrap_or_else(|| {
        runners.retain(|(_, runner)| runner.strong_count() > 0);
        let runner = Arc::new(Runner::new(Notify::new()));
        runners.push((runtime.id(), Arc::downgrade(&runner)));
        runner
    });
    drop(runners);
    let start = |runner: &Arc<Runner<Notify>>| {
        runtime.spawn(run_by_task(RunnerGuard::new(runner)));
        true
    };
    let now = tokio::time::Instant::now().into_std();
    Some(runner.every(now, period, job, Notify::notify_one, start))
}

#[cfg(feature = "tokio")]
async fn run_by_task(mut guard: RunnerGuard<Notify>) {
    use tokio::time::{Instant, timeout_at};
    loop {
        let (due, next) = {
            let mut schedule = guard.runner.schedule.lock();
            (schedule.take_due(Instant::now().into_std()), schedule.next_due())
        };
        // A task for each, so that a server that does not answer does not delay the others.
        for (id, job) in due {
            let (runner, Some(job)) = (Arc::clone(&guard.runner), job.get()) else { continue };
            tokio::spawn(async move {
                if !job.run().await {
                    runner.cancel(id);
                }
            });
        }
        let until = next.map_or_else(|| Instant::now() + IDLE, Instant::from_std);
        let timed_out = timeout_at(until, guard.runner.changed.notified()).await.is_err();
        if next.is_none() && timed_out && guard.end_if_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_due_every_period_until_it_is_removed() {
        let (mut schedule, start, second) = (Schedule::new(), Instant::now(), Duration::from_secs(1));
        let three = schedule.add(start, 3 * second, "three");
        let five = schedule.add(start, 5 * second, "five");
        schedule.add(start, Duration::MAX, "never");
        assert_eq!(schedule.next_due(), Some(start + 3 * second));
        assert!(schedule.take_due(start + 2 * second).is_empty());
        assert_eq!(schedule.take_due(start + 5 * second), [(three, "three"), (five, "five")]);
        assert_eq!(schedule.next_due(), Some(start + 8 * second));
        schedule.remove(three);
        assert_eq!(schedule.take_due(start + 100 * second), [(five, "five")], "once, however late");
        schedule.remove(five);
        assert!(schedule.take_due(start + 200 * second).is_empty());
        assert!(schedule.is_empty() && schedule.next_due().is_none() && schedule.remove(five).is_none());
    }
}
