// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One program that misbehaves in every way that Hearth's tests need, native and (where it makes sense) as a WASI
//! preview 1 command. It is never deployed by `hearth up`.
//!
//! The first word chooses the mode, the rest are its arguments. They come from, in this order: the command line, the
//! variable `MODE`, on `/fn` routes the query string (`?exit+3`), the first line of stdin. `modes` lists them all.
//!
//! Exit code 64: no such mode, or bad arguments. 70: the mode itself could not do what it is for.
#![expect(
    unsafe_code,
    reason = "its work is making system calls that std does not offer"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers come from the tests, and nothing here serves anyone"
)]
#![cfg_attr(
    target_os = "linux",
    expect(
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "what goes to the kernel as a register is cast"
    )
)]
#![expect(
    clippy::disallowed_methods,
    reason = "the rules against sleeping and reading the environment are the server's, and this is not it"
)]

#[cfg(target_os = "linux")]
mod bombs;
#[cfg(target_os = "linux")]
mod escape;
mod json;
#[cfg(target_os = "linux")]
mod lifetime;
#[cfg(not(target_os = "linux"))]
mod module;
#[cfg(target_os = "linux")]
mod probes;
mod residue;
mod resources;
#[cfg(target_os = "linux")]
mod shared;
mod stdio;
mod sys;
mod whoami;

use std::env;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

/// What a mode gives back: an exit code, or why it could not do its work.
type Outcome = Result<u8, String>;

/// A mode's name, what follows it, and the function.
type Mode = (&'static str, &'static str, fn(&[&str]) -> Outcome);

/// `EX_USAGE` of sysexits.h.
const EXIT_USAGE: u8 = 64;

/// `EX_SOFTWARE` of sysexits.h.
const EXIT_FAILED: u8 = 70;

/// The first line of stdin is read up to here.
const COMMAND_BYTES_MAX: usize = 4096;

fn main() -> ExitCode {
    let command = match command() {
        Ok(command) => command,
        Err(error) => return refuse(&format!("cannot read the mode: {error}")),
    };
    let mut words = command.split_whitespace();
    let Some(name) = words.next() else {
        return refuse(
            "no mode: give one as argument, in MODE, in the query or in the first line of stdin",
        );
    };
    let arguments: Vec<&str> = words.collect();
    if name == "modes" {
        return list();
    }
    let Some((_, _, run)) = modes().find(|(known, _, _)| *known == name) else {
        return refuse(&format!("there is no mode {name} here"));
    };
    if stdio::wants_cgi_header(name) && env::var_os("GATEWAY_INTERFACE").is_some() {
        stdio::print("Content-Type: application/octet-stream\n\n");
    }
    match run(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(message) => {
            complain(&format!("{name}: {message}"));
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn modes() -> impl Iterator<Item = &'static Mode> {
    let everywhere = [
        resources::MODES,
        stdio::MODES,
        residue::MODES,
        whoami::MODES,
    ];
    #[cfg(target_os = "linux")]
    let own = [
        lifetime::MODES,
        escape::MODES,
        bombs::MODES,
        probes::MODES,
        shared::MODES,
    ];
    #[cfg(not(target_os = "linux"))]
    let own = [module::MODES];
    everywhere.into_iter().chain(own).flatten()
}

fn list() -> ExitCode {
    for (name, arguments, _) in modes() {
        stdio::print(format!("{name} {arguments}").trim_end());
        stdio::print("\n");
    }
    ExitCode::SUCCESS
}

fn command() -> io::Result<String> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if !arguments.is_empty() {
        return Ok(arguments.join(" "));
    }
    for (variable, separator) in [("MODE", ' '), ("QUERY_STRING", '+')] {
        match env::var(variable) {
            Ok(value) if !value.is_empty() => return Ok(value.replace(separator, " ")),
            _ => {}
        }
    }
    first_line()
}

/// Byte by byte: what follows the line belongs to the mode.
fn first_line() -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < COMMAND_BYTES_MAX {
        // Not through std's stdin, which would take more than the line into its buffer.
        if sys::read_stdin(&mut byte)? == 0 || byte[0] == b'\n' {
            break;
        }
        line.push(byte[0]);
    }
    String::from_utf8(line).map_err(io::Error::other)
}

/// The argument at `index` as a number, or the default where there is none.
fn number(arguments: &[&str], index: usize, default: u64) -> Result<u64, String> {
    match arguments.get(index) {
        Some(word) => word
            .parse()
            .map_err(|error| format!("{word} is not a number: {error}")),
        None => Ok(default),
    }
}

fn refuse(message: &str) -> ExitCode {
    complain(message);
    ExitCode::from(EXIT_USAGE)
}

/// A closed stderr is one of the things under test.
fn complain(message: &str) {
    drop(writeln!(io::stderr(), "hostile: {message}"));
}

/// Reads what is left of stdin.
fn rest_of_stdin() -> io::Result<Vec<u8>> {
    let mut rest = Vec::new();
    sys::Stdin.read_to_end(&mut rest)?;
    Ok(rest)
}
