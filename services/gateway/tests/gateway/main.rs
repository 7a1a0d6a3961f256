// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The gateway as a whole, on real sockets. At the other end of its spawner's socket is the least that can be there:
//! it stores trees and can make no sandbox, so that what needs none is tested without privileges.
#![expect(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    reason = "a test that cannot go on has failed"
)]

mod client;
mod deploy;
mod edge;
mod life;
mod manifests;
mod paths;
mod protocols;
mod routes;
mod server;
mod smuggling;
mod spawner;
