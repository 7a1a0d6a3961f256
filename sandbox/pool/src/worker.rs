// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A wasm worker: one sandbox, one revision, many invocations at once over one socket.
//!
//! One task writes to the socket and one reads from it. An invocation only leaves its messages for the writer, which
//! runs after every other task that is ready: what all of them have to say goes out in one packet.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use hearth_protocol::{
    frame::{self, FrameError, PACKET_BYTES_MAX},
    worker::{Ending, Event, INFLIGHT_MAX, Request, Stream, Usage},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::yield_now,
};

use crate::{
    channel::{Channel, ChannelError},
    roster::Place,
    sandbox::Sandbox,
};

/// Pieces of bodies that wait for the writer, of all invocations together. A few, so that the writer never waits for
/// the next one; no more, so that a large body does not keep the others' beginnings waiting.
const BODIES_WAITING_MAX: usize = 4;

/// A wasm worker.
#[derive(Debug)]
pub(crate) struct Worker {
    // Dropped first: the sandbox is on its way out when its place goes to another.
    pub(crate) sandbox: Sandbox,
    pub(crate) place: Place,
    pub(crate) shard: usize,
    inflight_max: u16,
    turns: Mutex<Turns>,
    calls: Arc<Calls>,
    /// To the writer. Bounded by the invocations' number and by `bodies`.
    outgoing: mpsc::UnboundedSender<Outgoing>,
    bodies: Arc<Semaphore>,
}

#[derive(Debug)]
struct Turns {
    taken: u16,
    idle_since: Instant,
}

/// A message for the worker.
#[derive(Debug)]
struct Outgoing {
    request: Request,
    payload: Bytes,
    /// Given back once it is sent.
    _room: Option<OwnedSemaphorePermit>,
}

/// The invocations that run in a worker, by `seq`. The reader and the writer own it too, but not the worker: the last
/// turn or the roster ends that.
#[derive(Debug, Default)]
struct Calls {
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    last_seq: u32,
    over: bool,
    by_seq: HashMap<u32, Call>,
}

/// What came for one invocation and was not taken yet: bounded by the function's response limit and the worker's own
/// cap on stderr.
#[derive(Debug, Default)]
struct Call {
    events: VecDeque<CallEvent>,
    waiting: Option<Waker>,
    told: Told,
}

/// Whether the worker may know of an invocation.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// Its `Run` was never handed to the socket.
    #[default]
    Nothing,
    Run,
}

/// What comes back for one invocation.
#[derive(Debug)]
pub(crate) enum CallEvent {
    Output(Stream, Bytes),
    Done {
        ending: Ending,
        usage: Usage,
        rest: Bytes,
    },
}

/// One invocation's end of the worker's socket.
#[derive(Debug)]
pub(crate) struct CallEnd {
    pub(crate) seq: u32,
    calls: Arc<Calls>,
}

impl CallEnd {
    /// The next event; none when the worker is gone.
    pub(crate) async fn next(&mut self) -> Option<CallEvent> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &Context<'_>) -> Poll<Option<CallEvent>> {
        let mut running = self.calls.running();
        let over = running.over;
        let Some(call) = running.by_seq.get_mut(&self.seq) else {
            return Poll::Ready(None);
        };
        match call.events.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None if over => Poll::Ready(None),
            None => {
                call.waiting = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Whether the worker may have begun it. To be asked when no event comes any more.
    pub(crate) fn told(&self) -> Told {
        let running = self.calls.running();
        running
            .by_seq
            .get(&self.seq)
            .map_or(Told::Nothing, |call| call.told)
    }
}

impl Drop for CallEnd {
    fn drop(&mut self) {
        self.calls.running().by_seq.remove(&self.seq);
    }
}

impl Worker {
    /// Takes a bound sandbox and starts to read from it and to write to it.
    pub(crate) fn start(sandbox: Sandbox, place: Place, shard: usize, inflight_max: u16) -> Self {
        let calls = Arc::new(Calls::default());
        let (outgoing, messages) = mpsc::unbounded_channel();
        let channel = &sandbox.channel;
        tokio::spawn(read(Arc::clone(channel), Arc::clone(&calls)));
        tokio::spawn(write(Arc::clone(channel), Arc::clone(&calls), messages));
        let turns = Mutex::new(Turns {
            taken: 0,
            idle_since: Instant::now(),
        });
        Self {
            sandbox,
            place,
            shard,
            inflight_max,
            turns,
            calls,
            outgoing,
            bodies: Arc::new(Semaphore::new(BODIES_WAITING_MAX)),
        }
    }

    /// Begins an invocation. An error means that nothing of it began.
    pub(crate) fn call(
        &self,
        request: impl FnOnce(u32) -> Request,
        payload: Bytes,
    ) -> Result<CallEnd, ChannelError> {
        let end = CallEnd {
            seq: self.calls.enter()?,
            calls: Arc::clone(&self.calls),
        };
        self.post(request(end.seq), payload, None)?;
        Ok(end)
    }

    /// Sends the next piece of an invocation's body, once there is room for it.
    pub(crate) async fn send_body(&self, seq: u32, piece: Bytes) -> Result<(), ChannelError> {
        // Nobody closes the semaphore.
        let room = Arc::clone(&self.bodies).acquire_owned().await.ok();
        self.post(Request::Body { seq }, piece, room)
    }

    /// Asks the worker to stop an invocation.
    pub(crate) fn cancel(&self, seq: u32) -> Result<(), ChannelError> {
        self.post(Request::Cancel { seq }, Bytes::new(), None)
    }

    fn post(
        &self,
        request: Request,
        payload: Bytes,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<(), ChannelError> {
        let message = Outgoing {
            request,
            payload,
            _room: room,
        };
        self.outgoing
            .send(message)
            .map_err(|_writer_is_gone| ChannelError::Closed)
    }

    /// Takes a turn, if one is free.
    pub(crate) fn begin_turn(&self) -> bool {
        let mut turns = self.turns();
        let free = turns.taken < self.inflight_max;
        turns.taken += u16::from(free);
        free
    }

    /// Gives a turn back.
    pub(crate) fn end_turn(&self) {
        let mut turns = self.turns();
        turns.taken = turns.taken.saturating_sub(1);
        turns.idle_since = Instant::now();
    }

    /// Since when no turn is taken.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let turns = self.turns();
        (turns.taken == 0).then_some(turns.idle_since)
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Calls {
    fn enter(&self) -> Result<u32, ChannelError> {
        let mut running = self.running();
        if running.over {
            return Err(ChannelError::Closed);
        }
        // At most INFLIGHT_MAX are taken, so a free number comes soon; 0 is never one.
        let seq = loop {
            running.last_seq = running.last_seq.wrapping_add(1);
            if running.last_seq != 0 && !running.by_seq.contains_key(&running.last_seq) {
                break running.last_seq;
            }
        };
        running.by_seq.insert(seq, Call::default());
        Ok(seq)
    }

    fn give(&self, seq: u32, event: CallEvent) {
        // An invocation that nobody waits for any more is being cancelled: what it still says is dropped.
        let waiting = self.running().by_seq.get_mut(&seq).and_then(|call| {
            call.events.push_back(event);
            call.waiting.take()
        });
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    /// The worker is gone: everybody who waits is told so.
    fn end(&self) {
        let mut running = self.running();
        running.over = true;
        for call in running.by_seq.values_mut() {
            if let Some(waker) = call.waiting.take() {
                waker.wake();
            }
        }
    }

    /// An invocation that cannot be told to the worker has no event to wait for.
    fn refuse(&self, seq: u32) {
        let call = self.running().by_seq.remove(&seq);
        if let Some(waker) = call.and_then(|call| call.waiting) {
            waker.wake();
        }
    }

    fn told(&self, begun: &mut Vec<u32>) {
        let mut running = self.running();
        for seq in begun.drain(..) {
            if let Some(call) = running.by_seq.get_mut(&seq) {
                call.told = Told::Run;
            }
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes to the worker's socket until the worker is dropped.
async fn write(
    channel: Arc<Channel>,
    calls: Arc<Calls>,
    mut messages: mpsc::UnboundedReceiver<Outgoing>,
) {
    let mut batch = Vec::new();
    let mut packet = Vec::new();
    while messages
        .recv_many(&mut batch, usize::from(INFLIGHT_MAX))
        .await
        != 0
    {
        if let Err(error) = write_batch(&channel, &calls, &mut batch, &mut packet).await {
            if !matches!(error, ChannelError::Closed) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot write to a wasm worker"
                );
            }
            calls.end();
            return;
        }
    }
}

/// Sends `batch` in as few packets as it fits into.
async fn write_batch(
    channel: &Channel,
    calls: &Calls,
    batch: &mut Vec<Outgoing>,
    packet: &mut Vec<u8>,
) -> Result<(), ChannelError> {
    let mut begun = Vec::new();
    for message in batch.drain(..) {
        let Outgoing {
            request, payload, ..
        } = &message;
        let mut appended = frame::append(request, payload, packet);
        if matches!(appended, Err(FrameError::TooLarge { .. })) && !packet.is_empty() {
            send_packet(channel, calls, packet, &mut begun).await?;
            appended = frame::append(request, payload, packet);
        }
        match (request, appended) {
            (Request::Run { seq, .. }, Ok(())) => begun.push(*seq),
            // Too large even alone. That is this invocation's fault, and no other's.
            (Request::Run { seq, .. }, Err(FrameError::TooLarge { .. })) => calls.refuse(*seq),
            (_, appended) => appended?,
        }
    }
    send_packet(channel, calls, packet, &mut begun).await
}

async fn send_packet(
    channel: &Channel,
    calls: &Calls,
    packet: &mut Vec<u8>,
    begun: &mut Vec<u32>,
) -> Result<(), ChannelError> {
    if !packet.is_empty() {
        channel.send_packet(packet, &[]).await?;
        calls.told(begun);
        packet.clear();
    }
    Ok(())
}

/// Reads the worker's socket to its end. Always reading is what keeps a worker from ever waiting for a slow caller.
async fn read(channel: Arc<Channel>, calls: Arc<Calls>) {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    loop {
        let taken = match channel.recv_packet(&mut buffer).await {
            Ok((length, _no_fds)) => take_events(&buffer[..length], &calls),
            Err(ChannelError::Closed) => break,
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a wasm worker broke the protocol"
            );
            break;
        }
        // Those who were just told go first: nothing more to read is a system call, too, and their answers wait for it.
        yield_now().await;
    }
    calls.end();
}

/// Gives every event of a packet to the invocation that it is about.
fn take_events(mut packet: &[u8], calls: &Calls) -> Result<(), ChannelError> {
    while let Some((event, payload)) = frame::take(&mut packet)? {
        let payload = Bytes::copy_from_slice(payload);
        match event {
            Event::Output { seq, stream } => calls.give(seq, CallEvent::Output(stream, payload)),
            Event::Done { seq, ending, usage } => {
                let rest = payload;
                calls.give(
                    seq,
                    CallEvent::Done {
                        ending,
                        usage,
                        rest,
                    },
                );
            }
            Event::Booted | Event::Bound | Event::Failed { .. } => {
                return Err(ChannelError::Unasked);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
