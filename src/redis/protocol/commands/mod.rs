//! Turns what is asked of a backend into commands on the wire. Each function appends to `out` and says how many
//! replies will come.

pub(crate) mod leases;
pub(crate) mod stamped;
mod wire;

use std::time::Duration;

use crate::batch::Batch;
use crate::key::Key;
use crate::redis::HashTtl;
use crate::redis::protocol::commands::stamped::put_stamped;
use crate::redis::protocol::commands::wire::{argument, argument_after, command, joined, millis, number, pairs};
use crate::redis::stamp::Stamp;
use crate::time::Timestamp;

pub(crate) use self::leases::*;
pub(crate) use self::stamped::{Script, sweep};

/// How long what is written lives, and how that is said of fields.
#[derive(Clone, Copy)]
pub(crate) struct Life {
    pub(crate) ttl: Option<Duration>,
    pub(crate) expiry: HashTtl,
    /// Where fields are stamped.
    pub(crate) now: Timestamp,
}

/// The name of a hash, with what stands behind it where its entries are stamped.
#[inline]
fn hash_name(out: &mut Vec<u8>, hash: &[u8], expiry: HashTtl) {
    match expiry.stamp() {
        None => argument(out, hash),
        Some(stamp) => joined(out, hash, stamp.suffix()),
    }
}

/// `GET` or `HGET`. Part of a hit, and so inlined where that is.
#[inline(always)]
pub(crate) fn get(out: &mut Vec<u8>, key: Key<'_>, stamp: Option<Stamp>) -> usize {
    match key {
        Key::Plain(key) => {
            argument_after(out, b"*2\r\n$3\r\nGET\r\n$00\r\n", key);
        }
        Key::Field { hash, field } => {
            match stamp {
                None => argument_after(out, b"*3\r\n$4\r\nHGET\r\n$00\r\n", hash),
                Some(stamp) => stamped_get(out, hash, stamp),
            }
            argument_after(out, b"$00\r\n", field);
        }
    }
    1
}

/// The same where fields are stamped, up to the field.
#[cold]
fn stamped_get(out: &mut Vec<u8>, hash: &[u8], stamp: Stamp) {
    command(out, "HGET", 3);
    joined(out, hash, stamp.suffix());
}

/// `SET` with its TTL; or what stores one field, see [`set_fields`].
pub(crate) fn set(out: &mut Vec<u8>, script: &mut Script, key: Key<'_>, entry: &[u8], life: Life) -> usize {
    match key {
        Key::Plain(key) => {
            command(out, "SET", if life.ttl.is_some() { 5 } else { 3 });
            argument(out, key);
            argument(out, entry);
            if let Some(ttl) = life.ttl {
                argument(out, b"PX");
                number(out, millis(ttl));
            }
            1
        }
        Key::Field { hash, field } => set_fields(out, script, hash, std::iter::once((field, entry)), life),
    }
}

/// Stores fields of one hash: `HSET` and the `PEXPIRE` of the hash in the same write, `HSETEX`, or a script.
fn set_fields<'e>(
    out: &mut Vec<u8>,
    script: &mut Script,
    hash: &[u8],
    fields: impl ExactSizeIterator<Item = (&'e [u8], &'e [u8])>,
    life: Life,
) -> usize {
    let Life { ttl, expiry, .. } = life;
    match (expiry, ttl) {
        (HashTtl::Stamped { longest }, _) => put_stamped(out, script, hash, None, fields, longest, life),
        (HashTtl::PerField, Some(ttl)) => {
            command(out, "HSETEX", 6 + 2 * fields.len());
            argument(out, hash);
            argument(out, b"PX");
            number(out, millis(ttl));
            argument(out, b"FIELDS");
            number(out, fields.len() as u64);
            pairs(out, fields);
            1
        }
        _ => {
            command(out, "HSET", 2 + 2 * fields.len());
            argument(out, hash);
            pairs(out, fields);
            1 + expire_hash(out, hash, ttl, expiry)
        }
    }
}

/// The TTL of a hash. `NX` gives it to a hash that has none, so that a hash whose TTL was lost is mended too.
fn expire_hash(out: &mut Vec<u8>, hash: &[u8], ttl: Option<Duration>, expiry: HashTtl) -> usize {
    let (Some(ttl), HashTtl::OnCreate | HashTtl::Always) = (ttl, expiry) else { return 0 };
    let on_create = expiry == HashTtl::OnCreate;
    command(out, "PEXPIRE", if on_create { 4 } else { 3 });
    argument(out, hash);
    number(out, millis(ttl));
    if on_create {
        argument(out, b"NX");
    }
    1
}

/// `SCAN` for hashes by a glob pattern.
pub(crate) fn scan(out: &mut Vec<u8>, cursor: &[u8], pattern: &[u8]) -> usize {
    command(out, "SCAN", 8);
    argument(out, cursor);
    argument(out, b"MATCH");
    argument(out, pattern);
    argument(out, b"COUNT");
    argument(out, b"500");
    argument(out, b"TYPE");
    argument(out, b"hash");
    1
}

/// `INFO server`, and `CONFIG GET` of what keeps a hash a listpack.
pub(crate) fn server_info(out: &mut Vec<u8>) -> usize {
    let info = info(out);
    command(out, "CONFIG", 3);
    argument(out, b"GET");
    argument(out, b"hash-max-listpack-*");
    info + 1
}

/// `INFO server`: its name and version, and whether it is one of a cluster.
pub(crate) fn info(out: &mut Vec<u8>) -> usize {
    command(out, "INFO", 2);
    argument(out, b"server");
    1
}

/// `COMMAND INFO`: whether a server knows a command.
pub(crate) fn command_info(out: &mut Vec<u8>, name: &str) -> usize {
    command(out, "COMMAND", 3);
    argument(out, b"INFO");
    argument(out, name.as_bytes());
    1
}

/// `ROLE`: whether a server is a primary.
pub(crate) fn role(out: &mut Vec<u8>) -> usize {
    command(out, "ROLE", 1);
    1
}

/// `READONLY`: asks to read from a replica of a cluster, which sends us away otherwise.
pub(crate) fn read_only(out: &mut Vec<u8>) -> usize {
    command(out, "READONLY", 1);
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
    expiry: HashTtl,
    members: impl ExactSizeIterator<Item = Key<'k>>,
) {
    let name = match (verb, hash) {
        (Verb::Get, None) => "MGET",
        (Verb::Get, Some(_)) => "HMGET",
        (Verb::Delete, None) => "DEL",
        (Verb::Delete, Some(_)) => "HDEL",
    };
    command(out, name, 1 + usize::from(hash.is_some()) + members.len());
    if let Some(hash) = hash {
        hash_name(out, hash, expiry);
    }
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

/// `SET`s of plain keys (one `MSET` where there is no TTL), or what stores the fields of one hash.
pub(crate) fn set_group(
    out: &mut Vec<u8>,
    script: &mut Script,
    hash: Option<&[u8]>,
    batch: &Batch,
    members: impl ExactSizeIterator<Item = usize>,
    life: Life,
) -> usize {
    let entries = members.map(|member| (name_of(batch.key(member)), batch.entry(member)));
    match hash {
        Some(hash) => set_fields(out, script, hash, entries, life),
        None if life.ttl.is_some() => entries.map(|(key, entry)| set(out, script, Key::Plain(key), entry, life)).sum(),
        None => {
            command(out, "MSET", 1 + 2 * entries.len());
            pairs(out, entries);
            1
        }
    }
}

/// Asks to be told when keys change that this connection has asked for.
pub(crate) fn track(out: &mut Vec<u8>) -> usize {
    command(out, "CLIENT", 3);
    argument(out, b"TRACKING");
    argument(out, b"ON");
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

/// Which server is the primary of this name, and which are its replicas.
pub(crate) fn sentinel(out: &mut Vec<u8>, name: &str) -> usize {
    for question in [&b"GET-MASTER-ADDR-BY-NAME"[..], b"REPLICAS", b"MASTER"] {
        command(out, "SENTINEL", 3);
        argument(out, question);
        argument(out, name.as_bytes());
    }
    3
}

/// The next command is about a slot that is on its way to this server.
pub(crate) fn asking(out: &mut Vec<u8>) -> usize {
    command(out, "ASKING", 1);
    1
}

/// Which slots are at which servers, and how new that is.
pub(crate) fn cluster_slots(out: &mut Vec<u8>) -> usize {
    for question in [&b"SLOTS"[..], b"INFO"] {
        command(out, "CLUSTER", 2);
        argument(out, question);
    }
    2
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
    use crate::redis::protocol::commands::leases::Lease;

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

    const STAMPED: HashTtl = HashTtl::Stamped { longest: Duration::from_secs(3600) };

    fn life(ttl: Option<Duration>, expiry: HashTtl) -> Life {
        Life { ttl, expiry, now: Timestamp::from_secs(0x1_0000) }
    }

    #[test]
    fn one_entry() {
        let read = |key, stamp| text(|out| get(out, key, stamp));
        assert_eq!(read(Key::Plain(b"k"), STAMPED.stamp()), ("2: GET k".into(), 1));
        let long = Key::Plain(b"a key of 20 bytes....");
        assert_eq!(read(long, None), ("2: GET a key of 20 bytes....".into(), 1));
        assert_eq!(read(FIELD, None), ("3: HGET h f".into(), 1));
        assert_eq!(read(FIELD, STAMPED.stamp()), ("3: HGET h\\x7f2 f".into(), 1));
        let ttl = Some(Duration::from_secs(3600));
        let plain = |ttl| text(|out| set(out, &mut Script::Digest, Key::Plain(b"k"), b"v", life(ttl, STAMPED)));
        assert_eq!(plain(None), ("3: SET k v".into(), 1));
        assert_eq!(plain(ttl), ("5: SET k v PX 3600000".into(), 1));
        assert_eq!(plain(Some(Duration::ZERO)).0, "5: SET k v PX 1");
        assert_eq!(plain(Some(Duration::from_nanos(1_000_001))).0, "5: SET k v PX 2");
        assert_eq!(plain(Some(Duration::MAX)).0, "5: SET k v PX 315360000000000");
        let field = |ttl, expiry| text(|out| set(out, &mut Script::Text, FIELD, b"v", life(ttl, expiry)));
        assert_eq!(field(ttl, HashTtl::Never), ("4: HSET h f v".into(), 1));
        assert_eq!(field(None, HashTtl::Always), ("4: HSET h f v".into(), 1));
        assert_eq!(field(ttl, HashTtl::OnCreate), ("4: HSET h f v 4: PEXPIRE h 3600000 NX".into(), 2));
        assert_eq!(field(ttl, HashTtl::Always), ("4: HSET h f v 3: PEXPIRE h 3600000".into(), 2));
        assert_eq!(field(ttl, HashTtl::PerField), ("8: HSETEX h PX 3600000 FIELDS 1 f v".into(), 1));
        assert_eq!(field(None, HashTtl::PerField), ("4: HSET h f v".into(), 1));
        // Now is 65536, so the stamp is 3600.
        let (stamped, replies) = field(ttl, STAMPED);
        assert!(stamped.ends_with(r" 1 h\x7f2  65536 2 29101 3601000 4502000 f \x0e\x10v"), "{stamped}");
        assert_eq!(replies, 1);
        // The text goes once in a write.
        let twice = |out: &mut Vec<u8>| {
            let mut script = Script::Text;
            let set = |out: &mut Vec<u8>, script: &mut Script| set(out, script, FIELD, b"v", life(ttl, STAMPED));
            set(out, &mut script) + set(out, &mut script)
        };
        let (twice, replies) = text(twice);
        assert_eq!((twice.matches("local hash").count(), twice.matches("EVALSHA").count(), replies), (1, 1, 2));
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
        let read = |key, stamp| {
            let wanted = Lease { lock, token: b"token", key };
            text(|out| read_or_lease(out, &wanted, Duration::from_secs(10), stamp)).0
        };
        assert!(read(Key::Plain(b"k"), None).ends_with("2 _lok.k k token 10000  plain"));
        assert!(read(FIELD, None).ends_with("2 _lok.k h token 10000 f field"));
        assert!(read(FIELD, STAMPED.stamp()).ends_with("2 _lok.k h\\x7f2 token 10000 f field"));
        let store = |key, ttl, expiry| {
            let held = Lease { lock, token: b"token", key };
            text(|out| store_if_held(out, &mut Script::Text, &held, key, b"v", life(ttl, expiry))).0
        };
        let ttl = Some(Duration::from_secs(1));
        assert!(store(Key::Plain(b"k"), ttl, HashTtl::Never).ends_with("2 _lok.k k token v 1000   plain"));
        assert!(store(FIELD, ttl, HashTtl::Never).ends_with("2 _lok.k h token v  f  field"));
        assert!(store(FIELD, ttl, HashTtl::OnCreate).ends_with("2 _lok.k h token v 1000 f NX field"));
        assert!(store(FIELD, ttl, HashTtl::PerField).ends_with("2 _lok.k h token v 1000 f  own"));
        assert!(store(FIELD, None, HashTtl::PerField).ends_with("2 _lok.k h token v  f  field"));
        assert!(store(FIELD, ttl, STAMPED).ends_with(r"2 h\x7f2 _lok.k token 65536 2 29101 2000 3250 f \x00\x01v"));
    }

    #[test]
    fn greetings() {
        assert_eq!(text(|out| hello(out, None, None)).0, "2: HELLO 3");
        assert_eq!(text(|out| hello(out, None, Some("pw"))).0, "5: HELLO 3 AUTH default pw");
        assert_eq!(text(|out| auth(out, Some("ann"), "pw")).0, "3: AUTH ann pw");
        assert_eq!(text(|out| auth(out, None, "pw")).0, "2: AUTH pw");
        assert_eq!(text(|out| select(out, 7)).0, "2: SELECT 7");
        assert_eq!(text(server_info), ("2: INFO server 3: CONFIG GET hash-max-listpack-*".into(), 2));
        assert_eq!(text(|out| command_info(out, "hsetex")).0, "3: COMMAND INFO hsetex");
        assert_eq!(text(role).0 + &text(read_only).0, "1: ROLE1: READONLY");
    }
}
