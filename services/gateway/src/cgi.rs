// SPDX-License-Identifier: Apache-2.0 OR MIT
//! CGI/1.1 (RFC 3875), both ways: a request becomes an environment ([`environment()`]), and the beginning of an output
//! becomes a status and headers ([`parse_head`]). Neither trusts what it reads.

mod environment;
mod head;

pub(crate) use environment::{Request, environment};
pub(crate) use head::{HEAD_BYTES_MAX, check, parse_head};
