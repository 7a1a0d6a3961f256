// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How a native function's processes can refuse to end.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::thread;
use std::time::Duration;

use crate::stdio::print;
use crate::sys::{self, Errno, Fork, call, exit_now, verdict};
use crate::{Mode, Outcome, number};

pub(crate) const MODES: &[Mode] = &[
    ("stop-self", "", stop_self),
    ("signal", "NUMBER", signal),
    ("segfault", "", segfault),
    ("daemon", "", daemon),
    ("daemon-loud", "", daemon_loud),
    ("daemon-log", "", daemon_log),
    ("forkbomb", "[PROCESSES_MAX] [stay]", forkbomb),
    ("zombies", "[COUNT]", zombies),
    ("ignore-signals", "", ignore_signals),
    ("kill-all", "", kill_all),
    ("kill-init", "", kill_init),
    ("exec-chain", "[COUNT]", exec_chain),
    ("fds", "", fds),
];

/// A fork bomb that no limit stops ends here.
const PROCESSES_MAX: u64 = 2000;

fn stop_self(_: &[&str]) -> Outcome {
    send(own_pid(), libc::SIGSTOP).map_err(Errno::name)?;
    sys::sleep_for_ever();
}

fn signal(arguments: &[&str]) -> Outcome {
    let number = number(arguments, 0, libc::SIGTERM as u64)? as i32;
    send(own_pid(), number).map_err(Errno::name)?;
    // A signal that is ignored by default.
    print("survived\n");
    Ok(0)
}

fn segfault(_: &[&str]) -> Outcome {
    let nowhere: *const u8 = std::ptr::without_provenance(8);
    // SAFETY: it is not sound, and that is the point: no page is mapped there, so the process ends here.
    let byte = unsafe { nowhere.read_volatile() };
    Ok(byte)
}

/// The grandchild holds stdout and stderr and says nothing.
fn daemon(_: &[&str]) -> Outcome {
    daemonise(|| sys::sleep_for_ever())
}

fn daemon_loud(_: &[&str]) -> Outcome {
    daemonise(|| {
        loop {
            print("still here\n");
            thread::sleep(Duration::from_millis(1));
        }
    })
}

fn daemon_log(_: &[&str]) -> Outcome {
    daemonise(|| {
        loop {
            eprintln!("still here");
            thread::sleep(Duration::from_millis(1));
        }
    })
}

/// Away from parent, session and process group, deaf to what can be ignored. The main process ends well.
pub(crate) fn daemonise(work: impl FnOnce()) -> Outcome {
    if let Fork::Child = sys::fork().map_err(Errno::name)? {
        drop(call!(SYS_setsid));
        if let Ok(Fork::Child) = sys::fork() {
            ignore_what_can_be();
            work();
        }
        exit_now(0);
    }
    print("done\n");
    Ok(0)
}

/// Each process forks until the kernel refuses; main says what stopped it. With `stay` it waits to be killed.
fn forkbomb(arguments: &[&str]) -> Outcome {
    guard()?;
    let limit = number(arguments, 0, PROCESSES_MAX)?.min(PROCESSES_MAX);
    let mut made = 0;
    let end = loop {
        if made >= limit {
            break "none".to_owned();
        }
        match sys::fork() {
            Ok(Fork::Parent) => made += 1,
            Ok(Fork::Child) => {
                ignore_what_can_be();
                drop(call!(SYS_setsid));
                sys::sleep_for_ever();
            }
            Err(errno) => break errno.name(),
        }
    };
    print(&format!("forked {made}, error: {end}\n"));
    if arguments.get(1) == Some(&"stay") {
        sys::sleep_for_ever();
    }
    Ok(0)
}

/// Zombies count against the process limit until someone reaps them.
fn zombies(arguments: &[&str]) -> Outcome {
    let mut made = 0;
    for _ in 0..number(arguments, 0, 10)?.min(PROCESSES_MAX) {
        match sys::fork() {
            Ok(Fork::Parent) => made += 1,
            Ok(Fork::Child) => exit_now(0),
            Err(_) => break,
        }
    }
    print(&format!("left {made}\n"));
    Ok(0)
}

fn ignore_signals(_: &[&str]) -> Outcome {
    ignore_what_can_be();
    sys::sleep_for_ever();
}

pub(crate) fn ignore_what_can_be() {
    for number in 1..=31 {
        if number != libc::SIGKILL && number != libc::SIGSTOP {
            sys::ignore(number);
        }
    }
}

/// kill(-1): every process but the sender and init. Linux leaves out the sender, so it can tell.
fn kill_all(_: &[&str]) -> Outcome {
    guard()?;
    print(&format!("kill -1: {}\n", verdict(send(-1, libc::SIGKILL))));
    Ok(0)
}

fn kill_init(_: &[&str]) -> Outcome {
    guard()?;
    for number in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGSTOP,
        libc::SIGSEGV,
        libc::SIGKILL,
    ] {
        print(&format!("signal {number}: {}\n", verdict(send(1, number))));
    }
    Ok(0)
}

/// The process keeps its pid and outlives every exec.
fn exec_chain(arguments: &[&str]) -> Outcome {
    let left = number(arguments, 0, 1000)?;
    if left == 0 {
        print("end of the chain\n");
        return Ok(0);
    }
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let c_string = |bytes: &[u8]| CString::new(bytes).map_err(|error| error.to_string());
    let program = c_string(program.as_os_str().as_bytes())?;
    let mode = c_string(b"exec-chain")?;
    let count = c_string((left - 1).to_string().as_bytes())?;
    let argv = [
        program.as_ptr(),
        mode.as_ptr(),
        count.as_ptr(),
        std::ptr::null(),
    ];
    let environment = [std::ptr::null::<u8>()];
    match call!(
        SYS_execve,
        program.as_ptr(),
        argv.as_ptr(),
        environment.as_ptr()
    ) {
        Ok(_) => Err("execve returned".to_owned()),
        Err(errno) => Err(format!("execve: {} with {left} left", errno.name())),
    }
}

fn fds(_: &[&str]) -> Outcome {
    let mut made = 0;
    let end = loop {
        match call!(SYS_dup, 0) {
            Ok(_) => made += 1,
            Err(errno) => break errno.name(),
        }
    };
    print(&format!("opened {made}, error: {end}\n"));
    Ok(0)
}

/// Modes that harm a machine without walls run as an ordinary user only, which every function is: started by mistake
/// from root's shell they do nothing.
pub(crate) fn guard() -> Result<(), String> {
    match call!(SYS_geteuid) {
        Ok(0) => Err("not as root: outside a sandbox this would work".to_owned()),
        _ => Ok(()),
    }
}

fn own_pid() -> i32 {
    std::process::id() as i32
}

fn send(pid: i32, signal: i32) -> Result<i64, Errno> {
    call!(SYS_kill, pid, signal)
}
