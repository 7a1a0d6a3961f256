// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tables for people, made from the same JSON that `--json` prints. A field that is not there is shown as `-`.

use serde_json::Value;

use crate::terminal::table;

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

/// `hearth isolation`: the walls first, then everything else that the kernel said.
pub(super) fn isolation(answer: &Value) -> String {
    let walls = answer.get("walls").and_then(Value::as_array);
    let rows: Vec<Vec<String>> = walls
        .into_iter()
        .flatten()
        .map(|wall| {
            let holds = match wall.get("holds") {
                Some(Value::Bool(true)) => "yes",
                _ => "NO",
            };
            vec![text(wall, "wall"), holds.to_owned(), text(wall, "reading")]
        })
        .collect();
    let level = text(answer, "level");
    let mut lines = vec![
        format!("level: {level}"),
        String::new(),
        table(&["WALL", "HOLDS", "READING"], &rows),
        String::new(),
    ];
    let mut rest = answer.clone();
    if let Some(rest) = rest.as_object_mut() {
        rest.remove("walls");
        rest.remove("level");
    }
    lines.push(fields(&rest));
    lines.join("\n")
}

/// One line about a deploy.
pub(super) fn deployed(answer: &Value, url: &str, name: &str) -> String {
    let revision = short(answer, "revision");
    format!("{name}: revision {revision} is deployed at {url}/invoke/{name}")
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

    #[test]
    fn a_wall_that_does_not_hold_is_loud() {
        let value = serde_json::json!({
            "level": "full",
            "walls": [
                {"wall": "seccomp", "holds": true, "reading": "mode 2"},
                {"wall": "cgroup", "holds": false, "reading": "no limit"},
            ],
        });
        let text = isolation(&value);
        assert!(text.contains("cgroup   NO     no limit"), "{text}");
    }
}
