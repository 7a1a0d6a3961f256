// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The one engine configuration, shared by the compiler and the worker, so that an artifact always fits the worker
//! that maps it. Every limit is set here or in [`crate::guest`], none is left to wasmtime's defaults.

use std::num::NonZeroUsize;

use hearth_protocol::worker::INFLIGHT_MAX;
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig,
    WasmBacktraceDetails, WasmFeatures,
};

/// What one linear memory may reach: all that a 32-bit memory can address. The limit that a function is held to is its
/// own (`Module::memory_bytes_max`); this is the address space that a slot of the pool reserves, so that generated
/// code needs no bounds checks.
pub(crate) const MEMORY_BYTES_MAX: usize = 4 << 30;

/// Unmapped address space behind each memory: wasmtime folds constant offsets up to this size into the address
/// without a check. Its own default, written down because compiled code depends on it.
const MEMORY_GUARD_BYTES: u64 = 32 << 20;

/// Linear memories of one module: ordinary toolchains make one, and the multi-memory proposal is off.
pub(crate) const MEMORIES_MAX: u32 = 1;

/// Tables of one module: toolchains make one for function pointers, and at most a few more for references.
pub(crate) const TABLES_MAX: u32 = 4;

/// Elements of one table. The largest seen in practice is about 10,000 (debug builds of C#); a slot costs eight bytes
/// of reserved address space per element.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 100_000;

/// Wasm frames on one stack: wasmtime's default; deeper recursion is the trap `call stack exhausted`.
const WASM_STACK_BYTES_MAX: usize = 512 << 10;

/// One fiber's stack: the wasm frames above, and as much again for the host functions that they call.
const FIBER_STACK_BYTES: usize = 1 << 20;

/// Metadata of one instance (imports, globals, function references). Wasmtime's default.
const INSTANCE_METADATA_BYTES_MAX: usize = 1 << 20;

/// Bytes of a linear memory that a free slot keeps resident and cleans by writing, where the kernel tells which pages
/// are dirty (PAGEMAP_SCAN): avoids a page fault (1.8 µs here) per page in the next invocation.
const MEMORY_KEEP_RESIDENT_BYTES: usize = 2 << 20;

/// As above, for a table: 8,192 elements.
const TABLE_KEEP_RESIDENT_BYTES: usize = 64 << 10;

/// Frames in a trap's backtrace: the text is cut at `TRAP_TEXT_BYTES_MAX` anyway.
const BACKTRACE_FRAMES_MAX: usize = 20;

/// The proposals that modules may use: what released toolchains (Rust, clang, TinyGo, Go) emit by default. An
/// allow-list, so that nothing is switched on by an update of wasmtime: no threads, tail calls, garbage collection,
/// exceptions, stack switching, 64-bit memories, relaxed SIMD or components.
const FEATURES: WasmFeatures = WasmFeatures::FLOATS
    .union(WasmFeatures::MUTABLE_GLOBAL)
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::EXTENDED_CONST);

/// The engine of both programs.
///
/// # Errors
/// Where the host cannot give what the configuration asks for: address space for the pool, above all.
pub(crate) fn engine() -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    config
        .wasm_features(WasmFeatures::all(), false)
        .wasm_features(FEATURES, true)
        .concurrency_support(false) // only asynchronous components need it
        .epoch_interruption(true) // how a guest that never returns gives the thread back
        .max_wasm_stack(WASM_STACK_BYTES_MAX)
        .async_stack_size(FIBER_STACK_BYTES)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable) // DWARF from strangers is not parsed
        .wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES_MAX))
        .native_unwind_info(false) // wasm backtraces follow frame pointers; nothing unwinds natively
        .memory_reservation(MEMORY_BYTES_MAX as u64)
        .memory_guard_size(MEMORY_GUARD_BYTES)
        .memory_init_cow(true)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
    compiler_settings(&mut config);
    Engine::new(&config)
}

/// What only the compiler acts on. The worker has no compiler, and these methods do not exist there.
#[cfg(feature = "compile")]
fn compiler_settings(config: &mut Config) {
    config
        .strategy(wasmtime::Strategy::Cranelift)
        .cranelift_opt_level(wasmtime::OptLevel::Speed);
}

#[cfg(not(feature = "compile"))]
fn compiler_settings(_config: &mut Config) {}

/// One slot per invocation that the protocol allows at once.
fn pool() -> PoolingAllocationConfig {
    let slots = u32::from(INFLIGHT_MAX);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(slots)
        .total_stacks(slots)
        .total_memories(slots * MEMORIES_MAX)
        .total_tables(slots * TABLES_MAX)
        .total_component_instances(0)
        .max_memories_per_module(MEMORIES_MAX)
        .max_tables_per_module(TABLES_MAX)
        .max_memory_size(MEMORY_BYTES_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_core_instance_size(INSTANCE_METADATA_BYTES_MAX)
        // One module per worker: a warm slot is always the right one, and a second slot is touched only when two
        // invocations run at once.
        .max_unused_warm_slots(slots)
        .linear_memory_keep_resident(MEMORY_KEEP_RESIDENT_BYTES)
        .table_keep_resident(TABLE_KEEP_RESIDENT_BYTES)
        .pagemap_scan(Enabled::Auto)
        .decommit_batch_size(1);
    pool
}
