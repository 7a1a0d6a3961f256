// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Attacks by functions, native and wasm, by what they are aimed at. Which attack of the list each test shows is said in
//! `tests/attacks/*.toml`; after each of them the world is as before (`invariants`).

mod kernel;
mod modules;
mod neighbours;
mod nouns;
mod processes;
mod resources;
pub(crate) mod strangers;

use serde_json::Value;

/// The members of a JSON object, with their values as text.
fn members(object: &Value) -> Vec<(&str, &str)> {
    let members = object.as_object().unwrap_or_else(|| panic!("{object}"));
    let texts = members
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str().unwrap_or("not a text")));
    texts.collect()
}

/// Demands that everything that was tried was refused, and in one of these ways.
fn all_refused(attempts: &Value, ways: &[&str]) {
    let attempts = members(attempts);
    assert!(!attempts.is_empty());
    for (attempt, answer) in attempts {
        assert!(
            ways.contains(&answer),
            "{attempt}: {answer}, not one of {ways:?}"
        );
    }
}
