//! `Batch` and `Found` against a list.

use bytes::Bytes;
use dogpile::KeyBuf;
use dogpile::backend::{Batch, Found};
use proptest::prelude::*;

use crate::{check, key, octets};

#[derive(Clone, Debug)]
enum OnBatch {
    Push(KeyBuf, Vec<u8>),
    /// A write that fails after it wrote so much.
    Fail(KeyBuf, Vec<u8>),
    Truncate(usize),
    Clear,
}

#[test]
fn a_batch_is_a_list_of_keys_and_entries() {
    let step = prop_oneof![
        6 => (key(), octets(300)).prop_map(|(key, entry)| OnBatch::Push(key, entry)),
        3 => (key(), octets(300)).prop_map(|(key, entry)| OnBatch::Fail(key, entry)),
        1 => (0_usize..12).prop_map(OnBatch::Truncate),
        1 => Just(OnBatch::Clear),
    ];
    check(prop::collection::vec(step, 0..40), |steps| {
        let (mut batch, mut list) = (Batch::new(), Vec::<(KeyBuf, Vec<u8>)>::new());
        for step in steps {
            match step {
                OnBatch::Push(key, entry) => {
                    batch.push(key.as_key(), |out| out.extend_from_slice(&entry));
                    list.push((key, entry));
                }
                OnBatch::Fail(key, entry) => {
                    let failed = batch.try_push(key.as_key(), |out| {
                        out.extend_from_slice(&entry);
                        Err(entry.len())
                    });
                    assert_eq!(failed, Err(entry.len()));
                }
                OnBatch::Truncate(len) => {
                    batch.truncate(len);
                    list.truncate(len);
                }
                OnBatch::Clear => {
                    batch.clear();
                    list.clear();
                }
            }
            assert_eq!((batch.len(), batch.is_empty()), (list.len(), list.is_empty()));
            assert!(batch.iter().eq(list.iter().map(|(key, entry)| (key.as_key(), &entry[..]))));
            for (at, (key, entry)) in list.iter().enumerate() {
                assert_eq!((batch.key(at), batch.entry(at)), (key.as_key(), &entry[..]));
            }
        }
    });
}

#[derive(Clone, Debug)]
enum OnFound {
    Reset(usize),
    Put(prop::sample::Index, Vec<u8>),
    /// Parts of one of a few buffers: which, and for each the place and where it begins and ends.
    Parts(prop::sample::Index, Vec<[prop::sample::Index; 3]>),
}

#[test]
fn found_is_a_list_of_entries() {
    let index = any::<prop::sample::Index>;
    let parts = prop::collection::vec(prop::array::uniform3(index()), 0..6);
    let step = prop_oneof![
        1 => (0_usize..20).prop_map(OnFound::Reset),
        5 => (index(), octets(300)).prop_map(|(at, entry)| OnFound::Put(at, entry)),
        5 => (index(), parts).prop_map(|(buffer, parts)| OnFound::Parts(buffer, parts)),
    ];
    check((prop::collection::vec(step, 0..40), octets(300)), |(steps, content)| {
        let whole = Bytes::from(content);
        // Of the same memory, of the same length in other memory, and empty ones.
        let half = whole.len() / 2;
        let copy = Bytes::from(whole.iter().rev().copied().collect::<Vec<u8>>());
        let buffers = [whole.clone(), whole.slice(..half), whole.slice(half..), copy, Bytes::new()];
        let (mut found, mut list) = (Found::new(), Vec::<Option<Vec<u8>>>::new());
        for step in steps {
            match step {
                OnFound::Reset(keys) => {
                    found.reset(keys);
                    list = vec![None; keys];
                }
                OnFound::Put(..) | OnFound::Parts(..) if list.is_empty() => {}
                OnFound::Put(at, entry) => {
                    let at = at.index(list.len());
                    found.put(at, entry.clone().into());
                    list[at] = Some(entry);
                }
                OnFound::Parts(buffer, parts) => {
                    let buffer = buffer.get(&buffers);
                    let mut into = found.parts(buffer);
                    for [at, begin, end] in parts {
                        let (at, begin) = (at.index(list.len()), begin.index(buffer.len() + 1));
                        let end = begin + end.index(buffer.len() + 1 - begin);
                        into.put(at, begin..end);
                        list[at] = Some(buffer[begin..end].to_vec());
                    }
                }
            }
            assert_eq!((found.len(), found.is_empty()), (list.len(), list.is_empty()));
            let entries: Vec<_> = found.iter().map(|entry| entry.map(|entry| entry.to_vec())).collect();
            assert_eq!(entries, list);
            for (at, entry) in list.iter().enumerate() {
                assert_eq!(found.get(at).map(|entry| entry.to_bytes()).as_deref(), entry.as_deref());
            }
        }
    });
}
