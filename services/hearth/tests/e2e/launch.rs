// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Starting what must live as long as this process, and no longer.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::home::Home;
use crate::tenant::Tenant;

/// Starts a command from a thread that lives as long as this process: the kernel takes the end of the thread that
/// started a child for the end of its parent, and a test's thread ends with the test.
pub(crate) fn launch(command: Command) -> Child {
    type Job = (Command, Sender<std::io::Result<Child>>);
    static LAUNCHER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let launcher = LAUNCHER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, done) in jobs {
                drop(done.send(command.spawn()));
            }
        });
        Mutex::new(sender)
    });
    let (sender, launched) = channel();
    let job = (command, sender);
    launcher
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(job)
        .expect("it runs");
    launched
        .recv()
        .expect("it answers")
        .expect("the program can be executed")
}

/// The shared instance ends when this process ends, but nothing of this process is left to remove its directory (and a
/// user's cgroup): a shell waits for our end of its stdin to close and for the instance's lock to be free, and does it then.
pub(crate) fn leave_to_janitor(home: &Home) {
    let script =
        r#"read -r _; flock "$1/data/lock" true; rm -rf "$1"; [ $# = 1 ] || rmdir "$2"/*/ "$2""#;
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "janitor"])
        .arg(home.path())
        .args(home.tenant().map(Tenant::cgroup))
        .stdin(Stdio::piped());
    let child = launch(command);
    // Kept open until the process ends.
    std::mem::forget(child);
    std::mem::forget(home.clone());
}

pub(crate) fn lines_of(stdout: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // Read to the end even where nobody listens: a full pipe would stop the server.
            drop(sender.send(line));
        }
    });
    lines
}

/// `hearth serve` on a free port of loopback.
pub(crate) fn serve_command(home: &Home, flags: &[&str]) -> Command {
    let mut command = home.hearth();
    let parent = format!("--parent={}", std::process::id());
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(home.data());
    command.args(flags).arg(parent).stdin(Stdio::null());
    command
}
