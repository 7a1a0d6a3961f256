// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From the clone to exec: what the first process of a sandbox does to itself. [`walls`] owns the order.
//!
//! One clone, as real root, makes five namespaces that belong to the host's user namespace; the process then builds its
//! root, moves into a user namespace, gives everything up, and becomes init by execveat. A user namespace first, with a
//! second clone for the pid and time namespaces, would take one more process per sandbox (fork and exit of the one
//! between: 190 µs) and leave the network, ipc and uts namespaces in the hands of whoever gets a capability inside.
//!
//! Cgroups and the network namespace are usually there before (`spawner::groundwork`).
//!
//! Measured (p50 in µs, release, other load on both cores; `tests/sandbox/timing.rs` prints the sum): cgroup directories
//! 211, descriptors and sockets 93, time offsets 28, the clone itself 781, of which the network namespace is the most;
//! then in the child: entering the cgroups 95, root 400, lo 102, id maps 98 (two switches to the spawner), privileges 63,
//! Landlock 93, seccomp 114, pushing on the walls 37; init's exec and first packet about 400 with glibc, 100 with musl.
//!
//! ```text
//! child                                   spawner
//! MAPS_WANTED ─────────────────────────▶  writes uid_map and gid_map
//!             ◀─────────────────────────  MAPS_WRITTEN
//! (walls, exec)
//! FILTERED + listener, if it must be ──▶  answers any call from here on
//! UP + listener, sent by init ─────────▶  looks at /proc/PID/status, answers the gateway
//! FAILED + errno + step, at any time ──▶  destroys the sandbox
//! ```

use std::{
    convert::Infallible,
    ffi::CStr,
    fs::File,
    os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd},
};

use hearth_protocol::spawner::Root;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CpuSet, sched_setaffinity},
    sys::signal::{SigSet, Signal},
    unistd::{Gid, Pid, Uid, read, setsid},
};

use crate::{
    cgroup,
    failure::{Failure, at, broken},
    ground::Ground,
    idmap::Ids,
    landlock, lsm,
    mounts::Scratch,
    namespace, privilege, rlimit, rootfs,
    seccomp::{self, Listener},
    socket,
    sys::{self, program::Strings},
    verify,
    walls::{Raise, Wall, Walls},
};

/// Descriptors that the first process is left with, by number.
pub(crate) mod numbers {
    use std::os::fd::RawFd;
    /// The socket to the gateway; handed on to a resident program under the same number.
    pub(crate) const CONTROL: RawFd = 3;
    /// The socket to the spawner, closed once the sandbox is up.
    pub(crate) const SETUP: RawFd = 4;
    /// Init's own image; closed by exec.
    pub(crate) const IMAGE: RawFd = 5;
    /// The resident program's image, where there is one.
    pub(crate) const RESIDENT: RawFd = 6;
    /// What the filter asks is heard here; init hands it to the spawner with its first word, and keeps none.
    pub(crate) const LISTENER: RawFd = 7;
    /// How a writable root shows the base's owners; closed by exec. No resident program has such a root.
    pub(super) const OWNERS: RawFd = RESIDENT;
    /// From here on nothing is open.
    pub(super) const FIRST_FREE: u32 = 7;
}

/// First byte of a packet on the setup socket, child to spawner.
pub(crate) mod says {
    /// The user namespace exists.
    pub(crate) const MAPS_WANTED: u8 = b'M';
    /// Any call from here on may be a question; carries the filter's listener.
    pub(crate) const FILTERED: u8 = b'L';
    /// Init runs; carries the filter's listener, unless that came with `FILTERED`.
    pub(crate) const UP: u8 = b'U';
    /// Followed by errno as four bytes, little endian, and the step's name.
    pub(crate) const FAILED: u8 = b'F';
}

/// The one packet from the spawner.
pub(crate) const MAPS_WRITTEN: u8 = b'G';

/// Everything the first process needs, prepared by the spawner before the clone.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// The base tree's directory.
    pub(crate) base: &'a CStr,
    /// For a root that can be written: the user namespace that says whose the base's files are then.
    pub(crate) owners: Option<BorrowedFd<'a>>,
    /// What the spawner stands on.
    pub(crate) ground: Ground,
    /// The size of scratch until the sandbox is bound.
    pub(crate) scratch: Scratch,
    /// The v1 `tasks` files of its cgroups.
    pub(crate) tasks: &'a [File],
    /// A network namespace that nobody else has, where one was made ahead; else the clone makes it.
    pub(crate) network: Option<BorrowedFd<'a>>,
    /// Init's end of the socket to the gateway.
    pub(crate) control: &'a OwnedFd,
    /// The child's end of the setup socket.
    pub(crate) setup: &'a OwnedFd,
    /// Init's image.
    pub(crate) image: BorrowedFd<'a>,
    /// The resident's, where init is to start one.
    pub(crate) resident: Option<BorrowedFd<'a>>,
    /// Init's arguments.
    pub(crate) argv: &'a Strings,
    /// Whether AppArmor has a profile for it.
    pub(crate) confined: bool,
    /// The compiled profile.
    pub(crate) filter: &'a seccomp::Filter,
    /// Where every process of the sandbox begins.
    pub(crate) core: Option<u16>,
}

impl Plan<'_> {
    fn root(&self) -> Root {
        match self.owners {
            Some(_) => Root::Writable,
            None => Root::ReadOnly,
        }
    }
}

/// The child's whole life before exec. Never returns: what it still shares with the spawner's code, destructors and
/// buffers, must not run here.
pub(crate) fn child<W: Walls>(plan: &Plan<'_>) -> ! {
    // Until `keep_only` has moved it, the setup socket has the number that the spawner gave it.
    match arrive::<W>(plan) {
        Err(failure) => report(plan.setup.as_fd(), &failure),
        Ok(()) => {
            let Err(failure) = walls::<W>(plan);
            report(borrowed(numbers::SETUP), &failure);
        }
    }
    sys::clone::exit_now(EXIT_NO_SANDBOX)
}

/// Exit status of a first process that did not become init.
const EXIT_NO_SANDBOX: i32 = 125;

/// What has to happen while the spawner's descriptors are still open.
fn arrive<W: Walls>(plan: &Plan<'_>) -> Result<(), Failure> {
    // First: all that follows, kernel memory of mounts and namespaces included, is charged to the sandbox.
    W::raise(Wall::Cgroup, || cgroup::enter(plan.tasks))?;
    if let Some(network) = plan.network {
        W::raise(Wall::NetworkNamespace, || namespace::enter_network(network))?;
    }
    // Before the first open: the spawner's descriptors (other sandboxes' sockets, the data directory) end here.
    keep_only(plan)
}

/// Walls go up from the outside in. Moving a line breaks what its comment names. `W` is [`crate::walls::Every`] but in
/// test-only executables.
fn walls<W: Walls>(plan: &Plan<'_>) -> Result<Infallible, Failure> {
    // Signals to the monitor's process group or terminal stop at the spawner.
    setsid().map_err(at("begin a session"))?;
    unblock_signals()?;
    // While the host's /proc is seen: the sandbox's own is read-only.
    let own_label = plan.confined.then(lsm::open_own_label).transpose()?;
    // As the host's root, in a mount namespace that the host's user namespace owns: proc can be mounted even where the
    // host's own is masked, device nodes can be made, and nobody inside can undo any of it.
    let owners = plan.owners.map(|_| borrowed(numbers::OWNERS));
    rootfs::enter::<W>(plan.base, &plan.scratch, owners, plan.ground)?;
    // Needs the sandbox's own /dev/null: the host's would be a file of the host.
    silence_stdio()?;
    // Needs CAP_NET_ADMIN and CAP_SYS_ADMIN over namespaces that the user namespace to come does not own.
    namespace::furnish::<W>(plan.network)?;
    // Before the uid changes: a hard limit is set by whoever holds it, once.
    W::raise(Wall::Rlimits, rlimit::install)?;
    // Before Landlock and seccomp, which leave only its own affinity to a process, but any core.
    pin(plan.core)?;
    // After the cgroups were entered: this moment's cgroup becomes the root that the sandbox sees.
    W::raise(Wall::CgroupNamespace, namespace::unshare_cgroup)?;
    // The last namespace: what came before is not owned by it, so full capabilities in it would open none of them.
    W::raise(Wall::UserNamespace, namespace::unshare_user)?;
    // The maps can be written from outside only, and without them there is no uid to take.
    W::raise(Wall::UserNamespace, await_maps)?;
    // From here on the process is the sandbox's user. Needs CAP_SETUID in the new user namespace.
    privilege::keep_capabilities()?;
    let (uid, gid) = user::<W>(plan);
    W::raise(Wall::Credentials, || privilege::become_user(uid, gid))?;
    // After the uid change, which needs what is given up here.
    W::raise(Wall::Capabilities, privilege::renounce)?;
    // After the last credential change: each one clears both of these.
    privilege::hide_memory()?;
    privilege::die_with_parent(Signal::SIGKILL)?;
    // Only now is the parent's death noticed; if it happened before, its end of the setup socket is closed.
    parent_lives()?;
    // Before Landlock and seccomp, whose answers would hide whether these walls stand by themselves.
    verify::before_seccomp::<W>(plan.base, plan.root(), uid)?;
    // Needs no_new_privs. Before seccomp, whose profile lacks the calls that make a ruleset.
    W::raise(Wall::Landlock, || restrict_paths(plan))?;
    W::raise(Wall::Landlock, verify::landlock)?;
    // After both verifications, whose pushes it would answer in the place of the walls that they are made on.
    if let Some(own_label) = &own_label {
        lsm::confine(own_label, plan.root())?;
    }
    // Last: half of the calls above are forbidden by it. From here on a refused call waits for the spawner, which gets the
    // listener from init: until then nothing may make one.
    W::raise(Wall::Seccomp, || filter_calls(plan))?;
    W::raise(Wall::Seccomp, verify::seccomp)?;
    Err(become_init(plan))
}

/// The sandbox's user, as the process itself has to name it.
fn user<W: Walls>(plan: &Plan<'_>) -> (Uid, Gid) {
    if W::stands(Wall::UserNamespace) {
        return (Ids::inside_uid(), Ids::inside_gid());
    }
    let outside = plan.scratch.ids.user;
    (Uid::from_raw(outside), Gid::from_raw(outside))
}

fn filter_calls(plan: &Plan<'_>) -> Result<(), Failure> {
    let listener = sys::seccomp::install_listening(plan.filter.program().instructions())
        .map_err(at("install the system call filter"))?;
    if plan.filter.listener() == Listener::AtOnce {
        // Until the spawner has it, any call but this one would wait for ever.
        return socket::hand_over(borrowed(numbers::SETUP), says::FILTERED, listener.as_fd())
            .map_err(at("hand over the listener"));
    }
    // By number over exec. Where it has that number already it stays open by losing close-on-exec.
    if listener.as_raw_fd() == numbers::LISTENER {
        sys::fds::open_on_exec(listener.as_fd()).map_err(at("keep the listener"))?;
        let _placed = listener.into_raw_fd();
        return Ok(());
    }
    sys::fds::place(listener.as_fd(), numbers::LISTENER).map_err(at("place the listener"))
}

/// The images lie outside the sandbox's tree, so Landlock has to be told of them by descriptor.
fn restrict_paths(plan: &Plan<'_>) -> Result<(), Failure> {
    let mut images = vec![borrowed(numbers::IMAGE)];
    if plan.resident.is_some() {
        images.push(borrowed(numbers::RESIDENT));
    }
    let root = plan.root();
    landlock::restrict(landlock::Rules::Sandbox {
        images: &images,
        root,
    })
    .map_err(|_refused| broken("restrict paths by Landlock"))
}

fn borrowed(number: RawFd) -> BorrowedFd<'static> {
    sys::fds::placed(number)
}

/// Moves what init needs to its numbers and closes everything else above stderr.
fn keep_only(plan: &Plan<'_>) -> Result<(), Failure> {
    let mut wanted = vec![
        (plan.control.as_fd(), numbers::CONTROL),
        (plan.setup.as_fd(), numbers::SETUP),
        (plan.image, numbers::IMAGE),
    ];
    wanted.extend(plan.resident.map(|image| (image, numbers::RESIDENT)));
    wanted.extend(plan.owners.map(|owners| (owners, numbers::OWNERS)));
    // Through copies above all target numbers: a source may lie on another's target.
    let mut copies = Vec::with_capacity(wanted.len());
    for (fd, number) in wanted {
        let copy = sys::fds::copy_above(fd, COPIES_FROM).map_err(at("copy a descriptor"))?;
        copies.push((copy, number));
    }
    for (copy, number) in &copies {
        sys::fds::place(copy.as_fd(), *number).map_err(at("place a descriptor"))?;
    }
    // The copies' owners are forgotten, not dropped: their numbers are closed by the range below.
    std::mem::forget(copies);
    let first_unused = if plan.resident.or(plan.owners).is_some() {
        numbers::FIRST_FREE
    } else {
        numbers::RESIDENT.cast_unsigned()
    };
    sys::fds::close_from(first_unused).map_err(at("close the spawner's descriptors"))?;
    if plan.owners.is_some() {
        sys::fds::close_on_exec(borrowed(numbers::OWNERS))
            .map_err(at("close the owners' namespace on exec"))?;
    }
    sys::fds::close_on_exec(borrowed(numbers::IMAGE)).map_err(at("close the image on exec"))
}

const COPIES_FROM: RawFd = 16;

/// The spawner blocks signals for its signalfd; a mask survives exec.
fn unblock_signals() -> Result<(), Failure> {
    SigSet::empty()
        .thread_set_mask()
        .map_err(at("unblock signals"))
}

fn silence_stdio() -> Result<(), Failure> {
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(crate::failure::io_at("open /dev/null"))?;
    for number in 0..3 {
        sys::fds::place(null.as_fd(), number).map_err(at("silence stdio"))?;
    }
    Ok(())
}

fn pin(core: Option<u16>) -> Result<(), Failure> {
    let Some(core) = core else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(core.into()).map_err(at("pin to a core"))?;
    sched_setaffinity(Pid::from_raw(0), &set).map_err(at("pin to a core"))
}

fn await_maps() -> Result<(), Failure> {
    let setup = borrowed(numbers::SETUP);
    socket::send_waiting(setup, &[says::MAPS_WANTED]).map_err(at("ask for the id maps"))?;
    let mut answer = [0_u8; 1];
    match read(setup, &mut answer).map_err(at("wait for the id maps"))? {
        1 if answer == [MAPS_WRITTEN] => Ok(()),
        // The spawner has closed its end: it gave up on this sandbox, or died.
        _ => Err(Failure {
            step: "wait for the id maps".into(),
            errno: Errno::EPIPE,
        }),
    }
}

fn parent_lives() -> Result<(), Failure> {
    let setup = borrowed(numbers::SETUP);
    let mut interest = [PollFd::new(setup, PollFlags::empty())];
    match poll(&mut interest, PollTimeout::ZERO).map_err(at("look at the spawner"))? {
        0 => Ok(()),
        _ => Err(Failure {
            step: "outlive the spawner".into(),
            errno: Errno::ESRCH,
        }),
    }
}

fn become_init(plan: &Plan<'_>) -> Failure {
    let errno = sys::program::exec_image(
        borrowed(numbers::IMAGE),
        plan.argv,
        &Strings::new(Vec::new()),
    );
    at("execute init")(errno)
}

/// Tells the spawner which step failed; where that fails too, the spawner sees the exit.
fn report(setup: BorrowedFd<'_>, failure: &Failure) {
    let mut packet = vec![says::FAILED];
    packet.extend((failure.errno as i32).to_le_bytes());
    packet.extend(failure.step.as_bytes());
    let _gone = socket::send_waiting(setup, &packet);
}

/// The inverse of what [`report`] sends.
pub(crate) fn read_report(packet: &[u8]) -> Option<Failure> {
    let (&kind, rest) = packet.split_first()?;
    let (errno, step) = rest.split_first_chunk::<4>()?;
    (kind == says::FAILED).then(|| Failure {
        step: String::from_utf8_lossy(step).into_owned().into(),
        errno: Errno::from_raw(i32::from_le_bytes(*errno)),
    })
}
