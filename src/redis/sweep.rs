//! [`sweep`]: removes what has expired in hashes of stamped fields.

use crate::error::{Error, ErrorKind};
use crate::exec::poll_ready;
use crate::redis::protocol::batch::{server_error, unexpected};
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::commands;
use crate::redis::protocol::parser::Token;
use crate::redis::stamp::Stamp;
use crate::redis::transport::{Access, Route, Transport};
use crate::redis::transport::{AsyncTransport, BlockingTransport};

/// What a [`sweep`] came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SweepReport {
    /// How many hashes were looked through; one that moved meanwhile may count twice.
    pub hashes: u64,
    /// How many expired fields were removed.
    pub removed: u64,
}

/// Removes the expired fields of all hashes with [stamped](crate::redis::HashTtl::Stamped) fields whose names begin with
/// `prefix`, as the server sees them.
///
/// Writes remove what has expired in the hash that they touch, and a hash that nobody writes goes with its youngest
/// entry. So this is for who wants the memory sooner. It goes through the server's keys by `SCAN`, two round trips for
/// each 500 of them, and looks through up to 500 hashes in one of them, 30 µs or so for a hash of 256 fields.
///
/// ```no_run
/// use std::time::Duration;
/// use dogpile::{HashTtl, Redis};
/// use dogpile::redis::sweep;
///
/// let stamped = HashTtl::Stamped { longest: Duration::from_secs(3600) };
/// let redis = Redis::builder("redis://127.0.0.1").hash_ttl(stamped).build()?;
/// println!("{} entries removed", sweep(&redis, "shop:")?.removed);
/// # Ok::<(), dogpile::Error>(())
/// ```
///
/// # Errors
/// When the server cannot be asked, or cannot do it; some hashes may then have been swept.
/// [`ErrorKind::Config`] where fields have no stamps.
pub fn sweep(server: &impl Transport, prefix: impl AsRef<[u8]>) -> Result<SweepReport, Error> {
    poll_ready(sweep_all(&BlockingTransport(server), prefix.as_ref()))
}

/// As [`sweep`], for tasks.
///
/// # Errors
/// As there.
#[cfg(feature = "tokio")]
pub async fn sweep_async(server: &impl AsyncTransport, prefix: impl AsRef<[u8]> + Send) -> Result<SweepReport, Error> {
    sweep_all(server, prefix.as_ref()).await
}

async fn sweep_all<X: AsyncTransport>(server: &X, prefix: &[u8]) -> Result<SweepReport, Error> {
    let Some(stamp) = server.hash_ttl().stamp() else {
        return Err(Error::new(
            ErrorKind::Config,
            "only fields with stamps can be swept, and this backend writes none",
        ));
    };
    let swept = async {
        let pattern = pattern(prefix, stamp);
        let (mut primary, mut cursor, mut swept) = (0, b"0".to_vec(), SweepReport::default());
        loop {
            let hashes = scan(server, primary, &mut cursor, &pattern).await?;
            swept.hashes += hashes.len() as u64;
            swept.removed += sweep_hashes(server, primary, &hashes, stamp).await?;
            if cursor == b"0" {
                primary += 1;
                if primary >= server.primaries() {
                    return Ok(swept);
                }
            }
        }
    };
    swept.await.map_err(|error: Error| error.during(format_args!("sweeping {}*", prefix.escape_ascii())))
}

/// A glob pattern for hashes of stamped fields.
fn pattern(prefix: &[u8], stamp: Stamp) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(prefix.len() + 3);
    for &byte in prefix {
        if b"*?[]\\".contains(&byte) {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
    pattern.push(b'*');
    pattern.extend_from_slice(stamp.suffix());
    pattern
}

/// The next hashes, without what stands behind their names.
async fn scan<X: AsyncTransport>(
    server: &X,
    primary: usize,
    cursor: &mut Vec<u8>,
    pattern: &[u8],
) -> Result<Vec<Vec<u8>>, Error> {
    let (mut next, mut hashes, mut refused) = (None, Vec::new(), None);
    let mut receive = |token: Token<'_>, _: &mut Chunk<'_>| {
        match token {
            Token::Array(_) => {}
            Token::Bulk(cursor) if next.is_none() => next = Some(cursor.to_vec()),
            // All names end with the same suffix, as the pattern does.
            Token::Bulk(hash) => hashes.push(hash[..hash.len().saturating_sub(2)].to_vec()),
            Token::Error(error) => refused = Some(server_error(error)),
            other => return Err(unexpected(other)),
        }
        Ok(())
    };
    server
        .exchange_async(
            Access::Write,
            Route::Primary(primary),
            |out| commands::scan(out, cursor, pattern),
            &mut receive,
        )
        .await?;
    refused.map_or(Ok(()), Err)?;
    *cursor = next.ok_or_else(|| Error::new(ErrorKind::Protocol, "the server's SCAN gave no cursor"))?;
    Ok(hashes)
}

/// Sweeps some hashes: how many fields were removed.
async fn sweep_hashes<X: AsyncTransport>(
    server: &X,
    primary: usize,
    hashes: &[Vec<u8>],
    stamp: Stamp,
) -> Result<u64, Error> {
    if hashes.is_empty() {
        return Ok(0);
    }
    let at = server.now();
    let (mut removed, mut refused) = (0, None);
    let mut receive = |token: Token<'_>, _: &mut Chunk<'_>| {
        match token {
            Token::Int(fields) => removed += u64::try_from(fields).unwrap_or(0),
            // One of another type came to be there meanwhile, or it moved to another server of a cluster.
            Token::Error(error) if [&b"WRONGTYPE"[..], b"MOVED", b"ASK"].iter().any(|why| error.starts_with(why)) => {}
            Token::Error(error) => refused = Some(server_error(error)),
            other => return Err(unexpected(other)),
        }
        Ok(())
    };
    let write = |out: &mut Vec<u8>| {
        let mut script = commands::Script::Text;
        hashes.iter().map(|hash| commands::sweep(out, &mut script, hash, stamp, at)).sum()
    };
    server.exchange_async(Access::Write, Route::Primary(primary), write, &mut receive).await?;
    refused.map_or(Ok(removed), Err)
}
