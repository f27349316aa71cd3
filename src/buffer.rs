//! One reused buffer a thread, to encode entries into.

use std::cell::Cell;

/// What a buffer may keep from one use to the next.
const KEEP: usize = 64 * 1024;

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lends the thread's buffer, empty. A call inside of `then` gets another, new one.
pub(crate) fn with_buffer<R>(then: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut buffer = BUFFER.take();
    buffer.clear();
    let result = then(&mut buffer);
    if buffer.capacity() <= KEEP {
        BUFFER.set(buffer);
    }
    result
}
