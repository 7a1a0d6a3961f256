// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The executable `hearth`: the command line, the configuration, and the roles of `hearth serve`.
//!
//! ```text
//! hearth serve   monitor ─┬─ role gateway   (services/gateway)
//!                         └─ role spawner   (sandbox/jail)
//! hearth up      serve as a child, deploy every function folder, deploy again on change
//! hearth run     serve as a child in a temporary directory, deploy, invoke, remove
//! hearth …       one HTTP request, or a few
//! ```

use std::process::ExitCode;

use clap::Parser;

mod args;
mod config;
mod exit;

mod monitor;
mod roles;

mod images;
mod link;
mod pid_one;

mod commands;
mod doctor;
mod run;
mod serve;
mod up;

mod client;
mod folder;
mod instance;
mod logging;
mod terminal;

use args::{Arguments, Command};
use config::Environment;

fn main() -> ExitCode {
    if pid_one::is_this() {
        return pid_one::play();
    }
    let arguments = Arguments::parse();
    let environment = Environment::read();
    let result = match &arguments.command {
        Command::Up(arguments) => up::up(arguments, &environment),
        Command::Serve(arguments) => serve::serve(arguments, &environment),
        Command::Run(arguments) => run::run(arguments, &environment),
        Command::Deploy(arguments) => commands::deploy(arguments, &environment),
        Command::Invoke(arguments) => commands::invoke(arguments, &environment),
        Command::Learn(arguments) => commands::learn(arguments, &environment),
        Command::Doctor(arguments) => doctor::doctor(arguments),
        Command::Ls(arguments) => commands::ls(arguments, &environment),
        Command::Describe(arguments) => commands::describe(arguments, &environment),
        Command::Logs(arguments) => commands::logs(arguments, &environment),
        Command::Receipt(arguments) => commands::receipt(arguments, &environment),
        Command::Isolation(arguments) => commands::isolation(arguments, &environment),
        Command::Rm(arguments) => commands::rm(arguments, &environment),
        Command::Role { role } => roles::play(*role),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
