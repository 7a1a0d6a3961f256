// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Deploys of functions whose sandboxes nobody makes.

use hearth_gateway::GatewayLimits;

use crate::{
    client::Answer,
    server::{KEY, Server, patient},
};

pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn function(name: &str, script: &str) -> Vec<u8> {
    let manifest = format!("name = \"{name}\"\nentry = \"run\"\n[env]\nTOKEN = \"hush\"\n");
    tar_of(&[
        ("function.toml", manifest.as_bytes()),
        ("run", script.as_bytes()),
    ])
}

pub(crate) fn put(server: &Server, name: &str, archive: &[u8]) -> Answer {
    let head = format!(
        "PUT /v1/functions/{name} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\nContent-Type: application/x-tar\r\nContent-Length: {}\r\n\r\n",
        archive.len()
    );
    Answer::to(server.address, &[head.as_bytes(), archive].concat())
}

pub(crate) fn call(server: &Server, method: &str, path: &str) -> Answer {
    server.request(&format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"))
}

#[test]
fn a_deploy_is_listed_described_replaced_and_removed_and_its_trees_go_with_it() {
    let (server, _dir) = Server::temporary(patient());
    let first = put(&server, "a", &function("a", "#!/bin/sh\n"));
    assert_eq!(first.status(), 201, "{}", first.text());
    assert_eq!(first.json()["base"], "minimal");
    let again = put(&server, "a", &function("a", "#!/bin/sh\n"));
    assert_eq!(
        (again.status(), &again.json()["revision"]),
        (200, &first.json()["revision"])
    );
    let second = put(&server, "a", &function("a", "#!/bin/sh\necho\n"));
    assert_eq!(second.status(), 201);
    assert_ne!(second.json()["revision"], first.json()["revision"]);

    let described = call(&server, "GET", "/v1/functions/a");
    assert_eq!(described.json()["revision"], second.json()["revision"]);
    assert!(
        !described.text().contains("hush"),
        "an environment's values are not shown"
    );
    let listed = call(&server, "GET", "/v1/functions").json();
    assert_eq!(listed["functions"].as_array().unwrap().len(), 1);
    assert_eq!(call(&server, "DELETE", "/v1/functions/a").status(), 204);
    assert_eq!(call(&server, "GET", "/v1/functions/a").status(), 404);
    assert_eq!(call(&server, "DELETE", "/v1/functions/a").status(), 404);

    let trees = server.trees.lock().unwrap();
    assert_eq!(trees.stored.len(), 2);
    assert_eq!(trees.removed, trees.stored);
    drop(trees);
    assert_eq!(
        server.metric("hearth_deploys_total{result=\"deployed\"}"),
        Some(2)
    );
    assert_eq!(
        server.metric("hearth_deploys_total{result=\"unchanged\"}"),
        Some(1)
    );
}

#[test]
fn functions_come_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let start = || Server::start(dir.path(), GatewayLimits::default(), patient());
    let server = start();
    let deployed = put(&server, "a", &function("a", "#!/bin/sh\n")).json();
    drop(server);
    let server = start();
    assert_eq!(call(&server, "GET", "/v1/functions/a").json(), deployed);
}

#[test]
fn a_refused_deploy_says_everything_that_is_wrong_and_leaves_nothing() {
    let (server, _dir) = Server::temporary(patient());
    let manifest = b"name = \"a\"\nentry = \"gone\"\ncolour = 1\n[limits]\nmemory = 3\n";
    let bad_manifest = put(&server, "a", &tar_of(&[("function.toml", manifest)]));
    assert_eq!(
        (bad_manifest.status(), bad_manifest.code().as_str()),
        (400, "bad_manifest")
    );
    assert_eq!(
        bad_manifest.json()["evidence"]["problems"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let no_entry = put(
        &server,
        "a",
        &tar_of(&[("function.toml", b"name = \"a\"\nentry = \"run\"\n")]),
    );
    assert_eq!(no_entry.json()["evidence"]["problems"][0]["at"], "entry");
    let bad_archive = put(&server, "a", &tar_of(&[("x", b"y")]));
    assert_eq!(
        (bad_archive.status(), bad_archive.code().as_str()),
        (400, "bad_archive")
    );
    let other_name = put(&server, "b", &function("a", "#!/bin/sh\n"));
    assert_eq!(
        (other_name.status(), other_name.code().as_str()),
        (409, "conflict")
    );
    let not_an_archive = put(&server, "a", b"hello");
    assert!(matches!(
        not_an_archive.code().as_str(),
        "bad_archive" | "unsupported_media_type"
    ));
    // This host has no room for the sandbox that would compile it.
    let wasm = put(
        &server,
        "a",
        &tar_of(&[
            ("function.toml", b"name = \"a\"\nentry = \"m\"\n"),
            ("m", b"\0asm\x01\0\0\0"),
        ]),
    );
    assert_eq!((wasm.status(), wasm.code().as_str()), (500, "cannot_start"));

    assert_eq!(
        call(&server, "GET", "/v1/functions").json()["functions"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    assert_eq!(server.trees.lock().unwrap().stored, []);
    assert_eq!(
        server.metric("hearth_deploys_total{result=\"refused\"}"),
        Some(6)
    );
    assert_eq!(server.metric("hearth_body_bytes"), Some(0));
}

#[test]
fn an_invocation_on_a_host_without_room_is_answered_counted_and_has_a_receipt() {
    let (server, _dir) = Server::temporary(patient());
    put(&server, "a", &function("a", "#!/bin/sh\n"));
    let answer = call(&server, "POST", "/invoke/a");
    assert_eq!(
        (answer.status(), answer.code().as_str()),
        (500, "cannot_start")
    );
    assert_eq!(answer.json()["evidence"]["step"], "clone3");
    let id = answer.header("hearth-invocation").unwrap();
    assert_eq!(answer.json()["invocation"], id);
    assert!(
        answer
            .header("server-timing")
            .unwrap()
            .starts_with("queue;dur=")
    );
    let receipt = call(&server, "GET", &format!("/v1/invocations/{id}"));
    assert_eq!(
        (receipt.status(), &receipt.json()["outcome"]),
        (200, &"cannot_start".into())
    );
    let counted = "hearth_invocations_total{function=\"a\",kind=\"native\",outcome=\"cannot_start\",start=\"none\"}";
    assert_eq!(server.metric(counted), Some(1));
    assert_eq!(server.metric("hearth_invocations_inflight"), Some(0));
    assert_eq!(
        call(
            &server,
            "GET",
            &format!("/v1/functions/a/logs?invocation={id}")
        )
        .status(),
        200
    );
    assert_eq!(
        call(&server, "GET", "/v1/functions/a/logs?limit=0").status(),
        400
    );
}

#[test]
fn a_request_whose_headers_do_not_fit_into_an_environment_is_answered_with_431() {
    let (server, _dir) = Server::temporary(patient());
    put(&server, "a", &function("a", "#!/bin/sh\n"));
    let big = "y".repeat(40_000);
    let answer = server.request(&format!(
        "GET /fn/a/ HTTP/1.1\r\nHost: localhost\r\nX-Big: {big}\r\nConnection: close\r\n\r\n"
    ));
    assert_eq!(
        (answer.status(), answer.code().as_str()),
        (431, "headers_too_large")
    );
}

#[test]
fn a_deploy_that_finds_the_disk_full_is_answered_with_507_and_leaves_nothing_and_calls_go_on() {
    let (server, _dir) = Server::temporary(patient());
    let before = put(&server, "a", &function("a", "#!/bin/sh\n"));
    assert_eq!(before.status(), 201);
    server.trees.lock().unwrap().full = true;
    for (name, script) in [("a", "#!/bin/sh\necho\n"), ("b", "#!/bin/sh\n")] {
        let answer = put(&server, name, &function(name, script));
        assert_eq!(
            (answer.status(), answer.code().as_str()),
            (507, "storage_full"),
            "{}",
            answer.text()
        );
    }
    assert_eq!(call(&server, "GET", "/v1/functions/b").status(), 404);
    let described = call(&server, "GET", "/v1/functions/a").json();
    assert_eq!(described["revision"], before.json()["revision"]);
    assert_eq!(server.metric("hearth_body_bytes"), Some(0));
    // As far as it comes on a host without room for a sandbox.
    assert_eq!(call(&server, "POST", "/invoke/a").code(), "cannot_start");
    server.trees.lock().unwrap().full = false;
    assert_eq!(
        put(&server, "b", &function("b", "#!/bin/sh\n")).status(),
        201
    );
}
