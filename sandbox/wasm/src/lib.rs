// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Wasm functions: the worker that serves one of them, and the compiler that makes what the worker maps. Two programs,
//! both started by init inside a sandbox like any native one; wasmtime's walls are the second wall, not the only one.
//!
//! ```text
//! module ─▶ compiler (per deploy, Cranelift) ─▶ artifact ─▶ worker (resident, no compiler) ─▶ fresh instance per call
//! ```

#[cfg(feature = "compile")]
pub mod compile;
pub mod worker;

mod control;
mod engine;
mod guest;
mod invocation;
mod preview1;
mod stdio;
mod sys;
mod ticker;

pub use control::ControlError;
