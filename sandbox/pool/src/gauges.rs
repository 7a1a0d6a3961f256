// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A sandbox's cgroup files, opened by the spawner and read here by pread(2): no privilege, no hop, 1 to 3 µs each.

use std::{
    fs::File,
    io::Read,
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use hearth_protocol::spawner::{CREATED_FDS, CgroupLayout, CreatedFd, Host};

/// The cgroup files of one sandbox.
#[derive(Debug)]
pub(crate) struct Gauges {
    files: Vec<File>,
    layout: CgroupLayout,
    peak_resets: bool,
}

/// What the counters stood at.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    pub(crate) cpu_us: u64,
    pub(crate) throttled: u64,
    pub(crate) forks_refused: u64,
    pub(crate) oom_kills: u64,
}

/// Larger than any of the files that are read. In bytes.
const FILE_BYTES_MAX: usize = 1024;

impl Gauges {
    /// From the fds of `Created` without the control socket.
    pub(crate) fn new(fds: impl Iterator<Item = OwnedFd>, host: &Host) -> Option<Self> {
        let files: Vec<File> = fds.map(File::from).collect();
        (files.len() == CREATED_FDS - 1).then_some(Self {
            files,
            layout: host.cgroup,
            peak_resets: host.memory_peak_resets,
        })
    }

    /// Whether the peak is that of one invocation.
    pub(crate) fn peak_resets(&self) -> bool {
        self.peak_resets
    }

    /// All event counters. A file that cannot be read any more (the cgroup is gone) counts as 0.
    pub(crate) fn counters(&self) -> Counters {
        Counters {
            cpu_us: self.cpu_us(),
            throttled: self.throttled(),
            forks_refused: self.field(CreatedFd::PidsEvents, "max"),
            oom_kills: self.oom_kills(),
        }
    }

    /// `nr_throttled` so far.
    pub(crate) fn throttled(&self) -> u64 {
        self.field(CreatedFd::CpuThrottle, "nr_throttled")
    }

    /// `oom_kill` so far.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.field(CreatedFd::MemoryEvents, "oom_kill")
    }

    /// How many system calls were refused by name since this was asked last.
    pub(crate) fn violations(&self) -> u64 {
        let mut count = [0; 8];
        let file = self.files.get(CreatedFd::Violations as usize - 1);
        match file.map(|mut file| file.read(&mut count)) {
            Some(Ok(8)) => u64::from_ne_bytes(count),
            // None: an eventfd that holds nothing has nothing to read.
            _ => 0,
        }
    }

    /// Charged bytes now.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.number(CreatedFd::MemoryUsage)
    }

    /// The most charged bytes since the last reset.
    pub(crate) fn memory_peak_bytes(&self) -> u64 {
        self.number(CreatedFd::MemoryPeak)
    }

    /// Begins a new peak, where the kernel can.
    pub(crate) fn reset_memory_peak(&self) {
        if self.peak_resets {
            // Failing means that the cgroup is gone; the next use of the sandbox finds out.
            drop(self.file(CreatedFd::MemoryPeak).write_at(b"0", 0));
        }
    }

    /// Processes and threads now.
    pub(crate) fn pids(&self) -> u64 {
        self.number(CreatedFd::PidsCurrent)
    }

    fn cpu_us(&self) -> u64 {
        match self.layout {
            CgroupLayout::V2 => self.field(CreatedFd::CpuUsage, "usage_usec"),
            CgroupLayout::Hybrid | CgroupLayout::V1 => self.number(CreatedFd::CpuUsage) / 1000,
        }
    }

    fn file(&self, which: CreatedFd) -> &File {
        // Position 0 is the control socket, which is not among the files.
        &self.files[which as usize - 1]
    }

    fn number(&self, which: CreatedFd) -> u64 {
        self.read(which, |text| text.trim().parse().ok())
    }

    fn field(&self, which: CreatedFd, key: &str) -> u64 {
        self.read(which, |text| field_of(text, key))
    }

    fn read(&self, which: CreatedFd, parse: impl Fn(&str) -> Option<u64>) -> u64 {
        let mut buffer = [0_u8; FILE_BYTES_MAX];
        let length = self.file(which).read_at(&mut buffer, 0).unwrap_or(0);
        std::str::from_utf8(&buffer[..length])
            .ok()
            .and_then(parse)
            .unwrap_or(0)
    }
}

/// The value of `key` in lines of `key value`.
fn field_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(key)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let v1 = "oom_kill_disable 0\nunder_oom 1\noom_kill 3\n";
        assert_eq!(field_of(v1, "oom_kill"), Some(3));
        let v2 = "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(
            (field_of(v2, "max"), field_of(v2, "oom_kill")),
            (Some(9), Some(1))
        );
        assert_eq!(field_of(v2, "absent"), None);
    }
}
