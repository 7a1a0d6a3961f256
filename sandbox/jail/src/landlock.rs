// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Landlock (landlock(7)): a second opinion on every path, which holds even where a mount was forgotten or a capability
//! came back.
//!
//! The rights handled are exactly those of the kernel's ABI, each required: nothing is dropped silently ("best effort").
//! Scratch is granted on the *parent* of its mount point, because a rule on the root of a mount is lost when the mount
//! is replaced, and scratch is replaced between invocations.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use hearth_protocol::spawner::Root;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    PathFdError, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
    make_bitflags,
};

use crate::sys;

/// The newest ABI whose rights this code knows. A newer kernel offers more; they are not handled until they were read.
const ABI_KNOWN_MAX: u32 = 7;

/// Where a sandbox may write: the parent of the scratch mount.
const SCRATCH_PARENT: &str = "/scratch";

/// The devices of a sandbox; writing to them changes nothing.
const DEVICES: [&str; 5] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];

/// Who is walled in.
#[derive(Debug, Clone, Copy)]
pub enum Rules<'a> {
    /// A sandbox, after pivot_root: read and execute everywhere, write in scratch and to the devices.
    Sandbox {
        /// Programs that lie outside the sandbox's tree and are executed by descriptor: init, the resident program.
        images: &'a [BorrowedFd<'a>],
        /// Whether everything else may be written, too, as far as the mounts let it.
        root: Root,
    },
    /// The gateway: its state directory, and reading about itself.
    Gateway {
        /// Absolute path of the directory.
        state_dir: &'a Path,
    },
}

/// Why the wall did not go up. Nothing is restricted then, so the caller must not go on.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// The kernel has no Landlock, or it is not enabled at boot.
    #[error("cannot use Landlock: the kernel does not offer it (boot with lsm=landlock,…)")]
    Absent,
    /// A path of a rule cannot be opened.
    #[error("cannot open {} for a Landlock rule", path.display())]
    OpenPath {
        /// The path.
        path: PathBuf,
        /// Why.
        source: PathFdError,
    },
    /// The kernel refused the rule set or one of its rules.
    #[error("cannot make the Landlock rule set at ABI {abi}")]
    Ruleset {
        /// The ABI used.
        abi: u32,
        /// Why.
        source: RulesetError,
    },
    /// The kernel took the rule set, but not all of it.
    #[error("cannot enforce the whole Landlock rule set at ABI {abi}")]
    NotWhole {
        /// The ABI used.
        abi: u32,
    },
    /// The wall was pushed on and gave way.
    #[error("cannot trust Landlock: {attempt} was not refused")]
    GaveWay {
        /// What was tried.
        attempt: &'static str,
    },
}

/// The kernel's Landlock ABI version; 0 where it has none.
#[must_use]
pub fn abi() -> u32 {
    sys::landlock::abi_version()
        .ok()
        .and_then(|version| u32::try_from(version).ok())
        .unwrap_or(0)
}

/// Restricts the calling thread and all that it starts, for ever. Sets `no_new_privs`.
///
/// # Errors
/// [`LandlockError`]; the caller must then end, because it may run without this wall.
pub fn restrict(rules: Rules<'_>) -> Result<(), LandlockError> {
    let number = abi().min(ABI_KNOWN_MAX);
    if number == 0 {
        return Err(LandlockError::Absent);
    }
    let abi = ABI::from(i32::try_from(number).unwrap_or(0));
    let (grants, images) = match rules {
        Rules::Sandbox { images, root } => (sandbox_grants(abi, root), images),
        Rules::Gateway { state_dir } => (gateway_grants(abi, state_dir), &[][..]),
    };
    let mut opened = Vec::with_capacity(grants.len());
    for (path, access) in grants {
        let fd = PathFd::new(&path).map_err(|source| LandlockError::OpenPath { path, source })?;
        opened.push((fd, access));
    }
    let execute = make_bitflags!(AccessFs::{Execute | ReadFile});
    let paths = opened.iter().map(|(fd, access)| (fd.as_fd(), *access));
    let images = images.iter().map(|image| (*image, execute));
    let status = enforce(abi, paths.chain(images));
    let status = status.map_err(|source| LandlockError::Ruleset {
        abi: number,
        source,
    })?;
    match status {
        RulesetStatus::FullyEnforced => push_on_it(abi),
        RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => {
            Err(LandlockError::NotWhole { abi: number })
        }
    }
}

type Grant = (PathBuf, BitFlags<AccessFs>);

fn sandbox_grants(abi: ABI, root: Root) -> Vec<Grant> {
    let everywhere = match root {
        Root::ReadOnly => AccessFs::from_read(abi),
        // Devices are asked nothing, wherever they are.
        Root::Writable => writable(abi) & !make_bitflags!(AccessFs::{IoctlDev}),
    };
    let mut grants = vec![
        (PathBuf::from("/"), everywhere),
        (PathBuf::from(SCRATCH_PARENT), writable(abi)),
    ];
    let device = make_bitflags!(AccessFs::{ReadFile | WriteFile});
    grants.extend(DEVICES.map(|path| (PathBuf::from(path), device)));
    grants
}

fn gateway_grants(abi: ABI, state_dir: &Path) -> Vec<Grant> {
    let read_only = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    vec![
        // Nothing that the gateway writes is ever executed.
        (state_dir.to_owned(), writable(abi) & !AccessFs::Execute),
        // The process's own numbers, for metrics. The link is resolved now: it names this process only.
        (PathBuf::from("/proc/self"), read_only),
        // SQLite seeds its random numbers from here, and makes do with the time where it cannot.
        (PathBuf::from("/dev/urandom"), AccessFs::ReadFile.into()),
    ]
}

/// Everything but device nodes.
fn writable(abi: ABI) -> BitFlags<AccessFs> {
    AccessFs::from_all(abi) & !make_bitflags!(AccessFs::{MakeChar | MakeBlock})
}

fn enforce<'fd>(
    abi: ABI,
    grants: impl Iterator<Item = (BorrowedFd<'fd>, BitFlags<AccessFs>)>,
) -> Result<RulesetStatus, RulesetError> {
    // Every right of this ABI is required: an answer that the kernel cannot give is an error, not a gap.
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))?;
    let net = AccessNet::from_all(abi);
    if !net.is_empty() {
        ruleset = ruleset.handle_access(net)?;
    }
    let scope = Scope::from_all(abi);
    if !scope.is_empty() {
        ruleset = ruleset.scope(scope)?;
    }
    let mut created = ruleset.create()?;
    for (fd, access) in grants {
        created = created.add_rule(PathBeneath::new(fd, access))?;
    }
    created.restrict_self().map(|status| status.ruleset)
}

/// No port was granted, so binding any must fail with EACCES. Below ABI 4 there is nothing to push on that is refused by
/// Landlock alone.
fn push_on_it(abi: ABI) -> Result<(), LandlockError> {
    if AccessNet::from_all(abi).is_empty() {
        return Ok(());
    }
    match std::net::TcpListener::bind(("127.0.0.1", 0)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        _ => Err(LandlockError::GaveWay {
            attempt: "binding a TCP port",
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// The restriction is per thread, and for ever: each test that takes it on does so in a thread of its own.
    fn on_a_thread<T: Send>(test: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| scope.spawn(test).join().unwrap())
    }

    #[test]
    fn the_gateway_writes_its_state_directory_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (state, other) = (dir.path().join("state"), dir.path().join("other"));
        fs::create_dir(&state).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("secret"), "x").unwrap();
        on_a_thread(|| {
            restrict(Rules::Gateway { state_dir: &state }).unwrap();
            fs::write(state.join("a"), "x").unwrap();
            fs::rename(state.join("a"), state.join("b")).unwrap();
            fs::remove_file(state.join("b")).unwrap();
            for outcome in [
                fs::write(other.join("a"), "x"),
                fs::read(other.join("secret")).map(drop),
                fs::read_dir("/etc").map(drop),
                fs::read("/proc/1/status").map(drop),
                fs::rename(other.join("secret"), state.join("secret")),
            ] {
                assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            }
        });
    }

    #[test]
    fn the_gateway_connects_to_no_port_where_the_kernel_can_say_so() {
        if abi() < 4 {
            println!(
                "SKIPPED: this kernel's Landlock (ABI {}) knows no TCP",
                abi()
            );
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let outcome = on_a_thread(|| {
            restrict(Rules::Gateway {
                state_dir: dir.path(),
            })
            .unwrap();
            std::net::TcpStream::connect(("127.0.0.1", 1))
        });
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_path_that_does_not_exist_is_an_error_and_not_a_gap() {
        let outcome = on_a_thread(|| {
            restrict(Rules::Gateway {
                state_dir: Path::new("/nonexistent"),
            })
        });
        assert!(matches!(outcome, Err(LandlockError::OpenPath { .. })));
    }

    #[test]
    fn abstract_sockets_of_the_host_are_out_of_reach_where_the_kernel_can_say_so() {
        if abi() < 6 {
            println!(
                "SKIPPED: this kernel's Landlock (ABI {}) has no scopes",
                abi()
            );
            return;
        }
        use std::os::linux::net::SocketAddrExt;
        let name = format!("hearth-test-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
        let _listener = UnixListener::bind_addr(&address).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let outcome = on_a_thread(|| {
            restrict(Rules::Gateway {
                state_dir: dir.path(),
            })
            .unwrap();
            std::os::unix::net::UnixStream::connect_addr(&address)
        });
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
