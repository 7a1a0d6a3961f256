// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Archives put together byte by byte, for tests: what no packer writes.

use bytes::Bytes;

pub(super) const MANIFEST: &[u8] = b"name = \"a\"\nentry = \"run\"\n";

/// An entry of a zip archive, with what its two headers say of it.
#[derive(Clone)]
pub(super) struct ZipEntry {
    pub(super) local_name: Vec<u8>,
    pub(super) central_name: Vec<u8>,
    pub(super) flags: u16,
    pub(super) method: u16,
    /// As both headers say it.
    pub(super) packed_bytes: u32,
    pub(super) unpacked_bytes: u32,
    pub(super) content: Vec<u8>,
    pub(super) crc: u32,
    pub(super) extra: Vec<u8>,
    pub(super) mode: u32,
    /// Where the central directory says that the local header is; none where it is.
    pub(super) offset: Option<u32>,
}

pub(super) fn stored(name: &str, content: &[u8]) -> ZipEntry {
    let size = u32::try_from(content.len()).unwrap();
    ZipEntry {
        local_name: name.into(),
        central_name: name.into(),
        flags: 0,
        method: 0,
        packed_bytes: size,
        unpacked_bytes: size,
        content: content.to_vec(),
        crc: crc32(content),
        extra: Vec::new(),
        mode: 0o100_644,
        offset: None,
    }
}

/// CRC-32 of IEEE 802.3, as APPNOTE.TXT 4.4.7 demands it.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

pub(super) fn short(number: usize) -> [u8; 2] {
    u16::try_from(number).unwrap().to_le_bytes()
}

/// Puts an archive together (APPNOTE.TXT sections 4.3.7, 4.3.12 and 4.3.16).
pub(super) fn zip_of(entries: &[ZipEntry], count: u16) -> Bytes {
    let mut bytes = Vec::new();
    let mut directory = Vec::new();
    for entry in entries {
        let offset = entry.offset.unwrap_or(u32::try_from(bytes.len()).unwrap());
        let mut shared = [entry.flags, entry.method, 0, 0x21]
            .map(u16::to_le_bytes)
            .concat();
        for number in [entry.crc, entry.packed_bytes, entry.unpacked_bytes] {
            shared.extend(number.to_le_bytes());
        }
        bytes.extend(b"PK\x03\x04\x14\0");
        bytes.extend(&shared);
        bytes.extend(short(entry.local_name.len()));
        bytes.extend(short(entry.extra.len()));
        bytes.extend(&entry.local_name);
        bytes.extend(&entry.extra);
        bytes.extend(&entry.content);
        directory.extend(b"PK\x01\x02\x14\x03\x14\0");
        directory.extend(&shared);
        directory.extend(short(entry.central_name.len()));
        directory.extend(short(entry.extra.len()));
        directory.extend([0; 6]);
        directory.extend((entry.mode << 16).to_le_bytes());
        directory.extend(offset.to_le_bytes());
        directory.extend(&entry.central_name);
        directory.extend(&entry.extra);
    }
    let start = u32::try_from(bytes.len()).unwrap();
    let length = u32::try_from(directory.len()).unwrap();
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([count.to_le_bytes(); 2].concat());
    bytes.extend(length.to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.into()
}

/// An archive of the manifest and these.
pub(super) fn with(entries: &[ZipEntry]) -> Bytes {
    let all = [&[stored("function.toml", MANIFEST)], entries].concat();
    zip_of(&all, u16::try_from(all.len()).unwrap())
}

/// One tar entry, by hand.
pub(super) fn tar_entry(kind: u8, name: &[u8], size: &[u8; 12], content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name);
    header[100..108].copy_from_slice(b"0006755\0");
    header[124..136].copy_from_slice(size);
    header[148..156].copy_from_slice(b"        ");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

pub(super) fn octal(size: usize) -> [u8; 12] {
    format!("{size:011o}\0").into_bytes().try_into().unwrap()
}

pub(super) fn plain(name: &[u8], content: &[u8]) -> Vec<u8> {
    tar_entry(b'0', name, &octal(content.len()), content)
}

pub(super) fn pax(key: &str, value: &str) -> Vec<u8> {
    let mut length = key.len() + value.len() + 3;
    length += length.to_string().len();
    if format!("{length} {key}={value}\n").len() != length {
        length += 1;
    }
    let record = format!("{length} {key}={value}\n");
    tar_entry(b'x', b"pax", &octal(record.len()), record.as_bytes())
}

/// An archive of the manifest and these blocks.
pub(super) fn tar_with(blocks: &[Vec<u8>]) -> Bytes {
    let mut archive = plain(b"function.toml", MANIFEST);
    blocks.iter().for_each(|block| archive.extend(block));
    archive.extend([0; 1024]);
    archive.into()
}
