//! Buffers to encode entries into, kept for each thread and used again.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};

/// What the free buffers of a thread may hold together, in bytes.
const KEEP: usize = 64 * 1024;

thread_local! {
    static FREE: Cell<Free> = const { Cell::new(Free { buffers: Vec::new(), bytes: 0 }) };
}

/// The buffers that a thread does not use now: one most often; more where tasks hold some while they wait.
#[derive(Default)]
struct Free {
    buffers: Vec<Vec<u8>>,
    /// Their capacities together.
    bytes: usize,
}

/// An empty buffer on loan. It goes back to the thread that drops it.
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    #[inline]
    pub(crate) fn take() -> Self {
        let mut free = FREE.take();
        let buffer = free.buffers.pop().unwrap_or_default();
        free.bytes -= buffer.capacity();
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
            if free.bytes + buffer.capacity() <= KEEP {
                free.bytes += buffer.capacity();
                free.buffers.push(buffer);
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
