// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Monitor ⇄ gateway.

use serde::{Deserialize, Serialize};

/// Monitor → gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A spawner was started; the packet carries one fd, the gateway's end of its socket. Sandboxes of an earlier
    /// spawner are gone.
    Spawner,
    /// Take no new work, finish what runs, exit within the drain limit.
    Drain,
}

/// Gateway → monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Invocations are accepted: functions loaded, skeletons being made.
    Ready,
}
