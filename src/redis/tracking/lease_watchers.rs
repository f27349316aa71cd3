//! [`Watches`]: which leases are watched over a listening connection, and who is woken when. No I/O happens here.
//!
//! A lease is watched by asking for its remaining life over a connection with tracking: the server then tells, once, when
//! the key changes. Whoever watches a lease asks anew, so what happened before he did is in the answer, and what happens
//! after that is pushed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::redis::protocol::commands;
use crate::redis::protocol::parser::{Message, Token};
use crate::redis::protocol::routing::Redirect;

/// A server ends a lease when its time is over, by a clock of its own; whoever comes a bit later finds it ended.
const SLACK: Duration = Duration::from_millis(1);

/// How long it takes until somebody looks for a lease that is at another server.
const ELSEWHERE: Duration = Duration::from_millis(20);

/// The Redis key of a lock.
pub(crate) type Name = Arc<[u8]>;

/// Which leases are watched, and what was asked about them.
#[derive(Default)]
pub(crate) struct Watches {
    locks: BTreeMap<Name, Watched>,
    /// Numbers the watchers.
    next: u64,
    /// Leases whose remaining life is to be asked for.
    to_ask: Vec<Name>,
    /// Those that were asked for, in that order, and when.
    asked: VecDeque<(Name, Instant)>,
    /// When something was asked last.
    asked_last: Option<Instant>,
    /// When leases end that are watched.
    ends: BTreeSet<(Instant, Name)>,
}

/// One lease that is watched.
#[derive(Default)]
struct Watched {
    watchers: Vec<(u64, Option<Waker>)>,
    ends: Option<Instant>,
}

/// Who is to be woken. Wakers run code that is not ours, so they are called when no lock is held.
#[must_use]
#[derive(Default)]
pub(crate) struct Woken(Vec<Waker>);

impl Woken {
    pub(crate) fn wake(self) {
        self.0.into_iter().for_each(Waker::wake);
    }

    fn add(&mut self, watched: Watched) {
        self.0.extend(watched.watchers.into_iter().filter_map(|(_, waker)| waker));
    }
}

/// Whoever keeps watches, behind a lock.
pub(crate) trait Keeps: Send + Sync + 'static {
    fn watches<T>(&self, with: impl FnOnce(&mut Watches) -> T) -> T;
}

/// One who watches a lease.
pub(crate) struct Watching<K: Keeps> {
    keeper: Arc<K>,
    lock: Name,
    number: u64,
}

impl<K: Keeps> Watching<K> {
    /// The watcher of this number.
    pub(crate) fn new(keeper: &Arc<K>, lock: Name, number: u64) -> Self {
        Watching { keeper: Arc::clone(keeper), lock, number }
    }
}

impl<K: Keeps> Future for Watching<K> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // Wakers run code that is not ours when they are cloned and dropped, so both happen outside of the lock.
        let mut waker = Some(context.waker().clone());
        let poll = self.keeper.watches(|watches| watches.poll(&self.lock, self.number, &mut waker));
        drop(waker);
        poll
    }
}

impl<K: Keeps> Drop for Watching<K> {
    fn drop(&mut self) {
        let waker = self.keeper.watches(|watches| watches.leave(&self.lock, self.number));
        drop(waker);
    }
}

impl Watches {
    /// A new watcher of a lease: its number.
    pub(crate) fn watch(&mut self, lock: &Name) -> u64 {
        let number = self.next;
        self.next += 1;
        self.locks.entry(Arc::clone(lock)).or_default().watchers.push((number, None));
        if !self.to_ask.contains(lock) {
            self.to_ask.push(Arc::clone(lock));
        }
        number
    }

    /// Whether something may have happened to the lease; if not, `waker` is called when it may have. Leaves a waker there
    /// that is not needed any more.
    pub(crate) fn poll(&mut self, lock: &Name, number: u64, waker: &mut Option<Waker>) -> Poll<()> {
        let watchers = self.locks.get_mut(lock).map(|watched| &mut watched.watchers);
        match watchers.and_then(|watchers| watchers.iter_mut().find(|(other, _)| *other == number)) {
            None => Poll::Ready(()),
            Some((_, before)) => {
                std::mem::swap(before, waker);
                Poll::Pending
            }
        }
    }

    /// A watcher that is not interested any more.
    pub(crate) fn leave(&mut self, lock: &Name, number: u64) -> Option<Waker> {
        let watchers = &mut self.locks.get_mut(lock)?.watchers;
        let at = watchers.iter().position(|(other, _)| *other == number)?;
        let (_, waker) = watchers.swap_remove(at);
        if watchers.is_empty() {
            let _ = self.end(lock);
        }
        waker
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.locks.is_empty()
    }

    /// Appends what is to be asked of the server.
    pub(crate) fn ask(&mut self, now: Instant, out: &mut Vec<u8>) {
        for lock in self.to_ask.drain(..) {
            if self.locks.contains_key(&lock) {
                commands::remaining(out, &lock);
                self.asked.push_back((lock, now));
                self.asked_last = Some(now);
            }
        }
    }

    /// Has all watched leases asked for once more, when nothing was for so long: a server that is there no more tells
    /// nobody, and does not say so either.
    pub(crate) fn ask_again(&mut self, now: Instant, every: Duration) {
        if self.asks_again_at(every).is_some_and(|at| at <= now) {
            self.to_ask.extend(self.locks.keys().cloned());
        }
    }

    /// When that is, if somebody watches and no answer is awaited.
    pub(crate) fn asks_again_at(&self, every: Duration) -> Option<Instant> {
        let is_silent = self.asked.is_empty() && self.to_ask.is_empty() && !self.locks.is_empty();
        self.asked_last.filter(|_| is_silent).and_then(|asked| asked.checked_add(every))
    }

    /// When the oldest question was asked that was not answered.
    pub(crate) fn asked_since(&self) -> Option<Instant> {
        self.asked.front().map(|(_, at)| *at)
    }

    /// Takes what the server said.
    pub(crate) fn heard(&mut self, message: &Message<'_>, now: Instant) -> Result<Woken, Error> {
        let mut woken = Woken::default();
        match (message.is_push, &message.tokens[..]) {
            (true, [Token::Bulk(b"invalidate") | Token::Status(b"invalidate"), what @ ..]) => match what {
                // Everything was flushed.
                [Token::Nil] => std::mem::take(&mut self.locks).into_values().for_each(|watched| woken.add(watched)),
                keys => {
                    for key in keys {
                        let ended = if let Token::Bulk(key) = key { self.end(key) } else { None };
                        ended.into_iter().for_each(|watched| woken.add(watched));
                    }
                }
            },
            // Nobody asked for any other.
            (true, _) => {}
            (false, [Token::Int(remaining)]) => {
                let Some((lock, _)) = self.asked.pop_front() else { return Err(unasked()) };
                match u64::try_from(*remaining) {
                    Ok(left) => self.ends_at(&lock, now.checked_add(Duration::from_millis(left) + SLACK)),
                    Err(_) if *remaining == -1 => self.ends_at(&lock, None),
                    Err(_) => self.end(&lock).into_iter().for_each(|watched| woken.add(watched)),
                }
            }
            // The slot of the lock is at another server of the cluster by now: whoever asks for it there is told where.
            (false, [Token::Error(error)]) if Redirect::of(error, true).is_some() => {
                let Some((lock, _)) = self.asked.pop_front() else { return Err(unasked()) };
                // Not at once, since it may take a while until that is so for good.
                self.ends_at(&lock, now.checked_add(ELSEWHERE));
            }
            (false, [Token::Error(error)]) => return Err(crate::redis::protocol::batch::server_error(error)),
            (false, _) => return Err(unasked()),
        }
        if self.locks.is_empty() {
            self.ends.clear();
        }
        Ok(woken)
    }

    /// When the first lease ends that is watched.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// Wakes the watchers of leases that have ended by now.
    pub(crate) fn pass(&mut self, now: Instant) -> Woken {
        let mut woken = Woken::default();
        while self.next_end().is_some_and(|end| end <= now) {
            let Some((_, lock)) = self.ends.pop_first() else { break };
            self.locks.remove(&lock).into_iter().for_each(|watched| woken.add(watched));
        }
        woken
    }

    /// Nothing will be heard any more over this connection: wakes everybody.
    pub(crate) fn deafen(&mut self) -> Woken {
        let mut woken = Woken::default();
        std::mem::take(&mut self.locks).into_values().for_each(|watched| woken.add(watched));
        self.to_ask.clear();
        self.asked.clear();
        self.ends.clear();
        woken
    }

    /// Nobody watches the lease any more; who did.
    fn end(&mut self, lock: &[u8]) -> Option<Watched> {
        let (lock, watched) = self.locks.remove_entry(lock)?;
        if let Some(end) = watched.ends {
            self.ends.remove(&(end, lock));
        }
        Some(watched)
    }

    fn ends_at(&mut self, lock: &Name, end: Option<Instant>) {
        let Some(watched) = self.locks.get_mut(lock) else { return };
        if let Some(before) = std::mem::replace(&mut watched.ends, end) {
            self.ends.remove(&(before, Arc::clone(lock)));
        }
        self.ends.extend(end.map(|end| (end, Arc::clone(lock))));
    }
}

#[cold]
fn unasked() -> Error {
    Error::new(ErrorKind::Protocol, "the server said something that it was not asked about a lease")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::protocol::parser::Messages;

    /// Watches, what a server says to them, and a clock that stands.
    struct Ear {
        watches: Watches,
        now: Instant,
    }

    impl Ear {
        fn new() -> Self {
            Ear { watches: Watches::default(), now: Instant::now() }
        }

        fn watch(&mut self, lock: &str) -> (Name, u64) {
            let name = Name::from(lock.as_bytes());
            let number = self.watches.watch(&name);
            (name, number)
        }

        fn asks(&mut self) -> usize {
            let mut out = Vec::new();
            self.watches.ask(self.now, &mut out);
            out.windows(4).filter(|part| part == b"PTTL").count()
        }

        fn hears(&mut self, said: &str) -> Result<(), Error> {
            let mut rest = said.as_bytes();
            let message = Messages::new(1024).cut(&mut rest)?.unwrap();
            self.watches.heard(&message, self.now).map(Woken::wake)
        }

        fn is_woken(&mut self, (lock, number): &(Name, u64)) -> bool {
            self.watches.poll(lock, *number, &mut Some(Waker::noop().clone())).is_ready()
        }
    }

    const PUSH: &str = ">2\r\n$10\r\ninvalidate\r\n";

    #[test]
    fn what_is_watched_for_long_is_asked_for_again() {
        const EVERY: Duration = Duration::from_secs(1);
        let mut ear = Ear::new();
        let asks_again = |ear: &mut Ear| {
            ear.watches.ask_again(ear.now, EVERY);
            ear.asks()
        };
        assert_eq!((asks_again(&mut ear), ear.watches.asks_again_at(EVERY)), (0, None), "nobody watches");
        let (long, gone) = (ear.watch("a"), ear.watch("b"));
        assert_eq!(asks_again(&mut ear), 2);
        ear.now += EVERY;
        assert_eq!(asks_again(&mut ear), 0, "the answers are awaited");
        ear.hears(":9000\r\n").unwrap();
        ear.hears(":-1\r\n").unwrap();
        assert_eq!(ear.watches.asks_again_at(EVERY), Some(ear.now));
        assert_eq!((asks_again(&mut ear), asks_again(&mut ear)), (2, 0));
        assert!(!ear.is_woken(&long) && !ear.is_woken(&gone));
        ear.hears(":8000\r\n").unwrap();
        // It was not told of.
        ear.hears(":-2\r\n").unwrap();
        assert!(!ear.is_woken(&long) && ear.is_woken(&gone));
        assert_eq!(ear.watches.next_end(), Some(ear.now + Duration::from_millis(8001)));
        assert_eq!(asks_again(&mut ear), 0, "it is too soon");
        ear.now += EVERY;
        assert_eq!(asks_again(&mut ear), 1);
    }

    #[test]
    fn who_watches_is_woken_by_a_push_a_free_lease_or_its_end() {
        let mut ear = Ear::new();
        let (pushed, free, flushed, timed) = (ear.watch("a"), ear.watch("b"), ear.watch("c"), ear.watch("d"));
        let endless = ear.watch("e");
        assert_eq!(ear.asks(), 5);
        assert_eq!(ear.asks(), 0, "each is asked for once");
        for said in [":9000\r\n", ":-2\r\n", ":9000\r\n", ":50\r\n", ":-1\r\n"] {
            ear.hears(said).unwrap();
        }
        assert!(!ear.is_woken(&pushed) && ear.is_woken(&free) && !ear.is_woken(&flushed));
        ear.hears(&format!("{PUSH}*1\r\n$1\r\na\r\n")).unwrap();
        assert!(ear.is_woken(&pushed) && !ear.is_woken(&flushed));
        assert_eq!(ear.watches.next_end(), Some(ear.now + Duration::from_millis(51)));
        ear.watches.pass(ear.now + Duration::from_millis(50)).wake();
        assert!(!ear.is_woken(&timed));
        ear.watches.pass(ear.now + Duration::from_millis(51)).wake();
        assert!(ear.is_woken(&timed) && !ear.is_woken(&endless));
        ear.hears(&format!("{PUSH}_\r\n")).unwrap();
        assert!(ear.is_woken(&flushed) && ear.is_woken(&endless) && ear.watches.is_empty());
        assert_eq!(ear.watches.next_end(), None);
    }

    #[test]
    fn who_comes_later_asks_again() {
        let mut ear = Ear::new();
        let first = ear.watch("a");
        assert_eq!(ear.asks(), 1);
        let second = ear.watch("a");
        // What was asked before this one came says nothing about what happened in between, but its question does.
        ear.hears(":9000\r\n").unwrap();
        assert_eq!(ear.asks(), 1);
        ear.hears(":-2\r\n").unwrap();
        assert!(ear.is_woken(&first) && ear.is_woken(&second));
    }

    #[test]
    fn who_leaves_is_forgotten() {
        let mut ear = Ear::new();
        let (first, second) = (ear.watch("a"), ear.watch("a"));
        assert_eq!(ear.asks(), 1);
        ear.hears(":9000\r\n").unwrap();
        ear.watches.leave(&first.0, first.1);
        assert!(!ear.is_woken(&second));
        ear.watches.leave(&second.0, second.1);
        assert!(ear.watches.is_empty() && ear.watches.next_end().is_none());
        // One that left before it was asked for is not asked for, and an answer that nobody waits for is read over.
        let third = ear.watch("b");
        ear.watches.leave(&third.0, third.1);
        assert_eq!(ear.asks(), 0);
        let fourth = ear.watch("c");
        assert_eq!(ear.asks(), 1);
        ear.watches.leave(&fourth.0, fourth.1);
        ear.hears(":9000\r\n").unwrap();
        assert_eq!(ear.watches.next_end(), None);
    }

    #[test]
    fn all_are_woken_when_nothing_is_heard_any_more() {
        let mut ear = Ear::new();
        let (first, second) = (ear.watch("a"), ear.watch("b"));
        assert_eq!(ear.asks(), 2);
        ear.hears(":9000\r\n").unwrap();
        ear.watches.deafen().wake();
        assert!(ear.is_woken(&first) && ear.is_woken(&second));
        assert!(ear.watches.is_empty() && ear.watches.asked_since().is_none() && ear.asks() == 0);
        assert!(ear.hears(":1\r\n").is_err(), "nobody asked");
        assert!(ear.hears("-ERR no\r\n").is_err());
        ear.hears(">2\r\n+message\r\n+a\r\n").unwrap();
    }
}
