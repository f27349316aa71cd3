//! The crate as its users see it, against real servers.

mod abilities;
mod batches;
mod buckets;
#[cfg(feature = "tokio")]
mod cancellation;
#[cfg(all(feature = "tls", feature = "testing"))]
mod certificates;
mod conformance;
mod creation;
mod faults;
mod locks;
#[cfg(feature = "tokio")]
mod pipeline;
mod redis;
mod refresh;
mod region;
#[cfg(feature = "tokio")]
mod runtimes;
#[cfg(feature = "tokio")]
mod sharing;
mod stampedes;
// Some of it is for other tests.
#[allow(dead_code)]
mod support;
#[cfg(feature = "tokio")]
mod tasks;
#[cfg(all(feature = "tls", feature = "testing"))]
mod tls;
