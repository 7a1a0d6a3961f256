// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One instance: a store with all its limits, filled, started and judged.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hearth_protocol::worker::{Ending, TRAP_TEXT_BYTES_MAX};
use wasmtime::{
    Engine, InstancePre, Linker, Module, ModuleExport, PoolConcurrencyLimitError, ResourceLimiter,
    Store, Trap, WasmBacktrace,
};
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::{WasiCtxBuilder, WasiView as _};

use crate::engine::{MEMORIES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX};
use crate::preview1;
use crate::stdio::{Input, Output, OutputLimit};

/// The module that every import must come from.
pub(crate) const WASI_MODULE: &str = "wasi_snapshot_preview1";

/// What a command exports as its entry.
pub(crate) const ENTRY: &str = "_start";

/// Linear memories are measured in these (the custom-page-sizes proposal is off).
const PAGE_BYTES: u64 = 64 << 10;

/// The largest buffer or array, in bytes, that one host call may name. Reads are cut at 64 KiB and writes are not
/// copied whole, so this only has to be above what a program may reasonably write at once.
pub(crate) const HOSTCALL_BYTES_MAX: usize = 128 << 20;

/// Entries of the table behind WASI's handles: the three standard streams, and one per subscription of a
/// `poll_oneoff`, which is what it bounds. A program without files or sockets has nothing else to wait for.
const RESOURCES_MAX: usize = 1024;

/// Bytes of one `random_get`, which the host buffers whole.
const RANDOM_BYTES_MAX: u64 = 1 << 20;

/// Ticks until a guest first gives the thread back: two, so that a call shorter than one tick never does.
const FIRST_YIELD_TICKS: u64 = 2;

/// Ticks between later yields.
const YIELD_TICKS: u64 = 1;

/// What a store holds.
pub(crate) struct Guest {
    world: World,
    /// Made by the first call that needs it: most guests only read, write and ask for their arguments.
    wasi: Option<Box<WasiP1Ctx>>,
    limiter: Limiter,
}

impl Guest {
    fn new(world: World, memory_bytes_max: u64, meter: Arc<Meter>) -> Self {
        Self {
            world,
            wasi: None,
            limiter: Limiter {
                memory_bytes: 0,
                memory_bytes_max,
                meter,
            },
        }
    }

    /// All of WASI.
    pub(crate) fn wasi(&mut self) -> &mut WasiP1Ctx {
        self.wasi.get_or_insert_with(|| Box::new(wasi(&self.world)))
    }

    /// The guest's world, unless [`Self::wasi`] has taken it over.
    pub(crate) fn world(&self) -> Option<&World> {
        self.wasi.is_none().then_some(&self.world)
    }
}

/// A module that is ready to be instantiated.
#[derive(Clone)]
pub(crate) struct Program {
    instance: InstancePre<Guest>,
    entry: ModuleExport,
    memory_bytes_max: u64,
}

/// The imports that a module may use: all of WASI preview 1, none of it with a file or a socket behind it.
pub(crate) struct Imports(Linker<Guest>);

/// Why a module cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    /// Its imports do not fit.
    #[error("cannot link the module: {0:#}")]
    Link(wasmtime::Error),
    /// Not a command.
    #[error("the module exports no `{ENTRY}`")]
    NoEntry,
    /// Every invocation would fail.
    #[error("the module needs {needed} bytes of memory to start, and its limit is {limit}")]
    InitialMemory {
        /// Bytes.
        needed: u64,
        /// Bytes.
        limit: u64,
    },
}

/// What one invocation gives its guest.
#[derive(Debug)]
pub(crate) struct World {
    /// The first is the program's name.
    pub(crate) args: Vec<String>,
    /// Of every instance.
    pub(crate) base_env: Arc<[(String, String)]>,
    /// Of this one; they win.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) stdin: Input,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
}

impl World {
    pub(crate) fn args(&self) -> impl Iterator<Item = &str> {
        self.args.iter().map(String::as_str)
    }

    /// Names and values, each name once.
    pub(crate) fn env(&self) -> impl Iterator<Item = (&str, &str)> {
        let loses = |name: &String| self.env.iter().any(|(winner, _)| winner == name);
        self.base_env
            .iter()
            .filter(move |(name, _)| !loses(name))
            .chain(&self.env)
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// What a guest's memories come to. Shared with the one who reports it, because an instance that is out of time is
/// dropped together with its store.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    peak_bytes: AtomicU64,
    refusals: AtomicU32,
}

impl Meter {
    /// The most that all memories held at once, in bytes.
    pub(crate) fn peak_bytes(&self) -> u64 {
        self.peak_bytes.load(Ordering::Relaxed)
    }

    /// Growths refused.
    pub(crate) fn refusals(&self) -> u32 {
        self.refusals.load(Ordering::Relaxed)
    }
}

impl Imports {
    /// # Errors
    /// Where wasmtime cannot define WASI's functions.
    pub(crate) fn new(engine: &Engine) -> wasmtime::Result<Self> {
        let mut linker = Linker::new(engine);
        p1::add_to_linker_async(&mut linker, Guest::wasi)?;
        preview1::shadow(&mut linker)?;
        // wasmtime-wasi turns exit codes from 126 on into an error without the code.
        linker.func_wrap(
            WASI_MODULE,
            "proc_exit",
            |code: u32| -> wasmtime::Result<()> { Err(ProcExit(code).into()) },
        )?;
        Ok(Self(linker))
    }

    /// The names of WASI's functions.
    #[cfg(feature = "compile")]
    pub(crate) fn names(engine: &Engine) -> wasmtime::Result<Vec<String>> {
        let mut linker = Linker::new(engine);
        p1::add_to_linker_async(&mut linker, |wasi: &mut WasiP1Ctx| wasi)?;
        // Only a store can list what a linker holds.
        let mut store = Store::new(engine, WasiCtxBuilder::new().build_p1());
        Ok(linker
            .iter(&mut store)
            .map(|(_, name, _)| name.to_owned())
            .collect())
    }

    /// Resolves a module's imports, once for all its instances.
    pub(crate) fn link(
        &self,
        module: &Module,
        memory_bytes_max: u64,
    ) -> Result<Program, ProgramError> {
        let pages = module
            .resources_required()
            .max_initial_memory_size
            .unwrap_or(0);
        let needed = pages.saturating_mul(PAGE_BYTES);
        if memory_bytes_max < needed {
            let limit = memory_bytes_max;
            return Err(ProgramError::InitialMemory { needed, limit });
        }
        Ok(Program {
            instance: self.0.instantiate_pre(module).map_err(ProgramError::Link)?,
            entry: module
                .get_export_index(ENTRY)
                .ok_or(ProgramError::NoEntry)?,
            memory_bytes_max,
        })
    }
}

impl Program {
    /// Runs a fresh instance to its end. Dropping the future drops the instance, wherever it is.
    pub(crate) async fn run(&self, world: World, meter: Arc<Meter>) -> Ending {
        let mut store = self.store(world, meter);
        match self.run_in(&mut store).await {
            Ok(()) => Ending::Exited(0),
            Err(error) => judge(&error),
        }
    }

    async fn run_in(&self, store: &mut Store<Guest>) -> wasmtime::Result<()> {
        let instance = self.instance.instantiate_async(&mut *store).await?;
        let entry = instance
            .get_module_export(&mut *store, &self.entry)
            .and_then(wasmtime::Extern::into_func)
            .ok_or(NotACommand)?
            .typed::<(), ()>(&*store)?;
        entry.call_async(store, ()).await
    }

    fn store(&self, world: World, meter: Arc<Meter>) -> Store<Guest> {
        let guest = Guest::new(world, self.memory_bytes_max, meter);
        let mut store = Store::new(self.instance.module().engine(), guest);
        store.limiter(|guest| &mut guest.limiter);
        store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
        store.set_epoch_deadline(FIRST_YIELD_TICKS);
        store.epoch_deadline_async_yield_and_update(YIELD_TICKS);
        store
    }
}

/// Seeds this thread's generator, from which every guest's is seeded. Not left to the first guest: in a static
/// executable the getrandom crate may not find the C library's function, and then opens a device, which the worker's
/// filter forbids. Where even that cannot be had, this panics, and the worker never says that it has booted.
pub(crate) fn seed_random_numbers() {
    drop(WasiCtxBuilder::new());
}

/// Clocks and random numbers are the host's; there are no files, no sockets, and no environment but the given one.
fn wasi(world: &World) -> WasiP1Ctx {
    let mut wasi = WasiCtxBuilder::new();
    wasi.args(&world.args)
        .stdin(world.stdin.clone())
        .stdout(world.stdout.clone())
        .stderr(world.stderr.clone())
        .max_random_size(RANDOM_BYTES_MAX)
        .allow_tcp(false)
        .allow_udp(false);
    for (name, value) in world.env() {
        wasi.env(name, value);
    }
    let mut wasi = wasi.build_p1();
    wasi.ctx().table.set_max_capacity(RESOURCES_MAX);
    wasi
}

/// Why an instance ended other than by returning. Order matters: our own markers travel inside wasmtime's errors.
fn judge(error: &wasmtime::Error) -> Ending {
    if let Some(ProcExit(code)) = error.downcast_ref() {
        return Ending::Exited(*code);
    }
    if error.is::<OutputLimit>() {
        return Ending::OutputLimit;
    }
    let text = bounded_text(error);
    // An error without a backtrace happened before any of the guest's code ran.
    let before_guest = !error.is::<Trap>() && !error.is::<WasmBacktrace>();
    if before_guest || error.is::<PoolConcurrencyLimitError>() {
        return Ending::NoInstance { message: text };
    }
    Ending::Trap { text }
}

/// The whole chain and the wasm backtrace. Names in it are the guest's, and may be of any length.
fn bounded_text(error: &wasmtime::Error) -> String {
    struct Bounded(String);

    impl fmt::Write for Bounded {
        fn write_str(&mut self, piece: &str) -> fmt::Result {
            let room = TRAP_TEXT_BYTES_MAX - self.0.len();
            let fits = piece.floor_char_boundary(room);
            self.0.push_str(&piece[..fits]);
            if fits < piece.len() {
                Err(fmt::Error)
            } else {
                Ok(())
            }
        }
    }

    let mut text = Bounded(String::new());
    // An error means that the limit was reached, which is what it is for.
    _ = write!(text, "{error:?}");
    text.0
}

/// `proc_exit` was called.
#[derive(Debug, thiserror::Error)]
#[error("exit with code {0}")]
struct ProcExit(u32);

/// The entry is not a function without arguments and results.
#[derive(Debug, thiserror::Error)]
#[error("`{ENTRY}` is not a function")]
struct NotACommand;

/// Holds an instance to its limits.
struct Limiter {
    memory_bytes: u64,
    memory_bytes_max: u64,
    meter: Arc<Meter>,
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let others = self.memory_bytes.saturating_sub(current as u64);
        let wanted = others.saturating_add(desired as u64);
        let beyond_own_maximum = maximum.is_some_and(|maximum| maximum < desired);
        if self.memory_bytes_max < wanted || beyond_own_maximum {
            self.meter.refusals.fetch_add(1, Ordering::Relaxed);
            return Ok(false);
        }
        self.memory_bytes = wanted;
        self.meter.peak_bytes.fetch_max(wanted, Ordering::Relaxed);
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }

    /// A command is one module.
    fn instances(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        TABLES_MAX as usize
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX as usize
    }
}
