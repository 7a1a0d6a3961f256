// SPDX-License-Identifier: Apache-2.0 OR MIT
//! SEQPACKET sockets (unix(7)): whole packets, with descriptors.

use std::{
    io::IoSlice,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};

pub(crate) use crate::sys::fds::{receive, receive_waiting};

/// A connected pair, close-on-exec.
pub(crate) fn pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
}

/// Sends one packet without waiting: EAGAIN where the peer's buffer is full.
pub(crate) fn send(socket: BorrowedFd<'_>, packet: &[u8], fds: &[OwnedFd]) -> nix::Result<()> {
    transmit(socket, packet, fds, MsgFlags::MSG_DONTWAIT)
}

/// Sends one packet, waiting until the peer has room for it.
pub(crate) fn send_waiting(socket: BorrowedFd<'_>, packet: &[u8]) -> nix::Result<()> {
    transmit(socket, packet, &[], MsgFlags::empty())
}

/// The same, with descriptors.
pub(crate) fn send_waiting_with(
    socket: BorrowedFd<'_>,
    packet: &[u8],
    fds: &[OwnedFd],
) -> nix::Result<()> {
    transmit(socket, packet, fds, MsgFlags::empty())
}

/// Sends one byte with one descriptor, by a single system call: no memory is asked for in between, so that the caller's other
/// calls may depend on its arrival.
pub(crate) fn hand_over(
    socket: BorrowedFd<'_>,
    byte: u8,
    descriptor: BorrowedFd<'_>,
) -> nix::Result<()> {
    crate::sys::fds::send_one(socket, byte, descriptor)
}

fn transmit(
    socket: BorrowedFd<'_>,
    packet: &[u8],
    fds: &[OwnedFd],
    flags: MsgFlags,
) -> nix::Result<()> {
    let numbers: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() {
        &[]
    } else {
        rights.as_slice()
    };
    let parts = [IoSlice::new(packet)];
    let flags = flags | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &parts, control, flags, None).map(drop)
}
