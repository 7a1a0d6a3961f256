// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What no function may change, by content: files of the host, Hearth's own executable and images, and the bases; and the
//! kernel's settings. Files are read twice: through the page cache, where the attacks on files that can only be read leave
//! their trace, and past it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::instance::{HEARTH, Instance};
use crate::invariants::files_below;

/// Files of the host that attacks are after first.
const HOST_FILES: [&str; 4] = ["/etc/passwd", "/etc/shadow", "/etc/hosts", "/bin/sh"];

/// Settings under /proc/sys/kernel that change by themselves.
const RESTLESS_SETTINGS: [&str; 3] = ["/random/", "/ns_last_pid", "/pty/nr"];

/// How the kernel must be asked to read past its cache: whole blocks, into memory that begins at one.
const BLOCK_BYTES: usize = 4096;

/// One read.
const READ_BYTES: usize = 1 << 20;

/// A file's content, by hash: through the cache, and past it.
pub(crate) type Content = (u64, u64);

/// Every file that is watched.
pub(crate) fn files(instance: &Instance) -> BTreeMap<PathBuf, Content> {
    let data = instance.home.data();
    let of_hearth = ["images", "bases"].map(|directory| files_below(&data.join(directory)));
    let of_host = HOST_FILES.map(PathBuf::from).into_iter();
    let both = of_host
        .chain(of_hearth.into_iter().flatten())
        .filter(|path| path.is_file())
        .map(|path| (content(&path), path));
    let mut files: BTreeMap<PathBuf, Content> =
        both.map(|(content, path)| (path, content)).collect();
    // A debug build's executable is too large to be read from the disk twice per attack: [`uncached`] does that once.
    files.insert(PathBuf::from(HEARTH), (cached(Path::new(HEARTH)), 0));
    files
}

/// Every setting of the kernel that can be read.
pub(crate) fn settings() -> BTreeMap<PathBuf, String> {
    let mut settings = BTreeMap::new();
    for path in files_below(Path::new("/proc/sys/kernel")) {
        let name = path.to_string_lossy();
        if RESTLESS_SETTINGS.iter().any(|part| name.contains(part)) {
            continue;
        }
        // Some can only be written.
        if let Ok(text) = fs::read_to_string(&path) {
            settings.insert(path, text);
        }
    }
    settings
}

fn content(path: &Path) -> Content {
    (cached(path), uncached(path))
}

/// What a reader sees.
pub(crate) fn cached(path: &Path) -> u64 {
    opened(path, 0)
        .and_then(hash)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What is on the disk. Where the file system cannot read past its cache, the cache is asked to forget the file first.
pub(crate) fn uncached(path: &Path) -> u64 {
    let direct = opened(path, nix::libc::O_DIRECT).and_then(hash);
    let content = direct.or_else(|_| {
        let file = opened(path, 0)?;
        file.sync_all()?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        hash(file)
    });
    content.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn opened(path: &Path, flags: i32) -> io::Result<File> {
    File::options().read(true).custom_flags(flags).open(path)
}

fn hash(mut file: File) -> io::Result<u64> {
    let mut room = vec![0_u8; READ_BYTES + BLOCK_BYTES];
    let begin = room.as_ptr().align_offset(BLOCK_BYTES);
    let mut hasher = DefaultHasher::new();
    loop {
        let count = file.read(&mut room[begin..begin + READ_BYTES])?;
        if count == 0 {
            return Ok(hasher.finish());
        }
        hasher.write(&room[begin..begin + count]);
    }
}
