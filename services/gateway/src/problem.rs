// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The one place that knows which status and code a failure has (RFC 9457 problem details). Both matches are
//! exhaustive: a new failure forces a decision here.
#![warn(clippy::wildcard_enum_match_arm)]

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hearth_pool::{FailureCause, InvocationId, KillCause, Outcome, ThrottleLimit};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{answer, manifest::Problems};

/// When to come back after an answer that says the platform is full, in seconds: longer than a queue takes to drain.
const RETRY_AFTER_OVERLOADED_S: u32 = 1;

/// When to come back after an answer that says the server is going down, in seconds: about a restart.
const RETRY_AFTER_DRAINING_S: u32 = 5;

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
    #[error("the body is too large")]
    PayloadTooLarge { limit_bytes: u64, seen_bytes: u64 },
    #[error("the body is neither a tar nor a zip archive")]
    UnsupportedMediaType,
    #[error("the request's headers are too large for the function's environment")]
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
}

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Inflight => "invocations at once",
            Self::BodyBytes => "bytes of bodies held at once",
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
        describe_request(&self).into_response(None)
    }
}

impl RequestError {
    /// The answer, naming the invocation that did not come to be.
    pub(crate) fn response_for(&self, id: InvocationId) -> Response {
        describe_request(self).into_response(Some(id))
    }
}

/// The answer for an outcome other than [`Outcome::Ok`].
pub(crate) fn of_outcome(outcome: &Outcome, id: InvocationId) -> Response {
    describe_outcome(outcome).into_response(Some(id))
}

fn describe_request(error: &RequestError) -> Described {
    use RequestError as E;
    let plain = |status, code, fix| Described::new(status, code, error.to_string(), fix);
    match error {
        E::BadRequest { .. } => plain(
            StatusCode::BAD_REQUEST,
            "bad_request",
            "Correct the request.",
        ),
        E::BadManifest(problems) => {
            let sentence = format!("The manifest has {} problem(s).", problems.0.len());
            Described::new(
                StatusCode::BAD_REQUEST,
                "bad_manifest",
                sentence,
                "Correct function.toml; `hearth deploy --dry-run` checks it.",
            )
            .with(json!({ "problems": problems }))
        }
        E::BadArchive { .. } => plain(
            StatusCode::BAD_REQUEST,
            "bad_archive",
            "Pack plain files and folders only; `hearth deploy` does.",
        ),
        E::BadModule { problems } => plain(
            StatusCode::BAD_REQUEST,
            "bad_module",
            "Build a core module for wasm32-wasip1.",
        )
        .with(json!({ "problems": problems })),
        E::Unauthorized => plain(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "Send `Authorization: Bearer KEY`; the key is in the data directory's file `key`.",
        ),
        E::Forbidden => plain(
            StatusCode::FORBIDDEN,
            "forbidden",
            "Use the key from the data directory's file `key`.",
        ),
        E::ForeignHost { header } => plain(
            StatusCode::FORBIDDEN,
            "forbidden",
            "Use an IP address or localhost, or allow the name with --allow-host.",
        )
        .with(json!({ "header": header })),
        E::UnknownFunction => plain(
            StatusCode::NOT_FOUND,
            "unknown_function",
            "`hearth ls` lists the functions.",
        ),
        E::UnknownInvocation => plain(
            StatusCode::NOT_FOUND,
            "unknown_invocation",
            "Receipts are kept for a limited time; take the id from the header Hearth-Invocation.",
        ),
        E::NotFound => plain(
            StatusCode::NOT_FOUND,
            "not_found",
            "Call a function at /invoke/NAME or /fn/NAME/PATH.",
        ),
        E::MethodNotAllowed => plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "Functions are invoked by POST at /invoke/NAME.",
        ),
        E::RequestTimeout { limit } => plain(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            "Send the body faster.",
        )
        .with(json!({ "limit_ms": millis(*limit) })),
        E::Conflict { path, manifest } => plain(
            StatusCode::CONFLICT,
            "conflict",
            "Deploy under the manifest's name, or change `name`.",
        )
        .with(json!({ "path": path, "manifest": manifest })),
        E::PayloadTooLarge {
            limit_bytes,
            seen_bytes,
        } => plain(
            StatusCode::PAYLOAD_TOO_LARGE,
            "payload_too_large",
            "Send less, or raise limits.request in function.toml.",
        )
        .with(json!({ "limit_bytes": limit_bytes, "seen_bytes": seen_bytes })),
        E::UnsupportedMediaType => plain(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "Send application/x-tar or application/zip.",
        ),
        E::HeadersTooLarge {
            limit_bytes,
            seen_bytes,
        } => plain(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "headers_too_large",
            "Send fewer or shorter headers.",
        )
        .with(json!({ "limit_bytes": limit_bytes, "seen_bytes": seen_bytes })),
        E::Overloaded(_) => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "overloaded",
            "Try again later, or raise the server's limit.",
        )
        .retry_after(RETRY_AFTER_OVERLOADED_S),
        E::Starting => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "overloaded",
            "Wait until /readyz answers 200.",
        )
        .retry_after(RETRY_AFTER_OVERLOADED_S),
        E::Draining => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "draining",
            "Try again; another process takes over.",
        )
        .retry_after(RETRY_AFTER_DRAINING_S),
        E::StorageFull => plain(
            StatusCode::INSUFFICIENT_STORAGE,
            "storage_full",
            "Free space in the data directory.",
        ),
        E::Internal => plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Look at the server's log.",
        ),
        E::Sandbox(outcome) => describe_outcome(outcome),
    }
}

fn describe_outcome(outcome: &Outcome) -> Described {
    let evidence = serde_json::to_value(outcome).unwrap_or_default();
    let described = match outcome {
        // A caller that asks for the problem of a success has lost the function's answer.
        Outcome::Ok => Described::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "The answer was lost.",
            "Look at the server's log.",
        ),
        Outcome::FunctionFailed { cause, .. } => Described::new(
            StatusCode::BAD_GATEWAY,
            "function_failed",
            failed(cause),
            "Look at the function's log: `hearth logs NAME`.",
        ),
        Outcome::FunctionKilled { cause, .. } => Described::new(
            StatusCode::BAD_GATEWAY,
            "function_killed",
            killed(cause),
            "Raise the limit in function.toml, or change the function.",
        ),
        Outcome::FunctionTimedOut { limit_ms, .. } => Described::new(
            StatusCode::GATEWAY_TIMEOUT,
            "function_timed_out",
            format!("The function did not end within {limit_ms} ms."),
            "Raise limits.timeout in function.toml, or make the function faster.",
        ),
        Outcome::ResponseTooLarge { limit_bytes, .. } => Described::new(
            StatusCode::BAD_GATEWAY,
            "response_too_large",
            format!("The function wrote more than {limit_bytes} bytes."),
            "Raise limits.response in function.toml.",
        ),
        Outcome::SandboxLost => Described::new(
            StatusCode::BAD_GATEWAY,
            "sandbox_lost",
            "The platform lost the sandbox; this is not the function's fault.",
            "Try again.",
        ),
        Outcome::CannotStart { step, .. } => Described::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "cannot_start",
            format!("No sandbox could be made: {step} failed."),
            "`hearth doctor` says what this host lacks.",
        ),
        Outcome::Throttled {
            limit,
            retry_after_s,
        } => Described::new(
            StatusCode::TOO_MANY_REQUESTS,
            "throttled",
            throttled(*limit),
            "Call less often, or raise scaling.max_instances in function.toml.",
        )
        .retry_after(*retry_after_s),
        Outcome::Overloaded { retry_after_s } => Described::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "overloaded",
            "The server is at its limit of sandboxes.",
            "Try again later, or raise the server's limit.",
        )
        .retry_after(*retry_after_s),
        // Nobody reads this one: the caller is gone.
        Outcome::Cancelled => Described::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "The invocation was cancelled.",
            "Try again.",
        ),
    };
    described.with(evidence)
}

fn failed(cause: &FailureCause) -> String {
    match cause {
        FailureCause::ExitCode { code } => format!("The function exited with code {code}."),
        FailureCause::Trap { .. } => "The function trapped.".to_owned(),
        FailureCause::BadOutput { problem } => {
            format!("The function's output is not what its contract asks for: {problem}.")
        }
        FailureCause::CannotExecute { .. } => "The function's entry cannot be executed.".to_owned(),
    }
}

fn killed(cause: &KillCause) -> String {
    match cause {
        KillCause::Signal { signal } => format!("The function was killed by signal {signal}."),
        KillCause::Seccomp { profile } => {
            format!("The function made a system call that the profile {profile} forbids.")
        }
        KillCause::Oom { limit_bytes, .. } => {
            format!("The function ran out of memory; the limit is {limit_bytes} bytes.")
        }
    }
}

fn throttled(limit: ThrottleLimit) -> &'static str {
    match limit {
        ThrottleLimit::QueueLength => "Too many invocations of this function are waiting.",
        ThrottleLimit::QueueWait => {
            "The invocation waited too long for a sandbox of this function."
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

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
