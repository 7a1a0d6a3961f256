// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `hearth learn NAME`: has the server observe a function, writes the profile down, and says what its replay showed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_gateway::learned::FILE_NAME;
use serde_json::Value;

use super::{checked_name, open, parse, redeploy, show};
use crate::args::Learn;
use crate::client::Client;
use crate::config::{Environment, parse_duration};
use crate::exit::{Code, Failure};
use crate::folder::{self, MANIFEST};
use crate::terminal;

/// All events together, in bytes: what the server takes.
const EVENTS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The type of the events.
const EVENTS_TYPE: &str = "application/octet-stream";

/// `hearth learn NAME`.
pub(crate) fn learn(arguments: &Learn, environment: &Environment) -> Result<(), Failure> {
    let name = checked_name(&arguments.name)?;
    let time = observed_for(arguments)?;
    if arguments.events.is_empty() && time.is_zero() {
        let sentence = "there is nothing to learn from";
        return Err(Failure::of(Code::Usage, sentence)
            .with_fix("give an input with --event FILE, or a time with --for DURATION"));
    }
    if let Some(folder) = &arguments.into {
        is_of(folder, name)?;
    }
    let (sizes, body) = read_events(&arguments.events)?;
    let client = Client::new(&arguments.server, environment)?;
    let path = request_path(name, arguments, time, &sizes);
    let answer = client.post(&path, EVENTS_TYPE, &body, time)?;
    let lesson = parse(&answer)?;
    let file = write_profile(arguments, &lesson)?;
    if arguments.output_format.json {
        terminal::line(&format!("{lesson:#}"));
    } else {
        terminal::line(&show::lesson(&lesson));
        terminal::line(&format!("written to {}", file.display()));
    }
    if lesson["replay"]["holds"] != true {
        let sentence = "the events did not run under the learned profile as they had before";
        return Err(Failure::of(Code::Failed, sentence).with_fix(
            "learn from more events, or add what was refused to the file's `calls` by hand",
        ));
    }
    match &arguments.into {
        Some(folder) if arguments.enforce => {
            let said = enforce(folder, &client, environment)?;
            if !arguments.output_format.json {
                terminal::line(&said);
            }
            Ok(())
        }
        Some(_) | None => Ok(()),
    }
}

fn observed_for(arguments: &Learn) -> Result<Duration, Failure> {
    let Some(text) = &arguments.time else {
        return Ok(Duration::ZERO);
    };
    parse_duration(text).ok_or_else(|| {
        let sentence = format!("--for: {text:?} is not a duration like 500ms, 30s or 2m");
        Failure::of(Code::Usage, sentence)
    })
}

/// A profile of one function is of no use in another one's folder.
fn is_of(folder: &Path, name: &str) -> Result<(), Failure> {
    let found = open(folder)?.manifest.name;
    if found == name {
        return Ok(());
    }
    let sentence = format!(
        "{} is the folder of {found}, not of {name}",
        folder.display()
    );
    Err(Failure::of(Code::Usage, sentence))
}

/// The size of each file, and all of them one after the other.
fn read_events(files: &[PathBuf]) -> Result<(Vec<usize>, Vec<u8>), Failure> {
    let mut body = Vec::new();
    let mut sizes = Vec::with_capacity(files.len());
    for path in files {
        let before = body.len();
        let left = EVENTS_BYTES_MAX.saturating_sub(before as u64);
        let read = File::open(path).and_then(|file| file.take(left + 1).read_to_end(&mut body));
        read.map_err(|error| {
            let sentence = format!("cannot read {}: {error}", path.display());
            Failure::of(Code::Usage, sentence)
        })?;
        if EVENTS_BYTES_MAX < body.len() as u64 {
            let sentence = format!("the events have more than {EVENTS_BYTES_MAX} bytes");
            return Err(Failure::of(Code::Usage, sentence));
        }
        sizes.push(body.len() - before);
    }
    Ok((sizes, body))
}

fn request_path(name: &str, arguments: &Learn, time: Duration, sizes: &[usize]) -> String {
    let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
    let mut path = format!(
        "/v1/functions/{name}/learn?for_ms={}&rounds={}&sizes={}",
        time.as_millis(),
        arguments.rounds,
        sizes.join(",")
    );
    if let Some(below) = &arguments.path {
        path.push_str("&path=");
        path.push_str(&encoded(below));
    }
    path
}

/// As part of a query (RFC 3986 section 3.4).
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

/// Where the profile was written to.
fn write_profile(arguments: &Learn, lesson: &Value) -> Result<PathBuf, Failure> {
    let file = match (&arguments.into, &arguments.output) {
        (Some(folder), _) => folder.join(FILE_NAME),
        (None, Some(file)) => file.clone(),
        (None, None) => PathBuf::from(format!("{}.{FILE_NAME}", arguments.name)),
    };
    replace(&file, &format!("{:#}\n", lesson["profile"]))?;
    Ok(file)
}

/// Writes a file whole, as its folder's owner: under sudo this is root, in a folder of the caller's, where a link must not
/// be followed and a file must not become root's.
fn replace(file: &Path, text: &str) -> Result<(), Failure> {
    let folder = match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let new = folder.join(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        let owner = folder.metadata()?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        Ok::<_, std::io::Error>(())
    })();
    let written = written.and_then(|()| std::fs::rename(&new, file));
    written.map_err(|error| {
        // Where it was never made, there is nothing to remove.
        drop(std::fs::remove_file(&new));
        let sentence = format!("cannot write {}: {error}", file.display());
        Failure::of(Code::Failed, sentence)
    })
}

/// Deploys the folder with what was written into it.
fn enforce(folder: &Path, client: &Client, environment: &Environment) -> Result<String, Failure> {
    let opened = open(folder)?;
    let text = opened
        .manifest_text()
        .map_err(|error| super::folder_failure(&error))?;
    let file = folder.join(MANIFEST);
    let learned = folder::with_learned(&text).ok_or_else(|| {
        let sentence = format!("cannot set seccomp in {}", file.display());
        Failure::of(Code::Failed, sentence)
            .with_fix("write `seccomp = \"learned\"` into its [sandbox] section and deploy it")
    })?;
    if learned != text {
        replace(&file, &learned)?;
    }
    redeploy(folder, client, environment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_sent_one_after_the_other_with_their_sizes() {
        let dir = tempfile::tempdir().unwrap();
        let files = [("a", "xy"), ("b", ""), ("c", "z")].map(|(name, text)| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        });
        let (sizes, body) = read_events(&files).unwrap();
        assert_eq!((sizes, body), (vec![2, 0, 1], b"xyz".to_vec()));
        assert!(read_events(&[dir.path().join("absent")]).is_err());
    }

    #[test]
    fn a_path_with_a_query_is_one_value_of_the_query() {
        assert_eq!(encoded("/a b?c=d&e#f"), "/a%20b%3Fc%3Dd%26e%23f");
    }

    #[test]
    fn a_link_in_the_place_of_the_file_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, file) = (dir.path().join("victim"), dir.path().join("seccomp.json"));
        std::fs::write(&victim, "as it was").unwrap();
        std::os::unix::fs::symlink(&victim, &file).unwrap();
        replace(&file, "new").unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "as it was");
        assert!(file.symlink_metadata().unwrap().is_file());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
