// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The listening sockets: one per shard, all of one address, held by the monitor so that connections wait in them while a
//! gateway is replaced.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

/// Connections that wait for an accept, per shard: a burst of as many clients as a shard serves at once. The kernel
/// cuts it to net.core.somaxconn (4,096 by default).
const BACKLOG: i32 = 1024;

/// Why the address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub(crate) struct ListenError {
    pub(crate) address: SocketAddr,
    pub(crate) source: Errno,
}

/// Whether other sockets may have the same address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Alone,
    Shared,
}

/// As many sockets as there are shards; where the port is 0 all have the one that the kernel picks.
pub(super) fn bind_all(address: SocketAddr, shards: u16) -> Result<Vec<TcpListener>, ListenError> {
    let failed = |source| ListenError { address, source };
    // With SO_REUSEPORT a second Hearth of the same user would take half of the connections of the first, unnoticed. The
    // first bind is without it, so that an address in use is refused.
    let alone = bind_one(address, Sharing::Alone).map_err(failed)?;
    let chosen = alone
        .local_addr()
        .map_err(|error| failed(Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
    drop(alone);
    (0..shards)
        .map(|_| bind_one(chosen, Sharing::Shared).map_err(failed))
        .collect()
}

fn bind_one(address: SocketAddr, sharing: Sharing) -> Result<TcpListener, Errno> {
    let family = if address.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(family, SockType::Stream, flags, None)?;
    // Else a restart would have to wait for the connections of the last run to leave TIME_WAIT.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if sharing == Sharing::Shared {
        setsockopt(&socket, sockopt::ReusePort, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const ANY_PORT: &str = "127.0.0.1:0";

    #[test]
    fn every_shard_listens_on_the_port_that_was_picked() {
        let listeners = bind_all(ANY_PORT.parse().unwrap(), 3).unwrap();
        let addresses: BTreeSet<SocketAddr> = listeners
            .iter()
            .map(|listener| listener.local_addr().unwrap())
            .collect();
        assert_eq!((listeners.len(), addresses.len()), (3, 1));
    }

    #[test]
    fn an_address_that_another_hearth_listens_on_is_refused() {
        let first = bind_all(ANY_PORT.parse().unwrap(), 2).unwrap();
        let taken = first[0].local_addr().unwrap();
        let error = bind_all(taken, 2).unwrap_err();
        assert_eq!(error.source, Errno::EADDRINUSE);
    }
}
