// SPDX-License-Identifier: Apache-2.0 OR MIT
//! tar: ustar, GNU long names, and of pax headers only what cannot change where an entry ends. A pax `size` that
//! contradicts the header is how one reader is made to see files that another does not (CVE-2025-62518): refused.

use std::io::{Cursor, Read as _};

use bytes::Bytes;
use tar::{Archive, Entry, EntryType};

use super::{Intake, IntakeError, PackedFile};

/// The longest pax header or long name, in bytes: a few paths.
const EXTENSION_BYTES_MAX: u64 = 64 * 1024;

/// Mode bits that make a file executable.
const EXECUTE_BITS: u32 = 0o111;

pub(super) fn read(archive: Bytes, intake: &mut Intake) -> Result<(), IntakeError> {
    let mut reader = Archive::new(Cursor::new(archive.clone()));
    let mut long_path = None;
    // Raw: extension headers come as entries and are interpreted here, by these rules and no others.
    for entry in reader.entries().map_err(unreadable)?.raw(true) {
        let mut entry = entry.map_err(unreadable)?;
        intake.count_entry()?;
        match entry.header().entry_type() {
            EntryType::GNULongName => set_once(&mut long_path, long_name(&mut entry)?)?,
            EntryType::XHeader => {
                if let Some(path) = pax_path(&mut entry)? {
                    set_once(&mut long_path, path)?;
                }
            }
            // One comment for the whole archive, as git writes it.
            EntryType::XGlobalHeader => {
                if pax_path(&mut entry)?.is_some() {
                    return Err(IntakeError::Unreadable(
                        "a global pax header names a path".to_owned(),
                    ));
                }
            }
            kind => {
                let path = long_path
                    .take()
                    .unwrap_or_else(|| entry.path_bytes().into_owned());
                add(&archive, &entry, kind, &path, intake)?;
            }
        }
    }
    if long_path.is_some() {
        return Err(IntakeError::Unreadable(
            "a long name has no entry".to_owned(),
        ));
    }
    nothing_follows(reader.into_inner())
}

fn add(
    archive: &Bytes,
    entry: &Entry<'_, Cursor<Bytes>>,
    kind: EntryType,
    path: &[u8],
    intake: &mut Intake,
) -> Result<(), IntakeError> {
    let not_plain = |what| {
        let path = String::from_utf8_lossy(path).into_owned();
        Err(IntakeError::NotPlain { path, what })
    };
    match kind {
        // Before ustar, a folder was a file whose name ends with a slash.
        EntryType::Regular if path.ends_with(b"/") => not_plain("a file with a folder's name"),
        EntryType::Regular => {
            let size = entry.size();
            intake.count_bytes(size)?;
            let (start, end) = (
                entry.raw_file_position(),
                entry.raw_file_position().saturating_add(size),
            );
            let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
            let Some((start, end)) = range.filter(|(_, end)| *end <= archive.len()) else {
                return Err(IntakeError::Unreadable("an entry is cut off".to_owned()));
            };
            let mode = entry.header().mode().map_err(unreadable)?;
            let content = archive.slice(start..end);
            intake.add_file(
                path,
                PackedFile {
                    executable: mode & EXECUTE_BITS != 0,
                    content,
                },
            )
        }
        EntryType::Directory if entry.size() != 0 => not_plain("a folder with content"),
        EntryType::Directory => intake.add_folder(path),
        EntryType::Symlink | EntryType::Link => not_plain("a link"),
        EntryType::Char | EntryType::Block | EntryType::Fifo => not_plain("a device or a pipe"),
        _ => not_plain("of a sort that is not taken"),
    }
}

fn long_name(entry: &mut Entry<'_, Cursor<Bytes>>) -> Result<Vec<u8>, IntakeError> {
    let mut name = extension(entry)?;
    // The name ends with one NUL; another one would end it earlier for some readers.
    if name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

/// The `path` of a pax header, if it has one.
fn pax_path(entry: &mut Entry<'_, Cursor<Bytes>>) -> Result<Option<Vec<u8>>, IntakeError> {
    let content = extension(entry)?;
    let mut path = None;
    let mut rest = content.as_slice();
    while !rest.is_empty() {
        let (key, value, after) = pax_record(rest)
            .ok_or_else(|| IntakeError::Unreadable("a pax header is malformed".to_owned()))?;
        rest = after;
        match key {
            b"path" => set_once(&mut path, value.to_vec())?,
            b"size" | b"linkpath" | b"hdrcharset" => return Err(refused_key(key)),
            _ if key.starts_with(b"GNU.sparse") => return Err(refused_key(key)),
            // Times, owners and attributes: not kept.
            _ => {}
        }
    }
    Ok(path)
}

/// Splits off one record: `LENGTH KEY=VALUE\n`, LENGTH counting all of it.
fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let digits = std::str::from_utf8(&bytes[..space]).ok()?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (record, rest) = bytes.split_at_checked(digits.parse().ok()?)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

fn extension(entry: &mut Entry<'_, Cursor<Bytes>>) -> Result<Vec<u8>, IntakeError> {
    let mut content = Vec::new();
    let length = entry
        .take(EXTENSION_BYTES_MAX + 1)
        .read_to_end(&mut content)
        .map_err(unreadable)?;
    if EXTENSION_BYTES_MAX < length as u64 {
        return Err(IntakeError::Unreadable(
            "an extension header is too long".to_owned(),
        ));
    }
    Ok(content)
}

/// Beyond the end of an archive there is padding only: whatever else follows, some other reader would read.
fn nothing_follows(mut rest: Cursor<Bytes>) -> Result<(), IntakeError> {
    let mut block = [0_u8; 4096];
    loop {
        let length = rest.read(&mut block).map_err(unreadable)?;
        if length == 0 {
            return Ok(());
        }
        if block[..length].iter().any(|byte| *byte != 0) {
            return Err(IntakeError::Unreadable(
                "something follows its end".to_owned(),
            ));
        }
    }
}

fn set_once(slot: &mut Option<Vec<u8>>, path: Vec<u8>) -> Result<(), IntakeError> {
    match slot.replace(path) {
        None => Ok(()),
        Some(_) => Err(IntakeError::Unreadable(
            "an entry has two long names".to_owned(),
        )),
    }
}

fn refused_key(key: &[u8]) -> IntakeError {
    IntakeError::Unreadable(format!(
        "the pax key {} is not taken",
        String::from_utf8_lossy(key)
    ))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unreadable(error: std::io::Error) -> IntakeError {
    IntakeError::Unreadable(error.to_string())
}
