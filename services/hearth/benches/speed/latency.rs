// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Warm calls, one after another over one connection, at three spacings: some costs in the kernel (a grace period after
//! moving a process between cgroups, a core that went to sleep) do not show in a tight loop.

use std::time::Duration;

use anyhow::Result;

use crate::figures::{Call, Calls, Figures};
use crate::first::RECEIPT;
use crate::http::Connection;
use crate::options::Length;
use crate::phases::Phases;
use crate::placement::Placement;
use crate::subjects::{LATENCY, Server, Subject, Way, World};
use crate::{PAYLOAD, SPACINGS, pause};

/// Calls of one round at the spacings, for what takes less than a millisecond.
const QUICK: [usize; 3] = [200, 30, 8];
/// The same for programs that take 4 to 40.
const SLOW: [usize; 3] = [25, 15, 5];
const SHORT: [usize; 3] = [10, 4, 1];

/// The targets are judged by the first.
const PLACEMENTS: [(Call, Placement); 2] = [
    (Call::Warm, Placement::SameCore),
    (Call::WarmOtherCore, Placement::OtherCore),
];

/// One round of every subject.
pub(crate) fn round(world: &World, length: Length, figures: &mut Figures) -> Result<()> {
    for (index, spacing) in SPACINGS.into_iter().enumerate() {
        for subject in LATENCY {
            let Some(way) = world.way(subject) else {
                continue;
            };
            let counts = match (length, subject) {
                (Length::Short, _) => SHORT,
                (
                    Length::Full,
                    Subject::Bubblewrap
                    | Subject::Crun
                    | Subject::Runc
                    | Subject::WasmtimePrecompiled
                    | Subject::Wasmtime,
                ) => SLOW,
                (Length::Full, _) => QUICK,
            };
            let count = counts[index];
            match way {
                Way::Http(server) => {
                    for (call, placement) in PLACEMENTS {
                        let placed = over_http(&server, subject, placement, spacing, count)?;
                        if let Some(calls) = placed {
                            figures.add_calls(subject, call, spacing, calls);
                        }
                    }
                }
                Way::Program(program) => {
                    let call = || program.call().map(|()| None);
                    let calls = program.in_its_view(|| calls(spacing, count, call))??;
                    figures.add_calls(subject, Call::Warm, spacing, calls);
                }
            }
        }
    }
    Ok(())
}

/// Over a new connection, because the kernel decides by its port which shard takes it: the rounds meet all of them. Nothing
/// where there is no such place for the caller.
fn over_http(
    server: &Server,
    subject: Subject,
    placement: Placement,
    spacing: Duration,
    count: usize,
) -> Result<Option<Calls>> {
    let mut connection = Connection::open(server.address)?;
    connection.echo(&server.request, PAYLOAD)?;
    let Some(_placed) = connection.place(placement)? else {
        return Ok(None);
    };
    // What is not Hearth keeps no such account.
    let before = match subject {
        Subject::NativeGlibc | Subject::NativeNolibc | Subject::Wasm => {
            pause(RECEIPT);
            Some(Phases::read(&mut connection)?)
        }
        _ => None,
    };
    let mut calls = calls(spacing, count, || connection.echo(&server.request, PAYLOAD))?;
    if let Some(before) = before {
        pause(RECEIPT);
        calls.phases = Some(Phases::read(&mut connection)?.since(&before));
    }
    Ok(Some(calls))
}

/// After one call that is not counted.
fn calls(
    spacing: Duration,
    count: usize,
    mut call: impl FnMut() -> Result<Option<String>>,
) -> Result<Calls> {
    call()?;
    let mut calls = Calls::default();
    for _ in 0..count {
        pause(spacing);
        calls.time(&mut call)?;
    }
    Ok(calls)
}
