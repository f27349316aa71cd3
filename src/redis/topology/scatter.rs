//! [`split`]: a request whose commands go to several servers, all at once, and their replies in the caller's order.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
#[cfg(feature = "tokio")]
use crate::exec::Async;
use crate::exec::Blocking;
use crate::redis::conn::blocking::BlockingConnection;
use crate::redis::conn::pool::PendingExchange;
use crate::redis::protocol::parser::Receive;
use crate::redis::protocol::routing::{Kept, MOST_ROUNDS, ON_THEIR_WAY, Redirect, ScatterPlan, UpToRedirect};
#[cfg(feature = "tokio")]
use crate::redis::topology::join_all::join_all;
use crate::redis::topology::node::Node;
#[cfg(feature = "tokio")]
use crate::redis::topology::node::NodeReplies;
use crate::redis::topology::router::Router;
use crate::redis::topology::shard::Target;
use crate::redis::topology::slot_map::{ClusterDiscovery, SlotMap};
use crate::redis::transport::Access;

/// How a face asks several servers.
pub(crate) trait Scatter {
    /// What comes of asking one: replies, or that they will come.
    type Reply<'n>;

    /// Sends each part to its server; none waits for another.
    fn ask_all<'n>(
        access: Access,
        errands: &ScatterPlan,
        parts: &'n [Part<'_>],
    ) -> impl Future<Output = Vec<Result<Self::Reply<'n>, Error>>>;

    /// Takes the replies to a part.
    fn take<'n>(node: &'n Node, reply: Self::Reply<'n>, receive: &mut impl Receive) -> Result<(), Error>;

    fn pause(time: Duration) -> impl Future<Output = ()> + Send;

    fn map(fleet: &Router<ClusterDiscovery>) -> impl Future<Output = Result<Arc<SlotMap>, Error>> + Send;
}

impl Scatter for Blocking {
    type Reply<'n> = PendingExchange<'n, Box<BlockingConnection>>;

    fn ask_all<'n>(
        access: Access,
        errands: &ScatterPlan,
        parts: &'n [Part<'_>],
    ) -> impl Future<Output = Vec<Result<Self::Reply<'n>, Error>>> {
        // All callers take connections to several servers in the same order, so that no two wait for each other's.
        let mut in_order: Vec<_> = parts.iter().enumerate().collect();
        in_order.sort_unstable_by_key(|(_, part)| std::ptr::from_ref(part.node()) as usize);
        let mut late: Option<Error> = None;
        let mut begin = |part: &'n Part<'_>| {
            // Who has waited for one server in vain does not wait for the others.
            if let Some(late) = &late {
                return Err(late.copy());
            }
            let begun = part.node().begin(access, |out| errands.write(out, &part.numbers));
            late = begun.as_ref().err().filter(|error| error.kind() == ErrorKind::Timeout).map(Error::copy);
            begun
        };
        let mut begun: Vec<_> = in_order.into_iter().map(|(at, part)| (at, begin(part))).collect();
        begun.sort_unstable_by_key(|(at, _)| *at);
        std::future::ready(begun.into_iter().map(|(_, begun)| begun).collect())
    }

    fn take<'n>(node: &'n Node, reply: Self::Reply<'n>, receive: &mut impl Receive) -> Result<(), Error> {
        node.finish(reply, receive)
    }

    fn pause(time: Duration) -> impl Future<Output = ()> + Send {
        std::thread::sleep(time);
        std::future::ready(())
    }

    fn map(fleet: &Router<ClusterDiscovery>) -> impl Future<Output = Result<Arc<SlotMap>, Error>> + Send {
        std::future::ready(fleet.topology.wait_for_view())
    }
}

#[cfg(feature = "tokio")]
impl Scatter for Async {
    type Reply<'n> = NodeReplies<'n>;

    async fn ask_all<'n>(
        access: Access,
        errands: &ScatterPlan,
        parts: &'n [Part<'_>],
    ) -> Vec<Result<Self::Reply<'n>, Error>> {
        let ask = |part: &'n Part<'_>| async move {
            part.node().ask(access, |out: &mut Vec<u8>| errands.write(out, &part.numbers)).await
        };
        join_all(parts.iter().map(ask).collect()).await
    }

    fn take<'n>(node: &'n Node, reply: Self::Reply<'n>, receive: &mut impl Receive) -> Result<(), Error> {
        node.take(reply, receive)
    }

    fn pause(time: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(time)
    }

    fn map(fleet: &Router<ClusterDiscovery>) -> impl Future<Output = Result<Arc<SlotMap>, Error>> + Send {
        fleet.topology.wait_for_view_async()
    }
}

/// Sends each command to the server of its slot, or to where servers say, and hands on the replies in the order of the
/// commands.
pub(crate) async fn split<F: Scatter>(
    fleet: &Router<ClusterDiscovery>,
    access: Access,
    mut errands: ScatterPlan,
    receive: &mut impl Receive,
) -> Result<(), Error> {
    for round in 1..=MOST_ROUNDS {
        let map = F::map(fleet).await?;
        let (parts, is_waiting) = assign(fleet, &map, access, &errands)?;
        if parts.is_empty() {
            break;
        }
        if is_waiting {
            F::pause(ON_THEIR_WAY * round).await;
        }
        let mut failed: Option<Error> = None;
        for (part, reply) in parts.iter().zip(F::ask_all(access, &errands, &parts).await) {
            // Who has waited for one answer in vain does not wait for the others.
            if matches!(&failed, Some(error) if error.kind() == ErrorKind::Timeout) {
                continue;
            }
            // What comes at once stops at the first redirect, so that all are heard of in the second round.
            if let Err(error) = part.take::<F>(fleet, &mut errands, reply, receive, round == 1) {
                failed = failed.or(Some(error));
            }
        }
        if let Some(failed) = failed {
            return Err(failed);
        }
    }
    errands.hand_on(receive)
}

/// What goes to one server.
pub(crate) struct Part<'m> {
    target: Target<'m>,
    numbers: Vec<usize>,
}

impl Part<'_> {
    fn node(&self) -> &Node {
        self.target.node()
    }

    /// Takes the replies, and hands them on if it is their turn.
    fn take<'n, F: Scatter>(
        &'n self,
        fleet: &Router<ClusterDiscovery>,
        errands: &mut ScatterPlan,
        reply: Result<F::Reply<'n>, Error>,
        receive: &mut impl Receive,
        at_once: bool,
    ) -> Result<(), Error> {
        let by_replica = self.target.is_replica();
        let mut is_inside = false;
        let taken = if at_once && errands.are_next(&self.numbers) {
            let mut up_to = UpToRedirect::new(receive, by_replica);
            let taken = reply.and_then(|reply| F::take(self.node(), reply, &mut up_to));
            let redirect = up_to.redirect.take();
            let is_redirected = redirect.is_some();
            let redirect = redirect.map(|redirect| redirect.said_by(self.target.host()));
            is_inside = up_to.is_inside();
            errands.were_handed_on(up_to.handed_on, redirect);
            taken.map(|()| is_redirected)
        } else {
            let mut kept = Kept::of(self.numbers.len());
            let taken = reply.and_then(|reply| F::take(self.node(), reply, &mut kept));
            taken.map(|()| errands.take(&self.numbers, kept, self.target.host(), by_replica))
        };
        match taken {
            Ok(false) => Ok(()),
            Ok(true) => {
                fleet.topology.request_refresh();
                Ok(())
            }
            // A replica that could not be asked: the primary is.
            Err(error) => {
                let elsewhere = self.target.next_hop(&fleet.topology, Err(error), is_inside);
                elsewhere.map(|_| errands.ask_primary(&self.numbers))
            }
        }
    }
}

/// Which commands go to which servers next, and whether some of them are to wait for a while.
fn assign<'m>(
    fleet: &Router<ClusterDiscovery>,
    map: &'m SlotMap,
    access: Access,
    errands: &ScatterPlan,
) -> Result<(Vec<Part<'m>>, bool), Error> {
    let (mut parts, mut is_waiting): (Vec<Part<'m>>, _) = (Vec::new(), false);
    // Slots of which a command goes elsewhere, and where; what comes after it waits until it is done.
    let mut elsewhere: HashMap<u16, *const Node, ahash::RandomState> = HashMap::default();
    for open in errands.open() {
        let of_slot = |access| map.target(open.slot, access).ok_or_else(|| fleet.no_owner(open.slot));
        let target = match open.redirect {
            None => of_slot(access)?,
            Some(Redirect::Moved(to) | Redirect::Ask(to)) => fleet.topology.discover().announced(to)?,
            Some(Redirect::Primary) => of_slot(Access::Write)?,
            Some(down @ Redirect::Down(_)) => return Err(down.clone().into_error()),
            Some(Redirect::Later | Redirect::NotPrimary) => {
                is_waiting = true;
                of_slot(access)?
            }
        };
        let node = Arc::as_ptr(target.node());
        if elsewhere.get(&open.slot).is_some_and(|other| *other != node) {
            continue;
        }
        if open.redirect.is_some() {
            elsewhere.insert(open.slot, node);
        }
        let goes_there = |part: &Part<'_>| Arc::as_ptr(part.target.node()) == node;
        // Commands stand in the order of their slots, so most go where the one before goes.
        match parts.iter_mut().rev().find(|part| goes_there(part)) {
            Some(part) => part.numbers.push(open.number),
            None => parts.push(Part { target, numbers: vec![open.number] }),
        }
    }
    Ok((parts, is_waiting))
}

/// Which commands go to which servers, by what is known.
#[cfg(feature = "tokio")]
pub(crate) fn parts<'m>(map: &'m SlotMap, errands: &ScatterPlan) -> Vec<(&'m Arc<Node>, Vec<usize>)> {
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
