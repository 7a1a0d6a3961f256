// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A wasm worker: one sandbox, one revision, many invocations at once over one socket.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use hearth_protocol::{
    frame::PACKET_BYTES_MAX,
    worker::{Ending, Event, Request, Stream, Usage},
};
use tokio::sync::mpsc;

use crate::{
    channel::{Channel, ChannelError},
    roster::Place,
    sandbox::Sandbox,
};

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
}

#[derive(Debug)]
struct Turns {
    taken: u16,
    idle_since: Instant,
}

/// The invocations that run in a worker, by `seq`. The reader owns it too, but not the worker: the last turn or the
/// roster ends that.
#[derive(Debug, Default)]
struct Calls {
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    last_seq: u32,
    over: bool,
    by_seq: HashMap<u32, mpsc::UnboundedSender<CallEvent>>,
}

/// What comes back for one invocation. The queue is bounded by the function's response limit and the worker's own cap
/// on stderr.
#[derive(Debug)]
pub(crate) enum CallEvent {
    Output(Stream, Bytes),
    Done {
        ending: Ending,
        usage: Usage,
        rest: Bytes,
    },
}

/// One invocation's end of the worker's socket. Dropping it before `Done` asks the worker to stop.
#[derive(Debug)]
pub(crate) struct CallEnd {
    pub(crate) seq: u32,
    events: mpsc::UnboundedReceiver<CallEvent>,
    calls: Arc<Calls>,
}

impl CallEnd {
    /// The next event; none when the worker is gone.
    pub(crate) async fn next(&mut self) -> Option<CallEvent> {
        self.events.recv().await
    }
}

impl Drop for CallEnd {
    fn drop(&mut self) {
        self.calls.running().by_seq.remove(&self.seq);
    }
}

impl Worker {
    /// Takes a bound sandbox and starts to read from it.
    pub(crate) fn start(sandbox: Sandbox, place: Place, shard: usize, inflight_max: u16) -> Self {
        let calls = Arc::new(Calls::default());
        tokio::spawn(read(Arc::clone(&sandbox.channel), Arc::clone(&calls)));
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
        }
    }

    /// Sends an invocation. An error means that nothing of it began.
    pub(crate) async fn call(
        &self,
        request: impl FnOnce(u32) -> Request,
        payload: &[u8],
    ) -> Result<CallEnd, ChannelError> {
        let (sender, events) = mpsc::unbounded_channel();
        let seq = self.calls.enter(sender)?;
        let end = CallEnd {
            seq,
            events,
            calls: Arc::clone(&self.calls),
        };
        self.sandbox
            .channel
            .send(&request(seq), payload, &[])
            .await?;
        Ok(end)
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
    fn enter(&self, sender: mpsc::UnboundedSender<CallEvent>) -> Result<u32, ChannelError> {
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
        running.by_seq.insert(seq, sender);
        Ok(seq)
    }

    fn give(&self, seq: u32, event: CallEvent) {
        // An invocation that nobody waits for any more is being cancelled: what it still says is dropped.
        if let Some(sender) = self.running().by_seq.get(&seq) {
            drop(sender.send(event));
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the worker's socket to its end. Always reading is what keeps a worker from ever waiting for a slow caller.
async fn read(channel: Arc<Channel>, calls: Arc<Calls>) {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    loop {
        let received = match channel.recv::<Event>(&mut buffer).await {
            Ok(received) => received,
            Err(ChannelError::Closed) => break,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a wasm worker broke the protocol"
                );
                break;
            }
        };
        let payload = || Bytes::copy_from_slice(received.payload);
        match received.message {
            Event::Output { seq, stream } => calls.give(seq, CallEvent::Output(stream, payload())),
            Event::Done { seq, ending, usage } => {
                calls.give(
                    seq,
                    CallEvent::Done {
                        ending,
                        usage,
                        rest: payload(),
                    },
                );
            }
            Event::Booted | Event::Bound | Event::Failed { .. } => {
                tracing::warn!("a wasm worker answered what nobody asked");
                break;
            }
        }
    }
    let mut running = calls.running();
    running.over = true;
    running.by_seq.clear();
}
