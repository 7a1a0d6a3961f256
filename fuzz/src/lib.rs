// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Fuzz targets: the readers of bytes that come from somebody who may be hostile. Each takes any bytes, and panics where
//! what was read breaks a promise.
//!
//! | who may be hostile | reader |
//! | --- | --- |
//! | the gateway | the spawner's, of requests ([`spawner_request`]) |
//! | a sandbox | the gateway's, of packets of a wasm worker and of init ([`worker_packet`], [`init_event`]) |
//! | the gateway | init's, of requests ([`init_request`]) |
//! | who deploys | [`manifest`], [`archive`] |
//! | a function | the gateway's, of CGI output ([`function_output`]) |
//!
//! `cargo run -p hearth-fuzz -- SECONDS` feeds each with mutations of its seeds (`seeds/`), on any compiler; so does CI.
//! With a nightly compiler, cargo-fuzz finds its way by coverage, from the same seeds:
//! `cargo +nightly fuzz run --fuzz-dir fuzz/libfuzzer archive fuzz/seeds/archive`.
#![forbid(unsafe_code)]

pub mod mutate;

use std::fmt::Debug;

use hearth_protocol::{frame, init, monitor, spawner, worker};

pub use hearth_gateway::fuzz::{archive, function_output};

/// A reader under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its seeds' folder, and the name of its libFuzzer target.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 7] = [
    Target {
        name: "spawner_request",
        run: spawner_request,
    },
    Target {
        name: "worker_packet",
        run: worker_packet,
    },
    Target {
        name: "init_request",
        run: init_request,
    },
    Target {
        name: "init_event",
        run: init_event,
    },
    Target {
        name: "manifest",
        run: manifest,
    },
    Target {
        name: "archive",
        run: archive,
    },
    Target {
        name: "function_output",
        run: function_output,
    },
];

/// A packet to the spawner.
pub fn spawner_request(packet: &[u8]) {
    lone::<spawner::Request>(packet);
    lone::<spawner::Event>(packet);
    lone::<monitor::Request>(packet);
}

/// A packet from a wasm worker, or to one.
pub fn worker_packet(packet: &[u8]) {
    lone::<worker::Event>(packet);
    several::<worker::Event>(packet);
    several::<worker::Request>(packet);
}

/// A packet to init.
pub fn init_request(packet: &[u8]) {
    lone::<init::Request>(packet);
}

/// A packet from init.
pub fn init_event(packet: &[u8]) {
    lone::<init::Event>(packet);
}

/// The text of a function.toml.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match hearth_gateway::manifest::parse(text) {
        Ok(manifest) => assert!(!manifest.entry.is_empty()),
        Err(problems) => assert!(!problems.0.is_empty()),
    }
}

/// What is decoded says the same when it has been encoded again.
fn lone<M>(packet: &[u8])
where
    M: Debug + PartialEq + serde::Serialize + serde::de::DeserializeOwned,
{
    let Ok((message, payload)) = frame::decode::<M>(packet) else {
        return;
    };
    assert!(payload.len() < packet.len());
    let mut again = Vec::new();
    // What is not canonical may grow past the limit; such a packet was never made by us.
    if frame::encode(&message, payload, &mut again).is_ok() {
        let decoded = frame::decode::<M>(&again);
        assert!(
            matches!(&decoded, Ok((same, rest)) if *same == message && *rest == payload),
            "{message:?}, then {decoded:?}"
        );
    }
}

/// Messages of a packet end, and hold no more bytes than came.
fn several<M>(packet: &[u8])
where
    M: Debug + serde::de::DeserializeOwned,
{
    let mut rest = packet;
    let mut payload_bytes = 0;
    loop {
        let before = rest.len();
        match frame::take::<M>(&mut rest) {
            Ok(Some((_, payload))) => payload_bytes += payload.len(),
            Ok(None) | Err(_) => break,
        }
        assert!(rest.len() < before, "nothing was taken");
    }
    assert!(payload_bytes <= packet.len());
}
