// SPDX-License-Identifier: Apache-2.0 OR MIT
use std::time::{Duration, Instant};

use super::*;

fn name(text: &str) -> SmallName {
    SmallName::new(text).unwrap()
}

fn make(bases: &Path, base: &str) -> PathBuf {
    ensure(bases, &name(base), &mut |line| println!("{line}")).unwrap()
}

#[test]
fn a_base_is_made_once_and_found_again() {
    let bases = tempfile::tempdir().unwrap();
    let first = make(bases.path(), "static");
    let inode = fs::metadata(&first).unwrap().ino();
    let again = make(bases.path(), "static");
    assert_eq!(
        (fs::metadata(&again).unwrap().ino(), &again),
        (inode, &first)
    );
    assert_eq!(list(bases.path()).unwrap(), [name("static")]);
    crate::trees::delete_whole(&first).unwrap();
}

#[test]
fn static_has_mount_points_and_links_and_nothing_else() {
    let bases = tempfile::tempdir().unwrap();
    let root = make(bases.path(), "static");
    let mut found = Vec::new();
    let mut pending = vec![root.clone()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            found.push(
                path.strip_prefix(&root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
            );
            if path.is_dir() && !path.is_symlink() {
                pending.push(path);
            }
        }
    }
    found.sort();
    let expected = [
        "dev",
        "function",
        "proc",
        "scratch",
        "scratch/tmp",
        "tmp",
        "var",
        "var/tmp",
    ];
    assert_eq!(found, expected);
    assert_eq!(
        fs::canonicalize(root.join("var/tmp")).unwrap(),
        root.join("scratch/tmp")
    );
}

/// The limit for making a base on a busy machine; alone it takes well under a second.
const MAKING_MAX: Duration = Duration::from_secs(3);

#[test]
fn minimal_is_quick_to_make_and_its_shell_and_tools_run_inside_it() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: chroot into the base needs root");
        return;
    }
    let bases = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let root = make(bases.path(), "minimal");
    let took = began.elapsed();
    println!("made in {took:?}");
    assert!(took < MAKING_MAX, "{took:?}");
    let script = "printf 'b\\na\\nb\\n' | sort | uniq -c | awk '{print $2 $1}' | tr '\\n' ' ' | sed 's/ $//' \
        && echo && id -un 1000 && TZ=America/New_York date -d @0 +%H && grep -c BEGIN /etc/ssl/certs/ca-certificates.crt";
    let output = std::process::Command::new("chroot")
        .args([
            root.as_os_str(),
            "/bin/sh".as_ref(),
            "-c".as_ref(),
            script.as_ref(),
        ])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().collect();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(lines.starts_with(&["a1 b2", "function"]), "{text} {errors}");
    if Path::new("/usr/share/zoneinfo/America/New_York").exists() {
        assert_eq!(lines[2], "19");
    }
    every_program_starts(&root);
    crate::trees::delete_whole(&root).unwrap();
}

/// Each with its libraries: the loader is asked to resolve them without running the program.
fn every_program_starts(root: &Path) {
    for entry in fs::read_dir(root.join("usr/bin")).unwrap() {
        let path = entry.unwrap().path();
        let Some(elf::Needs {
            loader: Some(loader),
            ..
        }) = elf::needs(&path).unwrap()
        else {
            continue;
        };
        let inside = Path::new("/usr/bin").join(path.file_name().unwrap());
        let output = std::process::Command::new("chroot")
            .args([
                root.as_os_str(),
                loader.as_ref(),
                "--list".as_ref(),
                inside.as_os_str(),
            ])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && !text.contains("not found"),
            "{inside:?}: {text}"
        );
    }
}

#[test]
fn no_file_of_a_base_is_the_host_s_own_or_set_id() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let mut tree = Tree::new(root).unwrap();
    let host = Path::new("/usr/bin/env");
    tree.copy(host, "usr/bin/env", PROGRAM_MODE).unwrap();
    let (copy, original) = (root.join("usr/bin/env"), fs::metadata(host).unwrap());
    assert_ne!(fs::metadata(&copy).unwrap().ino(), original.ino());
    finish(root).unwrap();

    set_mode(&copy, 0o4555).unwrap();
    assert!(matches!(finish(root), Err(BaseError::Unsafe { .. })));
    set_mode(&copy, PROGRAM_MODE).unwrap();
    for target in ["/etc/passwd", "../../../etc/passwd"] {
        let link = root.join("usr/bin/link");
        symlink(target, &link).unwrap();
        assert!(
            matches!(finish(root), Err(BaseError::Unsafe { .. })),
            "{target}"
        );
        fs::remove_file(link).unwrap();
    }
    fs::hard_link(&copy, root.join("usr/bin/second")).unwrap();
    assert!(matches!(finish(root), Err(BaseError::Unsafe { .. })));
}

#[test]
fn a_base_that_hearth_does_not_make_is_refused() {
    let bases = tempfile::tempdir().unwrap();
    let outcome = ensure(bases.path(), &name("python"), &mut |_| {});
    assert!(matches!(outcome, Err(BaseError::Unknown { .. })));
}
