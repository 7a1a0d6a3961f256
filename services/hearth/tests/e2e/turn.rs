// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which tests may run beside each other, and what happens without root.

use std::io::Write;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static TURN: RwLock<()> = RwLock::new(());

/// What a test holds while it runs.
#[derive(Debug)]
pub(crate) enum Turn {
    /// Others may run too.
    Shared {
        _guard: RwLockReadGuard<'static, ()>,
    },
    /// None other: the test counts what is on the host, or compares times.
    Alone {
        _guard: RwLockWriteGuard<'static, ()>,
    },
}

/// A turn beside others; none without root.
pub(crate) fn shared(test: &str) -> Option<Turn> {
    is_root(test).then(|| Turn::Shared {
        _guard: TURN.read().unwrap_or_else(PoisonError::into_inner),
    })
}

/// A turn alone; none without root.
pub(crate) fn alone(test: &str) -> Option<Turn> {
    is_root(test).then(|| Turn::Alone {
        _guard: TURN.write().unwrap_or_else(PoisonError::into_inner),
    })
}

fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        // The harness names a test's thread after it, unless it runs the tests on its own thread.
        let thread = std::thread::current();
        let test = thread.name().filter(|name| *name != "main").unwrap_or(test);
        // Not by `println!`, which the harness swallows for a test that passes; on a line of its own.
        let line = format!("\nSKIPPED: {test}: needs root: sudo bash .ci/test\n");
        std::io::stderr()
            .write_all(line.as_bytes())
            .expect("stderr is writable");
    }
    root
}

/// Takes a turn or leaves the test.
macro_rules! take {
    ($how:ident) => {
        match $crate::turn::$how(module_path!()) {
            Some(turn) => turn,
            None => return,
        }
    };
}
pub(crate) use take;
