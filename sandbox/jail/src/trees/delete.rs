// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Deleting what Hearth itself wrote, without recursion and, where it matters, a little at a time. (What a function
//! wrote is never deleted by walking: its scratch is a mount.)

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::Tidied;

/// Deletes a directory and all in it.
///
/// # Errors
/// The first entry that could not be deleted.
pub fn delete_whole(root: &Path) -> io::Result<()> {
    loop {
        let mut budget = usize::MAX;
        if delete_some(root, &mut budget)? == Tidied::Everything {
            return Ok(());
        }
    }
}

/// Deletes at most `budget` entries of a directory, and takes them from the budget.
pub(super) fn delete_some(root: &Path, budget: &mut usize) -> io::Result<Tidied> {
    if !fs::symlink_metadata(root)?.is_dir() {
        *budget = budget.saturating_sub(1);
        return fs::remove_file(root).map(|()| Tidied::Everything);
    }
    let mut above = vec![root.to_owned()];
    while let Some(directory) = above.last() {
        // Without CAP_DAC_OVERRIDE the owner needs the write bit too.
        fs::set_permissions(directory, Permissions::from_mode(0o700))?;
        let mut deeper = None;
        for entry in fs::read_dir(directory)? {
            if *budget == 0 {
                return Ok(Tidied::Some);
            }
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                deeper = Some(entry.path());
                break;
            }
            fs::remove_file(entry.path())?;
            *budget -= 1;
        }
        match deeper {
            Some(child) => above.push(child),
            None => {
                fs::remove_dir(directory)?;
                *budget = budget.saturating_sub(1);
                above.pop();
            }
        }
    }
    Ok(Tidied::Everything)
}
