// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Request targets from hostile clients (threats H-06): decoded once, and refused where they are too long.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use crate::{
    client::{connect, read_to_end},
    deploy::{function, put},
    server::{KEY, Server, patient},
};

/// What a client sends in the longest of these requests, in bytes.
const LONG_BYTES: usize = 100 << 20;

/// A request line without end is refused once its beginning is too long, not when all of it has come.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_target_of_a_hundred_mebibytes_is_refused_at_its_beginning() {
    let (server, _dir) = Server::temporary(patient());
    for beginning in ["GET /", "GET /fn/a/?"] {
        let mut stream = connect(server.address);
        let began = Instant::now();
        stream.write_all(beginning.as_bytes()).unwrap();
        let piece = "a=b&".repeat(16 << 10);
        let mut sent = 0;
        while sent < LONG_BYTES && stream.write_all(piece.as_bytes()).is_ok() {
            sent += piece.len();
        }
        assert!(sent < LONG_BYTES, "all of it was taken");
        assert!(began.elapsed() < SOON);
        let answer = read_to_end(&mut stream);
        assert!(
            answer.is_empty() || [414, 431].contains(&answer.status()),
            "{}",
            answer.text()
        );
    }
}

#[test]
fn a_query_of_thousands_of_parameters_is_refused_or_ignored() {
    let (server, _dir) = Server::temporary(patient());
    let get = |query: &str| {
        server
            .request(&format!(
                "GET /v1/functions/a/logs?{query} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n"
            ))
            .status()
    };
    assert_eq!(get(&"a=b&".repeat(5000)), 414);
    assert!([400, 404].contains(&get(&"limit=1&".repeat(2000))));
    assert!([400, 404].contains(&get(&"%&=&%zz&".repeat(1000))));
}

#[test]
fn a_path_is_decoded_once_and_a_name_is_what_it_then_is() {
    let (server, _dir) = Server::temporary(patient());
    assert_eq!(
        put(&server, "a", &function("a", "#!/bin/sh\n")).status(),
        201
    );
    let status = |path: &str| {
        server
            .request(&format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            ))
            .status()
    };
    // The host has no room for a sandbox: that answer shows that the function was found.
    let found = 500;
    for path in ["/invoke/a", "/invoke/%61", "/fn/a/x", "/fn/%61/x"] {
        assert_eq!(status(path), found, "{path}");
    }
    for path in [
        "/invoke/%2561",
        "/invoke/..%2fa",
        "/invoke/%2e%2e/a",
        "/invoke/../invoke/a",
        "/invoke/a%00",
        "/invoke/a%2f",
        "/invoke/%c0%ae",
        "/invoke/%",
        "/invoke/%6",
        "/invoke/%zz",
        "/invoke//a",
        "//invoke/a",
        "/invoke/a/",
        "/./invoke/a",
        "/invoke/a;x",
        "/INVOKE/a",
        "/fn/..%2fa/x",
        "/fn//a/x",
        "/fn/%2561/x",
        "/fn/a%00/x",
        "/fn/a/..%2f..%2fx",
    ] {
        let status = status(path);
        assert!([400, 404, 405].contains(&status), "{path}: {status}");
    }
}

#[test]
fn a_name_is_of_the_few_characters_that_names_have() {
    let (server, _dir) = Server::temporary(patient());
    let long = "x".repeat(64);
    let very_long = "x".repeat(10 << 10);
    for name in [
        ".",
        "..",
        "%2e",
        "%2e%2e",
        "..%2f..%2fx",
        "%00",
        "a%00b",
        "%e2%80%a4%e2%80%a4",
        "%ef%bc%8e%ef%bc%8e",
        "CON",
        "a.b",
        "-a",
        "a_b",
        "a%20b",
        "a%0ab",
        "%ff",
        long.as_str(),
        very_long.as_str(),
    ] {
        for (method, path) in [
            ("PUT", format!("/v1/functions/{name}")),
            ("DELETE", format!("/v1/functions/{name}")),
            ("GET", format!("/v1/functions/{name}/logs")),
            ("POST", format!("/invoke/{name}")),
            ("GET", format!("/fn/{name}/x")),
        ] {
            let answer = server.request(&format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            ));
            assert_eq!(answer.status(), 400, "{method} {path}: {}", answer.text());
        }
    }
}
