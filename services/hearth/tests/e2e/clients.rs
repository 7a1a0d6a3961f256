// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Clients that leave in every way that a socket knows, and more of them than there is room for.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

use crate::http::Connection;
use crate::instance::{Instance, log_tail};
use crate::invariants::Before;
use crate::package::{Kind, Package};
use crate::wait::{SOON, until_true};
use crate::{turn, world};

/// How a client goes away.
#[derive(Debug, Clone, Copy)]
enum Leaves {
    /// It sends no more, as one that has ended its half of the connection; it would still read.
    HalfClosed,
    /// By a reset.
    Reset,
}

fn leave(connection: &mut Connection, how: Leaves) {
    match how {
        Leaves::HalfClosed => connection.raw().shutdown(Shutdown::Write).unwrap(),
        Leaves::Reset => {
            let at_once = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(connection.raw(), sockopt::Linger, &at_once).unwrap();
        }
    }
}

#[test]
fn a_caller_that_half_closes_or_resets_its_connection_has_its_invocation_cancelled() {
    let _turn = turn::take!(alone);
    let instance = Instance::of_all();
    let name_of = |kind: Kind| format!("left-{}", kind.as_str());
    for kind in Kind::BOTH {
        let limits = "[limits]\ntimeout = \"60s\"\nresponse = \"64MiB\"";
        instance.deploy(&Package::hostile(&name_of(kind), kind, limits));
        instance
            .invoke(&name_of(kind), b"print ready\n")
            .expect(200);
    }
    let before = Before::of(instance);
    for kind in Kind::BOTH {
        let name = name_of(kind);
        let cancelled = || {
            let labels = [("function", name.as_str()), ("outcome", "cancelled")];
            instance.metric("hearth_invocations_total", &labels)
        };
        let path = format!("/invoke/{name}");
        let mut expected = 0.0;
        for how in [Leaves::HalfClosed, Leaves::Reset] {
            let mut connection = Connection::open(instance.address).unwrap();
            connection.send("POST", &path, &[], b"sleep\n").unwrap();
            until_true("it runs", SOON, || {
                instance.metric("hearth_invocations_inflight", &[]) == 1.0
            });
            leave(&mut connection, how);
            match how {
                Leaves::HalfClosed => {
                    let mut rest = Vec::new();
                    // Whether it is told that it has gone away does not matter: it is let go.
                    drop(connection.raw().read_to_end(&mut rest));
                }
                Leaves::Reset => drop(connection),
            }
            expected += 1.0;
            until_true("it is cancelled", SOON, || cancelled() == expected);
        }
        // In the middle of an answer that it does not read to the end.
        let mut connection = Connection::open(instance.address).unwrap();
        connection
            .send("POST", &path, &[], b"flood-stdout\n")
            .unwrap();
        assert_eq!(connection.head().unwrap().0, 200);
        leave(&mut connection, Leaves::Reset);
        drop(connection);
        until_true("nothing runs any more", SOON, || {
            instance.metric("hearth_invocations_inflight", &[]) == 0.0
        });
    }
    before.assert_world_clean(instance);
}

#[test]
fn idle_connections_beyond_the_limit_wait_while_those_that_are_open_are_served() {
    let _turn = turn::take!(shared);
    let instance = Instance::start(&["--max-connections", "32"]);
    instance.deploy(&Package::script("crowded", "cat", ""));
    let mut kept = Connection::open(instance.address).unwrap();
    kept.call("POST", "/invoke/crowded", &[], b"first")
        .unwrap()
        .expect(200);
    let idle: Vec<Connection> = (0..1000)
        .map(|_| Connection::open(instance.address).unwrap())
        .collect();
    let mut open = 0.0;
    for _ in 0..50 {
        let answer = kept.call("POST", "/invoke/crowded", &[], b"again").unwrap();
        assert_eq!(answer.expect(200).text(), "again");
        let metrics = kept.call("GET", "/metrics", &[], b"").unwrap().text();
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("hearth_connections "));
        open = f64::max(open, line.unwrap().parse().unwrap());
    }
    assert_eq!(open, 32.0, "of 1001");
    drop(idle);
    until_true("another connection is served", SOON, || {
        instance
            .try_call("GET", "/healthz", &[], b"")
            .is_ok_and(|answer| answer.status == 200)
    });
    instance.stop();
}

/// What a gateway may open beyond what it has at rest, so that clients can use it all up.
const SPARE_FILES: u64 = 48;

/// So many sandboxes are made ahead of need.
const SKELETONS: &str = "2";

/// Has the gateway replaced by one that may open hardly more files than one at rest has: only the monitor's limits can be
/// changed by who has its user and no capability for it.
fn starve(instance: &mut Instance) {
    let well_fed = instance.gateway();
    // A gateway is at rest only when all are there: each has files of its own.
    until_true("every skeleton is made", SOON, || {
        let labels = [("kind", "native"), ("state", "skeleton")];
        instance.metric("hearth_sandboxes", &labels).to_string() == SKELETONS
    });
    instance.assert_clean();
    let files = u64::try_from(world::count_in_proc(well_fed, "fd")).unwrap();
    let tight = Rlimit {
        current: Some(files + SPARE_FILES),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    let monitor = rustix::process::Pid::from_raw(instance.monitor());
    prlimit(monitor, Resource::Nofile, tight).unwrap();
    kill(Pid::from_raw(well_fed), Signal::SIGKILL).unwrap();
    instance.forget_quiet();
    until_true("another gateway is ready", SOON, || {
        instance
            .try_call("GET", "/readyz", &[], b"")
            .is_ok_and(|answer| answer.status == 200)
    });
    instance.assert_clean();
}

/// No client can bring it there: `serve` refuses a limit of open files below what its connections and sandboxes can use.
/// What loses a descriptor that it was sent ends then, and another takes its place.
#[test]
fn a_gateway_that_runs_out_of_descriptors_is_soon_as_good_as_new() {
    let _turn = turn::take!(shared);
    let mut instance = Instance::start(&["--skeletons", SKELETONS]);
    instance.deploy(&Package::script("starved", "cat", ""));
    starve(&mut instance);
    instance.invoke("starved", b"first").expect(200);
    let waiting: Vec<Connection> = (0..200)
        .map(|_| Connection::open(instance.address).unwrap())
        .collect();
    let complaint = "cannot accept a connection";
    until_true("accepting fails", SOON, || {
        log_tail(&instance.home).contains(complaint)
    });
    drop(waiting);
    for _ in 0..20 {
        until_true("another connection is served", SOON, || {
            instance
                .try_call("POST", "/invoke/starved", &[], b"then")
                .is_ok_and(|answer| answer.status == 200)
        });
    }
    instance.stop();
}

#[test]
fn an_upload_that_is_broken_off_anywhere_leaves_nothing() {
    let _turn = turn::take!(alone);
    let instance = Instance::of_all();
    let before = Before::of(instance);
    let trees_before = world::stored_trees(&instance.home.data());
    let archive = Package::script("broken-off", "cat", "")
        .with_file("large", 0o644, &vec![7; 1 << 20])
        .tar();
    for sent in [0, 1, 511, 512, 1024, archive.len() / 2, archive.len() - 1] {
        let mut connection = Connection::open(instance.address).unwrap();
        let head = format!(
            "PUT /v1/functions/broken-off HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
            instance.key(),
            archive.len()
        );
        connection.raw().write_all(head.as_bytes()).unwrap();
        connection.raw().write_all(&archive[..sent]).unwrap();
        leave(&mut connection, Leaves::Reset);
        drop(connection);
    }
    until_true("no body is held", SOON, || {
        instance.metric("hearth_body_bytes", &[]) == 0.0
    });
    instance
        .invoke("broken-off", b"")
        .problem(404, "unknown_function");
    // Those of another test's function may be taken away meanwhile.
    assert!(world::stored_trees(&instance.home.data()).is_subset(&trees_before));
    before.assert_world_clean(instance);
}
