// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Bases: the file trees that native functions see as their root.
//!
//! * `static`: mount points and nothing else.
//! * `minimal`: C library, loader, POSIX shell and tools, copied once from the host's packages.
//!
//! Every file is a copy with an inode of its own, never a link to the host's: whoever manages to change a cached page of
//! a base file changes nothing that the host runs. Modes are set here, so no set-id bit and no file capability can come
//! along, and a finished base is walked once more to see that none did.
//!
//! ```text
//! bases/.making-NAME-PID/  ─ mount points, links, /etc, files ─ checked, flushed ─ rename(2) ─▶ bases/NAME/
//! ```

mod elf;
mod minimal;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use hearth_protocol::SmallName;

/// Where something is mounted when a sandbox is made or bound. `/scratch` is the parent of the mount, on purpose
/// (`landlock`).
const MOUNT_POINTS: [&str; 4] = ["proc", "dev", "function", "scratch/tmp"];

/// The writable places that programs expect all lead to the one scratch mount. (`/dev/shm` too; `/dev` is not the
/// base's.)
const LINKS: [(&str, &str); 2] = [("tmp", "scratch/tmp"), ("var/tmp", "../scratch/tmp")];

/// Writable by the owner, who is root and needs no such bit, because a sandbox with a writable root is shown the tree
/// as its user's. Everywhere else the mounts are read-only.
const FILE_MODE: u32 = 0o644;
const PROGRAM_MODE: u32 = 0o755;
const DIRECTORY_MODE: u32 = 0o755;

/// The bases that Hearth makes itself.
pub const BUILT_IN: [&str; 2] = ["static", "minimal"];

/// Why a base could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// Hearth makes no base of this name.
    #[error("cannot make base {name}: Hearth makes static and minimal only")]
    Unknown {
        /// The name.
        name: String,
    },
    /// A step on a path failed.
    #[error("cannot {step} {}", path.display())]
    Path {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host lacks a program that the base must have.
    #[error(
        "cannot find the program {program} on this host: install it (Debian: apt-get install {package})"
    )]
    MissingProgram {
        /// Its name.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A program needs a library that is nowhere.
    #[error("cannot find the library {library}, which {} needs", needed_by.display())]
    MissingLibrary {
        /// Its name as the program has it.
        library: String,
        /// The program or library that names it.
        needed_by: PathBuf,
    },
    /// A program of the host is not a readable ELF file.
    #[error("cannot read {} as a program: {problem}", path.display())]
    BadProgram {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Something in the finished base is not as it must be.
    #[error("cannot accept {} in a base: {problem}", path.display())]
    Unsafe {
        /// The entry.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Makes the base where it is missing and says where it is. `progress` is called with a line for each longer step.
///
/// # Errors
/// [`BaseError`]; nothing is left then but a hidden directory that the next sweep removes.
pub fn ensure(
    bases: &Path,
    name: &SmallName,
    progress: &mut dyn FnMut(&str),
) -> Result<PathBuf, BaseError> {
    let path = bases.join(name.as_str());
    if is_finished(&path) {
        return Ok(path);
    }
    if !BUILT_IN.contains(&name.as_str()) {
        return Err(BaseError::Unknown {
            name: name.to_string(),
        });
    }
    let making = bases.join(format!(".making-{name}-{}", std::process::id()));
    if making.exists() {
        crate::trees::delete_whole(&making).map_err(at("remove", &making))?;
    }
    let mut tree = Tree::new(&making)?;
    if name.as_str() == "minimal" {
        minimal::fill(&mut tree, progress)?;
    }
    finish(&making)?;
    if path.is_dir() {
        crate::trees::delete_whole(&path).map_err(at("replace", &path))?;
    }
    fs::rename(&making, &path).map_err(at("store", &path))?;
    File::open(bases)
        .and_then(|directory| directory.sync_all())
        .map_err(at("flush", bases))?;
    Ok(path)
}

/// Whether it is there with the modes of today; earlier versions made bases that nobody could write to, whoever it
/// belonged to.
fn is_finished(base: &Path) -> bool {
    fs::metadata(base).is_ok_and(|root| root.is_dir() && root.mode() & 0o7777 == DIRECTORY_MODE)
}

/// The bases that exist, by name.
///
/// # Errors
/// [`BaseError::Path`] where the directory cannot be listed.
pub fn list(bases: &Path) -> Result<Vec<SmallName>, BaseError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(bases).map_err(at("list", bases))? {
        let name = entry.map_err(at("list", bases))?.file_name();
        names.extend(name.to_str().and_then(|name| SmallName::new(name).ok()));
    }
    names.sort();
    Ok(names)
}

fn at<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> BaseError + use<'a> {
    move |source| BaseError::Path {
        step,
        path: path.to_owned(),
        source,
    }
}

/// A base in the making. Paths are relative to its root.
struct Tree<'a> {
    root: &'a Path,
}

impl<'a> Tree<'a> {
    /// The root with what every base has.
    fn new(root: &'a Path) -> Result<Self, BaseError> {
        let mut tree = Self { root };
        tree.directory("")?;
        for path in MOUNT_POINTS {
            tree.directory(path)?;
        }
        for (path, target) in LINKS {
            tree.link(path, target)?;
        }
        Ok(tree)
    }

    fn directory(&mut self, path: &str) -> Result<(), BaseError> {
        let path = self.root.join(path);
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(&path)
            .map_err(at("make directory", &path))
    }

    /// Relative targets only: an absolute one would mean something else while the base is looked at from outside.
    fn link(&mut self, path: &str, target: &str) -> Result<(), BaseError> {
        self.directory_above(path)?;
        let path = self.root.join(path);
        symlink(target, &path).map_err(at("link", &path))
    }

    /// A new file with this content.
    fn text(&mut self, path: &str, content: &str) -> Result<(), BaseError> {
        self.directory_above(path)?;
        let path = self.root.join(path);
        fs::write(&path, content).map_err(at("write", &path))?;
        set_mode(&path, FILE_MODE)
    }

    /// A copy of a file of the host, with a mode of ours.
    fn copy(&mut self, from: &Path, path: &str, mode: u32) -> Result<(), BaseError> {
        self.directory_above(path)?;
        let path = self.root.join(path);
        let mut source = File::open(from).map_err(at("open", from))?;
        let mut target = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(at("make", &path))?;
        io::copy(&mut source, &mut target).map_err(at("copy", from))?;
        set_mode(&path, mode)
    }

    fn has(&self, path: &str) -> bool {
        self.root.join(path).symlink_metadata().is_ok()
    }

    fn directory_above(&mut self, path: &str) -> Result<(), BaseError> {
        match path.rsplit_once('/') {
            Some((above, _)) => self.directory(above),
            None => Ok(()),
        }
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), BaseError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(at("set mode of", path))
}

/// Sets the directories' modes, checks every entry, and flushes.
fn finish(root: &Path) -> Result<(), BaseError> {
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        set_mode(&directory, DIRECTORY_MODE)?;
        for entry in fs::read_dir(&directory).map_err(at("list", &directory))? {
            let path = entry.map_err(at("list", &directory))?.path();
            let metadata = fs::symlink_metadata(&path).map_err(at("inspect", &path))?;
            if metadata.is_dir() {
                pending.push(path);
            } else {
                check_entry(root, &path, &metadata)?;
            }
        }
    }
    let directory = File::open(root).map_err(at("open", root))?;
    nix::unistd::syncfs(&directory).map_err(|errno| at("flush", root)(errno.into()))
}

fn check_entry(root: &Path, path: &Path, metadata: &fs::Metadata) -> Result<(), BaseError> {
    let bad = |problem| BaseError::Unsafe {
        path: path.to_owned(),
        problem,
    };
    if metadata.is_symlink() {
        let target = fs::read_link(path).map_err(at("read", path))?;
        let depth = path
            .strip_prefix(root)
            .map_or(0, |path| path.iter().count())
            - 1;
        let climbs = target.iter().filter(|part| *part == "..").count();
        if target.is_absolute() || depth < climbs {
            return Err(bad("it links to the outside"));
        }
        return Ok(());
    }
    if !metadata.is_file() {
        return Err(bad("it is neither file, directory nor link"));
    }
    if metadata.nlink() != 1 {
        return Err(bad("it has another name"));
    }
    match metadata.mode() & 0o7777 {
        FILE_MODE | PROGRAM_MODE => Ok(()),
        _ => Err(bad("others could write it, or it is closed or set-id")),
    }
}

#[cfg(test)]
mod tests;
