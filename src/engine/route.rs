//! Requests to a cluster: which command goes to which server, what the servers say about that, and their replies in the
//! order of the commands.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::batch::unexpected;
use super::chunk::Chunk;
use super::plan;
use super::replies::{Fed, Receive, Replies, Strings, Token};
use super::slot::slot;
use crate::error::{Error, ErrorKind};

/// Where a server is, as another one says. No host stands for that of whoever says so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
}

impl Redirect {
    /// What an error of a server says, which is a replica or none.
    #[cold]
    pub(crate) fn of(error: &[u8], by_replica: bool) -> Option<Self> {
        let mut words = error.split(|&byte| byte == b' ');
        match words.next()? {
            b"MOVED" => endpoint(words.nth(1)?).map(Redirect::Moved),
            b"ASK" => endpoint(words.nth(1)?).map(Redirect::Ask),
            b"TRYAGAIN" => Some(Redirect::Later),
            b"LOADING" | b"MASTERDOWN" if by_replica => Some(Redirect::Primary),
            _ => None,
        }
    }
}

/// `host:port`; addresses of IPv6 stand there as they are.
fn endpoint(text: &[u8]) -> Option<Endpoint> {
    let (host, port) = std::str::from_utf8(text).ok()?.rsplit_once(':')?;
    // A server that does not know its name in the eyes of its clients.
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
pub(crate) struct Errands {
    commands: Vec<u8>,
    errands: Vec<Errand>,
    kept: Vec<Kept>,
    /// Whether what was done may be done again.
    again: bool,
}

struct Errand {
    /// Where the command stands.
    place: Range<usize>,
    slot: u16,
    state: State,
}

enum State {
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

impl Errands {
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
                errands.push(Errand { place, slot, state: State::Open(redirect.take()) });
            }
        }
        Ok(Errands { commands, errands, kept: Vec::new(), again })
    }

    /// Commands that are written only once, and sent only once; `None` where there are none.
    #[cfg(feature = "tokio")]
    pub(crate) fn once(write: impl FnOnce(&mut Vec<u8>) -> usize) -> Option<Self> {
        let mut commands = Vec::new();
        let count = write(&mut commands);
        let cut = cut(&commands, count).ok().filter(|cut| !cut.is_empty())?;
        let errands = cut.into_iter().map(|(place, slot)| Errand { place, slot, state: State::Open(None) });
        Some(Errands { errands: errands.collect(), commands, kept: Vec::new(), again: false })
    }

    /// The commands that are to be sent, in their order.
    pub(crate) fn open(&self) -> impl Iterator<Item = Open<'_>> {
        self.errands.iter().enumerate().filter_map(|(number, errand)| match &errand.state {
            State::Open(redirect) => Some(Open { number, slot: errand.slot, redirect: redirect.as_ref() }),
            State::Answered(..) => None,
        })
    }

    /// Writes some commands, each behind the word that it may be answered by a server that was told of: how many replies
    /// will come.
    pub(crate) fn write(&self, out: &mut Vec<u8>, numbers: &[usize]) -> usize {
        let mut replies = 0;
        for &number in numbers {
            let Errand { place, state, .. } = &self.errands[number];
            if let State::Open(Some(Redirect::Ask(_))) = state {
                replies += plan::asking(out);
            }
            out.extend_from_slice(&self.commands[place.clone()]);
            replies += 1;
        }
        replies
    }

    /// Takes the replies to what was [written](Errands::write), of a server on this host. Whether some of them said to go
    /// elsewhere.
    pub(crate) fn take(&mut self, numbers: &[usize], kept: Kept, host: &str, by_replica: bool) -> bool {
        let mut at = 0;
        let mut elsewhere: Vec<u16> = Vec::new();
        for &number in numbers {
            let errand = &mut self.errands[number];
            if let State::Open(Some(Redirect::Ask(_))) = errand.state {
                at += 1;
            }
            let redirect = kept.redirect(at, by_replica).map(|redirect| redirect.said_by(host));
            if redirect.is_some() {
                elsewhere.push(errand.slot);
                errand.state = State::Open(redirect);
            } else if self.again && elsewhere.contains(&errand.slot) {
                // An entry is read, or a lease released, after the command before it.
                errand.state = State::Open(None);
            } else {
                errand.state = State::Answered(self.kept.len(), at);
            }
            at += 1;
        }
        self.kept.push(kept);
        !elsewhere.is_empty()
    }

    /// These are to be sent to a primary, since no replica can be asked.
    pub(crate) fn ask_primary(&mut self, numbers: &[usize]) {
        numbers.iter().for_each(|&number| self.errands[number].state = State::Open(Some(Redirect::Primary)));
    }

    /// Hands on the replies, in the order of the commands; one that still says to go elsewhere is an error.
    pub(crate) fn hand_on(self, receive: &mut impl Receive) -> Result<(), Error> {
        for errand in &self.errands {
            match &errand.state {
                State::Answered(kept, at) => self.kept[*kept].hand_on(*at, receive)?,
                State::Open(redirect) => return Err(lost(redirect.as_ref())),
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
}

#[cold]
fn lost(redirect: Option<&Redirect>) -> Error {
    let message = match redirect {
        Some(Redirect::Moved(to) | Redirect::Ask(to)) => {
            format!("the cluster's servers sent it from one to the other, at last to {}:{}", to.host, to.port)
        }
        Some(Redirect::Later) => "the keys are on their way from one of the cluster's servers to another".into(),
        Some(Redirect::Primary) | None => "none of the cluster's servers answered it".into(),
    };
    Error::new(ErrorKind::Server, message)
}

/// Where each of so many commands stands, and the slot of its first key.
pub(crate) fn cut(commands: &[u8], count: usize) -> Result<Vec<(Range<usize>, u16)>, Error> {
    let mut cut: Vec<(Range<usize>, u16)> = Vec::with_capacity(count);
    // How many words of the last command came, and which is the first key.
    let (mut came, mut key) = (0, 1);
    let mut receive = |token: Token<'_>, chunk: &mut Chunk<'_>| {
        let start = cut.last().map_or(0, |(before, _)| before.end);
        match token {
            Token::Array(_) => {
                cut.push((start..start, 0));
                came = 0;
            }
            Token::Bulk(word) => {
                // Before the keys of a script stand its text and their number.
                key = if came > 0 {
                    key
                } else if word.starts_with(b"EVAL") {
                    3
                } else {
                    1
                };
                if let Some((place, of)) = cut.last_mut() {
                    place.end = chunk.place(word).end + 2;
                    *of = if came == key { slot(word, b"") } else { *of };
                }
                came += 1;
            }
            other => return Err(unexpected(other)),
        }
        Ok(())
    };
    let mut replies = Replies::new(usize::MAX);
    replies.expect(count);
    // Commands look as replies do, and nothing of them is kept.
    match replies.feed(&mut Chunk::copying(commands, &mut BytesMut::new()), &mut receive)? {
        Fed::Done => Ok(cut),
        Fed::More(_) => Err(Error::new(ErrorKind::Protocol, "a request is cut short")),
    }
}
