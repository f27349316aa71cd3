//! The handshake of a new connection: negotiates the protocol, logs in, and checks the server.

use crate::error::{Error, ErrorKind};
use crate::redis::conn::reply::{Reply, ReplyReader, pairs};
use crate::redis::info::{ServerName, info_line, name_and_version, version_of};
use crate::redis::protocol::batch::server_error;
use crate::redis::protocol::commands;
use crate::redis::protocol::parser::Receive;
use crate::redis::url::{Role, Server};

/// The longest string that the handshake accepts, even if the limit for entries is lower.
pub(crate) const MAX_STRING: usize = 64 * 1024;

/// A connection that is not shared yet, blocking or asynchronous.
pub(crate) trait RoundTrip {
    /// Sends commands in one write and passes the tokens of their replies to `receive`.
    ///
    /// If the connection breaks, `receive` has got the replies that arrived before.
    fn round_trip(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> usize + Send,
        receive: &mut (impl Receive + Send),
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

/// What a server reports about itself. `None` and `false` mean that it does not report it.
#[derive(Debug, Default)]
pub(crate) struct PeerInfo {
    /// Whether the connection uses RESP3.
    pub(crate) resp3: bool,
    name: Option<ServerName>,
    version: Option<[u32; 3]>,
    mode: Option<Mode>,
    is_primary: Option<bool>,
    lacks_hsetex: bool,
}

/// The mode in which a server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Standalone,
    Cluster,
    Sentinel,
}

/// Performs the handshake and checks that the server has the expected role and features.
///
/// It switches to RESP3 if the server supports it, logs in, selects the database and applies the
/// other settings.
///
/// # Errors
/// If the server refuses the credentials or a setting, or does not have the expected role, version
/// or features.
///
/// # Cost
/// One round trip. A server without RESP3 costs a second one, which also reads its `INFO`.
pub(crate) async fn negotiate(connection: &mut impl RoundTrip, server: &Server) -> Result<PeerInfo, Error> {
    let mut steps: Vec<_> = [HandshakeStep::Hello].into_iter().chain(settings(server)).collect();
    let mut replies = ReplyReader::default();
    let mut outcome = connection.round_trip(|out| write(out, &steps, server), &mut replies).await;
    let mut peer = PeerInfo { resp3: true, ..PeerInfo::default() };
    // A server at its client limit sends an error and closes the connection. That error says more
    // than the read error that follows, so it comes first.
    if let Some(error) = replies.first_error() {
        if !lacks_resp3(error, server) {
            return Err(hello_error(error, server));
        }
        outcome?;
        peer.resp3 = false;
        let password = server.password.as_deref().map(HandshakeStep::Auth);
        let role = (server.role == Role::Primary).then_some(HandshakeStep::Role);
        steps = password.into_iter().chain([HandshakeStep::Info]).chain(role).chain(settings(server)).collect();
        replies = ReplyReader::default();
        outcome = connection.round_trip(|out| write(out, &steps, server), &mut replies).await;
    }
    for (step, reply) in steps.iter().zip(replies.iter()) {
        peer.apply_reply(*step, reply, server)?;
        peer.check(server)?;
    }
    outcome.map(|()| peer)
}

/// A command of the handshake. It has no `Debug`, since it may hold the password.
#[derive(Clone, Copy)]
enum HandshakeStep<'s> {
    Hello,
    /// Logs in with this password.
    Auth(&'s str),
    Info,
    Role,
    Select,
    ReadOnly,
    HasHsetex,
}

/// Returns the steps that follow the login.
fn settings(server: &Server) -> impl Iterator<Item = HandshakeStep<'_>> {
    let reads_replicas = server.role == Role::ClusterNode { reads_replicas: true };
    let selects = (server.db != 0).then_some(HandshakeStep::Select);
    let reads = reads_replicas.then_some(HandshakeStep::ReadOnly);
    let has_hsetex = server.needs_hsetex.then_some(HandshakeStep::HasHsetex);
    [selects, reads, has_hsetex].into_iter().flatten()
}

/// Appends the commands of `steps` and returns the number of their replies.
fn write(out: &mut Vec<u8>, steps: &[HandshakeStep<'_>], server: &Server) -> usize {
    let user = server.user.as_deref();
    let write = |step: &HandshakeStep<'_>| match step {
        HandshakeStep::Hello => commands::hello(out, user, server.password.as_deref()),
        HandshakeStep::Auth(password) => commands::auth(out, user, password),
        HandshakeStep::Info => commands::info(out),
        HandshakeStep::Role => commands::role(out),
        HandshakeStep::Select => commands::select(out, server.db),
        HandshakeStep::ReadOnly => commands::read_only(out),
        HandshakeStep::HasHsetex => commands::command_info(out, "hsetex"),
    };
    steps.iter().map(write).sum()
}

/// Returns whether the error means that the server does not support RESP3, or not for this user.
fn lacks_resp3(error: &[u8], server: &Server) -> bool {
    if error.starts_with(b"NOAUTH") {
        // Valkey 9.1 does not tell unauthenticated clients which commands it lacks. If we sent a
        // password and the server still asks for one, it did not parse `HELLO`.
        return server.password.is_some();
    }
    let message = error.to_ascii_lowercase();
    let says = |reason: &[u8]| message.windows(reason.len()).any(|part| part == reason);
    let reasons = [&b"unknown command"[..], b"unsupported", b"noproto", b"noperm"];
    !message.starts_with(b"wrongpass") && reasons.into_iter().any(says)
}

impl PeerInfo {
    /// Records the reply to a step. Missing fields and refused queries are not errors.
    fn apply_reply(&mut self, step: HandshakeStep<'_>, reply: &[Reply], server: &Server) -> Result<(), Error> {
        match (step, reply) {
            (HandshakeStep::Auth(_), [Reply::Error(error)]) => {
                return Err(refused_error(error, "user and password", server));
            }
            // The server requires a password, and none is set.
            (HandshakeStep::Info, [Reply::Error(error)]) if error.starts_with(b"NOAUTH") => {
                return Err(refused_error(error, "user and password", server));
            }
            (HandshakeStep::Select, [Reply::Error(error)]) => return Err(refused_error(error, "database", server)),
            (HandshakeStep::ReadOnly, [Reply::Error(error)]) => {
                return Err(server_error(error).during("enabling reads from a replica with READONLY"));
            }
            (HandshakeStep::Hello, map) => pairs(map).for_each(|(name, value)| self.apply_hello_field(name, value)),
            (HandshakeStep::Info, [Reply::Text(info)]) => self.apply_info(&String::from_utf8_lossy(info)),
            (HandshakeStep::Role, [Reply::Array(_), Reply::Text(role), ..]) => self.is_primary = is_primary(role),
            (HandshakeStep::HasHsetex, [Reply::Array(1), Reply::Nil]) => self.lacks_hsetex = true,
            _ => {}
        }
        Ok(())
    }

    /// Records one field of the reply to `HELLO`.
    fn apply_hello_field(&mut self, name: &[u8], value: &Reply) {
        match (name, value) {
            (b"proto", Reply::Int(version)) => self.resp3 = *version >= 3,
            (b"server", Reply::Text(name)) => self.name = Some(ServerName::from(&String::from_utf8_lossy(name))),
            (b"version", Reply::Text(version)) => self.version = version_of(&String::from_utf8_lossy(version)),
            (b"mode", Reply::Text(mode)) => self.mode = Mode::parse(mode),
            (b"role", Reply::Text(role)) => self.is_primary = is_primary(role),
            _ => {}
        }
    }

    /// Records the text of `INFO`.
    fn apply_info(&mut self, info: &str) {
        if let Some((name, version)) = name_and_version(info) {
            (self.name, self.version) = (Some(name), version_of(version));
        }
        let mode = info_line(info, "redis_mode").or_else(|| info_line(info, "server_mode"));
        self.mode = mode.and_then(|mode| Mode::parse(mode.as_bytes()));
    }

    /// Checks the role, the version and the features of the server, as far as they are known.
    fn check(&self, server: &Server) -> Result<(), Error> {
        let config = |what: String| Err(Error::new(ErrorKind::Config, what));
        match (server.role, self.mode) {
            (Role::Sentinel, Some(Mode::Standalone | Mode::Cluster)) => {
                return config("the server is not a sentinel".into());
            }
            (Role::Sentinel, _) => return Ok(()),
            // A connection error, since another server may have taken over the address of the
            // cluster node.
            (Role::ClusterNode { .. }, Some(Mode::Standalone)) => {
                return Err(Error::new(ErrorKind::Connection, "the server is no longer part of a cluster"));
            }
            (_, Some(Mode::Sentinel)) => {
                return config("the server is a sentinel, which stores no entries: use `Sentinel`".into());
            }
            (Role::Single | Role::Primary | Role::Replica, Some(Mode::Cluster)) => {
                return config(
                    "the server is a cluster node, which stores only some of the keys: use `Cluster`".into(),
                );
            }
            _ => {}
        }
        if self.name == Some(ServerName::Redis) && self.version.is_some_and(|[major, ..]| major < 7) {
            let it = self.describe();
            return config(format!("{it} is too old: locks and hash TTLs need Redis 7.0 or later, or Valkey"));
        }
        if self.lacks_hsetex {
            let it = self.describe();
            let choices = "use `ServerInfo::per_field`, which picks a supported mode, or `HashTtl::Stamped`";
            return config(format!("{it} does not support HSETEX, which `HashTtl::PerField` needs: {choices}"));
        }
        if server.role == Role::Primary && self.is_primary == Some(false) {
            return Err(Error::new(ErrorKind::Connection, "the server is a replica, no longer a primary"));
        }
        Ok(())
    }

    /// Returns the server's name and version for error messages.
    fn describe(&self) -> String {
        match (&self.name, self.version) {
            (Some(name), Some([major, minor, patch])) => format!("{name} {major}.{minor}.{patch}"),
            (Some(name), None) => name.to_string(),
            (None, _) => "the server".into(),
        }
    }
}

impl Mode {
    fn parse(text: &[u8]) -> Option<Self> {
        match text {
            b"standalone" => Some(Mode::Standalone),
            b"cluster" => Some(Mode::Cluster),
            b"sentinel" => Some(Mode::Sentinel),
            _ => None,
        }
    }
}

fn is_primary(role: &[u8]) -> Option<bool> {
    match role {
        b"master" | b"primary" => Some(true),
        b"slave" | b"replica" => Some(false),
        _ => None,
    }
}

/// Returns the error for a refused `HELLO`.
#[cold]
fn hello_error(error: &[u8], server: &Server) -> Error {
    if error.starts_with(b"WRONGPASS") || error.starts_with(b"NOAUTH") {
        return refused_error(error, "user and password", server);
    }
    server_error(&redacted(error, server))
}

/// Returns the error for refused credentials or settings, without the password.
#[cold]
fn refused_error(reply: &[u8], what: &str, server: &Server) -> Error {
    let reply = server_error(&redacted(reply, server));
    Error::new(ErrorKind::Refused, format!("the server refused the {what}: {reply}"))
}

/// Masks the password in a server's error, since a server may repeat the command that it refuses.
fn redacted(reply: &[u8], server: &Server) -> Vec<u8> {
    match server.password.as_deref().filter(|password| !password.is_empty()) {
        Some(password) => String::from_utf8_lossy(reply).replace(password, "***").into_bytes(),
        None => reply.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::exec::poll_ready;
    use crate::redis::protocol::chunk::Chunk;
    use crate::redis::protocol::parser::{Fed, Parser};

    /// Replies to each write with the next text. A text that is too short ends the connection.
    #[derive(Default)]
    struct Script {
        texts: Vec<String>,
        sent: Vec<String>,
    }

    impl RoundTrip for Script {
        async fn round_trip(
            &mut self,
            write: impl FnOnce(&mut Vec<u8>) -> usize + Send,
            receive: &mut (impl Receive + Send),
        ) -> Result<(), Error> {
            let mut output = Vec::new();
            let mut replies = Parser::new(MAX_STRING);
            replies.expect(write(&mut output));
            let words = String::from_utf8(output).unwrap();
            let words = words.split("\r\n").filter(|word| !word.starts_with(['*', '$']) && !word.is_empty());
            self.sent.push(words.collect::<Vec<_>>().join(" "));
            let text = Bytes::from(if self.texts.is_empty() { String::new() } else { self.texts.remove(0) });
            match replies.feed(&mut Chunk::sharing(&text), receive)? {
                Fed::Done => Ok(()),
                Fed::More(_) => Err(Error::new(ErrorKind::Connection, "the connection ended")),
            }
        }
    }

    /// Performs a handshake with scripted replies, and returns its result and the commands of each
    /// write.
    fn talk(server: &Server, texts: &[&str]) -> (Result<PeerInfo, Error>, Vec<String>) {
        let mut script = Script { texts: texts.iter().map(ToString::to_string).collect(), ..Script::default() };
        (poll_ready(negotiate(&mut script, server)), script.sent)
    }

    fn error(server: &Server, texts: &[&str]) -> (ErrorKind, String) {
        let error = talk(server, texts).0.unwrap_err();
        (error.kind(), error.to_string())
    }

    /// The reply of Redis and Valkey to `HELLO 3`.
    fn hello(name: &str, version: &str, mode: &str, role: &str) -> String {
        format!(
            "%7\r\n+server\r\n+{name}\r\n+version\r\n+{version}\r\n+proto\r\n:3\r\n+id\r\n:3\r\n+mode\r\n+{mode}\r\n\
             +role\r\n+{role}\r\n+modules\r\n*1\r\n%2\r\n+name\r\n+lua\r\n+ver\r\n:1\r\n"
        )
    }

    fn primary() -> String {
        hello("redis", "7.0.15", "standalone", "master")
    }

    const UNKNOWN: &str = "-ERR unknown command 'HELLO', with args beginning with: '3' \r\n";

    fn info(text: &str) -> String {
        format!("${}\r\n{text}\r\n", text.len())
    }

    fn server(url: &str) -> Server {
        Server::parse(url).unwrap()
    }

    #[test]
    fn resp3_takes_one_write() {
        let mut server = server("redis://ann:pw@h/3");
        server.needs_hsetex = true;
        let hello = hello("valkey", "9.1.2", "standalone", "master");
        let (peer, sent) = talk(&server, &[&(hello + "+OK\r\n*1\r\n*2\r\n+hsetex\r\n:-6\r\n")]);
        assert_eq!(sent, ["HELLO 3 AUTH ann pw SELECT 3 COMMAND INFO hsetex"]);
        let peer = peer.unwrap();
        assert!(peer.resp3 && peer.mode == Some(Mode::Standalone));
        assert_eq!((peer.describe().as_str(), peer.is_primary), ("Valkey 9.1.2", Some(true)));

        server.role = Role::ClusterNode { reads_replicas: true };
        (server.db, server.needs_hsetex) = (0, false);
        let node = self::hello("redis", "8.0.2", "cluster", "replica");
        let (peer, sent) = talk(&server, &[&(node.clone() + "+OK\r\n")]);
        assert_eq!((peer.unwrap().is_primary, sent), (Some(false), vec!["HELLO 3 AUTH ann pw READONLY".into()]));
        assert_eq!(error(&server, &[&(node + "-NOPERM no\r\n")]).0, ErrorKind::Refused);
    }

    #[test]
    fn masks_the_password_in_server_errors() {
        let server = server("redis://ann:s3cret@h");
        for reply in [
            "-WRONGPASS s3cret is wrong\r\n",
            "-ERR I know no 'AUTH ann s3cret'\r\n",
            "-NOAUTH s3cret\r\n-ERR s3cret\r\n",
        ] {
            let (_, message) = error(&server, &[reply, reply]);
            assert!(message.contains("***") && !message.contains("s3cret"), "{message}");
        }
        // Every text contains an empty password, so it is not masked.
        let (_, message) = error(&self::server("redis://ann:@h"), &["-WRONGPASS no\r\n"]);
        assert!(message.ends_with("WRONGPASS no\""), "{message}");
    }

    #[test]
    fn resp2_takes_a_second_write_with_the_same_settings() {
        let info = info("# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.1\r\n");
        let (peer, sent) = talk(&server("redis://h"), &[UNKNOWN, &info]);
        assert_eq!(sent, ["HELLO 3", "INFO server"]);
        assert_eq!(peer.unwrap().describe(), "Valkey 8.1.1");
        let mut full = server("redis://:pw@h/3");
        (full.role, full.needs_hsetex) = (Role::Primary, true);
        let noauth = "-NOAUTH Authentication required.\r\n";
        let role = "*3\r\n+master\r\n:0\r\n*0\r\n";
        let replies = format!("+OK\r\n{info}{role}+OK\r\n*1\r\n*2\r\n+hsetex\r\n:-6\r\n");
        let (peer, sent) = talk(&full, &[&format!("{UNKNOWN}{noauth}{noauth}"), &replies]);
        assert_eq!(sent[1], "AUTH pw INFO server ROLE SELECT 3 COMMAND INFO hsetex");
        let peer = peer.unwrap();
        assert!(!peer.resp3 && peer.is_primary == Some(true));
        // A user without permission for these commands connects without the checks.
        let replies = "+OK\r\n-NOPERM no\r\n-NOPERM no\r\n+OK\r\n-NOPERM no\r\n";
        let peer = talk(&full, &[&format!("-NOPROTO no\r\n{noauth}{noauth}"), replies]).0.unwrap();
        assert_eq!((peer.name, peer.is_primary, peer.lacks_hsetex), (None, None, false));
    }

    #[test]
    fn accepts_servers_that_report_little() {
        for reply in
            ["+OK\r\n", "%0\r\n", "*0\r\n", "_\r\n", "%1\r\n+mode\r\n+odd\r\n", ":3\r\n", "%1\r\n+version\r\n:6\r\n"]
        {
            let peer = talk(&server("redis://h"), &[reply]).0.unwrap();
            assert!(peer.resp3, "{reply}");
            assert_eq!(peer.describe(), "the server");
        }
        // Unparsable versions, and forks with version numbers of their own.
        for (name, version) in [("redis", "unstable"), ("redis", "255.255.255"), ("valkey", "1.0"), ("another", "0.1")]
        {
            talk(&server("redis://h"), &[&hello(name, version, "standalone", "master")]).0.unwrap();
        }
        let peer = talk(&server("redis://h"), &["%1\r\n+proto\r\n:2\r\n"]).0.unwrap();
        assert!(!peer.resp3, "the server knows HELLO and still uses RESP2");
        for reply in ["-ERR no\r\n", "$-1\r\n", &info(""), &info("uptime:1"), "*0\r\n"] {
            assert_eq!(talk(&server("redis://h"), &[UNKNOWN, reply]).0.unwrap().version, None);
        }
        let mut needs = server("redis://h");
        needs.needs_hsetex = true;
        for reply in ["-ERR unknown command\r\n", "-NOPERM no\r\n", "*0\r\n", "+OK\r\n", "*1\r\n*1\r\n+hsetex\r\n"] {
            talk(&needs, &[&(primary() + reply)]).0.unwrap();
        }
    }

    #[test]
    fn refuses_a_server_with_another_role() {
        let with = |role| Server { role, ..server("redis://h/2") };
        let reads_replicas = false;
        for role in [Role::Single, Role::Primary, Role::Replica, Role::ClusterNode { reads_replicas }, Role::Sentinel] {
            let is_node = role == Role::ClusterNode { reads_replicas };
            // The role is checked before the failed `SELECT`: cluster nodes and sentinels have one
            // database.
            let said =
                |mode| talk(&with(role), &[&(hello("redis", "7.0.15", mode, "master") + "-ERR no SELECT\r\n")]).0;
            let by_info = |name: &str, mode| {
                let info = info(&format!("redis_version:7.0.1\r\n{name}_mode:{mode}\r\n"));
                let ask = if role == Role::Primary { "-ERR no ROLE\r\n" } else { "" };
                talk(&with(role), &[&format!("{UNKNOWN}-ERR no\r\n"), &format!("{info}{ask}-ERR no SELECT\r\n")]).0
            };
            for heard in [said("cluster"), by_info("redis", "cluster"), by_info("server", "cluster")] {
                let error = heard.unwrap_err();
                let message = if role == Role::Sentinel { "not a sentinel" } else { "use `Cluster`" };
                assert_eq!(error.to_string().contains(message), !is_node, "{role:?}: {error}");
                assert_eq!(error.kind() == ErrorKind::Config, !is_node);
            }
            for heard in [said("sentinel"), by_info("redis", "sentinel")] {
                let error = heard.unwrap_err();
                assert_eq!(error.to_string().contains("use `Sentinel`"), role != Role::Sentinel, "{role:?}: {error}");
            }
        }
        let demoted = hello("redis", "7.0.15", "standalone", "replica");
        let primary = Server { role: Role::Primary, ..server("redis://h") };
        assert_eq!(error(&primary, &[&demoted]).0, ErrorKind::Connection);
        assert!(talk(&Server { role: Role::Replica, ..server("redis://h") }, &[&demoted]).0.is_ok());
        let by_role = "-ERR no INFO\r\n*3\r\n+slave\r\n+127.0.0.1\r\n:6379\r\n";
        assert_eq!(error(&primary, &[UNKNOWN, by_role]).0, ErrorKind::Connection);
    }

    #[test]
    fn names_the_server_that_lacks_a_feature() {
        let mut needs = server("redis://h");
        needs.needs_hsetex = true;
        let message = "does not support HSETEX, which `HashTtl::PerField` needs: use \
                    `ServerInfo::per_field`, which picks a supported mode, or `HashTtl::Stamped`";
        for nil in ["*1\r\n_\r\n", "*1\r\n$-1\r\n", "*1\r\n*-1\r\n"] {
            assert_eq!(error(&needs, &[&(primary() + nil)]), (ErrorKind::Config, format!("Redis 7.0.15 {message}")));
            let silent = error(&needs, &[&format!("{UNKNOWN}{nil}"), &format!("-ERR no\r\n{nil}")]);
            assert_eq!(silent.1, format!("the server {message}"));
        }
        let message = "Redis 6.2.14 is too old: locks and hash TTLs need Redis 7.0 or later, or Valkey";
        let old = hello("redis", "6.2.14", "standalone", "master");
        assert_eq!(error(&server("redis://h"), &[&old]), (ErrorKind::Config, message.into()));
        let (info, none) = (info("redis_version:6.2.14\r\n"), server("redis://h"));
        assert_eq!(error(&none, &[UNKNOWN, &info]), (ErrorKind::Config, message.into()));
        assert!(
            talk(&Server { role: Role::Sentinel, ..none }, &[UNKNOWN, &info]).0.is_ok(),
            "a sentinel needs no commands for entries"
        );
    }

    #[test]
    fn reports_the_refusal_if_the_connection_ends_after_it() {
        let selects = server("redis://:pw@h/2");
        let refused = |texts: &[&str]| error(&selects, texts);
        let full = "-ERR max number of clients reached\r\n";
        assert!(refused(&[full]).1.contains("max number of clients"));
        assert_eq!(refused(&["-LOADING the dataset\r\n-LOADING\r\n"]).0, ErrorKind::Server);
        let strangers = "-NOAUTH Authentication required.\r\n".repeat(2);
        let wrong = ["-WRONGPASS unknown command\r\n", &strangers].map(|text| refused(&[text, "-WRONGPASS no\r\n"]));
        let none =
            error(&server("redis://h"), &["-NOAUTH HELLO must be called with the client already authenticated\r\n"]);
        for (kind, message) in wrong.into_iter().chain([none]) {
            assert!(
                kind == ErrorKind::Refused && message.starts_with("the server refused the user and password"),
                "{message}"
            );
        }
        let (peer, sent) = talk(&selects, &[&strangers, "+OK\r\n-NOPERM no\r\n+OK\r\n"]);
        assert!(!peer.unwrap().resp3 && sent[1] == "AUTH pw INFO server SELECT 2");
        assert_eq!(refused(&[UNKNOWN]), (ErrorKind::Connection, "the connection ended".into()));
        let (kind, message) = error(&server("redis://h"), &[UNKNOWN, "-NOAUTH Authentication required.\r\n"]);
        assert!(
            kind == ErrorKind::Refused && message.starts_with("the server refused the user and password"),
            "{message}"
        );
        let two = format!("{UNKNOWN}-NOAUTH\r\n");
        let (kind, message) = refused(&[&two, "-WRONGPASS no\r\n"]);
        assert!(
            kind == ErrorKind::Refused && message.starts_with("the server refused the user and password"),
            "{message}"
        );
        let (kind, message) = refused(&[&(primary() + "-ERR DB index is out of range\r\n")]);
        assert!(kind == ErrorKind::Refused && message.starts_with("the server refused the database"), "{message}");
        assert_eq!(
            refused(&[&primary()]),
            (ErrorKind::Connection, "the connection ended".into()),
            "one reply is missing"
        );
    }
}
