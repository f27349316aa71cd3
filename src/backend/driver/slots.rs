//! Slots in the `redis` crate's terms: who is asked about one, what servers say instead of an answer, and which are the
//! primaries.

use parking_lot::Mutex;
use redis::cluster_routing::{Route, SingleNodeRoutingInfo, SlotAddr};
use redis::{Cmd, RedisError, ServerError, ServerErrorKind, Value};

use super::values::driver_error;
use crate::backend::Access;
use crate::backend::pool::Failed;
use crate::error::{Error, ErrorKind};

/// The server of a slot: what only reads may go to a replica, if the client is set up so.
pub(super) fn at(slot: u16, access: Access) -> SingleNodeRoutingInfo {
    let which = if access == Access::Read { SlotAddr::ReplicaOptional } else { SlotAddr::Master };
    SingleNodeRoutingInfo::SpecificNode(Route::new(slot, which))
}

/// What a server says instead of doing what it was asked: that another one has the slot, or the keys, or will soon; or
/// that it is a replica that cannot answer at the moment.
pub(super) fn elsewhere(reply: &Value, access: Access) -> Option<ServerError> {
    let Value::ServerError(error) = reply else { return None };
    let is_elsewhere = match error.kind()? {
        ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::TryAgain => true,
        ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown => access == Access::Read,
        _ => false,
    };
    is_elsewhere.then(|| error.clone())
}

/// What failed before anything was sent.
pub(super) fn not_sent(error: Error) -> Failed {
    Failed { error, broke_early: true }
}

/// For each primary a slot of its own, in the order of the slots. No connection tells which they are, so they are asked
/// for before the first one is asked for something.
#[derive(Default)]
pub(super) struct Primaries(Mutex<Vec<u16>>);

pub(super) fn ask_primaries() -> Cmd {
    redis::cmd("CLUSTER").arg("SLOTS").take()
}

impl Primaries {
    /// How many there are, as far as is known.
    pub(super) fn count(&self) -> usize {
        self.0.lock().len().max(1)
    }

    pub(super) fn slot(&self, number: usize) -> Result<u16, Error> {
        let none = || Error::new(ErrorKind::Config, format!("the cluster has no primary of the number {number}"));
        self.0.lock().get(number).copied().ok_or_else(none)
    }

    /// Takes what a server told of the slots.
    pub(super) fn learn(&self, told: Result<Value, RedisError>) -> Result<(), Error> {
        let told = told.map_err(|error| driver_error(&error).during("asking for the primaries"))?;
        let slots = read(&told).ok_or_else(|| Error::new(ErrorKind::Protocol, "a server's CLUSTER SLOTS is none"))?;
        *self.0.lock() = slots;
        Ok(())
    }
}

/// The first slot of each primary, from ranges of slots with their servers, the primary first.
fn read(told: &Value) -> Option<Vec<u16>> {
    let Value::Array(ranges) = told else { return None };
    let mut ranges = ranges
        .iter()
        .map(|range| match range {
            Value::Array(range) => match &range[..] {
                [Value::Int(first), _, primary, ..] => Some((u16::try_from(*first).ok()?, primary)),
                _ => None,
            },
            _ => None,
        })
        .collect::<Option<Vec<_>>>()?;
    ranges.sort_by_key(|(first, _)| *first);
    let mut primaries: Vec<(u16, &Value)> = Vec::new();
    for (first, primary) in ranges {
        if primaries.iter().all(|(_, known)| *known != primary) {
            primaries.push((first, primary));
        }
    }
    Some(primaries.into_iter().map(|(first, _)| first).collect())
}
