// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The base `minimal`: what a shell script, or a dynamically linked program of an ordinary language, needs to run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{BaseError, Tree, at, elf};

/// Where the host's programs are looked for.
const PROGRAM_DIRECTORIES: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// Where the loader looks for libraries without being told; the base keeps them where they were found.
const LIBRARY_DIRECTORIES: [&str; 7] = [
    #[cfg(target_arch = "x86_64")]
    "/lib/x86_64-linux-gnu",
    #[cfg(target_arch = "x86_64")]
    "/usr/lib/x86_64-linux-gnu",
    #[cfg(target_arch = "aarch64")]
    "/lib/aarch64-linux-gnu",
    #[cfg(target_arch = "aarch64")]
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
];

/// Programs that must be there, by Debian package.
const PROGRAMS: [(&str, &[&str]); 5] = [
    ("dash", &["sh"]),
    (
        "coreutils",
        &[
            "[",
            "arch",
            "b2sum",
            "base32",
            "base64",
            "basename",
            "basenc",
            "cat",
            "chmod",
            "cksum",
            "comm",
            "cp",
            "csplit",
            "cut",
            "date",
            "dd",
            "df",
            "dir",
            "dircolors",
            "dirname",
            "du",
            "echo",
            "env",
            "expand",
            "expr",
            "factor",
            "false",
            "fmt",
            "fold",
            "head",
            "id",
            "install",
            "join",
            "link",
            "ln",
            "ls",
            "md5sum",
            "mkdir",
            "mkfifo",
            "mktemp",
            "mv",
            "nice",
            "nl",
            "nohup",
            "nproc",
            "numfmt",
            "od",
            "paste",
            "pathchk",
            "pr",
            "printenv",
            "printf",
            "ptx",
            "pwd",
            "readlink",
            "realpath",
            "rm",
            "rmdir",
            "seq",
            "sha1sum",
            "sha224sum",
            "sha256sum",
            "sha384sum",
            "sha512sum",
            "shred",
            "shuf",
            "sleep",
            "sort",
            "split",
            "stat",
            "stdbuf",
            "sum",
            "tac",
            "tail",
            "tee",
            "test",
            "timeout",
            "touch",
            "tr",
            "true",
            "truncate",
            "tsort",
            "tty",
            "uname",
            "unexpand",
            "uniq",
            "unlink",
            "vdir",
            "wc",
            "whoami",
            "yes",
        ],
    ),
    ("grep", &["grep", "egrep", "fgrep"]),
    ("sed", &["sed"]),
    ("mawk", &["awk"]),
];

/// Programs that are taken where the host has them.
const PROGRAMS_IF_PRESENT: [&str; 13] = [
    "cmp", "diff", "find", "getopt", "gunzip", "gzip", "hostname", "rev", "tar", "which", "xargs",
    "zcat", "xxd",
];

/// Libraries that functions link with, though no program above does; taken where the host has them. Without libgcc_s no
/// dynamically linked Rust program starts, without libstdc++ no C++ one; glibc loads nss and the gconv of threads late.
const LIBRARIES_IF_PRESENT: [&str; 13] = [
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libnss_dns.so.2",
    "libnss_files.so.2",
    "libpthread.so.0",
    "libresolv.so.2",
    "librt.so.1",
    "libstdc++.so.6",
    "libutil.so.1",
    "libz.so.1",
    "libatomic.so.1",
];

const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const TIME_ZONES: &str = "/usr/share/zoneinfo";

/// Copies of the whole zone tree, with and without leap seconds: nobody names them, and they double its size.
const TIME_ZONES_LEFT_OUT: [&str; 2] = ["posix", "right"];

/// Deeper than `America/Argentina/Buenos_Aires` the zone tree does not go.
const TIME_ZONES_DEPTH_MAX: usize = 4;

/// Directories that are one with their namesake below /usr, as on Debian.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// The files of /etc that C libraries and programs read. The user is the one that functions run as.
const ETC: [(&str, &str); 7] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/:/bin/sh\n\
         function:x:1000:1000:function:/tmp:/bin/sh\n\
         nobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    (
        "etc/group",
        "root:x:0:\nfunction:x:1000:\nnogroup:x:65534:\n",
    ),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    ),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/resolv.conf", ""),
    ("etc/host.conf", "multi on\n"),
    (
        "etc/os-release",
        "ID=hearth-minimal\nNAME=\"Hearth minimal base\"\n",
    ),
];

/// Fills a tree that has its mount points already.
pub(super) fn fill(tree: &mut Tree<'_>, progress: &mut dyn FnMut(&str)) -> Result<(), BaseError> {
    for name in MERGED {
        tree.directory(&format!("usr/{name}"))?;
        tree.link(name, &format!("usr/{name}"))?;
    }
    for (path, content) in ETC {
        tree.text(path, content)?;
    }
    progress("copying the shell and its tools");
    let mut libraries = Libraries::default();
    for (package, programs) in PROGRAMS {
        for program in programs {
            let from = find_program(program).ok_or_else(|| BaseError::MissingProgram {
                program: (*program).into(),
                package,
            })?;
            copy_program(tree, program, &from, &mut libraries)?;
        }
    }
    for program in PROGRAMS_IF_PRESENT {
        if let Some(from) = find_program(program) {
            copy_program(tree, program, &from, &mut libraries)?;
        }
    }
    for library in LIBRARIES_IF_PRESENT {
        libraries.copy_if_present(tree, library)?;
    }
    copy_certificates(tree, progress)?;
    copy_time_zones(tree, progress)
}

fn find_program(name: &str) -> Option<PathBuf> {
    PROGRAM_DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file())
}

/// The file behind the name, under the name: `awk` may be a chain of links on the host.
fn copy_program(
    tree: &mut Tree<'_>,
    name: &str,
    from: &Path,
    libraries: &mut Libraries,
) -> Result<(), BaseError> {
    tree.copy(from, &format!("usr/bin/{name}"), super::PROGRAM_MODE)?;
    libraries.copy_needs(tree, from)
}

/// The libraries that were copied so far.
#[derive(Default)]
struct Libraries {
    copied: BTreeSet<String>,
}

impl Libraries {
    /// Copies what a program needs, and what that needs, and so on.
    fn copy_needs(&mut self, tree: &mut Tree<'_>, program: &Path) -> Result<(), BaseError> {
        let mut pending = vec![program.to_owned()];
        while let Some(path) = pending.pop() {
            let needs = elf::needs(&path)?.unwrap_or_default();
            if let Some(loader) = &needs.loader {
                let to = merged(loader);
                if !tree.has(&to) {
                    tree.copy(Path::new(loader), &to, super::PROGRAM_MODE)?;
                }
            }
            for library in needs.libraries {
                if !self.copied.insert(library.clone()) {
                    continue;
                }
                let from = find_library(&library).ok_or_else(|| BaseError::MissingLibrary {
                    library,
                    needed_by: path.clone(),
                })?;
                copy_library(tree, &from)?;
                pending.push(from);
            }
        }
        Ok(())
    }

    fn copy_if_present(&mut self, tree: &mut Tree<'_>, library: &str) -> Result<(), BaseError> {
        let Some(from) = find_library(library) else {
            return Ok(());
        };
        if self.copied.insert(library.into()) {
            copy_library(tree, &from)?;
        }
        self.copy_needs(tree, &from)
    }
}

fn copy_library(tree: &mut Tree<'_>, from: &Path) -> Result<(), BaseError> {
    let to = merged(&from.to_string_lossy());
    // The loader is a library too, and may have come first.
    if tree.has(&to) {
        return Ok(());
    }
    tree.copy(from, &to, super::PROGRAM_MODE)
}

fn find_library(name: &str) -> Option<PathBuf> {
    if name.starts_with('/') {
        return Some(PathBuf::from(name));
    }
    LIBRARY_DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file())
}

/// The place in the base of an absolute path of the host: `/lib/x` and `/usr/lib/x` are one there.
fn merged(path: &str) -> String {
    let path = path.trim_start_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    if MERGED.contains(&first) {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

fn copy_certificates(tree: &mut Tree<'_>, progress: &mut dyn FnMut(&str)) -> Result<(), BaseError> {
    if !Path::new(CERTIFICATES).is_file() {
        progress(
            "without CA certificates, the host has none (Debian: apt-get install ca-certificates)",
        );
        return Ok(());
    }
    let to = CERTIFICATES.trim_start_matches('/');
    tree.copy(Path::new(CERTIFICATES), to, super::FILE_MODE)?;
    // OpenSSL's own default name for the bundle.
    tree.link("etc/ssl/cert.pem", "certs/ca-certificates.crt")
}

fn copy_time_zones(tree: &mut Tree<'_>, progress: &mut dyn FnMut(&str)) -> Result<(), BaseError> {
    let root = Path::new(TIME_ZONES);
    if !root.is_dir() {
        progress("without time zones, the host has none (Debian: apt-get install tzdata)");
        return Ok(());
    }
    progress("copying time zones");
    let mut pending = vec![(root.to_owned(), 1)];
    while let Some((directory, depth)) = pending.pop() {
        for entry in fs::read_dir(&directory).map_err(at("list", &directory))? {
            let path = entry.map_err(at("list", &directory))?.path();
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
            if TIME_ZONES_LEFT_OUT.contains(&name.as_ref()) {
                continue;
            }
            let to = format!("{}/{name}", TIME_ZONES.trim_start_matches('/'));
            if path.is_dir() && !path.is_symlink() {
                if depth < TIME_ZONES_DEPTH_MAX {
                    pending.push((path, depth + 1));
                }
            } else if path.is_file() {
                // Aliases are links on the host, some absolute: each becomes a file of its own, a few hundred bytes.
                tree.copy(&path, &to, super::FILE_MODE)?;
            }
        }
    }
    Ok(())
}
