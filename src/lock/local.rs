//! [`LocalLock`]: no lock among processes.

use super::Lock;
use crate::backend::Backend;
use crate::error::Error;
use crate::key::Key;

/// No lock among processes: one creator in each region and its clones. The default.
///
/// Enough for [`Memory`](crate::Memory), and for values that each process may create once.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalLock;

impl<B: Backend> Lock<B> for LocalLock {
    type Guard = ();

    const ONLY_THIS_REGION: bool = true;

    fn try_lock(&self, _: &B, _: Key<'_>) -> Result<Option<()>, Error> {
        Ok(Some(()))
    }

    fn is_locked(&self, _: &B, _: Key<'_>) -> Result<bool, Error> {
        Ok(false)
    }
}
