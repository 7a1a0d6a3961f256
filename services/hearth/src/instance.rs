// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `hearth serve` as a child of `up` and `run`: started, waited for, and ended with its parent.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::client::Client;
use crate::config::{Config, Flags};
use crate::exit::{Code, Failure};
use crate::monitor::{LISTENING, READY};

/// How long a start may take: the first one copies the base trees (a few seconds), and after an upgrade code is compiled
/// again before readiness.
const START_MAX: Duration = Duration::from_secs(120);

/// How long a stop may take beyond the drain limit.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// The longest line that is read of the child's output, in bytes.
const LINE_BYTES_MAX: u64 = 4096;

/// A running `hearth serve`; ended when this value is dropped.
#[derive(Debug)]
pub(crate) struct Instance {
    child: Child,
    /// Readable once the child has ended.
    pidfd: OwnedFd,
    lines: Receiver<Line>,
    url: String,
    data_dir: PathBuf,
}

/// What the child said on stdout.
#[derive(Debug)]
enum Line {
    Listening(String),
    Ready,
    End,
}

impl Instance {
    /// Starts one with these flags, and waits until it accepts invocations.
    pub(crate) fn start(
        flags: &Flags,
        file: Option<&PathBuf>,
        config: &Config,
    ) -> Result<Self, Failure> {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("hearth")
            .arg("serve")
            .args(flags.to_args())
            .env("RUST_LOG", &config.log.filter)
            .arg(format!("--parent={}", std::process::id()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // A Ctrl-C is this process's to handle: it stops the child in order.
            .process_group(0);
        if let Some(file) = file {
            command.arg("--config").arg(file);
        }
        let failed = |error| cannot_start(format!("cannot start hearth serve: {error}"));
        let mut child = command.spawn().map_err(failed)?;
        let pidfd = match Pid::from_raw(child.id().cast_signed()) {
            Some(pid) => pidfd_open(pid, PidfdFlags::empty()).map_err(|error| failed(error.into())),
            None => Err(cannot_start("the new process has no id".to_owned())),
        }?;
        let (sender, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || listen(stdout, &sender));
        }
        let mut instance = Self {
            child,
            pidfd,
            lines,
            url: String::new(),
            data_dir: config.data_dir.clone(),
        };
        instance.wait_until_ready()?;
        Ok(instance)
    }

    /// A client with the right to manage it.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Client::of_instance(&self.url, &self.data_dir)
    }

    /// Readable once it has ended.
    pub(crate) fn pidfd(&self) -> Result<OwnedFd, Failure> {
        let copy = self.pidfd.try_clone();
        copy.map_err(|error| Failure::new(Code::CannotStart, &error))
    }

    /// Stops it in order: running invocations may finish. What does not end in time is killed.
    pub(crate) fn stop(self, config: &Config) {
        // Fails only where it has ended already.
        pidfd_send_signal(&self.pidfd, Signal::TERM).ok();
        let limit = config.drain_max + STOP_GRACE;
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        // Nothing is lost where the wait is interrupted: the child has its signal, and is then killed by Drop.
        poll(&mut fds, timeout).ok();
    }

    fn wait_until_ready(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + START_MAX;
        loop {
            match self.next_line(deadline) {
                Ok(Line::Listening(url)) => self.url = url,
                Ok(Line::Ready) => return Ok(()),
                Ok(Line::End) | Err(RecvTimeoutError::Disconnected) => {
                    // What was wrong it has said itself, on stderr.
                    let status = self.child.wait().ok();
                    let code = status.and_then(|status| status.code());
                    let text = "hearth serve ended before it was ready; see above";
                    return Err(Failure::of(Code::from_child(code), text));
                }
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = START_MAX.as_secs();
                    let text = format!("hearth serve was not ready after {seconds} s");
                    return Err(cannot_start(text));
                }
            }
        }
    }

    fn next_line(&self, deadline: Instant) -> Result<Line, RecvTimeoutError> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.lines.recv_timeout(left)
    }
}

impl Drop for Instance {
    /// On the way of a failure; after [`Instance::stop`] there is nothing left to kill, only to reap.
    fn drop(&mut self) {
        // Its children, and with them every sandbox, end with it.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn cannot_start(text: String) -> Failure {
    Failure::of(Code::CannotStart, text)
}

/// Turns the child's stdout into lines until it closes.
fn listen(stdout: ChildStdout, lines: &Sender<Line>) {
    use std::io::Read;
    let mut reader = BufReader::new(stdout);
    loop {
        let mut text = String::new();
        let read = (&mut reader).take(LINE_BYTES_MAX).read_line(&mut text);
        let line = match (read, text.trim_end()) {
            (Ok(0) | Err(_), _) => Line::End,
            (Ok(_), READY) => Line::Ready,
            (Ok(_), text) => match text.strip_prefix(LISTENING) {
                Some(url) => Line::Listening(url.to_owned()),
                None => continue,
            },
        };
        let last = matches!(line, Line::End);
        if lines.send(line).is_err() || last {
            return;
        }
    }
}
