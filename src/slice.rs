//! [`Slice`]: bytes of a shared buffer, borrowed, and kept without copying where that is wanted.

use std::ops::Deref;

use bytes::Bytes;

/// Some bytes of a shared buffer. Reading them costs nothing; [`Slice::to_bytes`] keeps them without copying.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::Slice;
///
/// let buffer = Bytes::from_static(b"one two");
/// let two = Slice::from(&buffer).part(&buffer[4..]);
/// assert_eq!(two.to_bytes(), "two");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    bytes: &'a [u8],
    buffer: &'a Bytes,
}

impl<'a> Slice<'a> {
    /// The bytes, for as long as the buffer is borrowed.
    #[inline]
    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// The bytes as an owner of their own, which shares the buffer's memory.
    #[inline]
    #[must_use]
    pub fn to_bytes(self) -> Bytes {
        if self.bytes.is_empty() {
            return Bytes::new();
        }
        let start = self.bytes.as_ptr() as usize - self.buffer.as_ptr() as usize;
        self.buffer.slice(start..start + self.bytes.len())
    }

    /// The buffer that the bytes are part of.
    #[inline]
    #[must_use]
    pub fn buffer(self) -> &'a Bytes {
        self.buffer
    }

    /// Some of these bytes.
    ///
    /// # Panics
    /// Not here, but when it is [kept](Slice::to_bytes), if `part` is not part of the same buffer.
    #[inline]
    #[must_use]
    pub fn part(self, part: &'a [u8]) -> Slice<'a> {
        Slice { bytes: part, buffer: self.buffer }
    }
}

impl<'a> From<&'a Bytes> for Slice<'a> {
    #[inline]
    fn from(buffer: &'a Bytes) -> Self {
        Slice { bytes: buffer, buffer }
    }
}

impl Deref for Slice<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.bytes
    }
}
