// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Filters of sandboxes. Each asks the spawner about what it refuses by name, or, where a function is observed, about
//! everything; the spawner answers by the same policy.
//!
//! ```text
//! a tier ─────────────────────▶ policy ─▶ asks about refusals    ─▶ EPERM or kill
//! a tier and a set of calls ──▶ policy ─▶ the same, and ENOSYS
//! either, observed ───────────▶ policy ─▶ asks about every call  ─▶ counted, then as the policy has it
//! ```
//!
//! That a call may go on (SECCOMP_USER_NOTIF_FLAG_CONTINUE) is decided by its number and its registers, which the
//! caller cannot change while it waits, and never by memory, which it can (seccomp_unotify(2)). A filter that does not
//! ask would come to the same answer.

use hearth_protocol::profile::{
    CallSet, Learned, ObservationId, Observed, Profile as Asked, ProfileReading, ProfileSize, Tier,
    ViolationClass,
};

use super::{
    Profile, Program, SeccompError,
    arch::Arch,
    constants, policy,
    profile::{CallPolicy, Condition, Policy, Verdict, Width},
    program,
};
use crate::enter::numbers;

/// A sandbox's filter.
#[derive(Debug)]
pub(crate) struct Filter {
    name: &'static str,
    policy: Policy,
    program: Program,
    /// What is put over each of the function's processes, where the filter allows something to init only.
    overlay: Option<Policy>,
    asks: Asks,
    listener: Listener,
}

/// When the spawner gets a filter's listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listener {
    /// With init's first word: what init does until then, the filter answers by itself.
    WithInit,
    /// As soon as the filter is up: there is no telling which of the next calls is a question.
    AtOnce,
}

/// What a filter asks the spawner about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asks {
    /// What it refuses by name.
    Refusals,
    /// Every call; they are counted here.
    Everything(ObservationId),
}

/// What a call gets that a [`Filter`] asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It happens. Of an observed sandbox only.
    Continue,
    /// It fails with this errno.
    Errno(u16),
    /// It ends the sandbox.
    Kill,
}

impl Answer {
    /// What is told of it; nothing where a program that probes for an older kernel means no harm.
    pub(crate) fn class(self) -> Option<ViolationClass> {
        match self {
            Self::Kill => Some(ViolationClass::Kill),
            Self::Errno(constants::EPERM) => Some(ViolationClass::Eperm),
            Self::Errno(_) | Self::Continue => None,
        }
    }
}

/// Who made a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    Init,
    /// Any other process of the sandbox.
    Function,
}

impl Filter {
    /// As a gateway asks for it.
    pub(crate) fn of(asked: Asked) -> Result<Self, SeccompError> {
        let name = asked.name();
        let (tier, only, asks) = match asked {
            Asked::Default => (Profile::Default, None, Asks::Refusals),
            Asked::Strict => (Profile::Strict, None, Asks::Refusals),
            Asked::Resident => (Profile::Resident, None, Asks::Refusals),
            Asked::Learned(Learned { of, calls }) => (of.into(), Some(calls), Asks::Refusals),
            Asked::Observed(Observed { of, only, by }) => (of.into(), only, Asks::Everything(by)),
        };
        let mut policy = policy(tier, Arch::NATIVE)?;
        if let Some(only) = &only {
            policy = policy.only(only, &self::policy(Profile::Always, Arch::NATIVE)?);
        }
        let filter = match asks {
            Asks::Refusals if only.is_some() => policy.asking_about_the_unnamed_too(),
            Asks::Refusals => policy.asking(),
            Asks::Everything(_) => policy.observed(Arch::NATIVE.number("sendmsg")),
        };
        let overlay = needs_overlay(tier, only.as_ref())
            .then(|| self::policy(Profile::Alone, Arch::NATIVE))
            .transpose()?;
        Ok(Self {
            name,
            program: program(&filter)?,
            policy,
            overlay,
            asks,
            listener: match asked {
                Asked::Default | Asked::Strict | Asked::Resident => Listener::WithInit,
                Asked::Learned(_) | Asked::Observed(_) => Listener::AtOnce,
            },
        })
    }

    /// The name of what is in force, as in reports.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// What the kernel is given.
    pub(crate) fn program(&self) -> &Program {
        &self.program
    }

    /// Whether each of the function's processes gets the overlay `alone`.
    pub(crate) fn has_overlay(&self) -> bool {
        self.overlay.is_some()
    }

    pub(crate) fn listener(&self) -> Listener {
        self.listener
    }

    pub(crate) fn asks(&self) -> Asks {
        self.asks
    }

    /// What the policy says to a call that was asked about.
    pub(crate) fn answer(&self, number: u32, arguments: &[u64; 6], caller: Caller) -> Answer {
        match (self.policy.answer(number, arguments), self.asks) {
            (Verdict::Kill, _) => Answer::Kill,
            (Verdict::Errno(errno), _) => Answer::Errno(errno),
            (Verdict::Allow, Asks::Everything(_)) => {
                if caller == Caller::Function && self.is_for_init_only(number, arguments) {
                    // What the overlay comes to by itself, where the filter below it does not ask.
                    return Answer::Errno(constants::ENOSYS);
                }
                Answer::Continue
            }
            // The registers are what the filter saw, too, and it asks about refusals only.
            (Verdict::Allow | Verdict::Ask | Verdict::Defer, _) => Answer::Errno(constants::EPERM),
        }
    }

    fn is_for_init_only(&self, number: u32, arguments: &[u64; 6]) -> bool {
        let overlay = self.overlay.as_ref();
        overlay.is_some_and(|overlay| overlay.answer(number, arguments) == Verdict::Defer)
    }

    /// How many calls it allows, and how long it is.
    fn size(&self) -> ProfileSize {
        let calls = self.policy.calls.keys();
        let allowed = calls.filter(|number| self.policy.may_allow(**number));
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        ProfileSize {
            calls: count(allowed.count()),
            instructions: count(self.program.instructions().len()),
        }
    }
}

/// Init's own way to start a program is taken from the function's processes, unless that may start processes anyhow.
fn needs_overlay(tier: Profile, only: Option<&CallSet>) -> bool {
    let clones = Arch::NATIVE.number("clone");
    let may_clone = |only: &CallSet| clones.is_some_and(|clone| only.contains(clone));
    tier == Profile::Strict || only.is_some_and(|only| !may_clone(only))
}

impl From<Tier> for Profile {
    fn from(tier: Tier) -> Self {
        match tier {
            Tier::Default => Self::Default,
            Tier::Strict => Self::Strict,
        }
    }
}

/// Makes a learned profile of names.
///
/// # Errors
/// [`SeccompError`] where the tier does not compile.
pub(crate) fn read_profile(of: Tier, names: &[String]) -> Result<ProfileReading, SeccompError> {
    let tier = policy(of.into(), Arch::NATIVE)?;
    let mut calls = CallSet::default();
    let (mut not_allowed, mut unknown) = (Vec::new(), Vec::new());
    for name in names {
        match Arch::NATIVE.number(name) {
            None => unknown.push(name.clone()),
            Some(number) if tier.may_allow(number) && calls.insert(number) => {}
            Some(_) => not_allowed.push(name.clone()),
        }
    }
    let learned = Learned { of, calls };
    let size = Filter::of(Asked::Learned(learned))?.size();
    let tier = match of {
        Tier::Default => Asked::Default,
        Tier::Strict => Asked::Strict,
    };
    Ok(ProfileReading {
        learned,
        not_allowed,
        unknown,
        size,
        tier_size: Filter::of(tier)?.size(),
    })
}

impl Policy {
    /// Of this one only what `calls` holds, with the rules that it has here, and of `init` what is allowed here, too.
    /// What else is allowed here is refused by name.
    pub(super) fn only(&self, calls: &CallSet, init: &Self) -> Self {
        let narrowed = self.calls.iter().map(|(number, call)| {
            if calls.contains(*number) || !self.may_allow(*number) {
                return (*number, call.clone());
            }
            let allowed = match init.calls.get(number) {
                Some(init) => both(&call.allowed, &init.allowed),
                None => Vec::new(),
            };
            let call = CallPolicy {
                allowed,
                then: Verdict::Allow,
                otherwise: Verdict::Errno(constants::EPERM),
            };
            (*number, call)
        });
        Self {
            calls: narrowed.collect(),
            unnamed: self.unnamed,
        }
    }

    /// As [`Policy::asking`], for a policy that refuses most of what others allow. Calls that no rule names lie between those
    /// that are refused by name: as questions they are one range of numbers with them, and the filter is shorter by a third.
    /// They are not told of, and libraries make each of them once.
    fn asking_about_the_unnamed_too(&self) -> Self {
        Self {
            unnamed: Verdict::Ask,
            ..self.asking()
        }
    }

    /// With a question about every call, except for one: the packet in which the sandbox hands over its listener, before
    /// which nobody answers. Every policy of a sandbox allows that packet.
    pub(super) fn observed(&self, sendmsg: Option<u32>) -> Self {
        let calls = sendmsg.map(|number| {
            let call = CallPolicy {
                allowed: vec![vec![Condition {
                    argument: 0,
                    width: Width::Bits32,
                    mask: u64::from(u32::MAX),
                    values: vec![u64::from(numbers::SETUP.cast_unsigned())],
                }]],
                then: Verdict::Allow,
                otherwise: Verdict::Ask,
            };
            (number, call)
        });
        Self {
            calls: calls.into_iter().collect(),
            unnamed: Verdict::Ask,
        }
    }
}

/// The rules that hold where one of each holds.
fn both(one: &[Vec<Condition>], other: &[Vec<Condition>]) -> Vec<Vec<Condition>> {
    let pairs = one
        .iter()
        .flat_map(|one| other.iter().map(move |other| (one, other)));
    pairs
        .map(|(one, other)| one.iter().chain(other).cloned().collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::reference::calls;

    const BOTH: [Arch; 2] = [Arch::X86_64, Arch::Aarch64];
    const TIERS: [Profile; 2] = [Profile::Default, Profile::Strict];

    /// Every call that a policy has a rule for, with the arguments that the rules tell apart.
    fn probes(arch: Arch, policy: &Policy) -> Vec<(u32, [u64; 6])> {
        let of = |(number, call): (&u32, &CallPolicy)| {
            let calls = calls(arch, *number, call).into_iter();
            calls.map(|call| (call.number, call.arguments))
        };
        policy.calls.iter().flat_map(of).collect()
    }

    #[test]
    fn a_part_of_a_tier_allows_nothing_that_the_tier_does_not() {
        for arch in BOTH {
            let init = policy(Profile::Always, arch).unwrap();
            for tier in TIERS {
                let tier = policy(tier, arch).unwrap();
                let mut some = CallSet::default();
                for number in (0..CallSet::NUMBERS).step_by(3) {
                    some.insert(number);
                }
                let part = tier.only(&some, &init);
                let (all, own) = (probes(arch, &tier), probes(arch, &init));
                for (number, arguments) in all.into_iter().chain(own) {
                    let (whole, part) = (
                        tier.answer(number, &arguments),
                        part.answer(number, &arguments),
                    );
                    if some.contains(number) || whole != Verdict::Allow {
                        let refused = Verdict::Errno(constants::EPERM);
                        assert!(part == whole || part == refused, "{number} {arguments:x?}");
                    }
                    let allowed =
                        some.contains(number) || init.answer(number, &arguments) == Verdict::Allow;
                    let both = whole == Verdict::Allow && allowed;
                    assert_eq!(part == Verdict::Allow, both, "{number} {arguments:x?}");
                }
            }
        }
    }

    #[test]
    fn every_tier_allows_what_init_needs() {
        for arch in BOTH {
            let init = policy(Profile::Always, arch).unwrap();
            for tier in TIERS {
                let tier = policy(tier, arch).unwrap();
                for (number, arguments) in probes(arch, &init) {
                    if init.answer(number, &arguments) == Verdict::Allow {
                        let answer = tier.answer(number, &arguments);
                        assert_eq!(answer, Verdict::Allow, "{number} {arguments:x?}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_observed_filter_asks_about_every_call_but_the_one_that_hands_it_over() {
        let tier = policy(Profile::Default, Arch::NATIVE).unwrap();
        let sendmsg = Arch::NATIVE.number("sendmsg");
        let observed = tier.observed(sendmsg);
        let setup = u64::from(numbers::SETUP.cast_unsigned());
        for number in 0..1024 {
            for arguments in [[0; 6], [setup; 6], [u64::MAX; 6]] {
                let hands_over = Some(number) == sendmsg && arguments == [setup; 6];
                let asks = observed.answer(number, &arguments) == Verdict::Ask;
                assert_eq!(asks, !hands_over, "{number}");
                assert!(!hands_over || tier.answer(number, &arguments) == Verdict::Allow);
            }
        }
    }
}
