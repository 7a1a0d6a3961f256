// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a function is, from the first bytes of its entry: the contract and the base follow where the manifest leaves
//! them out, and a manifest that contradicts the file is refused at deploy, not at the first call.

use hearth_pool::Scaling;
use hearth_protocol::{SmallName, spawner::Root};

use crate::{
    intake::Package,
    manifest::{Manifest, Problems},
};

/// How many invocations one wasm worker runs at once where the manifest does not say.
const WASM_INFLIGHT_DEFAULT: u16 = 16;

/// What 32-bit linear memories can hold, in bytes.
const WASM_MEMORY_BYTES_MAX: u64 = 4 << 30;

/// Below this the kernel cannot start a process in the sandbox's cgroup, and the spawner refuses to bind. In bytes.
const NATIVE_MEMORY_BYTES_MIN: u64 = 4 << 20;

/// Init and the function's own process.
const NATIVE_PIDS_MIN: u32 = 2;

/// The base for programs that bring everything.
const BASE_STATIC: &str = "static";

/// The base with a C library, a shell and core tools.
const BASE_MINIMAL: &str = "minimal";

/// What a function is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Form {
    Native { base: SmallName },
    Wasm,
}

impl Form {
    /// The manifest's scaling, with what it leaves to the form.
    pub(crate) fn scaling(&self, manifest: &Manifest) -> Scaling {
        let inflight_default = match self {
            Self::Native { .. } => 1,
            Self::Wasm => WASM_INFLIGHT_DEFAULT,
        };
        Scaling {
            instances_max: manifest.instances_max,
            inflight_max: manifest.inflight_max.unwrap_or(inflight_default),
            warm_min: manifest.warm_min,
            idle_timeout: manifest.idle_timeout,
        }
    }
}

/// What the first bytes of a file say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    WasmModule,
    WasmComponent,
    ElfStatic,
    ElfDynamic,
    ElfForeign,
    Script,
    Unknown,
}

/// Finds out what a function is.
///
/// # Errors
/// [`Problems`]: what the manifest says and the files do not bear out.
pub(crate) fn detect(
    manifest: &Manifest,
    package: &Package,
    bases: &[SmallName],
) -> Result<Form, Problems> {
    let mut problems = Problems::default();
    let Some(entry) = package.files.get(&manifest.entry) else {
        problems.note(
            "entry",
            format!("{:?} is not a file of this folder", manifest.entry),
        );
        return Err(problems);
    };
    let content = content_of(&entry.content);
    if matches!(content, Content::ElfStatic | Content::ElfDynamic)
        && is_lambda_bootstrap(&manifest.entry)
    {
        problems.note(
            "entry",
            "an executable named bootstrap has the contract lambda, which is not supported yet",
        );
    }
    let form = match content {
        Content::WasmModule => Some(wasm(manifest, &mut problems)),
        Content::ElfStatic => native(manifest, BASE_STATIC, bases, &mut problems),
        Content::ElfDynamic | Content::Script => {
            if manifest
                .base
                .as_ref()
                .is_some_and(|base| base.as_str() == BASE_STATIC)
            {
                problems.note("base", "the entry needs a loader or an interpreter, which the base \"static\" does not have");
            }
            native(manifest, BASE_MINIMAL, bases, &mut problems)
        }
        Content::WasmComponent => {
            problems.note("entry", "is a wasm component, which is not supported yet; build a core module for wasm32-wasip1");
            None
        }
        Content::ElfForeign => {
            problems.note(
                "entry",
                format!(
                    "is an executable for another machine than {}",
                    std::env::consts::ARCH
                ),
            );
            None
        }
        Content::Unknown => {
            problems.note(
                "entry",
                "is neither an ELF executable, nor a script beginning with #!, nor a wasm module",
            );
            None
        }
    };
    match form {
        Some(form) => problems.into_result(form),
        None => Err(problems),
    }
}

fn native(
    manifest: &Manifest,
    default: &str,
    bases: &[SmallName],
    problems: &mut Problems,
) -> Option<Form> {
    if manifest.inflight_max.is_some_and(|inflight| inflight != 1) {
        problems.note(
            "scaling.max_inflight",
            "must be 1: a native function of contract stdio is a process per call",
        );
    }
    if manifest.limits.memory_bytes < NATIVE_MEMORY_BYTES_MIN {
        problems.note(
            "limits.memory",
            "must be at least 4MiB: below it no process starts",
        );
    }
    if manifest.limits.pids < NATIVE_PIDS_MIN {
        problems.note(
            "limits.pids",
            "must be at least 2: the sandbox's init is one",
        );
    }
    let base = manifest
        .base
        .clone()
        .or_else(|| SmallName::new(default).ok())?;
    if !bases.contains(&base) {
        let known: Vec<&str> = bases.iter().map(SmallName::as_str).collect();
        problems.note(
            "base",
            format!(
                "{:?} does not exist on this host; it has: {}",
                base.as_str(),
                known.join(", ")
            ),
        );
    }
    Some(Form::Native { base })
}

fn wasm(manifest: &Manifest, problems: &mut Problems) -> Form {
    if manifest.seccomp.is_some() {
        problems.note(
            "sandbox.seccomp",
            "belongs to native functions; a wasm worker has a tighter profile of its own",
        );
    }
    if manifest.base.is_some() {
        problems.note(
            "base",
            "is for native functions only; the entry is a wasm module",
        );
    }
    if manifest.root == Root::Writable {
        problems.note(
            "sandbox.writable_root",
            "is for native functions only; the entry is a wasm module, which sees no files",
        );
    }
    if WASM_MEMORY_BYTES_MAX < manifest.limits.memory_bytes {
        problems.note("limits.memory", "must not be above 4GiB for a wasm module");
    }
    Form::Wasm
}

fn is_lambda_bootstrap(entry: &str) -> bool {
    entry.rsplit('/').next() == Some("bootstrap")
}

fn content_of(bytes: &[u8]) -> Content {
    /// The magic number with the version of a core module, and with version and layer of a component.
    const MODULE: &[u8] = b"\0asm\x01\0\0\0";
    const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
    if bytes.starts_with(MODULE) {
        Content::WasmModule
    } else if bytes.starts_with(COMPONENT) {
        Content::WasmComponent
    } else if bytes.starts_with(b"\x7fELF") {
        elf(bytes).unwrap_or(Content::Unknown)
    } else if bytes.starts_with(b"#!") {
        Content::Script
    } else {
        Content::Unknown
    }
}

/// From the ELF header and the program headers (elf(5)): a program with a PT_INTERP is loaded by another one. None
/// where the file is cut off or no executable.
fn elf(bytes: &[u8]) -> Option<Content> {
    const CLASS_64: u8 = 2;
    const LITTLE_ENDIAN: u8 = 1;
    const TYPE_EXEC: u16 = 2;
    const TYPE_DYN: u16 = 3;
    const PT_INTERP: u32 = 3;
    let machine = match std::env::consts::ARCH {
        "x86_64" => 62,
        "aarch64" => 183,
        _ => return None,
    };
    if bytes.get(4..6)? != [CLASS_64, LITTLE_ENDIAN] || u16_at(bytes, 18)? != machine {
        return Some(Content::ElfForeign);
    }
    if !matches!(u16_at(bytes, 16)?, TYPE_EXEC | TYPE_DYN) {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?)).ok()?;
    let (entry_size, entries) = (
        usize::from(u16_at(bytes, 54)?),
        usize::from(u16_at(bytes, 56)?),
    );
    for index in 0..entries {
        let at = table.checked_add(index.checked_mul(entry_size)?)?;
        let kind = u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?);
        if kind == PT_INTERP {
            return Some(Content::ElfDynamic);
        }
    }
    Some(Content::ElfStatic)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::intake::{PackedFile, tree_id};

    fn bases() -> Vec<SmallName> {
        [BASE_STATIC, BASE_MINIMAL]
            .map(|name| SmallName::new(name).unwrap())
            .to_vec()
    }

    #[expect(clippy::unwrap_in_result, reason = "what a test itself makes is right")]
    fn detect_entry(entry: &str, content: &[u8], rest: &str) -> Result<Form, Problems> {
        let manifest =
            crate::manifest::parse(&format!("name = \"a\"\nentry = \"{entry}\"\n{rest}")).unwrap();
        let file = PackedFile {
            executable: true,
            content: Bytes::copy_from_slice(content),
        };
        let files = [(entry.to_owned(), file)].into();
        let package = Package {
            files,
            manifest: String::new(),
            revision: tree_id(&[0; 32]),
        };
        detect(&manifest, &package, &bases())
    }

    fn base_of(form: Form) -> String {
        match form {
            Form::Native { base } => base.to_string(),
            Form::Wasm => panic!("not native"),
        }
    }

    /// A header with one program header of this type.
    fn elf_with(program_header: u32, machine: u16) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16..18].copy_from_slice(&3_u16.to_le_bytes());
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1_u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&program_header.to_le_bytes());
        bytes
    }

    const HOST_MACHINE: u16 = if cfg!(target_arch = "x86_64") {
        62
    } else {
        183
    };

    #[test]
    fn the_base_follows_from_the_entry() {
        assert_eq!(
            base_of(detect_entry("run", &elf_with(1, HOST_MACHINE), "").unwrap()),
            "static"
        );
        assert_eq!(
            base_of(detect_entry("run", &elf_with(3, HOST_MACHINE), "").unwrap()),
            "minimal"
        );
        assert_eq!(
            base_of(detect_entry("run", b"#!/bin/sh\n", "").unwrap()),
            "minimal"
        );
        assert_eq!(
            detect_entry("run", b"\0asm\x01\0\0\0", "").unwrap(),
            Form::Wasm
        );
    }

    #[test]
    fn this_very_test_program_is_a_dynamic_executable() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(content_of(&program), Content::ElfDynamic);
    }

    #[test]
    fn what_cannot_run_here_is_refused_with_the_reason() {
        let refused = |entry, content: &[u8], rest, reason: &str| {
            let problems = detect_entry(entry, content, rest).unwrap_err();
            assert!(problems.to_string().contains(reason), "{problems}");
        };
        refused("run", b"\0asm\x0d\0\x01\0", "", "component");
        refused("run", &elf_with(1, 40), "", "another machine");
        refused("bin/bootstrap", &elf_with(1, HOST_MACHINE), "", "lambda");
        refused("run", b"MZ", "", "neither");
        refused("run", b"\x7fELF", "", "neither");
        refused("run", b"#!/bin/sh\n", "base = \"static\"", "interpreter");
        refused("run", b"#!/bin/sh\n", "base = \"other\"", "does not exist");
        refused(
            "run",
            b"#!/bin/sh\n",
            "[scaling]\nmax_inflight = 2",
            "process per call",
        );
        refused(
            "run",
            b"\0asm\x01\0\0\0",
            "base = \"minimal\"",
            "native functions only",
        );
        refused(
            "run",
            b"\0asm\x01\0\0\0",
            "[limits]\nmemory = \"5GiB\"",
            "4GiB",
        );
    }

    #[test]
    fn no_truncation_of_an_executable_panics() {
        let whole = elf_with(3, HOST_MACHINE);
        for length in 0..whole.len() {
            let _content = content_of(&whole[..length]);
        }
    }

    #[test]
    fn limits_under_which_no_process_starts_are_refused_at_deploy() {
        let limits = "[limits]\nmemory = \"1MiB\"\npids = 1\n";
        let problems = detect_entry("run", &elf_with(1, HOST_MACHINE), limits).unwrap_err();
        let keys: Vec<&str> = problems
            .0
            .iter()
            .map(|problem| problem.at.as_str())
            .collect();
        assert_eq!(keys, ["limits.memory", "limits.pids"]);
    }
}
