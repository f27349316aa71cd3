//! Keys and key maps: different keys stay different, plain ones plain and fields fields, whatever room they are given.
#![no_main]

use dogpile::{AsKey, Bucketed, Key, KeyBuf, KeyMap};
use dogpile::keymap::{Digest, Prefix, Scratch, Identity};
use libfuzzer_sys::fuzz_target;

type Parts<'a> = (&'a [u8], Option<&'a [u8]>);

fn key((first, second): Parts<'_>) -> Key<'_> {
    match second {
        None => Key::Plain(first),
        Some(field) => Key::Field { hash: first, field },
    }
}

fuzz_target!(|data: (Parts<'_>, Parts<'_>, &[u8], u8, u64)| {
    let (first, second, prefix, length, number) = data;
    let (first, second) = (key(first), key(second));
    let maps: [&dyn Fn(Key<'_>) -> KeyBuf; 4] = [
        &|key| Identity.map(key, &mut KeyBuf::new()).to_buf(),
        &|key| Prefix::new(prefix).map(key, &mut KeyBuf::from("room")).to_buf(),
        &|key| Digest::from_length(length.into()).map(key, &mut KeyBuf::from(("room", "field"))).to_buf(),
        &|key| (Prefix::new(prefix), Digest::from_length(length.into())).map(key, &mut KeyBuf::new()).to_buf(),
    ];
    for map in maps {
        let (one, other) = (map(first), map(second));
        assert_eq!(one == other, first == second, "{first:?} and {second:?} became {one:?} and {other:?}");
        assert_eq!(matches!(one.as_key(), Key::Plain(_)), matches!(first, Key::Plain(_)));
    }
    for map in [
        Bucketed::new(length.into()),
        Bucketed::new(128).others(length.into()).max_bytes(20),
        Bucketed::by_name(3),
    ] {
        let mut room = [KeyBuf::from("room"), KeyBuf::new()];
        let [one, other] = &mut room;
        let (one, other) = (map.map(first, one), map.map(second, other));
        assert_eq!(one == other, first == second, "{first:?} and {second:?} became {one:?} and {other:?}");
        assert_eq!(map.original(one), Some(first.to_buf()), "{first:?} became {one:?}");
        if let Some(original) = map.original(first) {
            assert_eq!(map.map(original.as_key(), &mut KeyBuf::new()), first);
        }
    }
    let buf = first.to_buf();
    assert_eq!(buf.as_key(), first);
    assert_eq!(
        (number, number).as_key(&mut Scratch::new()).to_buf(),
        KeyBuf::new().int(number).next_field().int(number)
    );
});
