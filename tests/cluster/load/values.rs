//! Keys that processes share, and values that say for which key they were made, and by which creation.

use std::fmt::Write;
use std::time::Duration;

use dogpile::keymap::Scratch;
use dogpile::{AsKey, Key, KeyBuf};
use serde::{Deserialize, Serialize};

use super::dice::Dice;

/// How many keys there are in a space.
pub const KEYS: usize = 240;

/// How many hash tags keys of a space have, and so how many slots hold many of them.
const TAGS: usize = 3;

/// Each so many-th key is one of the same kind, with the same hash tag.
pub const KIND: usize = 8 * TAGS;

/// Keys of processes that agree on how entries are written and named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Space {
    /// Msgpack, as named, expiring as a whole where they are fields.
    Plain,
    /// Bare texts.
    Raw,
    /// In buckets, each with a life of its own.
    Buckets,
}

impl Space {
    pub const ALL: [Space; 3] = [Space::Plain, Space::Raw, Space::Buckets];

    fn letter(self) -> char {
        match self {
            Space::Plain => 'p',
            Space::Raw => 'r',
            Space::Buckets => 'b',
        }
    }

    /// What keys of a hash tag have in their name.
    pub fn tag(self, number: usize) -> String {
        format!("{{{}{}}}", self.letter(), number % TAGS)
    }

    pub fn names(self) -> Vec<Name> {
        (0..KEYS).map(|number| Name { number, key: self.key(number) }).collect()
    }

    fn key(self, number: usize) -> KeyBuf {
        let (letter, tag, field) = (self.letter(), self.tag(number / 8), number.to_string());
        match number % 8 {
            0 | 1 => KeyBuf::from(format!("{letter}:{number}").as_str()),
            2 => KeyBuf::from(format!("{letter}:{number}:name").as_str()),
            3 | 4 => KeyBuf::from((format!("{letter}:hash{}", number % 7).as_str(), field.as_str())),
            5 | 6 => KeyBuf::from(format!("{tag}:{number}").as_str()),
            _ => KeyBuf::from((format!("{tag}:hash").as_str(), field.as_str())),
        }
    }
}

/// A key and its number.
#[derive(Clone)]
pub struct Name {
    pub number: usize,
    key: KeyBuf,
}

impl AsKey for Name {
    fn as_key<'k>(&'k self, _: &'k mut Scratch) -> Key<'k> {
        self.key.as_key()
    }
}

/// A creation: the number says how many its process began for the key until then. All there is to know of it, such as its
/// value, follows from this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Creation {
    pub space: Space,
    pub key: usize,
    pub process: usize,
    pub number: u64,
}

impl Creation {
    fn dice(&self, of: u64) -> Dice {
        let place = (self.process * KEYS + self.key) as u64;
        // One roll, so that neighbours have nothing in common.
        Dice::new(Dice::new((place << 40) ^ (self.number << 8) ^ of).roll())
    }

    /// One of forty fails, and makes no value.
    pub fn fails(&self) -> bool {
        self.dice(0).one_in(40)
    }

    pub fn length(&self) -> Duration {
        let mut dice = self.dice(1);
        let most = if dice.one_in(50) { 100 } else { 4 };
        Duration::from_millis(dice.between(0, most))
    }

    /// From 10 bytes to 20 KB.
    pub fn value(&self) -> String {
        let mut dice = self.dice(2);
        let length = match dice.between(0, 19) {
            0 => dice.between(1_000, 20_000),
            1..=4 => dice.between(60, 1_000),
            _ => dice.between(10, 60),
        };
        let mut value = format!("{}{}#{}.{}:", self.space.letter(), self.key, self.process, self.number);
        let length = value.len().max(length as usize);
        while value.len() < length {
            write!(value, "{:016x}", dice.roll()).unwrap();
        }
        value.truncate(length);
        value
    }

    /// The creation of a value, if the value is whole.
    pub fn of(value: &str) -> Option<Self> {
        let (space, rest) = value.split_at_checked(1)?;
        let (key, rest) = rest.split_once('#')?;
        let (process, rest) = rest.split_once('.')?;
        let (number, _) = rest.split_once(':')?;
        let creation = Creation {
            space: Space::ALL.into_iter().find(|it| space.starts_with(it.letter()))?,
            key: key.parse().ok()?,
            process: process.parse().ok()?,
            number: number.parse().ok()?,
        };
        (!creation.fails() && creation.value() == value).then_some(creation)
    }
}

#[test]
fn a_value_tells_of_its_creation_if_it_is_whole() {
    let creation = |number| Creation { space: Space::Raw, key: 17, process: 3, number };
    let (failing, making): (Vec<_>, Vec<_>) = (1..1000).map(creation).partition(Creation::fails);
    assert!((10..50).contains(&failing.len()));
    let mut longest = 0;
    for creation in &making {
        let value = creation.value();
        assert_eq!(Creation::of(&value), Some(*creation));
        assert_eq!(Creation::of(&value[..value.len() - 1]), None);
        assert_eq!(Creation::of(&format!("{value}0")), None);
        assert!((10..=20_000).contains(&value.len()));
        longest = longest.max(value.len());
    }
    assert!(longest > 15_000);
    assert_eq!(Creation::of(&failing[0].value()), None);
    assert_eq!(Creation::of(&making[0].value().replacen("r17", "r18", 1)), None);
    assert!(["", "r", "r1#2.3", "é"].iter().all(|other| Creation::of(other).is_none()));
}
