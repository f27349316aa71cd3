//! [`MultiplexedConnection`]: a connection that many tasks share, driven by a background task.
//!
//! [`MultiplexedConnections`] holds one of them for each Tokio runtime.

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
use crate::redis::conn::multiplexed::pipeline::{NotQueued, Pipeline, RawReplies, Request};
use crate::redis::conn::multiplexed::socket::connect;
use crate::redis::conn::multiplexed::task::ConnectionTask;
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::parser::Token;
use crate::redis::transport::{Access, AsyncTransport, Route};
use crate::redis::url::Server;

/// A connection that many tasks share.
///
/// The first request spawns its connection task in the current runtime. The task connects, and
/// reconnects on demand.
pub(crate) struct MultiplexedConnection {
    pub(crate) pipeline: Pipeline,
    server: Server,
    pub(crate) limits: Limits,
    task: Mutex<TaskState>,
    /// Notified when the connection is open, and when an attempt to open it has failed.
    changed: Notify,
    /// Notified when a request needs a connection.
    connect_requested: Notify,
}

/// The limits of multiplexed connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MultiplexLimits {
    /// The largest number of requests in flight.
    pub(crate) in_flight: usize,
    /// What requests do while there is no connection.
    pub(crate) while_down: WhileDown,
}

impl Default for MultiplexLimits {
    fn default() -> Self {
        MultiplexLimits { in_flight: 1024, while_down: WhileDown::Fail }
    }
}

/// The state of the connection task.
enum TaskState {
    /// There is no task.
    Stopped,
    /// The task is connecting or connected. Holds the error of the last attempt to connect, if it
    /// failed.
    Running(Option<Error>),
}

impl MultiplexedConnection {
    pub(crate) fn new(server: &Server, limits: Limits) -> Self {
        MultiplexedConnection {
            pipeline: Pipeline::new(limits.multiplexed.in_flight),
            server: server.clone(),
            limits,
            task: Mutex::new(TaskState::Stopped),
            changed: Notify::new(),
            connect_requested: Notify::new(),
        }
    }

    /// Creates a request, which is queued when it is first polled.
    #[inline]
    pub(crate) fn request<W: Fn(&mut Vec<u8>) -> usize>(&self, write: W) -> Request<'_, W> {
        self.pipeline.request(write, false)
    }

    /// Handles a request that did not succeed: waits for room or a connection and sends it again.
    ///
    /// A request that was sent and lost its connection is sent once more, unless it is
    /// [`Access::Once`].
    #[cold]
    pub(crate) async fn retry(
        self: &Arc<Self>,
        access: Access,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        mut result: Result<Result<RawReplies, Error>, NotQueued>,
    ) -> Result<RawReplies, Error> {
        let mut may_retry = access != Access::Once;
        // The deadline for waits before the request is sent, set at the first wait.
        let mut until = None;
        let mut has_waited_for_room = false;
        loop {
            match result {
                Ok(Ok(replied)) => return Ok(replied),
                // The server may be fine: it may have closed a connection that was idle for long.
                Ok(Err(error)) if may_retry && error.kind() == ErrorKind::Connection => may_retry = false,
                Ok(Err(error)) => return Err(error),
                Err(not_queued) => {
                    let wait_timeout = self.limits.connect.saturating_add(self.limits.response);
                    let until = *until.get_or_insert_with(|| from_now(wait_timeout));
                    match not_queued {
                        NotQueued::Full => self.pipeline.wait_for_room(until).await?,
                        NotQueued::Closed => self.wait_until_open(until).await?,
                    }
                    has_waited_for_room = true;
                }
            }
            result = self.pipeline.request(&write, has_waited_for_room).await;
        }
    }

    /// Closes the connection after the pending replies have arrived. No more requests may follow.
    pub(crate) fn shut_down(&self) {
        self.pipeline.shut_down();
        self.connect_requested.notify_one();
    }

    /// Returns whether no connection task is running.
    pub(crate) fn is_stopped(&self) -> bool {
        matches!(*self.task.lock(), TaskState::Stopped)
    }

    /// Waits until the connection is open.
    ///
    /// Fails at once if the last attempt to connect failed and [`WhileDown::Fail`] is set.
    #[cold]
    async fn wait_until_open(self: &Arc<Self>, until: Instant) -> Result<(), Error> {
        let (mut has_spawned, mut has_waited) = (false, false);
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.pipeline.is_open() {
                return Ok(());
            }
            // While the runtime shuts down, a spawned task is dropped before it starts.
            if self.is_stopped() && std::mem::replace(&mut has_spawned, true) {
                return Err(ended());
            }
            // Waiting does not help against a configuration error.
            if let Some(last_error) = self.request_connection()
                && (self.limits.multiplexed.while_down == WhileDown::Fail || last_error.kind() == ErrorKind::Config)
            {
                return Err(if has_waited { last_error } else { backoff::unavailable(&last_error) });
            }
            has_waited = true;
            if timeout_at(until, changed).await.is_err() {
                let message = format!("connecting to {}: timed out (see `connect_timeout`)", self.server.address);
                let last_error = self.request_connection();
                return Err(last_error.unwrap_or_else(|| Error::new(ErrorKind::Timeout, message)));
            }
        }
    }

    /// Requests a connection, and returns the error of the last attempt if it failed.
    ///
    /// Spawns the connection task if it is not running.
    fn request_connection(self: &Arc<Self>) -> Option<Error> {
        let mut task = self.task.lock();
        if let TaskState::Running(last_error) = &*task {
            self.connect_requested.notify_one();
            return last_error.as_ref().map(Error::copy);
        }
        *task = TaskState::Running(None);
        drop(task);
        tokio::spawn(run_task(TaskGuard(Arc::clone(self))));
        None
    }

    /// Records the outcome of an attempt to connect and wakes all requests that wait for it.
    fn publish(&self, last_error: Option<Error>) {
        *self.task.lock() = TaskState::Running(last_error);
        self.changed.notify_waiters();
    }
}

/// A cap for deadlines, since timers cannot represent every duration.
pub(crate) const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// Returns the instant `later` from now, or a year from now if that is earlier.
pub(crate) fn from_now(later: Duration) -> Instant {
    Instant::now() + later.min(YEAR)
}

/// Fails all waiting requests when the connection task ends.
///
/// This covers a shutdown of the runtime, also before the first poll of the task, and a panic.
struct TaskGuard(Arc<MultiplexedConnection>);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.pipeline.close(std::iter::empty(), &ended());
        *self.0.task.lock() = TaskState::Stopped;
        self.0.changed.notify_waiters();
    }
}

/// Runs the connection task: connects, drives the connection until it breaks, and reconnects on
/// demand.
async fn run_task(connection: TaskGuard) {
    let connection = &connection.0;
    let mut failures = 0;
    while !connection.pipeline.is_shut_down() {
        match connect(&connection.server, connection.limits).await {
            Ok((stream, decoder)) => {
                failures = 0;
                connection.pipeline.open();
                connection.publish(None);
                let Some(error) = ConnectionTask::new(connection, stream, decoder).serve().await else { return };
                // The server may have closed an idle connection, so end the task and let the next
                // request connect. A server that does not reply counts as down, so publish the
                // error and keep reconnecting.
                if error.kind() != ErrorKind::Timeout {
                    return;
                }
                connection.publish(Some(error));
            }
            Err(error) => {
                connection.publish(Some(error));
                failures += 1;
                sleep(backoff::after(failures, connection.limits.max_backoff)).await;
                connection.connect_requested.notified().await;
            }
        }
    }
}

/// Returns the error for requests whose connection task ended.
#[cold]
pub(crate) fn ended() -> Error {
    Error::new(ErrorKind::Connection, "the connection was closed, or the Tokio runtime that drives it was shut down")
}

/// The multiplexed connections to one server, one for each Tokio runtime that uses it.
///
/// A connection task makes progress only while its runtime runs, so tasks of another runtime must
/// not depend on it.
pub(crate) struct MultiplexedConnections {
    server: Server,
    limits: Limits,
    /// The connection of the first runtime. Most programs have only one, and this avoids the lock.
    first: OnceLock<(tokio::runtime::Id, Arc<MultiplexedConnection>)>,
    others: Mutex<Vec<(tokio::runtime::Id, Arc<MultiplexedConnection>)>>,
}

impl MultiplexedConnections {
    pub(crate) fn new(server: &Server, limits: Limits) -> Self {
        MultiplexedConnections { server: server.clone(), limits, first: OnceLock::new(), others: Mutex::default() }
    }

    /// Returns the connection of the current runtime.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if it is called outside of a Tokio runtime.
    #[inline(always)]
    pub(crate) fn current(&self) -> Result<ConnectionRef<'_>, Error> {
        let Ok(runtime) = Handle::try_current() else { return Err(no_runtime()) };
        let id = runtime.id();
        match self.first.get() {
            Some((first, connection)) if *first == id => Ok(ConnectionRef::Borrowed(connection)),
            _ => Ok(self.for_runtime(id)),
        }
    }

    /// Returns the connection of another runtime than the first, or creates it.
    #[cold]
    fn for_runtime(&self, id: tokio::runtime::Id) -> ConnectionRef<'_> {
        let new = || (id, Arc::new(MultiplexedConnection::new(&self.server, self.limits)));
        let (first, connection) = self.first.get_or_init(new);
        if *first == id {
            return ConnectionRef::Borrowed(connection);
        }
        let mut others = self.others.lock();
        if let Some((_, connection)) = others.iter().find(|(other, _)| *other == id) {
            return ConnectionRef::Owned(Arc::clone(connection));
        }
        // Drop the connections of runtimes that were shut down. One that is in use may be about to
        // spawn its task.
        others.retain(|(_, connection)| !connection.is_stopped() || Arc::strong_count(connection) > 1);
        others.push(new());
        ConnectionRef::Owned(Arc::clone(&others[others.len() - 1].1))
    }

    /// Sends commands without waiting for their replies, after all requests of this runtime so far.
    ///
    /// If the current runtime has no open connection, the commands go out on every open connection
    /// of the others. Only the connection that carried the caller's earlier requests keeps the
    /// order, and some runtimes may be idle.
    ///
    /// Returns the commands if they should be sent once more from the current runtime.
    pub(crate) fn send(&self, write: impl FnOnce(&mut Vec<u8>) -> usize) -> Option<EncodedCommands> {
        let here = Handle::try_current().ok().map(|runtime| runtime.id());
        let others = self.others.lock();
        let open = self.first.get().into_iter().chain(&*others).filter(|(_, connection)| connection.pipeline.is_open());
        let mut open: SmallVec<[_; 4]> =
            open.map(|(id, connection)| (Some(*id) == here, Arc::clone(connection))).collect();
        drop(others);
        if let Some(at) = open.iter().position(|(is_here, _)| *is_here) {
            return open.swap_remove(at).1.pipeline.send(write).err().map(EncodedCommands::encode);
        }
        let encoded = EncodedCommands::encode(write);
        for (_, connection) in open {
            let _ = connection.pipeline.send(|out: &mut Vec<u8>| encoded.append_to(out));
        }
        here.map(|_| encoded)
    }
}

/// Limits of [`EncodedCommands::send_to`]. Together they last longer than a failover takes.
const MAX_ATTEMPTS: usize = 100;
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Encoded commands that may be sent over several connections.
pub(crate) struct EncodedCommands {
    commands: Vec<u8>,
    replies: usize,
}

impl EncodedCommands {
    /// Encodes the commands that `write` appends.
    pub(crate) fn encode(write: impl FnOnce(&mut Vec<u8>) -> usize) -> Self {
        let mut commands = Vec::new();
        let replies = write(&mut commands);
        EncodedCommands { commands, replies }
    }

    /// Appends the commands and returns the number of their replies.
    fn append_to(&self, out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(&self.commands);
        self.replies
    }

    /// Sends the commands from a background task, and retries while the servers are unreachable.
    ///
    /// Each attempt goes to the servers that hold the keys by then.
    pub(crate) fn send_to<X: AsyncTransport + Clone + 'static>(self, servers: &X) {
        let servers = servers.clone();
        tokio::spawn(async move {
            for _ in 0..MAX_ATTEMPTS {
                let mut ignore = |_: Token<'_>, _: &mut Chunk<'_>| Ok(());
                let write = |out: &mut Vec<u8>| self.append_to(out);
                match servers.exchange_async(Access::Write, Route::Keys, write, &mut ignore).await {
                    Err(error) if error.is_out_of_reach() => sleep(RETRY_INTERVAL).await,
                    _ => return,
                }
            }
        });
    }
}

impl Drop for MultiplexedConnections {
    fn drop(&mut self) {
        self.first
            .get()
            .into_iter()
            .chain(self.others.get_mut().iter())
            .for_each(|(_, connection)| connection.shut_down());
    }
}

/// Returns the error for a connection that is needed outside of a Tokio runtime.
#[cold]
pub(crate) fn no_runtime() -> Error {
    Error::new(ErrorKind::Config, "connecting: async methods must be called within a Tokio runtime, and there is none")
}

/// A reference to a connection, borrowed or owned.
pub(crate) enum ConnectionRef<'c> {
    Borrowed(&'c Arc<MultiplexedConnection>),
    Owned(Arc<MultiplexedConnection>),
}

impl Deref for ConnectionRef<'_> {
    type Target = Arc<MultiplexedConnection>;

    #[inline]
    fn deref(&self) -> &Arc<MultiplexedConnection> {
        match self {
            ConnectionRef::Borrowed(connection) => connection,
            ConnectionRef::Owned(connection) => connection,
        }
    }
}
