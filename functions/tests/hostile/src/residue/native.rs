// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a process can leave beyond files: objects of the kernel, and settings of its own and of init.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use super::{MARKER, found_if};
use crate::json::Json;
use crate::sys::{self, Errno, Fork, call, exit_now};

/// The most that is filled with the marker, and looked through for it.
const MEMORY_BYTES: usize = 16 << 20;

/// No program asks for just this.
const SLACK_NS: u64 = 12_345_678;

/// Of the System V objects.
const KEY: i32 = 0x4841_5254;

const NAME: &std::ffi::CStr = c"hearth-marker";
const KEY_SPEC_USER_KEYRING: i32 = -4;
const KEYCTL_SEARCH: i32 = 10;

type Place = (&'static str, Result<i64, Errno>);

pub(super) fn leave() -> Vec<(String, Json)> {
    // First what needs descriptors, which the later ones use up.
    let (others, objects, more) = (leave_others(), leave_objects(), change_more());
    let all = others.into_iter().chain(objects).chain(more);
    all.chain(change_init())
        .chain(change_self())
        .map(|(place, result)| (place.to_owned(), Json::text(left(result))))
        .collect()
}

fn leave_objects() -> [Place; 5] {
    let (kind, name) = (c"user".as_ptr(), NAME.as_ptr());
    let flags = libc::IPC_CREAT | 0o600;
    let (mq_flags, keyring) = (libc::O_CREAT | libc::O_RDWR, KEY_SPEC_USER_KEYRING);
    [
        (
            "System V shared memory",
            call!(SYS_shmget, KEY, 4096, flags),
        ),
        ("System V semaphore", call!(SYS_semget, KEY, 1, flags)),
        ("System V messages", call!(SYS_msgget, KEY, flags)),
        (
            "POSIX message queue",
            call!(SYS_mq_open, name, mq_flags, 0o600, 0),
        ),
        (
            "key",
            call!(
                SYS_add_key,
                kind,
                name,
                MARKER.as_ptr(),
                MARKER.len(),
                keyring
            ),
        ),
    ]
}

/// Without a rule against it all of these succeed for a process with init's uid.
fn change_init() -> [Place; 4] {
    let limit = libc::rlimit {
        rlim_cur: 48,
        rlim_max: 48,
    };
    let (one_core, priority) = ([1_u64], [0_i32]);
    let idle = libc::SCHED_IDLE;
    [
        (
            "limit of init",
            call!(SYS_prlimit64, 1, libc::RLIMIT_NOFILE, &raw const limit, 0),
        ),
        ("nice value of init", call!(SYS_setpriority, 0, 1, 19)),
        (
            "cores of init",
            call!(SYS_sched_setaffinity, 1, 8, one_core.as_ptr()),
        ),
        (
            "class of init",
            call!(SYS_sched_setscheduler, 1, idle, priority.as_ptr()),
        ),
    ]
}

fn change_self() -> [Place; 4] {
    let limit = libc::rlimit {
        rlim_cur: 48,
        rlim_max: 48,
    };
    let (priority, batch) = ([0_i32], libc::SCHED_BATCH);
    [
        (
            "own limit",
            call!(SYS_prlimit64, 0, libc::RLIMIT_NOFILE, &raw const limit, 0),
        ),
        ("own nice value", call!(SYS_setpriority, 0, 0, 19)),
        (
            "own class",
            call!(SYS_sched_setscheduler, 0, batch, priority.as_ptr()),
        ),
        ("own umask", call!(SYS_umask, 0)),
    ]
}

/// What a process can set for itself only, and what the kernel counts by uid.
fn change_more() -> [Place; 14] {
    let none_then_long = [0_i64, 0, 1000, 0];
    let (all, mut timer) = ([u64::MAX], 0_i32);
    let times = [1_i64, 0, 1, 0];
    let name = NAME.as_ptr();
    let set_times = |path: &std::ffi::CStr| {
        let directory = libc::AT_FDCWD;
        call!(SYS_utimensat, directory, path.as_ptr(), times.as_ptr(), 0)
    };
    [
        (
            "own name",
            call!(SYS_prctl, libc::PR_SET_NAME, name, 0, 0, 0),
        ),
        (
            "own timer slack",
            call!(SYS_prctl, libc::PR_SET_TIMERSLACK, SLACK_NS, 0, 0, 0),
        ),
        (
            "own dumpable",
            call!(SYS_prctl, libc::PR_SET_DUMPABLE, 0, 0, 0, 0),
        ),
        (
            "own cores",
            call!(SYS_sched_setaffinity, 0, 8, [1_u64].as_ptr()),
        ),
        ("alarm", call!(SYS_setitimer, 0, none_then_long.as_ptr(), 0)),
        (
            "timer",
            call!(SYS_timer_create, libc::CLOCK_MONOTONIC, 0, &raw mut timer),
        ),
        (
            "timer set",
            call!(SYS_timer_settime, timer, 0, none_then_long.as_ptr(), 0),
        ),
        (
            "blocked signals",
            call!(SYS_rt_sigprocmask, libc::SIG_BLOCK, all.as_ptr(), 0, 8),
        ),
        (
            "pending signal",
            call!(SYS_kill, std::process::id() as i32, libc::SIGUSR1),
        ),
        ("time stamp of the working directory", set_times(c".")),
        ("time stamp of scratch", set_times(c"/tmp")),
        ("pipe pages", take_all(large_pipe)),
        ("descriptors", take_all(|| call!(SYS_dup, 0))),
        ("memory", fill_memory()),
    ]
}

fn large_pipe() -> Result<i64, Errno> {
    let mut pipe = [0_i32; 2];
    call!(SYS_pipe2, pipe.as_mut_ptr(), 0)?;
    call!(SYS_fcntl, pipe[1], libc::F_SETPIPE_SZ, 1 << 20)
}

/// Until there is no more: how many.
fn take_all(one: impl Fn() -> Result<i64, Errno>) -> Result<i64, Errno> {
    let taken = (0..100_000).take_while(|_| one().is_ok()).count();
    if taken == 0 {
        Err(Errno(libc::EMFILE))
    } else {
        Ok(taken as i64)
    }
}

fn fresh_memory() -> Result<&'static mut [u8], Errno> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let start = call!(SYS_mmap, 0, MEMORY_BYTES, protection, flags, -1, 0)?;
    let start = std::ptr::with_exposed_provenance_mut::<u8>(start as usize);
    // SAFETY: the kernel has just mapped exactly these bytes, and nothing else knows of them.
    Ok(unsafe { std::slice::from_raw_parts_mut(start, MEMORY_BYTES) })
}

fn fill_memory() -> Result<i64, Errno> {
    fresh_memory()?.fill(0xA5);
    Ok(0)
}

fn errno(error: std::io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(0))
}

fn left(result: Result<i64, Errno>) -> String {
    match result {
        Ok(_) => "left".to_owned(),
        Err(errno) => errno.name(),
    }
}

/// One daemon is both the process and the socket. A variable is this process's own, like its name.
fn leave_others() -> [Place; 6] {
    let daemon = leave_daemon();
    let code = daemon.as_ref().map_or_else(|errno| errno.0, |_| 0);
    let again = || if code == 0 { Ok(0) } else { Err(Errno(code)) };
    // SAFETY: no other thread of this process reads or writes the environment.
    unsafe { std::env::set_var("HEARTH_MARKER", MARKER) };
    let terminal = c"/dev/tty".as_ptr();
    let watch = call!(SYS_inotify_init1, 0).and_then(|watch| {
        call!(
            SYS_inotify_add_watch,
            watch,
            c"/function".as_ptr(),
            libc::IN_ALL_EVENTS
        )
    });
    [
        ("process", daemon),
        ("abstract socket", again()),
        ("environment", Ok(0)),
        (
            "terminal",
            call!(SYS_openat, libc::AT_FDCWD, terminal, libc::O_RDWR, 0),
        ),
        ("inotify watch", watch),
        ("own session", leave_session()),
    ]
}

/// A process that leads a group cannot begin a session; this one may be such a leader already, and leads one then.
fn leave_session() -> Result<i64, Errno> {
    match call!(SYS_setsid) {
        Err(Errno(libc::EPERM)) => call!(SYS_getsid, 0),
        other => other,
    }
}

/// A process of another session that keeps a listening socket and the pipes of this invocation open.
fn leave_daemon() -> Result<i64, Errno> {
    let address = SocketAddr::from_abstract_name(MARKER).map_err(errno)?;
    let listener = UnixListener::bind_addr(&address).map_err(errno)?;
    if let Fork::Child = sys::fork()? {
        drop(call!(SYS_setsid));
        match sys::fork() {
            Ok(Fork::Child) => sys::sleep_for_ever(),
            _ => exit_now(0),
        }
    }
    drop(listener);
    Ok(0)
}

pub(super) fn find() -> Vec<(String, Json)> {
    let mut places: Vec<(String, Json)> = [
        (
            "System V shared memory",
            call!(SYS_shmget, KEY, 0, 0).is_ok(),
        ),
        ("System V semaphore", call!(SYS_semget, KEY, 0, 0).is_ok()),
        ("System V messages", call!(SYS_msgget, KEY, 0).is_ok()),
        (
            "POSIX message queue",
            call!(SYS_mq_open, NAME.as_ptr(), libc::O_RDONLY, 0, 0).is_ok(),
        ),
        ("key", {
            let (kind, name) = (c"user".as_ptr(), NAME.as_ptr());
            call!(
                SYS_keyctl,
                KEYCTL_SEARCH,
                KEY_SPEC_USER_KEYRING,
                kind,
                name,
                0
            )
            .is_ok()
        }),
        ("abstract socket", finds_socket()),
        ("terminal", std::fs::File::open("/dev/tty").is_ok()),
        ("inotify watch", finds_watch()),
        ("process", finds_process()),
        (
            "memory",
            fresh_memory().is_ok_and(|memory| memory.iter().any(|byte| *byte != 0)),
        ),
        (
            "time stamp of scratch",
            is_marked(std::path::Path::new("/tmp")),
        ),
        (
            "time stamp of the working directory",
            is_marked(std::path::Path::new(".")),
        ),
    ]
    .into_iter()
    .map(|(place, found)| (place.to_owned(), Json::text(found_if(found))))
    .collect();
    places.push(("state".to_owned(), Json::object(state())));
    places
}

fn finds_socket() -> bool {
    SocketAddr::from_abstract_name(MARKER)
        .is_ok_and(|address| UnixStream::connect_addr(&address).is_ok())
}

/// A watch shows in what the kernel tells of its descriptor, should one have been inherited.
fn finds_watch() -> bool {
    crate::whoami::fd_names().iter().any(|fd| {
        let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"));
        told.is_ok_and(|told| told.contains("inotify wd:"))
    })
}

fn is_marked(path: &std::path::Path) -> bool {
    let changed = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    let since = changed.map(|time| time.duration_since(std::time::UNIX_EPOCH));
    since.is_ok_and(|since| since.is_ok_and(|since| since.as_secs() == 1))
}

fn finds_process() -> bool {
    crate::whoami::processes()
        .into_iter()
        .any(|pid| pid != 1 && pid != std::process::id())
}

/// What has no marker but a value: to compare with that of a sandbox in which nothing was left.
fn state() -> Vec<(String, Json)> {
    let fds = crate::whoami::fd_names();
    let mut affinity = [0_u64; 16];
    let cores = call!(
        SYS_sched_getaffinity,
        0,
        size_of_val(&affinity),
        affinity.as_mut_ptr()
    );
    let umask = call!(SYS_umask, 0o077);
    let values = [
        ("nice value of init", call!(SYS_getpriority, 0, 1)),
        ("class of init", call!(SYS_sched_getscheduler, 1)),
        ("nice value", call!(SYS_getpriority, 0, 0)),
        ("class", call!(SYS_sched_getscheduler, 0)),
        ("umask", umask),
        ("cores", cores.map(|_| affinity[0] as i64)),
        (
            "dumpable",
            call!(SYS_prctl, libc::PR_GET_DUMPABLE, 0, 0, 0, 0),
        ),
    ];
    let mut members: Vec<(String, Json)> = values
        .into_iter()
        .map(|(name, value)| match value {
            Ok(value) => (name.to_owned(), Json::Number(value)),
            Err(errno) => (name.to_owned(), Json::text(errno.name())),
        })
        .collect();
    for (name, path) in [
        ("limits", "/proc/self/limits"),
        ("limits of init", "/proc/1/limits"),
    ] {
        members.push((name.to_owned(), crate::whoami::lines(path)));
    }
    members.push(("descriptors".to_owned(), Json::texts(fds)));
    members.extend(more_state());
    for name in ["SigBlk", "SigIgn", "SigPnd", "ShdPnd"] {
        members.push((
            name.to_owned(),
            Json::text(crate::whoami::status_field(name)),
        ));
    }
    members
}

/// What [`change_more`] changes, as this process has it.
fn more_state() -> Vec<(String, Json)> {
    let own = i64::from(std::process::id());
    let is_own = |id: Result<i64, Errno>| id.map(|id| i64::from(id == own));
    let mut left = [0_i64; 4];
    let alarm = call!(SYS_getitimer, 0, left.as_mut_ptr());
    let numbers = [
        (
            "timer slack",
            call!(SYS_prctl, libc::PR_GET_TIMERSLACK, 0, 0, 0, 0),
        ),
        ("leads a session", is_own(call!(SYS_getsid, 0))),
        ("leads a process group", is_own(call!(SYS_getpgid, 0))),
        ("alarm", alarm.map(|_| left[2])),
        ("pipe", large_pipe()),
    ];
    let mut members: Vec<(String, Json)> = numbers
        .into_iter()
        .map(|(name, value)| match value {
            Ok(value) => (name.to_owned(), Json::Number(value)),
            Err(errno) => (name.to_owned(), Json::text(errno.name())),
        })
        .collect();
    members.push(("name".to_owned(), crate::whoami::lines("/proc/self/comm")));
    members.push((
        "timers".to_owned(),
        crate::whoami::lines("/proc/self/timers"),
    ));
    for name in [
        "/proc/net/unix",
        "/proc/net/tcp",
        "/proc/net/udp",
        "/proc/net/arp",
    ] {
        let table = std::fs::read_to_string(name).unwrap_or_default();
        members.push((name.to_owned(), Json::Number(table.lines().count() as i64)));
    }
    members
}
