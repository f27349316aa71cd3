//! The reference's data set: what is stored, and under which keys.

use std::ops::Range;

use dogpile::{Codec, Error, KeyBuf, KeyMap, LocalLock, Redis, Region};
use serde::{Deserialize, Serialize};

/// What can write all kinds of values that there are.
pub trait Writes: Codec<u64> + Codec<Pair> + Codec<String> + Send + Sync {}

impl<S: Codec<u64> + Codec<Pair> + Codec<String> + Send + Sync> Writes for S {}

#[derive(Serialize, Deserialize)]
pub struct Pair {
    one: u64,
    two: String,
}

dogpile::msgpack! { Pair { one, two } }

const PAIRS: [&str; 6] = ["foo", "foobar", "foobarbiz", "foobarbizbash", "foobarbizbashfizzbuzz", "fizzbuzz"];
const TEXTS: [&str; 4] = ["qkknasdkk", "kehzipqyfnslhtqnzjsgqolf", "7124n9jasdgqbozjayqkdhag", "61jkansd89asd"];

/// How many entries are written at once: a few whole buckets.
const BATCH: u64 = 1024;

/// How many entries there are of each kind.
#[derive(Clone, Copy)]
pub struct Data {
    pub integers: u64,
    /// With each prefix.
    pub named: u64,
}

/// Where the entries go.
#[derive(Clone, Copy)]
pub enum Layout {
    /// Keys of their own.
    Keys,
    /// Integers in hashes of a hundred, the others in one for each prefix.
    Hashes,
    /// Keys of their own that do not end with the number: four of each user, as in the reference's README.
    Names,
}

/// What there is of each user.
const OF_A_USER: [&str; 4] = ["|posts", "|friends", "|profile", "|username"];

impl Layout {
    fn key(self, prefix: &str, x: u64) -> KeyBuf {
        match (self, prefix) {
            (Layout::Keys, "") => KeyBuf::new().int(x),
            (Layout::Keys, prefix) => KeyBuf::new().text(prefix).text("|").int(x),
            (Layout::Hashes, "") => KeyBuf::new().int(x / 100 * 100).next_field().int(x),
            (Layout::Hashes, prefix) => KeyBuf::new().text(prefix).next_field().int(x),
            (Layout::Names, prefix) => {
                KeyBuf::new().text(prefix).text("user-").int(x / 4).text(OF_A_USER[(x % 4) as usize])
            }
        }
    }
}

/// Entries that are written at once.
pub struct Part {
    kind: Kind,
    range: Range<u64>,
}

#[derive(Clone, Copy)]
enum Kind {
    Integers,
    Pairs(&'static str),
    Texts(&'static str),
}

impl Data {
    /// The whole set, or a part of it: 1,100,000 entries at a scale of 1.
    pub fn scaled(scale: f64) -> Self {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let of = |all: f64| (all * scale).round().max(1.0) as u64;
        Data { integers: of(1_000_000.0), named: of(10_000.0) }
    }

    pub fn entries(self) -> u64 {
        self.integers + (PAIRS.len() + TEXTS.len()) as u64 * self.named
    }

    pub fn parts(self) -> impl Iterator<Item = Part> {
        let pairs = PAIRS.map(|prefix| (Kind::Pairs(prefix), self.named));
        let texts = TEXTS.map(|prefix| (Kind::Texts(prefix), self.named));
        [(Kind::Integers, self.integers)].into_iter().chain(pairs).chain(texts).flat_map(|(kind, count)| {
            let starts = (0..count).step_by(BATCH as usize);
            starts.map(move |start| Part { kind, range: start..count.min(start + BATCH) })
        })
    }
}

impl Part {
    pub fn entries(&self) -> u64 {
        self.range.end - self.range.start
    }

    pub fn write<S: Writes, M: KeyMap>(
        &self,
        region: &Region<Redis, S, LocalLock, M>,
        layout: Layout,
    ) -> Result<(), Error> {
        match self.kind {
            Kind::Integers => region.set_many(&self.with("", layout, |x| 10 * x)),
            Kind::Pairs(prefix) => {
                region.set_many(&self.with(prefix, layout, |x| Pair { one: 399 * x, two: prefix.into() }))
            }
            Kind::Texts(prefix) => region.set_many(&self.with(prefix, layout, |_| prefix.to_string())),
        }
    }

    fn with<V>(&self, prefix: &str, layout: Layout, value: impl Fn(u64) -> V) -> Vec<(KeyBuf, V)> {
        self.range.clone().map(|x| (layout.key(prefix, x), value(x))).collect()
    }
}
