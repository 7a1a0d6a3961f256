// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The compiler: a module in, an artifact or every problem out. It runs jailed, once per deploy; what bounds its time and
//! memory are the limits of its sandbox, because code from strangers can make any compiler slow.

use wasmtime::{Engine, ExternType, ImportType, Module};

use crate::engine::{self, MEMORY_BYTES_MAX};
use crate::guest::{ENTRY, Imports, WASI_MODULE};

/// The largest module, in bytes. Interpreters compiled to wasm reach 20 MiB.
pub const MODULE_BYTES_MAX: u64 = 64 << 20;

/// What every wasm binary begins with.
const WASM_MAGIC: &[u8] = b"\0asm";

/// The four bytes after the magic, for a component (layer 1).
const COMPONENT_VERSION: &[u8] = &[0x0d, 0x00, 0x01, 0x00];

/// Why there is no artifact.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The module is at fault; one line each.
    #[error("the module cannot be used: {}", .0.join("; "))]
    Module(Vec<String>),
    /// The module is not at fault.
    #[error("cannot start the engine: {0:#}")]
    Engine(wasmtime::Error),
}

/// Compiles `module`, a core wasm binary, into what the worker maps.
///
/// # Errors
/// [`CompileError::Module`] with every problem that could be found.
pub fn compile(module: &[u8]) -> Result<Vec<u8>, CompileError> {
    recognise(module)?;
    let engine = engine::engine().map_err(CompileError::Engine)?;
    let imports = Imports::new(&engine).map_err(CompileError::Engine)?;
    let offered = Imports::names(&engine).map_err(CompileError::Engine)?;
    let compiled = Module::from_binary(&engine, module).map_err(one_problem)?;
    let problems = check(&compiled, &offered);
    if !problems.is_empty() {
        return Err(CompileError::Module(problems));
    }
    // Names are right; this checks the imports' types.
    imports
        .link(&compiled, MEMORY_BYTES_MAX as u64)
        .map_err(|error| CompileError::Module(vec![one_line(&error.to_string())]))?;
    compiled.serialize().map_err(CompileError::Engine)
}

/// Tells what is not a core module, before any parser sees it.
fn recognise(module: &[u8]) -> Result<(), CompileError> {
    let problem = if MODULE_BYTES_MAX < module.len() as u64 {
        format!("the module has more than {MODULE_BYTES_MAX} bytes")
    } else if module.is_empty() {
        "the module is empty".to_owned()
    } else if Engine::detect_precompiled(module).is_some() {
        "this is compiled code: deploy the module that it was made from".to_owned()
    } else if !module.starts_with(WASM_MAGIC) {
        "this is not a wasm binary: it does not begin with \\0asm".to_owned()
    } else if module[WASM_MAGIC.len()..].starts_with(COMPONENT_VERSION) {
        "this is a component, which is not supported yet: build a WASI preview 1 command (target wasm32-wasip1)"
            .to_owned()
    } else {
        return Ok(());
    };
    Err(CompileError::Module(vec![problem]))
}

/// Everything that would keep the module from ever running here.
fn check(module: &Module, offered: &[String]) -> Vec<String> {
    let mut problems: Vec<String> = module
        .imports()
        .filter_map(|import| import_problem(&import, offered))
        .collect();
    match module.get_export(ENTRY) {
        Some(ExternType::Func(entry)) => {
            if entry.params().len() != 0 || entry.results().len() != 0 {
                problems.push(format!("`{ENTRY}` must have no parameters and no results"));
            }
        }
        Some(_) => problems.push(format!("`{ENTRY}` is not a function")),
        None => problems.push(format!(
            "there is no export `{ENTRY}`: a WASI command is needed, not a library or reactor"
        )),
    }
    match module.get_export("memory") {
        Some(ExternType::Memory(_)) => {}
        Some(_) => problems.push("`memory` is not a memory".to_owned()),
        None => problems.push("there is no export `memory`, through which WASI works".to_owned()),
    }
    problems
}

fn import_problem(import: &ImportType<'_>, offered: &[String]) -> Option<String> {
    let (module, name) = (import.module(), import.name());
    if module != WASI_MODULE {
        let problem =
            format!("import `{module}::{name}`: only {WASI_MODULE} is offered to functions");
        return Some(one_line(&problem));
    }
    if !offered.iter().any(|offered| offered == name) {
        return Some(one_line(&format!(
            "import `{module}::{name}`: no such WASI function"
        )));
    }
    None
}

fn one_problem(error: wasmtime::Error) -> CompileError {
    CompileError::Module(vec![one_line(&format!("{error:#}"))])
}

/// Names are the module's own and may hold anything.
fn one_line(text: &str) -> String {
    /// Bytes of one problem that say enough.
    const PROBLEM_BYTES_MAX: usize = 1024;
    let kept = &text[..text.floor_char_boundary(PROBLEM_BYTES_MAX)];
    kept.chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect()
}
