// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `seccomp = "learned"` in a manifest's text, with everything else as its author wrote it.

use hearth_gateway::manifest::{self, Manifest, Seccomp};

const SECTION: &str = "[sandbox]";
const LINE: &str = "seccomp = \"learned\"";

/// The same manifest with that line; none where the result would be another manifest than the same with that line.
pub(crate) fn with_learned(text: &str) -> Option<String> {
    let before = manifest::parse(text).ok()?;
    if before.seccomp == Some(Seccomp::Learned) {
        return Some(text.to_owned());
    }
    let changed = changed(text);
    let wanted = Manifest {
        seccomp: Some(Seccomp::Learned),
        ..before
    };
    (manifest::parse(&changed).ok()? == wanted).then_some(changed)
}

/// By lines. Forms that this does not understand (`sandbox.seccomp = …`, an inline table) are found out by who reads it
/// again.
fn changed(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    let section = lines.iter().position(|line| line.trim() == SECTION);
    let Some(section) = section else {
        let gap = if text.is_empty() || text.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        return format!("{text}{gap}\n{SECTION}\n{LINE}\n");
    };
    let inside = lines.iter().skip(section + 1);
    let inside = inside.take_while(|line| !line.trim_start().starts_with('['));
    let is_key = |line: &&str| {
        let key = line.split('=').next().unwrap_or_default();
        line.contains('=') && key.trim() == "seccomp"
    };
    match inside.clone().position(is_key) {
        Some(index) => lines[section + 1 + index] = LINE,
        None => lines.insert(section + 1, LINE),
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "# a comment\nname = \"a\"\nentry = \"a\"\n";

    #[test]
    fn only_the_one_line_changes() {
        for (before, after) in [
            (String::new(), "\n[sandbox]\nseccomp = \"learned\"\n"),
            (
                "[sandbox]\nseccomp = \"strict\" # why\nwritable_root = true\n\n[limits]\npids = 4\n".into(),
                "[sandbox]\nseccomp = \"learned\"\nwritable_root = true\n\n[limits]\npids = 4\n",
            ),
            (
                "[sandbox]\nwritable_root = true\n[env]\nseccomp = \"x\"\n".into(),
                "[sandbox]\nseccomp = \"learned\"\nwritable_root = true\n[env]\nseccomp = \"x\"\n",
            ),
        ] {
            let changed = with_learned(&format!("{HEAD}{before}"));
            assert_eq!(changed, Some(format!("{HEAD}{after}")));
            let again = with_learned(changed.as_deref().unwrap());
            assert_eq!(again, changed);
        }
    }

    #[test]
    fn what_would_become_another_manifest_is_left_alone() {
        for text in [
            format!("sandbox.seccomp = \"strict\"\n{HEAD}"),
            format!("sandbox = {{ seccomp = \"strict\" }}\n{HEAD}"),
            "name = 1".to_owned(),
        ] {
            assert_eq!(with_learned(&text), None, "{text}");
        }
    }
}
