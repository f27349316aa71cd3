//! [`LocalLock`]: no lock between processes.

use crate::backend::{AsyncBackend, Backend};
use crate::error::Error;
use crate::key::Key;
use crate::lock::{AsyncLock, Lock, LockSettings};

/// No lock between processes: one creator per key in each region and its clones. The default.
///
/// It is enough for [`Memory`](crate::Memory), and for values that each process may create once. It
/// costs nothing: single-flight within the region is done by the region itself.
///
/// ```
/// use dogpile::{LocalLock, Memory, Region};
///
/// let region = Region::builder(Memory::new(1 << 20)).lock(LocalLock).build()?;
/// # let _: Region<Memory> = region;
/// # Ok::<(), dogpile::Error>(())
/// ```
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

impl<B: AsyncBackend> AsyncLock<B> for LocalLock {
    type AsyncGuard = ();

    async fn try_lock_async(&self, _: &B, _: Key<'_>) -> Result<Option<()>, Error> {
        Ok(Some(()))
    }

    async fn is_locked_async(&self, _: &B, _: Key<'_>) -> Result<bool, Error> {
        Ok(false)
    }
}
