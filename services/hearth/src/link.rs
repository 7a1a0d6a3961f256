// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The socket between the monitor and a child: the child's stdin, an `AF_UNIX SOCK_SEQPACKET` pair.
//!
//! The first packet says how to run and carries the fds that the child needs. Nothing is inherited but this one socket,
//! so no fd of the monitor can reach a child by accident, and nothing secret is in an argument list or an environment.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hearth_protocol::frame::{self, FrameError, PACKET_BYTES_MAX};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Serialize, de::DeserializeOwned};

/// The most fds in one packet: the kernel's own limit (SCM_MAX_FD).
pub(crate) const PACKET_FDS_MAX: usize = 253;

/// Why a packet did not pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The socket pair could not be made.
    #[error("cannot make a socket pair")]
    Pair(#[source] nix::Error),
    /// The message has no encoding, or the packet is none of its kind.
    #[error("cannot read or write the packet")]
    Frame(#[from] FrameError),
    /// More fds than fit.
    #[error("{0} fds do not fit into one packet")]
    Fds(usize),
    /// The system call failed.
    #[error("cannot send or receive")]
    Io(#[from] io::Error),
    /// The other end is closed.
    #[error("the other end is closed")]
    Closed,
}

/// Two connected ends, both closed on exec. Neither waits: the gateway's runtime relies on that, and every other reader
/// polls first or is sent its packet before it starts.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), LinkError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).map_err(LinkError::Pair)
}

/// Sends one message and its fds; never waits, so that a child that does not read cannot hold up the monitor.
pub(crate) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> Result<(), LinkError> {
    let mut packet = Vec::new();
    frame::encode(message, &[], &mut packet)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(LinkError::Fds(fds.len()));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let data = [IoSlice::new(&packet)];
    rustix::net::sendmsg(socket, &data, &mut ancillary, flags).map_err(io::Error::from)?;
    Ok(())
}

/// Receives one message that is there, and its fds.
pub(crate) fn receive<M: DeserializeOwned>(
    socket: impl AsFd,
) -> Result<(M, Vec<OwnedFd>), LinkError> {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut packet)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    );
    let length = received.map_err(io::Error::from)?.bytes;
    if length == 0 {
        return Err(LinkError::Closed);
    }
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok((frame::decode_bare(&packet[..length])?, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_message_arrives_with_its_fds_in_order() {
        let (here, there) = pair().unwrap();
        let (mut first, first_other) = io::pipe().unwrap();
        let (mut second, second_other) = io::pipe().unwrap();
        let fds = [first_other.as_fd(), second_other.as_fd()];
        send(&here, &"hello".to_owned(), &fds).unwrap();
        let (text, fds): (String, _) = receive(&there).unwrap();
        assert_eq!((text.as_str(), fds.len()), ("hello", 2));
        drop((first_other, second_other));
        for (fd, byte) in fds.into_iter().zip([b'1', b'2']) {
            std::fs::File::from(fd).write_all(&[byte]).unwrap();
        }
        let mut text = String::new();
        first.read_to_string(&mut text).unwrap();
        second.read_to_string(&mut text).unwrap();
        assert_eq!(text, "12");
    }

    #[test]
    fn a_closed_end_is_told_apart_from_a_message() {
        let (here, there) = pair().unwrap();
        drop(here);
        assert!(matches!(receive::<u8>(&there), Err(LinkError::Closed)));
    }

    #[test]
    fn a_reader_that_never_reads_does_not_hold_up_the_sender() {
        let (here, _there) = pair().unwrap();
        let refused = (0..100_000).find(|number: &u32| send(&here, number, &[]).is_err());
        assert!(refused.is_some());
    }
}
