// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tables for people, made from the same JSON that `--json` prints. A field that is not there is shown as `-`.

mod isolation;

use serde_json::Value;

use crate::terminal::table;

pub(super) use isolation::isolation;

/// How much of a hash is shown: enough to tell a person's revisions apart.
const SHORT_HASH: usize = 12;

/// `hearth ls`.
pub(super) fn functions(answer: &Value) -> String {
    let list = answer.get("functions").unwrap_or(answer);
    let rows: Vec<Vec<String>> = list
        .as_array()
        .into_iter()
        .flatten()
        .map(|function| {
            vec![
                text(function, "name"),
                text(function, "kind"),
                text(function, "contract"),
                text(function, "base"),
                short(function, "revision"),
            ]
        })
        .collect();
    if rows.is_empty() {
        return "no functions; deploy one with `hearth deploy DIR`".to_owned();
    }
    table(&["NAME", "KIND", "CONTRACT", "BASE", "REVISION"], &rows)
}

/// `hearth describe`, `hearth receipt`: one line per field, nested names joined by dots.
pub(super) fn fields(answer: &Value) -> String {
    let mut rows = Vec::new();
    flatten("", answer, &mut rows);
    table(&["FIELD", "VALUE"], &rows)
}

/// One line about a deploy.
pub(super) fn deployed(answer: &Value, url: &str, name: &str) -> String {
    let revision = short(answer, "revision");
    format!("{name}: revision {revision} is deployed at {url}/invoke/{name}")
}

/// `hearth learn`.
pub(super) fn lesson(answer: &Value) -> String {
    let profile = &answer["profile"];
    let tier = text(profile, "profile");
    let size = |name: &str, size: &Value| {
        vec![
            name.to_owned(),
            text(size, "calls"),
            text(size, "instructions"),
        ]
    };
    let rows = [
        size(&tier, &answer["tier_size"]),
        size("learned", &answer["size"]),
    ];
    let seen = profile["calls"].as_array().map_or(0, Vec::len);
    let events = answer["replay"]["events"].as_array();
    let events: Vec<&Value> = events.into_iter().flatten().collect();
    let mut lines = vec![
        format!(
            "{}: makes {seen} different system calls",
            text(answer, "function")
        ),
        table(&["PROFILE", "CALLS", "INSTRUCTIONS"], &rows),
    ];
    let fine = |event: &&&Value| {
        event["refused"].as_array().is_none_or(Vec::is_empty)
            && event["outcome"] == event["outcome_observed"]
    };
    let held = events.iter().filter(fine).count();
    lines.push(format!(
        "replay: {held} of {} events ran as before, and nothing was refused",
        events.len()
    ));
    for event in events.iter().filter(|event| !fine(event)) {
        let refused = event["refused"].as_array().into_iter().flatten();
        let refused: Vec<String> = refused.map(plain).collect();
        lines.push(format!(
            "  {}: {} instead of {}; refused: {}",
            text(event, "replayed"),
            text(event, "outcome"),
            text(event, "outcome_observed"),
            refused.join(" ")
        ));
    }
    lines.join("\n")
}

fn flatten(name: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    let inner = |part: &str| {
        if name.is_empty() {
            part.to_owned()
        } else {
            format!("{name}.{part}")
        }
    };
    match value {
        Value::Object(fields) => {
            for (part, value) in fields {
                flatten(&inner(part), value, rows);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (index, value) in items.iter().enumerate() {
                flatten(&inner(&index.to_string()), value, rows);
            }
        }
        Value::Array(items) => {
            let parts: Vec<String> = items.iter().map(plain).collect();
            rows.push(vec![name.to_owned(), parts.join(" ")]);
        }
        simple => rows.push(vec![name.to_owned(), plain(simple)]),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        // Files of the kernel, with one fact per line.
        Value::String(text) => text.trim_end().replace('\n', "; "),
        other => other.to_string(),
    }
}

fn text(object: &Value, field: &str) -> String {
    plain(object.get(field).unwrap_or(&Value::Null))
}

fn short(object: &Value, field: &str) -> String {
    text(object, field).chars().take(SHORT_HASH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_fields_become_dotted_names() {
        let value = serde_json::json!({
            "outcome": "ok",
            "phases": {"run_us": 7},
            "limits_hit": ["pids", "log"],
            "log": [{"text": "a"}],
            "start": null,
        });
        let text = fields(&value);
        for line in [
            "phases.run_us  7",
            "limits_hit     pids log",
            "log.0.text     a",
        ] {
            assert!(text.contains(line), "{line:?} is missing in\n{text}");
        }
        assert!(
            text.lines()
                .any(|line| line.starts_with("start") && line.ends_with('-'))
        );
    }
}
