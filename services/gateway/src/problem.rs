// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The one place that knows which status and code a failure has (RFC 9457 problem details). Every match is exhaustive:
//! a new failure forces a decision here.
#![warn(clippy::wildcard_enum_match_arm)]

mod outcome;
mod request;

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hearth_pool::{InvocationId, Outcome};
use serde::Serialize;
use serde_json::Value;

use crate::{answer, manifest::Problems};

/// Why a request was refused before any function ran.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("{problem}")]
    BadRequest { problem: String },
    #[error("the manifest has problems: {0}")]
    BadManifest(Problems),
    #[error("{problem}")]
    BadArchive { problem: String },
    #[error("the module does not compile")]
    BadModule { problems: Vec<String> },
    #[error("this needs the management key")]
    Unauthorized,
    #[error("the management key is wrong")]
    Forbidden,
    #[error("{header} names a host that is not this server's")]
    ForeignHost { header: &'static str },
    #[error("there is no function of this name")]
    UnknownFunction,
    #[error("there is no receipt of this invocation")]
    UnknownInvocation,
    #[error("there is nothing at this path")]
    NotFound,
    #[error("this path does not take this method")]
    MethodNotAllowed,
    #[error("the body did not arrive in time")]
    RequestTimeout { limit: Duration },
    #[error("the name in the path is not the manifest's")]
    Conflict { path: String, manifest: String },
    #[error("this function is being learned already")]
    Learning,
    #[error("a wasm function makes no system calls of its own: its worker has a fixed profile")]
    WasmHasOneProfile,
    #[error("the body is too large")]
    PayloadTooLarge { limit_bytes: u64, seen_bytes: u64 },
    #[error("the body is neither a tar nor a zip archive")]
    UnsupportedMediaType,
    #[error("the path and query are too long")]
    UriTooLong {
        limit_bytes: usize,
        seen_bytes: usize,
    },
    #[error("the request's headers are too large")]
    HeadersTooLarge {
        limit_bytes: usize,
        seen_bytes: usize,
    },
    #[error("the server is at its limit of {0}")]
    Overloaded(Full),
    #[error("the server is starting")]
    Starting,
    #[error("the server is going down")]
    Draining,
    #[error("a sandbox was not as it was made: {wall} ({reading}); it was destroyed")]
    Breached { wall: String, reading: String },
    #[error("the server's storage is full")]
    StorageFull,
    #[error("the server could not do it")]
    Internal,
    /// The sandbox that the request needs failed as an invocation fails.
    #[error("the sandbox failed")]
    Sandbox(Outcome),
}

/// Which process-wide limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    Inflight,
    BodyBytes,
    Learners,
}

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Inflight => "invocations at once",
            Self::BodyBytes => "bytes of bodies held at once",
            Self::Learners => "functions that are learned at once",
        })
    }
}

/// What an answer says about a failure.
struct Described {
    status: StatusCode,
    code: &'static str,
    sentence: String,
    evidence: Value,
    fix: &'static str,
    retry_after_s: Option<u32>,
}

/// The answer's body.
#[derive(Serialize)]
struct Details<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: String,
    status: u16,
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "Value::is_null")]
    evidence: &'a Value,
    fix: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    invocation: Option<InvocationId>,
}

impl Described {
    fn new(
        status: StatusCode,
        code: &'static str,
        sentence: impl Into<String>,
        fix: &'static str,
    ) -> Self {
        Self {
            status,
            code,
            sentence: sentence.into(),
            evidence: Value::Null,
            fix,
            retry_after_s: None,
        }
    }

    fn with(mut self, evidence: Value) -> Self {
        self.evidence = evidence;
        self
    }

    fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    fn into_response(self, invocation: Option<InvocationId>) -> Response {
        let details = Details {
            kind: format!("urn:hearth:problem:{}", self.code),
            title: self.code.replace('_', " "),
            status: self.status.as_u16(),
            detail: &self.sentence,
            code: self.code,
            evidence: &self.evidence,
            fix: self.fix,
            invocation,
        };
        let body = serde_json::to_vec(&details).unwrap_or_default();
        let content_type = HeaderValue::from_static("application/problem+json");
        let mut response = (self.status, Bytes::from(body)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        if let Some(seconds) = self.retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(id) = invocation {
            answer::name_invocation(response.headers_mut(), id);
        }
        // For the gate, which counts errors by code without reading the body again.
        response.extensions_mut().insert(Code(self.code));
        response
    }
}

/// The stable code of the failure that a response describes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Code(pub(crate) &'static str);

impl IntoResponse for RequestError {
    fn into_response(self) -> Response {
        request::describe(&self).into_response(None)
    }
}

impl RequestError {
    /// The answer, naming the invocation that did not come to be.
    pub(crate) fn response_for(&self, id: InvocationId) -> Response {
        request::describe(self).into_response(Some(id))
    }
}

/// The answer for an outcome other than [`Outcome::Ok`].
pub(crate) fn of_outcome(outcome: &Outcome, id: InvocationId) -> Response {
    outcome::describe(outcome).into_response(Some(id))
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use hearth_pool::{FailureCause, KillCause, ThrottleLimit};

    use super::*;

    async fn parts(response: Response) -> (StatusCode, Option<String>, Value) {
        let status = response.status();
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .map(|v| v.to_str().unwrap().to_owned());
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            "application/problem+json"
        );
        let body = to_bytes(response.into_body(), 64 * 1024).await.unwrap();
        (status, retry_after, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_throttled_invocation_says_which_limit_and_when_to_come_back() {
        let id = InvocationId::new();
        let outcome = Outcome::Throttled {
            limit: ThrottleLimit::QueueLength,
            retry_after_s: 2,
        };
        let (status, retry_after, body) = parts(of_outcome(&outcome, id)).await;
        assert_eq!(
            (status, retry_after.as_deref()),
            (StatusCode::TOO_MANY_REQUESTS, Some("2"))
        );
        assert_eq!(body["code"], "throttled");
        assert_eq!(body["evidence"]["limit"], "queue_length");
        assert_eq!(body["invocation"], id.to_string());
    }

    #[tokio::test]
    async fn every_outcome_but_ok_has_its_own_name_as_code() {
        let outcomes = [
            Outcome::FunctionFailed {
                cause: FailureCause::ExitCode { code: 3 },
                stderr_tail: vec!["x".to_owned()],
            },
            Outcome::FunctionKilled {
                cause: KillCause::Oom {
                    peak_bytes: 2,
                    limit_bytes: 1,
                },
                stderr_tail: vec![],
            },
            Outcome::FunctionTimedOut {
                limit_ms: 1,
                output_bytes: 0,
            },
            Outcome::ResponseTooLarge {
                limit_bytes: 1,
                seen_bytes: 2,
            },
            Outcome::SandboxLost,
            Outcome::CannotStart {
                step: "mount".to_owned(),
                errno: 1,
                message: String::new(),
            },
            Outcome::Overloaded { retry_after_s: 1 },
        ];
        for outcome in outcomes {
            let (status, _, body) = parts(of_outcome(&outcome, InvocationId::new())).await;
            assert_eq!(body["code"], outcome.kind().as_str());
            assert_eq!(body["status"], status.as_u16());
            assert!(
                !body["fix"].as_str().unwrap().is_empty()
                    && !body["detail"].as_str().unwrap().is_empty()
            );
        }
    }

    #[tokio::test]
    async fn a_bad_manifest_lists_every_problem_with_its_place() {
        let problems = crate::manifest::parse("colour = 1").unwrap_err();
        let (status, _, body) = parts(RequestError::BadManifest(problems).into_response()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(body["evidence"]["problems"].as_array().unwrap().len(), 3);
    }
}
