//! Which servers there are, which of them holds a key, and how that knowledge is refreshed.
//!
//! From the bottom up: a [`node::Node`] is one server and the connections to it, a [`shard::Shard`]
//! is a primary with its replicas, and a view (a [`slot_map::SlotMap`] or the roles of a sentinel
//! deployment) says which shard serves a key. A [`discovery::Discovery`] fetches the view and
//! replaces it when it is outdated; a [`router::Router`] gives requests access to it.

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
