//! How a new connection introduces itself, over either face.

use bytes::Bytes;

use super::config::Server;
use crate::engine::batch::server_error;
use crate::engine::chunk::Chunk;
use crate::engine::plan;
use crate::engine::replies::{Receive, Token};
use crate::error::{Error, ErrorKind};

/// A connection that nobody else uses yet.
pub(super) trait Ask {
    /// Sends a command of which only matters whether the server obeys: its error, if it does not.
    fn ask(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> usize + Send,
    ) -> impl Future<Output = Result<Result<(), Bytes>, Error>> + Send;
}

/// Receives the answer to a command of which only matters whether the server obeyed.
#[derive(Default)]
pub(super) struct Refusal(Option<Bytes>);

impl Receive for Refusal {
    fn token(&mut self, token: Token<'_>, chunk: &mut Chunk<'_>) -> Result<(), Error> {
        if let Token::Error(error) = token {
            self.0.get_or_insert_with(|| chunk.keep(error));
        }
        Ok(())
    }
}

impl Refusal {
    pub(super) fn finish(self) -> Result<(), Bytes> {
        self.0.map_or(Ok(()), Err)
    }
}

/// RESP3 where the server knows it, RESP2 otherwise; then who we are, and which database. Says whether it is RESP3.
pub(super) async fn introduce(connection: &mut impl Ask, server: &Server) -> Result<bool, Error> {
    let (user, password) = (server.user.as_deref(), server.password.as_deref());
    let mut speaks_resp3 = true;
    if let Err(refused) = connection.ask(|out| plan::hello(out, user, password)).await? {
        if refused.starts_with(b"WRONGPASS") || refused.starts_with(b"NOAUTH") {
            return Err(refusal(&refused, "user and password"));
        }
        let message = refused.to_ascii_lowercase();
        let speaks_resp2 = [&b"unknown command"[..], b"unsupported", b"noproto", b"noperm"]
            .iter()
            .any(|reason| message.windows(reason.len()).any(|part| part == *reason));
        if !speaks_resp2 {
            return Err(server_error(&refused));
        }
        speaks_resp3 = false;
        if let Some(password) = password {
            let answer = connection.ask(|out| plan::auth(out, user, password)).await?;
            answer.map_err(|refused| refusal(&refused, "user and password"))?;
        }
    }
    if server.db != 0 {
        let answer = connection.ask(|out| plan::select(out, server.db)).await?;
        answer.map_err(|refused| refusal(&refused, "database"))?;
    }
    if server.is_read {
        let answer = connection.ask(plan::read_only).await?;
        answer.map_err(|refused| refusal(&refused, "wish to read from a replica"))?;
    }
    Ok(speaks_resp3)
}

#[cold]
fn refusal(answer: &[u8], what: &str) -> Error {
    Error::new(ErrorKind::Refused, format!("the server refused the {what}: {}", server_error(answer)))
}
