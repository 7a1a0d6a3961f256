// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One process per call: bind once, then run, report the exit at once, kill and reap the rest, say what is left.
//!
//! Init waits for one thing at a time, which saves a call six system calls and a signal: between calls no process is
//! left that could end, so it waits for the gateway; during a call the gateway has nothing to say, and should it go away,
//! the spawner destroys the sandbox.

use std::{
    ffi::CStr,
    os::fd::{AsFd, OwnedFd},
};

use hearth_protocol::{
    frame::{self, PACKET_BYTES_MAX},
    init::{Event, ExitStatus, RUN_FDS, Request, ScratchUse},
};
use nix::{
    errno::Errno,
    sched::CpuSet,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    InitError, at,
    program::{NotReady, Ready},
};
use crate::{
    mounts, rlimit, seccomp, socket,
    sys::{
        program::{Executable, Launch, LaunchFailure, Launcher},
        wait::{self, Waited},
    },
};

/// Init's state between two packets.
struct Init<'a> {
    control: &'a OwnedFd,
    launcher: Launcher,
    own_cores: CpuSet,
    /// Set anew in every function process.
    rlimits: [(libc::c_int, u64); rlimit::LIMITS.len()],
    /// One more filter over each function process, where the profile has one.
    overlay: Option<seccomp::Program>,
    program: Option<Ready>,
    packet: Vec<u8>,
}

/// Serves the gateway until it closes its end.
pub(super) fn run(
    control: &OwnedFd,
    own_cores: CpuSet,
    overlay: Option<seccomp::Program>,
) -> Result<u8, InitError> {
    let mut init = Init {
        control,
        launcher: Launcher::new(),
        own_cores,
        rlimits: rlimit::settable().map_err(at("read a resource limit"))?,
        overlay,
        program: None,
        packet: Vec::new(),
    };
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    loop {
        let received = socket::receive_waiting(control.as_fd(), &mut buffer)
            .map_err(at("receive a request"))?;
        if received.bytes == 0 {
            return Ok(0);
        }
        let packet = buffer.get(..received.bytes).unwrap_or_default();
        match frame::decode_bare::<Request>(packet)? {
            Request::Bind(program) => {
                let answer = init.bind(program);
                init.send(&answer)?;
            }
            Request::Run { seq, env } => init.call(seq, &env, received.fds)?,
        }
    }
}

impl Init<'_> {
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

    /// One call, from the start of its process to a clean sandbox.
    fn call(
        &mut self,
        seq: u32,
        env: &[(String, String)],
        stdio: Vec<OwnedFd>,
    ) -> Result<(), InitError> {
        match self.start(seq, env, &stdio) {
            Ok(main) => {
                // Or the function could not see the end of its own pipes.
                drop(stdio);
                let status = wait_for(main)?;
                self.finish(seq, status)
            }
            Err(event) => self.send(&event),
        }
    }

    /// Starts the function's process; the error is the answer.
    fn start(
        &mut self,
        seq: u32,
        env: &[(String, String)],
        stdio: &[OwnedFd],
    ) -> Result<Pid, Event> {
        let Some(program) = &mut self.program else {
            return Err(failed(seq, "bind", Errno::ENOEXEC));
        };
        program
            .enter()
            .map_err(|errno| failed(seq, "chdir", errno))?;
        let [stdin, stdout, stderr] = stdio else {
            return Err(failed(seq, "descriptors", Errno::EBADF));
        };
        let stdio: [_; RUN_FDS] = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let env = program
            .environment(env)
            .map_err(|_nul| failed(seq, "environment", Errno::EINVAL))?;
        let launch = Launch {
            executable: Executable::Path(program.argv.first().unwrap_or(NO_PATH)),
            argv: &program.argv,
            env: &env,
            stdio: &stdio,
            keep: None,
            cores: &program.cores,
            rlimits: &self.rlimits,
            overlay: self.overlay.as_ref().map(seccomp::Program::instructions),
        };
        self.launcher
            .start(&launch)
            .map_err(|LaunchFailure { step, errno }| failed(seq, step, errno))
    }

    /// The answer goes out before anything else is done: whoever still holds stdout must not delay it.
    fn finish(&mut self, seq: u32, status: ExitStatus) -> Result<(), InitError> {
        let mut killed = match others()? {
            Others::None => {
                let clean = Some(measure_scratch()?);
                return self.send(&Event::Exited { seq, status, clean });
            }
            Others::Alive => 0,
            Others::Reaped => 1,
        };
        let clean = None;
        self.send(&Event::Exited { seq, status, clean })?;
        killed += kill_the_rest()?;
        let scratch = measure_scratch()?;
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

/// Waits for the main process's end, and reaps what dies before it.
fn wait_for(main: Pid) -> Result<ExitStatus, InitError> {
    loop {
        match wait::for_any().map_err(at("wait for the function"))? {
            Waited::Exited(pid, code) if pid == main => return Ok(ExitStatus::Exited(code)),
            Waited::Signaled(pid, signal) if pid == main => {
                return Ok(ExitStatus::Signaled(signal));
            }
            // An orphan.
            _ => {}
        }
    }
}

/// Who is there beside init once the main process is reaped.
enum Others {
    None,
    Alive,
    /// Somebody who was dead already, and perhaps more.
    Reaped,
}

/// Looks for other processes without asking for each: init without a child means a sandbox without another process. Every
/// process in it was forked inside, so its parent is inside, too; a parent's death makes it a child of another process
/// inside (a subreaper, or init) in the same step of the kernel; so the ancestors of any process lead to a child of init.
fn others() -> Result<Others, InitError> {
    match wait::look_for_any() {
        Err(Errno::ECHILD) => Ok(Others::None),
        Ok(None) => Ok(Others::Alive),
        outcome => outcome.map(|_reaped| Others::Reaped).map_err(at("reap")),
    }
}

/// Kills every other process of the sandbox and reaps until none is left; gives how many there were. One signal is
/// enough: the kernel holds the process list while it is sent, and a fork under way fails with it. The kernel looks at
/// every process of the host for it, which is why it is not sent when nobody is there.
fn kill_the_rest() -> Result<u32, InitError> {
    match kill(Pid::from_raw(-1), Signal::SIGKILL) {
        // There was nobody.
        Err(Errno::ESRCH) => return Ok(0),
        outcome => outcome.map_err(at("kill the rest"))?,
    }
    let mut reaped = 0;
    loop {
        match wait::for_any() {
            Err(Errno::ECHILD) => return Ok(reaped),
            outcome => outcome.map_err(at("reap the rest"))?,
        };
        reaped += 1;
    }
}

fn measure_scratch() -> Result<ScratchUse, InitError> {
    mounts::scratch_use().map_err(at("measure scratch"))
}

fn failed(seq: u32, step: &str, errno: Errno) -> Event {
    Event::Failed {
        seq,
        step: step.to_owned(),
        errno: errno as i32,
    }
}
