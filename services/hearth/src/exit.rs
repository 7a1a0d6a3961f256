// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How a command ends: the documented exit codes (docs/cli.md), and the two lines that a failure prints.

use std::error::Error;
use std::process::ExitCode;

use crate::config::Problems;
use crate::terminal;

/// The documented exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// The function or the request failed.
    Failed = 1,
    /// Wrong usage or configuration; also clap's own.
    Usage = 2,
    /// No server answers.
    Unreachable = 3,
    /// Not root, or no valid key.
    NotAllowed = 4,
    /// This host, or what is on it, does not let Hearth start.
    CannotStart = 5,
}

impl Code {
    /// What a child's exit code means; a child that was killed could not start.
    pub(crate) fn from_child(code: Option<i32>) -> Self {
        match code {
            Some(1) => Self::Failed,
            Some(2) => Self::Usage,
            Some(4) => Self::NotAllowed,
            _ => Self::CannotStart,
        }
    }
}

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    sentence: String,
    fix: Option<String>,
}

impl Failure {
    /// With the whole chain of causes in the sentence.
    pub(crate) fn new(code: Code, error: &dyn Error) -> Self {
        Self::of(code, chain(error))
    }

    /// With a sentence of its own.
    pub(crate) fn of(code: Code, sentence: impl Into<String>) -> Self {
        Self {
            code,
            sentence: sentence.into(),
            fix: None,
        }
    }

    /// Adds what to do about it.
    pub(crate) fn with_fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// With the exit code only, where the rest is said elsewhere.
    pub(crate) fn already_told(self) -> Self {
        Self {
            code: self.code,
            sentence: String::new(),
            fix: None,
        }
    }

    /// Prints it and gives the process's exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.sentence.is_empty() {
            terminal::note(&format!("hearth: {}", self.text()));
        }
        ExitCode::from(self.code as u8)
    }

    /// The sentence, and the fix on a line of its own.
    pub(crate) fn text(&self) -> String {
        match &self.fix {
            None => self.sentence.clone(),
            Some(fix) => format!("{}\n  fix: {fix}", self.sentence),
        }
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::of(Code::Usage, problems.to_string())
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        // Some errors print their source themselves.
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}
