// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The warm pool: who may use which sandbox, and what became of each invocation.
//!
//! ```text
//! invoke ─▶ queue (bounded) ─▶ acquire: idle sandbox │ skeleton + bind │ create + bind ─▶ run ─▶ Reply
//!                                                                              settle ─▶ idle again, or destroyed
//!                                                                                 └────▶ Receipt to the recorder
//! ```
//!
//! This crate does not know that HTTP exists, nor how a wall is built: it speaks to the spawner, to init and to the
//! wasm worker through [`hearth_protocol`].
#![forbid(unsafe_code)]

mod call;
mod channel;
mod config;
mod death;
mod gauges;
mod invoke;
mod learn;
mod link;
mod log;
mod native;
mod outcome;
mod output;
mod pool;
mod receipt;
mod record;
mod refill;
mod reply;
mod room;
mod roster;
mod sandbox;
mod stock;
mod target;
mod trees;
mod violations;
mod wasm;
mod worker;

pub use call::{Call, HeadCheck, InvocationId};
pub use config::{PoolConfig, Recorder, ShardConfig};
pub use learn::Observing;
pub use link::{Breach, LinkError};
pub use outcome::{FailureCause, KillCause, Outcome, OutcomeKind, ThrottleLimit};
pub use pool::{InspectError, Pool, PoolState};
pub use receipt::{Kind, LimitHit, LogLine, Phases, Receipt, Residue, Start, Usage, UsageSource};
pub use reply::{Facts, HOLD_BYTES, OutputStream, Reply};
pub use sandbox::LOAD_STEP;
pub use target::{ARTIFACT_FILE, Limits, Program, Scaling, Target};
pub use trees::{StoreError, TreeFile};
pub use violations::{RefusedCall, Violations};
