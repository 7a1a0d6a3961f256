// SPDX-License-Identifier: Apache-2.0 OR MIT
//! zip: stored and deflated entries, whose local headers say what the central directory says, without overlaps,
//! duplicates, gaps that hold entries, or anything before the first.

use std::io::{Cursor, Read as _};

use bytes::Bytes;
use zip::{CompressionMethod, ZipArchive, read::ZipFile, result::ZipError};

use super::{Intake, IntakeError, PackedFile};

/// Mode bits that make a file executable.
const EXECUTE_BITS: u32 = 0o111;

/// Bits of a Unix mode that say what sort of file it is, and the two sorts that are taken (stat(2)).
const SORT_BITS: u32 = 0o170_000;
const SORT_REGULAR: u32 = 0o100_000;
const SORT_FOLDER: u32 = 0o040_000;

/// The most bytes reserved for a file before any of it is there: an entry's size is a stranger's claim.
const RESERVE_BYTES_MAX: u64 = 1024 * 1024;

pub(super) fn read(archive: Bytes, intake: &mut Intake) -> Result<(), IntakeError> {
    let mut archive = ZipArchive::new(Cursor::new(archive)).map_err(unreadable)?;
    if archive.offset() != 0 {
        return Err(IntakeError::Unreadable(
            "something precedes its first entry".to_owned(),
        ));
    }
    if super::ENTRIES_MAX < archive.len() {
        return Err(IntakeError::TooManyEntries);
    }
    archive.validate_header_consistency().map_err(unreadable)?;
    for index in 0..archive.len() {
        intake.count_entry()?;
        let entry = archive.by_index(index).map_err(unreadable)?;
        add(entry, intake)?;
    }
    Ok(())
}

fn add(entry: ZipFile<'_, Cursor<Bytes>>, intake: &mut Intake) -> Result<(), IntakeError> {
    let path = entry.name_raw().to_vec();
    let not_plain = |what| {
        let path = String::from_utf8_lossy(&path).into_owned();
        Err(IntakeError::NotPlain { path, what })
    };
    let mode = entry.unix_mode().unwrap_or(0);
    let is_folder = path.ends_with(b"/");
    match mode & SORT_BITS {
        // Made on a system without such modes.
        0 => {}
        SORT_REGULAR if !is_folder => {}
        SORT_FOLDER if is_folder => {}
        _ => return not_plain("a link, a device, or not what its name says"),
    }
    if entry.encrypted() {
        return not_plain("encrypted");
    }
    if !matches!(
        entry.compression(),
        CompressionMethod::Stored | CompressionMethod::Deflated
    ) {
        return not_plain("compressed by another method than deflate");
    }
    if is_folder {
        return if entry.size() == 0 {
            intake.add_folder(&path)
        } else {
            not_plain("a folder with content")
        };
    }
    // Read against what is left, not against what the entry claims.
    let mut content =
        Vec::with_capacity(usize::try_from(entry.size().min(RESERVE_BYTES_MAX)).unwrap_or(0));
    let claimed = entry.size();
    entry
        .take(intake.bytes_left + 1)
        .read_to_end(&mut content)
        .map_err(|error| IntakeError::Unreadable(error.to_string()))?;
    intake.count_bytes(content.len() as u64)?;
    if content.len() as u64 != claimed {
        return Err(IntakeError::Unreadable(
            "an entry has another size than it says".to_owned(),
        ));
    }
    intake.add_file(
        &path,
        PackedFile {
            executable: mode & EXECUTE_BITS != 0,
            content: content.into(),
        },
    )
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unreadable(error: ZipError) -> IntakeError {
    IntakeError::Unreadable(error.to_string())
}
