//! Futures that are dropped wherever they wait.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use dogpile::{AsyncBackend, AsyncLock, Memory, RedisLock, Region};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::support::Server;
use crate::tasks::{Of, anew_is, create, create_many, multi, new_key, no_locks_stay, single, soon};

/// Where a future is dropped.
#[derive(Clone, Copy, Debug)]
struct Cut {
    polls: usize,
    /// Not at once after the last poll, but when it would be polled again.
    when_woken: bool,
}

impl Cut {
    /// Polls a future, each time when it was woken, and drops it where that is to be. What it came to, if it did.
    async fn off<F: Future>(self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut polled = 0;
        poll_fn(|context| {
            if polled == self.polls {
                return Poll::Ready(None);
            }
            polled += 1;
            match future.as_mut().poll(context) {
                Poll::Ready(output) => Poll::Ready(Some(output)),
                Poll::Pending if polled == self.polls && !self.when_woken => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

/// Has `scenario` drop its future after each number of polls, until it says that the future was done before.
async fn at_each_point(what: &str, mut scenario: impl AsyncFnMut(Cut) -> bool) {
    for when_woken in [false, true] {
        for polls in 0.. {
            assert!(polls < 200, "{what}: it never ends");
            let cut = Cut { polls, when_woken };
            if soon(&format!("{what}, {cut:?}"), scenario(cut)).await {
                break;
            }
        }
    }
}

/// Reads keys all the time, while futures are dropped, and finds in each its own value.
fn probe<B, L>(region: &Of<B, L>) -> (Arc<AtomicBool>, tokio::task::JoinHandle<()>)
where
    B: AsyncBackend + 'static,
    L: AsyncLock<B> + 'static,
{
    let (done, region) = (Arc::new(AtomicBool::new(false)), region.clone());
    let is_done = Arc::clone(&done);
    let probes = tokio::spawn(async move {
        let keys: Vec<u64> = (0..20).collect();
        for key in &keys {
            region.set_async(key, &(key + 500)).await.unwrap();
        }
        while !is_done.load(Ordering::Relaxed) {
            for key in &keys {
                assert_eq!(region.get_async(key).await.unwrap(), Some(key + 500));
            }
            let all: Vec<Option<u64>> = region.get_many_async(&keys).await.unwrap();
            assert!(all.iter().zip(&keys).all(|(value, key)| *value == Some(key + 500)));
            sleep(Duration::from_micros(200)).await;
        }
    });
    (done, probes)
}

/// Drops every kind of call at every point where it waits. `other` is another region on the same server, or the same
/// one where there is none.
async fn drop_everything<B, L>(region: Of<B, L>, other: Of<B, L>)
where
    B: AsyncBackend + 'static,
    L: AsyncLock<B> + 'static,
    L::AsyncGuard: 'static,
{
    let (done, probes) = probe(&region);
    let anew = async |region: &Of<B, L>, key: u64| {
        let value = soon("another call", region.get_or_create_async(key, || create(7))).await.unwrap();
        assert!(value == 7 || value == 5, "{value}");
        // It is shared before it is stored; and a refresh in the background may have stored its own since.
        while !matches!(region.get_async::<u64>(key).await.unwrap(), Some(stored) if stored == value || stored == 7) {
            sleep(Duration::from_micros(100)).await;
        }
    };

    at_each_point("get", async |cut| {
        let key = new_key();
        region.set_async(key, &7_u64).await.unwrap();
        let got = cut.off(region.get_async::<u64>(key)).await;
        anew(&region, key).await;
        got.map(|got| assert_eq!(got.unwrap(), Some(7))).is_some()
    })
    .await;
    at_each_point("set", async |cut| {
        let key = new_key();
        let set = cut.off(region.set_async(key, &5_u64)).await;
        anew(&region, key).await;
        set.map(|set| set.unwrap()).is_some()
    })
    .await;
    at_each_point("get_many", async |cut| {
        let got = cut.off(region.get_many_async::<_, u64>(&[3_u64, 1, 2])).await;
        let key = new_key();
        anew(&region, key).await;
        got.map(|got| assert_eq!(got.unwrap(), [Some(503), Some(501), Some(502)])).is_some()
    })
    .await;
    at_each_point("a miss", async |cut| {
        let key = new_key();
        let got = cut.off(region.get_or_create_async(key, || create(7))).await;
        anew(&other, key).await;
        anew(&region, key).await;
        got.map(|got| assert_eq!(got.unwrap(), 7)).is_some()
    })
    .await;
    at_each_point("a hit", async |cut| {
        let key = new_key();
        region.set_async(key, &7_u64).await.unwrap();
        let got = cut.off(region.get_or_create_async(key, async || -> Result<u64, Infallible> { panic!() })).await;
        anew(&region, key).await;
        got.map(|got| assert_eq!(got.unwrap(), 7)).is_some()
    })
    .await;
    at_each_point("what is stale", async |cut| {
        let key = new_key();
        region.set_async(key, &5_u64).await.unwrap();
        let stale = region.with_stale_after(Duration::ZERO);
        let got = cut.off(stale.get_or_create_async(key, || create(7))).await;
        // Not at hand any more, so that whoever comes now needs the lock.
        region.delete_async(key).await.unwrap();
        anew(&other, key).await;
        anew(&region, key).await;
        got.map(|got| assert_eq!(got.unwrap(), 7)).is_some()
    })
    .await;
    for fails in [false, true] {
        at_each_point("a leader that others wait for", async |cut| {
            let key = new_key();
            let began = Arc::new(Notify::new());
            let waiters: Vec<_> = (0..3)
                .map(|_| {
                    let (region, began) = (region.clone(), Arc::clone(&began));
                    tokio::spawn(async move {
                        began.notified().await;
                        region.get_or_create_async(key, || create(7)).await.unwrap()
                    })
                })
                .collect();
            tokio::task::yield_now().await;
            let leads = region.get_or_create_async(key, async || {
                began.notify_waiters();
                sleep(Duration::from_millis(3)).await;
                if fails { Err("no") } else { Ok(7_u64) }
            });
            let got = cut.off(leads).await;
            began.notify_waiters();
            for waiter in waiters {
                // One that was not listening yet.
                while !waiter.is_finished() {
                    began.notify_waiters();
                    sleep(Duration::from_micros(100)).await;
                }
                assert_eq!(waiter.await.unwrap(), 7);
            }
            anew(&other, key).await;
            got.map(|got| assert_eq!(got.is_err(), fails)).is_some()
        })
        .await;
        at_each_point("one who waits for another", async |cut| {
            let key = new_key();
            let began = Arc::new(Notify::new());
            // In this region, who waits stands in the line; in the other one, the holder of the lock is waited for.
            for leader in [&region, &other] {
                let (leads, began2) = (leader.clone(), Arc::clone(&began));
                let leads = tokio::spawn(async move {
                    let create = async || {
                        began2.notify_one();
                        sleep(Duration::from_millis(3)).await;
                        if fails { Err("no") } else { Ok(7_u64) }
                    };
                    leads.get_or_create_async(key, create).await
                });
                began.notified().await;
                let got = cut.off(region.get_or_create_async(key, || create(7))).await;
                // Comes behind in the line.
                anew(&region, key).await;
                anew(&other, key).await;
                if let Some(got) = got {
                    assert_eq!(got.unwrap(), 7);
                    assert_eq!(leads.await.unwrap().is_err(), fails);
                    if std::ptr::eq(leader, &raw const other) {
                        return true;
                    }
                } else {
                    assert_eq!(leads.await.unwrap().is_err(), fails);
                }
                region.delete_async(key).await.unwrap();
            }
            false
        })
        .await;
    }
    at_each_point("a batch", async |cut| {
        let keys = [new_key(), new_key(), 3, new_key()];
        region.set_async(keys[1], &(keys[1] * 10)).await.unwrap();
        region.set_async(3, &503_u64).await.unwrap();
        let got = cut.off(region.get_or_create_many_async(&keys, create_many)).await;
        let values: Vec<u64> = soon("a batch", other.get_or_create_many_async(&keys, create_many)).await.unwrap();
        assert_eq!(values, [keys[0] * 10, keys[1] * 10, 503, keys[3] * 10]);
        for key in &keys {
            anew_is(&region, *key, if *key == 3 { 503 } else { key * 10 }).await;
        }
        got.map(|got| assert_eq!(got.unwrap(), values)).is_some()
    })
    .await;
    at_each_point("a batch that waits for parts", async |cut| {
        let keys = [new_key(), new_key(), new_key()];
        let (leads, began) = (other.clone(), Arc::new(Notify::new()));
        let (began2, theirs) = (Arc::clone(&began), [keys[1], keys[2]]);
        let leads = tokio::spawn(async move {
            let create = async |missing: Vec<&u64>| {
                began2.notify_one();
                sleep(Duration::from_millis(3)).await;
                create_many(missing).await
            };
            leads.get_or_create_many_async(&theirs, create).await.unwrap()
        });
        began.notified().await;
        let got = cut.off(region.get_or_create_many_async(&keys, create_many)).await;
        let values: Vec<u64> = soon("a batch", region.get_or_create_many_async(&keys, create_many)).await.unwrap();
        assert_eq!(values, keys.map(|key| key * 10));
        assert_eq!(leads.await.unwrap(), values[1..]);
        got.map(|got| assert_eq!(got.unwrap(), values)).is_some()
    })
    .await;
    at_each_point("a refresh", async |cut| {
        let key = new_key();
        region.set_async(key, &5_u64).await.unwrap();
        let stale = region.with_stale_after(Duration::ZERO);
        let got = cut.off(stale.get_or_refresh_async(key, || create(7))).await;
        anew(&region, key).await;
        region.delete_async(key).await.unwrap();
        let got2 = cut.off(region.get_or_refresh_async(key, || create(7))).await;
        anew(&other, key).await;
        anew(&region, key).await;
        if let Some(got) = &got {
            // Of another call's clock: an entry of this second may be as good as new.
            assert!(matches!(got, Ok(5 | 7)), "{got:?}");
        }
        got.is_some() && got2.map(|got| assert!(matches!(got, Ok(5 | 7)))).is_some()
    })
    .await;

    done.store(true, Ordering::Relaxed);
    soon("the probes", probes).await.unwrap();
}

#[test]
fn futures_may_be_dropped_anywhere_with_leases() {
    let server = Server::start();
    for runtime in [single(), multi()] {
        runtime.block_on(async {
            let region = || Region::builder(server.redis()).lock(RedisLock::new()).build().unwrap();
            drop_everything(region(), region()).await;
            no_locks_stay(&server).await;
        });
    }
}

#[test]
fn futures_may_be_dropped_anywhere_without_leases() {
    let server = Server::start();
    for runtime in [single(), multi()] {
        runtime.block_on(async {
            let region = Region::builder(server.redis()).build().unwrap();
            drop_everything(region.clone(), region).await;
            let memory = Region::builder(Memory::new(64 << 20)).build().unwrap();
            drop_everything(memory.clone(), memory).await;
        });
    }
}
