// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The socket to the monitor ([`hearth_protocol::monitor`]).

use std::os::fd::OwnedFd;

use hearth_protocol::{
    frame::{self, FrameError},
    monitor::{Event, Request},
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio_seqpacket::{UnixSeqpacket, ancillary::OwnedAncillaryMessage};

/// Larger than any message from the monitor, in bytes.
const PACKET_BYTES_MAX: usize = 256;

/// Room for the ancillary data of one packet: one fd and its header, with slack. In bytes.
const ANCILLARY_BYTES: usize = 64;

/// Why the monitor could not be heard or told.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The monitor ended; so do its children.
    #[error("the monitor is gone")]
    Gone,
    /// The kernel refused.
    #[error("the socket to the monitor failed")]
    Io(#[from] std::io::Error),
    /// A packet is not what it must be.
    #[error("the monitor sent a bad packet")]
    Frame(#[from] FrameError),
    /// It must carry one fd and does not.
    #[error("the monitor sent no spawner's socket")]
    NoSocket,
}

/// What the monitor says.
#[derive(Debug)]
pub(crate) enum Order {
    /// There is a new spawner.
    Spawner(OwnedFd),
    /// Finish and end.
    Drain,
}

/// The socket to the monitor.
#[derive(Debug)]
pub(crate) struct Monitor {
    socket: UnixSeqpacket,
}

impl Monitor {
    /// Must be called inside a runtime.
    pub(crate) fn new(socket: OwnedFd) -> Result<Self, MonitorError> {
        // The monitor's sockets block, and a runtime must never stand in one.
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(std::io::Error::from)?;
        Ok(Self {
            socket: UnixSeqpacket::try_from(socket)?,
        })
    }

    pub(crate) async fn order(&self) -> Result<Order, MonitorError> {
        let mut packet = [0; PACKET_BYTES_MAX];
        let mut room = [0; ANCILLARY_BYTES];
        let (info, ancillary) = self
            .socket
            .recv_with_ancillary(&mut packet, &mut room)
            .await?;
        let mut fds = Vec::new();
        for message in ancillary.into_messages() {
            if let OwnedAncillaryMessage::FileDescriptors(received) = message {
                fds.extend(received);
            }
        }
        if info.bytes_read() == 0 {
            return Err(MonitorError::Gone);
        }
        match frame::decode_bare(&packet[..info.bytes_read()])? {
            Request::Spawner => fds.pop().map(Order::Spawner).ok_or(MonitorError::NoSocket),
            Request::Drain => Ok(Order::Drain),
        }
    }

    /// Says that invocations are taken.
    pub(crate) async fn tell_ready(&self) -> Result<(), MonitorError> {
        let mut packet = Vec::new();
        frame::encode(&Event::Ready, &[], &mut packet)?;
        self.socket.send(&packet).await?;
        Ok(())
    }
}
