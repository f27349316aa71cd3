//! One kind of work, so many times, for callgrind to count: `instructions ROW TIMES`, or `instructions --list`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use dogpile::codec::{Bare, Seconds};
use dogpile::{Bucketed, Cluster, Codec, HashTtl, Key, Memory, Msgpack, Redis, Region, Timestamp};
use peers::tasks::{Client, Shared, divide};
use peers::{Profile, VALUE, cluster_url, field_keys, plain_keys, redis_url};

/// Does the work so many times.
type Work = Box<dyn FnOnce(u32)>;

/// A row's name and what sets its work up.
type Row = (&'static str, fn() -> Work);

const STAMPED: HashTtl = HashTtl::Stamped { longest: Duration::from_secs(3600) };

/// A region whose plain keys are fields of small hashes.
fn bucketed(expiry: HashTtl) -> Region<Redis, Msgpack<Bare>, dogpile::LocalLock, Bucketed> {
    let redis = Redis::builder(&redis_url()).hash_ttl(expiry).build().unwrap();
    let region = Region::builder(redis).codec(Msgpack::new()).keys(Bucketed::new(256));
    region.ttl(Duration::from_secs(3600)).build().unwrap()
}

const ROWS: &[Row] = &[
    ("get_hit_redis_plain", || {
        let region = region();
        region.set("a-plain-key", &Bytes::from_static(&VALUE)).unwrap();
        times(move || region.get::<Bytes>("a-plain-key").unwrap().unwrap())
    }),
    ("get_hit_redis_plain/redis_packed", || get_packed("GET a-plain-key")),
    ("get_hit_redis_plain/redis_get", || {
        let mut connection = connection();
        redis::Commands::set::<_, _, ()>(&mut connection, "peer-key", entry()).unwrap();
        times(move || {
            let found: Option<Vec<u8>> = redis::Commands::get(&mut connection, "peer-key").unwrap();
            decode(&found.unwrap())
        })
    }),
    ("get_hit_redis_plain/floor", || {
        let mut stream = TcpStream::connect(redis_url().trim_start_matches("redis://")).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(b"*3\r\n$3\r\nSET\r\n$5\r\nfloor\r\n$64\r\n").unwrap();
        stream.write_all(&VALUE).unwrap();
        stream.write_all(b"\r\n").unwrap();
        let mut answer = [0; 4096];
        stream.read_exact(&mut answer[..5]).unwrap();
        times(move || {
            stream.write_all(b"*2\r\n$3\r\nGET\r\n$5\r\nfloor\r\n").unwrap();
            stream.read(&mut answer).unwrap()
        })
    }),
    ("get_hit_redis_field", || {
        let region = region();
        region.set(("a-hash", "a-field"), &Bytes::from_static(&VALUE)).unwrap();
        times(move || region.get::<Bytes>(("a-hash", "a-field")).unwrap().unwrap())
    }),
    ("get_hit_redis_field/redis_packed", || {
        let region = region();
        region.set(("a-hash", "a-field"), &Bytes::from_static(&VALUE)).unwrap();
        get_packed("HGET a-hash a-field")
    }),
    ("get_hit_redis_field/redis_get", || {
        let region = region();
        region.set(("a-hash", "a-field"), &Bytes::from_static(&VALUE)).unwrap();
        let mut connection = connection();
        times(move || {
            let found: Option<Vec<u8>> = redis::Commands::hget(&mut connection, "a-hash", "a-field").unwrap();
            decode(&found.unwrap())
        })
    }),
    ("get_hit_redis_bucketed", || {
        let region = bucketed(HashTtl::OnCreate);
        region.set("user|1000", &Bytes::from_static(&VALUE)).unwrap();
        times(move || region.get::<Bytes>("user|1000").unwrap().unwrap())
    }),
    ("get_hit_redis_bucketed_stamped", || {
        let region = bucketed(STAMPED);
        region.set("user|1000", &Bytes::from_static(&VALUE)).unwrap();
        times(move || region.get::<Bytes>("user|1000").unwrap().unwrap())
    }),
    ("set_redis_bucketed_stamped", || {
        let region = bucketed(STAMPED);
        let value = Bytes::from_static(&VALUE);
        times(move || region.set("user|1000", &value).unwrap())
    }),
    ("get_or_create_hit_redis", || {
        let region = region();
        region.set("a-plain-key", &Bytes::from_static(&VALUE)).unwrap();
        times(move || region.get_or_create("a-plain-key", || -> Result<Bytes, Infallible> { panic!() }).unwrap())
    }),
    ("set_redis", || {
        let region = region();
        let value = Bytes::from_static(&VALUE);
        times(move || region.set("a-plain-key", &value).unwrap())
    }),
    ("set_redis/redis_set", || {
        let mut connection = connection();
        times(move || redis::Commands::set_ex::<_, _, ()>(&mut connection, "peer-key", entry(), 3600).unwrap())
    }),
    ("get_many_100_redis_plain", || {
        let region = region();
        let keys = plain_keys();
        region.set_many(&keys.iter().map(|key| (key, Bytes::from_static(&VALUE))).collect::<Vec<_>>()).unwrap();
        times(move || region.get_many::<_, Bytes>(&keys).unwrap())
    }),
    ("get_many_100_redis_plain/redis_packed", || {
        let region = region();
        let keys = plain_keys();
        region.set_many(&keys.iter().map(|key| (key, Bytes::from_static(&VALUE))).collect::<Vec<_>>()).unwrap();
        let mut command = redis::cmd("MGET");
        command.arg(&keys);
        let packed = command.get_packed_command();
        let mut connection = connection();
        times(move || redis::ConnectionLike::req_packed_command(&mut connection, &packed).unwrap())
    }),
    ("get_many_100_redis_plain/redis_get", || {
        let region = region();
        let keys = plain_keys();
        region.set_many(&keys.iter().map(|key| (key, Bytes::from_static(&VALUE))).collect::<Vec<_>>()).unwrap();
        let mut connection = connection();
        times(move || redis::Commands::mget::<_, Vec<Option<Vec<u8>>>>(&mut connection, &keys).unwrap())
    }),
    ("get_many_100_redis_mixed", || {
        let region = region();
        let (plain, fields) = (plain_keys(), field_keys());
        let keys: Vec<Key<'static>> = plain
            .leak()
            .iter()
            .take(50)
            .map(|key| Key::from(&**key))
            .chain(fields.leak().iter().map(|(hash, field)| Key::from((hash, field))))
            .collect();
        region.set_many(&keys.iter().map(|key| (*key, Bytes::from_static(&VALUE))).collect::<Vec<_>>()).unwrap();
        times(move || region.get_many::<_, Bytes>(&keys).unwrap())
    }),
    ("get_many_100_redis_mixed/redis_pipeline", || {
        let region = region();
        let (plain, fields) = (plain_keys(), field_keys());
        let value = Bytes::from_static(&VALUE);
        region.set_many(&plain.iter().map(|key| (key, value.clone())).collect::<Vec<_>>()).unwrap();
        let entries: Vec<_> = fields.iter().map(|(hash, field)| ((&**hash, &**field), value.clone())).collect();
        region.set_many(&entries).unwrap();
        let mut connection = connection();
        times(move || {
            let mut by_hash: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for (hash, field) in &fields {
                by_hash.entry(hash).or_default().push(field);
            }
            let mut pipe = redis::pipe();
            pipe.mget(&plain[..50]);
            for (hash, fields) in &by_hash {
                pipe.hmget(*hash, fields);
            }
            pipe.query::<Vec<Vec<Option<Vec<u8>>>>>(&mut connection).unwrap()
        })
    }),
    ("get_64_tasks", || get_by_tasks::<Region<Redis>>(64)),
    ("get_1_task", || get_by_tasks::<Region<Redis>>(1)),
    ("get_64_tasks/redis_multiplexed", || get_by_tasks::<redis::aio::MultiplexedConnection>(64)),
    ("get_64_tasks/fred", || get_by_tasks::<fred::clients::Client>(64)),
    ("get_64_tasks/rustis", || get_by_tasks::<rustis::client::Client>(64)),
    ("get_hit_cluster_plain", || {
        let region = of_cluster();
        region.set("a-plain-key", &Bytes::from_static(&VALUE)).unwrap();
        times(move || region.get::<Bytes>("a-plain-key").unwrap().unwrap())
    }),
    ("get_hit_cluster_plain/redis_get", || {
        let mut connection = cluster_connection();
        redis::Commands::set::<_, _, ()>(&mut connection, "peer-key", entry()).unwrap();
        times(move || {
            let found: Option<Vec<u8>> = redis::Commands::get(&mut connection, "peer-key").unwrap();
            decode(&found.unwrap())
        })
    }),
    ("get_hit_cluster_field", || {
        let region = of_cluster();
        region.set(("a-hash", "a-field"), &Bytes::from_static(&VALUE)).unwrap();
        times(move || region.get::<Bytes>(("a-hash", "a-field")).unwrap().unwrap())
    }),
    ("set_cluster", || {
        let region = of_cluster();
        let value = Bytes::from_static(&VALUE);
        times(move || region.set("a-plain-key", &value).unwrap())
    }),
    ("get_many_100_cluster_plain", || {
        let region = of_cluster();
        let keys = plain_keys();
        region.set_many(&keys.iter().map(|key| (key, Bytes::from_static(&VALUE))).collect::<Vec<_>>()).unwrap();
        times(move || region.get_many::<_, Bytes>(&keys).unwrap())
    }),
    ("get_many_100_cluster_plain/redis_pipeline", || {
        let region = of_cluster();
        let keys = plain_keys();
        region.set_many(&keys.iter().map(|key| (key, Bytes::from_static(&VALUE))).collect::<Vec<_>>()).unwrap();
        let mut connection = cluster_connection();
        times(move || {
            let mut pipeline = redis::cluster::cluster_pipe();
            for key in &keys {
                pipeline.get(key);
            }
            pipeline.query::<Vec<Option<Vec<u8>>>>(&mut connection).unwrap()
        })
    }),
    ("get_hit_memory", || {
        let region = Region::builder(Memory::new(64 << 20)).build().unwrap();
        region.set("a-plain-key", &Bytes::from_static(&VALUE)).unwrap();
        times(move || region.get::<Bytes>("a-plain-key").unwrap().unwrap())
    }),
    ("get_hit_memory/quick_cache", || {
        let cache = quick_cache::sync::Cache::<String, Bytes>::new(1000);
        cache.insert("a-plain-key".into(), Bytes::copy_from_slice(&VALUE));
        times(move || cache.get(black_box("a-plain-key")).unwrap())
    }),
    ("get_hit_memory/moka", || {
        let cache = moka::sync::Cache::<String, Bytes>::new(1000);
        cache.insert("a-plain-key".into(), Bytes::copy_from_slice(&VALUE));
        times(move || cache.get(black_box("a-plain-key")).unwrap())
    }),
    ("encode_msgpack_struct", || {
        let (codec, value, time) = (Msgpack::<Seconds>::new(), Profile::sample(), Timestamp::from_secs(1_700_000_000));
        let mut out = Vec::with_capacity(256);
        times(move || {
            out.clear();
            codec.encode(black_box(&value), time, &mut out).unwrap();
        })
    }),
    ("encode_msgpack_struct/rmp_serde", || {
        let value = (Profile::sample(), 1_700_000_000_u64);
        let mut out = Vec::with_capacity(256);
        times(move || {
            out.clear();
            rmp_serde::encode::write_named(&mut out, black_box(&value)).unwrap();
        })
    }),
    ("decode_msgpack_struct", || {
        let codec = Msgpack::<Seconds>::new();
        let mut out = Vec::new();
        codec.encode(&Profile::sample(), Timestamp::from_secs(1_700_000_000), &mut out).unwrap();
        let entry = Bytes::from(out);
        times(move || Codec::<Profile>::decode(&codec, dogpile::codec::Slice::from(black_box(&entry))).unwrap())
    }),
    ("decode_msgpack_struct/rmp_serde", || {
        let entry = rmp_serde::to_vec_named(&(Profile::sample(), 1_700_000_000_u64)).unwrap();
        times(move || rmp_serde::from_slice::<(Profile, u64)>(black_box(&entry)).unwrap())
    }),
];

fn times<R>(mut work: impl FnMut() -> R + 'static) -> Work {
    Box::new(move |times| {
        for _ in 0..times {
            black_box(work());
        }
    })
}

/// So many tasks get at the same time over one connection, each its own key, and share the operations among them.
fn get_by_tasks<C: Client>(tasks: u32) -> Work {
    let Shared { runtime, mut client } = Shared::<C>::connect(&redis_url());
    let keys: Vec<_> = (0..tasks).map(|task| format!("task-{task}")).collect();
    runtime.block_on(async {
        for key in &keys {
            client.set(key).await;
        }
    });
    Box::new(move |operations| {
        let repeat = |(key, times): (String, u32)| {
            let mut client = client.clone();
            runtime.spawn(async move {
                for _ in 0..times {
                    black_box(client.get(&key).await.unwrap());
                }
            })
        };
        let running: Vec<_> = keys.into_iter().zip(divide(operations, tasks)).map(repeat).collect();
        runtime.block_on(async {
            for task in running {
                task.await.unwrap();
            }
        });
    })
}

/// A region over the cluster.
fn of_cluster() -> Region<Cluster> {
    Region::builder(Cluster::open([cluster_url()]).unwrap()).build().unwrap()
}

fn cluster_connection() -> redis::cluster::ClusterConnection {
    redis::cluster::ClusterClient::new([cluster_url()]).unwrap().get_connection().unwrap()
}

fn region() -> Region<Redis> {
    let hour = Duration::from_secs(3600);
    Region::builder(Redis::open(&redis_url()).unwrap()).stale_after(hour).ttl(hour).build().unwrap()
}

fn connection() -> redis::Connection {
    redis::Client::open(redis_url()).unwrap().get_connection().unwrap()
}

/// The entry that peers write: the same bytes as ours.
fn entry() -> Vec<u8> {
    let mut out = Vec::new();
    let value = Bytes::from_static(&VALUE);
    Msgpack::<Seconds>::new().encode(&value, Timestamp::from_secs(1_700_000_000), &mut out).unwrap();
    out
}

/// How peers get the value out of an entry.
fn decode(entry: &[u8]) -> (serde_bytes::ByteBuf, u64) {
    rmp_serde::from_slice(entry).unwrap()
}

/// The redis crate's fastest way: a command that was packed before.
fn get_packed(command: &str) -> Work {
    let region = region();
    region.set("a-plain-key", &Bytes::from_static(&VALUE)).unwrap();
    let mut words = command.split(' ');
    let mut built = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        built.arg(word);
    });
    let packed = built.get_packed_command();
    let mut connection = connection();
    times(move || match redis::ConnectionLike::req_packed_command(&mut connection, &packed).unwrap() {
        redis::Value::BulkString(found) => decode(&found),
        other => panic!("{other:?}"),
    })
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [list] if list == "--list" => ROWS.iter().for_each(|(name, _)| println!("{name}")),
        [row, times] => {
            let (_, set_up) = ROWS.iter().find(|(name, _)| name == row).expect("a row of --list");
            set_up()(times.parse().expect("a number of times"));
        }
        _ => panic!("instructions ROW TIMES, or instructions --list"),
    }
}
