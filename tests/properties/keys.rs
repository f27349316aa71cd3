//! Keys and key maps: what is borrowed is what is built, and different keys stay different.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use bytestring::ByteString;
use dogpile::keymap::{Digest, Identity, KeyPart, Prefix, Scratch};
use dogpile::{AsKey, Bucketed, Key, KeyBuf, KeyMap};
use proptest::prelude::*;

use crate::{check, key};

/// A value is this key, however it is asked.
fn is_key<K: AsKey + ?Sized>(value: &K, expected: Key<'_>) {
    assert_eq!(value.as_key(&mut Scratch::new()), expected);
    assert_eq!((&value).as_key(&mut Scratch::new()), expected);
    assert!(value.as_borrowed_key().is_none_or(|key| key == expected));
    let room = KeyBuf::from(expected);
    is_same(&room, expected);
    is_same(&expected, expected);
}

/// A key of our own is borrowed as it is.
fn is_same<K: AsKey>(value: &K, expected: Key<'_>) {
    assert_eq!(value.as_key(&mut Scratch::new()), expected);
    assert_eq!(value.as_borrowed_key(), Some(expected));
}

/// A part is these bytes: alone, as a hash and as a field, beside an integer and beside itself.
fn is_part<P: KeyPart + AsKey + ?Sized>(part: &P, expected: &[u8]) {
    is_key(part, Key::Plain(expected));
    is_key(&(part, 7_u8), Key::Field { hash: expected, field: b"7" });
    is_key(&(-7_i64, part), Key::Field { hash: b"-7", field: expected });
    is_key(&(part, part), Key::Field { hash: expected, field: expected });
    is_key(&(part, "field"), Key::Field { hash: expected, field: b"field" });
}

#[test]
fn text_and_bytes_are_themselves() {
    check(".{0,80}", |text: String| {
        let bytes = text.as_bytes();
        is_part(&*text, bytes);
        is_part(&text, bytes);
        is_part(&text.clone().into_boxed_str(), bytes);
        is_part(&Cow::Borrowed(&*text), bytes);
        is_part(&ByteString::from(&*text), bytes);
        is_part(bytes, bytes);
        is_part(&bytes.to_vec(), bytes);
        is_part(&Bytes::copy_from_slice(bytes), bytes);
    });
    check(any::<[u8; 5]>(), |bytes| is_part(&bytes, &bytes));
}

#[test]
fn integers_are_their_decimals() {
    fn integer<I: KeyPart + AsKey + ToString>(int: I) {
        is_part(&int, int.to_string().as_bytes());
    }
    let extreme = prop_oneof![Just(u128::MIN), Just(u128::MAX), Just(1 << 127), any::<u128>()];
    // Cut to each type, so that each gets its own extremes.
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    check((extreme, 0_u32..128), |(wide, shift)| {
        let wide = wide >> shift;
        integer(wide);
        integer(wide as i128);
        integer(wide as u64);
        integer(wide as i64);
        integer(wide as u32);
        integer(wide as i32);
        integer(wide as u16);
        integer(wide as i16);
        integer(wide as u8);
        integer(wide as i8);
        integer(wide as usize);
        integer(wide as isize);
    });
}

#[derive(Clone, Debug)]
enum Step {
    Push(Vec<u8>),
    Int(i64),
    Field,
    Clear,
    Set(KeyBuf),
}

#[test]
fn a_key_is_built_as_its_parts_say() {
    let step = prop_oneof![
        6 => prop::collection::vec(any::<u8>(), 0..30).prop_map(Step::Push),
        2 => any::<i64>().prop_map(Step::Int),
        2 => Just(Step::Field),
        1 => Just(Step::Clear),
        1 => key().prop_map(Step::Set),
    ];
    check(prop::collection::vec(step, 0..12), |steps| {
        let mut built = KeyBuf::from("what was there before");
        built.clear();
        let (mut hash, mut field) = (Vec::new(), None::<Vec<u8>>);
        for step in steps {
            match step {
                Step::Push(bytes) => {
                    built.push(&bytes);
                    field.as_mut().unwrap_or(&mut hash).extend(bytes);
                }
                Step::Int(int) => {
                    built = built.int(int);
                    field.as_mut().unwrap_or(&mut hash).extend(int.to_string().bytes());
                }
                Step::Field => {
                    built.begin_field();
                    field.get_or_insert_default();
                }
                Step::Clear => {
                    built.clear();
                    (hash, field) = (Vec::new(), None);
                }
                Step::Set(key) => {
                    built.set(key.as_key());
                    (hash, field) = match key.as_key() {
                        Key::Plain(key) => (key.to_vec(), None),
                        Key::Field { hash, field } => (hash.to_vec(), Some(field.to_vec())),
                    };
                }
            }
            let expected = match &field {
                None => Key::Plain(&hash),
                Some(field) => Key::Field { hash: &hash, field },
            };
            is_same(&built, expected);
            let bytes = hash.len() + field.as_ref().map_or(0, Vec::len);
            assert_eq!((built.len(), built.is_empty()), (bytes, bytes == 0));
        }
    });
}

#[test]
fn keys_are_told_apart_as_their_parts_are() {
    check(prop::collection::vec(key(), 0..40), |keys| {
        // As parts: a plain key has one, a field two.
        let parts = |key: &KeyBuf| match key.as_key() {
            Key::Plain(key) => vec![key.to_vec()],
            Key::Field { hash, field } => vec![hash.to_vec(), field.to_vec()],
        };
        let distinct: BTreeSet<_> = keys.iter().map(parts).collect();
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), distinct.len());
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), distinct.len());
        assert_eq!(keys.iter().map(KeyBuf::as_key).collect::<HashSet<_>>().len(), distinct.len());
    });
}

/// A map is as naive as that, keeps what it says it keeps, and different keys different.
fn maps(map: &impl KeyMap, keys: &[KeyBuf], naive: impl Fn(&[u8], bool) -> Vec<u8>) {
    let mut mapped = HashSet::new();
    for key in keys {
        let key = key.as_key();
        let expected = match key {
            Key::Plain(key) => KeyBuf::new().bytes(&naive(key, true)),
            Key::Field { hash, field } => {
                KeyBuf::new().bytes(&naive(hash, true)).next_field().bytes(&naive(field, false))
            }
        };
        let mut room = KeyBuf::from(("what was", "there before"));
        let got = map.map(key, &mut room);
        assert_eq!(got, expected.as_key(), "{key}");
        assert!(!map.keeps(key) || got == key, "{key} is not kept");
        mapped.insert(got.to_buf());
    }
    assert_eq!(mapped.len(), keys.iter().collect::<HashSet<_>>().len(), "two keys became one");
}

#[test]
fn maps_are_as_naive_ones() {
    fn digest(part: &[u8], from: usize) -> Vec<u8> {
        let characters = std::str::from_utf8(part).map_or(part.len(), |text| text.chars().count());
        if characters < from { part.to_vec() } else { sha1_smol::Sha1::from(part).digest().to_string().into_bytes() }
    }
    fn prefixed(prefix: &str, part: &[u8], is_server_key: bool) -> Vec<u8> {
        if is_server_key { [prefix.as_bytes(), part].concat() } else { part.to_vec() }
    }
    let inputs = (prop::collection::vec(key(), 0..40), "[ab:]{0,3}", 0_usize..10);
    check(inputs, |(keys, name, from)| {
        let (prefix, long) = (Prefix::new(&name), Digest::from_length(from));
        maps(&Identity, &keys, |part, _| part.to_vec());
        maps(&prefix, &keys, |part, server| prefixed(&name, part, server));
        maps(&Digest::always(), &keys, |part, _| digest(part, 0));
        maps(&long, &keys, |part, _| digest(part, from));
        maps(&(prefix.clone(), long), &keys, |part, server| digest(&prefixed(&name, part, server), from));
        maps(&(long, prefix.clone()), &keys, |part, server| prefixed(&name, &digest(part, from), server));
        maps(&((Identity, long), Identity), &keys, |part, _| digest(part, from));
        maps(&(prefix, Prefix::new("b")), &keys, |part, server| prefixed("b", &prefixed(&name, part, server), server));
    });
}

/// Keys in which the marks, the digits and the zeros of buckets come together in all ways.
fn numbered_key() -> impl Strategy<Value = KeyBuf> {
    let part = || prop::collection::vec(prop::sample::select(b"##0011279a-\xc3".to_vec()), 0..9);
    (part(), prop::option::of(part())).prop_map(|(first, second)| match second {
        None => KeyBuf::new().bytes(&first),
        Some(second) => KeyBuf::new().bytes(&first).next_field().bytes(&second),
    })
}

#[test]
fn buckets_keep_keys_apart_and_can_be_undone() {
    let settings = (prop::option::of(0_u32..300), prop::option::of(0_u32..20), 0_usize..20);
    check((prop::collection::vec(numbered_key(), 0..60), settings), |(keys, (width, others, bytes))| {
        let map = match (width, others) {
            (Some(width), Some(buckets)) => Bucketed::new(width).others(buckets),
            (Some(width), None) => Bucketed::new(width),
            (None, buckets) => Bucketed::by_name(buckets.unwrap_or(7)),
        };
        let map = map.max_bytes(bytes);
        let mut mapped = HashSet::new();
        let (mut buckets, mut others) = (HashSet::new(), HashSet::new());
        for key in &keys {
            let mut room = KeyBuf::from(("what was", "there before"));
            let got = map.map(key.as_key(), &mut room);
            assert!(!map.keeps(key.as_key()) || got == key.as_key(), "{key}");
            assert_eq!(map.original(got).as_ref(), Some(key), "{key} became {got:?}");
            let is_bucket = matches!((key.as_key(), got), (Key::Plain(_), Key::Field { .. }));
            if is_bucket { &mut buckets } else { &mut others }.insert(got.server_key().to_vec());
            mapped.insert(got.to_buf());
        }
        assert!(buckets.is_disjoint(&others), "a bucket has the name of something else");
        assert_eq!(mapped.len(), keys.iter().collect::<HashSet<_>>().len(), "two keys became one");
        // What is no image has no original, and never an original that becomes something else.
        for key in &keys {
            if let Some(original) = map.original(key.as_key()) {
                assert_eq!(map.map(original.as_key(), &mut KeyBuf::new()), key.as_key());
            }
        }
    });
}

#[test]
fn buckets_are_no_wider_than_that() {
    check((1_u32..600, 1_u64..5000, "[a-z]{0,3}[|:-]?"), |(width, count, prefix)| {
        let map = Bucketed::new(width);
        let mut fields = std::collections::HashMap::<Vec<u8>, u32>::new();
        let mut room = KeyBuf::new();
        for number in 0..count {
            let key = KeyBuf::new().text(&prefix).int(number);
            if let Key::Field { hash, .. } = map.map(key.as_key(), &mut room) {
                *fields.entry(hash.to_vec()).or_default() += 1;
            }
        }
        let is_name = prefix.ends_with(|last: char| last.is_alphabetic());
        assert_eq!(fields.len() as u64, if is_name { 0 } else { count.div_ceil(width.into()) });
        assert!(fields.values().all(|&fields| fields <= width));
    });
}
