// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The gateway's side of the socket, as the tests need it.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use hearth_protocol::frame::{self, PACKET_BYTES_MAX, PAYLOAD_BYTES_MAX};
use hearth_protocol::worker::{Ending, Event, Module, Request, Stream, Usage};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, sendmsg, socketpair,
    sockopt::{Timeout, set_socket_timeout},
};

/// How long a test waits for a packet that must come.
const PATIENCE: Duration = Duration::from_secs(30);

const WORKER: &str = env!("CARGO_BIN_EXE_hearth-wasm-worker");

/// A worker process and the socket to it.
pub(crate) struct Worker {
    pub(crate) process: Child,
    socket: Option<OwnedFd>,
    /// Events of a packet of several that were not looked at yet.
    events: RefCell<VecDeque<(Event, Vec<u8>)>>,
    /// What came so far of each invocation that runs, by sequence number.
    output: RefCell<HashMap<u32, Output>>,
}

/// What came of one invocation.
#[derive(Debug, Default)]
struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    packets: usize,
}

/// One finished invocation.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) seq: u32,
    pub(crate) ending: Ending,
    pub(crate) usage: Usage,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Packets that it took, `Done` included.
    pub(crate) packets: usize,
}

/// Limits that are in no test's way.
pub(crate) fn roomy() -> Module {
    Module {
        memory_bytes_max: 256 << 20,
        inflight_max: 64,
        output_bytes_max: 64 << 20,
        env: Vec::new(),
    }
}

/// A `Run` without arguments and variables.
pub(crate) fn run(seq: u32, body_bytes: usize, timeout: Duration) -> Request {
    Request::Run {
        seq,
        args: vec!["guest".to_owned()],
        env: Vec::new(),
        body_bytes: body_bytes as u64,
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap(),
    }
}

/// Runs the compiler.
pub(crate) fn compile(module: &[u8]) -> std::process::Output {
    let mut compiler = Command::new(env!("CARGO_BIN_EXE_hearth-wasm-compiler"))
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The compiler reads all of it before it writes anything.
    compiler.stdin.take().unwrap().write_all(module).unwrap();
    compiler.wait_with_output().unwrap()
}

/// The artifact of a good module, as a file that is open for reading.
pub(crate) fn artifact(module: &[u8]) -> File {
    let output = compile(module);
    let problems = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{problems}");
    file_with(&output.stdout)
}

/// An open file without a name.
pub(crate) fn file_with(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

impl Worker {
    /// A booted worker.
    pub(crate) fn boot() -> Self {
        Self::spawn(Command::new(WORKER))
    }

    /// A booted worker that runs as another user. Executed through a descriptor: the path may be closed to that user.
    pub(crate) fn boot_as(uid: u32) -> Self {
        // Not 3, where the child gets its socket before it executes this.
        let image = rustix::io::fcntl_dupfd_cloexec(File::open(WORKER).unwrap(), 10).unwrap();
        let path = format!("/proc/self/fd/{}", image.as_raw_fd());
        let mut command = Command::new(path);
        command.uid(uid);
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        set_socket_timeout(&ours, Timeout::Recv, Some(PATIENCE)).unwrap();
        command.env_clear().stdin(Stdio::null());
        let control = FdMapping {
            parent_fd: theirs,
            child_fd: 3,
        };
        command.fd_mappings(vec![control]).unwrap();
        let process = command.spawn().unwrap();
        // Else this process would keep the worker's end open itself.
        drop(command);
        let worker = Self {
            process,
            socket: Some(ours),
            events: RefCell::default(),
            output: RefCell::default(),
        };
        assert_eq!(worker.lone_event(), Event::Booted);
        worker
    }

    /// A worker bound to a module.
    pub(crate) fn bound(module: &[u8], limits: Module) -> Self {
        let worker = Self::boot();
        worker.bind(limits, &artifact(module));
        assert_eq!(worker.lone_event(), Event::Bound);
        worker
    }

    pub(crate) fn bind(&self, limits: Module, artifact: &File) {
        let mut packet = Vec::new();
        frame::encode(&Request::Bind(limits), &[], &mut packet).unwrap();
        let fds = [artifact.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(
            self.socket(),
            &[IoSlice::new(&packet)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .unwrap();
    }

    pub(crate) fn send(&self, request: &Request, payload: &[u8]) {
        self.send_all(&[(request.clone(), payload)]);
    }

    /// Sends several messages in one packet.
    pub(crate) fn send_all(&self, messages: &[(Request, &[u8])]) {
        let mut packet = Vec::new();
        for (request, payload) in messages {
            frame::append(request, payload, &mut packet).unwrap();
        }
        self.send_raw(&packet).unwrap();
    }

    pub(crate) fn send_raw(&self, packet: &[u8]) -> io::Result<()> {
        let no_fds = &mut SendAncillaryBuffer::default();
        sendmsg(
            self.socket(),
            &[IoSlice::new(packet)],
            no_fds,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// The next event of a bound worker; a panic where none comes or the worker is gone.
    pub(crate) fn event(&self) -> (Event, Vec<u8>) {
        let mut events = self.events.borrow_mut();
        if events.is_empty() {
            let packet = self.packet();
            let mut rest = packet.as_slice();
            while let Some((event, payload)) = frame::take::<Event>(&mut rest).unwrap() {
                events.push_back((event, payload.to_vec()));
            }
        }
        events.pop_front().unwrap()
    }

    /// The answer of a worker that is not bound yet.
    pub(crate) fn lone_event(&self) -> Event {
        frame::decode_bare(&self.packet()).unwrap()
    }

    fn packet(&self) -> Vec<u8> {
        let mut packet = vec![0; PACKET_BYTES_MAX];
        let (_, length) = recv(self.socket(), &mut *packet, RecvFlags::TRUNC).unwrap();
        assert!(0 < length && length <= PACKET_BYTES_MAX, "{length}");
        packet.truncate(length);
        packet
    }

    /// Begins an invocation with a body of any size.
    pub(crate) fn begin(&self, seq: u32, body: &[u8], timeout: Duration) {
        let (first, rest) = body.split_at(body.len().min(PAYLOAD_BYTES_MAX));
        self.send(&run(seq, body.len(), timeout), first);
        for piece in rest.chunks(PAYLOAD_BYTES_MAX) {
            self.send(&Request::Body { seq }, piece);
        }
    }

    /// Reads until the next `Done`.
    pub(crate) fn finish(&self) -> Finished {
        let mut outputs = self.output.borrow_mut();
        loop {
            let (event, payload) = self.event();
            match event {
                Event::Output { seq, stream } => {
                    let output = outputs.entry(seq).or_default();
                    output.packets += 1;
                    match stream {
                        Stream::Stdout => output.stdout.extend(payload),
                        Stream::Stderr => output.stderr.extend(payload),
                    }
                }
                Event::Done { seq, ending, usage } => {
                    let mut output = outputs.remove(&seq).unwrap_or_default();
                    output.stdout.extend(payload);
                    return Finished {
                        seq,
                        ending,
                        usage,
                        stdout: output.stdout,
                        stderr: output.stderr,
                        packets: output.packets + 1,
                    };
                }
                event => panic!("{event:?}"),
            }
        }
    }

    /// A whole invocation.
    pub(crate) fn invoke(&self, body: &[u8], timeout: Duration) -> Finished {
        self.begin(7, body, timeout);
        let finished = self.finish();
        assert_eq!(finished.seq, 7);
        finished
    }

    /// Closes the socket and gives the worker's exit status.
    pub(crate) fn close(mut self) -> ExitStatus {
        self.socket = None;
        self.process.wait().unwrap()
    }

    /// Waits for the worker to end by itself.
    pub(crate) fn ended(mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }

    /// A field of `/proc/PID/status` or of a thread's, in kB where it is a size.
    pub(crate) fn status_field(&self, task: Option<&str>, field: &str) -> u64 {
        let pid = self.process.id();
        let path = task.map_or_else(
            || format!("/proc/{pid}/status"),
            |task| format!("/proc/{pid}/task/{task}/status"),
        );
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_ascii_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    }

    fn socket(&self) -> &OwnedFd {
        self.socket.as_ref().unwrap()
    }
}

impl Drop for Worker {
    /// A test that failed leaves no worker behind: each ends when its socket closes, which this waits for.
    fn drop(&mut self) {
        self.socket = None;
        _ = self.process.wait();
    }
}
