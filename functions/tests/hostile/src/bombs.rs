// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a native function can use up besides memory, time and scratch by plain writing: address space, memory that hides in
//! kernel objects and pipes, file systems, and processes in their stranger forms. Each prints what it got and what stopped
//! it.

use std::ffi::{CStr, CString};
use std::hint::black_box;

use crate::json::Json;
use crate::lifetime::guard;
use crate::stdio::print;
use crate::sys::{self, Errno, Fork, call, exit_now, verdict};
use crate::{Mode, Outcome, number};

pub(crate) const MODES: &[Mode] = &[
    ("reserve", "", reserve),
    ("memfd-fill", "[BYTES_MAX]", memfd_fill),
    ("deleted-file", "", deleted_file),
    ("pipes", "", pipes),
    ("kernel-objects", "", kernel_objects),
    ("names", "[COUNT]", names),
    ("lock-memory", "", lock_memory),
    ("spin-threads", "COUNT", spin_threads),
    ("stop-group", "", stop_group),
    ("vfork-chain", "[DEPTH_MAX]", vfork_chain),
    ("vfork-stuck", "", vfork_stuck),
    ("storm", "[PROCESSES]", storm),
    ("scratch-sparse", "", scratch_sparse),
    ("scratch-deep", "[DEPTH_MAX]", scratch_deep),
    ("scratch-names", "", scratch_names),
    ("read-over", "PATH", read_over),
    ("sync-loop", "[COUNT]", sync_loop),
    ("big-exec", "", big_exec),
];

/// More than any machine has.
const RESERVED_BYTES: usize = 100 << 40;

const MIB: usize = 1 << 20;

/// What stops a loop that nothing else stops.
const OBJECTS_MAX: u64 = 100_000;

fn map(bytes: usize, protection: i32, flags: i32) -> Result<i64, Errno> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    call!(SYS_mmap, 0, bytes, protection, flags, -1, 0)
}

/// Counts until the kernel refuses; the count and why.
fn until_refused(limit: u64, mut one: impl FnMut(u64) -> Result<i64, Errno>) -> (u64, String) {
    for count in 0..limit {
        if let Err(errno) = one(count) {
            return (count, errno.name());
        }
    }
    (limit, "none".to_owned())
}

fn report(members: impl IntoIterator<Item = (&'static str, (u64, String))>) {
    let members = members.into_iter().map(|(name, (count, why))| {
        let found = [
            ("count", Json::Number(count as i64)),
            ("error", Json::text(why)),
        ];
        (name, Json::object(found))
    });
    print(&format!("{}\n", Json::object(members)));
}

fn reserve(_: &[&str]) -> Outcome {
    let result = map(RESERVED_BYTES, libc::PROT_NONE, libc::MAP_NORESERVE);
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    let writable = map(RESERVED_BYTES, writable, libc::MAP_NORESERVE);
    print(&format!("{} {}\n", verdict(result), verdict(writable)));
    Ok(0)
}

/// Pages of a memfd are memory, not scratch: only the memory limit ends it.
fn memfd_fill(arguments: &[&str]) -> Outcome {
    let limit = number(arguments, 0, 1 << 30)?;
    let fd = call!(SYS_memfd_create, c"hostile".as_ptr(), 0).map_err(Errno::name)?;
    let block = vec![0xA5_u8; MIB];
    let written = until_refused(limit / MIB as u64, |_| {
        call!(SYS_write, fd, block.as_ptr(), block.len())
    });
    report([("mebibytes", written)]);
    Ok(0)
}

/// A file as large as scratch allows, without a name, kept open by a daemon.
fn deleted_file(_: &[&str]) -> Outcome {
    let path = c"/tmp/hostile-deleted";
    let flags = libc::O_CREAT | libc::O_RDWR;
    let fd = call!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600).map_err(Errno::name)?;
    let block = vec![0xA5_u8; 64 << 10];
    let written = until_refused(OBJECTS_MAX, |_| {
        call!(SYS_write, fd, block.as_ptr(), block.len())
    });
    call!(SYS_unlinkat, libc::AT_FDCWD, path.as_ptr(), 0).map_err(Errno::name)?;
    report([("blocks", written)]);
    crate::lifetime::daemonise(|| sys::sleep_for_ever())
}

/// As many pipes as there may be, each as large as it may be, and socket pairs, all full.
fn pipes(_: &[&str]) -> Outcome {
    let block = vec![0xA5_u8; MIB];
    let fill = |fd: i32| {
        until_refused(OBJECTS_MAX, |_| {
            call!(SYS_write, fd, block.as_ptr(), block.len())
        })
        .0
    };
    let mut bytes = 0;
    let sockets = until_refused(256, |_| {
        let mut pair = [0_i32; 2];
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
        let made = call!(SYS_socketpair, libc::AF_UNIX, kind, 0, pair.as_mut_ptr())?;
        let size = [MIB as i32];
        let option = libc::SO_SNDBUF;
        drop(call!(
            SYS_setsockopt,
            pair[0],
            libc::SOL_SOCKET,
            option,
            size.as_ptr(),
            4
        ));
        fill(pair[0]);
        Ok(made)
    });
    let pipes = until_refused(1000, |_| {
        let mut pair = [0_i32; 2];
        let made = call!(SYS_pipe2, pair.as_mut_ptr(), libc::O_NONBLOCK)?;
        let size = call!(SYS_fcntl, pair[1], libc::F_SETPIPE_SZ, MIB);
        bytes += size.unwrap_or(65_536) as u64;
        fill(pair[1]);
        Ok(made)
    });
    let room = (bytes / MIB as u64, String::new());
    report([("sockets", sockets), ("pipes", pipes), ("mebibytes", room)]);
    Ok(0)
}

/// One of everything that the kernel keeps for a process, until it refuses, in this process and in children.
fn kernel_objects(_: &[&str]) -> Outcome {
    guard()?;
    let inotify = until_refused(OBJECTS_MAX, |_| call!(SYS_inotify_init1, 0));
    let mut children = 0;
    while children < 8 {
        match sys::fork() {
            Ok(Fork::Child) => {
                drop(open_everything());
                sys::sleep_for_ever();
            }
            Ok(Fork::Parent) => children += 1,
            Err(_) => break,
        }
    }
    let own = open_everything();
    report([
        ("inotify", inotify),
        ("objects", own),
        ("children", (children, String::new())),
    ]);
    Ok(0)
}

fn open_everything() -> (u64, String) {
    until_refused(OBJECTS_MAX, |count| match count % 4 {
        0 => call!(SYS_epoll_create1, 0),
        1 => call!(SYS_timerfd_create, libc::CLOCK_MONOTONIC, 0),
        2 => call!(SYS_eventfd2, 0, 0),
        _ => call!(SYS_memfd_create, c"hostile".as_ptr(), 0),
    })
}

/// Of every name that does not exist the kernel remembers that it does not.
fn names(arguments: &[&str]) -> Outcome {
    let count = number(arguments, 0, 100_000)?;
    for index in 0..count {
        let padding = "n".repeat(200);
        let name =
            CString::new(format!("/tmp/{padding}{index}")).map_err(|error| error.to_string())?;
        drop(call!(SYS_faccessat, libc::AT_FDCWD, name.as_ptr(), 0));
    }
    print(&format!("looked for {count}\n"));
    Ok(0)
}

fn lock_memory(_: &[&str]) -> Outcome {
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    let own = map(64 * MIB, writable, 0).map_err(Errno::name)?;
    let huge_file = call!(SYS_memfd_create, c"huge".as_ptr(), libc::MFD_HUGETLB);
    let mapped =
        huge_file.and_then(|fd| call!(SYS_mmap, 0, 2 * MIB, writable, libc::MAP_SHARED, fd, 0));
    let results = [
        (
            "mlockall",
            call!(SYS_mlockall, libc::MCL_CURRENT | libc::MCL_FUTURE),
        ),
        ("mlock", call!(SYS_mlock, own, 64 * MIB)),
        ("mlock2", call!(SYS_mlock2, own, 64 * MIB, 1)),
        ("huge pages", map(2 * MIB, writable, libc::MAP_HUGETLB)),
        ("huge file", mapped),
    ];
    let results = results.map(|(name, result)| (name, Json::text(verdict(result))));
    print(&format!("{}\n", Json::object(results)));
    Ok(0)
}

fn spin_threads(arguments: &[&str]) -> Outcome {
    let spin = || {
        let mut counter = 0_u64;
        loop {
            counter = black_box(counter.wrapping_add(1));
        }
    };
    for _ in 1..number(arguments, 0, 4)? {
        let thread = std::thread::Builder::new().stack_size(64 * 1024);
        thread.spawn(spin).map_err(|error| error.to_string())?;
    }
    spin()
}

/// Itself and its children, all stopped by one signal.
fn stop_group(_: &[&str]) -> Outcome {
    guard()?;
    for _ in 0..3 {
        if let Ok(Fork::Child) = sys::fork() {
            sys::sleep_for_ever();
        }
    }
    drop(call!(SYS_kill, 0, libc::SIGSTOP));
    sys::sleep_for_ever();
}

/// For a child that shares this memory: its function's stack.
const CHILD_STACK_BYTES: usize = 64 << 10;

/// As vfork(2) does, on a stack of its own: the caller goes on when the child ends or executes a program.
fn vfork_like(
    child: extern "C" fn(*mut libc::c_void) -> i32,
    argument: usize,
) -> Result<i64, Errno> {
    let stack = map(CHILD_STACK_BYTES, libc::PROT_READ | libc::PROT_WRITE, 0)?;
    let top = std::ptr::with_exposed_provenance_mut(stack as usize + CHILD_STACK_BYTES);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    let argument = std::ptr::without_provenance_mut(argument);
    // SAFETY: `top` is the upper end of pages that nothing else uses, and `child` runs on them without unwinding.
    match unsafe { libc::clone(child, top, flags, argument) } {
        -1 => Err(Errno::last()),
        pid => Ok(i64::from(pid)),
    }
}

/// Each child makes the next before it ends; the last one that could be made sleeps, so that all of them wait.
fn vfork_chain(arguments: &[&str]) -> Outcome {
    guard()?;
    let depth = number(arguments, 0, 1000)?.min(OBJECTS_MAX);
    extern "C" fn next(left: *mut libc::c_void) -> i32 {
        let left = left.addr();
        if left == 0 || vfork_like(next, left - 1).is_err() {
            print("end of the chain\n");
            sys::sleep_for_ever();
        }
        0
    }
    let first = vfork_like(next, depth as usize);
    print(&format!("{}\n", verdict(first)));
    Ok(0)
}

extern "C" fn sleep_in_child(_: *mut libc::c_void) -> i32 {
    sys::sleep_for_ever()
}

/// A thread waits in the kernel for a child that never executes anything; the main process ends meanwhile.
fn vfork_stuck(_: &[&str]) -> Outcome {
    guard()?;
    std::thread::spawn(|| drop(vfork_like(sleep_in_child, 0)));
    // Until the thread is in that wait: its state is D.
    loop {
        let waits = std::fs::read_dir("/proc/self/task")
            .map_err(|error| error.to_string())?
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok())
            .any(|stat| {
                stat.rsplit_once(") ")
                    .is_some_and(|(_, rest)| rest.starts_with('D'))
            });
        if waits {
            break;
        }
        std::thread::yield_now();
    }
    print("stuck\n");
    Ok(0)
}

/// Processes of every kind that is hard to end: deaf, stopped, in sessions of their own, in a chain. Waits to be killed.
fn storm(arguments: &[&str]) -> Outcome {
    guard()?;
    let count = number(arguments, 0, 300)?.min(2000);
    let made = until_refused(count, |index| {
        if let Fork::Child = sys::fork()? {
            crate::lifetime::ignore_what_can_be();
            if index % 3 == 0 {
                drop(call!(SYS_setsid));
            }
            if index % 3 == 1 {
                drop(call!(SYS_kill, std::process::id() as i32, libc::SIGSTOP));
            }
            sys::sleep_for_ever();
        }
        Ok(0)
    });
    report([("processes", made)]);
    crate::lifetime::ignore_what_can_be();
    sys::sleep_for_ever();
}

/// 1 TiB that nobody wrote, and 1 TiB that the file system is asked to have ready.
fn scratch_sparse(_: &[&str]) -> Outcome {
    // Without this the kernel kills whoever passes the limit of a file's size.
    sys::ignore(libc::SIGXFSZ);
    let flags = libc::O_CREAT | libc::O_RDWR;
    let path = c"/tmp/hostile-sparse";
    let fd = call!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600).map_err(Errno::name)?;
    let results = [
        ("sparse", call!(SYS_ftruncate, fd, 1_u64 << 40)),
        ("sparse 8 GiB", call!(SYS_ftruncate, fd, 8_u64 << 30)),
        ("allocated", call!(SYS_fallocate, fd, 0, 0, 1_u64 << 40)),
        (
            "allocated 8 GiB",
            call!(SYS_fallocate, fd, 0, 0, 8_u64 << 30),
        ),
    ];
    let results = results.map(|(name, result)| (name, Json::text(verdict(result))));
    print(&format!("{}\n", Json::object(results)));
    Ok(0)
}

fn enter_new(name: &CStr) -> Result<i64, Errno> {
    call!(SYS_mkdirat, libc::AT_FDCWD, name.as_ptr(), 0o700)?;
    call!(SYS_chdir, name.as_ptr())
}

/// Directories in directories, far deeper than a path may be long.
fn scratch_deep(arguments: &[&str]) -> Outcome {
    let limit = number(arguments, 0, 200_000)?;
    call!(SYS_chdir, c"/tmp".as_ptr()).map_err(Errno::name)?;
    report([("depth", until_refused(limit, |_| enter_new(c"d")))]);
    Ok(0)
}

/// Names that break scripts which clean up.
fn scratch_names(_: &[&str]) -> Outcome {
    call!(SYS_chdir, c"/tmp".as_ptr()).map_err(Errno::name)?;
    let longest = CString::new("n".repeat(255)).map_err(|error| error.to_string())?;
    let names: [&CStr; 8] = [
        c"-rf",
        c"a\nb",
        c"\xff\xfe",
        c" ",
        c"...",
        c"*",
        c"$(reboot)",
        &longest,
    ];
    let mut made = 0;
    for name in names {
        enter_new(name).map_err(Errno::name)?;
        call!(
            SYS_symlinkat,
            c"/etc/passwd".as_ptr(),
            libc::AT_FDCWD,
            c"link".as_ptr()
        )
        .map_err(Errno::name)?;
        made += 1;
    }
    // Nobody may enter, list or change the way to them.
    call!(SYS_fchmodat, libc::AT_FDCWD, c"/tmp/-rf".as_ptr(), 0).map_err(Errno::name)?;
    print(&format!("made {made}\n"));
    Ok(0)
}

/// Reads a file from beginning to end, over and over.
fn read_over(arguments: &[&str]) -> Outcome {
    let [path] = arguments else {
        return Err("which file?".to_owned());
    };
    let mut block = vec![0; MIB];
    loop {
        let mut file = std::fs::File::open(path).map_err(|error| error.to_string())?;
        while std::io::Read::read(&mut file, &mut block).map_err(|error| error.to_string())? != 0 {}
    }
}

fn sync_loop(arguments: &[&str]) -> Outcome {
    let (mut results, count) = (Vec::new(), number(arguments, 0, 1000)?);
    for _ in 0..count {
        results = vec![("sync", call!(SYS_sync)), ("syncfs", call!(SYS_syncfs, 0))];
    }
    let results = results.into_iter();
    let results = results.map(|(name, result)| (name, Json::text(verdict(result))));
    print(&format!("{}\n", Json::object(results)));
    Ok(0)
}

/// 2 MiB of arguments, and one variable of more than 128 KiB. Whatever the kernel takes would print and end here.
fn big_exec(_: &[&str]) -> Outcome {
    let long = |bytes: usize| CString::new("x".repeat(bytes)).map_err(|error| error.to_string());
    let (argument, variable) = (long(100 << 10)?, long(129 << 10)?);
    let program = c"/proc/self/exe";
    let execute = |arguments: Vec<*const libc::c_char>, variables: Vec<*const libc::c_char>| {
        call!(
            SYS_execve,
            program.as_ptr(),
            arguments.as_ptr(),
            variables.as_ptr()
        )
    };
    let end = std::ptr::null();
    let mut many = vec![argument.as_ptr(); 100];
    many.push(end);
    let results = [
        ("arguments", execute(many, vec![end])),
        (
            "variable",
            execute(vec![program.as_ptr(), end], vec![variable.as_ptr(), end]),
        ),
    ];
    let results = results.map(|(name, result)| (name, Json::text(verdict(result))));
    print(&format!("{}\n", Json::object(results)));
    exit_now(0)
}
