// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a bound sandbox executes, in the form that execve(2) takes: built at bind, so that a call only adds its own
//! variables.

use std::ffi::{CString, NulError};

use hearth_protocol::init::Program;
use nix::sched::CpuSet;

use super::affinity;
use crate::sys::program::Strings;

/// A program, ready to be started.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) argv: Strings,
    pub(super) cores: CpuSet,
    /// `NAME=VALUE` each.
    env: Vec<CString>,
    /// The working directory, until it is entered.
    cwd: Option<CString>,
}

/// Why a program cannot be made ready.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotReady {
    /// It has no arguments, not even its own path.
    NoPath,
    /// A text holds a NUL byte.
    Nul(NulError),
    /// A core that does not exist.
    Core(nix::Error),
}

impl From<NulError> for NotReady {
    fn from(error: NulError) -> Self {
        Self::Nul(error)
    }
}

impl Ready {
    /// Where the program names no cores it gets init's own.
    pub(super) fn new(program: Program, own_cores: CpuSet) -> Result<Self, NotReady> {
        if program.argv.is_empty() {
            return Err(NotReady::NoPath);
        }
        let argv = program
            .argv
            .into_iter()
            .map(CString::new)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            cwd: Some(CString::new(program.cwd)?),
            argv: Strings::new(argv),
            cores: affinity(&program.cores, own_cores).map_err(NotReady::Core)?,
            env: program.env.iter().map(variable).collect::<Result<_, _>>()?,
        })
    }

    /// Enters the program's working directory, once: every process that init starts begins there, and none of them can
    /// move init. Not at bind, which may be told before the spawner has mounted the files.
    pub(super) fn enter(&mut self) -> nix::Result<()> {
        if let Some(cwd) = &self.cwd {
            nix::unistd::chdir(cwd.as_c_str())?;
            self.cwd = None;
        }
        Ok(())
    }

    /// The environment of one call, whose variables win.
    pub(super) fn environment(&self, call: &[(String, String)]) -> Result<Strings, NulError> {
        let overridden = |variable: &&CString| {
            let name = variable.as_bytes().split(|&byte| byte == b'=').next();
            call.iter()
                .any(|(called, _)| Some(called.as_bytes()) == name)
        };
        let kept = self
            .env
            .iter()
            .filter(|variable| !overridden(variable))
            .cloned()
            .map(Ok);
        let all = kept
            .chain(call.iter().map(variable))
            .collect::<Result<_, _>>()?;
        Ok(Strings::new(all))
    }
}

fn variable((name, value): &(String, String)) -> Result<CString, NulError> {
    CString::new(format!("{name}={value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        Program {
            argv: vec!["/function/f".to_owned()],
            env: vec![
                ("A".to_owned(), "1".to_owned()),
                ("AB".to_owned(), "2".to_owned()),
            ],
            cwd: ".".to_owned(),
            cores: Vec::new(),
        }
    }

    #[test]
    fn a_call_s_variable_wins_over_the_program_s_of_the_same_name_only() {
        let ready = Ready::new(program(), CpuSet::new()).unwrap();
        let environment = ready
            .environment(&[("A".to_owned(), "x=y".to_owned())])
            .unwrap();
        let texts: Vec<_> = environment
            .iter()
            .map(|text| text.to_str().unwrap())
            .collect();
        assert_eq!(texts, ["AB=2", "A=x=y"]);
    }

    #[test]
    fn a_nul_byte_is_refused_wherever_it_stands() {
        let ready = Ready::new(program(), CpuSet::new()).unwrap();
        assert!(
            ready
                .environment(&[("A".to_owned(), "\0".to_owned())])
                .is_err()
        );
        let cut = Program {
            argv: vec!["/function/f\0".to_owned()],
            ..program()
        };
        assert!(matches!(
            Ready::new(cut, CpuSet::new()),
            Err(NotReady::Nul(_))
        ));
        let empty = Program {
            argv: Vec::new(),
            ..program()
        };
        assert!(matches!(
            Ready::new(empty, CpuSet::new()),
            Err(NotReady::NoPath)
        ));
    }
}
