//! Which servers there are, where each key lives among them, and how that is learned anew.

pub(crate) mod cluster;
pub(crate) mod discovery;
#[cfg(feature = "tokio")]
pub(crate) mod join_all;
pub(crate) mod node;
pub(crate) mod node_pool;
pub(crate) mod router;
pub(crate) mod scatter;
pub(crate) mod sentinel;
pub(crate) mod shard;
pub(crate) mod slot_map;
