// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What each system call's number means, and the forms in which that is put to the kernel.
//!
//! Three outcomes: allowed (perhaps only with certain arguments), an errno by name, or the end of the process. A call
//! that no rule names answers ENOSYS.

mod file;

use std::collections::BTreeMap;

use super::{SeccompError, arch::Arch, constants};

/// What the filter answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// The call happens.
    Allow,
    /// It fails with this errno and does not happen.
    Errno(u16),
    /// The process is killed by SIGSYS.
    Kill,
    /// It waits for the listener's answer. Without a listener it fails with ENOSYS.
    Ask,
    /// As an earlier filter has it that asks; where none does it fails with ENOSYS, because nobody traces.
    Defer,
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

impl Condition {
    fn holds(&self, arguments: &[u64; 6]) -> bool {
        // The mask of a comparison of 32 bits has no others.
        let argument = arguments.get(usize::from(self.argument));
        argument.is_some_and(|argument| self.values.contains(&(argument & self.mask)))
    }
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
    /// The call gets `then` where all conditions of any one of these hold; an empty inner list always holds.
    pub(super) allowed: Vec<Vec<Condition>>,
    /// [`Verdict::Allow`] in every profile's file.
    pub(super) then: Verdict,
    /// The answer where none holds.
    pub(super) otherwise: Verdict,
}

impl CallPolicy {
    fn refused(with: Verdict) -> Self {
        Self {
            allowed: Vec::new(),
            then: Verdict::Allow,
            otherwise: with,
        }
    }

    fn answer(&self, arguments: &[u64; 6]) -> Verdict {
        let all = |rule: &Vec<Condition>| rule.iter().all(|condition| condition.holds(arguments));
        if self.allowed.iter().any(all) {
            self.then
        } else {
            self.otherwise
        }
    }
}

/// A whole profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    /// By number, ascending.
    pub(super) calls: BTreeMap<u32, CallPolicy>,
    /// The answer to all others.
    pub(super) unnamed: Verdict,
}

/// Reads a profile's file and what it includes.
pub(super) fn load(file: &str, arch: Arch) -> Result<Policy, SeccompError> {
    file::load(file, arch)
}

/// Whether a refusal is told of: programs that probe for an older kernel or another file system mean no harm.
pub(super) fn is_told(verdict: Verdict) -> bool {
    verdict == Verdict::Kill || verdict == Verdict::Errno(constants::EPERM)
}

impl Policy {
    /// What a call gets.
    pub(super) fn answer(&self, number: u32, arguments: &[u64; 6]) -> Verdict {
        let call = self.calls.get(&number);
        call.map_or(self.unnamed, |call| call.answer(arguments))
    }

    /// Whether the call is allowed with any arguments.
    pub(super) fn may_allow(&self, number: u32) -> bool {
        match self.calls.get(&number) {
            Some(call) => !call.allowed.is_empty() && call.then == Verdict::Allow,
            None => self.unnamed == Verdict::Allow,
        }
    }

    /// With a question to the listener where a refusal is told of.
    pub(super) fn asking(&self) -> Self {
        self.with_refusals(|_, verdict| {
            if is_told(verdict) {
                Verdict::Ask
            } else {
                verdict
            }
        })
    }

    /// For a filter above one of `base` that asks: leaves it the calls that it asks about whatever their arguments.
    pub(super) fn deferring_to(&self, base: &Self) -> Self {
        self.with_refusals(|number, verdict| {
            let asks = base
                .calls
                .get(&number)
                .is_some_and(|call| call.allowed.is_empty() && is_told(call.otherwise));
            if asks && is_told(verdict) {
                Verdict::Defer
            } else {
                verdict
            }
        })
    }

    fn with_refusals(&self, change: impl Fn(u32, Verdict) -> Verdict) -> Self {
        let changed = self.calls.iter().map(|(number, call)| {
            let mut call = call.clone();
            call.otherwise = change(*number, call.otherwise);
            (*number, call)
        });
        Self {
            calls: changed.collect(),
            unnamed: self.unnamed,
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::without_rule;
