// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A profile's file: its form, and the way from its names to numbers.

use serde::Deserialize;

use super::{CallPolicy, Condition, Policy, UNNAMED, Verdict, Width};
use crate::seccomp::{SeccompError, arch::Arch, constants};

/// The files, embedded: the policy is the same in every build, and no variable leads to another one.
pub(super) const FILES: [(&str, &str); 9] = [
    ("strict", include_str!("../../../profiles/strict.json")),
    ("alone", include_str!("../../../profiles/alone.json")),
    ("always", include_str!("../../../profiles/always.json")),
    ("default", include_str!("../../../profiles/default.json")),
    ("network", include_str!("../../../profiles/network.json")),
    ("resident", include_str!("../../../profiles/resident.json")),
    ("wasm", include_str!("../../../profiles/wasm.json")),
    ("gateway", include_str!("../../../profiles/gateway.json")),
    ("refused", include_str!("../../../profiles/refused.json")),
];

/// How many files may include one another in a row: a circle ends here.
const INCLUDE_DEPTH_MAX: u32 = 4;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProfile {
    /// For the reader.
    #[serde(rename = "about")]
    _about: String,
    include: Vec<String>,
    /// What calls get that no rule names: ENOSYS, or `allow` in an overlay, where another filter answers them.
    unnamed: Option<Unnamed>,
    left_out: Vec<LeftOut>,
    pub(super) rules: Vec<RawRule>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Unnamed {
    Allow,
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
pub(super) struct RawRule {
    pub(super) calls: Vec<String>,
    /// Only on this architecture (`x86_64`); everywhere where it is not given.
    pub(super) arch: Option<String>,
    /// `allow` where it is not given, an errno's name, `kill`, or `defer`: as the filter below asks, else ENOSYS.
    action: Option<String>,
    /// All must hold.
    #[serde(default)]
    when: Vec<RawCondition>,
    /// Or all of one of these.
    #[serde(default)]
    or_when: Vec<Vec<RawCondition>>,
    /// What, as in `action`, where they do not; only beside `when`.
    otherwise: Option<String>,
    #[serde(rename = "reason")]
    _reason: String,
    /// Of a rule that allows: what fails without it. A row of the test `live/proofs.rs`, or a test's path.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for the reader, and for the tests")
    )]
    pub(super) shown_by: Option<String>,
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
pub(super) fn load(file: &str, arch: Arch) -> Result<Policy, SeccompError> {
    let raw = parse(file)?;
    let policy = with_includes(file, arch, INCLUDE_DEPTH_MAX)?;
    check_left_out(file, &raw, &policy, arch)?;
    Ok(policy)
}

fn with_includes(file: &str, arch: Arch, depth_left: u32) -> Result<Policy, SeccompError> {
    let raw = parse(file)?;
    let mut policy = own_rules(file, &raw, arch)?;
    if depth_left == 0 && !raw.include.is_empty() {
        return Err(malformed(file, "includes go too deep".to_owned()));
    }
    for included in &raw.include {
        // The profile's own rule wins: it is the more particular one.
        for (number, call) in with_includes(included, arch, depth_left - 1)?.calls {
            policy.calls.entry(number).or_insert(call);
        }
    }
    Ok(policy)
}

pub(super) fn parse(file: &str) -> Result<RawProfile, SeccompError> {
    let (_, text) = FILES
        .iter()
        .find(|(name, _)| *name == file)
        .ok_or_else(|| SeccompError::UnknownFile { file: file.into() })?;
    serde_json::from_str(text).map_err(|source| SeccompError::Parse {
        file: file.into(),
        source,
    })
}

fn malformed(file: &str, what: String) -> SeccompError {
    SeccompError::Parse {
        file: file.into(),
        source: serde::de::Error::custom(what),
    }
}

fn own_rules(file: &str, raw: &RawProfile, arch: Arch) -> Result<Policy, SeccompError> {
    let mut policy = Policy {
        calls: std::collections::BTreeMap::new(),
        unnamed: match raw.unnamed {
            None => UNNAMED,
            Some(Unnamed::Allow) => Verdict::Allow,
        },
    };
    let here = |rule: &&RawRule| rule.arch.as_deref().is_none_or(|name| name == arch.name());
    for rule in raw.rules.iter().filter(here) {
        for name in &rule.calls {
            let call = call_policy(file, name, rule)?;
            let number = number_of(file, name, arch)?;
            if policy.calls.insert(number, call).is_some() {
                return Err(malformed(file, format!("{name} is named twice")));
            }
        }
    }
    Ok(policy)
}

fn call_policy(file: &str, call: &str, rule: &RawRule) -> Result<CallPolicy, SeccompError> {
    let action = match rule.action.as_deref() {
        None => Verdict::Allow,
        Some(action) => refusal(file, action)?,
    };
    let otherwise = match (&rule.otherwise, rule.when.is_empty()) {
        (Some(otherwise), false) => refusal(file, otherwise)?,
        (None, true) if rule.or_when.is_empty() => UNNAMED,
        (Some(_), true) | (None, _) => {
            let what = format!("{call}: `when` and `otherwise` belong together");
            return Err(malformed(file, what));
        }
    };
    if action != Verdict::Allow {
        return Ok(CallPolicy::refused(action));
    }
    let rules = std::iter::once(&rule.when).chain(&rule.or_when);
    let allowed = rules.map(|conditions| {
        let conditions = conditions.iter().map(|raw| condition(file, call, raw));
        conditions.collect::<Result<Vec<_>, _>>()
    });
    Ok(CallPolicy {
        allowed: allowed.collect::<Result<_, _>>()?,
        then: Verdict::Allow,
        otherwise,
    })
}

fn refusal(file: &str, name: &str) -> Result<Verdict, SeccompError> {
    Ok(match name {
        "kill" => Verdict::Kill,
        "defer" => Verdict::Defer,
        errno => Verdict::Errno(errno_of(file, errno)?),
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

fn check_left_out(
    file: &str,
    raw: &RawProfile,
    policy: &Policy,
    arch: Arch,
) -> Result<(), SeccompError> {
    for name in raw.left_out.iter().flat_map(|entry| &entry.calls) {
        let number = number_of(file, name, arch)?;
        if policy.may_allow(number) {
            return Err(malformed(file, format!("{name} is allowed and left out")));
        }
    }
    Ok(())
}

pub(super) fn number_of(file: &str, call: &str, arch: Arch) -> Result<u32, SeccompError> {
    arch.number(call).ok_or_else(|| SeccompError::UnknownCall {
        file: file.into(),
        call: call.into(),
    })
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
