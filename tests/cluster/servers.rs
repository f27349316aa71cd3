//! What a cluster of servers and a set under Sentinel have in common.

use std::time::Duration;

use crate::support::Server;

/// Far more than anything here takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(100);

/// The URLs of servers.
pub fn urls(servers: &[Server]) -> Vec<String> {
    servers.iter().map(Server::url).collect()
}

/// Those that run.
pub fn live(servers: &[Server]) -> impl Iterator<Item = &Server> {
    servers.iter().filter(|server| server.is_live())
}

/// The first that runs.
pub fn any(servers: &[Server]) -> &Server {
    live(servers).next().expect("a server that runs")
}

/// Which of the servers has this port.
pub fn at_port(servers: &[Server], port: &str) -> usize {
    let is_there = |server: &Server| server.port.to_string() == port;
    servers.iter().position(is_there).unwrap_or_else(|| panic!("none of the servers is at port {port:?}"))
}

/// A line of what a server tells of itself, such as `role` of `replication`.
pub fn info(server: &Server, section: &str, name: &str) -> Option<String> {
    let question = ["INFO", section];
    // A sentinel that gives it another primary cuts its connections once.
    let answer = server.try_ask(&question).unwrap_or_else(|_| server.ask(&question));
    let mut lines = answer.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(found, _)| *found == name).map(|(_, value)| value.to_string())
}

/// How often a server ran a command, such as `get`, or `client|tracking`.
pub fn calls(server: &Server, command: &str) -> u64 {
    let Some(stats) = info(server, "commandstats", &format!("cmdstat_{command}")) else { return 0 };
    let calls = stats.split(',').find_map(|stat| stat.strip_prefix("calls="));
    calls.and_then(|calls| calls.parse().ok()).unwrap_or_else(|| panic!("{command}: {stats}"))
}

/// The strings of an answer that is a list of them.
pub fn strings(answer: &str) -> Vec<&str> {
    assert!(answer.starts_with('*'), "{answer}");
    // Before each stands a line with its length.
    answer.lines().skip(2).step_by(2).collect()
}

/// Whether this server is a primary, as it says itself.
pub fn is_primary(server: &Server) -> bool {
    info(server, "replication", "role").is_some_and(|role| role == "master")
}

/// Whether a server is a replica of this primary, has all that it had, and hears of what it does.
pub fn is_in_step(server: &Server, primary: &Server) -> bool {
    let is = |name, what: &str| info(server, "replication", name).is_some_and(|value| value == what);
    is("master_port", &primary.port.to_string()) && is("master_link_status", "up")
}
