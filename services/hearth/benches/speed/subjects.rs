// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Everything that is called, started once for all rounds.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use crate::bare::Axum;
use crate::echoes::{Echo, Echoes};
use crate::http;
use crate::peers::Program;
use crate::server::Hearth;
use crate::watchdog::Watchdog;
use crate::{PAYLOAD, figures::Figures};

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    NativeGlibc,
    NativeNolibc,
    Wasm,
    /// Hearth's gateway without a function.
    Healthz,
    SpawnGlibc,
    SpawnNolibc,
    Bubblewrap,
    Crun,
    Runc,
    WasmtimePrecompiled,
    Wasmtime,
    Watchdog,
    Axum,
}

impl Subject {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NativeGlibc => "hearth native, glibc",
            Self::NativeNolibc => "hearth native, no libc",
            Self::Wasm => "hearth wasm",
            Self::Healthz => "hearth /healthz",
            Self::SpawnGlibc => "posix_spawn, glibc",
            Self::SpawnNolibc => "posix_spawn, no libc",
            Self::Bubblewrap => "bwrap --unshare-all, glibc",
            Self::Crun => "crun run, glibc",
            Self::Runc => "runc run, glibc",
            Self::WasmtimePrecompiled => "wasmtime run, precompiled",
            Self::Wasmtime => "wasmtime run",
            Self::Watchdog => "of-watchdog forking, glibc",
            Self::Axum => "bare axum echo",
        }
    }
}

/// The subjects whose latency is compared, in the order of the table.
pub(crate) const LATENCY: [Subject; 12] = [
    Subject::NativeGlibc,
    Subject::NativeNolibc,
    Subject::Wasm,
    Subject::SpawnGlibc,
    Subject::SpawnNolibc,
    Subject::Watchdog,
    Subject::Axum,
    Subject::Bubblewrap,
    Subject::Crun,
    Subject::Runc,
    Subject::WasmtimePrecompiled,
    Subject::Wasmtime,
];

/// The subjects that serve HTTP.
pub(crate) const THROUGHPUT: [Subject; 5] = [
    Subject::NativeGlibc,
    Subject::NativeNolibc,
    Subject::Wasm,
    Subject::Watchdog,
    Subject::Axum,
];

/// How a subject is called.
#[derive(Debug)]
pub(crate) enum Way<'a> {
    Http(Server),
    Program(&'a Program),
}

/// A server and the call.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// The process whose tree the server is.
    pub(crate) pid: u32,
    pub(crate) request: Vec<u8>,
}

/// All subjects that this machine has.
#[derive(Debug)]
pub(crate) struct World {
    hearth: Hearth,
    axum: Axum,
    watchdog: Option<Watchdog>,
    programs: Vec<(Subject, Program)>,
}

impl World {
    /// Starts every server and finds every program; what is absent becomes a gap.
    pub(crate) fn start(place: &Path, echoes: &Echoes, figures: &mut Figures) -> Result<Self> {
        let glibc = echoes.path(Echo::Glibc);
        let module = echoes.path(Echo::Wasm);
        let mut programs = vec![
            (Subject::SpawnGlibc, Program::plain(glibc)),
            (
                Subject::SpawnNolibc,
                Program::plain(echoes.path(Echo::Nolibc)),
            ),
        ];
        let peers = [
            (Subject::Bubblewrap, Program::bubblewrap(glibc)),
            (Subject::Crun, Program::crun(glibc, place)),
            (Subject::Runc, Program::runc(glibc, place)),
            (
                Subject::WasmtimePrecompiled,
                Program::wasmtime_precompiled(module, place),
            ),
            (Subject::Wasmtime, Program::wasmtime(module)),
        ];
        for (subject, peer) in peers {
            match peer {
                Ok(program) => programs.push((subject, program)),
                Err(problem) => figures.gap(subject, &problem),
            }
        }
        let watchdog = match Watchdog::start(glibc) {
            Ok(watchdog) => Some(watchdog),
            Err(problem) => {
                figures.gap(Subject::Watchdog, &problem);
                None
            }
        };
        let mut hearth = Hearth::start(&place.join("warm"), &[])?;
        hearth.deploy("glibc", Echo::Glibc, echoes)?;
        hearth.deploy("nolibc", Echo::Nolibc, echoes)?;
        hearth.deploy("wasm", Echo::Wasm, echoes)?;
        Ok(Self {
            hearth,
            axum: Axum::start()?,
            watchdog,
            programs,
        })
    }

    /// How a subject is called; nothing where it is absent.
    pub(crate) fn way(&self, subject: Subject) -> Option<Way<'_>> {
        let hearth = |request| Server {
            address: self.hearth.address(),
            pid: self.hearth.pid(),
            request,
        };
        let server = match subject {
            Subject::NativeGlibc => hearth(http::post("/invoke/glibc", PAYLOAD)),
            Subject::NativeNolibc => hearth(http::post("/invoke/nolibc", PAYLOAD)),
            Subject::Wasm => hearth(http::post("/invoke/wasm", PAYLOAD)),
            Subject::Healthz => hearth(http::get("/healthz")),
            Subject::Axum => Server {
                address: self.axum.address(),
                pid: self.axum.pid(),
                request: http::post("/", PAYLOAD),
            },
            Subject::Watchdog => {
                let watchdog = self.watchdog.as_ref()?;
                Server {
                    address: watchdog.address(),
                    pid: watchdog.pid(),
                    request: http::post("/", PAYLOAD),
                }
            }
            Subject::SpawnGlibc
            | Subject::SpawnNolibc
            | Subject::Bubblewrap
            | Subject::Crun
            | Subject::Runc
            | Subject::WasmtimePrecompiled
            | Subject::Wasmtime => {
                let mut programs = self.programs.iter();
                let (_, program) = programs.find(|(of, _)| *of == subject)?;
                return Some(Way::Program(program));
            }
        };
        Some(Way::Http(server))
    }
}
