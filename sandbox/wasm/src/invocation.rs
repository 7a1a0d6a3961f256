// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One invocation, from `Run` to `Done`: the guest, its deadline, its cancellation and what it used.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hearth_protocol::frame::{PACKET_BYTES_MAX, PAYLOAD_BYTES_MAX};
use hearth_protocol::worker::{Ending, Event, Usage};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::control::{Control, ControlError};
use crate::guest::{Meter, Program, World};
use crate::stdio::{Input, Output};
use crate::ticker;

/// Time limits longer than this are taken as this: a day, so that adding one to a clock reading cannot overflow.
const TIMEOUT_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// What `Run` says.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) seq: u32,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) timeout_ms: u64,
}

/// What every invocation of this worker shares.
pub(crate) struct Bound {
    pub(crate) program: Program,
    pub(crate) env: Arc<[(String, String)]>,
    pub(crate) output_bytes_max: u64,
    pub(crate) inflight_max: usize,
    pub(crate) cpu: CpuClock,
}

/// Divides this thread's CPU time among the steps of all invocations. One reading ends a step and begins the next one
/// (each costs a system call): what the worker does for a step, such as reading its message, belongs to it.
#[derive(Debug)]
pub(crate) struct CpuClock {
    read_ns: AtomicU64,
}

impl CpuClock {
    pub(crate) fn start() -> Self {
        Self {
            read_ns: AtomicU64::new(thread_cpu_ns()),
        }
    }

    /// CPU time since the last reading, in nanoseconds.
    fn lap_ns(&self) -> u64 {
        let now_ns = thread_cpu_ns();
        now_ns.saturating_sub(self.read_ns.swap(now_ns, Ordering::Relaxed))
    }
}

/// How an invocation went, for the worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) seq: u32,
    pub(crate) cpu_ns: u64,
}

/// The gateway's hold on a running invocation.
#[derive(Debug)]
pub(crate) struct Handle {
    /// Where `Body` goes.
    pub(crate) stdin: Input,
    /// What `Cancel` pulls.
    pub(crate) cancellation: Arc<Cancellation>,
}

/// Whether `Cancel` came.
#[derive(Debug, Default)]
pub(crate) struct Cancellation {
    requested: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl Cancellation {
    /// Makes the invocation end when it is next polled, which is at once.
    pub(crate) fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
        let waiting = self
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    fn requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    fn wake_on_request(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match &*waiting {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => *waiting = Some(cx.waker().clone()),
        }
    }
}

/// Runs the guest, drops it, and says how it ended.
pub(crate) async fn run(
    bound: Arc<Bound>,
    control: Arc<Control>,
    call: Call,
    handle: Handle,
    ticking: ticker::Running,
) -> Result<Ended, ControlError> {
    let timeout = Duration::from_millis(call.timeout_ms.min(TIMEOUT_MS_MAX));
    let meter = Arc::new(Meter::default());
    let mut watch = Watch {
        stdout: Output::stdout(&control, call.seq, bound.output_bytes_max),
        stderr: Output::stderr(&control, call.seq),
        cancellation: handle.cancellation,
        deadline: Instant::now() + timeout,
        alarm: None,
        clock: &bound.cpu,
        cpu_ns: 0,
    };
    let ending = {
        let world = World {
            args: call.args,
            base_env: Arc::clone(&bound.env),
            env: call.env,
            stdin: handle.stdin,
            stdout: watch.stdout.clone(),
            stderr: watch.stderr.clone(),
        };
        let mut guest = pin!(bound.program.run(world, Arc::clone(&meter)));
        poll_fn(|cx| watch.poll(cx, guest.as_mut())).await?
        // The instance is dropped here, before `Done` says so.
    };
    drop(ticking);
    let usage = Usage {
        cpu_us: watch.cpu_ns / 1000,
        memory_peak_bytes: meter.peak_bytes(),
        memory_refusals: meter.refusals(),
    };
    watch.stderr.send().await?;
    finish(&control, call.seq, ending, usage, &watch.stdout).await?;
    Ok(Ended {
        seq: call.seq,
        cpu_ns: watch.cpu_ns,
    })
}

/// Says `Done`, with the rest of stdout on it where both fit into one packet.
async fn finish(
    control: &Control,
    seq: u32,
    ending: Ending,
    usage: Usage,
    stdout: &Output,
) -> Result<(), ControlError> {
    let text_bytes = match &ending {
        Ending::Trap { text } => text.len(),
        Ending::NoInstance { message } => message.len(),
        Ending::Exited(_) | Ending::TimedOut | Ending::OutputLimit | Ending::Cancelled => 0,
    };
    // What PAYLOAD_BYTES_MAX leaves is for a header without text.
    let header_bytes = PACKET_BYTES_MAX - PAYLOAD_BYTES_MAX + text_bytes;
    let mut rest = stdout.take();
    if PACKET_BYTES_MAX < header_bytes + rest.len() {
        stdout.send_piece(&rest).await?;
        rest.clear();
    }
    control
        .push(&Event::Done { seq, ending, usage }, &rest)
        .await
}

/// Stands between an invocation and its guest: measures each step and decides whether there is another.
struct Watch<'b> {
    stdout: Output,
    stderr: Output,
    cancellation: Arc<Cancellation>,
    deadline: Instant,
    /// Made when the guest first waits: most never do.
    alarm: Option<Pin<Box<Sleep>>>,
    clock: &'b CpuClock,
    cpu_ns: u64,
}

impl Watch<'_> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        guest: Pin<&mut impl Future<Output = Ending>>,
    ) -> Poll<Result<Ending, ControlError>> {
        if self.cancellation.requested() {
            return Poll::Ready(Ok(Ending::Cancelled));
        }
        if self.alarm.is_some() && self.deadline <= Instant::now() {
            return Poll::Ready(Ok(Ending::TimedOut));
        }
        let step = guest.poll(cx);
        self.cpu_ns += self.clock.lap_ns();
        if let Poll::Ready(ending) = step {
            return Poll::Ready(Ok(ending));
        }
        self.cancellation.wake_on_request(cx);
        // It waits or gave the thread back: a good moment to show what it wrote so far.
        self.stderr.offer()?;
        self.stdout.offer()?;
        let deadline = self.deadline;
        let alarm = self
            .alarm
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        alarm.as_mut().poll(cx).map(|()| Ok(Ending::TimedOut))
    }
}

/// Reads the clock once, because the first reading looks for the kernel's vDSO in files that the worker's filter forbids.
pub(crate) fn find_clock() {
    thread_cpu_ns();
}

fn thread_cpu_ns() -> u64 {
    // A clock reading is never negative, and 584 years are not reached.
    let reading = Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default();
    u64::try_from(reading.as_nanos()).unwrap_or(u64::MAX)
}
