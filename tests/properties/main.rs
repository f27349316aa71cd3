//! Properties: random inputs, and what a naive oracle says of them.

mod backends;
mod codecs;
mod keys;
mod policy;
mod replies;
mod requests;
#[path = "../it/support.rs"]
#[allow(dead_code)]
mod support;

use dogpile::KeyBuf;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Checks a property of 256 random inputs, or of `PROPTEST_CASES`. One that fails is made small and shown.
fn check<S: Strategy>(inputs: S, property: impl Fn(S::Value)) {
    let config = Config { failure_persistence: None, ..Config::default() };
    let checked = TestRunner::new(config).run(&inputs, |input| {
        property(input);
        Ok(())
    });
    checked.unwrap_or_else(|failure| panic!("{failure}"));
}

/// Bytes of the lengths at which formats change. Their content is told by one number, so that long ones cost no time.
fn octets(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![
        12 => 0_usize..40,
        2 => prop::sample::select(vec![31, 32, 99, 100, 255, 256, 999, 1000]),
        1 => prop::sample::select(vec![65_535, 65_536, 70_000]),
    ];
    (length, any::<u8>(), any::<u8>()).prop_map(move |(length, first, step)| {
        let next = |last: &u8| Some(last.wrapping_mul(5).wrapping_add(step));
        std::iter::successors(Some(first), next).take(length.min(longest)).collect()
    })
}

/// Keys of few different bytes, so that careless joins of their parts are the same.
fn key() -> impl Strategy<Value = KeyBuf> {
    let part = || prop::collection::vec(prop::sample::select(b"ab:,\0\xff".to_vec()), 0..5);
    let build = |(first, second): (Vec<u8>, Option<Vec<u8>>)| match second {
        None => KeyBuf::new().bytes(&first),
        Some(second) => KeyBuf::new().bytes(&first).next_field().bytes(&second),
    };
    (part(), prop::option::of(part())).prop_map(build)
}
