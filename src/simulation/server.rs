//! A simulated server, and the links of simulated processes to it, which delay, lose and repeat what goes over them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::backend::leases::Watch;
use crate::error::{Error, ErrorKind};
use crate::redis::HashExpiry;
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::commands;
use crate::redis::protocol::parser::{Messages, Receive, Replies, Token};
use crate::redis::tracking::lease_watchers::{Keeps, Name, Watches, Watching};
use crate::redis::transport::{Access, AsyncExchange, ExchangeSettings, Route};
use crate::simulation::Random;

/// How long a request waits for its answer.
pub(crate) const RESPONSE: Duration = Duration::from_secs(1);

/// Everything that the simulated processes share.
pub(crate) struct World {
    pub(crate) random: Random,
    keys: BTreeMap<Vec<u8>, Value>,
    /// Which listening connections are to be told when a key changes: process and number of its connection.
    trackers: BTreeMap<Vec<u8>, BTreeSet<(usize, u64)>>,
    pub(crate) links: Vec<Arc<Link>>,
    /// It answers nobody until then.
    pub(crate) frozen_until: Option<Instant>,
    /// Nobody can connect until then.
    pub(crate) down_until: Option<Instant>,
    /// The longest delay of a message.
    pub(crate) delay: Duration,
    /// Of a thousand requests so many break their connection.
    pub(crate) cuts: u64,
    /// Whether a process was ever told of a failure.
    pub(crate) failed: BTreeSet<usize>,
    /// How many leases each process was given for a lock, and in which order.
    pub(crate) granted: BTreeMap<(usize, Vec<u8>), u64>,
    leases: u64,
    /// The order of the lease under which the last value of a key was stored, and by whom, where that is conditional.
    stored_under: BTreeMap<Vec<u8>, u64>,
    tokens: BTreeMap<Vec<u8>, u64>,
    trace: String,
    begun: Instant,
}

struct Value {
    bytes: Vec<u8>,
    until: Option<Instant>,
}

pub(crate) type Shared = Arc<Mutex<World>>;

pub(crate) fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(crate) fn new(random: Random, delay: Duration, cuts: u64) -> Self {
        World {
            random,
            keys: BTreeMap::new(),
            trackers: BTreeMap::new(),
            links: Vec::new(),
            frozen_until: None,
            down_until: None,
            delay,
            cuts,
            failed: BTreeSet::new(),
            granted: BTreeMap::new(),
            leases: 0,
            stored_under: BTreeMap::new(),
            tokens: BTreeMap::new(),
            trace: String::new(),
            begun: Instant::now(),
        }
    }

    /// Notes what happened, for who looks at a schedule that failed.
    pub(crate) fn note(&mut self, what: impl std::fmt::Display) {
        let _ = writeln!(self.trace, "{:>9.3} ms  {what}", self.begun.elapsed().as_secs_f64() * 1e3);
    }

    pub(crate) fn trace(&self) -> &str {
        &self.trace
    }

    fn a_delay(&mut self) -> Duration {
        // In milliseconds, as timers tell the time; often none at all.
        let most = self.delay.as_millis() as u64;
        if self.random.one_in(4) { Duration::ZERO } else { Duration::from_millis(self.random.below(most + 1)) }
    }

    /// Locks that somebody holds.
    pub(crate) fn locks(&mut self) -> Vec<String> {
        self.expire();
        let locks = self.keys.keys().filter(|key| key.starts_with(b"_lok."));
        locks.map(|key| key.escape_ascii().to_string()).collect()
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let ended = |value: &Value| value.until.is_some_and(|until| until <= now);
        let gone: Vec<_> = self.keys.iter().filter(|(_, value)| ended(value)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.keys.remove(&key);
            self.changed(&key);
        }
    }

    pub(crate) fn flush(&mut self) {
        self.note("FLUSHALL");
        self.keys.clear();
        self.trackers.clear();
        for link in self.links.clone() {
            link.hears(self, b">2\r\n$10\r\ninvalidate\r\n_\r\n".to_vec());
        }
    }

    /// Evicts one lock, as servers do that have no memory left.
    pub(crate) fn evict(&mut self) {
        let locks: Vec<_> = self.keys.keys().filter(|key| key.starts_with(b"_lok.")).cloned().collect();
        if !locks.is_empty() {
            let key = &locks[self.random.below(locks.len() as u64) as usize];
            self.note(format_args!("evicts {}", key.escape_ascii()));
            self.keys.remove(key);
            self.changed(key);
        }
    }

    fn changed(&mut self, key: &[u8]) {
        for (process, connection) in self.trackers.remove(key).unwrap_or_default() {
            let link = Arc::clone(&self.links[process]);
            if link.ears.lock().unwrap().connection == connection {
                let push = format!(">2\r\n$10\r\ninvalidate\r\n*1\r\n${}\r\n", key.len()).into_bytes();
                link.hears(self, [&push[..], key, b"\r\n"].concat());
            }
        }
    }

    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.keys.get(key).map(|value| &value.bytes[..])
    }

    fn put(&mut self, key: &[u8], bytes: &[u8], life: Option<&[u8]>) {
        let life = life.map(|life| std::str::from_utf8(life).unwrap().parse().unwrap());
        let until = life.map(|millis| Instant::now() + Duration::from_millis(millis));
        self.keys.insert(key.to_vec(), Value { bytes: bytes.to_vec(), until });
        self.changed(key);
    }

    fn delete(&mut self, key: &[u8]) -> bool {
        let was_there = self.keys.remove(key).is_some();
        if was_there {
            self.changed(key);
        }
        was_there
    }

    fn grant(&mut self, process: usize, lock: &[u8], token: &[u8], life: &[u8]) {
        self.note(format_args!("process {process} is given {}", lock.escape_ascii()));
        self.put(lock, token, Some(life));
        self.leases += 1;
        self.tokens.insert(token.to_vec(), self.leases);
        *self.granted.entry((process, lock.to_vec())).or_default() += 1;
    }

    /// Executes one command: its reply.
    fn execute(&mut self, process: usize, command: &[Vec<u8>], out: &mut Vec<u8>) {
        self.expire();
        let words: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
        match words[..] {
            [b"GET", key] => bulk(out, self.get(key)),
            [b"MGET", ref keys @ ..] => {
                out.extend(format!("*{}\r\n", keys.len()).bytes());
                keys.iter().for_each(|key| bulk(out, self.get(key)));
            }
            [b"SET", lock, token, b"NX", b"GET", b"PX", life] => {
                bulk(out, self.get(lock));
                if self.get(lock).is_none() {
                    self.grant(process, lock, token, life);
                }
            }
            [b"SET", key, bytes] => {
                self.put(key, bytes, None);
                out.extend_from_slice(b"+OK\r\n");
            }
            [b"SET", key, bytes, b"PX", life] => {
                self.put(key, bytes, Some(life));
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
            [b"EVAL", script, _, lock, token, life] if script == commands::RENEW => {
                let held = self.get(lock) == Some(token);
                if held {
                    self.note(format_args!("process {process} renews {}", lock.escape_ascii()));
                    let token = token.to_vec();
                    self.put(lock, &token, Some(life));
                }
                int(out, held);
            }
            [b"EVAL", script, _, lock, key, token, life, b"", b"plain"] if script == commands::READ_OR_LEASE => {
                match self.get(key) {
                    Some(entry) => bulk(out, Some(entry)),
                    None => {
                        let is_free = self.get(lock).is_none();
                        if is_free {
                            self.grant(process, lock, token, life);
                        }
                        int(out, is_free || self.get(lock) == Some(token));
                    }
                }
            }
            [b"EVAL", script, _, lock, key, token, entry, life, b"", _, b"plain"]
                if script == commands::STORE_IF_HELD =>
            {
                let held = self.get(lock) == Some(token);
                if held {
                    let order = self.tokens[token];
                    let before = self.stored_under.insert(key.to_vec(), order).unwrap_or(0);
                    assert!(order > before, "a value of lease {order} overwrites one of lease {before}");
                    self.put(key, entry, Some(life).filter(|life| !life.is_empty()));
                    self.delete(lock);
                }
                self.note(format_args!("process {process} stores if it holds {}: {held}", lock.escape_ascii()));
                int(out, held);
            }
            _ => panic!("the simulated server does not know {}", command.concat().escape_ascii()),
        }
    }

    /// The remaining life of a lock; the connection is told when it changes.
    fn remaining(&mut self, process: usize, connection: u64, lock: &[u8]) -> i64 {
        self.expire();
        self.trackers.entry(lock.to_vec()).or_default().insert((process, connection));
        match self.keys.get(lock) {
            None => -2,
            Some(Value { until: None, .. }) => -1,
            Some(Value { until: Some(until), .. }) => (*until - Instant::now()).as_millis() as i64,
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

fn int(out: &mut Vec<u8>, is_so: bool) {
    out.extend_from_slice(if is_so { b":1\r\n" } else { b":0\r\n" });
}

/// The commands in what was sent.
fn commands(sent: &[u8], count: usize) -> Vec<Vec<Vec<u8>>> {
    let mut commands: Vec<Vec<Vec<u8>>> = Vec::new();
    let mut replies = Replies::new(1 << 20);
    replies.expect(count);
    let sent = Bytes::copy_from_slice(sent);
    let mut receive = |token: Token<'_>, _: &mut Chunk<'_>| {
        match token {
            Token::Array(_) => commands.push(Vec::new()),
            Token::Bulk(word) => commands.last_mut().unwrap().push(word.to_vec()),
            other => panic!("{other:?} is no command"),
        }
        Ok(())
    };
    replies.feed(&mut Chunk::sharing(&sent), &mut receive).unwrap();
    commands
}

/// A process's connections to the server: one for requests, and one to listen.
pub(crate) struct Link {
    process: usize,
    world: std::sync::Weak<Mutex<World>>,
    requests: mpsc::UnboundedSender<Request>,
    /// Somebody watches a lease.
    questions: mpsc::UnboundedSender<()>,
    /// What the server says over the listening connection of that number.
    heard: mpsc::UnboundedSender<(Duration, u64, Vec<u8>)>,
    ears: Mutex<Ears>,
    is_dead: std::sync::atomic::AtomicBool,
}

struct Request {
    commands: Vec<Vec<Vec<u8>>>,
    reply: Option<oneshot::Sender<Result<Bytes, Error>>>,
}

struct Ears {
    watches: Watches,
    /// The number of the connection.
    connection: u64,
}

/// A process's handle of the server.
#[derive(Clone)]
pub(crate) struct Handle(pub(crate) Arc<Link>);

impl Handle {
    /// The handle of another process.
    pub(crate) fn new(world: &Shared) -> Self {
        let (requests, incoming) = mpsc::unbounded_channel();
        let (questions, asked) = mpsc::unbounded_channel();
        let (heard, said) = mpsc::unbounded_channel();
        let ears = Ears { watches: Watches::default(), connection: 0 };
        let link = Arc::new(Link {
            process: lock(world).links.len(),
            world: Arc::downgrade(world),
            requests,
            questions,
            heard,
            ears: Mutex::new(ears),
            is_dead: false.into(),
        });
        lock(world).links.push(Arc::clone(&link));
        tokio::spawn(carry(Arc::clone(&link), Arc::clone(world), incoming));
        tokio::spawn(ask(Arc::clone(&link), Arc::clone(world), asked));
        tokio::spawn(hear(Arc::clone(&link), said));
        Handle(link)
    }

    async fn request(&self, commands: Vec<Vec<Vec<u8>>>) -> Result<Bytes, Error> {
        let (reply, answer) = oneshot::channel();
        let answered = match self.0.requests.send(Request { commands, reply: Some(reply) }) {
            Ok(()) if !self.0.is_dead() => timeout(RESPONSE, answer).await,
            // Nobody is there any more who could learn of it.
            _ => std::future::pending().await,
        };
        match answered {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(broken()),
            Err(_) => Err(Error::new(ErrorKind::Timeout, "the simulated server does not answer")),
        }
    }
}

fn broken() -> Error {
    Error::new(ErrorKind::Connection, "the simulated connection broke")
}

impl ExchangeSettings for Handle {
    fn hash_expiry(&self) -> HashExpiry {
        HashExpiry::OnCreate
    }

    fn max_entry(&self) -> usize {
        1 << 20
    }

    fn watch(&self, lock: &[u8]) -> Option<Watch> {
        let lock = Name::from(lock);
        let number = self.0.watches(|watches| watches.watch(&lock));
        let _ = self.0.questions.send(());
        Some(Box::pin(Watching::new(&self.0, lock, number)))
    }
}

impl AsyncExchange for Handle {
    async fn exchange_async(
        &self,
        access: Access,
        _: Route,
        write: impl Fn(&mut Vec<u8>) -> usize + Send + Sync,
        receive: &mut (impl Receive + Send),
    ) -> Result<(), Error> {
        let mut sent = Vec::new();
        let count = write(&mut sent);
        let mut answered = self.request(commands(&sent, count)).await;
        if access != Access::Once && matches!(&answered, Err(error) if error.kind() == ErrorKind::Connection) {
            answered = self.request(commands(&sent, count)).await;
        }
        let answer = answered.inspect_err(|error| {
            if let Some(world) = self.0.world.upgrade() {
                let mut world = world.lock().unwrap();
                world.note(format_args!("process {}: {error}", self.0.process));
                world.failed.insert(self.0.process);
            }
        })?;
        let mut replies = Replies::new(1 << 20);
        replies.expect(count);
        replies.feed(&mut Chunk::sharing(&answer), receive).map(drop)
    }

    fn send(&self, write: impl FnOnce(&mut Vec<u8>) -> usize) {
        let mut sent = Vec::new();
        let count = write(&mut sent);
        let _ = self.0.requests.send(Request { commands: commands(&sent, count), reply: None });
    }
}

/// Carries the requests of a process to the server, one after the other, and the replies back.
async fn carry(link: Arc<Link>, world: Shared, mut incoming: mpsc::UnboundedReceiver<Request>) {
    let process = link.process;
    let mut last = Instant::now();
    while let Some(Request { commands, reply }) = incoming.recv().await {
        let delay = lock(&world).a_delay();
        last = last.max(Instant::now() + delay);
        sleep_until(last).await;
        let frozen = lock(&world).frozen_until;
        if let Some(until) = frozen {
            sleep_until(until).await;
        }
        let mut state = lock(&world);
        if link.is_dead() {
            return;
        }
        let (cuts, is_down) = (state.cuts, state.down_until.is_some_and(|until| Instant::now() < until));
        let is_cut = is_down || state.random.below(1000) < cuts;
        // A connection that breaks may have carried the request or not.
        let is_executed = !is_down && (!is_cut || state.random.one_in(2));
        let mut answer = Vec::new();
        if is_executed {
            commands.iter().for_each(|command| state.execute(process, command, &mut answer));
        }
        let delay = state.a_delay();
        drop(state);
        if let Some(reply) = reply {
            tokio::spawn(async move {
                sleep(delay).await;
                let _ = reply.send(if is_cut { Err(broken()) } else { Ok(answer.into()) });
            });
        }
    }
}

impl Link {
    pub(crate) fn is_dead(&self) -> bool {
        self.is_dead.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The process is gone: nothing of what it says from now on is heard.
    pub(crate) fn die(&self) {
        self.is_dead.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// The listening connection breaks. What is on its way to it is lost; the process learns of it a while later.
    pub(crate) fn cut(self: &Arc<Self>, world: &mut World) {
        world.note(format_args!("process {} listens no more", self.process));
        let delay = world.a_delay();
        let mut ears = self.ears.lock().unwrap();
        ears.connection += 1;
        let connection = ears.connection;
        drop(ears);
        let link = Arc::clone(self);
        tokio::spawn(async move {
            sleep(delay).await;
            let mut ears = link.ears.lock().unwrap();
            // Whoever came since then is woken too; that does no harm.
            ears.connection = connection + 1;
            let woken = ears.watches.deafen();
            drop(ears);
            woken.wake();
        });
    }

    /// The server says something over the listening connection.
    fn hears(&self, world: &mut World, message: Vec<u8>) {
        let connection = self.ears.lock().unwrap().connection;
        let _ = self.heard.send((world.a_delay(), connection, message));
    }
}

/// Takes what the server says over the listening connection, in its order.
async fn hear(link: Arc<Link>, mut said: mpsc::UnboundedReceiver<(Duration, u64, Vec<u8>)>) {
    while let Some((delay, connection, message)) = said.recv().await {
        sleep(delay).await;
        let mut ears = link.ears.lock().unwrap();
        if ears.connection != connection {
            continue;
        }
        let message = Messages::new(1 << 20).cut(&mut &message[..]).unwrap().unwrap();
        let woken = ears.watches.heard(&message, Instant::now().into_std()).unwrap();
        let next_end = ears.watches.next_end();
        drop(ears);
        woken.wake();
        if let Some(end) = next_end {
            let link = Arc::clone(&link);
            tokio::spawn(async move {
                sleep_until(end.into()).await;
                let woken = link.watches(|watches| watches.pass(Instant::now().into_std()));
                woken.wake();
            });
        }
    }
}

/// Asks for the remaining lives of what is watched, one question after the other.
async fn ask(link: Arc<Link>, world: Shared, mut asked: mpsc::UnboundedReceiver<()>) {
    while asked.recv().await.is_some() {
        let (mut sent, now) = (Vec::new(), Instant::now().into_std());
        let connection = {
            let mut ears = link.ears.lock().unwrap();
            ears.watches.ask(now, &mut sent);
            ears.connection
        };
        let locks = sent.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"_lok."));
        let locks: Vec<_> = locks.map(|line| line[..line.len() - 1].to_vec()).collect();
        let delay = lock(&world).a_delay();
        sleep(delay).await;
        let frozen = lock(&world).frozen_until;
        if let Some(until) = frozen {
            sleep_until(until).await;
        }
        let mut world = lock(&world);
        if link.is_dead() || link.ears.lock().unwrap().connection != connection {
            continue;
        }
        if world.down_until.is_some_and(|until| Instant::now() < until) {
            link.cut(&mut world);
            continue;
        }
        for lock in locks {
            let remaining = world.remaining(link.process, connection, &lock);
            link.hears(&mut world, format!(":{remaining}\r\n").into_bytes());
        }
    }
}

impl Keeps for Link {
    fn watches<T>(&self, with: impl FnOnce(&mut Watches) -> T) -> T {
        with(&mut self.ears.lock().unwrap().watches)
    }
}
