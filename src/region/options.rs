//! [`Options`]: what a call may do differently from other calls of the same region.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use crate::freshness::{Expiry, MaxAge};

/// The options of a region, or of a handle that [`Region::with`](crate::Region::with) derives.
///
/// The struct is plain data. Build it in code, change single fields of another one, or read it from a
/// configuration file (feature `serde`): durations are written as `"5m"` or `"1h 30m"`, an absent
/// duration as `"none"`, and unknown fields are refused.
///
/// ```
/// use std::time::Duration;
///
/// use dogpile::{Memory, Options, Region};
///
/// let options = Options {
///     stale_after: Duration::from_secs(300).into(),
///     ttl: Some(Duration::from_secs(3600)),
///     ..Options::default()
/// };
/// let region = Region::builder(Memory::new(1 << 20)).options(&options).build()?;
/// assert_eq!(region.options().ttl, Some(Duration::from_secs(3600)));
/// # Ok::<(), dogpile::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Options {
    /// The soft expiry: how old an entry gets before it is stale. One caller then creates the value
    /// anew and the others get the stale one. Default: [`Expiry::Never`].
    #[cfg_attr(feature = "serde", serde(with = "durations::expiry"))]
    pub stale_after: Expiry,
    /// The hard expiry: how long the backend keeps an entry, to the millisecond. Must exceed
    /// `stale_after` for stale values to be served. Default: as long as the backend has room.
    #[cfg_attr(feature = "serde", serde(with = "durations::optional"))]
    pub ttl: Option<Duration>,
    /// How long a call waits in all for creations of other callers and for a permit to create. The
    /// call's own creator does not count. Zero does not wait at all. Default: without limit.
    #[cfg_attr(feature = "serde", serde(with = "durations::optional"))]
    pub wait_timeout: Option<Duration>,
    /// What happens to a call that has waited for `wait_timeout`. Default: it fails.
    pub on_wait_timeout: OnWaitTimeout,
    /// Whether entries of any age are fresh, invalidated ones too. Default: `false`.
    pub ignore_expiry: bool,
    /// Whether `get_or_create` fails if the backend or the lock fails. Default: `false`: the creator
    /// runs, its value is returned, and [`Stats`](crate::Stats) counts the error.
    pub fail_closed: bool,
}

/// What happens to a call that has waited longer than its `wait_timeout`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum OnWaitTimeout {
    /// It fails with an error of kind [`ErrorKind::Timeout`](crate::ErrorKind::Timeout). The default.
    #[default]
    Fail,
    /// It creates the value for itself, beside the creation that it waited for, and stores it. If all
    /// permits of [`max_creations`](crate::RegionBuilder::max_creations) are taken, it fails.
    Create,
}

/// The options of a handle as calls use them.
#[derive(Clone)]
pub(crate) struct CallOptions {
    options: Options,
    /// The age up to which an entry is fresh. `None` accepts any age and invalidated entries.
    pub(crate) max_age: Option<MaxAge>,
    store_if: Option<StoreIf>,
}

/// A predicate on created values, erased so that `Region` has no type parameter for it.
#[derive(Clone)]
struct StoreIf(Arc<Predicate>);

type Predicate = dyn Fn(&dyn Any) -> bool + Send + Sync;

impl CallOptions {
    pub(crate) fn new(options: Options) -> Self {
        let max_age = (!options.ignore_expiry).then(|| options.stale_after.into());
        CallOptions { options, max_age, store_if: None }
    }

    /// Replaces the options and keeps the predicate.
    pub(crate) fn with(&self, options: Options) -> Self {
        CallOptions { store_if: self.store_if.clone(), ..Self::new(options) }
    }

    /// Stores created values of type `V` only if `predicate` holds.
    pub(crate) fn store_if<V: 'static>(&self, predicate: impl Fn(&V) -> bool + Send + Sync + 'static) -> Self {
        let erased = move |value: &dyn Any| value.downcast_ref::<V>().is_none_or(&predicate);
        CallOptions { store_if: Some(StoreIf(Arc::new(erased))), ..self.clone() }
    }

    /// Returns whether a created value is stored.
    pub(crate) fn stores<V: 'static>(&self, value: &V) -> bool {
        self.store_if.as_ref().is_none_or(|store_if| (store_if.0)(value))
    }

    pub(crate) fn as_options(&self) -> &Options {
        &self.options
    }
}

impl Deref for CallOptions {
    type Target = Options;

    #[inline]
    fn deref(&self) -> &Options {
        &self.options
    }
}

impl fmt::Debug for CallOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.options.fmt(f)
    }
}

/// Durations in configuration files: `"5m"`, and `"none"` or `"never"` for none.
#[cfg(feature = "serde")]
mod durations {
    use std::time::Duration;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::{Serialize, Serializer};

    fn read<'de, D: Deserializer<'de>>(none: &str, deserializer: D) -> Result<Option<Duration>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        if text == none {
            return Ok(None);
        }
        let parsed = humantime::parse_duration(&text);
        parsed.map(Some).map_err(|error| {
            D::Error::custom(format!("{text:?} is no duration ({error}); write \"5m\", \"1h 30m\" or {none:?}"))
        })
    }

    fn write<S: Serializer>(duration: Option<Duration>, none: &str, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => humantime::format_duration(duration).to_string().serialize(serializer),
            None => none.serialize(serializer),
        }
    }

    pub(super) mod optional {
        use super::*;

        pub(crate) fn serialize<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
            write(*duration, "none", to)
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
            read("none", from)
        }
    }

    pub(super) mod expiry {
        use super::*;
        use crate::freshness::Expiry;

        pub(crate) fn serialize<S: Serializer>(expiry: &Expiry, to: S) -> Result<S::Ok, S::Error> {
            let age = match expiry {
                Expiry::Never => None,
                Expiry::After(age) => Some(*age),
            };
            write(age, "never", to)
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Expiry, D::Error> {
            Ok(read("never", from)?.map_or(Expiry::Never, Expiry::After))
        }
    }
}

#[cfg(all(test, feature = "serde"))]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_from_configuration_files() {
        let text = r#"{"stale_after": "5m", "ttl": "1h 30m", "wait_timeout": "30s", "on_wait_timeout": "create"}"#;
        let options: Options = serde_json::from_str(text).unwrap();
        let expected = Options {
            stale_after: Expiry::After(Duration::from_secs(300)),
            ttl: Some(Duration::from_secs(5400)),
            wait_timeout: Some(Duration::from_secs(30)),
            on_wait_timeout: OnWaitTimeout::Create,
            ..Options::default()
        };
        assert_eq!(options, expected);
        let written = serde_json::to_string(&options).unwrap();
        assert!(written.contains(r#""ttl":"1h 30m""#), "{written}");
        assert_eq!(serde_json::from_str::<Options>(&written).unwrap(), options);
    }

    #[test]
    fn absent_durations_have_a_word_of_their_own() {
        let text = r#"{"stale_after": "never", "ttl": "none", "wait_timeout": null}"#;
        assert_eq!(serde_json::from_str::<Options>(text).unwrap(), Options::default());
        let written = serde_json::to_string(&Options::default()).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&written).unwrap(), Options::default());
    }

    #[test]
    fn unknown_fields_and_malformed_durations_are_refused() {
        let refused = |text| serde_json::from_str::<Options>(text).unwrap_err().to_string();
        assert!(refused(r#"{"stale_afer": "5m"}"#).contains("stale_afer"));
        let error = refused(r#"{"ttl": "5 parsecs"}"#);
        assert!(error.contains("5 parsecs") && error.contains("1h 30m"), "{error}");
        assert!(refused(r#"{"ttl": 5}"#).contains("expected a string"));
    }
}
