// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The text of `/proc/PID/{status,limits,mountinfo,uid_map}` (proc(5)).

use hearth_protocol::isolation::{IdMapLine, MountReading, ProcessReading};

use crate::{rlimit, verify::field_of};

const CAPABILITY_SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

pub(super) fn id_map(text: &str) -> Vec<IdMapLine> {
    text.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse);
            let mut next = || numbers.next()?.ok();
            Some(IdMapLine {
                inside: next()?,
                outside: next()?,
                count: next()?,
            })
        })
        .collect()
}

/// One line: `36 35 98:0 /root /at options optional - type source super-options`.
pub(super) fn mount(line: &str) -> Option<MountReading> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(4);
    Some(MountReading {
        at: place.next()?.to_owned(),
        options: place.next()?.to_owned(),
        fs_type: kind.split(' ').next()?.to_owned(),
    })
}

pub(super) fn process(status: &str, limits: &str, fds: Vec<u32>) -> ProcessReading {
    let field = |name| field_of(status, name).unwrap_or_default().trim();
    let four = |name| {
        let mut numbers = field(name)
            .split_whitespace()
            .map(|number| number.parse().unwrap_or(u32::MAX));
        std::array::from_fn(|_| numbers.next().unwrap_or(u32::MAX))
    };
    ProcessReading {
        pid_inside: field("NSpid")
            .split_whitespace()
            .last()
            .and_then(|pid| pid.parse().ok())
            .unwrap_or(0),
        name: field("Name").to_owned(),
        uids: four("Uid"),
        gids: four("Gid"),
        capabilities: CAPABILITY_SETS
            .iter()
            .map(|set| ((*set).to_owned(), field(set).to_owned()))
            .collect(),
        no_new_privs: field("NoNewPrivs") == "1",
        seccomp_mode: field("Seccomp").parse().unwrap_or(0),
        seccomp_filters: field("Seccomp_filters").parse().unwrap_or(0),
        rlimits: limits.lines().skip(1).filter_map(rlimit).collect(),
        fds,
    }
}

/// One line: `Max open files            1024                 4096                 files`.
fn rlimit(line: &str) -> Option<(String, (String, String))> {
    // The names hold single spaces, the columns are apart by at least two.
    let (name, rest) = line.split_once("  ")?;
    let mut values = rest.split_whitespace().map(str::to_owned);
    Some((name.to_owned(), (values.next()?, values.next()?)))
}

pub(super) fn has_no_capability(process: &ProcessReading) -> bool {
    let is_empty = |set: &String| !set.is_empty() && set.bytes().all(|digit| digit == b'0');
    process.capabilities.len() == CAPABILITY_SETS.len()
        && process.capabilities.values().all(is_empty)
}

/// Whether no hard limit is above the sandbox's: a function may lower its own.
pub(super) fn has_limits(process: &ProcessReading) -> bool {
    let holds = |((_, limit), name): (&(_, u64), &&str)| {
        let hard = process
            .rlimits
            .get(*name)
            .map(|(_, hard)| hard.parse::<u64>());
        matches!(hard, Some(Ok(value)) if value <= *limit)
    };
    rlimit::LIMITS.iter().zip(&rlimit::NAMES).all(holds)
}

fn has_option(mount: &MountReading, wanted: &str) -> bool {
    mount.options.split(',').any(|option| option == wanted)
}

pub(super) fn is_writable(mount: &MountReading) -> bool {
    !has_option(mount, "ro")
}

/// `nosuid` everywhere, `nodev` everywhere but on the read-only /dev.
pub(super) fn is_guarded(mount: &MountReading) -> bool {
    // Below /dev, where the host's devices are mounted one by one: on the ground of a user namespace.
    let at_dev = mount.at == "/dev" || mount.at.starts_with("/dev/");
    let devices = at_dev && has_option(mount, "ro") && has_option(mount, "noexec");
    has_option(mount, "nosuid") && (has_option(mount, "nodev") || devices)
}

/// Where these mounts are, for a reader.
pub(super) fn places(mounts: &[&MountReading]) -> String {
    let places: Vec<_> = mounts.iter().map(|mount| mount.at.as_str()).collect();
    if places.is_empty() {
        "nothing".to_owned()
    } else {
        places.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read_with_and_without_optional_fields() {
        let with =
            mount("36 35 98:0 /a /dev ro,nosuid,noexec master:1 - tmpfs dev rw,size=4k").unwrap();
        let without =
            mount("36 35 98:0 / /scratch/tmp rw,nosuid,nodev - tmpfs scratch rw").unwrap();
        assert_eq!((with.at.as_str(), with.fs_type.as_str()), ("/dev", "tmpfs"));
        assert!(is_guarded(&with) && !is_writable(&with));
        assert!(is_guarded(&without) && is_writable(&without));
        assert!(mount("nonsense").is_none());
    }

    #[test]
    fn a_mount_that_lacks_a_guard_is_seen() {
        for line in [
            "1 1 0:1 / / ro,nodev - ext4 x rw",
            "1 1 0:1 / / ro,nosuid - ext4 x rw",
            "1 1 0:1 / /dev rw,nosuid,noexec - tmpfs x rw",
            "1 1 0:1 / /dev ro,nosuid - tmpfs x rw",
        ] {
            assert!(!is_guarded(&mount(line).unwrap()), "{line}");
        }
    }

    #[test]
    fn a_process_is_read_from_its_status_and_limits() {
        let status = "Name:\tf\nUid:\t7\t7\t7\t8\nGid:\t1\t1\t1\t1\nNSpid:\t300\t2\nCapInh:\t0000000000000000\n\
            CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000400\n\
            CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let row = |((_, limit), name): (&(_, u64), &&str)| format!("{name:<25} 0 {limit} units\n");
        let rows = rlimit::LIMITS.iter().zip(&rlimit::NAMES).map(row);
        let limits = format!(
            "Limit  Soft Limit  Hard Limit  Units\n{}",
            rows.collect::<String>()
        );
        let limits = limits.as_str();
        let mut reading = process(status, limits, vec![0, 1, 2]);
        assert_eq!(
            (reading.pid_inside, reading.uids, reading.seccomp_mode),
            (2, [7, 7, 7, 8], 2)
        );
        assert!(has_limits(&reading));
        assert!(!has_no_capability(&reading), "the bounding set holds one");
        reading
            .capabilities
            .insert("CapBnd".to_owned(), "0000000000000000".to_owned());
        assert!(has_no_capability(&reading));
        assert!(
            !has_limits(&process(status, "", Vec::new())),
            "an unread limit is no limit"
        );
        let raised = limits.replace("1024", "1025");
        assert!(!has_limits(&process(status, &raised, Vec::new())));
        let unlimited = limits.replace("1024", "unlimited");
        assert!(!has_limits(&process(status, &unlimited, Vec::new())));
    }
}
