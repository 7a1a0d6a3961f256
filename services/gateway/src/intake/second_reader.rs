// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Another reader finds in what is taken exactly what was taken, whichever bit of an archive was changed (threats U-03).

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Stdio},
};

use super::{by_hand::*, *};

/// Python's zipfile and tarfile: what they find in each archive, or that they refuse it. In: kind, length in decimal
/// and a newline, bytes. Out: a line of JSON for each, name to content in hexadecimal, or null.
const OTHER_READER: &str = r#"
import io, json, sys, tarfile, zipfile
data = sys.stdin.buffer
while line := data.readline():
    kind, length = line.decode().split()
    archive = io.BytesIO(data.read(int(length)))
    try:
        found = []
        if kind == "Zip":
            with zipfile.ZipFile(archive) as z:
                found = [(i.filename, z.read(i).hex()) for i in z.infolist() if not i.is_dir()]
        else:
            with tarfile.open(fileobj=archive, mode="r:") as t:
                for m in t:
                    assert m.isreg() or m.isdir(), m.type
                    if m.isreg():
                        found.append((m.name, t.extractfile(m).read().hex()))
        found = [(n[2:] if n.startswith("./") else n, c) for n, c in found]
        assert len(dict(found)) == len(found)
        print(json.dumps(dict(found)))
    except Exception as error:
        print("null")
"#;

/// What the other reader finds in each.
fn other_reader(archives: &[(Format, Bytes)]) -> Vec<Option<BTreeMap<String, String>>> {
    let mut child = Command::new("python3")
        .args(["-c", OTHER_READER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is there: .ci/run needs it too");
    let mut stdin = child.stdin.take().unwrap();
    let input: Vec<u8> = archives
        .iter()
        .flat_map(|(format, archive)| {
            let head = format!("{format:?} {}\n", archive.len());
            [head.as_bytes(), archive].concat()
        })
        .collect();
    // It reads all of one archive before it writes a line, and the lines of all fit into a pipe only by chance.
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn another_reader_finds_in_what_is_taken_exactly_what_was_taken() {
    let seeds = [
        (
            Format::Zip,
            with(&[stored("bin/run", b"x"), stored("data", b"12345")]),
        ),
        (
            Format::Tar,
            tar_with(&[
                pax("path", "bin/run"),
                plain(b"x", b"y"),
                plain(b"./data", b"12345"),
            ]),
        ),
    ];
    let mut taken = Vec::new();
    for (format, seed) in &seeds {
        for at in 0..seed.len() {
            for bit in 0..8 {
                let mut changed = seed.to_vec();
                changed[at] ^= 1 << bit;
                let changed = Bytes::from(changed);
                if let Ok(package) = unpack(changed.clone(), *format) {
                    taken.push((*format, changed, package));
                }
            }
        }
    }
    assert!(
        500 < taken.len(),
        "only {} changed archives are taken",
        taken.len()
    );
    let archives: Vec<_> = taken
        .iter()
        .map(|(format, archive, _)| (*format, archive.clone()))
        .collect();
    let found = other_reader(&archives);
    assert_eq!(found.len(), taken.len());
    let (mut differing, mut both) = (Vec::new(), 0);
    for ((format, archive, package), found) in taken.iter().zip(found) {
        let ours: BTreeMap<String, String> = package
            .files
            .iter()
            .map(|(path, file)| {
                let hex = file.content.iter().map(|byte| format!("{byte:02x}"));
                (path.clone(), hex.collect())
            })
            .collect();
        both += usize::from(found.is_some());
        // One who refuses what the other takes is not deceived.
        if found.as_ref().is_some_and(|theirs| *theirs != ours) {
            let seed = &seeds.iter().find(|(own, _)| own == format).unwrap().1;
            let at = seed
                .iter()
                .zip(archive)
                .position(|(one, other)| one != other);
            differing.push((*format, at, ours, found));
        }
    }
    assert!(500 < both, "only {both} are taken by both");
    assert!(differing.is_empty(), "{differing:#?}");
}
