// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a server used, read from /proc: processor time and minor faults of its process and everything below it, children that
//! have ended and were waited for included, from `/proc/PID/stat`; resident memory from `/proc/PID/status`.
//!
//! Processor time comes in ticks of 10 ms per process, which some seconds of load make small. Kernel work that belongs to no
//! process (taking a network namespace down, receiving packets in an interrupt) is in nobody's figure.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// `USER_HZ`, which is 100 on every architecture that Hearth builds for.
const TICK_US: f64 = 10_000.0;

/// Sums of one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_us: f64,
    /// Minor page faults of the serving process (the gateway; the whole of a plain server).
    pub(crate) server_faults: f64,
    /// Minor page faults below the spawner, its own and those of sandboxes that have ended included.
    pub(crate) sandbox_faults: f64,
    pub(crate) server_rss_kib: u64,
    /// The largest process in a sandbox.
    pub(crate) sandbox_rss_kib: u64,
}

impl Usage {
    /// Of the process `root` and all below it.
    pub(crate) fn of(root: u32) -> Result<Self> {
        let mut usage = Self::default();
        usage.add(root, Part::Server)?;
        Ok(usage)
    }

    fn add(&mut self, pid: u32, part: Part) -> Result<()> {
        // Whatever has ended since its parent was read is in its parent's sums.
        let Ok(stat) = Stat::of(pid) else {
            return Ok(());
        };
        self.cpu_us += stat.ticks * TICK_US;
        let rss_kib = resident_kib(pid);
        match part {
            Part::Server => {
                self.server_faults += stat.faults;
                self.server_rss_kib = self.server_rss_kib.max(rss_kib);
            }
            Part::Spawner => self.sandbox_faults += stat.faults,
            Part::Sandbox => {
                self.sandbox_faults += stat.faults;
                self.sandbox_rss_kib = self.sandbox_rss_kib.max(rss_kib);
            }
        }
        for child in children(pid) {
            let part = match part {
                Part::Server if is_spawner(child) => Part::Spawner,
                Part::Server => Part::Server,
                Part::Spawner | Part::Sandbox => Part::Sandbox,
            };
            self.add(child, part)?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Server,
    Spawner,
    Sandbox,
}

struct Stat {
    ticks: f64,
    faults: f64,
}

impl Stat {
    fn of(pid: u32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name stands in parentheses and may hold any character; the third field follows it.
        let (_, rest) = text.rsplit_once(')').context("no name in stat")?;
        let fields: Vec<f64> = rest
            .split_whitespace()
            .skip(1)
            .map(|field| field.parse().unwrap_or_default())
            .collect();
        // Numbers as in proc(5), which counts from 1; these begin with the fourth.
        let field = |number: usize| fields.get(number - 4).copied().unwrap_or_default();
        Ok(Self {
            ticks: field(14) + field(15) + field(16) + field(17),
            faults: field(10) + field(11),
        })
    }
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let lists = tasks
        .flatten()
        .map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    lists
        .flat_map(|list| {
            let pids = list.split_whitespace().map(str::parse);
            pids.collect::<Result<Vec<u32>, _>>().unwrap_or_default()
        })
        .collect()
}

fn is_spawner(pid: u32) -> bool {
    let line = fs::read(PathBuf::from(format!("/proc/{pid}/cmdline"))).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == b"spawner")
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kib_of(&status, "VmRSS:").unwrap_or_default()
}

/// Who used the processors since the start of the benchmark.
#[derive(Debug)]
pub(crate) struct Quiet {
    before: Moment,
}

#[derive(Debug)]
struct Moment {
    /// Of this process and everything that it started.
    ours_us: f64,
    /// Of everybody, the host of a virtual machine included.
    busy_us: f64,
    all_us: f64,
}

impl Quiet {
    pub(crate) fn begin() -> Result<Self> {
        let before = Moment::now()?;
        Ok(Self { before })
    }

    /// The share of all processor time that others took. Kernel threads are others, also where they clean up after Hearth.
    pub(crate) fn foreign_share(&self) -> Result<f64> {
        let (before, after) = (&self.before, Moment::now()?);
        let foreign_us = (after.busy_us - before.busy_us) - (after.ours_us - before.ours_us);
        Ok(foreign_us / (after.all_us - before.all_us))
    }
}

impl Moment {
    fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().context("/proc/stat is empty")?;
        let fields = line.split_whitespace().skip(1);
        let ticks: Vec<f64> = fields.map(|field| field.parse().unwrap_or(0.0)).collect();
        // user, nice, system, idle, iowait, irq, softirq, steal; the rest is part of user and nice.
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = ticks[..] else {
            bail!("not the processors' line: {line}");
        };
        let busy = user + nice + system + irq + softirq + steal;
        Ok(Self {
            ours_us: Usage::of(std::process::id())?.cpu_us,
            busy_us: busy * TICK_US,
            all_us: (busy + idle + iowait) * TICK_US,
        })
    }
}

/// `MemAvailable`, in KiB.
pub(crate) fn available_kib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    kib_of(&text, "MemAvailable:").context("no MemAvailable in /proc/meminfo")
}

fn kib_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}
