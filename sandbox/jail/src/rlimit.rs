// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Resource limits (setrlimit(2)) that every process of a sandbox has, soft and hard alike. What a cgroup limits
//! (memory, processes, CPU time) is not limited here again.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{
    failure::{Failure, at},
    sys,
};

/// In bytes. Not 0, which keeps no core from a program that `kernel.core_pattern` pipes to: for a pipe the kernel looks at
/// this limit for the value 1 only, and then starts nothing (core(5) on its handler's own crash; `do_coredump` in
/// fs/coredump.c). A file needs a page at least, so that 1 writes none either.
const CORE_BYTES: u64 = 1;

/// Each limit with its value. The hard limits hold because no process inside has CAP_SYS_RESOURCE.
pub(crate) const LIMITS: [(libc::c_int, u64); 9] = [
    // A core dump would be written by the host's handler, outside every wall.
    (RLIMIT_CORE, CORE_BYTES),
    // The usual soft limit, which select(2) can still count to.
    (RLIMIT_NOFILE, 1024),
    // The largest scratch that a manifest may ask for is below this; sparse files of exabytes are not needed.
    (RLIMIT_FSIZE, 16 * 1024 * 1024 * 1024),
    // The usual default: more would let mmap_base move.
    (RLIMIT_STACK, 8 * 1024 * 1024),
    // The kernel's old default of 16 pages; locked pages cannot be reclaimed by the memory cgroup.
    (RLIMIT_MEMLOCK, 64 * 1024),
    // No real-time scheduling and no negative nice values.
    (RLIMIT_RTPRIO, 0),
    (RLIMIT_NICE, 0),
    // POSIX message queues are charged to the user, not to the cgroup, and no profile has them.
    (RLIMIT_MSGQUEUE, 0),
    // Queued signals are counted per uid; the usual default is host-dependent and larger.
    (RLIMIT_SIGPENDING, 1024),
];

/// What `/proc/PID/limits` calls them, in the order of [`LIMITS`].
pub(crate) const NAMES: [&str; LIMITS.len()] = [
    "Max core file size",
    "Max open files",
    "Max file size",
    "Max stack size",
    "Max locked memory",
    "Max realtime priority",
    "Max nice priority",
    "Max msgqueue size",
    "Max pending signals",
];

const RLIMIT_CORE: libc::c_int = Resource::RLIMIT_CORE as libc::c_int;
const RLIMIT_NOFILE: libc::c_int = Resource::RLIMIT_NOFILE as libc::c_int;
const RLIMIT_FSIZE: libc::c_int = Resource::RLIMIT_FSIZE as libc::c_int;
const RLIMIT_STACK: libc::c_int = Resource::RLIMIT_STACK as libc::c_int;
const RLIMIT_MEMLOCK: libc::c_int = Resource::RLIMIT_MEMLOCK as libc::c_int;
const RLIMIT_RTPRIO: libc::c_int = Resource::RLIMIT_RTPRIO as libc::c_int;
const RLIMIT_NICE: libc::c_int = Resource::RLIMIT_NICE as libc::c_int;
const RLIMIT_MSGQUEUE: libc::c_int = Resource::RLIMIT_MSGQUEUE as libc::c_int;
const RLIMIT_SIGPENDING: libc::c_int = Resource::RLIMIT_SIGPENDING as libc::c_int;

/// [`LIMITS`] as this process can set them on itself and on what it starts: where the host's hard limit allows no core of
/// any size, an ordinary user cannot have the value that stops a pipe.
pub(crate) fn settable() -> nix::Result<[(libc::c_int, u64); LIMITS.len()]> {
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    Ok(LIMITS.map(|(resource, value)| match resource {
        RLIMIT_CORE => (resource, value.min(hard)),
        _ => (resource, value),
    }))
}

/// Sets [`LIMITS`] on the calling process. None of them is a raise on a host with usual limits, so CAP_SYS_RESOURCE
/// is not needed; where the host's own hard limit is lower still (but for cores), this fails and names it.
pub(crate) fn install() -> Result<(), Failure> {
    for (resource, value) in settable().map_err(at("read a resource limit"))? {
        sys::program::set_rlimit(resource, value).map_err(at("set a resource limit"))?;
    }
    Ok(())
}

/// For the spawner, which holds five descriptors per sandbox: as many as the host allows. A sandbox's own limit is set
/// after the clone.
pub(crate) fn open_many_files() -> Result<(), Failure> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(at("read a resource limit"))?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(at("set a resource limit"))
}

/// Whether the calling process has the two limits whose absence would hurt most.
pub(crate) fn hold() -> Result<bool, Failure> {
    let read = |resource| getrlimit(resource).map_err(at("read a resource limit"));
    let (soft, hard) = read(Resource::RLIMIT_CORE)?;
    Ok(soft.max(hard) <= CORE_BYTES && read(Resource::RLIMIT_RTPRIO)? == (0, 0))
}
