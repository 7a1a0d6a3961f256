// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sizes such as `128MiB` and durations such as `3s`, as texts with a unit: a bare number would leave the reader guessing.

use std::time::Duration;

/// Units of size, longest suffix first, so that `MiB` is not read as `B`.
const SIZE_UNITS: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

/// Units of time in milliseconds, longest suffix first, so that `ms` is not read as `s`.
const DURATION_UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// What a size looks like, for messages.
pub(super) const SIZE_FORM: &str =
    "a whole number and a unit, such as \"64KiB\", \"128MiB\" or \"2GiB\"";

/// What a duration looks like, for messages.
pub(super) const DURATION_FORM: &str =
    "a whole number and a unit, such as \"500ms\", \"3s\" or \"2m\"";

/// Bytes, or none where `text` is not [`SIZE_FORM`] or does not fit.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    parse(text, &SIZE_UNITS)
}

/// A duration, or none where `text` is not [`DURATION_FORM`] or does not fit.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    parse(text, &DURATION_UNITS).map(Duration::from_millis)
}

/// The size as a person would write it.
pub(super) fn show_size(bytes: u64) -> String {
    let whole = |(_, unit): &&(&str, u64)| bytes != 0 && bytes.is_multiple_of(*unit);
    let binary = ["GiB", "MiB", "KiB"]
        .iter()
        .filter_map(|name| SIZE_UNITS.iter().find(|(unit, _)| unit == name));
    match binary.clone().find(whole) {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

/// The duration as a person would write it.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0s".to_owned(),
        _ if millis.is_multiple_of(1000) => format!("{}s", millis / 1000),
        _ => format!("{millis}ms"),
    }
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) = units
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)))?;
    // `u64::from_str` takes a leading `+`, which no size has.
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| number.parse::<u64>().ok()?.checked_mul(*unit))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_are_read_with_their_unit_and_only_so() {
        assert_eq!(parse_size("128MiB"), Some(128 << 20));
        assert_eq!(parse_size("0B"), Some(0));
        assert_eq!(parse_size("5kB"), Some(5000));
        assert_eq!(parse_duration("3s"), Some(Duration::from_secs(3)));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        for text in [
            "",
            "128",
            "MiB",
            "+1MiB",
            "-1B",
            "1.5GiB",
            "1 MiB",
            "99999999999GiB",
            "0x1B",
            "1mib",
        ] {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
        for text in ["", "3", "s", "3 s", "1d", "99999999999999999h"] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for bytes in [1, 1024, 1536, 6 << 20, 3 << 30] {
            assert_eq!(parse_size(&show_size(bytes)), Some(bytes));
        }
        for millis in [0, 1, 999, 1000, 90_000] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
        }
    }
}
