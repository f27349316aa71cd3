//! How a new connection introduces itself, over either face, and finds out whether the server can do what is wanted.

use crate::error::{Error, ErrorKind};
use crate::redis::conn::reply::{Reply, ReplyReader, pairs};
use crate::redis::info::{ServerName, info_line, name_and_version, version_of};
use crate::redis::protocol::batch::server_error;
use crate::redis::protocol::commands;
use crate::redis::protocol::parser::Receive;
use crate::redis::url::{Role, Server};

/// The longest string that is taken of a server while we introduce ourselves, however short entries are.
pub(crate) const LONGEST: usize = 64 * 1024;

/// A connection that nobody else uses yet.
pub(crate) trait Ask {
    /// Sends commands in one write, and hands `receive` the tokens of their replies. Where the connection ends, those
    /// that came before that.
    fn ask(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> usize + Send,
        receive: &mut (impl Receive + Send),
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

/// What a server says of itself, as far as it does.
#[derive(Debug, Default)]
pub(crate) struct Introduced {
    /// Whether it speaks RESP3.
    pub(crate) resp3: bool,
    name: Option<ServerName>,
    version: Option<[u32; 3]>,
    mode: Option<Mode>,
    is_primary: Option<bool>,
    lacks_hsetex: bool,
}

/// What a server is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Standalone,
    Cluster,
    Sentinel,
}

/// RESP3 where the server knows it, RESP2 otherwise; then who we are, which database, and what else was set. All of that
/// is one round trip, and two where there is no RESP3: such a server is asked what it is then.
///
/// # Errors
/// When the server does not know us, or is not what it is to be.
pub(crate) async fn introduce(connection: &mut impl Ask, server: &Server) -> Result<Introduced, Error> {
    let mut questions: Vec<_> = [Question::Hello].into_iter().chain(settings(server)).collect();
    let mut answers = ReplyReader::default();
    let mut asked = connection.ask(|out| write(out, &questions, server), &mut answers).await;
    let mut introduced = Introduced { resp3: true, ..Introduced::default() };
    // A server that has no room for us says so, and closes the connection: the error comes before that of reading.
    if let Some(refused) = answers.refusal() {
        if !speaks_resp2(refused, server) {
            return Err(refusal_of_hello(refused, server));
        }
        asked?;
        introduced.resp3 = false;
        let password = server.password.as_deref().map(Question::Auth);
        let role = (server.role == Role::Primary).then_some(Question::Role);
        questions = password.into_iter().chain([Question::Info]).chain(role).chain(settings(server)).collect();
        answers = ReplyReader::default();
        asked = connection.ask(|out| write(out, &questions, server), &mut answers).await;
    }
    for (question, answer) in questions.iter().zip(answers.iter()) {
        introduced.hear(*question, answer, server)?;
        introduced.check(server)?;
    }
    asked.map(|()| introduced)
}

/// What a server is told or asked. Not to be shown, for its password.
#[derive(Clone, Copy)]
enum Question<'s> {
    Hello,
    /// The password.
    Auth(&'s str),
    Info,
    Role,
    Select,
    ReadOnly,
    HasHsetex,
}

/// What follows the greeting.
fn settings(server: &Server) -> impl Iterator<Item = Question<'_>> {
    let reads_replicas = server.role == Role::ClusterNode { reads_replicas: true };
    let selects = (server.db != 0).then_some(Question::Select);
    let reads = reads_replicas.then_some(Question::ReadOnly);
    let has_hsetex = server.needs_hsetex.then_some(Question::HasHsetex);
    [selects, reads, has_hsetex].into_iter().flatten()
}

fn write(out: &mut Vec<u8>, questions: &[Question<'_>], server: &Server) -> usize {
    let user = server.user.as_deref();
    let write = |question: &Question<'_>| match question {
        Question::Hello => commands::hello(out, user, server.password.as_deref()),
        Question::Auth(password) => commands::auth(out, user, password),
        Question::Info => commands::info(out),
        Question::Role => commands::role(out),
        Question::Select => commands::select(out, server.db),
        Question::ReadOnly => commands::read_only(out),
        Question::HasHsetex => commands::command_info(out, "hsetex"),
    };
    questions.iter().map(write).sum()
}

/// Whether it was RESP3 that the server refused.
fn speaks_resp2(refused: &[u8], server: &Server) -> bool {
    if refused.starts_with(b"NOAUTH") {
        // Who was told a password and asks for one did not read it: Valkey 9.1 keeps from strangers which commands it has.
        return server.password.is_some();
    }
    let message = refused.to_ascii_lowercase();
    let says = |reason: &[u8]| message.windows(reason.len()).any(|part| part == reason);
    let reasons = [&b"unknown command"[..], b"unsupported", b"noproto", b"noperm"];
    !message.starts_with(b"wrongpass") && reasons.into_iter().any(says)
}

impl Introduced {
    /// Takes the answer to a question. Who answers little, or does not let us ask, is taken as he is.
    fn hear(&mut self, question: Question<'_>, answer: &[Reply], server: &Server) -> Result<(), Error> {
        match (question, answer) {
            (Question::Auth(_), [Reply::Error(refused)]) => return Err(refusal(refused, "user and password", server)),
            // Nothing was said of a password, and one is wanted.
            (Question::Info, [Reply::Error(refused)]) if refused.starts_with(b"NOAUTH") => {
                return Err(refusal(refused, "user and password", server));
            }
            (Question::Select, [Reply::Error(refused)]) => return Err(refusal(refused, "database", server)),
            (Question::ReadOnly, [Reply::Error(refused)]) => {
                return Err(server_error(refused).during("asking to read from a replica"));
            }
            (Question::Hello, map) => pairs(map).for_each(|(name, value)| self.hear_of(name, value)),
            (Question::Info, [Reply::Text(info)]) => self.hear_info(&String::from_utf8_lossy(info)),
            (Question::Role, [Reply::Array(_), Reply::Text(role), ..]) => self.is_primary = is_primary(role),
            (Question::HasHsetex, [Reply::Array(1), Reply::Nil]) => self.lacks_hsetex = true,
            _ => {}
        }
        Ok(())
    }

    /// One of the things that `HELLO` answers with.
    fn hear_of(&mut self, name: &[u8], value: &Reply) {
        match (name, value) {
            (b"proto", Reply::Int(version)) => self.resp3 = *version >= 3,
            (b"server", Reply::Text(name)) => self.name = Some(ServerName::from(&String::from_utf8_lossy(name))),
            (b"version", Reply::Text(version)) => self.version = version_of(&String::from_utf8_lossy(version)),
            (b"mode", Reply::Text(mode)) => self.mode = Mode::parse(mode),
            (b"role", Reply::Text(role)) => self.is_primary = is_primary(role),
            _ => {}
        }
    }

    fn hear_info(&mut self, info: &str) {
        if let Some((name, version)) = name_and_version(info) {
            (self.name, self.version) = (Some(name), version_of(version));
        }
        let mode = info_line(info, "redis_mode").or_else(|| info_line(info, "server_mode"));
        self.mode = mode.and_then(|mode| Mode::parse(mode.as_bytes()));
    }

    /// Whether the server is what it is to be, as far as is known.
    fn check(&self, server: &Server) -> Result<(), Error> {
        let config = |what: String| Err(Error::new(ErrorKind::Config, what));
        match (server.role, self.mode) {
            (Role::Sentinel, Some(Mode::Standalone | Mode::Cluster)) => {
                return config("it is no sentinel".into());
            }
            (Role::Sentinel, _) => return Ok(()),
            // Another server may have come to be where it was.
            (Role::ClusterNode { .. }, Some(Mode::Standalone)) => {
                return Err(Error::new(ErrorKind::Connection, "it is not part of a cluster any more"));
            }
            (_, Some(Mode::Sentinel)) => {
                return config("it is a sentinel, which keeps no entries: use `Sentinel`".into());
            }
            (Role::Single | Role::Primary | Role::Replica, Some(Mode::Cluster)) => {
                return config("it is a node of a cluster, which keeps some of the keys only: use `Cluster`".into());
            }
            _ => {}
        }
        if self.name == Some(ServerName::Redis) && self.version.is_some_and(|[major, ..]| major < 7) {
            let it = self.shown();
            return config(format!("{it} is too old: locks and the TTLs of hashes need Redis 7.0 or newer, or Valkey"));
        }
        if self.lacks_hsetex {
            let it = self.shown();
            let choices = "use `ServerInfo::per_field`, which chooses, or `HashTtl::Stamped`";
            return config(format!("{it} has no HSETEX, which `HashTtl::PerField` needs: {choices}"));
        }
        if server.role == Role::Primary && self.is_primary == Some(false) {
            return Err(Error::new(ErrorKind::Connection, "it is a replica, and no primary any more"));
        }
        Ok(())
    }

    /// The server's name and version.
    fn shown(&self) -> String {
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

#[cold]
fn refusal_of_hello(refused: &[u8], server: &Server) -> Error {
    if refused.starts_with(b"WRONGPASS") || refused.starts_with(b"NOAUTH") {
        return refusal(refused, "user and password", server);
    }
    server_error(&without_secrets(refused, server))
}

#[cold]
fn refusal(answer: &[u8], what: &str, server: &Server) -> Error {
    let answer = server_error(&without_secrets(answer, server));
    Error::new(ErrorKind::Refused, format!("the server refused the {what}: {answer}"))
}

/// A server may repeat what it was told.
fn without_secrets(answer: &[u8], server: &Server) -> Vec<u8> {
    match server.password.as_deref().filter(|password| !password.is_empty()) {
        Some(password) => String::from_utf8_lossy(answer).replace(password, "***").into_bytes(),
        None => answer.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::exec::poll_ready;
    use crate::redis::protocol::chunk::Chunk;
    use crate::redis::protocol::parser::{Fed, Parser};

    /// ReplyReader each write by the next of some texts, which may end too early.
    #[derive(Default)]
    struct Script {
        texts: Vec<String>,
        asked: Vec<String>,
    }

    impl Ask for Script {
        async fn ask(
            &mut self,
            write: impl FnOnce(&mut Vec<u8>) -> usize + Send,
            receive: &mut (impl Receive + Send),
        ) -> Result<(), Error> {
            let mut output = Vec::new();
            let mut replies = Parser::new(LONGEST);
            replies.expect(write(&mut output));
            let words = String::from_utf8(output).unwrap();
            let words = words.split("\r\n").filter(|word| !word.starts_with(['*', '$']) && !word.is_empty());
            self.asked.push(words.collect::<Vec<_>>().join(" "));
            let text = Bytes::from(if self.texts.is_empty() { String::new() } else { self.texts.remove(0) });
            match replies.feed(&mut Chunk::sharing(&text), receive)? {
                Fed::Done => Ok(()),
                Fed::More(_) => Err(Error::new(ErrorKind::Connection, "it ended")),
            }
        }
    }

    /// What comes of an introduction, with each write, and what was sent.
    fn talk(server: &Server, texts: &[&str]) -> (Result<Introduced, Error>, Vec<String>) {
        let mut script = Script { texts: texts.iter().map(ToString::to_string).collect(), ..Script::default() };
        (poll_ready(introduce(&mut script, server)), script.asked)
    }

    fn error(server: &Server, texts: &[&str]) -> (ErrorKind, String) {
        let error = talk(server, texts).0.unwrap_err();
        (error.kind(), error.to_string())
    }

    /// What Redis and Valkey answer to `HELLO 3`.
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
    fn one_write_says_and_asks_everything() {
        let mut server = server("redis://ann:pw@h/3");
        server.needs_hsetex = true;
        let hello = hello("valkey", "9.1.2", "standalone", "master");
        let (introduced, asked) = talk(&server, &[&(hello + "+OK\r\n*1\r\n*2\r\n+hsetex\r\n:-6\r\n")]);
        assert_eq!(asked, ["HELLO 3 AUTH ann pw SELECT 3 COMMAND INFO hsetex"]);
        let introduced = introduced.unwrap();
        assert!(introduced.resp3 && introduced.mode == Some(Mode::Standalone));
        assert_eq!((introduced.shown().as_str(), introduced.is_primary), ("Valkey 9.1.2", Some(true)));

        server.role = Role::ClusterNode { reads_replicas: true };
        (server.db, server.needs_hsetex) = (0, false);
        let node = self::hello("redis", "8.0.2", "cluster", "replica");
        let (introduced, asked) = talk(&server, &[&(node.clone() + "+OK\r\n")]);
        assert_eq!((introduced.unwrap().is_primary, asked), (Some(false), vec!["HELLO 3 AUTH ann pw READONLY".into()]));
        assert_eq!(error(&server, &[&(node + "-NOPERM no\r\n")]).0, ErrorKind::Refused);
    }

    #[test]
    fn what_servers_repeat_is_not_told() {
        let server = server("redis://ann:s3cret@h");
        for answer in [
            "-WRONGPASS s3cret is wrong\r\n",
            "-ERR I know no 'AUTH ann s3cret'\r\n",
            "-NOAUTH s3cret\r\n-ERR s3cret\r\n",
        ] {
            let (_, told) = error(&server, &[answer, answer]);
            assert!(told.contains("***") && !told.contains("s3cret"), "{told}");
        }
        // An empty one is everywhere.
        let (_, told) = error(&self::server("redis://ann:@h"), &["-WRONGPASS no\r\n"]);
        assert!(told.ends_with("WRONGPASS no\""), "{told}");
    }

    #[test]
    fn without_resp3_a_second_write_says_and_asks_the_same() {
        let info = info("# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.1\r\n");
        let (introduced, asked) = talk(&server("redis://h"), &[UNKNOWN, &info]);
        assert_eq!(asked, ["HELLO 3", "INFO server"]);
        assert_eq!(introduced.unwrap().shown(), "Valkey 8.1.1");
        let mut full = server("redis://:pw@h/3");
        (full.role, full.needs_hsetex) = (Role::Primary, true);
        let noauth = "-NOAUTH Authentication required.\r\n";
        let role = "*3\r\n+master\r\n:0\r\n*0\r\n";
        let answers = format!("+OK\r\n{info}{role}+OK\r\n*1\r\n*2\r\n+hsetex\r\n:-6\r\n");
        let (introduced, asked) = talk(&full, &[&format!("{UNKNOWN}{noauth}{noauth}"), &answers]);
        assert_eq!(asked[1], "AUTH pw INFO server ROLE SELECT 3 COMMAND INFO hsetex");
        let introduced = introduced.unwrap();
        assert!(!introduced.resp3 && introduced.is_primary == Some(true));
        // Who may not ask goes on without knowing.
        let answers = "+OK\r\n-NOPERM no\r\n-NOPERM no\r\n+OK\r\n-NOPERM no\r\n";
        let introduced = talk(&full, &[&format!("-NOPROTO no\r\n{noauth}{noauth}"), answers]).0.unwrap();
        assert_eq!((introduced.name, introduced.is_primary, introduced.lacks_hsetex), (None, None, false));
    }

    #[test]
    fn what_says_little_is_taken_as_it_is() {
        for answer in
            ["+OK\r\n", "%0\r\n", "*0\r\n", "_\r\n", "%1\r\n+mode\r\n+odd\r\n", ":3\r\n", "%1\r\n+version\r\n:6\r\n"]
        {
            let introduced = talk(&server("redis://h"), &[answer]).0.unwrap();
            assert!(introduced.resp3, "{answer}");
            assert_eq!(introduced.shown(), "the server");
        }
        // Names without a version, versions without a number, and of forks that count for themselves.
        for (name, version) in [("redis", "unstable"), ("redis", "255.255.255"), ("valkey", "1.0"), ("another", "0.1")]
        {
            talk(&server("redis://h"), &[&hello(name, version, "standalone", "master")]).0.unwrap();
        }
        let introduced = talk(&server("redis://h"), &["%1\r\n+proto\r\n:2\r\n"]).0.unwrap();
        assert!(!introduced.resp3, "it knows HELLO, and speaks RESP2 all the same");
        for answer in ["-ERR no\r\n", "$-1\r\n", &info(""), &info("uptime:1"), "*0\r\n"] {
            assert_eq!(talk(&server("redis://h"), &[UNKNOWN, answer]).0.unwrap().version, None);
        }
        let mut needs = server("redis://h");
        needs.needs_hsetex = true;
        for answer in ["-ERR unknown command\r\n", "-NOPERM no\r\n", "*0\r\n", "+OK\r\n", "*1\r\n*1\r\n+hsetex\r\n"] {
            talk(&needs, &[&(primary() + answer)]).0.unwrap();
        }
    }

    #[test]
    fn a_server_that_is_something_else_is_refused() {
        let with = |role| Server { role, ..server("redis://h/2") };
        let reads_replicas = false;
        for role in [Role::Single, Role::Primary, Role::Replica, Role::ClusterNode { reads_replicas }, Role::Sentinel] {
            let is_node = role == Role::ClusterNode { reads_replicas };
            // Databases come after that: neither of the two has several.
            let said =
                |mode| talk(&with(role), &[&(hello("redis", "7.0.15", mode, "master") + "-ERR no SELECT\r\n")]).0;
            let by_info = |name: &str, mode| {
                let info = info(&format!("redis_version:7.0.1\r\n{name}_mode:{mode}\r\n"));
                let ask = if role == Role::Primary { "-ERR no ROLE\r\n" } else { "" };
                talk(&with(role), &[&format!("{UNKNOWN}-ERR no\r\n"), &format!("{info}{ask}-ERR no SELECT\r\n")]).0
            };
            for heard in [said("cluster"), by_info("redis", "cluster"), by_info("server", "cluster")] {
                let error = heard.unwrap_err();
                let told = if role == Role::Sentinel { "no sentinel" } else { "use `Cluster`" };
                assert_eq!(error.to_string().contains(told), !is_node, "{role:?}: {error}");
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
    fn a_server_that_lacks_something_is_refused_by_name() {
        let mut needs = server("redis://h");
        needs.needs_hsetex = true;
        let told = "has no HSETEX, which `HashTtl::PerField` needs: use `ServerInfo::per_field`, which chooses, or \
                    `HashTtl::Stamped`";
        for nil in ["*1\r\n_\r\n", "*1\r\n$-1\r\n", "*1\r\n*-1\r\n"] {
            assert_eq!(error(&needs, &[&(primary() + nil)]), (ErrorKind::Config, format!("Redis 7.0.15 {told}")));
            let silent = error(&needs, &[&format!("{UNKNOWN}{nil}"), &format!("-ERR no\r\n{nil}")]);
            assert_eq!(silent.1, format!("the server {told}"));
        }
        let told = "Redis 6.2.14 is too old: locks and the TTLs of hashes need Redis 7.0 or newer, or Valkey";
        let old = hello("redis", "6.2.14", "standalone", "master");
        assert_eq!(error(&server("redis://h"), &[&old]), (ErrorKind::Config, told.into()));
        let (info, none) = (info("redis_version:6.2.14\r\n"), server("redis://h"));
        assert_eq!(error(&none, &[UNKNOWN, &info]), (ErrorKind::Config, told.into()));
        assert!(talk(&Server { role: Role::Sentinel, ..none }, &[UNKNOWN, &info]).0.is_ok(), "it keeps nothing");
    }

    #[test]
    fn refusals_are_told_also_where_the_connection_ends_with_them() {
        let selects = server("redis://:pw@h/2");
        let refused = |texts: &[&str]| error(&selects, texts);
        let full = "-ERR max number of clients reached\r\n";
        assert!(refused(&[full]).1.contains("max number of clients"));
        assert_eq!(refused(&["-LOADING the dataset\r\n-LOADING\r\n"]).0, ErrorKind::Server);
        let strangers = "-NOAUTH Authentication required.\r\n".repeat(2);
        let wrong = ["-WRONGPASS unknown command\r\n", &strangers].map(|text| refused(&[text, "-WRONGPASS no\r\n"]));
        let none =
            error(&server("redis://h"), &["-NOAUTH HELLO must be called with the client already authenticated\r\n"]);
        for (kind, told) in wrong.into_iter().chain([none]) {
            assert!(
                kind == ErrorKind::Refused && told.starts_with("the server refused the user and password"),
                "{told}"
            );
        }
        let (introduced, asked) = talk(&selects, &[&strangers, "+OK\r\n-NOPERM no\r\n+OK\r\n"]);
        assert!(!introduced.unwrap().resp3 && asked[1] == "AUTH pw INFO server SELECT 2");
        assert_eq!(refused(&[UNKNOWN]), (ErrorKind::Connection, "it ended".into()));
        let (kind, told) = error(&server("redis://h"), &[UNKNOWN, "-NOAUTH Authentication required.\r\n"]);
        assert!(kind == ErrorKind::Refused && told.starts_with("the server refused the user and password"), "{told}");
        let two = format!("{UNKNOWN}-NOAUTH\r\n");
        let (kind, told) = refused(&[&two, "-WRONGPASS no\r\n"]);
        assert!(kind == ErrorKind::Refused && told.starts_with("the server refused the user and password"), "{told}");
        let (kind, told) = refused(&[&(primary() + "-ERR DB index is out of range\r\n")]);
        assert!(kind == ErrorKind::Refused && told.starts_with("the server refused the database"), "{told}");
        assert_eq!(refused(&[&primary()]), (ErrorKind::Connection, "it ended".into()), "one answer is missing");
    }
}
