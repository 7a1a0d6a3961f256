// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A file of a base is one inode for all tenants: ways to meet on it, and ways to write it although it can only be read.

use std::path::Path;

use crate::lifetime::guard;
use crate::probes::{c_string, open, opens, verdicts};
use crate::sys::{self, Errno, call};
use crate::{Mode, Outcome};

pub(crate) const MODES: &[Mode] = &[("meet", "PATH [stay]", meet), ("poison", "PATH", poison)];

/// From linux/fcntl.h.
const DN_ACCESS: u32 = 1;

/// Ways for two tenants to notice each other on a file of a base that both have: each holds the file in every way that it
/// can, says so, and with `stay` goes on holding it.
fn meet(arguments: &[&str]) -> Outcome {
    let Some(path) = arguments.first() else {
        return Err("which file?".to_owned());
    };
    let path = Path::new(path);
    let fd = open(path, libc::O_RDONLY).map_err(Errno::name)?;
    // flock of fcntl(2): a shared lock, from the file's beginning to its end.
    // SAFETY: all zeros are a valid flock.
    let mut shared: libc::flock = unsafe { std::mem::zeroed() };
    shared.l_type = libc::F_RDLCK as i16;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let folder = open(folder, libc::O_RDONLY).map_err(Errno::name)?;
    let watched = c_string(path);
    let watch = call!(SYS_inotify_init1, libc::O_NONBLOCK);
    let results = [
        ("flock", call!(SYS_flock, fd, libc::LOCK_EX | libc::LOCK_NB)),
        (
            "record lock",
            call!(SYS_fcntl, fd, libc::F_SETLK, &raw const shared),
        ),
        (
            "open file lock",
            call!(SYS_fcntl, fd, libc::F_OFD_SETLK, &raw const shared),
        ),
        (
            "lease",
            call!(SYS_fcntl, fd, libc::F_SETLEASE, libc::F_RDLCK),
        ),
        (
            "notification",
            call!(SYS_fcntl, folder, libc::F_NOTIFY, DN_ACCESS),
        ),
        (
            "watch",
            watch.and_then(|watch| {
                call!(
                    SYS_inotify_add_watch,
                    watch,
                    watched.as_ptr(),
                    libc::IN_ALL_EVENTS
                )
            }),
        ),
    ];
    verdicts(results)?;
    if arguments.get(1) == Some(&"stay") {
        sys::sleep_for_ever();
    }
    Ok(0)
}

/// The calls by which the page cache of a file was overwritten that could only be read.
fn poison(arguments: &[&str]) -> Outcome {
    let Some(path) = arguments.first() else {
        return Err("which file?".to_owned());
    };
    guard()?;
    let file = open(Path::new(path), libc::O_RDONLY).map_err(Errno::name)?;
    let mut pipe = [0_i32; 2];
    call!(SYS_pipe2, pipe.as_mut_ptr(), libc::O_NONBLOCK).map_err(Errno::name)?;
    let mut pair = [0_i32; 2];
    call!(
        SYS_socketpair,
        libc::AF_UNIX,
        libc::SOCK_STREAM,
        0,
        pair.as_mut_ptr()
    )
    .map_err(Errno::name)?;
    let poison = *b"poisoned";
    let part = [poison.as_ptr().expose_provenance(), poison.len()];
    let shared = libc::PROT_READ | libc::PROT_WRITE;
    let family = |family: i32, kind: i32| call!(SYS_socket, family, kind, 0);
    let results = [
        ("AF_ALG", family(libc::AF_ALG, libc::SOCK_SEQPACKET)),
        ("RxRPC", family(libc::AF_RXRPC, libc::SOCK_DGRAM)),
        (
            "XFRM",
            call!(
                SYS_socket,
                libc::AF_NETLINK,
                libc::SOCK_RAW,
                libc::NETLINK_XFRM
            ),
        ),
        ("splice", call!(SYS_splice, file, 0, pipe[1], 0, 4096, 0)),
        (
            "vmsplice",
            call!(SYS_vmsplice, pipe[1], part.as_ptr(), 1, 0),
        ),
        ("tee", call!(SYS_tee, pipe[0], pipe[1], 4096, 0)),
        (
            "write",
            call!(SYS_pwrite64, file, poison.as_ptr(), poison.len(), 0),
        ),
        (
            "shared mapping",
            call!(SYS_mmap, 0, 4096, shared, libc::MAP_SHARED, file, 0),
        ),
        ("truncate", call!(SYS_ftruncate, file, 0)),
        ("fallocate", call!(SYS_fallocate, file, 0, 0, 4096)),
        (
            "copy",
            call!(SYS_copy_file_range, pipe[0], 0, file, 0, 8, 0),
        ),
        (
            "open again",
            opens(Path::new(&format!("/proc/self/fd/{file}")), libc::O_WRONLY),
        ),
        ("private page", write_private_page(file)),
        (
            "sendfile to a socket",
            call!(SYS_sendfile, pair[0], file, 0, 4096),
        ),
        (
            "sendfile to a pipe",
            call!(SYS_sendfile, pipe[1], file, 0, 4096),
        ),
    ];
    verdicts(results)
}

/// A private mapping that may only be read, written through /proc/self/mem: the way of CVE-2016-5195. Whatever it
/// writes must be a page of its own, and the answer is whether the file has changed.
fn write_private_page(file: i64) -> Result<i64, Errno> {
    let page = call!(
        SYS_mmap,
        0,
        4096,
        libc::PROT_READ,
        libc::MAP_PRIVATE,
        file,
        0
    )?;
    let memory = open(Path::new("/proc/self/mem"), libc::O_RDWR)?;
    let (mut before, mut after) = ([0_u8; 8], [0_u8; 8]);
    call!(SYS_pread64, file, before.as_mut_ptr(), before.len(), 0)?;
    for _ in 0..100 {
        drop(call!(SYS_pwrite64, memory, b"poisoned".as_ptr(), 8, page));
        drop(call!(SYS_madvise, page, 4096, libc::MADV_DONTNEED));
    }
    call!(SYS_pread64, file, after.as_mut_ptr(), after.len(), 0)?;
    if before == after {
        Err(Errno(libc::EROFS))
    } else {
        Ok(0)
    }
}
