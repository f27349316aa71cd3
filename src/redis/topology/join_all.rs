//! [`join_all`]: drives several futures concurrently within one task.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use crate::wake_set::{WakeSet, WakeSetWaker};

/// Drives the futures concurrently and returns their outputs in the order of the futures.
///
/// A wakeup polls only the futures that were woken, not all of them.
pub(crate) async fn join_all<F: Future>(mut futures: Vec<F>) -> Vec<F::Output> {
    if futures.len() < 2 {
        return match futures.pop() {
            Some(only) => vec![only.await],
            None => Vec::new(),
        };
    }
    let wake_set = Arc::new(WakeSet::new());
    let waker = |number| WakeSetWaker::waker(&wake_set, number);
    let mut running: Vec<(Option<_>, Waker)> =
        futures.into_iter().enumerate().map(|(number, future)| (Some(Box::pin(future)), waker(number))).collect();
    let mut outputs: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    let mut woken: Vec<usize> = (0..running.len()).collect();
    let mut unfinished = running.len();
    poll_fn(|context| {
        if woken.is_empty() {
            woken = ready!(wake_set.poll(context));
        }
        for number in woken.drain(..) {
            let (future, waker) = &mut running[number];
            let polled = future.as_mut().map(|future| future.as_mut().poll(&mut Context::from_waker(waker)));
            if let Some(Poll::Ready(output)) = polled {
                *future = None;
                outputs[number] = Some(output);
                unfinished -= 1;
            }
        }
        if unfinished == 0 {
            return Poll::Ready(());
        }
        // Returns to the runtime even if futures are already woken again: a future that always
        // wakes itself, as one does that used up its cooperative budget, must let other tasks run.
        woken = ready!(wake_set.poll(context));
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    outputs.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn returns_outputs_in_the_order_of_the_futures() {
        let after = |at: u64| async move {
            for _ in 0..at % 3 {
                tokio::time::sleep(Duration::from_millis(1000 - at)).await;
                tokio::task::yield_now().await;
            }
            at
        };
        for count in [0, 1, 500] {
            assert_eq!(join_all((0..count).map(after).collect()).await, (0..count).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn completes_when_futures_exceed_the_cooperative_budget() {
        let receive = |at: usize| async move {
            let (sender, mut receiver) = mpsc::unbounded_channel();
            (0..at).for_each(|number| sender.send(number).expect("the receiver exists"));
            // tokio makes a task that received too much in one poll return `Pending` and wakes it
            // at once.
            for number in 0..at {
                assert_eq!(receiver.recv().await, Some(number));
            }
            at
        };
        assert_eq!(join_all((0..300).map(receive).collect()).await.len(), 300);
    }
}
