//! [`Topology`]: what is known of servers that change their places, and the thread that asks them when that is in doubt.
//!
//! It is a thread for callers of both faces, which is there only while it asks.

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
use crate::redis::conn::blocking::Connection;
use crate::redis::conn::limits::Limits;
use crate::redis::conn::pool::{from_now, later};
use crate::redis::topology::node::Node;
use crate::redis::url::{Address, Server};

/// Who knows where servers are, and what they say about that.
pub(crate) trait Discover: Send + Sync + 'static {
    type View: Send + Sync + 'static;

    /// Whom to ask, in that order, each once.
    fn whom(&self, known: Option<&Self::View>) -> Vec<Server>;

    /// Asks one of them.
    fn ask(&self, connection: &mut Connection, server: &Server) -> Result<Self::View, Error>;

    /// All servers that requests go to.
    fn nodes(view: &Self::View) -> impl Iterator<Item = &Arc<Node>> + Send;

    /// Whether what is told is the same as what is known, newer, or older.
    fn compare(&self, known: &Self::View, told: &Self::View) -> Ordering;

    /// What is known from now on: servers that it does not name are forgotten.
    fn forget_others(&self, view: &Self::View);
}

/// What is known of servers that change their places.
pub(crate) struct Topology<D: Discover>(Arc<Shared<D>>);

struct Shared<D: Discover> {
    discover: D,
    limits: Limits,
    view: ArcSwapOption<D::View>,
    state: Mutex<State>,
    /// An attempt to find out has ended.
    asked: Condvar,
    #[cfg(feature = "tokio")]
    told: Notify,
    /// How often what is known was used where it may become old unnoticed.
    uses: AtomicUsize,
}

/// The longest string that is taken of a server that says where servers are.
const LONGEST: usize = 1 << 20;

/// How long what is known may be old where nobody says so.
const OLD: Duration = Duration::from_secs(5);

#[derive(Default)]
struct State {
    /// Since when servers are being asked, if they are.
    asking: Option<Instant>,
    /// How many attempts in a row have come to nothing new.
    in_vain: u32,
    /// When servers were asked last.
    asked: Option<Instant>,
    /// Nobody is asked before that.
    not_before: Option<Instant>,
    /// Who told last, and so could be asked.
    teller: Option<Address>,
    /// Why the last attempt failed, if it did.
    failed: Option<Error>,
}

impl<D: Discover> Topology<D> {
    pub(crate) fn new(discover: D, limits: Limits) -> Self {
        Topology(Arc::new(Shared {
            discover,
            limits,
            view: ArcSwapOption::empty(),
            state: Mutex::default(),
            asked: Condvar::new(),
            #[cfg(feature = "tokio")]
            told: Notify::new(),
            uses: AtomicUsize::new(0),
        }))
    }

    pub(crate) fn discover(&self) -> &D {
        &self.0.discover
    }

    /// How long what cannot be asked is left alone at most.
    pub(crate) fn max_pause(&self) -> Duration {
        self.0.limits.max_pause
    }

    /// What is known, if anything is.
    #[inline]
    pub(crate) fn view(&self) -> arc_swap::Guard<Option<Arc<D::View>>> {
        self.0.view.load()
    }

    /// What is known is in doubt: asks, unless that was done just now. Does not wait for it.
    #[cold]
    pub(crate) fn doubt(&self) {
        let _ = self.0.ask();
    }

    /// Doubts what is known if a server that it names could not be asked.
    pub(crate) fn doubt_after<T>(&self, asked: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &asked
            && error.is_out_of_reach()
        {
            self.doubt();
        }
        asked
    }

    /// Asks when that was done a while ago. That a replica is there again, or a new one, is told by nobody.
    #[cold]
    pub(crate) fn recheck(&self) {
        // The time is looked at now and then.
        if self.0.uses.fetch_add(1, Relaxed).is_multiple_of(64) {
            let asked = self.0.state.lock().asked;
            if asked.is_some_and(|asked| asked.elapsed() > OLD) {
                self.doubt();
            }
        }
    }

    /// What is known; waits for the first that is told.
    #[cold]
    pub(crate) fn known(&self) -> Result<Arc<D::View>, Error> {
        let (mut state, until) = loop {
            if let Some(view) = self.0.view.load_full() {
                return Ok(view);
            }
            self.0.ask()?;
            let state = self.0.state.lock();
            state.known_to_fail()?;
            if let Some(until) = state.patient_until(self.0.limits)? {
                break (state, until);
            }
        };
        while state.asking.is_some() {
            if self.0.asked.wait_until(&mut state, until).timed_out() {
                return Err(late());
            }
        }
        self.0.outcome(&state)
    }

    /// The same for tasks.
    #[cfg(feature = "tokio")]
    #[cold]
    pub(crate) async fn known_async(&self) -> Result<Arc<D::View>, Error> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(crate::redis::conn::multiplexed::no_runtime());
        }
        loop {
            let mut told = std::pin::pin!(self.0.told.notified());
            told.as_mut().enable();
            if let Some(view) = self.0.view.load_full() {
                return Ok(view);
            }
            self.0.ask()?;
            let until = {
                let state = self.0.state.lock();
                state.known_to_fail()?;
                state.patient_until(self.0.limits)?
            };
            // They have answered just now.
            let Some(until) = until else { continue };
            // Clocks of tokio cannot tell any time.
            let until = until.min(from_now(crate::redis::conn::multiplexed::YEAR));
            tokio::time::timeout_at(until.into(), told).await.map_err(|_| late())?;
            let state = self.0.state.lock();
            if state.asking.is_none() {
                return self.0.outcome(&state);
            }
        }
    }
}

impl State {
    /// Of those who come while servers are asked again that could not be asked before, nobody waits for that.
    fn known_to_fail(&self) -> Result<(), Error> {
        self.failed.as_ref().filter(|_| self.asking.is_some()).map_or(Ok(()), |failed| Err(backoff::left_alone(failed)))
    }

    /// Until when callers wait for those who are being asked, if somebody is: together no longer than for one server.
    ///
    /// # Errors
    /// When that is over.
    fn patient_until(&self, limits: Limits) -> Result<Option<Instant>, Error> {
        let patience = limits.connect.saturating_add(limits.response);
        let until = self.asking.map(|begun| later(begun, patience));
        match until {
            // Nobody waits for it now.
            Some(until) if until <= Instant::now() => Err(Error::new(
                ErrorKind::Connection,
                "those who are asked where servers are have not answered in time",
            )),
            until => Ok(until),
        }
    }
}

/// What all said who were asked. A setting is wrong where all say so; else those that cannot be reached may know better.
fn all_failed(errors: &[Error]) -> Error {
    let is_setting = |error: &Error| error.kind() == ErrorKind::Config;
    let telling = errors.iter().find(|error| !is_setting(error)).or(errors.first());
    let said: Vec<_> = errors.iter().map(ToString::to_string).collect();
    Error::new(telling.map_or(ErrorKind::Config, Error::kind), said.join("; "))
}

#[cold]
fn late() -> Error {
    Error::new(ErrorKind::Timeout, "asking for the servers: the time for it is over")
}

impl<D: Discover> Shared<D> {
    /// Has a thread ask, unless one does, or it is too soon. Why nothing is known, if that is so.
    fn ask(self: &Arc<Self>) -> Result<(), Error> {
        let mut state = self.state.lock();
        if state.asking.is_some() {
            return Ok(());
        }
        if state.not_before.is_some_and(|moment| Instant::now() < moment) {
            return state.failed.as_ref().map_or(Ok(()), |failed| Err(backoff::left_alone(failed)));
        }
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name("dogpile-topology".into()).spawn(move || shared.find_out());
        state.asking = thread.is_ok().then(Instant::now);
        thread.map(drop).map_err(|error| {
            Error::new(ErrorKind::Connection, format!("starting a thread that asks where servers are: {error}"))
        })
    }

    fn outcome(&self, state: &State) -> Result<Arc<D::View>, Error> {
        self.view.load_full().ok_or_else(|| state.failed.as_ref().map_or_else(late, Error::copy))
    }

    /// The thread: asks one after the other until one tells.
    fn find_out(&self) {
        /// However the thread ends, nobody waits for it any more.
        struct Ends<'s, D: Discover>(&'s Shared<D>, Option<Result<bool, Error>>);
        impl<D: Discover> Drop for Ends<'_, D> {
            fn drop(&mut self) {
                let panicked = || Err(Error::new(ErrorKind::Creator, "the thread that asks for servers panicked"));
                let outcome = self.1.take().unwrap_or_else(panicked);
                let mut state = self.0.state.lock();
                state.in_vain = if matches!(outcome, Ok(true)) { 0 } else { state.in_vain.saturating_add(1) };
                state.not_before = Some(from_now(backoff::after(state.in_vain.max(1), self.0.limits.max_pause)));
                state.failed = outcome.err();
                state.asked = Some(Instant::now());
                state.asking = None;
                drop(state);
                self.0.asked.notify_all();
                #[cfg(feature = "tokio")]
                self.0.told.notify_waiters();
            }
        }
        let mut ends = Ends(self, None);
        ends.1 = Some(self.find());
    }

    /// Whom to ask first: who told last, or after it came to nothing new, which may be because that one is behind the
    /// others, the next one.
    fn first(&self, whom: &[Server]) -> usize {
        let state = self.state.lock();
        let teller = whom.iter().position(|server| state.teller.as_ref() == Some(&server.address));
        (teller.unwrap_or(0) + usize::from(state.in_vain > 0)) % whom.len().max(1)
    }

    /// Whether something new was found.
    fn find(&self) -> Result<bool, Error> {
        let known = self.view.load_full();
        let mut whom = self.discover.whom(known.as_deref());
        let first = self.first(&whom);
        whom.rotate_left(first);
        let limits = Limits { max_entry: LONGEST, ..self.limits };
        let (mut failed, mut older) = (Vec::new(), None);
        for server in whom {
            let told = Connection::open(&server, limits)
                .and_then(|mut connection| self.discover.ask(&mut connection, &server))
                .map_err(|error| error.during(format_args!("asking {} where servers are", server.address)));
            let told = match told {
                Ok(told) => told,
                Err(error) => {
                    failed.push(error);
                    continue;
                }
            };
            self.state.lock().teller = Some(server.address);
            match known.as_deref().map(|known| self.discover.compare(known, &told)) {
                Some(Ordering::Equal) => return Ok(false),
                Some(Ordering::Less) => older = older.or(Some(told)),
                Some(Ordering::Greater) | None => {
                    self.learn(told);
                    return Ok(true);
                }
            }
        }
        // Where all are older than what is known, they have begun anew.
        if let Some(older) = older {
            self.learn(older);
            return Ok(true);
        }
        Err(all_failed(&failed))
    }

    fn learn(&self, told: D::View) {
        let told = Arc::new(told);
        self.view.store(Some(Arc::clone(&told)));
        self.discover.forget_others(&told);
    }
}
