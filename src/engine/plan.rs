//! Turns what is asked of a backend into commands on the wire. Each function appends to `out` and says how many
//! replies will come.

use std::time::Duration;

use crate::key::Key;
use crate::request::{Batch, HashExpiry, Lease};

/// Writes the head of a command of so many arguments, its name included.
#[inline]
fn command(out: &mut Vec<u8>, name: &str, arguments: usize) {
    header(out, b'*', arguments);
    argument(out, name.as_bytes());
}

/// Writes one argument.
#[inline]
fn argument(out: &mut Vec<u8>, bytes: &[u8]) {
    argument_after(out, b"$00\r\n", bytes);
}

/// Writes one argument and the constant that comes before it: `head`, which ends with the head of an argument of two
/// digits. Most have one or two, and are then written in one piece.
#[inline(always)]
fn argument_after<const N: usize>(out: &mut Vec<u8>, head: &[u8; N], bytes: &[u8]) {
    match u8::try_from(bytes.len()) {
        Ok(length @ 10..100) => {
            let mut head = *head;
            (head[N - 4], head[N - 3]) = (b'0' + length / 10, b'0' + length % 10);
            out.extend_from_slice(&head);
        }
        Ok(length @ 0..10) => {
            let mut head = *head;
            (head[N - 4], head[N - 3], head[N - 2]) = (b'0' + length, b'\r', b'\n');
            out.extend_from_slice(&head[..N - 1]);
        }
        _ => {
            out.extend_from_slice(&head[..N - 5]);
            header(out, b'$', bytes.len());
        }
    }
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Writes a type and a length.
fn header(out: &mut Vec<u8>, kind: u8, length: usize) {
    match u8::try_from(length) {
        Ok(length @ 0..10) => out.extend_from_slice(&[kind, b'0' + length, b'\r', b'\n']),
        _ => {
            out.push(kind);
            out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn number(out: &mut Vec<u8>, number: u64) {
    argument(out, itoa::Buffer::new().format(number).as_bytes());
}

/// A TTL in milliseconds, as servers take it: at least one, at most what they can add to the time of day.
fn millis(ttl: Duration) -> u64 {
    const TEN_THOUSAND_YEARS: u64 = 315_360_000_000_000;
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).clamp(1, TEN_THOUSAND_YEARS)
}

/// `GET` or `HGET`.
#[inline]
pub(crate) fn get(out: &mut Vec<u8>, key: Key<'_>) -> usize {
    match key {
        Key::Plain(key) => {
            argument_after(out, b"*2\r\n$3\r\nGET\r\n$00\r\n", key);
        }
        Key::Field { hash, field } => {
            argument_after(out, b"*3\r\n$4\r\nHGET\r\n$00\r\n", hash);
            argument_after(out, b"$00\r\n", field);
        }
    }
    1
}

/// `SET` with its TTL, or `HSET` and the `PEXPIRE` of its hash in the same write.
pub(crate) fn set(out: &mut Vec<u8>, key: Key<'_>, entry: &[u8], ttl: Option<Duration>, expiry: HashExpiry) -> usize {
    match key {
        Key::Plain(key) => {
            command(out, "SET", if ttl.is_some() { 5 } else { 3 });
            argument(out, key);
            argument(out, entry);
            if let Some(ttl) = ttl {
                argument(out, b"PX");
                number(out, millis(ttl));
            }
            1
        }
        Key::Field { hash, field } => {
            command(out, "HSET", 4);
            argument(out, hash);
            argument(out, field);
            argument(out, entry);
            1 + expire_hash(out, hash, ttl, expiry)
        }
    }
}

/// The TTL of a hash. `NX` gives it to a hash that has none, so that a hash whose TTL was lost is mended too.
fn expire_hash(out: &mut Vec<u8>, hash: &[u8], ttl: Option<Duration>, expiry: HashExpiry) -> usize {
    let (Some(ttl), false) = (ttl, expiry == HashExpiry::Never) else { return 0 };
    let on_create = expiry == HashExpiry::OnCreate;
    command(out, "PEXPIRE", if on_create { 4 } else { 3 });
    argument(out, hash);
    number(out, millis(ttl));
    if on_create {
        argument(out, b"NX");
    }
    1
}

/// Which command asks for, or deletes, a group of keys.
#[derive(Clone, Copy)]
pub(crate) enum Verb {
    /// `MGET`, `HMGET`.
    Get,
    /// `DEL`, `HDEL`.
    Delete,
}

/// One command for `count` plain keys, or for so many fields of one hash.
pub(crate) fn group<'k>(
    out: &mut Vec<u8>,
    verb: Verb,
    hash: Option<&[u8]>,
    count: usize,
    members: impl Iterator<Item = Key<'k>>,
) {
    let name = match (verb, hash) {
        (Verb::Get, None) => "MGET",
        (Verb::Get, Some(_)) => "HMGET",
        (Verb::Delete, None) => "DEL",
        (Verb::Delete, Some(_)) => "HDEL",
    };
    command(out, name, 1 + usize::from(hash.is_some()) + count);
    if let Some(hash) = hash {
        argument(out, hash);
    }
    names(out, members);
}

fn names<'k>(out: &mut Vec<u8>, members: impl Iterator<Item = Key<'k>>) {
    for member in members {
        argument_after(out, b"$00\r\n", name_of(member));
    }
}

/// What names an entry in a command that is about one hash, or about plain keys.
#[inline]
fn name_of(key: Key<'_>) -> &[u8] {
    let (Key::Plain(name) | Key::Field { field: name, .. }) = key;
    name
}

/// `SET`s of plain keys (one `MSET` where there is no TTL), or one `HSET` of fields of one hash with its expiry.
pub(crate) fn set_group(
    out: &mut Vec<u8>,
    hash: Option<&[u8]>,
    batch: &Batch,
    members: impl ExactSizeIterator<Item = usize>,
    ttl: Option<Duration>,
    expiry: HashExpiry,
) -> usize {
    let count = members.len();
    match (hash, ttl) {
        (None, Some(_)) => members.map(|member| set(out, batch.key(member), batch.entry(member), ttl, expiry)).sum(),
        (None, None) => {
            command(out, "MSET", 1 + 2 * count);
            pairs(out, batch, members);
            1
        }
        (Some(hash), _) => {
            command(out, "HSET", 2 + 2 * count);
            argument(out, hash);
            pairs(out, batch, members);
            1 + expire_hash(out, hash, ttl, expiry)
        }
    }
}

fn pairs(out: &mut Vec<u8>, batch: &Batch, members: impl Iterator<Item = usize>) {
    for member in members {
        names(out, std::iter::once(batch.key(member)));
        argument(out, batch.entry(member));
    }
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

/// Asks to be told when keys change that this connection has asked for.
pub(crate) fn track(out: &mut Vec<u8>) -> usize {
    command(out, "CLIENT", 3);
    argument(out, b"TRACKING");
    argument(out, b"ON");
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
pub(crate) fn read_or_lease(out: &mut Vec<u8>, wanted: &Lease<'_>, life: Duration) -> usize {
    let (name, field, kind) = parts(wanted.key);
    eval(out, READ_OR_LEASE, &[wanted.lock, name], 4);
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
    eval(out, RELEASE, &[lock], 1);
    argument(out, token);
    1
}

/// Writes the head of a script that is told so many arguments, and its keys.
fn eval(out: &mut Vec<u8>, script: &[u8], keys: &[&[u8]], arguments: usize) {
    command(out, "EVAL", 3 + keys.len() + arguments);
    argument(out, script);
    number(out, keys.len() as u64);
    keys.iter().for_each(|key| argument(out, key));
}

/// Gives the lock another life if it holds our token: 1 if it did.
pub(crate) const RENEW: &[u8] =
    b"if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('pexpire',KEYS[1],ARGV[2]) end return 0";

/// Renews a lease by script. Answered by 1, or 0 when it was not ours any more.
pub(crate) fn renew(out: &mut Vec<u8>, lock: &[u8], token: &[u8], life: Duration) -> usize {
    eval(out, RENEW, &[lock], 2);
    argument(out, token);
    number(out, millis(life));
    1
}

/// Stores and releases, if the lock holds our token: 1 if it did. An error of the store is answered after the release.
/// ARGV: token, entry, TTL or '', field or '', 'NX' or '', 'plain' or 'field'.
pub(crate) const STORE_IF_HELD: &[u8] = b"\
if redis.call('get',KEYS[1])~=ARGV[1] then return 0 end \
local done \
if ARGV[6]=='plain' then \
if ARGV[3]=='' then done=redis.pcall('set',KEYS[2],ARGV[2]) else done=redis.pcall('set',KEYS[2],ARGV[2],'px',ARGV[3]) end \
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
    held: &Lease<'_>,
    key: Key<'_>,
    entry: &[u8],
    ttl: Option<Duration>,
    expiry: HashExpiry,
) -> usize {
    let (name, field, kind) = parts(key);
    let expires = kind == b"plain" || expiry != HashExpiry::Never;
    eval(out, STORE_IF_HELD, &[held.lock, name], 6);
    argument(out, held.token);
    argument(out, entry);
    match ttl.filter(|_| expires) {
        Some(ttl) => number(out, millis(ttl)),
        None => argument(out, b""),
    }
    argument(out, field);
    argument(out, if expiry == HashExpiry::OnCreate { b"NX" } else { b"" });
    argument(out, kind);
    1
}

/// What a new connection says first: RESP3, with user and password where there are any.
pub(crate) fn hello(out: &mut Vec<u8>, user: Option<&str>, password: Option<&str>) -> usize {
    command(out, "HELLO", if password.is_some() { 5 } else { 2 });
    argument(out, b"3");
    if let Some(password) = password {
        argument(out, b"AUTH");
        argument(out, user.unwrap_or("default").as_bytes());
        argument(out, password.as_bytes());
    }
    1
}

/// `AUTH`, for a server that does not know `HELLO`.
pub(crate) fn auth(out: &mut Vec<u8>, user: Option<&str>, password: &str) -> usize {
    command(out, "AUTH", if user.is_some() { 3 } else { 2 });
    if let Some(user) = user {
        argument(out, user.as_bytes());
    }
    argument(out, password.as_bytes());
    1
}

/// `PING`.
pub(crate) fn ping(out: &mut Vec<u8>) -> usize {
    command(out, "PING", 1);
    1
}

/// `SELECT` a database.
pub(crate) fn select(out: &mut Vec<u8>, db: u32) -> usize {
    command(out, "SELECT", 2);
    number(out, u64::from(db));
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(plan: impl FnOnce(&mut Vec<u8>) -> usize) -> (String, usize) {
        let mut out = Vec::new();
        let replies = plan(&mut out);
        // Arguments only: lengths are checked by counting them against what they stand for.
        let mut words = Vec::new();
        let mut rest = &out[..];
        while !rest.is_empty() {
            let end = rest.iter().position(|&b| b == b'\r').unwrap();
            let length: usize = std::str::from_utf8(&rest[1..end]).unwrap().parse().unwrap();
            match rest[0] {
                b'*' => {
                    words.push(format!("{length}:"));
                    rest = &rest[end + 2..];
                }
                _ => {
                    words.push(rest[end + 2..end + 2 + length].escape_ascii().to_string());
                    assert_eq!(&rest[end + 2 + length..end + 4 + length], b"\r\n");
                    rest = &rest[end + 4 + length..];
                }
            }
        }
        (words.join(" "), replies)
    }

    const FIELD: Key<'_> = Key::Field { hash: b"h", field: b"f" };

    #[test]
    fn one_entry() {
        assert_eq!(text(|out| get(out, Key::Plain(b"k"))), ("2: GET k".into(), 1));
        assert_eq!(
            text(|out| get(out, Key::Plain(b"a key of 20 bytes...."))),
            ("2: GET a key of 20 bytes....".into(), 1)
        );
        assert_eq!(text(|out| get(out, FIELD)), ("3: HGET h f".into(), 1));
        let ttl = Some(Duration::from_secs(3600));
        let plain = |ttl| text(|out| set(out, Key::Plain(b"k"), b"v", ttl, HashExpiry::Always));
        assert_eq!(plain(None), ("3: SET k v".into(), 1));
        assert_eq!(plain(ttl), ("5: SET k v PX 3600000".into(), 1));
        assert_eq!(plain(Some(Duration::ZERO)).0, "5: SET k v PX 1");
        assert_eq!(plain(Some(Duration::from_nanos(1_000_001))).0, "5: SET k v PX 2");
        assert_eq!(plain(Some(Duration::MAX)).0, "5: SET k v PX 315360000000000");
        let field = |ttl, expiry| text(|out| set(out, FIELD, b"v", ttl, expiry));
        assert_eq!(field(ttl, HashExpiry::Never), ("4: HSET h f v".into(), 1));
        assert_eq!(field(None, HashExpiry::Always), ("4: HSET h f v".into(), 1));
        assert_eq!(field(ttl, HashExpiry::OnCreate), ("4: HSET h f v 4: PEXPIRE h 3600000 NX".into(), 2));
        assert_eq!(field(ttl, HashExpiry::Always), ("4: HSET h f v 3: PEXPIRE h 3600000".into(), 2));
    }

    #[test]
    fn locks() {
        let lock = b"_lok.k";
        assert_eq!(
            text(|out| lease(out, lock, b"token", Duration::from_secs(10))),
            ("7: SET _lok.k token NX GET PX 10000".into(), 1)
        );
        assert!(text(|out| release(out, lock, b"token")).0.ends_with("1 _lok.k token"));
        assert!(text(|out| renew(out, lock, b"token", Duration::from_secs(10))).0.ends_with("1 _lok.k token 10000"));
        let read = |key| {
            let wanted = Lease { lock, token: b"token", key };
            text(|out| read_or_lease(out, &wanted, Duration::from_secs(10))).0
        };
        assert!(read(Key::Plain(b"k")).ends_with("2 _lok.k k token 10000  plain"));
        assert!(read(FIELD).ends_with("2 _lok.k h token 10000 f field"));
        let store = |key, ttl, expiry| {
            let held = Lease { lock, token: b"token", key };
            text(|out| store_if_held(out, &held, key, b"v", ttl, expiry)).0
        };
        let ttl = Some(Duration::from_secs(1));
        assert!(store(Key::Plain(b"k"), ttl, HashExpiry::Never).ends_with("2 _lok.k k token v 1000   plain"));
        assert!(store(FIELD, ttl, HashExpiry::Never).ends_with("2 _lok.k h token v  f  field"));
        assert!(store(FIELD, ttl, HashExpiry::OnCreate).ends_with("2 _lok.k h token v 1000 f NX field"));
    }

    #[test]
    fn greetings() {
        assert_eq!(text(|out| hello(out, None, None)).0, "2: HELLO 3");
        assert_eq!(text(|out| hello(out, None, Some("pw"))).0, "5: HELLO 3 AUTH default pw");
        assert_eq!(text(|out| auth(out, Some("ann"), "pw")).0, "3: AUTH ann pw");
        assert_eq!(text(|out| auth(out, None, "pw")).0, "2: AUTH pw");
        assert_eq!(text(|out| select(out, 7)).0, "2: SELECT 7");
    }
}
