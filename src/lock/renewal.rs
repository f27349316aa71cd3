//! Renews leases while their holders create: one thread does so for all holders of a process that are threads, and one
//! task in each runtime for those that are tasks.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::panic::AssertUnwindSafe;
#[cfg(feature = "tokio")]
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
#[cfg(feature = "tokio")]
use tokio::sync::Notify;

/// What is to be done for leases every so often, over a backend that blocks: whether it is to be done again.
pub(crate) trait RenewNow: Send + Sync {
    fn renew(&self) -> bool;
}

/// The same by a task.
#[cfg(feature = "tokio")]
pub(crate) trait RenewLater: Send + Sync {
    fn renew(self: Arc<Self>) -> Pin<Box<dyn Future<Output = bool> + Send>>;
}

/// Leases: those that somebody holds, as long as he does; or those that belong to nobody any more.
pub(crate) enum Leases<L: ?Sized> {
    Held(Weak<L>),
    Left(Arc<L>),
}

impl<L: ?Sized> Leases<L> {
    /// `None` when their holder has let them go.
    fn get(&self) -> Option<Arc<L>> {
        match self {
            Leases::Held(leases) => leases.upgrade(),
            Leases::Left(leases) => Some(Arc::clone(leases)),
        }
    }
}

impl<L: ?Sized> Clone for Leases<L> {
    fn clone(&self) -> Self {
        match self {
            Leases::Held(leases) => Leases::Held(Weak::clone(leases)),
            Leases::Left(leases) => Leases::Left(Arc::clone(leases)),
        }
    }
}

/// As long as this is there, leases are renewed.
pub(crate) struct Kept {
    by: Arc<dyn End>,
    number: u64,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.by.end(self.number);
    }
}

/// Ends what is done every so often.
trait End: Send + Sync {
    fn end(&self, number: u64);
}

/// How long whoever renews stays when there is nothing to renew any more.
const IDLE: Duration = Duration::from_secs(10);

/// How many jobs that are gone may stay until they would be due.
const GONE: usize = 64;

/// What is to be renewed, and when. What was needed for many jobs is used again.
struct Schedule<J> {
    jobs: HashMap<u64, Job<J>, ahash::RandomState>,
    /// When each job is due, the first one first; with some that are gone.
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    next: u64,
    /// Whether there is a thread or a task that looks at it.
    is_kept: bool,
}

struct Job<J> {
    period: Duration,
    what: J,
}

impl<J: Clone> Schedule<J> {
    fn new() -> Self {
        // So many that a few holders at a time need no more.
        Schedule { jobs: HashMap::default(), due: BinaryHeap::with_capacity(2 * GONE), next: 0, is_kept: false }
    }

    /// Does `what` every `period` from now on: its number.
    fn add(&mut self, now: Instant, period: Duration, what: J) -> u64 {
        let number = self.next;
        self.next += 1;
        // A time that no clock can tell does not come.
        if let Some(due) = now.checked_add(period) {
            self.jobs.insert(number, Job { period, what });
            self.due.push(Reverse((due, number)));
        }
        number
    }

    fn remove(&mut self, number: u64) -> Option<Job<J>> {
        let job = self.jobs.remove(&number);
        if self.due.len() > 2 * self.jobs.len() + GONE {
            self.due.retain(|Reverse((_, number))| self.jobs.contains_key(number));
        }
        job
    }

    fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// When the first job is due, or one that is gone would be.
    fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// What is due by now. It is due again a period later.
    fn take_due(&mut self, now: Instant) -> Vec<(u64, J)> {
        let mut taken = Vec::new();
        // What is due at once again, with a period of nothing, waits for the next time.
        let mut due_again = Vec::new();
        while self.next_due().is_some_and(|due| due <= now) {
            let Some(Reverse((_, number))) = self.due.pop() else { break };
            let Some(job) = self.jobs.get(&number) else { continue };
            taken.push((number, job.what.clone()));
            due_again.extend(now.checked_add(job.period).map(|due| Reverse((due, number))));
        }
        self.due.extend(due_again);
        taken
    }
}

/// A schedule, and what wakes who looks at it.
struct Renewals<J, W> {
    schedule: Mutex<Schedule<J>>,
    changed: W,
}

impl<J: Clone, W> Renewals<J, W> {
    fn new(changed: W) -> Self {
        Renewals { schedule: Mutex::new(Schedule::new()), changed }
    }

    /// Renews from now on. `rouse` tells who looks at the schedule that what is due first has changed; with `start`
    /// somebody begins to look at it.
    fn keep(
        self: &Arc<Self>,
        now: Instant,
        period: Duration,
        what: J,
        rouse: impl FnOnce(&W),
        start: impl FnOnce(&Arc<Self>) -> bool,
    ) -> u64 {
        let mut schedule = self.schedule.lock();
        let before = schedule.next_due();
        let number = schedule.add(now, period, what);
        let (is_first, was_kept) = (schedule.next_due() != before, schedule.is_kept);
        schedule.is_kept = true;
        drop(schedule);
        if !was_kept && !start(self) {
            self.schedule.lock().is_kept = false;
        } else if is_first {
            rouse(&self.changed);
        }
        number
    }
}

impl<J: Clone, W> Renewals<J, W>
where
    Self: End + 'static,
{
    fn kept(self: &Arc<Self>, number: u64) -> Kept {
        Kept { by: Arc::clone(self) as Arc<dyn End>, number }
    }
}

impl<J: Clone + Send, W: Send + Sync> End for Renewals<J, W> {
    fn end(&self, number: u64) {
        // What it was about may end with it, so not under the lock.
        let job = self.schedule.lock().remove(number);
        drop(job);
    }
}

type ByThread = Renewals<Leases<dyn RenewNow>, Condvar>;

/// Renews leases by the thread of this process, as long as what is returned is there.
pub(crate) fn keep_by_thread(period: Duration, what: Weak<dyn RenewNow>) -> Kept {
    let (renewals, number) = schedule_by_thread(period, Leases::Held(what));
    renewals.kept(number)
}

/// Lets the thread of this process do something for leases until that is done.
pub(crate) fn finish_by_thread(period: Duration, what: Arc<dyn RenewNow>) {
    schedule_by_thread(period, Leases::Left(what));
}

fn schedule_by_thread(period: Duration, what: Leases<dyn RenewNow>) -> (&'static Arc<ByThread>, u64) {
    static RENEWALS: LazyLock<Arc<ByThread>> = LazyLock::new(|| Arc::new(Renewals::new(Condvar::new())));
    let rouse = |changed: &Condvar| {
        changed.notify_one();
    };
    let start = |renewals: &Arc<ByThread>| {
        // Where there is no thread to be had, leases end when their time is over.
        start_thread(Keeper { renewals: Arc::clone(renewals), looks: true })
    };
    (&RENEWALS, RENEWALS.keep(Instant::now(), period, what, rouse, start))
}

/// Whoever looks at a schedule. However that ends, the next one who comes starts another.
struct Keeper<J: Clone, W> {
    renewals: Arc<Renewals<J, W>>,
    /// Whether it still does.
    looks: bool,
}

impl<J: Clone, W> Keeper<J, W> {
    /// Ends if there is nothing to renew. Said under the lock, so that whoever comes after that starts another.
    fn leave(&mut self) -> bool {
        let mut schedule = self.renewals.schedule.lock();
        self.looks = !schedule.is_empty();
        schedule.is_kept = self.looks;
        !self.looks
    }
}

impl<J: Clone, W> Drop for Keeper<J, W> {
    fn drop(&mut self) {
        if self.looks {
            self.renewals.schedule.lock().is_kept = false;
        }
    }
}

fn renew_by_thread(mut keeper: Keeper<Leases<dyn RenewNow>, Condvar>) {
    loop {
        let mut schedule = keeper.renewals.schedule.lock();
        let due = schedule.take_due(Instant::now());
        let (next, others) = (schedule.next_due(), schedule.jobs.len() > 1);
        if !due.is_empty() {
            drop(schedule);
            // A server that hangs should not cost the leases of others: another thread looks at the schedule meanwhile, and
            // what is due at once is divided among some.
            let is_alone = !others || !keeper.hand_on();
            thread::scope(|scope| {
                let renewals = &keeper.renewals;
                let mut shares = due.chunks(due.len().div_ceil(MOST_AT_ONCE));
                let own = shares.next();
                for share in shares {
                    if thread::Builder::new().spawn_scoped(scope, || renew_all(renewals, share)).is_err() {
                        renew_all(renewals, share);
                    }
                }
                own.into_iter().for_each(|own| renew_all(renewals, own));
            });
            if !is_alone {
                return;
            }
            continue;
        }
        let until = next.unwrap_or_else(|| Instant::now() + IDLE);
        let timed_out = keeper.renewals.changed.wait_until(&mut schedule, until).timed_out();
        drop(schedule);
        if next.is_none() && timed_out && keeper.leave() {
            return;
        }
    }
}

/// How many threads renew at once what is due at once.
const MOST_AT_ONCE: usize = 8;

fn renew_all(renewals: &ByThread, due: &[(u64, Leases<dyn RenewNow>)]) {
    for (number, leases) in due {
        let Some(leases) = leases.get() else { continue };
        // What a backend panics with has no caller to tell.
        let again = std::panic::catch_unwind(AssertUnwindSafe(|| leases.renew()));
        if !again.unwrap_or(false) {
            renewals.end(*number);
        }
    }
}

impl Keeper<Leases<dyn RenewNow>, Condvar> {
    /// Another thread goes on; this one does not look at the schedule any more. Not so where there is none to be had.
    fn hand_on(&mut self) -> bool {
        let next = Keeper { renewals: Arc::clone(&self.renewals), looks: true };
        self.looks = false;
        let handed_on = start_thread(next);
        if !handed_on {
            // Whoever was to go on has said that nobody does.
            self.looks = true;
            self.renewals.schedule.lock().is_kept = true;
        }
        handed_on
    }
}

fn start_thread(keeper: Keeper<Leases<dyn RenewNow>, Condvar>) -> bool {
    thread::Builder::new().name("dogpile-renew".into()).spawn(move || renew_by_thread(keeper)).is_ok()
}

#[cfg(feature = "tokio")]
type ByTask = Renewals<Leases<dyn RenewLater>, Notify>;

/// Renews leases by the task of this runtime, as long as what is returned is there. `None` outside of one.
#[cfg(feature = "tokio")]
pub(crate) fn keep_by_task(period: Duration, what: Weak<dyn RenewLater>) -> Option<Kept> {
    let (renewals, number) = schedule_by_task(period, Leases::Held(what))?;
    Some(renewals.kept(number))
}

/// Lets the task of this runtime do something for leases until that is done.
#[cfg(feature = "tokio")]
pub(crate) fn finish_by_task(period: Duration, what: Arc<dyn RenewLater>) {
    schedule_by_task(period, Leases::Left(what));
}

#[cfg(feature = "tokio")]
fn schedule_by_task(period: Duration, what: Leases<dyn RenewLater>) -> Option<(Arc<ByTask>, u64)> {
    static RENEWALS: Mutex<Vec<(tokio::runtime::Id, Weak<ByTask>)>> = Mutex::new(Vec::new());
    let runtime = tokio::runtime::Handle::try_current().ok()?;
    let mut all = RENEWALS.lock();
    let of_this = all.iter().find(|(id, _)| *id == runtime.id()).and_then(|(_, renewals)| renewals.upgrade());
    let renewals = of_this.unwrap_or_else(|| {
        all.retain(|(_, renewals)| renewals.strong_count() > 0);
        let renewals = Arc::new(Renewals::new(Notify::new()));
        all.push((runtime.id(), Arc::downgrade(&renewals)));
        renewals
    });
    drop(all);
    let start = |renewals: &Arc<ByTask>| {
        runtime.spawn(renew_by_task(Keeper { renewals: Arc::clone(renewals), looks: true }));
        true
    };
    let now = tokio::time::Instant::now().into_std();
    let number = renewals.keep(now, period, what, Notify::notify_one, start);
    Some((renewals, number))
}

#[cfg(feature = "tokio")]
async fn renew_by_task(mut keeper: Keeper<Leases<dyn RenewLater>, Notify>) {
    use tokio::time::{Instant, timeout_at};
    loop {
        let (due, next) = {
            let mut schedule = keeper.renewals.schedule.lock();
            (schedule.take_due(Instant::now().into_std()), schedule.next_due())
        };
        // Each by itself: a server that does not answer should not keep others waiting.
        for (number, leases) in due {
            let (renewals, Some(leases)) = (Arc::clone(&keeper.renewals), leases.get()) else { continue };
            tokio::spawn(async move {
                if !leases.renew().await {
                    renewals.end(number);
                }
            });
        }
        let until = next.map_or_else(|| Instant::now() + IDLE, Instant::from_std);
        let timed_out = timeout_at(until, keeper.renewals.changed.notified()).await.is_err();
        if next.is_none() && timed_out && keeper.leave() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_again_a_period_later_until_it_is_removed() {
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
