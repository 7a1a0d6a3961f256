// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One row per setting, and what follows from a row: the command line's flag and the file's key.

use std::collections::BTreeMap;
use std::path::Path;

use clap::builder::StyledStr;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::{Problems, SETTINGS};

/// The largest configuration file, in bytes; the longest useful one is under 2 KiB.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// One setting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    /// Its key in the file; flag and variable follow from it.
    pub(crate) key: &'static str,
    /// What stands for the value in help texts.
    pub(crate) value: &'static str,
    /// What it does.
    pub(crate) help: &'static str,
    /// The value where nobody says anything.
    pub(crate) default: &'static str,
}

impl Setting {
    /// `queue_len` → `queue-len`.
    pub(crate) fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// `queue_len` → `HEARTH_QUEUE_LEN`.
    pub(crate) fn variable(&self) -> String {
        format!("HEARTH_{}", self.key.to_uppercase())
    }
}

/// The values given as flags, by key, unchecked.
#[derive(Debug, Default, Clone)]
pub(crate) struct Flags(BTreeMap<&'static str, String>);

impl Flags {
    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The same flags as a command line, for a child that is to run with them.
    pub(crate) fn to_args(&self) -> impl Iterator<Item = String> + '_ {
        self.0
            .iter()
            .map(|(key, value)| format!("--{}={value}", key.replace('_', "-")))
    }

    /// Gives a key a value, whatever the command line said.
    pub(crate) fn set(&mut self, key: &'static str, value: String) {
        self.0.insert(key, value);
    }

    #[cfg(test)]
    pub(crate) fn of(values: &[(&'static str, &str)]) -> Self {
        Self(
            values
                .iter()
                .map(|(key, value)| (*key, (*value).to_owned()))
                .collect(),
        )
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in &SETTINGS {
            if let Some(value) = matches.get_one::<String>(setting.key) {
                self.0.insert(setting.key, value.clone());
            }
        }
        Ok(())
    }
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        command.args(SETTINGS.iter().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn argument(setting: &Setting) -> Arg {
    let default = match setting.default {
        "" => "none",
        text => text,
    };
    let (help, variable) = (setting.help, setting.variable());
    let help = format!("{help} [default: {default}] [env: {variable}]");
    let argument = Arg::new(setting.key)
        .long(setting.flag())
        .value_name(setting.value)
        .help(StyledStr::from(help));
    if setting.value == "BOOL" {
        // `--insecure` alone says true.
        argument
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
    } else {
        argument
    }
}

/// Reads the optional file, a flat TOML table with the keys of [`SETTINGS`]: what it sets, and what is wrong with it.
pub(super) fn read_file(path: &Path) -> (BTreeMap<String, String>, Problems) {
    let mut values = BTreeMap::new();
    let mut problems = Problems::default();
    let place = path.display();
    match read_table(path) {
        Err(problem) => problems.0.push(format!("{place}: {problem}")),
        Ok(table) => {
            for (key, value) in table {
                match setting_text(&key, value) {
                    Ok(text) => {
                        values.insert(key, text);
                    }
                    Err(problem) => problems.0.push(format!("{place}: {problem}")),
                }
            }
        }
    }
    (values, problems)
}

fn read_table(path: &Path) -> Result<toml::Table, String> {
    let size = std::fs::metadata(path).map_err(|problem| problem.to_string())?;
    if FILE_BYTES_MAX < size.len() {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|problem| problem.to_string())?;
    text.parse()
        .map_err(|problem: toml::de::Error| problem.to_string())
}

fn setting_text(key: &str, value: toml::Value) -> Result<String, String> {
    if !SETTINGS.iter().any(|setting| setting.key == key) {
        return Err(format!("there is no setting {key}"));
    }
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(truth) => Ok(truth.to_string()),
        _ => Err(format!("{key} is not a text, a whole number or a bool")),
    }
}
