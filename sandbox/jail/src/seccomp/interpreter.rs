// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A small interpreter of filters, for the tests: it runs those of either architecture on either.

use seccompiler::sock_filter;

use super::profile::Verdict;

/// A system call as the filter sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) number: u32,
    pub(super) arch: u32,
    pub(super) arguments: [u64; 6],
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
pub(super) fn run(program: &[sock_filter], call: &Call) -> Verdict {
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
        0x7fc0_0000 => Verdict::Ask,
        0x7ff0_0000 => Verdict::Defer,
        other => panic!("answer {other:#x}"),
    }
}
