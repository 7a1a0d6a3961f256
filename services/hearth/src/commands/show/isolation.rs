// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `hearth isolation`: one short table per question, the walls first. Everything that the kernel said is in `--json`.

use serde_json::Value;

use super::{plain, text};
use crate::terminal::table;

/// The report as tables.
pub(in crate::commands) fn isolation(report: &Value) -> String {
    let parts = [
        level(report),
        walls(report),
        limits(report),
        processes(report),
        rlimits(report),
        filters(report),
        mounts(report),
        namespaces(report),
        others(report),
    ];
    parts.join("\n\n")
}

/// With what it lacks beside the level `full`, if anything.
fn level(report: &Value) -> String {
    let line = |sentence: &Value| format!("\n- {}", plain(sentence));
    let lacking = report.get("lacking").and_then(Value::as_array);
    let lacking: String = lacking.into_iter().flatten().map(line).collect();
    format!("level: {}{lacking}", text(report, "level"))
}

fn walls(report: &Value) -> String {
    let row = |wall: &Value| {
        let holds = match wall.get("holds") {
            Some(Value::Bool(true)) => "yes",
            _ => "NO",
        };
        vec![text(wall, "wall"), holds.to_owned(), text(wall, "reading")]
    };
    table(&["WALL", "HOLDS", "READING"], &rows(report, "walls", row))
}

fn limits(report: &Value) -> String {
    let row = |limit: &Value| {
        ["name", "limit", "used"]
            .map(|field| text(limit, field))
            .to_vec()
    };
    table(&["WHAT", "LIMIT", "USED"], &rows(report, "limits", row))
}

fn processes(report: &Value) -> String {
    let row = |process: &Value| {
        let first = |field: &str| {
            let ids = process.get(field).and_then(Value::as_array);
            ids.and_then(|ids| ids.first())
                .map_or_else(|| "-".to_owned(), plain)
        };
        let sets = process.get("capabilities").and_then(Value::as_object);
        let empty = |set: &Value| {
            set.as_str()
                .is_some_and(|hex| hex.bytes().all(|digit| digit == b'0'))
        };
        let capabilities = match sets {
            Some(sets) if sets.values().all(empty) => "none",
            _ => "SOME",
        };
        vec![
            text(process, "pid_inside"),
            text(process, "name"),
            first("uids"),
            first("gids"),
            capabilities.to_owned(),
            text(process, "no_new_privs"),
            text(process, "seccomp_filters"),
            ranges(process.get("fds")),
        ]
    };
    let header = [
        "PID",
        "NAME",
        "HOST UID",
        "HOST GID",
        "CAPABILITIES",
        "NO_NEW_PRIVS",
        "FILTERS",
        "FDS",
    ];
    table(&header, &rows(report, "processes", row))
}

/// Of init, whose limits every process begins with.
fn rlimits(report: &Value) -> String {
    let limits = report
        .pointer("/processes/0/rlimits")
        .and_then(Value::as_object);
    let row = |(name, values): (&String, &Value)| {
        let value = |index: usize| values.get(index).map_or_else(|| "-".to_owned(), plain);
        vec![name.clone(), value(0), value(1)]
    };
    let rows: Vec<_> = limits.into_iter().flatten().map(row).collect();
    table(&["RESOURCE LIMIT OF INIT", "SOFT", "HARD"], &rows)
}

fn filters(report: &Value) -> String {
    let row = |filter: &Value| {
        ["profile", "instructions", "sha256"]
            .map(|field| text(filter, field))
            .to_vec()
    };
    let header = ["FILTER", "INSTRUCTIONS", "SHA256"];
    table(&header, &rows(report, "filters", row))
}

fn mounts(report: &Value) -> String {
    let row = |mount: &Value| {
        ["at", "fs_type", "options"]
            .map(|field| text(mount, field))
            .to_vec()
    };
    table(&["MOUNT", "TYPE", "OPTIONS"], &rows(report, "mounts", row))
}

fn namespaces(report: &Value) -> String {
    let all = report.get("namespaces").and_then(Value::as_object);
    let row = |(name, pair): (&String, &Value)| {
        vec![name.clone(), text(pair, "sandbox"), text(pair, "host")]
    };
    let rows: Vec<_> = all.into_iter().flatten().map(row).collect();
    table(&["NAMESPACE", "SANDBOX", "HOST"], &rows)
}

/// What is one value each.
fn others(report: &Value) -> String {
    let map = |field: &str| {
        let lines = report.get(field).and_then(Value::as_array);
        let line = |line: &Value| {
            let [inside, outside] = ["inside", "outside"].map(|part| text(line, part));
            format!("{inside} is {outside}")
        };
        let lines: Vec<String> = lines.into_iter().flatten().map(line).collect();
        lines.join(", ")
    };
    let bits = report.get("securebits").and_then(Value::as_u64);
    let modules = joined(report.get("lsm").unwrap_or(&Value::Null), "modules");
    let label = report
        .pointer("/lsm/label")
        .map_or_else(|| "-".to_owned(), plain);
    let rows = [
        ("uid map", map("uid_map")),
        ("gid map", map("gid_map")),
        (
            "securebits",
            bits.map_or_else(|| "-".to_owned(), |bits| format!("{bits:#04x}")),
        ),
        ("Landlock ABI", text(report, "landlock_abi")),
        ("security modules", modules),
        ("label", label),
    ];
    let rows = rows.map(|(name, value)| vec![name.to_owned(), value]);
    table(&["ELSE", "VALUE"], &rows)
}

fn rows(report: &Value, field: &str, row: impl Fn(&Value) -> Vec<String>) -> Vec<Vec<String>> {
    let items = report.get(field).and_then(Value::as_array);
    items.into_iter().flatten().map(row).collect()
}

/// Numbers in ascending order, each run of neighbours as `first-last`.
fn ranges(numbers: Option<&Value>) -> String {
    let numbers = numbers.and_then(Value::as_array).into_iter().flatten();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers.filter_map(Value::as_u64) {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |(first, last): &(u64, u64)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(" ")
}

/// A list of simple values with spaces between, or `-`.
fn joined(object: &Value, field: &str) -> String {
    let items = object.get(field).and_then(Value::as_array);
    let parts: Vec<String> = items.into_iter().flatten().map(plain).collect();
    if parts.is_empty() {
        "-".to_owned()
    } else {
        parts.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_descriptors_are_one_range() {
        let ranges = |numbers: &[u64]| ranges(Some(&serde_json::json!(numbers)));
        assert_eq!(ranges(&[0, 1, 2, 3]), "0-3");
        assert_eq!(ranges(&[0, 2, 3, 9]), "0 2-3 9");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn a_wall_that_does_not_hold_is_loud() {
        let value = serde_json::json!({
            "level": "broken",
            "walls": [
                {"wall": "seccomp", "holds": true, "reading": "mode 2"},
                {"wall": "cgroup", "holds": false, "reading": "no limit"},
            ],
        });
        let text = isolation(&value);
        assert!(text.starts_with("level: broken\n"), "{text}");
        assert!(text.contains("cgroup   NO     no limit"), "{text}");
    }
}
