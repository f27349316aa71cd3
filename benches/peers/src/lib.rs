//! The work that dogpile and its peers are measured by.

pub mod cores;
pub mod meter;
pub mod report;
pub mod subjects;
pub mod tasks;

#[allow(dead_code)]
#[path = "../../../tests/it/support.rs"]
mod support;

use serde::{Deserialize, Serialize};

/// A value as services cache it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, hitbox_fn::CacheableResponse)]
pub struct Profile {
    pub id: u64,
    pub name: String,
    pub score: f64,
    pub active: bool,
    pub tags: Vec<String>,
}

dogpile::msgpack! { Profile { id, name, score, active, tags } }

impl Profile {
    #[must_use]
    pub fn sample() -> Self {
        Profile {
            id: 1_234_567,
            name: "Ann Example".into(),
            score: 17.25,
            active: true,
            tags: vec!["reader".into(), "editor".into()],
        }
    }
}

/// The server that measurements run against.
pub struct Target {
    url: String,
    /// Stopped when this is dropped.
    _ours: Option<support::Server>,
}

impl Target {
    /// The server of `REDIS_URL`, or one of our own.
    #[must_use]
    pub fn find() -> Self {
        match std::env::var("REDIS_URL") {
            Ok(url) => Target { url, _ours: None },
            Err(_) => {
                let ours = support::Server::start();
                Target { url: ours.url(), _ours: Some(ours) }
            }
        }
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// The server of `REDIS_URL`.
///
/// # Panics
/// When that is not set.
#[must_use]
pub fn redis_url() -> String {
    std::env::var("REDIS_URL").expect("REDIS_URL names the server to measure against")
}

/// The first server of the cluster of `CLUSTER_URL`.
///
/// # Panics
/// When that is not set.
#[must_use]
pub fn cluster_url() -> String {
    std::env::var("CLUSTER_URL").expect("CLUSTER_URL names a server of the cluster to measure against")
}

/// A runtime of one thread.
///
/// # Panics
/// When none can be made.
#[must_use]
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

/// A value of 64 bytes.
pub const VALUE: [u8; 64] = [b'v'; 64];

/// A hundred keys, all plain.
#[must_use]
pub fn plain_keys() -> Vec<String> {
    (0..100).map(|at| format!("plain-key-{at}")).collect()
}

/// Fifty fields in ten hashes.
#[must_use]
pub fn field_keys() -> Vec<(String, String)> {
    (0..50).map(|at| (format!("hash-{}", at % 10), format!("field-{at}"))).collect()
}
