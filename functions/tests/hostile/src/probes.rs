// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Searches: for what can be written, for what tells of the host, for calls and sockets that answer. Each prints JSON.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::json::Json;
use crate::lifetime::guard;
use crate::stdio::print;
use crate::sys::{self, Errno, Fork, call, raw, verdict};
use crate::{Mode, Outcome, number};

pub(crate) const MODES: &[Mode] = &[
    ("write-scan", "", write_scan),
    ("setuid-scan", "", setuid_scan),
    ("device-scan", "", device_scan),
    ("look", "PATH…", look),
    ("calls", "FROM TO", calls),
    ("sockets", "", sockets),
    ("connect", "NAME…", connect),
    ("serve", "NAME", serve),
    ("raise-limits", "", raise_limits),
    ("schedule", "", schedule),
    ("others", "", others),
    ("way-up", "", way_up),
    ("result-channel", "", result_channel),
];

/// A tree that is larger is no base.
const ENTRIES_MAX: usize = 100_000;

fn print_object<K: Into<String>>(members: impl IntoIterator<Item = (K, Json)>) -> Outcome {
    print(&format!("{}\n", Json::object(members)));
    Ok(0)
}

pub(crate) fn verdicts<K: Into<String>>(
    results: impl IntoIterator<Item = (K, Result<i64, Errno>)>,
) -> Outcome {
    let results = results.into_iter();
    print_object(results.map(|(name, result)| (name, Json::text(verdict(result)))))
}

pub(crate) fn c_string(path: &Path) -> CString {
    // A path that the kernel gave has no NUL.
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

pub(crate) fn open(path: &Path, flags: i32) -> Result<i64, Errno> {
    let path = c_string(path);
    let flags = flags | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    call!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600)
}

pub(crate) fn opens(path: &Path, flags: i32) -> Result<i64, Errno> {
    let fd = open(path, flags)?;
    call!(SYS_close, fd)
}

/// Everything that can be seen, directories first; links are not followed.
fn everything() -> Vec<(PathBuf, std::fs::Metadata)> {
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::from("/")];
    while let Some(path) = waiting.pop() {
        let Ok(metadata) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten();
            waiting.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
        }
        found.push((path, metadata));
        if ENTRIES_MAX < found.len() {
            break;
        }
    }
    found
}

/// What can be opened for writing, and in which directory a file can be made.
fn write_scan(_: &[&str]) -> Outcome {
    guard()?;
    let entries = everything();
    let looked_at = entries.len();
    let mut writable = Vec::new();
    for (path, metadata) in entries {
        if metadata.is_dir() {
            let intruder = path.join("hostile-intruder");
            if opens(&intruder, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY).is_ok() {
                drop(std::fs::remove_file(&intruder));
                writable.push(path.display().to_string());
            }
        } else if !metadata.is_symlink() && opens(&path, libc::O_WRONLY).is_ok() {
            writable.push(path.display().to_string());
        }
    }
    print_object([
        ("looked at", Json::Number(looked_at as i64)),
        ("writable", Json::texts(writable)),
    ])
}

/// Files with a bit, or an attribute, that could give a privilege.
fn setuid_scan(_: &[&str]) -> Outcome {
    use std::os::unix::fs::MetadataExt as _;
    let mut files = 0;
    let mut privileged = Vec::new();
    for (path, metadata) in everything() {
        if !metadata.is_file() {
            continue;
        }
        files += 1;
        let (name, mut value) = (c"security.capability".as_ptr(), [0_u8; 64]);
        let (size, file) = (value.len(), c_string(&path));
        let capability = call!(SYS_getxattr, file.as_ptr(), name, value.as_mut_ptr(), size);
        if metadata.mode() & 0o6000 != 0 || capability.is_ok() {
            privileged.push(path.display().to_string());
        }
    }
    print_object([
        ("files", Json::Number(files)),
        ("privileged", Json::texts(privileged)),
        ("effective", Json::Number(call!(SYS_geteuid).unwrap_or(-1))),
    ])
}

/// Device nodes, and what each answers when it is opened.
fn device_scan(_: &[&str]) -> Outcome {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let mut devices = Vec::new();
    for (path, metadata) in everything() {
        let kind = metadata.file_type();
        if kind.is_char_device() || kind.is_block_device() {
            let device = metadata.rdev();
            let number = format!("{}:{}", libc::major(device), libc::minor(device));
            let opened = verdict(opens(&path, libc::O_RDONLY));
            let told = format!("{number} {opened}");
            devices.push((path.display().to_string(), Json::text(told)));
        }
    }
    print_object(devices)
}

fn look(paths: &[&str]) -> Outcome {
    verdicts(
        paths
            .iter()
            .map(|path| (*path, opens(Path::new(path), libc::O_RDONLY))),
    )
}

/// Calls by number, all arguments 0. Those that would wait, end or change this process are left out.
fn calls(arguments: &[&str]) -> Outcome {
    guard()?;
    let (from, to) = (number(arguments, 0, 450)?, number(arguments, 1, 600)?);
    verdicts((from..=to).map(|number| (number.to_string(), raw(number as i64, [0; 6]))))
}

/// Every family and kind of socket that answers anything but that it does not exist.
fn sockets(_: &[&str]) -> Outcome {
    const FAMILIES: i32 = 64;
    let kinds = [
        libc::SOCK_STREAM,
        libc::SOCK_DGRAM,
        libc::SOCK_RAW,
        libc::SOCK_SEQPACKET,
    ];
    let protocols = [
        0,
        libc::IPPROTO_ICMP,
        libc::IPPROTO_SCTP,
        libc::IPPROTO_MPTCP,
        libc::NETLINK_XFRM,
    ];
    let mut answers: BTreeMap<String, Json> = BTreeMap::new();
    for family in 0..FAMILIES {
        for (kind, protocol) in kinds
            .iter()
            .flat_map(|kind| protocols.map(|one| (*kind, one)))
        {
            let name = verdict(call!(SYS_socket, family, kind, protocol));
            if name != "EAFNOSUPPORT" {
                answers.insert(format!("{family}"), Json::text(name));
            }
        }
    }
    print_object(answers)
}

/// A name that begins with `@` is an abstract one.
fn address(name: &str) -> std::io::Result<std::os::unix::net::SocketAddr> {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::SocketAddr;
    match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
}

fn connect(names: &[&str]) -> Outcome {
    let results = names.iter().map(|name| {
        let connected =
            address(name).and_then(|at| std::os::unix::net::UnixStream::connect_addr(&at));
        let result = connected.map(|_| 0);
        let result = result.map_err(|error| Errno(error.raw_os_error().unwrap_or(0)));
        (*name, result)
    });
    verdicts(results)
}

/// Listens until it is killed, and says so once it does.
fn serve(names: &[&str]) -> Outcome {
    let mut listeners = Vec::new();
    for name in names {
        let at = address(name).map_err(|error| error.to_string())?;
        let listener = std::os::unix::net::UnixListener::bind_addr(&at);
        listeners.push(listener.map_err(|error| error.to_string())?);
    }
    print(&format!("listening on {}\n", listeners.len()));
    sys::sleep_for_ever();
}

/// One above the hard limit of everything that is limited.
fn raise_limits(_: &[&str]) -> Outcome {
    const LIMITS: u32 = 16;
    let mut results = Vec::new();
    for resource in 0..LIMITS {
        let mut limit = [0_u64; 2];
        call!(SYS_prlimit64, 0, resource, 0, limit.as_mut_ptr()).map_err(Errno::name)?;
        let name = format!("{resource} from {}", limit[1]);
        if limit[1] == libc::RLIM_INFINITY {
            results.push((name, Json::text("unlimited")));
            continue;
        }
        let more = [limit[1] + 1; 2];
        let raised = call!(SYS_prlimit64, 0, resource, more.as_ptr(), 0);
        results.push((name, Json::text(verdict(raised))));
    }
    print_object(results)
}

fn schedule(_: &[&str]) -> Outcome {
    // sched_attr of sched_setattr(2): size and policy, flags, nice and priority, then runtime, deadline and period.
    let deadline = [48_u64 | 6 << 32, 0, 0, 1_000_000, 10_000_000, 10_000_000];
    let mut limit = [0_u64; 2];
    call!(SYS_prlimit64, 0, libc::RLIMIT_RTPRIO, 0, limit.as_mut_ptr()).map_err(Errno::name)?;
    let (one, none) = ([1_i32], [0_i32]);
    const REAL_TIME_IO: i32 = 1 << 13;
    let results = [
        (
            "fifo",
            call!(SYS_sched_setscheduler, 0, libc::SCHED_FIFO, one.as_ptr()),
        ),
        (
            "round robin",
            call!(SYS_sched_setscheduler, 0, libc::SCHED_RR, one.as_ptr()),
        ),
        ("parameters", call!(SYS_sched_setparam, 0, none.as_ptr())),
        (
            "deadline",
            call!(SYS_sched_setattr, 0, deadline.as_ptr(), 0),
        ),
        ("nice", call!(SYS_setpriority, libc::PRIO_PROCESS, 0, -20)),
        (
            "nice of all",
            call!(SYS_setpriority, libc::PRIO_USER, 0, 19),
        ),
        ("real-time I/O", call!(SYS_ioprio_set, 1, 0, REAL_TIME_IO)),
        (
            "priority limit",
            if limit == [0, 0] {
                Err(Errno(libc::EPERM))
            } else {
                Ok(0)
            },
        ),
    ];
    verdicts(results)
}

/// Another process of its own, by every call that reaches into one.
fn others(_: &[&str]) -> Outcome {
    guard()?;
    if let Fork::Child = sys::fork().map_err(Errno::name)? {
        sys::sleep_for_ever();
    }
    let child = crate::whoami::processes()
        .into_iter()
        .filter(|pid| *pid != std::process::id());
    let child = child.max().map_or(-1, |pid| pid as i32);
    let mut word = [0_u64];
    let local = [word.as_mut_ptr().expose_provenance(), 8];
    let pidfd = call!(SYS_pidfd_open, child, 0);
    let results = [
        (
            "child",
            if 1 < child {
                Err(Errno(libc::EPERM))
            } else {
                Ok(0)
            },
        ),
        (
            "attach",
            call!(SYS_ptrace, libc::PTRACE_ATTACH, child, 0, 0),
        ),
        ("seize", call!(SYS_ptrace, libc::PTRACE_SEIZE, child, 0, 0)),
        ("traced", call!(SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0)),
        (
            "read",
            call!(
                SYS_process_vm_readv,
                child,
                local.as_ptr(),
                1,
                local.as_ptr(),
                1,
                0
            ),
        ),
        (
            "write",
            call!(
                SYS_process_vm_writev,
                child,
                local.as_ptr(),
                1,
                local.as_ptr(),
                1,
                0
            ),
        ),
        (
            "take a descriptor",
            pidfd.and_then(|fd| call!(SYS_pidfd_getfd, fd, 0, 0)),
        ),
        (
            "init's memory",
            opens(Path::new("/proc/1/mem"), libc::O_RDONLY),
        ),
        (
            "init's root",
            opens(Path::new("/proc/1/root/etc"), libc::O_RDONLY),
        ),
        (
            "init's working directory",
            opens(Path::new("/proc/1/cwd"), libc::O_RDONLY),
        ),
    ];
    verdicts(results)
}

fn inode_of(fd: i64) -> Result<(u64, u64), Errno> {
    // SAFETY: all zeros are a valid stat.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    call!(SYS_fstat, fd, &raw mut found)?;
    Ok((found.st_dev, found.st_ino))
}

/// Above every directory that it can have open there must be the root, and above that nothing.
fn way_up(_: &[&str]) -> Outcome {
    let root = open(Path::new("/"), libc::O_RDONLY).map_err(Errno::name)?;
    let root = inode_of(root).map_err(Errno::name)?;
    let from = |place: &str| -> Result<i64, Errno> {
        let start = open(Path::new(place), libc::O_RDONLY)?;
        let up = c"../../../../../../../../../../../..";
        let top = call!(SYS_openat, start, up.as_ptr(), libc::O_RDONLY)?;
        call!(SYS_fchdir, start)?;
        call!(SYS_chroot, c".".as_ptr()).map_or_else(|_| Ok(0), |_| Err(Errno(libc::EISDIR)))?;
        if inode_of(top)? == root {
            Ok(0)
        } else {
            Err(Errno(libc::EXDEV))
        }
    };
    let places = [
        "/",
        "/function",
        "/tmp",
        "/proc",
        "/dev",
        "/proc/self/cwd",
        "/proc/self/root",
    ];
    verdicts(places.map(|place| (place, from(place))))
}

/// What it was given to speak with are pipes: no descriptor can be sent through one, and no message has borders.
fn result_channel(_: &[&str]) -> Outcome {
    let mut results = Vec::new();
    for fd in 0..3_i64 {
        // SAFETY: all zeros are a valid msghdr: no address, no data, no control data.
        let message: libc::msghdr = unsafe { std::mem::zeroed() };
        results.push((
            format!("send on {fd}"),
            call!(SYS_sendmsg, fd, &raw const message, 0),
        ));
        results.push((format!("peer of {fd}"), call!(SYS_getpeername, fd, 8, 8)));
    }
    for fd in 3..1024_i64 {
        let flags = call!(SYS_fcntl, fd, libc::F_GETFD);
        if flags.is_ok() {
            results.push((format!("another descriptor {fd}"), flags));
        }
    }
    verdicts(results)
}
