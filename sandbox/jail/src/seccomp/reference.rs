// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The tree held against seccompiler, for both architectures: the same policy as a stack of its filters, one per outcome,
//! and a small interpreter that asks both. They must agree on every call's number, every argument value of every rule, and every
//! value that differs from one of those in a single bit.
//!
//! Of several filters the kernel takes the gravest answer, and of several errnos the last installed one: so the stack is
//! what is allowed first, then one filter per errno, then what kills.

use std::collections::{BTreeMap, BTreeSet};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::arch::Arch;
use super::assembler::assemble;
use super::interpreter::{Call, run};
use super::profile::{CallPolicy, Condition, Policy, UNNAMED, Verdict, Width};
use super::{Profile, policy};

/// What the kernel makes of several filters' answers.
fn run_stack(stack: &[BpfProgram], call: &Call) -> Verdict {
    let gravity = |verdict: &Verdict| match verdict {
        Verdict::Allow => 0,
        Verdict::Defer => 1,
        Verdict::Ask => 2,
        Verdict::Errno(_) => 3,
        Verdict::Kill => 4,
    };
    let answers = stack.iter().map(|program| run(program, call));
    answers.max_by_key(gravity).unwrap()
}

/// The policy as seccompiler expresses it.
fn stack(policy: &Policy, arch: Arch) -> Vec<BpfProgram> {
    let filter = |rules, mismatch, matched| filter(rules, mismatch, matched, arch);
    let policy = &policy.calls;
    let allowed = policy.iter().filter(|(_, call)| !call.allowed.is_empty());
    let allowed = allowed.map(|(number, call)| (i64::from(*number), expanded(call)));
    let mut stack = vec![filter(
        allowed.collect(),
        SeccompAction::Errno(u32::from(super::constants::ENOSYS)),
        SeccompAction::Allow,
    )];
    let outcomes: BTreeSet<Verdict> = policy.values().map(|call| call.otherwise).collect();
    for outcome in outcomes.into_iter().filter(|outcome| *outcome != UNNAMED) {
        let refused = policy.iter().filter(|(_, call)| call.otherwise == outcome);
        let refused = refused.map(|(number, call)| (i64::from(*number), complement(call)));
        let action = match outcome {
            Verdict::Errno(errno) => SeccompAction::Errno(u32::from(errno)),
            Verdict::Kill => SeccompAction::KillProcess,
            Verdict::Allow | Verdict::Ask | Verdict::Defer => panic!("no profile's refusal"),
        };
        stack.push(filter(refused.collect(), SeccompAction::Allow, action));
    }
    stack
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    mismatch: SeccompAction,
    matched: SeccompAction,
    arch: Arch,
) -> BpfProgram {
    let arch = TargetArch::try_from(arch.name()).unwrap();
    let filter = SeccompFilter::new(rules, mismatch, matched, arch).unwrap();
    filter.try_into().unwrap()
}

/// One comparison with one value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Single {
    argument: u8,
    width: Width,
    mask: u64,
    value: u64,
}

impl Single {
    fn all_bits(&self) -> u64 {
        match self.width {
            Width::Bits32 => u64::from(u32::MAX),
            Width::Bits64 => u64::MAX,
        }
    }

    fn is_met_by(&self, call: &Call) -> bool {
        call.arguments[usize::from(self.argument)] & self.mask == self.value
    }

    fn condition(&self, op: SeccompCmpOp) -> SeccompCondition {
        let width = match self.width {
            Width::Bits32 => SeccompCmpArgLen::Dword,
            Width::Bits64 => SeccompCmpArgLen::Qword,
        };
        SeccompCondition::new(self.argument, width, op, self.value).unwrap()
    }

    fn holds(&self) -> SeccompCondition {
        if self.mask == self.all_bits() {
            self.condition(SeccompCmpOp::Eq)
        } else {
            self.condition(SeccompCmpOp::MaskedEq(self.mask))
        }
    }

    /// What can be said of a call where this does not hold, one of which is then true: seccompiler has no "masked and not
    /// equal", so it is said bit by bit.
    fn fails(&self) -> Vec<Piece> {
        if self.mask == self.all_bits() {
            return vec![Piece::Differs(self.clone())];
        }
        let bits = (0..64)
            .map(|bit| 1_u64 << bit)
            .filter(|bit| self.mask & bit != 0);
        bits.map(|bit| {
            Piece::Bit(Self {
                mask: bit,
                value: !self.value & bit,
                ..self.clone()
            })
        })
        .collect()
    }
}

/// A part of a complement.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Piece {
    Differs(Single),
    Bit(Single),
}

impl Piece {
    fn condition(&self) -> SeccompCondition {
        match self {
            Self::Differs(single) => single.condition(SeccompCmpOp::Ne),
            Self::Bit(single) => single.condition(SeccompCmpOp::MaskedEq(single.mask)),
        }
    }

    /// Whether both ask for different values of the same bit.
    fn contradicts(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bit(one), Self::Bit(two)) => {
                one.argument == two.argument && one.mask == two.mask && one.value != two.value
            }
            _ => false,
        }
    }
}

/// Every rule with each of its lists of values spelt out.
fn spelt_out(call: &CallPolicy) -> Vec<Vec<Single>> {
    let mut all = Vec::new();
    for rule in &call.allowed {
        let mut combinations: Vec<Vec<Single>> = vec![Vec::new()];
        for Condition {
            argument,
            width,
            mask,
            values,
        } in rule
        {
            combinations = product(&combinations, values, |value| Single {
                argument: *argument,
                width: *width,
                mask: *mask,
                value: *value,
            });
        }
        all.extend(combinations);
    }
    all
}

fn product<A: Clone, B>(left: &[Vec<A>], right: &[B], with: impl Fn(&B) -> A) -> Vec<Vec<A>> {
    let extended = left.iter().flat_map(|list| {
        right.iter().map(|item| {
            let mut list = list.clone();
            list.push(with(item));
            list
        })
    });
    extended.collect()
}

fn expanded(call: &CallPolicy) -> Vec<SeccompRule> {
    let rules = spelt_out(call);
    if rules.iter().any(Vec::is_empty) {
        return Vec::new();
    }
    let rules = rules
        .iter()
        .map(|rule| rule.iter().map(Single::holds).collect());
    rules.map(|rule| SeccompRule::new(rule).unwrap()).collect()
}

/// Rules that match exactly where none of the call's own does: of each of its rules, one comparison must fail. What can
/// never be true, or only where a shorter rule is true too, is dropped as it arises.
fn complement(call: &CallPolicy) -> Vec<SeccompRule> {
    let mut combinations = BTreeSet::from([BTreeSet::new()]);
    for rule in spelt_out(call) {
        let failing: Vec<Piece> = rule.iter().flat_map(Single::fails).collect();
        let mut extended = BTreeSet::new();
        for (pieces, piece) in pairs(&combinations, &failing) {
            if !pieces.iter().any(|other| piece.contradicts(other)) {
                let mut pieces = pieces.clone();
                pieces.insert(piece.clone());
                extended.insert(pieces);
            }
        }
        let shorter = |longer: &BTreeSet<Piece>| {
            let mut others = extended.iter();
            others.any(|other| other != longer && other.is_subset(longer))
        };
        combinations = extended
            .iter()
            .filter(|pieces| !shorter(pieces))
            .cloned()
            .collect();
    }
    if combinations.iter().all(BTreeSet::is_empty) {
        return Vec::new();
    }
    let rules = combinations
        .iter()
        .map(|pieces| pieces.iter().map(Piece::condition).collect());
    rules.map(|rule| SeccompRule::new(rule).unwrap()).collect()
}

fn pairs<'a, A, B>(left: &'a BTreeSet<A>, right: &'a [B]) -> impl Iterator<Item = (&'a A, &'a B)> {
    left.iter()
        .flat_map(move |a| right.iter().map(move |b| (a, b)))
}

/// Values worth asking about where a rule looks for one.
fn interesting(single: &Single) -> BTreeSet<u64> {
    let Single { value, mask, .. } = single;
    let bits = (0..64).map(|bit| value ^ (1 << bit));
    bits.chain([0, u64::MAX, *value, !value, *mask, !mask])
        .collect()
}

/// Calls worth asking about: what each rule allows, and that with each argument changed that it looks at.
pub(super) fn calls(arch: Arch, number: u32, policy: &CallPolicy) -> Vec<Call> {
    let plain = |argument| Call {
        number,
        arch: arch.audit(),
        arguments: [argument; 6],
    };
    let mut calls = vec![plain(0), plain(u64::MAX)];
    for rule in spelt_out(policy) {
        let with = |call: &Call, single: &Single, value| {
            let mut call = *call;
            call.arguments[usize::from(single.argument)] = value;
            call
        };
        let allowed = rule
            .iter()
            .fold(plain(0), |call, single| with(&call, single, single.value));
        calls.push(allowed);
        for single in &rule {
            let values = interesting(single).into_iter();
            calls.extend(values.map(|value| with(&allowed, single, value)));
        }
    }
    calls
}

/// Every combination of profile and architecture.
fn all() -> impl Iterator<Item = (Profile, Arch, Policy)> {
    let both = [Arch::X86_64, Arch::Aarch64];
    Profile::ALL
        .into_iter()
        .flat_map(move |profile| both.map(|arch| (profile, arch, policy(profile, arch).unwrap())))
}

/// Those whose every outcome seccompiler can express: an overlay's is not among them, because its filters cannot allow
/// both what they match and what they do not.
fn expressible() -> impl Iterator<Item = (Profile, Arch, Policy)> {
    all().filter_map(|(profile, arch, mut policy)| {
        // A complement of that many alternatives is too large a filter; the tree is held against the policy itself.
        // And what is deferred to another filter is nothing of its own.
        let own = |call: &CallPolicy| call.otherwise != Verdict::Defer;
        policy
            .calls
            .retain(|_, call| call.allowed.len() <= ALTERNATIVES_MAX && own(call));
        (profile != Profile::Alone).then_some((profile, arch, policy))
    })
}

const ALTERNATIVES_MAX: usize = 2;

fn agree(arch: Arch, tree: &[sock_filter], stack: &[BpfProgram], call: &Call) {
    let (tree, stack) = (run(tree, call), run_stack(stack, call));
    assert_eq!(
        tree,
        stack,
        "{arch:?}: {:?} {call:x?}",
        arch.call_name(call.number)
    );
}

#[test]
fn the_tree_answers_as_seccompiler_does_for_every_number_and_every_architecture() {
    for (_, arch, policy) in expressible() {
        let tree = assemble(&policy, arch).unwrap();
        let stack = stack(&policy, arch);
        let x32 = (0..1024).map(|number| 0x4000_0000 + number);
        let numbers = (0..1024)
            .chain(x32)
            .chain([0x3fff_ffff, 0x8000_0000, u32::MAX]);
        for number in numbers {
            for audit in [
                arch.audit(),
                0xc000_003e,
                0xc000_00b7,
                0x4000_0003,
                0x4000_0028,
                0,
            ] {
                for argument in [0, 1, u64::MAX] {
                    let call = Call {
                        number,
                        arch: audit,
                        arguments: [argument; 6],
                    };
                    agree(arch, &tree, &stack, &call);
                }
            }
        }
    }
}

#[test]
fn the_tree_answers_as_seccompiler_does_for_every_rule_and_every_changed_bit() {
    for (_, arch, policy) in expressible() {
        let tree = assemble(&policy, arch).unwrap();
        let stack = stack(&policy, arch);
        for (number, call) in &policy.calls {
            for call in calls(arch, *number, call) {
                agree(arch, &tree, &stack, &call);
            }
        }
    }
}

#[test]
fn every_form_of_every_profile_answers_as_its_policy_says() {
    for (_, arch, policy) in all() {
        for policy in [policy.clone(), policy.asking()] {
            let tree = assemble(&policy, arch).unwrap();
            let named = policy.calls.iter();
            let calls = named.flat_map(|(number, call)| calls(arch, *number, call));
            for call in calls {
                let expected = policy.answer(call.number, &call.arguments);
                assert_eq!(run(&tree, &call), expected, "{arch:?} {call:x?}");
            }
        }
    }
}

#[test]
fn what_a_rule_allows_is_allowed_and_each_changed_argument_is_not() {
    for (_, arch, policy) in all() {
        let tree = assemble(&policy, arch).unwrap();
        for (number, policy) in &policy.calls {
            for rule in spelt_out(policy) {
                let mut call = Call {
                    number: *number,
                    arch: arch.audit(),
                    arguments: [0; 6],
                };
                for single in &rule {
                    call.arguments[usize::from(single.argument)] = single.value;
                }
                assert_eq!(run(&tree, &call), Verdict::Allow, "{call:x?}");
                for (single, bit) in rule.iter().flat_map(bits_of) {
                    let mut changed = call;
                    changed.arguments[usize::from(single.argument)] ^= bit;
                    let is_another_rule = spelt_out(policy)
                        .iter()
                        .any(|rule| rule.iter().all(|single| single.is_met_by(&changed)));
                    let expected = if is_another_rule {
                        Verdict::Allow
                    } else {
                        policy.otherwise
                    };
                    let answer = run(&tree, &changed);
                    assert_eq!(
                        answer,
                        expected,
                        "{:?} {changed:x?}",
                        arch.call_name(*number)
                    );
                }
            }
        }
    }
}

fn bits_of(single: &Single) -> impl Iterator<Item = (&Single, u64)> {
    let bits = (0..64).map(|bit| 1_u64 << bit);
    bits.filter(|bit| single.mask & bit != 0)
        .map(move |bit| (single, bit))
}

#[test]
fn unknown_numbers_and_x32_look_like_an_older_kernel_and_foreign_architectures_die() {
    for (_, arch, policy) in all() {
        let tree = assemble(&policy, arch).unwrap();
        let answer = |number, arch| {
            let arguments = [0; 6];
            run(
                &tree,
                &Call {
                    number,
                    arch,
                    arguments,
                },
            )
        };
        for number in 500..1024 {
            assert_eq!(answer(number, arch.audit()), policy.unnamed);
        }
        for number in [0x4000_0000, 0x4000_0001, u32::MAX] {
            assert_eq!(answer(number, arch.audit()), UNNAMED);
        }
        // AUDIT_ARCH_I386: what `int 0x80` gives.
        assert_eq!(answer(1, 0x4000_0003), Verdict::Kill);
    }
}

#[test]
fn every_filter_is_small_enough_to_install_quickly() {
    // A tree of 460 instructions was measured at 172 µs; the search itself must stay shallow.
    for (profile, arch, policy) in all() {
        let length = assemble(&policy.asking(), arch).unwrap().len();
        println!("{profile}, {}: {length} instructions", arch.name());
        assert!(length <= 600);
    }
}

#[test]
fn a_policy_without_rules_refuses_everything() {
    let policy = Policy {
        calls: BTreeMap::new(),
        unnamed: UNNAMED,
    };
    let tree = assemble(&policy, Arch::NATIVE).unwrap();
    let call = Call {
        number: 1,
        arch: Arch::NATIVE.audit(),
        arguments: [0; 6],
    };
    assert_eq!(run(&tree, &call), UNNAMED);
}
