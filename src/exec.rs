//! The two faces: callers that are threads, which block, and callers that are tasks, which are woken.
//!
//! What both do is written once, as async functions over a face. What a thread awaits has blocked before, and is ready
//! at once; so its functions end at their first poll ([`now`]).

use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// The face of threads. What they wait for blocks them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread;

/// The face of tasks.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task;

/// What a function of the face of threads comes to.
#[inline(always)]
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("what threads wait for is ready, since they have waited"),
    }
}
