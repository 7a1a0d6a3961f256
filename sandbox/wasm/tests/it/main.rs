// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The real compiler and the real worker, over a real socket, without a jail around them: what they promise to the
//! gateway, and what a hostile module cannot do to them.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot do what it needs has failed"
)]

mod bundled;
mod compiler;
mod gateway;
mod guests;
mod hostile;
mod limits;
mod preview1;
mod worker;
