// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One end of a SEQPACKET socket to the spawner, to init or to a wasm worker.

use std::{
    io::IoSlice,
    net::Shutdown,
    os::fd::{BorrowedFd, OwnedFd},
};

use hearth_protocol::frame::{self, FrameError};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Mutex;
use tokio_seqpacket::{
    UnixSeqpacket,
    ancillary::{AncillaryMessageWriter, OwnedAncillaryMessage},
};

/// Why a packet could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    /// The other end is gone.
    #[error("the other end closed the socket")]
    Closed,
    /// The kernel refused.
    #[error("socket failed")]
    Io(#[from] std::io::Error),
    /// The packet is not what it must be.
    #[error("bad packet")]
    Frame(#[from] FrameError),
    /// An answer to what nobody asked.
    #[error("message out of turn")]
    Unasked,
    /// More fds came than any message carries.
    #[error("packet with too many fds")]
    TooManyFds,
}

/// Room for the ancillary data of one packet: the fds of `Created` and the header, with slack. In bytes.
const ANCILLARY_BYTES: usize = 128;

/// One end of a SEQPACKET socket. One task receives; any number send.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: UnixSeqpacket,
    /// A socket remembers only the last task that waits for room, and the kernel queues but ten packets
    /// (`net.unix.max_dgram_qlen`): senders that wait must do so one after the other.
    sending: Mutex<()>,
}

/// One received packet.
pub(crate) struct Received<M> {
    /// The decoded message.
    pub(crate) message: M,
    /// The fds that came with it, already close-on-exec.
    pub(crate) fds: Vec<OwnedFd>,
}

impl Channel {
    /// Takes over a connected socket. Must be called inside a runtime.
    pub(crate) fn new(fd: OwnedFd) -> std::io::Result<Self> {
        // The runtime waits for readiness itself; a socket that blocks would stop the whole shard.
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self {
            socket: UnixSeqpacket::try_from(fd)?,
            sending: Mutex::new(()),
        })
    }

    /// Ends both directions, whoever still holds this end: the peer sees that nobody is here any more.
    pub(crate) fn shut_down(&self) {
        // Where it is not connected any more there is nothing to end.
        drop(self.socket.shutdown(Shutdown::Both));
    }

    /// Sends one packet.
    pub(crate) async fn send<M: Serialize>(
        &self,
        message: &M,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let mut packet = Vec::with_capacity(256 + payload.len());
        frame::encode(message, payload, &mut packet)?;
        self.send_packet(&packet, fds).await
    }

    /// Sends a packet that is encoded already.
    pub(crate) async fn send_packet(
        &self,
        packet: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let mut room = [0_u8; ANCILLARY_BYTES];
        let mut ancillary = AncillaryMessageWriter::new(&mut room);
        if !fds.is_empty() {
            ancillary.add_fds(fds).map_err(std::io::Error::from)?;
        }
        let _turn = self.sending.lock().await;
        self.socket
            .send_vectored_with_ancillary(&[IoSlice::new(packet)], &mut ancillary)
            .await
            .map_err(closed_or_io)?;
        Ok(())
    }

    /// Receives one message, which has no payload, into `buffer`; one that does not fit is an error, never cut.
    pub(crate) async fn recv<M: DeserializeOwned>(
        &self,
        buffer: &mut [u8],
    ) -> Result<Received<M>, ChannelError> {
        let (length, fds) = self.recv_packet(buffer).await?;
        let message = frame::decode_bare(&buffer[..length])?;
        Ok(Received { message, fds })
    }

    /// Receives one packet without looking at what is in it: its length, and the fds that came with it.
    pub(crate) async fn recv_packet(
        &self,
        buffer: &mut [u8],
    ) -> Result<(usize, Vec<OwnedFd>), ChannelError> {
        let mut room = [0_u8; ANCILLARY_BYTES];
        let (info, ancillary) = self
            .socket
            .recv_with_ancillary(buffer, &mut room)
            .await
            .map_err(closed_or_io)?;
        let mut fds = Vec::new();
        let ancillary_cut = info.ancillary_truncated();
        for message in ancillary.into_messages() {
            if let OwnedAncillaryMessage::FileDescriptors(descriptors) = message {
                fds.extend(descriptors);
            }
        }
        if ancillary_cut {
            return Err(ChannelError::TooManyFds);
        }
        match info.bytes_read() {
            // A peer of ours never sends an empty packet, so zero bytes are the end (unix(7), recv(2)).
            0 => Err(ChannelError::Closed),
            _ if info.truncated() => Err(FrameError::Truncated.into()),
            length => Ok((length, fds)),
        }
    }
}

/// A reset or a broken pipe means the same as an orderly end: the process behind the socket is gone.
fn closed_or_io(error: std::io::Error) -> ChannelError {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe
        | std::io::ErrorKind::ConnectionReset
        | std::io::ErrorKind::NotConnected => ChannelError::Closed,
        _ => ChannelError::Io(error),
    }
}
