// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is no HTTP/1.1 request, or one that wants more than an answer (threats H-05, H-10): each has a fixed answer.

use std::{io::Write as _, net::Shutdown, time::Duration};

use hearth_gateway::EdgeTimeouts;

use crate::{
    client::{Answer, connect, read_to_end},
    deploy::{function, put},
    server::{KEY, Server, patient},
};

#[test]
fn other_protocols_are_not_spoken_and_http_1_0_is() {
    let (server, _dir) = Server::temporary(patient());
    assert_eq!(
        server.request("GET /healthz HTTP/1.0\r\n\r\n").status(),
        200
    );
    assert_eq!(
        server
            .request(
                "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n"
            )
            .status(),
        405
    );
    let upgrade = |protocol: &str| {
        server.request(&format!("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: {protocol}\r\n\r\n")).status()
    };
    assert_eq!(upgrade("websocket"), 400);
    assert_eq!(upgrade("h2c"), 200);
    let tls = Answer::to(
        server.address,
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03 and so on\r\n\r\n",
    );
    assert_eq!(tls.status(), 400);
}

#[test]
fn http_2_is_refused_whether_it_comes_unasked_or_by_upgrade() {
    let (server, _dir) = Server::temporary(patient());
    // RFC 9113 section 3.4, followed by frames as an attack would send them.
    let mut preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let settings = b"\0\0\0\x04\0\0\0\0\0";
    preface.extend(settings.repeat(1000));
    let answer = Answer::to(server.address, &preface);
    assert!(
        answer.is_empty() || answer.status() == 400,
        "{}",
        answer.text()
    );
    assert!(!answer.text().contains('\0'), "frames: {}", answer.text());
}

#[test]
fn http_0_9_and_versions_that_do_not_exist_are_answered_with_400() {
    let (server, _dir) = Server::temporary(patient());
    for request in [
        "GET /healthz\r\n\r\n",
        "GET /healthz HTTP/0.9\r\n\r\n",
        "GET /healthz HTTP/1.2\r\nHost: x\r\n\r\n",
        "GET /healthz HTTP/11\r\nHost: x\r\n\r\n",
        "GET /healthz http/1.1\r\nHost: x\r\n\r\n",
    ] {
        let answer = server.request(request);
        assert_eq!(answer.status(), 400, "{request:?}: {}", answer.text());
    }
}

#[test]
fn trailers_are_dropped() {
    let (server, _dir) = Server::temporary(patient());
    put(&server, "a", &function("a", "#!/bin/sh\n"));
    let answer = server.request(
        "POST /invoke/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n\
         2\r\nhi\r\n0\r\nAuthorization: Bearer x\r\nContent-Length: 100\r\n\r\n",
    );
    // The body was read to its end: this host has no room for the sandbox.
    assert_eq!(
        (answer.status(), answer.code().as_str()),
        (500, "cannot_start")
    );
}

#[test]
fn trailers_without_end_are_refused() {
    let (server, _dir) = Server::temporary(patient());
    put(&server, "a", &function("a", "#!/bin/sh\n"));
    let mut stream = connect(server.address);
    stream
        .write_all(b"POST /invoke/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        .unwrap();
    let trailers = "X-Trailer: y\r\n".repeat(1000);
    let mut sent = 0_usize;
    while stream.write_all(trailers.as_bytes()).is_ok() {
        sent += trailers.len();
        assert!(sent < 64 << 20, "nobody stopped them");
    }
    let answer = read_to_end(&mut stream);
    assert!(
        answer.is_empty() || answer.status() == 400,
        "{}",
        answer.text()
    );
    assert_eq!(server.metric("hearth_body_bytes"), Some(0));
}

#[test]
fn an_expectation_that_is_never_followed_by_a_body_ends_with_408() {
    let timeouts = EdgeTimeouts {
        body_progress: Duration::from_millis(200),
        ..patient()
    };
    let (server, _dir) = Server::temporary(timeouts);
    let answer = server.request(&format!(
        "PUT /v1/functions/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    ));
    let text = answer.text();
    let rest = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap();
    assert!(rest.starts_with("HTTP/1.1 408 "), "{text}");
}

#[test]
fn a_client_that_closes_its_sending_side_within_a_request_is_let_go() {
    let (server, _dir) = Server::temporary(patient());
    let whole = format!(
        "PUT /v1/functions/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 5\r\n\r\nhalf"
    );
    // In the head, at its end, and in the body.
    for sent in [20, whole.len() - 4, whole.len()] {
        let mut stream = connect(server.address);
        stream.write_all(&whole.as_bytes()[..sent]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let answer = read_to_end(&mut stream);
        assert!(
            answer.is_empty() || answer.status() == 400,
            "{sent}: {}",
            answer.text()
        );
    }
    assert_eq!(server.metric("hearth_body_bytes"), Some(0));
}
