// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Functions that leave files for the host to stumble over: it opens none of them, walks nothing and deletes by unmounting,
//! so that the names, kinds and sizes of what a sandbox wrote are of no consequence.

use std::time::Duration;

use crate::instance::Instance;
use crate::invariants::Before;
use crate::package::{Kind, Package};
use crate::turn;
use crate::victim::{Sandbox, made};

/// Room for what the tests leave, and few processes.
const LIMITS: &str =
    "[limits]\npids = 16\nscratch = \"8MiB\"\ntimeout = \"10s\"\n[scaling]\nmax_instances = 1";

/// How long a sandbox may take to be as new, however it was littered.
const RECYCLED_MAX: Duration = Duration::from_secs(2);

/// What is in the writable places, one name a line.
const LIST: &str = "cd /tmp && ls -A . /var/tmp /dev/shm | grep -v -e : -e '^$'; true";

/// Runs what litters, in a sandbox that has just been bound and again in the same one, and shows that the next call finds
/// nothing of it.
fn leaves(name: &str, script: &str) {
    let instance = Instance::of_all();
    // The first line of the input says which of the two it is.
    let both = format!(
        "read -r what\nif [ \"$what\" = list ]; then {LIST}; exit; fi\ncd /tmp\n{script}\necho left"
    );
    let package = Package::script(name, &both, LIMITS);
    instance.deploy(&package);
    instance.invoke(name, b"list\n").expect(200);
    // Another revision begins without any sandbox.
    instance.deploy(&package.with_file("revision", 0o644, b"another"));
    let before = Before::of(instance);
    for expected in [Sandbox::Fresh, Sandbox::Reused, Sandbox::Reused] {
        let answer = instance.invoke(name, b"litter\n").expect(200);
        let sandbox = made(Kind::Native, answer.header("hearth-start"), name);
        assert_eq!(sandbox, expected, "{name}");
        assert!(answer.text().ends_with("left\n"), "{}", answer.text());
        let receipt = instance.receipt(answer.invocation());
        assert_eq!(receipt["residue"]["none"], true, "{receipt}");
        let reset_us = receipt["phases"]["reset_us"].as_u64().unwrap();
        assert!(u128::from(reset_us) < RECYCLED_MAX.as_micros(), "{receipt}");
        let found = instance.invoke(name, b"list\n").expect(200);
        assert_eq!(found.text(), "", "{name}");
    }
    before.assert_world_clean(instance);
}

#[test]
fn links_with_the_names_that_a_platform_might_open_are_never_followed() {
    let _turn = turn::take!(alone);
    leaves(
        "links",
        "for name in out log stdout stderr result.json run_script .lock core function.toml metadata.txt stdin; do
           ln -s /etc/passwd \"$name\" && ln -s /etc/passwd \"/dev/shm/$name\"
         done
         mkdir results && ln -s /etc results/etc && ln -s . loop && ln -s gone dangling
         ln /function/run.sh hard && echo linked && exit 3
         ln /bin/sh hard && echo linked && exit 3
         ln -s /proc/self/fd/0 magic; ln -s /proc/1/root root",
    );
}

#[test]
fn files_that_block_or_mislead_who_opens_them_are_never_opened() {
    let _turn = turn::take!(alone);
    leaves(
        "kinds",
        "for name in out log result.json .lock; do mkfifo \"$name\"; done
         mkdir run_script
         truncate -s 8388607T sparse || truncate -s 1T sparse
         mknod device c 1 3 && echo made && exit 3
         mknod block b 8 0 && echo made && exit 3
         touch ./-rf \"$(printf 'new\\nline')\" \"$(printf 'byte\\377')\" \"$(printf '%0255d' 0)\"
         chmod 000 . && chmod 4755 ./-rf; chmod 700 .",
    );
}

#[test]
fn a_tree_that_changes_under_whoever_walks_it_and_has_no_end_is_walked_by_nobody() {
    let _turn = turn::take!(alone);
    leaves(
        "swapped",
        "mkdir d x
         (trap '' TERM HUP; while :; do mv d y && ln -s /etc d; rm d; mv y d; done) >/dev/null 2>&1 &
         at=.; i=0
         while [ $i -lt 300 ]; do at=$at/n; mkdir $at || break; i=$((i+1)); done",
    );
}
