//! Buffers to encode entries into, kept for each thread and used again.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};

/// What the first of the free buffers of a thread may keep, in bytes; each further one half of that, and a sixty-fourth
/// at least.
const KEEP: usize = 64 * 1024;

/// How many are kept.
const MOST: usize = 64;

thread_local! {
    /// The buffers that this thread does not use now: one most often; more where tasks hold some while they wait.
    static FREE: Cell<Vec<Vec<u8>>> = const { Cell::new(Vec::new()) };
}

/// An empty buffer on loan. It goes back to the thread that drops it.
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
        // A thread that ends has no list any more.
        let _ = FREE.try_with(|list| {
            let mut free = list.take();
            if buffer.capacity() <= KEEP >> free.len().min(6) && free.len() < MOST {
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
