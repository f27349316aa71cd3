//! The work that dogpile and its peers are measured by.

use serde::{Deserialize, Serialize};

/// A value as services cache it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
///
/// # Panics
/// When `REDIS_URL` is not set.
#[must_use]
pub fn redis_url() -> String {
    std::env::var("REDIS_URL").expect("REDIS_URL names the server to measure against")
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
