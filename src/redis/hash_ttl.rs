//! [`HashTtl`]: how long the fields of Redis hashes live.

use std::time::Duration;

use crate::redis::stamp::Stamp;

/// How long the fields of Redis hashes live: when the TTL of a hash is set, which is one for all its fields, or that each
/// field has one of its own.
///
/// Only [`Stamped`](Self::Stamped) changes what is stored. All who share a cache must agree on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HashTtl {
    /// Hashes never get a TTL.
    Never,
    /// A hash that has no TTL gets one with the next write: its first field starts the clock for all. The default.
    /// Needs Redis 7.0 or Valkey.
    #[default]
    OnCreate,
    /// Every write starts the clock of the whole hash anew.
    Always,
    /// Each field has a TTL of its own, to the second, on any server: a stamp before its entry says when it expires. For
    /// hashes of up to a few thousand fields, such as those of [`Bucketed`](crate::Bucketed).
    ///
    /// A stamp has as few bytes as tell of the longest TTL: 1 up to 55 seconds, 2 up to 8 hours, 3 up to 86 days, 4 beyond.
    /// Names of hashes get two bytes more, `\x7f2` for stamps of two bytes, so that entries with other stamps, or with none,
    /// are not taken for them: names that end so are no names for hashes of your own.
    ///
    /// A hash lives a little longer than the youngest of its entries, and its TTL must not be changed by others: stamps tell
    /// the truth for as long as it does. A write that has to stretch its life, at most one in a quarter of the TTL, also
    /// removes what has expired in it; so does [`sweep`](crate::redis::sweep). A write is a script here, one for all fields of a
    /// hash; the first to a server that does not know it costs a round trip more. The time is that of the client, so clocks
    /// should agree to half a minute.
    Stamped {
        /// The longest TTL of an entry: longer ones are cut to it, and an entry without a TTL gets it.
        longest: Duration,
    },
    /// Each field has a TTL of its own, to the millisecond, which the server keeps: `HSETEX`, of Redis 8.0 and Valkey
    /// 9.0. In Redis a small hash stays a listpack with it, at ten bytes an entry; in Valkey it becomes a hash table, at four
    /// times the memory. [`Redis`](crate::redis::Redis) does not connect to a server that lacks it;
    /// [`ServerInfo::per_field`](crate::redis::ServerInfo::per_field) chooses between this and [`Stamped`](Self::Stamped).
    PerField,
}

impl HashTtl {
    /// The stamp before each field's entry, if there is one.
    #[inline]
    pub(crate) fn stamp(self) -> Option<Stamp> {
        match self {
            HashTtl::Stamped { longest } => Some(Stamp::for_life(longest)),
            _ => None,
        }
    }
}
