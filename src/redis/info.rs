//! [`ServerInfo`]: what a server is, and what keeps a hash small there.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::exec::poll_ready;
use crate::redis::HashTtl;
use crate::redis::protocol::batch::{server_error, unexpected};
use crate::redis::protocol::chunk::Chunk;
use crate::redis::protocol::commands;
use crate::redis::protocol::parser::Token;
use crate::redis::transport::{Access, Route, Transport};
use crate::redis::transport::{AsyncTransport, BlockingTransport};

/// What a server is, and up to where it keeps a hash as a listpack, which is what makes fields small. Asked for when a
/// program starts, to set up [`Bucketed`](crate::Bucketed) and [`HashTtl`].
///
/// ```no_run
/// use std::time::Duration;
/// use dogpile::{Bucketed, Redis, Region};
/// use dogpile::redis::ServerInfo;
///
/// let url = "redis://127.0.0.1";
/// let server = ServerInfo::of(&Redis::open(url)?)?;
/// let hour = Duration::from_secs(3600);
/// let redis = Redis::builder(url).hash_ttl(server.per_field(hour)).build()?;
/// let region = Region::builder(redis).keys(Bucketed::for_server(&server)).ttl(hour).build()?;
/// # let _: Region<_, _, _, _> = region;
/// # Ok::<(), dogpile::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerInfo {
    /// Which server it is.
    pub name: ServerName,
    /// Its version: major, minor, patch.
    pub version: [u32; 3],
    /// How many fields a hash may have as a listpack (`hash-max-listpack-entries`); 128 where the server does not tell.
    pub max_listpack_entries: u32,
    /// How many bytes a field and an entry may have in one (`hash-max-listpack-value`); 64 where the server does not tell.
    pub max_listpack_value: u32,
}

/// Which server it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerName {
    /// Redis.
    Redis,
    /// Valkey.
    Valkey,
    /// Another one, by the name that it gives itself.
    Other(String),
}

impl ServerName {
    pub(crate) fn from(text: &str) -> Self {
        match text {
            "redis" => ServerName::Redis,
            "valkey" => ServerName::Valkey,
            other => ServerName::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ServerName::Redis => "Redis",
            ServerName::Valkey => "Valkey",
            ServerName::Other(name) => name,
        })
    }
}

/// What Redis's own configuration file says, which is less than what it does without one.
const ENTRIES: u32 = 128;
const VALUE: u32 = 64;

impl ServerInfo {
    /// Asks a server what it is, in one round trip, by `INFO` and `CONFIG GET`. Where the latter is refused, as many services
    /// do, the limits are those of the configuration file that Redis comes with: who may not ask may thus get others than
    /// who may.
    ///
    /// # Errors
    /// When the server cannot be asked, or does not say what it is.
    pub fn of(server: &impl Transport) -> Result<Self, Error> {
        poll_ready(ask(&BlockingTransport(server)))
    }

    /// As [`ServerInfo::of`], for tasks.
    ///
    /// # Errors
    /// As there.
    #[cfg(feature = "tokio")]
    pub async fn of_async(server: &impl AsyncTransport) -> Result<Self, Error> {
        ask(server).await
    }

    /// Whether a hash stays a listpack when its fields have TTLs of their own, and one command stores them: Redis 8.0 and
    /// newer.
    #[must_use]
    pub fn keeps_listpacks_per_field(&self) -> bool {
        self.name == ServerName::Redis && self.version[0] >= 8
    }

    /// How each field gets a TTL of its own without the hash becoming a hash table: by the server where it can, otherwise
    /// by stamps for TTLs of up to `longest`. All who share a cache must choose the same; where some of them may talk to
    /// another version of the server, name [`HashTtl::Stamped`] yourself.
    #[must_use]
    pub fn per_field(&self, longest: Duration) -> HashTtl {
        if self.keeps_listpacks_per_field() { HashTtl::PerField } else { HashTtl::Stamped { longest } }
    }

    /// From the text that `INFO server` answers with.
    fn parse(info: &str) -> Option<Self> {
        let (name, version) = name_and_version(info)?;
        let version = version_of(version).unwrap_or_default();
        Some(ServerInfo { name, version, max_listpack_entries: ENTRIES, max_listpack_value: VALUE })
    }

    fn set(&mut self, setting: &[u8], value: &[u8]) {
        let Some(value) = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok()) else { return };
        match setting {
            b"hash-max-listpack-entries" => self.max_listpack_entries = value,
            b"hash-max-listpack-value" => self.max_listpack_value = value,
            _ => {}
        }
    }
}

/// The value of a line of what `INFO` answers with.
pub(crate) fn info_line<'i>(info: &'i str, name: &str) -> Option<&'i str> {
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim())
}

/// Which server it is, and its version as a text, by what `INFO server` answers with.
pub(crate) fn name_and_version(info: &str) -> Option<(ServerName, &str)> {
    let value = |name: &str| info_line(info, name);
    let name = ServerName::from(value("server_name").unwrap_or("redis"));
    let version = match &name {
        ServerName::Redis => value("redis_version")?,
        ServerName::Valkey => value("valkey_version")?,
        ServerName::Other(other) => value(&format!("{other}_version")).or_else(|| value("redis_version"))?,
    };
    Some((name, version))
}

/// Major, minor and patch, if it begins with a number.
pub(crate) fn version_of(text: &str) -> Option<[u32; 3]> {
    let mut numbers = text.split(['.', '-']).map(str::parse);
    let major = numbers.next()?.ok()?;
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    Some([major, next(), next()])
}

async fn ask<X: AsyncTransport>(server: &X) -> Result<ServerInfo, Error> {
    let (mut info, mut setting, mut refused) = (None, None, None);
    let mut receive = |token: Token<'_>, _: &mut Chunk<'_>| {
        match (token, &mut info) {
            (Token::Error(error), None) => refused = refused.take().or_else(|| Some(server_error(error))),
            (Token::Bulk(text) | Token::Status(text), None) if refused.is_none() => {
                info = Some(ServerInfo::parse(&String::from_utf8_lossy(text)));
            }
            // The settings by name and value, or that they are not told.
            (Token::Bulk(text), Some(Some(info))) => match setting.take() {
                None => setting = Some(text.to_vec()),
                Some(name) => info.set(&name, text),
            },
            (Token::Bulk(_) | Token::Array(_) | Token::Error(_), _) => {}
            (other, _) => return Err(unexpected(other)),
        }
        Ok(())
    };
    // The primary's limits are those of its replicas, most often.
    server
        .exchange_async(Access::Write, Route::Primary(0), commands::server_info, &mut receive)
        .await
        .and_then(|()| refused.map_or(Ok(()), Err))
        .and_then(|()| {
            let unknown = || Error::new(ErrorKind::Protocol, "its INFO names no version");
            info.flatten().ok_or_else(unknown)
        })
        .map_err(|error| error.during("asking a server what it is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(info: &str) -> (ServerName, [u32; 3]) {
        let info = ServerInfo::parse(info).unwrap();
        (info.name, info.version)
    }

    #[test]
    fn servers_tell_their_names() {
        assert_eq!(parse("# Server\r\nredis_version:7.0.15\r\nredis_mode:x\r\n"), (ServerName::Redis, [7, 0, 15]));
        let valkey = "# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\n";
        assert_eq!(parse(valkey), (ServerName::Valkey, [9, 1, 2]));
        let other = "redis_version:6.2.11\r\nserver_name:other\r\nother_version:1.2-rc1\r\n";
        assert_eq!(parse(other), (ServerName::Other("other".into()), [1, 2, 0]));
        assert_eq!(ServerInfo::parse("# Server\r\nuptime:3\r\n"), None);
        assert_eq!(ServerInfo::parse("server_name:valkey\r\nredis_version:7.2.4\r\n"), None);
        let versions = ["7.0.15", "8", "255.x-y", "", "unstable", "v7.0", "-1.2"].map(version_of);
        assert_eq!(versions, [Some([7, 0, 15]), Some([8, 0, 0]), Some([255, 0, 0]), None, None, None, None]);
    }

    #[test]
    fn who_keeps_listpacks() {
        let per_field = |info: &str| ServerInfo::parse(info).unwrap().per_field(Duration::from_secs(60));
        let stamped = HashTtl::Stamped { longest: Duration::from_secs(60) };
        assert_eq!(per_field("redis_version:7.4.2"), stamped);
        assert_eq!(per_field("redis_version:8.0.2"), HashTtl::PerField);
        assert_eq!(per_field("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2"), stamped);
    }
}
