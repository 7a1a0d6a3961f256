// SPDX-License-Identifier: Apache-2.0 OR MIT
//! seccomp(2) where seccompiler does not go: questions, listeners, a filter put on between clone and exec, and the filters of
//! another process, by ptrace(2).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::{
    errno::Errno,
    poll::{PollTimeout, poll},
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
    unistd::Pid,
};
use seccompiler::sock_filter;

/// Puts the calling thread behind one more filter; `no_new_privs` is set already. Allocates nothing.
pub(crate) fn install(filter: &[sock_filter]) -> nix::Result<()> {
    set_filter(filter, 0).map(drop)
}

/// As [`install`], and gives the descriptor on which the filter's questions arrive (seccomp_unotify(2)). Closed on exec.
pub(crate) fn install_listening(filter: &[sock_filter]) -> nix::Result<OwnedFd> {
    let number = set_filter(filter, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    let number = RawFd::try_from(number).map_err(|_too_large| nix::Error::EBADF)?;
    // SAFETY: with this flag seccomp(2) returns a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn set_filter(filter: &[sock_filter], flags: libc::c_ulong) -> nix::Result<libc::c_long> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_too_long| nix::Error::E2BIG)?,
        // The kernel reads it only.
        filter: filter.as_ptr().cast_mut().cast(),
    };
    // SAFETY: seccomp(2) reads the sock_fprog and the `len` instructions behind it, which are alive during the call;
    // seccompiler's sock_filter has the kernel's layout (repr(C), four fields).
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    super::checked(result)
}

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
/// kernel, and the host lets it run: one that is overloaded took more than 100.
const STOP_LOOKS_MAX: u32 = 1000;

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
            libc::c_long::from(child.as_raw()),
            address,
            data,
        )
    };
    let result = super::checked(result)?;
    usize::try_from(result).map_err(|_negative| Errno::EOVERFLOW)
}

/// clone3(2) without arguments, which makes nothing: EINVAL is the kernel's answer.
pub(crate) fn try_empty_clone3() -> nix::Result<()> {
    // SAFETY: clone3(2) with a size of 0 is refused before the null pointer is looked at.
    let result =
        unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<libc::clone_args>(), 0) };
    super::checked(result).map(drop)
}

/// A call that waits for an answer.
#[derive(Debug)]
pub(crate) struct Question {
    /// For the answer.
    pub(crate) id: u64,
    /// Who asks, in the pid namespace of whoever hears it.
    pub(crate) pid: Pid,
    pub(crate) number: u32,
    pub(crate) arguments: [u64; 6],
}

// By the bare system call: C libraries do not agree on the type of a request.
// uapi/linux/seccomp.h: SECCOMP_IOWR(0, struct seccomp_notif), SECCOMP_IOWR(1, struct seccomp_notif_resp).
const NOTIF_RECV: libc::c_ulong = 0xc050_2100;
const NOTIF_SEND: libc::c_ulong = 0xc018_2101;
const _: () = assert!(size_of::<libc::seccomp_notif>() == 0x50);
const _: () = assert!(size_of::<libc::seccomp_notif_resp>() == 0x18);

/// The next question of a listener that poll(2) has just called readable; ENOENT where whoever asked has died.
pub(crate) fn hear(listener: BorrowedFd<'_>) -> nix::Result<Question> {
    // SAFETY: seccomp_notif is integers, for which zero is a value, and the one that the kernel asks for.
    let mut notif: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the ioctl writes one seccomp_notif, whose size is part of its number.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            listener.as_raw_fd(),
            NOTIF_RECV,
            &raw mut notif,
        )
    };
    super::checked(result)?;
    Ok(Question {
        id: notif.id,
        pid: Pid::from_raw(notif.pid.cast_signed()),
        number: notif.data.nr.cast_unsigned(),
        arguments: notif.data.args,
    })
}

/// Has the call fail; ENOENT where whoever asked has died meanwhile.
pub(crate) fn refuse(listener: BorrowedFd<'_>, id: u64, errno: u16) -> nix::Result<()> {
    let (error, flags) = (-i32::from(errno), 0);
    answer(listener, id, error, flags)
}

/// Has the call happen, as it would without a filter; ENOENT as above. Only for who decides by number and registers: memory
/// behind a pointer can be another by the time at which the kernel reads it (seccomp_unotify(2)).
pub(crate) fn proceed(listener: BorrowedFd<'_>, id: u64) -> nix::Result<()> {
    answer(listener, id, 0, USER_NOTIF_FLAG_CONTINUE)
}

/// uapi/linux/seccomp.h; the type of libc's differs by C library.
const USER_NOTIF_FLAG_CONTINUE: u32 = 1;

fn answer(listener: BorrowedFd<'_>, id: u64, error: i32, flags: u32) -> nix::Result<()> {
    let answer = libc::seccomp_notif_resp {
        id,
        val: 0,
        error,
        flags,
    };
    // SAFETY: the ioctl reads one seccomp_notif_resp, whose size is part of its number.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            listener.as_raw_fd(),
            NOTIF_SEND,
            &raw const answer,
        )
    };
    super::checked(result).map(drop)
}
