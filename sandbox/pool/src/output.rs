// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A function's stdout on its way to the caller: held back until the function has ended, streamed beyond
//! [`HOLD_BYTES`]. Also where a caller that went away is noticed.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::{
    Facts, HeadCheck, Outcome, Reply,
    outcome::FailureCause,
    reply::{HOLD_BYTES, OutputStream, Piece},
};

/// What one streaming invocation may hold for its caller whatever the others hold: callers that do not read cost
/// nobody else an answer. A few pieces, so that reading and sending overlap. In bytes.
const OWN_BYTES_MAX: usize = 4 * HOLD_BYTES;

/// A function's stdout on its way to the caller.
#[derive(Debug)]
pub(crate) struct Output {
    way: Way,
    check: Option<HeadCheck>,
    seen_bytes: u64,
    limit_bytes: u64,
    /// What all invocations together may hold beyond what each may for itself.
    shared: Arc<Semaphore>,
}

#[derive(Debug)]
enum Way {
    Held {
        held: BytesMut,
        reply: oneshot::Sender<Reply>,
    },
    Streaming {
        pieces: mpsc::UnboundedSender<Piece>,
        /// What this invocation may hold whatever the others hold.
        own: Arc<Semaphore>,
    },
    /// The reply is given, or nobody waits for it.
    Done,
}

/// What [`Output::push`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// Go on.
    Fine,
    /// The limit is passed: the invocation must end.
    TooLarge,
    /// Too much waits for callers that do not take it: the invocation must end.
    Untaken,
    /// The first output is not what the contract demands: the invocation must end.
    BadHead(String),
}

impl Output {
    pub(crate) fn new(
        reply: oneshot::Sender<Reply>,
        check: Option<HeadCheck>,
        limit_bytes: u64,
        shared: Arc<Semaphore>,
    ) -> Self {
        Self {
            way: Way::Held {
                held: BytesMut::new(),
                reply,
            },
            check,
            seen_bytes: 0,
            limit_bytes,
            shared,
        }
    }

    /// Bytes written so far.
    pub(crate) fn seen_bytes(&self) -> u64 {
        self.seen_bytes
    }

    /// Takes more output. `facts` are asked for when the answer has to begin.
    pub(crate) fn push(&mut self, bytes: &[u8], facts: impl FnOnce() -> Facts) -> Pushed {
        self.seen_bytes += bytes.len() as u64;
        if self.limit_bytes < self.seen_bytes {
            return Pushed::TooLarge;
        }
        match &mut self.way {
            Way::Held { held, .. } => {
                held.extend_from_slice(bytes);
                if HOLD_BYTES < held.len() {
                    self.begin_streaming(facts())
                } else {
                    Pushed::Fine
                }
            }
            Way::Streaming { pieces, own } => {
                match counted(own, &self.shared, Bytes::copy_from_slice(bytes)) {
                    // A closed channel is the caller gone; `closed` tells the run loop.
                    Some(piece) => drop(pieces.send(piece)),
                    None => return Pushed::Untaken,
                }
                Pushed::Fine
            }
            Way::Done => Pushed::Fine,
        }
    }

    /// Gives the caller the end. A success whose output fails the check becomes a failure; the result is what counts.
    pub(crate) fn finish(&mut self, outcome: Outcome, facts: Facts) -> Outcome {
        match std::mem::replace(&mut self.way, Way::Done) {
            Way::Held { held, reply } => {
                let outcome = self.checked(outcome, &held);
                // The caller may have gone at this very moment; the invocation still ended as it did.
                drop(reply.send(Reply::Whole {
                    outcome: outcome.clone(),
                    facts,
                    output: held.freeze(),
                }));
                outcome
            }
            Way::Streaming { pieces, .. } => {
                if outcome != Outcome::Ok {
                    drop(pieces.send(Err(outcome.clone())));
                }
                outcome
            }
            Way::Done => outcome,
        }
    }

    /// Resolves when one more piece of up to `bytes` would be taken. Where the others hold all that is shared, an
    /// invocation goes on at the pace of its own caller. Owned, because the output is waited on in other ways meanwhile.
    pub(crate) fn room(&self, bytes: u32) -> impl Future<Output = ()> + use<> {
        let own = match &self.way {
            Way::Streaming { own, .. } if self.shared.available_permits() < bytes as usize => {
                Some(Arc::clone(own))
            }
            Way::Streaming { .. } | Way::Held { .. } | Way::Done => None,
        };
        async move {
            if let Some(own) = own {
                // Given back at once: it says that the piece which is now read will find room. Never closed.
                drop(own.acquire_many(bytes).await);
            }
        }
    }

    /// Resolves when nobody waits for the output any more.
    pub(crate) async fn closed(&mut self) {
        match &mut self.way {
            Way::Held { reply, .. } => reply.closed().await,
            Way::Streaming { pieces, .. } => pieces.closed().await,
            Way::Done => std::future::pending().await,
        }
    }

    fn begin_streaming(&mut self, facts: Facts) -> Pushed {
        let Way::Held { held, reply } = std::mem::replace(&mut self.way, Way::Done) else {
            return Pushed::Fine;
        };
        if let Some(Err(problem)) = self.check.map(|check| check(&held)) {
            self.way = Way::Held { held, reply };
            return Pushed::BadHead(problem);
        }
        let held = held.freeze();
        let own = Arc::new(Semaphore::new(OWN_BYTES_MAX));
        let Some(piece) = counted(&own, &self.shared, held.clone()) else {
            let held = held.into();
            self.way = Way::Held { held, reply };
            return Pushed::Untaken;
        };
        let (pieces, receiver) = mpsc::unbounded_channel();
        drop(pieces.send(piece));
        drop(reply.send(Reply::Streaming {
            facts,
            output: OutputStream::new(receiver),
        }));
        self.way = Way::Streaming { pieces, own };
        Pushed::Fine
    }

    fn checked(&self, outcome: Outcome, held: &[u8]) -> Outcome {
        match (&outcome, self.check) {
            (Outcome::Ok, Some(check)) => match check(held) {
                Ok(()) => Outcome::Ok,
                Err(problem) => Outcome::FunctionFailed {
                    cause: FailureCause::BadOutput { problem },
                    stderr_tail: Vec::new(),
                },
            },
            _ => outcome,
        }
    }
}

/// A piece that counts until its caller takes it; none where too much waits already.
fn counted(own: &Arc<Semaphore>, shared: &Arc<Semaphore>, bytes: Bytes) -> Option<Piece> {
    let size = u32::try_from(bytes.len()).ok()?;
    let take = |from: &Arc<Semaphore>| Arc::clone(from).try_acquire_many_owned(size).ok();
    Some(Ok((bytes, take(own).or_else(|| take(shared))?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Phases;

    fn room() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(1 << 20))
    }

    const FACTS: Facts = Facts {
        start: None,
        phases: Phases {
            parse_us: 0,
            queue_us: 0,
            acquire_us: 0,
            bind_us: 0,
            run_us: 0,
            start_us: 0,
            reply_us: 0,
            reset_us: 0,
        },
    };

    #[tokio::test]
    async fn output_is_held_until_the_end_so_that_a_failure_can_change_the_status() {
        let (reply, answer) = oneshot::channel();
        let mut output = Output::new(reply, None, 1024, room());
        assert_eq!(output.push(b"partial", || FACTS), Pushed::Fine);
        output.finish(Outcome::SandboxLost, FACTS);
        assert!(matches!(
            answer.await,
            Ok(Reply::Whole {
                outcome: Outcome::SandboxLost,
                ..
            })
        ));
    }

    #[tokio::test]
    async fn output_beyond_the_hold_streams_and_a_later_failure_is_its_last_item() {
        let (reply, answer) = oneshot::channel();
        let mut output = Output::new(reply, None, u64::MAX, room());
        let big = vec![7; HOLD_BYTES + 1];
        assert_eq!(output.push(&big, || FACTS), Pushed::Fine);
        output.finish(Outcome::SandboxLost, FACTS);
        let Ok(Reply::Streaming { mut output, .. }) = answer.await else {
            panic!("not streaming")
        };
        let first = std::future::poll_fn(|cx| output.poll_next(cx)).await;
        assert_eq!(
            first.map(|piece| piece.map(|bytes| bytes.len())),
            Some(Ok(HOLD_BYTES + 1))
        );
        let last = std::future::poll_fn(|cx| output.poll_next(cx)).await;
        assert_eq!(last, Some(Err(Outcome::SandboxLost)));
        assert_eq!(std::future::poll_fn(|cx| output.poll_next(cx)).await, None);
    }

    #[tokio::test]
    async fn one_byte_over_the_limit_is_too_large() {
        let (reply, _answer) = oneshot::channel();
        let mut output = Output::new(reply, None, 4, room());
        assert_eq!(output.push(b"1234", || FACTS), Pushed::Fine);
        assert_eq!(output.push(b"5", || FACTS), Pushed::TooLarge);
    }

    #[tokio::test]
    async fn a_caller_that_went_away_is_noticed_while_held_and_while_streaming() {
        let (reply, answer) = oneshot::channel();
        let mut output = Output::new(reply, None, u64::MAX, room());
        drop(answer);
        output.closed().await;

        let (reply, answer) = oneshot::channel();
        let mut output = Output::new(reply, None, u64::MAX, room());
        output.push(&vec![7; HOLD_BYTES + 1], || FACTS);
        drop(answer.await);
        output.closed().await;
    }

    #[tokio::test]
    async fn a_success_with_output_that_the_contract_forbids_is_a_failure() {
        let (reply, answer) = oneshot::channel();
        let mut output = Output::new(reply, Some(|_| Err("no header".into())), 1024, room());
        output.push(b"x", || FACTS);
        output.finish(Outcome::Ok, FACTS);
        let Ok(Reply::Whole {
            outcome: Outcome::FunctionFailed { .. },
            ..
        }) = answer.await
        else {
            panic!()
        };
    }

    #[tokio::test]
    async fn callers_that_do_not_take_their_output_are_bounded_and_cost_nobody_else_an_answer() {
        let shared = Arc::new(Semaphore::new(0));
        let piece = vec![7; HOLD_BYTES + 1];
        let size = u32::try_from(piece.len()).unwrap();
        let (reply, answer) = oneshot::channel();
        let mut slow = Output::new(reply, None, u64::MAX, Arc::clone(&shared));
        let fit = OWN_BYTES_MAX / piece.len();
        for _ in 0..fit {
            assert_eq!(slow.push(&piece, || FACTS), Pushed::Fine);
        }
        assert_eq!(slow.push(&piece, || FACTS), Pushed::Untaken);

        let (reply, _other_answer) = oneshot::channel();
        let mut other = Output::new(reply, None, u64::MAX, Arc::clone(&shared));
        assert_eq!(other.push(&piece, || FACTS), Pushed::Fine);

        let Ok(Reply::Streaming { mut output, .. }) = answer.await else {
            panic!("not streaming")
        };
        let room = slow.room(size);
        assert!(
            std::future::poll_fn(|cx| output.poll_next(cx))
                .await
                .is_some()
        );
        room.await;
        assert_eq!(slow.push(&piece, || FACTS), Pushed::Fine);
    }
}
