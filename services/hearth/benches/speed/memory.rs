// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What an idle sandbox costs, all in: the drop of the machine's `MemAvailable` over 300 functions that were each called
//! once and keep their sandbox. Kernel memory (namespaces, mounts, cgroups, pipes) and what the gateway and the spawner keep for
//! it are in the figure.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::echoes::{Echo, Echoes};
use crate::figures::{Figures, Memory};
use crate::http::{self, Connection};
use crate::options::Length;
use crate::server::Hearth;
use crate::subjects::Subject;
use crate::usage::{Usage, available_kib};
use crate::{PAYLOAD, pause};

/// Sandboxes in all, called in as many parts as there are rounds: each part is a figure of its own.
const SANDBOXES: usize = 300;
const SANDBOXES_SHORT: usize = 10;

/// Room for them, for the skeletons of both kinds, and for one that a deploy tries.
const MAX_SANDBOXES: &str = "400";

/// `MemAvailable` is settled when it has moved by less than this over [`SETTLED_LOOKS`]: a twentieth of what the smallest part
/// of the sandboxes takes.
const SETTLED_KIB: u64 = 1024;
const SETTLED_LOOKS: usize = 5;
const LOOK: Duration = Duration::from_millis(200);
/// The kernel frees what was taken down in the background; after this the figure is taken as it is.
const SETTLE_MAX: Duration = Duration::from_secs(15);

pub(crate) fn measure(
    place: &Path,
    echoes: &Echoes,
    length: Length,
    parts: usize,
    figures: &mut Figures,
) -> Result<()> {
    let sandboxes = match length {
        Length::Full => SANDBOXES,
        Length::Short => SANDBOXES_SHORT,
    };
    let kinds = [
        (Subject::NativeGlibc, Echo::Glibc),
        (Subject::Wasm, Echo::Wasm),
    ];
    for (subject, echo) in kinds {
        let place = place.join(format!("memory-{}", echo.kind()));
        let mut hearth = Hearth::start(&place, &["--max-sandboxes", MAX_SANDBOXES])?;
        for index in 0..sandboxes {
            hearth.deploy(&name(index), echo, echoes)?;
        }
        let memory = fill(&hearth, echo, sandboxes, parts)?;
        figures.add_memory(subject, memory);
    }
    Ok(())
}

/// Calls every function once, and looks at the memory before, between the parts and after.
fn fill(hearth: &Hearth, echo: Echo, sandboxes: usize, parts: usize) -> Result<Memory> {
    let at_start = settled_kib()?;
    let mut before = at_start;
    let mut called = 0;
    let mut kib_each = Vec::new();
    for part in 1..=parts {
        let end = sandboxes * part / parts;
        // Not before: a connection that says nothing for ten seconds is closed.
        let mut connection = Connection::open(hearth.address())?;
        for index in called..end {
            let request = http::post(&format!("/invoke/{}", name(index)), PAYLOAD);
            connection.echo(&request, PAYLOAD)?;
        }
        hearth.wait_for(echo.kind(), "idle", end)?;
        let after = settled_kib()?;
        kib_each.push(per_sandbox(before, after, end - called));
        (before, called) = (after, end);
    }
    let usage = Usage::of(hearth.pid())?;
    Ok(Memory {
        sandboxes,
        kib_each: per_sandbox(at_start, before, sandboxes),
        parts_kib_each: kib_each,
        gateway_rss_kib: usage.server_rss_kib,
        sandbox_rss_kib: usage.sandbox_rss_kib,
    })
}

fn settled_kib() -> Result<u64> {
    let deadline = Instant::now() + SETTLE_MAX;
    let mut looks = vec![available_kib()?];
    loop {
        pause(LOOK);
        looks.push(available_kib()?);
        let last = &looks[looks.len().saturating_sub(SETTLED_LOOKS)..];
        let spread = last.iter().max().zip(last.iter().min());
        let is_settled = spread.is_some_and(|(max, min)| max - min < SETTLED_KIB);
        if SETTLED_LOOKS <= last.len() && is_settled || deadline < Instant::now() {
            return Ok(last.iter().sum::<u64>() / last.len() as u64);
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "KiB of memory are far from the 53 bits that stay exact"
)]
fn per_sandbox(before: u64, after: u64, sandboxes: usize) -> f64 {
    (before as f64 - after as f64) / sandboxes.max(1) as f64
}

fn name(index: usize) -> String {
    format!("idle-{index}")
}
