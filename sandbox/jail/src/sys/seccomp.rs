// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The seccomp(2) questions that seccompiler does not ask, and the filters of another process, by ptrace(2).

use nix::{
    errno::Errno,
    poll::{PollTimeout, poll},
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
    unistd::Pid,
};

/// Whether the kernel knows the action (`SECCOMP_RET_*`); EOPNOTSUPP where it does not.
pub(crate) fn is_available(action: u32) -> nix::Result<()> {
    let flags: libc::c_uint = 0;
    // SAFETY: seccomp(2) with SECCOMP_GET_ACTION_AVAIL reads the one integer behind its third argument, which outlives
    // the call, and changes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            flags,
            std::ptr::from_ref(&action),
        )
    };
    super::checked(result).map(drop)
}

/// One instruction as the kernel keeps it: code, jt, jf, k.
pub(crate) type Instruction = libc::sock_filter;

/// More filters are on no process of a sandbox: each one costs every call.
const FILTERS_MAX: u64 = 8;

/// BPF_MAXINSNS: the longest filter.
const INSTRUCTIONS_MAX: usize = 4096;

/// How often, and a millisecond apart, it is asked whether a process has stopped: it does as soon as it leaves the
/// kernel.
const STOP_LOOKS_MAX: u32 = 100;

/// The filters of a child of the caller, the newest first. It is stopped for some microseconds; the system call that
/// it waits in goes on afterwards.
///
/// ETIMEDOUT where it does not stop: it is then still seized, and to be killed. EACCES or EINVAL where the kernel
/// gives no filters out (the caller has one itself; no CONFIG_CHECKPOINT_RESTORE).
pub(crate) fn filters_of(child: Pid) -> nix::Result<Vec<Vec<Instruction>>> {
    ptrace(PTRACE_SEIZE, child, 0, std::ptr::null_mut())?;
    ptrace(PTRACE_INTERRUPT, child, 0, std::ptr::null_mut())?;
    await_stop(child)?;
    let filters = read_filters(child);
    // ESRCH: it was killed meanwhile, which the caller will hear of.
    ptrace(PTRACE_DETACH, child, 0, std::ptr::null_mut())?;
    filters
}

fn await_stop(child: Pid) -> nix::Result<()> {
    for _ in 0..STOP_LOOKS_MAX {
        // Stops only: whoever reaps the child must find its end.
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
        if waitid(Id::Pid(child), flags)? != WaitStatus::StillAlive {
            return Ok(());
        }
        poll(&mut [], PollTimeout::from(1_u8))?;
    }
    Err(Errno::ETIMEDOUT)
}

fn read_filters(child: Pid) -> nix::Result<Vec<Vec<Instruction>>> {
    let none = Instruction {
        code: 0,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let mut buffer = vec![none; INSTRUCTIONS_MAX];
    let mut filters = Vec::new();
    for index in 0..FILTERS_MAX {
        let data = buffer.as_mut_ptr().cast();
        match ptrace(PTRACE_SECCOMP_GET_FILTER, child, index, data) {
            Ok(length) => {
                let filter = buffer.get(..length).ok_or(Errno::EOVERFLOW)?;
                filters.push(filter.to_vec());
            }
            // There are no more.
            Err(Errno::ENOENT) => return Ok(filters),
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EOVERFLOW)
}

const PTRACE_SEIZE: libc::c_uint = 0x4206;
const PTRACE_INTERRUPT: libc::c_uint = 0x4207;
const PTRACE_DETACH: libc::c_uint = 17;
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;

/// `data` is null, or room for [`INSTRUCTIONS_MAX`] instructions.
fn ptrace(
    request: libc::c_uint,
    child: Pid,
    address: u64,
    data: *mut libc::c_void,
) -> nix::Result<usize> {
    // SAFETY: of the requests of this module only PTRACE_SECCOMP_GET_FILTER writes to `data`, at most BPF_MAXINSNS
    // instructions, which is what `read_filters` has room for; the others take integers.
    // The bare system call: the type of a request differs by C library.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ptrace,
            libc::c_ulong::from(request),
            child.as_raw(),
            address,
            data,
        )
    };
    let result = super::checked(result)?;
    usize::try_from(result).map_err(|_negative| Errno::EOVERFLOW)
}
