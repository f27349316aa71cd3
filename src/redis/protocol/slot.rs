//! Slots: which part of a cluster a key belongs to, and names of locks that belong to the same part.

use std::sync::LazyLock;

use crc::{CRC_16_XMODEM, Crc};

use crate::key::{Key, KeyBuf};

/// How many slots a cluster has.
pub(crate) const SLOTS: u16 = 16_384;

static CRC: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// The slot of a key whose name stands in two pieces: that of its hash tag, what stands between the first `{` and the
/// `}` that follows, or of all of it where there is none. Only the first piece may hold a tag.
#[inline]
pub(crate) fn slot(name: &[u8], suffix: &[u8]) -> u16 {
    let mut digest = CRC.digest();
    if let Some(tag) = tag(name) {
        digest.update(tag);
    } else {
        digest.update(name);
        digest.update(suffix);
    }
    digest.finalize() % SLOTS
}

#[inline]
fn tag(name: &[u8]) -> Option<&[u8]> {
    let open = name.iter().position(|&byte| byte == b'{')?;
    let rest = &name[open + 1..];
    let close = rest.iter().position(|&byte| byte == b'}')?;
    (close > 0).then_some(&rest[..close])
}

/// How entries are divided among the slots of a cluster.
#[derive(Clone, Copy)]
pub(crate) struct Slots {
    /// What stands behind the names of hashes.
    pub(crate) suffix: &'static [u8],
}

impl Slots {
    #[inline]
    pub(crate) fn of(self, key: Key<'_>) -> u16 {
        match key {
            Key::Plain(name) => slot(name, b""),
            Key::Field { hash, .. } => slot(hash, self.suffix),
        }
    }

    /// The Redis key of the lock on an entry, in its slot: the first of three names that is there.
    pub(crate) fn lock_name(self, prefix: &[u8], key: Key<'_>) -> KeyBuf {
        let is_there = |name: &KeyBuf| slot(name.as_key().server_key(), b"") == self.of(key);
        let as_ever = lock_name(prefix, key);
        if is_there(&as_ever) {
            return as_ever;
        }
        let suffix = if let Key::Field { .. } = key { self.suffix } else { b"" };
        let tagged = named(&[prefix, b"{", key.server_key(), suffix, b"}"], key);
        if is_there(&tagged) {
            return tagged;
        }
        let mut number = itoa::Buffer::new();
        let number = number.format(NUMBERS[usize::from(self.of(key))]).as_bytes();
        named(&[b"{", number, b"}", prefix, key.server_key()], key)
    }
}

/// The Redis key of the lock on an entry, as the reference names it: prefix and key in one, `hash,field` for a field.
pub(crate) fn lock_name(prefix: &[u8], key: Key<'_>) -> KeyBuf {
    named(&[prefix, key.server_key()], key)
}

fn named(parts: &[&[u8]], key: Key<'_>) -> KeyBuf {
    let mut name = KeyBuf::new();
    parts.iter().for_each(|part| name.push(part));
    if let Key::Field { field, .. } = key {
        name.push(b",");
        name.push(field);
    }
    name
}

/// For each slot, the smallest number that belongs to it as a tag.
static NUMBERS: LazyLock<Vec<u32>> = LazyLock::new(|| {
    let mut numbers = vec![None; usize::from(SLOTS)];
    let mut left = numbers.len();
    for number in 0_u32.. {
        let place = &mut numbers[usize::from(slot(itoa::Buffer::new().format(number).as_bytes(), b""))];
        if place.is_none() {
            *place = Some(number);
            left -= 1;
        }
        if left == 0 {
            break;
        }
    }
    numbers.into_iter().flatten().collect()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_servers() {
        // As `CLUSTER KEYSLOT` of Redis 7.0 says.
        for (name, expected) in [
            (&b""[..], 0),
            (b"123456789", 12739),
            (b"foo", 12182),
            (b"{foo}bar", 12182),
            (b"a{foo}{bar}", 12182),
            (b"foo{}bar", 14292),
            (b"foo{bar", 15278),
            (b"foo}bar{", 11073),
        ] {
            assert_eq!(slot(name, b""), expected, "{}", name.escape_ascii());
        }
        assert_eq!(slot(b"h", b"\x7f2"), slot(b"h\x7f2", b""));
        assert_eq!(slot(b"{h}", b"\x7f2"), slot(b"h", b""));
    }

    #[test]
    fn locks_are_named_as_the_reference_names_them() {
        let name = |prefix: &str, key| lock_name(prefix.as_bytes(), key).to_string();
        assert_eq!(name("_lok.", Key::from("k")), "_lok.k");
        assert_eq!(name("_lok.", Key::from(("a", "b"))), "_lok.a,b");
        assert_eq!(name("_lock", Key::from("k")), "_lockk");
    }

    #[test]
    fn locks_are_where_their_entries_are() {
        let name = |key: Key<'_>, suffix: &'static [u8]| {
            let name = Slots { suffix }.lock_name(b"_lok.", key);
            assert_eq!(slot(name.as_key().server_key(), b""), slot(key.server_key(), suffix), "{key}");
            name.as_key().server_key().escape_ascii().to_string()
        };
        assert_eq!(name(Key::from("user-15"), b""), "_lok.{user-15}");
        assert_eq!(name(Key::from("{user-15}|posts"), b""), "_lok.{user-15}|posts");
        assert_eq!(name(Key::from(("users", "15")), b""), "_lok.{users},15");
        assert_eq!(name(Key::from(("users", "15")), b"\x7f2"), "_lok.{users\\x7f2},15");
        assert_eq!(name(Key::from(("{a}users", "{15}")), b"\x7f2"), "_lok.{a}users,{15}");
        assert_eq!(name(Key::from("a}b"), b""), "{20658}_lok.a}b");
        assert_eq!(name(Key::from("a{}b"), b""), "{3991}_lok.a{}b");
        assert_eq!(name(Key::from(""), b""), "{3560}_lok.");
        for prefix in [&b"{lock}"[..], b"{", b"a{}", b"}"] {
            for key in ["user-15", "{a}b", "a}b", "{}", "{", ""] {
                let name = Slots { suffix: b"" }.lock_name(prefix, Key::from(key));
                assert_eq!(slot(name.as_key().server_key(), b""), slot(key.as_bytes(), b""), "{key}");
            }
        }
    }
}
