// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What can only be known by trying: each trial in a child of its own that makes the thing and ends, whereby it is gone.

use std::{ffi::CStr, fs, os::fd::AsFd, path::Path};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        stat::{Mode, stat},
        wait::{WaitStatus, waitpid},
    },
    unistd::{chdir, mkdir},
};

use super::{Area, Finding, User};
use crate::{
    idmap::Ids,
    namespace,
    sys::{self, clone::Cloned},
};

/// Each of the eight namespaces, by making one.
pub(super) fn namespaces() -> Vec<Finding> {
    let flags = [
        CloneFlags::CLONE_NEWUSER,
        CloneFlags::CLONE_NEWPID,
        CloneFlags::CLONE_NEWNS,
        CloneFlags::CLONE_NEWNET,
        CloneFlags::CLONE_NEWIPC,
        CloneFlags::CLONE_NEWUTS,
        CloneFlags::CLONE_NEWCGROUP,
        CLONE_NEWTIME,
    ];
    let tried = namespace::NAMES.iter().zip(flags);
    tried
        .map(|(name, flag)| {
            let finding = Finding::new(Area::Namespaces, format!("{name} namespace"));
            match in_child(|| unshare(flag)) {
                Ok(()) => finding.given("can be made"),
                Err(errno) => finding
                    .missing(format!("cannot be made: {}", errno.desc()))
                    .fix(remedy(flag, errno)),
            }
        })
        .collect()
}

/// How user namespaces are restricted, by whichever setting this kernel has.
pub(super) fn restrictions(user: User) -> Vec<Finding> {
    RESTRICTIONS
        .iter()
        .filter_map(|(path, free, fix)| {
            let value = fs::read_to_string(Path::new("/proc/sys").join(path)).ok()?;
            let value = value.trim();
            let finding = Finding::new(Area::Namespaces, path.replace('/', "."));
            Some(if user == User::Root || free(value) {
                finding.given(value)
            } else {
                finding
                    .advice(format!("{value}: user namespaces are for root only"))
                    .fix(*fix)
            })
        })
        .collect()
}

/// A file below /proc/sys, whether a value lets ordinary users make user namespaces, and how to. Root is not
/// restricted by any but the first, whose value the trial above has met.
type Restriction = (&'static str, fn(&str) -> bool, &'static str);

const RESTRICTIONS: [Restriction; 3] = [
    (
        "user/max_user_namespaces",
        |value| value != "0",
        "sysctl user.max_user_namespaces=16384",
    ),
    (
        "kernel/unprivileged_userns_clone",
        |value| value == "1",
        "sysctl kernel.unprivileged_userns_clone=1",
    ),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        |value| value == "0",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
];

/// nix has no name for it: it shares its bit with the exit signal of the older clone(2), and is for unshare(2) and
/// clone3(2).
const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);

fn remedy(flag: CloneFlags, errno: Errno) -> String {
    match errno {
        Errno::EINVAL | Errno::ENOSYS => {
            "use a distribution's kernel, Linux 5.15 or later; in a container: --security-opt seccomp=unconfined".to_owned()
        }
        // user_namespaces(7), and the sysctls by which distributions restrict them.
        Errno::ENOSPC => "sysctl user.max_user_namespaces=16384".to_owned(),
        _ if flag == CloneFlags::CLONE_NEWUSER => {
            "sysctl user.max_user_namespaces=16384 kernel.unprivileged_userns_clone=1 \
             kernel.apparmor_restrict_unprivileged_userns=0; in a container: --security-opt seccomp=unconfined"
                .to_owned()
        }
        _ => "run it as full root; in a container: --cap-add SYS_ADMIN --security-opt seccomp=unconfined"
            .to_owned(),
    }
}

/// The new mount API, and the file systems that a sandbox is made of or may ask for.
pub(super) fn file_systems() -> Vec<Finding> {
    let tmpfs = Finding::new(Area::Files, "tmpfs by fsopen(2)");
    let tmpfs = match try_mount(c"tmpfs") {
        Ok(()) => tmpfs.given("can be made"),
        Err(errno) => tmpfs
            .missing(format!("cannot be made: {}", errno.desc()))
            .fix("Linux 5.15 or later; in a container: --cap-add SYS_ADMIN --security-opt seccomp=unconfined"),
    };
    let proc = Finding::new(Area::Files, "a new proc");
    let proc = match in_child(|| {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)?;
        // The next child is the first that is in the new pid namespace, whose proc it is to be.
        in_child(|| sys::mount::new_filesystem(c"proc", &[], 0).map(drop))
    }) {
        Ok(()) => proc.given("can be made"),
        Err(errno) => proc
            .missing(format!("cannot be made: {}", errno.desc()))
            .fix("in a container: --security-opt apparmor=unconfined --cap-add SYS_ADMIN"),
    };
    vec![tmpfs, proc, overlay(), writable_overlay()]
}

const OF_ROOT: &str = "Linux 5.15 or later with CONFIG_OVERLAY_FS; in a container: --cap-add SYS_ADMIN --security-opt apparmor=unconfined";

/// What every sandbox sees its files through.
fn overlay() -> Finding {
    let finding = Finding::new(Area::Files, "an overlay");
    let place = data_place();
    let shown = place.to_string_lossy();
    let tried = in_child(|| {
        layer_folders()?;
        let lower = sys::mount::copy_of(place)?;
        sys::mount::attach(&lower, c"lower")?;
        let layers = [(c"source", c"trial"), (c"lowerdir", c"lower:upper")];
        sys::mount::new_filesystem(c"overlay", &layers, libc::MOUNT_ATTR_RDONLY).map(drop)
    });
    match tried {
        Ok(()) => finding.given(format!("can be made of files in {shown}")),
        Err(errno) => finding
            .missing(format!(
                "cannot be made of files in {shown}: {}",
                errno.desc()
            ))
            .fix(OF_ROOT),
    }
}

/// Where the data directory is by default, or will be: what is tried there says something about its file system.
const DATA_PLACES: [&CStr; 3] = [c"/var/lib/hearth", c"/var/lib", c"/usr"];

fn data_place() -> &'static CStr {
    let exists = |place: &&CStr| stat(*place).is_ok();
    DATA_PLACES.into_iter().find(exists).unwrap_or(c"/")
}

/// What a function with `writable_root = true` gets.
fn writable_overlay() -> Finding {
    let finding = Finding::new(Area::Files, "a writable root");
    let place = data_place();
    let shown = place.to_string_lossy();
    let tried = in_child(|| {
        let owners = Ids::from_first(TRIAL_ID).owner_of_all();
        let owners = owners.map_err(|failure| failure.errno)?;
        layer_folders()?;
        let lower = sys::mount::copy_of(place)?;
        sys::mount::map_owners(&lower, owners.as_fd())?;
        sys::mount::attach(&lower, c"lower")?;
        let layers = [
            (c"source", c"trial"),
            (c"lowerdir", c"lower"),
            (c"upperdir", c"upper"),
            (c"workdir", c"work"),
        ];
        sys::mount::new_filesystem(c"overlay", &layers, 0).map(drop)
    });
    match tried {
        Ok(()) => finding.given(format!("can be made of files in {shown}")),
        Err(errno) => finding
            .advice(format!(
                "cannot be made of files in {shown} ({}): functions with writable_root do not start",
                errno.desc()
            ))
            .fix("Linux 5.19 or later, and a data directory on ext4, xfs or btrfs; in a container: a volume"),
    }
}

/// Any id that is not root's will do.
const TRIAL_ID: u32 = 0x7000_0000;

/// Makes three folders on a tmpfs that nobody else sees, and enters it. Mounted over /proc, which is there everywhere. Before
/// any mount is copied: who is root of a user namespace only may copy those of a mount namespace of its own.
fn layer_folders() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    mount(
        Some("trial"),
        "/proc",
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    chdir("/proc")?;
    ["lower", "upper", "work"]
        .iter()
        .try_for_each(|name| mkdir(*name, Mode::S_IRWXU))
}

fn try_mount(fs_type: &'static CStr) -> nix::Result<()> {
    in_child(|| {
        unshare(CloneFlags::CLONE_NEWNS)?;
        sys::mount::new_filesystem(fs_type, &[], 0).map(drop)
    })
}

/// Runs `trial` in a child process and gives its errno. The exit status has eight bits, and errnos fit (errno(3)).
fn in_child(trial: impl FnOnce() -> nix::Result<()>) -> nix::Result<()> {
    match sys::clone::fork_into(0, None)? {
        Cloned::Child => {
            let code = trial().map_or_else(|errno| errno as i32, |()| 0);
            sys::clone::exit_now(code)
        }
        Cloned::Parent { pid, .. } => match waitpid(pid, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, code) => Err(Errno::from_raw(code)),
            // A filter that kills, for one.
            _ => Err(Errno::EPERM),
        },
    }
}
