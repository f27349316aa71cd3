//! Cached functions of tasks: the results of an async function are values of a region.

use super::{Function, FunctionMany, KeyArgs};
use crate::backend::AsyncBackend;
use crate::codec::Codec;
use crate::error::{Error, GetError};
use crate::exec::Async;
use crate::freshness::Invalidation;
use crate::key::KeyBuf;
use crate::keymap::KeyMap;
use crate::lock::AsyncLock;
use crate::region::Region;

/// Cached async functions (feature `tokio`).
impl<B: AsyncBackend, S, L: AsyncLock<B>, M: KeyMap, I: Invalidation> Region<B, S, L, M, I> {
    /// Makes an async function cached: its results are values of this region, under `name|arg1 arg2`.
    ///
    /// A function that is called in spawned tasks must own what it uses (`async move`), because the
    /// compiler cannot prove for one that borrows that its futures are `Send`.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// let square = region.async_function("square", async |n: &u64| Ok::<_, std::io::Error>(n * n));
    ///
    /// assert_eq!(square.call_async(&7).await?, 49);
    /// assert_eq!(region.get_async("square|7").await?, Some(49_u64));
    /// assert_eq!(square.refresh_async(&7).await?, 49);
    /// square.invalidate_async(&7).await?;
    /// assert_eq!(square.get_async(&7).await?, None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn async_function<A: KeyArgs + 'static, V, E, F>(&self, name: &str, function: F) -> Function<Self, A, V, E, F>
    where
        S: Codec<V>,
        F: AsyncFn(&A) -> Result<V, E>,
    {
        Function::new(self.clone(), name, function)
    }

    /// Makes an async function of many arguments at once cached: it is called with those whose results
    /// are missing.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// let squares = region.async_function_many("square", async |numbers: &[&u64]| {
    ///     Ok::<_, std::io::Error>(numbers.iter().map(|n| **n * **n).collect())
    /// });
    /// assert_eq!(squares.call_async(&[3, 4, 3]).await?, [9, 16, 9]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn async_function_many<A: KeyArgs + 'static, V: Clone, E, F>(
        &self,
        name: &str,
        function: F,
    ) -> FunctionMany<Self, A, V, E, F>
    where
        S: Codec<V>,
        F: AsyncFn(&[&A]) -> Result<Vec<V>, E>,
    {
        FunctionMany::new(self.clone(), name, function)
    }
}

/// Operations for tasks (feature `tokio`). Each future may be dropped at any time.
impl<B, S, L, M, I, A, V, E, F> Function<Region<B, S, L, M, I>, A, V, E, F>
where
    B: AsyncBackend,
    S: Codec<V>,
    L: AsyncLock<B>,
    M: KeyMap,
    I: Invalidation,
    F: AsyncFn(&A) -> Result<V, E>,
{
    /// Returns the result for these arguments, from the cache or by calling the function.
    ///
    /// # Errors
    /// As [`Region::get_or_create_async`].
    pub async fn call_async(&self, arguments: &A) -> Result<V, GetError<E>>
    where
        V: 'static,
    {
        self.region.get_or_create_async(self.key(arguments), || (self.function)(arguments)).await
    }

    /// Returns the result in the cache, if there is a fresh one. Does not call the function.
    ///
    /// # Errors
    /// If the backend fails.
    pub async fn get_async(&self, arguments: &A) -> Result<Option<V>, Error> {
        self.region.get_async(self.key(arguments)).await
    }

    /// Stores a result in the cache.
    ///
    /// # Errors
    /// If the result cannot be encoded or the backend fails.
    pub async fn set_async(&self, arguments: &A, value: &V) -> Result<(), Error> {
        self.region.set_async(self.key(arguments), value).await
    }

    /// Calls the function and stores its result, whatever the cache holds.
    ///
    /// # Errors
    /// [`GetError::Create`] with the function's error; [`GetError::Cache`] if the result cannot be stored.
    pub async fn refresh_async(&self, arguments: &A) -> Result<V, GetError<E>> {
        let value = (self.function)(arguments).await.map_err(GetError::Create)?;
        self.set_async(arguments, &value).await?;
        Ok(value)
    }

    /// Deletes the result from the cache.
    ///
    /// # Errors
    /// If the backend fails.
    pub async fn invalidate_async(&self, arguments: &A) -> Result<(), Error> {
        self.region.delete_async(self.key(arguments)).await
    }
}

/// Operations for tasks (feature `tokio`). Each future may be dropped at any time.
impl<B, S, L, M, I, A, V, E, F> FunctionMany<Region<B, S, L, M, I>, A, V, E, F>
where
    B: AsyncBackend,
    S: Codec<V>,
    L: AsyncLock<B>,
    M: KeyMap,
    I: Invalidation,
    V: Clone,
    F: AsyncFn(&[&A]) -> Result<Vec<V>, E>,
{
    /// Returns the results for these arguments, in their order: from the cache, or by calling the function
    /// with the arguments whose results are missing.
    ///
    /// # Errors
    /// As [`Region::get_or_create_many_async`].
    pub async fn call_async(&self, arguments: &[A]) -> Result<Vec<V>, GetError<E>>
    where
        V: 'static,
    {
        let create = |missing: Vec<_>| async move { (self.function)(&missing).await };
        let caller = self.region.caller(Async, &self.region.inner.backend, &self.region.inner.lock);
        caller.create_many(&self.keys(arguments), arguments, create).await
    }

    /// Returns the fresh results in the cache, in the order of the arguments. Does not call the function.
    ///
    /// # Errors
    /// If the backend fails.
    pub async fn get_async(&self, arguments: &[A]) -> Result<Vec<Option<V>>, Error> {
        self.region.get_many_async(&self.keys(arguments)).await
    }

    /// Stores results in the cache.
    ///
    /// # Errors
    /// If a result cannot be encoded or the backend fails.
    pub async fn set_async(&self, results: &[(A, V)]) -> Result<(), Error> {
        let keys: Vec<KeyBuf> = results.iter().map(|(arguments, _)| (self.make_key)(arguments)).collect();
        self.region.set_all_async(keys.iter().zip(results.iter().map(|(_, value)| value))).await
    }

    /// Calls the function and stores its results, whatever the cache holds.
    ///
    /// # Errors
    /// [`GetError::Create`] with the function's error; [`GetError::Cache`] if the results cannot be stored.
    pub async fn refresh_async(&self, arguments: &[A]) -> Result<Vec<V>, GetError<E>> {
        let missing: Vec<&A> = arguments.iter().collect();
        let values = Self::check(arguments, (self.function)(&missing).await.map_err(GetError::Create)?)?;
        self.region.set_all_async(self.keys(arguments).iter().zip(&values)).await?;
        Ok(values)
    }

    /// Deletes results from the cache.
    ///
    /// # Errors
    /// If the backend fails.
    pub async fn invalidate_async(&self, arguments: &[A]) -> Result<(), Error> {
        self.region.delete_many_async(&self.keys(arguments)).await
    }
}
