//! [`Slice`]: a borrowed part of a shared buffer, which can be kept without copying.

use std::ops::Deref;

use bytes::Bytes;

/// A borrowed part of a shared buffer.
///
/// Codecs decode from it: they read it as a `&[u8]`, and call [`to_bytes`](Slice::to_bytes) to keep
/// bytes beyond the borrow without copying them.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::codec::Slice;
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
    /// Returns the bytes, with the lifetime of the borrowed buffer.
    ///
    /// Dereferencing the slice yields the same bytes with the shorter lifetime of the `Slice`
    /// itself.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use dogpile::codec::Slice;
    ///
    /// fn first_half<'a>(slice: Slice<'a>) -> &'a [u8] {
    ///     let bytes = slice.as_bytes();
    ///     &bytes[..bytes.len() / 2]
    /// }
    ///
    /// let buffer = Bytes::from_static(b"one two ");
    /// assert_eq!(first_half(Slice::from(&buffer)), b"one ");
    /// ```
    #[inline]
    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the bytes as owned [`Bytes`] that share the memory of the buffer.
    ///
    /// The whole buffer stays in memory as long as the result lives.
    ///
    /// # Panics
    ///
    /// If the slice was created by [`part`](Slice::part) from bytes that are outside of its buffer.
    ///
    /// # Cost
    ///
    /// Increments a reference count; does not copy the bytes.
    #[inline]
    #[must_use]
    pub fn to_bytes(self) -> Bytes {
        if self.bytes.is_empty() {
            return Bytes::new();
        }
        let start = self.bytes.as_ptr() as usize - self.buffer.as_ptr() as usize;
        self.buffer.slice(start..start + self.bytes.len())
    }

    /// Returns the whole buffer that the bytes are part of.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use dogpile::codec::Slice;
    ///
    /// let buffer = Bytes::from_static(b"one two");
    /// let two = Slice::from(&buffer).part(&buffer[4..]);
    /// assert_eq!(two.buffer(), "one two");
    /// ```
    #[inline]
    #[must_use]
    pub fn buffer(self) -> &'a Bytes {
        self.buffer
    }

    /// Returns a slice of `part`, which must be bytes of the same buffer.
    ///
    /// # Panics
    ///
    /// Never, but [`to_bytes`](Slice::to_bytes) of the result panics if `part` is outside of the
    /// buffer.
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
