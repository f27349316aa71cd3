//! Many keys in one round trip: groups them by hash, and brings the answers into the caller's order.

use std::collections::HashMap;

use smallvec::SmallVec;

use crate::batch::Found;
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::parser::{Receive, Strings, Token};
use crate::redis::protocol::slot::Slots;

/// More keys than these go into several commands of the same pipeline, so that no single one holds up the server.
const MOST_IN_COMMAND: usize = 10_000;

/// Keys by the command that asks for them: the plain ones together, the fields by hash, each in the caller's order.
pub(crate) struct Groups {
    /// Positions in the caller's list, group by group. Empty when that is the order they came in.
    order: SmallVec<[u32; 128]>,
    groups: SmallVec<[Group; 16]>,
    /// Whether they are divided by slots.
    are_divided: bool,
}

/// The members of one command.
#[derive(Clone, Copy)]
struct Group {
    /// Where its members begin in `order`.
    start: usize,
    count: usize,
}

impl Groups {
    /// Groups `count` keys; those of a cluster by their slots too.
    pub(crate) fn of<'k>(count: usize, key: impl Fn(usize) -> Key<'k>, slots: Option<Slots>) -> Self {
        let mut groups = Groups { order: SmallVec::new(), groups: SmallVec::new(), are_divided: slots.is_some() };
        if count == 0 {
            return groups;
        }
        if let Some(slots) = slots {
            groups.divide(count, key, slots);
            return groups;
        }
        if (0..count).all(|at| matches!(key(at), Key::Plain(_))) {
            groups.push(0, count);
            return groups;
        }
        let (group_of, counts) = assign(count, key);
        // A stable counting sort of the positions by their group.
        let mut next: SmallVec<[u32; 32]> = SmallVec::with_capacity(counts.len());
        let mut start = 0;
        for &count in &counts {
            next.push(start);
            start += count;
        }
        groups.order.resize(count, 0);
        for (position, &group) in (0_u32..).zip(&group_of) {
            let slot = &mut next[group as usize];
            groups.order[*slot as usize] = position;
            *slot += 1;
        }
        let mut start = 0;
        for count in counts {
            groups.push(start, count as usize);
            start += count as usize;
        }
        groups
    }

    /// One group for each hash and each plain key, in the order of the slots: of these a server has long runs, so that its
    /// replies come one behind the other. Plain keys are not asked for together even where they have the same slot: while
    /// it moves, half of them may be at one server and half at another.
    fn divide<'k>(&mut self, count: usize, key: impl Fn(usize) -> Key<'k>, slots: Slots) {
        // Slot and position in one number, which is sorted quickly.
        let slot = |member: &u64| member >> 32;
        #[allow(clippy::cast_possible_truncation)] // it is the lower half
        let position = |member: &u64| *member as u32;
        let hash = |member: &u64| hash_of(key(position(member) as usize));
        let mut members: SmallVec<[u64; 128]> = (0..count)
            .zip(0_u32..)
            .map(|(at, position)| u64::from(slots.of(key(at))) << 32 | u64::from(position))
            .collect();
        members.sort_unstable();
        let mut start = 0;
        for of_slot in members.chunk_by_mut(|a, b| slot(a) == slot(b)) {
            if of_slot.len() > 1 {
                of_slot.sort_by(|a, b| hash(a).cmp(&hash(b)));
            }
            for of_one in of_slot.chunk_by(|a, b| hash(a).is_some() && hash(a) == hash(b)) {
                self.push(start, of_one.len());
                start += of_one.len();
            }
        }
        self.order.extend(members.iter().map(position));
    }

    fn push(&mut self, mut start: usize, mut count: usize) {
        while count > 0 {
            let here = count.min(MOST_IN_COMMAND);
            self.groups.push(Group { start, count: here });
            start += here;
            count -= here;
        }
    }

    /// Whether they are divided by slots. A key that is alone in its group is then asked for by itself: its reply is no
    /// array.
    pub(crate) fn are_divided(&self) -> bool {
        self.are_divided
    }

    /// The positions of each group's members.
    pub(crate) fn iter(&self) -> impl Iterator<Item = impl ExactSizeIterator<Item = usize> + Clone> {
        let order = &self.order[..];
        self.groups.iter().map(move |group| (group.start..group.start + group.count).map(move |at| place(order, at)))
    }
}

fn hash_of(key: Key<'_>) -> Option<&[u8]> {
    match key {
        Key::Plain(_) => None,
        Key::Field { hash, .. } => Some(hash),
    }
}

/// The group of each key, in order of first appearance, and how many keys each group has.
fn assign<'k>(count: usize, key: impl Fn(usize) -> Key<'k>) -> (SmallVec<[u32; 128]>, SmallVec<[u32; 32]>) {
    /// Up to so many groups are searched one by one, which is faster than hashing.
    const FEW: usize = 8;
    let name = |at: usize| hash_of(key(at));
    let mut names: SmallVec<[Option<&[u8]>; 32]> = SmallVec::new();
    let mut counts: SmallVec<[u32; 32]> = SmallVec::new();
    let mut many: HashMap<Option<&[u8]>, u32, ahash::RandomState> = HashMap::default();
    let mut group_of = SmallVec::with_capacity(count);
    let mut last = 0_u32;
    for at in 0..count {
        let name = name(at);
        if names.get(last as usize) != Some(&name) {
            let known = if names.len() <= FEW {
                names.iter().position(|known| *known == name).and_then(|group| u32::try_from(group).ok())
            } else {
                if many.is_empty() {
                    many.extend(names.iter().copied().zip(0..));
                }
                many.get(&name).copied()
            };
            last = known.unwrap_or_else(|| {
                let new = u32::try_from(names.len()).expect("fewer groups than keys");
                names.push(name);
                counts.push(0);
                if !many.is_empty() {
                    many.insert(name, new);
                }
                new
            });
        }
        counts[last as usize] += 1;
        group_of.push(last);
    }
    (group_of, counts)
}

/// Puts the replies to grouped `MGET`s and `HMGET`s where their caller wants them.
pub(crate) struct Gather<'g> {
    /// Positions in the caller's list, in the order of the replies. Empty when they are the same.
    order: &'g [u32],
    /// Groups whose replies have not begun.
    groups: std::slice::Iter<'g, Group>,
    are_divided: bool,
    /// Members of the current array still to come; none before an array.
    left: usize,
    /// Position in the order of the replies.
    at: usize,
    /// Has a place for each key.
    found: &'g mut Found,
    failed: Option<Error>,
}

impl Receive for Gather<'_> {
    #[cold]
    fn token(&mut self, token: Token<'_>, chunk: &mut Chunk<'_>) -> Result<(), Error> {
        match token {
            token if self.left == 0 => return self.begin(token, chunk),
            Token::Bulk(entry) => {
                let part = chunk.place(entry);
                self.found.parts(chunk.whole()).put(place(self.order, self.at), part);
            }
            Token::Nil => {}
            other => return Err(unexpected(other)),
        }
        self.at += 1;
        self.left -= 1;
        Ok(())
    }

    #[inline]
    fn strings(&mut self, strings: &mut Strings<'_>, chunk: &mut Chunk<'_>) -> Result<(), Error> {
        if self.left == 0 {
            while self.is_alone_next()
                && let Some(entry) = strings.next()
            {
                self.begin(Token::Bulk(entry), chunk)?;
            }
            return Ok(());
        }
        let Some(mut entry) = strings.next() else { return Ok(()) };
        let first = (entry.as_ptr() as usize, chunk.place(entry).start);
        let mut parts = self.found.parts(chunk.whole());
        // Counted here, so that for each nothing but its place is written.
        let end = self.at + self.left;
        let mut at = self.at;
        loop {
            let start = first.1 + (entry.as_ptr() as usize - first.0);
            parts.put(place(self.order, at), start..start + entry.len());
            at += 1;
            if at == end {
                break;
            }
            let Some(next) = strings.next() else { break };
            entry = next;
        }
        (self.at, self.left) = (at, end - at);
        Ok(())
    }
}

/// The caller's place for the entry at `at` in the order of the replies.
#[inline]
fn place(order: &[u32], at: usize) -> usize {
    order.get(at).map_or(at, |&place| place as usize)
}

impl<'g> Gather<'g> {
    pub(crate) fn new(groups: &'g Groups, found: &'g mut Found) -> Self {
        let (order, are_divided) = (&groups.order[..], groups.are_divided);
        Gather { order, groups: groups.groups.iter(), are_divided, left: 0, at: 0, found, failed: None }
    }

    /// Whether the next reply is the entry of one key.
    fn is_alone_next(&self) -> bool {
        self.are_divided && matches!(self.groups.as_slice(), [Group { count: 1, .. }, ..])
    }

    /// Takes the token that comes before a group's members, or is the only one.
    fn begin(&mut self, token: Token<'_>, chunk: &mut Chunk<'_>) -> Result<(), Error> {
        let is_alone = self.is_alone_next();
        match (token, self.groups.next()) {
            (Token::Bulk(entry), _) if is_alone => {
                let part = chunk.place(entry);
                self.found.parts(chunk.whole()).put(place(self.order, self.at), part);
                self.at += 1;
            }
            (Token::Nil, _) if is_alone => self.at += 1,
            (Token::Array(members), Some(group)) if members == group.count => self.left = members,
            (Token::Error(error), Some(group)) => {
                // A key that is no hash has no fields: each is a miss, as `MGET` answers for a key that is no string.
                if !error.starts_with(b"WRONGTYPE") && self.failed.is_none() {
                    self.failed = Some(server_error(error));
                }
                self.at += group.count;
            }
            (token, _) => return Err(unexpected(token)),
        }
        Ok(())
    }

    /// The first error among the replies, when all are there.
    pub(crate) fn finish(self) -> Result<(), Error> {
        self.failed.map_or(Ok(()), Err)
    }
}

/// Receives replies of which only errors matter, and keeps the first.
#[derive(Default)]
pub(crate) struct Acknowledged {
    failed: Option<Error>,
    /// Whether the server did not know a script.
    lacks_script: bool,
}

impl Receive for Acknowledged {
    fn token(&mut self, token: Token<'_>, _: &mut Chunk<'_>) -> Result<(), Error> {
        match token {
            Token::Error(error) => {
                self.lacks_script |= error.starts_with(b"NOSCRIPT");
                self.failed.get_or_insert_with(|| server_error(error));
            }
            Token::Array(_) | Token::Bulk(_) => return Err(unexpected(token)),
            _ => {}
        }
        Ok(())
    }
}

impl Acknowledged {
    pub(crate) fn finish(self) -> Result<(), Error> {
        self.failed.map_or(Ok(()), Err)
    }

    pub(crate) fn lacks_script(&self) -> bool {
        self.lacks_script
    }
}

/// The error that a server answered with, without what it repeats of a command that it does not know: that may be an
/// entry, or a password.
#[cold]
pub(crate) fn server_error(message: &[u8]) -> Error {
    let message = without_arguments(message);
    let kind = match message.split(|&byte| byte == b' ').next().unwrap_or_default() {
        b"WRONGTYPE" => ErrorKind::WrongType,
        b"NOAUTH" | b"WRONGPASS" | b"NOPERM" => ErrorKind::Refused,
        // Of a cluster, as long as some of its slots have no server.
        b"CLUSTERDOWN" => ErrorKind::Connection,
        _ => ErrorKind::Server,
    };
    Error::new(kind, format!("the server answered \"{}\"", message.escape_ascii()))
}

pub(crate) fn without_arguments(message: &[u8]) -> &[u8] {
    const BEFORE: &[u8] = b", with args";
    let end = message.windows(BEFORE.len()).position(|part| part.eq_ignore_ascii_case(BEFORE));
    &message[..end.unwrap_or(message.len())]
}

/// A reply that cannot be one to what was asked.
#[cold]
pub(crate) fn unexpected(token: Token<'_>) -> Error {
    let what = match token {
        Token::Nil => "nil".into(),
        Token::Bulk(bytes) => format!("a string of {} bytes", bytes.len()),
        Token::Status(_) => "a status".into(),
        Token::Int(int) => format!("the integer {int}"),
        Token::Error(error) => return server_error(error),
        Token::Array(members) => format!("an array of {members}"),
    };
    Error::new(ErrorKind::Protocol, format!("the server's answer, {what}, is none to what was asked"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::slice::Slice;

    fn field<'a>(hash: &'a str, field: &'a str) -> Key<'a> {
        Key::from((hash, field))
    }

    fn grouped(keys: &[Key<'_>]) -> Vec<Vec<usize>> {
        Groups::of(keys.len(), |at| keys[at], None).iter().map(Iterator::collect).collect()
    }

    #[test]
    fn groups_keep_the_callers_order() {
        assert_eq!(grouped(&[]), Vec::<Vec<usize>>::new());
        assert_eq!(grouped(&["a".into(), "b".into(), "a".into()]), [[0, 1, 2]]);
        let mixed =
            [field("h", "1"), "a".into(), field("i", "1"), field("h", "2"), "b".into(), field("h", "1"), field("", "")];
        assert_eq!(grouped(&mixed), [vec![0, 3, 5], vec![1, 4], vec![2], vec![6]]);
    }

    #[test]
    fn many_hashes_and_many_keys() {
        let hashes: Vec<String> = (0..100).map(|hash| format!("h{hash}")).collect();
        let keys: Vec<_> = (0..1000).map(|at| field(&hashes[at * 7 % 100], "f")).collect();
        let groups = grouped(&keys);
        assert_eq!(groups.len(), 100);
        assert_eq!(groups[1][..3], [1, 101, 201]);
        assert_eq!(
            Groups::of(25_000, |_| Key::Plain(b"k"), None).iter().map(|g| g.len()).collect::<Vec<_>>(),
            [10_000, 10_000, 5_000]
        );
    }

    #[test]
    fn answers_find_their_places() {
        let keys = [field("h", "1"), "a".into(), field("h", "2"), field("bad", "x"), "b".into()];
        let groups = Groups::of(keys.len(), |at| keys[at], None);
        let mut found = Found::new();
        found.reset(keys.len());
        let mut gather = Gather::new(&groups, &mut found);
        let input = Bytes::from_static(b"h1h2b");
        let mut chunk = Chunk::sharing(&input);
        let bulk = |range: std::ops::Range<usize>| Token::Bulk(&input[range]);
        for token in [
            Token::Array(2),
            bulk(0..2),
            bulk(2..4),
            Token::Array(2),
            Token::Nil,
            bulk(4..5),
            Token::Error(b"WRONGTYPE Operation against a key holding the wrong kind of value"),
        ] {
            gather.token(token, &mut chunk).unwrap();
        }
        gather.finish().unwrap();
        let texts: Vec<_> =
            found.iter().map(|entry| entry.map_or(&b"-"[..], Slice::as_bytes).escape_ascii().to_string()).collect();
        assert_eq!(texts, ["h1", "-", "h2", "-", "b"]);
    }

    #[test]
    fn answers_that_are_none() {
        let keys = [field("h", "1"), field("h", "2")];
        let groups = Groups::of(keys.len(), |at| keys[at], None);
        for tokens in [
            &[Token::Array(3)][..],
            &[Token::Nil],
            &[Token::Int(1)],
            &[Token::Array(2), Token::Int(1)],
            &[Token::Array(2), Token::Array(0)],
            &[Token::Array(2), Token::Nil, Token::Nil, Token::Nil],
        ] {
            let mut found = Found::new();
            found.reset(2);
            let mut gather = Gather::new(&groups, &mut found);
            let taken: Result<Vec<()>, _> =
                tokens.iter().map(|token| gather.token(*token, &mut Chunk::sharing(&Bytes::new()))).collect();
            assert_eq!(taken.unwrap_err().kind(), ErrorKind::Protocol, "{tokens:?}");
        }
        let mut found = Found::new();
        let mut gather = Gather::new(&groups, &mut found);
        gather.token(Token::Error(b"LOADING busy"), &mut Chunk::sharing(&Bytes::new())).unwrap();
        assert_eq!(gather.finish().unwrap_err().to_string(), "the server answered \"LOADING busy\"");
    }
}
