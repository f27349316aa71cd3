//! Codecs for entries, keys and locks that are shared with Python services (feature `python`).
//!
//! # Entries
//!
//! The configuration of the Python region determines the codec. It reads the entries of that region
//! and writes entries that the region reads:
//!
//! | Python region | codec |
//! |---|---|
//! | `dogpile.cache.redis` or `dogpile_backend_redis_advanced` with defaults, since dogpile.cache 1.1 | [`Pickle`] |
//! | the same with a `serializer` that encodes the result of `json.dumps` | `Json<JsonMeta>` |
//! | the same with the `serializer` `msgpack.packb` | `Msgpack<JsonMeta>`, `Serde<JsonMeta>` |
//! | the same before dogpile.cache 1.1, with version 1 | `Pickle<Full>` with `.version(1)` |
//! | `Serializer_PickleIntTime_ProxyBackend` | `Pickle<Seconds>` |
//! | `Serializer_PickleNoMeta_ProxyBackend` | `Pickle<Bare>` |
//! | `Serializer_Raw_ProxyBackend` | [`Raw`](super::Raw) |
//! | the serializer from the README of `dogpile_backend_redis_advanced`: msgpack of payload and metadata | `Msgpack<Full>`, `Serde<Full>` |
//! | msgpack of payload and `int(time)` | `Msgpack<Seconds>`, `Serde<Seconds>` |
//! | msgpack of the payload | `Msgpack<Bare>`, `Serde<Bare>` |
//! | JSON in the same three ways | `Json<Full>`, `Json<Seconds>`, `Json<Bare>` |
//!
//! [`Pickle`] reads only pickles of plain data. If the Python service caches dates, decimals or
//! instances of its own classes, configure it to write msgpack or JSON.
//!
//! # Keys
//!
//! - Plain keys are the same in both languages.
//! - For functions decorated with `cache_on_arguments`, [`function_name`] returns the matching
//!   name.
//! - The backend `hstore` uses pairs as keys. A pair is also a key here: a field of a hash.
//! - For a `key_mangler` that computes SHA-1, use the key map [`Digest`](crate::keymap::Digest).
//!
//! # Locks
//!
//! Locks are shared if the Python region sets `distributed_lock`. Use the default
//! [`RedisLock`](crate::RedisLock) with `dogpile_backend_redis_advanced`, whose lock prefix is
//! `_lok.`, and `RedisLock::new().prefix("_lock")` with the Redis backend of `dogpile.cache`
//! itself.

mod data;
mod graph;
mod json_meta;
mod opcodes;
mod pickle;

pub use self::json_meta::JsonMeta;
pub use self::pickle::Pickle;

/// Returns the name under which `cache_on_arguments` caches the results of a Python function.
///
/// The name is `module:name`, or `module:name|namespace`. Pass it to
/// [`Region::function`](crate::Region::function) or
/// [`function_many`](crate::Region::function_many), which append `|` and the arguments. Python
/// formats the arguments with `str`, and [`KeyArgs`](crate::region::KeyArgs) formats them in the
/// same way. Omit the `self` or `cls` of a method; it is not part of the key.
///
/// # Cost
///
/// Allocates the returned string.
///
/// ```
/// use dogpile::codec::python::{JsonMeta, Pickle, function_name};
/// use dogpile::{Memory, Region};
///
/// // The module shop.prices of a Python service contains:
/// //     @region.cache_on_arguments(namespace="v2")
/// //     def price(article, discount, currency=None): ...
/// let region = Region::builder(Memory::new(1 << 20)).codec(Pickle::<JsonMeta>::new()).build()?;
/// let price = region.function(
///     &function_name("shop.prices", "price", Some("v2")),
///     |(article, discount, _): &(u64, f64, Option<String>)| Ok::<_, std::io::Error>(*article as f64 * discount),
/// );
///
/// // Both services use this key for price(15, 0.5, None).
/// assert_eq!(price.key(&(15, 0.5, None)).as_key(), "shop.prices:price|v2|15 0.5 None".into());
/// assert_eq!(price.call(&(15, 0.5, None))?, 7.5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn function_name(module: &str, name: &str, namespace: Option<&str>) -> String {
    match namespace {
        None => format!("{module}:{name}"),
        Some(namespace) => format!("{module}:{name}|{namespace}"),
    }
}
