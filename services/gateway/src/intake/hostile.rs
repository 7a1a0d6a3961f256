// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Archives that are made to be read differently by two readers, or to cost the reader much more than the writer
//! (threats U-02 to U-05).

use super::{by_hand::*, *};

fn take(archive: &Bytes, format: Format) -> Result<Package, IntakeError> {
    unpack(archive.clone(), format)
}

#[test]
fn an_archive_put_together_here_is_taken() {
    let package = take(&with(&[stored("run", b"x")]), Format::Zip).unwrap();
    assert_eq!(package.files["run"].content, "x");
}

#[test]
fn headers_of_an_entry_that_contradict_each_other_are_refused() {
    type Lie = fn(&mut ZipEntry);
    let lies: [(&str, Lie); 18] = [
        ("name", |entry| entry.central_name = b"other".to_vec()),
        ("longer name", |entry| {
            entry.central_name = b"runner".to_vec();
        }),
        ("checksum", |entry| entry.crc = 1),
        ("larger", |entry| entry.unpacked_bytes = 8),
        ("smaller", |entry| entry.unpacked_bytes = 3),
        ("packed larger", |entry| entry.packed_bytes = 1000),
        ("packed smaller", |entry| entry.packed_bytes = 3),
        ("encrypted", |entry| entry.flags = 1),
        ("strongly encrypted", |entry| entry.flags = 0x41),
        ("deflated", |entry| entry.method = 8),
        ("another method", |entry| entry.method = 12),
        ("no method", |entry| entry.method = 99),
        ("elsewhere", |entry| entry.offset = Some(1)),
        ("far away", |entry| entry.offset = Some(u32::MAX - 1)),
        ("symbolic link", |entry| entry.mode = 0o120_777),
        ("device", |entry| entry.mode = 0o020_666),
        ("no name", |entry| rename(entry, "")),
        ("a folder", |entry| rename(entry, "run/")),
    ];
    for (what, lie) in lies {
        let mut entry = stored("run", b"content");
        lie(&mut entry);
        assert!(take(&with(&[entry]), Format::Zip).is_err(), "{what}");
    }
}

fn rename(entry: &mut ZipEntry, name: &str) {
    entry.local_name = name.into();
    entry.central_name = name.into();
}

#[test]
fn sizes_beyond_32_bits_that_are_a_lie_are_refused() {
    // The 64-bit sizes are in the extra field (APPNOTE.TXT section 4.5.3).
    let extra = |unpacked: u64, packed: u64| {
        [
            b"\x01\0\x10\0".as_slice(),
            &unpacked.to_le_bytes(),
            &packed.to_le_bytes(),
        ]
        .concat()
    };
    for (unpacked, packed) in [(u64::MAX, 7), (7, u64::MAX), (1 << 40, 1 << 40), (0, 0)] {
        let entry = ZipEntry {
            packed_bytes: u32::MAX,
            unpacked_bytes: u32::MAX,
            extra: extra(unpacked, packed),
            ..stored("run", b"content")
        };
        assert!(
            take(&with(&[entry]), Format::Zip).is_err(),
            "{unpacked} {packed}"
        );
    }
}

#[test]
fn entries_that_share_their_bytes_are_refused() {
    // As in zip bombs without nesting: many entries of the directory, one local entry.
    let first = stored("run", b"content");
    let again = |name: &str| ZipEntry {
        local_name: name.into(),
        central_name: name.into(),
        content: Vec::new(),
        offset: Some(u32::try_from(30 + 13 + MANIFEST.len()).unwrap()),
        ..first.clone()
    };
    assert!(take(&with(&[first.clone(), again("run")]), Format::Zip).is_err());
    assert!(take(&with(&[first.clone(), again("two")]), Format::Zip).is_err());
    // An entry whose content is another entry.
    let inner = with(&[stored("run", b"x")]);
    let outer = stored("all", &inner);
    let quoted = ZipEntry {
        offset: Some(u32::try_from(30 + 13 + MANIFEST.len() + 30 + 3).unwrap()),
        ..stored("function.tom1", MANIFEST)
    };
    assert!(take(&with(&[outer, quoted]), Format::Zip).is_err());
}

#[test]
fn a_directory_that_lists_other_entries_than_there_are_is_refused() {
    let entries = [stored("function.toml", MANIFEST), stored("run", b"x")];
    for count in [0, 1, 3, 1000, u16::MAX] {
        assert!(
            take(&zip_of(&entries, count), Format::Zip).is_err(),
            "{count}"
        );
    }
    // One archive behind another: the second one's directory is found from the end.
    let twice = [with(&[stored("run", b"x")]), with(&[stored("run", b"y")])].concat();
    assert!(take(&twice.into(), Format::Zip).is_err());
}

#[test]
fn more_entries_than_there_may_be_are_refused_before_they_are_read() {
    let many: Vec<ZipEntry> = (0..=ENTRIES_MAX)
        .map(|number| stored(&format!("f{number}"), b""))
        .collect();
    assert!(matches!(
        take(&with(&many), Format::Zip),
        Err(IntakeError::TooManyEntries)
    ));
    let mut builder = tar::Builder::new(Vec::new());
    for number in 0..=ENTRIES_MAX {
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, format!("f{number}"), b"".as_slice())
            .unwrap();
    }
    let archive = builder.into_inner().unwrap().into();
    assert!(matches!(
        take(&archive, Format::Tar),
        Err(IntakeError::TooManyEntries)
    ));
}

#[test]
fn an_archive_within_an_archive_stays_packed() {
    let inner = with(&[stored("deep", b"x")]);
    let package = take(&with(&[stored("inner.zip", &inner)]), Format::Zip).unwrap();
    assert_eq!(package.files["inner.zip"].content, inner);
    assert_eq!(package.files.len(), 2);
}

#[test]
fn what_two_tar_readers_could_see_differently_is_refused() {
    let smuggled = [plain(b"run", b"hidden"), plain(b"more", b"")].concat();
    let refused: [(&str, Vec<Vec<u8>>); 14] = [
        // CVE-2025-62518: the size of the pax header is used by one reader, that of the entry by another.
        (
            "pax size",
            vec![
                pax("size", "1536"),
                tar_entry(b'0', b"x", &octal(0), &smuggled),
            ],
        ),
        (
            "pax size of nothing",
            vec![pax("size", "0"), plain(b"x", &smuggled)],
        ),
        (
            "pax linkpath",
            vec![pax("linkpath", "/etc/passwd"), plain(b"x", b"")],
        ),
        (
            "pax sparse map",
            vec![pax("GNU.sparse.map", "0,1"), plain(b"x", b"")],
        ),
        (
            "pax sparse name",
            vec![pax("GNU.sparse.name", "run"), plain(b"x", b"")],
        ),
        (
            "pax character set",
            vec![pax("hdrcharset", "BINARY"), plain(b"x", b"")],
        ),
        (
            "two pax paths",
            vec![pax("path", "a"), pax("path", "b"), plain(b"x", b"")],
        ),
        ("pax path of nothing", vec![pax("path", "a")]),
        (
            "a path with NUL",
            vec![pax("path", "a\0b"), plain(b"x", b"")],
        ),
        (
            "a size that is no number",
            vec![tar_entry(b'0', b"x", b"garbage.....", b"")],
        ),
        (
            "a negative size",
            vec![tar_entry(
                b'0',
                b"x",
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
                b"",
            )],
        ),
        (
            "a size of 2^63",
            vec![tar_entry(b'0', b"x", b"\x80\0\0\0\x80\0\0\0\0\0\0\0", b"")],
        ),
        ("a link", vec![tar_entry(b'2', b"x", &octal(0), b"")]),
        ("a volume", vec![tar_entry(b'V', b"x", &octal(0), b"")]),
    ];
    for (what, blocks) in refused {
        assert!(take(&tar_with(&blocks), Format::Tar).is_err(), "{what}");
    }
    let mut damaged = tar_with(&[plain(b"run", b"x")]).to_vec();
    damaged[1024] ^= 1;
    assert!(
        take(&damaged.into(), Format::Tar).is_err(),
        "a header's checksum"
    );
}

#[test]
fn attributes_owners_and_modes_are_dropped() {
    let blocks = [
        pax("SCHILY.xattr.security.capability", "\u{1}"),
        plain(b"run", b"x"),
    ];
    let mut none = tar_entry(b'0', b"closed", &octal(1), b"x");
    none[100..108].copy_from_slice(b"0000000\0");
    none[148..156].copy_from_slice(b"        ");
    let sum: u32 = none[..512].iter().map(|byte| u32::from(*byte)).sum();
    none[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let package = take(&tar_with(&[blocks.concat(), none]), Format::Tar).unwrap();
    // A file has a content and whether it is executable, and nothing else.
    let file = |executable| PackedFile {
        executable,
        content: Bytes::from_static(b"x"),
    };
    assert_eq!(package.files["run"], file(true));
    assert_eq!(package.files["closed"], file(false));
}
