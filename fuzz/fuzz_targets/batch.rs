//! Batches: sequences of operations on `Memory`, and on the commands and replies of a server, against a naive model.
#![no_main]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use bytes::BytesMut;
use dogpile::internals::Chunk;
use dogpile::internals::{Fed, Receive, Parser};
use dogpile::internals::{Access, Route, Transport, TransportSettings};
use dogpile::{Backend, Error, HashTtl, Key, KeyBuf, Memory};
use dogpile::backend::{Batch, Found};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Name {
    Plain(u8),
    Field(u8, u8),
}

impl Name {
    fn key(&self) -> KeyBuf {
        match self {
            Name::Plain(key) => KeyBuf::new().text("p").int(key % 32),
            Name::Field(hash, field) => KeyBuf::new().text("h").int(hash % 24).next_field().int(field % 8),
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Operation {
    Set(Name, Vec<u8>),
    SetMany(Vec<(Name, Vec<u8>)>),
    Get(Name),
    GetMany(Vec<Name>),
    DeleteMany(Vec<Name>),
}

fn run(backend: &impl Backend, operations: &[Operation]) {
    let mut model: HashMap<KeyBuf, Vec<u8>> = HashMap::new();
    let mut found = Found::new();
    for operation in operations {
        match operation {
            Operation::Set(name, entry) => {
                backend.set(name.key().as_key(), entry, None).expect("set");
                model.insert(name.key(), entry.clone());
            }
            Operation::SetMany(entries) => {
                let mut batch = Batch::new();
                for (name, entry) in entries {
                    batch.push(name.key().as_key(), |out| out.extend_from_slice(entry));
                    model.insert(name.key(), entry.clone());
                }
                backend.set_many(&batch, None).expect("set_many");
            }
            Operation::Get(name) => {
                let entry = backend.get(name.key().as_key()).expect("get");
                assert_eq!(entry.as_deref(), model.get(&name.key()).map(|entry| &entry[..]));
            }
            Operation::GetMany(names) => {
                let bufs: Vec<KeyBuf> = names.iter().map(Name::key).collect();
                let keys: Vec<Key<'_>> = bufs.iter().map(KeyBuf::as_key).collect();
                backend.get_many(&keys, &mut found).expect("get_many");
                assert_eq!(found.len(), keys.len());
                for (entry, key) in found.iter().zip(&bufs) {
                    assert_eq!(entry.map(|entry| entry.to_vec()), model.get(key).cloned());
                }
            }
            Operation::DeleteMany(names) => {
                let bufs: Vec<KeyBuf> = names.iter().map(Name::key).collect();
                let keys: Vec<Key<'_>> = bufs.iter().map(KeyBuf::as_key).collect();
                backend.delete_many(&keys).expect("delete_many");
                bufs.iter().for_each(|key| drop(model.remove(key)));
            }
        }
    }
}

/// Takes the commands that a server would be sent, does them naively, and gives back the reply in pieces.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Server>>);

#[derive(Default)]
struct Server {
    plain: HashMap<Vec<u8>, Vec<u8>>,
    hashes: HashMap<Vec<u8>, HashMap<Vec<u8>, Vec<u8>>>,
}

impl Server {
    fn answer(&mut self, words: &[&[u8]]) -> Vec<u8> {
        let bulk = |entry: Option<&Vec<u8>>| match entry {
            None => b"$-1\r\n".to_vec(),
            Some(entry) => [format!("${}\r\n", entry.len()).as_bytes(), entry, b"\r\n"].concat(),
        };
        let array = |members: Vec<Vec<u8>>| [format!("*{}\r\n", members.len()).into_bytes(), members.concat()].concat();
        match words {
            [b"GET", key] => bulk(self.plain.get(*key)),
            [b"HGET", hash, field] => bulk(self.hashes.get(*hash).and_then(|hash| hash.get(*field))),
            [b"MGET", keys @ ..] => array(keys.iter().map(|key| bulk(self.plain.get(*key))).collect()),
            [b"HMGET", hash, fields @ ..] => {
                let hash = self.hashes.get(*hash);
                array(fields.iter().map(|field| bulk(hash.and_then(|hash| hash.get(*field)))).collect())
            }
            [b"SET", key, entry] => {
                self.plain.insert(key.to_vec(), entry.to_vec());
                b"+OK\r\n".to_vec()
            }
            [b"MSET", pairs @ ..] => {
                self.plain.extend(pairs.chunks(2).map(|pair| (pair[0].to_vec(), pair[1].to_vec())));
                b"+OK\r\n".to_vec()
            }
            [b"HSET", hash, pairs @ ..] => {
                let pairs = pairs.chunks(2).map(|pair| (pair[0].to_vec(), pair[1].to_vec()));
                self.hashes.entry(hash.to_vec()).or_default().extend(pairs);
                b":1\r\n".to_vec()
            }
            [b"DEL", keys @ ..] => {
                keys.iter().for_each(|key| drop(self.plain.remove(*key)));
                b":1\r\n".to_vec()
            }
            [b"HDEL", hash, fields @ ..] => {
                let hash = self.hashes.entry(hash.to_vec()).or_default();
                fields.iter().for_each(|field| drop(hash.remove(*field)));
                b":1\r\n".to_vec()
            }
            other => panic!("no such command: {other:?}"),
        }
    }
}

/// The next word of a command, and what follows it.
fn word(input: &[u8]) -> (&[u8], &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\r').expect("a length ends");
    let length: usize = std::str::from_utf8(&input[1..end]).expect("is text").parse().expect("is a number");
    assert_eq!((input[0], &input[end + 2 + length..end + 4 + length]), (b'$', &b"\r\n"[..]));
    (&input[end + 2..end + 2 + length], &input[end + 4 + length..])
}

impl Transport for Wire {
    fn exchange(
        &self,
        _: Access,
        _: Route,
        write: impl Fn(&mut Vec<u8>) -> usize,
        receive: &mut impl Receive,
    ) -> Result<(), Error> {
        let mut commands = Vec::new();
        let replies = write(&mut commands);
        let (mut rest, mut answers, mut count) = (&commands[..], Vec::new(), 0);
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\r').expect("a count ends");
            let words: usize = std::str::from_utf8(&rest[1..end]).expect("is text").parse().expect("is a number");
            assert_eq!(rest[0], b'*');
            rest = &rest[end + 2..];
            let mut command = Vec::new();
            for _ in 0..words {
                let (next, after) = word(rest);
                command.push(next);
                rest = after;
            }
            answers.extend(self.0.lock().expect("no panic").answer(&command));
            count += 1;
        }
        assert_eq!(count, replies, "as many replies are announced as commands are sent");
        let mut reader = Parser::new(1 << 30);
        reader.expect(replies);
        // Arrives in pieces; what is kept of them must not change when their memory is used again.
        let (mut piece, mut arena) = (Vec::new(), BytesMut::with_capacity(64));
        let mut answers = answers.chunks(1 + answers.len() / 3);
        loop {
            piece.extend_from_slice(answers.next().expect("not more than there is"));
            let mut chunk = Chunk::copying(&piece, &mut arena);
            let fed = reader.feed(&mut chunk, receive)?;
            let left = chunk.rest().len();
            piece.drain(..piece.len() - left);
            if fed == Fed::Done {
                assert_eq!((left, answers.len()), (0, 0));
                return Ok(());
            }
        }
    }
}

impl TransportSettings for Wire {
    fn hash_ttl(&self) -> HashTtl {
        HashTtl::OnCreate
    }

    fn max_entry(&self) -> usize {
        1 << 30
    }
}

fuzz_target!(|operations: Vec<Operation>| {
    run(&Memory::new(1 << 30), &operations);
    run(&Wire::default(), &operations);
});
