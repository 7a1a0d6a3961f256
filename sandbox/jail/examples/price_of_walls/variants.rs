// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Every choice of walls that this executable can build, by name.

use std::os::fd::OwnedFd;

use hearth_jail::{
    spawner::{Ended, SpawnerConfig, SpawnerError, run, run_without},
    walls::{Wall, Walls},
};

/// As `hearth` builds it.
pub(crate) const EVERY: &str = "every";

/// As few as possible; and the same in a cgroup, where CPU time is counted.
pub(crate) const NONE: &str = "none";
pub(crate) const NONE_COUNTED: &str = "none-counted";

type Run = fn(&SpawnerConfig, OwnedFd) -> Result<Ended, SpawnerError>;

/// One wall is left out: by its place in [`Wall::ALL`].
struct Without<const WALL: usize>;

impl<const WALL: usize> Walls for Without<WALL> {
    const LEFT_OUT: &'static [Wall] = &[Wall::ALL[WALL]];
}

/// All but two. Without a pid namespace a call would cost more: when it ends, init signals all processes that it can
/// see, which would be the host's. And without a user of its own, root's would be left.
struct AsFewAsPossible;

impl Walls for AsFewAsPossible {
    const LEFT_OUT: &'static [Wall] = &[
        Wall::NetworkNamespace,
        Wall::IpcNamespace,
        Wall::UtsNamespace,
        Wall::TimeNamespace,
        Wall::CgroupNamespace,
        Wall::UserNamespace,
        Wall::Capabilities,
        Wall::Root,
        Wall::MountFlags,
        Wall::CgroupLimits,
        Wall::Rlimits,
        Wall::Landlock,
        Wall::Seccomp,
        // Last: `NoneCounted` keeps it.
        Wall::Cgroup,
    ];
}

/// As [`AsFewAsPossible`], without the entry for the cgroup.
struct NoneCounted;

impl Walls for NoneCounted {
    const LEFT_OUT: &'static [Wall] = match AsFewAsPossible::LEFT_OUT.split_last() {
        Some((_cgroup, others)) => others,
        None => &[],
    };
}

const ALONE: [Run; Wall::ALL.len()] = [
    run_without::<Without<0>>,
    run_without::<Without<1>>,
    run_without::<Without<2>>,
    run_without::<Without<3>>,
    run_without::<Without<4>>,
    run_without::<Without<5>>,
    run_without::<Without<6>>,
    run_without::<Without<7>>,
    run_without::<Without<8>>,
    run_without::<Without<9>>,
    run_without::<Without<10>>,
    run_without::<Without<11>>,
    run_without::<Without<12>>,
    run_without::<Without<13>>,
    run_without::<Without<14>>,
    run_without::<Without<15>>,
];

/// The spawner of this name.
pub(crate) fn spawner(name: &str) -> Option<Run> {
    match name {
        EVERY => Some(run),
        NONE => Some(run_without::<AsFewAsPossible>),
        NONE_COUNTED => Some(run_without::<NoneCounted>),
        wall => {
            let index = Wall::ALL
                .iter()
                .position(|one| format!("{one:?}") == wall)?;
            ALONE.get(index).copied()
        }
    }
}

/// What is held against [`EVERY`]: itself, for how exact the measurement is; each wall left out alone; and as many as
/// possible.
pub(crate) fn names() -> impl Iterator<Item = String> {
    let alone = Wall::ALL.iter().map(|wall| format!("{wall:?}"));
    let all = [EVERY.to_owned()].into_iter().chain(alone);
    all.chain([NONE_COUNTED, NONE].map(str::to_owned))
}
