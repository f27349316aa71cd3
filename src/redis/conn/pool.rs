//! A bounded pool of blocking connections, which are reused last in, first out.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::{Error, ErrorKind};
use crate::redis::conn::backoff;
use crate::redis::protocol::parser::Receive;
use crate::redis::transport::Access;

/// A connection that a [`Pool`] can hold. It sends the contents of its output buffer.
pub(crate) trait PoolConnection {
    /// Returns the buffer for the encoded commands to send.
    fn output(&mut self) -> &mut Vec<u8>;

    /// Returns whether the peer closed the connection, as far as is known without a round trip.
    fn is_closed(&mut self) -> bool;

    /// Sends the output buffer. If it fails, the connection must not be used again.
    fn send(&mut self) -> Result<(), ExchangeError>;

    /// Passes the tokens of `replies` replies to `receive`.
    ///
    /// If it fails, the connection must not be used again: the next request would read the
    /// remaining replies as its own.
    fn receive(&mut self, replies: usize, receive: &mut impl Receive) -> Result<(), ExchangeError>;

    /// Sends the output buffer and receives the replies.
    #[inline(always)]
    fn exchange(&mut self, replies: usize, receive: &mut impl Receive) -> Result<(), ExchangeError> {
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
    fn send(&mut self) -> Result<(), ExchangeError> {
        (**self).send()
    }

    #[inline(always)]
    fn receive(&mut self, replies: usize, receive: &mut impl Receive) -> Result<(), ExchangeError> {
        (**self).receive(replies, receive)
    }
}

/// The error of a failed exchange, and whether a retry is safe and useful.
pub(crate) struct ExchangeError {
    pub(crate) error: Error,
    /// Whether the connection broke before the receiver saw any part of the replies.
    pub(crate) broke_early: bool,
}

/// Returns the instant `time` from now, or a century from now if that is earlier.
pub(crate) fn from_now(time: Duration) -> Instant {
    later(Instant::now(), time)
}

/// Returns `moment` plus `time`, or plus a century if that is less, since an `Instant` can
/// overflow.
pub(crate) fn later(moment: Instant, time: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    moment + time.min(CENTURY)
}

/// A bounded set of connections to one server, with backoff while the server is down.
///
/// During the backoff, requests that find no idle connection fail at once instead of waiting for
/// the server.
pub(crate) struct Pool<C> {
    state: Mutex<PoolState<C>>,
    /// Notified when a connection is returned or closed, and when a probe ends.
    returned: Condvar,
    max: usize,
    /// How long a caller waits for a connection while all are in use.
    wait_timeout: Duration,
    /// The longest backoff between two attempts to connect.
    max_backoff: Duration,
}

struct PoolState<C> {
    idle: Vec<C>,
    /// The number of connections that are idle, in use or being opened.
    open: usize,
    /// The number of callers that wait for a connection.
    waiting: usize,
    health: Health,
    /// The number of attempts to connect that have ended.
    attempts: u64,
    /// Whether a caller is probing a server that is not up, by connecting to it.
    is_probing: bool,
}

/// The state of the server, as known from connecting and from timeouts.
enum Health {
    Up,
    /// A request timed out. One caller connects, and the others wait for the outcome.
    Suspect,
    /// Connecting failed this many times in a row, last with this error. The next attempt may start
    /// at this instant.
    Down(u32, Error, Instant),
}

impl<C> Pool<C> {
    /// Creates a pool of up to `max` connections. If all are in use, callers wait up to
    /// `wait_timeout`.
    pub(crate) fn new(max: usize, wait_timeout: Duration, max_backoff: Duration) -> Self {
        let state =
            PoolState { idle: Vec::new(), open: 0, waiting: 0, health: Health::Up, attempts: 0, is_probing: false };
        Pool { state: Mutex::new(state), returned: Condvar::new(), max, wait_timeout, max_backoff }
    }

    /// Takes an idle connection, or opens one with `connect`.
    #[inline(always)]
    fn take(&self, connect: impl FnOnce() -> Result<C, Error>) -> Result<PoolGuard<'_, C>, Error> {
        // A statement of its own, so that the lock is released before a slow connect.
        let idle = self.lock().idle.pop();
        match idle {
            Some(connection) => {
                Ok(PoolGuard { pool: self, connection: Some(connection), origin: ConnectionOrigin::Reused })
            }
            None => self.take_slow(connect),
        }
    }

    /// Takes a connection for a request. A request that must not be retried gets one that is not
    /// known to be closed.
    #[inline(always)]
    fn take_for(&self, access: Access, connect: impl Fn() -> Result<C, Error>) -> Result<PoolGuard<'_, C>, Error>
    where
        C: PoolConnection,
    {
        let mut guard = self.take(&connect)?;
        while access == Access::Once && !guard.is_new() && guard.get().is_closed() {
            // Dropped first, since the replacement may need its slot in the pool.
            drop(guard);
            guard = self.take(&connect)?;
        }
        Ok(guard)
    }

    #[cold]
    fn take_slow(&self, connect: impl FnOnce() -> Result<C, Error>) -> Result<PoolGuard<'_, C>, Error> {
        let deadline = from_now(self.wait_timeout);
        let mut state = self.lock();
        loop {
            if let Some(connection) = state.idle.pop() {
                return Ok(PoolGuard { pool: self, connection: Some(connection), origin: ConnectionOrigin::Reused });
            }
            if let Health::Down(_, error, until) = &state.health
                && (state.is_probing || Instant::now() < *until)
            {
                return Err(backoff::unavailable(error));
            }
            if state.open < self.max && !state.is_probing {
                state.open += 1;
                let attempts = state.attempts;
                let origin =
                    if matches!(state.health, Health::Up) { ConnectionOrigin::New } else { ConnectionOrigin::Probe };
                state.is_probing = origin == ConnectionOrigin::Probe;
                drop(state);
                // If connecting fails or panics, dropping the guard frees the slot.
                let mut guard = PoolGuard { pool: self, connection: None, origin };
                let connected = connect();
                self.record_attempt(attempts, connected.as_ref().err());
                guard.connection = Some(connected?);
                guard.finish_probe();
                return Ok(guard);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!(
                        "waiting for a connection: all {} were in use for {:?} (see `connections`)",
                        self.max, self.wait_timeout
                    ),
                ));
            }
            state.waiting += 1;
            self.returned.wait_for(&mut state, left);
            state.waiting -= 1;
        }
    }

    /// Sends commands over one connection and receives their replies.
    ///
    /// If an idle connection turns out to be broken, the commands are sent once more over another
    /// one.
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
        let mut guard = self.take_for(access, &connect)?;
        let output = guard.get().output();
        output.clear();
        let replies = write(output);
        if replies == 0 {
            guard.give_back();
            return Ok(());
        }
        let mut may_retry = access != Access::Once;
        loop {
            match guard.get().exchange(replies, receive) {
                Ok(()) => {
                    guard.give_back();
                    return Ok(());
                }
                Err(failed) => guard = self.replace(failed, guard, std::mem::take(&mut may_retry), &connect)?,
            }
        }
    }

    /// Sends commands without waiting for the replies: the first half of
    /// [`exchange`](Pool::exchange).
    ///
    /// This allows requests to go out on several connections before the first reply is received.
    pub(crate) fn begin(
        &self,
        access: Access,
        connect: impl Fn() -> Result<C, Error>,
        write: impl FnOnce(&mut Vec<u8>) -> usize,
    ) -> Result<PendingExchange<'_, C>, Error>
    where
        C: PoolConnection,
    {
        let mut guard = self.take_for(access, &connect)?;
        let output = guard.get().output();
        output.clear();
        let replies = write(output);
        let mut pending = PendingExchange { guard, replies, may_retry: access != Access::Once };
        while let Err(failed) = pending.guard.get().send() {
            pending = pending.replace(failed, &connect)?;
        }
        Ok(pending)
    }

    /// Moves the output buffer to another connection after a failed exchange, if a retry is safe
    /// and may help.
    #[cold]
    fn replace(
        &self,
        failed: ExchangeError,
        mut broken: PoolGuard<'_, C>,
        may_retry: bool,
        connect: impl Fn() -> Result<C, Error>,
    ) -> Result<PoolGuard<'_, C>, Error>
    where
        C: PoolConnection,
    {
        let output = std::mem::take(broken.get().output());
        let mut guard = self.replacement(failed, broken, may_retry, connect)?;
        *guard.get().output() = output;
        Ok(guard)
    }

    /// Takes another connection in place of a broken one.
    #[cold]
    fn replacement(
        &self,
        failed: ExchangeError,
        broken: PoolGuard<'_, C>,
        may_retry: bool,
        connect: impl Fn() -> Result<C, Error>,
    ) -> Result<PoolGuard<'_, C>, Error> {
        let was_new = broken.is_new();
        drop(broken);
        // The idle connections most likely share the failure, so close them all instead of trying
        // each.
        if failed.error.is_out_of_reach() {
            self.close_idle(failed.error.kind() == ErrorKind::Timeout);
        }
        // If a new connection fails, the server is at fault. An idle one may have been closed for
        // being idle.
        if was_new || !failed.broke_early || !may_retry {
            return Err(failed.error);
        }
        self.take(connect)
    }

    /// Records the outcome of an attempt to connect. `attempts` is the count when it started.
    #[cold]
    fn record_attempt(&self, attempts: u64, error: Option<&Error>) {
        let mut state = self.lock();
        let failures = match &state.health {
            Health::Down(failures, ..) => *failures,
            _ => 0,
        };
        match error {
            // Attempts that fail together count once, and not at all if another one has ended since
            // they started.
            Some(error) => {
                if state.attempts == attempts {
                    let failures = failures.saturating_add(1);
                    let until = Instant::now() + backoff::after(failures, self.max_backoff);
                    state.health = Health::Down(failures, error.copy(), until);
                }
            }
            None => state.health = Health::Up,
        }
        state.attempts += 1;
    }

    /// Closes all idle connections, after one connection was found to be broken.
    ///
    /// If `is_suspect`, the server did not reply in time, and one caller probes it while the others
    /// wait.
    fn close_idle(&self, is_suspect: bool) {
        let mut state = self.lock();
        if is_suspect && matches!(state.health, Health::Up) {
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

/// An exchange whose commands were sent and whose replies were not received yet.
pub(crate) struct PendingExchange<'p, C> {
    guard: PoolGuard<'p, C>,
    replies: usize,
    may_retry: bool,
}

impl<'p, C: PoolConnection> PendingExchange<'p, C> {
    /// Receives the replies. If an idle connection turns out to be broken, sends the commands again
    /// over another one.
    pub(crate) fn finish(
        mut self,
        connect: impl Fn() -> Result<C, Error>,
        receive: &mut impl Receive,
    ) -> Result<(), Error> {
        let mut received = self.guard.get().receive(self.replies, receive);
        while let Err(failed) = received {
            self = self.replace(failed, &connect)?;
            received = self.guard.get().exchange(self.replies, receive);
        }
        self.guard.give_back();
        Ok(())
    }

    fn replace(self, failed: ExchangeError, connect: impl Fn() -> Result<C, Error>) -> Result<Self, Error> {
        let pool = self.guard.pool;
        let guard = pool.replace(failed, self.guard, self.may_retry, connect)?;
        Ok(PendingExchange { guard, replies: self.replies, may_retry: false })
    }
}

/// A connection in use.
///
/// Dropping the guard closes the connection and frees its slot. [`PoolGuard::give_back`] keeps it
/// open.
struct PoolGuard<'p, C> {
    pool: &'p Pool<C>,
    connection: Option<C>,
    origin: ConnectionOrigin,
}

/// Where the connection of a [`PoolGuard`] comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ConnectionOrigin {
    /// It was idle in the pool.
    Reused,
    /// It was opened for this request.
    New,
    /// It was opened for this request, and other callers wait for the outcome.
    Probe,
}

impl<C> PoolGuard<'_, C> {
    fn is_new(&self) -> bool {
        self.origin != ConnectionOrigin::Reused
    }

    /// Ends the probe, if this is one, and wakes the callers that wait for its outcome.
    fn finish_probe(&mut self) {
        if self.origin == ConnectionOrigin::Probe {
            self.origin = ConnectionOrigin::New;
            self.pool.lock().is_probing = false;
            self.pool.returned.notify_all();
        }
    }

    #[inline]
    fn get(&mut self) -> &mut C {
        self.connection.as_mut().expect("the guard holds its connection until it is dropped")
    }

    /// Returns the connection to the pool.
    #[inline(always)]
    fn give_back(mut self) {
        let mut state = self.pool.lock();
        state.idle.push(self.connection.take().expect("the guard holds its connection until it is dropped"));
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
        self.finish_probe();
        self.pool.lock().open -= 1;
        self.pool.returned.notify_one();
        // Closing a socket may take a while, so wake the next caller first.
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
    fn a_failed_connect_frees_its_slot() {
        let pool = Pool::<()>::new(1, Duration::from_millis(20), Duration::ZERO);
        for _ in 0..3 {
            let error = pool.take(|| Err(Error::new(ErrorKind::Connection, "no"))).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Connection);
        }
        pool.take(|| Ok(())).unwrap().give_back();
    }

    #[test]
    fn one_caller_probes_a_failed_server_after_the_backoff() {
        let pool = Pool::new(4, Duration::from_millis(20), Duration::from_millis(60));
        let tries = AtomicUsize::new(0);
        let fail = || -> Result<(), Error> {
            tries.fetch_add(1, Ordering::Relaxed);
            Err(Error::new(ErrorKind::Timeout, "no answer"))
        };
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(500) {
            let before = tries.load(Ordering::Relaxed);
            let error = pool.take(fail).err().unwrap();
            let waited = tries.load(Ordering::Relaxed) > before;
            assert_eq!(error.kind(), if waited { ErrorKind::Timeout } else { ErrorKind::Connection });
            assert!(error.to_string().ends_with("no answer"), "{error}");
        }
        assert!((7..40).contains(&tries.load(Ordering::Relaxed)), "{tries:?}");
        std::thread::sleep(Duration::from_millis(60));
        // While one caller probes, the others fail at once.
        let connected = pool.take(|| {
            assert!(pool.take(fail).is_err());
            Ok(())
        });
        connected.unwrap().give_back();
        let (first, second) = (pool.take(fail).unwrap(), pool.take(|| Ok(())).unwrap());
        assert!(!first.is_new() && second.is_new(), "the server is up again");
        // The backoff also follows refused logins and unsuitable servers, and repeats their error.
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
    fn one_caller_probes_after_a_timeout_and_the_others_wait() {
        let pool = Pool::new(4, Duration::from_secs(30), Duration::from_secs(30));
        pool.take(|| Ok(())).unwrap().give_back();
        pool.close_idle(true);
        let (tried, is_known) = (AtomicUsize::new(0), std::sync::atomic::AtomicBool::new(false));
        let connect = || {
            if tried.fetch_add(1, Ordering::SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(50));
                is_known.store(true, Ordering::SeqCst);
            }
            assert!(is_known.load(Ordering::SeqCst), "one caller probes, and the others wait");
            Ok(())
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| pool.take(connect).unwrap().give_back());
            }
        });
        assert!(matches!(pool.lock().health, Health::Up) && !pool.lock().is_probing);
    }

    #[test]
    fn a_returned_connection_goes_to_a_waiting_caller() {
        let pool = Pool::new(1, Duration::from_secs(30), Duration::ZERO);
        let guard = pool.take(|| Ok(1)).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| *pool.take(|| Ok(2)).unwrap().get());
            while pool.lock().waiting == 0 {
                std::thread::yield_now();
            }
            guard.give_back();
            assert_eq!(waiter.join().unwrap(), 1);
        });
    }
}
