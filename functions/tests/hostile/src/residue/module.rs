// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What an instance can leave beyond files: its memory, its variables, its environment, its descriptors.

use std::sync::atomic::{AtomicU32, Ordering};

use super::found_if;
use crate::json::Json;
use crate::sys;

/// 16 MiB: more than an instance has at the start.
const MEMORY_BYTES: usize = 16 * 1024 * 1024;

/// In the module's data: a new instance must find it 0 again.
static GLOBAL: AtomicU32 = AtomicU32::new(0);

pub(super) fn leave() -> Vec<(String, Json)> {
    GLOBAL.store(0xA5A5_A5A5, Ordering::Relaxed);
    let memory = vec![0xA5_u8; MEMORY_BYTES];
    std::hint::black_box(&memory);
    // Left in place, as a module does that knows no free.
    std::mem::forget(memory);
    // SAFETY: a module has one thread.
    unsafe { std::env::set_var("HEARTH_MARKER", super::MARKER) };
    sys::close(0);
    ["global", "memory", "environment", "descriptors"]
        .into_iter()
        .map(|place| (place.to_owned(), Json::text("left")))
        .collect()
}

pub(super) fn find() -> Vec<(String, Json)> {
    let global = GLOBAL.load(Ordering::Relaxed) != 0;
    let mut places: Vec<(String, Json)> = [("global", global), ("memory", finds_memory())]
        .into_iter()
        .map(|(place, found)| (place.to_owned(), Json::text(found_if(found))))
        .collect();
    let state = [("descriptors", Json::List(crate::whoami::open_fds()))];
    places.push(("state".to_owned(), Json::object(state)));
    places
}

/// Looks at pages that the allocator has not touched: memory.grow must give zeros.
fn finds_memory() -> bool {
    const PAGE_BYTES: usize = 65_536;
    let first = core::arch::wasm32::memory_grow(0, MEMORY_BYTES / PAGE_BYTES);
    if first == usize::MAX {
        return false;
    }
    let start: *const u8 = std::ptr::with_exposed_provenance(first * PAGE_BYTES);
    // SAFETY: memory.grow has just made exactly these bytes, and nothing else knows of them.
    let fresh = unsafe { std::slice::from_raw_parts(start, MEMORY_BYTES) };
    fresh.iter().any(|byte| *byte != 0)
}
