//! Cached functions: a function whose results are values of a region, under keys made from its arguments.

#[cfg(feature = "tokio")]
mod asynchronous;

use std::borrow::Cow;
use std::fmt;
use std::future::ready;
use std::marker::PhantomData;

use crate::backend::Backend;
use crate::codec::Codec;
use crate::error::{Error, GetError};
use crate::exec::{Thread, now};
use crate::float::Repr;
use crate::freshness::Invalidation;
use crate::key::KeyBuf;
use crate::keymap::KeyMap;
use crate::lock::Lock;
use crate::region::Region;
use crate::region::call::Call;
use crate::region::create::wrong_number;

/// Arguments that a key can be made from: text, integers, `f64`, `bool`, `Option`, and tuples and references of these.
///
/// Each is written as Python's `str` writes it, and several are joined by a space, as `cache_on_arguments` of
/// `dogpile.cache` does. Text that contains spaces can thus make the same key as other arguments;
/// [`Function::keyed_by`] is for those, and for a tuple as one argument of several, which is joined like the others here.
pub trait KeyArgs {
    /// Appends the arguments to a key.
    fn write(&self, key: &mut KeyBuf);
}

macro_rules! args_by_digits {
    ($($type:ty),+) => {$(
        impl KeyArgs for $type {
            fn write(&self, key: &mut KeyBuf) {
                key.push(itoa::Buffer::new().format(*self).as_bytes());
            }
        }
    )+};
}

args_by_digits!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize);

macro_rules! args_by_text {
    ($($type:ty),+) => {$(
        impl KeyArgs for $type {
            fn write(&self, key: &mut KeyBuf) {
                key.push(self.as_bytes());
            }
        }
    )+};
}

args_by_text!(str, String, Box<str>, Cow<'_, str>);

impl KeyArgs for char {
    fn write(&self, key: &mut KeyBuf) {
        key.push(self.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

/// `1.0`, `0.1`, `1e+16`, `1e-05`, `nan` or `inf`, as Python writes them.
impl KeyArgs for f64 {
    fn write(&self, key: &mut KeyBuf) {
        key.push(Repr::new(*self).as_bytes());
    }
}

/// The argument, or `None`, as Python writes it: not to be told from the text "None".
impl<A: KeyArgs> KeyArgs for Option<A> {
    fn write(&self, key: &mut KeyBuf) {
        match self {
            Some(argument) => argument.write(key),
            None => key.push(b"None"),
        }
    }
}

/// `True` or `False`, as Python writes them.
impl KeyArgs for bool {
    fn write(&self, key: &mut KeyBuf) {
        key.push(if *self { b"True" } else { b"False" });
    }
}

impl KeyArgs for () {
    fn write(&self, _: &mut KeyBuf) {}
}

impl<A: KeyArgs + ?Sized> KeyArgs for &A {
    fn write(&self, key: &mut KeyBuf) {
        (**self).write(key);
    }
}

macro_rules! args_of_tuples {
    ($(($first:ident $($rest:ident)*))+) => {$(
        impl<$first: KeyArgs, $($rest: KeyArgs),*> KeyArgs for ($first, $($rest,)*) {
            #[allow(non_snake_case)]
            fn write(&self, key: &mut KeyBuf) {
                let ($first, $($rest,)*) = self;
                $first.write(key);
                $(
                    key.push(b" ");
                    $rest.write(key);
                )*
            }
        }
    )+};
}

args_of_tuples!((A)(A B)(A B C)(A B C D)(A B C D E)(A B C D E F));

/// Makes the key of a call from its arguments.
type MakeKey<A> = Box<dyn Fn(&A) -> KeyBuf + Send + Sync>;

/// `name|arg1 arg2`.
fn named<A: KeyArgs>(name: &str) -> MakeKey<A> {
    let name = format!("{name}|");
    Box::new(move |arguments| {
        let mut key = KeyBuf::new().text(&name);
        arguments.write(&mut key);
        key
    })
}

impl<B: Backend, S, L: Lock<B>, M: KeyMap, I: Invalidation> Region<B, S, L, M, I> {
    /// Makes a function cached: its results are kept in this region, under `name|arg1 arg2`.
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
        Function { region: self.clone(), function, make_key: named(name), makes: PhantomData }
    }

    /// Makes a function of many arguments at once cached: it is called for those whose results are not there.
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
        FunctionMany { region: self.clone(), function, make_key: named(name), makes: PhantomData }
    }
}

/// A cached function, from [`Region::function`].
pub struct Function<R, A, V, E, F> {
    region: R,
    function: F,
    make_key: MakeKey<A>,
    makes: PhantomData<fn() -> (V, E)>,
}

impl<R, A, V, E, F> Function<R, A, V, E, F> {
    /// Makes the keys in another way.
    #[must_use]
    pub fn keyed_by(mut self, make_key: impl Fn(&A) -> KeyBuf + Send + Sync + 'static) -> Self {
        self.make_key = Box::new(make_key);
        self
    }

    /// The key of the result for these arguments.
    pub fn key(&self, arguments: &A) -> KeyBuf {
        (self.make_key)(arguments)
    }

    /// The function itself, uncached.
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
    /// The result for these arguments, from the cache or by calling the function.
    ///
    /// # Errors
    /// As [`Region::get_or_create`].
    pub fn call(&self, arguments: &A) -> Result<V, GetError<E>> {
        self.region.get_or_create(self.key(arguments), || (self.function)(arguments))
    }

    /// The result in the cache, if it is there and fresh.
    ///
    /// # Errors
    /// As [`Region::get`].
    pub fn get(&self, arguments: &A) -> Result<Option<V>, Error> {
        self.region.get(self.key(arguments))
    }

    /// Puts a result into the cache.
    ///
    /// # Errors
    /// As [`Region::set`].
    pub fn set(&self, arguments: &A, value: &V) -> Result<(), Error> {
        self.region.set(self.key(arguments), value)
    }

    /// Calls the function and puts the result into the cache, whatever is there.
    ///
    /// # Errors
    /// The function's error; [`GetError::Cache`] when the result could not be stored.
    pub fn refresh(&self, arguments: &A) -> Result<V, GetError<E>> {
        let value = (self.function)(arguments).map_err(GetError::Create)?;
        self.set(arguments, &value)?;
        Ok(value)
    }

    /// Removes the result from the cache.
    ///
    /// # Errors
    /// As [`Region::delete`].
    pub fn invalidate(&self, arguments: &A) -> Result<(), Error> {
        self.region.delete(self.key(arguments))
    }
}

/// A cached function of many arguments at once, from [`Region::function_many`].
pub struct FunctionMany<R, A, V, E, F> {
    region: R,
    function: F,
    make_key: MakeKey<A>,
    makes: PhantomData<fn() -> (V, E)>,
}

impl<R, A, V, E, F> FunctionMany<R, A, V, E, F> {
    /// Makes the keys in another way.
    #[must_use]
    pub fn keyed_by(mut self, make_key: impl Fn(&A) -> KeyBuf + Send + Sync + 'static) -> Self {
        self.make_key = Box::new(make_key);
        self
    }

    /// The keys of the results for these arguments.
    pub fn keys(&self, arguments: &[A]) -> Vec<KeyBuf> {
        arguments.iter().map(&self.make_key).collect()
    }

    /// The function itself, uncached.
    pub fn original(&self) -> &F {
        &self.function
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
    /// The results for these arguments, in their order, from the cache or by calling the function for those that are
    /// not there.
    ///
    /// # Errors
    /// As [`Region::get_or_create_many`].
    pub fn call(&self, arguments: &[A]) -> Result<Vec<V>, GetError<E>> {
        let create = |missing: Vec<_>| ready((self.function)(&missing));
        now(Call::new(&self.region).create_many_on(Thread, &self.keys(arguments), arguments, create))
    }

    /// The results in the cache, in the arguments' order.
    ///
    /// # Errors
    /// As [`Region::get_many`].
    pub fn get(&self, arguments: &[A]) -> Result<Vec<Option<V>>, Error> {
        self.region.get_many(&self.keys(arguments))
    }

    /// Puts results into the cache.
    ///
    /// # Errors
    /// As [`Region::set_many`].
    pub fn set(&self, results: &[(A, V)]) -> Result<(), Error> {
        let keys: Vec<KeyBuf> = results.iter().map(|(arguments, _)| (self.make_key)(arguments)).collect();
        Call::new(&self.region).set_all(keys.iter().zip(results.iter().map(|(_, value)| value)))
    }

    /// Calls the function and puts the results into the cache, whatever is there.
    ///
    /// # Errors
    /// The function's error; [`GetError::Cache`] when the results could not be stored.
    pub fn refresh(&self, arguments: &[A]) -> Result<Vec<V>, GetError<E>> {
        let missing: Vec<&A> = arguments.iter().collect();
        let values = (self.function)(&missing).map_err(GetError::Create)?;
        if values.len() != arguments.len() {
            return Err(wrong_number(arguments.len(), values.len()).into());
        }
        Call::new(&self.region).set_all(self.keys(arguments).iter().zip(&values))?;
        Ok(values)
    }

    /// Removes results from the cache.
    ///
    /// # Errors
    /// As [`Region::delete_many`].
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
