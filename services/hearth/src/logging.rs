// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Hearth's own log: text for people on a terminal, one JSON object per line for everything else; always on stderr.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::config::{Environment, LogFormat};

/// What is logged where `RUST_LOG` says nothing.
const FILTER_DEFAULT: &str = "info";

/// Starts logging in this process. Called once, before anything is logged.
pub(crate) fn start(format: LogFormat, environment: &Environment) {
    let text = environment.get("RUST_LOG").unwrap_or(FILTER_DEFAULT);
    let filter = EnvFilter::try_new(text).unwrap_or_else(|_| EnvFilter::new(FILTER_DEFAULT));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let json = match format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    if json {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_target(false).init();
    }
}
