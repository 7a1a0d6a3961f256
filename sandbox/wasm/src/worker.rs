// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The worker: boots, shuts itself in, takes one module, and serves its invocations until the gateway closes the socket.
//!
//! ```text
//! boot ─▶ Booted ─▶ bind ─▶ Bound ─▶ serve: idle (blocking recv) ⇄ busy (event loop)
//! ```
//!
//! Everything happens on one thread: the gateway pins a worker to its shard's core, and what is short needs no other.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::{fs, io};

use futures_util::stream::{FuturesUnordered, Stream as _};
use hearth_jail::seccomp;
use hearth_protocol::frame::{self, FrameError, PACKET_BYTES_MAX};
use hearth_protocol::worker::{Event, INFLIGHT_MAX, Module, Request};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::runtime::Runtime;
use wasmtime::Engine;

use crate::control::{Control, ControlError, PACKET_BUFFER_BYTES, Received};
use crate::guest::{self, Imports};
use crate::invocation::{self, Bound, Call, Cancellation, CpuClock, Ended, Handle};
use crate::stdio::Input;
use crate::ticker::Ticker;
use crate::{engine, sys};

/// The largest body that an invocation may announce. A guest that never reads its stdin makes the worker hold the whole
/// body, so this belongs to the worker's memory; the gateway's own limits are below it.
pub const BODY_BYTES_MAX: u64 = 64 << 20;

/// CPU time, in nanoseconds, from which on an answer does not wait for those of the calls that came in the same packet.
/// Below, what a call would wait for the rest of a packet is less than what waking the gateway for it alone costs all
/// of them; only the first long one after short ones keeps their answers, for at most two ticks.
const LONG_CALL_NS: u64 = 100_000;

/// Why the worker ended other than by the gateway closing the socket.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The event loop could not be made.
    #[error("cannot start the event loop")]
    Runtime(#[source] io::Error),
    /// The engine or its pool could not be made.
    #[error("cannot start the engine: {0:#}")]
    Engine(wasmtime::Error),
    /// The process could not be made dumpable, or no longer dumpable.
    #[error("cannot set whether the process is dumpable")]
    Dumpable(#[source] io::Error),
    /// The ticker's timer or thread could not be made.
    #[error("cannot start the ticker")]
    Ticker(#[source] io::Error),
    /// The last filter could not be put on.
    #[error("cannot install the seccomp filter")]
    Seccomp(#[from] seccomp::SeccompError),
    /// The socket failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The gateway was told why in `Failed`.
    #[error("cannot load the module: {0}")]
    Bind(String),
    /// The gateway sent what no gateway sends.
    #[error("the gateway broke the protocol: {0}")]
    Protocol(&'static str),
    /// As above: not even a message.
    #[error("the gateway broke the protocol")]
    Frame(#[from] FrameError),
}

/// Runs the worker on the control socket that init left at fd 3.
///
/// # Errors
/// [`WorkerError`]; none where the gateway closed the socket.
pub fn run() -> Result<(), WorkerError> {
    let socket = sys::take_control_socket();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(WorkerError::Runtime)?;
    let _context = runtime.enter();
    let control = Arc::new(Control::new(socket)?);
    let engine = start_engine()?;
    let imports = Imports::new(&engine).map_err(WorkerError::Engine)?;
    let ticker = Ticker::new().map_err(WorkerError::Ticker)?;
    guest::seed_random_numbers();
    invocation::find_clock();

    // The filter comes after everything that opens something, and before the ticker's thread, which inherits it.
    seccomp::install(&seccomp::compile(seccomp::Profile::Wasm)?)?;
    ticker.start(engine.clone()).map_err(WorkerError::Ticker)?;

    let mut packet = vec![0; PACKET_BUFFER_BYTES];
    control.send_alone(&Event::Booted)?;
    let Some(bound) = bind(&control, &engine, &imports, &mut packet)? else {
        return Ok(());
    };
    control.send_alone(&Event::Bound)?;
    drop(imports);
    let worker = Worker {
        control,
        bound: Arc::new(bound),
        ticker,
        handles: HashMap::new(),
        running: FuturesUnordered::new(),
    };
    worker.serve(&runtime, &mut packet)
}

/// Starts the engine as a dumpable process, which the worker otherwise is not, because its image cannot be read. The
/// pool opens /proc/self/pagemap, by which it finds the few pages that an instance dirtied (15 µs less per call for a
/// memory of 1 MiB); the kernel gives that file of a process that is not dumpable to root alone (proc(5)).
fn start_engine() -> Result<Engine, WorkerError> {
    let set = |behavior| {
        set_dumpable_behavior(behavior).map_err(|errno| WorkerError::Dumpable(errno.into()))
    };
    set(DumpableBehavior::Dumpable)?;
    let engine = engine::engine().map_err(WorkerError::Engine)?;
    set(DumpableBehavior::NotDumpable)?;
    Ok(engine)
}

/// Waits for `Bind` and prepares its module; None where the gateway closed the socket instead.
fn bind(
    control: &Control,
    engine: &Engine,
    imports: &Imports,
    packet: &mut [u8],
) -> Result<Option<Bound>, WorkerError> {
    let (received, artifact) = control.recv_with_file(packet)?;
    let Received::Packet(length) = received else {
        return Ok(None);
    };
    let packet = packet
        .get(..length)
        .ok_or(WorkerError::Protocol("packet too long"))?;
    let Request::Bind(module) = frame::decode_bare(packet)? else {
        return Err(WorkerError::Protocol("not bound yet"));
    };
    let artifact = artifact.ok_or(WorkerError::Protocol("bind without an fd"))?;
    match load(engine, imports, module, artifact) {
        Ok(bound) => Ok(Some(bound)),
        Err(message) => {
            let failed = Event::Failed {
                message: message.clone(),
            };
            control.send_alone(&failed)?;
            Err(WorkerError::Bind(message))
        }
    }
}

fn load(
    engine: &Engine,
    imports: &Imports,
    module: Module,
    artifact: fs::File,
) -> Result<Bound, String> {
    let inflight_max = module.inflight_max;
    if !(1..=INFLIGHT_MAX).contains(&inflight_max) {
        return Err(format!(
            "inflight_max is {inflight_max}, not 1 to {INFLIGHT_MAX}"
        ));
    }
    let code = sys::map_artifact(engine, artifact)
        .map_err(|error| format!("cannot map the artifact: {error:#}"))?;
    let program = imports
        .link(&code, module.memory_bytes_max)
        .map_err(|error| error.to_string())?;
    Ok(Bound {
        program,
        env: module.env.into(),
        output_bytes_max: module.output_bytes_max,
        inflight_max: usize::from(inflight_max),
        cpu: CpuClock::start(),
    })
}

type Invocation = Pin<Box<dyn Future<Output = Result<Ended, ControlError>>>>;

/// A bound worker.
struct Worker {
    control: Arc<Control>,
    bound: Arc<Bound>,
    ticker: Ticker,
    /// By sequence number.
    handles: HashMap<u32, Handle>,
    running: FuturesUnordered<Invocation>,
}

/// Whether there is more to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    Open,
    Closed,
}

impl Worker {
    fn serve(mut self, runtime: &Runtime, packet: &mut [u8]) -> Result<(), WorkerError> {
        loop {
            let connection = if self.running.is_empty() {
                self.control.flush_blocking()?;
                let received = self.control.recv_blocking(packet)?;
                self.accept(received, packet)?
            } else {
                runtime.block_on(std::future::poll_fn(|cx| self.poll_busy(cx, packet)))?
            };
            if connection == Connection::Closed {
                return Ok(());
            }
        }
    }

    /// Ready when nothing runs any more.
    fn poll_busy(
        &mut self,
        cx: &mut Context<'_>,
        packet: &mut [u8],
    ) -> Poll<Result<Connection, WorkerError>> {
        loop {
            // Messages first, so that a cancelled guest does not get another turn.
            while let Poll::Ready(received) = self.control.poll_recv(cx, packet)? {
                if self.accept(received, packet)? == Connection::Closed {
                    return Poll::Ready(Ok(Connection::Closed));
                }
            }
            // What is ready leaves before the guests get another turn, each of up to a tick.
            _ = self.control.poll_flush(cx)?;
            match Pin::new(&mut self.running).poll_next(cx) {
                Poll::Ready(Some(ended)) => {
                    self.handles.remove(&ended?.seq);
                }
                Poll::Ready(None) => return Poll::Ready(Ok(Connection::Open)),
                Poll::Pending => {
                    _ = self.control.poll_flush(cx)?;
                    return Poll::Pending;
                }
            }
        }
    }

    fn accept(&mut self, received: Received, packet: &[u8]) -> Result<Connection, WorkerError> {
        let Received::Packet(length) = received else {
            return Ok(Connection::Closed);
        };
        if PACKET_BYTES_MAX < length {
            return Err(WorkerError::Protocol("packet too long"));
        }
        let mut messages = &packet[..length];
        while let Some((request, payload)) = frame::take(&mut messages)? {
            self.obey(request, payload)?;
        }
        Ok(Connection::Open)
    }

    fn obey(&mut self, request: Request, payload: &[u8]) -> Result<(), WorkerError> {
        match request {
            Request::Bind(_) => Err(WorkerError::Protocol("bound already")),
            Request::Run {
                seq,
                args,
                env,
                body_bytes,
                timeout_ms,
            } => {
                let call = Call {
                    seq,
                    args,
                    env,
                    timeout_ms,
                };
                self.begin(call, body_bytes, payload)
            }
            // An invocation may have ended while its body or its cancellation was on the way.
            Request::Body { seq } => match self.handles.get(&seq) {
                Some(handle) => push(&handle.stdin, payload),
                None => Ok(()),
            },
            Request::Cancel { seq } => {
                if let Some(handle) = self.handles.get(&seq) {
                    handle.cancellation.request();
                }
                Ok(())
            }
        }
    }

    fn begin(&mut self, call: Call, body_bytes: u64, payload: &[u8]) -> Result<(), WorkerError> {
        if call.seq == 0 || self.handles.contains_key(&call.seq) {
            return Err(WorkerError::Protocol("sequence number in use"));
        }
        if self.bound.inflight_max <= self.handles.len() {
            return Err(WorkerError::Protocol("too many invocations at once"));
        }
        if BODY_BYTES_MAX < body_bytes {
            return Err(WorkerError::Protocol("body too long"));
        }
        let seq = call.seq;
        let stdin = Input::new(body_bytes);
        push(&stdin, payload)?;
        let cancellation = Arc::new(Cancellation::default());
        let handle = Handle {
            stdin: stdin.clone(),
            cancellation: Arc::clone(&cancellation),
        };
        let ticking = self.ticker.begin().map_err(WorkerError::Ticker)?;
        let mut invocation: Invocation = Box::pin(invocation::run(
            Arc::clone(&self.bound),
            Arc::clone(&self.control),
            call,
            Handle {
                stdin,
                cancellation,
            },
            ticking,
        ));
        // Most end at their first step, and never meet the event loop. Those that do not are polled again by it.
        match invocation
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(ended) => {
                if LONG_CALL_NS <= ended?.cpu_ns {
                    _ = self.control.try_flush()?;
                }
            }
            Poll::Pending => {
                self.handles.insert(seq, handle);
                self.running.push(invocation);
            }
        }
        Ok(())
    }
}

fn push(stdin: &Input, payload: &[u8]) -> Result<(), WorkerError> {
    stdin
        .push(payload)
        .map_err(|_excess| WorkerError::Protocol("more body than announced"))
}
