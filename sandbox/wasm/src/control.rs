// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The control socket: whole packets, each with several messages once the worker is bound.
//!
//! Events are gathered into one packet, which leaves when the worker is about to wait or to compute for long: answers
//! that are ready together share one system call and one wake-up of the gateway.
//!
//! While nothing runs the worker waits in a plain blocking recv(2), so that a small call costs one recv and one send
//! and no turn of the event loop; while something runs it goes through the event loop. Both on the same socket, which is
//! left in blocking mode: every call that must not block says so itself (MSG_DONTWAIT).

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use hearth_protocol::frame::{self, FrameError, PACKET_BYTES_MAX};
use hearth_protocol::worker::Event;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send,
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

/// Whether there was room.
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
    /// The packet that is being gathered. Only one thread ever asks for it; the lock is there because wasmtime wants a
    /// guest's streams to be able to move between threads.
    gathered: Mutex<Vec<u8>>,
}

impl Control {
    /// To be called within a runtime, before the worker's seccomp filter.
    pub(crate) fn new(socket: OwnedFd) -> Result<Self, ControlError> {
        let flags = rustix::fs::fcntl_getfl(&socket)?;
        rustix::fs::fcntl_setfl(&socket, flags - rustix::fs::OFlags::NONBLOCK)?;
        let socket = UnixSeqpacket::try_from(socket)?;
        Ok(Self {
            socket,
            gathered: Mutex::new(Vec::with_capacity(PACKET_BYTES_MAX)),
        })
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

    /// Sends one message as a packet of its own, as the gateway expects it until the worker is bound.
    pub(crate) fn send_alone(&self, event: &Event) -> Result<(), ControlError> {
        let mut packet = Vec::new();
        frame::encode(event, &[], &mut packet).map_err(ControlError::Encode)?;
        send(&self.socket, &packet, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Adds an event to the packet that is being gathered. That one is sent first where it has no room; where it
    /// cannot be sent either, the event is not taken.
    pub(crate) fn try_push(&self, event: &Event, payload: &[u8]) -> Result<Sent, ControlError> {
        let mut gathered = self.gathered();
        match frame::append(event, payload, &mut gathered) {
            Err(FrameError::TooLarge { .. }) if !gathered.is_empty() => {}
            appended => return appended.map(|()| Sent::All).map_err(ControlError::Encode),
        }
        if self.send_gathered(&mut gathered, SendFlags::DONTWAIT)? == Sent::WouldBlock {
            return Ok(Sent::WouldBlock);
        }
        frame::append(event, payload, &mut gathered).map_err(ControlError::Encode)?;
        Ok(Sent::All)
    }

    /// Adds an event to the packet that is being gathered, waiting for room where there is none.
    pub(crate) async fn push(&self, event: &Event, payload: &[u8]) -> Result<(), ControlError> {
        while self.try_push(event, payload)? == Sent::WouldBlock {
            let mut ready = self.socket.as_async_fd().writable().await?;
            // Only a full socket makes it unready: the gathered packet alone tells, not this event.
            if self.try_flush()? == Sent::WouldBlock {
                ready.clear_ready();
            }
        }
        Ok(())
    }

    /// Sends what is gathered, waiting on this thread.
    pub(crate) fn flush_blocking(&self) -> Result<(), ControlError> {
        self.send_gathered(&mut self.gathered(), SendFlags::empty())?;
        Ok(())
    }

    /// Sends what is gathered if the socket has room.
    pub(crate) fn try_flush(&self) -> Result<Sent, ControlError> {
        self.send_gathered(&mut self.gathered(), SendFlags::DONTWAIT)
    }

    /// Sends what is gathered; where there is no room, `cx` is woken when there is.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), ControlError>> {
        while self.try_flush()? == Sent::WouldBlock {
            ready!(self.socket.as_async_fd().poll_write_ready(cx))?.clear_ready();
        }
        Poll::Ready(Ok(()))
    }

    fn send_gathered(
        &self,
        gathered: &mut Vec<u8>,
        flags: SendFlags,
    ) -> Result<Sent, ControlError> {
        if gathered.is_empty() {
            return Ok(Sent::All);
        }
        loop {
            match send(&self.socket, gathered, flags | SendFlags::NOSIGNAL) {
                Ok(_) => {
                    gathered.clear();
                    return Ok(Sent::All);
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(Sent::WouldBlock),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn gathered(&self) -> MutexGuard<'_, Vec<u8>> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
