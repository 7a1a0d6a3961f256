// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The epoch's clock: one thread per engine that ticks while invocations run and sleeps otherwise.
//!
//! The thread blocks in a read of a timerfd. Beginning an invocation arms the timer (0.3 µs, and only when it is not
//! armed), which wakes nobody: a call shorter than a tick never pays for a thread switch. The thread itself disarms
//! the timer at the first tick that finds nothing running.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use wasmtime::Engine;

/// How long a guest computes before it gives the thread back. It is also how late a deadline is noticed, and what an
/// invocation waits for each other one that computes without end: 64 of them make a round of 128 ms. One tick costs
/// about 5 µs, so a finer one would cost more than 0.25 % of the core.
pub(crate) const TICK: Duration = Duration::from_millis(2);

/// Stack of the ticker's thread: it reads eight bytes and adds one to a counter.
const THREAD_STACK_BYTES: usize = 64 << 10;

/// Counts the invocations that run, and ticks while there are any.
#[derive(Debug, Clone)]
pub(crate) struct Ticker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    timer: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    running: usize,
    timer: Timer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    Armed,
    Disarmed,
}

/// One invocation; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Running(Ticker);

impl Ticker {
    /// Opens the timer. Separate from [`Self::start`], because a timer can no longer be opened under the worker's
    /// seccomp filter, and a thread started before the filter would not be under it.
    pub(crate) fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        Ok(Self(Arc::new(Shared {
            timer,
            state: Mutex::new(State {
                running: 0,
                timer: Timer::Disarmed,
            }),
        })))
    }

    /// Starts the thread. It lives as long as the process.
    pub(crate) fn start(&self, engine: Engine) -> io::Result<()> {
        let ticker = self.clone();
        std::thread::Builder::new()
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || {
                let mut expirations = [0; 8];
                // A timerfd that was opened blocking fails only when it is closed, and `ticker` keeps it open.
                while rustix::io::read(&ticker.0.timer, &mut expirations).is_ok() {
                    engine.increment_epoch();
                    if ticker.tick().is_err() {
                        return;
                    }
                }
            })?;
        Ok(())
    }

    /// Counts an invocation in.
    pub(crate) fn begin(&self) -> io::Result<Running> {
        let mut state = self.state();
        if state.timer == Timer::Disarmed {
            set(&self.0.timer, TICK)?;
            state.timer = Timer::Armed;
        }
        state.running += 1;
        Ok(Running(self.clone()))
    }

    fn tick(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.running == 0 && state.timer == Timer::Armed {
            set(&self.0.timer, Duration::ZERO)?;
            state.timer = Timer::Disarmed;
        }
        Ok(())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Two plain fields: a panic cannot leave them half changed.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state().running -= 1;
    }
}

/// A period of zero stops the timer.
fn set(timer: &OwnedFd, period: Duration) -> io::Result<()> {
    let spec = Timespec::try_from(period).map_err(io::Error::other)?;
    let periodic = Itimerspec {
        it_interval: spec,
        it_value: spec,
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &periodic)?;
    Ok(())
}
