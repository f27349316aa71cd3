//! What a backend is asked and what it answers, as plain data: many entries at once, leases, when hashes expire.

use std::ops::Range;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::key::Key;
use crate::slice::Slice;

/// Entries to store together: one buffer and the places in it, reused from batch to batch.
///
/// ```
/// use dogpile::{Batch, Key};
///
/// let mut batch = Batch::new();
/// batch.push(Key::from("a"), |out| out.extend_from_slice(b"1"));
/// batch.push(Key::from(("h", "f")), |out| out.extend_from_slice(b"2"));
/// assert_eq!(batch.len(), 2);
/// assert_eq!((batch.key(1), batch.entry(1)), (Key::from(("h", "f")), &b"2"[..]));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

/// Where a member's parts stand in a batch's buffer, one behind the other.
#[derive(Clone, Debug)]
struct Place {
    start: usize,
    /// Where the field begins; `None` for a plain key.
    field: Option<usize>,
    entry: Range<usize>,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch with room for so many entries; their bytes take theirs as they come.
    #[must_use]
    pub fn with_capacity(entries: usize) -> Self {
        Batch { bytes: Vec::new(), places: Vec::with_capacity(entries) }
    }

    /// Adds what `write` appends to the buffer as the entry of `key`.
    pub fn push(&mut self, key: Key<'_>, write: impl FnOnce(&mut Vec<u8>)) {
        let written: Result<(), std::convert::Infallible> = self.try_push(key, |out| {
            write(out);
            Ok(())
        });
        let Ok(()) = written;
    }

    /// Adds what `write` appends to the buffer as the entry of `key`, or nothing if it fails.
    ///
    /// # Errors
    /// What `write` failed with.
    pub fn try_push<E>(&mut self, key: Key<'_>, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let start = self.bytes.len();
        let field = match key {
            Key::Plain(key) => {
                self.bytes.extend_from_slice(key);
                None
            }
            Key::Field { hash, field } => {
                self.bytes.extend_from_slice(hash);
                let at = self.bytes.len();
                self.bytes.extend_from_slice(field);
                Some(at)
            }
        };
        let entry = self.bytes.len();
        if let Err(error) = write(&mut self.bytes) {
            self.bytes.truncate(start);
            return Err(error);
        }
        // A `write` that cut the buffer short wrote an empty entry.
        self.bytes.resize(self.bytes.len().max(entry), 0);
        self.places.push(Place { start, field, entry: entry..self.bytes.len() });
        Ok(())
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The key of the entry at `index`.
    ///
    /// # Panics
    /// When there are not so many.
    #[must_use]
    pub fn key(&self, index: usize) -> Key<'_> {
        let Place { start, field, ref entry } = self.places[index];
        match field {
            None => Key::Plain(&self.bytes[start..entry.start]),
            Some(at) => Key::Field { hash: &self.bytes[start..at], field: &self.bytes[at..entry.start] },
        }
    }

    /// The bytes of the entry at `index`.
    ///
    /// # Panics
    /// When there are not so many.
    #[must_use]
    pub fn entry(&self, index: usize) -> &[u8] {
        &self.bytes[self.places[index].entry.clone()]
    }

    /// All keys and entries.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Key<'_>, &[u8])> {
        (0..self.len()).map(|index| (self.key(index), self.entry(index)))
    }

    /// Removes all entries but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        if let Some(first_gone) = self.places.get(len) {
            self.bytes.truncate(first_gone.start);
            self.places.truncate(len);
        }
    }

    /// Removes all entries and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.places.clear();
    }
}

/// The entries of many keys, in the keys' order: the buffers they arrived in, and the places in them.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::Found;
///
/// let mut found = Found::new();
/// found.reset(3);
/// found.put(0, Bytes::from_static(b"one"));
/// let buffer = Bytes::from_static(b"two three");
/// found.parts(&buffer).put(2, 4..9);
/// let entries: Vec<_> = found.iter().map(|entry| entry.map(|entry| entry.to_bytes())).collect();
/// assert_eq!(entries, [Some("one".into()), None, Some("three".into())]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Found {
    buffers: SmallVec<[Bytes; 2]>,
    entries: Vec<FoundAt>,
}

/// Where an entry stands; that none was found is told by a buffer that there cannot be.
#[derive(Clone, Copy, Debug)]
struct FoundAt {
    buffer: u32,
    start: u32,
    end: u32,
}

impl FoundAt {
    const NOWHERE: FoundAt = FoundAt { buffer: u32::MAX, start: 0, end: 0 };

    #[inline]
    fn slice(self, buffers: &[Bytes]) -> Option<Slice<'_>> {
        let buffer = buffers.get(self.buffer as usize)?;
        Some(Slice::from(buffer).part(&buffer[self.start as usize..self.end as usize]))
    }
}

impl Found {
    /// No entries, of no keys.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all entries and makes place for so many; nothing is found yet.
    pub fn reset(&mut self, keys: usize) {
        self.buffers.clear();
        self.entries.clear();
        self.entries.resize(keys, FoundAt::NOWHERE);
    }

    /// Puts the entry of the key at `index`.
    ///
    /// # Panics
    /// When there are not so many keys, or the entry has 4 GiB or more, eight times of what a server keeps.
    pub fn put(&mut self, index: usize, entry: Bytes) {
        if self.buffers.len() == self.buffers.capacity() {
            // One buffer an entry, so there will be as many as there are keys left.
            self.buffers.reserve(self.entries.len().saturating_sub(index));
        }
        let length = entry.len();
        self.buffers.push(entry);
        self.parts_of_last().put(index, 0..length);
    }

    /// To put entries that are parts of one buffer.
    ///
    /// # Panics
    /// When the buffer has 4 GiB or more.
    #[inline]
    pub fn parts(&mut self, buffer: &Bytes) -> Parts<'_> {
        // Entries come in the order in which they stand, so the buffer is most often the last one.
        if !matches!(self.buffers.last(), Some(last) if last.as_ptr() == buffer.as_ptr() && last.len() == buffer.len())
        {
            self.buffers.push(buffer.clone());
        }
        self.parts_of_last()
    }

    #[inline]
    fn parts_of_last(&mut self) -> Parts<'_> {
        let length = self.buffers.last().map_or(0, Bytes::len);
        let length = u32::try_from(length).expect("a buffer of entries has less than 4 GiB");
        // There is no memory for so many buffers.
        #[allow(clippy::cast_possible_truncation)]
        let buffer = (self.buffers.len() - 1) as u32;
        Parts { entries: &mut self.entries, buffer, length }
    }

    /// The entry of the key at `index`, if one was found.
    ///
    /// # Panics
    /// When there are not so many keys.
    #[inline]
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Slice<'_>> {
        self.entries[index].slice(&self.buffers)
    }

    /// Leaves away what `open` says each entry of these keys begins with; all of it where that says `None`.
    pub(crate) fn open(&mut self, keys: impl Iterator<Item = usize>, open: impl Fn(&[u8]) -> Option<usize>) {
        for index in keys {
            let Some(entry) = self.get(index) else { continue };
            let skip = open(&entry).map(|skip| skip.min(entry.len()));
            #[allow(clippy::cast_possible_truncation)] // no more than the entry has
            match skip {
                Some(skip) => self.entries[index].start += skip as u32,
                None => self.entries[index] = FoundAt::NOWHERE,
            }
        }
    }

    /// How many keys were asked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no keys were asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries in the keys' order.
    #[inline]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<Slice<'_>>> {
        let buffers = &self.buffers[..];
        self.entries.iter().map(move |at| at.slice(buffers))
    }
}

/// Puts entries that are parts of one buffer, made by [`Found::parts`].
#[derive(Debug)]
pub struct Parts<'f> {
    entries: &'f mut [FoundAt],
    buffer: u32,
    length: u32,
}

impl Parts<'_> {
    /// Puts the entry of the key at `index`, which is this part of the buffer.
    ///
    /// # Panics
    /// When there are not so many keys, or the buffer does not go so far.
    #[inline]
    pub fn put(&mut self, index: usize, part: Range<usize>) {
        assert!(part.start <= part.end && part.end <= self.length as usize, "a part is inside of its buffer");
        #[allow(clippy::cast_possible_truncation)]
        let (start, end) = (part.start as u32, part.end as u32);
        self.entries[index] = FoundAt { buffer: self.buffer, start, end };
    }
}
