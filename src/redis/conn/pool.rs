//! A bounded pool of blocking connections: the last one used is the first one taken.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::{Error, ErrorKind};
use crate::redis::conn::backoff;
use crate::redis::protocol::parser::Receive;
use crate::redis::transport::Access;

/// A connection that sends what stands in its output buffer.
pub(crate) trait PoolConnection {
    /// Commands, to be sent.
    fn output(&mut self) -> &mut Vec<u8>;

    /// Whether the other end has closed the connection, as far as is known without asking it.
    fn is_closed(&mut self) -> bool;

    /// Sends the output. After a failure the connection must not be used again.
    fn send(&mut self) -> Result<(), Failed>;

    /// Hands the tokens of so many replies to `receive`. After a failure the connection must not be used again, since its
    /// replies would be taken for those of the next request.
    fn receive(&mut self, replies: usize, receive: &mut impl Receive) -> Result<(), Failed>;

    #[inline(always)]
    fn exchange(&mut self, replies: usize, receive: &mut impl Receive) -> Result<(), Failed> {
        self.send()?;
        self.receive(replies, receive)
    }
}

impl<W: PoolConnection> PoolConnection for Box<W> {
    #[inline]
    fn output(&mut self) -> &mut Vec<u8> {
        (**self).output()
    }

    fn is_closed(&mut self) -> bool {
        (**self).is_closed()
    }

    #[inline(always)]
    fn send(&mut self) -> Result<(), Failed> {
        (**self).send()
    }

    #[inline(always)]
    fn receive(&mut self, replies: usize, receive: &mut impl Receive) -> Result<(), Failed> {
        (**self).receive(replies, receive)
    }
}

/// Why an exchange failed.
pub(crate) struct Failed {
    pub(crate) error: Error,
    /// Whether the connection broke before any of the reply was handed on.
    pub(crate) broke_early: bool,
}

/// The moment so much from now.
pub(crate) fn from_now(time: Duration) -> Instant {
    later(Instant::now(), time)
}

/// The moment so much later; a century later at most, since clocks cannot tell any time.
pub(crate) fn later(moment: Instant, time: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    moment + time.min(CENTURY)
}

/// Connections that are open and idle, and how many there may be. A server that could not be reached is left alone for a
/// while, in which nobody waits for it.
pub(crate) struct Pool<C> {
    state: Mutex<PoolState<C>>,
    returned: Condvar,
    max: usize,
    patience: Duration,
    /// The longest time to leave a server alone.
    max_backoff: Duration,
}

struct PoolState<C> {
    idle: Vec<C>,
    /// Connections that exist or are being made, idle or in use.
    open: usize,
    /// Callers that wait for one to come back.
    waiting: usize,
    health: Health,
    /// How often something was learnt about the server by connecting.
    learnt: u64,
    /// Somebody connects to a server that is not fine.
    is_tried: bool,
}

/// What is known of the server.
enum Health {
    Fine,
    /// A request was not answered. One caller connects, and the others wait to see what comes of it.
    Suspect,
    /// It could not be connected to so many times, and is left alone until then.
    Down(u32, Error, Instant),
}

impl<C> Pool<C> {
    /// A pool of at most `max` connections, in which a caller waits for `patience` when all are in use.
    pub(crate) fn new(max: usize, patience: Duration, max_backoff: Duration) -> Self {
        let state =
            PoolState { idle: Vec::new(), open: 0, waiting: 0, health: Health::Fine, learnt: 0, is_tried: false };
        Pool { state: Mutex::new(state), returned: Condvar::new(), max, patience, max_backoff }
    }

    /// An idle connection, or a new one by `connect`.
    #[inline(always)]
    fn take(&self, connect: impl FnOnce() -> Result<C, Error>) -> Result<PoolGuard<'_, C>, Error> {
        // The guard must go before a slow connect.
        let idle = self.lock().idle.pop();
        match idle {
            Some(connection) => Ok(PoolGuard { pool: self, connection: Some(connection), opened: Opened::Before }),
            None => self.take_slow(connect),
        }
    }

    /// The same for a request: what goes once only does not go to a connection that is known to be closed.
    #[inline(always)]
    fn take_for(&self, access: Access, connect: impl Fn() -> Result<C, Error>) -> Result<PoolGuard<'_, C>, Error>
    where
        C: PoolConnection,
    {
        let mut taken = self.take(&connect)?;
        while access == Access::Once && !taken.is_new() && taken.get().is_closed() {
            // Its place is needed for the next one.
            drop(taken);
            taken = self.take(&connect)?;
        }
        Ok(taken)
    }

    #[cold]
    fn take_slow(&self, connect: impl FnOnce() -> Result<C, Error>) -> Result<PoolGuard<'_, C>, Error> {
        let deadline = from_now(self.patience);
        let mut state = self.lock();
        loop {
            if let Some(connection) = state.idle.pop() {
                return Ok(PoolGuard { pool: self, connection: Some(connection), opened: Opened::Before });
            }
            if let Health::Down(_, error, until) = &state.health
                && (state.is_tried || Instant::now() < *until)
            {
                return Err(backoff::left_alone(error));
            }
            if state.open < self.max && !state.is_tried {
                state.open += 1;
                let learnt = state.learnt;
                let opened = if matches!(state.health, Health::Fine) { Opened::Now } else { Opened::ToTry };
                state.is_tried = opened == Opened::ToTry;
                drop(state);
                // Gives the place back when connecting fails or panics.
                let mut taken = PoolGuard { pool: self, connection: None, opened };
                let connected = connect();
                self.learn(learnt, connected.as_ref().err());
                taken.connection = Some(connected?);
                taken.stop_trying();
                return Ok(taken);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!("all {} connections were in use for {:?}", self.max, self.patience),
                ));
            }
            state.waiting += 1;
            self.returned.wait_for(&mut state, left);
            state.waiting -= 1;
        }
    }

    /// Writes, sends and takes the replies over one connection; and once more over a new one, when an idle connection
    /// turns out to be broken.
    #[inline]
    pub(crate) fn exchange(
        &self,
        access: Access,
        connect: impl Fn() -> Result<C, Error>,
        write: impl FnOnce(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error>
    where
        C: PoolConnection,
    {
        let mut taken = self.take_for(access, &connect)?;
        let output = taken.get().output();
        output.clear();
        let replies = write(output);
        if replies == 0 {
            taken.give_back();
            return Ok(());
        }
        let mut twice = access != Access::Once;
        loop {
            match taken.get().exchange(replies, receive) {
                Ok(()) => {
                    taken.give_back();
                    return Ok(());
                }
                Err(failed) => taken = self.replace(failed, taken, std::mem::take(&mut twice), &connect)?,
            }
        }
    }

    /// The first half of an [exchange](Pool::exchange): takes a connection, writes and sends. For requests that are sent
    /// over several connections before the replies are waited for.
    pub(crate) fn begin(
        &self,
        access: Access,
        connect: impl Fn() -> Result<C, Error>,
        write: impl FnOnce(&mut Vec<u8>) -> usize,
    ) -> Result<BegunExchange<'_, C>, Error>
    where
        C: PoolConnection,
    {
        let mut taken = self.take_for(access, &connect)?;
        let output = taken.get().output();
        output.clear();
        let replies = write(output);
        let mut begun = BegunExchange { taken, replies, twice: access != Access::Once };
        while let Err(failed) = begun.taken.get().send() {
            begun = begun.replace(failed, &connect)?;
        }
        Ok(begun)
    }

    /// What follows a failed exchange: another connection to send the same over, if it may go twice and that may help.
    #[cold]
    fn replace(
        &self,
        failed: Failed,
        mut broken: PoolGuard<'_, C>,
        twice: bool,
        connect: impl Fn() -> Result<C, Error>,
    ) -> Result<PoolGuard<'_, C>, Error>
    where
        C: PoolConnection,
    {
        let output = std::mem::take(broken.get().output());
        let mut taken = self.another(failed, broken, twice, connect)?;
        *taken.get().output() = output;
        Ok(taken)
    }

    /// Another connection in the place of one that broke.
    #[cold]
    fn another(
        &self,
        failed: Failed,
        broken: PoolGuard<'_, C>,
        twice: bool,
        connect: impl Fn() -> Result<C, Error>,
    ) -> Result<PoolGuard<'_, C>, Error> {
        let was_new = broken.is_new();
        drop(broken);
        // What broke or froze one connection has most likely broken the idle ones too: they are not tried one by one.
        if failed.error.is_out_of_reach() {
            self.close_idle(failed.error.kind() == ErrorKind::Timeout);
        }
        // A connection that was opened just now says something about the server; one that had been idle does not.
        if was_new || !failed.broke_early || !twice {
            return Err(failed.error);
        }
        self.take(connect)
    }

    /// Takes what came of connecting, begun when so much had been `learnt`.
    #[cold]
    fn learn(&self, learnt: u64, error: Option<&Error>) {
        let mut state = self.lock();
        let failures = match &state.health {
            Health::Down(failures, ..) => *failures,
            _ => 0,
        };
        match error {
            // Of callers that fail together one counts, and none who began before another one succeeded.
            Some(error) => {
                if state.learnt == learnt {
                    let failures = failures.saturating_add(1);
                    let until = Instant::now() + backoff::after(failures, self.max_backoff);
                    state.health = Health::Down(failures, error.copy(), until);
                }
            }
            None => state.health = Health::Fine,
        }
        state.learnt += 1;
    }

    /// Closes the idle connections: one of them was found broken, so the others are of the same broken server.
    /// If the server did not answer, one caller finds out whether it does.
    fn close_idle(&self, is_suspect: bool) {
        let mut state = self.lock();
        if is_suspect && matches!(state.health, Health::Fine) {
            state.health = Health::Suspect;
        }
        let closed = std::mem::take(&mut state.idle);
        state.open -= closed.len();
        drop(state);
        self.returned.notify_all();
    }

    #[inline]
    fn lock(&self) -> MutexGuard<'_, PoolState<C>> {
        self.state.lock()
    }
}

/// An exchange whose replies are to come.
pub(crate) struct BegunExchange<'p, C> {
    taken: PoolGuard<'p, C>,
    replies: usize,
    twice: bool,
}

impl<'p, C: PoolConnection> BegunExchange<'p, C> {
    /// Takes the replies; sends everything again over a new connection, when an idle one turns out to be broken.
    pub(crate) fn finish(
        mut self,
        connect: impl Fn() -> Result<C, Error>,
        receive: &mut impl Receive,
    ) -> Result<(), Error> {
        let mut received = self.taken.get().receive(self.replies, receive);
        while let Err(failed) = received {
            self = self.replace(failed, &connect)?;
            received = self.taken.get().exchange(self.replies, receive);
        }
        self.taken.give_back();
        Ok(())
    }

    fn replace(self, failed: Failed, connect: impl Fn() -> Result<C, Error>) -> Result<Self, Error> {
        let pool = self.taken.pool;
        let taken = pool.replace(failed, self.taken, self.twice, connect)?;
        Ok(BegunExchange { taken, replies: self.replies, twice: false })
    }
}

/// A connection in use. Dropped, its place in the pool is free for a new one; [`PoolGuard::give_back`] keeps it open.
struct PoolGuard<'p, C> {
    pool: &'p Pool<C>,
    connection: Option<C>,
    opened: Opened,
}

/// When a connection was opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opened {
    Before,
    /// For this use.
    Now,
    /// For this use, and others wait to see if it can be opened.
    ToTry,
}

impl<C> PoolGuard<'_, C> {
    fn is_new(&self) -> bool {
        self.opened != Opened::Before
    }

    /// It is known whether it can be opened.
    fn stop_trying(&mut self) {
        if self.opened == Opened::ToTry {
            self.opened = Opened::Now;
            self.pool.lock().is_tried = false;
            self.pool.returned.notify_all();
        }
    }

    /// The connection.
    #[inline]
    fn get(&mut self) -> &mut C {
        self.connection.as_mut().expect("is there until it is given back or dropped")
    }

    /// Returns the connection to the pool, for others to use.
    #[inline(always)]
    fn give_back(mut self) {
        let mut state = self.pool.lock();
        state.idle.push(self.connection.take().expect("is there until it is given back or dropped"));
        let wanted = state.waiting > 0;
        drop(state);
        if wanted {
            self.pool.returned.notify_one();
        }
        std::mem::forget(self);
    }
}

impl<C> Drop for PoolGuard<'_, C> {
    fn drop(&mut self) {
        let connection = self.connection.take();
        self.stop_trying();
        self.pool.lock().open -= 1;
        self.pool.returned.notify_one();
        // Closing may take a while, so it comes last.
        drop(connection);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn connections_are_reused_and_bounded() {
        let made = AtomicUsize::new(0);
        let pool = Pool::new(2, Duration::from_millis(20), Duration::ZERO);
        let connect = || Ok(made.fetch_add(1, Ordering::Relaxed));
        let first = pool.take(connect).unwrap();
        let second = pool.take(connect).unwrap();
        assert!(first.is_new() && second.is_new());
        let error = pool.take(connect).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        second.give_back();
        let mut again = pool.take(connect).unwrap();
        assert_eq!((*again.get(), again.is_new()), (1, false));
        drop(first);
        let mut third = pool.take(connect).unwrap();
        assert_eq!((*third.get(), third.is_new()), (2, true));
        third.give_back();
        again.give_back();
        pool.close_idle(false);
        assert!(pool.take(connect).unwrap().is_new());
    }

    #[test]
    fn a_failure_to_connect_leaves_its_place() {
        let pool = Pool::<()>::new(1, Duration::from_millis(20), Duration::ZERO);
        for _ in 0..3 {
            let error = pool.take(|| Err(Error::new(ErrorKind::Connection, "no"))).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Connection);
        }
        pool.take(|| Ok(())).unwrap().give_back();
    }

    #[test]
    fn a_server_that_failed_is_tried_by_one_after_a_pause() {
        let pool = Pool::new(4, Duration::from_millis(20), Duration::from_millis(60));
        let tries = AtomicUsize::new(0);
        let fail = || -> Result<(), Error> {
            tries.fetch_add(1, Ordering::Relaxed);
            Err(Error::new(ErrorKind::Timeout, "no answer"))
        };
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(500) {
            let before = tries.load(Ordering::Relaxed);
            let error = pool.take(fail).err().unwrap();
            let waited = tries.load(Ordering::Relaxed) > before;
            assert_eq!(error.kind(), if waited { ErrorKind::Timeout } else { ErrorKind::Connection });
            assert!(error.to_string().ends_with("no answer"), "{error}");
        }
        assert!((7..40).contains(&tries.load(Ordering::Relaxed)), "{tries:?}");
        std::thread::sleep(Duration::from_millis(60));
        // While one tries, nobody else waits for that.
        let connected = pool.take(|| {
            assert!(pool.take(fail).is_err());
            Ok(())
        });
        connected.unwrap().give_back();
        let (first, second) = (pool.take(fail).unwrap(), pool.take(|| Ok(())).unwrap());
        assert!(!first.is_new() && second.is_new(), "it is as before");
        // Who refuses us, or cannot do what is wanted, is left alone too, and all are told why.
        for kind in [ErrorKind::Refused, ErrorKind::Config] {
            assert_eq!(pool.take(|| Err(Error::new(kind, "no"))).err().unwrap().to_string(), "no");
            let error = pool.take(|| Ok(())).err().unwrap();
            assert!(error.kind() == kind && error.to_string().ends_with("no"), "{error}");
            std::thread::sleep(Duration::from_millis(60));
            drop(pool.take(|| Ok(())).unwrap());
        }
    }

    #[test]
    fn callers_that_fail_together_count_once() {
        let pool = Pool::<()>::new(8, Duration::from_millis(500), Duration::from_secs(1));
        let barrier = std::sync::Barrier::new(8);
        let connect = || {
            barrier.wait();
            Err(Error::new(ErrorKind::Connection, "no"))
        };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert!(pool.take(connect).is_err()));
            }
        });
        assert!(matches!(pool.lock().health, Health::Down(1, ..)));
    }

    #[test]
    fn a_server_that_did_not_answer_is_tried_by_one_and_the_others_wait() {
        let pool = Pool::new(4, Duration::from_secs(30), Duration::from_secs(30));
        pool.take(|| Ok(())).unwrap().give_back();
        pool.close_idle(true);
        let (tried, is_known) = (AtomicUsize::new(0), std::sync::atomic::AtomicBool::new(false));
        let connect = || {
            if tried.fetch_add(1, Ordering::SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(50));
                is_known.store(true, Ordering::SeqCst);
            }
            assert!(is_known.load(Ordering::SeqCst), "one tries, and the others wait");
            Ok(())
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| pool.take(connect).unwrap().give_back());
            }
        });
        assert!(matches!(pool.lock().health, Health::Fine) && !pool.lock().is_tried);
    }

    #[test]
    fn one_that_comes_back_goes_to_who_waits() {
        let pool = Pool::new(1, Duration::from_secs(30), Duration::ZERO);
        let taken = pool.take(|| Ok(1)).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| *pool.take(|| Ok(2)).unwrap().get());
            while pool.lock().waiting == 0 {
                std::thread::yield_now();
            }
            taken.give_back();
            assert_eq!(waiter.join().unwrap(), 1);
        });
    }
}
