//! [`WakeSet`]: waits for many futures at once, and reports which of them to poll again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// One waiting caller, and the indexes of the futures that were woken since it last polled.
///
/// Each future is polled with its own waker, created by [`WakeSetWaker::waker`]. The caller polls
/// only the futures whose indexes [`WakeSet::poll`] returns.
pub(crate) struct WakeSet(Mutex<WakeSetState>);

#[derive(Default)]
struct WakeSetState {
    woken: Vec<usize>,
    caller: Option<Waker>,
}

impl WakeSet {
    pub(crate) fn new() -> Self {
        WakeSet(Mutex::default())
    }

    /// Returns the indexes that were woken since the last poll, or registers the caller's waker.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Vec<usize>> {
        // Cloning and dropping a waker runs code of the executor, so both happen outside of the
        // lock.
        let mut waker = Some(context.waker().clone());
        let mut state = self.lock();
        if state.woken.is_empty() {
            std::mem::swap(&mut state.caller, &mut waker);
            drop(state);
            return Poll::Pending;
        }
        Poll::Ready(std::mem::take(&mut state.woken))
    }

    fn lock(&self) -> MutexGuard<'_, WakeSetState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The waker of the future at one index of a [`WakeSet`].
pub(crate) struct WakeSetWaker {
    set: Arc<WakeSet>,
    index: usize,
}

impl WakeSetWaker {
    pub(crate) fn waker(set: &Arc<WakeSet>, index: usize) -> Waker {
        Waker::from(Arc::new(WakeSetWaker { set: Arc::clone(set), index }))
    }
}

impl Wake for WakeSetWaker {
    fn wake(self: Arc<Self>) {
        let mut state = self.set.lock();
        state.woken.push(self.index);
        let caller = state.caller.take();
        drop(state);
        // The caller's waker runs code of the executor, so it is called outside of the lock.
        if let Some(caller) = caller {
            caller.wake();
        }
    }
}
