// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a program needs to start: its loader and its libraries, read from the ELF file itself. (`ldd` would run the
//! program's loader; reading runs nothing.)

use std::fs;
use std::path::Path;

use object::elf::{DT_NEEDED, DT_STRSZ, DT_STRTAB, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, ReadRef};

use super::{BaseError, at};

/// The needs of one program or library.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Absolute path of the loader (PT_INTERP); None in libraries and static programs.
    pub(super) loader: Option<String>,
    /// Names of libraries (DT_NEEDED).
    pub(super) libraries: Vec<String>,
}

/// Reads a file's needs; None where it is no ELF file (a script).
pub(super) fn needs(path: &Path) -> Result<Option<Needs>, BaseError> {
    let data = fs::read(path).map_err(at("read", path))?;
    if !data.starts_with(b"\x7fELF") {
        return Ok(None);
    }
    parse(&data[..])
        .map(Some)
        .map_err(|error| BaseError::BadProgram {
            path: path.to_owned(),
            problem: error.to_string(),
        })
}

fn parse(data: &[u8]) -> object::Result<Needs> {
    let mut needs = Needs::default();
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, data)?;
    for segment in segments {
        if let Some(loader) = segment.interpreter(endian, data)? {
            needs.loader = Some(String::from_utf8_lossy(loader).into_owned());
        }
    }
    let dynamic = segments
        .iter()
        .find_map(|segment| segment.dynamic(endian, data).transpose());
    let Some(dynamic) = dynamic.transpose()? else {
        return Ok(needs);
    };
    let value = |tag| {
        let entry = dynamic.iter().find(|entry| entry.tag(endian) == tag);
        entry.map(|entry| entry.d_val(endian))
    };
    // The names lie in a string table that is given by its address in memory, not its place in the file.
    let (Some(address), Some(size)) = (value(DT_STRTAB), value(DT_STRSZ)) else {
        return Ok(needs);
    };
    let strings = segments
        .iter()
        .find_map(|segment| {
            segment
                .data_range(endian, data, address, size)
                .ok()
                .flatten()
        })
        .unwrap_or_default();
    for entry in dynamic {
        if entry.tag(endian) == DT_NEEDED {
            let name = strings
                .read_bytes_at_until(entry.d_val(endian)..size, 0)
                .unwrap_or_default();
            needs
                .libraries
                .push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Ok(needs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_names_its_loader_and_its_libraries() {
        let needs = needs(&std::env::current_exe().unwrap()).unwrap().unwrap();
        assert!(needs.loader.unwrap().starts_with("/lib"));
        assert!(needs.libraries.iter().any(|name| name == "libc.so.6"));
    }

    #[test]
    fn a_script_needs_nothing_and_a_broken_program_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        assert_eq!(needs(&path).unwrap(), None);
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        for length in [5, 16, 63, 64, 100, 500] {
            fs::write(&path, &own[..length]).unwrap();
            assert!(needs(&path).is_err(), "{length}");
        }
    }
}
