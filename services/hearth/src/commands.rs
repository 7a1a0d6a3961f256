// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The client commands: each one request, or a few, and what is printed of the answer.

use std::io::Read;
use std::path::Path;

use hearth_gateway::{
    learned,
    manifest::{Problems, Seccomp},
};
use serde_json::Value;
use ureq::SendBody;

use crate::args::{Deploy, Invoke, Listing, Logs, OfFunction, Output, Receipt, Remove};
use crate::client::Client;
use crate::config::Environment;
use crate::exit::{Code, Failure};
use crate::folder::{Builder, Folder, MANIFEST};
use crate::terminal;

mod learn;
mod show;

pub(crate) use learn::learn;

/// How much of an answer is held at once while it is passed on, in bytes.
const COPY_BYTES: usize = 64 * 1024;

/// The type of a packed folder.
const ARCHIVE_TYPE: &str = "application/x-tar";

/// `hearth deploy DIR`.
pub(crate) fn deploy(arguments: &Deploy, environment: &Environment) -> Result<(), Failure> {
    let builder = Builder::new(environment);
    let folder = open(&arguments.dir)?;
    if !arguments.no_build {
        builder
            .build(&folder)
            .map_err(|error| folder_failure(&error))?;
    }
    let archive = folder
        .pack(&builder)
        .map_err(|error| folder_failure(&error))?;
    if arguments.dry_run {
        check_manifest(&folder)?;
        terminal::line(&format!(
            "{}: the manifest is valid and the archive has {} bytes; nothing was deployed",
            folder.manifest.name,
            archive.len()
        ));
        return Ok(());
    }
    let client = Client::new(&arguments.server, environment)?;
    let answer = send(&client, &folder.manifest.name, &archive)?;
    terminal::line(&show::deployed(
        &answer,
        client.url(),
        &folder.manifest.name,
    ));
    Ok(())
}

/// Builds, packs and deploys a folder; gives what to say of it.
fn redeploy(dir: &Path, client: &Client, environment: &Environment) -> Result<String, Failure> {
    let builder = Builder::new(environment);
    let folder = open(dir)?;
    let archive = builder.build(&folder).and_then(|()| folder.pack(&builder));
    let archive = archive.map_err(|error| folder_failure(&error))?;
    let answer = send(client, &folder.manifest.name, &archive)?;
    let name = &folder.manifest.name;
    Ok(show::deployed(&answer, client.url(), name))
}

/// The server's own check of a manifest, here: a server is not needed to learn what is wrong.
fn check_manifest(folder: &Folder) -> Result<(), Failure> {
    let text = folder
        .manifest_text()
        .map_err(|error| folder_failure(&error))?;
    let checked = hearth_gateway::manifest::parse(&text).and_then(|manifest| {
        match (manifest.seccomp, folder.learned_profile()) {
            (Some(Seccomp::Learned), Ok(profile)) => learned::parse(&profile).map(drop),
            (Some(Seccomp::Learned), Err(error)) => {
                let mut problems = Problems::default();
                problems.note(learned::FILE_NAME, error.to_string());
                Err(problems)
            }
            (Some(Seccomp::Tier(_)) | None, _) => Ok(()),
        }
    });
    checked.map_err(|problems| {
        let place = folder.path.join(MANIFEST);
        let mut sentence = format!("{} is not a valid manifest", place.display());
        for problem in problems.0 {
            sentence.push_str(&format!("\n  - {}: {}", problem.at, problem.problem));
        }
        Failure::of(Code::Failed, sentence)
    })
}

/// Reads a folder's manifest, with a failure that a command can end with.
pub(crate) fn open(dir: &Path) -> Result<Folder, Failure> {
    Folder::open(dir).map_err(|error| folder_failure(&error))
}

/// Sends a packed folder.
pub(crate) fn send(client: &Client, name: &str, archive: &[u8]) -> Result<Value, Failure> {
    let answer = client.put(&format!("/v1/functions/{name}"), ARCHIVE_TYPE, archive)?;
    parse(&answer)
}

/// What a command ends with where a folder is not usable.
pub(crate) fn folder_failure(error: &crate::folder::FolderError) -> Failure {
    Failure::new(Code::Failed, error)
}

/// `hearth invoke NAME`.
pub(crate) fn invoke(arguments: &Invoke, environment: &Environment) -> Result<(), Failure> {
    let client = Client::new(&arguments.server, environment)?;
    checked_name(&arguments.name)?;
    call(&client, &arguments.name, arguments.data.as_deref())
}

/// Calls a function with a file, stdin or nothing, and passes its output on to stdout.
pub(crate) fn call(client: &Client, name: &str, data: Option<&Path>) -> Result<(), Failure> {
    let answer = match data {
        None => client.invoke(name, SendBody::none()),
        Some(path) if path == Path::new("-") => {
            client.invoke(name, SendBody::from_owned_reader(std::io::stdin()))
        }
        Some(path) => {
            let file = std::fs::File::open(path).map_err(|error| {
                Failure::of(
                    Code::Usage,
                    format!("cannot read {}: {error}", path.display()),
                )
            })?;
            client.invoke(name, &file)
        }
    }?;
    let mut reader = answer.into_body().into_reader();
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => terminal::bytes(&buffer[..length]),
            Err(error) => {
                let sentence = format!("the answer broke off: {error}");
                return Err(Failure::of(Code::Failed, sentence));
            }
        }
    }
}

/// `hearth ls`.
pub(crate) fn ls(arguments: &Listing, environment: &Environment) -> Result<(), Failure> {
    let client = Client::new(&arguments.server, environment)?;
    let answer = client.get("/v1/functions")?;
    print(&answer, &arguments.output, show::functions)
}

/// `hearth describe NAME`.
pub(crate) fn describe(arguments: &OfFunction, environment: &Environment) -> Result<(), Failure> {
    let client = Client::new(&arguments.server, environment)?;
    let name = checked_name(&arguments.name)?;
    let answer = client.get(&format!("/v1/functions/{name}"))?;
    print(&answer, &arguments.output, show::fields)
}

/// `hearth isolation NAME`.
pub(crate) fn isolation(arguments: &OfFunction, environment: &Environment) -> Result<(), Failure> {
    let client = Client::new(&arguments.server, environment)?;
    let name = checked_name(&arguments.name)?;
    let answer = client.get(&format!("/v1/functions/{name}/isolation"))?;
    print(&answer, &arguments.output, show::isolation)
}

/// `hearth receipt ID`.
pub(crate) fn receipt(arguments: &Receipt, environment: &Environment) -> Result<(), Failure> {
    let client = Client::new(&arguments.server, environment)?;
    let id = checked_id(&arguments.id)?;
    let answer = client.get(&format!("/v1/invocations/{id}"))?;
    print(&answer, &arguments.output, show::fields)
}

/// `hearth logs NAME`.
pub(crate) fn logs(arguments: &Logs, environment: &Environment) -> Result<(), Failure> {
    let client = Client::new(&arguments.server, environment)?;
    let name = checked_name(&arguments.name)?;
    let filter = match &arguments.invocation {
        None => String::new(),
        Some(id) => format!("?invocation={}", checked_id(id)?),
    };
    let answer = client.get(&format!("/v1/functions/{name}/logs{filter}"))?;
    terminal::bytes(&answer);
    Ok(())
}

/// `hearth rm NAME`.
pub(crate) fn rm(arguments: &Remove, environment: &Environment) -> Result<(), Failure> {
    let client = Client::new(&arguments.server, environment)?;
    let name = checked_name(&arguments.name)?;
    client.delete(&format!("/v1/functions/{name}"))?;
    terminal::line(&format!("{name}: removed"));
    Ok(())
}

/// A name that is a part of a URL's path.
fn checked_name(name: &str) -> Result<&str, Failure> {
    match hearth_protocol::SmallName::new(name) {
        Ok(_) => Ok(name),
        Err(problem) => {
            let sentence = format!("{name:?} is not a function name: {problem}");
            Err(Failure::of(Code::Usage, sentence))
        }
    }
}

/// An id that is a part of a URL's path; what an id looks like is the server's business, but it has no other characters.
fn checked_id(id: &str) -> Result<&str, Failure> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if !id.is_empty() && id.bytes().all(allowed) {
        return Ok(id);
    }
    Err(Failure::of(
        Code::Usage,
        format!("{id:?} is not an invocation's id"),
    ))
}

/// JSON as it came, or the table that `table` makes of it.
fn print(answer: &[u8], output: &Output, table: fn(&Value) -> String) -> Result<(), Failure> {
    let value = parse(answer)?;
    if output.json {
        terminal::line(&format!("{value:#}"));
    } else {
        terminal::line(&table(&value));
    }
    Ok(())
}

fn parse(answer: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(answer).map_err(|error| {
        let sentence = format!("the server's answer is not JSON: {error}");
        Failure::of(Code::Failed, sentence)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_cannot_change_the_path_of_a_request() {
        for text in ["../x", "a/b", "a?b", "", "a b", "%2e"] {
            assert!(checked_name(text).is_err(), "{text:?}");
            assert!(checked_id(text).is_err(), "{text:?}");
        }
        assert!(checked_id("0199c0de-0000-7000-8000-000000000000").is_ok());
    }
}
