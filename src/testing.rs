//! Conformance suites for backends, codecs and locks of your own. Feature `testing`.
//!
//! Each suite panics at the first thing that is not as its trait promises, with a message that says what. The crate's
//! own backends, codecs and locks pass them.
//!
//! ```
//! use dogpile::{Memory, Msgpack, Seconds, testing};
//!
//! testing::backend(&Memory::new(64 << 20), "suite:");
//! testing::codec(&Msgpack::<Seconds>::new(), &[0_u64, 1, u64::MAX]);
//! ```

use std::fmt::Debug;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
#[cfg(feature = "tokio")]
use tokio::runtime::Runtime;

#[cfg(feature = "tokio")]
use crate::backend::AsyncBackend;
use crate::backend::Backend;
use crate::batch::{Batch, Found};
use crate::codec::Codec;
#[cfg(feature = "tokio")]
use crate::error::Error;
use crate::key::{Key, KeyBuf};
use crate::lock::Lock;
#[cfg(feature = "tokio")]
use crate::lock::{AsyncLock, Attempt, LockSettings};
use crate::slice::Slice;
use crate::time::Timestamp;

/// The keys of a suite: those of other suites and users stay untouched.
struct Names<'a>(&'a str);

impl Names<'_> {
    fn plain(&self, name: &str) -> KeyBuf {
        KeyBuf::new().text(self.0).text(name)
    }

    fn field(&self, hash: &str, field: &str) -> KeyBuf {
        KeyBuf::new().text(self.0).text("hash:").text(hash).next_field().text(field)
    }
}

/// Checks a backend. All keys begin with `prefix`; none of them may exist. Takes about a third of a second, for TTLs to
/// end.
///
/// # Panics
/// When the backend does not do what [`Backend`] promises.
pub fn backend(backend: &impl Backend, prefix: &str) {
    let names = Names(prefix);
    single_entries(backend, &names);
    many_entries(backend, &names);
    nothing_at_all(backend);
    ttls(backend, &names);
    held_entries_stay(backend, &names);
    many_threads(backend, &names);
}

fn get(backend: &impl Backend, key: &KeyBuf) -> Option<Bytes> {
    backend.get(key.as_key()).unwrap_or_else(|error| panic!("get of {key} fails: {error}"))
}

fn set(backend: &impl Backend, key: &KeyBuf, entry: &[u8], ttl: Option<Duration>) {
    backend.set(key.as_key(), entry, ttl).unwrap_or_else(|error| panic!("set of {key} fails: {error}"));
}

fn delete(backend: &impl Backend, keys: &[&KeyBuf]) {
    let keys: Vec<Key<'_>> = keys.iter().map(|key| key.as_key()).collect();
    backend.delete_many(&keys).unwrap_or_else(|error| panic!("delete of {keys:?} fails: {error}"));
}

fn single_entries(backend: &impl Backend, names: &Names<'_>) {
    let large: Vec<u8> = (0..1_000_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    let entries: [&[u8]; 5] = [b"entry", b"", b"\r\n$-1\r\n\0\xff", b"other", &large];
    for key in
        [names.plain("key"), names.plain(""), names.field("h", "field"), names.field("h", ""), names.field("", "")]
    {
        assert_eq!(get(backend, &key), None, "{key} is there before it was written");
        for entry in entries {
            set(backend, &key, entry, None);
            assert_eq!(get(backend, &key).as_deref(), Some(entry), "{key} is not what was written");
        }
        delete(backend, &[&key]);
        assert_eq!(get(backend, &key), None, "{key} is there after it was deleted");
    }
    // Keys that a careless join of hash and field would confuse.
    let keys = [names.field("a", "bc"), names.field("ab", "c"), names.field("a", "b"), names.plain("hash:a,bc")];
    for (at, key) in keys.iter().enumerate() {
        set(backend, key, &[u8::try_from(at).expect("is small")], None);
    }
    for (at, key) in keys.iter().enumerate() {
        assert_eq!(
            get(backend, key).as_deref(),
            Some(&[u8::try_from(at).expect("is small")][..]),
            "{key} was mistaken"
        );
    }
    delete(backend, &keys.each_ref());
}

fn many_entries(backend: &impl Backend, names: &Names<'_>) {
    let mut keys: Vec<KeyBuf> = (0..40).map(|at| names.plain(&format!("many{at}"))).collect();
    keys.extend((0..60).map(|at| names.field(&format!("many{}", at % 12), &at.to_string())));
    // Neither sorted nor grouped by hash.
    let order: Vec<&KeyBuf> = (0..keys.len()).map(|at| &keys[at * 37 % keys.len()]).collect();
    let mut batch = Batch::new();
    for (at, key) in order.iter().enumerate() {
        batch.push(key.as_key(), |out| out.extend_from_slice(format!("old{at}").as_bytes()));
    }
    for (at, key) in order.iter().enumerate().filter(|(at, _)| at % 4 != 0) {
        batch.push(key.as_key(), |out| out.extend_from_slice(format!("entry{at}").as_bytes()));
    }
    backend.set_many(&batch, None).expect("set_many of mixed keys");

    let absent = [names.plain("absent"), names.field("absent", "1"), names.field("many0", "absent")];
    let mut asked: Vec<Key<'_>> = Vec::new();
    let mut expected: Vec<Option<String>> = Vec::new();
    for (at, key) in order.iter().enumerate() {
        asked.push(key.as_key());
        expected.push(Some(if at % 4 == 0 { format!("old{at}") } else { format!("entry{at}") }));
        if at % 7 == 0 {
            asked.extend([absent[at % 3].as_key(), order[at / 2].as_key()]);
            let twin =
                expected[asked.iter().position(|key| *key == order[at / 2].as_key()).expect("was asked")].clone();
            expected.extend([None, twin]);
        }
    }
    let mut found = Found::new();
    found.reset(3);
    found.put(0, Bytes::from_static(b"from before"));
    backend.get_many(&asked, &mut found).expect("get_many of mixed keys");
    let found: Vec<Option<String>> =
        found.iter().map(|entry| entry.map(|entry| String::from_utf8_lossy(&entry).into_owned())).collect();
    assert_eq!(found, expected, "get_many does not answer in its caller's order");

    delete(backend, &order[..50]);
    let mut found = Found::new();
    let all: Vec<Key<'_>> = order.iter().map(|key| key.as_key()).collect();
    backend.get_many(&all, &mut found).expect("get_many");
    assert!((0..50).all(|at| found.get(at).is_none()), "delete_many left some");
    assert!((50..100).all(|at| found.get(at).is_some()), "delete_many took others");
    delete(backend, &order);
}

fn nothing_at_all(backend: &impl Backend) {
    let mut found = Found::new();
    found.reset(2);
    backend.get_many(&[], &mut found).expect("get_many of no keys");
    assert!(found.is_empty(), "get_many of no keys found some");
    backend.set_many(&Batch::new(), None).expect("set_many of nothing");
    backend.delete_many(&[]).expect("delete_many of no keys");
}

fn ttls(backend: &impl Backend, names: &Names<'_>) {
    let short = Some(Duration::from_millis(150));
    let (alone, batched, kept, renewed) =
        (names.plain("ttl1"), names.plain("ttl2"), names.plain("ttl3"), names.plain("ttl4"));
    let begun = Instant::now();
    set(backend, &alone, b"entry", short);
    set(backend, &kept, b"entry", short);
    set(backend, &kept, b"entry", None);
    set(backend, &renewed, b"entry", short);
    set(backend, &renewed, b"entry", Some(Duration::from_secs(60)));
    let mut batch = Batch::new();
    batch.push(batched.as_key(), |out| out.extend_from_slice(b"entry"));
    backend.set_many(&batch, short).expect("set_many with a TTL");
    let found = [&alone, &batched].map(|key| get(backend, key).is_some());
    if begun.elapsed() < Duration::from_millis(100) {
        assert_eq!(found, [true, true], "an entry is gone before its TTL is over");
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(get(backend, &alone), None, "an entry outlives its TTL");
    assert_eq!(get(backend, &batched), None, "an entry of a batch outlives its TTL");
    assert!(get(backend, &kept).is_some(), "an entry keeps the TTL of the one it replaced");
    assert!(get(backend, &renewed).is_some(), "an entry keeps the TTL of the one it replaced");
    delete(backend, &[&kept, &renewed]);
}

fn held_entries_stay(backend: &impl Backend, names: &Names<'_>) {
    let key = names.plain("held");
    set(backend, &key, b"first", None);
    let held = get(backend, &key).expect("was written");
    let mut later = Vec::new();
    for at in 0..1000_u32 {
        let entry = at.to_string();
        set(backend, &key, entry.as_bytes(), None);
        later.push((entry, get(backend, &key).expect("was written")));
    }
    assert_eq!(held, "first", "an entry changed while it was held");
    assert!(later.iter().all(|(entry, held)| held == entry), "an entry changed while it was held");
    delete(backend, &[&key]);
}

fn many_threads(backend: &impl Backend, names: &Names<'_>) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let own = [names.plain(&format!("thread{thread}")), names.field("threads", &thread.to_string())];
                for at in 0..200 {
                    let entry = format!("{thread}-{at}");
                    for key in &own {
                        set(backend, key, entry.as_bytes(), None);
                    }
                    for key in &own {
                        assert_eq!(get(backend, key).as_deref(), Some(entry.as_bytes()), "threads got mixed up");
                    }
                }
                delete(backend, &own.each_ref());
            });
        }
    });
}

/// Checks a codec with some values: they come back as they were, whatever stands in the buffer before them, and no
/// damage to an entry makes decoding panic.
///
/// # Panics
/// When the codec does not do what [`Codec`] promises.
pub fn codec<V: PartialEq + Debug>(codec: &impl Codec<V>, values: &[V]) {
    for value in values {
        let created = Timestamp::from_micros(1_471_113_698_761_270);
        let mut out = b"before".to_vec();
        codec.encode(value, created, &mut out).unwrap_or_else(|error| panic!("{value:?} is not written: {error}"));
        assert_eq!(&out[..6], b"before", "encoding {value:?} changes what stands before it");
        let entry = Bytes::from(out.split_off(6));
        let (read, meta) =
            codec.decode(Slice::from(&entry)).unwrap_or_else(|error| panic!("{value:?} is not read back: {error}"));
        assert_eq!(read, *value, "the value that was read is not the one that was written");
        if let Some(read) = meta.created {
            assert!(read <= created && created.since(read) < Duration::from_secs(1), "the time {read:?} is wrong");
        }
        for end in 0..entry.len().min(300) {
            let _ = codec.decode(Slice::from(&entry.slice(..end)));
        }
        for at in 0..entry.len().min(300) {
            for damage in [0_u8, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = entry.to_vec();
                damaged[at] ^= damage;
                let _ = codec.decode(Slice::from(&Bytes::from(damaged)));
            }
        }
    }
}

/// Checks a lock that excludes others, by two instances of it that stand for two processes. All keys begin with
/// `prefix`.
///
/// # Panics
/// When the lock does not do what [`Lock`] promises.
pub fn lock<B: Backend, L: Lock<B>>(backend: &B, ours: &L, theirs: &L, prefix: &str) {
    ours.check().expect("the lock's settings can work");
    let names = Names(prefix);
    for key in [names.plain("lock"), names.field("lock", "field")] {
        let key = key.as_key();
        let is_locked = |lock: &L| lock.is_locked(backend, key).expect("is_locked");
        assert!(!is_locked(ours), "{key} is locked before anybody locked it");
        let guard = ours.try_lock(backend, key).expect("try_lock").expect("nobody else has it");
        assert!(is_locked(theirs), "{key} is not locked for another process");
        assert!(theirs.try_lock(backend, key).expect("try_lock").is_none(), "two processes have the lock on {key}");
        drop(guard);
        assert!(!is_locked(theirs), "{key} is locked after its guard was dropped");
        let guard = theirs.try_lock(backend, key).expect("try_lock");
        assert!(guard.is_some(), "{key} cannot be locked after its guard was dropped");
    }

    // What is stored under the lock is there once the lock is free.
    let (first, second) = (names.plain("locked1"), names.field("locked", "2"));
    let keys = [first.as_key(), second.as_key()];
    let taken = theirs.try_lock(backend, keys[1]).expect("try_lock");
    let attempts = ours.try_lock_and_read(backend, &keys).expect("try_lock_and_read");
    let got: Vec<bool> = attempts.iter().map(|attempt| attempt.guard.is_some()).collect();
    assert_eq!(got, [true, false], "of two locks the free one is taken");
    assert!(attempts.iter().all(|attempt| attempt.entry.is_none()), "nothing was stored yet");
    let mut batch = Batch::new();
    batch.push(keys[0], |out| out.extend_from_slice(b"entry"));
    let guards = attempts.into_iter().filter_map(|attempt| attempt.guard).collect();
    ours.store_and_release(backend, guards, &batch, None).expect("store_and_release");
    drop(taken);
    let mut attempts = theirs.try_lock_and_read(backend, &keys).expect("try_lock_and_read");
    assert!(attempts.iter().all(|attempt| attempt.guard.is_some()), "storing releases");
    assert_eq!(attempts[0].entry.as_deref(), Some(&b"entry"[..]), "who locks next sees what was stored");
    assert_eq!(attempts.remove(1).entry, None);
    drop(attempts);
    backend.delete_many(&keys).expect("delete_many");

    for key in [names.plain("read"), names.field("read", "field")] {
        let key = key.as_key();
        let read = |lock: &L| lock.read_or_lock(backend, key).expect("read_or_lock");
        let attempt = read(ours);
        assert!(attempt.entry.is_none(), "there is nothing at {key}");
        let guard = attempt.guard.unwrap_or_else(|| panic!("{key} is missing, and its lock free"));
        let attempt = read(theirs);
        assert!(attempt.entry.is_none() && attempt.guard.is_none(), "two processes have the lock on {key}");
        let mut watch = theirs.watch(backend, key);
        if let Some(watch) = &mut watch {
            assert!(watch.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending(), "{key} is held");
        }
        let mut batch = Batch::new();
        batch.push(key, |out| out.extend_from_slice(b"entry"));
        ours.store_and_release(backend, vec![guard], &batch, None).expect("store_and_release");
        if let Some(watch) = watch {
            comes(watch, &format!("nobody tells that {key} was released"));
        }
        if let Some(watch) = theirs.watch(backend, key) {
            comes(watch, &format!("nobody tells that {key} is free"));
        }
        let attempt = read(theirs);
        assert_eq!(attempt.entry.as_deref(), Some(&b"entry"[..]));
        assert!(attempt.guard.is_none(), "what is there needs no lock");
        backend.delete_many(&[key]).expect("delete_many");
    }
}

/// Waits for somebody to tell.
fn comes(mut watch: crate::backend::Watch, or: &str) {
    struct Unparks(std::thread::Thread);
    impl Wake for Unparks {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unparks(std::thread::current())));
    let deadline = Instant::now() + Duration::from_secs(10);
    while watch.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "{or}");
        std::thread::park_timeout(left);
    }
}

/// Checks a backend of tasks, as [`backend`] does, in a runtime with I/O and timers.
///
/// # Panics
/// When the backend does not do what [`AsyncBackend`] promises.
#[cfg(feature = "tokio")]
pub fn backend_async(backend: &impl AsyncBackend, runtime: &Runtime, prefix: &str) {
    self::backend(&Awaited { inner: backend, runtime }, prefix);
}

/// Checks a lock of tasks, as [`lock`] does, in a runtime with I/O and timers.
///
/// # Panics
/// When a lock does not do what [`AsyncLock`] promises.
#[cfg(feature = "tokio")]
pub fn lock_async<B: AsyncBackend, L: AsyncLock<B>>(
    backend: &B,
    ours: &L,
    theirs: &L,
    runtime: &Runtime,
    prefix: &str,
) {
    let lock = |inner| Awaited { inner, runtime };
    self::lock(&Awaited { inner: backend, runtime }, &lock(ours), &lock(theirs), prefix);
}

/// What threads see of something that tasks use.
#[cfg(feature = "tokio")]
struct Awaited<'a, T> {
    inner: &'a T,
    runtime: &'a Runtime,
}

#[cfg(feature = "tokio")]
impl<B: AsyncBackend> Backend for Awaited<'_, B> {
    fn get(&self, key: Key<'_>) -> Result<Option<Bytes>, Error> {
        self.runtime.block_on(self.inner.get_async(key))
    }

    fn get_many(&self, keys: &[Key<'_>], found: &mut Found) -> Result<(), Error> {
        self.runtime.block_on(self.inner.get_many_async(keys, found))
    }

    fn set(&self, key: Key<'_>, entry: &[u8], ttl: Option<Duration>) -> Result<(), Error> {
        self.runtime.block_on(self.inner.set_async(key, entry, ttl))
    }

    fn set_many(&self, batch: &Batch, ttl: Option<Duration>) -> Result<(), Error> {
        self.runtime.block_on(self.inner.set_many_async(batch, ttl))
    }

    fn max_entry(&self) -> usize {
        self.inner.max_entry_async()
    }

    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        self.runtime.block_on(self.inner.delete_many_async(keys))
    }
}

#[cfg(feature = "tokio")]
impl<L: LockSettings> LockSettings for Awaited<'_, L> {
    const ONLY_THIS_REGION: bool = L::ONLY_THIS_REGION;

    fn reads_and_locks(&self) -> bool {
        self.inner.reads_and_locks()
    }

    fn check(&self) -> Result<(), Error> {
        self.inner.check()
    }
}

#[cfg(feature = "tokio")]
impl<B: AsyncBackend, L: AsyncLock<B>> Lock<Awaited<'_, B>> for Awaited<'_, L> {
    type Guard = InRuntime<L::AsyncGuard>;

    fn try_lock(&self, backend: &Awaited<'_, B>, key: Key<'_>) -> Result<Option<Self::Guard>, Error> {
        let guard = self.runtime.block_on(self.inner.try_lock_async(backend.inner, key))?;
        Ok(guard.map(|guard| InRuntime::new(guard, self.runtime)))
    }

    fn try_lock_and_read(
        &self,
        backend: &Awaited<'_, B>,
        keys: &[Key<'_>],
    ) -> Result<Vec<Attempt<Self::Guard>>, Error> {
        let attempts = self.runtime.block_on(self.inner.try_lock_and_read_async(backend.inner, keys))?;
        let kept = |attempt: Attempt<_>| Attempt {
            guard: attempt.guard.map(|guard| InRuntime::new(guard, self.runtime)),
            entry: attempt.entry,
        };
        Ok(attempts.into_iter().map(kept).collect())
    }

    fn read_or_lock(&self, backend: &Awaited<'_, B>, key: Key<'_>) -> Result<Attempt<Self::Guard>, Error> {
        let Attempt { guard, entry } = self.runtime.block_on(self.inner.read_or_lock_async(backend.inner, key))?;
        Ok(Attempt { guard: guard.map(|guard| InRuntime::new(guard, self.runtime)), entry })
    }

    fn store_and_release(
        &self,
        backend: &Awaited<'_, B>,
        guards: Vec<Self::Guard>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> Result<usize, Error> {
        let guards = guards.into_iter().filter_map(|mut guard| guard.guard.take()).collect();
        self.runtime.block_on(self.inner.store_and_release_async(backend.inner, guards, batch, ttl))
    }

    fn watch(&self, backend: &Awaited<'_, B>, key: Key<'_>) -> Option<crate::backend::leases::Watch> {
        self.inner.watch_async(backend.inner, key)
    }

    fn is_locked(&self, backend: &Awaited<'_, B>, key: Key<'_>) -> Result<bool, Error> {
        self.runtime.block_on(self.inner.is_locked_async(backend.inner, key))
    }
}

/// A guard that is dropped where tasks are, and whose word has gone out then.
#[cfg(feature = "tokio")]
struct InRuntime<G> {
    guard: Option<G>,
    runtime: tokio::runtime::Handle,
}

#[cfg(feature = "tokio")]
impl<G> InRuntime<G> {
    fn new(guard: G, runtime: &Runtime) -> Self {
        InRuntime { guard: Some(guard), runtime: runtime.handle().clone() }
    }
}

#[cfg(feature = "tokio")]
impl<G> Drop for InRuntime<G> {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        drop(self.guard.take());
        // Nobody waits for the word, so it is given a moment.
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Walks the decision table by the outcomes that the fuzzer picks.
///
/// # Panics
/// When a step is not sound.
#[cfg(fuzzing)]
pub fn walk_decisions(choices: &[u8]) {
    crate::region::create::machine::model::walk(choices);
}
