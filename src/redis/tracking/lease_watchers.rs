//! [`LeaseWatchers`]: the leases watched over one tracking connection, without I/O.
//!
//! To watch a lease, the client queries its remaining lifetime (`PTTL`) over a connection with
//! client tracking. From then on the server announces the next change of the key, once. Every new
//! watcher queries the lease anew: the reply covers what happened before, the announcement what
//! happens later.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::redis::protocol::commands;
use crate::redis::protocol::parser::{Message, Token};
use crate::redis::protocol::routing::Redirect;

/// Added to the remaining lifetime of a lease, since the server expires it by its own clock.
const SLACK: Duration = Duration::from_millis(1);

/// When watchers of a lease wake up if another server of the cluster has the lease by now.
const MOVED_DELAY: Duration = Duration::from_millis(20);

/// The Redis key of a lock.
pub(crate) type LockName = Arc<[u8]>;

/// The watched leases and the pending queries about them.
#[derive(Default)]
pub(crate) struct LeaseWatchers {
    locks: BTreeMap<LockName, WatchedLease>,
    /// The ID of the next watcher.
    next: u64,
    /// The leases whose remaining lifetime is to be queried.
    to_query: Vec<LockName>,
    /// The queries without a reply in the order they were sent, and when they were sent.
    queries: VecDeque<(LockName, Instant)>,
    /// When the last query was sent.
    last_query: Option<Instant>,
    /// When the watched leases end.
    ends: BTreeSet<(Instant, LockName)>,
}

/// One watched lease.
#[derive(Default)]
struct WatchedLease {
    /// The watchers by ID; a waker is present once the watcher was polled.
    watchers: Vec<(u64, Option<Waker>)>,
    ends: Option<Instant>,
}

/// The wakers of watchers to wake.
///
/// Wakers run foreign code, so the caller wakes them after it has released its lock.
#[must_use]
#[derive(Default)]
pub(crate) struct WatchersWoken(Vec<Waker>);

impl WatchersWoken {
    pub(crate) fn wake(self) {
        self.0.into_iter().for_each(Waker::wake);
    }

    fn add(&mut self, watched: WatchedLease) {
        self.0.extend(watched.watchers.into_iter().filter_map(|(_, waker)| waker));
    }
}

/// Shared access to [`LeaseWatchers`] behind a lock.
pub(crate) trait SharedWatchers: Send + Sync + 'static {
    fn with_watchers<T>(&self, with: impl FnOnce(&mut LeaseWatchers) -> T) -> T;
}

/// A watcher of one lease: a future that completes when the lease may have ended.
pub(crate) struct LeaseWatch<S: SharedWatchers> {
    shared: Arc<S>,
    lock: LockName,
    id: u64,
}

impl<S: SharedWatchers> LeaseWatch<S> {
    /// Creates the future of a watcher by the ID that [`LeaseWatchers::watch`] returned.
    pub(crate) fn new(shared: &Arc<S>, lock: LockName, id: u64) -> Self {
        LeaseWatch { shared: Arc::clone(shared), lock, id }
    }
}

impl<S: SharedWatchers> Future for LeaseWatch<S> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // Cloning and dropping a waker runs foreign code, so both happen outside of the lock.
        let mut waker = Some(context.waker().clone());
        let poll = self.shared.with_watchers(|watchers| watchers.poll(&self.lock, self.id, &mut waker));
        drop(waker);
        poll
    }
}

impl<S: SharedWatchers> Drop for LeaseWatch<S> {
    fn drop(&mut self) {
        let waker = self.shared.with_watchers(|watchers| watchers.unwatch(&self.lock, self.id));
        drop(waker);
    }
}

impl LeaseWatchers {
    /// Adds a watcher of a lease, schedules a query of the lease, and returns the ID of the
    /// watcher.
    pub(crate) fn watch(&mut self, lock: &LockName) -> u64 {
        let id = self.next;
        self.next += 1;
        self.locks.entry(Arc::clone(lock)).or_default().watchers.push((id, None));
        if !self.to_query.contains(lock) {
            self.to_query.push(Arc::clone(lock));
        }
        id
    }

    /// Returns `Ready` if the lease may have ended; otherwise stores `waker` for when it may have.
    ///
    /// Leaves the previously stored waker in `waker`, for the caller to drop outside of its lock.
    pub(crate) fn poll(&mut self, lock: &LockName, id: u64, waker: &mut Option<Waker>) -> Poll<()> {
        let watchers = self.locks.get_mut(lock).map(|watched| &mut watched.watchers);
        match watchers.and_then(|watchers| watchers.iter_mut().find(|(other, _)| *other == id)) {
            None => Poll::Ready(()),
            Some((_, stored)) => {
                std::mem::swap(stored, waker);
                Poll::Pending
            }
        }
    }

    /// Removes a watcher and returns its waker, for the caller to drop outside of its lock.
    pub(crate) fn unwatch(&mut self, lock: &LockName, id: u64) -> Option<Waker> {
        let watchers = &mut self.locks.get_mut(lock)?.watchers;
        let at = watchers.iter().position(|(other, _)| *other == id)?;
        let (_, waker) = watchers.swap_remove(at);
        if watchers.is_empty() {
            let _ = self.remove(lock);
        }
        waker
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.locks.is_empty()
    }

    /// Appends the scheduled queries to `out`.
    pub(crate) fn write_queries(&mut self, now: Instant, out: &mut Vec<u8>) {
        for lock in self.to_query.drain(..) {
            if self.locks.contains_key(&lock) {
                commands::remaining(out, &lock);
                self.queries.push_back((lock, now));
                self.last_query = Some(now);
            }
        }
    }

    /// Schedules a query of all watched leases if none was sent for `every`.
    ///
    /// A dead server sends no notifications and need not close the connection, so only a missing
    /// reply reveals it.
    pub(crate) fn requery_if_silent(&mut self, now: Instant, every: Duration) {
        if self.next_requery(every).is_some_and(|at| at <= now) {
            self.to_query.extend(self.locks.keys().cloned());
        }
    }

    /// Returns when [`LeaseWatchers::requery_if_silent`] will query again.
    ///
    /// Returns `None` if no lease is watched or a query is scheduled or pending.
    pub(crate) fn next_requery(&self, every: Duration) -> Option<Instant> {
        let is_silent = self.queries.is_empty() && self.to_query.is_empty() && !self.locks.is_empty();
        self.last_query.filter(|_| is_silent).and_then(|sent| sent.checked_add(every))
    }

    /// Returns when the oldest query without a reply was sent.
    pub(crate) fn oldest_query(&self) -> Option<Instant> {
        self.queries.front().map(|(_, at)| *at)
    }

    /// Processes a reply or a push of the server and returns the watchers to wake.
    ///
    /// # Errors
    /// If the server refused a query or sent something unexpected; the connection must be closed
    /// then.
    pub(crate) fn on_message(&mut self, message: &Message<'_>, now: Instant) -> Result<WatchersWoken, Error> {
        let mut woken = WatchersWoken::default();
        match (message.is_push, &message.tokens[..]) {
            (true, [Token::Bulk(b"invalidate") | Token::Status(b"invalidate"), payload @ ..]) => match payload {
                // The null stands for all keys: the database was flushed.
                [Token::Nil] => std::mem::take(&mut self.locks).into_values().for_each(|watched| woken.add(watched)),
                keys => {
                    for key in keys {
                        let removed = if let Token::Bulk(key) = key { self.remove(key) } else { None };
                        removed.into_iter().for_each(|watched| woken.add(watched));
                    }
                }
            },
            // Pushes of other kinds were not subscribed to.
            (true, _) => {}
            (false, [Token::Int(remaining)]) => {
                let Some((lock, _)) = self.queries.pop_front() else { return Err(unexpected_message()) };
                match u64::try_from(*remaining) {
                    Ok(left) => self.set_end(&lock, now.checked_add(Duration::from_millis(left) + SLACK)),
                    Err(_) if *remaining == -1 => self.set_end(&lock, None),
                    Err(_) => self.remove(&lock).into_iter().for_each(|watched| woken.add(watched)),
                }
            }
            // The slot of the lock has moved to another server of the cluster. When the watcher
            // wakes up and tries to take the lock, a redirection leads it there.
            (false, [Token::Error(error)]) if Redirect::of(error, true).is_some() => {
                let Some((lock, _)) = self.queries.pop_front() else { return Err(unexpected_message()) };
                // Delayed, since the migration of the slot may take a while.
                self.set_end(&lock, now.checked_add(MOVED_DELAY));
            }
            (false, [Token::Error(error)]) => return Err(crate::redis::protocol::batch::server_error(error)),
            (false, _) => return Err(unexpected_message()),
        }
        if self.locks.is_empty() {
            self.ends.clear();
        }
        Ok(woken)
    }

    /// Returns when the next watched lease ends.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// Removes the leases that have ended by `now` and returns their watchers.
    pub(crate) fn expire(&mut self, now: Instant) -> WatchersWoken {
        let mut woken = WatchersWoken::default();
        while self.next_end().is_some_and(|end| end <= now) {
            let Some((_, lock)) = self.ends.pop_first() else { break };
            self.locks.remove(&lock).into_iter().for_each(|watched| woken.add(watched));
        }
        woken
    }

    /// Removes all watchers and queries and returns the watchers, since the connection is closed.
    pub(crate) fn close(&mut self) -> WatchersWoken {
        let mut woken = WatchersWoken::default();
        std::mem::take(&mut self.locks).into_values().for_each(|watched| woken.add(watched));
        self.to_query.clear();
        self.queries.clear();
        self.ends.clear();
        woken
    }

    /// Removes a lease and returns its watchers.
    fn remove(&mut self, lock: &[u8]) -> Option<WatchedLease> {
        let (lock, watched) = self.locks.remove_entry(lock)?;
        if let Some(end) = watched.ends {
            self.ends.remove(&(end, lock));
        }
        Some(watched)
    }

    /// Sets or replaces the time when a watched lease ends.
    fn set_end(&mut self, lock: &LockName, end: Option<Instant>) {
        let Some(watched) = self.locks.get_mut(lock) else { return };
        if let Some(before) = std::mem::replace(&mut watched.ends, end) {
            self.ends.remove(&(before, Arc::clone(lock)));
        }
        self.ends.extend(end.map(|end| (end, Arc::clone(lock))));
    }
}

#[cold]
fn unexpected_message() -> Error {
    Error::new(ErrorKind::Protocol, "watching a lease: unexpected reply from the server")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::protocol::parser::Messages;

    /// Lease watchers, with methods for the server's messages, and a clock that the test moves.
    struct TestConnection {
        watchers: LeaseWatchers,
        now: Instant,
    }

    impl TestConnection {
        fn new() -> Self {
            TestConnection { watchers: LeaseWatchers::default(), now: Instant::now() }
        }

        fn watch(&mut self, lock: &str) -> (LockName, u64) {
            let name = LockName::from(lock.as_bytes());
            let id = self.watchers.watch(&name);
            (name, id)
        }

        fn queries(&mut self) -> usize {
            let mut out = Vec::new();
            self.watchers.write_queries(self.now, &mut out);
            out.windows(4).filter(|part| part == b"PTTL").count()
        }

        fn receives(&mut self, sent: &str) -> Result<(), Error> {
            let mut rest = sent.as_bytes();
            let message = Messages::new(1024).cut(&mut rest)?.unwrap();
            self.watchers.on_message(&message, self.now).map(WatchersWoken::wake)
        }

        fn is_woken(&mut self, (lock, id): &(LockName, u64)) -> bool {
            self.watchers.poll(lock, *id, &mut Some(Waker::noop().clone())).is_ready()
        }
    }

    const PUSH: &str = ">2\r\n$10\r\ninvalidate\r\n";

    #[test]
    fn queries_a_lease_again_after_a_period_of_silence() {
        const EVERY: Duration = Duration::from_secs(1);
        let mut connection = TestConnection::new();
        let requeries = |connection: &mut TestConnection| {
            connection.watchers.requery_if_silent(connection.now, EVERY);
            connection.queries()
        };
        assert_eq!(
            (requeries(&mut connection), connection.watchers.next_requery(EVERY)),
            (0, None),
            "no lease is watched"
        );
        let (long, gone) = (connection.watch("a"), connection.watch("b"));
        assert_eq!(requeries(&mut connection), 2);
        connection.now += EVERY;
        assert_eq!(requeries(&mut connection), 0, "replies are pending");
        connection.receives(":9000\r\n").unwrap();
        connection.receives(":-1\r\n").unwrap();
        assert_eq!(connection.watchers.next_requery(EVERY), Some(connection.now));
        assert_eq!((requeries(&mut connection), requeries(&mut connection)), (2, 0));
        assert!(!connection.is_woken(&long) && !connection.is_woken(&gone));
        connection.receives(":8000\r\n").unwrap();
        // The lease ended without a push.
        connection.receives(":-2\r\n").unwrap();
        assert!(!connection.is_woken(&long) && connection.is_woken(&gone));
        assert_eq!(connection.watchers.next_end(), Some(connection.now + Duration::from_millis(8001)));
        assert_eq!(requeries(&mut connection), 0, "the period has not passed");
        connection.now += EVERY;
        assert_eq!(requeries(&mut connection), 1);
    }

    #[test]
    fn wakes_a_watcher_on_a_push_a_free_lease_or_the_end_of_the_lease() {
        let mut connection = TestConnection::new();
        let (pushed, free, flushed, timed) =
            (connection.watch("a"), connection.watch("b"), connection.watch("c"), connection.watch("d"));
        let endless = connection.watch("e");
        assert_eq!(connection.queries(), 5);
        assert_eq!(connection.queries(), 0, "each lease is queried once");
        for reply in [":9000\r\n", ":-2\r\n", ":9000\r\n", ":50\r\n", ":-1\r\n"] {
            connection.receives(reply).unwrap();
        }
        assert!(!connection.is_woken(&pushed) && connection.is_woken(&free) && !connection.is_woken(&flushed));
        connection.receives(&format!("{PUSH}*1\r\n$1\r\na\r\n")).unwrap();
        assert!(connection.is_woken(&pushed) && !connection.is_woken(&flushed));
        assert_eq!(connection.watchers.next_end(), Some(connection.now + Duration::from_millis(51)));
        connection.watchers.expire(connection.now + Duration::from_millis(50)).wake();
        assert!(!connection.is_woken(&timed));
        connection.watchers.expire(connection.now + Duration::from_millis(51)).wake();
        assert!(connection.is_woken(&timed) && !connection.is_woken(&endless));
        connection.receives(&format!("{PUSH}_\r\n")).unwrap();
        assert!(connection.is_woken(&flushed) && connection.is_woken(&endless) && connection.watchers.is_empty());
        assert_eq!(connection.watchers.next_end(), None);
    }

    #[test]
    fn a_later_watcher_queries_the_lease_again() {
        let mut connection = TestConnection::new();
        let first = connection.watch("a");
        assert_eq!(connection.queries(), 1);
        let second = connection.watch("a");
        // The reply to the first query may be older than the second watcher, so that one has a
        // query of its own.
        connection.receives(":9000\r\n").unwrap();
        assert_eq!(connection.queries(), 1);
        connection.receives(":-2\r\n").unwrap();
        assert!(connection.is_woken(&first) && connection.is_woken(&second));
    }

    #[test]
    fn forgets_a_watcher_that_leaves() {
        let mut connection = TestConnection::new();
        let (first, second) = (connection.watch("a"), connection.watch("a"));
        assert_eq!(connection.queries(), 1);
        connection.receives(":9000\r\n").unwrap();
        connection.watchers.unwatch(&first.0, first.1);
        assert!(!connection.is_woken(&second));
        connection.watchers.unwatch(&second.0, second.1);
        assert!(connection.watchers.is_empty() && connection.watchers.next_end().is_none());
        // A watcher that left before its query was sent causes none; the reply to a query without
        // watchers is ignored.
        let third = connection.watch("b");
        connection.watchers.unwatch(&third.0, third.1);
        assert_eq!(connection.queries(), 0);
        let fourth = connection.watch("c");
        assert_eq!(connection.queries(), 1);
        connection.watchers.unwatch(&fourth.0, fourth.1);
        connection.receives(":9000\r\n").unwrap();
        assert_eq!(connection.watchers.next_end(), None);
    }

    #[test]
    fn wakes_all_watchers_when_the_connection_closes() {
        let mut connection = TestConnection::new();
        let (first, second) = (connection.watch("a"), connection.watch("b"));
        assert_eq!(connection.queries(), 2);
        connection.receives(":9000\r\n").unwrap();
        connection.watchers.close().wake();
        assert!(connection.is_woken(&first) && connection.is_woken(&second));
        assert!(
            connection.watchers.is_empty() && connection.watchers.oldest_query().is_none() && connection.queries() == 0
        );
        assert!(connection.receives(":1\r\n").is_err(), "no query is pending");
        assert!(connection.receives("-ERR no\r\n").is_err());
        connection.receives(">2\r\n+message\r\n+a\r\n").unwrap();
    }
}
