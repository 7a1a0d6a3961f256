// SPDX-License-Identifier: Apache-2.0 OR MIT
use std::io::Write as _;

use tar::{Builder, EntryType, Header};
use zip::{ZipWriter, write::SimpleFileOptions};

use super::*;

const MANIFEST: &[u8] = b"name = \"a\"\nentry = \"run\"\n";

/// One tar entry with a path that the library's own writer would refuse.
fn raw_entry(
    builder: &mut Builder<Vec<u8>>,
    kind: EntryType,
    path: &[u8],
    mode: u32,
    content: &[u8],
) {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

fn tar_with(kind: EntryType, path: &[u8], content: &[u8]) -> Bytes {
    let mut builder = Builder::new(Vec::new());
    raw_entry(
        &mut builder,
        EntryType::Regular,
        b"function.toml",
        0o644,
        MANIFEST,
    );
    raw_entry(&mut builder, kind, path, 0o755, content);
    builder.into_inner().unwrap().into()
}

fn zip_of(files: &[(&str, u32, &[u8])]) -> Bytes {
    let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (path, mode, content) in files {
        writer
            .start_file(*path, SimpleFileOptions::default().unix_permissions(*mode))
            .unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner().into()
}

fn good_zip() -> Bytes {
    zip_of(&[
        ("function.toml", 0o644, MANIFEST),
        ("bin/run", 0o755, b"#!/bin/sh\n"),
    ])
}

fn take(archive: Bytes) -> Result<Package, IntakeError> {
    let format = sniff(&archive).unwrap();
    unpack(archive, format)
}

#[test]
fn the_same_files_give_the_same_revision_from_tar_and_zip() {
    let from_tar = take(tar_with(EntryType::Regular, b"bin/run", b"#!/bin/sh\n")).unwrap();
    let from_zip = take(good_zip()).unwrap();
    assert_eq!(from_tar.files, from_zip.files);
    assert_eq!(from_tar.revision, from_zip.revision);
    assert!(from_tar.files["bin/run"].executable && !from_tar.files["function.toml"].executable);
    let other = take(tar_with(EntryType::Regular, b"bin/run", b"#!/bin/sh\n\n")).unwrap();
    assert_ne!(other.revision, from_tar.revision);
}

#[test]
fn a_path_that_could_leave_its_folder_is_refused() {
    for path in [
        "/etc/x",
        "../x",
        "a/../../x",
        "a//b",
        "a/./b",
        "..",
        "C:/x",
        "C:x",
        "a\\b",
        "a\nb",
        "\u{fffd}\u{0}",
    ] {
        let result = take(tar_with(EntryType::Regular, path.as_bytes(), b""));
        // A NUL ends the name in a tar header; what is left of it is harmless.
        assert_eq!(result.is_err(), !path.contains('\0'), "{path:?}");
    }
    assert!(matches!(
        take(tar_with(EntryType::Regular, b"\xff", b"")),
        Err(IntakeError::BadPath { .. })
    ));
    let deep = "d/".repeat(DEPTH_MAX);
    assert!(checked_path(format!("{deep}f").as_bytes()).is_err());
    assert!(checked_path(&vec![b'a'; TREE_PATH_BYTES_MAX + 1]).is_err());
    for path in ["../x", "/x", "a\\b"] {
        let archive = zip_of(&[("function.toml", 0o644, MANIFEST), (path, 0o644, b"")]);
        assert!(take(archive).is_err(), "{path:?}");
    }
}

#[test]
fn links_devices_and_sparse_files_are_refused() {
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
        EntryType::GNUSparse,
        EntryType::Continuous,
    ] {
        assert!(
            matches!(
                take(tar_with(kind, b"x", b"")),
                Err(IntakeError::NotPlain { .. })
            ),
            "{kind:?}"
        );
    }
    let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    writer
        .start_file("function.toml", SimpleFileOptions::default())
        .unwrap();
    writer.write_all(MANIFEST).unwrap();
    writer
        .add_symlink("link", "/etc/passwd", SimpleFileOptions::default())
        .unwrap();
    let archive = Bytes::from(writer.finish().unwrap().into_inner());
    assert!(matches!(take(archive), Err(IntakeError::NotPlain { .. })));
}

#[test]
fn what_is_there_twice_or_as_file_and_folder_is_refused() {
    let ambiguous = |entries: &[&[u8]]| {
        let mut builder = Builder::new(Vec::new());
        raw_entry(
            &mut builder,
            EntryType::Regular,
            b"function.toml",
            0o644,
            MANIFEST,
        );
        entries
            .iter()
            .for_each(|path| raw_entry(&mut builder, EntryType::Regular, path, 0o644, b""));
        matches!(
            take(builder.into_inner().unwrap().into()),
            Err(IntakeError::Ambiguous { .. })
        )
    };
    assert!(ambiguous(&[b"x", b"x"]));
    assert!(ambiguous(&[b"x", b"./x"]));
    assert!(ambiguous(&[b"x", b"x/y"]));
    assert!(ambiguous(&[b"x/y", b"x"]));
    assert!(!ambiguous(&[b"x/y", b"x/z"]));
}

#[test]
fn a_pax_header_that_changes_an_entrys_size_is_refused_and_a_long_path_is_taken() {
    let with_pax = |record: &str| {
        let mut builder = Builder::new(Vec::new());
        raw_entry(
            &mut builder,
            EntryType::Regular,
            b"function.toml",
            0o644,
            MANIFEST,
        );
        raw_entry(
            &mut builder,
            EntryType::XHeader,
            b"pax",
            0o644,
            record.as_bytes(),
        );
        raw_entry(&mut builder, EntryType::Regular, b"x", 0o644, b"content");
        take(builder.into_inner().unwrap().into())
    };
    assert!(with_pax("12 size=512\n").is_err());
    assert!(with_pax("22 GNU.sparse.major=1\n").is_err());
    assert!(with_pax("99 mtime=1\n").is_err());
    assert!(with_pax("11 mtime=1\n").is_ok());
    let package = with_pax("15 path=p/long\n").unwrap();
    assert_eq!(package.files["p/long"].content, "content");
    assert!(with_pax("14 path=../lg\n").is_err());
}

#[test]
fn a_long_gnu_name_is_taken() {
    let long = format!("{}/run", "d".repeat(200));
    let mut builder = Builder::new(Vec::new());
    for (path, content) in [("function.toml", MANIFEST), (long.as_str(), b"x")] {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content).unwrap();
    }
    assert!(
        take(builder.into_inner().unwrap().into())
            .unwrap()
            .files
            .contains_key(&long)
    );
}

#[test]
fn bytes_after_the_end_or_before_the_beginning_are_refused() {
    let mut tar = tar_with(EntryType::Regular, b"run", b"x").to_vec();
    tar.extend_from_slice(&[0; 10_240]);
    assert!(take(tar.clone().into()).is_ok());
    tar.push(1);
    assert!(take(tar.into()).is_err());
    let shifted = [b"PK\x03\x04 not a zip ".as_slice(), &good_zip()].concat();
    assert!(take(shifted.into()).is_err());
}

#[test]
fn an_archive_that_unpacks_to_far_more_than_it_is_is_refused() {
    let zeros = vec![0_u8; 4 * 1024 * 1024];
    let bomb = zip_of(&[("function.toml", 0o644, MANIFEST), ("zeros", 0o644, &zeros)]);
    assert!(matches!(take(bomb), Err(IntakeError::TooLarge { .. })));
}

#[test]
fn setuid_and_other_bits_are_dropped() {
    let mut builder = Builder::new(Vec::new());
    raw_entry(
        &mut builder,
        EntryType::Regular,
        b"function.toml",
        0o6000,
        MANIFEST,
    );
    let package = take(builder.into_inner().unwrap().into()).unwrap();
    assert!(!package.files["function.toml"].executable);
}

#[test]
fn every_truncation_and_every_flipped_byte_is_refused_or_taken_but_never_panics() {
    for archive in [good_zip(), tar_with(EntryType::Regular, b"run", b"x")] {
        let format = sniff(&archive).unwrap();
        for length in 0..archive.len() {
            drop(unpack(archive.slice(..length), format));
        }
        for at in 0..archive.len() {
            let mut flipped = archive.to_vec();
            flipped[at] ^= 0xff;
            drop(unpack(flipped.into(), format));
        }
    }
}

#[test]
fn an_archive_without_a_manifest_at_its_root_is_refused() {
    let archive = zip_of(&[("sub/function.toml", 0o644, MANIFEST)]);
    assert!(matches!(take(archive), Err(IntakeError::NoManifest)));
}

#[test]
fn a_name_that_no_file_system_takes_or_no_eye_sees_is_refused() {
    let long = "n".repeat(256);
    for name in [long.as_str(), "a\u{202e}b", "a\u{200b}b"] {
        let archive = zip_of(&[("function.toml", 0o644, MANIFEST), (name, 0o644, b"")]);
        assert!(
            matches!(take(archive), Err(IntakeError::BadPath { .. })),
            "{name:?}"
        );
    }
}
