// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Calls while a thousand skeletons are made: a server that is told to keep that many makes them from its start on, and is
//! called meanwhile and again when it is done.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::echoes::{Echo, Echoes};
use crate::figures::{Call, Calls, Figures};
use crate::http::{self, Connection};
use crate::options::Length;
use crate::placement::{Placed, Placement};
use crate::server::Hearth;
use crate::subjects::Subject;
use crate::{PAYLOAD, pause};

const SKELETONS: usize = 1000;
const SKELETONS_SHORT: usize = 20;

/// Sandboxes beside the skeletons: the called function's, and one that a deploy tries.
const OTHERS: usize = 50;

/// Between two calls: the server is called, not loaded.
pub(crate) const SPACING: Duration = Duration::from_millis(1);

/// Calls between two looks at the metrics.
const CALLS_PER_LOOK: usize = 50;

/// A server that takes longer is measured for this long. Hearth does: while it is called it makes two in a second.
const MAKING_MAX: Duration = Duration::from_secs(30);

/// After the last skeleton, until the machine is quiet again.
const SETTLE: Duration = Duration::from_secs(1);

pub(crate) fn measure(
    place: &Path,
    echoes: &Echoes,
    length: Length,
    rounds: usize,
    figures: &mut Figures,
) -> Result<()> {
    let shards = std::thread::available_parallelism()?.get();
    let wanted = match length {
        Length::Full => SKELETONS,
        Length::Short => SKELETONS_SHORT,
    };
    let per_shard = wanted.div_ceil(shards);
    let place = place.join("background");
    // Deployed once, with few skeletons: the data directory keeps the function.
    Hearth::start(&place, &["--skeletons", "1"])?.deploy("called", Echo::Glibc, echoes)?;
    for _ in 0..rounds {
        let hearth = Hearth::start(
            &place,
            &[
                &format!("--skeletons={per_shard}"),
                &format!("--max-sandboxes={}", per_shard * shards + OTHERS),
                // As many open files as a thousand sandboxes need leave less for connections, of which there is one.
                "--max-connections=256",
            ],
        )?;
        round(&hearth, per_shard * shards, figures)?;
    }
    Ok(())
}

fn round(hearth: &Hearth, wanted: usize, figures: &mut Figures) -> Result<()> {
    let mut caller = Caller::open(hearth)?;
    let began = Instant::now();
    let before = hearth.sandboxes("native", "skeleton")?;
    let mut made = before;
    while made < wanted && began.elapsed() < MAKING_MAX {
        caller.calls(CALLS_PER_LOOK)?;
        made = hearth.sandboxes("native", "skeleton")?;
    }
    figures.add_making(made - before, began.elapsed());
    let (native, healthz) = caller.take();
    let count = native.count();
    figures.add_calls(Subject::NativeGlibc, Call::During, SPACING, native);
    figures.add_calls(Subject::Healthz, Call::During, SPACING, healthz);
    pause(SETTLE);
    caller.calls(count)?;
    let (native, healthz) = caller.take();
    figures.add_calls(Subject::NativeGlibc, Call::After, SPACING, native);
    figures.add_calls(Subject::Healthz, Call::After, SPACING, healthz);
    Ok(())
}

/// Calls the function and the gateway alone, in turn.
struct Caller {
    connection: Connection,
    invoke: Vec<u8>,
    native: Calls,
    healthz: Calls,
    placed: Option<Placed>,
}

impl Caller {
    /// With a call that is not counted.
    fn open(hearth: &Hearth) -> Result<Self> {
        let mut caller = Self {
            connection: Connection::open(hearth.address())?,
            invoke: http::post("/invoke/called", PAYLOAD),
            native: Calls::default(),
            healthz: Calls::default(),
            placed: None,
        };
        caller.calls(1)?;
        caller.take();
        caller.placed = caller.connection.place(Placement::SameCore)?;
        Ok(caller)
    }

    fn calls(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            pause(SPACING);
            self.native
                .time(|| self.connection.echo(&self.invoke, PAYLOAD))?;
            pause(SPACING);
            self.healthz.time(|| self.connection.healthz())?;
        }
        Ok(())
    }

    fn take(&mut self) -> (Calls, Calls) {
        (
            std::mem::take(&mut self.native),
            std::mem::take(&mut self.healthz),
        )
    }
}
