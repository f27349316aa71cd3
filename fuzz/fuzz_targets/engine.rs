//! The decision table: sequences of events, against what must hold before each step.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|choices: &[u8]| dogpile::testing::walk_decisions(choices));
