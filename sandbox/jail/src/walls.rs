// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The walls that can be left out one by one, by a test-only executable: to show that a test misses each of them, that
//! the others hold without it, and what each one costs.
//!
//! Which walls go up is a type, chosen when an executable is compiled. `hearth` calls [`crate::spawner::run`], which is
//! compiled for [`Every`]; code that leaves a wall out exists only in an executable that calls
//! [`crate::spawner::run_without`], and that carries [`MARKER`]. There is no value, flag or variable to set.
//!
//! Not here, because a sandbox without it is none: the mount namespace, in which its files are mounted. Nor what init
//! sets anew in every process it starts, which the step here repeats for init itself: not dumpable, and `no_new_privs`,
//! which Landlock and seccomp set, too.

/// Something that keeps a sandbox in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Wall {
    /// Processes of others have no number inside.
    PidNamespace,
    /// No interface but a `lo` of its own.
    NetworkNamespace,
    /// No System V objects and message queues of others.
    IpcNamespace,
    /// The host's name is not to be read.
    UtsNamespace,
    /// The host's uptime is not to be read.
    TimeNamespace,
    /// The cgroup's path on the host is not to be read.
    CgroupNamespace,
    /// Root inside is nobody outside. Without it the sandbox has its user's id inside, too.
    UserNamespace,
    /// A user of its own. Without it the process keeps the spawner's id, which the user namespace knows as nobody's.
    Credentials,
    /// No capability, and no way to one. Without it exec still takes those that are held, but leaves the bounding set.
    Capabilities,
    /// The old root is detached. Without it the sandbox finds it at `/var`.
    Root,
    /// The base tree is read-only, without devices and set-user-id programs.
    MountFlags,
    /// Its processes are counted together. Without it they are in the spawner's cgroups, and no limit holds.
    Cgroup,
    /// Memory, processes and CPU have limits.
    CgroupLimits,
    /// Resource limits on init.
    Rlimits,
    /// Paths are looked at a second time.
    Landlock,
    /// System calls are filtered.
    Seccomp,
}

impl Wall {
    /// Every wall, from the outside in.
    pub const ALL: [Self; 16] = [
        Self::PidNamespace,
        Self::NetworkNamespace,
        Self::IpcNamespace,
        Self::UtsNamespace,
        Self::TimeNamespace,
        Self::CgroupNamespace,
        Self::UserNamespace,
        Self::Credentials,
        Self::Capabilities,
        Self::Root,
        Self::MountFlags,
        Self::Cgroup,
        Self::CgroupLimits,
        Self::Rlimits,
        Self::Landlock,
        Self::Seccomp,
    ];
}

/// A choice of walls, made at compile time.
pub trait Walls {
    /// Those that do not go up.
    const LEFT_OUT: &'static [Wall];
}

/// What `hearth` builds.
#[derive(Debug)]
pub(crate) struct Every;

impl Walls for Every {
    const LEFT_OUT: &'static [Wall] = &[];
}

/// Said on stderr by a spawner that leaves walls out. An executable that does not hold this text cannot do it.
pub const MARKER: &str = "hearth-jail: WALLS LEFT OUT, FOR TESTS ONLY";

const fn stands<W: Walls>(wall: Wall) -> bool {
    // `contains` is not for constants.
    let mut index = 0;
    while index < W::LEFT_OUT.len() {
        if W::LEFT_OUT[index] as u8 == wall as u8 {
            return false;
        }
        index += 1;
    }
    true
}

/// How the steps ask. Not a part of [`Walls`], so that no choice can answer for itself.
pub(crate) trait Raise: Walls + Sized {
    /// Whether a wall is among those chosen.
    fn stands(wall: Wall) -> bool {
        stands::<Self>(wall)
    }

    /// Takes the step that puts up a wall, or pushes on it, where that wall is among those chosen.
    fn raise<E>(wall: Wall, step: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        if Self::stands(wall) { step() } else { Ok(()) }
    }
}

impl<W: Walls> Raise for W {}

/// Does not compile for a choice that could harm the host. After each call init signals every process that it may: it
/// must have either a pid namespace around it, or a user to whom nobody else's process belongs. And who keeps root's
/// id may do so in a user namespace only, where it opens nothing.
pub(crate) const fn assert_harmless<W: Walls>() {
    assert!(stands::<W>(Wall::PidNamespace) || stands::<W>(Wall::Credentials));
    assert!(stands::<W>(Wall::UserNamespace) || stands::<W>(Wall::Credentials));
    // Kept capabilities end with an exec as another user than root.
    assert!(stands::<W>(Wall::Capabilities) || stands::<W>(Wall::Credentials));
}
