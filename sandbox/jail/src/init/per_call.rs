// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One process per call: bind once, then run, report the exit at once, kill and reap the rest, say what is left.

use std::{
    ffi::CStr,
    os::fd::{AsFd, OwnedFd},
};

use hearth_protocol::{
    frame::{self, PACKET_BYTES_MAX},
    init::{Event, ExitStatus, RUN_FDS, Request},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::CpuSet,
    sys::{
        signal::{Signal, kill},
        signalfd::SignalFd,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{
    InitError, at,
    program::{NotReady, Ready},
};
use crate::{
    mounts, rlimit, socket,
    sys::program::{Executable, Launch, LaunchFailure, Launcher},
};

/// Init's state between two packets.
struct Init<'a> {
    control: &'a OwnedFd,
    children: &'a SignalFd,
    launcher: Launcher,
    own_cores: CpuSet,
    program: Option<Ready>,
    running: Option<Running>,
    packet: Vec<u8>,
}

/// The call that is being served.
#[derive(Debug, Clone, Copy)]
struct Running {
    seq: u32,
    main: Pid,
}

/// Serves the gateway until it closes its end.
pub(super) fn run(
    control: &OwnedFd,
    children: &SignalFd,
    own_cores: CpuSet,
) -> Result<u8, InitError> {
    let mut init = Init {
        control,
        children,
        launcher: Launcher::new(),
        own_cores,
        program: None,
        running: None,
        packet: Vec::new(),
    };
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    loop {
        let mut interest = [
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
            PollFd::new(children.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut interest, PollTimeout::NONE).map_err(at("poll"))?;
        let [request, child] = interest.map(|fd| fd.any().unwrap_or(true));
        // A child's end first: its answer is waited for.
        if child {
            init.reap()?;
        }
        if request && !init.serve(&mut buffer)? {
            return Ok(0);
        }
    }
}

impl Init<'_> {
    /// Answers one request; false at the end of the connection.
    fn serve(&mut self, buffer: &mut [u8]) -> Result<bool, InitError> {
        let received = match socket::receive(self.control.as_fd(), buffer) {
            Err(Errno::EAGAIN) => return Ok(true),
            outcome => outcome.map_err(at("receive a request"))?,
        };
        if received.bytes == 0 {
            return Ok(false);
        }
        let packet = buffer.get(..received.bytes).unwrap_or_default();
        let answer = match frame::decode_bare::<Request>(packet)? {
            Request::Bind(program) => Some(self.bind(program)),
            Request::Run { seq, env } => self.start(seq, &env, &received.fds),
        };
        answer.map_or(Ok(()), |event| self.send(&event))?;
        Ok(true)
    }

    fn bind(&mut self, program: hearth_protocol::init::Program) -> Event {
        if self.program.is_some() {
            return failed(0, "bind", Errno::EBUSY);
        }
        match Ready::new(program, self.own_cores) {
            Ok(ready) => {
                self.program = Some(ready);
                Event::Bound
            }
            Err(NotReady::NoPath) => failed(0, "argv", Errno::EINVAL),
            Err(NotReady::Nul(_)) => failed(0, "text", Errno::EINVAL),
            Err(NotReady::Core(errno)) => failed(0, "cores", errno),
        }
    }

    /// None where the process runs: its end is the answer.
    fn start(&mut self, seq: u32, env: &[(String, String)], fds: &[OwnedFd]) -> Option<Event> {
        let Some(program) = &self.program else {
            return Some(failed(seq, "bind", Errno::ENOEXEC));
        };
        if self.running.is_some() {
            return Some(failed(seq, "run", Errno::EBUSY));
        }
        if fds.len() != RUN_FDS {
            return Some(failed(seq, "descriptors", Errno::EBADF));
        }
        let Ok(env) = program.environment(env) else {
            return Some(failed(seq, "environment", Errno::EINVAL));
        };
        let stdio: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let launch = Launch {
            executable: Executable::Path(program.argv.first().unwrap_or(NO_PATH)),
            argv: &program.argv,
            env: &env,
            cwd: &program.cwd,
            stdio: &stdio,
            keep: None,
            cores: &program.cores,
            rlimits: &rlimit::LIMITS,
        };
        match self.launcher.start(&launch) {
            Ok(main) => {
                self.running = Some(Running { seq, main });
                None
            }
            Err(LaunchFailure { step, errno }) => Some(failed(seq, step, errno)),
        }
    }

    /// Reaps what has died. When the main process is among it, the call is over.
    fn reap(&mut self) -> Result<(), InitError> {
        while self
            .children
            .read_signal()
            .map_err(at("read the signalfd"))?
            .is_some()
        {}
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Err(Errno::ECHILD) => return Ok(()),
                outcome => outcome.map_err(at("reap"))?,
            };
            let (pid, status) = match status {
                WaitStatus::Exited(pid, code) => (pid, ExitStatus::Exited(low_byte(code))),
                WaitStatus::Signaled(pid, signal, _) => {
                    (pid, ExitStatus::Signaled(low_byte(signal as i32)))
                }
                WaitStatus::StillAlive => return Ok(()),
                // Not asked for: no WUNTRACED, no tracing.
                _ => continue,
            };
            if let Some(running) = self.running.take_if(|running| running.main == pid) {
                self.finish(running.seq, status)?;
            }
        }
    }

    /// The answer goes out before anything else is done: whoever still holds stdout must not delay it.
    fn finish(&mut self, seq: u32, status: ExitStatus) -> Result<(), InitError> {
        self.send(&Event::Exited { seq, status })?;
        let killed = kill_the_rest()?;
        let scratch = mounts::scratch_use().map_err(at("measure scratch"))?;
        self.send(&Event::Clean {
            seq,
            killed,
            scratch,
        })
    }

    fn send(&mut self, event: &Event) -> Result<(), InitError> {
        frame::encode(event, b"", &mut self.packet)?;
        match socket::send_waiting(self.control.as_fd(), &self.packet) {
            // The gateway is gone; the next receive says so and ends init.
            Err(Errno::EPIPE) => Ok(()),
            outcome => outcome.map_err(at("answer the gateway")),
        }
    }
}

/// Never used: `Ready::new` refuses an empty argv.
const NO_PATH: &CStr = c"";

/// Kills every other process of the sandbox and reaps until none is left; gives how many there were. One signal is
/// enough: the kernel holds the process list while it is sent, and a fork under way fails with it.
fn kill_the_rest() -> Result<u32, InitError> {
    match kill(Pid::from_raw(-1), Signal::SIGKILL) {
        // There was nobody.
        Err(Errno::ESRCH) => return Ok(0),
        outcome => outcome.map_err(at("kill the rest"))?,
    }
    let mut reaped = 0;
    loop {
        match waitpid(None, None) {
            Err(Errno::ECHILD) => return Ok(reaped),
            outcome => outcome.map_err(at("reap the rest"))?,
        };
        reaped += 1;
    }
}

fn failed(seq: u32, step: &str, errno: Errno) -> Event {
    Event::Failed {
        seq,
        step: step.to_owned(),
        errno: errno as i32,
    }
}

/// Exit codes and signal numbers have eight and seven bits (wait(2)).
fn low_byte(value: i32) -> u8 {
    u8::try_from(value & 0xff).unwrap_or(u8::MAX)
}
