// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `hearth serve`, up to the point where the monitor takes over.

use hearth_jail::host::Level;
use hearth_jail::rootless;
use nix::sys::signal::Signal;

use crate::args::Serve;
use crate::config::{Config, Environment};
use crate::exit::{Code, Failure};
use crate::{logging, monitor, terminal};

/// Serves until it is told to stop.
pub(crate) fn serve(arguments: &Serve, environment: &Environment) -> Result<(), Failure> {
    let settings = &arguments.settings;
    let config = Config::load(&settings.flags, settings.config.as_deref(), environment)?;
    allow(config.least_level)?;
    close_inherited();
    logging::start(&config.log);
    monitor::check_host(&config).map_err(monitor::MonitorError::into_failure)?;
    if arguments.check {
        terminal::line("the configuration and this host are fine");
        return Ok(());
    }
    if let Some(parent) = arguments.parent {
        die_with(parent, Signal::SIGTERM)?;
    }
    monitor::run(&config).map_err(monitor::MonitorError::into_failure)
}

/// Closes what the starter left open by mistake beside the standard three: every process of Hearth would inherit it, down
/// to those that are made to hold nothing. Called while this process has opened nothing itself.
fn close_inherited() {
    const LAST_STANDARD: i32 = 2;
    let Ok(listing) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let name =
        |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    let numbers: Vec<i32> = listing
        .filter_map(name)
        .filter_map(|name| name.parse().ok())
        .collect();
    for number in numbers.into_iter().filter(|number| LAST_STANDARD < *number) {
        // The listing's own is among them and closed by now.
        nix::unistd::close(number).ok();
    }
}

/// For a command that starts a server as its child: without root both are in one cgroup, which the server is to divide.
pub(crate) fn make_room() {
    if rootless::is_needed() {
        // Where that fails, the server says what is missing, with the remedy.
        rootless::make_room().ok();
    }
}

/// Refuses an ordinary user who asks for every wall, with the very command that works.
pub(crate) fn allow(least: Level) -> Result<(), Failure> {
    if least < Level::Full || nix::unistd::Uid::effective().is_root() {
        return Ok(());
    }
    Err(Failure::of(
        Code::NotAllowed,
        "sandboxes with all their walls need root, and this user is not",
    )
    .with_fix(as_root()))
}

/// The very command, for root.
pub(crate) fn as_root() -> String {
    let words: Vec<String> = std::env::args().map(|word| quoted(&word)).collect();
    format!("sudo {}", words.join(" "))
}

/// Lets the kernel end this process when its parent ends, and ends it now where that has happened already.
pub(crate) fn die_with(parent: u32, signal: Signal) -> Result<(), Failure> {
    let set = nix::sys::prctl::set_pdeathsig(signal);
    set.map_err(|error| Failure::new(Code::CannotStart, &error))?;
    if std::os::unix::process::parent_id() == parent {
        return Ok(());
    }
    Err(Failure::of(
        Code::CannotStart,
        "the process that started this one has ended",
    ))
}

/// A word as it has to be typed in a shell.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=./:,@%+".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_type_survives_a_shell() {
        assert_eq!(quoted("--listen=127.0.0.1:80"), "--listen=127.0.0.1:80");
        assert_eq!(quoted("my dir"), "'my dir'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
    }
}
