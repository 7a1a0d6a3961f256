// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What an answer says about a request that was refused before any function ran.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{Described, RequestError, outcome};

/// When to come back after an answer that says the platform is full, in seconds: longer than a queue takes to drain.
const RETRY_AFTER_OVERLOADED_S: u32 = 1;

/// When to come back after an answer that says the server is going down, in seconds: about a restart.
const RETRY_AFTER_DRAINING_S: u32 = 5;

pub(super) fn describe(error: &RequestError) -> Described {
    if let RequestError::Sandbox(sandbox) = error {
        return outcome::describe(sandbox);
    }
    let (status, code) = status_and_code(error);
    let described =
        Described::new(status, code, error.to_string(), fix(error)).with(evidence(error));
    match retry_after_s(code) {
        Some(seconds) => described.retry_after(seconds),
        None => described,
    }
}

fn status_and_code(error: &RequestError) -> (StatusCode, &'static str) {
    use RequestError as E;
    match error {
        E::BadRequest { .. } | E::WasmHasOneProfile => (StatusCode::BAD_REQUEST, "bad_request"),
        E::BadManifest(_) => (StatusCode::BAD_REQUEST, "bad_manifest"),
        E::BadArchive { .. } => (StatusCode::BAD_REQUEST, "bad_archive"),
        E::BadModule { .. } => (StatusCode::BAD_REQUEST, "bad_module"),
        E::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
        E::Forbidden | E::ForeignHost { .. } => (StatusCode::FORBIDDEN, "forbidden"),
        E::UnknownFunction => (StatusCode::NOT_FOUND, "unknown_function"),
        E::UnknownInvocation => (StatusCode::NOT_FOUND, "unknown_invocation"),
        E::NotFound => (StatusCode::NOT_FOUND, "not_found"),
        E::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        E::RequestTimeout { .. } => (StatusCode::REQUEST_TIMEOUT, "request_timeout"),
        E::Conflict { .. } | E::Learning => (StatusCode::CONFLICT, "conflict"),
        E::PayloadTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large"),
        E::UriTooLong { .. } => (StatusCode::URI_TOO_LONG, "uri_too_long"),
        E::UnsupportedMediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
        E::HeadersTooLarge { .. } => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "headers_too_large",
        ),
        E::Overloaded(_) | E::Starting => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
        E::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        E::Breached { .. } => (StatusCode::SERVICE_UNAVAILABLE, "isolation_broken"),
        E::StorageFull => (StatusCode::INSUFFICIENT_STORAGE, "storage_full"),
        E::Internal | E::Sandbox(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    }
}

fn fix(error: &RequestError) -> &'static str {
    use RequestError as E;
    match error {
        E::BadRequest { .. } => "Correct the request.",
        E::BadManifest(_) => "Correct function.toml; `hearth deploy --dry-run` checks it.",
        E::BadArchive { .. } => "Pack plain files and folders only; `hearth deploy` does.",
        E::BadModule { .. } => "Build a core module for wasm32-wasip1.",
        E::Unauthorized => {
            "Send `Authorization: Bearer KEY`; the key is in the data directory's file `key`."
        }
        E::Forbidden => "Use the key from the data directory's file `key`.",
        E::ForeignHost { .. } => {
            "Use an IP address or localhost, or allow the name with --allow-host."
        }
        E::UnknownFunction => "`hearth ls` lists the functions.",
        E::UnknownInvocation => {
            "Take the id from the header Hearth-Invocation. Receipts are kept for a limited time, and it may be one of many successes of that moment that were not kept."
        }
        E::NotFound => "Call a function at /invoke/NAME or /fn/NAME/PATH.",
        E::MethodNotAllowed => "Functions are invoked by POST at /invoke/NAME.",
        E::RequestTimeout { .. } => "Send the body faster.",
        E::Conflict { .. } => "Deploy under the manifest's name, or change `name`.",
        E::Learning => "Wait until the other `hearth learn` of this function has ended.",
        E::WasmHasOneProfile => {
            "Nothing is to be done: `hearth isolation` shows that profile, which is narrower than any native one."
        }
        E::PayloadTooLarge { .. } => "Send less, or raise limits.request in function.toml.",
        E::UriTooLong { .. } => "Send what is long in the body.",
        E::UnsupportedMediaType => "Send application/x-tar or application/zip.",
        E::HeadersTooLarge { .. } => "Send fewer or shorter headers.",
        E::Overloaded(_) => "Try again later, or raise the server's limit.",
        E::Starting => "Wait until /readyz answers 200.",
        E::Draining => "Try again; another process takes over.",
        E::Breached { .. } => {
            "Find out who changes this host's cgroups, mounts or processes, then restart Hearth."
        }
        E::StorageFull => "Free space in the data directory.",
        E::Internal | E::Sandbox(_) => "Look at the server's log.",
    }
}

fn evidence(error: &RequestError) -> Value {
    use RequestError as E;
    match error {
        E::BadManifest(problems) => json!({ "problems": problems }),
        E::BadModule { problems } => json!({ "problems": problems }),
        E::ForeignHost { header } => json!({ "header": header }),
        E::RequestTimeout { limit } => json!({ "limit_ms": millis(*limit) }),
        E::Conflict { path, manifest } => json!({ "path": path, "manifest": manifest }),
        E::PayloadTooLarge {
            limit_bytes,
            seen_bytes,
        } => json!({ "limit_bytes": limit_bytes, "seen_bytes": seen_bytes }),
        E::UriTooLong {
            limit_bytes,
            seen_bytes,
        }
        | E::HeadersTooLarge {
            limit_bytes,
            seen_bytes,
        } => {
            json!({ "limit_bytes": limit_bytes, "seen_bytes": seen_bytes })
        }
        E::Breached { wall, reading } => json!({ "wall": wall, "reading": reading }),
        E::BadRequest { .. }
        | E::BadArchive { .. }
        | E::Learning
        | E::WasmHasOneProfile
        | E::Unauthorized
        | E::Forbidden
        | E::UnknownFunction
        | E::UnknownInvocation
        | E::NotFound
        | E::MethodNotAllowed
        | E::UnsupportedMediaType
        | E::Overloaded(_)
        | E::Starting
        | E::Draining
        | E::StorageFull
        | E::Internal
        | E::Sandbox(_) => Value::Null,
    }
}

/// By the code, so that no answer of the same code lacks it.
fn retry_after_s(code: &str) -> Option<u32> {
    match code {
        "overloaded" => Some(RETRY_AFTER_OVERLOADED_S),
        "draining" => Some(RETRY_AFTER_DRAINING_S),
        _ => None,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
