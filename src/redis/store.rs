//! Makes a backend out of every transport: one body for blocking and async callers.

use std::time::Duration;

use bytes::{Buf, Bytes};

use crate::backend::{AsyncBackend, Backend};
use crate::batch::{Batch, Found};
use crate::error::{Error, ErrorKind};
use crate::exec::poll_ready;
use crate::key::Key;
use crate::redis::HashTtl;
use crate::redis::protocol::batch::{Acknowledged, Gather, Groups, server_error, unexpected};
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::commands;
use crate::redis::protocol::commands::stamped::Script;
use crate::redis::protocol::parser::{Receive, Strings, Token};
use crate::redis::protocol::slot::Slots;
use crate::redis::stamp::Stamp;
use crate::redis::transport::{Access, AsyncTransport, BlockingTransport, Route, Transport, TransportSettings};
use crate::time::Timestamp;

impl<X: Transport> Backend for X {
    // Written apart from the async one: through a future a hit costs a tenth more instructions.
    #[inline]
    fn get(&self, key: Key<'_>) -> Result<Option<Bytes>, Error> {
        let stamp = stamp_of(self, key);
        let mut one = One::default();
        let write = |out: &mut Vec<u8>| commands::get(out, key, stamp);
        let exchanged = self.exchange(Access::Read, route(self, key), write, &mut one);
        match stamp {
            None => one.finish(exchanged, key),
            Some(stamp) => one.finish_stamped(exchanged, key, stamp, self),
        }
    }

    fn get_many(&self, keys: &[Key<'_>], found: &mut Found) -> Result<(), Error> {
        poll_ready(get_many(&BlockingTransport(self), keys, found))
    }

    fn set(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
        poll_ready(set(&BlockingTransport(self), key, entry, ttl))
    }

    fn set_many(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error> {
        poll_ready(set_many(&BlockingTransport(self), batch, ttl))
    }

    fn max_entry(&self) -> usize {
        TransportSettings::max_entry(self)
    }

    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        poll_ready(delete_many(&BlockingTransport(self), keys))
    }
}

impl<X: AsyncTransport> AsyncBackend for X {
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
        get_many(self, keys, found)
    }

    fn set_async(
        &self,
        key: Key<'_>,
        entry: &[u8],
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        set(self, key, entry, ttl)
    }

    fn set_many_async(&self, batch: &Batch, ttl: Option<Duration>) -> impl Future<Output = Result<(), Error>> + Send {
        set_many(self, batch, ttl)
    }

    fn max_entry(&self) -> usize {
        TransportSettings::max_entry(self)
    }

    fn delete_many_async(&self, keys: &[Key<'_>]) -> impl Future<Output = Result<(), Error>> + Send {
        delete_many(self, keys)
    }
}

#[inline]
async fn get_many<X: AsyncTransport>(server: &X, keys: &[Key<'_>], found: &mut Found) -> Result<(), Error> {
    found.reset(keys.len());
    if keys.is_empty() {
        return Ok(());
    }
    let groups = Groups::of(keys.len(), |at| keys[at], slots(server));
    let mut gather = Gather::new(&groups, found);
    let expiry = server.hash_ttl();
    let write = |out: &mut Vec<u8>| write_groups(out, commands::Verb::Get, &groups, expiry, |at| keys[at]);
    server
        .exchange_async(Access::Read, route_all(server, keys.len(), || keys[0]), write, &mut gather)
        .await
        .and_then(|()| gather.finish())
        .map_err(|error| error.during(format_args!("reading {} keys", keys.len())))?;
    open_all(server, expiry, keys.iter().copied(), found);
    Ok(())
}

#[inline]
async fn set<X: AsyncTransport>(server: &X, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
    let set = async {
        check_size(server, key, entry)?;
        let life = life(server, ttl);
        store(server, route(server, key), |out, script| commands::set(out, script, key, entry, life)).await
    };
    set.await.map_err(|error| error.during(format_args!("writing {key}")))
}

async fn set_many<X: AsyncTransport>(server: &X, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error> {
    if batch.is_empty() {
        return Ok(());
    }
    let groups = Groups::of(batch.len(), |at| batch.key(at), slots(server));
    let set = async {
        check_sizes(server, batch)?;
        let life = life(server, ttl);
        let route = route_all(server, batch.len(), || batch.key(0));
        store(server, route, |out, script| write_batch(out, script, &groups, batch, life)).await
    };
    set.await.map_err(|error| error.during(format_args!("writing {} keys", batch.len())))
}

/// Writes what may be written again: by the digest of the script where there is one, and once more by its text for a
/// server that does not know it.
#[inline]
async fn store<X: AsyncTransport>(
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
        server.exchange_async(Access::Write, route, write, &mut acknowledged).await?;
        if script != Script::Digest || !acknowledged.lacks_script() {
            return acknowledged.finish();
        }
        script = Script::text(server.is_cluster());
    }
}

async fn delete_many<X: AsyncTransport>(server: &X, keys: &[Key<'_>]) -> Result<(), Error> {
    if keys.is_empty() {
        return Ok(());
    }
    let groups = Groups::of(keys.len(), |at| keys[at], slots(server));
    let route = route_all(server, keys.len(), || keys[0]);
    let mut acknowledged = Acknowledged::default();
    let expiry = server.hash_ttl();
    let write = |out: &mut Vec<u8>| write_groups(out, commands::Verb::Delete, &groups, expiry, |at| keys[at]);
    server
        .exchange_async(Access::Write, route, write, &mut acknowledged)
        .await
        .and_then(|()| acknowledged.finish())
        .map_err(|error| match keys {
            [key] => error.during(format_args!("deleting {key}")),
            _ => error.during(format_args!("deleting {} keys", keys.len())),
        })
}

/// Receives the one entry that was asked for.
#[derive(Default)]
pub(super) struct One {
    found: Option<Bytes>,
    failed: Option<Error>,
}

impl One {
    /// The entry, when it was received.
    #[inline(always)]
    pub(super) fn finish(self, exchanged: Result<(), Error>, key: Key<'_>) -> Result<Option<Bytes>, Error> {
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
        server: &impl TransportSettings,
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

/// How long what is written now may live.
pub(super) fn life(server: &impl TransportSettings, ttl: Option<Duration>) -> commands::Life {
    let expiry = server.hash_ttl();
    // Only stamps tell the time.
    let now = expiry.stamp().map_or(Timestamp::EPOCH, |_| server.now());
    commands::Life { ttl, expiry, now }
}

/// The stamp of this entry, if it has one.
#[inline(always)]
pub(super) fn stamp_of(server: &impl TransportSettings, key: Key<'_>) -> Option<Stamp> {
    stamp_for(server.hash_ttl(), key)
}

#[inline(always)]
fn stamp_for(expiry: HashTtl, key: Key<'_>) -> Option<Stamp> {
    match key {
        Key::Plain(_) => None,
        Key::Field { .. } => expiry.stamp(),
    }
}

/// An entry without its stamp; `None` if that says that it has expired.
pub(super) fn open(stamp: Stamp, mut stamped: Bytes, now: Timestamp) -> Option<Bytes> {
    stamped.advance(stamp.open(&stamped, now)?);
    Some(stamped)
}

/// The same for many.
pub(super) fn open_all<'k>(
    server: &impl TransportSettings,
    expiry: HashTtl,
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
pub(super) fn slots(server: &impl TransportSettings) -> Option<Slots> {
    server.is_cluster().then(|| Slots { suffix: server.hash_ttl().stamp().map_or(b"", Stamp::suffix) })
}

/// Where a request about one entry goes.
#[inline(always)]
pub(super) fn route(server: &impl TransportSettings, key: Key<'_>) -> Route {
    slots(server).map_or(Route::Keys, |slots| Route::Slot(slots.of(key)))
}

/// Where a request about so many entries goes.
#[inline]
pub(super) fn route_all<'k>(server: &impl TransportSettings, count: usize, first: impl FnOnce() -> Key<'k>) -> Route {
    if count == 1 { route(server, first()) } else { Route::Keys }
}

/// The hash of a group, from its first member.
fn hash_of(first: Option<Key<'_>>) -> Option<&[u8]> {
    match first {
        Some(Key::Field { hash, .. }) => Some(hash),
        _ => None,
    }
}

/// Writes one command for each group of keys, and says how many there are.
pub(super) fn write_groups<'k>(
    out: &mut Vec<u8>,
    verb: commands::Verb,
    groups: &Groups,
    expiry: HashTtl,
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
pub(super) fn write_batch(
    out: &mut Vec<u8>,
    script: &mut Script,
    groups: &Groups,
    batch: &Batch,
    life: commands::Life,
) -> usize {
    let mut replies = 0;
    for members in groups.iter() {
        let hash = hash_of(members.clone().next().map(|first| batch.key(first)));
        replies += commands::set_group(out, script, hash, batch, members, life);
    }
    replies
}

pub(super) fn check_sizes(server: &impl TransportSettings, batch: &Batch) -> Result<(), Error> {
    batch.iter().try_for_each(|(key, entry)| {
        check_size(server, key, entry).map_err(|error| error.during(format_args!("writing {key}")))
    })
}

/// What is stored must be found again, and so with its stamp.
fn check_size(server: &impl TransportSettings, key: Key<'_>, entry: &[u8]) -> Result<(), Error> {
    let (most, stamp) = (server.max_entry(), stamp_of(server, key).map_or(0, Stamp::bytes));
    if entry.len().saturating_add(stamp) <= most {
        return Ok(());
    }
    let message = format!("an entry of {} bytes is over the limit of {most}", entry.len());
    Err(Error::new(ErrorKind::TooLarge, message))
}
