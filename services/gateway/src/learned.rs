// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A learned profile as a file: which system calls a function was seen to make, how often, and under which tier. It lies in
//! the function's folder and is part of its revision; people review it, and the spawner makes a filter of its names.

use std::collections::BTreeSet;

use hearth_pool::{Pool, StoreError};
use hearth_protocol::{
    TreeId,
    profile::{CALLS_MAX, Observation, ObservedCall, Profile, ProfileReading, Tier},
};
use serde::{Deserialize, Serialize};

use crate::{
    intake::Package,
    manifest::{Manifest, Problems, Seccomp},
    problem::RequestError,
};

/// Its name, at the root of a function's folder.
pub const FILE_NAME: &str = "seccomp.json";

/// The longest one, in bytes: 512 calls at 120 bytes each.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The longest name of a system call that is looked up, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// A learned profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnedProfile {
    /// For the reader.
    pub about: String,
    /// Whose argument rules hold, and which nothing here can go beyond.
    pub profile: Tier,
    /// The machine it was learned on, as Rust names it: others have other calls.
    pub arch: String,
    /// What is allowed, with how often it was seen; by name.
    pub calls: Vec<SeenCall>,
    /// What was tried and is refused all the same; for the reader.
    #[serde(default)]
    pub refused: Vec<SeenCall>,
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeenCall {
    /// Its name.
    pub name: String,
    /// How often it was seen; 0 where a person added it.
    #[serde(default)]
    pub count: u64,
}

impl LearnedProfile {
    /// Of what was seen of a function under a tier.
    pub(crate) fn of(about: String, profile: Tier, seen: &Observation) -> Self {
        let list = |count: fn(&ObservedCall) -> u64| {
            let counted = seen.calls.iter().filter(|call| 0 < count(call));
            let mut calls: Vec<SeenCall> = counted
                .map(|call| SeenCall {
                    name: if call.name.is_empty() {
                        format!("number {}", call.number)
                    } else {
                        call.name.clone()
                    },
                    count: count(call),
                })
                .collect();
            calls.sort_by(|one, other| one.name.cmp(&other.name));
            calls
        };
        Self {
            about,
            profile,
            arch: std::env::consts::ARCH.to_owned(),
            calls: list(|call| call.allowed),
            refused: list(|call| call.refused),
        }
    }

    /// The names of what is allowed.
    pub(crate) fn names(&self) -> Vec<String> {
        self.calls.iter().map(|call| call.name.clone()).collect()
    }
}

/// Reads one.
///
/// # Errors
/// [`Problems`]: all that is wrong with it, but for what only the spawner knows.
pub fn parse(text: &[u8]) -> Result<LearnedProfile, Problems> {
    let mut problems = Problems::default();
    if FILE_BYTES_MAX < text.len() as u64 {
        problems.note(FILE_NAME, format!("is longer than {FILE_BYTES_MAX} bytes"));
        return Err(problems);
    }
    let profile: LearnedProfile = match serde_json::from_slice(text) {
        Ok(profile) => profile,
        Err(error) => {
            problems.note(FILE_NAME, format!("cannot be read: {error}"));
            return Err(problems);
        }
    };
    let own = std::env::consts::ARCH;
    if profile.arch != own {
        problems.note(
            place("arch"),
            format!(
                "was learned on {:?}; learn it on {own:?} again",
                short(&profile.arch)
            ),
        );
    }
    if CALLS_MAX < profile.calls.len() {
        problems.note(place("calls"), format!("names more than {CALLS_MAX} calls"));
    }
    let mut names = BTreeSet::new();
    for SeenCall { name, .. } in &profile.calls {
        if NAME_BYTES_MAX < name.len() {
            problems.note(
                place("calls"),
                format!("{:?} is no call's name", short(name)),
            );
        } else if !names.insert(name) {
            problems.note(place("calls"), format!("names {name:?} twice"));
        }
    }
    problems.into_result(profile)
}

fn place(key: &str) -> String {
    format!("{FILE_NAME}: {key}")
}

/// Enough of a stranger's text to know it by.
fn short(text: &str) -> String {
    text.chars().take(NAME_BYTES_MAX).collect()
}

/// The profile of a function that is being deployed.
pub(crate) async fn of_package(
    pool: &Pool,
    manifest: &Manifest,
    package: &Package,
) -> Result<Profile, RequestError> {
    match manifest.seccomp {
        None => Ok(Profile::Default),
        Some(Seccomp::Tier(tier)) => Ok(of_tier(tier)),
        Some(Seccomp::Learned) => {
            let Some(file) = package.files.get(FILE_NAME) else {
                let mut problems = Problems::default();
                problems.note(
                    "sandbox.seccomp",
                    format!(
                        "is \"learned\", and there is no file {FILE_NAME}; `hearth learn` makes it"
                    ),
                );
                return Err(RequestError::BadManifest(problems));
            };
            read(pool, &file.content).await
        }
    }
}

/// The profile of a function that was deployed before this server started.
pub(crate) async fn of_stored(
    pool: &Pool,
    manifest: &Manifest,
    tree: &TreeId,
) -> Result<Profile, RequestError> {
    match manifest.seccomp {
        None => Ok(Profile::Default),
        Some(Seccomp::Tier(tier)) => Ok(of_tier(tier)),
        Some(Seccomp::Learned) => {
            let text = pool
                .read_stored(tree, FILE_NAME, FILE_BYTES_MAX + 1)
                .await?;
            read(pool, &text).await
        }
    }
}

async fn read(pool: &Pool, text: &[u8]) -> Result<Profile, RequestError> {
    let file = parse(text).map_err(RequestError::BadManifest)?;
    let reading = resolve(pool, &file).await?;
    Ok(Profile::Learned(reading.learned))
}

/// What the spawner makes of its names; all of them must be allowed by the tier.
pub(crate) async fn resolve(
    pool: &Pool,
    file: &LearnedProfile,
) -> Result<ProfileReading, RequestError> {
    let reading = pool.read_profile(file.profile, file.names()).await;
    let reading = reading.map_err(StoreError::from)?;
    let mut problems = Problems::default();
    let tier = file.profile.name();
    for name in &reading.not_allowed {
        problems.note(
            place("calls"),
            format!("{name:?} is not allowed by {tier:?}; a learned profile can only be narrower"),
        );
    }
    for name in &reading.unknown {
        let arch = std::env::consts::ARCH;
        problems.note(
            place("calls"),
            format!("{name:?} is no system call of {arch}"),
        );
    }
    problems
        .into_result(reading)
        .map_err(RequestError::BadManifest)
}

fn of_tier(tier: Tier) -> Profile {
    match tier {
        Tier::Default => Profile::Default,
        Tier::Strict => Profile::Strict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
        let mut value = serde_json::json!({
            "about": "x",
            "profile": "default",
            "arch": std::env::consts::ARCH,
            "calls": [{"name": "read", "count": 3}, {"name": "write"}],
        });
        change(&mut value);
        serde_json::to_vec(&value).unwrap()
    }

    fn problems(text: &[u8]) -> Vec<String> {
        let problems = parse(text).unwrap_err().0;
        problems
            .into_iter()
            .map(|problem| format!("{}: {}", problem.at, problem.problem))
            .collect()
    }

    #[test]
    fn a_file_is_read_as_it_is_written() {
        let profile = parse(&file(|_| {})).unwrap();
        assert_eq!(profile.names(), ["read", "write"]);
        let again = serde_json::to_vec_pretty(&profile).unwrap();
        assert_eq!(parse(&again), Ok(profile));
    }

    #[test]
    fn every_problem_of_a_file_is_said_with_its_place() {
        let said = problems(&file(|value| {
            value["arch"] = "pdp11".into();
            value["calls"] = serde_json::json!([{"name": "read"}, {"name": "read"}]);
        }));
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("seccomp.json: arch: was learned on \"pdp11\""));
        assert!(said[1].starts_with("seccomp.json: calls: names \"read\" twice"));
        for text in [
            file(|value| value["profile"] = "resident".into()),
            file(|value| value["more"] = 1.into()),
            b"{".to_vec(),
            vec![b' '; usize::try_from(FILE_BYTES_MAX).unwrap() + 1],
        ] {
            assert_eq!(problems(&text).len(), 1);
        }
        let many: Vec<_> = (0..=CALLS_MAX)
            .map(|number| serde_json::json!({ "name": format!("c{number}") }))
            .collect();
        let said = problems(&file(|value| value["calls"] = many.into()));
        assert_eq!(said, ["seccomp.json: calls: names more than 512 calls"]);
    }

    #[test]
    fn what_was_seen_is_listed_by_name_and_what_was_refused_apart_from_it() {
        let call = |name: &str, number, allowed, refused| ObservedCall {
            name: name.to_owned(),
            number,
            allowed,
            refused,
        };
        let seen = Observation {
            calls: vec![
                call("write", 1, 2, 0),
                call("read", 0, 1, 0),
                call("clone3", 435, 0, 4),
                call("", 999, 0, 1),
            ],
            uncounted: 0,
        };
        let profile = LearnedProfile::of(String::new(), Tier::Strict, &seen);
        assert_eq!(profile.names(), ["read", "write"]);
        let refused: Vec<_> = profile.refused.iter().map(|call| &call.name).collect();
        assert_eq!(refused, ["clone3", "number 999"]);
        assert_eq!(parse(&serde_json::to_vec(&profile).unwrap()), Ok(profile));
    }
}
