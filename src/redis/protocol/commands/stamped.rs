//! What stores stamped fields, and removes those that have expired.

use std::sync::LazyLock;
use std::time::Duration;

use crate::key::hex;
use crate::redis::protocol::commands::Life;
use crate::redis::protocol::commands::leases::Lease;
use crate::redis::protocol::commands::wire::{argument, argument_after, call_script, header, millis, number};
use crate::redis::stamp::Stamp;
use crate::time::Timestamp;

/// Stores stamped fields of a hash that lives a little longer than they do. Where its life has to be stretched for that,
/// removes what has expired in it: stamps rely on that. A hash that somebody gave an endless life is removed as a whole,
/// since nobody can tell for how long its stamps have been what they seem. With a lock, only if that holds our token, and releases it.
/// KEYS: hash, lock if there is one. ARGV: token or '', now, bytes of a stamp, the most seconds that one may tell, the
/// life that the hash needs, the life that it gets or '' for none, field, entry, … Answered by the number of fields that
/// were removed, with a lock by 1 or 0; by an error of the store after the release.
pub(crate) const PUT_STAMPED: &[u8] = b"\
local hash,lock=KEYS[1],KEYS[2] \
if lock and redis.call('get',lock)~=ARGV[1] then return 0 end \
local now,bytes,most=tonumber(ARGV[2]),tonumber(ARGV[3]),tonumber(ARGV[4]) \
local function put() \
local left=redis.call('pttl',hash) \
if left==-1 and redis.call('type',hash).ok=='hash' then redis.call('del',hash) left=-2 end \
local stretch=left<tonumber(ARGV[5]) \
local dead={} \
if stretch and left~=-2 then \
local all=redis.call('hgetall',hash) \
for i=2,#all,2 do \
local stamp=0 \
for at=1,bytes do stamp=stamp*256+(string.byte(all[i],at) or 0) end \
local lives=(stamp-now)%(256^bytes) \
if lives==0 or lives>most then dead[#dead+1]=all[i-1] end \
end end \
for i=1,#dead,1000 do redis.call('hdel',hash,unpack(dead,i,math.min(i+999,#dead))) end \
for i=7,#ARGV,1000 do redis.call('hset',hash,unpack(ARGV,i,math.min(i+999,#ARGV))) end \
if stretch and ARGV[6]~='' then redis.call('pexpire',hash,ARGV[6]) end \
return #dead end \
local ok,done=pcall(put) \
if lock then redis.call('del',lock) end \
if ok then return lock and 1 or done end \
if type(done)~='table' then done=redis.error_reply(tostring(done)) end \
return done";

/// How a server is told which script to run. This one is too long to be sent with each write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    /// By its digest. A server that does not know it answers with `NOSCRIPT`, and has done nothing.
    Digest,
    /// By its text the next time, and by its digest after that: in one write the server knows it by then.
    Text,
    /// By its text each time, since each may be another server of a cluster.
    Texts,
}

impl Script {
    /// For who is to do without `NOSCRIPT`.
    pub(crate) fn text(is_cluster: bool) -> Self {
        if is_cluster { Script::Texts } else { Script::Text }
    }
}

static DIGEST: LazyLock<Vec<u8>> =
    LazyLock::new(|| sha1_smol::Sha1::from(PUT_STAMPED).digest().bytes().into_iter().flat_map(hex).collect());

pub(crate) fn put_stamped<'e>(
    out: &mut Vec<u8>,
    script: &mut Script,
    hash: &[u8],
    held: Option<&Lease<'_>>,
    fields: impl ExactSizeIterator<Item = (&'e [u8], &'e [u8])>,
    longest: Duration,
    life: Life,
) -> usize {
    let stamp = Stamp::for_life(longest);
    let (now, life) = (life.now, stamp.life(life.ttl, longest));
    // A stamp is rounded up to a second, and so is the life of its hash, which is stretched for longer than is needed,
    // so that not every write has to.
    let needed = millis(life) + 1000;
    let stretched = needed + millis(life) / 4 + 1000;
    put_stamped_head(out, script, hash, held, stamp, now, [needed, stretched], 2 * fields.len());
    for (field, entry) in fields {
        argument_after(out, b"$00\r\n", field);
        header(out, b'$', stamp.bytes() + entry.len());
        stamp.write(out, now, life);
        out.extend_from_slice(entry);
        out.extend_from_slice(b"\r\n");
    }
    1
}

/// All of the script but fields and entries. A stretched life of 0 stretches none.
#[allow(clippy::too_many_arguments)] // they are the script's
fn put_stamped_head(
    out: &mut Vec<u8>,
    script: &mut Script,
    hash: &[u8],
    held: Option<&Lease<'_>>,
    stamp: Stamp,
    now: Timestamp,
    [needed, stretched]: [u64; 2],
    more: usize,
) {
    let keys = [(hash, stamp.suffix()), (held.map_or(&b""[..], |held| held.lock), b"")];
    let keys = &keys[..1 + usize::from(held.is_some())];
    let this = *script;
    if this == Script::Text {
        *script = Script::Digest;
    }
    match this {
        Script::Text | Script::Texts => call_script(out, "EVAL", PUT_STAMPED, keys, 6 + more),
        Script::Digest => call_script(out, "EVALSHA", &DIGEST, keys, 6 + more),
    }
    argument(out, held.map_or(b"", |held| held.token));
    number(out, now.as_secs());
    number(out, stamp.bytes() as u64);
    number(out, stamp.most_left());
    number(out, needed);
    if stretched == 0 { argument(out, b"") } else { number(out, stretched) }
}

/// Removes what has expired in a hash of stamped fields, whose name is given without what stands behind it. Answered by
/// the number of fields.
pub(crate) fn sweep(out: &mut Vec<u8>, script: &mut Script, hash: &[u8], stamp: Stamp, now: Timestamp) -> usize {
    // As if it had to live for ever, and gets nothing.
    put_stamped_head(out, script, hash, None, stamp, now, [millis(Duration::MAX), 0], 0);
    1
}
