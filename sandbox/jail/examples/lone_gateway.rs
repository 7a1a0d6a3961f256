// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A gateway that does nothing but enter its jail and push on it, for the crate's tests:
//! `lone_gateway UID STATE_DIR SECRET_FILE`. Prints one line per push. Never shipped.

use std::{error::Error, fs, io::Write, path::Path, process::Command};

use hearth_jail::gateway_jail;

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
    let mut out = std::io::stdout();
    for (push, outcome) in [
        ("write state", fs::write(state_dir.join("f"), "x")),
        ("read secret", fs::read(secret).map(drop)),
        ("write secret", fs::write(secret, "x")),
        ("read passwd", fs::read("/etc/passwd").map(drop)),
        ("exec", Command::new("/bin/true").status().map(drop)),
        ("listen", listener),
    ] {
        let answer =
            outcome.map_or_else(|error| error.kind().to_string(), |()| "allowed".to_owned());
        writeln!(out, "{push}: {answer}")?;
    }
    let status = fs::read_to_string("/proc/self/status")?;
    write!(out, "{status}")?;
    Ok(())
}
