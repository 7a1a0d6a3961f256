// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest's standard streams. stdin is fed from body packets; stdout and stderr are gathered and leave in packets.
//!
//! Output leaves when a packet is full, when the guest waits or gives the thread back, and at the end, when the rest of
//! stdout rides on `Done`: a small answer is one packet.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use hearth_protocol::frame::PAYLOAD_BYTES_MAX;
use hearth_protocol::worker::{Event, Stream};
use tokio::io::{AsyncRead, AsyncWrite};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use crate::control::{Control, ControlError, Sent};

/// stderr of one invocation that is sent on, in bytes; the rest is dropped. The gateway keeps far less (64 KiB by
/// default) and counts the rest; this bounds what a guest that only logs costs the two of them.
const STDERR_BYTES_MAX: u64 = 8 << 20;

/// The marker with which a write to stdout ends an invocation that has answered too much.
#[derive(Debug, thiserror::Error)]
#[error("output limit reached")]
pub(crate) struct OutputLimit;

/// stdin: the packets that came and were not read yet. Bounded by the body length that `Run` announced.
#[derive(Debug, Clone)]
pub(crate) struct Input(Arc<Mutex<InputState>>);

#[derive(Debug)]
struct InputState {
    chunks: VecDeque<Bytes>,
    /// Bytes of the body that are still to come.
    missing: u64,
    reader: Option<Waker>,
}

/// More body than `Run` announced.
#[derive(Debug)]
pub(crate) struct Excess;

impl Input {
    /// An empty body of which `missing` bytes are to come.
    pub(crate) fn new(missing: u64) -> Self {
        Self(Arc::new(Mutex::new(InputState {
            chunks: VecDeque::new(),
            missing,
            reader: None,
        })))
    }

    /// Appends a packet's payload.
    pub(crate) fn push(&self, payload: &[u8]) -> Result<(), Excess> {
        let mut state = lock(&self.0);
        let length = payload.len() as u64;
        state.missing = state.missing.checked_sub(length).ok_or(Excess)?;
        if !payload.is_empty() {
            state.chunks.push_back(Bytes::copy_from_slice(payload));
        }
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    /// Reads from the packet that came first: how much, or None where the rest of the body is still to come.
    pub(crate) fn read_into(&self, buffer: &mut [u8]) -> Option<usize> {
        let mut state = lock(&self.0);
        let Some(chunk) = state.chunks.front_mut() else {
            return (state.missing == 0).then_some(0);
        };
        let length = chunk.len().min(buffer.len());
        buffer[..length].copy_from_slice(&chunk.split_to(length));
        if chunk.is_empty() {
            state.chunks.pop_front();
        }
        Some(length)
    }

    fn poll_ready(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = lock(&self.0);
        if state.chunks.is_empty() && state.missing != 0 {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

#[async_trait]
impl Pollable for Input {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.poll_ready(cx)).await;
    }
}

#[async_trait]
impl InputStream for Input {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let mut state = lock(&self.0);
        let missing = state.missing;
        match state.chunks.front_mut() {
            Some(chunk) if size < chunk.len() => Ok(chunk.split_to(size)),
            Some(_) => Ok(state.chunks.pop_front().unwrap_or_default()),
            None if missing == 0 => Err(StreamError::Closed),
            None => Ok(Bytes::new()),
        }
    }
}

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Input {
    /// Asked for by preview 3 only, which the engine does not offer.
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(tokio::io::empty())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

/// stdout or stderr.
#[derive(Debug, Clone)]
pub(crate) struct Output(Arc<OutputShared>);

#[derive(Debug)]
struct OutputShared {
    control: Arc<Control>,
    seq: u32,
    stream: Stream,
    state: Mutex<OutputState>,
}

#[derive(Debug)]
struct OutputState {
    buffer: Vec<u8>,
    /// Bytes that may still be written.
    left: u64,
}

impl Output {
    /// stdout; writing more than `bytes_max` ends the invocation.
    pub(crate) fn stdout(control: &Arc<Control>, seq: u32, bytes_max: u64) -> Self {
        Self::new(control, seq, Stream::Stdout, bytes_max)
    }

    /// stderr; what passes the cap is dropped.
    pub(crate) fn stderr(control: &Arc<Control>, seq: u32) -> Self {
        Self::new(control, seq, Stream::Stderr, STDERR_BYTES_MAX)
    }

    fn new(control: &Arc<Control>, seq: u32, stream: Stream, left: u64) -> Self {
        Self(Arc::new(OutputShared {
            control: Arc::clone(control),
            seq,
            stream,
            state: Mutex::new(OutputState {
                buffer: Vec::new(),
                left,
            }),
        }))
    }

    /// Takes what was not sent yet.
    pub(crate) fn take(&self) -> Vec<u8> {
        mem::take(&mut lock(&self.0.state).buffer)
    }

    /// Hands on what was written if there is room for it; else it stays.
    pub(crate) fn offer(&self) -> Result<(), ControlError> {
        let mut state = lock(&self.0.state);
        if state.buffer.is_empty() {
            return Ok(());
        }
        if self.0.control.try_push(&self.event(), &state.buffer)? == Sent::All {
            state.buffer.clear();
        }
        Ok(())
    }

    /// Hands on what was written, waiting for room.
    pub(crate) async fn send(&self) -> Result<(), ControlError> {
        let gathered = self.take();
        if gathered.is_empty() {
            return Ok(());
        }
        self.send_piece(&gathered).await
    }

    /// Hands on a piece that was taken.
    pub(crate) async fn send_piece(&self, piece: &[u8]) -> Result<(), ControlError> {
        self.0.control.push(&self.event(), piece).await
    }

    fn event(&self) -> Event {
        Event::Output {
            seq: self.0.seq,
            stream: self.0.stream,
        }
    }

    /// Bytes that may be appended now.
    pub(crate) fn room(&self) -> usize {
        PAYLOAD_BYTES_MAX.saturating_sub(lock(&self.0.state).buffer.len())
    }

    /// `bytes` fit into the room.
    pub(crate) fn append(&self, bytes: &[u8]) -> StreamResult<()> {
        let mut state = lock(&self.0.state);
        let length = bytes.len() as u64;
        match (state.left.checked_sub(length), self.0.stream) {
            (Some(left), _) => {
                state.left = left;
                state.buffer.extend_from_slice(bytes);
                Ok(())
            }
            // What fits is kept: who is told of the limit is also told that it was reached.
            (None, stream) => {
                let kept = usize::try_from(state.left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                state.left = 0;
                state.buffer.extend_from_slice(&bytes[..kept]);
                if stream == Stream::Stdout {
                    return Err(StreamError::Trap(OutputLimit.into()));
                }
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        if self.room() == 0 && self.send().await.is_err() {
            // The gateway is gone, and the worker ends as soon as it looks at the socket itself.
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if self.room() < bytes.len() {
            return Err(StreamError::trap("write beyond what check-write allowed"));
        }
        self.append(&bytes)
    }

    /// Nothing to do: output is gathered on purpose, and leaves by itself.
    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(self.room())
    }

    async fn blocking_write_and_flush(&mut self, mut bytes: Bytes) -> StreamResult<()> {
        while !bytes.is_empty() {
            self.ready().await;
            let piece = bytes.split_to(bytes.len().min(self.room()));
            self.append(&piece)?;
        }
        Ok(())
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    /// As in [`Input::async_stream`].
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::empty())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

/// Everything runs on one thread; a lock is only ever poisoned by a panic, which ends the process.
fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
