// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is being found out about one invocation: becomes its receipt.

use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

use crate::{
    Call, Facts, InvocationId, LimitHit, Outcome, Phases, Receipt, Reply, Residue, Start, Target,
    Usage, Violations, log::LogCollector, output::Output,
};

/// What is being found out about one invocation.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) id: InvocationId,
    pub(crate) received: Instant,
    received_ms: u64,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) body: Bytes,
    pub(crate) start: Option<Start>,
    pub(crate) phases: Phases,
    pub(crate) run_began: Instant,
    pub(crate) output: Output,
    pub(crate) log: LogCollector,
    pub(crate) usage: Option<Usage>,
    limits_hit: Vec<LimitHit>,
    pub(crate) residue: Option<Residue>,
    pub(crate) violations: Option<Violations>,
}

impl Record {
    pub(crate) fn new(
        call: Call,
        target: &Target,
        reply: oneshot::Sender<Reply>,
        waiting: Arc<Semaphore>,
    ) -> Self {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            id: call.id,
            received: call.received,
            received_ms: millis(since_epoch),
            env: call.env,
            body: call.body,
            start: None,
            phases: Phases {
                parse_us: micros_between(call.begun, call.received),
                ..Phases::default()
            },
            run_began: call.received,
            output: Output::new(reply, call.check, target.limits.response_bytes, waiting),
            log: LogCollector::new(call.received, target.limits.log_bytes),
            usage: None,
            limits_hit: Vec::new(),
            residue: None,
            violations: None,
        }
    }

    /// What the answer's headers say, as of now.
    pub(crate) fn facts(&self) -> Facts {
        Facts {
            start: self.start,
            phases: self.phases,
        }
    }

    /// The run phase begins.
    pub(crate) fn begin_run(&mut self, target: &Target) {
        self.run_began = Instant::now();
        self.log = LogCollector::new(self.run_began, target.limits.log_bytes);
    }

    /// Output arrived; `facts` of a streaming answer tell the run phase up to now.
    pub(crate) fn push_output(&mut self, bytes: &[u8]) -> crate::output::Pushed {
        let mut facts = self.facts();
        facts.phases.run_us = micros(self.run_began);
        self.output.push(bytes, || facts)
    }

    /// The run phase is over: gives the caller the answer. What comes back is what counts.
    pub(crate) fn answer(&mut self, outcome: Outcome) -> Outcome {
        if self.start.is_some() {
            self.phases.run_us = micros(self.run_began);
        }
        let facts = self.facts();
        self.output.finish(outcome, facts)
    }

    /// Lets the answer go out first: it lies ready for another task of this thread.
    pub(crate) async fn replied(&mut self) {
        let began = Instant::now();
        tokio::task::yield_now().await;
        self.phases.reply_us = micros(began);
    }

    /// A limit was reached.
    pub(crate) fn hit(&mut self, limit: LimitHit) {
        if !self.limits_hit.contains(&limit) {
            self.limits_hit.push(limit);
        }
    }

    /// Everything is known.
    pub(crate) fn into_receipt(mut self, target: &Target, outcome: Outcome) -> Receipt {
        if self.log.overflowed() {
            self.hit(LimitHit::Log);
        }
        match outcome {
            Outcome::FunctionTimedOut { .. } => self.hit(LimitHit::Timeout),
            Outcome::ResponseTooLarge { .. } => self.hit(LimitHit::Response),
            Outcome::FunctionKilled {
                cause: crate::KillCause::Oom { .. },
                ..
            } => self.hit(LimitHit::Memory),
            _ => {}
        }
        self.limits_hit.sort_unstable();
        let (log, log_dropped_bytes) = self.log.finish();
        Receipt {
            invocation: self.id,
            function: target.function.clone(),
            revision: target.revision.clone(),
            kind: target.kind(),
            received_ms: self.received_ms,
            start: self.start,
            phases: self.phases,
            outcome,
            usage: self.usage,
            limits_hit: self.limits_hit,
            residue: self.residue,
            violations: self.violations,
            request_bytes: self.body.len() as u64,
            response_bytes: self.output.seen_bytes(),
            log,
            log_dropped_bytes,
        }
    }
}

/// Microseconds since `begun`.
pub(crate) fn micros(begun: Instant) -> u64 {
    micros_between(begun, Instant::now())
}

fn micros_between(begun: Instant, ended: Instant) -> u64 {
    let duration = ended.saturating_duration_since(begun);
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Whole milliseconds.
pub(crate) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
