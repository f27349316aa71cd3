//! What takes, renews and releases leases, alone or with the reading and storing of their entries.

use std::time::Duration;

use crate::key::Key;
use crate::redis::HashTtl;
use crate::redis::protocol::commands::Life;
use crate::redis::protocol::commands::stamped::{Script, put_stamped};
use crate::redis::protocol::commands::wire::{argument, command, eval, millis, number};
use crate::redis::stamp::Stamp;

/// A lease that is wanted or held, and the entry that it protects.
#[derive(Clone, Copy, Debug)]
pub struct Lease<'a> {
    /// The Redis key of the lease.
    pub lock: &'a [u8],
    /// Identifies the holder: each attempt has a token of its own.
    pub token: &'a [u8],
    /// The entry that the holder of the lease creates.
    pub key: Key<'a>,
}

/// `SET lock token NX PX`, as redis-py does it, with `GET`: answered by nil when the lock is ours now, or by the token
/// that holds it. So it may be sent twice: our own token says that the first time succeeded.
pub(crate) fn lease(out: &mut Vec<u8>, lock: &[u8], token: &[u8], lease: Duration) -> usize {
    command(out, "SET", 7);
    argument(out, lock);
    argument(out, token);
    argument(out, b"NX");
    argument(out, b"GET");
    argument(out, b"PX");
    number(out, millis(lease));
    1
}

/// `EXISTS lock`.
pub(crate) fn is_leased(out: &mut Vec<u8>, lock: &[u8]) -> usize {
    command(out, "EXISTS", 2);
    argument(out, lock);
    1
}

/// `PTTL lock`: the remaining life in milliseconds, -1 for one without an end, -2 where nobody holds it. A connection with
/// tracking is told from then on when it changes.
pub(crate) fn remaining(out: &mut Vec<u8>, lock: &[u8]) -> usize {
    command(out, "PTTL", 2);
    argument(out, lock);
    1
}

/// Reads an entry; where there is none, takes the lease if nobody has it: the entry, or 1 if the lease is ours, or 0. Sent
/// twice, it knows our token. ARGV: token, life, field or '', 'plain' or 'field'.
pub(crate) const READ_OR_LEASE: &[u8] = b"\
local entry \
if ARGV[4]=='plain' then entry=redis.call('get',KEYS[2]) else entry=redis.call('hget',KEYS[2],ARGV[3]) end \
if entry then return entry end \
if redis.call('set',KEYS[1],ARGV[1],'nx','px',ARGV[2]) then return 1 end \
if redis.call('get',KEYS[1])==ARGV[1] then return 1 end \
return 0";

/// Reads an entry by script, and takes its lease where there is none. Answered by the entry, or by 1 or 0.
pub(crate) fn read_or_lease(out: &mut Vec<u8>, wanted: &Lease<'_>, life: Duration, stamp: Option<Stamp>) -> usize {
    let (name, field, kind) = parts(wanted.key);
    let suffix = stamp.map_or(&b""[..], Stamp::suffix);
    eval(out, READ_OR_LEASE, &[(wanted.lock, b""), (name, suffix)], 4);
    argument(out, wanted.token);
    number(out, millis(life));
    argument(out, field);
    argument(out, kind);
    1
}

/// What scripts are told of a key: its Redis key, its field or nothing, and which of the two it is.
fn parts(key: Key<'_>) -> (&[u8], &[u8], &'static [u8]) {
    match key {
        Key::Plain(name) => (name, b"", b"plain"),
        Key::Field { hash, field } => (hash, field, b"field"),
    }
}

/// Deletes the lock if it holds our token: 1 if it did.
pub(crate) const RELEASE: &[u8] =
    b"if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) end return 0";

/// Releases a lease by script. Answered by 1, or 0 when it was not ours any more.
pub(crate) fn release(out: &mut Vec<u8>, lock: &[u8], token: &[u8]) -> usize {
    eval(out, RELEASE, &[(lock, b"")], 1);
    argument(out, token);
    1
}

/// Gives the lock another life if it holds our token: 1 if it did.
pub(crate) const RENEW: &[u8] =
    b"if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('pexpire',KEYS[1],ARGV[2]) end return 0";

/// Renews a lease by script. Answered by 1, or 0 when it was not ours any more.
pub(crate) fn renew(out: &mut Vec<u8>, lock: &[u8], token: &[u8], life: Duration) -> usize {
    eval(out, RENEW, &[(lock, b"")], 2);
    argument(out, token);
    number(out, millis(life));
    1
}

/// Stores and releases, if the lock holds our token: 1 if it did. An error of the store is answered after the release.
/// ARGV: token, entry, TTL or '', field or '', 'NX' or '', 'plain', 'field' or 'own' for a field with a TTL of its own.
pub(crate) const STORE_IF_HELD: &[u8] = b"\
if redis.call('get',KEYS[1])~=ARGV[1] then return 0 end \
local done \
if ARGV[6]=='plain' then \
if ARGV[3]=='' then done=redis.pcall('set',KEYS[2],ARGV[2]) else done=redis.pcall('set',KEYS[2],ARGV[2],'px',ARGV[3]) end \
elseif ARGV[6]=='own' then done=redis.pcall('hsetex',KEYS[2],'px',ARGV[3],'fields',1,ARGV[4],ARGV[2]) \
else done=redis.pcall('hset',KEYS[2],ARGV[4],ARGV[2]) \
if ARGV[3]~='' and type(done)=='number' then \
if ARGV[5]=='NX' then redis.pcall('pexpire',KEYS[2],ARGV[3],'NX') else redis.pcall('pexpire',KEYS[2],ARGV[3]) end \
end end \
redis.call('del',KEYS[1]) \
if type(done)=='table' and done.err then return done end \
return 1";

/// Stores an entry and releases the lease, both only while the lease is ours, in one script. Answered by 1 or 0.
pub(crate) fn store_if_held(
    out: &mut Vec<u8>,
    script: &mut Script,
    held: &Lease<'_>,
    key: Key<'_>,
    entry: &[u8],
    life: Life,
) -> usize {
    let Life { ttl, expiry, .. } = life;
    let (name, field, mut kind) = parts(key);
    if kind == b"field"
        && let HashTtl::Stamped { longest } = expiry
    {
        return put_stamped(out, script, name, Some(held), std::iter::once((field, entry)), longest, life);
    }
    if kind == b"field" && expiry == HashTtl::PerField && ttl.is_some() {
        kind = b"own";
    }
    let expires = kind != b"field" || matches!(expiry, HashTtl::OnCreate | HashTtl::Always);
    eval(out, STORE_IF_HELD, &[(held.lock, b""), (name, b"")], 6);
    argument(out, held.token);
    argument(out, entry);
    match ttl.filter(|_| expires) {
        Some(ttl) => number(out, millis(ttl)),
        None => argument(out, b""),
    }
    argument(out, field);
    argument(out, if expiry == HashTtl::OnCreate { b"NX" } else { b"" });
    argument(out, kind);
    1
}
