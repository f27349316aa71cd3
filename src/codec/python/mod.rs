//! Entries and keys shared with services in Python. Feature `python`.
//!
//! What a region in Python is configured with says which codec reads its entries, and writes entries that it reads:
//!
//! | in Python | codec |
//! |---|---|
//! | `dogpile.cache.redis` or `dogpile_backend_redis_advanced` as they are, since dogpile.cache 1.1 | [`Pickle`] |
//! | the same, with a `serializer` of `json.dumps`, encoded | `Json<JsonMeta>` |
//! | the same, with the `serializer` `msgpack.packb` | `Msgpack<JsonMeta>`, `Serde<JsonMeta>` |
//! | the same, before 1.1, whose version is 1 | `Pickle<Full>`, with `.version(1)` |
//! | `Serializer_PickleIntTime_ProxyBackend` | `Pickle<Seconds>` |
//! | `Serializer_PickleNoMeta_ProxyBackend` | `Pickle<Bare>` |
//! | `Serializer_Raw_ProxyBackend` | [`Raw`](super::Raw) |
//! | a serializer of its README: msgpack of payload and metadata | `Msgpack<Full>`, `Serde<Full>` |
//! | msgpack of payload and `int(time)` | `Msgpack<Seconds>`, `Serde<Seconds>` |
//! | msgpack of the payload | `Msgpack<Bare>`, `Serde<Bare>` |
//! | JSON in the same three ways | `Json<Full>`, `Json<Seconds>`, `Json<Bare>` |
//!
//! Pickles of anything but plain data are not read: where Python caches dates, decimals or objects of its own, let it
//! write msgpack or JSON.
//!
//! Keys are shared as they are. The key of a call to a function under `cache_on_arguments` is made by
//! [`function_name`]. A key that is a pair in Python, for the backend `hstore`, is one here: a field of a hash. A
//! `key_mangler` that takes SHA-1 is the key map [`Digest`](crate::Digest).
//!
//! Locks are shared, too, where Python has `distributed_lock` set: by [`RedisLock`](crate::RedisLock) as it is with
//! `dogpile_backend_redis_advanced`, whose prefix is `_lok.`, and by `RedisLock::new().prefix("_lock")` with
//! `dogpile.cache`'s own backend.

mod data;
mod graph;
mod json_meta;
mod opcodes;
mod pickle;

pub use self::json_meta::JsonMeta;
pub use self::pickle::Pickle;

/// The name under which `cache_on_arguments` keeps the results of a Python function: `module:name`, or
/// `module:name|namespace`. One allocation, for the name.
///
/// To be given to [`Region::function`](crate::Region::function) or
/// [`function_many`](crate::Region::function_many), which append `|` and the arguments; Python writes those by `str`,
/// as [`KeyArgs`](crate::KeyArgs) does. A method's `self` or `cls` is no argument.
///
/// ```
/// use dogpile::codec::python::{JsonMeta, Pickle, function_name};
/// use dogpile::{Memory, Region};
///
/// // In the module shop.prices of a Python service:
/// //     @region.cache_on_arguments(namespace="v2")
/// //     def price(article, discount, currency=None): ...
/// let region = Region::builder(Memory::new(1 << 20)).codec(Pickle::<JsonMeta>::new()).build()?;
/// let price = region.function(
///     &function_name("shop.prices", "price", Some("v2")),
///     |(article, discount, _): &(u64, f64, Option<String>)| Ok::<_, std::io::Error>(*article as f64 * discount),
/// );
///
/// // The key of price(15, 0.5, None), there and here.
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
