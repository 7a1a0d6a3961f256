// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Every limit of a connection, hit on purpose; each alone, so that no other can have done it.

use std::{
    io::{Read as _, Write as _},
    time::{Duration, Instant},
};

use hearth_gateway::{EdgeTimeouts, GatewayLimits};

use crate::{
    client::{Answer, PATIENCE, connect, read_to_end},
    server::{KEY, Server, patient},
};

/// The limit under test.
const SHORT: Duration = Duration::from_millis(200);

/// Runs `talk`, and checks that the server ended it because of the limit: not before, and not much later.
fn ends_by_the_limit(timeouts: EdgeTimeouts, talk: impl FnOnce(&Server) -> Answer) -> Answer {
    let (server, _dir) = Server::temporary(timeouts);
    let began = Instant::now();
    let answer = talk(&server);
    let took = began.elapsed();
    assert!(SHORT <= took && took < PATIENCE / 2, "{took:?}");
    answer
}

#[test]
fn a_client_that_sends_nothing_is_closed() {
    let timeouts = EdgeTimeouts {
        first_byte: SHORT,
        ..patient()
    };
    let answer = ends_by_the_limit(timeouts, |server| read_to_end(&mut connect(server.address)));
    assert!(answer.is_empty());
}

#[test]
fn a_client_that_sends_half_a_header_is_closed() {
    let timeouts = EdgeTimeouts {
        header_read: SHORT,
        ..patient()
    };
    ends_by_the_limit(timeouts, |server| {
        let mut stream = connect(server.address);
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: loc")
            .unwrap();
        read_to_end(&mut stream)
    });
}

#[test]
fn a_client_that_sends_its_header_byte_by_byte_is_closed_although_it_makes_progress() {
    let timeouts = EdgeTimeouts {
        header_read: SHORT,
        first_byte: SHORT,
        ..patient()
    };
    ends_by_the_limit(timeouts, |server| {
        let mut stream = connect(server.address);
        stream.write_all(b"GET /healthz HTTP/1.1\r\n").unwrap();
        stream.set_read_timeout(Some(SHORT / 10)).unwrap();
        let began = Instant::now();
        // The read is the pause between two bytes.
        while began.elapsed() < PATIENCE && stream.write_all(b"x").is_ok() {
            if matches!(stream.read(&mut [0; 1]), Ok(0)) {
                break;
            }
        }
        read_to_end(&mut stream)
    });
}

#[test]
fn a_kept_connection_on_which_nothing_comes_is_closed_and_one_in_use_is_not() {
    let timeouts = EdgeTimeouts {
        keep_alive_idle: SHORT,
        ..patient()
    };
    let answer = ends_by_the_limit(timeouts, |server| {
        let mut stream = connect(server.address);
        for _ in 0..3 {
            stream
                .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                .unwrap();
            let mut answer = [0; 512];
            assert!(0 < stream.read(&mut answer).unwrap());
        }
        read_to_end(&mut stream)
    });
    assert!(answer.is_empty());
}

/// A deploy's body that never comes to its end.
fn deploy_with_body(sent: &[u8]) -> Vec<u8> {
    let head = format!(
        "PUT /v1/functions/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 1000\r\n\r\n"
    );
    [head.as_bytes(), sent].concat()
}

#[test]
fn a_body_that_stops_coming_is_answered_with_408() {
    let timeouts = EdgeTimeouts {
        body_progress: SHORT,
        ..patient()
    };
    let answer = ends_by_the_limit(timeouts, |server| {
        Answer::to(server.address, &deploy_with_body(b"half"))
    });
    assert_eq!(
        (answer.status(), answer.code().as_str()),
        (408, "request_timeout")
    );
}

#[test]
fn a_body_that_drips_is_answered_with_408_although_it_makes_progress() {
    let timeouts = EdgeTimeouts {
        body_whole: SHORT,
        ..patient()
    };
    let answer = ends_by_the_limit(timeouts, |server| {
        let mut stream = connect(server.address);
        stream.write_all(&deploy_with_body(b"")).unwrap();
        stream.set_read_timeout(Some(SHORT / 10)).unwrap();
        let began = Instant::now();
        let mut first = [0; 1];
        // The read is the pause between two bytes.
        while began.elapsed() < PATIENCE && stream.peek(&mut first).is_err() {
            stream.write_all(b"x").unwrap();
        }
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        read_to_end(&mut stream)
    });
    assert_eq!(answer.status(), 408);
}

#[test]
fn a_client_that_never_reads_its_answers_is_closed() {
    let timeouts = EdgeTimeouts {
        write_progress: SHORT,
        ..patient()
    };
    ends_by_the_limit(timeouts, |server| {
        let mut stream = connect(server.address);
        let own_port = stream.local_addr().unwrap().port();
        let began = Instant::now();
        // Requests without end, each with an answer of some KiB, until the server has had enough. Each is sent when
        // the server has taken the one before it: of requests that come together only the first is answered.
        while stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .is_ok()
        {
            assert!(began.elapsed() < PATIENCE);
            let sent = Instant::now();
            while sent.elapsed() < SHORT && 0 < untaken_bytes(server.address.port(), own_port) {
                std::thread::yield_now();
            }
        }
        read_to_end(&mut stream)
    });
}

/// What a client sent and the server has not read yet: the receive queue of the server's end, in bytes (proc(5)). The table is
/// not read at one moment, so that a line can be missing from it: such a look says nothing, as if there were something.
fn untaken_bytes(server_port: u16, client_port: u16) -> u64 {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let ends = (
        format!("0100007F:{server_port:04X}"),
        format!("0100007F:{client_port:04X}"),
    );
    let line = table.lines().find(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        (fields.next(), fields.next()) == (Some(&ends.0), Some(&ends.1))
    });
    let queues = line.and_then(|line| line.split_ascii_whitespace().nth(4));
    queues.map_or(1, |queues| {
        u64::from_str_radix(&queues[queues.len() - 8..], 16).unwrap()
    })
}

#[test]
fn at_the_limit_of_connections_accepting_pauses_and_goes_on_when_one_closes() {
    let dir = tempfile::tempdir().unwrap();
    let limits = GatewayLimits {
        connections_max: 2,
        ..GatewayLimits::default()
    };
    let server = Server::start(dir.path(), limits, patient());
    let mut first = connect(server.address);
    let second = connect(server.address);
    // An answer on the first shows that it was accepted.
    first
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    assert!(0 < first.read(&mut [0; 512]).unwrap());
    let mut third = connect(server.address);
    third
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    third.set_read_timeout(Some(SHORT)).unwrap();
    assert!(third.read(&mut [0; 1]).is_err(), "served beyond the limit");
    drop(second);
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(read_to_end(&mut third).status(), 200);
}

#[test]
fn what_a_request_must_have_and_must_not_ask_for_is_looked_at() {
    let (server, _dir) = Server::temporary(patient());
    let refused = [
        "GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
        "POST /invoke/a HTTP/1.1\r\nConnection: close\r\nHost: localhost:80@evil.example\r\nContent-Length: 0\r\n\r\n",
        "POST /invoke/a HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\nExpect: 200-maybe\r\n\r\n",
        "GET /fn/a HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\nSec-Fetch-Site: cross-site\r\n\r\n",
    ];
    for request in refused {
        let answer = server.request(request);
        assert!(
            [400, 403].contains(&answer.status()),
            "{request:?} {}",
            answer.text()
        );
    }
}

#[test]
fn headers_and_paths_beyond_their_size_are_refused() {
    let (server, _dir) = Server::temporary(patient());
    let many = "X: y\r\n".repeat(200);
    assert_eq!(
        server
            .request(&format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n"))
            .status(),
        431
    );
    let get = |path: &str, header: &str| {
        server.request(&format!(
            "GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: {header}\r\n\r\n"
        ))
    };
    for length in [66_000, 100_000, 1_000_000] {
        assert_eq!(get("", &"y".repeat(length)).status(), 431, "{length}");
    }
    let long = get(&"y".repeat(17_000), "");
    assert_eq!((long.status(), long.code().as_str()), (414, "uri_too_long"));
    assert!(matches!(
        get(&"y".repeat(1_000_000), "").status(),
        414 | 431
    ));
}

#[test]
fn a_body_beyond_its_limit_is_answered_with_413_whether_announced_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let limits = GatewayLimits {
        archive_bytes_max: 1000,
        ..GatewayLimits::default()
    };
    let server = Server::start(dir.path(), limits, patient());
    let put = |framing: &str, body: &str| {
        server.request(&format!("PUT /v1/functions/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n{framing}\r\n\r\n{body}"))
    };
    let body = "x".repeat(1001);
    let announced = put("Content-Length: 1001", &body);
    assert_eq!(
        (announced.status(), announced.code().as_str()),
        (413, "payload_too_large")
    );
    assert_eq!(announced.json()["evidence"]["limit_bytes"], 1000);
    let chunked = put(
        "Transfer-Encoding: chunked",
        &format!("3e9\r\n{body}\r\n0\r\n\r\n"),
    );
    assert_eq!(chunked.status(), 413);
    assert_eq!(server.metric("hearth_body_bytes"), Some(0));
}

#[test]
fn bodies_beyond_what_the_process_may_hold_are_answered_with_503() {
    let dir = tempfile::tempdir().unwrap();
    let limits = GatewayLimits {
        body_bytes_max: 100,
        ..GatewayLimits::default()
    };
    let server = Server::start(dir.path(), limits, patient());
    let body = "x".repeat(101);
    let answer = server.request(&format!("PUT /v1/functions/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\nContent-Length: 101\r\n\r\n{body}"));
    assert_eq!(
        (answer.status(), answer.code().as_str()),
        (503, "overloaded")
    );
    assert_eq!(answer.header("retry-after").as_deref(), Some("1"));
}
