// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One running Hearth: its data directory, its name, its host ids, and the sweep of what an earlier run left.
//!
//! ```text
//! DATA/version   schema of everything below; a newer one is refused
//! DATA/lock      flock(2) for the monitor's life; holds its pid as text
//! DATA/instance  eight hexadecimal digits, made once: part of every name that Hearth gives to the kernel
//! DATA/ids       the first host id that the last run used, so that the next one asks for the same
//! DATA/key       the management key (written by the executable)
//! DATA/images/ trees/ bases/   root's, read-only for everybody else
//! DATA/nothing/  empty for ever: the second layer of mounts that need two
//! DATA/state/    the gateway's own
//! ```
//!
//! Several instances share a host by never touching a name that does not carry their own id.

mod ids;
mod sweep;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

pub(crate) use ids::BLOCK_IDS;
pub use ids::{IdBlock, IdClaim};
pub use sweep::{Swept, sweep};

/// The layout that this build reads and writes.
const SCHEMA_VERSION: u32 = 1;

/// Hexadecimal digits of an instance id: 32 bits, enough for the instances of one host.
const INSTANCE_LEN: usize = 8;

/// No file that `read_small` reads is longer, in bytes.
const SMALL_FILE_BYTES_MAX: u64 = 64;

/// Everything that may be in a data directory whose version file is not written yet.
const BEFORE_VERSION: [&str; 2] = ["lock", ".version.new"];

/// Why the data directory or the ids cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
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
    /// Somebody else could change what root trusts.
    #[error("cannot use {} as data directory: {problem}", path.display())]
    Unsafe {
        /// The directory, or the one above it that is unsafe.
        path: PathBuf,
        /// What is wrong and how to mend it.
        problem: String,
    },
    /// Another Hearth runs on this directory.
    #[error("cannot lock {}: process {holder} runs Hearth on it", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Its pid as it wrote it; `unknown` where it did not get that far.
        holder: String,
    },
    /// Written by a newer Hearth.
    #[error("cannot read {}: its schema is version {found}, this build knows {SCHEMA_VERSION}", path.display())]
    TooNew {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A file's content is not what Hearth writes there.
    #[error("cannot make sense of {}: {content:?}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Its content.
        content: String,
    },
    /// No block of host ids is free.
    #[error("cannot find {count} free host user ids: {problem}")]
    NoIds {
        /// How many are needed.
        count: u32,
        /// Why.
        problem: String,
    },
}

/// A data directory, locked for as long as this value lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    instance: String,
    _lock: Flock<File>,
}

impl DataDir {
    /// Makes the directory where it is missing, checks that nobody but this user can change it, and locks it.
    ///
    /// # Errors
    /// [`InstanceError`]; the directory is as it was but for an empty lock file.
    pub fn open(path: &Path) -> Result<Self, InstanceError> {
        make_directory(path, 0o755)?;
        let path = refuse_unsafe(path)?;
        let lock = lock(&path)?;
        check_version(&path)?;
        let instance = instance_id(&path)?;
        for name in ["images", "trees", "bases", crate::layers::NOTHING] {
            make_directory(&path.join(name), 0o755)?;
        }
        // Closed to others: invocation history and logs are the tenants'.
        make_directory(&path.join("state"), 0o700)?;
        Ok(Self {
            path,
            instance,
            _lock: lock,
        })
    }

    /// The directory, absolute and without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The instance's id.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Where the images of Hearth's own programs are.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// Where content-addressed function files are.
    #[must_use]
    pub fn trees(&self) -> PathBuf {
        self.path.join("trees")
    }

    /// Where bases are.
    #[must_use]
    pub fn bases(&self) -> PathBuf {
        self.path.join("bases")
    }

    /// The gateway's directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    /// The management key's file.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.path.join("key")
    }

    /// Claims a block of host ids, the one of the last run where it is still free, and makes its first id the owner
    /// of the state directory.
    ///
    /// # Errors
    /// [`InstanceError::NoIds`], or a step on the state directory.
    pub fn claim_ids(&self) -> Result<IdClaim, InstanceError> {
        let file = self.path.join("ids");
        let preferred = match read_small(&file)? {
            None => None,
            Some(content) => match content.parse() {
                Ok(first) => Some(first),
                Err(_not_a_number) => {
                    return Err(InstanceError::Damaged {
                        path: file,
                        content,
                    });
                }
            },
        };
        let claim = ids::claim(&self.instance, preferred)?;
        if preferred != Some(claim.block.first) {
            write_small(&file, &claim.block.first.to_string())?;
        }
        ids::give(&self.state(), claim.block.gateway())?;
        Ok(claim)
    }

    /// Takes the state directory back from the gateway, which has ended: an ordinary user could not remove what belongs to
    /// one of its other ids.
    ///
    /// # Errors
    /// A step on the state directory.
    pub fn take_back(&self) -> Result<(), InstanceError> {
        ids::give(&self.state(), 0)
    }

    /// Kills and removes what an earlier run of this instance left.
    ///
    /// # Errors
    /// [`InstanceError::Path`] for the first thing that could not be removed.
    pub fn sweep(&self) -> Result<Swept, InstanceError> {
        sweep(&self.path, &self.instance)
    }

    /// Kills and removes what a spawner of this run left: processes and cgroups, no files.
    ///
    /// # Errors
    /// [`InstanceError::Path`] for the first thing that could not be removed.
    pub fn sweep_processes(&self) -> Result<Swept, InstanceError> {
        sweep::sweep_processes(&self.instance)
    }
}

fn at<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> InstanceError + use<'a> {
    move |source| InstanceError::Path {
        step,
        path: path.to_owned(),
        source,
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), InstanceError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(at("make directory", path))?;
    // The umask may have taken bits away that other roles need for passing through.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at("set mode of", path))
}

/// Root acts on paths below this directory: nobody else may be able to exchange any part of them.
fn refuse_unsafe(path: &Path) -> Result<PathBuf, InstanceError> {
    let bad = |path: &Path, problem: String| InstanceError::Unsafe {
        path: path.to_owned(),
        problem,
    };
    let metadata = fs::symlink_metadata(path).map_err(at("inspect", path))?;
    if metadata.is_symlink() {
        return Err(bad(path, "it is a symbolic link; name its target".into()));
    }
    if metadata.uid() != geteuid().as_raw() {
        let problem = format!("it belongs to user {}", metadata.uid());
        return Err(bad(path, problem));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(bad(path, "others may write in it (chmod go-w)".into()));
    }
    let real = fs::canonicalize(path).map_err(at("resolve", path))?;
    for above in real.ancestors().skip(1) {
        let metadata = fs::metadata(above).map_err(at("inspect", above))?;
        let trusted = [0, geteuid().as_raw()].contains(&metadata.uid());
        // In a sticky directory (/tmp) others can add names, but not exchange ours.
        let exchangeable = metadata.mode() & 0o022 != 0 && metadata.mode() & 0o1000 == 0;
        if !trusted || exchangeable {
            let problem = "others may exchange what is in it (chmod go-w, or choose another)";
            return Err(bad(above, problem.into()));
        }
    }
    Ok(real)
}

fn lock(path: &Path) -> Result<Flock<File>, InstanceError> {
    let file_path = path.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&file_path)
        .map_err(at("open", &file_path))?;
    let mut holder = String::new();
    // What is in the file matters only when the lock is refused; a file of something else is "unknown" then.
    if file.read_to_string(&mut holder).is_err() || holder.is_empty() {
        holder = "unknown".into();
    }
    let mut locked = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(
        |(_, errno): (File, Errno)| match errno {
            Errno::EWOULDBLOCK => InstanceError::Locked {
                path: path.to_owned(),
                holder: holder.trim().to_owned(),
            },
            other => at("lock", &file_path)(other.into()),
        },
    )?;
    locked
        .set_len(0)
        .and_then(|()| io::Seek::rewind(&mut *locked))
        .and_then(|()| writeln!(locked, "{}", std::process::id()))
        .map_err(at("write", &file_path))?;
    Ok(locked)
}

fn check_version(path: &Path) -> Result<(), InstanceError> {
    let file = path.join("version");
    let Some(text) = read_small(&file)? else {
        for entry in fs::read_dir(path).map_err(at("list", path))? {
            let name = entry.map_err(at("list", path))?.file_name();
            if !BEFORE_VERSION.iter().any(|known| name == *known) {
                return Err(InstanceError::Unsafe {
                    path: path.to_owned(),
                    problem: "it holds other files and was not made by Hearth".into(),
                });
            }
        }
        return write_small(&file, &SCHEMA_VERSION.to_string());
    };
    match text.parse() {
        Ok(SCHEMA_VERSION) => Ok(()),
        Ok(found) if SCHEMA_VERSION < found => Err(InstanceError::TooNew {
            path: path.to_owned(),
            found,
        }),
        _ => Err(InstanceError::Damaged {
            path: file,
            content: text,
        }),
    }
}

fn instance_id(path: &Path) -> Result<String, InstanceError> {
    let file = path.join("instance");
    if let Some(id) = read_small(&file)? {
        return if is_instance_id(&id) {
            Ok(id)
        } else {
            Err(InstanceError::Damaged {
                path: file,
                content: id,
            })
        };
    }
    let mut bytes = [0; INSTANCE_LEN / 2];
    let random = Path::new("/dev/urandom");
    File::open(random)
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(at("read", random))?;
    let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    write_small(&file, &id)?;
    Ok(id)
}

/// The id becomes part of cgroup and directory names, so nothing else may come out of the file.
fn is_instance_id(text: &str) -> bool {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == INSTANCE_LEN && text.bytes().all(is_hex)
}

/// A small file's text without the line's end; None where there is no such file.
fn read_small(path: &Path) -> Result<Option<String>, InstanceError> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at("open", path)(error)),
    };
    let mut text = String::new();
    file.take(SMALL_FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(at("read", path))?;
    Ok(Some(text.trim_end().to_owned()))
}

/// Whole or not at all, also after a power cut: written beside, flushed, renamed, and the directory flushed.
fn write_small(path: &Path, text: &str) -> Result<(), InstanceError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (new, directory) = (path.with_file_name(format!(".{name}.new")), path.parent());
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&new)
        .map_err(at("make", &new))?;
    writeln!(file, "{text}")
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&new, path))
        .map_err(at("write", path))?;
    match directory {
        None => Ok(()),
        Some(directory) => File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(at("flush", directory)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_second_hearth_on_the_same_directory_is_refused_and_told_who_holds_it() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        let first = DataDir::open(&path).unwrap();
        let id = first.instance().to_owned();
        match DataDir::open(&path) {
            Err(InstanceError::Locked { holder, .. }) => {
                assert_eq!(holder, std::process::id().to_string());
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        assert_eq!(DataDir::open(&path).unwrap().instance(), id);
    }

    #[test]
    fn a_directory_that_others_can_change_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        drop(DataDir::open(&path).unwrap());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o775)).unwrap();
        assert!(matches!(
            DataDir::open(&path),
            Err(InstanceError::Unsafe { .. })
        ));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            DataDir::open(&path),
            Err(InstanceError::Unsafe { .. })
        ));
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let link = parent.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(
            DataDir::open(&link),
            Err(InstanceError::Unsafe { .. })
        ));
    }

    #[test]
    fn a_directory_of_something_else_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("letter.txt"), "x").unwrap();
        assert!(matches!(
            DataDir::open(parent.path()),
            Err(InstanceError::Unsafe { .. })
        ));
    }

    #[test]
    fn a_newer_schema_and_a_damaged_instance_id_are_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        drop(DataDir::open(&path).unwrap());
        fs::write(path.join("version"), "2\n").unwrap();
        assert!(matches!(
            DataDir::open(&path),
            Err(InstanceError::TooNew { found: 2, .. })
        ));
        fs::write(path.join("version"), "1\n").unwrap();
        fs::write(path.join("instance"), "../../x\n").unwrap();
        assert!(matches!(
            DataDir::open(&path),
            Err(InstanceError::Damaged { .. })
        ));
    }
}
