// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Manifests from hostile deployers (threats H-08). The manifest is the one structured text that a client sends: nested
//! without end, with numbers of any size, with keys that are there twice, or no text at all, it is a problem with a place.

use crate::{
    deploy::{put, tar_of},
    server::{Server, patient},
};

/// Beyond the longest manifest (64 KiB), and just below it.
const DEPTHS: [usize; 2] = [100_000, 31_000];

#[test]
fn a_manifest_that_is_made_to_exhaust_its_reader_is_refused() {
    let (server, _dir) = Server::temporary(patient());
    let begin = "name = \"a\"\nentry = \"run\"\n";
    for depth in DEPTHS {
        let path = vec!["a"; depth].join(".");
        let manifests = [
            format!("{begin}x = {}{}", "[".repeat(depth), "]".repeat(depth)),
            format!("{begin}x = {}", "[".repeat(depth)),
            format!("{begin}x = {}", "{a=".repeat(depth / 2)),
            format!("{begin}{path} = 1"),
            format!("{begin}x = {{ {path} = 1 }}"),
            format!("{begin}[{path}]"),
            format!("{begin}[[{path}]]"),
            format!("{begin}{}", "[[a]]\n".repeat(depth / 6)),
            format!("{begin}x = {}", "9".repeat(depth)),
            format!("{begin}x = 1e{}", "9".repeat(depth)),
            format!("{begin}x = \"{}", "a".repeat(depth)),
        ];
        for manifest in manifests {
            refused(&server, manifest.as_bytes());
        }
    }
}

#[test]
fn numbers_and_texts_that_are_none_and_keys_that_are_there_twice_are_refused() {
    let (server, _dir) = Server::temporary(patient());
    for rest in [
        "name = \"b\"",
        "[limits]\n[limits]",
        "[limits]\ntimeout = 1e400",
        "[limits]\npids = 99999999999999999999",
        "[limits]\npids = -1",
        "[limits]\npids = 1.5",
        "[limits]\nmemory = \"99999999999999999999GiB\"",
        "[limits]\nmemory = \"-1MiB\"",
        "[limits]\ncpu = nan",
        "[limits]\ncpu = inf",
        "x = \"\\u{110000}\"",
        "x = \"\\ud800\"",
    ] {
        let manifest = format!("name = \"a\"\nentry = \"run\"\n{rest}");
        refused(&server, manifest.as_bytes());
    }
    let many: String = (0..6000).map(|number| format!("k{number}=1\n")).collect();
    refused(
        &server,
        format!("name = \"a\"\nentry = \"run\"\n{many}").as_bytes(),
    );
}

#[test]
fn a_manifest_that_is_no_text_is_refused() {
    let (server, _dir) = Server::temporary(patient());
    for no_text in [
        b"\xff\xfe".as_slice(),
        b"name = \"\xc3\x28\"",
        b"\0\0\0\0",
        b"name = \"a\0\"",
    ] {
        let archive = tar_of(&[("function.toml", no_text), ("run", b"#!/bin/sh\n")]);
        assert_eq!(put(&server, "a", &archive).status(), 400, "{no_text:?}");
    }
}

/// With an answer that is not longer than what it is about may be.
fn refused(server: &Server, manifest: &[u8]) {
    const ANSWER_BYTES_MAX: usize = 16 << 10;
    let archive = tar_of(&[("function.toml", manifest), ("run", b"#!/bin/sh\n")]);
    let answer = put(server, "a", &archive);
    let shown = String::from_utf8_lossy(&manifest[..manifest.len().min(80)]).into_owned();
    let text = answer.text();
    assert_eq!(answer.status(), 400, "{shown}: {text}");
    assert_eq!(answer.code(), "bad_manifest", "{shown}");
    let length = text.len();
    assert!(length < ANSWER_BYTES_MAX, "{shown}: {length} bytes");
}
