// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One table of a manifest while it is being read: every key is taken once, every fault is noted with its key path, and
//! what is left at the end is unknown.

use std::{fmt, ops::RangeInclusive, time::Duration};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::quantity;

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The key path, such as `limits.memory`, or a line for text that is not TOML.
    pub at: String,
    /// One sentence.
    pub problem: String,
}

/// Everything that is wrong with a manifest, never just the first thing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, thiserror::Error)]
#[serde(transparent)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { at, problem }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{at}: {problem}")?;
        }
        Ok(())
    }
}

impl Problems {
    /// Notes one, unless there are so many that who is told of them has enough to do.
    pub fn note(&mut self, at: impl Into<String>, problem: impl Into<String>) {
        if PROBLEMS_MAX <= self.0.len() {
            return;
        }
        self.0.push(Problem {
            at: at.into(),
            problem: problem.into(),
        });
    }

    /// `value`, unless there are problems.
    pub(crate) fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(self)
        }
    }
}

/// The most problems of one manifest that are named: each is several times longer than what can cause it.
const PROBLEMS_MAX: usize = 100;

/// One table of a manifest while it is being read.
pub(super) struct Section<'a> {
    /// The key path of the table with its dot, or nothing at the top.
    prefix: &'static str,
    table: Table,
    problems: &'a mut Problems,
}

impl<'a> Section<'a> {
    pub(super) fn new(prefix: &'static str, table: Table, problems: &'a mut Problems) -> Self {
        Self {
            prefix,
            table,
            problems,
        }
    }

    pub(super) fn note(&mut self, key: &str, problem: impl Into<String>) {
        self.problems.note(format!("{}{key}", self.prefix), problem);
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.table.remove(key)
    }

    /// A text; none where it is absent or, noted, something else.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            other => {
                self.wrong_type(key, "a text in quotes", &other);
                None
            }
        }
    }

    /// A size within `range`, or `default`.
    pub(super) fn size(&mut self, key: &str, range: RangeInclusive<u64>, default: u64) -> u64 {
        let Some(text) = self.text(key) else {
            return default;
        };
        let Some(bytes) = quantity::parse_size(&text) else {
            self.note(
                key,
                format!("must be {}, not {text:?}", quantity::SIZE_FORM),
            );
            return default;
        };
        let (min, max) = (
            quantity::show_size(*range.start()),
            quantity::show_size(*range.end()),
        );
        self.within(
            key,
            &range,
            bytes,
            format!("must be between {min} and {max}"),
        )
    }

    /// A duration within `range`, or `default`.
    pub(super) fn duration(
        &mut self,
        key: &str,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some(text) = self.text(key) else {
            return default;
        };
        let Some(duration) = quantity::parse_duration(&text) else {
            self.note(
                key,
                format!("must be {}, not {text:?}", quantity::DURATION_FORM),
            );
            return default;
        };
        let (min, max) = (
            quantity::show_duration(*range.start()),
            quantity::show_duration(*range.end()),
        );
        self.within(
            key,
            &range,
            duration,
            format!("must be between {min} and {max}"),
        )
    }

    /// As [`Self::duration`], where `"auto"` stands for the default.
    pub(super) fn auto_duration(
        &mut self,
        key: &str,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        if self.table.get(key).and_then(Value::as_str) == Some("auto") {
            self.take(key);
            return default;
        }
        self.duration(key, range, default)
    }

    /// A whole number within `range`; none where it is absent.
    pub(super) fn number(&mut self, key: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let problem = format!(
            "must be a whole number between {} and {}",
            range.start(),
            range.end()
        );
        match self.take(key)? {
            Value::Integer(number) => match u32::try_from(number) {
                Ok(number) => Some(self.within(key, &range, number, problem)),
                Err(_) => {
                    self.note(key, problem);
                    None
                }
            },
            other => {
                self.wrong_type(key, "a whole number", &other);
                None
            }
        }
    }

    /// A number of cores in thousandths, within `range`, or `default`.
    pub(super) fn millis_of_one(
        &mut self,
        key: &str,
        range: RangeInclusive<u32>,
        default: u32,
    ) -> u32 {
        let (min, max) = (
            f64::from(*range.start()) / 1000.0,
            f64::from(*range.end()) / 1000.0,
        );
        let given = match self.take(key) {
            None => return default,
            Some(Value::Float(number)) => number,
            // Only whole numbers that a u32 holds can be within the range.
            Some(Value::Integer(number)) => u32::try_from(number).map_or(f64::INFINITY, f64::from),
            Some(other) => {
                self.wrong_type(key, "a number of cores such as 0.5", &other);
                return default;
            }
        };
        if !(min..=max).contains(&given) {
            self.note(key, format!("must be between {min} and {max}"));
            return default;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within the range checked above"
        )]
        let millis = (given * 1000.0).round() as u32;
        millis
    }

    /// Notes `key` where it has any other value than `only`, which is what this version offers.
    pub(super) fn only_text(&mut self, key: &str, only: &str, others: &[&str]) {
        match self.text(key) {
            Some(text) if others.contains(&text.as_str()) => {
                self.note(
                    key,
                    format!("{text:?} is not supported yet; this version offers {only:?}"),
                );
            }
            Some(text) if text != only => self.note(key, format!("must be {only:?}, not {text:?}")),
            Some(_) | None => {}
        }
    }

    /// A table of its own, empty where it is absent.
    pub(super) fn table(&mut self, key: &str) -> Table {
        match self.take(key) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                self.wrong_type(key, "a table", &other);
                Table::new()
            }
        }
    }

    /// Notes every key that nothing has taken.
    pub(super) fn finish(mut self) {
        let unknown: Vec<String> = self.table.keys().cloned().collect();
        for key in unknown {
            // A key is a stranger's text: it is cut before it comes back in an answer.
            let shown: String = key.chars().take(SHOWN_KEY_CHARS_MAX).collect();
            self.note(&shown, "is not a key of this section");
        }
    }

    fn within<T: PartialOrd>(
        &mut self,
        key: &str,
        range: &RangeInclusive<T>,
        value: T,
        problem: String,
    ) -> T {
        if !range.contains(&value) {
            self.note(key, problem);
        }
        value
    }

    fn wrong_type(&mut self, key: &str, wanted: &str, got: &Value) {
        self.note(
            key,
            format!(
                "must be {wanted}, not {} {}",
                article(got.type_str()),
                got.type_str()
            ),
        );
    }
}

/// How much of an unknown key is shown.
const SHOWN_KEY_CHARS_MAX: usize = 64;

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'i']) {
        "an"
    } else {
        "a"
    }
}
