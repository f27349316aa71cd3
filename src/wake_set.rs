//! [`Bell`]: wakes a caller that waits for many things, and tells it which of them moved.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// One caller that waits, and the numbers of what it was woken for.
pub(crate) struct Bell(Mutex<Rung>);

#[derive(Default)]
struct Rung {
    numbers: Vec<usize>,
    caller: Option<Waker>,
}

impl Bell {
    pub(crate) fn new() -> Self {
        Bell(Mutex::default())
    }

    /// The numbers that it rang for since it was asked last; the context's waker is called when it rings.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Vec<usize>> {
        // Wakers run code that is not ours when they are cloned and dropped, so both happen outside of the lock.
        let mut waker = Some(context.waker().clone());
        let mut rung = self.lock();
        if rung.numbers.is_empty() {
            std::mem::swap(&mut rung.caller, &mut waker);
            drop(rung);
            return Poll::Pending;
        }
        Poll::Ready(std::mem::take(&mut rung.numbers))
    }

    fn lock(&self) -> MutexGuard<'_, Rung> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rings the bell for one number.
pub(crate) struct Rings {
    bell: Arc<Bell>,
    number: usize,
}

impl Rings {
    pub(crate) fn waker(bell: &Arc<Bell>, number: usize) -> Waker {
        Waker::from(Arc::new(Rings { bell: Arc::clone(bell), number }))
    }
}

impl Wake for Rings {
    fn wake(self: Arc<Self>) {
        let mut rung = self.bell.lock();
        rung.numbers.push(self.number);
        let caller = rung.caller.take();
        drop(rung);
        if let Some(caller) = caller {
            caller.wake();
        }
    }
}
