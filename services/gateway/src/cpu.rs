// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What compiled code depends on beside the compiler: the features that this CPU has. A data directory may move to
//! another machine, and code that was compiled for more than it has must be compiled again there.

use hearth_protocol::TreeId;
use sha2::{Digest, Sha256};

use crate::intake::tree_id;

/// A hash of the architecture and of every feature that a compiler may use. Asks the CPU itself: the files that list
/// the same are out of this process's reach.
pub(crate) fn key() -> TreeId {
    let mut sha = Sha256::new();
    sha.update(std::env::consts::ARCH);
    for (name, present) in features() {
        sha.update(name);
        sha.update([u8::from(present)]);
    }
    tree_id(&sha.finalize())
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<(&'static str, bool)> {
    macro_rules! detected {
        ($($name:tt),*) => { vec![$(($name, std::arch::is_x86_feature_detected!($name))),*] };
    }
    detected![
        "sse3",
        "ssse3",
        "sse4.1",
        "sse4.2",
        "popcnt",
        "lzcnt",
        "bmi1",
        "bmi2",
        "avx",
        "avx2",
        "fma",
        "cmpxchg16b",
        "avx512f",
        "avx512dq",
        "avx512vl",
        "avx512bw",
        "avx512bitalg",
        "avx512vbmi"
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> Vec<(&'static str, bool)> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_same_every_time() {
        assert_eq!(key(), key());
    }
}
