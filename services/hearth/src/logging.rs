// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Hearth's own log: text for people on a terminal, one JSON object per line for everything else; always on stderr.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Logging};

/// What is logged where the filter is not one.
const FILTER_DEFAULT: &str = "info";

/// Starts logging in this process. Called once, before anything is logged.
pub(crate) fn start(log: &Logging) {
    let filter = EnvFilter::try_new(&log.filter);
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(FILTER_DEFAULT));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let json = match log.format {
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
