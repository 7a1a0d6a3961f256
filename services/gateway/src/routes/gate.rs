// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What every request passes before a route sees it.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use crate::{
    app::Shard,
    metrics::Metrics,
    problem::{Code, RequestError},
};

/// Headers of this prefix are Hearth's own on answers; on requests they would only be there to pretend.
const OWN_PREFIX: &str = "hearth-";

/// The longest request target, in bytes.
const URI_BYTES_MAX: usize = 16 * 1024;

/// The most bytes of all headers, names and values. hyper's own limit of its buffer is only looked at while a header
/// block is incomplete, and lets a block of up to twice as much through.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// Takes off what clients must not set.
pub(super) fn strip(headers: &mut HeaderMap) {
    let pretended: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with(OWN_PREFIX))
        .cloned()
        .collect();
    for name in pretended {
        headers.remove(name);
    }
}

/// Refuses what is too long and what is not spoken here.
pub(super) fn check<B>(request: &Request<B>) -> Result<(), RequestError> {
    fits(request).and_then(|()| spoken_here(request))
}

/// What an answer passes, by what its request was like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WayOut {
    Plain,
    /// The request's body was chunked, or where it ends is not known.
    Closing,
}

impl WayOut {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        match request.headers().contains_key(header::TRANSFER_ENCODING) {
            true => Self::Closing,
            false => Self::Plain,
        }
    }

    /// Counts an error, and ends the connection where it must.
    pub(super) fn pass(self, mut response: Response, metrics: &Metrics) -> Response {
        if self == Self::Closing {
            // What another server takes for the end of such a body is less sure than a number: nothing follows it.
            response
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(Code(code)) = response.extensions().get::<Code>() {
            metrics.answered_with_error(code);
        }
        response
    }
}

/// For routes that act or tell: only under this server's own names, and from its own pages.
pub(super) async fn own_host(State(shard): State<Shard>, request: Request, next: Next) -> Response {
    match check_host(&shard, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// As [`own_host`], for a route outside the router.
pub(super) fn check_host<B>(shard: &Shard, request: &Request<B>) -> Result<(), RequestError> {
    let access = &shard.app.access;
    access.check_host(request.uri(), request.headers())
}

/// For management: only with the key.
pub(super) async fn needs_key(
    State(shard): State<Shard>,
    request: Request,
    next: Next,
) -> Response {
    match shard.app.access.check_key(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Nothing that is too long.
fn fits<B>(request: &Request<B>) -> Result<(), RequestError> {
    let uri_bytes = request
        .uri()
        .path_and_query()
        .map_or(0, |both| both.as_str().len());
    if URI_BYTES_MAX < uri_bytes {
        return Err(RequestError::UriTooLong {
            limit_bytes: URI_BYTES_MAX,
            seen_bytes: uri_bytes,
        });
    }
    let seen_bytes = request
        .headers()
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if HEADER_BYTES_MAX < seen_bytes {
        return Err(RequestError::HeadersTooLarge {
            limit_bytes: HEADER_BYTES_MAX,
            seen_bytes,
        });
    }
    Ok(())
}

/// No tunnels and no other protocols. An offer of cleartext HTTP/2 is ignored, as RFC 9110 section 7.8 allows: some
/// clients make it with every request and go on in HTTP/1.1.
fn spoken_here<B>(request: &Request<B>) -> Result<(), RequestError> {
    let headers = request.headers();
    if request.method() == Method::CONNECT {
        return Err(RequestError::MethodNotAllowed);
    }
    let refuse = |problem: &str| {
        Err(RequestError::BadRequest {
            problem: problem.to_owned(),
        })
    };
    if request.version() == Version::HTTP_11
        && request.uri().authority().is_none()
        && !headers.contains_key(header::HOST)
    {
        // RFC 9112 section 3.2.
        return refuse("the Host header is missing");
    }
    if request.method() != Method::OPTIONS && !request.uri().path().starts_with('/') {
        // RFC 9112 section 3.2: of the forms of a target only those with a path are for other methods.
        return refuse("the target has no path");
    }
    if headers.contains_key(header::TRANSFER_ENCODING) {
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        if !codings.all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
            // Undoing another coding would be the server's part (RFC 9112 section 6.1), and it is not done here.
            return refuse("no transfer coding but chunked is understood");
        }
    }
    if let Some(expectation) = headers.get(header::EXPECT)
        && !expectation.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return refuse("no expectation but 100-continue is understood");
    }
    match headers.get(header::UPGRADE) {
        Some(protocol) if !protocol.as_bytes().eq_ignore_ascii_case(b"h2c") => {
            refuse("no protocol can be upgraded to")
        }
        Some(_) | None => Ok(()),
    }
}
