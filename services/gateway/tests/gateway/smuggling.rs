// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Requests that two servers could read differently (threats H-01), as they were found in servers and proxies of the
//! past: each gets one answer, 400, and what follows it on the connection is not read as a request.

use crate::{
    client::Answer,
    deploy::{function, put},
    server::{Server, patient},
};

/// What a smuggler wants to be taken for a request of its own.
const SECOND: &str = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// The head of a call, without the headers under test.
const CALL: &str = "POST /invoke/a HTTP/1.1\r\nHost: localhost\r\n";

fn server() -> (Server, tempfile::TempDir) {
    let (server, dir) = Server::temporary(patient());
    assert_eq!(
        put(&server, "a", &function("a", "#!/bin/sh\n")).status(),
        201
    );
    (server, dir)
}

/// Sends a request and, in the same packet, another one.
fn refused(server: &Server, request: &[u8]) {
    let answer = Answer::to(server.address, &[request, SECOND.as_bytes()].concat());
    let shown = String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
    let text = answer.text();
    assert!(!answer.is_empty(), "{shown:?}: closed without an answer");
    assert_eq!(answer.status(), 400, "{shown:?}: {text}");
    assert_eq!(text.matches("HTTP/1.").count(), 1, "{shown:?}: {text}");
}

#[test]
fn two_lengths_or_a_length_that_is_no_number_are_refused() {
    let (server, _dir) = server();
    for headers in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\nContent-Length: 0\r\n",
        "Content-Length: 0\r\nContent-Length: 43\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: 5_0\r\n",
        "Content-Length: 5.0\r\n",
        "Content-Length: \"5\"\r\n",
        "Content-Length: 5;\r\n",
        "Content-Length: \x0b5\r\n",
        "Content-Length: ٥\r\n",
        "Content-Length:\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 99999999999999999999999999999999\r\n",
    ] {
        refused(&server, format!("{CALL}{headers}\r\nhello").as_bytes());
    }
}

#[test]
fn a_length_beside_chunks_and_obfuscated_chunks_are_refused() {
    let (server, _dir) = server();
    let chunks = "0\r\n\r\n";
    for headers in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunkedx\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: identity, chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: cow\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunked;x\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding: \x0cchunked\r\n",
        "Transfer-Encoding: ch\u{212a}unked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding\x0b: chunked\r\n",
        " Transfer-Encoding: chunked\r\n",
        "X: y\r\n Transfer-Encoding: chunked\r\n",
        "X: y\rTransfer-Encoding: chunked\r\n",
        "X: y\nTransfer-Encoding: chunked\r\n",
        "X: y\0Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\n",
        "\0Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding chunked\r\n",
        ": chunked\r\n",
    ] {
        refused(&server, format!("{CALL}{headers}\r\n{chunks}").as_bytes());
    }
}

#[test]
fn chunks_that_are_none_are_refused() {
    let (server, _dir) = server();
    for chunks in [
        "ffffffffffffffff1\r\nhello\r\n0\r\n\r\n",
        "10000000000000000\r\n\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5_\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5;x\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "5\r\nhello\r\n0\r\nX",
        "0\n\r\n",
    ] {
        let request = format!("{CALL}Transfer-Encoding: chunked\r\n\r\n{chunks}");
        refused(&server, request.as_bytes());
    }
    let extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(20_000));
    let request = format!("{CALL}Transfer-Encoding: chunked\r\n\r\n{extension}");
    refused(&server, request.as_bytes());
}

#[test]
fn lines_that_end_or_begin_as_none_may_are_refused() {
    let (server, _dir) = server();
    for request in [
        "GET /healthz HTTP/1.1\nHost: localhost\n\n",
        "GET /healthz HTTP/1.1\nHost: localhost\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\n\n",
        "\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\r\n folded\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\r\n\tfolded\r\n\r\n",
        "GET /healthz HTTP/1.1\r\n Host: localhost\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX : a\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX\t: a\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX(): a\r\n\r\n",
        "GET  /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /healthz  HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET\t/healthz\tHTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /healthz HTTP/1.1 \r\nHost: localhost\r\n\r\n",
        "GET /health z HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /healthz\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "G\0T /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        " GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET\r\n\r\n",
        "GET healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        refused(&server, request.as_bytes());
    }
}

#[test]
fn two_hosts_or_a_host_beside_another_authority_are_refused() {
    let (server, _dir) = server();
    for (target, hosts) in [
        ("/invoke/a", "Host: localhost\r\nHost: localhost\r\n"),
        ("/invoke/a", "Host: localhost\r\nHost: evil.example\r\n"),
        ("http://evil.example/invoke/a", "Host: localhost\r\n"),
        ("http://localhost/invoke/a", "Host: evil.example\r\n"),
        ("http://user@localhost/invoke/a", "Host: localhost\r\n"),
        ("/invoke/a", "Host: localhost, evil.example\r\n"),
        ("/invoke/a", "Host: localhost evil.example\r\n"),
        ("/invoke/a", "Host: localhost/evil\r\n"),
        ("/invoke/a", "Host: localhost#@evil.example\r\n"),
    ] {
        let answer = server.request(&format!(
            "POST {target} HTTP/1.1\r\n{hosts}Connection: close\r\nContent-Length: 0\r\n\r\n"
        ));
        assert!(
            [400, 403].contains(&answer.status()),
            "{target} {hosts:?}: {}",
            answer.text()
        );
    }
}

#[test]
fn requests_sent_together_are_answered_up_to_the_first_and_the_connection_ends_with_it() {
    let (server, _dir) = server();
    let three = SECOND.repeat(3);
    let answer = Answer::to(server.address, three.as_bytes());
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(answer.header("connection").as_deref(), Some("close"));
    assert_eq!(answer.text().matches("HTTP/1.").count(), 1);
}

#[test]
fn an_empty_line_before_a_request_is_skipped() {
    let (server, _dir) = server();
    let request = "\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(server.request(request).status(), 200);
}
