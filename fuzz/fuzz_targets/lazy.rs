//! The lazy view of a map gives the same fields as the whole map, decoded at once.
#![no_main]

use std::collections::BTreeMap;

use bytes::Bytes;
use dogpile::codec::{Codec, LazyMap};
use dogpile::codec::{Bare, Slice};
use dogpile::Msgpack;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let entry = Bytes::copy_from_slice(data);
    let codec = Msgpack::<Bare>::new();
    let whole: Result<(BTreeMap<String, u32>, _), _> = codec.decode(Slice::from(&entry));
    let Ok(lazy) = LazyMap::try_from(entry.clone()) else {
        assert!(whole.is_err(), "a map that can be read at once can be read lazily");
        return;
    };
    assert_eq!(lazy.as_bytes(), &entry);
    for key in lazy.keys() {
        let _ = lazy.get::<String>(key);
        let _ = lazy.get::<LazyMap>(key);
        assert!(lazy.contains(key));
    }
    if let Ok((whole, _)) = whole {
        for (key, value) in &whole {
            assert_eq!(lazy.get::<u32>(key).expect("is a number"), Some(*value));
        }
        assert!(lazy.len() >= whole.len());
        assert_eq!(lazy.is_empty(), whole.is_empty());
    }
});
