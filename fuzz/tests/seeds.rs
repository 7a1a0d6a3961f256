// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The seeds in `seeds/` are what the readers take today: where a message changes, its seed has to be made anew, which
//! `HEARTH_FUZZ_SEEDS=write cargo test -p hearth-fuzz --test seeds` does.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot do what it needs has failed"
)]

use std::{collections::BTreeMap, io::Write as _, path::Path};

use hearth_fuzz::TARGETS;
use hearth_protocol::{SmallName, TreeId, frame, init, profile, spawner, worker};

const MANIFEST: &str = "name = \"seed\"\nentry = \"run\"\n";

/// Every key of a manifest.
const WHOLE_MANIFEST: &str = r#"name = "seed"
entry = "bin/run"
contract = "stdio"
base = "minimal"
content_type = "text/plain"
build = "make"
[limits]
memory = "128MiB"
cpu = 0.5
pids = 32
timeout = "3s"
init_timeout = "10s"
scratch = "64MiB"
request = "6MiB"
response = "6MiB"
log = "64KiB"
[scaling]
max_instances = 16
max_inflight = 1
min_warm = 0
idle_timeout = "auto"
[env]
GREETING = "hello"
[sandbox]
seccomp = "default"
network = "none"
writable_root = false
"#;

fn packet<M: serde::Serialize>(message: &M, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    frame::encode(message, payload, &mut packet).unwrap();
    packet
}

fn spawner_requests() -> Vec<Vec<u8>> {
    let (request, sandbox) = (spawner::RequestId(7), spawner::SandboxId(3));
    let upload = spawner::UploadId(1);
    let tree = TreeId::new("a".repeat(64)).unwrap();
    let limits = spawner::SandboxLimits {
        memory_bytes: 64 << 20,
        pids: 16,
        cpu_millis: 500,
        scratch_bytes: 1 << 20,
        scratch_inodes: 100,
    };
    let bind = |handover| spawner::Request::Bind {
        request,
        sandbox,
        tree: tree.clone(),
        handover,
        limits,
    };
    [
        bind(spawner::Handover::Mount),
        bind(spawner::Handover::OpenFile("module.cwasm".to_owned())),
        spawner::Request::Renew { request, sandbox },
        spawner::Request::Inspect { request, sandbox },
        spawner::Request::Destroy { sandbox },
        spawner::Request::TreeBegin { request },
        spawner::Request::TreeChunk {
            upload,
            path: "bin/run".to_owned(),
            executable: true,
            offset: 0,
            bytes: 300,
        },
        spawner::Request::TreeCommit { request, upload },
        spawner::Request::TreeRemove {
            request,
            tree: tree.clone(),
        },
        spawner::Request::Create {
            request,
            spec: learned_spec(),
            limits,
        },
        spawner::Request::TreeOpen {
            request,
            tree,
            path: "seccomp.json".to_owned(),
        },
        spawner::Request::Observe { request },
        spawner::Request::EndObservation {
            request,
            observation: profile::ObservationId(1),
        },
        spawner::Request::ReadProfile {
            request,
            of: profile::Tier::Strict,
            calls: vec!["read".to_owned(), "write".to_owned()],
        },
    ]
    .iter()
    .map(|request| packet(request, b""))
    .collect()
}

fn learned_spec() -> spawner::SkeletonSpec {
    let mut calls = profile::CallSet::default();
    calls.insert(1);
    let of = profile::Tier::Default;
    spawner::SkeletonSpec {
        worker: spawner::Worker::PerCall,
        base: SmallName::new("static").unwrap(),
        root: spawner::Root::ReadOnly,
        profile: spawner::Profile::Learned(profile::Learned { of, calls }),
        network: spawner::Network::None,
        core: None,
    }
}

fn worker_packets() -> Vec<Vec<u8>> {
    let done = |ending| worker::Event::Done {
        seq: 7,
        ending,
        usage: worker::Usage::default(),
    };
    let mut several = Vec::new();
    for (event, payload) in [
        (
            worker::Event::Output {
                seq: 7,
                stream: worker::Stream::Stdout,
            },
            b"text".as_slice(),
        ),
        (done(worker::Ending::Exited(0)), b"rest"),
        (
            done(worker::Ending::Trap {
                text: "wasm trap: unreachable".to_owned(),
            }),
            b"",
        ),
    ] {
        frame::append(&event, payload, &mut several).unwrap();
    }
    let mut requests = Vec::new();
    let run = worker::Request::Run {
        seq: 1,
        args: vec!["seed".to_owned()],
        env: vec![("A".to_owned(), "b".to_owned())],
        body_bytes: 4,
        timeout_ms: 1000,
    };
    frame::append(&run, b"body", &mut requests).unwrap();
    frame::append(&worker::Request::Cancel { seq: 1 }, b"", &mut requests).unwrap();
    vec![packet(&worker::Event::Booted, b""), several, requests]
}

fn init_requests() -> Vec<Vec<u8>> {
    let program = init::Program {
        argv: vec!["/function/run".to_owned()],
        env: vec![("HOME".to_owned(), "/tmp".to_owned())],
        cwd: "/function".to_owned(),
        cores: vec![0],
    };
    let run = init::Request::Run {
        seq: 1,
        env: vec![("REQUEST_METHOD".to_owned(), "GET".to_owned())],
    };
    vec![
        packet(&init::Request::Bind(program), b""),
        packet(&run, b""),
    ]
}

fn init_events() -> Vec<Vec<u8>> {
    let exited = |status, clean| init::Event::Exited {
        seq: 1,
        status,
        clean,
    };
    let scratch = init::ScratchUse {
        blocks: 1000,
        inodes: 3,
    };
    let clean = init::Event::Clean {
        seq: 1,
        killed: 2,
        scratch,
    };
    [
        init::Event::Bound,
        exited(init::ExitStatus::Exited(3), Some(scratch)),
        exited(init::ExitStatus::Signaled(9), None),
        clean,
    ]
    .iter()
    .map(|event| packet(event, b""))
    .collect()
}

fn tar() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in [("function.toml", MANIFEST), ("run", "#!/bin/sh\n")] {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        builder
            .append_data(&mut header, path, content.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn zip(method: zip::CompressionMethod) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    for (path, content) in [("function.toml", MANIFEST), ("run", "#!/bin/sh\n")] {
        writer.start_file(path, options).unwrap();
        writer.write_all(content.as_bytes()).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn outputs() -> Vec<Vec<u8>> {
    [
        "Content-Type: text/plain\n\nbody",
        "Status: 404 Not here\r\nContent-Type: text/plain\r\nX-A: 1\r\n\r\n",
        "Location: /x\n\n",
        "Content-Type: a/b\nConnection: close, X-Hop\nX-Hop: 1\nSet-Cookie: a=b; Domain=c\n\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn seeds() -> BTreeMap<&'static str, Vec<Vec<u8>>> {
    BTreeMap::from([
        ("spawner_request", spawner_requests()),
        ("worker_packet", worker_packets()),
        ("init_request", init_requests()),
        ("init_event", init_events()),
        ("manifest", vec![MANIFEST.into(), WHOLE_MANIFEST.into()]),
        (
            "archive",
            vec![
                tar(),
                zip(zip::CompressionMethod::Stored),
                zip(zip::CompressionMethod::Deflated),
            ],
        ),
        ("function_output", outputs()),
    ])
}

#[test]
fn the_seeds_of_every_target_are_what_its_reader_takes_today() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    #[expect(clippy::disallowed_methods, reason = "asked for by who runs this test")]
    let write = std::env::var("HEARTH_FUZZ_SEEDS").is_ok_and(|what| what == "write");
    let seeds = seeds();
    for target in TARGETS {
        for (number, seed) in seeds[target.name].iter().enumerate() {
            let path = folder.join(target.name).join(number.to_string());
            if write {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, seed).unwrap();
            }
            assert_eq!(std::fs::read(&path).unwrap(), *seed, "{}", path.display());
            (target.run)(seed);
        }
    }
    assert_eq!(seeds.len(), TARGETS.len());
}
