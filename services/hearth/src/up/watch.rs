// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Notices changes in function folders.
//!
//! Only a hint comes from the file system's events; whether a folder has really changed is decided by its state (names,
//! sizes, times), so that a build which writes into its own folder does not start itself again.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc::Sender;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::Happening;
use crate::exit::{Code, Failure};
use crate::terminal;

/// How deep a folder is looked into.
const DEPTH_MAX: usize = 16;

/// How many files of a folder are looked at.
const FILES_MAX: usize = 20_000;

/// Build outputs: large, and never a change of the function itself.
const IGNORED: [&str; 2] = ["target", "node_modules"];

/// The watch over one directory of function folders.
pub(super) struct Watch {
    watcher: RecommendedWatcher,
    /// The state of each folder when it was deployed last.
    states: HashMap<PathBuf, u64>,
}

impl Watch {
    /// Watches the directory itself for new folders; folders are added by [`Watch::follow`].
    pub(super) fn start(dir: &Path, happenings: Sender<Happening>) -> Result<Self, Failure> {
        let failed = |error: notify::Error| {
            let text = format!("cannot watch {} for changes: {error}", dir.display());
            Failure::of(Code::CannotStart, text)
        };
        let root = dir.to_owned();
        let report = move |event: notify::Result<Event>| {
            for folder in changed_folders(&root, event) {
                // Nobody listens any more only when `up` is ending.
                drop(happenings.send(Happening::Changed(folder)));
            }
        };
        let mut watcher = notify::recommended_watcher(report).map_err(failed)?;
        watcher
            .watch(dir, RecursiveMode::NonRecursive)
            .map_err(failed)?;
        Ok(Self {
            watcher,
            states: HashMap::new(),
        })
    }

    /// Watches a folder's content from now on.
    pub(super) fn follow(&mut self, folder: &Path) {
        if self.states.contains_key(folder) {
            return;
        }
        if let Err(error) = self.watcher.watch(folder, RecursiveMode::Recursive) {
            let folder = folder.display();
            terminal::note(&format!("{folder}: changes will not be seen: {error}"));
        }
    }

    /// The folder as it is now is what is deployed.
    pub(super) fn settled(&mut self, folder: &Path) {
        self.states.insert(folder.to_owned(), state(folder));
    }

    /// Whether the folder is not as it was when it was deployed last.
    pub(super) fn has_changed(&self, folder: &Path) -> bool {
        self.states.get(folder) != Some(&state(folder))
    }
}

/// The folders that an event is about.
fn changed_folders(root: &Path, event: notify::Result<Event>) -> Vec<PathBuf> {
    let Ok(event) = event else {
        return Vec::new();
    };
    match event.kind {
        EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) => {}
        // Reading a file is no change, and building reads all of them.
        EventKind::Any | EventKind::Access(_) | EventKind::Other => return Vec::new(),
    }
    let folder = |path: &PathBuf| match path.strip_prefix(root).ok()?.components().next()? {
        Component::Normal(name) => Some(root.join(name)),
        _ => None,
    };
    event.paths.iter().filter_map(folder).collect()
}

/// A hash of the names, sizes and times of everything in a folder.
fn state(folder: &Path) -> u64 {
    let mut files = Vec::new();
    collect(folder, DEPTH_MAX, &mut files);
    files.sort();
    let mut hasher = DefaultHasher::new();
    for path in &files {
        path.hash(&mut hasher);
        if let Ok(metadata) = path.symlink_metadata() {
            metadata.len().hash(&mut hasher);
            metadata.modified().ok().hash(&mut hasher);
        }
    }
    hasher.finish()
}

fn collect(dir: &Path, depth_left: usize, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // Editors keep their own files beside the edited one, hidden.
        if name.starts_with('.') || name.ends_with('~') || IGNORED.contains(&name.as_ref()) {
            continue;
        }
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir && 0 < depth_left {
            collect(&entry.path(), depth_left - 1, files);
        } else if files.len() < FILES_MAX {
            files.push(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    /// Generous: the machine may be busy; the event itself comes within a millisecond.
    const EVENT_MAX: Duration = Duration::from_secs(20);

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("f");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("a.c"), "one").unwrap();
        (dir, folder)
    }

    #[test]
    fn an_edit_is_noticed_and_named_by_its_folder() {
        let (dir, folder) = folder();
        let (sender, happenings) = channel();
        let mut watch = Watch::start(dir.path(), sender).unwrap();
        watch.follow(&folder);
        watch.settled(&folder);
        std::fs::write(folder.join("a.c"), "longer").unwrap();
        match happenings.recv_timeout(EVENT_MAX).unwrap() {
            Happening::Changed(path) => assert_eq!(path, folder),
            other => panic!("{other:?}"),
        }
        assert!(watch.has_changed(&folder));
    }

    #[test]
    fn what_was_there_when_it_settled_is_no_change() {
        let (dir, folder) = folder();
        let (sender, _happenings) = channel();
        let mut watch = Watch::start(dir.path(), sender).unwrap();
        assert!(watch.has_changed(&folder));
        std::fs::write(folder.join("built"), "output").unwrap();
        watch.settled(&folder);
        assert!(!watch.has_changed(&folder));
    }

    #[test]
    fn build_outputs_and_editors_files_are_no_change() {
        let (_dir, folder) = folder();
        let before = state(&folder);
        std::fs::create_dir(folder.join("target")).unwrap();
        std::fs::write(folder.join("target/x"), "x").unwrap();
        std::fs::write(folder.join(".a.c.swp"), "x").unwrap();
        std::fs::write(folder.join("a.c~"), "x").unwrap();
        assert_eq!(state(&folder), before);
    }
}
