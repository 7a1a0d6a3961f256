// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Finds a setting's text in the layers, and turns it into a value or a problem that names the place it came from.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Environment, Flags, Problems, SETTINGS};

/// The layers, the first one winning, and what was found wrong in them.
#[derive(Debug)]
pub(super) struct Layers<'a> {
    pub(super) flags: &'a Flags,
    pub(super) environment: &'a Environment,
    pub(super) file: &'a BTreeMap<String, String>,
    pub(super) problems: Problems,
}

impl Layers<'_> {
    /// The text of a setting and the place it was found at.
    fn find(&self, key: &str) -> Option<(String, String)> {
        let setting = SETTINGS.iter().find(|setting| setting.key == key)?;
        if let Some(text) = self.flags.get(key) {
            return Some((text.to_owned(), format!("--{}", setting.flag())));
        }
        if let Some(text) = self.environment.get(&setting.variable()) {
            return Some((text.to_owned(), setting.variable()));
        }
        match self.file.get(key) {
            Some(text) => Some((text.clone(), format!("{key} in the configuration file"))),
            None => Some((setting.default.to_owned(), format!("the default of {key}"))),
        }
    }

    /// `None`, and one more problem, where `parse` takes the text for none of `expected`.
    pub(super) fn parse<T>(
        &mut self,
        key: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let (text, place) = self.find(key)?;
        let value = parse(&text);
        if value.is_none() {
            self.problems
                .0
                .push(format!("{place}: {text:?} is not {expected}"));
        }
        value
    }

    /// A number from 1 to `max`; 1 where there is a problem.
    pub(super) fn count(&mut self, key: &str, max: u32) -> u32 {
        self.parse(key, &format!("a whole number from 1 to {max}"), |text| {
            text.parse().ok().filter(|n| (1..=max).contains(n))
        })
        .unwrap_or(1)
    }

    /// A duration up to `max`; zero where there is a problem.
    pub(super) fn duration(&mut self, key: &str, max: Duration) -> Duration {
        let expected = format!("a duration up to {} s, like 250ms, 5s or 2m", max.as_secs());
        self.parse(key, &expected, |text| {
            parse_duration(text).filter(|value| *value <= max)
        })
        .unwrap_or_default()
    }
}

/// A whole number with `ms`, `s` or `m`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|character: char| !character.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    match &text[digits..] {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit_and_nothing_else() {
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("5s"), Some(Duration::from_secs(5)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "5 s",
            "5S",
            "99999999999999999999s",
        ] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }
}
