// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A running `hearth serve`: started as a user starts it, and talked to over HTTP.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub(crate) use crate::home::Home;
use crate::http::{Answer, Connection, Headers};
pub(crate) use crate::launch::serve_command;
use crate::launch::{launch, leave_to_janitor, lines_of};
use crate::package::Package;
use crate::wait::{SOON, until, until_true};
use crate::world::{self, Process};

/// The executable under test.
pub(crate) const HEARTH: &str = env!("CARGO_BIN_EXE_hearth");

/// Where root takes an instance's ids from.
const OWN_IDS: Range<u32> = 0x7000_0000..0x8000_0000;

/// A first start copies the bases.
const START_MAX: Duration = Duration::from_secs(120);

/// Draining takes up to 10 s, and removing what is left a little more.
const STOP_MAX: Duration = Duration::from_secs(30);

/// What an instance is given to end whose test has failed; then it is killed, which takes every sandbox with it.
const ABANDON_MAX: Duration = Duration::from_secs(5);

/// How much of the log a failed test shows, in bytes.
const LOG_TAIL_BYTES: usize = 8 * 1024;

/// Cgroups that the spawner has ready for sandboxes to come.
const AHEAD_MAX: usize = 4;

/// Open files of the gateway that may come and go by themselves: the database opens its log and its shared memory when
/// it first needs them.
const FDS_SLACK: usize = 4;

/// Threads of the gateway: two shards with up to four that block in each, and the writer of receipts. Those that block
/// end by themselves after ten idle seconds.
const THREADS_MAX: usize = 2 * (1 + 4) + 1;

/// A running `hearth serve`.
#[derive(Debug)]
pub(crate) struct Instance {
    child: Mutex<Child>,
    lines: Mutex<Receiver<String>>,
    pub(crate) address: SocketAddr,
    pub(crate) home: Home,
    key: String,
    /// The gateway's open files beyond those that its sandboxes have, once it was first seen quiet.
    quiet: OnceLock<usize>,
}

impl Instance {
    /// One of the test's own.
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::start_in(&Home::new(), flags)
    }

    /// As [`Self::start`], on data that may have been used before.
    pub(crate) fn start_in(home: &Home, flags: &[&str]) -> Self {
        Self::start_by(home, serve_command(home, flags))
    }

    /// As [`Self::start_in`], by a command that becomes `hearth serve`.
    pub(crate) fn start_by(home: &Home, command: Command) -> Self {
        let instance = Self::begin_by(home, command);
        instance.wait_for_ready();
        instance
    }

    /// Listens, and may not be ready yet.
    fn begin_by(home: &Home, mut command: Command) -> Self {
        let log = home.path().join("log");
        let log = File::options()
            .append(true)
            .create(true)
            .open(log)
            .expect("a log file");
        command.stdout(Stdio::piped()).stderr(log);
        let mut child = launch(command);
        let lines = lines_of(child.stdout.take().expect("it is piped"));
        let deadline = Instant::now() + START_MAX;
        let url = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(line) => match line.strip_prefix("listening on http://") {
                    Some(address) => break address.to_owned(),
                    None => continue,
                },
                Err(error) => panic!("hearth serve does not listen: {error}\n{}", log_tail(home)),
            }
        };
        let key = fs::read_to_string(home.data().join("key")).expect("the key file is there");
        Self {
            child: Mutex::new(child),
            lines: Mutex::new(lines),
            address: url.parse().expect("an address"),
            home: home.clone(),
            key: key.trim().to_owned(),
            quiet: OnceLock::new(),
        }
    }

    /// The one that most tests share; ends with this process.
    pub(crate) fn of_all() -> &'static Self {
        static SHARED: OnceLock<Instance> = OnceLock::new();
        SHARED.get_or_init(|| {
            let instance = Self::start(&[]);
            leave_to_janitor(&instance.home);
            instance
        })
    }

    fn wait_for_ready(&self) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + START_MAX;
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line == "READY" => break,
                Ok(_) => {}
                Err(error) => panic!(
                    "hearth serve is not ready: {error}\n{}",
                    log_tail(&self.home)
                ),
            }
        }
        self.get("/readyz").expect(200);
    }

    /// What it reaches, by name.
    pub(crate) fn level(&self) -> &'static str {
        match self.home.tenant() {
            Some(_) => "rootless",
            None => "full",
        }
    }

    /// The ids of its gateway and of everything in its sandboxes, as the host sees them.
    pub(crate) fn ids(&self) -> Range<u32> {
        match self.home.tenant() {
            Some(tenant) => tenant.range().clone(),
            None => OWN_IDS,
        }
    }

    /// The management key.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The URL for the client commands.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A client command against this instance.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(HEARTH);
        command
            .args(arguments)
            .env("HEARTH_URL", self.url())
            .env("HEARTH_KEY", &self.key);
        command
            .stdin(Stdio::null())
            .output()
            .expect("hearth can be executed")
    }

    /// One request on a connection of its own.
    pub(crate) fn call(
        &self,
        method: &str,
        path: &str,
        headers: Headers<'_>,
        body: &[u8],
    ) -> Answer {
        self.try_call(method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", log_tail(&self.home)))
    }

    /// As [`Self::call`], where the connection may break.
    pub(crate) fn try_call(
        &self,
        method: &str,
        path: &str,
        headers: Headers<'_>,
        body: &[u8],
    ) -> std::io::Result<Answer> {
        Connection::open(self.address)?.call(method, path, headers, body)
    }

    /// A public resource.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], b"")
    }

    /// A management request.
    pub(crate) fn manage(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let bearer = format!("Bearer {}", self.key);
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/x-tar"),
        ];
        self.call(method, path, &headers, body)
    }

    pub(crate) fn invoke(&self, name: &str, body: &[u8]) -> Answer {
        self.call("POST", &format!("/invoke/{name}"), &[], body)
    }

    /// Deploys, whatever comes of it.
    pub(crate) fn try_deploy(&self, package: &Package) -> Answer {
        self.manage(
            "PUT",
            &format!("/v1/functions/{}", package.name),
            &package.tar(),
        )
    }

    /// Deploys.
    pub(crate) fn deploy(&self, package: &Package) -> Value {
        let answer = self.try_deploy(package);
        assert!(
            [200, 201].contains(&answer.status),
            "{} {}",
            answer.status,
            answer.text()
        );
        answer.json()
    }

    pub(crate) fn remove(&self, name: &str) -> Answer {
        self.manage("DELETE", &format!("/v1/functions/{name}"), b"")
    }

    /// The receipt of an invocation; it is written a moment after the answer.
    pub(crate) fn receipt(&self, invocation: &str) -> Value {
        let path = format!("/v1/invocations/{invocation}");
        until(&format!("a receipt of {invocation}"), SOON, || {
            let answer = self.manage("GET", &path, b"");
            if answer.status == 200 {
                Ok(answer.json())
            } else {
                Err(answer.text())
            }
        })
    }

    /// The value of every series, by its text.
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let text = self.get("/metrics").expect(200).text();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        series.collect()
    }

    /// The sum of a metric's series that have all of these labels.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{value}\""))
            .collect();
        let matches = |series: &str| {
            let own = series.split('{').next() == Some(name);
            own && wanted.iter().all(|label| series.contains(label))
        };
        self.metrics()
            .iter()
            .filter(|(series, _)| matches(series))
            .map(|(_, value)| value)
            .sum()
    }

    pub(crate) fn monitor(&self) -> i32 {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        i32::try_from(child.id()).expect("a pid")
    }

    /// The gateway's pid, waiting for one if it is being replaced.
    pub(crate) fn gateway(&self) -> i32 {
        self.role("gateway")
    }

    /// As [`Self::gateway`].
    pub(crate) fn spawner(&self) -> i32 {
        self.role("spawner")
    }

    fn role(&self, role: &str) -> i32 {
        let monitor = self.monitor();
        until(&format!("a process in the role {role}"), SOON, || {
            let children = world::processes()
                .into_iter()
                .filter(|child| child.parent == monitor);
            let mut living = children.filter(|child| child.state != 'Z');
            let found = living.find(|child| {
                world::command_line(child.pid).ends_with(&["role".into(), role.into()])
            });
            found.map(|child| child.pid).ok_or("there is none")
        })
    }

    /// The processes in this instance's sandboxes.
    pub(crate) fn sandboxed(&self) -> Vec<Process> {
        world::in_cgroups_of(&self.home.instance())
    }

    /// Waits until nothing runs and nothing is being made, and then demands that everything on the host belongs to a
    /// sandbox that the pool knows: so many cgroups, so many processes, no other open file, thread or mount.
    pub(crate) fn assert_clean(&self) {
        until("the host is clean again", SOON, || self.look_for_remains());
    }

    fn look_for_remains(&self) -> Result<(), String> {
        let metrics = self.metrics();
        let count = |kind: &str, state: &str| {
            let series = format!("hearth_sandboxes{{kind=\"{kind}\",state=\"{state}\"}}");
            metrics.get(&series).map_or(0, |number| whole(*number))
        };
        let of = |kind: &str| count(kind, "skeleton") + count(kind, "idle");
        let busy: usize = ["native", "wasm"]
            .map(|kind| count(kind, "leased") + count(kind, "starting"))
            .iter()
            .sum();
        if 0 < busy || metrics.get("hearth_invocations_inflight") != Some(&0.0) {
            return Err(format!("{busy} sandboxes are not at rest"));
        }
        let (native, wasm) = (of("native"), of("wasm"));
        let instance = self.home.instance();
        for (path, sandboxes) in world::cgroups_of(&instance) {
            let (held, ahead): (Vec<_>, Vec<_>) = sandboxes
                .iter()
                .partition(|sandbox| world::holds_processes(&path.join(sandbox)));
            if held.len() != native + wasm || AHEAD_MAX < ahead.len() {
                let place = path.display();
                return Err(format!(
                    "{place}: {held:?} and {ahead:?} for {native} + {wasm}"
                ));
            }
        }
        // Init alone, and in a wasm sandbox the worker.
        let inside = self.sandboxed();
        if inside.len() != native + 2 * wasm {
            return Err(format!(
                "{native} native and {wasm} wasm sandboxes hold {inside:?}"
            ));
        }
        let below = world::descendants(self.monitor());
        if below.len() != 2 + inside.len() {
            return Err(format!("below the monitor are {below:?}"));
        }
        let data = self.home.data();
        let mounts = world::mounts_naming(self.monitor(), &[&data.to_string_lossy(), &instance]);
        if !mounts.is_empty() {
            return Err(format!("the host sees {mounts:?}"));
        }
        self.compare_gateway(native + wasm)
    }

    /// Nine open files for each sandbox (its socket, seven cgroup files and a counter); the rest does not change.
    fn compare_gateway(&self, sandboxes: usize) -> Result<(), String> {
        let gateway = self.gateway();
        let threads = world::count_in_proc(gateway, "task");
        let fds = world::count_in_proc(gateway, "fd").saturating_sub(9 * sandboxes);
        let fds_before = *self.quiet.get_or_init(|| fds);
        if THREADS_MAX < threads || fds_before + FDS_SLACK < fds {
            return Err(format!(
                "the gateway has {threads} threads and {fds} files beside its {sandboxes} sandboxes', once \
                 {fds_before}: {:?}",
                world::open_files(gateway)
            ));
        }
        Ok(())
    }

    /// Forgets what a quiet gateway looks like: another took its place, or it is to be measured anew.
    pub(crate) fn forget_quiet(&mut self) {
        self.quiet = OnceLock::new();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.monitor()), signal).expect("the monitor is there");
    }

    /// How the monitor ended, within the time that ending may take.
    pub(crate) fn wait(&self) -> ExitStatus {
        until("the monitor has ended", STOP_MAX, || {
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            child.try_wait().expect("it is our child").ok_or("it runs")
        })
    }

    /// Stops it as a service manager does, and demands that nothing is left.
    pub(crate) fn stop(self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait();
        assert!(status.success(), "{status}\n{}", log_tail(&self.home));
        assert_nothing_left(&self.home);
    }
}

/// A gauge that counts.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the exposition format has floats only; this one is a small whole number"
)]
fn whole(number: f64) -> usize {
    number as usize
}

/// After the end of an instance: no process, cgroup, mount, or file outside the data directory.
pub(crate) fn assert_nothing_left(home: &Home) {
    let instance = home.instance();
    until_true("no process in its cgroups", SOON, || {
        world::in_cgroups_of(&instance).is_empty()
    });
    until_true("no cgroup of its", SOON, || {
        world::cgroups_of(&instance).is_empty()
    });
    let data = home.data().to_string_lossy().into_owned();
    let running = || {
        world::processes()
            .into_iter()
            .filter(|process| runs_from(process.pid, &data))
    };
    until_true("no process from its images", SOON, || {
        running().next().is_none()
    });
    let own = i32::try_from(std::process::id()).expect("a pid");
    assert_eq!(
        world::mounts_naming(own, &[&data, &instance]),
        Vec::<String>::new()
    );
    assert_eq!(world::files_naming(&instance), Vec::<PathBuf>::new());
}

fn runs_from(pid: i32, directory: &str) -> bool {
    let link = fs::read_link(format!("/proc/{pid}/exe"));
    link.is_ok_and(|target| target.starts_with(directory))
}

/// Left running by a test that failed: ended the hard way, which takes every sandbox with it.
impl Drop for Instance {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        if child.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        // Where it ended just now it is not reaped yet, so the pid is its own.
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).ok();
        let deadline = Instant::now() + ABANDON_MAX;
        while child.try_wait().is_ok_and(|status| status.is_none()) {
            if deadline < Instant::now() {
                child.kill().ok();
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// The end of an instance's log, for the message of a failed test.
pub(crate) fn log_tail(home: &Home) -> String {
    let log = fs::read(home.path().join("log")).unwrap_or_default();
    let tail = &log[log.len().saturating_sub(LOG_TAIL_BYTES)..];
    String::from_utf8_lossy(tail).into_owned()
}
