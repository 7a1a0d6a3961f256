// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A gateway that does nothing but enter its jail and push on it, for the crate's tests:
//! `lone_gateway UID STATE_DIR SECRET_FILE`. Prints one line per push. Never shipped.

use std::{
    error::Error,
    fs,
    io::{self, Write},
    path::Path,
    process::Command,
};

use hearth_jail::gateway_jail;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        signal::kill,
        socket::{AddressFamily, SockFlag, SockType, socket},
    },
    unistd::{Uid, chroot, getppid, sethostname, setuid},
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [uid, state_dir, secret] = arguments.as_slice() else {
        return Err("three arguments are needed".into());
    };
    let (uid, state_dir) = (uid.parse()?, Path::new(state_dir));
    // Root could read it: what follows is the jail's doing.
    fs::read(secret)?;
    gateway_jail::enter(uid, uid, state_dir, std::os::unix::process::parent_id())?;
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).map(drop);
    let mut out = io::stdout();
    for (push, outcome) in [
        ("write state", fs::write(state_dir.join("f"), "x")),
        ("read secret", fs::read(secret).map(drop)),
        ("write secret", fs::write(secret, "x")),
        ("read passwd", fs::read("/etc/passwd").map(drop)),
        ("exec", Command::new("/bin/true").status().map(drop)),
        ("listen", listener),
        ("make directory", fs::create_dir("/tmp/made-by-a-gateway")),
        (
            "link",
            std::os::unix::fs::symlink("/etc", state_dir.join("link"))
                .and_then(|()| fs::read_dir(state_dir.join("link")).map(drop)),
        ),
        ("kill monitor", plain(kill(getppid(), None))),
        ("become root", plain(setuid(Uid::from_raw(0)))),
        ("change root", plain(chroot("/"))),
        (
            "new user namespace",
            plain(unshare(CloneFlags::CLONE_NEWUSER)),
        ),
        (
            "new mount namespace",
            plain(unshare(CloneFlags::CLONE_NEWNS)),
        ),
        (
            "mount",
            plain(mount(
                Some("none"),
                "/tmp",
                Some("tmpfs"),
                MsFlags::empty(),
                None::<&str>,
            )),
        ),
        ("name the host", plain(sethostname("gateway"))),
        ("inet socket", open(AddressFamily::Inet, SockType::Stream)),
        (
            "inet6 socket",
            open(AddressFamily::Inet6, SockType::Datagram),
        ),
        ("unix socket", open(AddressFamily::Unix, SockType::Stream)),
        (
            "netlink socket",
            open(AddressFamily::Netlink, SockType::Raw),
        ),
        ("packet socket", open(AddressFamily::Packet, SockType::Raw)),
        ("vsock socket", open(AddressFamily::Vsock, SockType::Stream)),
        ("alg socket", open(AddressFamily::Alg, SockType::SeqPacket)),
    ] {
        let answer =
            outcome.map_or_else(|error| error.kind().to_string(), |()| "allowed".to_owned());
        writeln!(out, "{push}: {answer}")?;
    }
    let status = fs::read_to_string("/proc/self/status")?;
    write!(out, "{status}")?;
    Ok(())
}

fn plain<T>(outcome: nix::Result<T>) -> io::Result<()> {
    outcome.map(drop).map_err(io::Error::from)
}

fn open(family: AddressFamily, kind: SockType) -> io::Result<()> {
    plain(socket(family, kind, SockFlag::empty(), None))
}
