// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Hearth from outside: the real executable, the real kernel, real functions, over HTTP.
//!
//! ```text
//! instance   a running `hearth serve` and how to talk to it      package    functions as they are deployed
//! http       one connection, byte by byte                        world      what is on the host because of an instance
//! turn       which tests may run beside each other               wait       until something holds, or a deadline passes
//! invariants what must hold after every attack                   victim     the hostile program, deployed
//! home       where an instance keeps its data, and whose         tenant     an ordinary user who has an instance
//! canaries   what no function may change
//! ```
//!
//! The tests are in `attacks` (by what they attack), `bundled` (every function that ships), `isolation`, `violations`, `learn`, `limits`,
//! `failures`, `reuse`, `errors`, `clients`, `hostfiles`, `deploys`, `bombs`, `doctor`, `rootless`, `life`
//! (what is killed, and what then happens) and `load`. They need root; without it each says so and passes.

#[cfg(test)]
mod canaries;
#[cfg(test)]
mod home;
#[cfg(test)]
mod http;
#[cfg(test)]
mod instance;
#[cfg(test)]
mod invariants;
#[cfg(test)]
mod launch;
#[cfg(test)]
mod package;
#[cfg(test)]
mod tenant;
#[cfg(test)]
mod turn;
#[cfg(test)]
mod victim;
#[cfg(test)]
mod wait;
#[cfg(test)]
mod world;

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod bombs;
#[cfg(test)]
mod bundled;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod deploys;
#[cfg(test)]
mod doctor;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod failures;
#[cfg(test)]
mod hostfiles;
#[cfg(test)]
mod isolation;
#[cfg(test)]
mod learn;
#[cfg(test)]
mod life;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod load;
#[cfg(test)]
mod reuse;
#[cfg(test)]
mod rootless;
#[cfg(test)]
mod violations;
