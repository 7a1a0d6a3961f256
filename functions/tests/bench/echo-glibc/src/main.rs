// SPDX-License-Identifier: Apache-2.0 OR MIT
//! stdin → stdout as a static executable with the C library's start-up and nothing of Rust's: what a small C program
//! costs. The buffer is as large as a pipe, so that each pipeful is one read(2) and one write(2).
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "a program without std makes its system calls itself"
)]

use core::ffi::c_int;
#[cfg(not(test))]
use core::panic::PanicInfo;

const BUFFER_BYTES: usize = 64 * 1024;

static mut BUFFER: [u8; BUFFER_BYTES] = [0; BUFFER_BYTES];

/// Called by the C library.
// SAFETY: no other symbol of this name exists: there is no std and no other crate that defines one.
#[unsafe(no_mangle)]
extern "C" fn main() -> c_int {
    let buffer = (&raw mut BUFFER).cast::<u8>();
    loop {
        // SAFETY: read(2) writes at most BUFFER_BYTES bytes to `buffer`, which is as large; there is one thread.
        let filled = unsafe { libc::read(0, buffer.cast(), BUFFER_BYTES) };
        let Ok(filled) = usize::try_from(filled) else {
            return 1;
        };
        if filled == 0 {
            return 0;
        }
        let mut written = 0;
        while written < filled {
            // SAFETY: `written` is less than `filled`, which is at most BUFFER_BYTES.
            let start = unsafe { buffer.add(written) };
            // SAFETY: from `start` on there are `filled - written` bytes that read(2) has written.
            match usize::try_from(unsafe { libc::write(1, start.cast(), filled - written) }) {
                Ok(count) => written += count,
                Err(_) => return 1,
            }
        }
    }
}

#[cfg(not(test))] // clippy --all-targets looks at a test build, which has std's
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}
