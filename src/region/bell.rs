//! [`Bell`]: wakes a caller that waits in many lines, and tells it which of them moved.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// One caller that waits, and the flights that it was woken for.
pub(super) struct Bell(Mutex<Rung>);

#[derive(Default)]
struct Rung {
    flights: Vec<usize>,
    caller: Option<Waker>,
}

impl Bell {
    pub(super) fn new() -> Self {
        Bell(Mutex::default())
    }

    /// The flights that it rang for since it was asked last; the context's waker is called when it rings.
    pub(super) fn poll(&self, context: &Context<'_>) -> Poll<Vec<usize>> {
        // Wakers run code that is not ours when they are cloned and dropped, so both happen outside of the lock.
        let mut waker = Some(context.waker().clone());
        let mut rung = self.lock();
        if rung.flights.is_empty() {
            std::mem::swap(&mut rung.caller, &mut waker);
            drop(rung);
            return Poll::Pending;
        }
        Poll::Ready(std::mem::take(&mut rung.flights))
    }

    fn lock(&self) -> MutexGuard<'_, Rung> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rings the bell for one flight.
pub(super) struct Rings {
    bell: Arc<Bell>,
    flight: usize,
}

impl Rings {
    pub(super) fn waker(bell: &Arc<Bell>, flight: usize) -> Waker {
        Waker::from(Arc::new(Rings { bell: Arc::clone(bell), flight }))
    }
}

impl Wake for Rings {
    fn wake(self: Arc<Self>) {
        let mut rung = self.bell.lock();
        rung.flights.push(self.flight);
        let caller = rung.caller.take();
        drop(rung);
        if let Some(caller) = caller {
            caller.wake();
        }
    }
}
