//! What a backend and its leases are over anything that exchanges commands for replies with a Redis server.

use std::cell::Cell;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::{Backend, Leases};
use crate::engine::batch::{Acknowledged, Gather, Groups, server_error, unexpected};
use crate::engine::chunk::Chunk;
use crate::engine::plan;
use crate::engine::replies::{Receive, Strings, Token};
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::request::{Batch, Found, HashExpiry, Lease};
use crate::slice::Slice;

/// What a request does, so that an [`Exchange`] knows where it may go, and whether it may go twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Only reads: may go to a replica.
    Read,
    /// Writes what may be written again when the connection broke.
    Write,
    /// Writes under a condition that the first attempt may have changed, and so only once.
    Once,
}

/// Something that exchanges commands for replies with a Redis server. Whatever does so is a [`Backend`] with
/// [`Leases`].
pub trait Exchange: Clone + Send + Sync + 'static {
    /// Sends the commands that `write` appends in RESP, and gives `receive` the replies, token by token. `write`
    /// returns how many replies will come. When `receive` fails, the connection is given up.
    ///
    /// # Errors
    /// When the server cannot be reached, does not answer in time or not in RESP, and what `receive` failed with.
    fn exchange(
        &self,
        access: Access,
        write: impl FnOnce(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error>;

    /// When hashes get their TTL.
    fn hash_expiry(&self) -> HashExpiry;

    /// The largest entry that the server takes, in bytes.
    fn max_entry(&self) -> usize;
}

impl<X: Exchange> Backend for X {
    #[inline]
    fn get(&self, key: Key<'_>) -> Result<Option<Bytes>, Error> {
        let mut one = One { found: None, failed: None };
        let failed = match self.exchange(Access::Read, |out| plan::get(out, key), &mut one) {
            Ok(()) if one.failed.is_none() => return Ok(one.found),
            Ok(()) => one.failed,
            Err(error) => Some(error),
        };
        failed.map_or(Ok(None), |error| Err(error.during(format_args!("reading {key}"))))
    }

    fn get_many(&self, keys: &[Key<'_>], found: &mut Found) -> Result<(), Error> {
        found.reset(keys.len());
        if keys.is_empty() {
            return Ok(());
        }
        let groups = Groups::of(keys.len(), |at| keys[at]);
        let mut gather = Gather::new(&groups, found);
        self.exchange(Access::Read, |out| write_groups(out, plan::Verb::Get, &groups, |at| keys[at]), &mut gather)
            .and_then(|()| gather.finish())
            .map_err(|error| error.during(format_args!("reading {} keys", keys.len())))
    }

    fn set(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
        let mut acknowledged = Acknowledged::default();
        check_size(self, entry)
            .and_then(|()| {
                self.exchange(
                    Access::Write,
                    |out| plan::set(out, key, entry, ttl, self.hash_expiry()),
                    &mut acknowledged,
                )
            })
            .and_then(|()| acknowledged.finish())
            .map_err(|error| error.during(format_args!("writing {key}")))
    }

    fn set_many(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let groups = Groups::of(batch.len(), |at| batch.key(at));
        let mut acknowledged = Acknowledged::default();
        check_sizes(self, batch)
            .and_then(|()| {
                self.exchange(
                    Access::Write,
                    |out| write_batch(out, &groups, batch, ttl, self.hash_expiry()),
                    &mut acknowledged,
                )
            })
            .and_then(|()| acknowledged.finish())
            .map_err(|error| error.during(format_args!("writing {} keys", batch.len())))
    }

    fn max_entry(&self) -> usize {
        Exchange::max_entry(self)
    }

    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        if keys.is_empty() {
            return Ok(());
        }
        let groups = Groups::of(keys.len(), |at| keys[at]);
        let mut acknowledged = Acknowledged::default();
        self.exchange(
            Access::Write,
            |out| write_groups(out, plan::Verb::Delete, &groups, |at| keys[at]),
            &mut acknowledged,
        )
        .and_then(|()| acknowledged.finish())
        .map_err(|error| match keys {
            [key] => error.during(format_args!("deleting {key}")),
            _ => error.during(format_args!("deleting {} keys", keys.len())),
        })
    }
}

impl<X: Exchange> Leases for X {
    fn lease(&self, wanted: &[Lease<'_>], life: Duration) -> Result<Vec<(bool, Option<Bytes>)>, Error> {
        let groups = Groups::of(wanted.len(), |at| wanted[at].key);
        let mut found = Found::new();
        found.reset(wanted.len());
        let mut gather = Gather::new(&groups, &mut found);
        let mut leased = Vec::with_capacity(wanted.len());
        let mut failed = None;
        let write = |out: &mut Vec<u8>| {
            let leases: usize = wanted.iter().map(|lease| plan::lease(out, lease.lock, lease.token, life)).sum();
            leases + write_groups(out, plan::Verb::Get, &groups, |at| wanted[at].key)
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
        self.exchange(Access::Write, write, &mut receive)
            .and_then(|()| failed.map_or(Ok(()), Err))
            .and_then(|()| gather.finish())
            .map_err(|error| error.during(Of("locking", wanted)))?;
        let entries = found.iter().map(|entry| entry.map(Slice::to_bytes));
        Ok(leased.into_iter().zip(entries).collect())
    }

    fn release(&self, held: &[Lease<'_>]) -> Result<Vec<bool>, Error> {
        let mut released = Flags::default();
        let write = |out: &mut Vec<u8>| held.iter().map(|lease| plan::release(out, lease.lock, lease.token)).sum();
        self.exchange(Access::Write, write, &mut released)
            .and_then(|()| released.finish())
            .map_err(|error| error.during(Of("unlocking", held)))
    }

    fn set_and_release(
        &self,
        held: &[Lease<'_>],
        batch: &Batch,
        ttl: Option<Duration>,
        only_if_held: bool,
    ) -> Result<Vec<bool>, Error> {
        let expiry = self.hash_expiry();
        let mut acknowledged = Acknowledged::default();
        let mut released = Flags::default();
        let groups = Groups::of(batch.len(), |at| batch.key(at));
        // The writes come first and are only acknowledged; then each release says whether the lease was still held.
        let writes = Cell::new(0);
        let write = |out: &mut Vec<u8>| {
            if only_if_held {
                let each = held.iter().zip(batch.iter());
                return each
                    .map(|(lease, (key, entry))| plan::store_if_held(out, lease, key, entry, ttl, expiry))
                    .sum();
            }
            writes.set(write_batch(out, &groups, batch, ttl, expiry));
            writes.get() + held.iter().map(|lease| plan::release(out, lease.lock, lease.token)).sum::<usize>()
        };
        let mut receive = |reply: Token<'_>, chunk: &mut Chunk<'_>| match writes.get() {
            0 => released.token(reply, chunk),
            left => {
                writes.set(left - 1);
                acknowledged.token(reply, chunk)
            }
        };
        check_sizes(self, batch)
            .and_then(|()| self.exchange(if only_if_held { Access::Once } else { Access::Write }, write, &mut receive))
            .and_then(|()| acknowledged.finish())
            .and_then(|()| released.finish())
            .map_err(|error| error.during(Of("writing and unlocking", held)))
    }

    fn is_leased(&self, lock: &[u8]) -> Result<bool, Error> {
        let mut leased = Flags::default();
        // The primary knows, so this is no read.
        self.exchange(Access::Write, |out| plan::is_leased(out, lock), &mut leased)
            .and_then(|()| leased.finish())
            .map(|leased| leased == [true])
            .map_err(|error| error.during(format_args!("asking for the lock {}", lock.escape_ascii())))
    }
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
struct One {
    found: Option<Bytes>,
    failed: Option<Error>,
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

    #[inline]
    fn strings(&mut self, strings: &mut Strings<'_>, chunk: &mut Chunk<'_>) -> Result<(), Error> {
        if let Some(entry) = strings.next() {
            self.found = Some(chunk.keep(entry));
        }
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

/// The hash of a group, from its first member.
fn hash_of(first: Option<Key<'_>>) -> Option<&[u8]> {
    match first {
        Some(Key::Field { hash, .. }) => Some(hash),
        _ => None,
    }
}

/// Writes one command for each group of keys, and says how many there are.
fn write_groups<'k>(out: &mut Vec<u8>, verb: plan::Verb, groups: &Groups, key: impl Fn(usize) -> Key<'k>) -> usize {
    let mut replies = 0;
    for members in groups.iter() {
        let hash = hash_of(members.clone().next().map(&key));
        plan::group(out, verb, hash, members.len(), members.map(&key));
        replies += 1;
    }
    replies
}

/// Writes the commands that store a batch, and says how many replies will come.
fn write_batch(out: &mut Vec<u8>, groups: &Groups, batch: &Batch, ttl: Option<Duration>, expiry: HashExpiry) -> usize {
    let mut replies = 0;
    for members in groups.iter() {
        let hash = hash_of(members.clone().next().map(|first| batch.key(first)));
        replies += plan::set_group(out, hash, batch, members, ttl, expiry);
    }
    replies
}

fn check_sizes(exchange: &impl Exchange, batch: &Batch) -> Result<(), Error> {
    batch.iter().try_for_each(|(key, entry)| {
        check_size(exchange, entry).map_err(|error| error.during(format_args!("writing {key}")))
    })
}

fn check_size(exchange: &impl Exchange, entry: &[u8]) -> Result<(), Error> {
    if entry.len() <= Exchange::max_entry(exchange) {
        return Ok(());
    }
    let message = format!("an entry of {} bytes is over the limit of {}", entry.len(), Exchange::max_entry(exchange));
    Err(Error::new(ErrorKind::TooLarge, message))
}
