//! Conformance tests for backends, codecs and locks of your own (feature `testing`).
//!
//! Each function panics at the first violation of the contract of a trait, with a message that
//! describes it. Call them from your tests. The backends, codecs and locks of this crate pass them.
//!
//! ```
//! use dogpile::{Memory, Msgpack, testing};
//! use dogpile::codec::Seconds;
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

/// A factory for the keys of a test.
///
/// All keys have the prefix of the test, so that other users of the server are not affected.
struct TestKeys<'a>(&'a str);

impl TestKeys<'_> {
    fn plain(&self, name: &str) -> KeyBuf {
        KeyBuf::new().text(self.0).text(name)
    }

    fn field(&self, hash: &str, field: &str) -> KeyBuf {
        KeyBuf::new().text(self.0).text("hash:").text(hash).next_field().text(field)
    }
}

/// Checks that a backend meets the contract of [`Backend`].
///
/// All keys of the test start with `prefix`. No such key may exist, and no other client may use
/// them during the test. The test deletes its keys at the end, and takes about a third of a second,
/// because it waits for TTLs to elapse.
///
/// # Panics
///
/// If the backend violates the contract, or if one of its operations fails.
///
/// ```
/// use dogpile::{Memory, testing};
///
/// testing::backend(&Memory::new(64 << 20), "test:");
/// ```
pub fn backend(backend: &impl Backend, prefix: &str) {
    let keys = TestKeys(prefix);
    reads_what_was_written(backend, &keys);
    handles_many_entries(backend, &keys);
    accepts_empty_batches(backend);
    honors_ttls(backend, &keys);
    never_changes_returned_entries(backend, &keys);
    serves_many_threads(backend, &keys);
}

fn get(backend: &impl Backend, key: &KeyBuf) -> Option<Bytes> {
    backend.get(key.as_key()).unwrap_or_else(|error| panic!("get of {key} failed: {error}"))
}

fn set(backend: &impl Backend, key: &KeyBuf, entry: &[u8], ttl: Option<Duration>) {
    backend.set(key.as_key(), entry, ttl).unwrap_or_else(|error| panic!("set of {key} failed: {error}"));
}

fn delete(backend: &impl Backend, keys: &[&KeyBuf]) {
    let keys: Vec<Key<'_>> = keys.iter().map(|key| key.as_key()).collect();
    backend.delete_many(&keys).unwrap_or_else(|error| panic!("delete_many of {keys:?} failed: {error}"));
}

fn reads_what_was_written(backend: &impl Backend, test_keys: &TestKeys<'_>) {
    let large: Vec<u8> = (0..1_000_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    let entries: [&[u8]; 5] = [b"entry", b"", b"\r\n$-1\r\n\0\xff", b"other", &large];
    for key in [
        test_keys.plain("key"),
        test_keys.plain(""),
        test_keys.field("h", "field"),
        test_keys.field("h", ""),
        test_keys.field("", ""),
    ] {
        assert_eq!(get(backend, &key), None, "{key} exists before it is written");
        for entry in entries {
            set(backend, &key, entry, None);
            assert_eq!(get(backend, &key).as_deref(), Some(entry), "the entry of {key} differs from what was written");
        }
        delete(backend, &[&key]);
        assert_eq!(get(backend, &key), None, "{key} exists after it was deleted");
    }
    // Keys that collide if a backend concatenates hash and field.
    let keys = [
        test_keys.field("a", "bc"),
        test_keys.field("ab", "c"),
        test_keys.field("a", "b"),
        test_keys.plain("hash:a,bc"),
    ];
    for (at, key) in keys.iter().enumerate() {
        set(backend, key, &[u8::try_from(at).expect("is small")], None);
    }
    for (at, key) in keys.iter().enumerate() {
        assert_eq!(
            get(backend, key).as_deref(),
            Some(&[u8::try_from(at).expect("is small")][..]),
            "{key} is confused with another key"
        );
    }
    delete(backend, &keys.each_ref());
}

fn handles_many_entries(backend: &impl Backend, test_keys: &TestKeys<'_>) {
    let mut keys: Vec<KeyBuf> = (0..40).map(|at| test_keys.plain(&format!("many{at}"))).collect();
    keys.extend((0..60).map(|at| test_keys.field(&format!("many{}", at % 12), &at.to_string())));
    // An order that is neither sorted nor grouped by hash.
    let order: Vec<&KeyBuf> = (0..keys.len()).map(|at| &keys[at * 37 % keys.len()]).collect();
    let mut batch = Batch::new();
    for (at, key) in order.iter().enumerate() {
        batch.push(key.as_key(), |out| out.extend_from_slice(format!("old{at}").as_bytes()));
    }
    for (at, key) in order.iter().enumerate().filter(|(at, _)| at % 4 != 0) {
        batch.push(key.as_key(), |out| out.extend_from_slice(format!("entry{at}").as_bytes()));
    }
    backend.set_many(&batch, None).expect("set_many of mixed keys");

    let absent = [test_keys.plain("absent"), test_keys.field("absent", "1"), test_keys.field("many0", "absent")];
    let mut requested: Vec<Key<'_>> = Vec::new();
    let mut expected: Vec<Option<String>> = Vec::new();
    for (at, key) in order.iter().enumerate() {
        requested.push(key.as_key());
        expected.push(Some(if at % 4 == 0 { format!("old{at}") } else { format!("entry{at}") }));
        if at % 7 == 0 {
            requested.extend([absent[at % 3].as_key(), order[at / 2].as_key()]);
            let first = requested.iter().position(|key| *key == order[at / 2].as_key()).expect("was requested");
            let duplicate = expected[first].clone();
            expected.extend([None, duplicate]);
        }
    }
    let mut found = Found::new();
    found.reset(3);
    found.put(0, Bytes::from_static(b"previous contents"));
    backend.get_many(&requested, &mut found).expect("get_many of mixed keys");
    let found: Vec<Option<String>> =
        found.iter().map(|entry| entry.map(|entry| String::from_utf8_lossy(&entry).into_owned())).collect();
    assert_eq!(found, expected, "get_many does not return the entries in the order of the keys");

    delete(backend, &order[..50]);
    let mut found = Found::new();
    let all: Vec<Key<'_>> = order.iter().map(|key| key.as_key()).collect();
    backend.get_many(&all, &mut found).expect("get_many");
    assert!((0..50).all(|at| found.get(at).is_none()), "delete_many left some of the entries");
    assert!((50..100).all(|at| found.get(at).is_some()), "delete_many deleted other entries");
    delete(backend, &order);
}

fn accepts_empty_batches(backend: &impl Backend) {
    let mut found = Found::new();
    found.reset(2);
    backend.get_many(&[], &mut found).expect("get_many of no keys");
    assert!(found.is_empty(), "get_many of no keys found entries");
    backend.set_many(&Batch::new(), None).expect("set_many of an empty batch");
    backend.delete_many(&[]).expect("delete_many of no keys");
}

fn honors_ttls(backend: &impl Backend, test_keys: &TestKeys<'_>) {
    let short = Some(Duration::from_millis(150));
    let (single, batched, without_ttl, longer_ttl) =
        (test_keys.plain("ttl1"), test_keys.plain("ttl2"), test_keys.plain("ttl3"), test_keys.plain("ttl4"));
    let started = Instant::now();
    set(backend, &single, b"entry", short);
    set(backend, &without_ttl, b"entry", short);
    set(backend, &without_ttl, b"entry", None);
    set(backend, &longer_ttl, b"entry", short);
    set(backend, &longer_ttl, b"entry", Some(Duration::from_secs(60)));
    let mut batch = Batch::new();
    batch.push(batched.as_key(), |out| out.extend_from_slice(b"entry"));
    backend.set_many(&batch, short).expect("set_many with a TTL");
    let found = [&single, &batched].map(|key| get(backend, key).is_some());
    // On a slow machine, the TTL may already have elapsed.
    if started.elapsed() < Duration::from_millis(100) {
        assert_eq!(found, [true, true], "an entry expires before its TTL has elapsed");
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(get(backend, &single), None, "an entry outlives its TTL");
    assert_eq!(get(backend, &batched), None, "an entry of a batch outlives its TTL");
    assert!(get(backend, &without_ttl).is_some(), "an entry without a TTL has the TTL of the one that it replaced");
    assert!(get(backend, &longer_ttl).is_some(), "an entry has the TTL of the one that it replaced");
    delete(backend, &[&without_ttl, &longer_ttl]);
}

fn never_changes_returned_entries(backend: &impl Backend, test_keys: &TestKeys<'_>) {
    let key = test_keys.plain("held");
    set(backend, &key, b"first", None);
    let held = get(backend, &key).expect("was written");
    let mut later = Vec::new();
    for at in 0..1000_u32 {
        let entry = at.to_string();
        set(backend, &key, entry.as_bytes(), None);
        later.push((entry, get(backend, &key).expect("was written")));
    }
    assert_eq!(held, "first", "an entry that was returned changes later");
    assert!(later.iter().all(|(entry, held)| held == entry), "an entry that was returned changes later");
    delete(backend, &[&key]);
}

fn serves_many_threads(backend: &impl Backend, test_keys: &TestKeys<'_>) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let own =
                    [test_keys.plain(&format!("thread{thread}")), test_keys.field("threads", &thread.to_string())];
                for at in 0..200 {
                    let entry = format!("{thread}-{at}");
                    for key in &own {
                        set(backend, key, entry.as_bytes(), None);
                    }
                    for key in &own {
                        assert_eq!(
                            get(backend, key).as_deref(),
                            Some(entry.as_bytes()),
                            "a thread reads the entry of another thread"
                        );
                    }
                }
                delete(backend, &own.each_ref());
            });
        }
    });
}

/// Checks that a codec meets the contract of [`Codec`] for some values.
///
/// Each value must be equal to itself after encoding and decoding. Encoding must append to the
/// buffer without changing its contents. Decoding truncated or damaged entries must not panic;
/// whether it fails is not checked.
///
/// # Panics
///
/// If the codec violates the contract.
///
/// ```
/// use dogpile::codec::Seconds;
/// use dogpile::{Msgpack, testing};
///
/// testing::codec(&Msgpack::<Seconds>::new(), &[String::new(), "text".repeat(1000)]);
/// ```
pub fn codec<V: PartialEq + Debug>(codec: &impl Codec<V>, values: &[V]) {
    for value in values {
        let created = Timestamp::from_micros(1_471_113_698_761_270);
        let mut out = b"before".to_vec();
        codec.encode(value, created, &mut out).unwrap_or_else(|error| panic!("encoding {value:?} failed: {error}"));
        assert_eq!(&out[..6], b"before", "encoding {value:?} changes the previous contents of the buffer");
        let entry = Bytes::from(out.split_off(6));
        let (read, meta) =
            codec.decode(Slice::from(&entry)).unwrap_or_else(|error| panic!("decoding {value:?} failed: {error}"));
        assert_eq!(read, *value, "the decoded value differs from the encoded one");
        if let Some(read) = meta.created {
            assert!(
                read <= created && created.since(read) < Duration::from_secs(1),
                "the decoded creation time {read:?} is wrong"
            );
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

/// Checks that a lock meets the contract of [`Lock`] and excludes other processes.
///
/// `ours` and `theirs` are two instances of the lock that stand for two processes, and must not
/// share any state that two processes would not share. All keys of the test start with `prefix`. No
/// such key may exist, and no other client may use them during the test.
///
/// # Panics
///
/// If the lock violates the contract, or if one of its operations fails.
///
/// ```no_run
/// use dogpile::{Redis, RedisLock, testing};
///
/// let redis = Redis::open("redis://127.0.0.1")?;
/// testing::lock(&redis, &RedisLock::new(), &RedisLock::new(), "test:");
/// # Ok::<(), dogpile::Error>(())
/// ```
pub fn lock<B: Backend, L: Lock<B>>(backend: &B, ours: &L, theirs: &L, prefix: &str) {
    ours.check().expect("the settings of the lock are valid");
    let test_keys = TestKeys(prefix);
    for key in [test_keys.plain("lock"), test_keys.field("lock", "field")] {
        let key = key.as_key();
        let is_locked = |lock: &L| lock.is_locked(backend, key).expect("is_locked");
        assert!(!is_locked(ours), "{key} is locked before the first process locks it");
        let guard = ours.try_lock(backend, key).expect("try_lock").expect("no other process holds the lock");
        assert!(is_locked(theirs), "{key} is not locked from the view of another process");
        assert!(theirs.try_lock(backend, key).expect("try_lock").is_none(), "two processes hold the lock on {key}");
        drop(guard);
        assert!(!is_locked(theirs), "{key} is locked after its guard was dropped");
        let guard = theirs.try_lock(backend, key).expect("try_lock");
        assert!(guard.is_some(), "{key} cannot be locked after its guard was dropped");
    }

    // An entry that is stored under the lock can be read as soon as the lock is released.
    let (first, second) = (test_keys.plain("locked1"), test_keys.field("locked", "2"));
    let keys = [first.as_key(), second.as_key()];
    let taken = theirs.try_lock(backend, keys[1]).expect("try_lock");
    let attempts = ours.try_lock_and_read(backend, &keys).expect("try_lock_and_read");
    let acquired: Vec<bool> = attempts.iter().map(|attempt| attempt.guard.is_some()).collect();
    assert_eq!(acquired, [true, false], "of two locks, only the free one must be acquired");
    assert!(attempts.iter().all(|attempt| attempt.entry.is_none()), "an entry is read before one is stored");
    let mut batch = Batch::new();
    batch.push(keys[0], |out| out.extend_from_slice(b"entry"));
    let guards = attempts.into_iter().filter_map(|attempt| attempt.guard).collect();
    ours.store_and_release(backend, guards, &batch, None).expect("store_and_release");
    drop(taken);
    let mut attempts = theirs.try_lock_and_read(backend, &keys).expect("try_lock_and_read");
    assert!(attempts.iter().all(|attempt| attempt.guard.is_some()), "store_and_release does not release the lock");
    assert_eq!(attempts[0].entry.as_deref(), Some(&b"entry"[..]), "the next holder does not see the stored entry");
    assert_eq!(attempts.remove(1).entry, None);
    drop(attempts);
    backend.delete_many(&keys).expect("delete_many");

    for key in [test_keys.plain("read"), test_keys.field("read", "field")] {
        let key = key.as_key();
        let read = |lock: &L| lock.read_or_lock(backend, key).expect("read_or_lock");
        let attempt = read(ours);
        assert!(attempt.entry.is_none(), "an entry of {key} is read before one is stored");
        let guard = attempt.guard.unwrap_or_else(|| panic!("the free lock on the missing {key} is not acquired"));
        let attempt = read(theirs);
        assert!(attempt.entry.is_none() && attempt.guard.is_none(), "two processes hold the lock on {key}");
        let mut watch = theirs.watch(backend, key);
        if let Some(watch) = &mut watch {
            let polled = watch.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_pending(), "the watch of {key} completes while the lock is held");
        }
        let mut batch = Batch::new();
        batch.push(key, |out| out.extend_from_slice(b"entry"));
        ours.store_and_release(backend, vec![guard], &batch, None).expect("store_and_release");
        if let Some(watch) = watch {
            wait_for(watch, &format!("the watch of {key} does not complete after the lock is released"));
        }
        if let Some(watch) = theirs.watch(backend, key) {
            wait_for(watch, &format!("a new watch of {key} does not complete although the lock is free"));
        }
        let attempt = read(theirs);
        assert_eq!(attempt.entry.as_deref(), Some(&b"entry"[..]));
        assert!(attempt.guard.is_none(), "read_or_lock locks {key} although it has an entry");
        backend.delete_many(&[key]).expect("delete_many");
    }
}

/// Blocks until `watch` completes; panics with `failure` after ten seconds.
fn wait_for(mut watch: crate::lock::Watch, failure: &str) {
    struct ThreadUnparker(std::thread::Thread);
    impl Wake for ThreadUnparker {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(ThreadUnparker(std::thread::current())));
    let deadline = Instant::now() + Duration::from_secs(10);
    while watch.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "{failure}");
        std::thread::park_timeout(left);
    }
}

/// Checks that a backend meets the contract of [`AsyncBackend`].
///
/// The futures of the backend are run on `runtime`, which must have I/O and timers enabled. All
/// keys of the test start with `prefix`. No such key may exist, and no other client may use them
/// during the test. The test deletes its keys at the end, and takes about a third of a second,
/// because it waits for TTLs to elapse.
///
/// # Panics
///
/// If the backend violates the contract, or if one of its operations fails.
///
/// ```
/// use dogpile::{Memory, testing};
/// use tokio::runtime::Runtime;
///
/// testing::backend_async(&Memory::new(64 << 20), &Runtime::new()?, "test:");
/// # Ok::<(), std::io::Error>(())
/// ```
#[cfg(feature = "tokio")]
pub fn backend_async(backend: &impl AsyncBackend, runtime: &Runtime, prefix: &str) {
    self::backend(&BlockOn { inner: backend, runtime }, prefix);
}

/// Checks that a lock meets the contract of [`AsyncLock`] and excludes other processes.
///
/// The futures of the lock are run on `runtime`, which must have I/O and timers enabled. `ours` and
/// `theirs` are two instances of the lock that stand for two processes, and must not share any
/// state that two processes would not share. All keys of the test start with `prefix`. No such key
/// may exist, and no other client may use them during the test.
///
/// # Panics
///
/// If the lock violates the contract, or if one of its operations fails.
///
/// ```no_run
/// use dogpile::{Redis, RedisLock, testing};
/// use tokio::runtime::Runtime;
///
/// let runtime = Runtime::new().expect("the runtime starts");
/// let redis = Redis::open("redis://127.0.0.1")?;
/// testing::lock_async(&redis, &RedisLock::new(), &RedisLock::new(), &runtime, "test:");
/// # Ok::<(), dogpile::Error>(())
/// ```
#[cfg(feature = "tokio")]
pub fn lock_async<B: AsyncBackend, L: AsyncLock<B>>(
    backend: &B,
    ours: &L,
    theirs: &L,
    runtime: &Runtime,
    prefix: &str,
) {
    let lock = |inner| BlockOn { inner, runtime };
    self::lock(&BlockOn { inner: backend, runtime }, &lock(ours), &lock(theirs), prefix);
}

/// Adapts an asynchronous backend or lock to the blocking trait, so that both share one test.
#[cfg(feature = "tokio")]
struct BlockOn<'a, T> {
    inner: &'a T,
    runtime: &'a Runtime,
}

#[cfg(feature = "tokio")]
impl<B: AsyncBackend> Backend for BlockOn<'_, B> {
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
        self.inner.max_entry()
    }

    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        self.runtime.block_on(self.inner.delete_many_async(keys))
    }
}

#[cfg(feature = "tokio")]
impl<L: LockSettings> LockSettings for BlockOn<'_, L> {
    const ONLY_THIS_REGION: bool = L::ONLY_THIS_REGION;

    fn reads_and_locks(&self) -> bool {
        self.inner.reads_and_locks()
    }

    fn check(&self) -> Result<(), Error> {
        self.inner.check()
    }
}

#[cfg(feature = "tokio")]
impl<B: AsyncBackend, L: AsyncLock<B>> Lock<BlockOn<'_, B>> for BlockOn<'_, L> {
    type Guard = RuntimeGuard<L::AsyncGuard>;

    fn try_lock(&self, backend: &BlockOn<'_, B>, key: Key<'_>) -> Result<Option<Self::Guard>, Error> {
        let guard = self.runtime.block_on(self.inner.try_lock_async(backend.inner, key))?;
        Ok(guard.map(|guard| RuntimeGuard::new(guard, self.runtime)))
    }

    fn try_lock_and_read(
        &self,
        backend: &BlockOn<'_, B>,
        keys: &[Key<'_>],
    ) -> Result<Vec<Attempt<Self::Guard>>, Error> {
        let attempts = self.runtime.block_on(self.inner.try_lock_and_read_async(backend.inner, keys))?;
        let adapt = |attempt: Attempt<_>| Attempt {
            guard: attempt.guard.map(|guard| RuntimeGuard::new(guard, self.runtime)),
            entry: attempt.entry,
        };
        Ok(attempts.into_iter().map(adapt).collect())
    }

    fn read_or_lock(&self, backend: &BlockOn<'_, B>, key: Key<'_>) -> Result<Attempt<Self::Guard>, Error> {
        let Attempt { guard, entry } = self.runtime.block_on(self.inner.read_or_lock_async(backend.inner, key))?;
        Ok(Attempt { guard: guard.map(|guard| RuntimeGuard::new(guard, self.runtime)), entry })
    }

    fn store_and_release(
        &self,
        backend: &BlockOn<'_, B>,
        guards: Vec<Self::Guard>,
        batch: &Batch,
        ttl: Option<Duration>,
    ) -> Result<usize, Error> {
        let guards = guards.into_iter().filter_map(|mut guard| guard.guard.take()).collect();
        self.runtime.block_on(self.inner.store_and_release_async(backend.inner, guards, batch, ttl))
    }

    fn watch(&self, backend: &BlockOn<'_, B>, key: Key<'_>) -> Option<crate::lock::Watch> {
        self.inner.watch(backend.inner, key)
    }

    fn is_locked(&self, backend: &BlockOn<'_, B>, key: Key<'_>) -> Result<bool, Error> {
        self.runtime.block_on(self.inner.is_locked_async(backend.inner, key))
    }
}

/// A guard that is dropped inside the runtime, and waits until its release has probably been sent.
#[cfg(feature = "tokio")]
struct RuntimeGuard<G> {
    guard: Option<G>,
    runtime: tokio::runtime::Handle,
}

#[cfg(feature = "tokio")]
impl<G> RuntimeGuard<G> {
    fn new(guard: G, runtime: &Runtime) -> Self {
        RuntimeGuard { guard: Some(guard), runtime: runtime.handle().clone() }
    }
}

#[cfg(feature = "tokio")]
impl<G> Drop for RuntimeGuard<G> {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        drop(self.guard.take());
        // Dropping a guard only starts the release, and there is no event to wait for.
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Walks through the decision table of a creation, with outcomes chosen by the fuzzer.
///
/// # Panics
///
/// If a step violates an invariant of the table.
#[cfg(fuzzing)]
pub fn walk_decisions(choices: &[u8]) {
    crate::region::create::machine::model::walk(choices);
}
