//! [`Answer`]: a reply as a tree, for what is asked so seldom that it need not be quick.

use crate::engine::batch::server_error;
use crate::engine::chunk::Chunk;
use crate::engine::replies::{Receive, Token};
use crate::error::Error;

/// A reply.
#[derive(Debug)]
pub(super) enum Answer {
    Nil,
    Int(i64),
    Text(String),
    Array(Vec<Answer>),
    Refused(Error),
}

impl Answer {
    /// The members of an array; none of anything else.
    pub(super) fn members(&self) -> &[Answer] {
        match self {
            Answer::Array(members) => members,
            _ => &[],
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Answer::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn int(&self) -> Option<i64> {
        match self {
            Answer::Int(int) => Some(*int),
            Answer::Text(text) => text.parse().ok(),
            _ => None,
        }
    }
}

/// Receives replies as trees.
#[derive(Default)]
pub(super) struct Answers {
    whole: Vec<Answer>,
    /// Arrays that have begun, and how many members they will have.
    begun: Vec<(Vec<Answer>, usize)>,
}

/// No server's answer about itself is nested deeper.
const DEEPEST: usize = 16;

impl Receive for Answers {
    fn token(&mut self, token: Token<'_>, _: &mut Chunk<'_>) -> Result<(), Error> {
        let mut answer = match token {
            Token::Nil => Answer::Nil,
            Token::Int(int) => Answer::Int(int),
            Token::Bulk(text) | Token::Status(text) => Answer::Text(String::from_utf8_lossy(text).into_owned()),
            Token::Error(error) => Answer::Refused(server_error(error)),
            Token::Array(0) => Answer::Array(Vec::new()),
            Token::Array(_) if self.begun.len() == DEEPEST => return Err(crate::engine::batch::unexpected(token)),
            Token::Array(members) => {
                self.begun.push((Vec::new(), members));
                return Ok(());
            }
        };
        // What ends an array may end the one that it is a member of.
        while let Some((members, expected)) = self.begun.last_mut() {
            members.push(answer);
            if members.len() < *expected {
                return Ok(());
            }
            answer = Answer::Array(std::mem::take(members));
            self.begun.pop();
        }
        self.whole.push(answer);
        Ok(())
    }
}

impl Answers {
    pub(super) fn finish(self) -> Vec<Answer> {
        self.whole
    }
}
