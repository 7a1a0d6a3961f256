// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which request is answered how, as far as no sandbox is needed.

use crate::server::{KEY, Server, patient};

fn get(server: &Server, path: &str, headers: &str) -> crate::client::Answer {
    server.request(&format!(
        "GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n"
    ))
}

#[test]
fn what_is_not_there_is_answered_with_problem_details() {
    let (server, _dir) = Server::temporary(patient());
    let host = "Host: localhost\r\n";
    let answer = get(&server, "/nowhere", host);
    assert_eq!(
        (answer.status(), answer.code().as_str()),
        (404, "not_found")
    );
    assert_eq!(
        answer.header("content-type").as_deref(),
        Some("application/problem+json")
    );
    assert_eq!(
        get(&server, "/fn/unknown/x", host).code(),
        "unknown_function"
    );
    assert_eq!(
        get(&server, "/invoke/unknown", host).code(),
        "method_not_allowed"
    );
    let answer = server
        .request("POST /invoke/unknown HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(
        (answer.status(), answer.code().as_str()),
        (404, "unknown_function")
    );
    assert!(answer.header("hearth-invocation").is_some());
    assert_eq!(
        server.metric("hearth_request_errors_total{code=\"unknown_function\"}"),
        Some(2)
    );
}

#[test]
fn a_name_that_is_none_is_answered_with_400() {
    let (server, _dir) = Server::temporary(patient());
    for name in [
        "..",
        "%2e%2e",
        "a%2fb",
        "A",
        "a%00",
        "%ff",
        &"a".repeat(10_000),
    ] {
        assert_eq!(
            get(&server, &format!("/fn/{name}"), "Host: localhost\r\n").status(),
            400,
            "{name}"
        );
    }
}

#[test]
fn health_readiness_and_metrics_need_neither_key_nor_name() {
    let (server, _dir) = Server::temporary(patient());
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(
            get(&server, path, "Host: scraper.example\r\n").status(),
            200,
            "{path}"
        );
    }
    assert!(
        get(&server, "/metrics", "Host: x\r\n")
            .header("content-type")
            .unwrap()
            .starts_with("text/plain; version=0.0.4")
    );
}

#[test]
fn management_needs_the_key() {
    let (server, _dir) = Server::temporary(patient());
    for path in [
        "/v1/functions",
        "/v1/functions/a",
        "/v1/functions/a/isolation",
        "/v1/functions/a/logs",
        "/v1/invocations/018f0000-0000-7000-8000-000000000000",
    ] {
        let answer = get(&server, path, "Host: localhost\r\n");
        assert_eq!(
            (answer.status(), answer.code().as_str()),
            (401, "unauthorized"),
            "{path}"
        );
        assert_eq!(answer.header("www-authenticate").as_deref(), Some("Bearer"));
        assert_eq!(
            get(
                &server,
                path,
                "Host: localhost\r\nAuthorization: Bearer wrong\r\n"
            )
            .status(),
            403,
            "{path}"
        );
        assert_ne!(
            get(
                &server,
                path,
                &format!("Host: localhost\r\nAuthorization: Bearer {KEY}\r\n")
            )
            .status(),
            403,
            "{path}"
        );
    }
    for method in ["PUT", "DELETE"] {
        let answer = server.request(&format!("{method} /v1/functions/a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(answer.status(), 401, "{method}");
    }
}

#[test]
fn a_foreign_host_or_origin_is_refused_on_every_path_that_acts_or_tells() {
    let (server, _dir) = Server::temporary(patient());
    let key = format!("Authorization: Bearer {KEY}\r\n");
    for path in ["/v1/functions", "/fn/a/"] {
        let foreign = get(&server, path, &format!("Host: evil.example\r\n{key}"));
        assert_eq!(
            (foreign.status(), foreign.code().as_str()),
            (403, "forbidden"),
            "{path}"
        );
        let foreign = get(
            &server,
            path,
            &format!("Host: localhost\r\nOrigin: http://evil.example\r\n{key}"),
        );
        assert_eq!(foreign.status(), 403, "{path}");
        let own = get(
            &server,
            path,
            &format!("Host: hearth.test:80\r\nOrigin: http://hearth.test:80\r\n{key}"),
        );
        assert_ne!(own.status(), 403, "{path}");
    }
    let post = server.request(
        "POST /invoke/a HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(post.status(), 403);
}

#[test]
fn an_unknown_receipt_and_a_bad_id_are_told_apart() {
    let (server, _dir) = Server::temporary(patient());
    let headers = format!("Host: localhost\r\nAuthorization: Bearer {KEY}\r\n");
    // From 2024: too old to be on its way, so it is not waited for.
    let unknown = get(
        &server,
        "/v1/invocations/018f0000-0000-7000-8000-000000000000",
        &headers,
    );
    assert_eq!(
        (unknown.status(), unknown.code().as_str()),
        (404, "unknown_invocation")
    );
    assert_eq!(get(&server, "/v1/invocations/x", &headers).status(), 400);
}
