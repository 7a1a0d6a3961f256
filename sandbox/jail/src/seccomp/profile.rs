// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From a profile's file to what each system call's number means.
//!
//! Three outcomes: allowed (perhaps only with certain arguments), an errno by name, or the end of the process. A call
//! that no rule names answers ENOSYS.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{SeccompError, constants};

/// The files, embedded: the policy is the same in every build, and no variable leads to another one.
const FILES: [(&str, &str); 5] = [
    ("default", include_str!("../../profiles/default.json")),
    ("resident", include_str!("../../profiles/resident.json")),
    ("wasm", include_str!("../../profiles/wasm.json")),
    ("gateway", include_str!("../../profiles/gateway.json")),
    ("refused", include_str!("../../profiles/refused.json")),
];

/// What the filter answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// The call happens.
    Allow,
    /// It fails with this errno and does not happen.
    Errno(u16),
    /// The process is killed by SIGSYS.
    Kill,
}

/// The answer to calls that no rule names.
pub(super) const UNNAMED: Verdict = Verdict::Errno(constants::ENOSYS);

/// One comparison of one argument: `arg & mask` is one of `values`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    /// From 0 to 5.
    pub(super) argument: u8,
    /// How much of the register the kernel looks at.
    pub(super) width: Width,
    /// Bits that count; all ones where the file gives none.
    pub(super) mask: u64,
    /// At least one.
    pub(super) values: Vec<u64>,
}

/// How much of an argument's register is compared. The kernel truncates `int` arguments: comparing 64 bits of one would
/// let a value with high bits set look like another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Width {
    /// The lower half.
    Bits32,
    /// All of it.
    Bits64,
}

/// What one call's number means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CallPolicy {
    /// The call is allowed where all conditions of any one of these hold; an empty inner list always holds.
    pub(super) allowed: Vec<Vec<Condition>>,
    /// The answer where none holds.
    pub(super) otherwise: Verdict,
}

/// A whole profile: by number, ascending.
pub(super) type Policy = BTreeMap<u32, CallPolicy>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProfile {
    /// For the reader.
    #[serde(rename = "about")]
    _about: String,
    include: Vec<String>,
    left_out: Vec<LeftOut>,
    rules: Vec<RawRule>,
}

/// Calls that a reader might miss. They may not be allowed by any rule; `check_left_out` holds the two together.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LeftOut {
    calls: Vec<String>,
    #[serde(rename = "reason")]
    _reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    calls: Vec<String>,
    /// Only on this architecture (`x86_64`); everywhere where it is not given.
    arch: Option<String>,
    /// `allow` where it is not given, an errno's name, or `kill`.
    action: Option<String>,
    /// All must hold.
    #[serde(default)]
    when: Vec<RawCondition>,
    /// The errno's name where they do not; only beside `when`.
    otherwise: Option<String>,
    #[serde(rename = "reason")]
    _reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCondition {
    arg: u8,
    width: u8,
    mask: Option<RawValue>,
    is: Vec<RawValue>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawValue {
    Number(u64),
    Name(String),
}

/// Reads the profile and what it includes.
pub(super) fn load(file: &str) -> Result<Policy, SeccompError> {
    let raw = parse(file)?;
    let mut policy = own_rules(file, &raw)?;
    for included in &raw.include {
        // The profile's own rule wins: it is the more particular one.
        for (number, call) in own_rules(included, &parse(included)?)? {
            policy.entry(number).or_insert(call);
        }
    }
    check_left_out(file, &raw, &policy)?;
    Ok(policy)
}

fn parse(file: &str) -> Result<RawProfile, SeccompError> {
    let (_, text) = FILES
        .iter()
        .find(|(name, _)| *name == file)
        .ok_or_else(|| SeccompError::UnknownFile { file: file.into() })?;
    serde_json::from_str(text).map_err(|source| SeccompError::Parse {
        file: file.into(),
        source,
    })
}

fn own_rules(file: &str, raw: &RawProfile) -> Result<Policy, SeccompError> {
    let mut policy = Policy::new();
    let here = |rule: &&RawRule| {
        rule.arch
            .as_deref()
            .is_none_or(|arch| arch == std::env::consts::ARCH)
    };
    for rule in raw.rules.iter().filter(here) {
        for name in &rule.calls {
            let call = call_policy(file, name, rule)?;
            let number = number_of(file, name)?;
            if policy.insert(number, call).is_some() {
                return Err(SeccompError::Parse {
                    file: file.into(),
                    source: serde::de::Error::custom(format!("{name} is named twice")),
                });
            }
        }
    }
    Ok(policy)
}

fn call_policy(file: &str, call: &str, rule: &RawRule) -> Result<CallPolicy, SeccompError> {
    let action = match rule.action.as_deref() {
        None => Verdict::Allow,
        Some("kill") => Verdict::Kill,
        Some(errno) => Verdict::Errno(errno_of(file, errno)?),
    };
    let otherwise = match (&rule.otherwise, rule.when.is_empty()) {
        (Some(errno), false) => Verdict::Errno(errno_of(file, errno)?),
        (None, true) => UNNAMED,
        (Some(_), true) | (None, false) => {
            return Err(SeccompError::Parse {
                file: file.into(),
                source: serde::de::Error::custom(format!(
                    "{call}: `when` and `otherwise` belong together"
                )),
            });
        }
    };
    if action != Verdict::Allow {
        return Ok(CallPolicy {
            allowed: Vec::new(),
            otherwise: action,
        });
    }
    let conditions: Result<_, _> = rule
        .when
        .iter()
        .map(|raw| condition(file, call, raw))
        .collect();
    Ok(CallPolicy {
        allowed: vec![conditions?],
        otherwise,
    })
}

fn condition(file: &str, call: &str, raw: &RawCondition) -> Result<Condition, SeccompError> {
    let bad = || SeccompError::BadCondition {
        file: file.into(),
        call: call.into(),
        argument: raw.arg,
    };
    let (width, all) = match raw.width {
        32 => (Width::Bits32, u64::from(u32::MAX)),
        64 => (Width::Bits64, u64::MAX),
        _ => return Err(bad()),
    };
    let mask = match &raw.mask {
        Some(value) => value_of(file, value)?,
        None => all,
    };
    let values = raw
        .is
        .iter()
        .map(|value| value_of(file, value))
        .collect::<Result<Vec<_>, _>>()?;
    // A value with bits outside the mask could never be met: the rule would not mean what it says.
    let meetable = values.iter().all(|value| value & mask == *value);
    if 5 < raw.arg || values.is_empty() || !meetable || mask & all != mask {
        return Err(bad());
    }
    Ok(Condition {
        argument: raw.arg,
        width,
        mask,
        values,
    })
}

fn check_left_out(file: &str, raw: &RawProfile, policy: &Policy) -> Result<(), SeccompError> {
    for name in raw.left_out.iter().flat_map(|entry| &entry.calls) {
        let number = number_of(file, name)?;
        let allowed = policy
            .get(&number)
            .is_some_and(|call| !call.allowed.is_empty());
        if allowed {
            return Err(SeccompError::Parse {
                file: file.into(),
                source: serde::de::Error::custom(format!("{name} is allowed and left out")),
            });
        }
    }
    Ok(())
}

fn number_of(file: &str, call: &str) -> Result<u32, SeccompError> {
    let number = native_name(call, std::env::consts::ARCH)
        .parse::<syscalls::Sysno>()
        .ok()
        .and_then(|number| u32::try_from(number.id()).ok());
    number.ok_or_else(|| SeccompError::UnknownCall {
        file: file.into(),
        call: call.into(),
    })
}

/// One call has two names in the kernel's own tables: `newfstatat` on x86_64, `fstatat` on architectures born later.
fn native_name<'a>(call: &'a str, arch: &str) -> &'a str {
    match (call, arch) {
        ("newfstatat", "aarch64") => "fstatat",
        _ => call,
    }
}

fn value_of(file: &str, value: &RawValue) -> Result<u64, SeccompError> {
    match value {
        RawValue::Number(number) => Ok(*number),
        RawValue::Name(name) => {
            constants::value(name).ok_or_else(|| SeccompError::UnknownConstant {
                file: file.into(),
                name: name.clone(),
            })
        }
    }
}

fn errno_of(file: &str, name: &str) -> Result<u16, SeccompError> {
    constants::errno(name).ok_or_else(|| SeccompError::UnknownConstant {
        file: file.into(),
        name: name.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reason that says less than this says nothing, in bytes.
    const REASON_LEN_MIN: usize = 8;

    #[test]
    fn every_rule_has_a_reason() {
        for (file, text) in FILES {
            let profile: serde_json::Value = serde_json::from_str(text).unwrap();
            for list in ["rules", "left_out"] {
                for rule in profile[list].as_array().unwrap() {
                    let reason = rule["reason"].as_str().unwrap_or_default();
                    assert!(REASON_LEN_MIN <= reason.len(), "{file}: {rule}");
                }
            }
        }
    }

    #[test]
    fn a_rule_without_a_reason_is_not_read() {
        let rule = r#"{"about":"","include":[],"left_out":[],"rules":[{"calls":["read"]}]}"#;
        assert!(serde_json::from_str::<RawProfile>(rule).is_err());
    }

    #[test]
    fn every_name_exists_on_the_architectures_it_is_given_for() {
        for (file, text) in FILES {
            let raw: RawProfile = serde_json::from_str(text).unwrap();
            for rule in &raw.rules {
                for call in &rule.calls {
                    let on_x86 = call.parse::<syscalls::x86_64::Sysno>().is_ok();
                    let on_arm = native_name(call, "aarch64")
                        .parse::<syscalls::aarch64::Sysno>()
                        .is_ok();
                    let only_x86 = rule.arch.as_deref() == Some("x86_64");
                    assert!(on_x86 && (on_arm || only_x86), "{file}: {call}");
                }
            }
        }
    }

    #[test]
    fn a_profile_s_own_rule_replaces_the_included_one() {
        let number = number_of("default", "ioprio_set").unwrap();
        assert!(!load("default").unwrap()[&number].allowed.is_empty());
        assert!(load("wasm").unwrap()[&number].allowed.is_empty());
    }
}
