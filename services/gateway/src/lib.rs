// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The HTTP front of Hearth: everything that parses bytes from strangers, in a process that holds no privilege.
//!
//! ```text
//! accept ─▶ edge (time and size limits) ─▶ gate (Host, Origin, key) ─▶ routes ─▶ Registry::find ─▶ Admission
//!                                                                                   │
//!            answer ◀── problem (the one place that knows statuses) ◀── Reply ◀── Pool::invoke
//! deploy:  archive ─▶ intake ─▶ manifest ─▶ (wasm: jailed compiler) ─▶ Pool::store_tree ─▶ store ─▶ registry swap
//! ```
//!
//! This crate knows neither namespaces nor wasmtime; it never forks.
#![forbid(unsafe_code)]

mod access;
mod admission;
mod answer;
mod app;
mod body;
mod cgi;
mod compile;
mod config;
mod cpu;
mod deploy;
mod detect;
mod edge;
#[doc(hidden)]
pub mod fuzz;
mod intake;
mod learn;
pub mod learned;
pub mod manifest;
mod metrics;
mod monitor;
mod problem;
mod receipts;
mod registry;
mod routes;
mod serve;
mod startup;
mod store;

pub use config::{EdgeTimeouts, GatewayConfig, GatewayLimits};
pub use monitor::MonitorError;
pub use serve::{GatewayError, serve};
