// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Settings of the host that decide how much an attacker finds behind the walls. None of them keeps Hearth from running;
//! each is said with what to do, because only the operator can know what else needs it.

use std::{fs, path::Path};

use super::{Area, Finding};

/// A file with one word, the values that are fine, and what else means.
struct Setting {
    path: &'static str,
    fine: &'static [&'static str],
    /// Completes "…, so".
    consequence: &'static str,
    fix: &'static str,
}

/// A file that does not exist says that the kernel has no such thing, which is fine for every one of these.
const SETTINGS: [Setting; 11] = [
    Setting {
        path: "/proc/sys/kernel/io_uring_disabled",
        fine: &["1", "2"],
        consequence: "other programs of this host can use io_uring; sandboxes cannot",
        fix: "sysctl kernel.io_uring_disabled=2",
    },
    Setting {
        path: "/proc/sys/dev/tty/legacy_tiocsti",
        fine: &["0"],
        consequence: "a terminal's input can be faked; in sandboxes the filter refuses it",
        fix: "sysctl dev.tty.legacy_tiocsti=0",
    },
    Setting {
        path: "/proc/sys/kernel/unprivileged_bpf_disabled",
        fine: &["1", "2"],
        consequence: "ordinary users can load BPF programs; sandboxes cannot",
        fix: "sysctl kernel.unprivileged_bpf_disabled=1",
    },
    Setting {
        path: "/proc/sys/kernel/yama/ptrace_scope",
        fine: &["1", "2", "3"],
        consequence: "a user's processes can trace each other; in sandboxes the filter refuses it",
        fix: "sysctl kernel.yama.ptrace_scope=1",
    },
    Setting {
        path: "/proc/sys/fs/protected_symlinks",
        fine: &["1"],
        consequence: "links in shared folders are followed for anyone",
        fix: "sysctl fs.protected_symlinks=1",
    },
    Setting {
        path: "/proc/sys/fs/protected_hardlinks",
        fine: &["1"],
        consequence: "anyone can link to a file that is not theirs",
        fix: "sysctl fs.protected_hardlinks=1",
    },
    Setting {
        path: "/proc/sys/fs/protected_fifos",
        fine: &["1", "2"],
        consequence: "pipes in shared folders are opened for anyone",
        fix: "sysctl fs.protected_fifos=1",
    },
    Setting {
        path: "/proc/sys/fs/protected_regular",
        fine: &["1", "2"],
        consequence: "files in shared folders are opened for anyone",
        fix: "sysctl fs.protected_regular=1",
    },
    Setting {
        path: "/sys/kernel/mm/ksm/run",
        fine: &["0", "2"],
        consequence: "equal pages of different users are merged, which tells one about the other",
        fix: "echo 2 > /sys/kernel/mm/ksm/run",
    },
    Setting {
        path: "/sys/devices/system/cpu/smt/active",
        fine: &["0"],
        consequence: "two sandboxes can share a core's caches at the same moment",
        fix: "boot with nosmt, where functions of hostile tenants run side by side",
    },
    Setting {
        path: "/proc/sys/net/core/bpf_jit_harden",
        fine: &["1", "2"],
        consequence: "compiled BPF programs are not blinded",
        fix: "sysctl net.core.bpf_jit_harden=2",
    },
];

/// Modules whose bugs were used to write into files that can only be read (threats N-13, N-26); filters keep sandboxes
/// away from them.
const MODULES: [&str; 4] = ["algif_aead", "esp4", "esp6", "rxrpc"];

pub(super) fn risky() -> Vec<Finding> {
    let mut findings: Vec<_> = SETTINGS.iter().filter_map(look).collect();
    findings.push(swap());
    findings.push(core_pattern());
    findings.push(modules());
    findings.extend(foreign_abi());
    findings
}

fn look(setting: &Setting) -> Option<Finding> {
    let text = fs::read_to_string(setting.path).ok()?;
    let value = text.trim();
    let finding = Finding::new(Area::Settings, subject_of(setting.path));
    Some(if setting.fine.contains(&value) {
        finding.given(value)
    } else {
        finding
            .advice(format!("{value}: {}", setting.consequence))
            .fix(setting.fix)
    })
}

/// `/proc/sys/kernel/io_uring_disabled` is what sysctl(8) calls `kernel.io_uring_disabled`.
fn subject_of(path: &str) -> String {
    path.strip_prefix("/proc/sys/")
        .map_or_else(|| path.to_owned(), |name| name.replace('/', "."))
}

fn swap() -> Finding {
    let finding = Finding::new(Area::Settings, "swap");
    let listing = fs::read_to_string("/proc/swaps").unwrap_or_default();
    // The first line is the header.
    match listing.lines().count() {
        0 | 1 => finding.given("off"),
        _ => finding
            .advice(
                "on: what a function had in memory may reach a disk, from which sandboxes are kept",
            )
            .fix("swapoff -a, or encrypt it"),
    }
}

fn core_pattern() -> Finding {
    let finding = Finding::new(Area::Settings, "kernel.core_pattern");
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    if is_handler(&pattern) {
        return finding
            .advice(
                "a program, run outside every sandbox; a crash in one does not start it, but a function that lowers its own core limit to 0 and crashes does",
            )
            .fix("sysctl kernel.core_pattern=core");
    }
    finding.given(pattern.trim())
}

/// Whether the kernel hands cores to a program, by a pipe or by a socket (core(5)).
fn is_handler(pattern: &str) -> bool {
    pattern.starts_with(['|', '@'])
}

/// Whether a function that means to can have a program of the host started by crashing.
pub(crate) fn has_core_handler() -> bool {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern");
    pattern.is_ok_and(|pattern| is_handler(&pattern))
}

/// What the kernel was booted with; another architecture has no such thing.
fn foreign_abi() -> Option<Finding> {
    if !cfg!(target_arch = "x86_64") {
        return None;
    }
    let finding = Finding::new(Area::Settings, "ia32_emulation");
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    let off = |word: &str| {
        let value = word.strip_prefix("ia32_emulation=");
        value.is_some_and(|value| ["0", "n", "off", "false"].contains(&value))
    };
    Some(if line.split_whitespace().any(off) {
        finding.given("off")
    } else {
        finding
            .advice("not switched off: 32-bit programs reach other system calls; in sandboxes they are killed")
            .fix("boot with ia32_emulation=0, where no 32-bit program is needed")
    })
}

fn modules() -> Finding {
    let finding = Finding::new(Area::Settings, "modules");
    let loaded: Vec<_> = MODULES
        .into_iter()
        .filter(|name| Path::new("/sys/module").join(name).exists())
        .collect();
    if loaded.is_empty() {
        return finding.given(format!("none of {} is loaded", MODULES.join(", ")));
    }
    finding
        .advice(format!(
            "{} loaded: bugs in them were used to get out of containers",
            loaded.join(", ")
        ))
        .fix(format!("modprobe -r {}", loaded.join(" ")))
}
