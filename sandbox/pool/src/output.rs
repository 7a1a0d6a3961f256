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

/// A function's stdout on its way to the caller.
#[derive(Debug)]
pub(crate) struct Output {
    way: Way,
    check: Option<HeadCheck>,
    seen_bytes: u64,
    limit_bytes: u64,
    /// Counts the bytes that wait for callers.
    waiting: Arc<Semaphore>,
}

#[derive(Debug)]
enum Way {
    Held {
        held: BytesMut,
        reply: oneshot::Sender<Reply>,
    },
    Streaming {
        pieces: mpsc::UnboundedSender<Piece>,
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
        waiting: Arc<Semaphore>,
    ) -> Self {
        Self {
            way: Way::Held {
                held: BytesMut::new(),
                reply,
            },
            check,
            seen_bytes: 0,
            limit_bytes,
            waiting,
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
            Way::Streaming { pieces } => {
                match counted(&self.waiting, Bytes::copy_from_slice(bytes)) {
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
            Way::Streaming { pieces } => {
                if outcome != Outcome::Ok {
                    drop(pieces.send(Err(outcome.clone())));
                }
                outcome
            }
            Way::Done => outcome,
        }
    }

    /// Resolves when nobody waits for the output any more.
    pub(crate) async fn closed(&mut self) {
        match &mut self.way {
            Way::Held { reply, .. } => reply.closed().await,
            Way::Streaming { pieces } => pieces.closed().await,
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
        let Some(piece) = counted(&self.waiting, held.clone()) else {
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
        self.way = Way::Streaming { pieces };
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
fn counted(waiting: &Arc<Semaphore>, bytes: Bytes) -> Option<Piece> {
    let size = u32::try_from(bytes.len()).ok()?;
    let permit = Arc::clone(waiting).try_acquire_many_owned(size).ok()?;
    Some(Ok((bytes, permit)))
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
            queue_us: 0,
            acquire_us: 0,
            run_us: 0,
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
    async fn output_that_callers_do_not_take_is_bounded_for_all_invocations_together() {
        let waiting = Arc::new(Semaphore::new(HOLD_BYTES + 1));
        let piece = vec![7; HOLD_BYTES + 1];
        let (reply, answer) = oneshot::channel();
        let mut first = Output::new(reply, None, u64::MAX, Arc::clone(&waiting));
        assert_eq!(first.push(&piece, || FACTS), Pushed::Fine);
        assert_eq!(first.push(b"more", || FACTS), Pushed::Untaken);

        let (reply, _answer) = oneshot::channel();
        let mut second = Output::new(reply, None, u64::MAX, Arc::clone(&waiting));
        assert_eq!(second.push(&piece, || FACTS), Pushed::Untaken);

        let Ok(Reply::Streaming { mut output, .. }) = answer.await else {
            panic!("not streaming")
        };
        assert!(
            std::future::poll_fn(|cx| output.poll_next(cx))
                .await
                .is_some()
        );
        assert_eq!(first.push(b"more", || FACTS), Pushed::Fine);
    }
}
