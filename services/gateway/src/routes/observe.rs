// SPDX-License-Identifier: Apache-2.0 OR MIT
//! For those who watch: metrics, and whether the server is up and ready.

use axum::{
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use hearth_pool::{Breach, PoolState};

use crate::{
    admission::Stage,
    app::{Shard, internal},
    metrics::Live,
    problem::RequestError,
};

/// `GET /metrics`.
pub(super) async fn metrics(State(shard): State<Shard>) -> Result<Response, RequestError> {
    let app = &shard.app;
    let sandboxes = app
        .pool
        .counts()
        .into_iter()
        .map(|(kind, state, number)| (kind, PoolState::as_str(state), number));
    let live = Live {
        inflight: app.admission.inflight(),
        connections: app.edge.connections(),
        body_bytes: app.admission.body_bytes(),
        functions: app.registry.len(),
        sandboxes: sandboxes.collect(),
    };
    let text = app
        .metrics
        .render(&live)
        .map_err(|error| internal(&error))?;
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

/// `GET /healthz`: the process is up.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: invocations are taken, and every wall that was looked at stood.
pub(super) async fn readyz(State(shard): State<Shard>) -> Result<&'static str, RequestError> {
    let app = &shard.app;
    if let Some(Breach { wall, reading }) = app.pool.breach() {
        return Err(RequestError::Breached { wall, reading });
    }
    match app.admission.stage() {
        Stage::Ready if app.pool.ready() => Ok("ready\n"),
        Stage::Starting | Stage::Ready => Err(RequestError::Starting),
        Stage::Draining => Err(RequestError::Draining),
    }
}
