// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The first benchmark: what one call costs, native and wasm, first and warm, beside what the same work costs elsewhere.
//!
//! ```text
//! cargo bench -p hearth --bench first [-- --short]
//! ```
//!
//! Every subject echoes the same few bytes. Hearth and the bare axum server are called over one keep-alive connection; the same
//! executable is started by `posix_spawn` and by `bwrap --unshare-all`. Calls are spaced 0, 20 and 250 ms apart, because
//! some costs in the kernel (a grace period after moving a process between cgroups, a core that went to sleep) do
//! not show in a tight loop; rounds interleave the subjects, so that a busy moment of the machine meets all of them.
//!
//! It asserts no time: it prints a table and writes `target/bench/first.json`.

mod connection;
mod figures;
mod peers;
mod server;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use connection::Connection;
use figures::{Figures, Row};
use server::Hearth;

/// Small enough for one packet: the benchmark is about starting and handing over, not about copying.
const PAYLOAD: &[u8] = b"the sixty-four bytes of every call in the first benchmark: hello";

/// The spacings, with the calls that one round makes at each: a round takes about as long at one as at the next.
const SPACINGS: [(Duration, usize); 3] = [
    (Duration::ZERO, 200),
    (Duration::from_millis(20), 20),
    (Duration::from_millis(250), 4),
];

/// How much is measured.
struct Length {
    rounds: usize,
    /// How many fresh revisions are deployed of either kind.
    first_calls: usize,
}

/// Enough for a p99 of the tight loop and for some 50 calls at the widest spacing, in about three minutes.
const LONG: Length = Length {
    rounds: 12,
    first_calls: 50,
};

/// Enough to see that it runs, in some twenty seconds.
const SHORT: Length = Length {
    rounds: 1,
    first_calls: 5,
};

/// After a deploy, until the skeleton that a former call used up has been replaced.
const REFILL: Duration = Duration::from_millis(300);

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Native,
    Wasm,
    Spawn,
    Bubblewrap,
    Axum,
}

const SUBJECTS: [Subject; 5] = [
    Subject::Native,
    Subject::Wasm,
    Subject::Spawn,
    Subject::Bubblewrap,
    Subject::Axum,
];

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Native => "hearth native",
            Self::Wasm => "hearth wasm",
            Self::Spawn => "posix_spawn",
            Self::Bubblewrap => "bwrap --unshare-all",
            Self::Axum => "bare axum",
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let outcome = match arguments.get(1).map(String::as_str) {
        Some(peers::AXUM_ROLE) => peers::serve_axum(),
        _ if arguments.iter().any(|argument| argument == "--short") => bench(&SHORT),
        _ => bench(&LONG),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            figures::complain(&format!("first: {problem:#}"));
            ExitCode::FAILURE
        }
    }
}

fn bench(length: &Length) -> Result<()> {
    let place = tempfile::Builder::new()
        .prefix("hearth-bench-")
        // The gateway, an ordinary user, must reach its state in there.
        .permissions(Permissions::from_mode(0o711))
        .tempdir()
        .context("cannot make a temporary directory")?;
    let echo = server::build_native_echo(place.path())?;
    let axum = peers::Axum::start()?;
    let hearth = Hearth::start(place.path())?;
    let mut figures = Figures::default();

    for subject in [Subject::Native, Subject::Wasm] {
        figures.push(first_calls_of(subject, &hearth, &echo, length.first_calls)?);
    }
    if !peers::has_bubblewrap() {
        figures.gap("bwrap is not installed (Debian: bubblewrap): no figures for it");
    }
    for _ in 0..length.rounds {
        for (spacing, calls) in SPACINGS {
            for subject in SUBJECTS {
                if subject == Subject::Bubblewrap && !peers::has_bubblewrap() {
                    continue;
                }
                figures.push(warm_calls_of(
                    subject, spacing, calls, &hearth, &axum, &echo,
                )?);
            }
        }
    }
    figures.report()
}

/// The first call of revisions that were never called before, each deployed only for that.
fn first_calls_of(subject: Subject, hearth: &Hearth, echo: &Path, calls: usize) -> Result<Row> {
    let mut row = Row::new(subject.name(), "first", None);
    let mut connection = Connection::open(hearth.address())?;
    for revision in 0..calls {
        hearth.deploy(subject, echo, revision)?;
        pause(REFILL);
        // The connection is awake and accepted before the call that counts.
        connection.get("/healthz")?;
        row.time(|| call_hearth(&mut connection, subject))?;
    }
    Ok(row)
}

/// A block of calls one after another, after one that is not counted.
fn warm_calls_of(
    subject: Subject,
    spacing: Duration,
    calls: usize,
    hearth: &Hearth,
    axum: &peers::Axum,
    echo: &Path,
) -> Result<Row> {
    let mut connection = match subject {
        Subject::Native | Subject::Wasm => Some(Connection::open(hearth.address())?),
        Subject::Axum => Some(Connection::open(axum.address())?),
        Subject::Spawn | Subject::Bubblewrap => None,
    };
    let mut call = || match (subject, connection.as_mut()) {
        (Subject::Spawn, _) => peers::spawn(echo, PAYLOAD).map(|()| None),
        (Subject::Bubblewrap, _) => peers::bubblewrap(echo, PAYLOAD).map(|()| None),
        (_, Some(connection)) => call_hearth(connection, subject),
        (_, None) => unreachable!("every subject but the two programs has a connection"),
    };
    let mut row = Row::new(subject.name(), "warm", Some(spacing));
    call()?;
    for _ in 0..calls {
        pause(spacing);
        row.time(&mut call)?;
    }
    Ok(row)
}

/// One call over HTTP; gives what the answer says of where its sandbox came from.
fn call_hearth(connection: &mut Connection, subject: Subject) -> Result<Option<String>> {
    let path = match subject {
        Subject::Native => server::NATIVE_PATH,
        Subject::Wasm => server::WASM_PATH,
        Subject::Spawn | Subject::Bubblewrap | Subject::Axum => "/",
    };
    let answer = connection.post(path, PAYLOAD)?;
    ensure!(
        answer.status == 200 && answer.body == PAYLOAD,
        "{} answered {} {}",
        subject.name(),
        answer.status,
        String::from_utf8_lossy(&answer.body)
    );
    Ok(answer.start)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the spacing between calls is part of what is measured, and nothing else runs on this thread"
)]
fn pause(spacing: Duration) {
    if spacing > Duration::ZERO {
        std::thread::sleep(spacing);
    }
}
