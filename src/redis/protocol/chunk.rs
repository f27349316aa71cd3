//! [`Chunk`]: the piece of input that tokens are cut from, and how what they borrow from it is kept.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// A piece of a connection's input. Tokens borrow from it; what is to outlive it is kept by [`Chunk::keep`].
///
/// ```
/// use bytes::{Bytes, BytesMut};
/// use dogpile::internals::Chunk;
///
/// let input = *b"one two";
/// let mut arena = BytesMut::with_capacity(1024);
/// let mut chunk = Chunk::copying(&input, &mut arena);
/// assert_eq!(chunk.keep(&input[4..]), "two");
///
/// let input = Bytes::from_static(b"one two");
/// assert_eq!(Chunk::sharing(&input).keep(&input[4..]), "two");
/// ```
#[derive(Debug)]
pub struct Chunk<'a> {
    memory: ChunkMemory<'a>,
    /// What has not been cut into tokens yet.
    pub(crate) rest: &'a [u8],
}

#[derive(Debug)]
enum ChunkMemory<'a> {
    /// ChunkMemory that lives as long as somebody keeps a part of it.
    Shared(&'a Bytes),
    /// ChunkMemory that is read into again, and where copies of it go.
    Lent { input: &'a [u8], arena: &'a mut BytesMut, copy: Option<Bytes> },
}

impl<'a> Chunk<'a> {
    /// Input whose memory is shared with whoever keeps a part of it.
    #[inline]
    #[must_use]
    pub fn sharing(input: &'a Bytes) -> Self {
        Chunk { memory: ChunkMemory::Shared(input), rest: input }
    }

    /// Input in memory that is used again. What is kept is copied to the end of `arena`, whose memory is used again as
    /// soon as nobody holds any of it: in the long run nothing is allocated.
    #[inline]
    #[must_use]
    pub fn copying(input: &'a [u8], arena: &'a mut BytesMut) -> Self {
        Chunk { memory: ChunkMemory::Lent { input, arena, copy: None }, rest: input }
    }

    /// What has not been cut into tokens yet.
    #[inline]
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// A part of the chunk, kept. For one or two parts; a batch keeps [the whole](Chunk::whole).
    ///
    /// # Panics
    /// When `part` is not part of a chunk that is shared.
    #[inline(always)]
    #[must_use]
    pub fn keep(&mut self, part: &[u8]) -> Bytes {
        match &mut self.memory {
            ChunkMemory::Shared(input) => input.slice_ref(part),
            ChunkMemory::Lent { arena, .. } => {
                arena.extend_from_slice(part);
                arena.split().freeze()
            }
        }
    }

    /// All of the chunk, kept. It is copied once at most.
    #[inline]
    #[must_use]
    pub fn whole(&mut self) -> &Bytes {
        match &mut self.memory {
            ChunkMemory::Shared(input) => input,
            ChunkMemory::Lent { input, arena, copy } => copy.get_or_insert_with(|| {
                arena.extend_from_slice(input);
                arena.split().freeze()
            }),
        }
    }

    /// Where `part` stands in [the whole](Chunk::whole). Means nothing when it is not part of it.
    #[inline]
    #[must_use]
    pub fn place(&self, part: &[u8]) -> Range<usize> {
        let begin = match &self.memory {
            ChunkMemory::Shared(input) => input.as_ptr(),
            ChunkMemory::Lent { input, .. } => input.as_ptr(),
        };
        let start = (part.as_ptr() as usize).wrapping_sub(begin as usize);
        start..start.wrapping_add(part.len())
    }
}
