// SPDX-License-Identifier: Apache-2.0 OR MIT
//! AppArmor's profiles for sandboxes, where they are loaded: `.ci/guest` loads them and runs all of these tests again.

use std::fs;

use hearth_protocol::spawner::{Event, Root, SkeletonSpec};

use crate::world::{World, is_root, limits, per_call, programs};

#[test]
fn where_its_profiles_are_loaded_apparmor_confines_every_process_of_a_sandbox() {
    if !is_root() {
        return;
    }
    let loaded = fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
    if !loaded.contains("hearth-sandbox (enforce)") {
        println!("SKIPPED: no AppArmor with Hearth's profiles here; .ci/guest has it");
        return;
    }
    let mut world = World::new();
    for (root, label) in [
        (Root::ReadOnly, "hearth-sandbox (enforce)"),
        (Root::Writable, "hearth-sandbox-writable (enforce)"),
    ] {
        let spec = SkeletonSpec {
            root,
            ..per_call("static")
        };
        let sandbox = world.try_create(spec).expect("a skeleton");
        let tree = world.store("probe", &programs().probe);
        let bound = world.try_bind(sandbox.id, tree, limits());
        assert!(matches!(bound, Event::Bound { .. }), "{bound:?}");
        sandbox.bind_init("/function/probe", &["cat", "/proc/self/attr/current"]);
        assert_eq!(sandbox.run(1, b"").stdout.trim_end(), label);
        let report = world.inspect(sandbox.id);
        assert_eq!(report.lsm.label.as_deref(), Some(label));
        assert_eq!(report.level, "full", "{:?}", report.walls);
        assert!(report.lsm.modules.contains(&"apparmor".to_owned()));
        world.destroy(sandbox.id);
    }
    world.close();
}
