// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a WASI preview 1 command can attempt beyond what it shares with native programs: growing without touching,
//! descriptors that nobody gave it, and host calls that ask the host for much. Each prints what it got.

use std::collections::BTreeMap;
use std::hint::black_box;

use crate::json::Json;
use crate::stdio::print;
use crate::{Mode, Outcome, number};

pub(crate) const MODES: &[Mode] = &[
    ("reserve", "", reserve),
    ("kernel-objects", "", descriptors),
    ("result-channel", "", result_channel),
    ("sync-loop", "[COUNT]", sync_loop),
    ("subscribe-much", "[COUNT]", subscribe_much),
    ("draw-much", "[BYTES]", draw_much),
    ("draw", "", draw),
    ("write-much", "[VECTORS]", write_much),
    ("secret-trap", "", secret_trap),
];

// Of preview 1, by hand: each returns an errno.
#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    safe fn fd_sync(fd: u32) -> u32;
    safe fn fd_datasync(fd: u32) -> u32;
    safe fn fd_renumber(from: u32, to: u32) -> u32;
    safe fn fd_allocate(fd: u32, offset: u64, length: u64) -> u32;
    safe fn sock_shutdown(fd: u32, how: u32) -> u32;
    fn sock_accept(fd: u32, flags: u32, accepted: *mut u32) -> u32;
    fn sock_send(fd: u32, data: *const Vector, count: usize, flags: u32, sent: *mut u32) -> u32;
    fn fd_write(fd: u32, data: *const Vector, count: usize, written: *mut u32) -> u32;
    fn path_open(
        fd: u32,
        lookup: u32,
        path: *const u8,
        length: usize,
        how: u32,
        rights: u64,
        inherited: u64,
        flags: u32,
        opened: *mut u32,
    ) -> u32;
    fn random_get(buffer: *mut u8, length: usize) -> u32;
    fn poll_oneoff(
        wanted: *const Subscription,
        happened: *mut [u64; 4],
        count: usize,
        filled: *mut u32,
    ) -> u32;
}

/// `ciovec` of preview 1.
#[repr(C)]
#[derive(Clone, Copy)]
struct Vector {
    data: *const u8,
    length: usize,
}

/// `subscription` of preview 1 on a clock: identity, kind (0), clock, time in nanoseconds, precision, flags.
type Subscription = [u64; 6];

const PATHS: [&str; 6] = ["/", ".", "..", "../../etc/passwd", "/etc/passwd", "x/"];

/// All that preview 1 knows; the host takes more for a malformed call.
const RIGHTS: u64 = (1 << 30) - 1;

/// Beyond any descriptor that a host might have.
const DESCRIPTORS: u32 = 4096;

/// The first descriptor that a module is not given.
const UNGIVEN: u32 = 3;

fn reserve(_: &[&str]) -> Outcome {
    const PAGES: [usize; 5] = [65_535, 16_384, 4096, 256, 16];
    let granted = PAGES.map(|pages| {
        let mut times = 0_i64;
        while core::arch::wasm32::memory_grow(0, pages) != usize::MAX {
            times += 1;
        }
        (pages.to_string(), Json::Number(times))
    });
    print(&format!("{}\n", Json::object(granted)));
    Ok(0)
}

/// How often each answer came.
fn print_counts(counts: BTreeMap<String, i64>) {
    let members = counts
        .into_iter()
        .map(|(answer, count)| (answer, Json::Number(count)));
    print(&format!("{}\n", Json::object(members)));
}

/// Every way to get one more descriptor, on every descriptor.
fn descriptors(_: &[&str]) -> Outcome {
    let mut counts = BTreeMap::new();
    let mut count = |call: &str, errno: u32| {
        *counts.entry(format!("{call}: {errno}")).or_insert(0) += 1;
    };
    for fd in 0..DESCRIPTORS {
        let mut new = 0;
        for path in PATHS {
            let (start, length) = (path.as_ptr(), path.len());
            // SAFETY: the host reads `length` bytes from `start`, and writes one descriptor to where `new` is.
            let answer =
                unsafe { path_open(fd, 1, start, length, 0, RIGHTS, RIGHTS, 0, &raw mut new) };
            count("open", answer);
        }
        // SAFETY: the host writes one descriptor to where `new` is.
        count("accept", unsafe { sock_accept(fd, 0, &raw mut new) });
        count("allocate", fd_allocate(fd, 0, 1 << 40));
        if UNGIVEN <= fd {
            count("renumber", fd_renumber(fd, 0));
            count("renumber", fd_renumber(2, fd));
        }
    }
    print_counts(counts);
    Ok(0)
}

/// Whatever else might lead to who takes the answer.
fn result_channel(_: &[&str]) -> Outcome {
    let forged = b"\0\0\0\0forged";
    let data = Vector {
        data: forged.as_ptr(),
        length: forged.len(),
    };
    let mut counts = BTreeMap::new();
    let mut count = |call: &str, errno: u32| {
        *counts.entry(format!("{call}: {errno}")).or_insert(0) += 1;
    };
    for fd in 0..DESCRIPTORS {
        let mut sent = 0;
        // SAFETY: the host reads one vector and what it points to, and writes one number to where `sent` is.
        let answer = unsafe { sock_send(fd, &raw const data, 1, 0, &raw mut sent) };
        count("send", answer);
        count("shutdown", sock_shutdown(fd, 3));
        if UNGIVEN <= fd {
            // SAFETY: as above.
            let answer = unsafe { fd_write(fd, &raw const data, 1, &raw mut sent) };
            count("write", answer);
        }
    }
    print_counts(counts);
    Ok(0)
}

fn sync_loop(arguments: &[&str]) -> Outcome {
    let mut counts = BTreeMap::new();
    for _ in 0..number(arguments, 0, 10_000)? {
        for fd in 0..=UNGIVEN {
            for (call, errno) in [("sync", fd_sync(fd)), ("datasync", fd_datasync(fd))] {
                *counts.entry(format!("{call}: {errno}")).or_insert(0) += 1;
            }
        }
    }
    print_counts(counts);
    Ok(0)
}

fn subscribe_much(arguments: &[&str]) -> Outcome {
    let count = number(arguments, 0, 400_000)? as usize;
    let wanted: Vec<Subscription> = vec![[0, 0, 1, 1, 0, 0]; count];
    let mut happened = vec![[0_u64; 4]; count];
    let mut filled = 0;
    // SAFETY: both lists have `count` members, and the host writes one number to where `filled` is.
    let errno = unsafe {
        poll_oneoff(
            wanted.as_ptr(),
            happened.as_mut_ptr(),
            count,
            &raw mut filled,
        )
    };
    print(&format!("errno {errno}, {filled} of {count}\n"));
    Ok(u8::from(errno != 0))
}

fn draw_much(arguments: &[&str]) -> Outcome {
    let mut buffer = vec![0_u8; number(arguments, 0, 32 << 20)? as usize];
    // SAFETY: the host writes `buffer.len()` bytes to where `buffer` is.
    let errno = unsafe { random_get(buffer.as_mut_ptr(), buffer.len()) };
    print(&format!("errno {errno}\n"));
    Ok(u8::from(errno != 0))
}

/// 32 bytes that nobody else may have.
fn draw(_: &[&str]) -> Outcome {
    let mut buffer = [0_u8; 32];
    // SAFETY: the host writes `buffer.len()` bytes to where `buffer` is.
    let errno = unsafe { random_get(buffer.as_mut_ptr(), buffer.len()) };
    let digits: String = buffer.iter().map(|byte| format!("{byte:02x}")).collect();
    print(&format!("{digits}\n"));
    Ok(u8::from(errno != 0))
}

/// Most of the vectors are empty: what they cost is looking at them.
fn write_much(arguments: &[&str]) -> Outcome {
    let count = number(arguments, 0, 1_000_000)? as usize;
    let byte = b'.';
    let mut data = vec![
        Vector {
            data: &raw const byte,
            length: 0
        };
        count
    ];
    if let Some(first) = data.first_mut() {
        first.length = 1;
    }
    let mut written = 0;
    // SAFETY: the list has `count` members, each of which points to as many bytes as it says, and the host writes one
    // number to where `written` is.
    let errno = unsafe { fd_write(1, data.as_ptr(), count, &raw mut written) };
    print(&format!(" errno {errno}, wrote {written}\n"));
    Ok(u8::from(errno != 0))
}

/// Ends in a trap while a secret is in memory, in variables and on the stack.
fn secret_trap(_: &[&str]) -> Outcome {
    let held: Vec<String> = (0..64)
        .map(|index| format!("held-secret-{index}"))
        .collect();
    let on_stack = *b"held-secret-on-the-stack";
    black_box((&held, &on_stack));
    core::arch::wasm32::unreachable();
}
