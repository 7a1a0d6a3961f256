// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The bare echo: an axum server with the gateway's layout (one single-threaded runtime and one listener per core) that starts
//! nothing. What Hearth takes beyond it is Hearth's own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result};
use axum::Router;
use axum::routing::post;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
    sockopt,
};
use nix::unistd::Pid;

/// The argument with which this executable is the bare axum server.
pub(crate) const AXUM_ROLE: &str = "--serve-axum";

/// Connections that may wait; the benchmark opens 256 at once.
const BACKLOG: i32 = 1024;

/// The bare axum server, in a process of its own as Hearth's gateway is.
#[derive(Debug)]
pub(crate) struct Axum {
    child: Child,
    address: SocketAddr,
}

impl Axum {
    pub(crate) fn start() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(AXUM_ROLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the axum server")?;
        let mut port = [0; 2];
        child
            .stdout
            .take()
            .context("the axum server has no output")?
            .read_exact(&mut port)
            .context("the axum server said no port")?;
        let address = SocketAddr::from(([127, 0, 0, 1], u16::from_be_bytes(port)));
        Ok(Self { child, address })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Axum {
    fn drop(&mut self) {
        // Where killing fails it has ended already; there is nobody left to tell.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Serves an echo with the gateway's layout: one single-threaded runtime and one listener per core, each pinned to it.
/// Ends with its standard input, which is to say with the benchmark.
pub(crate) fn serve_axum() -> Result<()> {
    let cores = thread::available_parallelism()?.get();
    let first = listener(0)?;
    let port = first.local_addr()?.port();
    let mut listeners = vec![first];
    for _ in 1..cores {
        listeners.push(listener(port)?);
    }
    for (core, listener) in listeners.into_iter().enumerate() {
        thread::spawn(move || shard(core, listener));
    }
    std::io::stdout().write_all(&port.to_be_bytes())?;
    std::io::stdout().flush()?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

fn listener(port: u16) -> Result<TcpListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port))?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(fd))
}

fn shard(core: usize, listener: TcpListener) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(tokio::task::LocalSet::new().run_until(accept(listener)))
}

async fn accept(listener: TcpListener) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let router = Router::new().route("/", post(|body: bytes::Bytes| async { body }));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = TowerToHyperService::new(router.clone());
        tokio::task::spawn_local(async move {
            // An error here is the client's going away.
            let _gone = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
