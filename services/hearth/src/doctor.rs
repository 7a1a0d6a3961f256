// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `hearth doctor`: what this host gives, what is missing, and how to get it. Changes nothing and needs no server.

use hearth_jail::host::{self, CAPABILITIES, CONTAINER_OPTIONS, Finding, Level, Survey, Verdict};
use nix::unistd::Uid;

use crate::args::Doctor;
use crate::exit::{Code, Failure};
use crate::terminal;

/// Exits as a start would: well where every wall can be built, as not allowed where only root is missing, else as a host on
/// which Hearth cannot start.
pub(crate) fn doctor(arguments: &Doctor) -> Result<(), Failure> {
    let survey = host::survey();
    if arguments.output.json {
        let text = serde_json::to_string_pretty(&survey)
            .map_err(|error| Failure::new(Code::Failed, &error))?;
        terminal::line(&text);
    } else {
        print(&survey);
    }
    match survey.level {
        Level::Full | Level::Rootless => Ok(()),
        Level::Refused if Uid::effective().is_root() => {
            Err(Failure::of(Code::CannotStart, "").already_told())
        }
        Level::Refused => Err(Failure::of(Code::NotAllowed, "").already_told()),
    }
}

fn print(survey: &Survey) {
    let rows: Vec<Vec<String>> = survey.findings.iter().map(row).collect();
    terminal::line(&terminal::table(&["", "AREA", "WHAT", "FOUND"], &rows));
    remedies("missing", Verdict::Missing, survey);
    remedies("advice", Verdict::Advice, survey);
    let level = survey.level.as_str();
    terminal::line(&match survey.level {
        Level::Full => format!("\nisolation level: {level}. Every wall can be built here."),
        Level::Rootless => format!(
            "\nisolation level: {level}. Every wall can be built here, but:\n  {}",
            survey.lacking.join("\n  ")
        ),
        Level::Refused => {
            format!("\nisolation level: {level}. No sandbox is made while a wall is missing.")
        }
    });
    // To who is not root the first thing to say is how to become it.
    if survey.container && survey.level == Level::Refused && Uid::effective().is_root() {
        terminal::line("\nIn a container Hearth needs:");
        for option in container_options() {
            terminal::line(&format!("  {option}"));
        }
    }
}

fn row(finding: &Finding) -> Vec<String> {
    let mark = match finding.verdict {
        Verdict::Given => "ok",
        Verdict::Advice => "!",
        Verdict::Missing => "MISSING",
    };
    vec![
        mark.to_owned(),
        finding.area.as_str().to_owned(),
        finding.subject.clone(),
        finding.found.clone(),
    ]
}

/// The remedies stand below the table, whole: a command that is cut off helps nobody.
fn remedies(title: &str, verdict: Verdict, survey: &Survey) {
    let mut those = survey
        .findings
        .iter()
        .filter(|finding| finding.verdict == verdict)
        .peekable();
    if those.peek().is_none() {
        return;
    }
    terminal::line(&format!("\n{title}:"));
    for finding in those {
        terminal::line(&format!("  {}: {}", finding.subject, finding.found));
        if let Some(fix) = &finding.fix {
            terminal::line(&format!("    fix: {fix}"));
        }
    }
}

/// Engines accept them in any order, one per line for who copies them.
fn container_options() -> Vec<String> {
    let capabilities = CAPABILITIES
        .iter()
        .map(|(_, name, _)| format!("--cap-add {name}"));
    capabilities
        .chain(CONTAINER_OPTIONS.map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::container_options;

    #[test]
    fn the_page_about_doctor_names_every_option_that_a_container_needs() {
        let page = include_str!("../../../docs/doctor.md");
        for option in container_options() {
            assert!(page.contains(&option), "{option} is not in docs/doctor.md");
        }
    }
}
