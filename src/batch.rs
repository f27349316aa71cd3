//! [`Batch`] and [`Found`]: the entries that a backend writes and reads, many at a time.

use std::ops::Range;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::key::Key;
use crate::slice::Slice;

/// Entries to store together, with their keys.
///
/// All bytes are in one buffer, which is reused after [`clear`](Batch::clear).
///
/// ```
/// use dogpile::backend::Batch;
/// use dogpile::Key;
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
    spans: Vec<BatchSpan>,
}

/// The position of a key and its entry, which are adjacent in the buffer of a batch.
#[derive(Clone, Debug)]
struct BatchSpan {
    start: usize,
    /// The offset at which the field starts; `None` for a plain key.
    field: Option<usize>,
    entry: Range<usize>,
}

impl Batch {
    /// Creates an empty batch. Does not allocate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty batch with capacity for the positions of `entries` entries.
    ///
    /// The buffer for their bytes grows as they are added.
    ///
    /// ```
    /// use dogpile::backend::Batch;
    ///
    /// assert!(Batch::with_capacity(100).is_empty());
    /// ```
    #[must_use]
    pub fn with_capacity(entries: usize) -> Self {
        Batch { bytes: Vec::new(), spans: Vec::with_capacity(entries) }
    }

    /// Adds an entry for `key`, consisting of the bytes that `write` appends to the buffer.
    ///
    /// `write` must not change the bytes that are already in the buffer.
    pub fn push(&mut self, key: Key<'_>, write: impl FnOnce(&mut Vec<u8>)) {
        let written: Result<(), std::convert::Infallible> = self.try_push(key, |out| {
            write(out);
            Ok(())
        });
        let Ok(()) = written;
    }

    /// Adds an entry for `key`, consisting of the bytes that `write` appends, unless `write` fails.
    ///
    /// `write` must not change the bytes that are already in the buffer.
    ///
    /// # Errors
    ///
    /// The error of `write`. The batch is then unchanged.
    ///
    /// ```
    /// use dogpile::Key;
    /// use dogpile::backend::Batch;
    ///
    /// let mut batch = Batch::new();
    /// let result = batch.try_push(Key::from("user-15"), |out| {
    ///     out.extend_from_slice(b"half of an en");
    ///     Err("cannot encode the value")
    /// });
    /// assert_eq!(result, Err("cannot encode the value"));
    /// assert!(batch.is_empty());
    /// ```
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
        // If `write` truncated the buffer into the key, pad the key with zeros; the entry is then
        // empty.
        self.bytes.resize(self.bytes.len().max(entry), 0);
        self.spans.push(BatchSpan { start, field, entry: entry..self.bytes.len() });
        Ok(())
    }

    /// Returns the number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Returns `true` if the batch has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Returns the key of the entry at `index`.
    ///
    /// # Panics
    ///
    /// If `index` is out of bounds.
    #[must_use]
    pub fn key(&self, index: usize) -> Key<'_> {
        let BatchSpan { start, field, ref entry } = self.spans[index];
        match field {
            None => Key::Plain(&self.bytes[start..entry.start]),
            Some(at) => Key::Field { hash: &self.bytes[start..at], field: &self.bytes[at..entry.start] },
        }
    }

    /// Returns the bytes of the entry at `index`.
    ///
    /// # Panics
    ///
    /// If `index` is out of bounds.
    #[must_use]
    pub fn entry(&self, index: usize) -> &[u8] {
        &self.bytes[self.spans[index].entry.clone()]
    }

    /// Returns an iterator over all keys and their entries, in the order in which they were added.
    ///
    /// ```
    /// use dogpile::Key;
    /// use dogpile::backend::Batch;
    ///
    /// let mut batch = Batch::new();
    /// batch.push(Key::from("user-15"), |out| out.extend_from_slice(b"entry"));
    /// for (key, entry) in batch.iter() {
    ///     println!("{key}: {} bytes", entry.len());
    /// }
    /// # assert_eq!(batch.iter().len(), 1);
    /// ```
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Key<'_>, &[u8])> {
        (0..self.len()).map(|index| (self.key(index), self.entry(index)))
    }

    /// Keeps the first `len` entries and removes the others.
    ///
    /// If the batch has no more than `len` entries, nothing changes.
    ///
    /// ```
    /// use dogpile::Key;
    /// use dogpile::backend::Batch;
    ///
    /// let mut batch = Batch::new();
    /// batch.push(Key::from("a"), |out| out.push(1));
    /// batch.push(Key::from("b"), |out| out.push(2));
    /// batch.truncate(1);
    /// assert_eq!((batch.len(), batch.key(0)), (1, Key::from("a")));
    /// ```
    pub fn truncate(&mut self, len: usize) {
        if let Some(first_removed) = self.spans.get(len) {
            self.bytes.truncate(first_removed.start);
            self.spans.truncate(len);
        }
    }

    /// Removes all entries and keeps the allocated memory.
    ///
    /// ```
    /// use dogpile::Key;
    /// use dogpile::backend::Batch;
    ///
    /// let mut batch = Batch::new();
    /// batch.push(Key::from("a"), |out| out.push(1));
    /// batch.clear();
    /// assert!(batch.is_empty());
    /// ```
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.spans.clear();
    }
}

/// The result of reading many keys: for each key, in order, its entry or `None`.
///
/// Entries are parts of the buffers in which they arrived, and are not copied. A backend fills a
/// `Found` that it is given: it first calls [`reset`](Found::reset), then [`put`](Found::put) for
/// each entry with a buffer of its own, or [`parts`](Found::parts) for entries that share a buffer.
///
/// ```
/// use bytes::Bytes;
/// use dogpile::backend::Found;
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
    entries: Vec<FoundSpan>,
}

/// The position of an entry; an invalid buffer index means that no entry was found.
#[derive(Clone, Copy, Debug)]
struct FoundSpan {
    buffer: u32,
    start: u32,
    end: u32,
}

impl FoundSpan {
    const NOT_FOUND: FoundSpan = FoundSpan { buffer: u32::MAX, start: 0, end: 0 };

    #[inline]
    fn slice(self, buffers: &[Bytes]) -> Option<Slice<'_>> {
        let buffer = buffers.get(self.buffer as usize)?;
        Some(Slice::from(buffer).part(&buffer[self.start as usize..self.end as usize]))
    }
}

impl Found {
    /// Creates an empty result, for no keys. Does not allocate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Removes all entries and prepares for the results of `keys` keys, none of which is found yet.
    ///
    /// Keeps the allocated memory.
    pub fn reset(&mut self, keys: usize) {
        self.buffers.clear();
        self.entries.clear();
        self.entries.resize(keys, FoundSpan::NOT_FOUND);
    }

    /// Sets the entry of the key at `index`.
    ///
    /// # Panics
    ///
    /// If `index` is out of bounds, or if the entry has 4 GiB or more, eight times the size that a
    /// server stores.
    pub fn put(&mut self, index: usize, entry: Bytes) {
        if self.buffers.len() == self.buffers.capacity() {
            // A caller of `put` has one buffer per entry, so reserve one for each remaining key.
            self.buffers.reserve(self.entries.len().saturating_sub(index));
        }
        let length = entry.len();
        self.buffers.push(entry);
        self.parts_of_last().put(index, 0..length);
    }

    /// Returns a handle that sets entries which are parts of `buffer`.
    ///
    /// The buffer is shared, not copied.
    ///
    /// # Panics
    ///
    /// If the buffer has 4 GiB or more.
    #[inline]
    pub fn parts(&mut self, buffer: &Bytes) -> FoundParts<'_> {
        // Entries usually arrive in buffer order, so comparing with the last buffer is enough to
        // reuse it.
        if !matches!(self.buffers.last(), Some(last) if last.as_ptr() == buffer.as_ptr() && last.len() == buffer.len())
        {
            self.buffers.push(buffer.clone());
        }
        self.parts_of_last()
    }

    #[inline]
    fn parts_of_last(&mut self) -> FoundParts<'_> {
        let length = self.buffers.last().map_or(0, Bytes::len);
        let length = u32::try_from(length).expect("a buffer of entries has less than 4 GiB");
        // The memory for `u32::MAX` buffers does not exist.
        #[allow(clippy::cast_possible_truncation)]
        let buffer = (self.buffers.len() - 1) as u32;
        FoundParts { entries: &mut self.entries, buffer, length }
    }

    /// Returns the entry of the key at `index`, or `None` if it was not found.
    ///
    /// # Panics
    ///
    /// If `index` is out of bounds.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use dogpile::backend::Found;
    ///
    /// let mut found = Found::new();
    /// found.reset(2);
    /// found.put(0, Bytes::from_static(b"one"));
    /// assert_eq!(found.get(0).as_deref(), Some(&b"one"[..]));
    /// assert!(found.get(1).is_none());
    /// ```
    #[inline]
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Slice<'_>> {
        self.entries[index].slice(&self.buffers)
    }

    /// Strips a prefix from each entry of the keys at the indexes `keys`.
    ///
    /// `prefix_len` returns the length of the prefix, or `None` to treat the key as not found.
    pub(crate) fn open(&mut self, keys: impl Iterator<Item = usize>, prefix_len: impl Fn(&[u8]) -> Option<usize>) {
        for index in keys {
            let Some(entry) = self.get(index) else { continue };
            let skip = prefix_len(&entry).map(|skip| skip.min(entry.len()));
            #[allow(clippy::cast_possible_truncation)] // at most the length of the entry
            match skip {
                Some(skip) => self.entries[index].start += skip as u32,
                None => self.entries[index] = FoundSpan::NOT_FOUND,
            }
        }
    }

    /// Returns the number of keys, found or not.
    ///
    /// ```
    /// use dogpile::backend::Found;
    ///
    /// let mut found = Found::new();
    /// found.reset(3);
    /// assert_eq!(found.len(), 3);
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns `true` if the result is for no keys at all.
    ///
    /// Whether entries were found does not matter.
    ///
    /// ```
    /// use dogpile::backend::Found;
    ///
    /// let mut found = Found::new();
    /// assert!(found.is_empty());
    /// found.reset(3);
    /// assert!(!found.is_empty());
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns an iterator over the results in the order of the keys.
    #[inline]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<Slice<'_>>> {
        let buffers = &self.buffers[..];
        self.entries.iter().map(move |at| at.slice(buffers))
    }
}

/// A handle that sets entries which are parts of one buffer, created by [`Found::parts`].
#[derive(Debug)]
pub struct FoundParts<'f> {
    entries: &'f mut [FoundSpan],
    buffer: u32,
    length: u32,
}

impl FoundParts<'_> {
    /// Sets the entry of the key at `index` to the bytes of the buffer in the range `part`.
    ///
    /// # Panics
    ///
    /// If `index` is out of bounds, or if `part` is not a range within the buffer.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use dogpile::backend::Found;
    ///
    /// let buffer = Bytes::from_static(b"one two");
    /// let mut found = Found::new();
    /// found.reset(2);
    /// let mut parts = found.parts(&buffer);
    /// parts.put(0, 0..3);
    /// parts.put(1, 4..7);
    /// assert_eq!(found.get(1).as_deref(), Some(&b"two"[..]));
    /// ```
    #[inline]
    pub fn put(&mut self, index: usize, part: Range<usize>) {
        assert!(
            part.start <= part.end && part.end <= self.length as usize,
            "the part of an entry is within its buffer"
        );
        #[allow(clippy::cast_possible_truncation)]
        let (start, end) = (part.start as u32, part.end as u32);
        self.entries[index] = FoundSpan { buffer: self.buffer, start, end };
    }
}
