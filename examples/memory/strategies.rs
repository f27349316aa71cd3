//! The ways to store the data set, by name: those of the reference, and beyond.

use std::thread;
use std::time::Duration;

use dogpile::codec::python::{JsonMeta, Pickle};
use dogpile::codec::{Bare, Full, Seconds};
use dogpile::keymap::Identity;
use dogpile::redis::ServerInfo;
use dogpile::{Bucketed, Clock, HashTtl, Json, KeyMap, Msgpack, Redis, Region};
use indicatif::ProgressBar;

use crate::Failure;
use crate::data::{Data, Layout, Writes};

pub struct Strategy {
    pub name: &'static str,
    /// The bytes that the reference takes for the whole data set, in Redis 7.0.15.
    pub reference: Option<u64>,
    /// Whether all entries are the reference's byte for byte. Its JSON has spaces, and its pickles have frames.
    pub same_bytes: bool,
    /// Whether the server must keep fields with TTLs of their own in listpacks.
    pub per_field: bool,
    fill: Fill,
}

type Fill = fn(&Filler<'_>) -> Result<(), Failure>;

const HOUR: Duration = Duration::from_secs(3600);
const TTL: Option<Duration> = Some(HOUR);
const STAMPED: HashTtl = HashTtl::Stamped { longest: HOUR };
/// What `_local` means: nothing expires in the server.
const LOCAL: Option<Duration> = None;

const fn bare() -> Msgpack<Bare> {
    Msgpack::new()
}

/// In the order of what the reference takes.
pub const STRATEGIES: &[Strategy] = &[
    reference("region_redis", 204_627_056, false, |to| to.keys(Pickle::<JsonMeta>::new(), TTL)),
    reference("region_json", 198_957_752, false, |to| to.keys(Json::<Full>::new(), TTL)),
    reference("region_msgpack", 168_986_672, true, |to| to.keys(Msgpack::<Full>::new(), TTL)),
    reference("region_redis_local", 152_601_824, false, |to| to.keys(Pickle::<JsonMeta>::new(), LOCAL)),
    reference("region_msgpack_raw", 151_229_872, true, |to| to.keys(bare(), TTL)),
    reference("region_json_local", 147_082_736, false, |to| to.keys(Json::<Full>::new(), LOCAL)),
    reference("region_json_raw", 136_168_640, false, |to| to.keys(Json::<Bare>::new(), TTL)),
    reference("region_json_local_int", 117_599_368, false, |to| to.keys(Json::<Seconds>::new(), LOCAL)),
    reference("region_msgpack_local", 116_959_752, true, |to| to.keys(Msgpack::<Full>::new(), LOCAL)),
    reference("region_msgpack_local_int", 100_156_816, true, |to| to.keys(Msgpack::<Seconds>::new(), LOCAL)),
    reference("region_msgpack_raw_local", 99_202_032, true, |to| to.keys(bare(), LOCAL)),
    reference("region_json_raw_local", 84_143_240, false, |to| to.keys(Json::<Bare>::new(), LOCAL)),
    reference("region_msgpack_raw_hash", 23_052_032, true, |to| to.hashes(bare())),
    reference("region_json_raw_hash", 21_876_352, false, |to| to.hashes(Json::<Bare>::new())),
    // Whole buckets expire.
    ours("bucketed_raw", |to| to.buckets(bare(), HashTtl::OnCreate)),
    ours("bucketed_seconds", |to| to.buckets(Msgpack::<Seconds>::new(), HashTtl::OnCreate)),
    // Each entry expires by itself.
    ours("bucketed_expiring", |to| to.buckets(bare(), STAMPED)),
    Strategy { per_field: true, ..ours("bucketed_field_ttl", |to| to.buckets(bare(), HashTtl::PerField)) },
    // The same values under keys such as `user-15|posts`.
    ours("names_raw", |to| to.write(bare(), Identity, HashTtl::Never, TTL, Layout::Names)),
    ours("names_bucketed_raw", |to| to.names(HashTtl::OnCreate)),
    ours("names_bucketed_expiring", |to| to.names(STAMPED)),
];

const fn reference(name: &'static str, bytes: u64, same_bytes: bool, fill: Fill) -> Strategy {
    Strategy { name, reference: Some(bytes), same_bytes, per_field: false, fill }
}

const fn ours(name: &'static str, fill: Fill) -> Strategy {
    Strategy { name, reference: None, same_bytes: false, per_field: false, fill }
}

impl Strategy {
    pub fn named(name: &str) -> Result<&'static Self, Failure> {
        STRATEGIES.iter().find(|strategy| strategy.name == name).ok_or_else(|| {
            let all: Vec<_> = STRATEGIES.iter().map(|strategy| strategy.name).collect();
            format!("there is no strategy {name:?}, only {}", all.join(", ")).into()
        })
    }

    /// Why a server cannot store it so.
    pub fn lacking(&self, server: &ServerInfo) -> Option<String> {
        let [major, minor, patch] = server.version;
        (self.per_field && !server.keeps_listpacks_per_field()).then(|| {
            format!("{} {major}.{minor}.{patch} keeps no listpacks with a TTL per field; Redis 8.0 does", server.name)
        })
    }

    pub fn fill(&self, filler: &Filler<'_>) -> Result<(), Failure> {
        (self.fill)(filler)
    }
}

/// Fills an empty server.
pub struct Filler<'a> {
    pub url: &'a str,
    pub server: &'a ServerInfo,
    pub data: Data,
    /// What the entries' times of creation are.
    pub clock: Clock,
    pub progress: &'a ProgressBar,
}

impl Filler<'_> {
    fn keys(&self, codec: impl Writes, ttl: Option<Duration>) -> Result<(), Failure> {
        self.write(codec, Identity, HashTtl::Never, ttl, Layout::Keys)
    }

    fn hashes(&self, codec: impl Writes) -> Result<(), Failure> {
        self.write(codec, Identity, HashTtl::OnCreate, TTL, Layout::Hashes)
    }

    fn buckets(&self, codec: impl Writes, expiry: HashTtl) -> Result<(), Failure> {
        self.write(codec, Bucketed::for_server(self.server), expiry, TTL, Layout::Keys)
    }

    fn names(&self, expiry: HashTtl) -> Result<(), Failure> {
        let buckets = u32::try_from(self.data.entries().div_ceil(100))?;
        let keys = Bucketed::for_server(self.server).others(buckets);
        self.write(bare(), keys, expiry, TTL, Layout::Names)
    }

    fn write(
        &self,
        codec: impl Writes,
        keys: impl KeyMap,
        expiry: HashTtl,
        ttl: Option<Duration>,
        layout: Layout,
    ) -> Result<(), Failure> {
        let redis = Redis::builder(self.url).hash_ttl(expiry).build()?;
        let region = Region::builder(redis).codec(codec).keys(keys).ttl(ttl).clock(self.clock.clone()).build()?;
        // One writes while the server is at work for the other.
        const WRITERS: usize = 2;
        let write = |first: usize| {
            self.data.parts().skip(first).step_by(WRITERS).try_for_each(|part| {
                part.write(&region, layout)?;
                self.progress.inc(part.entries());
                Ok(())
            })
        };
        thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS).map(|first| scope.spawn(move || write(first))).collect();
            writers.into_iter().try_for_each(|writer| writer.join().expect("a writer does not panic"))
        })
    }
}
