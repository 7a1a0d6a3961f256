// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Attempts to get out. `escape` makes each and prints a JSON object of name and errno (`ok` where it worked); the
//! calls that end the process come one at a time through `escape-kill`. All arguments are such that a call that no wall
//! stops does little or nothing, and nothing runs as root.

use std::ffi::CStr;
use std::ptr::null;

use crate::json::Json;
use crate::lifetime::guard;
use crate::stdio::print;
use crate::sys::{Errno, call, raw, verdict};
use crate::{Mode, Outcome, number};

pub(crate) const MODES: &[Mode] = &[
    ("escape", "", escape),
    ("escape-kill", "NAME [REFUSED]", escape_kill),
    ("syscall", "NUMBER ARGUMENTS…", any_call),
    ("int80", "", int80),
];

type Attempt = (&'static str, fn() -> Result<i64, Errno>);

/// A pointer that no process has: where a call looks at its arguments at all, it says EFAULT.
const NOWHERE: usize = 8;

/// No such file anywhere.
const NO_FILE: &CStr = c"/nonexistent/hearth";

const X32_SYSCALL_BIT: i64 = 0x4000_0000;

/// From linux/keyctl.h.
const KEYCTL_GET_KEYRING_ID: i32 = 0;
const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
const KEY_SPEC_SESSION_KEYRING: i32 = -3;

const ATTEMPTS: &[Attempt] = &[
    ("mount", || {
        call!(
            SYS_mount,
            c"none".as_ptr(),
            c"/tmp".as_ptr(),
            c"tmpfs".as_ptr(),
            0,
            0
        )
    }),
    ("umount2", || call!(SYS_umount2, c"/proc".as_ptr(), 0)),
    ("pivot_root", || {
        call!(SYS_pivot_root, c"/".as_ptr(), c"/".as_ptr())
    }),
    ("chroot", || call!(SYS_chroot, c"/".as_ptr())),
    ("fsopen", || call!(SYS_fsopen, c"tmpfs".as_ptr(), 0)),
    ("fsmount", || call!(SYS_fsmount, -1, 0, 0)),
    ("open_tree", || {
        call!(SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), 1)
    }),
    ("move_mount", || {
        call!(SYS_move_mount, -1, c"".as_ptr(), -1, c"".as_ptr(), 0)
    }),
    ("mount_setattr", || {
        call!(
            SYS_mount_setattr,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            0,
            NOWHERE,
            32
        )
    }),
    ("unshare_user", || call!(SYS_unshare, libc::CLONE_NEWUSER)),
    ("unshare_mount", || call!(SYS_unshare, libc::CLONE_NEWNS)),
    ("unshare_net", || call!(SYS_unshare, libc::CLONE_NEWNET)),
    ("unshare_pid", || call!(SYS_unshare, libc::CLONE_NEWPID)),
    ("clone_newuser", || clone(libc::CLONE_NEWUSER)),
    ("clone_newnet", || clone(libc::CLONE_NEWNET)),
    ("clone3", || call!(SYS_clone3, NOWHERE, 64)),
    ("setns", || call!(SYS_setns, 0, 0)),
    ("setuid_0", || call!(SYS_setuid, 0)),
    ("setgid_0", || call!(SYS_setgid, 0)),
    ("setresuid_0", || call!(SYS_setresuid, 0, 0, 0)),
    ("setgroups", || call!(SYS_setgroups, 0, null::<u32>())),
    ("setfsuid", || call!(SYS_setfsuid, -1)),
    ("capset", || call!(SYS_capset, NOWHERE, NOWHERE)),
    ("chown", || {
        call!(SYS_fchownat, libc::AT_FDCWD, NO_FILE.as_ptr(), 0, 0, 0)
    }),
    ("mknod_char", || mknod(libc::S_IFCHR, 1, 5)),
    ("mknod_block", || mknod(libc::S_IFBLK, 8, 0)),
    ("ptrace_1", || {
        call!(SYS_ptrace, libc::PTRACE_ATTACH, 1, 0, 0)
    }),
    ("ptrace_seize_1", || {
        call!(SYS_ptrace, libc::PTRACE_SEIZE, 1, 0, 0)
    }),
    ("process_vm_readv_1", || {
        call!(SYS_process_vm_readv, 1, NOWHERE, 1, NOWHERE, 1, 0)
    }),
    ("pidfd_getfd_1", || call!(SYS_pidfd_getfd, 0, 0, 0)),
    ("kcmp_1", || call!(SYS_kcmp, 1, 1, 0, 0, 0)),
    ("open_proc_1_mem", || open(c"/proc/1/mem", libc::O_RDWR)),
    ("open_proc_1_environ", || {
        open(c"/proc/1/environ", libc::O_RDONLY)
    }),
    ("open_proc_1_exe", || open(c"/proc/1/exe", libc::O_RDONLY)),
    ("open_proc_1_root", || open(c"/proc/1/root", libc::O_RDONLY)),
    ("open_proc_1_fd", || open(c"/proc/1/fd", libc::O_RDONLY)),
    ("open_self_exe_for_writing", || {
        open(c"/proc/self/exe", libc::O_WRONLY)
    }),
    ("open_parent_of_root", || {
        open(c"/../../../../etc/shadow", libc::O_RDONLY)
    }),
    ("open_kcore", || open(c"/proc/kcore", libc::O_RDONLY)),
    ("open_kmsg", || open(c"/dev/kmsg", libc::O_RDONLY)),
    ("open_dev_mem", || open(c"/dev/mem", libc::O_RDONLY)),
    ("open_sys", || open(c"/sys", libc::O_RDONLY)),
    ("open_cgroup", || open(c"/sys/fs/cgroup", libc::O_RDONLY)),
    ("write_core_pattern", || {
        open(c"/proc/sys/kernel/core_pattern", libc::O_WRONLY)
    }),
    ("write_sysrq", || {
        open(c"/proc/sysrq-trigger", libc::O_WRONLY)
    }),
    ("write_uid_map", || {
        open(c"/proc/self/uid_map", libc::O_WRONLY)
    }),
    ("write_init_oom_score", || {
        open(c"/proc/1/oom_score_adj", libc::O_WRONLY)
    }),
    ("prlimit_1", || {
        call!(SYS_prlimit64, 1, libc::RLIMIT_NOFILE, 0, NOWHERE)
    }),
    ("prlimit_1_set", || set_limit(1, libc::RLIMIT_NOFILE, 64)),
    ("raise_core_limit", || {
        set_limit(0, libc::RLIMIT_CORE, u64::MAX)
    }),
    ("sched_setaffinity_1", || {
        call!(SYS_sched_setaffinity, 1, 8, [1_u64].as_ptr())
    }),
    ("sched_setscheduler_fifo", || {
        call!(
            SYS_sched_setscheduler,
            0,
            libc::SCHED_FIFO,
            [1_i32].as_ptr()
        )
    }),
    ("sched_setscheduler_1_idle", || {
        call!(
            SYS_sched_setscheduler,
            1,
            libc::SCHED_IDLE,
            [0_i32].as_ptr()
        )
    }),
    ("setpriority_1", || call!(SYS_setpriority, 0, 1, 19)),
    ("setpriority_self_minus_20", || {
        call!(SYS_setpriority, 0, 0, -20)
    }),
    ("ioprio_set_1", || call!(SYS_ioprio_set, 1, 1, 0)),
    ("socket_inet", || {
        socket(libc::AF_INET, libc::SOCK_STREAM, 0)
    }),
    ("socket_inet6", || {
        socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)
    }),
    ("socket_inet_raw", || {
        socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)
    }),
    ("socket_packet", || {
        socket(libc::AF_PACKET, libc::SOCK_RAW, 0)
    }),
    ("socket_netlink", || {
        socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)
    }),
    ("socket_alg", || {
        socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)
    }),
    ("socket_vsock", || {
        socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)
    }),
    ("socket_rxrpc", || {
        socket(libc::AF_RXRPC, libc::SOCK_DGRAM, libc::AF_INET)
    }),
    ("socket_key", || socket(libc::AF_KEY, libc::SOCK_RAW, 2)),
    ("socket_xdp", || socket(libc::AF_XDP, libc::SOCK_RAW, 0)),
    ("socket_can", || socket(libc::AF_CAN, libc::SOCK_RAW, 1)),
    ("socket_tipc", || socket(libc::AF_TIPC, libc::SOCK_DGRAM, 0)),
    ("keyctl_session_id", || {
        call!(
            SYS_keyctl,
            KEYCTL_GET_KEYRING_ID,
            KEY_SPEC_SESSION_KEYRING,
            0
        )
    }),
    ("keyctl_join", || {
        call!(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, null::<u8>())
    }),
    ("add_key", || {
        call!(
            SYS_add_key,
            c"user".as_ptr(),
            NOWHERE,
            NOWHERE,
            1,
            KEY_SPEC_SESSION_KEYRING
        )
    }),
    ("request_key", || {
        call!(SYS_request_key, c"user".as_ptr(), c"hearth".as_ptr(), 0, 0)
    }),
    ("bpf", || call!(SYS_bpf, 0, NOWHERE, 64)),
    ("perf_event_open", || {
        call!(SYS_perf_event_open, NOWHERE, 0, -1, -1, 0)
    }),
    ("userfaultfd", || call!(SYS_userfaultfd, 0)),
    ("io_uring_setup", || call!(SYS_io_uring_setup, 8, NOWHERE)),
    ("io_uring_enter", || {
        call!(SYS_io_uring_enter, -1, 0, 0, 0, 0)
    }),
    ("splice", || call!(SYS_splice, -1, 0, -1, 0, 1, 0)),
    ("vmsplice", || call!(SYS_vmsplice, -1, NOWHERE, 1, 0)),
    ("tee", || call!(SYS_tee, -1, -1, 1, 0)),
    ("name_to_handle_at", || {
        call!(
            SYS_name_to_handle_at,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            NOWHERE,
            NOWHERE,
            0
        )
    }),
    ("fanotify_init", || call!(SYS_fanotify_init, 0, 0)),
    ("syslog", || call!(SYS_syslog, 10, 0, 0)),
    ("sethostname", || call!(SYS_sethostname, NOWHERE, 1)),
    ("settimeofday", || call!(SYS_settimeofday, NOWHERE, 0)),
    ("clock_adjtime", || call!(SYS_clock_adjtime, 0, NOWHERE)),
    ("personality", || call!(SYS_personality, 0x0040_0000)),
    ("memfd_secret", || call!(SYS_memfd_secret, 0)),
    ("sync", || call!(SYS_sync)),
    ("tiocsti", || {
        call!(SYS_ioctl, 0, libc::TIOCSTI, c"x".as_ptr())
    }),
    ("tiocsti_high_bits", || {
        call!(SYS_ioctl, 0, libc::TIOCSTI | 1 << 32, c"x".as_ptr())
    }),
    ("tioclinux", || call!(SYS_ioctl, 0, 0x541C, NOWHERE)),
    ("shmget", shared_memory),
    ("msgget", message_queue),
    ("mq_open", || call!(SYS_mq_open, c"hearth".as_ptr(), 0)),
    ("clear_no_new_privs", || {
        call!(SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0)
    }),
    ("set_securebits", || {
        call!(SYS_prctl, libc::PR_SET_SECUREBITS, 0, 0, 0, 0)
    }),
    ("x32_getpid", || {
        raw(X32_SYSCALL_BIT | libc::SYS_getpid, [0; 6])
    }),
    ("unknown_call_600", || raw(600, [0; 6])),
];

/// Of these a filter makes the end of the process.
const DEADLY: &[Attempt] = &[
    ("open_by_handle_at", || {
        call!(SYS_open_by_handle_at, -1, NOWHERE, 0)
    }),
    ("acct", || call!(SYS_acct, NOWHERE)),
    ("init_module", || {
        call!(SYS_init_module, NOWHERE, 0, NOWHERE)
    }),
    ("finit_module", || call!(SYS_finit_module, -1, NOWHERE, 0)),
    ("delete_module", || call!(SYS_delete_module, NOWHERE, 0)),
    ("ioperm", || call!(SYS_ioperm, 0xFFFF_FFFF_u32, 1, 1)),
    ("iopl", || call!(SYS_iopl, 99)),
    ("kexec_load", || call!(SYS_kexec_load, 0, 99, NOWHERE, 0)),
    ("kexec_file_load", || {
        call!(SYS_kexec_file_load, -1, -1, 0, NOWHERE, 0)
    }),
    ("quotactl", || call!(SYS_quotactl, -1, NOWHERE, 0, NOWHERE)),
    ("quotactl_fd", || call!(SYS_quotactl_fd, -1, -1, 0, NOWHERE)),
    // Without the magic numbers the kernel does nothing.
    ("reboot", || call!(SYS_reboot, 0, 0, 0, 0)),
    ("swapon", || call!(SYS_swapon, NOWHERE, 0)),
    ("swapoff", || call!(SYS_swapoff, NOWHERE)),
];

fn escape(_: &[&str]) -> Outcome {
    guard()?;
    let results = ATTEMPTS
        .iter()
        .map(|(name, attempt)| (*name, Json::text(verdict(attempt()))));
    print(&format!("{}\n", Json::object(results)));
    Ok(0)
}

/// After REFUSED calls that are merely refused.
fn escape_kill(arguments: &[&str]) -> Outcome {
    guard()?;
    let wanted = arguments.first();
    let Some((name, attempt)) = DEADLY.iter().find(|(name, _)| wanted == Some(name)) else {
        return Err(format!(
            "one of: {}",
            DEADLY
                .iter()
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
                .join(" ")
        ));
    };
    for _ in 0..number(arguments, 1, 0)? {
        drop(call!(SYS_bpf, 0, 0, 0));
    }
    print(&format!(
        "{}\n",
        Json::object([(*name, Json::text(verdict(attempt())))])
    ));
    Ok(0)
}

/// Any call with numbers as arguments, for a test of every rule of a profile.
fn any_call(arguments: &[&str]) -> Outcome {
    guard()?;
    let mut numbers = Vec::new();
    for word in arguments {
        numbers.push(
            word.parse::<i64>()
                .map_err(|error| format!("{word} is not a number: {error}"))?,
        );
    }
    let [number, rest @ ..] = numbers.as_slice() else {
        return Err("which call?".to_owned());
    };
    let mut registers = [0; 6];
    let count = rest.len().min(registers.len());
    registers[..count].copy_from_slice(&rest[..count]);
    print(&format!("{}\n", verdict(raw(*number, registers))));
    Ok(0)
}

/// getpid(2) by the door of 32-bit programs, whose calls have other numbers.
fn int80(_: &[&str]) -> Outcome {
    #[cfg(target_arch = "x86_64")]
    {
        const GETPID_OF_I386: i64 = 20;
        let answer: i64;
        // SAFETY: getpid has no argument and no effect; the kernel changes rax alone, and r8 to r11 on older versions.
        unsafe {
            std::arch::asm!(
                "int 0x80",
                inlateout("rax") GETPID_OF_I386 => answer,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        print(&format!("int80: {answer}\n"));
        Ok(0)
    }
    #[cfg(not(target_arch = "x86_64"))]
    Err("this processor has no such door".to_owned())
}

/// A child that a wall should have prevented ends at once.
fn clone(flag: i32) -> Result<i64, Errno> {
    let child = call!(SYS_clone, flag | libc::SIGCHLD, 0, 0, 0, 0)?;
    if child == 0 {
        crate::sys::exit_now(0);
    }
    Ok(child)
}

fn mknod(kind: u32, major: u32, minor: u32) -> Result<i64, Errno> {
    call!(
        SYS_mknodat,
        libc::AT_FDCWD,
        c"/tmp/hostile-device".as_ptr(),
        kind | 0o600,
        libc::makedev(major, minor)
    )
}

fn open(path: &CStr, flags: i32) -> Result<i64, Errno> {
    let fd = call!(
        SYS_openat,
        libc::AT_FDCWD,
        path.as_ptr(),
        flags | libc::O_CLOEXEC | libc::O_NONBLOCK
    )?;
    call!(SYS_close, fd)
}

fn socket(family: i32, kind: i32, protocol: i32) -> Result<i64, Errno> {
    let fd = call!(SYS_socket, family, kind | libc::SOCK_CLOEXEC, protocol)?;
    call!(SYS_close, fd)
}

fn shared_memory() -> Result<i64, Errno> {
    let object = call!(SYS_shmget, libc::IPC_PRIVATE, 4096, 0o600)?;
    call!(SYS_shmctl, object, libc::IPC_RMID, 0)
}

fn message_queue() -> Result<i64, Errno> {
    let object = call!(SYS_msgget, libc::IPC_PRIVATE, 0o600)?;
    call!(SYS_msgctl, object, libc::IPC_RMID, 0)
}

fn set_limit(pid: i32, resource: u32, value: u64) -> Result<i64, Errno> {
    let limit = libc::rlimit {
        rlim_cur: value,
        rlim_max: value,
    };
    call!(SYS_prlimit64, pid, resource, &raw const limit, 0)
}
