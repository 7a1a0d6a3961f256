// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is refused, and how: the table of error codes as far as a caller can reach it.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::http::Connection;
use crate::instance::{Instance, log_tail};
use crate::package::{Kind, Package};
use crate::turn;
use crate::victim::Victim;
use crate::wait::{SOON, until, until_true};

#[test]
fn what_is_not_there_and_what_may_not_be_done_has_its_own_status_and_code() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    instance.deploy(&Package::script("present", "cat", ""));
    let absent = "00000000-0000-7000-8000-000000000000";
    instance
        .invoke("absent", b"")
        .problem(404, "unknown_function");
    instance
        .get("/fn/absent/x")
        .problem(404, "unknown_function");
    instance
        .manage("GET", "/v1/functions/absent", b"")
        .problem(404, "unknown_function");
    instance
        .manage("DELETE", "/v1/functions/absent", b"")
        .problem(404, "unknown_function");
    instance
        .manage("GET", "/v1/functions/absent/isolation", b"")
        .problem(404, "unknown_function");
    instance
        .manage("GET", &format!("/v1/invocations/{absent}"), b"")
        .problem(404, "unknown_invocation");
    instance.get("/nowhere").problem(404, "not_found");
    instance.get("/").problem(404, "not_found");
    instance
        .get("/invoke/present")
        .problem(405, "method_not_allowed");
    instance
        .call("POST", "/metrics", &[], b"")
        .problem(405, "method_not_allowed");
    for name in [
        "..%2f..%2fx",
        "%2e%2e",
        "UPPER",
        "a_b",
        "-a",
        &"x".repeat(64),
        "%00",
        "a%20b",
    ] {
        let status = instance.invoke(name, b"").status;
        assert!([400, 404].contains(&status), "{name}: {status}");
    }
}

#[test]
fn management_needs_the_key_and_invocation_and_health_do_not() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let package = Package::script("keyed", "cat", "");
    instance.deploy(&package);
    let managed = [
        ("GET", "/v1/functions"),
        ("GET", "/v1/functions/keyed"),
        ("GET", "/v1/functions/keyed/logs"),
        ("GET", "/v1/functions/keyed/isolation"),
        ("PUT", "/v1/functions/keyed"),
        ("DELETE", "/v1/functions/keyed"),
    ];
    for (method, path) in managed {
        let body = if method == "PUT" {
            package.tar()
        } else {
            Vec::new()
        };
        let answer = instance.call(method, path, &[], &body);
        answer.problem(401, "unauthorized");
        assert!(answer.header("www-authenticate").is_some());
        let wrong = format!("Bearer {}", "0".repeat(64));
        instance
            .call(method, path, &[("authorization", &wrong)], &body)
            .problem(403, "forbidden");
    }
    assert_eq!(
        instance.invoke("keyed", b"still here").expect(200).text(),
        "still here"
    );
    for path in ["/healthz", "/readyz", "/metrics"] {
        instance.get(path).expect(200);
    }
}

#[test]
fn a_page_of_a_foreign_site_can_neither_manage_nor_invoke() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    instance.deploy(&Package::script("own-site", "cat", ""));
    let bearer = format!("Bearer {}", instance.key());
    let key = ("authorization", bearer.as_str());
    for foreign in [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("host", "evil.example"),
    ] {
        instance
            .call("GET", "/v1/functions", &[key, foreign], b"")
            .problem(403, "forbidden");
        instance
            .call("DELETE", "/v1/functions/own-site", &[key, foreign], b"")
            .problem(403, "forbidden");
        instance
            .call("POST", "/invoke/own-site", &[foreign], b"")
            .problem(403, "forbidden");
        instance
            .call("GET", "/fn/own-site/", &[foreign], b"")
            .problem(403, "forbidden");
    }
    let own = format!("http://{}", instance.address);
    instance
        .call("POST", "/invoke/own-site", &[("origin", &own)], b"")
        .expect(200);
}

#[test]
fn what_is_no_http_is_answered_with_an_error_and_closed() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let conflicting = "POST /invoke/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd";
    for nonsense in [
        "\r\n\r\n\0\0\0",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\r\nbad header\r\n\r\n",
        conflicting,
    ] {
        let mut connection = Connection::open(instance.address).unwrap();
        connection.raw().write_all(nonsense.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A reset is as good as an end.
        drop(connection.raw().read_to_end(&mut answer));
        let text = String::from_utf8_lossy(&answer);
        assert!(
            text.is_empty() || text.starts_with("HTTP/1.1 4") || text.starts_with("HTTP/1.0 4"),
            "{nonsense:?}: {text}"
        );
    }
    instance.get("/healthz").expect(200);
}

/// Answers of a function that no server could pass on.
const NO_BLOCKS: [&str; 7] = [
    "just text",
    "Content-Type: text/plain\n",
    "X-Only: 1\n\nbody",
    "Status: 99 no\nContent-Type: text/plain\n\nbody",
    "Content-Type: text/plain\nX-A: a\rb\n\nbody",
    "Content-Type: text/plain\nX-A: a\0b\n\nbody",
    "",
];

#[test]
fn a_header_block_that_is_none_is_the_functions_failure() {
    let _turn = turn::take!(alone);
    let manifest = "[limits]\ntimeout = \"10s\"\n[scaling]\nmax_instances = 1\nmax_inflight = 1";
    Victim::of_both_kinds("no-block", manifest, |victim| {
        let instance = victim.instance;
        let path = format!("/fn/{}/?echo-rest", victim.name);
        let answers = |block: &str| {
            let answer = instance.call("POST", &path, &[], block.as_bytes());
            victim.made(answer.header("hearth-start"), "echo-rest");
            answer
        };
        for block in NO_BLOCKS {
            let answer = answers(block);
            let problem = answer.problem(502, "function_failed");
            let cause = &problem["evidence"]["cause"]["cause"];
            assert_eq!(cause, "bad_output", "{block:?}: {problem}");
            let receipt = instance.receipt(answer.invocation());
            assert_eq!(receipt["outcome"], "function_failed", "{block:?}");
        }
        let stripped = "Content-Type: text/plain\nConnection: close\nTransfer-Encoding: chunked\nHearth-Start: no\nContent-Length: 1\n\nwhole body";
        let answer = answers(stripped).expect(200);
        assert_eq!(answer.text(), "whole body");
        assert_ne!(answer.header("hearth-start"), Some("no"));
    });
}

#[test]
fn secrets_of_the_caller_do_not_reach_a_function() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    instance.deploy(&Package::script(
        "headers",
        "printf 'Content-Type: text/plain\\n\\n'; env",
        "",
    ));
    let headers = [
        ("authorization", "Bearer s3cret"),
        ("proxy", "http://evil"),
        ("x-visible", "yes"),
        ("hearth-start", "forged"),
    ];
    let text = instance
        .call("GET", "/fn/headers/", &headers, b"")
        .expect(200)
        .text();
    assert!(text.contains("HTTP_X_VISIBLE=yes"), "{text}");
    for hidden in [
        "s3cret",
        "HTTP_PROXY",
        "forged",
        "HTTP_AUTHORIZATION",
        instance.key(),
    ] {
        assert!(!text.contains(hidden), "{hidden} in {text}");
    }
}

#[test]
fn too_many_invocations_of_a_function_are_refused_with_a_time_to_come_back_and_never_hang() {
    let _turn = turn::take!(shared);
    let instance = Instance::start(&["--queue-len", "2", "--queue-wait", "1s"]);
    instance.deploy(&Package::hostile(
        "narrow",
        Kind::Native,
        "[limits]\ntimeout = \"20s\"\n[scaling]\nmax_instances = 1",
    ));
    std::thread::scope(|scope| {
        let running = scope.spawn(|| instance.invoke("narrow", b"sleep 3000\n"));
        until_true("the first one runs", SOON, || {
            instance
                .sandboxed()
                .iter()
                .any(|process| process.name == "hostile")
        });
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let began = Instant::now();
                    (instance.invoke("narrow", b"print x\n"), began.elapsed())
                })
            })
            .collect();
        until_true("two wait", SOON, || {
            instance.metric("hearth_invocations_inflight", &[]) == 3.0
        });

        let began = Instant::now();
        let refused = instance.invoke("narrow", b"print x\n");
        let problem = refused.problem(429, "throttled");
        assert_eq!(problem["evidence"]["limit"], "queue_length", "{problem}");
        assert!(
            refused
                .header("retry-after")
                .is_some_and(|seconds| seconds.parse::<u32>().is_ok())
        );
        assert!(
            began.elapsed() < Duration::from_millis(900),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(
            instance.receipt(refused.invocation())["outcome"],
            "throttled"
        );

        for waited in waiting {
            let (answer, took) = waited.join().unwrap();
            let problem = answer.problem(429, "throttled");
            assert_eq!(problem["evidence"]["limit"], "queue_wait", "{problem}");
            assert!(answer.header("retry-after").is_some());
            assert!(
                (Duration::from_secs(1)..Duration::from_secs(2)).contains(&took),
                "{took:?}"
            );
        }
        // A queue that is refused others is still served: another function is not affected at all.
        assert_eq!(running.join().unwrap().expect(200).text(), "slept\n");
    });
    assert_eq!(
        instance.metric("hearth_throttled_total", &[("function", "narrow")]),
        3.0
    );
    assert_eq!(
        instance
            .invoke("narrow", b"print again\n")
            .expect(200)
            .text(),
        "again\n"
    );
    instance.assert_clean();
    instance.stop();
}

#[test]
fn a_gauge_of_what_is_not_there_any_more_says_so() {
    let _turn = turn::take!(shared);
    let instance = Instance::start(&[]);
    instance.deploy(&Package::script("counted", "cat", ""));
    instance.invoke("counted", b"").expect(200);
    let idle = || instance.metric("hearth_sandboxes", &[("kind", "native"), ("state", "idle")]);
    until_true("its sandbox is idle", SOON, || idle() == 1.0);
    instance.remove("counted");
    until_true("no sandbox is idle", SOON, || idle() == 0.0);
    instance.stop();
}

#[test]
fn those_that_wait_are_served_in_turn_by_as_many_sandboxes_as_there_may_be() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    for kind in Kind::BOTH {
        let name = format!("queued-{}", kind.as_str());
        instance.deploy(&Package::hostile(
            &name,
            kind,
            "[scaling]\nmax_instances = 2\nmax_inflight = 1",
        ));
        std::thread::scope(|scope| {
            let calls: Vec<_> = (0..12)
                .map(|_| scope.spawn(|| instance.invoke(&name, b"sleep 20\n")))
                .collect();
            for call in calls {
                call.join().unwrap().expect(200);
            }
        });
        let created: f64 = ["bound", "created"]
            .iter()
            .map(|start| {
                instance.metric(
                    "hearth_invocations_total",
                    &[("function", &name), ("start", start)],
                )
            })
            .sum();
        assert!((1.0..=2.0).contains(&created), "{name}: {created}");
    }
}

#[test]
fn a_client_that_goes_away_cancels_its_invocation_and_the_sandbox_is_destroyed() {
    let _turn = turn::take!(alone);
    let instance = Instance::of_all();
    for kind in Kind::BOTH {
        let name = format!("leaving-{}", kind.as_str());
        instance.deploy(&Package::hostile(
            &name,
            kind,
            "[limits]\ntimeout = \"60s\"\nresponse = \"64MiB\"",
        ));
        // Before the answer has begun.
        let mut connection = Connection::open(instance.address).unwrap();
        let path = format!("/invoke/{name}");
        connection.send("POST", &path, &[], b"sleep\n").unwrap();
        until_true("it runs", SOON, || {
            instance.metric("hearth_invocations_inflight", &[]) == 1.0
        });
        drop(connection);
        let cancelled = || {
            instance.metric(
                "hearth_invocations_total",
                &[("function", &name), ("outcome", "cancelled")],
            )
        };
        until_true("it is cancelled", SOON, || cancelled() == 1.0);
        instance.assert_clean();

        // While it is being read.
        let mut connection = Connection::open(instance.address).unwrap();
        connection
            .send("POST", &path, &[], b"flood-stdout\n")
            .unwrap();
        let (status, headers) = connection.head().unwrap();
        assert_eq!(status, 200);
        let id = headers
            .iter()
            .find(|(name, _)| name == "hearth-invocation")
            .unwrap()
            .1
            .clone();
        drop(connection);
        let receipt = instance.receipt(&id);
        // It writes as fast as it can: the limit may have been reached before the end of the connection was seen.
        assert!(
            ["cancelled", "response_too_large"].contains(&receipt["outcome"].as_str().unwrap()),
            "{receipt}"
        );
        assert_eq!(
            receipt["residue"],
            serde_json::Value::Null,
            "destroyed, not cleaned: {receipt}"
        );
        instance.assert_clean();
    }
}

#[test]
fn a_client_that_reads_slowly_gets_the_whole_answer_and_holds_nobody_up() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    for kind in Kind::BOTH {
        let name = format!("slow-reader-{}", kind.as_str());
        let one = "[scaling]\nmax_instances = 1\nmax_inflight = 1";
        instance.deploy(&Package::hostile(&name, kind, one));
        let path = format!("/invoke/{name}");
        let flood = b"flood-stdout 5000000\n";
        let mut slow = Connection::open(instance.address).unwrap();
        slow.send("POST", &path, &[], flood).unwrap();
        // The function ends although nobody has read its answer, and the only sandbox is free for the next.
        until("another is served meanwhile", SOON, || {
            let answer = instance.invoke(&name, b"print next\n");
            if answer.status == 200 {
                Ok(())
            } else {
                Err(answer.text())
            }
        });
        assert_eq!(slow.answer().unwrap().body.len(), 5_000_000, "{kind:?}");
    }
}

#[test]
fn a_connection_that_says_nothing_is_closed_and_disturbs_nobody() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let began = Instant::now();
    let mut silent: Vec<Connection> = (0..8)
        .map(|_| Connection::open(instance.address).unwrap())
        .collect();
    let mut half = Connection::open(instance.address).unwrap();
    half.raw()
        .write_all(b"POST /invoke/x HTTP/1.1\r\nhost: loc")
        .unwrap();
    instance.get("/healthz").expect(200);
    for connection in silent.iter_mut().chain([&mut half]) {
        let mut rest = Vec::new();
        // Ended by the server: with nothing, or with the word that the time is over.
        drop(connection.raw().read_to_end(&mut rest));
        let text = String::from_utf8_lossy(&rest);
        assert!(
            text.is_empty() || text.starts_with("HTTP/1.1 408"),
            "{text}"
        );
    }
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}: {}",
        began.elapsed(),
        log_tail(&instance.home)
    );
}
