// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A client's socket with time limits for every state in which a client can keep it open by doing nothing.
//!
//! hyper has one timer for the headers, which also runs while a kept connection is idle: with it alone, either idle
//! connections end after seconds or half a header may take a minute. So each state has its own limit here.
//!
//! ```text
//! FirstByte ─byte─▶ Head ─request parsed─▶ Busy ─answer out─▶ Idle ─byte─▶ Head …
//! ```

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, Sleep, sleep_until};

use super::heads::Watched;
use crate::config::EdgeTimeouts;

/// What a connection is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// Nothing has come yet.
    FirstByte = 0,
    /// A request has begun and its headers are not complete.
    Head = 1,
    /// A request is being answered; reading its body has limits of its own.
    Busy = 2,
    /// An answer is out and nothing has come since.
    Idle = 3,
}

/// The phase, shared between the socket and the service that answers.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedPhase(Arc<AtomicU8>);

impl SharedPhase {
    pub(super) fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Phase {
        match self.0.load(Ordering::Relaxed) {
            0 => Phase::FirstByte,
            1 => Phase::Head,
            2 => Phase::Busy,
            _ => Phase::Idle,
        }
    }
}

/// A client's socket with time limits.
pub(super) struct TimedIo {
    stream: TokioIo<Watched>,
    phase: SharedPhase,
    timeouts: EdgeTimeouts,
    read_timer: Timer<Phase>,
    write_timer: Timer<()>,
}

impl TimedIo {
    pub(super) fn new(stream: Watched, phase: SharedPhase, timeouts: EdgeTimeouts) -> Self {
        Self {
            stream: TokioIo::new(stream),
            phase,
            timeouts,
            read_timer: Timer::default(),
            write_timer: Timer::default(),
        }
    }

    fn read_limit(&self, phase: Phase) -> Option<Duration> {
        match phase {
            Phase::FirstByte => Some(self.timeouts.first_byte),
            Phase::Head => Some(self.timeouts.header_read),
            Phase::Busy => None,
            Phase::Idle => Some(self.timeouts.keep_alive_idle),
        }
    }

    /// After a read that gave nothing: Pending, or the error of the limit that has passed.
    fn wait_to_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let phase = self.phase.get();
        match self.read_limit(phase) {
            None => {
                self.read_timer.stop();
                Poll::Pending
            }
            Some(limit) => self.read_timer.poll(phase, limit, cx),
        }
    }

    /// After a write: notes whether the client takes anything.
    fn watch_write<T>(
        &mut self,
        result: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(result) => {
                self.write_timer.stop();
                Poll::Ready(result)
            }
            Poll::Pending => match self.write_timer.poll((), self.timeouts.write_progress, cx) {
                Poll::Ready(Err(timed_out)) => Poll::Ready(Err(timed_out)),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            },
        }
    }
}

impl Read for TimedIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Pending => this.wait_to_read(cx),
            Poll::Ready(result) => {
                // At the end of the stream too, where it makes no difference: the connection ends.
                if matches!(this.phase.get(), Phase::FirstByte | Phase::Idle) {
                    this.phase.set(Phase::Head);
                }
                Poll::Ready(result)
            }
        }
    }
}

impl Write for TimedIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.watch_write(result, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        // hyper has a read pending since before the answer and does not read again after it; flushing is what it does
        // last. So the limit of an idle connection begins here.
        if this.phase.get() == Phase::Idle && flushed.is_ready() {
            match this.wait_to_read(cx) {
                Poll::Ready(Err(timed_out)) => return Poll::Ready(Err(timed_out)),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.watch_write(result, cx)
    }
}

/// Runs from the first poll in a state until it is stopped or polled in another one. The sleep is kept when stopped:
/// most requests arm it and none needs it.
struct Timer<S> {
    running: Option<(S, Instant)>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl<S> Default for Timer<S> {
    fn default() -> Self {
        Self {
            running: None,
            sleep: None,
        }
    }
}

impl<S: PartialEq + Copy> Timer<S> {
    fn poll(&mut self, state: S, limit: Duration, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let deadline = match self.running {
            Some((running, deadline)) if running == state => deadline,
            _ => {
                let deadline = Instant::now() + limit;
                self.running = Some((state, deadline));
                deadline
            }
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        // One that ends too early is left as it is and set again when it ends: with each request the deadline moves
        // away, and moving the timer along would cost every request what now costs one in minutes.
        if deadline < sleep.deadline() {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if deadline <= sleep.deadline() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    fn stop(&mut self) {
        self.running = None;
    }
}
