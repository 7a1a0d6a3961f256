// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The socket to the gateway. Receiving never blocks; what cannot be sent at once waits here, up to a limit.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use hearth_protocol::{
    frame::{self, PACKET_BYTES_MAX},
    spawner::{Event, Request},
};
use nix::errno::Errno;

use super::events::Interest;
use crate::socket;

/// Answers that wait for a gateway that does not read. Each request has one answer and each sandbox one `Gone` and at
/// most one `Breached`, so an honest gateway is never this far behind: 4,096 is more than the largest table of
/// sandboxes.
const OUTBOX_LEN_MAX: usize = 4096;

/// Why nothing more comes or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// The other end is closed.
    ByPeer,
    /// It sent what no gateway sends, or does not read.
    Broken,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    buffer: Vec<u8>,
    outbox: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    closed: Option<Closed>,
}

impl Link {
    pub(super) fn new(socket: OwnedFd) -> Self {
        // One byte more than the largest packet: a longer one is seen as such.
        Self {
            socket,
            buffer: vec![0; PACKET_BYTES_MAX + 1],
            outbox: VecDeque::new(),
            closed: None,
        }
    }

    pub(super) fn closed(&self) -> Option<Closed> {
        self.closed
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to wake up for.
    pub(super) fn interest(&self) -> Interest {
        if self.outbox.is_empty() {
            Interest::Requests
        } else {
            Interest::RequestsAndRoom
        }
    }

    /// The next request; None where there is none now, or never again ([`Link::closed`]). Descriptors that the request
    /// does not carry are closed here by being dropped.
    pub(super) fn receive(&mut self) -> Option<(Request, Vec<OwnedFd>)> {
        let received = match socket::receive(self.socket.as_fd(), &mut self.buffer) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => return None,
            Err(_broken) => return self.close(Closed::ByPeer),
        };
        if received.bytes == 0 {
            return self.close(Closed::ByPeer);
        }
        if received.truncated {
            return self.close(Closed::Broken);
        }
        let packet = self.buffer.get(..received.bytes).unwrap_or_default();
        match frame::decode_bare(packet) {
            Ok(request) => Some((request, received.fds)),
            Err(_hostile) => self.close(Closed::Broken),
        }
    }

    fn close<T>(&mut self, why: Closed) -> Option<T> {
        self.closed = Some(why);
        self.outbox.clear();
        None
    }

    /// Sends an event, now or as soon as there is room.
    pub(super) fn push(&mut self, event: &Event, fds: Vec<OwnedFd>) {
        if self.closed.is_some() {
            return;
        }
        let mut packet = Vec::new();
        if frame::encode(event, b"", &mut packet).is_err() || OUTBOX_LEN_MAX <= self.outbox.len() {
            self.close::<()>(Closed::Broken);
            return;
        }
        self.outbox.push_back((packet, fds));
        self.flush();
    }

    /// Sends what waits, as far as there is room.
    pub(super) fn flush(&mut self) {
        while let Some((packet, fds)) = self.outbox.front() {
            match socket::send(self.socket.as_fd(), packet, fds) {
                Ok(()) => {
                    self.outbox.pop_front();
                }
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS) => return,
                Err(_gone) => {
                    self.close::<()>(Closed::ByPeer);
                    return;
                }
            }
        }
    }
}
