// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a function is seen to do, and the profile that is made of it: the same calls happen, and no others.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    time::Instant,
};

use hearth_protocol::{
    TreeId,
    init::ExitStatus,
    profile::{
        CALLS_MAX, CallSet, Learned, Observation, ObservationId, ObservedCall, ProfileReading, Tier,
    },
    spawner::{Cause, Event, OBSERVATIONS_MAX, Profile, Request, SkeletonSpec},
};

use nix::errno::Errno;

use crate::world::{Outcome, Sandbox, World, eventually, is_root, limits, per_call, programs};

/// Questions of an observed sandbox at once; each 100 µs it may ask one more.
const OBSERVED_ALLOWANCE_MAX: u128 = 4096;

/// reboot(2), by its number here.
const REBOOT: u32 = if cfg!(target_arch = "x86_64") {
    169
} else {
    142
};

impl World {
    fn observe(&mut self) -> ObservationId {
        match self.try_observe() {
            Event::Observing { observation, .. } => observation,
            other => panic!("{other:?} instead of Observing"),
        }
    }

    fn try_observe(&mut self) -> Event {
        let request = self.next_request();
        self.send(&Request::Observe { request });
        self.answer().0
    }

    fn end_observation(&mut self, observation: ObservationId) -> Observation {
        let request = self.next_request();
        self.send(&Request::EndObservation {
            request,
            observation,
        });
        match self.answer().0 {
            Event::Observed { observation, .. } => observation,
            other => panic!("{other:?} instead of Observed"),
        }
    }

    fn read_profile(&mut self, of: Tier, calls: Vec<String>) -> ProfileReading {
        let request = self.next_request();
        self.send(&Request::ReadProfile { request, of, calls });
        match self.answer().0 {
            Event::ProfileRead { reading, .. } => *reading,
            other => panic!("{other:?} instead of ProfileRead"),
        }
    }

    /// The names of refused calls since this was asked last.
    fn told(&mut self) -> Vec<String> {
        self.synchronise();
        let told = std::mem::take(&mut self.violations);
        told.into_iter().map(|(_, told)| told.name).collect()
    }

    fn open_stored(&mut self, tree: &TreeId, path: &str) -> (Event, Vec<OwnedFd>) {
        let request = self.next_request();
        self.send(&Request::TreeOpen {
            request,
            tree: tree.clone(),
            path: path.to_owned(),
        });
        self.answer()
    }

    /// A sandbox with this profile, bound to the probe.
    fn probe_with(&mut self, profile: Profile, arguments: &[&str]) -> Sandbox {
        let spec = SkeletonSpec {
            profile,
            ..per_call("static")
        };
        let sandbox = self.try_create(spec).expect("a skeleton");
        let tree = self.store("probe", &programs().probe);
        let bound = self.try_bind(sandbox.id, tree, limits());
        assert!(matches!(bound, Event::Bound { .. }), "{bound:?}");
        sandbox.bind_init("/function/probe", arguments);
        sandbox
    }

    /// What the probe does when it is called so, twice in one sandbox, and how it ended.
    fn learn(&mut self, profile: Profile, arguments: &[&str]) -> (Observation, Outcome) {
        let by = self.observe();
        let profile = profile.observed(by).unwrap();
        let sandbox = self.probe_with(profile, arguments);
        let first = sandbox.run(1, b"");
        // From now on the first are told again.
        sandbox.counted();
        self.renew(sandbox.id);
        let second = sandbox.run(2, b"");
        assert_eq!(first.stdout, second.stdout);
        let report = self.inspect(sandbox.id);
        assert_eq!(report.level, crate::world::level());
        self.destroy(sandbox.id);
        (self.end_observation(by), second)
    }
}

fn names(seen: &Observation) -> Vec<String> {
    let allowed = seen.calls.iter().filter(|call| 0 < call.allowed);
    allowed.map(|call| call.name.clone()).collect()
}

fn call<'a>(seen: &'a Observation, name: &str) -> &'a ObservedCall {
    let found = seen.calls.iter().find(|call| call.name == name);
    found.unwrap_or_else(|| panic!("{name} is not in {seen:?}"))
}

#[test]
fn what_a_function_does_is_counted_without_init_s_part_and_is_enough_for_it_afterwards() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    for (tier, profile, arguments) in [
        (Tier::Default, Profile::Default, ["echo", ""]),
        (Tier::Strict, Profile::Strict, ["echo", ""]),
        (Tier::Default, Profile::Default, ["list", "/function"]),
        (Tier::Default, Profile::Default, ["leave", "2"]),
        (Tier::Default, Profile::Default, ["write", "/tmp/f"]),
    ] {
        let (seen, before) = world.learn(profile, &arguments);
        // Init waits for its child and sets its limits: the probe does neither but where it leaves processes behind.
        let forks = arguments[0] == "leave";
        let ends = if forks { 6 } else { 2 };
        assert_eq!(call(&seen, "exit_group").allowed, ends, "{seen:?}");
        assert_eq!(seen.uncounted, 0);
        assert_eq!(names(&seen).contains(&"wait4".to_owned()), forks);
        assert!(seen.calls.iter().all(|call| call.name != "setpriority"));
        let reading = world.read_profile(tier, names(&seen));
        assert!(reading.not_allowed.is_empty() && reading.unknown.is_empty());
        let (part, whole) = (reading.size, reading.tier_size);
        println!("{arguments:?}: {part:?} of {whole:?}");
        assert!(part.calls < whole.calls && part.instructions < whole.instructions);
        let sandbox = world.probe_with(Profile::Learned(reading.learned), &arguments);
        for seq in 1..=2 {
            let after = sandbox.run(seq, b"");
            assert_eq!(
                (after.status, &after.stdout),
                (before.status, &before.stdout)
            );
            assert_eq!(sandbox.counted(), 0);
            world.renew(sandbox.id);
        }
        let report = world.inspect(sandbox.id);
        let filters = report.filters.expect("the kernel gives filters out");
        assert_eq!(filters[0].profile.as_deref(), Some("learned"));
        world.destroy(sandbox.id);
    }
    assert!(world.violations.is_empty(), "{:?}", world.violations);
    world.close();
}

#[test]
fn what_was_not_seen_is_refused_and_named_and_the_kill_class_still_kills() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let (seen, _) = world.learn(Profile::Default, &["echo"]);
    let learned = world.read_profile(Tier::Default, names(&seen)).learned;
    let sandbox = world.probe_with(Profile::Learned(learned), &["list", "/function"]);
    assert_eq!(sandbox.run(1, b"").status, ExitStatus::Exited(0));
    world.destroy(sandbox.id);
    assert_eq!(world.told(), ["getdents64"]);
    let sandbox = world.probe_with(Profile::Learned(learned), &["alone"]);
    let expected = "fork: EPERM\nclone: EPERM\nspawn: EPERM\nlaunch: ENOSYS\nmemfd: EPERM\n\
        mkdir: EPERM\nunix: EPERM\ncreate: ALLOWED\n";
    for seq in 1..=2 {
        assert_eq!(sandbox.run(seq, b"").stdout, expected);
        assert_eq!(sandbox.counted(), 6);
        world.renew(sandbox.id);
    }
    world.destroy(sandbox.id);
    let one = if cfg!(target_arch = "x86_64") {
        ["fork", "clone", "clone", "memfd_create", "mkdir", "socket"]
    } else {
        [
            "clone",
            "clone",
            "clone",
            "memfd_create",
            "mkdirat",
            "socket",
        ]
    };
    assert_eq!(world.told(), [one, one].concat());
    let sandbox = world.probe_with(Profile::Learned(learned), &["call", &REBOOT.to_string()]);
    let (_stdout, _stderr) = sandbox.start(1);
    assert_eq!(world.gone(sandbox.id).0, Cause::Forbidden);
    assert_eq!(world.told(), ["reboot"]);
    world.close();
}

#[test]
fn an_observed_function_gets_what_its_profile_says_and_probes_are_counted() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    for (profile, what) in [
        (Profile::Default, "walls"),
        (Profile::Strict, "walls"),
        (Profile::Strict, "alone"),
    ] {
        let plain = world.probe_with(profile, &[what]);
        let before = plain.run(1, b"");
        world.destroy(plain.id);
        let told = world.told();
        let (seen, observed) = world.learn(profile, &[what]);
        assert_eq!(observed.stdout, before.stdout, "{profile:?}");
        assert_eq!(world.told(), [told.clone(), told].concat(), "{profile:?}");
        if what == "walls" {
            // Not told of, in force or observed: programs that probe for an older kernel mean no harm.
            assert_eq!(call(&seen, "clone3").refused, 2);
            assert_eq!(
                (call(&seen, "bpf").allowed, call(&seen, "bpf").refused),
                (0, 2)
            );
        }
    }
    let by = world.observe();
    let observed = Profile::Default.observed(by).unwrap();
    let sandbox = world.probe_with(observed, &["call", &REBOOT.to_string()]);
    let (_stdout, _stderr) = sandbox.start(1);
    assert_eq!(world.gone(sandbox.id).0, Cause::Forbidden);
    assert_eq!(call(&world.end_observation(by), "reboot").refused, 1);
    world.close();
}

#[test]
fn a_learned_profile_is_never_wider_than_its_tier_whatever_is_asked_for() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let least = world.read_profile(Tier::Default, Vec::new()).size;
    println!("init alone: {least:?}");
    let asked = ["read", "bpf", "io_uring_setup", "reboot", "nonsense"];
    let reading = world.read_profile(Tier::Default, asked.map(str::to_owned).to_vec());
    assert_eq!(reading.not_allowed, ["bpf", "io_uring_setup", "reboot"]);
    assert_eq!(reading.unknown, ["nonsense"]);
    let mut calls = CallSet::default();
    let all = (0..CallSet::NUMBERS).all(|number| calls.insert(number));
    assert!(all);
    for (of, profile) in [
        (Tier::Default, Profile::Default),
        (Tier::Strict, Profile::Strict),
    ] {
        let plain = world.probe_with(profile, &["walls"]);
        let wide = world.probe_with(Profile::Learned(Learned { of, calls }), &["walls"]);
        assert_eq!(plain.run(1, b"").stdout, wide.run(1, b"").stdout);
        world.destroy(plain.id);
        world.destroy(wide.id);
    }
    world.close();
}

#[test]
fn observations_have_an_end_and_a_number_and_a_sandbox_needs_one_that_goes_on() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let by = world.observe();
    for _ in 1..OBSERVATIONS_MAX {
        world.observe();
    }
    assert!(
        matches!(world.try_observe(), Event::Failed { errno, .. } if errno == Errno::EAGAIN as i32)
    );
    world.end_observation(by);
    let spec = SkeletonSpec {
        profile: Profile::Default.observed(by).unwrap(),
        ..per_call("static")
    };
    let refused = world.try_create(spec).err();
    assert!(matches!(refused, Some(Event::Failed { .. })), "{refused:?}");
    let request = world.next_request();
    world.send(&Request::EndObservation {
        request,
        observation: by,
    });
    assert!(matches!(world.answer().0, Event::Failed { .. }));
    let request = world.next_request();
    let calls = vec!["read".to_owned(); CALLS_MAX + 1];
    let of = Tier::Default;
    world.send(&Request::ReadProfile { request, of, calls });
    assert!(matches!(world.answer().0, Event::Failed { .. }));
    world.observe();
    world.close();
}

#[test]
fn whoever_is_observed_and_makes_many_calls_waits_for_the_spawner_and_the_others_do_not() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let by = world.observe();
    let flooding = world.probe_with(Profile::Default.observed(by).unwrap(), &["refuse"]);
    let begun = Instant::now();
    let (_stdout, _stderr) = flooding.start(1);
    let mut asked = 0;
    eventually("a call", || {
        asked += flooding.counted();
        0 < asked
    });
    for _ in 0..10 {
        let other = world.probe(&["exit", "7"], limits());
        assert_eq!(other.run(1, b"").status, ExitStatus::Exited(7));
        world.destroy(other.id);
    }
    world.destroy(flooding.id);
    let seen = world.end_observation(by);
    let answered: u64 = seen
        .calls
        .iter()
        .map(|call| call.allowed + call.refused)
        .sum();
    let answered_max = OBSERVED_ALLOWANCE_MAX + begun.elapsed().as_micros() / 100;
    assert!(
        u128::from(answered) <= answered_max,
        "{answered} of {answered_max}"
    );
    world.close();
}

#[test]
fn a_stored_file_can_be_read_and_nothing_beside_it() {
    if !is_root() {
        return;
    }
    let mut world = World::new();
    let tree = world.store("profile", b"content");
    let (event, mut fds) = world.open_stored(&tree, "profile");
    assert!(matches!(event, Event::TreeOpened { .. }), "{event:?}");
    let mut text = String::new();
    let mut file = File::from(fds.remove(0));
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "content");
    assert!(file.write_all(b"x").is_err());
    for path in ["", ".", "..", "../profile", "/etc/passwd", "absent"] {
        let (event, fds) = world.open_stored(&tree, path);
        assert!(matches!(event, Event::Failed { .. }), "{path}: {event:?}");
        assert!(fds.is_empty());
    }
    world.close();
}
