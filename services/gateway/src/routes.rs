// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which path leads where. The life of an invocation is [`run`], from the request to the answer in one line.

mod gate;
mod learn;
mod manage;
mod observe;
mod params;

use std::{fmt::Display, time::Instant};

use axum::{
    Router,
    body::Body,
    extract::{Extension, Request, State},
    http::{HeaderValue, Method, header, request::Parts},
    middleware,
    response::{IntoResponse as _, Response},
    routing::{any, get, post},
};
use bytes::Bytes;
use hearth_pool::{Call, InvocationId};
use hearth_protocol::SmallName;
use hyper::body::{Body as HttpBody, Incoming};
use tower::ServiceExt as _;

use crate::{answer, app::Shard, body, cgi, edge::Ends, problem::RequestError};

use params::FunctionName;

/// The way in for every request of a shard.
pub(crate) struct Routes {
    shard: Shard,
    others: Router,
}

impl Routes {
    pub(crate) fn new(shard: Shard) -> Self {
        Self {
            others: others(shard.clone()),
            shard,
        }
    }

    /// Through the gate and where its path leads.
    pub(crate) async fn answer(&self, mut request: Request<Incoming>, ends: Ends) -> Response {
        gate::strip(request.headers_mut());
        let way_out = gate::WayOut::of(&request);
        let response = match gate::check(&request) {
            Ok(()) => self.route(request, ends).await,
            Err(error) => error.into_response(),
        };
        way_out.pass(response, &self.shard.app.metrics)
    }

    /// The answer to what is no request.
    pub(crate) fn refuse(&self, problem: &str) -> Response {
        let problem = problem.to_owned();
        let response = RequestError::BadRequest { problem }.into_response();
        gate::WayOut::Closing.pass(response, &self.shard.app.metrics)
    }

    async fn route(&self, mut request: Request<Incoming>, ends: Ends) -> Response {
        // By hand, ahead of the router, whose layers cost a boxed future and a clone each.
        if let Some(name) = params::invoked(request.uri().path()) {
            return match FunctionName::decode(name) {
                Ok(name) => invoke(&self.shard, &name, request).await,
                Err(error) => error.into_response(),
            };
        }
        request.extensions_mut().insert(ends);
        let Ok(response) = self.others.clone().oneshot(request.map(Body::new)).await;
        response
    }
}

/// All routes but `/invoke/{name}`.
fn others(shard: Shard) -> Router {
    let management = Router::new()
        .route("/v1/functions", get(manage::list))
        .route(
            "/v1/functions/{name}",
            get(manage::describe)
                .put(manage::deploy)
                .delete(manage::remove),
        )
        .route("/v1/functions/{name}/isolation", get(manage::isolation))
        .route("/v1/functions/{name}/learn", post(learn::learn))
        .route("/v1/functions/{name}/logs", get(manage::logs))
        .route("/v1/invocations/{id}", get(manage::receipt))
        .route_layer(middleware::from_fn_with_state(
            shard.clone(),
            gate::needs_key,
        ));
    Router::new()
        .route("/fn/{name}", any(function))
        .route("/fn/{name}/", any(function))
        .route("/fn/{name}/{*path}", any(function))
        .merge(management)
        .route_layer(middleware::from_fn_with_state(
            shard.clone(),
            gate::own_host,
        ))
        // Without the check of the host: they give away nothing but numbers, and a scraper or a load balancer
        // calls them by whatever name it was configured with.
        .route("/metrics", get(observe::metrics))
        .route("/healthz", get(observe::healthz))
        .route("/readyz", get(observe::readyz))
        .fallback(|| async { RequestError::NotFound })
        .method_not_allowed_fallback(|| async { RequestError::MethodNotAllowed })
        .with_state(shard)
}

/// `POST /invoke/{name}`: body in, body out.
async fn invoke(shard: &Shard, name: &SmallName, request: Request<Incoming>) -> Response {
    if let Err(error) = gate::check_host(shard, &request) {
        return error.into_response();
    }
    if request.method() != Method::POST {
        let allow = [(header::ALLOW, HeaderValue::from_static("POST"))];
        return (allow, RequestError::MethodNotAllowed).into_response();
    }
    let id = InvocationId::new();
    if request.uri().query().is_some_and(params::asks_for_a_mode) {
        let problem =
            "mode is not supported yet; every invocation is answered when it ends".to_owned();
        return RequestError::BadRequest { problem }.response_for(id);
    }
    run(shard, id, name, request, &Contract::Plain)
        .await
        .unwrap_or_else(|error| error.response_for(id))
}

/// `ANY /fn/{name}/{path}`: the whole request to the function, by CGI.
async fn function(
    State(shard): State<Shard>,
    FunctionName(name): FunctionName,
    Extension(ends): Extension<Ends>,
    request: Request,
) -> Response {
    let id = InvocationId::new();
    run(&shard, id, &name, request, &Contract::Cgi(ends))
        .await
        .unwrap_or_else(|error| error.response_for(id))
}

/// How the request and the answer are put into a function's terms.
enum Contract {
    Plain,
    Cgi(Ends),
}

/// The life of an invocation. Dropping this future at any point, as happens when the client goes away, cancels what
/// has begun and gives back what is held.
async fn run<B>(
    shard: &Shard,
    id: InvocationId,
    name: &SmallName,
    request: Request<B>,
    contract: &Contract,
) -> Result<Response, RequestError>
where
    B: HttpBody<Data = Bytes, Error: Display> + Unpin,
{
    let begun = Instant::now();
    let app = &shard.app;
    app.admission.opened(app.limits.queue_wait_max).await?;
    let function = app.registry.find(name)?;
    let (parts, body) = request.into_parts();
    let body = body::read(
        body,
        function.target.limits.request_bytes,
        &app.admission,
        &app.timeouts,
    )
    .await?;
    let call = contract.call(id, begun, name, &parts, body.bytes)?;
    let permit = app.admission.admit(body.permit)?;
    let reply = app.pool.invoke(shard.index, &function.target, call).await;
    Ok(match contract {
        Contract::Plain => answer::plain(id, reply, &function.content_type, permit),
        Contract::Cgi(_) => answer::cgi(id, reply, permit).await,
    })
}

impl Contract {
    fn call(
        &self,
        id: InvocationId,
        begun: Instant,
        function: &SmallName,
        parts: &Parts,
        body: Bytes,
    ) -> Result<Call, RequestError> {
        let received = Instant::now();
        match self {
            Self::Plain => Ok(Call {
                id,
                begun,
                received,
                env: Vec::new(),
                body,
                check: None,
            }),
            Self::Cgi(Ends { peer, local }) => {
                let request = cgi::Request {
                    function,
                    parts,
                    body_bytes: body.len(),
                    peer: *peer,
                    local: *local,
                };
                let env = cgi::environment(&request)?;
                Ok(Call {
                    id,
                    begun,
                    received,
                    env,
                    body,
                    check: Some(cgi::check),
                })
            }
        }
    }
}
