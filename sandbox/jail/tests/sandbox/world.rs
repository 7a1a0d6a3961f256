// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A spawner of its own per test, with a data directory, and the test as its gateway.

#[path = "../../init_target.rs"]
mod init_target;

use std::{
    fs,
    io::{IoSlice, IoSliceMut, Read, Seek, Write},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use hearth_jail::{
    bases,
    instance::{DataDir, IdClaim},
    trees::{NewFile, Store},
};
use hearth_protocol::{
    SmallName, TreeId, frame, init,
    isolation::IsolationReport,
    spawner::{
        Cause, Event, Handover, Host, Network, Profile, Request, RequestId, Root, SandboxId,
        SandboxLimits, SkeletonSpec, Violation, Worker,
    },
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockType, socketpair},
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};

/// No answer takes this long on a host that works.
const ANSWER_MS_MAX: u16 = 20_000;

/// Whether the tests can run; says loudly where not.
pub(crate) fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIPPED: building sandboxes takes root; run the tests with sudo to see them");
    }
    root
}

/// What a sandbox's report must call its level: the tests may run as root of a user namespace, too (`.ci/guest-rootless`).
pub(crate) fn level() -> &'static str {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    if whole { "full" } else { "rootless" }
}

/// The image of init, and the probe: a static program that does what its first argument says.
pub(crate) struct Programs {
    pub(crate) init: PathBuf,
    pub(crate) probe: Vec<u8>,
}

/// Built once per run of the tests; None where the host has no C compiler with a static libc.
pub(crate) fn programs() -> &'static Programs {
    static BUILT: OnceLock<Programs> = OnceLock::new();
    BUILT.get_or_init(|| {
        // As CARGO_TARGET_TMPDIR, which is set for tests only, and an example includes this file, too.
        let this = std::env::current_exe().unwrap();
        let temporary = this.ancestors().nth(3).unwrap().join("tmp");
        fs::create_dir_all(&temporary).unwrap();
        // A directory of its own: the outer cargo holds the lock of the shared one.
        let images = temporary.join("images");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let target = init_target::init_target(&rustc, std::env::consts::ARCH);
        // As services/hearth builds it: static, because no base has a loader for it.
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--release", "--package", "hearth-jail"])
            .args(["--bin", "hearth-init", "--target", &target, "--target-dir"])
            .arg(&images)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("RUSTFLAGS", STATIC)
            .status()
            .unwrap();
        assert!(built.success(), "hearth-init does not build");
        let probe = temporary.join("probe");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sandbox/probe.c");
        let built = Command::new("cc")
            .args(["-O1", "-static", "-w", "-o"])
            .args([&probe, &source])
            .status()
            .expect("the tests need a C compiler (Debian: apt-get install gcc libc6-dev)");
        assert!(built.success(), "the probe does not build");
        Programs {
            init: images.join(target).join("release/hearth-init"),
            probe: fs::read(probe).unwrap(),
        }
    })
}

/// Needs no root. `.ci/guest` runs it to have them built for a guest that has no compiler.
#[test]
fn the_programs_build() {
    assert!(programs().init.is_file());
    assert!(programs().probe.starts_with(b"\x7fELF"));
}

/// By a process of its own: a descriptor for writing in this one is inherited by whatever another test starts just then, and
/// nobody can execute the file until that is gone (ETXTBSY, execve(2)).
fn write_executable(path: &Path, content: &[u8]) {
    let mut writer = Command::new("sh")
        .args(["-c", "cat >\"$0\" && chmod 0111 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writer.stdin.take().unwrap().write_all(content).unwrap();
    assert!(writer.wait().unwrap().success(), "{}", path.display());
}

const STATIC: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// A running spawner and the test's end of its socket.
pub(crate) struct World {
    pub(crate) spawner: Child,
    pub(crate) host: Host,
    pub(crate) data_dir: DataDir,
    socket: Socket,
    requests: u64,
    /// `Gone` events that came while something else was waited for.
    gone: Vec<(SandboxId, Cause, u64)>,
    /// `Violation` events, until a test takes them.
    pub(crate) violations: Vec<(SandboxId, Violation)>,
    ids: IdClaim,
    _temporary: tempfile::TempDir,
}

/// One sandbox as its gateway sees it.
pub(crate) struct Sandbox {
    pub(crate) id: SandboxId,
    pub(crate) control: Socket,
    pub(crate) cgroup: Vec<OwnedFd>,
}

/// How a call went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: init::ExitStatus,
    pub(crate) stdout: String,
    pub(crate) killed: u32,
    pub(crate) scratch: init::ScratchUse,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_sandboxes_max(64)
    }

    pub(crate) fn with_sandboxes_max(sandboxes_max: u32) -> Self {
        let spawner = Command::new(example("lone_spawner"));
        Self::start(spawner, sandboxes_max, &["static"])
    }

    pub(crate) fn with_bases(names: &[&str]) -> Self {
        Self::start(Command::new(example("lone_spawner")), 64, names)
    }

    /// With every wall, without the one of this name, or with none: what `price_of_walls` can build.
    pub(crate) fn with_walls(name: &str) -> Self {
        let mut spawner = Command::new(example("price_of_walls"));
        spawner.args(["spawner", name]);
        Self::start(spawner, 64, &["static"])
    }

    fn start(mut spawner: Command, sandboxes_max: u32, base_names: &[&str]) -> Self {
        let programs = programs();
        let temporary = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(&temporary.path().join("data")).unwrap();
        let ids = data_dir.claim_ids().unwrap();
        for name in base_names {
            let base = SmallName::new(*name).unwrap();
            bases::ensure(&data_dir.bases(), &base, &mut |_line| {}).unwrap();
        }
        let image = |name: &str, content: &[u8]| {
            let path = data_dir.images().join(name);
            write_executable(&path, content);
            path
        };
        let init = image("init", &fs::read(&programs.init).unwrap());
        let resident = image("resident", &programs.probe);
        let (ours, theirs) = pair();
        let spawner = spawner
            .args([data_dir.path().as_os_str(), data_dir.instance().as_ref()])
            .arg(ids.block.first.to_string())
            .args([init, resident])
            .arg(sandboxes_max.to_string())
            .stdin(Stdio::from(theirs))
            .spawn()
            .expect("cargo test builds the examples, unless told to build one test only");
        let socket = Socket(ours);
        let Event::Hello { host } = socket.receive::<Event>().0 else {
            panic!("the first packet is not Hello")
        };
        Self {
            spawner,
            host,
            data_dir,
            socket,
            requests: 0,
            gone: Vec::new(),
            violations: Vec::new(),
            ids,
            _temporary: temporary,
        }
    }

    /// The host ids that its sandboxes get theirs from.
    pub(crate) fn ids(&self) -> std::ops::Range<u32> {
        let block = self.ids.block;
        block.first..block.first + block.count
    }

    pub(crate) fn send(&self, request: &Request) {
        self.socket.send(request, &[]);
    }

    pub(crate) fn send_request_with(&self, request: &Request, fds: &[BorrowedFd<'_>]) {
        self.socket.send(request, fds);
    }

    /// The name that its cgroups carry.
    pub(crate) fn instance(&self) -> &str {
        self.data_dir.instance()
    }

    /// Where stored trees are.
    pub(crate) fn trees(&self) -> PathBuf {
        self.data_dir.trees()
    }

    pub(crate) fn send_bytes(&self, packet: &[u8]) {
        self.send_with(packet, &[]);
    }

    pub(crate) fn send_with(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) {
        send_packet(self.socket.0.as_fd(), packet, fds);
    }

    /// Waits until everything that was sent has been served; what was answered is dropped.
    pub(crate) fn synchronise(&mut self) {
        let request = RequestId(u64::MAX);
        let sandbox = SandboxId(u64::MAX >> 2);
        self.send(&Request::Renew { request, sandbox });
        while !matches!(self.answer().0, Event::Failed { request: answered, .. } if answered == request)
        {
        }
    }

    pub(crate) fn next_request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    /// The next event that is no `Gone` and no `Violation`.
    pub(crate) fn answer(&mut self) -> (Event, Vec<OwnedFd>) {
        loop {
            match self.socket.receive() {
                (
                    Event::Gone {
                        sandbox,
                        cause,
                        totals,
                    },
                    _,
                ) => self.gone.push((sandbox, cause, totals.oom_kills)),
                (Event::Violation { sandbox, violation }, _) => {
                    self.violations.push((sandbox, violation));
                }
                other => return other,
            }
        }
    }

    /// Waits for the end of a sandbox.
    pub(crate) fn gone(&mut self, id: SandboxId) -> (Cause, u64) {
        loop {
            if let Some(index) = self.gone.iter().position(|(gone, _, _)| *gone == id) {
                let (_, cause, oom_kills) = self.gone.remove(index);
                return (cause, oom_kills);
            }
            match self.socket.receive() {
                (
                    Event::Gone {
                        sandbox,
                        cause,
                        totals,
                    },
                    _,
                ) => self.gone.push((sandbox, cause, totals.oom_kills)),
                (Event::Violation { sandbox, violation }, _) => {
                    self.violations.push((sandbox, violation));
                }
                (other, _) => panic!("{other:?} instead of Gone"),
            }
        }
    }

    pub(crate) fn try_create(&mut self, spec: SkeletonSpec) -> Result<Sandbox, Event> {
        self.try_create_with(spec, limits())
    }

    pub(crate) fn try_create_with(
        &mut self,
        spec: SkeletonSpec,
        limits: SandboxLimits,
    ) -> Result<Sandbox, Event> {
        let request = self.next_request();
        self.send(&Request::Create {
            request,
            spec,
            limits,
        });
        match self.answer() {
            (
                Event::Created {
                    request: answered,
                    sandbox,
                },
                mut fds,
            ) => {
                assert_eq!(answered, request);
                let control = Socket(fds.remove(0));
                Ok(Sandbox {
                    id: sandbox,
                    control,
                    cgroup: fds,
                })
            }
            (other, _) => Err(other),
        }
    }

    /// Whether the spawner says nothing in this time.
    pub(crate) fn is_silent_for(&self, milliseconds: u16) -> bool {
        let mut interest = [PollFd::new(self.socket.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut interest, PollTimeout::from(milliseconds)).unwrap() == 0
    }

    pub(crate) fn create(&mut self) -> Sandbox {
        self.try_create(per_call("static")).expect("a skeleton")
    }

    /// Stores one executable file as a tree.
    pub(crate) fn store(&self, path: &str, content: &[u8]) -> TreeId {
        let file = NewFile {
            path,
            executable: true,
            content,
        };
        Store::new(self.data_dir.trees()).install(&[file]).unwrap()
    }

    pub(crate) fn try_bind(&mut self, id: SandboxId, tree: TreeId, limits: SandboxLimits) -> Event {
        let request = self.next_request();
        let handover = Handover::Mount;
        self.send(&Request::Bind {
            request,
            sandbox: id,
            tree,
            handover,
            limits,
        });
        self.answer().0
    }

    /// A sandbox bound to the probe, which is called with these arguments.
    pub(crate) fn probe(&mut self, arguments: &[&str], limits: SandboxLimits) -> Sandbox {
        let sandbox = self.create();
        let tree = self.store("probe", &programs().probe);
        let bound = self.try_bind(sandbox.id, tree, limits);
        assert!(matches!(bound, Event::Bound { .. }), "{bound:?}");
        sandbox.bind_init("/function/probe", arguments);
        sandbox
    }

    pub(crate) fn renew(&mut self, id: SandboxId) -> init::ScratchUse {
        let request = self.next_request();
        self.send(&Request::Renew {
            request,
            sandbox: id,
        });
        match self.answer().0 {
            Event::Renewed { discarded, .. } => discarded,
            other => panic!("{other:?} instead of Renewed"),
        }
    }

    pub(crate) fn inspect(&mut self, id: SandboxId) -> IsolationReport {
        let request = self.next_request();
        self.send(&Request::Inspect {
            request,
            sandbox: id,
        });
        let (event, mut fds) = self.answer();
        assert!(matches!(event, Event::Inspected { .. }), "{event:?}");
        read_report(fds.remove(0))
    }

    /// What is answered to who asks for a report.
    pub(crate) fn try_inspect(&mut self, id: SandboxId) -> Event {
        let request = self.next_request();
        self.send(&Request::Inspect {
            request,
            sandbox: id,
        });
        self.answer().0
    }

    pub(crate) fn destroy(&mut self, id: SandboxId) -> (Cause, u64) {
        self.send(&Request::Destroy { sandbox: id });
        self.gone(id)
    }

    /// Closes the gateway's end and waits for the spawner to end in good order.
    pub(crate) fn close(mut self) {
        drop(self.socket);
        let status = self.spawner.wait().unwrap();
        assert!(status.success(), "{status}");
        let directory = format!("hearth-{}", self.data_dir.instance());
        assert_eq!(cgroups_named(&directory), Vec::<PathBuf>::new());
    }
}

/// The report in a memfd.
pub(crate) fn read_report(memfd: OwnedFd) -> IsolationReport {
    let mut text = String::new();
    fs::File::from(memfd).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A test-only executable of this crate.
pub(crate) fn example(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    this.ancestors().nth(2).unwrap().join("examples").join(name)
}

/// Every cgroup directory of this name, in any hierarchy.
pub(crate) fn cgroups_named(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let all = hierarchies
        .chain([root.to_owned()])
        .map(|hierarchy| hierarchy.join(name));
    all.filter(|directory| directory.exists()).collect()
}

impl Sandbox {
    pub(crate) fn bind_init(&self, program: &str, arguments: &[&str]) {
        let argv = [program]
            .iter()
            .chain(arguments)
            .map(|text| (*text).to_owned())
            .collect();
        self.control.send(
            &init::Request::Bind(init::Program {
                argv,
                env: vec![
                    ("FIXED".to_owned(), "1".to_owned()),
                    ("OVERRIDDEN".to_owned(), "1".to_owned()),
                ],
                cwd: "/function".to_owned(),
                cores: Vec::new(),
            }),
            &[],
        );
        let (event, _): (init::Event, _) = self.control.receive();
        assert_eq!(event, init::Event::Bound);
    }

    /// Starts a call; gives the far ends of its stdin and stdout.
    pub(crate) fn start(&self, seq: u32) -> (fs::File, fs::File) {
        let (input, to_function) = nix::unistd::pipe().unwrap();
        let (from_function, output) = nix::unistd::pipe().unwrap();
        let env = vec![("OVERRIDDEN".to_owned(), "2".to_owned())];
        let errors = output.try_clone().unwrap();
        self.control.send(
            &init::Request::Run { seq, env },
            &[input.as_fd(), output.as_fd(), errors.as_fd()],
        );
        (to_function.into(), from_function.into())
    }

    /// One whole call.
    pub(crate) fn run(&self, seq: u32, body: &[u8]) -> Outcome {
        let (mut to_function, mut from_function) = self.start(seq);
        to_function.write_all(body).unwrap();
        drop(to_function);
        let (event, _): (init::Event, _) = self.control.receive();
        let init::Event::Exited {
            status,
            seq: answered,
            clean,
        } = event
        else {
            panic!("{event:?} instead of Exited")
        };
        assert_eq!(answered, seq);
        let (killed, scratch) = match clean {
            Some(scratch) => (0, scratch),
            None => self.cleaned(),
        };
        let mut stdout = Vec::new();
        from_function.read_to_end(&mut stdout).unwrap();
        Outcome {
            status,
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            killed,
            scratch,
        }
    }

    /// How many others init killed after the main process's end, and the scratch that is left.
    fn cleaned(&self) -> (u32, init::ScratchUse) {
        match self.control.receive().0 {
            init::Event::Clean {
                killed, scratch, ..
            } => (killed, scratch),
            event => panic!("{event:?} instead of Clean"),
        }
    }

    /// The text of one of its cgroup files, by its place in `CreatedFd` after the control socket.
    pub(crate) fn cgroup_file(&self, index: usize) -> String {
        let mut file = fs::File::from(self.cgroup[index - 1].try_clone().unwrap());
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }
}

pub(crate) fn per_call(base: &str) -> SkeletonSpec {
    SkeletonSpec {
        worker: Worker::PerCall,
        base: SmallName::new(base).unwrap(),
        root: Root::ReadOnly,
        profile: Profile::Default,
        network: Network::None,
        core: None,
    }
}

pub(crate) fn limits() -> SandboxLimits {
    SandboxLimits {
        memory_bytes: 64 << 20,
        pids: 32,
        cpu_millis: 1000,
        scratch_bytes: 8 << 20,
        scratch_inodes: 256,
    }
}

/// One end of a SEQPACKET socket.
pub(crate) struct Socket(pub(crate) OwnedFd);

impl Socket {
    pub(crate) fn send<M: Serialize>(&self, message: &M, fds: &[BorrowedFd<'_>]) {
        let mut packet = Vec::new();
        frame::encode(message, b"", &mut packet).unwrap();
        send_packet(self.0.as_fd(), &packet, fds);
    }

    pub(crate) fn receive<M: DeserializeOwned>(&self) -> (M, Vec<OwnedFd>) {
        let (packet, fds) = self.receive_packet().expect("the other end is closed");
        (frame::decode_bare(&packet).unwrap(), fds)
    }

    /// None at the end of the connection.
    pub(crate) fn receive_packet(&self) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        let mut interest = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut interest, PollTimeout::from(ANSWER_MS_MAX)).unwrap();
        assert_eq!(ready, 1, "no answer within {ANSWER_MS_MAX} ms");
        let mut buffer = vec![0; frame::PACKET_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let received = recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        buffer.truncate(received.bytes);
        (0 < received.bytes).then_some((buffer, fds))
    }
}

fn send_packet(socket: BorrowedFd<'_>, packet: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    sendmsg(
        socket,
        &[IoSlice::new(packet)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .unwrap();
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .unwrap()
}

/// How often and how long [`eventually`] looks: 5 s in all.
const LOOKS: u32 = 500;
const LOOK_MS: u64 = 10;

/// Waits until something that the kernel does in its own time has happened.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..LOOKS {
        if holds() {
            return;
        }
        poll(
            &mut [],
            PollTimeout::try_from(Duration::from_millis(LOOK_MS)).unwrap(),
        )
        .unwrap();
    }
    panic!("{what} did not happen");
}
