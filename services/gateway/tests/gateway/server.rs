// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A gateway on a port of its own.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use hearth_gateway::{EdgeTimeouts, GatewayConfig, GatewayError, GatewayLimits, serve};
use hearth_protocol::{TreeId, frame, monitor};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use crate::{client::Answer, spawner};

/// The management key of every test's server.
pub(crate) const KEY: &str = "test-key";

/// So long that no test ever waits for one of them.
const NEVER: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) trees: Arc<Mutex<spawner::Trees>>,
    monitor: Option<OwnedFd>,
    gateway: Option<JoinHandle<Result<(), GatewayError>>>,
}

/// No limit of time ever passes.
pub(crate) fn patient() -> EdgeTimeouts {
    EdgeTimeouts {
        first_byte: NEVER,
        header_read: NEVER,
        keep_alive_idle: NEVER,
        body_progress: NEVER,
        body_whole: NEVER,
        write_progress: NEVER,
    }
}

impl Server {
    /// Starts one in a state directory, and waits until it is ready.
    pub(crate) fn start(state_dir: &Path, limits: GatewayLimits, timeouts: EdgeTimeouts) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (monitor, gateways_monitor) = pair();
        let (spawners_end, gateways_spawner) = pair();
        let trees = Arc::default();
        spawner::start(spawners_end, Arc::clone(&trees));
        let config = GatewayConfig {
            listeners: vec![listener],
            cores: vec![None],
            monitor: gateways_monitor,
            spawner: gateways_spawner,
            state_dir: state_dir.to_owned(),
            management_key: KEY.to_owned(),
            compiler_tree: TreeId::new("c".repeat(64)).unwrap(),
            allowed_hosts: vec!["hearth.test".to_owned()],
            limits,
            timeouts,
        };
        let gateway = std::thread::spawn(move || serve(config));
        let mut packet = [0; 64];
        let length = recv(monitor.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
        assert_eq!(
            frame::decode_bare::<monitor::Event>(&packet[..length]).unwrap(),
            monitor::Event::Ready
        );
        Self {
            address,
            trees,
            monitor: Some(monitor),
            gateway: Some(gateway),
        }
    }

    /// One with default limits whose state goes with the test.
    pub(crate) fn temporary(timeouts: EdgeTimeouts) -> (Self, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (
            Self::start(dir.path(), GatewayLimits::default(), timeouts),
            dir,
        )
    }

    /// Tells it to drain.
    pub(crate) fn start_draining(&self) {
        let mut packet = Vec::new();
        frame::encode(&monitor::Request::Drain, &[], &mut packet).unwrap();
        send(
            self.monitor.as_ref().unwrap().as_raw_fd(),
            &packet,
            MsgFlags::empty(),
        )
        .unwrap();
    }

    /// Waits for its end.
    pub(crate) fn ended(mut self) -> Result<(), GatewayError> {
        self.gateway.take().unwrap().join().unwrap()
    }

    /// As when the monitor dies.
    pub(crate) fn lose_monitor(&mut self) {
        self.monitor = None;
    }

    pub(crate) fn request(&self, text: &str) -> Answer {
        Answer::to(self.address, text.as_bytes())
    }

    /// The value of a metric without labels, or with exactly these.
    pub(crate) fn metric(&self, name_and_labels: &str) -> Option<u64> {
        let page = self
            .request("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .body();
        page.lines()
            .find_map(|line| line.strip_prefix(name_and_labels)?.trim().parse().ok())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.monitor = None;
        if let Some(gateway) = self.gateway.take() {
            // That it ended because its monitor went is how a test ends.
            let _ended = gateway.join();
        }
    }
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )
    .and_then(|(ours, theirs)| {
        // Blocking at our end, as a test wants it.
        nix::fcntl::fcntl(
            &ours,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()),
        )?;
        Ok((ours, theirs))
    })
    .unwrap()
}
