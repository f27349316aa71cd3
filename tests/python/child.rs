//! This library in a process of its own, told what to do as the Python peer is.

use std::io::Write;
use std::time::Duration;

use dogpile::{Redis, RedisLock, Region};
use serde_json::{Value as Json, json};

use crate::formats::{Format, untagged};
use crate::value::Value;

/// Where it is not set, this is no child.
pub const IS_CHILD: &str = "DOGPILE_PYTHON_CHILD";

/// Not a test, but what runs in the processes that tests start.
#[test]
fn child() {
    if std::env::var_os(IS_CHILD).is_none() {
        return;
    }
    let mut opened = None;
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let order: Json = serde_json::from_str(&line).unwrap();
        let answer = match order["do"].as_str().unwrap() {
            "open" => {
                opened = Some(Opened::by(&order));
                Json::Null
            }
            "get_or_create" => opened.as_ref().unwrap().get_or_create(&order),
            "get_or_create_many" => opened.as_ref().unwrap().get_or_create_many(&order),
            unknown => panic!("what is {unknown}?"),
        };
        // In one piece, and not behind what the harness says.
        let line = format!("\n{}\n", json!({"answer": answer}));
        let mut out = std::io::stdout().lock();
        out.write_all(line.as_bytes()).and_then(|()| out.flush()).unwrap();
    }
    // Whoever started this process has gone.
    std::process::exit(0);
}

struct Opened {
    name: String,
    region: Region<Redis, Format, RedisLock>,
    creators: redis::Client,
}

impl Opened {
    fn by(order: &Json) -> Self {
        let url = format!("redis://127.0.0.1:{}", order["port"]);
        let lock = RedisLock::new()
            .prefix(order["prefix"].as_str().unwrap())
            .lease(Duration::from_millis(order["lease"].as_u64().unwrap()));
        let format = Format::named(order["codec"].as_str().unwrap());
        let region = Region::builder(Redis::open(&url).unwrap()).codec(format).lock(lock);
        let expires = Duration::from_secs(order["expires"].as_u64().unwrap());
        Opened {
            name: order["name"].as_str().unwrap().into(),
            region: region.stale_after(expires).build().unwrap(),
            creators: redis::Client::open(url).unwrap(),
        }
    }

    /// So many callers at once. Whoever creates says so in a list of the server.
    fn get_or_create(&self, order: &Json) -> Json {
        let key = untagged(&order["key"]);
        let create = || {
            let mut server = self.creators.get_connection().unwrap();
            let number: u64 = redis::cmd("RPUSH").arg("creators").arg(&self.name).query(&mut server).unwrap();
            std::thread::sleep(Duration::from_millis(order["millis"].as_u64().unwrap()));
            Ok::<_, ()>(Value::Text(format!("{}'s, number {number}", self.name)))
        };
        std::thread::scope(|scope| {
            let call = |_| scope.spawn(|| self.region.get_or_create(&key, create).unwrap().tagged());
            let callers: Vec<_> = (0..order["callers"].as_u64().unwrap()).map(call).collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).collect()
        })
    }

    fn get_or_create_many(&self, order: &Json) -> Json {
        let keys: Vec<_> = order["keys"].as_array().unwrap().iter().map(untagged).collect();
        let created = self.region.get_or_create_many(&keys, |missing| {
            std::thread::sleep(Duration::from_millis(order["millis"].as_u64().unwrap()));
            Ok::<_, ()>(vec![Value::Text(format!("{}'s", self.name)); missing.len()])
        });
        created.unwrap().iter().map(Value::tagged).collect()
    }
}
