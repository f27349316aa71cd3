//! Clusters and Sentinel, of real servers.

// Some of these is for other tests.
#[allow(dead_code)]
mod cluster_servers;
mod conformance;
mod doubts;
mod failover;
mod load;
mod redirects;
mod routing;
mod scripted;
#[allow(dead_code)]
mod sentinel_servers;
#[allow(dead_code)]
mod servers;
#[allow(dead_code)]
#[path = "../it/support.rs"]
mod support;
mod users;
