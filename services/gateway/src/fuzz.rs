// SPDX-License-Identifier: Apache-2.0 OR MIT
//! This crate's readers of bytes from strangers, as the fuzz targets call them (`fuzz/`): each is given any bytes, and
//! panics where what it made of them breaks its promise. Nothing else uses this.

use axum::body::Body;
use bytes::Bytes;

use crate::{
    cgi,
    intake::{self, Format},
    manifest,
};

/// An archive of a deploy: whatever is taken has paths that are taken again, and a manifest.
pub fn archive(bytes: &[u8]) {
    for format in [Format::Tar, Format::Zip] {
        if let Ok(package) = intake::unpack(Bytes::copy_from_slice(bytes), format) {
            assert!(package.files.contains_key(manifest::FILE_NAME));
            for path in package.files.keys() {
                assert!(intake::is_taken_as_it_is(path), "{path:?}");
            }
        }
    }
}

/// A function's output on `/fn` routes: no field that is taken could split the answer or frames it.
pub fn function_output(bytes: &[u8]) {
    let Ok(head) = cgi::parse_head(bytes) else {
        return;
    };
    assert!(head.body_at <= bytes.len());
    let response = head.into_response(Body::empty());
    for (name, value) in response.headers() {
        let splits = |byte: &u8| matches!(byte, b'\r' | b'\n' | b'\0');
        assert!(!value.as_bytes().iter().any(splits), "{name}: {value:?}");
        let frames = ["content-length", "transfer-encoding", "connection"];
        assert!(!frames.contains(&name.as_str()), "{name}");
    }
}
