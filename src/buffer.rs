//! [`Buffer`]: a pool of encoding buffers for each thread.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};

/// The largest capacity, in bytes, with which the first free buffer of a thread is kept.
///
/// The limit halves with each further free buffer, down to a sixty-fourth.
const MAX_KEPT_CAPACITY: usize = 64 * 1024;

/// The largest number of free buffers that a thread keeps.
const MAX_FREE: usize = 64;

thread_local! {
    /// The free buffers of this thread: usually one, or more if tasks hold buffers across an
    /// `await`.
    static FREE: Cell<Vec<Vec<u8>>> = const { Cell::new(Vec::new()) };
}

/// A buffer that is empty when it is taken, and returns to the pool of the thread that drops it.
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    #[inline]
    pub(crate) fn take() -> Self {
        let mut free = FREE.take();
        let buffer = free.pop().unwrap_or_default();
        FREE.set(free);
        Buffer(buffer)
    }
}

impl Drop for Buffer {
    #[inline]
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.0);
        buffer.clear();
        // While a thread shuts down, its pool may already be destroyed; the buffer is then freed.
        let _ = FREE.try_with(|list| {
            let mut free = list.take();
            if buffer.capacity() <= MAX_KEPT_CAPACITY >> free.len().min(6) && free.len() < MAX_FREE {
                free.push(buffer);
            }
            list.set(free);
        });
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    #[inline]
    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Buffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}
