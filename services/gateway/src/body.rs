// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Reads a request's body into memory: bounded in bytes (its own limit and the process's), between two pieces, and as a
//! whole.

use std::{fmt::Display, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use tokio::time::{Instant, timeout_at};

use crate::{
    admission::{Admission, BodyPermit},
    config::EdgeTimeouts,
    problem::RequestError,
};

/// How much of a body that is too large is still taken off the wire, so that a client that sends first and reads then
/// gets to see the 413 instead of a reset. In bytes.
const DISCARD_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How long that may take.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);

/// A body, and the right to hold it.
#[derive(Debug)]
pub(crate) struct HeldBody {
    pub(crate) bytes: Bytes,
    pub(crate) permit: BodyPermit,
}

/// Reads all of `body`, at most `limit_bytes`.
pub(crate) async fn read<B>(
    mut body: B,
    limit_bytes: u64,
    admission: &Admission,
    timeouts: &EdgeTimeouts,
) -> Result<HeldBody, RequestError>
where
    B: Body<Data = Bytes, Error: Display> + Unpin,
{
    // What a client announces is believed only when it refuses the request: memory is counted as bytes arrive, so
    // that announcing much and sending nothing holds nothing.
    let announced = body.size_hint().lower();
    if limit_bytes < announced {
        discard(body).await;
        return Err(RequestError::PayloadTooLarge {
            limit_bytes,
            seen_bytes: announced,
        });
    }
    let whole_by = Instant::now() + timeouts.body_whole;
    let mut permit = admission.body()?;
    let mut pieces = Pieces::default();
    while let Some(piece) = next(&mut body, whole_by, timeouts).await? {
        let seen_bytes = pieces.len + piece.len() as u64;
        if limit_bytes < seen_bytes {
            discard(body).await;
            return Err(RequestError::PayloadTooLarge {
                limit_bytes,
                seen_bytes,
            });
        }
        admission.grow(&mut permit, piece.len())?;
        pieces.push(piece);
    }
    Ok(HeldBody {
        bytes: pieces.join(),
        permit,
    })
}

/// The next piece; none at the end. Trailers are dropped: no contract has a place for them.
async fn next<B>(
    body: &mut B,
    whole_by: Instant,
    timeouts: &EdgeTimeouts,
) -> Result<Option<Bytes>, RequestError>
where
    B: Body<Data = Bytes, Error: Display> + Unpin,
{
    loop {
        let progress_by = Instant::now() + timeouts.body_progress;
        let limit = if whole_by < progress_by {
            timeouts.body_whole
        } else {
            timeouts.body_progress
        };
        match timeout_at(progress_by.min(whole_by), body.frame()).await {
            Err(_) => return Err(RequestError::RequestTimeout { limit }),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => {
                return Err(RequestError::BadRequest {
                    problem: format!("the body is broken off: {error}"),
                });
            }
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Takes what is left off the wire, within bounds.
async fn discard(mut body: impl Body<Data = Bytes> + Unpin) {
    let until = Instant::now() + DISCARD_TIME_MAX;
    let mut seen = 0;
    while seen < DISCARD_BYTES_MAX {
        match timeout_at(until, body.frame()).await {
            Ok(Some(Ok(frame))) => seen += frame.data_ref().map_or(0, |data| data.len() as u64),
            Ok(Some(Err(_)) | None) | Err(_) => return,
        }
    }
}

/// Pieces of a body. One alone, as small bodies are, is not copied; more are copied together as they come, because a
/// piece of one byte may hold the whole buffer that it was read into, and a client chooses how small its pieces are.
#[derive(Default)]
struct Pieces {
    first: Bytes,
    whole: BytesMut,
    len: u64,
}

impl Pieces {
    fn push(&mut self, piece: Bytes) {
        if self.len == 0 {
            self.len = piece.len() as u64;
            self.first = piece;
            return;
        }
        self.len += piece.len() as u64;
        if self.whole.is_empty() {
            self.whole
                .extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.whole.extend_from_slice(&piece);
    }

    fn join(self) -> Bytes {
        if self.whole.is_empty() {
            return self.first;
        }
        self.whole.freeze()
    }
}
