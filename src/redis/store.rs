//! What a backend and its leases are over anything that exchanges commands for replies with a Redis server, for both
//! faces.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};

#[cfg(feature = "tokio")]
use crate::backend::AsyncBackend;
use crate::backend::Backend;
#[cfg(feature = "tokio")]
use crate::backend::leases::AsyncLeases;
use crate::backend::leases::Lease;
use crate::backend::leases::{Leases, Watch};
use crate::batch::{Batch, Found};
use crate::error::{Error, ErrorKind};
#[cfg(feature = "tokio")]
use crate::exec::Task;
use crate::exec::{Thread, now};
use crate::key::{Key, KeyBuf};
use crate::redis::HashExpiry;
use crate::redis::protocol::batch::{Acknowledged, Gather, Groups, server_error, unexpected};
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::commands;
use crate::redis::protocol::commands::stamped::Script;
use crate::redis::protocol::parser::{Receive, Strings, Token};
use crate::redis::protocol::slot;
use crate::redis::protocol::slot::Slots;
use crate::redis::stamp::Stamp;
#[cfg(feature = "tokio")]
use crate::redis::transport::AsyncExchange;
use crate::redis::transport::Face;
use crate::redis::transport::{Access, Exchange, ExchangeSettings, Route};
use crate::slice::Slice;
use crate::time::Timestamp;

impl<X: Exchange> Backend for X {
    #[inline]
    fn get(&self, key: Key<'_>) -> Result<Option<Bytes>, Error> {
        // Apart from that of tasks, since a hit should not cost what a future does.
        let stamp = stamp_of(self, key);
        let mut one = One::default();
        let exchanged = self.exchange(Access::Read, route(self, key), |out| commands::get(out, key, stamp), &mut one);
        match stamp {
            None => one.finish(exchanged, key),
            Some(stamp) => one.finish_stamped(exchanged, key, stamp, self),
        }
    }

    fn get_many(&self, keys: &[Key<'_>], found: &mut Found) -> Result<(), Error> {
        now(get_many::<Thread, X>(self, keys, found))
    }

    fn set(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
        now(set::<Thread, X>(self, key, entry, ttl))
    }

    fn set_many(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error> {
        now(set_many::<Thread, X>(self, batch, ttl))
    }

    fn max_entry(&self) -> usize {
        ExchangeSettings::max_entry(self)
    }

    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        now(delete_many::<Thread, X>(self, keys))
    }
}

impl<X: Exchange> Leases for X {
    fn lease(&self, wanted: &[Lease<'_>], life: Duration) -> Result<Vec<(bool, Option<Bytes>)>, Error> {
        now(lease::<Thread, X>(self, wanted, life))
    }

    fn read_or_lease(&self, wanted: Lease<'_>, life: Duration) -> Result<(bool, Option<Bytes>), Error> {
        now(read_or_lease::<Thread, X>(self, wanted, life))
    }

    fn release(&self, held: &[Lease<'_>]) -> Result<Vec<bool>, Error> {
        now(release::<Thread, X>(self, held))
    }

    fn renew(&self, held: &[Lease<'_>], life: Duration) -> Result<Vec<bool>, Error> {
        now(renew::<Thread, X>(self, held, life))
    }

    fn set_and_release(
        &self,
        held: &[Lease<'_>],
        batch: &Batch,
        ttl: Option<Duration>,
        only_if_held: bool,
    ) -> Result<Vec<bool>, Error> {
        now(set_and_release::<Thread, X>(self, held, batch, ttl, only_if_held))
    }

    fn is_leased(&self, lock: &[u8]) -> Result<bool, Error> {
        now(is_leased::<Thread, X>(self, lock))
    }

    fn lock_name(&self, prefix: &[u8], key: Key<'_>) -> KeyBuf {
        lock_name(self, prefix, key)
    }

    fn watch(&self, lock: &[u8]) -> Option<Watch> {
        ExchangeSettings::watch(self, lock)
    }
}

#[cfg(feature = "tokio")]
impl<X: AsyncExchange> AsyncBackend for X {
    #[inline]
    async fn get_async(&self, key: Key<'_>) -> Result<Option<Bytes>, Error> {
        let mut one = One::default();
        let write = |out: &mut Vec<u8>| commands::get(out, key, stamp_of(self, key));
        let exchanged = self.exchange_async(Access::Read, route(self, key), write, &mut one).await;
        match stamp_of(self, key) {
            None => one.finish(exchanged, key),
            Some(stamp) => one.finish_stamped(exchanged, key, stamp, self),
        }
    }

    fn get_many_async(&self, keys: &[Key<'_>], found: &mut Found) -> impl Future<Output = Result<(), Error>> + Send {
        get_many::<Task, X>(self, keys, found)
    }

    fn set_async(
        &self,
        key: Key<'_>,
        entry: &[u8],
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        set::<Task, X>(self, key, entry, ttl)
    }

    fn set_many_async(&self, batch: &Batch, ttl: Option<Duration>) -> impl Future<Output = Result<(), Error>> + Send {
        set_many::<Task, X>(self, batch, ttl)
    }

    fn max_entry_async(&self) -> usize {
        ExchangeSettings::max_entry(self)
    }

    fn delete_many_async(&self, keys: &[Key<'_>]) -> impl Future<Output = Result<(), Error>> + Send {
        delete_many::<Task, X>(self, keys)
    }
}

#[cfg(feature = "tokio")]
impl<X: AsyncExchange> AsyncLeases for X {
    fn lease_async(
        &self,
        wanted: &[Lease<'_>],
        life: Duration,
    ) -> impl Future<Output = Result<Vec<(bool, Option<Bytes>)>, Error>> + Send {
        lease::<Task, X>(self, wanted, life)
    }

    fn read_or_lease_async(
        &self,
        wanted: Lease<'_>,
        life: Duration,
    ) -> impl Future<Output = Result<(bool, Option<Bytes>), Error>> + Send {
        read_or_lease::<Task, X>(self, wanted, life)
    }

    fn release_async(&self, held: &[Lease<'_>]) -> impl Future<Output = Result<Vec<bool>, Error>> + Send {
        release::<Task, X>(self, held)
    }

    fn send_release(&self, held: &[Lease<'_>]) {
        self.send(|out| write_releases(out, held));
    }

    fn renew_async(&self, held: &[Lease<'_>], life: Duration) -> impl Future<Output = Result<Vec<bool>, Error>> + Send {
        renew::<Task, X>(self, held, life)
    }

    fn set_and_release_async(
        &self,
        held: &[Lease<'_>],
        batch: &Batch,
        ttl: Option<Duration>,
        only_if_held: bool,
    ) -> impl Future<Output = Result<Vec<bool>, Error>> + Send {
        set_and_release::<Task, X>(self, held, batch, ttl, only_if_held)
    }

    fn is_leased_async(&self, lock: &[u8]) -> impl Future<Output = Result<bool, Error>> + Send {
        is_leased::<Task, X>(self, lock)
    }

    fn lock_name_async(&self, prefix: &[u8], key: Key<'_>) -> KeyBuf {
        lock_name(self, prefix, key)
    }

    fn watch_async(&self, lock: &[u8]) -> Option<Watch> {
        ExchangeSettings::watch(self, lock)
    }
}

#[inline]
async fn get_many<A: Face<X>, X: ExchangeSettings>(
    server: &X,
    keys: &[Key<'_>],
    found: &mut Found,
) -> Result<(), Error> {
    found.reset(keys.len());
    if keys.is_empty() {
        return Ok(());
    }
    let groups = Groups::of(keys.len(), |at| keys[at], slots(server));
    let mut gather = Gather::new(&groups, found);
    let expiry = server.hash_expiry();
    let write = |out: &mut Vec<u8>| write_groups(out, commands::Verb::Get, &groups, expiry, |at| keys[at]);
    A::exchange(server, Access::Read, route_all(server, keys.len(), || keys[0]), write, &mut gather)
        .await
        .and_then(|()| gather.finish())
        .map_err(|error| error.during(format_args!("reading {} keys", keys.len())))?;
    open_all(server, expiry, keys.iter().copied(), found);
    Ok(())
}

#[inline]
async fn set<A: Face<X>, X: ExchangeSettings>(
    server: &X,
    key: Key<'_>,
    entry: &[u8],
    ttl: Option<Duration>,
) -> Result<(), Error> {
    let set = async {
        check_size(server, key, entry)?;
        let life = life(server, ttl);
        store::<A, X>(server, route(server, key), |out, script| commands::set(out, script, key, entry, life)).await
    };
    set.await.map_err(|error| error.during(format_args!("writing {key}")))
}

async fn set_many<A: Face<X>, X: ExchangeSettings>(
    server: &X,
    batch: &Batch,
    ttl: Option<Duration>,
) -> Result<(), Error> {
    if batch.is_empty() {
        return Ok(());
    }
    let groups = Groups::of(batch.len(), |at| batch.key(at), slots(server));
    let set = async {
        check_sizes(server, batch)?;
        let life = life(server, ttl);
        let route = route_all(server, batch.len(), || batch.key(0));
        store::<A, X>(server, route, |out, script| write_batch(out, script, &groups, batch, life)).await
    };
    set.await.map_err(|error| error.during(format_args!("writing {} keys", batch.len())))
}

/// Writes what may be written again: by the digest of the script where there is one, and once more by its text for a
/// server that does not know it.
#[inline]
async fn store<A: Face<X>, X: ExchangeSettings>(
    server: &X,
    route: Route,
    write: impl Fn(&mut Vec<u8>, &mut Script) -> usize + Send + Sync,
) -> Result<(), Error> {
    let mut script = Script::Digest;
    loop {
        let mut acknowledged = Acknowledged::default();
        let write = |out: &mut Vec<u8>| {
            let mut script = script;
            write(out, &mut script)
        };
        A::exchange(server, Access::Write, route, write, &mut acknowledged).await?;
        if script != Script::Digest || !acknowledged.lacks_script() {
            return acknowledged.finish();
        }
        script = Script::text(server.is_cluster());
    }
}

async fn delete_many<A: Face<X>, X: ExchangeSettings>(server: &X, keys: &[Key<'_>]) -> Result<(), Error> {
    if keys.is_empty() {
        return Ok(());
    }
    let groups = Groups::of(keys.len(), |at| keys[at], slots(server));
    let route = route_all(server, keys.len(), || keys[0]);
    let mut acknowledged = Acknowledged::default();
    let expiry = server.hash_expiry();
    let write = |out: &mut Vec<u8>| write_groups(out, commands::Verb::Delete, &groups, expiry, |at| keys[at]);
    A::exchange(server, Access::Write, route, write, &mut acknowledged)
        .await
        .and_then(|()| acknowledged.finish())
        .map_err(|error| match keys {
            [key] => error.during(format_args!("deleting {key}")),
            _ => error.during(format_args!("deleting {} keys", keys.len())),
        })
}

async fn lease<A: Face<X>, X: ExchangeSettings>(
    server: &X,
    wanted: &[Lease<'_>],
    life: Duration,
) -> Result<Vec<(bool, Option<Bytes>)>, Error> {
    let groups = Groups::of(wanted.len(), |at| wanted[at].key, slots(server));
    let mut found = Found::new();
    found.reset(wanted.len());
    let mut gather = Gather::new(&groups, &mut found);
    let mut leased = Vec::with_capacity(wanted.len());
    let mut failed = None;
    let expiry = server.hash_expiry();
    let write = |out: &mut Vec<u8>| {
        let leases: usize = wanted.iter().map(|lease| commands::lease(out, lease.lock, lease.token, life)).sum();
        leases + write_groups(out, commands::Verb::Get, &groups, expiry, |at| wanted[at].key)
    };
    let mut receive = |reply: Token<'_>, chunk: &mut Chunk<'_>| {
        match reply {
            reply if leased.len() == wanted.len() => return gather.token(reply, chunk),
            Token::Nil => leased.push(true),
            Token::Bulk(holder) => leased.push(holder == wanted[leased.len()].token),
            Token::Error(error) => {
                leased.push(false);
                failed.get_or_insert_with(|| server_error(error));
            }
            other => return Err(unexpected(other)),
        }
        Ok(())
    };
    A::exchange(server, Access::Write, route_leases(server, wanted), write, &mut receive)
        .await
        .and_then(|()| failed.map_or(Ok(()), Err))
        .and_then(|()| gather.finish())
        .map_err(|error| error.during(Of("locking", wanted)))?;
    open_all(server, expiry, wanted.iter().map(|lease| lease.key), &mut found);
    let entries = found.iter().map(|entry| entry.map(Slice::to_bytes));
    Ok(leased.into_iter().zip(entries).collect())
}

async fn read_or_lease<A: Face<X>, X: ExchangeSettings>(
    server: &X,
    wanted: Lease<'_>,
    life: Duration,
) -> Result<(bool, Option<Bytes>), Error> {
    let (mut is_ours, mut one) = (false, One::default());
    let mut receive = |reply: Token<'_>, chunk: &mut Chunk<'_>| match reply {
        Token::Int(int) => {
            is_ours = int == 1;
            Ok(())
        }
        entry => one.token(entry, chunk),
    };
    let stamp = stamp_of(server, wanted.key);
    let write = |out: &mut Vec<u8>| commands::read_or_lease(out, &wanted, life, stamp);
    let exchanged = A::exchange(server, Access::Write, route(server, wanted.key), write, &mut receive).await;
    // While a slot moves, lock and entry may be at two servers of a cluster, and there is no script for both.
    if server.is_cluster() && matches!(&exchanged, Err(error) if error.kind() == ErrorKind::Connection) {
        return lease_one::<A, X>(server, wanted, life).await;
    }
    let entry = one.finish(exchanged, wanted.key)?;
    let (Some(stamp), Some(stamped)) = (stamp, &entry) else { return Ok((is_ours, entry)) };
    if let Some(entry) = open(stamp, stamped.clone(), server.now()) {
        return Ok((is_ours, Some(entry)));
    }
    // The script took what has expired for an entry, and so no lease.
    lease_one::<A, X>(server, wanted, life).await
}

async fn lease_one<A: Face<X>, X: ExchangeSettings>(
    server: &X,
    wanted: Lease<'_>,
    life: Duration,
) -> Result<(bool, Option<Bytes>), Error> {
    let mut attempts = lease::<A, X>(server, &[wanted], life).await?;
    Ok(attempts.pop().unwrap_or((false, None)))
}

async fn release<A: Face<X>, X: ExchangeSettings>(server: &X, held: &[Lease<'_>]) -> Result<Vec<bool>, Error> {
    let mut released = Flags::default();
    let write = |out: &mut Vec<u8>| write_releases(out, held);
    A::exchange(server, Access::Write, route_leases(server, held), write, &mut released)
        .await
        .and_then(|()| released.finish())
        .map_err(|error| error.during(Of("unlocking", held)))
}

async fn renew<A: Face<X>, X: ExchangeSettings>(
    server: &X,
    held: &[Lease<'_>],
    life: Duration,
) -> Result<Vec<bool>, Error> {
    let mut renewed = Flags::default();
    let write =
        |out: &mut Vec<u8>| held.iter().map(|lease| commands::renew(out, lease.lock, lease.token, life)).sum::<usize>();
    A::exchange(server, Access::Write, route_leases(server, held), write, &mut renewed)
        .await
        .and_then(|()| renewed.finish())
        .map_err(|error| error.during(Of("renewing the lease of", held)))
}

async fn set_and_release<A: Face<X>, X: ExchangeSettings>(
    server: &X,
    held: &[Lease<'_>],
    batch: &Batch,
    ttl: Option<Duration>,
    only_if_held: bool,
) -> Result<Vec<bool>, Error> {
    let mut acknowledged = Acknowledged::default();
    let mut released = Flags::default();
    let groups = Groups::of(batch.len(), |at| batch.key(at), slots(server));
    let life = life(server, ttl);
    // The writes come first and are only acknowledged; then each release says whether the lease was still held. One
    // closure tells the other, which runs later.
    let writes = AtomicUsize::new(0);
    let write = |out: &mut Vec<u8>| {
        // It must not go twice, so the server is told the script in any case.
        let mut script = Script::text(server.is_cluster());
        if only_if_held {
            let each = held.iter().zip(batch.iter());
            return each
                .map(|(lease, (key, entry))| commands::store_if_held(out, &mut script, lease, key, entry, life))
                .sum();
        }
        writes.store(write_batch(out, &mut script, &groups, batch, life), Ordering::Relaxed);
        writes.load(Ordering::Relaxed) + write_releases(out, held)
    };
    let mut received = 0;
    let mut receive = |reply: Token<'_>, chunk: &mut Chunk<'_>| {
        if received == writes.load(Ordering::Relaxed) {
            return released.token(reply, chunk);
        }
        received += 1;
        acknowledged.token(reply, chunk)
    };
    let store = async {
        check_sizes(server, batch)?;
        let access = if only_if_held { Access::Once } else { Access::Write };
        A::exchange(server, access, route_leases(server, held), write, &mut receive).await
    };
    store
        .await
        .and_then(|()| acknowledged.finish())
        .and_then(|()| released.finish())
        .map_err(|error| error.during(Of("writing and unlocking", held)))
}

async fn is_leased<A: Face<X>, X: ExchangeSettings>(server: &X, lock: &[u8]) -> Result<bool, Error> {
    let mut leased = Flags::default();
    // The primary knows, so this is no read.
    let route = if server.is_cluster() { Route::Slot(slot::slot(lock, b"")) } else { Route::Keys };
    A::exchange(server, Access::Write, route, |out| commands::is_leased(out, lock), &mut leased)
        .await
        .and_then(|()| leased.finish())
        .map(|leased| leased == [true])
        .map_err(|error| error.during(format_args!("asking for the lock {}", lock.escape_ascii())))
}

/// What was done to which leases, for errors.
struct Of<'a>(&'static str, &'a [Lease<'a>]);

impl fmt::Display for Of<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            [lease] => write!(f, "{} {}", self.0, lease.key),
            leases => write!(f, "{} {} keys", self.0, leases.len()),
        }
    }
}

/// Receives the one entry that was asked for.
#[derive(Default)]
struct One {
    found: Option<Bytes>,
    failed: Option<Error>,
}

impl One {
    /// The entry, when it was received.
    #[inline(always)]
    fn finish(self, exchanged: Result<(), Error>, key: Key<'_>) -> Result<Option<Bytes>, Error> {
        match exchanged.err().or(self.failed) {
            None => Ok(self.found),
            Some(error) => Err(error.during(format_args!("reading {key}"))),
        }
    }

    /// The same for an entry behind a stamp. Apart, so that others do not pay for that.
    #[cold]
    fn finish_stamped(
        self,
        exchanged: Result<(), Error>,
        key: Key<'_>,
        stamp: Stamp,
        server: &impl ExchangeSettings,
    ) -> Result<Option<Bytes>, Error> {
        Ok(self.finish(exchanged, key)?.and_then(|entry| open(stamp, entry, server.now())))
    }
}

impl Receive for One {
    #[cold]
    fn token(&mut self, token: Token<'_>, chunk: &mut Chunk<'_>) -> Result<(), Error> {
        match token {
            Token::Bulk(entry) => self.found = Some(chunk.keep(entry)),
            Token::Nil => {}
            Token::Error(error) => self.failed = Some(server_error(error)),
            other => return Err(unexpected(other)),
        }
        Ok(())
    }

    // So that a hit is one function.
    #[inline(always)]
    fn strings(&mut self, strings: &mut Strings<'_>, chunk: &mut Chunk<'_>) -> Result<(), Error> {
        if let Some(entry) = strings.next() {
            self.found = Some(chunk.keep(entry));
        }
        Ok(())
    }

    #[inline]
    fn string(&mut self, entry: Bytes) -> Result<(), Error> {
        self.found = Some(entry);
        Ok(())
    }
}

/// Receives replies that are 0 or 1.
#[derive(Default)]
struct Flags {
    flags: Vec<bool>,
    failed: Option<Error>,
}

impl Receive for Flags {
    fn token(&mut self, reply: Token<'_>, _: &mut Chunk<'_>) -> Result<(), Error> {
        match reply {
            Token::Int(int) => self.flags.push(int == 1),
            Token::Error(error) if self.failed.is_none() => self.failed = Some(server_error(error)),
            Token::Error(_) => {}
            other => return Err(unexpected(other)),
        }
        Ok(())
    }
}

impl Flags {
    fn finish(self) -> Result<Vec<bool>, Error> {
        self.failed.map_or(Ok(self.flags), Err)
    }
}

/// How long what is written now may live.
fn life(server: &impl ExchangeSettings, ttl: Option<Duration>) -> commands::Life {
    let expiry = server.hash_expiry();
    // Only stamps tell the time.
    let now = expiry.stamp().map_or(Timestamp::EPOCH, |_| server.now());
    commands::Life { ttl, expiry, now }
}

/// The stamp of this entry, if it has one.
#[inline(always)]
fn stamp_of(server: &impl ExchangeSettings, key: Key<'_>) -> Option<Stamp> {
    stamp_for(server.hash_expiry(), key)
}

#[inline(always)]
fn stamp_for(expiry: HashExpiry, key: Key<'_>) -> Option<Stamp> {
    match key {
        Key::Plain(_) => None,
        Key::Field { .. } => expiry.stamp(),
    }
}

/// An entry without its stamp; `None` if that says that it has expired.
fn open(stamp: Stamp, mut stamped: Bytes, now: Timestamp) -> Option<Bytes> {
    stamped.advance(stamp.open(&stamped, now)?);
    Some(stamped)
}

/// The same for many.
fn open_all<'k>(
    server: &impl ExchangeSettings,
    expiry: HashExpiry,
    keys: impl Iterator<Item = Key<'k>>,
    found: &mut Found,
) {
    let Some(stamp) = expiry.stamp() else { return };
    let now = server.now();
    let fields = keys.enumerate().filter(|(_, key)| matches!(key, Key::Field { .. }));
    found.open(fields.map(|(at, _)| at), |entry| stamp.open(entry, now));
}

/// How the server's keys are divided, if it is a cluster.
#[inline(always)]
fn slots(server: &impl ExchangeSettings) -> Option<Slots> {
    server.is_cluster().then(|| Slots { suffix: server.hash_expiry().stamp().map_or(b"", Stamp::suffix) })
}

/// Where a request about one entry goes.
#[inline(always)]
fn route(server: &impl ExchangeSettings, key: Key<'_>) -> Route {
    slots(server).map_or(Route::Keys, |slots| Route::Slot(slots.of(key)))
}

/// Where a request about so many entries goes.
#[inline]
fn route_all<'k>(server: &impl ExchangeSettings, count: usize, first: impl FnOnce() -> Key<'k>) -> Route {
    if count == 1 { route(server, first()) } else { Route::Keys }
}

/// The same for leases, which are where their entries are.
fn route_leases(server: &impl ExchangeSettings, leases: &[Lease<'_>]) -> Route {
    route_all(server, leases.len(), || leases[0].key)
}

fn lock_name(server: &impl ExchangeSettings, prefix: &[u8], key: Key<'_>) -> KeyBuf {
    slots(server).map_or_else(|| slot::lock_name(prefix, key), |slots| slots.lock_name(prefix, key))
}

/// The hash of a group, from its first member.
fn hash_of(first: Option<Key<'_>>) -> Option<&[u8]> {
    match first {
        Some(Key::Field { hash, .. }) => Some(hash),
        _ => None,
    }
}

/// Writes one command for each group of keys, and says how many there are.
fn write_groups<'k>(
    out: &mut Vec<u8>,
    verb: commands::Verb,
    groups: &Groups,
    expiry: HashExpiry,
    key: impl Fn(usize) -> Key<'k>,
) -> usize {
    let mut replies = 0;
    for members in groups.iter() {
        if let (commands::Verb::Get, 1, true) = (verb, members.len(), groups.are_divided()) {
            members.for_each(|at| replies += commands::get(out, key(at), stamp_for(expiry, key(at))));
            continue;
        }
        let hash = hash_of(members.clone().next().map(&key));
        commands::group(out, verb, hash, expiry, members.map(&key));
        replies += 1;
    }
    replies
}

/// Writes the commands that store a batch, and says how many replies will come.
fn write_batch(out: &mut Vec<u8>, script: &mut Script, groups: &Groups, batch: &Batch, life: commands::Life) -> usize {
    let mut replies = 0;
    for members in groups.iter() {
        let hash = hash_of(members.clone().next().map(|first| batch.key(first)));
        replies += commands::set_group(out, script, hash, batch, members, life);
    }
    replies
}

/// Writes one command that releases each lease.
fn write_releases(out: &mut Vec<u8>, held: &[Lease<'_>]) -> usize {
    held.iter().map(|lease| commands::release(out, lease.lock, lease.token)).sum()
}

fn check_sizes(server: &impl ExchangeSettings, batch: &Batch) -> Result<(), Error> {
    batch.iter().try_for_each(|(key, entry)| {
        check_size(server, key, entry).map_err(|error| error.during(format_args!("writing {key}")))
    })
}

/// What is stored must be found again, and so with its stamp.
fn check_size(server: &impl ExchangeSettings, key: Key<'_>, entry: &[u8]) -> Result<(), Error> {
    let (most, stamp) = (server.max_entry(), stamp_of(server, key).map_or(0, Stamp::bytes));
    if entry.len().saturating_add(stamp) <= most {
        return Ok(());
    }
    let message = format!("an entry of {} bytes is over the limit of {most}", entry.len());
    Err(Error::new(ErrorKind::TooLarge, message))
}
