//! [`MultiplexedConnection`]: a connection that many tasks share, and the task that keeps it there; [`MultiplexedConnections`]: those of all runtimes.

pub(crate) mod decoder;
pub(crate) mod pipeline;
pub(crate) mod socket;
pub(crate) mod task;

use std::ops::Deref;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::{Error, ErrorKind};
use crate::redis::WhileDown;
use crate::redis::conn::backoff;
use crate::redis::conn::limits::Limits;
use crate::redis::conn::multiplexed::pipeline::{NotTaken, Pipeline, Replied, Request};
use crate::redis::conn::multiplexed::socket::connect;
use crate::redis::conn::multiplexed::task::ConnectionTask;
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::parser::Token;
use crate::redis::transport::{Access, AsyncTransport, Route};
use crate::redis::url::Server;

/// A connection that many tasks share. Its task runs in one runtime.
pub(crate) struct MultiplexedConnection {
    pub(crate) pipeline: Pipeline,
    server: Server,
    pub(crate) limits: Limits,
    keeper: Mutex<TaskKeeper>,
    /// The connection is open, or could not be opened.
    changed: Notify,
    /// Somebody wants a connection.
    wanted: Notify,
}

/// How a connection is shared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sharing {
    /// How many requests may be under way.
    pub(crate) in_flight: usize,
    pub(crate) while_down: WhileDown,
}

impl Default for Sharing {
    fn default() -> Self {
        Sharing { in_flight: 1024, while_down: WhileDown::Fail }
    }
}

/// What the task is about.
enum TaskKeeper {
    /// There is none.
    Asleep,
    /// It connects or is connected. The error is why there was no connection when it tried last.
    Awake(Option<Error>),
}

impl MultiplexedConnection {
    pub(crate) fn new(server: &Server, limits: Limits) -> Self {
        MultiplexedConnection {
            pipeline: Pipeline::new(limits.shared.in_flight),
            server: server.clone(),
            limits,
            keeper: Mutex::new(TaskKeeper::Asleep),
            changed: Notify::new(),
            wanted: Notify::new(),
        }
    }

    /// A request, and the pipeline that it is for.
    #[inline]
    pub(crate) fn request<W: Fn(&mut Vec<u8>) -> usize>(&self, write: W) -> Request<'_, W> {
        self.pipeline.request(write, false)
    }

    /// What follows a request that was not answered: the same once more, when there is room, a connection, and it may
    /// be sent twice.
    #[cold]
    pub(crate) async fn request_again(
        self: &Arc<Self>,
        access: Access,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        mut came: Result<Result<Replied, Error>, NotTaken>,
    ) -> Result<Replied, Error> {
        let mut twice = access != Access::Once;
        // How long to wait for what comes before the request; told when that is needed.
        let mut until = None;
        let mut admitted = false;
        loop {
            match came {
                Ok(Ok(replied)) => return Ok(replied),
                // It says nothing about the server that a connection breaks which was open before.
                Ok(Err(error)) if twice && error.kind() == ErrorKind::Connection => twice = false,
                Ok(Err(error)) => return Err(error),
                Err(not_taken) => {
                    let patience = self.limits.connect.saturating_add(self.limits.response);
                    let until = *until.get_or_insert_with(|| from_now(patience));
                    match not_taken {
                        NotTaken::Full => self.pipeline.admit(until).await?,
                        NotTaken::Closed => self.connected(until).await?,
                    }
                    admitted = true;
                }
            }
            came = self.pipeline.request(&write, admitted).await;
        }
    }

    /// Nobody will use it any more.
    pub(crate) fn abandon(&self) {
        self.pipeline.abandon();
        self.wanted.notify_one();
    }

    /// Whether nothing is there that would be lost with it.
    pub(crate) fn is_asleep(&self) -> bool {
        matches!(*self.keeper.lock(), TaskKeeper::Asleep)
    }

    /// Waits until there is a connection, or it is known that there is none.
    #[cold]
    async fn connected(self: &Arc<Self>, until: Instant) -> Result<(), Error> {
        let (mut begun, mut has_waited) = (false, false);
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.pipeline.is_open() {
                return Ok(());
            }
            // Where the runtime ends, a task that keeps the connection ends before it begins.
            if self.is_asleep() && std::mem::replace(&mut begun, true) {
                return Err(ended());
            }
            // A server that cannot do what is wanted will not come up.
            if let Some(known) = self.want()
                && (self.limits.shared.while_down == WhileDown::Fail || known.kind() == ErrorKind::Config)
            {
                return Err(if has_waited { known } else { backoff::left_alone(&known) });
            }
            has_waited = true;
            if timeout_at(until, changed).await.is_err() {
                let message = format!("connecting to {}: the time for it is over", self.server.address);
                let known = self.want();
                return Err(known.unwrap_or_else(|| Error::new(ErrorKind::Timeout, message)));
            }
        }
    }

    /// Says that a connection is wanted, and why there was none when that was tried last.
    fn want(self: &Arc<Self>) -> Option<Error> {
        let mut keeper = self.keeper.lock();
        if let TaskKeeper::Awake(known) = &*keeper {
            self.wanted.notify_one();
            return known.as_ref().map(Error::copy);
        }
        *keeper = TaskKeeper::Awake(None);
        drop(keeper);
        tokio::spawn(keep(Ends(Arc::clone(self))));
        None
    }

    /// Tells all who wait for it that there is a connection now, or why there is none.
    fn tell(&self, known: Option<Error>) {
        *self.keeper.lock() = TaskKeeper::Awake(known);
        self.changed.notify_waiters();
    }
}

/// Longer than any timer needs to tell.
pub(crate) const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// The moment so much later; a year later at most.
pub(crate) fn from_now(later: Duration) -> Instant {
    Instant::now() + later.min(YEAR)
}

/// However the task of a link ends, with its runtime, before it began, or by a panic too, nobody waits for it any more.
struct Ends(Arc<MultiplexedConnection>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.pipeline.close(std::iter::empty(), &ended());
        *self.0.keeper.lock() = TaskKeeper::Asleep;
        self.0.changed.notify_waiters();
    }
}

/// The task of a link: connects, serves the connection until it breaks, and tries again where that was for no reason of
/// the connection's own.
async fn keep(link: Ends) {
    let link = &link.0;
    let mut failures = 0;
    while !link.pipeline.is_abandoned() {
        match connect(&link.server, link.limits).await {
            Ok((stream, incoming)) => {
                failures = 0;
                link.pipeline.open();
                link.tell(None);
                let Some(error) = ConnectionTask::new(link, stream, incoming).serve().await else { return };
                // A connection that broke may be the server's way to end an idle one, and whoever comes next connects
                // again. A server that does not answer is down until it does.
                if error.kind() != ErrorKind::Timeout {
                    return;
                }
                link.tell(Some(error));
            }
            Err(error) => {
                link.tell(Some(error));
                failures += 1;
                sleep(backoff::after(failures, link.limits.max_backoff)).await;
                link.wanted.notified().await;
            }
        }
    }
}

#[cold]
pub(crate) fn ended() -> Error {
    Error::new(ErrorKind::Connection, "the connection ended, or the runtime whose task kept it")
}

/// The links to one server, each used by the tasks of one runtime: a connection is served by a task, and that of one
/// runtime may rest while another one runs.
pub(crate) struct MultiplexedConnections {
    server: Server,
    limits: Limits,
    /// That of the first runtime, which is the only one most often: it needs no lock.
    first: OnceLock<(tokio::runtime::Id, Arc<MultiplexedConnection>)>,
    others: Mutex<Vec<(tokio::runtime::Id, Arc<MultiplexedConnection>)>>,
}

impl MultiplexedConnections {
    pub(crate) fn new(server: &Server, limits: Limits) -> Self {
        MultiplexedConnections { server: server.clone(), limits, first: OnceLock::new(), others: Mutex::default() }
    }

    /// The link of the runtime that this task is in.
    #[inline(always)]
    pub(crate) fn here(&self) -> Result<Held<'_>, Error> {
        let Ok(runtime) = Handle::try_current() else { return Err(no_runtime()) };
        let id = runtime.id();
        match self.first.get() {
            Some((first, link)) if *first == id => Ok(Held::Borrowed(link)),
            _ => Ok(self.of_other(id)),
        }
    }

    #[cold]
    fn of_other(&self, id: tokio::runtime::Id) -> Held<'_> {
        let new = || (id, Arc::new(MultiplexedConnection::new(&self.server, self.limits)));
        let (first, link) = self.first.get_or_init(new);
        if *first == id {
            return Held::Borrowed(link);
        }
        let mut others = self.others.lock();
        if let Some((_, link)) = others.iter().find(|(other, _)| *other == id) {
            return Held::Owned(Arc::clone(link));
        }
        // Those of runtimes that have ended are asleep for ever; one that somebody holds is about to be woken.
        others.retain(|(_, link)| !link.is_asleep() || Arc::strong_count(link) > 1);
        others.push(new());
        Held::Owned(Arc::clone(&others[others.len() - 1].1))
    }

    /// Sends commands whose replies nobody waits for, over the link of this runtime. Where it has none, over each that
    /// is open: only over one of them do they come after what was asked before, and some runtimes may rest. Gives them
    /// back then, for another attempt in this runtime.
    pub(crate) fn send(&self, write: impl FnOnce(&mut Vec<u8>) -> usize) -> Option<Written> {
        let here = Handle::try_current().ok().map(|runtime| runtime.id());
        let others = self.others.lock();
        let open = self.first.get().into_iter().chain(&*others).filter(|(_, link)| link.pipeline.is_open());
        let mut open: SmallVec<[_; 4]> = open.map(|(id, link)| (Some(*id) == here, Arc::clone(link))).collect();
        drop(others);
        if let Some(at) = open.iter().position(|(is_here, _)| *is_here) {
            return open.swap_remove(at).1.pipeline.send(write).err().map(Written::by);
        }
        let written = Written::by(write);
        for (_, link) in open {
            let _ = link.pipeline.send(|out: &mut Vec<u8>| written.again(out));
        }
        here.map(|_| written)
    }
}

/// How often word is sent to servers that do not answer, and how long after the last time: for longer than failovers take.
const TRIES: usize = 100;
const RETRY: Duration = Duration::from_millis(200);

/// Commands that may have to be sent over several connections.
pub(crate) struct Written {
    commands: Vec<u8>,
    replies: usize,
}

impl Written {
    pub(crate) fn by(write: impl FnOnce(&mut Vec<u8>) -> usize) -> Self {
        let mut commands = Vec::new();
        let replies = write(&mut commands);
        Written { commands, replies }
    }

    fn again(&self, out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(&self.commands);
        self.replies
    }

    /// Sends it by a task of its own to where it belongs by then, until somebody answers. Nobody waits for that.
    pub(crate) fn send_to<X: AsyncTransport + Clone + 'static>(self, servers: &X) {
        let servers = servers.clone();
        tokio::spawn(async move {
            for _ in 0..TRIES {
                let mut ignore = |_: Token<'_>, _: &mut Chunk<'_>| Ok(());
                let write = |out: &mut Vec<u8>| self.again(out);
                match servers.exchange_async(Access::Write, Route::Keys, write, &mut ignore).await {
                    Err(error) if error.is_out_of_reach() => sleep(RETRY).await,
                    _ => return,
                }
            }
        });
    }
}

impl Drop for MultiplexedConnections {
    fn drop(&mut self) {
        self.first.get().into_iter().chain(self.others.get_mut().iter()).for_each(|(_, link)| link.abandon());
    }
}

#[cold]
pub(crate) fn no_runtime() -> Error {
    Error::new(ErrorKind::Config, "tasks' connection needs a runtime of tokio, and there is none here")
}

/// A link, borrowed or held.
pub(crate) enum Held<'c> {
    Borrowed(&'c Arc<MultiplexedConnection>),
    Owned(Arc<MultiplexedConnection>),
}

impl Deref for Held<'_> {
    type Target = Arc<MultiplexedConnection>;

    #[inline]
    fn deref(&self) -> &Arc<MultiplexedConnection> {
        match self {
            Held::Borrowed(link) => link,
            Held::Owned(link) => link,
        }
    }
}
