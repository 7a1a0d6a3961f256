// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The tree held against seccompiler: the same policy as a stack of its filters, one per outcome, and a small
//! interpreter that asks both. They must agree on every call's number, every argument value of every rule, and every
//! value that differs from one of those in a single bit.
//!
//! Of several filters the kernel takes the gravest answer, and of several errnos the last installed one: so the stack is
//! what is allowed first, then one filter per errno, then what kills.

use std::collections::{BTreeMap, BTreeSet};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::assembler::{NATIVE_ARCH, assemble};
use super::profile::{CallPolicy, Condition, Policy, UNNAMED, Verdict, Width, load};
use super::{Profile, compile, name_of};

/// A system call as the filter sees it.
#[derive(Debug, Clone, Copy)]
struct Call {
    number: u32,
    arch: u32,
    arguments: [u64; 6],
}

impl Call {
    /// The 32 bits at an offset of struct seccomp_data.
    fn word(&self, offset: u32) -> u32 {
        let (index, is_high) = match offset {
            0 => return self.number,
            4 => return self.arch,
            16.. => ((offset - 16) / 8, (offset - 16) % 8 == 4),
            other => panic!("load from {other}"),
        };
        let argument = self.arguments[usize::try_from(index).unwrap()];
        let half = if is_high {
            argument >> 32
        } else {
            argument & 0xffff_ffff
        };
        u32::try_from(half).unwrap()
    }
}

/// Runs a filter, as net/core/filter.c does, for the instructions that seccomp filters consist of.
fn run(program: &[sock_filter], call: &Call) -> Verdict {
    let mut accumulator = 0_u32;
    let mut at = 0;
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let jump = |condition: bool| usize::from(if condition { jt } else { jf });
        match code {
            0x20 => accumulator = call.word(k),
            0x54 => accumulator &= k,
            0x05 => at += usize::try_from(k).unwrap(),
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            0x45 => at += jump(accumulator & k != 0),
            0x06 => return verdict(k),
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn verdict(answer: u32) -> Verdict {
    match answer & 0xffff_0000 {
        0x7fff_0000 => Verdict::Allow,
        0x0005_0000 => Verdict::Errno(u16::try_from(answer & 0xffff).unwrap()),
        0x8000_0000 => Verdict::Kill,
        other => panic!("answer {other:#x}"),
    }
}

/// What the kernel makes of several filters' answers.
fn run_stack(stack: &[BpfProgram], call: &Call) -> Verdict {
    let gravity = |verdict: &Verdict| match verdict {
        Verdict::Allow => 0,
        Verdict::Errno(_) => 1,
        Verdict::Kill => 2,
    };
    let answers = stack.iter().map(|program| run(program, call));
    answers.max_by_key(gravity).unwrap()
}

/// The policy as seccompiler expresses it.
fn stack(policy: &Policy) -> Vec<BpfProgram> {
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
            Verdict::Allow => panic!("a call that is allowed otherwise"),
        };
        stack.push(filter(refused.collect(), SeccompAction::Allow, action));
    }
    stack
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    mismatch: SeccompAction,
    matched: SeccompAction,
) -> BpfProgram {
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
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

/// Values worth asking about for each argument that a call's rules look at.
fn interesting(call: &CallPolicy) -> BTreeMap<u8, BTreeSet<u64>> {
    let mut values: BTreeMap<u8, BTreeSet<u64>> = BTreeMap::new();
    for single in spelt_out(call).into_iter().flatten() {
        let of_argument = values.entry(single.argument).or_default();
        of_argument.extend([
            0,
            u64::MAX,
            single.value,
            !single.value,
            !single.mask,
            single.mask,
        ]);
        of_argument.extend((0..64).map(|bit| single.value ^ (1 << bit)));
    }
    values
}

fn calls(number: u32, policy: &CallPolicy) -> Vec<Call> {
    let start = Call {
        number,
        arch: NATIVE_ARCH,
        arguments: [0; 6],
    };
    let mut calls = vec![
        start,
        Call {
            arguments: [u64::MAX; 6],
            ..start
        },
    ];
    for (argument, values) in interesting(policy) {
        let with = |call: &Call, value: u64| {
            let mut call = *call;
            call.arguments[usize::from(argument)] = value;
            call
        };
        let extended = calls
            .iter()
            .flat_map(|call| values.iter().map(|value| with(call, *value)));
        calls = extended.collect();
    }
    calls
}

fn agree(profile: Profile, tree: &[sock_filter], stack: &[BpfProgram], call: &Call) {
    let (tree, stack) = (run(tree, call), run_stack(stack, call));
    assert_eq!(
        tree,
        stack,
        "{profile}: {:?} {call:x?}",
        name_of(call.number)
    );
}

#[test]
fn the_tree_answers_as_seccompiler_does_for_every_number_and_every_architecture() {
    for profile in Profile::ALL {
        let program = compile(profile).unwrap();
        let stack = stack(&load(profile.name()).unwrap());
        let x32 = (0..1024).map(|number| 0x4000_0000 + number);
        let numbers = (0..1024)
            .chain(x32)
            .chain([0x3fff_ffff, 0x8000_0000, u32::MAX]);
        for number in numbers {
            for arch in [
                NATIVE_ARCH,
                0xc000_003e,
                0xc000_00b7,
                0x4000_0003,
                0x4000_0028,
                0,
            ] {
                for argument in [0, 1, u64::MAX] {
                    let call = Call {
                        number,
                        arch,
                        arguments: [argument; 6],
                    };
                    agree(profile, program.instructions(), &stack, &call);
                }
            }
        }
    }
}

#[test]
fn the_tree_answers_as_seccompiler_does_for_every_rule_and_every_changed_bit() {
    for profile in Profile::ALL {
        let policy = load(profile.name()).unwrap();
        let program = compile(profile).unwrap();
        let stack = stack(&policy);
        for (number, call) in &policy {
            for call in calls(*number, call) {
                agree(profile, program.instructions(), &stack, &call);
            }
        }
    }
}

#[test]
fn what_a_rule_allows_is_allowed_and_each_changed_argument_is_not() {
    for profile in Profile::ALL {
        let program = compile(profile).unwrap();
        for (number, policy) in load(profile.name()).unwrap() {
            for rule in spelt_out(&policy) {
                let mut call = Call {
                    number,
                    arch: NATIVE_ARCH,
                    arguments: [0; 6],
                };
                for single in &rule {
                    call.arguments[usize::from(single.argument)] = single.value;
                }
                assert_eq!(
                    run(program.instructions(), &call),
                    Verdict::Allow,
                    "{call:x?}"
                );
                for (single, bit) in rule.iter().flat_map(bits_of) {
                    let mut changed = call;
                    changed.arguments[usize::from(single.argument)] ^= bit;
                    let is_another_rule = spelt_out(&policy)
                        .iter()
                        .any(|rule| rule.iter().all(|single| single.is_met_by(&changed)));
                    let expected = if is_another_rule {
                        Verdict::Allow
                    } else {
                        policy.otherwise
                    };
                    let answer = run(program.instructions(), &changed);
                    assert_eq!(answer, expected, "{:?} {changed:x?}", name_of(number));
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
    for profile in Profile::ALL {
        let program = compile(profile).unwrap();
        let answer = |number, arch| {
            run(
                program.instructions(),
                &Call {
                    number,
                    arch,
                    arguments: [0; 6],
                },
            )
        };
        for number in (500..1024).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
            assert_eq!(answer(number, NATIVE_ARCH), UNNAMED);
        }
        // AUDIT_ARCH_I386: what `int 0x80` gives.
        assert_eq!(answer(1, 0x4000_0003), Verdict::Kill);
    }
}

#[test]
fn every_filter_is_small_enough_to_install_quickly() {
    // A tree of 460 instructions was measured at 172 µs; the search itself must stay shallow.
    for profile in Profile::ALL {
        let program = compile(profile).unwrap();
        println!("{profile}: {} instructions", program.instructions().len());
        assert!(program.instructions().len() <= 600);
    }
}

#[test]
fn a_policy_without_rules_refuses_everything() {
    let program = assemble(&Policy::new()).unwrap();
    let call = Call {
        number: 1,
        arch: NATIVE_ARCH,
        arguments: [0; 6],
    };
    assert_eq!(run(&program, &call), UNNAMED);
}
