// SPDX-License-Identifier: Apache-2.0 OR MIT
//! First calls: of functions just deployed, that no sandbox has run yet. `bound` finds a ready skeleton; `created` finds
//! none, because that server is told to keep none.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::echoes::{Echo, Echoes};
use crate::figures::{Call, Calls, Figures};
use crate::http::{self, Connection};
use crate::options::Length;
use crate::phases::Phases;
use crate::placement::Placement;
use crate::server::Hearth;
use crate::subjects::Subject;
use crate::{PAYLOAD, SPACINGS, pause};

/// Calls of one round at each of the spacings; each needs a function of its own.
const COUNTS: [usize; 3] = [20, 40, 10];
const COUNTS_SHORT: [usize; 3] = [2, 3, 1];

/// Ready per kind and shard: as the default.
const SKELETONS: usize = 4;

/// Deploying tries a sandbox and throws it away, and the kernel takes its namespaces down later.
const SETTLE: Duration = Duration::from_millis(300);

/// A receipt is written when the sandbox is clean again, after the answer.
pub(crate) const RECEIPT: Duration = Duration::from_millis(20);

/// A server with skeletons and one without.
#[derive(Debug)]
pub(crate) struct First {
    stocked: Hearth,
    empty: Hearth,
    shards: usize,
}

impl First {
    pub(crate) fn start(place: &Path) -> Result<Self> {
        let skeletons = SKELETONS.to_string();
        Ok(Self {
            stocked: Hearth::start(&place.join("stocked"), &["--skeletons", &skeletons])?,
            empty: Hearth::start(&place.join("empty"), &["--skeletons", "0"])?,
            shards: std::thread::available_parallelism()?.get(),
        })
    }

    /// One round of first calls.
    pub(crate) fn round(
        &mut self,
        echoes: &Echoes,
        length: Length,
        figures: &mut Figures,
    ) -> Result<()> {
        let counts = match length {
            Length::Full => COUNTS,
            Length::Short => COUNTS_SHORT,
        };
        let subjects = [
            (Subject::NativeGlibc, Echo::Glibc),
            (Subject::NativeNolibc, Echo::Nolibc),
            (Subject::Wasm, Echo::Wasm),
        ];
        for (subject, echo) in subjects {
            for (spacing, count) in SPACINGS.into_iter().zip(counts) {
                // Without a pause the skeletons run out after four, by design.
                if Duration::ZERO < spacing {
                    deploy(&mut self.stocked, echo, echoes, count)?;
                    let skeletons = SKELETONS * self.shards;
                    self.stocked.wait_for(echo.kind(), "skeleton", skeletons)?;
                    let calls = calls(&self.stocked, spacing, count)?;
                    figures.add_calls(subject, Call::Bound, spacing, calls);
                }
                deploy(&mut self.empty, echo, echoes, count)?;
                let calls = calls(&self.empty, spacing, count)?;
                figures.add_calls(subject, Call::Created, spacing, calls);
            }
        }
        Ok(())
    }
}

fn deploy(hearth: &mut Hearth, echo: Echo, echoes: &Echoes, count: usize) -> Result<()> {
    for index in 0..count {
        hearth.deploy(&name(index), echo, echoes)?;
    }
    Ok(())
}

fn calls(hearth: &Hearth, spacing: Duration, count: usize) -> Result<Calls> {
    let requests: Vec<Vec<u8>> = (0..count)
        .map(|index| http::post(&format!("/invoke/{}", name(index)), PAYLOAD))
        .collect();
    let mut connection = Connection::open(hearth.address())?;
    // The connection is open and accepted before the calls that count.
    connection.healthz()?;
    let _placed = connection.place(Placement::SameCore)?;
    let before = Phases::read(&mut connection)?;
    pause(SETTLE);
    let mut calls = Calls::default();
    for request in requests {
        pause(spacing);
        calls.time(|| connection.echo(&request, PAYLOAD))?;
    }
    pause(RECEIPT);
    calls.phases = Some(Phases::read(&mut connection)?.since(&before));
    Ok(calls)
}

fn name(index: usize) -> String {
    format!("first-{index}")
}
