// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A warm sandbox is as good as a new one, and never another function's or another revision's.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::instance::Instance;
use crate::package::{Kind, Package};
use crate::turn;

#[test]
fn an_invocation_finds_nothing_that_an_earlier_one_left_in_the_same_sandbox() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    for kind in Kind::BOTH {
        let name = format!("markers-{}", kind.as_str());
        let manifest =
            "[limits]\ntimeout = \"10s\"\n[scaling]\nmax_instances = 1\nmax_inflight = 1";
        instance.deploy(&Package::hostile(&name, kind, manifest));
        let fresh = instance.invoke(&name, b"find-marker\n").expect(200).json();
        all_absent(&fresh, "a fresh one");
        for round in 0..3 {
            let left = instance.invoke(&name, b"leave-marker\n").expect(200).json();
            assert!(
                left.as_object()
                    .unwrap()
                    .values()
                    .any(|place| place == "left"),
                "{left}"
            );
            let answer = instance.invoke(&name, b"find-marker\n").expect(200);
            // Process-per-call sandboxes are reused after such a call only where they could be cleaned: all of it was.
            assert_eq!(
                answer.header("hearth-start"),
                Some("warm"),
                "{kind:?} round {round}"
            );
            let found = answer.json();
            all_absent(&found, "a warm one");
            assert_eq!(found["state"], fresh["state"], "{kind:?} round {round}");
        }
    }
}

fn all_absent(found: &Value, where_: &str) {
    for (place, result) in found.as_object().unwrap() {
        if place != "state" {
            assert_eq!(result, "absent", "{where_}: {place}");
        }
    }
}

#[test]
fn the_receipt_of_a_littering_invocation_counts_what_was_removed() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    instance.deploy(&Package::hostile(
        "litter",
        Kind::Native,
        "[limits]\ntimeout = \"10s\"",
    ));
    let answer = instance.invoke("litter", b"leave-marker\n").expect(200);
    let receipt = instance.receipt(answer.invocation());
    let residue = &receipt["residue"];
    // The daemon, and perhaps the process between, whose parent had not seen its end.
    let killed = residue["processes_killed"].as_u64().unwrap();
    assert!((1..=2).contains(&killed), "{receipt}");
    assert!(0 < residue["scratch_inodes"].as_u64().unwrap(), "{receipt}");
    assert!(0 < residue["scratch_blocks"].as_u64().unwrap(), "{receipt}");
    assert_eq!(
        (&residue["processes_left"], &residue["none"]),
        (&Value::from(1), &Value::from(true)),
        "{receipt}"
    );
}

#[test]
fn no_sandbox_is_shared_between_functions() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let names = ["alone-a", "alone-b"];
    for name in names {
        instance.deploy(&Package::hostile(
            name,
            Kind::Native,
            "[limits]\ntimeout = \"10s\"",
        ));
    }
    // Both stay alive, so that an inode of one cannot be the other's by being used again.
    let mut seen = [BTreeSet::new(), BTreeSet::new()];
    for _ in 0..5 {
        for (name, seen) in names.iter().zip(&mut seen) {
            let whoami = instance.invoke(name, b"whoami\n").expect(200).json();
            let namespaces = whoami["namespaces"].as_object().unwrap();
            seen.extend(
                namespaces
                    .values()
                    .map(|inode| inode.as_str().unwrap().to_owned()),
            );
        }
    }
    assert_eq!(seen[0].intersection(&seen[1]).count(), 0, "{seen:?}");
}

#[test]
fn a_new_revision_begins_in_sandboxes_of_its_own_and_the_old_one_s_are_gone() {
    let _turn = turn::take!(alone);
    let instance = Instance::of_all();
    for revision in 0..3 {
        let script = format!("echo {revision}; test -e /tmp/left && echo left; touch /tmp/left");
        instance.deploy(&Package::script("revised", &script, ""));
        let first = instance.invoke("revised", b"").expect(200);
        assert_ne!(
            first.header("hearth-start"),
            Some("warm"),
            "revision {revision}"
        );
        assert_eq!(first.text(), format!("{revision}\n"));
        let second = instance.invoke("revised", b"").expect(200);
        assert_eq!(second.text(), format!("{revision}\n"));
    }
    // Every cgroup on the host belongs to a sandbox that the pool still has.
    instance.assert_clean();
    let name = [("function", "revised"), ("outcome", "ok")];
    assert_eq!(instance.metric("hearth_invocations_total", &name), 6.0);
}

#[test]
fn a_function_with_a_writable_root_begins_each_time_with_the_base_as_it_is() {
    let _turn = turn::take!(shared);
    let instance = Instance::of_all();
    let script = "ls /etc/x /data 2>/dev/null; mkdir /data && echo found > /etc/x && echo changed >> /etc/profile; \
        cat /etc/x; dd if=/dev/zero of=/var/full bs=64k 2>&1 | grep -c 'No space'";
    let manifest = "[limits]\nscratch = \"1MiB\"\n[sandbox]\nwritable_root = true\n[scaling]\nmax_instances = 1";
    instance.deploy(&Package::script("rewriting", script, manifest));
    for round in 0..3 {
        let answer = instance.invoke("rewriting", b"").expect(200);
        assert_eq!(answer.text(), "found\n1\n", "round {round}");
        // It is not given to the next one: nobody could say what is the base's and what is not.
        assert_ne!(answer.header("hearth-start"), Some("warm"), "round {round}");
        let receipt = instance.receipt(answer.invocation());
        let hit = receipt["limits_hit"].as_array().unwrap();
        assert!(hit.contains(&Value::from("scratch")), "{receipt}");
    }
    let wasm = Package::hostile(
        "rewriting-wasm",
        Kind::Wasm,
        "[sandbox]\nwritable_root = true",
    );
    let problem = instance.try_deploy(&wasm).problem(400, "bad_manifest");
    let at = &problem["evidence"]["problems"][0]["at"];
    assert_eq!(at, "sandbox.writable_root", "{problem}");
}
