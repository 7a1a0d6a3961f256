// SPDX-License-Identifier: Apache-2.0 OR MIT
//! OpenFaaS's of-watchdog in its fork-per-request mode: HTTP in front of the same executable, without any wall.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::pause;
use crate::peers;

/// Where it is, if it is not in PATH.
const VARIABLE: &str = "HEARTH_BENCH_OF_WATCHDOG";

/// Its port for metrics, which cannot be chosen.
const METRICS_PORT: u16 = 8081;

const READY_MAX: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(20);

/// A running of-watchdog, ended when dropped.
#[derive(Debug)]
pub(crate) struct Watchdog {
    child: Child,
    address: SocketAddr,
}

impl Watchdog {
    pub(crate) fn start(function: &Path) -> Result<Self> {
        let program = peers::find_by(VARIABLE, "of-watchdog").with_context(|| {
            format!(
                "of-watchdog is neither in PATH nor named by {VARIABLE} (see docs/performance.md)"
            )
        })?;
        TcpListener::bind(("0.0.0.0", METRICS_PORT)).with_context(|| {
            format!("of-watchdog needs port {METRICS_PORT}, which somebody else has")
        })?;
        // Free a moment ago; it takes a number, not a socket.
        let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let child = Command::new(&program)
            .env("port", address.port().to_string())
            .env("fprocess", function)
            // Faster than `streaming`, its other mode with a process per request.
            .env("mode", "serializing")
            .env("suppress_lock", "true")
            .stdin(Stdio::null())
            // It writes two lines per request.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start of-watchdog")?;
        let server = Self { child, address };
        let deadline = Instant::now() + READY_MAX;
        while TcpStream::connect(address).is_err() {
            ensure!(Instant::now() < deadline, "of-watchdog did not get ready");
            pause(RETRY);
        }
        Ok(server)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Where killing fails it has ended already; there is nobody left to tell.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}
