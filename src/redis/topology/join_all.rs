//! [`all`]: futures that run at the same time.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use crate::wake_set::{Bell, Rings};

/// What all of these come to, which run at the same time. Of many only those are polled again that were woken.
pub(crate) async fn all<F: Future>(mut futures: Vec<F>) -> Vec<F::Output> {
    if futures.len() < 2 {
        return match futures.pop() {
            Some(only) => vec![only.await],
            None => Vec::new(),
        };
    }
    let bell = Arc::new(Bell::new());
    let waker = |number| Rings::waker(&bell, number);
    let mut running: Vec<(Option<_>, Waker)> =
        futures.into_iter().enumerate().map(|(number, future)| (Some(Box::pin(future)), waker(number))).collect();
    let mut outputs: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    let mut woken: Vec<usize> = (0..running.len()).collect();
    let mut left = running.len();
    poll_fn(|context| {
        if woken.is_empty() {
            woken = ready!(bell.poll(context));
        }
        for number in woken.drain(..) {
            let (future, waker) = &mut running[number];
            let polled = future.as_mut().map(|future| future.as_mut().poll(&mut Context::from_waker(waker)));
            if let Some(Poll::Ready(output)) = polled {
                *future = None;
                outputs[number] = Some(output);
                left -= 1;
            }
        }
        if left == 0 {
            return Poll::Ready(());
        }
        // What wakes itself would otherwise not let others run.
        woken = ready!(bell.poll(context));
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
    async fn outputs_come_in_the_order_of_their_futures() {
        let after = |at: u64| async move {
            for _ in 0..at % 3 {
                tokio::time::sleep(Duration::from_millis(1000 - at)).await;
                tokio::task::yield_now().await;
            }
            at
        };
        for count in [0, 1, 500] {
            assert_eq!(all((0..count).map(after).collect()).await, (0..count).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn much_that_is_there_at_once_holds_nobody_up() {
        let receive = |at: usize| async move {
            let (sender, mut receiver) = mpsc::unbounded_channel();
            (0..at).for_each(|number| sender.send(number).expect("it is open"));
            // A task that takes too much is told to wait, and woken at once.
            for number in 0..at {
                assert_eq!(receiver.recv().await, Some(number));
            }
            at
        };
        assert_eq!(all((0..300).map(receive).collect()).await.len(), 300);
    }
}
