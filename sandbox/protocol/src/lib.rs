// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The messages between Hearth's processes. Every one travels as a single packet of an `AF_UNIX SOCK_SEQPACKET`
//! socket (unix(7)): the kernel keeps the borders, so a reader never has to resynchronise with a hostile peer.
//!
//! ```text
//! monitor ──[`monitor`]──▶ gateway ──[`spawner`] + fds──▶ spawner
//!                             ├──────[`init`]   + fds──▶ init        (one process per call)
//!                             └──────[`worker`] + fds──▶ wasm worker (many instances)
//! ```
//!
//! This crate holds data and its encoding, nothing else: no unsafe, no sockets, no clock.
#![forbid(unsafe_code)]

pub mod frame;
pub mod init;
pub mod isolation;
pub mod monitor;
pub mod profile;
pub mod spawner;
pub mod worker;

mod name;

pub use name::{NameProblem, SmallName, TREE_ID_LEN, TreeId, TreeIdProblem};
