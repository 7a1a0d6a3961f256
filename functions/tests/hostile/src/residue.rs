// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `leave-marker` leaves something in every place that could outlast an invocation, `find-marker` looks for it there.
//! Both print a JSON object of places: `left` or why not, `absent` or `found`.

#[cfg_attr(not(target_os = "linux"), path = "residue/module.rs")]
#[cfg_attr(target_os = "linux", path = "residue/native.rs")]
mod platform;

use crate::json::Json;
use crate::stdio::print;
use crate::{Mode, Outcome};

pub(crate) const MODES: &[Mode] = &[("leave-marker", "", leave), ("find-marker", "", find)];

const MARKER: &str = "hearth-marker";

fn leave(_: &[&str]) -> Outcome {
    #[cfg(target_os = "linux")]
    crate::lifetime::guard()?;
    let mut places = files(leave_file);
    places.extend(platform::leave());
    print(&format!("{}\n", Json::object(places)));
    Ok(0)
}

fn find(_: &[&str]) -> Outcome {
    let mut places = files(find_file);
    let set = std::env::var_os("HEARTH_MARKER").is_some();
    places.push(("environment".to_owned(), Json::text(found_if(set))));
    places.extend(platform::find());
    print(&format!("{}\n", Json::object(places)));
    Ok(0)
}

/// Where a file could stay: the home directory, the writable places, those that should not be writable, and the working directory.
fn files(look: fn(&str) -> String) -> Vec<(String, Json)> {
    [
        "/tmp",
        "/var/tmp",
        "/dev/shm",
        "/scratch",
        "/scratch/tmp",
        "/function",
        "/",
        ".",
    ]
    .into_iter()
    .map(|directory| {
        (
            format!("file in {directory}"),
            Json::text(look(&format!("{directory}/{MARKER}"))),
        )
    })
    .chain([(
        "file in the home directory".to_owned(),
        Json::text(look(&format!("{}/{MARKER}-home", home()))),
    )])
    .collect()
}

fn home() -> String {
    std::env::var("HOME").unwrap_or_else(|_| "/".to_owned())
}

fn leave_file(path: &str) -> String {
    match std::fs::write(path, MARKER) {
        Ok(()) => "left".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn find_file(path: &str) -> String {
    found_if(std::fs::symlink_metadata(path).is_ok())
}

fn found_if(found: bool) -> String {
    (if found { "found" } else { "absent" }).to_owned()
}
