// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `POST /v1/functions/{name}/learn`: what a function needs of its profile.

use std::{collections::BTreeSet, time::Duration};

use axum::{
    Json,
    extract::{Extension, Request, State},
    http::{Method, request::Parts},
};
use bytes::Bytes;
use hearth_protocol::SmallName;
use serde_json::{Value, json};

use super::{
    Contract,
    manage::await_receipt,
    params::{FunctionName, query_pairs},
};
use crate::{
    app::{Shard, internal},
    body,
    edge::Ends,
    learn::{self, Lesson, Ran, Wish},
    learned::LearnedProfile,
    problem::RequestError,
};

/// Events of one request: they run one after the other.
const EVENTS_MAX: usize = 64;

/// How often the events are repeated under observation where the query does not say, and at most: which calls a program
/// makes can be a matter of chance.
const ROUNDS_DEFAULT: u32 = 3;
const ROUNDS_MAX: u32 = 100;

/// All events of one request together, in bytes.
const EVENTS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The longest observation, in milliseconds.
const OBSERVED_MS_MAX: u64 = 60 * 60 * 1000;

/// The request's query, checked.
struct Query {
    time: Duration,
    rounds: u32,
    /// How long each event is, in bytes; none: the body is one event.
    sizes: Option<Vec<u64>>,
    /// Below `/fn/{name}`; none: events are calls of `/invoke`.
    path: Option<String>,
}

/// The body holds the events one after the other, each as long as `sizes` says.
pub(super) async fn learn(
    State(shard): State<Shard>,
    FunctionName(name): FunctionName,
    Extension(ends): Extension<Ends>,
    request: Request,
) -> Result<Json<Value>, RequestError> {
    let app = &shard.app;
    app.admission.opened(app.limits.queue_wait_max).await?;
    let query = Query::read(request.uri().query().unwrap_or_default())?;
    let function = app.registry.find(&name)?;
    let contract = query.contract(&name, ends)?;
    let held = body::read(
        request.into_body(),
        EVENTS_BYTES_MAX,
        &app.admission,
        &app.timeouts,
    )
    .await?;
    let events = query.events(&held.bytes, function.target.limits.request_bytes)?;
    let wish = Wish {
        events,
        time: query.time,
        rounds: query.rounds,
        call: |id, body| {
            let (contract, parts) = &contract;
            contract.call(id, std::time::Instant::now(), &name, parts, body)
        },
    };
    let in_force = function.target.profile().name();
    let lesson = learn::learn(&shard, function.clone(), wish).await?;
    let replay = replay(&shard, &lesson).await?;
    Ok(Json(json!({
        "function": name,
        "revision": function.target.revision,
        "learned_under": in_force,
        "profile": lesson.profile,
        "size": lesson.reading.size,
        "tier_size": lesson.reading.tier_size,
        "replay": replay,
    })))
}

impl Query {
    fn read(text: &str) -> Result<Self, RequestError> {
        let mut query = Self {
            time: Duration::ZERO,
            rounds: ROUNDS_DEFAULT,
            sizes: None,
            path: None,
        };
        for (key, value) in query_pairs(text, &["for_ms", "rounds", "sizes", "path"])? {
            match key {
                "for_ms" => {
                    let ms = value.parse().ok().filter(|ms| *ms <= OBSERVED_MS_MAX);
                    let problem = || format!("for_ms is a number from 0 to {OBSERVED_MS_MAX}");
                    query.time = Duration::from_millis(ms.ok_or_else(|| bad(problem()))?);
                }
                "rounds" => {
                    let rounds = value.parse().ok();
                    let rounds = rounds.filter(|rounds| (1..=ROUNDS_MAX).contains(rounds));
                    let problem = || format!("rounds is a number from 1 to {ROUNDS_MAX}");
                    query.rounds = rounds.ok_or_else(|| bad(problem()))?;
                }
                "sizes" => {
                    let sizes = value.split(',').filter(|size| !size.is_empty());
                    let sizes: Result<Vec<u64>, _> = sizes.map(str::parse).collect();
                    let sizes = sizes.ok().filter(|sizes| sizes.len() <= EVENTS_MAX);
                    let problem = format!("sizes has up to {EVENTS_MAX} numbers and commas");
                    query.sizes = Some(sizes.ok_or_else(|| bad(problem))?);
                }
                _ => query.path = Some(value),
            }
        }
        Ok(query)
    }

    /// How an event becomes a call.
    fn contract(&self, name: &SmallName, ends: Ends) -> Result<(Contract, Parts), RequestError> {
        let (contract, uri) = match &self.path {
            None => (Contract::Plain, format!("/invoke/{name}")),
            Some(path) => (Contract::Cgi(ends), format!("/fn/{name}{path}")),
        };
        let request = axum::http::Request::builder()
            .method(Method::POST)
            .uri(uri)
            .body(());
        let below = |path: &String| path.is_empty() || path.starts_with('/');
        match request {
            Ok(request) if self.path.as_ref().is_none_or(below) => {
                Ok((contract, request.into_parts().0))
            }
            Ok(_) | Err(_) => Err(bad(
                "path is one below /fn/NAME, beginning with /".to_owned()
            )),
        }
    }

    fn events(&self, body: &Bytes, request_bytes: u64) -> Result<Vec<Bytes>, RequestError> {
        let whole = body.len() as u64;
        let sizes = match &self.sizes {
            Some(sizes) => sizes.clone(),
            None if whole == 0 && !self.time.is_zero() => Vec::new(),
            None => vec![whole],
        };
        if let Some(seen_bytes) = sizes.iter().copied().find(|size| request_bytes < *size) {
            return Err(RequestError::PayloadTooLarge {
                limit_bytes: request_bytes,
                seen_bytes,
            });
        }
        let mut rest = body.clone();
        let mut events = Vec::with_capacity(sizes.len());
        for size in sizes {
            let size = usize::try_from(size)
                .ok()
                .filter(|size| *size <= rest.len());
            let problem = "sizes says more bytes than the body has".to_owned();
            events.push(rest.split_to(size.ok_or_else(|| bad(problem))?));
        }
        if !rest.is_empty() {
            return Err(bad("the body has more bytes than sizes says".to_owned()));
        }
        Ok(events)
    }
}

fn bad(problem: String) -> RequestError {
    RequestError::BadRequest { problem }
}

/// Whether the profile is enough for the events that it was learned from, and what was refused where it is not.
async fn replay(shard: &Shard, lesson: &Lesson) -> Result<Value, RequestError> {
    let mut holds = true;
    let mut events = Vec::with_capacity(lesson.events.len());
    for (before, after) in &lesson.events {
        let refused = refused(shard, after, &lesson.profile).await?;
        let (was, is) = (before.outcome.kind(), after.outcome.kind());
        holds &= refused.is_empty() && was == is;
        events.push(json!({
            "observed": before.id,
            "replayed": after.id,
            "outcome_observed": was.as_str(),
            "outcome": is.as_str(),
            "same_output": before.output == after.output,
            "refused": refused,
        }));
    }
    Ok(json!({ "holds": holds, "events": events }))
}

/// The calls that were refused now and not while it was observed, as far as they were told in full.
async fn refused(
    shard: &Shard,
    ran: &Ran,
    profile: &LearnedProfile,
) -> Result<BTreeSet<String>, RequestError> {
    let Some(text) = await_receipt(shard, ran.id).await? else {
        return Ok(BTreeSet::new());
    };
    let receipt: Value = serde_json::from_str(&text).map_err(|error| internal(&error))?;
    let calls = receipt["violations"]["first"].as_array();
    let names = calls
        .into_iter()
        .flatten()
        .filter_map(|call| call["name"].as_str());
    let before = |name: &&str| profile.refused.iter().any(|seen| seen.name == *name);
    Ok(names
        .filter(|name| !before(name))
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(query: &str, body: &'static [u8]) -> Result<Vec<Bytes>, RequestError> {
        Query::read(query)?.events(&Bytes::from_static(body), 4)
    }

    #[test]
    fn a_body_is_one_event_or_as_many_as_its_sizes_say() {
        assert_eq!(events("", b"ab").unwrap(), ["ab"]);
        assert_eq!(events("", b"").unwrap(), [""]);
        assert_eq!(events("for_ms=5", b"").unwrap(), Vec::<Bytes>::new());
        assert_eq!(events("sizes=1,0,2", b"abc").unwrap(), ["a", "", "bc"]);
        for (query, body) in [
            ("sizes=1", "ab"),
            ("sizes=3", "ab"),
            ("sizes=x", "ab"),
            ("sizes=5", "abcde"),
            ("rounds=0", "a"),
            ("rounds=101", "a"),
            ("for_ms=x", ""),
            ("for_ms=3600001", ""),
            ("seconds=1", ""),
        ] {
            assert!(events(query, body.as_bytes()).is_err(), "{query}");
        }
        let many = format!("sizes={}", "0,".repeat(EVENTS_MAX + 1));
        assert!(events(&many, b"").is_err());
    }
}
