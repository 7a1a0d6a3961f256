// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The text in cgroup files.

use std::os::fd::{AsFd, AsRawFd};

/// The number in the line `name N` of a file such as memory.events.
pub(super) fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(name)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

/// What to write to cgroup.event_control (v1): signal `event` on events of the file `watched`.
pub(super) fn event_registration(event: &impl AsFd, watched: &impl AsFd) -> String {
    format!(
        "{} {}",
        event.as_fd().as_raw_fd(),
        watched.as_fd().as_raw_fd()
    )
}

#[cfg(test)]
mod tests {
    use super::counter;

    #[test]
    fn a_counter_is_found_by_its_whole_name() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\noom_group_kill 1\n";
        assert_eq!(counter(text, "oom_kill"), Some(3));
        assert_eq!(counter(text, "oom"), None);
        assert_eq!(counter("oom_kill x\n", "oom_kill"), None);
        assert_eq!(counter("", "oom_kill"), None);
    }
}
