//! Cached functions: the results of a function are values of a region, under keys made of its arguments.

mod args;
#[cfg(feature = "tokio")]
mod asynchronous;

use std::fmt;
use std::marker::PhantomData;

use crate::backend::Backend;
use crate::codec::Codec;
use crate::error::{Error, GetError};
use crate::freshness::Invalidation;
use crate::key::KeyBuf;
use crate::keymap::KeyMap;
use crate::lock::Lock;
use crate::region::Region;
use crate::region::create::wrong_number;

pub use self::args::KeyArgs;

/// Makes the key of a call from its arguments.
type MakeKey<A> = Box<dyn Fn(&A) -> KeyBuf + Send + Sync>;

/// Makes keys of the form `name|arg1 arg2`.
fn named<A: KeyArgs>(name: &str) -> MakeKey<A> {
    let name = format!("{name}|");
    Box::new(move |arguments| {
        let mut key = KeyBuf::new().text(&name);
        arguments.write(&mut key);
        key
    })
}

impl<B: Backend, S, L: Lock<B>, M: KeyMap, I: Invalidation> Region<B, S, L, M, I> {
    /// Makes a function cached: its results are values of this region, under `name|arg1 arg2`.
    ///
    /// The handle's options apply: derive a handle first for another TTL or soft expiry.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// let square = region.function("square", |n: &u64| Ok::<_, std::io::Error>(n * n));
    ///
    /// assert_eq!(square.call(&7)?, 49);
    /// assert_eq!(square.get(&7)?, Some(49));
    /// assert_eq!(region.get::<u64>("square|7")?, Some(49));
    /// square.set(&7, &50)?;
    /// assert_eq!(square.call(&7)?, 50);
    /// assert_eq!(square.refresh(&7)?, 49);
    /// square.invalidate(&7)?;
    /// assert_eq!(square.get(&7)?, None);
    /// assert_eq!(square.original()(&8)?, 64);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn function<A: KeyArgs + 'static, V, E, F>(&self, name: &str, function: F) -> Function<Self, A, V, E, F>
    where
        S: Codec<V>,
        F: Fn(&A) -> Result<V, E>,
    {
        Function::new(self.clone(), name, function)
    }

    /// Makes a function of many arguments at once cached: it is called with those whose results are
    /// missing.
    ///
    /// ```
    /// use dogpile::{Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// let squares = region.function_many("square", |numbers: &[&u64]| {
    ///     Ok::<_, std::io::Error>(numbers.iter().map(|n| **n * **n).collect())
    /// });
    /// assert_eq!(squares.call(&[3, 4, 3])?, [9, 16, 9]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn function_many<A: KeyArgs + 'static, V: Clone, E, F>(
        &self,
        name: &str,
        function: F,
    ) -> FunctionMany<Self, A, V, E, F>
    where
        S: Codec<V>,
        F: Fn(&[&A]) -> Result<Vec<V>, E>,
    {
        FunctionMany::new(self.clone(), name, function)
    }
}

/// A cached function. Made by [`Region::function`] or `Region::async_function`.
pub struct Function<R, A, V, E, F> {
    region: R,
    function: F,
    make_key: MakeKey<A>,
    types: PhantomData<fn() -> (V, E)>,
}

impl<R, A, V, E, F> Function<R, A, V, E, F> {
    fn new(region: R, name: &str, function: F) -> Self
    where
        A: KeyArgs + 'static,
    {
        Function { region, function, make_key: named(name), types: PhantomData }
    }

    /// Replaces the way in which keys are made.
    ///
    /// ```
    /// use dogpile::{KeyBuf, Memory, Region};
    ///
    /// let region = Region::builder(Memory::new(1 << 20)).build()?;
    /// let greet = region
    ///     .function("greet", |name: &String| Ok::<_, std::io::Error>(format!("Hello, {name}!")))
    ///     .keyed_by(|name| KeyBuf::new().text("greet|").text(&name.to_lowercase()));
    /// assert_eq!(greet.call(&"Ann".into())?, "Hello, Ann!");
    /// assert_eq!(greet.call(&"ANN".into())?, "Hello, Ann!");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn keyed_by(mut self, make_key: impl Fn(&A) -> KeyBuf + Send + Sync + 'static) -> Self {
        self.make_key = Box::new(make_key);
        self
    }

    /// Returns the key of the result for these arguments.
    pub fn key(&self, arguments: &A) -> KeyBuf {
        (self.make_key)(arguments)
    }

    /// Returns the function itself, uncached.
    pub fn original(&self) -> &F {
        &self.function
    }
}

impl<B, S, L, M, I, A, V, E, F> Function<Region<B, S, L, M, I>, A, V, E, F>
where
    B: Backend,
    S: Codec<V>,
    L: Lock<B>,
    M: KeyMap,
    I: Invalidation,
    F: Fn(&A) -> Result<V, E>,
{
    /// Returns the result for these arguments, from the cache or by calling the function.
    ///
    /// # Errors
    /// As [`Region::get_or_create`].
    ///
    /// # Cost
    /// As [`Region::get_or_create`], and the allocation of the key if it is longer than 46 bytes.
    pub fn call(&self, arguments: &A) -> Result<V, GetError<E>>
    where
        V: 'static,
    {
        self.region.get_or_create(self.key(arguments), || (self.function)(arguments))
    }

    /// Returns the result in the cache, if there is a fresh one. Does not call the function.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn get(&self, arguments: &A) -> Result<Option<V>, Error> {
        self.region.get(self.key(arguments))
    }

    /// Stores a result in the cache.
    ///
    /// # Errors
    /// If the result cannot be encoded or the backend fails.
    pub fn set(&self, arguments: &A, value: &V) -> Result<(), Error> {
        self.region.set(self.key(arguments), value)
    }

    /// Calls the function and stores its result, whatever the cache holds.
    ///
    /// # Errors
    /// [`GetError::Create`] with the function's error; [`GetError::Cache`] if the result cannot be stored.
    pub fn refresh(&self, arguments: &A) -> Result<V, GetError<E>> {
        let value = (self.function)(arguments).map_err(GetError::Create)?;
        self.set(arguments, &value)?;
        Ok(value)
    }

    /// Deletes the result from the cache.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn invalidate(&self, arguments: &A) -> Result<(), Error> {
        self.region.delete(self.key(arguments))
    }
}

/// A cached function of many arguments at once. Made by [`Region::function_many`] or
/// `Region::async_function_many`.
pub struct FunctionMany<R, A, V, E, F> {
    region: R,
    function: F,
    make_key: MakeKey<A>,
    types: PhantomData<fn() -> (V, E)>,
}

impl<R, A, V, E, F> FunctionMany<R, A, V, E, F> {
    fn new(region: R, name: &str, function: F) -> Self
    where
        A: KeyArgs + 'static,
    {
        FunctionMany { region, function, make_key: named(name), types: PhantomData }
    }

    /// Replaces the way in which keys are made, as [`Function::keyed_by`] does.
    #[must_use]
    pub fn keyed_by(mut self, make_key: impl Fn(&A) -> KeyBuf + Send + Sync + 'static) -> Self {
        self.make_key = Box::new(make_key);
        self
    }

    /// Returns the keys of the results for these arguments.
    pub fn keys(&self, arguments: &[A]) -> Vec<KeyBuf> {
        arguments.iter().map(&self.make_key).collect()
    }

    /// Returns the function itself, uncached.
    pub fn original(&self) -> &F {
        &self.function
    }

    /// Checks that the function has returned one result for each argument.
    fn check(arguments: &[A], values: Vec<V>) -> Result<Vec<V>, Error> {
        if values.len() != arguments.len() {
            return Err(wrong_number(arguments.len(), values.len()));
        }
        Ok(values)
    }
}

impl<B, S, L, M, I, A, V, E, F> FunctionMany<Region<B, S, L, M, I>, A, V, E, F>
where
    B: Backend,
    S: Codec<V>,
    L: Lock<B>,
    M: KeyMap,
    I: Invalidation,
    V: Clone,
    F: Fn(&[&A]) -> Result<Vec<V>, E>,
{
    /// Returns the results for these arguments, in their order: from the cache, or by calling the function
    /// with the arguments whose results are missing.
    ///
    /// # Errors
    /// As [`Region::get_or_create_many`].
    pub fn call(&self, arguments: &[A]) -> Result<Vec<V>, GetError<E>>
    where
        V: 'static,
    {
        self.region.create_many(&self.keys(arguments), arguments, |missing| (self.function)(missing))
    }

    /// Returns the fresh results in the cache, in the order of the arguments. Does not call the function.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn get(&self, arguments: &[A]) -> Result<Vec<Option<V>>, Error> {
        self.region.get_many(&self.keys(arguments))
    }

    /// Stores results in the cache.
    ///
    /// # Errors
    /// If a result cannot be encoded or the backend fails.
    pub fn set(&self, results: &[(A, V)]) -> Result<(), Error> {
        let keys: Vec<KeyBuf> = results.iter().map(|(arguments, _)| (self.make_key)(arguments)).collect();
        self.region.set_all(keys.iter().zip(results.iter().map(|(_, value)| value)))
    }

    /// Calls the function and stores its results, whatever the cache holds.
    ///
    /// # Errors
    /// [`GetError::Create`] with the function's error; [`GetError::Cache`] if the results cannot be stored.
    pub fn refresh(&self, arguments: &[A]) -> Result<Vec<V>, GetError<E>> {
        let missing: Vec<&A> = arguments.iter().collect();
        let values = Self::check(arguments, (self.function)(&missing).map_err(GetError::Create)?)?;
        self.region.set_all(self.keys(arguments).iter().zip(&values))?;
        Ok(values)
    }

    /// Deletes results from the cache.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn invalidate(&self, arguments: &[A]) -> Result<(), Error> {
        self.region.delete_many(&self.keys(arguments))
    }
}

impl<R, A, V, E, F> fmt::Debug for Function<R, A, V, E, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").finish_non_exhaustive()
    }
}

impl<R, A, V, E, F> fmt::Debug for FunctionMany<R, A, V, E, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FunctionMany").finish_non_exhaustive()
    }
}
