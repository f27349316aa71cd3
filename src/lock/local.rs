//! [`LocalLock`]: no lock among processes.

#[cfg(feature = "tokio")]
use crate::backend::AsyncBackend;
use crate::backend::Backend;
use crate::error::Error;
use crate::key::Key;
#[cfg(feature = "tokio")]
use crate::lock::AsyncLock;
use crate::lock::{Lock, LockSettings};

/// No lock among processes: one creator in each region and its clones. The default.
///
/// Enough for [`Memory`](crate::backend::Memory), and for values that each process may create once.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalLock;

impl LockSettings for LocalLock {
    const ONLY_THIS_REGION: bool = true;
}

impl<B: Backend> Lock<B> for LocalLock {
    type Guard = ();

    fn try_lock(&self, _: &B, _: Key<'_>) -> Result<Option<()>, Error> {
        Ok(Some(()))
    }

    fn is_locked(&self, _: &B, _: Key<'_>) -> Result<bool, Error> {
        Ok(false)
    }
}

#[cfg(feature = "tokio")]
impl<B: AsyncBackend> AsyncLock<B> for LocalLock {
    type AsyncGuard = ();

    async fn try_lock_async(&self, _: &B, _: Key<'_>) -> Result<Option<()>, Error> {
        Ok(Some(()))
    }

    async fn is_locked_async(&self, _: &B, _: Key<'_>) -> Result<bool, Error> {
        Ok(false)
    }
}
