//! Requests to a cluster: which command goes to which server, what the servers say about that, and their replies in the
//! order of the commands.

use std::collections::HashSet;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, ErrorKind};
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::commands;
use crate::redis::protocol::parser::{Receive, Strings, Token};
use crate::redis::protocol::slot::slot;

/// How often what is redirected is sent again. Slots move one at a time, so more than twice is seldom.
pub(crate) const MOST_ROUNDS: u32 = 8;

/// How long to wait until keys have moved that are on their way: the first time, and longer each time.
pub(crate) const ON_THEIR_WAY: Duration = Duration::from_millis(2);

/// Where a server is, as another one says. No host stands for that of whoever says so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Endpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// What a server of a cluster says instead of doing what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Redirect {
    /// The slot is there now.
    Moved(Endpoint),
    /// The slot is on its way there, and this key is there, or will be: ask there this once.
    Ask(Endpoint),
    /// Of the command's keys some are on their way: ask later.
    Later,
    /// It is no replica that can answer at the moment: ask the primary.
    Primary,
    /// It is a replica, and so no primary that was thought to be.
    NotPrimary,
    /// It cannot answer at the moment, in these words: it loads, or has lost its cluster, or the cluster some of its
    /// servers. Another one may be in its place.
    Down(String),
}

impl Redirect {
    /// What an error of a server says, which is a replica or none.
    #[cold]
    pub(crate) fn of(error: &[u8], by_replica: bool) -> Option<Self> {
        let mut words = error.split(|&byte| byte == b' ');
        match words.next()? {
            // Without a name it has to be looked up.
            b"MOVED" => match words.nth(1)? {
                unnamed if unnamed.starts_with(b"?:") => endpoint(unnamed).map(|_| Redirect::Later),
                named => endpoint(named).map(Redirect::Moved),
            },
            b"ASK" => endpoint(words.nth(1)?).map(Redirect::Ask),
            b"TRYAGAIN" => Some(Redirect::Later),
            b"READONLY" => Some(Redirect::NotPrimary),
            b"LOADING" | b"MASTERDOWN" | b"CLUSTERDOWN" if by_replica => Some(Redirect::Primary),
            b"LOADING" | b"MASTERDOWN" | b"CLUSTERDOWN" => {
                Some(Redirect::Down(String::from_utf8_lossy(error).into_owned()))
            }
            _ => None,
        }
    }
}

/// `host:port`; addresses of IPv6 stand there as they are.
fn endpoint(text: &[u8]) -> Option<Endpoint> {
    let (host, port) = std::str::from_utf8(text).ok()?.rsplit_once(':')?;
    // A server that has no name of the kind that is preferred: most likely it is on the host of whoever says so.
    let host = if host == "?" { "" } else { host };
    Some(Endpoint { host: host.to_owned(), port: port.parse().ok()? })
}

/// Hands on the replies to commands about keys of one slot, up to the first that says to go elsewhere.
pub(crate) struct UpToRedirect<'r, R> {
    receive: &'r mut R,
    by_replica: bool,
    /// Members still to come of a reply that has begun.
    left: usize,
    /// How many replies were handed on.
    pub(crate) handed_on: usize,
    pub(crate) redirect: Option<Redirect>,
}

impl<'r, R: Receive> UpToRedirect<'r, R> {
    #[inline]
    pub(crate) fn new(receive: &'r mut R, by_replica: bool) -> Self {
        UpToRedirect { receive, by_replica, left: 0, handed_on: 0, redirect: None }
    }
}

impl<R> UpToRedirect<'_, R> {
    /// Whether a part of a reply was handed on, which cannot be taken back.
    pub(crate) fn is_inside(&self) -> bool {
        self.left > 0
    }

    /// What came of the exchange: the redirect that stopped it, or its error; `None` where all was handed on.
    #[inline(always)]
    pub(crate) fn said(&mut self, exchanged: Result<(), Error>) -> Option<Result<Redirect, Error>> {
        match exchanged {
            Ok(()) => self.redirect.take().map(Ok),
            Err(error) => Some(Err(error)),
        }
    }
}

/// Counts a token of a reply of which so many members are left: whether it ends the reply.
fn ends_reply(left: &mut usize, token: Token<'_>) -> bool {
    *left = left.saturating_sub(1);
    if let Token::Array(members) = token {
        *left = left.saturating_add(members);
    }
    *left == 0
}

impl<R: Receive> Receive for UpToRedirect<'_, R> {
    #[inline]
    fn token(&mut self, token: Token<'_>, chunk: &mut Chunk<'_>) -> Result<(), Error> {
        if self.redirect.is_some() {
            return Ok(());
        }
        if let (0, Token::Error(error)) = (self.left, token) {
            self.redirect = Redirect::of(error, self.by_replica);
            if self.redirect.is_some() {
                return Ok(());
            }
        }
        self.handed_on += usize::from(ends_reply(&mut self.left, token));
        self.receive.token(token, chunk)
    }

    #[inline(always)]
    fn strings(&mut self, strings: &mut Strings<'_>, chunk: &mut Chunk<'_>) -> Result<(), Error> {
        if self.redirect.is_some() {
            strings.for_each(drop);
            return Ok(());
        }
        let before = strings.left();
        self.receive.strings(strings, chunk)?;
        let taken = before - strings.left();
        let members = taken.min(self.left);
        self.handed_on += taken - members + usize::from(members > 0 && members == self.left);
        self.left -= members;
        Ok(())
    }

    #[inline]
    fn string(&mut self, string: Bytes) -> Result<(), Error> {
        self.handed_on += 1;
        self.receive.string(string)
    }
}

/// Replies that wait for their turn.
#[derive(Default)]
pub(crate) struct Kept {
    tokens: Vec<KeptToken>,
    buffers: Vec<Bytes>,
    /// Where each reply ends.
    ends: Vec<usize>,
    /// Members still to come of a reply that has begun.
    left: usize,
}

enum KeptToken {
    Nil,
    Int(i64),
    Array(usize),
    /// Text of a kind, which stands there in a buffer.
    Text(for<'a> fn(&'a [u8]) -> Token<'a>, usize, Range<usize>),
}

impl Receive for Kept {
    fn token(&mut self, token: Token<'_>, chunk: &mut Chunk<'_>) -> Result<(), Error> {
        let kept = match token {
            Token::Nil => KeptToken::Nil,
            Token::Int(int) => KeptToken::Int(int),
            Token::Array(members) => KeptToken::Array(members),
            Token::Bulk(text) => self.text(|text| Token::Bulk(text), text, chunk),
            Token::Status(text) => self.text(|text| Token::Status(text), text, chunk),
            Token::Error(text) => self.text(|text| Token::Error(text), text, chunk),
        };
        self.tokens.push(kept);
        if ends_reply(&mut self.left, token) {
            self.ends.push(self.tokens.len());
        }
        Ok(())
    }
}

impl Kept {
    /// Of so many replies.
    pub(crate) fn of(replies: usize) -> Self {
        Kept { tokens: Vec::with_capacity(2 * replies), ends: Vec::with_capacity(replies), ..Kept::default() }
    }

    fn text(&mut self, kind: for<'a> fn(&'a [u8]) -> Token<'a>, text: &[u8], chunk: &mut Chunk<'_>) -> KeptToken {
        let place = chunk.place(text);
        let whole = chunk.whole();
        let is_last = |last: &Bytes| last.as_ptr() == whole.as_ptr() && last.len() == whole.len();
        if !self.buffers.last().is_some_and(is_last) {
            self.buffers.push(whole.clone());
        }
        KeptToken::Text(kind, self.buffers.len() - 1, place)
    }

    fn reply(&self, at: usize) -> &[KeptToken] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.tokens[start..self.ends[at]]
    }

    /// Whether a reply says to go elsewhere.
    fn redirect(&self, at: usize, by_replica: bool) -> Option<Redirect> {
        match self.reply(at) {
            [KeptToken::Text(kind, buffer, place)] => match kind(&self.buffers[*buffer][place.clone()]) {
                Token::Error(error) => Redirect::of(error, by_replica),
                _ => None,
            },
            _ => None,
        }
    }

    fn hand_on(&self, at: usize, receive: &mut impl Receive) -> Result<(), Error> {
        let none = Bytes::new();
        self.reply(at).iter().try_for_each(|token| match token {
            KeptToken::Nil => receive.token(Token::Nil, &mut Chunk::sharing(&none)),
            KeptToken::Int(int) => receive.token(Token::Int(*int), &mut Chunk::sharing(&none)),
            KeptToken::Array(members) => receive.token(Token::Array(*members), &mut Chunk::sharing(&none)),
            KeptToken::Text(kind, buffer, place) => {
                let buffer = &self.buffers[*buffer];
                receive.token(kind(&buffer[place.clone()]), &mut Chunk::sharing(buffer))
            }
        })
    }
}

/// The commands of one request, each of which may go to another server, and what came of them.
pub(crate) struct ScatterPlan {
    commands: Vec<u8>,
    errands: Vec<RoutedCommand>,
    /// Of how many, the first ones, the replies were handed on.
    done: usize,
    kept: Vec<Kept>,
    /// Whether what was done may be done again.
    again: bool,
}

struct RoutedCommand {
    /// Where the command stands.
    place: Range<usize>,
    slot: u16,
    state: CommandState,
}

enum CommandState {
    /// To be sent: to the server of the slot, unless a server said where.
    Open(Option<Redirect>),
    /// In the replies of this number, the reply of this number.
    Answered(usize, usize),
}

/// One command that is to be sent.
#[derive(Clone, Copy)]
pub(crate) struct Open<'e> {
    pub(crate) number: usize,
    pub(crate) slot: u16,
    pub(crate) redirect: Option<&'e Redirect>,
}

impl ScatterPlan {
    /// The commands that `write` appends but the first few, and what was said to the first of these. `again` is whether
    /// what was done may be done again.
    pub(crate) fn new(
        write: impl Fn(&mut Vec<u8>) -> usize,
        skip: usize,
        redirect: Option<Redirect>,
        again: bool,
    ) -> Result<Self, Error> {
        let mut commands = Vec::new();
        let count = write(&mut commands);
        let mut errands = Vec::with_capacity(count);
        let mut redirect = redirect;
        for (number, (place, slot)) in cut(&commands, count)?.into_iter().enumerate() {
            if number >= skip {
                errands.push(RoutedCommand { place, slot, state: CommandState::Open(redirect.take()) });
            }
        }
        Ok(ScatterPlan { commands, errands, done: 0, kept: Vec::new(), again })
    }

    /// Commands that are written only once, and sent only once; `None` where there are none.
    #[cfg(feature = "tokio")]
    pub(crate) fn once(write: impl FnOnce(&mut Vec<u8>) -> usize) -> Option<Self> {
        let mut commands = Vec::new();
        let count = write(&mut commands);
        let cut = cut(&commands, count).ok().filter(|cut| !cut.is_empty())?;
        let errands =
            cut.into_iter().map(|(place, slot)| RoutedCommand { place, slot, state: CommandState::Open(None) });
        Some(ScatterPlan { errands: errands.collect(), commands, done: 0, kept: Vec::new(), again: false })
    }

    /// The commands that are to be sent, in their order.
    pub(crate) fn open(&self) -> impl Iterator<Item = Open<'_>> {
        self.errands.iter().enumerate().skip(self.done).filter_map(|(number, errand)| match &errand.state {
            CommandState::Open(redirect) => Some(Open { number, slot: errand.slot, redirect: redirect.as_ref() }),
            CommandState::Answered(..) => None,
        })
    }

    /// Writes some commands, each behind the word that it may be answered by a server that was told of: how many replies
    /// will come.
    pub(crate) fn write(&self, out: &mut Vec<u8>, numbers: &[usize]) -> usize {
        let mut replies = 0;
        for &number in numbers {
            let RoutedCommand { place, state, .. } = &self.errands[number];
            if let CommandState::Open(Some(Redirect::Ask(_))) = state {
                replies += commands::asking(out);
            }
            out.extend_from_slice(&self.commands[place.clone()]);
            replies += 1;
        }
        replies
    }

    /// Whether the replies to these, when they come, may be handed on at once: nothing comes before them, or in between.
    /// [`UpToRedirect`] hands them on.
    pub(crate) fn are_next(&self, numbers: &[usize]) -> bool {
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else { return false };
        let is_asked =
            |number: &usize| matches!(self.errands[*number].state, CommandState::Open(Some(Redirect::Ask(_))));
        self.again && *first == self.done && last - first + 1 == numbers.len() && !numbers.iter().any(is_asked)
    }

    /// Of the next ones so many replies were handed on; the one after these says to go elsewhere, where there is a
    /// redirect.
    pub(crate) fn were_handed_on(&mut self, replies: usize, redirect: Option<Redirect>) {
        self.done += replies;
        if let (Some(errand), Some(redirect)) = (self.errands.get_mut(self.done), redirect) {
            errand.state = CommandState::Open(Some(redirect));
        }
    }

    /// Takes the replies to what was [written](ScatterPlan::write), of a server on this host. Whether some of them said to go
    /// elsewhere.
    pub(crate) fn take(&mut self, numbers: &[usize], kept: Kept, host: &str, by_replica: bool) -> bool {
        let mut at = 0;
        let mut elsewhere: HashSet<u16, ahash::RandomState> = HashSet::default();
        for &number in numbers {
            let errand = &mut self.errands[number];
            if let CommandState::Open(Some(Redirect::Ask(_))) = errand.state {
                at += 1;
            }
            let redirect = kept.redirect(at, by_replica).map(|redirect| redirect.said_by(host));
            if redirect.is_some() {
                elsewhere.insert(errand.slot);
                errand.state = CommandState::Open(redirect);
            } else if self.again && elsewhere.contains(&errand.slot) {
                // An entry is read, or a lease released, after the command before it.
                errand.state = CommandState::Open(None);
            } else {
                errand.state = CommandState::Answered(self.kept.len(), at);
            }
            at += 1;
        }
        self.kept.push(kept);
        !elsewhere.is_empty()
    }

    /// These are to be sent to a primary, since no replica can be asked.
    pub(crate) fn ask_primary(&mut self, numbers: &[usize]) {
        numbers.iter().for_each(|&number| self.errands[number].state = CommandState::Open(Some(Redirect::Primary)));
    }

    /// Hands on the replies that were not yet, in the order of the commands; one that still says to go elsewhere is an
    /// error.
    pub(crate) fn hand_on(self, receive: &mut impl Receive) -> Result<(), Error> {
        for errand in &self.errands[self.done..] {
            match &errand.state {
                CommandState::Answered(kept, at) => self.kept[*kept].hand_on(*at, receive)?,
                CommandState::Open(Some(redirect)) => return Err(redirect.clone().into_error()),
                CommandState::Open(None) => return Err(Redirect::Later.into_error()),
            }
        }
        Ok(())
    }
}

impl Redirect {
    /// With a host where none was named.
    pub(crate) fn said_by(mut self, host: &str) -> Self {
        if let Redirect::Moved(to) | Redirect::Ask(to) = &mut self
            && to.host.is_empty()
        {
            host.clone_into(&mut to.host);
        }
        self
    }

    /// For who does not go there.
    #[cold]
    pub(crate) fn into_error(self) -> Error {
        let message = match self {
            Redirect::Moved(to) | Redirect::Ask(to) => {
                format!("servers sent a command from one to the other, at last to {}:{}", to.host, to.port)
            }
            Redirect::Later => "its keys are on their way from one server to another".into(),
            Redirect::Primary => "it is a replica that cannot answer at the moment".into(),
            Redirect::NotPrimary => "it is a replica by now, and no primary".into(),
            Redirect::Down(said) => format!("it cannot answer at the moment: {said}"),
        };
        Error::new(ErrorKind::Connection, message)
    }
}

/// Where each of so many commands stands, and the slot of its first key.
pub(crate) fn cut(commands: &[u8], count: usize) -> Result<Vec<(Range<usize>, u16)>, Error> {
    let malformed = || Error::new(ErrorKind::Protocol, "a request is no command of words");
    let mut cut = Vec::with_capacity(count);
    let mut rest = commands;
    while !rest.is_empty() {
        let start = commands.len() - rest.len();
        let words = cut_head(&mut rest, b'*').ok_or_else(malformed)?;
        let (mut of, mut key) = (0, 1);
        for at in 0..words {
            let length = cut_head(&mut rest, b'$').ok_or_else(malformed)?;
            let (word, after) = rest.split_at_checked(length).ok_or_else(malformed)?;
            if at == 0 && word.starts_with(b"EVAL") {
                // Before the keys of a script stand its text and their number.
                key = 3;
            } else if at == key {
                of = slot(word, b"");
            }
            rest = after.strip_prefix(b"\r\n").ok_or_else(malformed)?;
        }
        cut.push((start..commands.len() - rest.len(), of));
    }
    if cut.len() == count { Ok(cut) } else { Err(malformed()) }
}

/// The number behind `kind`, of its line.
fn cut_head(rest: &mut &[u8], kind: u8) -> Option<usize> {
    let (first, mut digits) = rest.split_first()?;
    let mut number = 0_usize;
    while let [digit @ b'0'..=b'9', after @ ..] = digits {
        number = number.checked_mul(10)?.checked_add(usize::from(digit - b'0'))?;
        digits = after;
    }
    *rest = digits.strip_prefix(b"\r\n")?;
    (*first == kind).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::key::Key;
    use crate::redis::protocol::commands::leases::Lease;
    use crate::redis::protocol::parser::{Fed, Parser};

    fn to(port: u16) -> Endpoint {
        Endpoint { host: "10.0.0.1".into(), port }
    }

    #[test]
    fn errors_that_say_to_go_elsewhere() {
        let of = |error: &str| Redirect::of(error.as_bytes(), false);
        assert_eq!(of("MOVED 3999 10.0.0.1:6381"), Some(Redirect::Moved(to(6381))));
        assert_eq!(of("ASK 3999 10.0.0.1:6381"), Some(Redirect::Ask(to(6381))));
        let host = |host: &str| Some(Redirect::Moved(Endpoint { host: host.into(), port: 1 }));
        assert_eq!(of("MOVED 1 ::1:1"), host("::1"));
        assert_eq!(of("MOVED 1 cache.example:1"), host("cache.example"));
        assert_eq!((of("MOVED 1 :1"), of("MOVED 1 ?:1")), (host(""), Some(Redirect::Later)));
        assert_eq!(of("ASK 1 ?:1"), Some(Redirect::Ask(Endpoint { host: String::new(), port: 1 })));
        assert_eq!(of("MOVED 1 :1").map(|redirect| redirect.said_by("h")), host("h"));
        assert_eq!(of("MOVED 1 g:1").map(|redirect| redirect.said_by("h")), host("g"));
        for none in
            ["MOVED", "MOVED 1", "MOVED 1 h", "MOVED 1 h:x", "MOVED 1 ?:x", "MOVED 1 h:99999", "ERR MOVED 1 h:1", ""]
        {
            assert_eq!(of(none), None, "{none}");
        }
        assert_eq!(of("TRYAGAIN Multiple keys"), Some(Redirect::Later));
        assert_eq!(of("READONLY You can't write"), Some(Redirect::NotPrimary));
        for down in ["LOADING data", "MASTERDOWN MultiplexedConnection", "CLUSTERDOWN The cluster is down"] {
            assert_eq!(of(down), Some(Redirect::Down(down.into())));
            assert_eq!(Redirect::of(down.as_bytes(), true), Some(Redirect::Primary));
        }
    }

    /// What is handed on, and what the receiver counted.
    fn hand_on(input: &[u8], replies: usize, cut: usize) -> (Vec<String>, usize, Option<Redirect>, bool) {
        let mut tokens = Vec::new();
        let mut receive = |token: Token<'_>, _: &mut Chunk<'_>| {
            tokens.push(format!("{token:?}"));
            Ok(())
        };
        let mut up_to = UpToRedirect::new(&mut receive, false);
        let mut reader = Parser::new(1024);
        reader.expect(replies);
        let first = Bytes::copy_from_slice(&input[..cut]);
        let mut chunk = Chunk::sharing(&first);
        if reader.feed(&mut chunk, &mut up_to).unwrap() != Fed::Done {
            let rest = Bytes::from([chunk.rest(), &input[cut..]].concat());
            reader.feed(&mut Chunk::sharing(&rest), &mut up_to).unwrap();
        }
        let (handed_on, is_inside, redirect) = (up_to.handed_on, up_to.is_inside(), up_to.redirect.take());
        (tokens, handed_on, redirect, is_inside)
    }

    #[test]
    fn replies_are_handed_on_up_to_a_redirect_under_every_cut() {
        let before = b"$1\r\na\r\n*3\r\n$1\r\nb\r\n$-1\r\n$1\r\nc\r\n*0\r\n*2\r\n*1\r\n:1\r\n$1\r\nd\r\n:7\r\n-ERR no\r\n$1\r\ne\r\n";
        let redirect = b"-MOVED 1 10.0.0.1:6381\r\n";
        let after = b"$1\r\nf\r\n*1\r\n-ASK 1 h:1\r\n+OK\r\n";
        let whole = [&before[..], redirect, after].concat();
        for cut in 0..=whole.len() {
            let (tokens, handed_on, redirect, is_inside) = hand_on(&whole, 11, cut);
            assert_eq!((tokens.len(), handed_on, is_inside), (13, 7, false), "{cut}: {tokens:?}");
            assert_eq!(redirect, Some(Redirect::Moved(to(6381))));
        }
        for cut in 0..=before.len() {
            assert_eq!(hand_on(before, 7, cut).1, 7);
        }
        // Not inside of an array, where it is no answer to a command.
        let (tokens, handed_on, redirect, _) = hand_on(b"*1\r\n-MOVED 1 h:1\r\n", 1, 0);
        assert_eq!((tokens.len(), handed_on, redirect), (2, 1, None));
        assert!(hand_on(b"*2\r\n$1\r\na\r\n", 1, 0).3);
    }

    #[test]
    fn commands_are_cut_by_their_first_keys() {
        let lease = Lease { lock: b"_lok.{h}", token: b"t", key: Key::from(("h", "f")) };
        let write = |out: &mut Vec<u8>| {
            let mut replies = commands::get(out, Key::from("a"), None);
            replies += commands::get(out, Key::from(("h", "f")), None);
            replies += commands::lease(out, b"_lok.{h}", b"t", Duration::from_secs(1));
            replies += commands::read_or_lease(out, &lease, Duration::from_secs(1), None);
            replies += commands::release(out, b"_lok.{h}", b"t");
            replies + commands::ping(out)
        };
        let mut commands = Vec::new();
        let count = write(&mut commands);
        let cut = cut(&commands, count).unwrap();
        let (a, h) = (slot(b"a", b""), slot(b"h", b""));
        assert_eq!(cut.iter().map(|(_, slot)| *slot).collect::<Vec<_>>(), [a, h, h, h, h, 0]);
        assert_eq!(
            cut.iter().flat_map(|(place, _)| place.clone()).collect::<Vec<_>>(),
            Vec::from_iter(0..commands.len())
        );
        assert!(cut.iter().all(|(place, _)| commands[place.clone()].starts_with(b"*")));
        for end in 1..commands.len() {
            let whole = cut.iter().filter(|(place, _)| place.end <= end).count();
            let is_end = cut.iter().any(|(place, _)| place.end == end);
            assert_eq!(super::cut(&commands[..end], whole).is_ok(), is_end, "{end}");
        }
        for bad in
            [&b"*1\r\n$99999999999999999999\r\n"[..], b"*1\r\n:1\r\n", b"x", b"*\r\n$1\r\na\r\n", b"*1\r\n$1\r\nab\r\n"]
        {
            assert!(super::cut(bad, 1).is_err(), "{}", bad.escape_ascii());
        }
    }

    /// Random numbers, the same each time.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % end
        }
    }

    /// However servers send commands from one to the other, each is answered once, in the caller's order; and what was
    /// done is only done again if it may be.
    #[test]
    fn replies_come_in_the_order_of_commands_whatever_servers_say() {
        for seed in 0..2_000 {
            let mut dice = Dice(seed);
            let again = dice.below(2) == 0;
            let count = 1 + dice.below(12) as usize;
            let names: Vec<String> = (0..count).map(|_| format!("k{}", dice.below(6))).collect();
            let write =
                |out: &mut Vec<u8>| names.iter().map(|name| commands::get(out, Key::from(name.as_str()), None)).sum();
            let mut errands = ScatterPlan::new(write, 0, None, again).unwrap();
            let mut handed_on: Vec<String> = Vec::new();
            let mut done = vec![0; count];
            for round in 0.. {
                // Commands go to one of two servers by their slots, or to where they were sent.
                let mut parts: [Vec<usize>; 2] = Default::default();
                for open in errands.open() {
                    let asked = matches!(open.redirect, Some(Redirect::Ask(_)));
                    parts[usize::from(open.slot % 2 == 0) ^ usize::from(asked)].push(open.number);
                }
                if parts.iter().all(Vec::is_empty) {
                    break;
                }
                for numbers in parts.into_iter().filter(|numbers| !numbers.is_empty()) {
                    let mut commands = Vec::new();
                    let replies = errands.write(&mut commands, &numbers);
                    let mut answers = Vec::new();
                    for (place, _) in cut(&commands, replies).unwrap() {
                        let command = String::from_utf8(commands[place].to_vec()).unwrap();
                        let name = command.trim_end().rsplit("\r\n").next().unwrap().to_string();
                        answers.extend(match (name.as_str(), dice.below(if round < 6 { 5 } else { u64::MAX })) {
                            ("ASKING", _) => b"+OK\r\n".to_vec(),
                            (_, 0) => b"-MOVED 1 10.0.0.1:1\r\n".to_vec(),
                            (_, 1) => b"-ASK 1 :1\r\n".to_vec(),
                            (_, 2) => b"-TRYAGAIN no\r\n".to_vec(),
                            _ => format!("${}\r\n{name}\r\n", name.len()).into_bytes(),
                        });
                    }
                    let said: Vec<bool> = String::from_utf8(answers.clone())
                        .unwrap()
                        .split_inclusive("\r\n")
                        .filter(|line| !line.starts_with('$') && *line != "+OK\r\n")
                        .map(|line| !line.starts_with('-'))
                        .collect();
                    numbers.iter().zip(said).for_each(|(number, is_done)| done[*number] += u32::from(is_done));
                    let (answers, mut reader) = (Bytes::from(answers), Parser::new(1024));
                    reader.expect(replies);
                    let mut receive = |token: Token<'_>, _: &mut Chunk<'_>| {
                        handed_on.push(format!("{token:?}"));
                        Ok(())
                    };
                    if errands.are_next(&numbers) {
                        let mut up_to = UpToRedirect::new(&mut receive, false);
                        reader.feed(&mut Chunk::sharing(&answers), &mut up_to).unwrap();
                        let (replies, redirect) = (up_to.handed_on, up_to.redirect.take());
                        errands.were_handed_on(replies, redirect);
                    } else {
                        let mut kept = Kept::of(replies);
                        reader.feed(&mut Chunk::sharing(&answers), &mut kept).unwrap();
                        errands.take(&numbers, kept, "h", false);
                    }
                }
            }
            let mut receive = |token: Token<'_>, _: &mut Chunk<'_>| {
                handed_on.push(format!("{token:?}"));
                Ok(())
            };
            errands.hand_on(&mut receive).unwrap();
            let expected: Vec<String> =
                names.iter().map(|name| format!("{:?}", Token::Bulk(name.as_bytes()))).collect();
            assert_eq!(handed_on, expected, "seed {seed}");
            assert!(again || done.iter().all(|times| *times == 1), "seed {seed}: {done:?}");
        }
    }

    #[test]
    fn what_is_redirected_for_ever_is_an_error() {
        let write = |out: &mut Vec<u8>| commands::get(out, Key::from("a"), None);
        let errands = ScatterPlan::new(write, 0, Some(Redirect::Moved(to(7))), true).unwrap();
        let error = errands.hand_on(&mut |_: Token<'_>, _: &mut Chunk<'_>| Ok(())).unwrap_err();
        assert!(error.to_string().contains("10.0.0.1:7"), "{error}");
    }
}
