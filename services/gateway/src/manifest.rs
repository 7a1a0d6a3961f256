// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `function.toml`: text in, checked data or every problem out. The same code checks on the server and for
//! `hearth deploy --dry-run`.

mod quantity;
mod section;

use std::time::Duration;

use hearth_pool::Limits;
use hearth_protocol::{SmallName, profile::Tier, spawner::Root};
use toml::{Table, Value};

pub use section::{Problem, Problems};

use section::Section;

/// The manifest's file name, at the root of a function's folder.
pub const FILE_NAME: &str = "function.toml";

/// The longest manifest, in bytes.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

/// Names that begin so are Hearth's own, so that its internal sandboxes are never taken for a tenant's.
const RESERVED_NAME_PREFIX: &str = "hearth-";

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Below 1 MiB not even a static program starts.
const MEMORY_BYTES: (u64, u64, u64) = (MIB, 128 * MIB, 64 * GIB);
const CPU_MILLIS: (u32, u32, u32) = (10, 1000, 64_000);
const PIDS: (u32, u32, u32) = (1, 32, 4096);
/// A quarter of an hour, as other platforms have it: a longer job is not a request.
const TIMEOUT: (Duration, Duration, Duration) = (
    Duration::from_millis(10),
    Duration::from_secs(3),
    Duration::from_secs(900),
);
const INIT_TIMEOUT: (Duration, Duration, Duration) = (
    Duration::from_millis(10),
    Duration::from_secs(10),
    Duration::from_secs(300),
);
const SCRATCH_BYTES: (u64, u64, u64) = (64 * KIB, 64 * MIB, 16 * GIB);
/// Bodies are held in memory while they are read: 64 MiB is a quarter of what all of them may hold.
const REQUEST_BYTES: (u64, u64, u64) = (0, 6 * MIB, 64 * MIB);
const RESPONSE_BYTES: (u64, u64, u64) = (1, 6 * MIB, 64 * MIB);
const LOG_BYTES: (u64, u64, u64) = (0, 64 * KIB, MIB);
const INSTANCES: (u32, u32, u32) = (1, 16, 1024);
const IDLE_TIMEOUT: (Duration, Duration, Duration) = (
    Duration::from_secs(1),
    Duration::from_secs(300),
    Duration::from_secs(24 * 3600),
);
/// An environment travels in one packet with the program (56 KiB at most); half of it is left for the rest.
const ENV_BYTES_MAX: usize = 24 * 1024;
/// Longest text of `entry` and `content_type`, in bytes.
const TEXT_VALUE_BYTES_MAX: usize = 255;

/// What a function answers with on `/invoke` where its manifest does not say.
const CONTENT_TYPE_DEFAULT: &str = "application/octet-stream";

/// A checked manifest. What only the files can tell (contract, base, kind) is still open where it is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The function's name.
    pub name: SmallName,
    /// The file that runs, relative to the folder.
    pub entry: String,
    /// How it is called; none: detected from the entry.
    pub contract: Option<Contract>,
    /// The root tree of a native function; none: detected from the entry.
    pub base: Option<SmallName>,
    /// Type of the answer on `/invoke`.
    pub content_type: String,
    /// Run by the CLI before packing; never by the server.
    pub build: Option<String>,
    /// Whether a native function may write to its root.
    pub root: Root,
    /// What a native function's system calls are filtered by; none: as the contract has it.
    pub seccomp: Option<Seccomp>,
    /// Limits of one invocation and of its sandbox.
    pub limits: Limits,
    /// Sandboxes at once.
    pub instances_max: u32,
    /// Invocations at once in one sandbox; none: as the contract and kind have it.
    pub inflight_max: Option<u16>,
    /// Sandboxes kept ready.
    pub warm_min: u32,
    /// How long an idle sandbox stays.
    pub idle_timeout: Duration,
    /// Environment of every invocation.
    pub env: Vec<(String, String)>,
}

/// What a native function's system calls are filtered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seccomp {
    /// A profile of Hearth's.
    Tier(Tier),
    /// That of the folder's [`crate::learned::FILE_NAME`].
    Learned,
}

/// How a function is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contract {
    /// Event on stdin, result on stdout.
    Stdio,
}

/// Reads a manifest.
///
/// # Errors
/// [`Problems`]: all that is wrong with it.
pub fn parse(text: &str) -> Result<Manifest, Problems> {
    let mut problems = Problems::default();
    if TEXT_BYTES_MAX < text.len() {
        problems.note(FILE_NAME, format!("is longer than {TEXT_BYTES_MAX} bytes"));
        return Err(problems);
    }
    match text.parse::<Table>() {
        Ok(table) => {
            let manifest = read(table, &mut problems);
            match manifest {
                Some(manifest) => problems.into_result(manifest),
                None => Err(problems),
            }
        }
        Err(error) => {
            let before = error.span().map_or(0, |span| span.start).min(text.len());
            let line = 1 + text.as_bytes()[..before]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count();
            problems.note(format!("line {line}"), error.message());
            Err(problems)
        }
    }
}

/// The manifest, or none where a key without which there is none is missing; what is wrong is noted in `problems`.
fn read(table: Table, problems: &mut Problems) -> Option<Manifest> {
    let mut top = Section::new("", table, problems);
    let name = name(&mut top);
    let entry = entry(&mut top);
    let contract = contract(&mut top);
    let base = base(&mut top);
    let content_type = content_type(&mut top);
    let build = top.text("build");
    let [limits, scaling, env, secrets, sandbox] =
        ["limits", "scaling", "env", "secrets", "sandbox"].map(|key| top.table(key));
    if !secrets.is_empty() {
        top.note(
            "secrets",
            "is not supported yet; use [env] for what is not secret",
        );
    }
    top.finish();

    let limits = read_limits(Section::new("limits.", limits, problems));
    let scaling = read_scaling(Section::new("scaling.", scaling, problems));
    let env = read_env(env, problems);
    let sandbox = read_sandbox(Section::new("sandbox.", sandbox, problems));
    Some(Manifest {
        name: name?,
        entry: entry?,
        contract,
        base,
        content_type,
        build,
        root: sandbox.root,
        seccomp: sandbox.seccomp,
        limits,
        instances_max: scaling.instances_max,
        inflight_max: scaling.inflight_max,
        warm_min: scaling.warm_min,
        idle_timeout: scaling.idle_timeout,
        env,
    })
}

fn name(top: &mut Section<'_>) -> Option<SmallName> {
    let key = "name";
    if !top.has(key) {
        top.note(key, "is missing");
    }
    match SmallName::new(top.text(key)?) {
        Ok(name) if name.as_str().starts_with(RESERVED_NAME_PREFIX) => {
            top.note(
                key,
                format!("must not begin with {RESERVED_NAME_PREFIX:?}, which is reserved"),
            );
            None
        }
        Ok(name) => Some(name),
        Err(problem) => {
            top.note(key, problem.to_string());
            None
        }
    }
}

fn base(top: &mut Section<'_>) -> Option<SmallName> {
    match SmallName::new(top.text("base")?) {
        Ok(name) => Some(name),
        Err(problem) => {
            top.note("base", problem.to_string());
            None
        }
    }
}

fn entry(top: &mut Section<'_>) -> Option<String> {
    if !top.has("entry") {
        top.note("entry", "is missing");
    }
    let entry = top.text("entry")?;
    let component_ok = |component: &str| !matches!(component, "" | "." | "..");
    let characters_ok = !entry.contains(|c: char| c.is_control() || c == '\\');
    if TEXT_VALUE_BYTES_MAX < entry.len() || !characters_ok || !entry.split('/').all(component_ok) {
        top.note(
            "entry",
            "must be the path of a file in this folder, such as \"bin/thumbnail\"",
        );
        return None;
    }
    Some(entry)
}

fn contract(top: &mut Section<'_>) -> Option<Contract> {
    match top.text("contract")?.as_str() {
        "stdio" => Some(Contract::Stdio),
        other @ ("http" | "lambda") => {
            top.note(
                "contract",
                format!("{other:?} is not supported yet; this version offers \"stdio\""),
            );
            None
        }
        other => {
            top.note("contract", format!("must be \"stdio\", not {other:?}"));
            None
        }
    }
}

fn content_type(top: &mut Section<'_>) -> String {
    let Some(text) = top.text("content_type") else {
        return CONTENT_TYPE_DEFAULT.to_owned();
    };
    let visible = text
        .bytes()
        .all(|byte| byte == b' ' || byte.is_ascii_graphic());
    let halves = text
        .split(';')
        .next()
        .and_then(|essence| essence.trim().split_once('/'));
    if TEXT_VALUE_BYTES_MAX < text.len()
        || !visible
        || halves.is_none_or(|(a, b)| a.is_empty() || b.is_empty())
    {
        top.note(
            "content_type",
            "must be a media type such as \"image/jpeg\"",
        );
    }
    text
}

fn read_limits(mut section: Section<'_>) -> Limits {
    let mut size =
        |key, (min, default, max): (u64, u64, u64)| section.size(key, min..=max, default);
    let memory_bytes = size("memory", MEMORY_BYTES);
    let scratch_bytes = size("scratch", SCRATCH_BYTES);
    let request_bytes = size("request", REQUEST_BYTES);
    let response_bytes = size("response", RESPONSE_BYTES);
    let log_bytes = size("log", LOG_BYTES);
    let cpu_millis = section.millis_of_one("cpu", CPU_MILLIS.0..=CPU_MILLIS.2, CPU_MILLIS.1);
    let pids = section.number("pids", PIDS.0..=PIDS.2).unwrap_or(PIDS.1);
    let timeout = section.duration("timeout", TIMEOUT.0..=TIMEOUT.2, TIMEOUT.1);
    // Checked though no contract of this version has an initialisation of its own, so that a manifest that is
    // right today stays right.
    section.duration(
        "init_timeout",
        INIT_TIMEOUT.0..=INIT_TIMEOUT.2,
        INIT_TIMEOUT.1,
    );
    section.finish();
    Limits {
        memory_bytes,
        cpu_millis,
        pids,
        timeout,
        scratch_bytes,
        request_bytes,
        response_bytes,
        log_bytes,
    }
}

struct RawScaling {
    instances_max: u32,
    inflight_max: Option<u16>,
    warm_min: u32,
    idle_timeout: Duration,
}

fn read_scaling(mut section: Section<'_>) -> RawScaling {
    let instances_max = section
        .number("max_instances", INSTANCES.0..=INSTANCES.2)
        .unwrap_or(INSTANCES.1);
    let inflight_range = 1..=u32::from(hearth_protocol::worker::INFLIGHT_MAX);
    let inflight_max = section
        .number("max_inflight", inflight_range)
        .and_then(|number| u16::try_from(number).ok());
    let warm_min = section.number("min_warm", 0..=INSTANCES.2).unwrap_or(0);
    if instances_max < warm_min {
        section.note(
            "min_warm",
            format!("must not be above max_instances, which is {instances_max}"),
        );
    }
    let idle_timeout = section.auto_duration(
        "idle_timeout",
        IDLE_TIMEOUT.0..=IDLE_TIMEOUT.2,
        IDLE_TIMEOUT.1,
    );
    section.finish();
    RawScaling {
        instances_max,
        inflight_max,
        warm_min,
        idle_timeout,
    }
}

fn read_env(table: Table, problems: &mut Problems) -> Vec<(String, String)> {
    let mut env = Vec::with_capacity(table.len());
    for (key, value) in table {
        let at = format!("env.{}", key.chars().take(64).collect::<String>());
        let first_ok = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !first_ok
            || !key
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            problems.note(
                at,
                "must be a name of letters, digits and _, not beginning with a digit",
            );
            continue;
        }
        match value {
            Value::String(text) if !text.contains('\0') => env.push((key, text)),
            Value::String(_) => problems.note(at, "must not hold a NUL character"),
            _ => problems.note(at, "must be a text in quotes"),
        }
    }
    let bytes: usize = env
        .iter()
        .map(|(key, value)| key.len() + value.len() + 2)
        .sum();
    if ENV_BYTES_MAX < bytes {
        problems.note(
            "env",
            format!("has {bytes} bytes; at most {ENV_BYTES_MAX} are allowed"),
        );
    }
    env
}

/// What `[sandbox]` says.
struct RawSandbox {
    root: Root,
    seccomp: Option<Seccomp>,
}

fn read_sandbox(mut section: Section<'_>) -> RawSandbox {
    let seccomp = read_seccomp(&mut section);
    section.only_text("network", "none", &["loopback", "egress"]);
    match section.take("egress") {
        None => {}
        Some(Value::Array(entries)) if entries.is_empty() => {}
        Some(_) => section.note("egress", "is not supported yet; functions have no network"),
    }
    let root = match section.take("writable_root") {
        None | Some(Value::Boolean(false)) => Root::ReadOnly,
        Some(Value::Boolean(true)) => Root::Writable,
        Some(_) => {
            section.note("writable_root", "must be true or false");
            Root::ReadOnly
        }
    };
    section.finish();
    RawSandbox { root, seccomp }
}

fn read_seccomp(section: &mut Section<'_>) -> Option<Seccomp> {
    match section.text("seccomp")?.as_str() {
        "default" => Some(Seccomp::Tier(Tier::Default)),
        "strict" => Some(Seccomp::Tier(Tier::Strict)),
        "learned" => Some(Seccomp::Learned),
        "network" => {
            section.note(
                "seccomp",
                "is \"network\", which needs a contract with a network; \"stdio\" has none",
            );
            None
        }
        other => {
            section.note(
                "seccomp",
                format!("must be \"strict\", \"default\" or \"learned\", not {other:?}"),
            );
            None
        }
    }
}

#[cfg(test)]
mod tests;
