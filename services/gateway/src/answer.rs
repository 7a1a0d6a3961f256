// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From a [`Reply`] to a response: the headers that every invocation has, and bodies that stream.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use hearth_pool::{Facts, InvocationId, Outcome, OutputStream, Phases, Reply};
use hyper::body::{Body as HttpBody, Frame};

use crate::{admission::Permit, cgi, problem};

const HEARTH_INVOCATION: HeaderName = HeaderName::from_static("hearth-invocation");
const HEARTH_START: HeaderName = HeaderName::from_static("hearth-start");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// So many headers an answer of `/invoke` has.
const HEADERS: usize = 4;

/// The answer of `/invoke`: stdout as it is, of the manifest's type.
pub(crate) fn plain(
    id: InvocationId,
    reply: Reply,
    content_type: &HeaderValue,
    permit: Permit,
) -> Response {
    let (facts, body) = match reply {
        Reply::Whole {
            outcome: Outcome::Ok,
            facts,
            output,
        } => (facts, Body::from(output)),
        Reply::Whole { outcome, facts, .. } => return failed(id, &outcome, &facts),
        Reply::Streaming { facts, output } => (
            facts,
            Streamed {
                first: None,
                output,
                _permit: permit,
            }
            .into_body(),
        ),
    };
    let mut response = Response::new(body);
    response.headers_mut().reserve(HEADERS);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type.clone());
    add_facts(response.headers_mut(), id, &facts);
    response
}

/// The answer of `/fn`: stdout begins with a CGI header block, which [`cgi::check`] has found to be right.
pub(crate) async fn cgi(id: InvocationId, reply: Reply, permit: Permit) -> Response {
    let (facts, parsed) = match reply {
        Reply::Whole {
            outcome: Outcome::Ok,
            facts,
            output,
        } => (facts, whole_cgi(&output)),
        Reply::Whole { outcome, facts, .. } => return failed(id, &outcome, &facts),
        Reply::Streaming { facts, output } => (facts, streaming_cgi(output, permit).await),
    };
    match parsed {
        Ok(mut response) => {
            add_facts(response.headers_mut(), id, &facts);
            response
        }
        Err(outcome) => failed(id, &outcome, &facts),
    }
}

/// Puts the invocation's id on an answer.
pub(crate) fn name_invocation(headers: &mut HeaderMap, id: InvocationId) {
    if let Ok(value) = HeaderValue::from_str(id.encode(&mut [0; InvocationId::TEXT_LEN])) {
        headers.insert(HEARTH_INVOCATION, value);
    }
}

fn failed(id: InvocationId, outcome: &Outcome, facts: &Facts) -> Response {
    let mut response = problem::of_outcome(outcome, id);
    add_facts(response.headers_mut(), id, facts);
    response
}

fn add_facts(headers: &mut HeaderMap, id: InvocationId, facts: &Facts) {
    name_invocation(headers, id);
    if let Some(start) = facts.start {
        headers.insert(HEARTH_START, HeaderValue::from_static(start.as_str()));
    }
    if let Ok(value) = HeaderValue::from_str(&server_timing(&facts.phases)) {
        headers.insert(SERVER_TIMING, value);
    }
}

/// Durations in milliseconds, as the header's specification has them.
fn server_timing(phases: &Phases) -> String {
    let Phases {
        queue_us,
        acquire_us,
        run_us,
        ..
    } = phases;
    let part = |micros: &u64| (micros / 1000, micros % 1000);
    let (queue, acquire, run) = (part(queue_us), part(acquire_us), part(run_us));
    // One piece of text, not one for each part: it is made for every answer.
    format!(
        "queue;dur={}.{:03}, acquire;dur={}.{:03}, run;dur={}.{:03}",
        queue.0, queue.1, acquire.0, acquire.1, run.0, run.1
    )
}

fn whole_cgi(output: &Bytes) -> Result<Response, Outcome> {
    let head = cgi::parse_head(output).map_err(bad_output)?;
    let body = output.slice(head.body_at..);
    Ok(head.into_response(Body::from(body)))
}

/// Reads until the header block is complete, which it is within the bytes that the pool held back and checked.
async fn streaming_cgi(mut output: OutputStream, permit: Permit) -> Result<Response, Outcome> {
    let mut begun = Vec::new();
    loop {
        match std::future::poll_fn(|cx| output.poll_next(cx)).await {
            Some(Ok(piece)) => begun.extend_from_slice(&piece),
            Some(Err(outcome)) => return Err(outcome),
            None => return Err(bad_output("it ends within its header block".to_owned())),
        }
        match cgi::parse_head(&begun) {
            Ok(head) => {
                let first = Bytes::from(begun).slice(head.body_at..);
                let body = Streamed {
                    first: Some(first),
                    output,
                    _permit: permit,
                }
                .into_body();
                return Ok(head.into_response(body));
            }
            Err(problem) if cgi::HEAD_BYTES_MAX <= begun.len() => return Err(bad_output(problem)),
            Err(_) => {}
        }
    }
}

fn bad_output(problem: String) -> Outcome {
    let cause = hearth_pool::FailureCause::BadOutput { problem };
    Outcome::FunctionFailed {
        cause,
        stderr_tail: Vec::new(),
    }
}

/// The body of an answer whose function is still running. Dropping it, as hyper does when the client goes away, drops
/// the output and so cancels the invocation.
struct Streamed {
    first: Option<Bytes>,
    output: OutputStream,
    /// The invocation counts as running until its answer is out.
    _permit: Permit,
}

impl Streamed {
    fn into_body(self) -> Body {
        Body::new(self)
    }
}

impl HttpBody for Streamed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take().filter(|first| !first.is_empty()) {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        this.output.poll_next(cx).map(|item| match item? {
            Ok(piece) => Some(Ok(Frame::data(piece))),
            // The status is out: the only honest signal left is to break the connection off, so that no client
            // takes half an answer for a whole one. The receipt names the outcome.
            Err(outcome) => Some(Err(io::Error::other(outcome.kind().as_str()))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_timing_is_in_milliseconds() {
        let phases = Phases {
            queue_us: 12,
            acquire_us: 0,
            run_us: 1_500,
            reset_us: 9,
            ..Phases::default()
        };
        assert_eq!(
            server_timing(&phases),
            "queue;dur=0.012, acquire;dur=0.000, run;dur=1.500"
        );
    }
}
