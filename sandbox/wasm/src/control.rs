// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The control socket: whole packets, read and written without copying the payload through the encoder.
//!
//! While nothing runs the worker waits in a plain blocking recv(2), so that a small call costs one recv and one
//! sendmsg and no turn of the event loop; while something runs it goes through the event loop. Both on the same socket,
//! which is left in blocking mode: every call that must not block says so itself (MSG_DONTWAIT).

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use hearth_protocol::frame::{self, FrameError, PACKET_BYTES_MAX};
use hearth_protocol::worker::Event;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags, recv,
    recvmsg, sendmsg,
};
use tokio_seqpacket::UnixSeqpacket;

/// Room for one packet, and one byte more to tell one that is too long.
pub(crate) const PACKET_BUFFER_BYTES: usize = PACKET_BYTES_MAX + 1;

/// Why the connection to the gateway is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A system call on the socket failed.
    #[error("cannot use the control socket")]
    Socket(#[source] io::Error),
    /// An event does not fit into a packet.
    #[error("cannot encode an event")]
    Encode(#[source] FrameError),
}

impl From<io::Error> for ControlError {
    fn from(source: io::Error) -> Self {
        Self::Socket(source)
    }
}

impl From<rustix::io::Errno> for ControlError {
    fn from(source: rustix::io::Errno) -> Self {
        Self::Socket(source.into())
    }
}

/// What reading gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// A packet of this length; longer than [`PACKET_BYTES_MAX`] where it was cut.
    Packet(usize),
    /// The gateway closed its end.
    Closed,
}

impl From<usize> for Received {
    /// A packet always has a header, so a length of 0 can only be the end.
    fn from(length: usize) -> Self {
        match length {
            0 => Self::Closed,
            length => Self::Packet(length),
        }
    }
}

/// Whether a packet went out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Yes.
    All,
    /// The socket's buffer is full.
    WouldBlock,
}

/// This end of the socket.
#[derive(Debug)]
pub(crate) struct Control {
    socket: UnixSeqpacket,
}

impl Control {
    /// To be called within a runtime, before the worker's seccomp filter.
    pub(crate) fn new(socket: OwnedFd) -> Result<Self, ControlError> {
        let flags = rustix::fs::fcntl_getfl(&socket)?;
        rustix::fs::fcntl_setfl(&socket, flags - rustix::fs::OFlags::NONBLOCK)?;
        let socket = UnixSeqpacket::try_from(socket)?;
        Ok(Self { socket })
    }

    /// Waits for a packet, together with the fd that came with it. Only for binding: at any other time fds are not
    /// taken, and the kernel drops them.
    pub(crate) fn recv_with_file(
        &self,
        packet: &mut [u8],
    ) -> Result<(Received, Option<File>), ControlError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let message = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(packet)],
            &mut ancillary,
            RecvFlags::TRUNC | RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut file = None;
        for item in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = item {
                file = fds.map(File::from).next();
            }
        }
        Ok((message.bytes.into(), file))
    }

    /// Waits for a packet on this thread.
    pub(crate) fn recv_blocking(&self, packet: &mut [u8]) -> Result<Received, ControlError> {
        loop {
            match recv(&self.socket, &mut *packet, RecvFlags::TRUNC) {
                Ok((_, length)) => return Ok(length.into()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Takes a packet if there is one.
    pub(crate) fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        packet: &mut [u8],
    ) -> Poll<Result<Received, ControlError>> {
        let flags = RecvFlags::TRUNC | RecvFlags::DONTWAIT;
        loop {
            let mut ready = ready!(self.socket.as_async_fd().poll_read_ready(cx))?;
            let attempt = ready.try_io(|_| {
                let (_, length) = recv(&self.socket, &mut *packet, flags)?;
                Ok(length)
            });
            match attempt {
                Ok(length) => return Poll::Ready(Ok(length?.into())),
                Err(_would_block) => {}
            }
        }
    }

    /// Sends a packet if the socket has room. `header` is overwritten: it is the caller's to keep its allocation.
    pub(crate) fn try_send(
        &self,
        event: &Event,
        payload: &[u8],
        header: &mut Vec<u8>,
    ) -> Result<Sent, ControlError> {
        frame::encode(event, &[], header).map_err(ControlError::Encode)?;
        let parts = [IoSlice::new(header), IoSlice::new(payload)];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let no_fds = &mut SendAncillaryBuffer::default();
        match sendmsg(&self.socket, &parts, no_fds, flags) {
            Ok(_) => Ok(Sent::All),
            Err(rustix::io::Errno::AGAIN) => Ok(Sent::WouldBlock),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends a packet, waiting for room where there is none.
    pub(crate) async fn send(
        &self,
        event: &Event,
        payload: &[u8],
        header: &mut Vec<u8>,
    ) -> Result<(), ControlError> {
        // First without asking the event loop: nearly always there is room.
        if self.try_send(event, payload, header)? == Sent::All {
            return Ok(());
        }
        loop {
            let mut ready = self.socket.as_async_fd().writable().await?;
            match self.try_send(event, payload, header)? {
                Sent::All => return Ok(()),
                Sent::WouldBlock => ready.clear_ready(),
            }
        }
    }
}
