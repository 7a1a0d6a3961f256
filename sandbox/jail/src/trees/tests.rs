// SPDX-License-Identifier: Apache-2.0 OR MIT
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use hearth_protocol::spawner::{TREE_BYTES_MAX, TREE_CHUNK_BYTES_MAX, TREE_FILES_MAX};

use super::*;

struct Fixture {
    _directory: tempfile::TempDir,
    store: Store,
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new(directory.path().to_owned());
    Fixture {
        _directory: directory,
        store,
    }
}

fn source(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

fn whole<'a>(path: &'a str, content: &[u8]) -> Chunk<'a> {
    Chunk {
        path,
        executable: false,
        offset: 0,
        bytes: content.len() as u64,
    }
}

/// Uploads one chunk and says how the commit ended.
fn upload(
    store: &mut Store,
    chunk: Chunk<'_>,
    source: BorrowedFd<'_>,
) -> Result<TreeId, TreeError> {
    let upload = store.begin()?;
    store.chunk(upload, chunk, source);
    store.commit(upload)
}

fn hidden(store: &Store) -> usize {
    let entries = fs::read_dir(&store.directory).unwrap();
    let is_hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
    entries
        .filter(|entry| is_hidden(&entry.as_ref().unwrap().file_name()))
        .count()
}

#[test]
fn the_same_content_has_the_same_id_however_it_came() {
    let Fixture {
        mut store,
        _directory,
    } = fixture();
    let content: Vec<u8> = (0..300_000_u32).map(|i| i.to_le_bytes()[0]).collect();
    let file = source(&content);
    let upload = store.begin().unwrap();
    for (offset, bytes) in [(0, 1), (1, 131_072), (131_073, 168_927)] {
        let chunk = Chunk {
            path: "a/b/data",
            executable: true,
            offset,
            bytes,
        };
        store.chunk(upload, chunk, file.as_fd());
    }
    store.chunk(upload, whole("z", b"z"), source(b"z").as_fd());
    let first = store.commit(upload).unwrap();
    let second = store
        .install(&[
            NewFile {
                path: "z",
                executable: false,
                content: b"z",
            },
            NewFile {
                path: "a/b/data",
                executable: true,
                content: &content,
            },
        ])
        .unwrap();
    assert_eq!(first, second);
    store.verify(&first).unwrap();
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&first));
    assert_eq!(hidden(&store), 0);
    let root = store.path(&first);
    assert_eq!(fs::read(root.join("a/b/data")).unwrap(), content);
    for (path, mode) in [
        ("", 0o555),
        ("a/b", 0o555),
        ("a/b/data", 0o555),
        ("z", 0o444),
    ] {
        assert_eq!(
            fs::metadata(root.join(path)).unwrap().mode() & 0o7777,
            mode,
            "{path}"
        );
    }
}

#[test]
fn mode_path_and_content_are_all_part_of_the_id() {
    let Fixture {
        mut store,
        _directory,
    } = fixture();
    let mut ids = std::collections::BTreeSet::new();
    for (path, executable, content) in [
        ("a", false, &b"x"[..]),
        ("a", true, b"x"),
        ("b", false, b"x"),
        ("a", false, b"y"),
        ("a", false, b""),
    ] {
        ids.insert(
            store
                .install(&[NewFile {
                    path,
                    executable,
                    content,
                }])
                .unwrap(),
        );
    }
    assert_eq!(ids.len(), 5);
}

#[test]
fn a_path_that_could_leave_the_tree_is_refused() {
    let Fixture {
        mut store,
        _directory,
    } = fixture();
    let long = "a/".repeat(600) + "a";
    let long_part = "a".repeat(256);
    for path in [
        "", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/.", "./a", "a\0b", "a\nb",
        "a\\b", &long, &long_part,
    ] {
        let outcome = upload(&mut store, whole(path, b"x"), source(b"x").as_fd());
        assert!(
            matches!(outcome, Err(TreeError::BadPath { .. })),
            "{path:?}"
        );
    }
    assert_eq!(hidden(&store), 0);
}

#[test]
fn a_file_is_written_in_order_once_and_never_as_a_directory_too() {
    let Fixture {
        mut store,
        _directory,
    } = fixture();
    for second in [
        Chunk {
            path: "a",
            executable: false,
            offset: 0,
            bytes: 1,
        },
        Chunk {
            path: "a",
            executable: false,
            offset: 2,
            bytes: 1,
        },
        Chunk {
            path: "a",
            executable: true,
            offset: 1,
            bytes: 1,
        },
        Chunk {
            path: "b",
            executable: false,
            offset: 1,
            bytes: 1,
        },
        Chunk {
            path: "a/b",
            executable: false,
            offset: 0,
            bytes: 1,
        },
    ] {
        let upload = store.begin().unwrap();
        store.chunk(upload, whole("a", b"x"), source(b"xyz").as_fd());
        store.chunk(upload, second, source(b"xyz").as_fd());
        assert!(store.commit(upload).is_err(), "{second:?}");
    }
    assert!(store.list().unwrap().is_empty());
    assert_eq!(hidden(&store), 0);
}

#[test]
fn a_source_that_is_short_or_not_a_file_is_refused_and_never_waited_for() {
    let Fixture {
        mut store,
        _directory,
    } = fixture();
    let short = upload(&mut store, whole("a", b"xyz"), source(b"x").as_fd());
    assert!(matches!(short, Err(TreeError::BadSource { .. })));
    let (read, _write) = nix::unistd::pipe().unwrap();
    let pipe = upload(&mut store, whole("a", b"x"), read.as_fd());
    assert!(matches!(pipe, Err(TreeError::BadSource { .. })));
    let zero = File::open("/dev/zero").unwrap();
    let device = upload(&mut store, whole("a", b"x"), zero.as_fd());
    assert!(matches!(device, Err(TreeError::BadSource { .. })));
}

#[test]
fn every_limit_of_an_upload_is_hit_and_named() {
    let Fixture {
        mut store,
        _directory,
    } = fixture();
    let big = Chunk {
        path: "a",
        executable: false,
        offset: 0,
        bytes: TREE_CHUNK_BYTES_MAX + 1,
    };
    let outcome = upload(&mut store, big, source(b"x").as_fd());
    assert!(matches!(outcome, Err(TreeError::Limit { .. })));

    let sparse = tempfile::tempfile().unwrap();
    sparse.set_len(TREE_BYTES_MAX + 1).unwrap();
    let begun = store.begin().unwrap();
    store.uploads.get_mut(&begun).unwrap().bytes = TREE_BYTES_MAX - 1;
    let two = Chunk {
        path: "a",
        executable: false,
        offset: 0,
        bytes: 2,
    };
    store.chunk(begun, two, sparse.as_fd());
    assert!(matches!(
        store.commit(begun),
        Err(TreeError::Limit { what: "bytes", .. })
    ));

    let begun = store.begin().unwrap();
    let empty = source(b"");
    let directories = "d/".repeat(500);
    for index in 0..=TREE_FILES_MAX - 500 {
        let path = if index == 0 {
            format!("{directories}f")
        } else {
            format!("f{index}")
        };
        store.chunk(begun, whole(&path, b""), empty.as_fd());
    }
    assert!(matches!(store.commit(begun), Err(TreeError::Limit { .. })));

    let begun: Vec<UploadId> = (0..UPLOADS_MAX).map(|_| store.begin().unwrap()).collect();
    assert!(matches!(store.begin(), Err(TreeError::TooManyUploads)));
    begun
        .into_iter()
        .for_each(|upload| store.abort(upload).unwrap());
    store.begin().unwrap();
}

#[test]
fn an_upload_that_was_ended_is_unknown_and_leaves_nothing() {
    let Fixture {
        mut store,
        _directory,
    } = fixture();
    let begun = store.begin().unwrap();
    store.chunk(begun, whole("a/b", b"x"), source(b"x").as_fd());
    store.abort(begun).unwrap();
    store.chunk(begun, whole("a/c", b"x"), source(b"x").as_fd());
    assert!(matches!(
        store.commit(begun),
        Err(TreeError::UnknownUpload { .. })
    ));
    assert_eq!(hidden(&store), 0);
}

#[test]
fn a_removed_tree_is_gone_at_once_and_a_large_one_is_deleted_piece_by_piece() {
    let Fixture {
        mut store,
        _directory,
    } = fixture();
    let names: Vec<String> = (0..TIDY_ENTRIES_MAX * 2)
        .map(|i| format!("d{}/{i}", i % 7))
        .collect();
    let files: Vec<NewFile<'_>> = names
        .iter()
        .map(|path| NewFile {
            path,
            executable: false,
            content: b"",
        })
        .collect();
    let tree = store.install(&files).unwrap();
    store.remove(&tree).unwrap();
    assert!(!store.contains(&tree));
    assert_eq!(hidden(&store), 1);
    while store.tidy().unwrap() == Tidied::Some {}
    assert_eq!(hidden(&store), 0);
    assert!(matches!(
        store.remove(&tree),
        Err(TreeError::UnknownTree { .. })
    ));
}

#[test]
fn every_change_to_a_stored_tree_is_found() {
    let Fixture {
        mut store,
        _directory,
    } = fixture();
    let files = [NewFile {
        path: "d/a",
        executable: false,
        content: b"x",
    }];
    let changes: [fn(&Path); 6] = [
        |root| fs::write(root.join("d/a"), "y").unwrap(),
        |root| fs::write(root.join("d/b"), "y").unwrap(),
        |root| fs::remove_file(root.join("d/a")).unwrap(),
        |root| symlink("/etc/passwd", root.join("d/b")).unwrap(),
        |root| fs::create_dir(root.join("d/e")).unwrap(),
        |root| fs::set_permissions(root.join("d/a"), Permissions::from_mode(0o4555)).unwrap(),
    ];
    for change in changes {
        let tree = store.install(&files).unwrap();
        store.verify(&tree).unwrap();
        let root = store.path(&tree);
        fs::set_permissions(root.join("d"), Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(root.join("d/a"), Permissions::from_mode(0o644)).unwrap();
        change(&root);
        fs::set_permissions(root.join("d"), Permissions::from_mode(0o555)).unwrap();
        assert!(matches!(
            store.verify(&tree),
            Err(TreeError::Damaged { .. })
        ));
        store.remove(&tree).unwrap();
    }
}

#[test]
fn a_file_of_a_tree_is_opened_and_nothing_beside_it() {
    let Fixture {
        mut store,
        _directory,
    } = fixture();
    let files = [NewFile {
        path: "d/a",
        executable: false,
        content: b"x",
    }];
    let tree = store.install(&files).unwrap();
    let mut text = String::new();
    let mut file = File::from(store.open_file(&tree, "d/a").unwrap());
    io::Read::read_to_string(&mut file, &mut text).unwrap();
    assert_eq!(text, "x");
    for path in ["d", "b", "../x", "/etc/passwd", ""] {
        assert!(store.open_file(&tree, path).is_err(), "{path}");
    }
    let missing = TreeId::new("0".repeat(64)).unwrap();
    assert!(matches!(
        store.open_file(&missing, "a"),
        Err(TreeError::UnknownTree { .. })
    ));
}

#[test]
fn uploads_end_with_their_store() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::new(directory.path().to_owned());
    let begun = store.begin().unwrap();
    store.chunk(begun, whole("a/b", b"x"), source(b"x").as_fd());
    assert_eq!(hidden(&store), 1);
    drop(store);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_damaged_tree_is_replaced_when_it_is_installed_again() {
    let Fixture {
        mut store,
        _directory,
    } = fixture();
    let files = [NewFile {
        path: "compiler",
        executable: true,
        content: b"x",
    }];
    let tree = store.install(&files).unwrap();
    let file = store.path(&tree).join("compiler");
    fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
    fs::write(&file, "y").unwrap();
    assert_eq!(store.install(&files).unwrap(), tree);
    store.verify(&tree).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"x");
}

#[test]
fn a_directory_of_an_upload_that_is_swapped_for_a_link_is_not_followed() {
    let Fixture {
        mut store,
        _directory,
    } = fixture();
    let outside = tempfile::tempdir().unwrap();
    for (target, next) in [
        (outside.path(), "a/second"),
        (outside.path(), "a/deep/second"),
        (Path::new("."), "a/second"),
    ] {
        let upload = store.begin().unwrap();
        store.chunk(upload, whole("a/first", b"x"), source(b"x").as_fd());
        let inside = fs::read_dir(&store.directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.join("a").is_dir())
            .unwrap();
        fs::rename(inside.join("a"), inside.join("b")).unwrap();
        symlink(target, inside.join("a")).unwrap();
        store.chunk(upload, whole(next, b"x"), source(b"x").as_fd());
        assert!(store.commit(upload).is_err(), "{}", target.display());
    }
    // A whole upload, swapped: its directory is held open, so what is stored is what was uploaded.
    let upload = store.begin().unwrap();
    store.chunk(upload, whole("a", b"x"), source(b"x").as_fd());
    let path = fs::read_dir(&store.directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.join("a").is_file())
        .unwrap();
    fs::rename(&path, outside.path().join("away")).unwrap();
    symlink(outside.path(), &path).unwrap();
    store.chunk(upload, whole("second", b"x"), source(b"x").as_fd());
    assert!(store.commit(upload).is_err());
    let left: Vec<_> = fs::read_dir(outside.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["away"]);
}
