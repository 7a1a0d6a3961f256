// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Seccomp profiles as gateway and spawner speak of them: by name, or as the calls of a named one that a function was
//! seen to make. Which calls a name means is the jail's to know.

use serde::{Deserialize, Serialize};

/// A seccomp profile of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Profile {
    /// Unknown native programs: processes, file-system changes, AF_UNIX.
    Default,
    /// One native program: threads, but no process beside it, and no change of the file tree but writing files.
    Strict,
    /// The resident worker: what init and it need to boot; the worker adds a tighter filter before it takes a module.
    Resident,
    /// Of a tier, the calls that a function was seen to make, and what init needs.
    Learned(Learned),
    /// As a tier or a learned profile, and everything is counted.
    Observed(Observed),
}

/// A profile of native functions that is part of Hearth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// [`Profile::Default`].
    Default,
    /// [`Profile::Strict`].
    Strict,
}

/// A part of a tier. What the tier refuses stays refused whatever the set holds: it can only be narrower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Learned {
    /// Whose rules hold for these calls.
    pub of: Tier,
    /// By number on the host's architecture.
    pub calls: CallSet,
}

/// A profile whose calls are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Observed {
    /// The tier that is in force.
    pub of: Tier,
    /// Of it, only these calls, where a learned profile is in force.
    pub only: Option<CallSet>,
    /// Where they are counted.
    pub by: ObservationId,
}

/// Names one count of calls for the life of one spawner; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObservationId(pub u64);

impl Tier {
    /// The name, as in manifests and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Strict => "strict",
        }
    }
}

impl Profile {
    /// The name of what is in force, as in manifests and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Default
            | Self::Observed(Observed {
                of: Tier::Default,
                only: None,
                ..
            }) => "default",
            Self::Strict
            | Self::Observed(Observed {
                of: Tier::Strict,
                only: None,
                ..
            }) => "strict",
            Self::Resident => "resident",
            Self::Learned(_) | Self::Observed(_) => "learned",
        }
    }

    /// The tier whose rules it has; none where it is not for native functions.
    #[must_use]
    pub fn tier(self) -> Option<Tier> {
        match self {
            Self::Default => Some(Tier::Default),
            Self::Strict => Some(Tier::Strict),
            Self::Resident => None,
            Self::Learned(Learned { of, .. }) | Self::Observed(Observed { of, .. }) => Some(of),
        }
    }

    /// The same, counted; none where it is not for native functions.
    #[must_use]
    pub fn observed(self, by: ObservationId) -> Option<Self> {
        let only = match self {
            Self::Learned(Learned { calls, .. }) => Some(calls),
            Self::Observed(Observed { only, .. }) => only,
            Self::Default | Self::Strict | Self::Resident => None,
        };
        let of = self.tier()?;
        Some(Self::Observed(Observed { of, only, by }))
    }

    /// Whether many functions share it, so that a sandbox with it can be made before it is known for which.
    #[must_use]
    pub fn is_shared(self) -> bool {
        match self {
            Self::Default | Self::Strict | Self::Resident => true,
            Self::Learned(_) | Self::Observed(_) => false,
        }
    }
}

const WORDS: usize = 8;

/// A set of system calls by number, below [`CallSet::NUMBERS`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct CallSet([u64; WORDS]);

impl CallSet {
    /// Numbers from here on are in no set: the highest that a kernel has given so far is below 480.
    pub const NUMBERS: u32 = 512;

    /// Adds a call; false where its number is none that a set can hold.
    pub fn insert(&mut self, number: u32) -> bool {
        let Some((word, bit)) = place(number) else {
            return false;
        };
        self.0[word] |= bit;
        true
    }

    /// Whether it holds this call.
    #[must_use]
    pub fn contains(&self, number: u32) -> bool {
        place(number).is_some_and(|(word, bit)| self.0[word] & bit != 0)
    }
}

fn place(number: u32) -> Option<(usize, u64)> {
    let number = usize::try_from(number).ok()?;
    (number < WORDS * 64).then_some((number / 64, 1 << (number % 64)))
}

/// The most system calls that one learned profile names, and that one observation tells apart.
pub const CALLS_MAX: usize = 512;

/// One call of an observation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedCall {
    /// Its name; empty where its number has none here.
    pub name: String,
    /// Its number on this architecture.
    pub number: u32,
    /// How often the function made it and was allowed to.
    pub allowed: u64,
    /// How often it was refused, told of or not.
    pub refused: u64,
}

/// What an observation has seen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Observation {
    /// By number. Those of init are not among them.
    pub calls: Vec<ObservedCall>,
    /// Calls whose number came after [`CALLS_MAX`] others.
    pub uncounted: u64,
}

/// How large a profile is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileSize {
    /// Calls that it allows, with whatever arguments.
    pub calls: u32,
    /// Instructions of its filter.
    pub instructions: u32,
}

/// A list of names as a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileReading {
    /// What it allows.
    pub learned: Learned,
    /// Names that the tier does not allow.
    pub not_allowed: Vec<String>,
    /// Names that this architecture does not have.
    pub unknown: Vec<String>,
    /// Of the learned profile, with what init needs.
    pub size: ProfileSize,
    /// Of the tier.
    pub tier_size: ProfileSize,
}

/// A system call that was refused by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The call's name; empty where the kernel's number has none here.
    pub name: String,
    /// Its number on this architecture.
    pub number: u32,
    /// Its six arguments, as they were in the registers. Pointers among them are not followed.
    pub arguments: [u64; 6],
    /// What it got.
    pub class: ViolationClass,
}

/// What a refused call gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ViolationClass {
    /// It failed with EPERM.
    Eperm,
    /// The whole sandbox was killed.
    Kill,
}

impl ViolationClass {
    /// Every class, for registering metric children.
    pub const ALL: [Self; 2] = [Self::Eperm, Self::Kill];

    /// The stable name, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eperm => "eperm",
            Self::Kill => "kill",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_into_it_and_no_number_beyond_its_end() {
        let mut set = CallSet::default();
        assert!(set.insert(0) && set.insert(CallSet::NUMBERS - 1));
        assert!(!set.insert(CallSet::NUMBERS) && !set.insert(u32::MAX));
        let held: Vec<u32> = (0..2 * CallSet::NUMBERS)
            .filter(|number| set.contains(*number))
            .collect();
        assert_eq!(held, [0, CallSet::NUMBERS - 1]);
    }

    #[test]
    fn an_observed_profile_is_called_by_what_is_in_force() {
        let by = ObservationId(1);
        let learned = Profile::Learned(Learned {
            of: Tier::Strict,
            calls: CallSet::default(),
        });
        for profile in [Profile::Default, Profile::Strict, learned] {
            let observed = profile.observed(by).unwrap();
            assert_eq!(observed.name(), profile.name());
            assert_eq!(observed.tier(), profile.tier());
            assert!(!observed.is_shared());
        }
        assert_eq!(Profile::Resident.observed(by), None);
    }
}
