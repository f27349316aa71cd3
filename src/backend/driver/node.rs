//! [`Node`]: a server of a cluster that the `redis` crate finds for us, and that we ask ourselves.
//!
//! A blocking cluster connection of that crate waits for one server's answer before it asks the next one, and where one
//! of several answers is an error, it gives us none of them. So it is only asked whom to ask. What a server says about
//! where to go is told to it, so that it learns of that, and names another server.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use redis::cluster::{ClusterConnection, Connect};
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{Arg, Cmd, Connection, ConnectionLike, IntoConnectionInfo, RedisError, RedisResult, ServerError, Value};

use super::values::driver_error;
use crate::backend::pool::Failed;

/// A connection to one of a cluster's servers.
#[derive(Clone)]
pub(super) struct Node(Arc<Inner>);

struct Inner {
    connection: Mutex<Connection>,
    address: String,
}

thread_local! {
    /// What is said between a cluster connection and us, over a command that it takes for one to a server: what a server
    /// answered to us, then which server it names.
    static SAID: RefCell<(Option<ServerError>, Option<Node>)> = const { RefCell::new((None, None)) };
}

const WHOM: &[u8] = b"WHOM";

static ASK_WHOM: LazyLock<Cmd> = LazyLock::new(|| Cmd::new().arg(WHOM).take());

/// The server that a cluster connection would ask; with what a server said about that, the one that follows from it.
/// One that has the slot only for whom it was told of (`ASK`) has been told so, for the next command.
pub(super) fn whom(
    cluster: &mut ClusterConnection<Node>,
    at: SingleNodeRoutingInfo,
    said: Option<ServerError>,
) -> Result<Node, Failed> {
    SAID.set((said, None));
    let asked = cluster.route_command(&ASK_WHOM, RoutingInfo::SingleNode(at));
    let (_, node) = SAID.take();
    let none = || RedisError::from((redis::ErrorKind::Client, "the cluster connection named no server"));
    // It has sent nothing of ours.
    asked
        .and_then(|_| node.ok_or_else(none))
        .map_err(|error| Failed { error: driver_error(&error).during("finding a server"), broke_early: true })
}

impl Node {
    pub(super) fn is(&self, other: &Node) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn send(&self, commands: &[u8]) -> Result<(), Failed> {
        self.0.connection.lock().send_packed_command(commands).map_err(|error| self.failed(&error))
    }

    /// The next reply.
    pub(super) fn receive(&self) -> Result<Value, Failed> {
        let mut connection = self.0.connection.lock();
        loop {
            match connection.recv_response() {
                Ok(Value::Push { .. }) => {}
                reply => return reply.map_err(|error| self.failed(&error)),
            }
        }
    }

    #[cold]
    fn failed(&self, error: &RedisError) -> Failed {
        let broke_early = error.is_connection_dropped();
        Failed { error: driver_error(error).during(format_args!("asking {}", self.0.address)), broke_early }
    }
}

/// What a cluster connection makes of a server, and asks of it for itself.
impl Connect for Node {
    fn connect<T: IntoConnectionInfo>(info: T, timeout: Option<Duration>) -> RedisResult<Self> {
        let info = info.into_connection_info()?;
        let address = info.addr().to_string();
        // Otherwise it is tried again, as often as the cluster connection does that.
        let once = |error| RedisError::from(io::Error::new(io::ErrorKind::Unsupported, error));
        let connection = <Connection as Connect>::connect(info, timeout).map_err(once)?;
        // It is greeted before it is told its own timeouts.
        connection.set_read_timeout(timeout)?;
        connection.set_write_timeout(timeout)?;
        Ok(Node(Arc::new(Inner { connection: Mutex::new(connection), address })))
    }

    fn send_packed_command(&mut self, command: &[u8]) -> RedisResult<()> {
        self.0.connection.lock().send_packed_command(command)
    }

    /// There is no setting for this in a client; it is the same as for reading.
    fn set_write_timeout(&self, _: Option<Duration>) -> RedisResult<()> {
        Ok(())
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> RedisResult<()> {
        let connection = self.0.connection.lock();
        connection.set_read_timeout(timeout)?;
        connection.set_write_timeout(timeout)
    }

    fn recv_response(&mut self) -> RedisResult<Value> {
        self.0.connection.lock().recv_response()
    }
}

impl ConnectionLike for Node {
    fn req_command(&mut self, command: &Cmd) -> RedisResult<Value> {
        if !matches!(command.args_iter().next(), Some(Arg::Simple(WHOM))) {
            return self.0.connection.lock().req_command(command);
        }
        SAID.with_borrow_mut(|(said, node)| match said.take() {
            Some(said) => Err(said.into()),
            None => {
                *node = Some(self.clone());
                Ok(Value::Okay)
            }
        })
    }

    fn req_packed_command(&mut self, command: &[u8]) -> RedisResult<Value> {
        self.0.connection.lock().req_packed_command(command)
    }

    fn req_packed_commands(&mut self, commands: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        self.0.connection.lock().req_packed_commands(commands, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.0.connection.lock().get_db()
    }

    fn check_connection(&mut self) -> bool {
        self.0.connection.lock().check_connection()
    }

    fn is_open(&self) -> bool {
        self.0.connection.lock().is_open()
    }
}
