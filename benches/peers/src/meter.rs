//! What an operation costs: how long it takes, the CPU time of this process, and its allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;

/// Some operations, one after the other or at the same time.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// How long each of them took; where several are timed together, the mean of those. Empty where that is not known.
    pub took: Vec<Duration>,
    /// From the beginning of the first to the end of the last.
    pub elapsed: Duration,
    /// The CPU time that they took together, of all threads of the process. `None` where it is not known.
    pub cpu: Option<Duration>,
    /// How often they allocated together. `None` where that cannot be counted.
    pub allocations: Option<u64>,
    /// How many there were.
    pub operations: u32,
}

impl Sample {
    /// Does something so many times and measures it, `group` of them together: where one takes no longer than reading
    /// the clock, the clock would be measured.
    pub fn of(times: u32, group: u32, mut operation: impl FnMut()) -> Sample {
        let groups = times.div_ceil(group);
        let mut running = Running::start(groups);
        for _ in 0..groups {
            let start = Instant::now();
            (0..group).for_each(|_| operation());
            running.took.push(start.elapsed() / group);
        }
        running.end(groups * group)
    }

    /// The same for an asynchronous operation.
    pub async fn of_async(times: u32, mut operation: impl AsyncFnMut()) -> Sample {
        let mut running = Running::start(times);
        for _ in 0..times {
            let start = Instant::now();
            operation().await;
            running.took.push(start.elapsed());
        }
        running.end(times)
    }

    /// For tasks at the same time, on the runtime that this is called on. Each tells how long its operations took.
    ///
    /// # Panics
    /// When a task does.
    pub async fn of_tasks<T: Future<Output = Vec<Duration>> + Send + 'static>(tasks: Vec<T>) -> Sample {
        let mut took = Vec::with_capacity(tasks.len());
        let running = Running::start(0);
        let tasks: Vec<_> = tasks.into_iter().map(tokio::spawn).collect();
        for task in tasks {
            took.push(task.await.expect("no task panics"));
        }
        let sample = running.end(took.iter().map(|took| took.len() as u32).sum());
        Sample { took: took.concat(), ..sample }
    }
}

/// A sample that is being taken.
struct Running {
    took: Vec<Duration>,
    start: Instant,
    cpu: ProcessTime,
    allocations: u64,
}

impl Running {
    fn start(readings: u32) -> Self {
        let took = Vec::with_capacity(readings as usize);
        let allocations = ALLOCATIONS.load(Ordering::Relaxed);
        Running { took, start: Instant::now(), cpu: ProcessTime::now(), allocations }
    }

    fn end(self, operations: u32) -> Sample {
        let (cpu, elapsed) = (Some(self.cpu.elapsed()), self.start.elapsed());
        let allocations = Some(ALLOCATIONS.load(Ordering::Relaxed) - self.allocations);
        Sample { took: self.took, elapsed, cpu, allocations, operations }
    }
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, counting. A program that measures makes it its global one.
pub struct Counting;

// SAFETY: all requests go to the system's allocator as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.realloc(old, layout, size) }
    }
    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        unsafe { System.dealloc(old, layout) }
    }
}
