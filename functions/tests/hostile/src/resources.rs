// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a function can use up. Every mode has an end of its own or waits to be killed; those that would harm a machine
//! without limits stop at a number.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::stdio::print;
use crate::{Mode, Outcome, number, sys};

pub(crate) const MODES: &[Mode] = &[
    ("spin", "", spin),
    ("sleep", "[MS]", sleep),
    ("burn", "MS", burn),
    ("memory", "[BYTES]", memory),
    ("touch", "BYTES", touch),
    ("recurse", "", recurse),
    ("exit", "CODE", exit),
    ("trap", "", trap),
    ("panic", "", panic),
    ("scratch-fill", "[BYTES_MAX]", scratch_fill),
    ("scratch-inodes", "[FILES_MAX]", scratch_inodes),
    ("threads", "[COUNT]", threads),
];

/// One step of the memory modes; a wasm page and a native one both divide it.
const STEP_BYTES: usize = 1024 * 1024;

/// More than any test allows a function, and less than would harm the machine.
const MEMORY_BYTES_DEFAULT: u64 = 1024 * 1024 * 1024;

/// Distance of the bytes that are written: the smallest page.
const PAGE_BYTES: usize = 4096;

fn spin(_: &[&str]) -> Outcome {
    let mut counter = 0_u64;
    loop {
        counter = black_box(counter.wrapping_add(1));
    }
}

fn sleep(arguments: &[&str]) -> Outcome {
    match number(arguments, 0, 0)? {
        0 => sys::sleep_for_ever(),
        milliseconds => std::thread::sleep(Duration::from_millis(milliseconds)),
    }
    print("slept\n");
    Ok(0)
}

/// Prints the CPU time of the whole process in microseconds; it passes MS by what one look at the clock costs.
fn burn(arguments: &[&str]) -> Outcome {
    let target = Duration::from_millis(number(arguments, 0, 100)?);
    let start = Instant::now();
    let used = loop {
        let used = cpu_time(start);
        if used >= target {
            break used;
        }
        for counter in 0..1000 {
            black_box(counter);
        }
    };
    print(&format!("{}\n", used.as_micros()));
    Ok(0)
}

#[cfg(target_os = "linux")]
fn cpu_time(_: Instant) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: clock_gettime(2) writes one timespec to where `time` is.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// WASI preview 1 hosts need not have a CPU clock: time passed stands for it.
#[cfg(not(target_os = "linux"))]
fn cpu_time(start: Instant) -> Duration {
    start.elapsed()
}

/// Holds what it took and waits, so that only a limit ends it.
fn memory(arguments: &[&str]) -> Outcome {
    let held = take(number(arguments, 0, MEMORY_BYTES_DEFAULT)? as usize);
    black_box(&held);
    sys::sleep_for_ever();
}

fn touch(arguments: &[&str]) -> Outcome {
    let bytes = number(arguments, 0, STEP_BYTES as u64)?;
    let held = take(bytes as usize);
    black_box(&held);
    print(&format!("touched {bytes}\n"));
    Ok(0)
}

fn take(bytes: usize) -> Vec<Vec<u8>> {
    let mut held = Vec::new();
    let mut taken = 0;
    while taken < bytes {
        let step = STEP_BYTES.min(bytes - taken);
        let mut block = vec![0; step];
        // Neither an allocation nor a page of zeros costs memory: every page is written, and not with zero.
        for index in (0..step).step_by(PAGE_BYTES) {
            block[index] = 0xA5;
        }
        held.push(black_box(block));
        taken += step;
    }
    held
}

fn recurse(_: &[&str]) -> Outcome {
    Ok((deeper(1) & 1) as u8)
}

#[expect(unconditional_recursion, reason = "it has to run out of stack")]
fn deeper(depth: u64) -> u64 {
    let frame = black_box([depth; 32]);
    deeper(depth + 1).wrapping_add(frame[7])
}

fn exit(arguments: &[&str]) -> Outcome {
    u8::try_from(number(arguments, 0, 1)?).map_err(|error| error.to_string())
}

/// `unreachable` in wasm, SIGABRT natively.
fn trap(_: &[&str]) -> Outcome {
    #[cfg(target_arch = "wasm32")]
    std::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    std::process::abort();
}

#[expect(clippy::panic, reason = "it is what the mode is for")]
fn panic(_: &[&str]) -> Outcome {
    panic!("as asked");
}

fn scratch() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from)
}

fn scratch_fill(arguments: &[&str]) -> Outcome {
    let limit = number(arguments, 0, 256 * 1024 * 1024)?;
    let path = scratch().join("hostile-fill");
    let block = vec![0xA5; 64 * 1024];
    let mut written = 0;
    let mut file = File::create(path).map_err(|error| error.to_string())?;
    let end = loop {
        if written >= limit {
            break "none".to_owned();
        }
        match file.write(&block) {
            Ok(count) => written += count as u64,
            Err(error) => break error.to_string(),
        }
    };
    print(&format!("wrote {written}, error: {end}\n"));
    Ok(0)
}

fn scratch_inodes(arguments: &[&str]) -> Outcome {
    let limit = number(arguments, 0, 100_000)?;
    let directory = scratch().join("hostile-inodes");
    fs::create_dir(&directory).map_err(|error| error.to_string())?;
    let mut made = 0;
    let end = loop {
        if made >= limit {
            break "none".to_owned();
        }
        match File::create(directory.join(made.to_string())) {
            Ok(_) => made += 1,
            Err(error) => break error.to_string(),
        }
    };
    print(&format!("made {made}, error: {end}\n"));
    Ok(0)
}

fn threads(arguments: &[&str]) -> Outcome {
    let limit = number(arguments, 0, 1000)?;
    let mut made = 0;
    let end = loop {
        if made >= limit {
            break "none".to_owned();
        }
        match std::thread::Builder::new()
            .stack_size(64 * 1024)
            .spawn(|| sys::sleep_for_ever())
        {
            Ok(_) => made += 1,
            Err(error) => break error.to_string(),
        }
    };
    print(&format!("made {made}, error: {end}\n"));
    Ok(0)
}
