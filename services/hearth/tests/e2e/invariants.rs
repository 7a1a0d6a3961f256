// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What must hold after every attack, whatever its outcome was:
//!
//! | | |
//! | --- | --- |
//! | I1 | the gateway is healthy, and functions of other tenants answer at once |
//! | I2 | no cgroup and no process is left of a sandbox that is gone, and none beside its own in one that stays |
//! | I3 | no mount, network namespace, key, IPC object or file that was not there before |
//! | I4 | the gateway's open files and threads, and the monitor's descendants, are as many as before |
//! | I5 | every answer had one of the known outcomes, and none was an internal error |
//! | I6 | the host's own files, Hearth's images, the bases, and the kernel's settings are unchanged |
//! | I7 | the memory of gateway, spawner and of every sandbox at rest is what it was |
//! | I8 | the attacked function itself answers as it did (`victim`) |
//!
//! A test takes [`Before`] before its attack, alone: others would change what is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::canaries::{self, Content};
use crate::instance::Instance;
use crate::package::{Kind, Package};
use crate::wait::{SOON, until};
use crate::world;

/// What an untouched function may take to answer right after an attack, on a machine whose cores may still be busy. How
/// much slower it is than undisturbed is measured by the benchmark `neighbours`.
const BYSTANDER_ANSWER_MAX: Duration = Duration::from_secs(2);

/// What the allocators of gateway and spawner may keep of the largest bodies that an attack sent or received, in bytes.
const RESIDENT_GROWTH_MAX: u64 = 32 << 20;

/// What a sandbox at rest may be charged with beyond the most that one was charged with before: page tables, slabs and the
/// pages of the function's own file. Far below what any attack tries to leave.
const CHARGE_GROWTH_MAX: u64 = 6 << 20;

/// Every outcome that an invocation can have (docs/function-authors.md), without those that would be Hearth's own fault.
const OUTCOMES: [&str; 10] = [
    "ok",
    "function_failed",
    "function_killed",
    "function_timed_out",
    "response_too_large",
    "sandbox_lost",
    "throttled",
    "overloaded",
    "cancelled",
    "payload_too_large",
];

/// What an attack must not change.
#[derive(Debug)]
pub(crate) struct Before {
    files: BTreeSet<PathBuf>,
    canaries: BTreeMap<PathBuf, Content>,
    settings: BTreeMap<PathBuf, String>,
    objects: BTreeSet<String>,
    /// Of the gateway and of the spawner, in bytes.
    resident: [u64; 2],
    /// The most that a sandbox at rest is charged with, by its number of processes.
    charged: BTreeMap<usize, u64>,
}

impl Before {
    /// The world as it is, once the instance is at rest.
    pub(crate) fn of(instance: &Instance) -> Self {
        for kind in Kind::BOTH {
            instance.deploy(&Package::hostile(&bystander(kind), kind, ""));
            ask_bystander(instance, kind);
        }
        instance.assert_clean();
        Self {
            files: files_below(&instance.home.data()),
            canaries: canaries::files(instance),
            settings: canaries::settings(),
            objects: objects_of_sandboxes(&instance.ids()),
            resident: resident(instance),
            charged: charged(instance),
        }
    }

    /// Demands I1 to I7; what may take a moment is waited for.
    pub(crate) fn assert_world_clean(&self, instance: &Instance) {
        // I1
        instance.get("/healthz").expect(200);
        for kind in Kind::BOTH {
            ask_bystander(instance, kind);
        }
        // I2 and I4. A cgroup with a process in it cannot be removed, so that one that is gone was empty.
        instance.assert_clean();
        // I3. The files of a function that was removed meanwhile go in the background.
        until("no file is there that nobody deployed", SOON, || {
            let files = files_below(&instance.home.data());
            let new: Vec<&PathBuf> = files.difference(&self.files).collect();
            if new.is_empty() {
                Ok(())
            } else {
                Err(format!("{new:?}"))
            }
        });
        assert_eq!(
            objects_of_sandboxes(&instance.ids()),
            self.objects,
            "objects of the kernel"
        );
        // I5
        assert_outcomes_are_known(instance);
        // I6
        let now = canaries::files(instance);
        let changed: Vec<&PathBuf> = (self.canaries.iter())
            .filter(|(path, content)| now.get(*path) != Some(content))
            .map(|(path, _)| path)
            .collect();
        assert_eq!(changed, Vec::<&PathBuf>::new(), "files of the host");
        assert_eq!(canaries::settings(), self.settings, "the kernel's settings");
        // I7
        until("memory is as before", SOON, || {
            self.compare_memory(instance)
        });
    }

    fn compare_memory(&self, instance: &Instance) -> Result<(), String> {
        for (name, (before, now)) in ["gateway", "spawner"]
            .iter()
            .zip(self.resident.iter().zip(resident(instance)))
        {
            if before + RESIDENT_GROWTH_MAX < now {
                return Err(format!("the {name} grew from {before} to {now} bytes"));
            }
        }
        for (processes, now) in charged(instance) {
            let before = self.charged.get(&processes).copied().unwrap_or(0);
            if before + CHARGE_GROWTH_MAX < now {
                return Err(format!(
                    "a sandbox of {processes} processes is charged with {now} bytes, before {before}"
                ));
            }
        }
        Ok(())
    }
}

/// A function of another tenant.
fn bystander(kind: Kind) -> String {
    format!("bystander-{}", kind.as_str())
}

fn ask_bystander(instance: &Instance, kind: Kind) {
    let began = Instant::now();
    let answer = instance.invoke(&bystander(kind), b"print untouched\n");
    assert_eq!(answer.expect(200).text(), "untouched\n", "{kind:?}");
    let took = began.elapsed();
    assert!(took < BYSTANDER_ANSWER_MAX, "{kind:?}: {took:?}");
}

fn assert_outcomes_are_known(instance: &Instance) {
    for (series, count) in instance.metrics() {
        let Some(labels) = series.strip_prefix("hearth_invocations_total{") else {
            continue;
        };
        let known = OUTCOMES
            .iter()
            .any(|outcome| labels.contains(&format!("outcome=\"{outcome}\"")));
        assert!(known || count == 0.0, "{series} {count}");
    }
}

/// Every file below the data directory by name, without those that the database makes and removes as it likes.
pub(crate) fn files_below(data: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut waiting = vec![data.to_owned()];
    while let Some(directory) = waiting.pop() {
        // A tree that no function uses any more is removed in the background.
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.filter_map(Result::ok) {
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_directory {
                waiting.push(entry.path());
            } else if directory != data.join("state") {
                files.insert(entry.path());
            }
        }
    }
    files
}

/// Keys and System V objects of any sandbox, and named network namespaces and message queues.
fn objects_of_sandboxes(ids: &Range<u32>) -> BTreeSet<String> {
    let mut objects = BTreeSet::new();
    // Uid of a key: the sixth field; owner and maker of an IPC object: from the fifth on, whichever it is.
    for (file, first, last) in [
        ("/proc/keys", 5, 5),
        ("/proc/sysvipc/shm", 4, 11),
        ("/proc/sysvipc/sem", 4, 7),
        ("/proc/sysvipc/msg", 7, 10),
    ] {
        for line in fs::read_to_string(file).unwrap_or_default().lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let owners = fields.iter().take(last + 1).skip(first);
            let mut owners = owners.filter_map(|field| field.parse::<u32>().ok());
            if owners.any(|id| ids.contains(&id)) {
                objects.insert(format!("{file}: {line}"));
            }
        }
    }
    for directory in ["/run/netns", "/dev/mqueue"] {
        let entries = fs::read_dir(directory).into_iter().flatten();
        objects.extend(entries.filter_map(|entry| Some(entry.ok()?.path().display().to_string())));
    }
    objects
}

fn resident(instance: &Instance) -> [u64; 2] {
    [instance.gateway(), instance.spawner()].map(world::resident_bytes)
}

/// What the kernel charges every sandbox with; the most for each number of processes.
fn charged(instance: &Instance) -> BTreeMap<usize, u64> {
    let mut most = BTreeMap::new();
    for (directory, sandboxes) in world::cgroups_of(&instance.home.instance()) {
        for sandbox in sandboxes {
            let sandbox = directory.join(sandbox);
            let read = |file: &str| fs::read_to_string(sandbox.join(file)).ok();
            // The v1 and the v2 name; other hierarchies have neither.
            let bytes = read("memory.usage_in_bytes").or_else(|| read("memory.current"));
            let Some(bytes) = bytes.and_then(|text| text.trim().parse::<u64>().ok()) else {
                continue;
            };
            let processes = read("cgroup.procs").unwrap_or_default().lines().count();
            let slot = most.entry(processes).or_insert(0);
            *slot = bytes.max(*slot);
        }
    }
    most
}
