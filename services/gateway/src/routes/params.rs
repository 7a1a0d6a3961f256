// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Parts of a path and of a query as checked values, with this server's own errors.

use axum::{
    extract::{FromRequestParts, RawPathParams},
    http::request::Parts,
};
use hearth_pool::InvocationId;
use hearth_protocol::SmallName;
use percent_encoding::percent_decode_str;

use crate::{app::Shard, problem::RequestError};

/// The `{name}` of a path.
pub(super) struct FunctionName(pub(super) SmallName);

impl FromRequestParts<Shard> for FunctionName {
    type Rejection = RequestError;

    async fn from_request_parts(parts: &mut Parts, shard: &Shard) -> Result<Self, RequestError> {
        Self::checked(&param(parts, shard, "name").await?).map(Self)
    }
}

impl FunctionName {
    /// A name as it stands in a path.
    pub(super) fn decode(encoded: &str) -> Result<SmallName, RequestError> {
        let decoded = percent_decode_str(encoded).decode_utf8();
        Self::checked(&decoded.map_err(|_not_utf8| not_utf8())?)
    }

    fn checked(name: &str) -> Result<SmallName, RequestError> {
        SmallName::new(name).map_err(|problem| RequestError::BadRequest {
            problem: problem.to_string(),
        })
    }
}

/// The function that a path of the form `/invoke/{name}` names, still encoded.
pub(super) fn invoked(path: &str) -> Option<&str> {
    let name = path.strip_prefix("/invoke/")?;
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

/// The `{id}` of a path.
pub(super) struct Invocation(pub(super) InvocationId);

impl FromRequestParts<Shard> for Invocation {
    type Rejection = RequestError;

    async fn from_request_parts(parts: &mut Parts, shard: &Shard) -> Result<Self, RequestError> {
        invocation_id(&param(parts, shard, "id").await?).map(Self)
    }
}

pub(super) fn invocation_id(text: &str) -> Result<InvocationId, RequestError> {
    text.parse().map_err(|_not_an_id| RequestError::BadRequest {
        problem: "an invocation's id is a UUID".to_owned(),
    })
}

/// A query's keys and values, decoded. Every one must be known, so that a mistyped filter is not taken for none.
pub(super) fn query_pairs<'q>(
    query: &'q str,
    known: &[&str],
) -> Result<Vec<(&'q str, String)>, RequestError> {
    let bad = |problem: String| RequestError::BadRequest { problem };
    let mut pairs = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if !known.contains(&key) {
            return Err(bad(format!("the query takes only: {}", known.join(", "))));
        }
        let value = percent_decode_str(value)
            .decode_utf8()
            .map_err(|_not_utf8| bad("the query is not UTF-8".to_owned()))?;
        pairs.push((key, value.into_owned()));
    }
    Ok(pairs)
}

/// Whether a query has the key `mode`, by which a later version answers before an invocation ends.
pub(super) fn asks_for_a_mode(query: &str) -> bool {
    query
        .split('&')
        .any(|pair| pair.split('=').next() == Some("mode"))
}

async fn param(parts: &mut Parts, shard: &Shard, wanted: &str) -> Result<String, RequestError> {
    let params = RawPathParams::from_request_parts(parts, shard)
        .await
        .map_err(|_rejected| not_utf8())?;
    let found = params
        .iter()
        .find(|(name, _)| *name == wanted)
        .map(|(_, value)| value.to_owned());
    found.ok_or_else(not_utf8)
}

fn not_utf8() -> RequestError {
    RequestError::BadRequest {
        problem: "the path is not UTF-8".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_and_nothing_more_is_invoked() {
        assert_eq!(invoked("/invoke/a"), Some("a"));
        for path in ["/invoke", "/invoke/", "/invoke/a/", "/invoke/a/b", "/fn/a"] {
            assert_eq!(invoked(path), None, "{path}");
        }
        assert_eq!(FunctionName::decode("%61").unwrap().as_str(), "a");
        assert!(FunctionName::decode("%ff").is_err() && FunctionName::decode("a%2fb").is_err());
    }

    #[test]
    fn a_query_is_decoded_and_an_unknown_key_is_refused() {
        let pairs = query_pairs("limit=5&invocation=a%2Db", &["limit", "invocation"]).unwrap();
        assert_eq!(
            pairs,
            [("limit", "5".to_owned()), ("invocation", "a-b".to_owned())]
        );
        assert!(query_pairs("limits=5", &["limit"]).is_err());
        assert!(query_pairs("limit=%ff", &["limit"]).is_err());
        assert!(asks_for_a_mode("a=1&mode=async") && !asks_for_a_mode("modes=1"));
    }
}
