//! Many tasks at the same time over one connection, each in a loop on a key of its own that is there.

use std::time::{Duration, Instant};

use dogpile::{Redis, Region};
use redis::aio::MultiplexedConnection;

use super::{Subject, Work};
use crate::VALUE;
use crate::meter::Sample;
use crate::tasks::{Client, Shared, divide};

/// The first is what the others are compared with.
pub(super) fn subjects(url: &str) -> Vec<Box<dyn Subject>> {
    vec![
        Box::new(Tasks { name: "dogpile", shared: Shared::<Region<Redis>>::connect(url) }),
        Box::new(Tasks { name: "redis", shared: Shared::<MultiplexedConnection>::connect(url) }),
        Box::new(Tasks { name: "fred", shared: Shared::<fred::clients::Client>::connect(url) }),
        Box::new(Tasks { name: "rustis", shared: Shared::<rustis::client::Client>::connect(url) }),
    ]
}

struct Tasks<C> {
    name: &'static str,
    shared: Shared<C>,
}

impl<C: Client> Subject for Tasks<C> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&mut self, work: Work, times: u32) -> Option<Sample> {
        let Shared { runtime, client } = &mut self.shared;
        let tasks = work.tasks()?;
        let keys: Vec<_> = (0..tasks).map(|task| format!("{}|task-{task}", self.name)).collect();
        Some(runtime.block_on(async {
            for key in &keys {
                client.set(key).await;
                assert_eq!(*client.get(key).await.unwrap(), VALUE);
            }
            let loops = keys.into_iter().zip(divide(times, tasks));
            Sample::of_tasks(loops.map(|(key, times)| repeat(client.clone(), key, work, times)).collect()).await
        }))
    }
}

/// One task. The room for what it notes is made before it is measured, and the clock is read once an operation.
fn repeat<C: Client>(
    mut client: C,
    key: String,
    work: Work,
    times: u32,
) -> impl Future<Output = Vec<Duration>> + Send + 'static {
    let mut took = Vec::with_capacity(times as usize);
    async move {
        let mut before = Instant::now();
        for _ in 0..times {
            match work {
                Work::GetOrCreate64Tasks => client.get_or_create(&key).await,
                _ => assert!(client.get(&key).await.is_some()),
            }
            let now = Instant::now();
            took.push(now - before);
            before = now;
        }
        took
    }
}
