// SPDX-License-Identifier: Apache-2.0 OR MIT
//! stdin → stdout with three system calls and nothing else: the least that a native function can do. What starting it
//! costs is the kernel's and Hearth's share alone.
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "a program without a C library makes its system calls itself"
)]

use core::arch::{asm, global_asm};
#[cfg(not(test))]
use core::panic::PanicInfo;

const BUFFER_BYTES: usize = 64 * 1024;

static mut BUFFER: [u8; BUFFER_BYTES] = [0; BUFFER_BYTES];

#[cfg(target_arch = "x86_64")]
mod number {
    pub(crate) const READ: usize = 0;
    pub(crate) const WRITE: usize = 1;
    pub(crate) const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub(crate) const READ: usize = 63;
    pub(crate) const WRITE: usize = 64;
    pub(crate) const EXIT_GROUP: usize = 94;
}

// The kernel jumps here with an aligned stack pointer; a call pushes the return address that compiled code expects.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "call {}", sym echo);

#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "bl {}", sym echo);

extern "C" fn echo() -> ! {
    let buffer = (&raw mut BUFFER).expose_provenance();
    loop {
        let filled = call(number::READ, 0, buffer, BUFFER_BYTES);
        if filled <= 0 {
            exit(filled != 0);
        }
        let mut written = 0;
        while written < filled {
            let rest = filled.wrapping_sub(written).cast_unsigned();
            let count = call(
                number::WRITE,
                1,
                buffer.wrapping_add(written.cast_unsigned()),
                rest,
            );
            if count <= 0 {
                exit(true);
            }
            written = written.wrapping_add(count);
        }
    }
}

fn exit(failed: bool) -> ! {
    loop {
        call(number::EXIT_GROUP, failed.into(), 0, 0);
    }
}

#[cfg(target_arch = "x86_64")]
fn call(number: usize, a: usize, b: usize, c: usize) -> isize {
    let answer;
    // SAFETY: of the three calls only read(2) writes memory, to the buffer, which is as large as it is told and which
    // no reference points into. The kernel keeps every register but rax, rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => answer, in("rdi") a, in("rsi") b, in("rdx") c,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    answer
}

#[cfg(target_arch = "aarch64")]
fn call(number: usize, a: usize, b: usize, c: usize) -> isize {
    let answer;
    // SAFETY: of the three calls only read(2) writes memory, to the buffer, which is as large as it is told and which
    // no reference points into. The kernel keeps every register but x0.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => answer, in("x1") b, in("x2") c, options(nostack));
    }
    answer
}

#[cfg(not(test))] // clippy --all-targets looks at a test build, which has std's
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    exit(true)
}
