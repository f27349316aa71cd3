//! [`Discovery`]: the current view of a changing set of servers, and the thread that refreshes it.
//!
//! One thread serves blocking and asynchronous callers alike. It runs only during a refresh: it
//! asks the candidates one after the other until one of them returns a view, and then ends.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::{Condvar, Mutex};
#[cfg(feature = "tokio")]
use tokio::sync::Notify;

use crate::error::{Error, ErrorKind};
use crate::redis::conn::backoff;
use crate::redis::conn::blocking::BlockingConnection;
use crate::redis::conn::limits::Limits;
use crate::redis::conn::pool::{from_now, later};
use crate::redis::topology::node::Node;
use crate::redis::url::{Address, Server};

/// A protocol for asking servers about the topology, and for judging their answers.
pub(crate) trait Discover: Send + Sync + 'static {
    /// The topology as one server described it.
    type View: Send + Sync + 'static;

    /// Returns the servers to ask, without duplicates, in the order of preference.
    fn candidates(&self, known: Option<&Self::View>) -> Vec<Server>;

    /// Asks one candidate for the topology.
    fn ask(&self, connection: &mut BlockingConnection, server: &Server) -> Result<Self::View, Error>;

    /// Returns all nodes that requests may go to.
    fn nodes(view: &Self::View) -> impl Iterator<Item = &Arc<Node>> + Send;

    /// Compares the age of a received view with that of the known one.
    ///
    /// `Less` means that `received` is older, `Equal` that it describes the same topology, and
    /// `Greater` that it is newer.
    fn compare(&self, known: &Self::View, received: &Self::View) -> Ordering;

    /// Drops the nodes that `view`, the current one from now on, does not contain.
    fn retain_nodes(&self, view: &Self::View);
}

/// The current view of a changing set of servers.
pub(crate) struct Discovery<D: Discover>(Arc<DiscoveryInner<D>>);

struct DiscoveryInner<D: Discover> {
    discover: D,
    limits: Limits,
    view: ArcSwapOption<D::View>,
    state: Mutex<DiscoveryState>,
    /// Notified when a refresh ends, for blocking callers.
    refreshed: Condvar,
    /// Notified when a refresh ends, for tasks.
    #[cfg(feature = "tokio")]
    refreshed_async: Notify,
    /// How often [`Discovery::recheck`] was called.
    rechecks: AtomicUsize,
}

/// The longest string that is accepted from a server that describes the topology.
const MAX_STRING: usize = 1 << 20;

/// How old a view may become if no server signals that it is outdated.
const MAX_AGE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct DiscoveryState {
    /// When the running refresh began, if one is running.
    refreshing_since: Option<Instant>,
    /// How many refreshes in a row failed or found nothing new.
    fruitless: u32,
    /// When the last refresh ended.
    refreshed_at: Option<Instant>,
    /// The end of the backoff: no refresh starts before it.
    not_before: Option<Instant>,
    /// The server that answered last.
    last_source: Option<Address>,
    /// Why the last refresh failed, if it did.
    error: Option<Error>,
}

impl<D: Discover> Discovery<D> {
    pub(crate) fn new(discover: D, limits: Limits) -> Self {
        Discovery(Arc::new(DiscoveryInner {
            discover,
            limits,
            view: ArcSwapOption::empty(),
            state: Mutex::default(),
            refreshed: Condvar::new(),
            #[cfg(feature = "tokio")]
            refreshed_async: Notify::new(),
            rechecks: AtomicUsize::new(0),
        }))
    }

    pub(crate) fn discover(&self) -> &D {
        &self.0.discover
    }

    /// Returns the longest time that a server is not contacted after it failed.
    pub(crate) fn max_backoff(&self) -> Duration {
        self.0.limits.max_backoff
    }

    /// Returns the current view, or `None` before the first refresh succeeded.
    #[inline]
    pub(crate) fn view(&self) -> arc_swap::Guard<Option<Arc<D::View>>> {
        self.0.view.load()
    }

    /// Starts a refresh in the background, unless one is running or the backoff has not ended.
    #[cold]
    pub(crate) fn request_refresh(&self) {
        let _ = self.0.start_refresh();
    }

    /// Requests a refresh if a server of the view could not be reached, and passes the result on.
    pub(crate) fn refresh_if_unreachable<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result
            && error.is_out_of_reach()
        {
            self.request_refresh();
        }
        result
    }

    /// Requests a refresh if the last one ended more than [`MAX_AGE`] ago.
    ///
    /// No server announces that a replica was added or is up again, so views that replicas are read
    /// by need this check.
    #[cold]
    pub(crate) fn recheck(&self) {
        // Takes the lock and reads the clock in one call of 64 only.
        if self.0.rechecks.fetch_add(1, Relaxed).is_multiple_of(64) {
            let refreshed_at = self.0.state.lock().refreshed_at;
            if refreshed_at.is_some_and(|at| at.elapsed() > MAX_AGE) {
                self.request_refresh();
            }
        }
    }

    /// Returns the current view; before there is one, blocks until the first refresh ends.
    #[cold]
    pub(crate) fn wait_for_view(&self) -> Result<Arc<D::View>, Error> {
        let (mut state, deadline) = loop {
            if let Some(view) = self.0.view.load_full() {
                return Ok(view);
            }
            self.0.start_refresh()?;
            let state = self.0.state.lock();
            state.fail_fast()?;
            if let Some(deadline) = state.deadline(self.0.limits)? {
                break (state, deadline);
            }
        };
        while state.refreshing_since.is_some() {
            if self.0.refreshed.wait_until(&mut state, deadline).timed_out() {
                return Err(timed_out());
            }
        }
        self.0.outcome(&state)
    }

    /// Returns the current view; before there is one, waits until the first refresh ends.
    #[cfg(feature = "tokio")]
    #[cold]
    pub(crate) async fn wait_for_view_async(&self) -> Result<Arc<D::View>, Error> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(crate::redis::conn::multiplexed::no_runtime());
        }
        loop {
            // Registers before the state is read, so that no notification is missed.
            let mut refreshed = std::pin::pin!(self.0.refreshed_async.notified());
            refreshed.as_mut().enable();
            if let Some(view) = self.0.view.load_full() {
                return Ok(view);
            }
            self.0.start_refresh()?;
            let deadline = {
                let state = self.0.state.lock();
                state.fail_fast()?;
                state.deadline(self.0.limits)?
            };
            // The refresh ended in the meantime.
            let Some(deadline) = deadline else { continue };
            // tokio's timers do not accept every `Instant`.
            let deadline = deadline.min(from_now(crate::redis::conn::multiplexed::YEAR));
            tokio::time::timeout_at(deadline.into(), refreshed).await.map_err(|_| timed_out())?;
            let state = self.0.state.lock();
            if state.refreshing_since.is_none() {
                return self.0.outcome(&state);
            }
        }
    }
}

impl DiscoveryState {
    /// Fails if a refresh is running and the previous one failed.
    ///
    /// After a failure, callers do not wait for the next attempt: most likely it fails as well.
    fn fail_fast(&self) -> Result<(), Error> {
        self.error
            .as_ref()
            .filter(|_| self.refreshing_since.is_some())
            .map_or(Ok(()), |error| Err(backoff::unavailable(error)))
    }

    /// Returns until when callers wait for the running refresh, or `None` if none is running.
    ///
    /// A refresh may ask several servers, but callers wait no longer than they would for one.
    ///
    /// # Errors
    /// If that time is over.
    fn deadline(&self, limits: Limits) -> Result<Option<Instant>, Error> {
        let wait = limits.connect.saturating_add(limits.response);
        let deadline = self.refreshing_since.map(|since| later(since, wait));
        match deadline {
            Some(deadline) if deadline <= Instant::now() => Err(Error::new(
                ErrorKind::Connection,
                "discovering servers: no server answered within the connect and response timeouts",
            )),
            deadline => Ok(deadline),
        }
    }
}

/// Combines the errors of all candidates into one.
///
/// The error is of kind [`ErrorKind::Config`] only if every candidate reported a wrong setting: a
/// candidate that could not be reached might have accepted it.
fn all_failed(errors: &[Error]) -> Error {
    let is_setting = |error: &Error| error.kind() == ErrorKind::Config;
    let decisive = errors.iter().find(|error| !is_setting(error)).or(errors.first());
    let messages: Vec<_> = errors.iter().map(ToString::to_string).collect();
    Error::new(decisive.map_or(ErrorKind::Config, Error::kind), messages.join("; "))
}

#[cold]
fn timed_out() -> Error {
    Error::new(ErrorKind::Timeout, "discovering servers: no answer within the connect and response timeouts")
}

impl<D: Discover> DiscoveryInner<D> {
    /// Starts a thread that refreshes the view, unless one is running or the backoff has not ended.
    ///
    /// # Errors
    /// If no thread can be started, and during the backoff after a failed refresh.
    fn start_refresh(self: &Arc<Self>) -> Result<(), Error> {
        let mut state = self.state.lock();
        if state.refreshing_since.is_some() {
            return Ok(());
        }
        if state.not_before.is_some_and(|moment| Instant::now() < moment) {
            return state.error.as_ref().map_or(Ok(()), |error| Err(backoff::unavailable(error)));
        }
        let inner = Arc::clone(self);
        let thread = thread::Builder::new().name("dogpile-discovery".into()).spawn(move || inner.run());
        state.refreshing_since = thread.is_ok().then(Instant::now);
        thread.map(drop).map_err(|error| {
            Error::new(ErrorKind::Connection, format!("discovering servers: starting a thread: {error}"))
        })
    }

    /// Returns the view, or why the last refresh produced none.
    fn outcome(&self, state: &DiscoveryState) -> Result<Arc<D::View>, Error> {
        self.view.load_full().ok_or_else(|| state.error.as_ref().map_or_else(timed_out, Error::copy))
    }

    /// The body of the thread: refreshes the view once and wakes the callers that wait for it.
    fn run(&self) {
        /// Records the outcome and wakes the callers, also if the thread panics.
        struct RefreshEnd<'s, D: Discover>(&'s DiscoveryInner<D>, Option<Result<bool, Error>>);
        impl<D: Discover> Drop for RefreshEnd<'_, D> {
            fn drop(&mut self) {
                let panicked = || Err(Error::new(ErrorKind::Creator, "discovering servers: the thread panicked"));
                let outcome = self.1.take().unwrap_or_else(panicked);
                let mut state = self.0.state.lock();
                state.fruitless = if matches!(outcome, Ok(true)) { 0 } else { state.fruitless.saturating_add(1) };
                state.not_before = Some(from_now(backoff::after(state.fruitless.max(1), self.0.limits.max_backoff)));
                state.error = outcome.err();
                state.refreshed_at = Some(Instant::now());
                state.refreshing_since = None;
                drop(state);
                self.0.refreshed.notify_all();
                #[cfg(feature = "tokio")]
                self.0.refreshed_async.notify_waiters();
            }
        }
        let mut end = RefreshEnd(self, None);
        end.1 = Some(self.refresh());
    }

    /// Returns the index of the candidate to ask first: the one that answered last.
    ///
    /// If the last refresh found nothing new, it is the candidate after that one, since the server
    /// that answered last may lag behind the others.
    fn first_candidate(&self, candidates: &[Server]) -> usize {
        let state = self.state.lock();
        let last = candidates.iter().position(|server| state.last_source.as_ref() == Some(&server.address));
        (last.unwrap_or(0) + usize::from(state.fruitless > 0)) % candidates.len().max(1)
    }

    /// Asks the candidates until one of them returns a view, and returns whether the view changed.
    ///
    /// A candidate with an older view does not end the search.
    fn refresh(&self) -> Result<bool, Error> {
        let known = self.view.load_full();
        let mut candidates = self.discover.candidates(known.as_deref());
        let first = self.first_candidate(&candidates);
        candidates.rotate_left(first);
        let limits = Limits { max_entry: MAX_STRING, ..self.limits };
        let (mut errors, mut older) = (Vec::new(), None);
        for server in candidates {
            let received = BlockingConnection::open(&server, limits)
                .and_then(|mut connection| self.discover.ask(&mut connection, &server))
                .map_err(|error| error.during(format_args!("discovering servers through {}", server.address)));
            let received = match received {
                Ok(received) => received,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            self.state.lock().last_source = Some(server.address);
            match known.as_deref().map(|known| self.discover.compare(known, &received)) {
                Some(Ordering::Equal) => return Ok(false),
                Some(Ordering::Less) => older = older.or(Some(received)),
                Some(Ordering::Greater) | None => {
                    self.replace_view(received);
                    return Ok(true);
                }
            }
        }
        // If every answer is older than the known view, the deployment was set up anew.
        if let Some(older) = older {
            self.replace_view(older);
            return Ok(true);
        }
        Err(all_failed(&errors))
    }

    fn replace_view(&self, view: D::View) {
        let view = Arc::new(view);
        self.view.store(Some(Arc::clone(&view)));
        self.discover.retain_nodes(&view);
    }
}
