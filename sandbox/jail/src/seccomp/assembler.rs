// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A small assembler: from a policy to BPF (Documentation/userspace-api/seccomp_filter.rst), as a binary search tree.
//!
//! The program is written from its end to its beginning. BPF jumps only forwards, so every target exists already when
//! the jump to it is written, and a verdict that is near enough is shared instead of written again.
//!
//! ```text
//! arch is native? no ─▶ kill
//! x32 number?    yes ─▶ ENOSYS
//! number ≥ m ?   …    search over the borders between ranges of numbers with the same answer
//!   ├─ one answer                     ─▶ return it
//!   └─ a call with argument rules     ─▶ compare ─▶ allow | its own errno
//! ```

use seccompiler::{BpfProgram, sock_filter};

use super::SeccompError;
use super::arch::Arch;
use super::profile::{CallPolicy, Condition, Policy, UNNAMED, Verdict, Width};

/// The most instructions the kernel takes (BPF_MAXINSNS).
const INSTRUCTIONS_MAX: usize = 4096;

/// A conditional jump's offset is eight bits wide. Two less, because up to two long jumps may be written between the
/// measuring and the jump itself.
const OFFSET_MAX: usize = 255 - 2;

// Instruction codes: uapi/linux/bpf_common.h.
const LD_W_ABS: u16 = 0x20;
const ALU_AND_K: u16 = 0x54;
const JMP_JA: u16 = 0x05;
const JMP_JEQ_K: u16 = 0x15;
const JMP_JGE_K: u16 = 0x35;
const RET_K: u16 = 0x06;

// Offsets in struct seccomp_data: uapi/linux/seccomp.h. Both supported architectures are little endian, so the lower
// half of an argument comes first.
const DATA_NUMBER: u32 = 0;
const DATA_ARCH: u32 = 4;
const DATA_ARGUMENTS: u32 = 16;
const DATA_ARGUMENT_SIZE: u32 = 8;
const DATA_HIGH_HALF: u32 = 4;

// Answers: uapi/linux/seccomp.h.
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const RET_TRACE: u32 = 0x7ff0_0000;

/// Numbers from here on are x32's on x86_64 (__X32_SYSCALL_BIT), and nothing's elsewhere: unnamed everywhere.
const X32_FIRST: u32 = 0x4000_0000;

/// The policy as one program.
pub(super) fn assemble(policy: &Policy, arch: Arch) -> Result<BpfProgram, SeccompError> {
    let mut code = Backwards::default();
    let ranges = ranges(policy);
    let search = code.search(&ranges);
    let unnamed = code.verdict(UNNAMED);
    code.jump_if(JMP_JGE_K, X32_FIRST, unnamed, search);
    code.load(DATA_NUMBER);
    let native = code.here();
    let kill = code.verdict(Verdict::Kill);
    code.jump_if(JMP_JEQ_K, arch.audit(), native, kill);
    code.load(DATA_ARCH);
    code.finish()
}

/// What a range of numbers leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaf<'a> {
    Answer(Verdict),
    Compare(&'a CallPolicy),
}

/// From this number on, up to the next range's.
struct Range<'a> {
    first: u32,
    leaf: Leaf<'a>,
}

/// Ascending, beginning at 0, without two neighbours that answer the same.
fn ranges(policy: &Policy) -> Vec<Range<'_>> {
    let mut ranges: Vec<Range<'_>> = Vec::new();
    let mut push = |first, leaf| match ranges.last() {
        Some(last) if last.leaf == leaf => {}
        Some(last) if last.first == first => {
            ranges.pop();
            ranges.push(Range { first, leaf });
        }
        _ => ranges.push(Range { first, leaf }),
    };
    let unnamed = Leaf::Answer(policy.unnamed);
    push(0, unnamed);
    for (number, call) in &policy.calls {
        push(*number, leaf_of(call));
        // Where the next number is named too, its own range replaces this one.
        push(number + 1, unnamed);
    }
    merged(ranges)
}

/// Joins neighbours with the same answer, which come about when a range between them was replaced.
fn merged(ranges: Vec<Range<'_>>) -> Vec<Range<'_>> {
    let mut kept: Vec<Range<'_>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        if kept.last().is_none_or(|last| last.leaf != range.leaf) {
            kept.push(range);
        }
    }
    kept
}

fn leaf_of(call: &CallPolicy) -> Leaf<'_> {
    match call.allowed.as_slice() {
        [] => Leaf::Answer(call.otherwise),
        rules if rules.iter().any(Vec::is_empty) => Leaf::Answer(call.then),
        _ => Leaf::Compare(call),
    }
}

/// Where an instruction is, counted from the program's end: stays the same while more is written before it.
#[derive(Clone, Copy)]
struct Place(usize);

/// The program so far, last instruction first.
#[derive(Default)]
struct Backwards {
    code: Vec<sock_filter>,
    /// Where each verdict was written last.
    verdicts: Vec<(Verdict, Place)>,
}

impl Backwards {
    /// The instruction written last, which will run first.
    fn here(&self) -> Place {
        Place(self.code.len() - 1)
    }

    /// How many instructions a jump written now would skip to reach `target`.
    fn distance(&self, target: Place) -> usize {
        self.code.len() - target.0 - 1
    }

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Place {
        self.code.push(sock_filter { code, jt, jf, k });
        self.here()
    }

    fn load(&mut self, offset: u32) -> Place {
        self.push(LD_W_ABS, 0, 0, offset)
    }

    /// A return of this verdict within reach of the next conditional jump.
    fn verdict(&mut self, verdict: Verdict) -> Place {
        let known = self.verdicts.iter().find(|(known, _)| *known == verdict);
        if let Some((_, place)) = known
            && self.distance(*place) <= OFFSET_MAX
        {
            return *place;
        }
        let answer = match verdict {
            Verdict::Allow => RET_ALLOW,
            Verdict::Errno(errno) => RET_ERRNO | u32::from(errno),
            Verdict::Kill => RET_KILL_PROCESS,
            Verdict::Ask => RET_USER_NOTIF,
            Verdict::Defer => RET_TRACE,
        };
        let place = self.push(RET_K, 0, 0, answer);
        self.verdicts.retain(|(known, _)| *known != verdict);
        self.verdicts.push((verdict, place));
        place
    }

    /// `target`, or a long jump to it where it is out of a conditional jump's reach.
    fn within_reach(&mut self, target: Place) -> Place {
        let distance = self.distance(target);
        if distance <= OFFSET_MAX {
            return target;
        }
        // The program's length is checked in `finish`; a distance beyond u32 cannot pass there.
        let skip = u32::try_from(distance).unwrap_or(u32::MAX);
        self.push(JMP_JA, 0, 0, skip)
    }

    fn jump_if(&mut self, code: u16, k: u32, then: Place, otherwise: Place) -> Place {
        let then = self.within_reach(then);
        let otherwise = self.within_reach(otherwise);
        let offset = |place| u8::try_from(self.distance(place)).unwrap_or(u8::MAX);
        let (jt, jf) = (offset(then), offset(otherwise));
        self.push(code, jt, jf, k)
    }

    /// The search over these ranges, by halves. Depth is the logarithm of their number: about eight.
    fn search(&mut self, ranges: &[Range<'_>]) -> Place {
        match ranges {
            [] => self.verdict(UNNAMED),
            [only] => match only.leaf {
                Leaf::Answer(verdict) => self.verdict(verdict),
                Leaf::Compare(call) => self.compare(call),
            },
            _ => {
                let (lower, upper) = ranges.split_at(ranges.len() / 2);
                let border = upper[0].first;
                let upper = self.search(upper);
                let lower = self.search(lower);
                self.jump_if(JMP_JGE_K, border, upper, lower)
            }
        }
    }

    fn compare(&mut self, call: &CallPolicy) -> Place {
        let mut next = self.verdict(call.otherwise);
        for rule in call.allowed.iter().rev() {
            let mut then = self.verdict(call.then);
            for condition in rule.iter().rev() {
                then = self.condition(condition, then, next);
            }
            next = then;
        }
        next
    }

    fn condition(&mut self, condition: &Condition, then: Place, otherwise: Place) -> Place {
        let mut next = otherwise;
        for value in condition.values.iter().rev() {
            next = self.equals(condition, *value, then, next);
        }
        next
    }

    /// Compares one argument with one value, the upper half first where it counts.
    fn equals(&mut self, is: &Condition, value: u64, then: Place, otherwise: Place) -> Place {
        let at = DATA_ARGUMENTS + u32::from(is.argument) * DATA_ARGUMENT_SIZE;
        let lower = self.half_equals(at, low(is.mask), low(value), then, otherwise);
        match is.width {
            Width::Bits32 => lower,
            Width::Bits64 => {
                let (mask, value) = (high(is.mask), high(value));
                self.half_equals(at + DATA_HIGH_HALF, mask, value, lower, otherwise)
            }
        }
    }

    fn half_equals(&mut self, at: u32, mask: u32, value: u32, yes: Place, no: Place) -> Place {
        if mask == 0 {
            // Nothing of this half counts, and the loader has checked that the value asks for nothing of it.
            return yes;
        }
        self.jump_if(JMP_JEQ_K, value, yes, no);
        if mask != u32::MAX {
            self.push(ALU_AND_K, 0, 0, mask);
        }
        self.load(at)
    }

    fn finish(mut self) -> Result<BpfProgram, SeccompError> {
        let instructions = self.code.len();
        if INSTRUCTIONS_MAX < instructions {
            return Err(SeccompError::TooLong { instructions });
        }
        self.code.reverse();
        Ok(self.code)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the lower half is what is wanted"
)]
fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}
