// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `/v1`: deploy, describe, list and remove functions; read their isolation, logs and receipts.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use hearth_pool::{InspectError, InvocationId, Receipt};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::params::{FunctionName, Invocation, invocation_id, query_pairs};
use crate::{
    app::{Shard, internal, now_ms},
    body,
    deploy::{self, Deployed},
    intake::{self, Format},
    problem::RequestError,
    store::LogQuery,
};

/// Invocations whose logs one answer has, where the query does not say, and at most.
const LOG_INVOCATIONS_DEFAULT: u32 = 100;
const LOG_INVOCATIONS_MAX: u32 = 256;

/// A receipt is complete once its sandbox is clean again, shortly after the answer: so long it is waited for.
const RECEIPT_WAIT_MAX: Duration = Duration::from_secs(3);

/// How often a receipt that may be on its way is looked for.
const RECEIPT_LOOK_INTERVAL: Duration = Duration::from_millis(25);

/// Only a receipt of an invocation that began so recently can still be on its way: the longest time limit and queue.
const RECEIPT_YOUNG_MS: u64 = 16 * 60 * 1000;

/// `GET /v1/functions`.
pub(super) async fn list(State(shard): State<Shard>) -> Json<Value> {
    let functions: Vec<Value> = shard
        .app
        .registry
        .all()
        .iter()
        .map(|function| function.describe())
        .collect();
    Json(json!({ "functions": functions }))
}

/// `GET /v1/functions/{name}`.
pub(super) async fn describe(
    State(shard): State<Shard>,
    FunctionName(name): FunctionName,
) -> Result<Json<Value>, RequestError> {
    Ok(Json(shard.app.registry.find(&name)?.describe()))
}

/// `PUT /v1/functions/{name}`: 201 with a new revision, 200 where this content is deployed already.
pub(super) async fn deploy(
    State(shard): State<Shard>,
    FunctionName(name): FunctionName,
    request: Request,
) -> Result<Response, RequestError> {
    let app = &shard.app;
    app.admission.opened(app.limits.queue_wait_max).await?;
    let declared = declared_format(request.headers())?;
    let limit_bytes = u64::from(app.limits.archive_bytes_max);
    let archive = body::read(
        request.into_body(),
        limit_bytes,
        &app.admission,
        &app.timeouts,
    )
    .await?;
    let format = match (declared, intake::sniff(&archive.bytes)) {
        (Some(declared), Some(found)) if declared != found => {
            return Err(RequestError::UnsupportedMediaType);
        }
        // A tar from before ustar has nothing to be known by but its declaration.
        (Some(format), _) | (None, Some(format)) => format,
        (None, None) => return Err(RequestError::UnsupportedMediaType),
    };
    // In a task of its own: a client that goes away half-way leaves no half deploy.
    let task_shard = shard.clone();
    let task =
        tokio::spawn(async move { deploy::deploy(&task_shard, name, archive, format).await });
    match task.await.map_err(|error| internal(&error))?? {
        Deployed::New(function) => {
            Ok((StatusCode::CREATED, Json(function.describe())).into_response())
        }
        Deployed::Unchanged(function) => Ok(Json(function.describe()).into_response()),
    }
}

/// `DELETE /v1/functions/{name}`.
pub(super) async fn remove(
    State(shard): State<Shard>,
    FunctionName(name): FunctionName,
) -> Result<StatusCode, RequestError> {
    let app = Arc::clone(&shard.app);
    let task = tokio::spawn(async move { deploy::remove(&app, name).await });
    task.await.map_err(|error| internal(&error))??;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /v1/functions/{name}/isolation`: what the kernel says of a live sandbox of it.
pub(super) async fn isolation(
    State(shard): State<Shard>,
    FunctionName(name): FunctionName,
) -> Result<Response, RequestError> {
    let app = &shard.app;
    app.admission.opened(app.limits.queue_wait_max).await?;
    let function = app.registry.find(&name)?;
    match app.pool.inspect(shard.index, &function.target).await {
        Ok(report) => Ok(typed("application/json", report)),
        Err(InspectError::NoSandbox(outcome)) => Err(RequestError::Sandbox(outcome)),
        Err(error) => Err(internal(&error)),
    }
}

/// `GET /v1/functions/{name}/logs?invocation=ID&limit=N`: one JSON object per line, oldest first.
pub(super) async fn logs(
    State(shard): State<Shard>,
    FunctionName(name): FunctionName,
    request: Request,
) -> Result<Response, RequestError> {
    shard.app.registry.find(&name)?;
    let mut wanted = LogQuery {
        function: name,
        invocation: None,
        invocations_max: LOG_INVOCATIONS_DEFAULT,
    };
    for (key, value) in query_pairs(
        request.uri().query().unwrap_or_default(),
        &["invocation", "limit"],
    )? {
        match key {
            "invocation" => wanted.invocation = Some(invocation_id(&value)?),
            _ => {
                let limit = value
                    .parse()
                    .ok()
                    .filter(|limit| (1..=LOG_INVOCATIONS_MAX).contains(limit));
                let problem = format!("limit is a number from 1 to {LOG_INVOCATIONS_MAX}");
                wanted.invocations_max = limit.ok_or(RequestError::BadRequest { problem })?;
            }
        }
    }
    if let Some(id) = wanted.invocation {
        // Its log comes with its receipt.
        await_receipt(&shard, id).await?;
    }
    let receipts = shard.app.receipts.logged(wanted).await?;
    Ok(typed(
        "application/x-ndjson",
        receipts
            .iter()
            .flat_map(|receipt| lines_of(receipt))
            .collect(),
    ))
}

/// `GET /v1/invocations/{id}`: the receipt.
pub(super) async fn receipt(
    State(shard): State<Shard>,
    Invocation(id): Invocation,
) -> Result<Response, RequestError> {
    let receipt = await_receipt(&shard, id)
        .await?
        .ok_or(RequestError::UnknownInvocation)?;
    Ok(typed("application/json", receipt.into_bytes()))
}

/// The format that the request declares, if it does.
fn declared_format(headers: &HeaderMap) -> Result<Option<Format>, RequestError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(None);
    };
    let essence = value
        .to_str()
        .ok()
        .and_then(|text| text.split(';').next())
        .map(|text| text.trim().to_ascii_lowercase());
    match essence.as_deref() {
        Some("application/x-tar") => Ok(Some(Format::Tar)),
        Some("application/zip") => Ok(Some(Format::Zip)),
        // What a client says that does not know; the first bytes decide.
        Some("application/octet-stream" | "application/x-www-form-urlencoded") => Ok(None),
        Some(_) | None => Err(RequestError::UnsupportedMediaType),
    }
}

/// The receipt's JSON, waiting for it while it may be on its way.
pub(super) async fn await_receipt(
    shard: &Shard,
    id: InvocationId,
) -> Result<Option<String>, RequestError> {
    let until = Instant::now() + RECEIPT_WAIT_MAX;
    let is_young = began_ms(id).is_some_and(|began| began.abs_diff(now_ms()) < RECEIPT_YOUNG_MS);
    loop {
        let found = shard.app.receipts.find(id).await?;
        if found.is_some() || !is_young || until <= Instant::now() {
            return Ok(found);
        }
        sleep(RECEIPT_LOOK_INTERVAL).await;
    }
}

/// When an invocation began: the first 48 bits of a version 7 UUID are milliseconds (RFC 9562 section 5.7).
fn began_ms(id: InvocationId) -> Option<u64> {
    let digits: String = id
        .to_string()
        .chars()
        .filter(|c| *c != '-')
        .take(12)
        .collect();
    u64::from_str_radix(&digits, 16).ok()
}

/// A receipt's log, one JSON object per line.
fn lines_of(receipt: &Receipt) -> Vec<u8> {
    let mut block = Vec::new();
    for line in &receipt.log {
        let object = json!({
            "invocation": receipt.invocation,
            "function": receipt.function,
            "time_ms": receipt.received_ms.saturating_add(line.at_ms),
            "text": line.text,
            "cut": line.cut,
        });
        block.extend_from_slice(object.to_string().as_bytes());
        block.push(b'\n');
    }
    if 0 < receipt.log_dropped_bytes {
        let object = json!({
            "invocation": receipt.invocation,
            "function": receipt.function,
            "dropped_bytes": receipt.log_dropped_bytes,
        });
        block.extend_from_slice(object.to_string().as_bytes());
        block.push(b'\n');
    }
    block
}

fn typed(content_type: &'static str, body: Vec<u8>) -> Response {
    (
        [(header::CONTENT_TYPE, HeaderValue::from_static(content_type))],
        body,
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_when_its_invocation_began() {
        let began = began_ms(InvocationId::new()).unwrap();
        assert!(began.abs_diff(now_ms()) < 10_000);
    }

    #[test]
    fn the_declared_format_counts_and_an_unknown_one_is_refused() {
        let declared = |value: &'static str| {
            declared_format(&HeaderMap::from_iter([(
                header::CONTENT_TYPE,
                HeaderValue::from_static(value),
            )]))
        };
        assert_eq!(declared("application/x-tar").unwrap(), Some(Format::Tar));
        assert_eq!(declared("Application/ZIP; x=y").unwrap(), Some(Format::Zip));
        assert_eq!(declared("application/octet-stream").unwrap(), None);
        assert!(declared("application/gzip").is_err());
        assert_eq!(declared_format(&HeaderMap::new()).unwrap(), None);
    }
}
