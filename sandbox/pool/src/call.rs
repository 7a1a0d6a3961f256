// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One invocation as it is handed to the pool.

use std::{fmt, str::FromStr, time::Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::{Uuid, fmt::Hyphenated};

/// Names one invocation: a version 7 UUID (RFC 9562 section 5.7), so that ids sort by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InvocationId(Uuid);

impl InvocationId {
    /// How long its text is.
    pub const TEXT_LEN: usize = Hyphenated::LENGTH;

    /// A new id from the clock and a random generator that the system seeds.
    #[must_use]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// Its text, in a buffer of the caller's.
    #[must_use]
    pub fn encode(self, text: &mut [u8; Self::TEXT_LEN]) -> &str {
        self.0.as_hyphenated().encode_lower(text)
    }
}

impl Default for InvocationId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for InvocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for InvocationId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::try_parse(text).map(Self)
    }
}

/// Looks at the first output of a successful invocation (all of it, or the first
/// [`crate::reply::HOLD_BYTES`]) and says what is wrong with it, where the contract demands a form. A failed check makes
/// the outcome `function_failed` with this sentence.
pub type HeadCheck = fn(&[u8]) -> Result<(), String>;

/// One invocation.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its name in answers, logs and receipts.
    pub id: InvocationId,
    /// When the head of its request had been read: the parse phase begins here.
    pub begun: Instant,
    /// When its request had been read: the queue phase begins here.
    pub received: Instant,
    /// Variables of this call beside the target's (CGI/1.1 on `/fn` routes).
    pub env: Vec<(String, String)>,
    /// What the function reads from stdin.
    pub body: Bytes,
    /// What its output must look like, if anything.
    pub check: Option<HeadCheck>,
}
