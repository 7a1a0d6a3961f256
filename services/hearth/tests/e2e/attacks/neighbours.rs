// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Two tenants on one host: ways to meet that must lead nowhere.

use std::collections::BTreeSet;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use serde_json::Value;

use super::all_refused;
use crate::instance::Instance;
use crate::package::{Kind, Package};
use crate::turn;
use crate::victim::{NARROW, Victim, made};
use crate::wait::{SOON, until_true};

/// A second tenant.
fn neighbour(instance: &Instance, name: &str) {
    instance.deploy(&Package::hostile(
        name,
        Kind::Native,
        "base = \"minimal\"\n[limits]\ntimeout = \"3s\"",
    ));
    let answer = instance.invoke(name, b"print ready\n").expect(200);
    assert_eq!(answer.text(), "ready\n");
}

fn runs(instance: &Instance, calls: usize) {
    until_true("all of them run", SOON, || {
        let inside = instance.sandboxed();
        let running = inside.iter().filter(|process| process.name == "hostile");
        calls <= running.count()
    });
}

#[test]
fn sockets_of_the_host_and_of_another_sandbox_are_out_of_reach() {
    let _turn = turn::take!(alone);
    let name = format!("hearth-e2e-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _host = UnixListener::bind_addr(&address).unwrap();
    Victim::fresh_and_reused("reach", Kind::Native, NARROW, |victim| {
        let instance = victim.instance;
        neighbour(instance, "reached");
        std::thread::scope(|scope| {
            // Another tenant listens for its three seconds, on a name and on a path.
            let serving =
                scope.spawn(|| instance.invoke("reached", b"serve @sibling /tmp/sibling\n"));
            runs(instance, 1);
            let names = format!(
                "connect @{name} @sibling /tmp/sibling /run/dbus/system_bus_socket /run/docker.sock /var/run/docker.sock /run/systemd/notify"
            );
            let attempts = victim.attack(&names).expect(200).json();
            all_refused(&attempts, &["ECONNREFUSED", "ENOENT", "EPERM", "EACCES"]);
            serving.join().unwrap().problem(504, "function_timed_out");
        });
        instance.remove("reached");
    });
}

#[test]
fn locks_leases_and_notifications_on_a_shared_base_file_do_not_meet() {
    let _turn = turn::take!(alone);
    // A file that every function of the base has.
    const FILE: &str = "/etc/passwd";
    let manifest = format!("base = \"minimal\"\n{NARROW}");
    Victim::fresh_and_reused("meeting", Kind::Native, &manifest, |victim| {
        let instance = victim.instance;
        neighbour(instance, "met");
        let mode = format!("meet {FILE}");
        let alone = victim.attack(&mode).expect(200).json();
        assert_eq!(alone["flock"], "ok", "{alone}");
        std::thread::scope(|scope| {
            let holding =
                scope.spawn(|| instance.invoke("met", format!("{mode} stay\n").as_bytes()));
            runs(instance, 1);
            for _ in 0..20 {
                // As if nobody held it: the exclusive lock is to be had, and nothing tells of the other.
                let beside = victim.attack(&mode).expect(200).json();
                assert_eq!(beside, alone);
            }
            holding.join().unwrap().problem(504, "function_timed_out");
        });
        for watcher in ["lease", "notification", "watch"] {
            assert_ne!(alone[watcher], "ok", "{watcher}: {alone}");
        }
        instance.remove("met");
    });
}

#[test]
fn sandboxes_made_at_once_share_no_mount_that_can_be_written() {
    let _turn = turn::take!(alone);
    let victim = Victim::new("mounts", Kind::Native, NARROW);
    let names = ["mounts-a", "mounts-b", "mounts-c"];
    for name in names {
        let package = Package::hostile(name, Kind::Native, "base = \"minimal\"");
        victim.instance.deploy(&package);
    }
    let tables: Vec<Value> = std::thread::scope(|scope| {
        let calls = names.map(|name| scope.spawn(move || victim_table(name)));
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let writable = |table: &Value| -> BTreeSet<String> {
        let lines = table.as_array().unwrap().iter().filter_map(Value::as_str);
        let fields = lines.map(|line| line.split(' ').collect::<Vec<_>>());
        // mountinfo: the third field is the file system's device, the sixth the mount's own options.
        fields
            .filter(|fields| fields[5].split(',').any(|option| option == "rw"))
            .map(|fields| fields[2].to_owned())
            .collect()
    };
    let mut seen = BTreeSet::new();
    for table in &tables {
        let own = writable(table);
        assert!(!own.is_empty(), "scratch can be written: {table}");
        for device in own {
            assert!(
                seen.insert(device.clone()),
                "{device} is in two sandboxes: {tables:?}"
            );
        }
    }
    for name in names {
        victim.instance.remove(name);
    }
    victim.attack("print done").expect(200);
}

fn victim_table(name: &str) -> Value {
    let answer = Instance::of_all().invoke(name, b"whoami\n").expect(200);
    made(Kind::Native, answer.header("hearth-start"), "whoami");
    answer.json()["mounts"].clone()
}

#[test]
fn processes_environments_and_names_of_another_tenant_are_not_to_be_seen() {
    let _turn = turn::take!(alone);
    Victim::fresh_and_reused("curious", Kind::Native, NARROW, |victim| {
        let instance = victim.instance;
        let secret = "[env]\nSECRET = \"of-another-tenant\"\n[limits]\ntimeout = \"3s\"";
        instance.deploy(&Package::hostile("secretive", Kind::Native, secret));
        instance.invoke("secretive", b"print ready\n").expect(200);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| instance.invoke("secretive", b"sleep 2000\n"));
            runs(instance, 1);
            let seen = victim.attack("whoami").expect(200).json();
            for pid in seen["processes"].as_array().unwrap() {
                assert!(*pid == 1 || *pid == seen["pid"], "{}", seen["processes"]);
            }
            let text = seen.to_string();
            for word in ["of-another-tenant", "secretive"] {
                assert!(!text.contains(word), "{word}: {text}");
            }
            let answers = victim
                .attack("look /proc/1/environ /proc/1/cmdline")
                .expect(200)
                .json();
            all_refused(&answers, &["ENOENT", "EACCES"]);
            running.join().unwrap().expect(200);
        });
        instance.remove("secretive");
    });
}
