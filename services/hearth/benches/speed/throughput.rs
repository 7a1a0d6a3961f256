// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Warm calls as fast as 1, 16, 64 and 256 connections take them.

use std::time::Duration;

use anyhow::Result;

use crate::PAYLOAD;
use crate::figures::{Block, Figures};
use crate::load::{self, Target};
use crate::options::Length;
use crate::subjects::{Server, THROUGHPUT, Way, World};
use crate::usage::Usage;

pub(crate) const CONNECTIONS: [usize; 4] = [1, 16, 64, 256];

/// Until the sandboxes are bound that so many connections need.
const WARM_UP: Duration = Duration::from_millis(500);
const MEASURED: Duration = Duration::from_millis(1500);

const WARM_UP_SHORT: Duration = Duration::from_millis(100);
const MEASURED_SHORT: Duration = Duration::from_millis(200);

/// One round of every subject.
pub(crate) fn round(world: &World, length: Length, figures: &mut Figures) -> Result<()> {
    for connections in CONNECTIONS {
        for subject in THROUGHPUT {
            if let Some(Way::Http(server)) = world.way(subject) {
                figures.add_block(subject, connections, block(&server, connections, length)?);
            }
        }
    }
    Ok(())
}

fn block(server: &Server, connections: usize, length: Length) -> Result<Block> {
    let (warm_up, measured) = match length {
        Length::Full => (WARM_UP, MEASURED),
        Length::Short => (WARM_UP_SHORT, MEASURED_SHORT),
    };
    let target = Target {
        address: server.address,
        request: &server.request,
        body: PAYLOAD,
    };
    let outcome = load::drive(target, connections, warm_up, measured, || {
        Usage::of(server.pid)
    })?;
    Ok(Block::new(outcome))
}
