//! The simulated server, and the unreliable connections of simulated processes to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::error::{Error, ErrorKind};
use crate::redis::HashTtl;
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::commands;
use crate::redis::protocol::parser::{Messages, Parser, Receive, Token};
use crate::redis::tracking::lease_watchers::{LeaseWatch, LeaseWatchers, LockName, SharedWatchers};
use crate::redis::transport::{Access, AsyncTransport, Route, TransportSettings, Watch};
use crate::simulation::SimRandom;

/// The response timeout of a request.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The state of the simulated server and network, which all simulated processes share.
pub(crate) struct SimWorld {
    pub(crate) random: SimRandom,
    keys: BTreeMap<Vec<u8>, SimValue>,
    /// The tracking connections to notify when a key changes, by process and connection id.
    trackers: BTreeMap<Vec<u8>, BTreeSet<(usize, u64)>>,
    pub(crate) clients: Vec<Arc<SimClient>>,
    /// The time until which the server accepts requests but does not process them.
    pub(crate) frozen_until: Option<Instant>,
    /// The time until which all connections to the server fail.
    pub(crate) down_until: Option<Instant>,
    /// The longest delay of a message.
    pub(crate) max_delay: Duration,
    /// The number of requests per thousand during which the connection is lost.
    pub(crate) disconnect_permille: u64,
    /// The processes that received an error at least once.
    pub(crate) failed: BTreeSet<usize>,
    /// The number of leases that were granted, by process and lock.
    pub(crate) granted: BTreeMap<(usize, Vec<u8>), u64>,
    /// The number of granted leases, which is also the sequence number of the latest one.
    leases: u64,
    /// The sequence number of the lease under which a key was last stored conditionally.
    stored_under: BTreeMap<Vec<u8>, u64>,
    /// The sequence number of each lease, by token.
    tokens: BTreeMap<Vec<u8>, u64>,
    trace: String,
    started: Instant,
}

struct SimValue {
    bytes: Vec<u8>,
    expires_at: Option<Instant>,
}

pub(crate) type SimShared = Arc<Mutex<SimWorld>>;

pub(crate) fn lock(world: &SimShared) -> MutexGuard<'_, SimWorld> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimWorld {
    pub(crate) fn new(random: SimRandom, max_delay: Duration, disconnect_permille: u64) -> Self {
        SimWorld {
            random,
            keys: BTreeMap::new(),
            trackers: BTreeMap::new(),
            clients: Vec::new(),
            frozen_until: None,
            down_until: None,
            max_delay,
            disconnect_permille,
            failed: BTreeSet::new(),
            granted: BTreeMap::new(),
            leases: 0,
            stored_under: BTreeMap::new(),
            tokens: BTreeMap::new(),
            trace: String::new(),
            started: Instant::now(),
        }
    }

    /// Adds a line to the trace that is printed if the schedule fails.
    pub(crate) fn note(&mut self, event: impl std::fmt::Display) {
        let _ = writeln!(self.trace, "{:>9.3} ms  {event}", self.started.elapsed().as_secs_f64() * 1e3);
    }

    pub(crate) fn trace(&self) -> &str {
        &self.trace
    }

    fn random_delay(&mut self) -> Duration {
        // Whole milliseconds, the resolution of tokio's timers. At least a quarter of all messages
        // is not delayed.
        let longest = self.max_delay.as_millis() as u64;
        if self.random.one_in(4) { Duration::ZERO } else { Duration::from_millis(self.random.below(longest + 1)) }
    }

    /// Returns the locks that are held.
    pub(crate) fn held_locks(&mut self) -> Vec<String> {
        self.expire();
        let locks = self.keys.keys().filter(|key| key.starts_with(b"_lok."));
        locks.map(|key| key.escape_ascii().to_string()).collect()
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let has_expired = |value: &SimValue| value.expires_at.is_some_and(|expires_at| expires_at <= now);
        let expired: Vec<_> =
            self.keys.iter().filter(|(_, value)| has_expired(value)).map(|(key, _)| key.clone()).collect();
        for key in expired {
            self.keys.remove(&key);
            self.notify_trackers(&key);
        }
    }

    pub(crate) fn flush(&mut self) {
        self.note("FLUSHALL");
        self.keys.clear();
        self.trackers.clear();
        for client in self.clients.clone() {
            client.push(self, b">2\r\n$10\r\ninvalidate\r\n_\r\n".to_vec());
        }
    }

    /// Evicts one lock, as a server does that runs out of memory.
    pub(crate) fn evict(&mut self) {
        let locks: Vec<_> = self.keys.keys().filter(|key| key.starts_with(b"_lok.")).cloned().collect();
        if !locks.is_empty() {
            let key = &locks[self.random.below(locks.len() as u64) as usize];
            self.note(format_args!("the server evicts {}", key.escape_ascii()));
            self.keys.remove(key);
            self.notify_trackers(key);
        }
    }

    fn notify_trackers(&mut self, key: &[u8]) {
        for (process, connection) in self.trackers.remove(key).unwrap_or_default() {
            let client = Arc::clone(&self.clients[process]);
            if client.tracking.lock().unwrap().connection == connection {
                let push = format!(">2\r\n$10\r\ninvalidate\r\n*1\r\n${}\r\n", key.len()).into_bytes();
                client.push(self, [&push[..], key, b"\r\n"].concat());
            }
        }
    }

    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.keys.get(key).map(|value| &value.bytes[..])
    }

    fn put(&mut self, key: &[u8], bytes: &[u8], ttl: Option<&[u8]>) {
        let ttl = ttl.map(|ttl| std::str::from_utf8(ttl).unwrap().parse().unwrap());
        let expires_at = ttl.map(|millis| Instant::now() + Duration::from_millis(millis));
        self.keys.insert(key.to_vec(), SimValue { bytes: bytes.to_vec(), expires_at });
        self.notify_trackers(key);
    }

    fn delete(&mut self, key: &[u8]) -> bool {
        let existed = self.keys.remove(key).is_some();
        if existed {
            self.notify_trackers(key);
        }
        existed
    }

    fn grant(&mut self, process: usize, lock: &[u8], token: &[u8], ttl: &[u8]) {
        self.note(format_args!("process {process} acquires {}", lock.escape_ascii()));
        self.put(lock, token, Some(ttl));
        self.leases += 1;
        self.tokens.insert(token.to_vec(), self.leases);
        *self.granted.entry((process, lock.to_vec())).or_default() += 1;
    }

    /// Executes one command and appends its reply to `out`.
    fn execute(&mut self, process: usize, command: &[Vec<u8>], out: &mut Vec<u8>) {
        self.expire();
        let words: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
        match words[..] {
            [b"GET", key] => bulk(out, self.get(key)),
            [b"MGET", ref keys @ ..] => {
                out.extend(format!("*{}\r\n", keys.len()).bytes());
                keys.iter().for_each(|key| bulk(out, self.get(key)));
            }
            [b"SET", lock, token, b"NX", b"GET", b"PX", ttl] => {
                bulk(out, self.get(lock));
                if self.get(lock).is_none() {
                    self.grant(process, lock, token, ttl);
                }
            }
            [b"SET", key, bytes] => {
                self.put(key, bytes, None);
                out.extend_from_slice(b"+OK\r\n");
            }
            [b"SET", key, bytes, b"PX", ttl] => {
                self.put(key, bytes, Some(ttl));
                out.extend_from_slice(b"+OK\r\n");
            }
            [b"MSET", ref pairs @ ..] => {
                pairs.chunks(2).for_each(|pair| self.put(pair[0], pair[1], None));
                out.extend_from_slice(b"+OK\r\n");
            }
            [b"DEL", ref keys @ ..] => {
                let deleted = keys.iter().filter(|key| self.delete(key)).count();
                out.extend(format!(":{deleted}\r\n").bytes());
            }
            [b"EVAL", script, _, lock, token] if script == commands::RELEASE => {
                let held = self.get(lock) == Some(token);
                if held {
                    self.note(format_args!("process {process} releases {}", lock.escape_ascii()));
                    self.delete(lock);
                }
                int(out, held);
            }
            [b"EVAL", script, _, lock, token, ttl] if script == commands::RENEW => {
                let held = self.get(lock) == Some(token);
                if held {
                    self.note(format_args!("process {process} renews {}", lock.escape_ascii()));
                    let token = token.to_vec();
                    self.put(lock, &token, Some(ttl));
                }
                int(out, held);
            }
            [b"EVAL", script, _, lock, key, token, ttl, b"", b"plain"] if script == commands::READ_OR_LEASE => {
                match self.get(key) {
                    Some(entry) => bulk(out, Some(entry)),
                    None => {
                        let is_free = self.get(lock).is_none();
                        if is_free {
                            self.grant(process, lock, token, ttl);
                        }
                        int(out, is_free || self.get(lock) == Some(token));
                    }
                }
            }
            [b"EVAL", script, _, lock, key, token, entry, ttl, b"", _, b"plain"]
                if script == commands::STORE_IF_HELD =>
            {
                let held = self.get(lock) == Some(token);
                if held {
                    let sequence = self.tokens[token];
                    let previous = self.stored_under.insert(key.to_vec(), sequence).unwrap_or(0);
                    assert!(
                        sequence > previous,
                        "a value of lease {sequence} overwrites one of the later lease {previous}"
                    );
                    self.put(key, entry, Some(ttl).filter(|ttl| !ttl.is_empty()));
                    self.delete(lock);
                }
                self.note(format_args!("process {process} stores if it holds {}: {held}", lock.escape_ascii()));
                int(out, held);
            }
            _ => panic!("the simulated server does not implement {}", command.concat().escape_ascii()),
        }
    }

    /// Returns the remaining TTL of a lock in milliseconds, and tracks the lock.
    ///
    /// The connection is notified when the lock changes.
    fn query_and_track(&mut self, process: usize, connection: u64, lock: &[u8]) -> i64 {
        self.expire();
        self.trackers.entry(lock.to_vec()).or_default().insert((process, connection));
        match self.keys.get(lock) {
            None => -2,
            Some(SimValue { expires_at: None, .. }) => -1,
            Some(SimValue { expires_at: Some(expires_at), .. }) => (*expires_at - Instant::now()).as_millis() as i64,
        }
    }
}

fn bulk(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => out.extend_from_slice(b"$-1\r\n"),
        Some(bytes) => {
            out.extend(format!("${}\r\n", bytes.len()).bytes());
            out.extend_from_slice(bytes);
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn int(out: &mut Vec<u8>, is_true: bool) {
    out.extend_from_slice(if is_true { b":1\r\n" } else { b":0\r\n" });
}

/// Parses the commands of a request.
fn commands(sent: &[u8], count: usize) -> Vec<Vec<Vec<u8>>> {
    let mut commands: Vec<Vec<Vec<u8>>> = Vec::new();
    let mut parser = Parser::new(1 << 20);
    parser.expect(count);
    let sent = Bytes::copy_from_slice(sent);
    let mut receive = |token: Token<'_>, _: &mut Chunk<'_>| {
        match token {
            Token::Array(_) => commands.push(Vec::new()),
            Token::Bulk(word) => commands.last_mut().unwrap().push(word.to_vec()),
            other => panic!("{other:?} is not part of a command"),
        }
        Ok(())
    };
    parser.feed(&mut Chunk::sharing(&sent), &mut receive).unwrap();
    commands
}

/// The two connections of a simulated process: one for requests, and one for client tracking.
pub(crate) struct SimClient {
    process: usize,
    world: std::sync::Weak<Mutex<SimWorld>>,
    requests: mpsc::UnboundedSender<SimRequest>,
    /// Wakes the task that queries watched leases.
    queries: mpsc::UnboundedSender<()>,
    /// The server's messages on the tracking connection: delay, connection id, and bytes.
    pushes: mpsc::UnboundedSender<(Duration, u64, Vec<u8>)>,
    tracking: Mutex<SimTracking>,
    has_crashed: std::sync::atomic::AtomicBool,
}

struct SimRequest {
    commands: Vec<Vec<Vec<u8>>>,
    reply: Option<oneshot::Sender<Result<Bytes, Error>>>,
}

struct SimTracking {
    watchers: LeaseWatchers,
    /// The id of the connection, which is incremented when the connection is lost.
    connection: u64,
}

/// The backend of a simulated process.
#[derive(Clone)]
pub(crate) struct SimBackend(pub(crate) Arc<SimClient>);

impl SimBackend {
    /// Adds a process to the simulation and returns its backend.
    pub(crate) fn new(world: &SimShared) -> Self {
        let (requests, incoming_requests) = mpsc::unbounded_channel();
        let (queries, incoming_queries) = mpsc::unbounded_channel();
        let (pushes, incoming_pushes) = mpsc::unbounded_channel();
        let tracking = SimTracking { watchers: LeaseWatchers::default(), connection: 0 };
        let client = Arc::new(SimClient {
            process: lock(world).clients.len(),
            world: Arc::downgrade(world),
            requests,
            queries,
            pushes,
            tracking: Mutex::new(tracking),
            has_crashed: false.into(),
        });
        lock(world).clients.push(Arc::clone(&client));
        tokio::spawn(execute_requests(Arc::clone(&client), Arc::clone(world), incoming_requests));
        tokio::spawn(run_queries(Arc::clone(&client), Arc::clone(world), incoming_queries));
        tokio::spawn(deliver_pushes(Arc::clone(&client), incoming_pushes));
        SimBackend(client)
    }

    async fn request(&self, commands: Vec<Vec<Vec<u8>>>) -> Result<Bytes, Error> {
        let (reply, response) = oneshot::channel();
        let outcome = match self.0.requests.send(SimRequest { commands, reply: Some(reply) }) {
            Ok(()) if !self.0.has_crashed() => timeout(RESPONSE_TIMEOUT, response).await,
            // The process has crashed, so its caller never continues.
            _ => std::future::pending().await,
        };
        match outcome {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(connection_lost()),
            Err(_) => Err(Error::new(ErrorKind::Timeout, "the simulated server did not reply in time")),
        }
    }
}

fn connection_lost() -> Error {
    Error::new(ErrorKind::Connection, "the simulated connection was lost")
}

impl TransportSettings for SimBackend {
    fn hash_ttl(&self) -> HashTtl {
        HashTtl::OnCreate
    }

    fn max_entry(&self) -> usize {
        1 << 20
    }

    fn watch(&self, lock: &[u8]) -> Option<Watch> {
        let lock = LockName::from(lock);
        let id = self.0.with_watchers(|watchers| watchers.watch(&lock));
        let _ = self.0.queries.send(());
        Some(Box::pin(LeaseWatch::new(&self.0, lock, id)))
    }
}

impl AsyncTransport for SimBackend {
    type Exec = crate::exec::Async;

    async fn exchange_async(
        &self,
        access: Access,
        _: Route,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> Result<(), Error> {
        let mut sent = Vec::new();
        let count = write(&mut sent);
        let mut result = self.request(commands(&sent, count)).await;
        if access != Access::Once && matches!(&result, Err(error) if error.kind() == ErrorKind::Connection) {
            result = self.request(commands(&sent, count)).await;
        }
        let reply_bytes = result.inspect_err(|error| {
            if let Some(world) = self.0.world.upgrade() {
                let mut world = world.lock().unwrap();
                world.note(format_args!("process {}: {error}", self.0.process));
                world.failed.insert(self.0.process);
            }
        })?;
        let mut parser = Parser::new(1 << 20);
        parser.expect(count);
        parser.feed(&mut Chunk::sharing(&reply_bytes), receive).map(drop)
    }

    fn send(&self, write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync) -> Result<(), Error> {
        let mut sent = Vec::new();
        let count = write(&mut sent);
        let _ = self.0.requests.send(SimRequest { commands: commands(&sent, count), reply: None });
        Ok(())
    }
}

/// Executes the requests of a process in order, and returns their replies.
async fn execute_requests(
    client: Arc<SimClient>,
    world: SimShared,
    mut incoming_requests: mpsc::UnboundedReceiver<SimRequest>,
) {
    let process = client.process;
    let mut last = Instant::now();
    while let Some(SimRequest { commands, reply }) = incoming_requests.recv().await {
        let delay = lock(&world).random_delay();
        last = last.max(Instant::now() + delay);
        sleep_until(last).await;
        let frozen = lock(&world).frozen_until;
        if let Some(until) = frozen {
            sleep_until(until).await;
        }
        let mut state = lock(&world);
        if client.has_crashed() {
            return;
        }
        let (disconnect_permille, is_down) =
            (state.disconnect_permille, state.down_until.is_some_and(|until| Instant::now() < until));
        let is_disconnected = is_down || state.random.below(1000) < disconnect_permille;
        // If the connection is lost, the request may or may not have reached the server.
        let is_executed = !is_down && (!is_disconnected || state.random.one_in(2));
        let mut reply_bytes = Vec::new();
        if is_executed {
            commands.iter().for_each(|command| state.execute(process, command, &mut reply_bytes));
        }
        let delay = state.random_delay();
        drop(state);
        if let Some(reply) = reply {
            tokio::spawn(async move {
                sleep(delay).await;
                let _ = reply.send(if is_disconnected { Err(connection_lost()) } else { Ok(reply_bytes.into()) });
            });
        }
    }
}

impl SimClient {
    pub(crate) fn has_crashed(&self) -> bool {
        self.has_crashed.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Crashes the process; its further requests are ignored.
    pub(crate) fn crash(&self) {
        self.has_crashed.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Closes the tracking connection.
    ///
    /// Messages in flight are lost. The process notices the loss after a delay.
    pub(crate) fn lose_tracking(self: &Arc<Self>, world: &mut SimWorld) {
        world.note(format_args!("process {} loses its tracking connection", self.process));
        let delay = world.random_delay();
        let mut tracking = self.tracking.lock().unwrap();
        tracking.connection += 1;
        let connection = tracking.connection;
        drop(tracking);
        let client = Arc::clone(self);
        tokio::spawn(async move {
            sleep(delay).await;
            let mut tracking = client.tracking.lock().unwrap();
            // This also wakes watchers that were added since the loss, which is harmless.
            tracking.connection = connection + 1;
            let woken = tracking.watchers.close();
            drop(tracking);
            woken.wake();
        });
    }

    /// Sends a message of the server over the tracking connection.
    fn push(&self, world: &mut SimWorld, message: Vec<u8>) {
        let connection = self.tracking.lock().unwrap().connection;
        let _ = self.pushes.send((world.random_delay(), connection, message));
    }
}

/// Delivers the messages of the tracking connection in order.
async fn deliver_pushes(
    client: Arc<SimClient>,
    mut incoming_pushes: mpsc::UnboundedReceiver<(Duration, u64, Vec<u8>)>,
) {
    while let Some((delay, connection, message)) = incoming_pushes.recv().await {
        sleep(delay).await;
        let mut tracking = client.tracking.lock().unwrap();
        if tracking.connection != connection {
            continue;
        }
        let message = Messages::new(1 << 20).cut(&mut &message[..]).unwrap().unwrap();
        let woken = tracking.watchers.on_message(&message, Instant::now().into_std()).unwrap();
        let next_end = tracking.watchers.next_end();
        drop(tracking);
        woken.wake();
        if let Some(end) = next_end {
            let client = Arc::clone(&client);
            tokio::spawn(async move {
                sleep_until(end.into()).await;
                let woken = client.with_watchers(|watchers| watchers.expire(Instant::now().into_std()));
                woken.wake();
            });
        }
    }
}

/// Queries the remaining TTLs of watched leases, one round at a time.
async fn run_queries(client: Arc<SimClient>, world: SimShared, mut incoming_queries: mpsc::UnboundedReceiver<()>) {
    while incoming_queries.recv().await.is_some() {
        let (mut sent, now) = (Vec::new(), Instant::now().into_std());
        let connection = {
            let mut tracking = client.tracking.lock().unwrap();
            tracking.watchers.write_queries(now, &mut sent);
            tracking.connection
        };
        let locks = sent.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"_lok."));
        let locks: Vec<_> = locks.map(|line| line[..line.len() - 1].to_vec()).collect();
        let delay = lock(&world).random_delay();
        sleep(delay).await;
        let frozen = lock(&world).frozen_until;
        if let Some(until) = frozen {
            sleep_until(until).await;
        }
        let mut world = lock(&world);
        if client.has_crashed() || client.tracking.lock().unwrap().connection != connection {
            continue;
        }
        if world.down_until.is_some_and(|until| Instant::now() < until) {
            client.lose_tracking(&mut world);
            continue;
        }
        for lock in locks {
            let remaining_ttl = world.query_and_track(client.process, connection, &lock);
            client.push(&mut world, format!(":{remaining_ttl}\r\n").into_bytes());
        }
    }
}

impl SharedWatchers for SimClient {
    fn with_watchers<T>(&self, with: impl FnOnce(&mut LeaseWatchers) -> T) -> T {
        with(&mut self.tracking.lock().unwrap().watchers)
    }
}
