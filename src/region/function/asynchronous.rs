//! Cached functions of tasks: asynchronous functions whose results are values of a region.

use std::marker::PhantomData;

use crate::backend::AsyncBackend;
use crate::codec::Codec;
use crate::error::{Error, GetError};
use crate::exec::Task;
use crate::freshness::Invalidation;
use crate::key::KeyBuf;
use crate::keymap::KeyMap;
use crate::lock::AsyncLock;
use crate::region::Region;
use crate::region::call::Call;
use crate::region::create::wrong_number;
use crate::region::function::{Function, FunctionMany, KeyArgs, named};

/// For callers that are tasks. Feature `tokio`.
impl<B: AsyncBackend, S, L: AsyncLock<B>, M: KeyMap, I: Invalidation> Region<B, S, L, M, I> {
    /// As [`Region::function`], of an asynchronous function. One that is to be called in spawned tasks owns what it uses
    /// (`async move`), since the compiler cannot tell of one that borrows that its futures are `Send`.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// let square = region.function_async("square", async |n: &u64| Ok::<_, std::io::Error>(n * n));
    ///
    /// assert_eq!(square.call_async(&7).await?, 49);
    /// assert_eq!(region.get_async("square|7").await?, Some(49_u64));
    /// assert_eq!(square.refresh_async(&7).await?, 49);
    /// square.invalidate_async(&7).await?;
    /// assert_eq!(square.get_async(&7).await?, None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn function_async<A: KeyArgs + 'static, V, E, F>(&self, name: &str, function: F) -> Function<Self, A, V, E, F>
    where
        S: Codec<V>,
        F: AsyncFn(&A) -> Result<V, E>,
    {
        Function { region: self.clone(), function, make_key: named(name), makes: PhantomData }
    }

    /// As [`Region::function_many`], of an asynchronous function; see [`Region::function_async`].
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// let squares = region.function_many_async("square", async |numbers: &[&u64]| {
    ///     Ok::<_, std::io::Error>(numbers.iter().map(|n| **n * **n).collect())
    /// });
    /// assert_eq!(squares.call_async(&[3, 4, 3]).await?, [9, 16, 9]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn function_many_async<A: KeyArgs + 'static, V: Clone, E, F>(
        &self,
        name: &str,
        function: F,
    ) -> FunctionMany<Self, A, V, E, F>
    where
        S: Codec<V>,
        F: AsyncFn(&[&A]) -> Result<Vec<V>, E>,
    {
        FunctionMany { region: self.clone(), function, make_key: named(name), makes: PhantomData }
    }
}

/// For callers that are tasks. Feature `tokio`.
impl<B, S, L, M, I, A, V, E, F> Function<Region<B, S, L, M, I>, A, V, E, F>
where
    B: AsyncBackend,
    S: Codec<V>,
    L: AsyncLock<B>,
    M: KeyMap,
    I: Invalidation,
    F: AsyncFn(&A) -> Result<V, E>,
{
    /// As [`Function::call`].
    ///
    /// # Errors
    /// As [`Region::get_or_create_async`].
    pub async fn call_async(&self, arguments: &A) -> Result<V, GetError<E>> {
        self.region.get_or_create_async(self.key(arguments), || (self.function)(arguments)).await
    }

    /// As [`Function::get`].
    ///
    /// # Errors
    /// As [`Region::get_async`].
    pub async fn get_async(&self, arguments: &A) -> Result<Option<V>, Error> {
        self.region.get_async(self.key(arguments)).await
    }

    /// As [`Function::set`].
    ///
    /// # Errors
    /// As [`Region::set_async`].
    pub async fn set_async(&self, arguments: &A, value: &V) -> Result<(), Error> {
        self.region.set_async(self.key(arguments), value).await
    }

    /// As [`Function::refresh`].
    ///
    /// # Errors
    /// As there.
    pub async fn refresh_async(&self, arguments: &A) -> Result<V, GetError<E>> {
        let value = (self.function)(arguments).await.map_err(GetError::Create)?;
        self.set_async(arguments, &value).await?;
        Ok(value)
    }

    /// As [`Function::invalidate`].
    ///
    /// # Errors
    /// As [`Region::delete_async`].
    pub async fn invalidate_async(&self, arguments: &A) -> Result<(), Error> {
        self.region.delete_async(self.key(arguments)).await
    }
}

/// For callers that are tasks. Feature `tokio`.
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
    /// As [`FunctionMany::call`].
    ///
    /// # Errors
    /// As [`Region::get_or_create_many_async`].
    pub async fn call_async(&self, arguments: &[A]) -> Result<Vec<V>, GetError<E>> {
        let create = |missing: Vec<_>| async move { (self.function)(&missing).await };
        Call::new(&self.region).create_many_on(Task, &self.keys(arguments), arguments, create).await
    }

    /// As [`FunctionMany::get`].
    ///
    /// # Errors
    /// As [`Region::get_many_async`].
    pub async fn get_async(&self, arguments: &[A]) -> Result<Vec<Option<V>>, Error> {
        self.region.get_many_async(&self.keys(arguments)).await
    }

    /// As [`FunctionMany::set`].
    ///
    /// # Errors
    /// As [`Region::set_many_async`].
    pub async fn set_async(&self, results: &[(A, V)]) -> Result<(), Error> {
        let keys: Vec<KeyBuf> = results.iter().map(|(arguments, _)| (self.make_key)(arguments)).collect();
        let entries = keys.iter().zip(results.iter().map(|(_, value)| value));
        Call::new(&self.region).set_all_async(entries).await
    }

    /// As [`FunctionMany::refresh`].
    ///
    /// # Errors
    /// As there.
    pub async fn refresh_async(&self, arguments: &[A]) -> Result<Vec<V>, GetError<E>> {
        let missing: Vec<&A> = arguments.iter().collect();
        let values = (self.function)(&missing).await.map_err(GetError::Create)?;
        if values.len() != arguments.len() {
            return Err(wrong_number(arguments.len(), values.len()).into());
        }
        Call::new(&self.region).set_all_async(self.keys(arguments).iter().zip(&values)).await?;
        Ok(values)
    }

    /// As [`FunctionMany::invalidate`].
    ///
    /// # Errors
    /// As [`Region::delete_many_async`].
    pub async fn invalidate_async(&self, arguments: &[A]) -> Result<(), Error> {
        self.region.delete_many_async(&self.keys(arguments)).await
    }
}
