// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Becoming or starting a program: execveat(2) by descriptor, and init's clone-and-exec of a function process.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    ptr,
};

use nix::{errno::Errno, sched::CpuSet, unistd::Pid};
use seccompiler::sock_filter;

use super::checked;

/// A NULL-terminated array of C strings, as execve(2) wants it.
#[derive(Debug, Default)]
pub(crate) struct Strings {
    pointers: Vec<*const c_char>,
    owned: Vec<CString>,
}

impl Strings {
    /// Room for `texts`, whose bytes do not move afterwards (a CString's are on the heap).
    pub(crate) fn new(texts: Vec<CString>) -> Self {
        let pointers = texts
            .iter()
            .map(|text| text.as_ptr())
            .chain([ptr::null()])
            .collect();
        Self {
            pointers,
            owned: texts,
        }
    }

    /// The first string, if any.
    pub(crate) fn first(&self) -> Option<&CStr> {
        self.owned.first().map(CString::as_c_str)
    }

    /// The strings, for tests to look at.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &CStr> {
        self.owned.iter().map(CString::as_c_str)
    }

    fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

/// Becomes the program that `image` refers to; returns only on failure.
pub(crate) fn exec_image(image: BorrowedFd<'_>, argv: &Strings, env: &Strings) -> Errno {
    // SAFETY: execveat(2) reads the empty path and two NULL-terminated arrays of NUL-terminated strings, which
    // `Strings` keeps alive and unmoved.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            image.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    checked(result).err().unwrap_or(Errno::UnknownErrno)
}

/// What [`Launcher::start`] executes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Executable<'a> {
    /// The file at this path.
    Path(&'a CStr),
    /// The file behind this descriptor.
    Image(BorrowedFd<'a>),
}

/// One process to start, in the working directory of its starter.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) executable: Executable<'a>,
    pub(crate) argv: &'a Strings,
    pub(crate) env: &'a Strings,
    /// What become stdin, stdout and stderr; none of them is 0, 1 or 2 already. Empty: as they are.
    pub(crate) stdio: &'a [BorrowedFd<'a>],
    /// A descriptor above 2 that stays open under its number; all others are closed by exec.
    pub(crate) keep: Option<BorrowedFd<'a>>,
    /// Cores to begin on.
    pub(crate) cores: &'a CpuSet,
    /// Limits, soft and hard alike: `(RLIMIT_*, value)`.
    pub(crate) rlimits: &'a [(c_int, u64)],
    /// One more filter over its system calls.
    pub(crate) overlay: Option<&'a [sock_filter]>,
}

/// The step of a start that failed, in the new process, before exec replaced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LaunchFailure {
    /// Which.
    pub(crate) step: &'static str,
    /// Why.
    pub(crate) errno: Errno,
}

/// How init starts a program. CLONE_UNTRACED, which means nothing where nobody may trace, tells it from every way in which
/// a C library does: the profile `strict` allows these flags and threads, and its overlay threads only.
pub(crate) const LAUNCH_FLAGS: c_int =
    libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_UNTRACED | libc::SIGCHLD;

/// Stack of a process between clone and exec: the deepest call chain there is a few hundred bytes.
const STACK_BYTES: usize = 64 * 1024;

/// Starts processes with CLONE_VM | CLONE_VFORK: no page tables are copied, and the caller sleeps until exec.
#[derive(Debug)]
pub(crate) struct Launcher {
    stack: Vec<u8>,
}

struct Shared<'a> {
    launch: &'a Launch<'a>,
    failure: Option<LaunchFailure>,
}

impl Launcher {
    /// Allocates the stack, once.
    pub(crate) fn new() -> Self {
        Self {
            stack: vec![0; STACK_BYTES],
        }
    }

    /// Starts one process; its start has happened, or failed and left nothing, when this returns.
    pub(crate) fn start(&mut self, launch: &Launch<'_>) -> Result<Pid, LaunchFailure> {
        let mut shared = Shared {
            launch,
            failure: None,
        };
        let top = self.stack.as_mut_ptr_range().end;
        let aligned = top.wrapping_sub(top.addr() % STACK_ALIGNMENT);
        // SAFETY: `aligned` is the 16-byte aligned end of `self.stack`, which is STACK_BYTES long and borrowed for the
        // whole call. CLONE_VFORK holds this thread until the child has exec'ed or exited, so `shared` outlives every
        // use in `child`, and nothing else runs in this address space meanwhile: init is single-threaded.
        let result = unsafe {
            libc::clone(
                child,
                aligned.cast::<c_void>(),
                LAUNCH_FLAGS,
                (&raw mut shared).cast::<c_void>(),
            )
        };
        match (Errno::result(result), shared.failure) {
            (Err(errno), _) => Err(LaunchFailure {
                step: "clone",
                errno,
            }),
            (Ok(pid), Some(failure)) => {
                // Leaves no zombie that would later be counted as one of the function's processes.
                let reaped = nix::sys::wait::waitpid(Pid::from_raw(pid), None);
                debug_assert!(reaped.is_ok(), "the child exited before clone returned");
                Err(failure)
            }
            (Ok(pid), None) => Ok(Pid::from_raw(pid)),
        }
    }
}

/// x86-64 and aarch64 ABIs alike.
const STACK_ALIGNMENT: usize = 16;

/// Runs in the new process, on the launcher's stack, in init's memory: system calls only, no allocation, no panic.
extern "C" fn child(shared: *mut c_void) -> c_int {
    // SAFETY: `Launcher::start` passes a pointer to its `Shared`, and sleeps until this function's process has gone.
    let shared = unsafe { &mut *shared.cast::<Shared<'_>>() };
    shared.failure = Some(become_program(shared.launch));
    super::clone::exit_now(EXIT_NOT_STARTED)
}

const EXIT_NOT_STARTED: i32 = 127;

/// Returns only on failure.
fn become_program(launch: &Launch<'_>) -> LaunchFailure {
    match prepare(launch) {
        Err(failure) => failure,
        Ok(()) => LaunchFailure {
            step: "exec",
            errno: exec(launch),
        },
    }
}

fn prepare(launch: &Launch<'_>) -> Result<(), LaunchFailure> {
    let at = |step: &'static str| move |errno: Errno| LaunchFailure { step, errno };
    // A function process has init's uid, and could have lowered what init passes on: each is set anew.
    for &(resource, value) in launch.rlimits {
        set_rlimit(resource, value).map_err(at("rlimit"))?;
    }
    begin_on(launch.cores).map_err(at("affinity"))?;
    normal_priority().map_err(at("priority"))?;
    // Its own process group: signals to a group stay among the function's processes. Not a session of its own, which init
    // has already: the kernel makes a scheduling group for each (sched(7), autogroup), for 10 µs and as much at its end.
    // SAFETY: setpgid(2) takes integers; 0 is the calling process.
    checked_int(unsafe { libc::setpgid(0, 0) }).map_err(at("process group"))?;
    close_on_exec_from(3).map_err(at("close"))?;
    for (number, fd) in (0..).zip(launch.stdio) {
        super::fds::place(*fd, number).map_err(at("stdio"))?;
    }
    launch.keep.map_or(Ok(()), keep_open).map_err(at("keep"))?;
    // Last: it is the program's, not the start's.
    let overlay = launch.overlay.map_or(Ok(()), super::seccomp::install);
    overlay.map_err(at("filter"))
}

fn exec(launch: &Launch<'_>) -> Errno {
    match launch.executable {
        Executable::Image(image) => exec_image(image, launch.argv, launch.env),
        Executable::Path(path) => {
            // SAFETY: execve(2) reads a NUL-terminated path and two NULL-terminated arrays that `Strings` keeps alive.
            let result =
                unsafe { libc::execve(path.as_ptr(), launch.argv.as_ptr(), launch.env.as_ptr()) };
            checked_int(result).err().unwrap_or(Errno::UnknownErrno)
        }
    }
}

fn checked_int(result: c_int) -> nix::Result<()> {
    Errno::result(result).map(drop)
}

/// Sets soft and hard limit alike.
pub(crate) fn set_rlimit(resource: c_int, value: u64) -> nix::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: value,
        rlim_max: value,
    };
    // SAFETY: setrlimit(2) reads one rlimit, which is passed; an unknown resource is EINVAL.
    let result = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            ptr::null::<u8>(),
        )
    };
    checked(result).map(drop)
}

/// These cores, whatever the parent has. Looking first costs a tenth of setting, and they nearly always are the same.
fn begin_on(cores: &CpuSet) -> nix::Result<()> {
    let own = Pid::from_raw(0);
    if nix::sched::sched_getaffinity(own)? == *cores {
        return Ok(());
    }
    nix::sched::sched_setaffinity(own, cores)
}

/// SCHED_OTHER at nice 0, whatever the parent has; of the class, looking first, as [`begin_on`]. By the bare system calls:
/// musl's functions of these names always fail.
fn normal_priority() -> nix::Result<()> {
    // SAFETY: sched_getscheduler(2) takes an integer; 0 is the calling process.
    let class = checked(unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) })?;
    if class != libc::c_long::from(libc::SCHED_OTHER) {
        // The kernel's struct sched_param is one integer.
        let priority: c_int = 0;
        // SAFETY: sched_setscheduler(2) takes integers and reads one sched_param.
        let result = unsafe {
            libc::syscall(
                libc::SYS_sched_setscheduler,
                0,
                libc::SCHED_OTHER,
                &raw const priority,
            )
        };
        checked(result)?;
    }
    // SAFETY: setpriority(2) takes integers; 0 is the calling process.
    checked_int(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) })
}

/// Sets every signal of the calling process to its default: exec undoes handlers, but hands on what is ignored, by
/// Rust's start-up (SIGPIPE) or by whoever started the service (a shell's background jobs: SIGINT).
///
/// By the bare system call: the C library refuses the two signals that it keeps for itself, which can be ignored, too.
pub(crate) fn default_signals() -> nix::Result<()> {
    // The kernel's struct sigaction: handler (SIG_DFL is 0), flags, restorer, mask.
    let default = [0_u64; 4];
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: rt_sigaction(2) reads a sigaction of 32 bytes, which is what is passed, and takes the size of a mask;
        // the default disposition runs no code of ours.
        let result = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null::<u64>(),
                size_of::<u64>(),
            )
        };
        match checked(result) {
            // SIGKILL and SIGSTOP have only their default.
            Ok(_) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The kernel's _NSIG.
const SIGNAL_MAX: c_int = 64;

/// Nothing blocked, which is what a program expects to begin with, whatever the service was started with.
pub(crate) fn unblock_signals() -> nix::Result<()> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

fn close_on_exec_from(first: u32) -> nix::Result<()> {
    // SAFETY: close_range(2) takes integers; with this flag it closes nothing now.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    checked(result).map(drop)
}

fn keep_open(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let number: RawFd = fd.as_raw_fd();
    // SAFETY: fcntl(F_SETFD) takes integers.
    checked_int(unsafe { libc::fcntl(number, libc::F_SETFD, 0) })
}
