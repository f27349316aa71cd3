//! [`Server`]: the address, credentials, role and encryption of one server, parsed from its URL.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use url::{Host, Url};

use crate::error::{Error, ErrorKind};
#[cfg(feature = "tls")]
use crate::redis::tls::{Tls, TlsParams};

/// How to connect to one server. Its `Debug` output never contains the password.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: Address,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) db: u32,
    pub(crate) role: Role,
    /// Whether the server must support `HSETEX`, which stores fields with their own TTLs.
    pub(crate) needs_hsetex: bool,
    /// The TLS configuration, if the connection is encrypted.
    #[cfg(feature = "tls")]
    pub(crate) secure: Option<TlsParams>,
}

/// The expected role of a server. A connection to a server in another role is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    /// A standalone server or a replica of one.
    Single,
    /// A node of a cluster. `reads_replicas` allows reads if it is a replica.
    ClusterNode { reads_replicas: bool },
    /// A server that is only asked for the slots of a cluster.
    ClusterSeed,
    /// The primary according to a sentinel, whose information may be outdated.
    Primary,
    /// A replica according to a sentinel.
    Replica,
    /// A sentinel, which stores no entries.
    Sentinel,
}

/// The address of a server: a host and a port, or the path of a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("db", &self.db)
            .field("role", &self.role)
            .field("encrypted", &self.is_encrypted())
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Parses `redis://[user][:password]@host[:port][/db]` or `unix:///path[?db=…&user=…&pass=…]`.
    #[cfg(any(test, not(feature = "tls")))]
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        match Self::read(text)? {
            (server, false) => Ok(server),
            (_, true) => Err(config("rediss:// is TLS, which needs the feature `tls` of dogpile")),
        }
    }

    /// Parses a URL as `parse` does, and `rediss://` with these TLS settings or the system's.
    ///
    /// Settings for a URL without encryption are an error, so that a typo does not disable TLS.
    #[cfg(feature = "tls")]
    pub(crate) fn parse_secure(text: &str, tls: Option<&Tls>) -> Result<Self, Error> {
        let (mut server, is_encrypted) = Self::read(text)?;
        if !is_encrypted && tls.is_some() {
            return Err(config("there are TLS settings, but the scheme is not rediss://"));
        }
        if let (Address::Tcp(host, _), true) = (&server.address, is_encrypted) {
            let tls = tls.map_or_else(Tls::system, |tls| Ok(tls.clone()))?;
            server.secure = Some(tls.for_host(host)?);
        }
        Ok(server)
    }

    /// Parses the URL of another server that shares the credentials and encryption of this one.
    ///
    /// The URL must not contradict them: otherwise secrets might be sent unencrypted or to the
    /// wrong server.
    pub(crate) fn sibling(&self, text: &str) -> Result<Self, Error> {
        let (other, is_encrypted) = Self::read(text)?;
        if is_encrypted != self.is_encrypted() {
            return Err(config("it differs from the first URL in TLS: use rediss:// in all URLs or in none"));
        }
        let user = |server: &Self| server.user.clone().unwrap_or_else(|| "default".into());
        let names_another = (other.user.is_some() || other.password.is_some())
            && (user(&other), &other.password) != (user(self), &self.password);
        if names_another {
            return Err(config("its user and password differ from those of the first URL, which apply to all servers"));
        }
        let sibling = match &other.address {
            Address::Tcp(host, port) => self.at_host(host, *port)?,
            Address::Unix(_) => Server { address: other.address, ..self.clone() },
        };
        Ok(Server { db: other.db, ..sibling })
    }

    #[cfg(feature = "tls")]
    fn is_encrypted(&self) -> bool {
        self.secure.is_some()
    }

    #[cfg(not(feature = "tls"))]
    #[expect(clippy::unused_self, reason = "has the signature of the variant with TLS")]
    fn is_encrypted(&self) -> bool {
        false
    }

    /// Parses a URL and returns whether the connection is to be encrypted.
    fn read(text: &str) -> Result<(Self, bool), Error> {
        // The URL may contain a password, even in the wrong place, so no message quotes the URL.
        let url = Url::parse(text).map_err(|error| config(format_args!("it cannot be read: {error}")))?;
        if url.fragment().is_some() {
            return Err(config("it contains a #, which is written %23 in a password"));
        }
        match url.scheme() {
            "redis" => Ok((Self::tcp(&url, text)?, false)),
            "rediss" => Ok((Self::tcp(&url, text)?, true)),
            "unix" | "redis+unix" => Ok((Self::unix(&url)?, false)),
            other => Err(config(format_args!("its scheme is {other}, not redis, rediss or unix"))),
        }
    }

    fn at(address: Address) -> Self {
        Server {
            address,
            user: None,
            password: None,
            db: 0,
            role: Role::Single,
            needs_hsetex: false,
            #[cfg(feature = "tls")]
            secure: None,
        }
    }

    /// Replaces the port if the URL names none.
    pub(crate) fn with_default_port(mut self, url: &str, default: u16) -> Self {
        if let (Address::Tcp(_, port), Ok(None)) = (&mut self.address, Url::parse(url).map(|url| url.port())) {
            *port = default;
        }
        self
    }

    /// Returns the settings for a server at another address, with the same credentials and
    /// encryption.
    pub(crate) fn at_host(&self, host: &str, port: u16) -> Result<Self, Error> {
        Ok(Server {
            address: Address::Tcp(host.to_owned(), port),
            #[cfg(feature = "tls")]
            secure: self.secure.as_ref().map(|secure| secure.for_host(host)).transpose()?,
            ..self.clone()
        })
    }

    fn tcp(url: &Url, text: &str) -> Result<Self, Error> {
        let host = match url.host() {
            // The parser decodes escapes in hosts only for the schemes of browsers.
            Some(Host::Domain(host)) if !host.is_empty() => decode(host, "host")?,
            Some(Host::Ipv4(host)) => host.to_string(),
            Some(Host::Ipv6(host)) => host.to_string(),
            // A default host might silently be a server that the user did not mean.
            _ => return Err(config("it names no host")),
        };
        if url.query().is_some() {
            return Err(config("redis:// takes no parameters, and a ? in a password is written %3F"));
        }
        let db = match url.path().trim_start_matches('/') {
            "" => 0,
            db => number(db)?,
        };
        let user = Some(url.username()).filter(|user| !user.is_empty()).map(|user| decode(user, "user")).transpose()?;
        // The parser does not distinguish an empty password from none, but a user may have an empty
        // one.
        let password = url.password().or_else(|| (user.is_some() && text.contains(":@")).then_some(""));
        let password = password.map(|password| decode(password, "password")).transpose()?;
        Self { user, password, db, ..Self::at(Address::Tcp(host, url.port().unwrap_or(6379))) }.checked()
    }

    fn unix(url: &Url) -> Result<Self, Error> {
        if url.host_str().is_some_and(|host| !host.is_empty()) || url.path().trim_matches('/').is_empty() {
            return Err(config("a Unix socket is written unix:///path/to/socket, with three slashes"));
        }
        let path = decode(url.path(), "path")?.into();
        let mut server = Self::at(Address::Unix(path));
        for (name, value) in url.query_pairs() {
            match &*name {
                "db" => server.db = number(&value)?,
                "user" => server.user = Some(value.into_owned()),
                "pass" => server.password = Some(value.into_owned()),
                _ => {
                    return Err(config("unix:// takes no parameters but db, user and pass; a & in one is written %26"));
                }
            }
        }
        server.checked()
    }

    fn checked(self) -> Result<Self, Error> {
        if self.user.is_some() && self.password.is_none() {
            return Err(config(
                "it names a user and no password; a password without a user is written redis://:password@host",
            ));
        }
        Ok(self)
    }
}

#[cold]
fn config(what: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Config, format!("invalid Redis URL: {what}"))
}

fn decode(text: &str, what: &str) -> Result<String, Error> {
    let decoded = percent_decode_str(text).decode_utf8();
    Ok(decoded.map_err(|_| config(format_args!("its {what} is not UTF-8")))?.into_owned())
}

fn number(db: &str) -> Result<u32, Error> {
    db.parse().map_err(|_| config("its database is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> (String, Option<String>, Option<String>, u32) {
        let server = Server::parse(text).unwrap();
        (server.address.to_string(), server.user, server.password, server.db)
    }

    #[test]
    fn parses_urls() {
        let some = |text: &str| Some(text.to_string());
        assert_eq!(tcp("redis://127.0.0.1"), ("127.0.0.1:6379".into(), None, None, 0));
        assert_eq!(tcp("redis://cache.example:7000/3"), ("cache.example:7000".into(), None, None, 3));
        assert_eq!(tcp("redis://[::1]:7000/"), ("[::1]:7000".into(), None, None, 0));
        assert_eq!(tcp("redis://:p%40ss@h"), ("h:6379".into(), None, some("p@ss"), 0));
        assert_eq!(tcp("redis://ann:pw@h"), ("h:6379".into(), some("ann"), some("pw"), 0));
        assert_eq!(tcp("redis://ann:@h"), ("h:6379".into(), some("ann"), some(""), 0));
        assert_eq!(tcp("REDIS://:@h"), ("h:6379".into(), None, None, 0));
        assert_eq!(tcp("redis://:a:@h"), ("h:6379".into(), None, some("a:"), 0));
        assert_eq!(tcp("unix:///run/redis.sock"), ("/run/redis.sock".into(), None, None, 0));
        assert_eq!(
            tcp("unix:///run/re%20dis.sock?db=2&user=ann&pass=a%2Bb"),
            ("/run/re dis.sock".into(), some("ann"), some("a+b"), 2)
        );
    }

    #[test]
    fn rejects_invalid_urls_without_quoting_them() {
        for (bad, message) in [
            ("", "cannot be read"),
            ("127.0.0.1:6379", "cannot be read"),
            ("localhost:6379", "scheme is localhost"),
            ("redis://", "no host"),
            ("redis:///1", "no host"),
            ("redis:6379", "no host"),
            ("redis:/h", "no host"),
            ("redis://:6379", "cannot be read"),
            ("http://:secret@h", "scheme is http"),
            ("rediss://:secret@h", "TLS"),
            ("redis://:secret@h:99999", "cannot be read"),
            ("redis://:secret@h/one", "not a number"),
            ("redis://:secret@h/-1", "not a number"),
            ("redis://:secret@h/1/2", "not a number"),
            ("redis://ann@h", "no password"),
            ("redis://h?timeout=1", "takes no parameters"),
            ("redis://ann:12?secret@h", "%3F"),
            ("redis://ann:#secret@h", "%23"),
            ("redis://ann:4711#secret@h", "%23"),
            ("unix:///s?pass=a#secret", "%23"),
            ("unix:///s?pass=a&secret=1", "%26"),
            ("REDISS://:secret@h", "TLS"),
            ("redis://:%ff@h", "not UTF-8"),
            ("unix://run/redis.sock", "three slashes"),
            ("unix:///", "three slashes"),
            ("unix:///run/redis.sock?pass=secret&x=1", "no parameters but"),
            ("unix:///run/redis.sock?db=x", "not a number"),
        ] {
            let error = Server::parse(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(message), "{bad}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_sibling_shares_credentials_and_encryption() {
        let first = Server::parse("redis://ann:secret@a:1").unwrap();
        for same in ["redis://b:2", "redis://ann:secret@b:2"] {
            let other = first.sibling(same).unwrap();
            assert_eq!(
                (other.address.to_string().as_str(), &other.user, &other.password),
                ("b:2", &first.user, &first.password)
            );
        }
        for bad in ["redis://ann:other-secret@b", "redis://:secret@b", "rediss://b", "REDISS://b", "redis://b?secret"] {
            let error = first.sibling(bad).unwrap_err();
            assert!(error.kind() == ErrorKind::Config && !error.to_string().contains("secret"), "{error}");
        }
        assert_eq!(first.sibling("redis://b/3").unwrap().db, 3);
        Server::parse("redis://default:secret@a").unwrap().sibling("redis://:secret@b").unwrap();
        Server::parse("redis://a").unwrap().sibling("redis://:@b").unwrap();
    }

    #[test]
    fn debug_hides_the_password() {
        let shown = format!("{:?}", Server::parse("redis://ann:secret@h/2").unwrap());
        assert!(shown.contains("ann") && shown.contains("***") && !shown.contains("secret"), "{shown}");
    }
}
