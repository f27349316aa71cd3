//! What callers that are tasks do with a region: the `_async` twins of its methods.

use crate::backend::AsyncBackend;
use crate::batch::Found;
use crate::buffer::Buffer;
use crate::codec::Codec;
use crate::error::{Error, GetError};
use crate::exec::Task;
use crate::freshness::{Invalidation, MaxAge};
use crate::key::AsKey;
use crate::keymap::KeyMap;
use crate::lock::AsyncLock;
use crate::region::call::{Call, Start, StoreRule};
use crate::region::keys::{KeyRoom, Room};
use crate::region::{Region, Shared};
use crate::slice::Slice;
use crate::time::{Entry, Now};

/// For callers that are tasks. Feature `tokio`.
///
/// Each method is as its blocking twin. Its future may be dropped at any time: locks are released, somebody else who
/// waits is elected, and the connection stays of use. Threads and tasks that want the same missing value wait for the
/// same creator; a task that calls a blocking method for that blocks its thread, and for ever if the creator needs it.
/// A future that reads or creates and is not polled any more, nor dropped, keeps others waiting who want the same key.
/// Connections, locks and patience need a runtime of tokio with I/O and timers.
impl<B: AsyncBackend, S, L: AsyncLock<B>, M: KeyMap, I: Invalidation> Region<B, S, L, M, I> {
    /// As [`Region::get`].
    ///
    /// # Errors
    /// As there.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), dogpile::Error> {
    /// let region = Region::builder(Memory::new(64 << 20)).build()?;
    /// region.set_async("user-15|name", &"Ann".to_string()).await?;
    /// assert_eq!(region.get_async::<String>("user-15|name").await?.as_deref(), Some("Ann"));
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    pub fn get_async<V>(&self, key: impl AsKey) -> impl Future<Output = Result<Option<V>, Error>>
    where
        S: Codec<V>,
    {
        get(&self.shared, Some(self.shared.max_age), key)
    }

    /// As [`Region::get_entry`].
    ///
    /// # Errors
    /// As there.
    pub async fn get_entry_async<V>(&self, key: impl AsKey) -> Result<Option<Entry<V>>, Error>
    where
        S: Codec<V>,
    {
        self.call().get_entry_async(key).await
    }

    /// As [`Region::get_many`].
    ///
    /// # Errors
    /// As there.
    pub async fn get_many_async<K: AsKey, V>(&self, keys: &[K]) -> Result<Vec<Option<V>>, Error>
    where
        S: Codec<V>,
    {
        self.call().get_many_async(keys).await
    }

    /// As [`Region::set`].
    ///
    /// # Errors
    /// As there.
    pub async fn set_async<V>(&self, key: impl AsKey, value: &V) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        self.call().set_async(key, value).await
    }

    /// As [`Region::set_many`].
    ///
    /// # Errors
    /// As there.
    pub async fn set_many_async<K: AsKey, V>(&self, entries: &[(K, V)]) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        self.call().set_many_async(entries).await
    }

    /// As [`Region::delete`].
    ///
    /// # Errors
    /// As there.
    pub async fn delete_async(&self, key: impl AsKey) -> Result<(), Error> {
        self.delete_many_async(&[key]).await
    }

    /// As [`Region::delete_many`].
    ///
    /// # Errors
    /// As there.
    pub async fn delete_many_async<K: AsKey>(&self, keys: &[K]) -> Result<(), Error> {
        let mut room = KeyRoom::new();
        self.shared.backend.delete_many_async(&room.map_all(keys, &self.shared.map)).await
    }

    /// As [`Region::get_or_create`]. A future that is dropped while its `create` runs drops that too, and the next who
    /// waits creates.
    ///
    /// That `create` asks for its own key is not noticed here: it waits for itself, as long as the region's
    /// [patience](crate::region::builder::RegionBuilder::patience).
    ///
    /// # Errors
    /// As there.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let region = Region::builder(Memory::new(64 << 20)).build()?;
    /// let name: String = region.get_or_create_async(("user-15", "name"), async || load_name(15).await).await?;
    /// assert_eq!(name, "Ann");
    /// # Ok(())
    /// # }
    /// # async fn load_name(_: u64) -> Result<String, std::io::Error> { Ok("Ann".into()) }
    /// ```
    #[inline]
    pub async fn get_or_create_async<V, E, R>(
        &self,
        key: impl AsKey,
        create: impl FnOnce() -> R,
    ) -> Result<V, GetError<E>>
    where
        S: Codec<V>,
        R: Future<Output = Result<V, E>>,
    {
        self.call().get_or_create_async(key, create).await
    }

    /// As [`Region::get_or_create_many`]; `create` is given a list of its own. It may borrow from around it, as in
    /// `async |missing| …`; one that owns what each call uses gives each its own, as in `|missing| { let pool =
    /// pool.clone(); async move { … } }`.
    ///
    /// # Errors
    /// As there.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// region.set_async(2, &20_u64).await?;
    /// let create = async |missing: Vec<&i32>| {
    ///     assert_eq!(missing, [&1, &3]);
    ///     Ok::<_, std::io::Error>(missing.iter().map(|key| **key as u64 * 10).collect())
    /// };
    /// let values: Vec<u64> = region.get_or_create_many_async(&[1, 2, 3, 1], create).await?;
    /// assert_eq!(values, [10, 20, 30, 10]);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_or_create_many_async<'k, K: AsKey, V: Clone, E, R>(
        &self,
        keys: &'k [K],
        create: impl FnMut(Vec<&'k K>) -> R,
    ) -> Result<Vec<V>, GetError<E>>
    where
        S: Codec<V>,
        R: Future<Output = Result<Vec<V>, E>>,
    {
        self.call().get_or_create_many_async(keys, create).await
    }

    /// As [`Region::get_or_refresh`]. The region's [runner](crate::region::builder::RegionBuilder::task_runner) runs `create`; if the
    /// task is dropped, the lock is released.
    ///
    /// # Errors
    /// As there.
    pub async fn get_or_refresh_async<V, E, R>(
        &self,
        key: impl AsKey,
        create: impl FnOnce() -> R + Send + 'static,
    ) -> Result<V, GetError<E>>
    where
        B: 'static,
        S: Codec<V> + Send + Sync + 'static,
        L: 'static,
        L::AsyncGuard: 'static,
        M: 'static,
        I: 'static,
        V: Send + 'static,
        E: Send + 'static,
        R: Future<Output = Result<V, E>> + Send + 'static,
    {
        self.call().get_or_refresh_async(key, create).await
    }

    /// As [`Region::is_locked`].
    ///
    /// # Errors
    /// As there.
    pub async fn is_locked_async(&self, key: impl AsKey) -> Result<bool, Error> {
        let mut room = Room::new();
        let key = room.map(&key, &self.shared.map);
        Ok(self.shared.line.is_busy(key) || self.shared.lock.is_locked_async(&self.shared.backend, key).await?)
    }
}

/// For callers that are tasks. Feature `tokio`.
impl<B: AsyncBackend, S, L: AsyncLock<B>, M: KeyMap, I: Invalidation, F> Call<'_, B, S, L, M, I, F> {
    /// See [`Region::get_async`].
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn get_async<V>(&self, key: impl AsKey) -> impl Future<Output = Result<Option<V>, Error>>
    where
        S: Codec<V>,
    {
        get(self.shared(), self.settings.max_age, key)
    }

    /// See [`Region::get_entry_async`].
    ///
    /// # Errors
    /// As there.
    pub async fn get_entry_async<V>(&self, key: impl AsKey) -> Result<Option<Entry<V>>, Error>
    where
        S: Codec<V>,
    {
        let (region, mut room) = (self.shared(), Room::new());
        let read = region.backend.get_async(room.map(&key, &region.map)).await;
        let entry = region.miss_if_wrong_type(read)?;
        Ok(self.fresh_entry(entry, &Now::of(&region.clock)))
    }

    /// See [`Region::get_many_async`].
    ///
    /// # Errors
    /// As there.
    pub async fn get_many_async<K: AsKey, V>(&self, keys: &[K]) -> Result<Vec<Option<V>>, Error>
    where
        S: Codec<V>,
    {
        let (region, mut room) = (self.shared(), KeyRoom::new());
        let mut found = Found::new();
        region.backend.get_many_async(&room.map_all(keys, &region.map), &mut found).await?;
        Ok(self.fresh_values(&found))
    }

    /// See [`Region::set_async`].
    ///
    /// # Errors
    /// As there.
    pub async fn set_async<V>(&self, key: impl AsKey, value: &V) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        let (region, mut room) = (self.shared(), Room::new());
        let key = room.map(&key, &region.map);
        let mut entry = Buffer::take();
        self.encode(key, value, &mut entry)?;
        let stored = region.backend.set_async(key, &entry, self.settings.ttl).await;
        region.wrote(key);
        stored
    }

    /// See [`Region::set_many_async`].
    ///
    /// # Errors
    /// As there.
    pub async fn set_many_async<K: AsKey, V>(&self, entries: &[(K, V)]) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        self.set_all_async(entries.iter().map(|(key, value)| (key, value))).await
    }

    /// Stores the values of an iterator in one round trip.
    pub(crate) async fn set_all_async<'v, K: AsKey + 'v, V: 'v>(
        &self,
        entries: impl Iterator<Item = (&'v K, &'v V)>,
    ) -> Result<(), Error>
    where
        S: Codec<V>,
    {
        let batch = self.encode_all(entries)?;
        let stored = self.shared().backend.set_many_async(&batch, self.settings.ttl).await;
        self.shared().wrote_all(&batch);
        stored
    }

    /// See [`Region::get_or_create_async`].
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub async fn get_or_create_async<V, E, R>(
        &self,
        key: impl AsKey,
        create: impl FnOnce() -> R,
    ) -> Result<V, GetError<E>>
    where
        S: Codec<V>,
        F: StoreRule<V>,
        R: Future<Output = Result<V, E>>,
    {
        let (region, mut room) = (self.shared(), Room::new());
        let key = room.map(&key, &region.map);
        let start = match region.begin_reading(key, region.line.hash(key), None) {
            Ok(begun) if begun.claim.is_some() && region.lock.reads_and_locks() => {
                // Boxed, since it is seldom, and its size would be part of every call's.
                match Box::pin(self.read_or_lock(Task, key, begun)).await {
                    Ok(fresh) => return Ok(fresh),
                    Err(start) => start,
                }
            }
            Ok(begun) => match self.judge(region.miss_if_wrong_type(region.backend.get_async(key).await)) {
                Ok(fresh) => return Ok(begun.found(fresh)),
                Err(first) => Start::Read(begun, first),
            },
            Err(waiter) => Start::Waits(waiter),
        };
        self.create_one_on(Task, key, start, create).await
    }

    /// See [`Region::get_or_create_many_async`].
    ///
    /// # Errors
    /// As there.
    pub async fn get_or_create_many_async<'k, K: AsKey, V: Clone, E, R>(
        &self,
        keys: &'k [K],
        create: impl FnMut(Vec<&'k K>) -> R,
    ) -> Result<Vec<V>, GetError<E>>
    where
        S: Codec<V>,
        F: StoreRule<V>,
        R: Future<Output = Result<Vec<V>, E>>,
    {
        self.create_many_on(Task, keys, keys, create).await
    }
}

/// The fresh value of a key. Each level of futures costs a hit about 25 instructions, so there is one fewer here.
#[inline]
async fn get<B: AsyncBackend, S: Codec<V>, L, M: KeyMap, I: Invalidation, V>(
    region: &Shared<B, S, L, M, I>,
    max_age: Option<MaxAge>,
    key: impl AsKey,
) -> Result<Option<V>, Error> {
    let mut room = Room::new();
    let read = region.backend.get_async(room.map(&key, &region.map)).await;
    let entry = region.miss_if_wrong_type(read)?;
    Ok(entry.and_then(|entry| region.fresh(Slice::from(&entry), max_age, &Now::of(&region.clock))))
}
