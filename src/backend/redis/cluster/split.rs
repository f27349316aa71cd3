//! [`split`]: a request whose commands go to several servers, all at once, and their replies in the caller's order.

use std::sync::Arc;
use std::time::Duration;

use super::super::node::Node;
use super::map::{Map, Target};
use super::{Shared, host, nobody};
use crate::backend::Access;
#[cfg(feature = "tokio")]
use crate::backend::all::all;
use crate::engine::route::{Errands, Kept, Redirect};
use crate::error::Error;
#[cfg(feature = "tokio")]
use crate::face::Task;
use crate::face::Thread;

/// How often what is redirected is sent again. Slots move one at a time, so more than twice is seldom.
const MOST_ROUNDS: u32 = 16;

/// How long to wait until keys have moved that are on their way: the first time, and longer each time.
const ON_THEIR_WAY: Duration = Duration::from_millis(2);

/// How a face asks several servers.
pub(super) trait Face {
    /// Sends each part to its node, then waits for the replies to all of them.
    fn exchange_all(
        access: Access,
        errands: &Errands,
        parts: &[Part],
    ) -> impl Future<Output = Vec<Result<Kept, Error>>> + Send;

    fn pause(time: Duration) -> impl Future<Output = ()> + Send;

    fn map(shared: &Shared) -> impl Future<Output = Result<Arc<Map>, Error>> + Send;
}

/// What goes to one server.
pub(super) type Part = (Arc<Node>, Vec<usize>);

impl Face for Thread {
    fn exchange_all(
        access: Access,
        errands: &Errands,
        parts: &[Part],
    ) -> impl Future<Output = Vec<Result<Kept, Error>>> + Send {
        let begun: Vec<_> =
            parts.iter().map(|(node, numbers)| node.begin(access, |out| errands.write(out, numbers))).collect();
        let finished = begun.into_iter().zip(parts).map(|(begun, (node, _))| {
            let mut kept = Kept::default();
            node.finish(begun?, &mut kept).map(|()| kept)
        });
        std::future::ready(finished.collect())
    }

    fn pause(time: Duration) -> impl Future<Output = ()> + Send {
        std::thread::sleep(time);
        std::future::ready(())
    }

    fn map(shared: &Shared) -> impl Future<Output = Result<Arc<Map>, Error>> + Send {
        std::future::ready(shared.topology.known())
    }
}

#[cfg(feature = "tokio")]
impl Face for Task {
    async fn exchange_all(access: Access, errands: &Errands, parts: &[Part]) -> Vec<Result<Kept, Error>> {
        let exchanges = parts.iter().map(|(node, numbers)| async move {
            let mut kept = Kept::default();
            let write = |out: &mut Vec<u8>| errands.write(out, numbers);
            node.exchange_async(access, write, &mut kept).await.map(|()| kept)
        });
        all(exchanges.collect()).await
    }

    fn pause(time: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(time)
    }

    fn map(shared: &Shared) -> impl Future<Output = Result<Arc<Map>, Error>> + Send {
        shared.topology.known_async()
    }
}

/// Sends each command to the server of its slot, or to where servers say, until all are answered.
pub(super) async fn split<F: Face>(shared: &Shared, access: Access, mut errands: Errands) -> Result<Errands, Error> {
    for round in 0..MOST_ROUNDS {
        let map = F::map(shared).await?;
        let (parts, is_waiting) = assign(shared, &map, access, &errands)?;
        if parts.is_empty() {
            break;
        }
        if is_waiting {
            F::pause(ON_THEIR_WAY * (round + 1)).await;
        }
        let to_send: Vec<Part> =
            parts.iter().map(|part| (Arc::clone(part.target.node()), part.numbers.clone())).collect();
        let came = F::exchange_all(access, &errands, &to_send).await;
        let mut failed = None;
        for (part, came) in parts.iter().zip(came) {
            match came {
                Ok(kept) => {
                    let address = &part.target.node().server.address;
                    if errands.take(&part.numbers, kept, host(address), part.target.is_replica()) {
                        shared.topology.doubt();
                    }
                }
                Err(error) => match shared.elsewhere(&part.target, Err(error)) {
                    Ok(_) => errands.ask_primary(&part.numbers),
                    Err(error) => failed = failed.or(Some(error)),
                },
            }
        }
        if let Some(failed) = failed {
            return Err(failed);
        }
    }
    Ok(errands)
}

/// What goes to one server.
struct Assigned<'m> {
    target: Target<'m>,
    numbers: Vec<usize>,
}

/// Which commands go to which servers next, and whether some of them are to wait for a while.
fn assign<'m>(
    shared: &Shared,
    map: &'m Map,
    access: Access,
    errands: &Errands,
) -> Result<(Vec<Assigned<'m>>, bool), Error> {
    let (mut parts, mut is_waiting): (Vec<Assigned<'m>>, _) = (Vec::new(), false);
    // Slots of which a command goes elsewhere, and where; what comes after it waits until it is done.
    let mut elsewhere: Vec<(u16, *const Node)> = Vec::new();
    // Commands stand in the order of their slots, so most go where the one before goes.
    let mut last: Option<(u16, usize)> = None;
    for open in errands.open() {
        if let (Some((slot, part)), None, true) = (last, open.redirect, elsewhere.is_empty())
            && slot == open.slot
        {
            parts[part].numbers.push(open.number);
            continue;
        }
        let of_slot = |access| map.target(open.slot, access).ok_or_else(|| nobody(open.slot));
        let target = match open.redirect {
            None => of_slot(access)?,
            Some(Redirect::Moved(to) | Redirect::Ask(to)) => Target::Told(shared.topology.discover().primary(to)?),
            Some(Redirect::Primary) => of_slot(Access::Write)?,
            Some(Redirect::Later) => {
                is_waiting = true;
                of_slot(access)?
            }
        };
        let node = Arc::as_ptr(target.node());
        if elsewhere.iter().any(|(slot, other)| *slot == open.slot && *other != node) {
            continue;
        }
        if open.redirect.is_some() {
            elsewhere.push((open.slot, node));
        }
        let part = parts.iter().position(|part| Arc::as_ptr(part.target.node()) == node).unwrap_or_else(|| {
            parts.push(Assigned { target, numbers: Vec::new() });
            parts.len() - 1
        });
        parts[part].numbers.push(open.number);
        last = Some((open.slot, part));
    }
    // All callers take connections to several servers in the same order, so that no two wait for each other's.
    parts.sort_unstable_by_key(|part| Arc::as_ptr(part.target.node()) as usize);
    Ok((parts, is_waiting))
}

/// Which commands go to which servers, by what is known.
#[cfg(feature = "tokio")]
pub(super) fn parts<'m>(map: &'m Map, errands: &Errands) -> Vec<(&'m Arc<Node>, Vec<usize>)> {
    let mut parts: Vec<(&'m Arc<Node>, Vec<usize>)> = Vec::new();
    for open in errands.open() {
        let Some(Target::Primary(node)) = map.target(open.slot, Access::Write) else { continue };
        match parts.iter_mut().find(|(other, _)| Arc::ptr_eq(other, node)) {
            Some((_, numbers)) => numbers.push(open.number),
            None => parts.push((node, vec![open.number])),
        }
    }
    parts
}
