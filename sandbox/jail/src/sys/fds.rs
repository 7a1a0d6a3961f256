// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Descriptors that arrive as numbers: from SCM_RIGHTS, or inherited over exec.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};

use super::checked;

/// Takes ownership of a descriptor that the kernel has just delivered in a control message.
pub(super) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers (`inherited`, and `receive` for numbers out of SCM_RIGHTS) pass open descriptors that
    // nothing else in this process owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Takes ownership of a descriptor that the program's starter left open at this number; None where it is not open.
/// Each number is taken at most once, by `init::run`, before anything else is opened.
pub(crate) fn inherited(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl(F_GETFD) on any number only reads the table.
    let open = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    (0 <= open).then(|| adopt(fd))
}

/// What [`receive`] got.
#[derive(Debug)]
pub(crate) struct Received {
    /// Bytes of the packet; 0 is the end of the connection.
    pub(crate) bytes: usize,
    /// Its descriptors, close-on-exec.
    pub(crate) fds: Vec<OwnedFd>,
    /// The packet or its descriptors did not fit.
    pub(crate) truncated: bool,
}

/// The most descriptors that one packet may carry to us: init's three, one to spare so that too many is noticed.
const RECEIVED_FDS_MAX: usize = 4;

/// One packet, without blocking, and every descriptor that came with it.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> nix::Result<Received> {
    receive_with(socket, buffer, MsgFlags::MSG_DONTWAIT)
}

/// The same, waiting for a packet.
pub(crate) fn receive_waiting(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> nix::Result<Received> {
    receive_with(socket, buffer, MsgFlags::empty())
}

fn receive_with(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    flags: MsgFlags,
) -> nix::Result<Received> {
    let mut control = nix::cmsg_space!([RawFd; RECEIVED_FDS_MAX]);
    let mut parts = [std::io::IoSliceMut::new(buffer)];
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for item in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = item {
            fds.extend(numbers.into_iter().map(adopt));
        }
    }
    let cut = MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC;
    Ok(Received {
        bytes: message.bytes,
        fds,
        truncated: message.flags.intersects(cut),
    })
}

/// A control message with one descriptor, as sendmsg(2) wants it, padded as CMSG_SPACE counts it.
#[repr(C, align(8))]
struct OneDescriptor {
    header: libc::cmsghdr,
    number: RawFd,
}

/// Sends one byte with one descriptor. One system call, and no memory but this function's.
pub(crate) fn send_one(
    socket: BorrowedFd<'_>,
    byte: u8,
    descriptor: BorrowedFd<'_>,
) -> nix::Result<()> {
    let number_bytes = u32::try_from(size_of::<RawFd>()).map_err(|_large| Errno::EINVAL)?;
    // SAFETY: CMSG_LEN only adds, to the size of a descriptor.
    let length = unsafe { libc::CMSG_LEN(number_bytes) };
    // SAFETY: as above, with padding.
    let space = unsafe { libc::CMSG_SPACE(number_bytes) };
    // SAFETY: a cmsghdr and a number are integers, for which zero is a value.
    let mut control: OneDescriptor = unsafe { std::mem::zeroed() };
    control.header.cmsg_len = length.try_into().map_err(|_large| Errno::EINVAL)?;
    control.header.cmsg_level = libc::SOL_SOCKET;
    control.header.cmsg_type = libc::SCM_RIGHTS;
    control.number = descriptor.as_raw_fd();
    let mut bytes = [byte];
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: a msghdr is integers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = space.try_into().map_err(|_large| Errno::EINVAL)?;
    // SAFETY: sendmsg(2) reads the message, its one part and its control data, all of which outlive the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    Errno::result(sent).map(drop)
}

/// Closes every descriptor from `first` on (close_range(2)).
pub(crate) fn close_from(first: u32) -> nix::Result<()> {
    close_range(first, u32::MAX)
}

/// Closes the descriptors `first..=last`.
///
/// Only for the moment after a fork, when the owners of these numbers are the parent's objects and never run again.
pub(crate) fn close_range(first: u32, last: u32) -> nix::Result<()> {
    // SAFETY: close_range(2) takes integers. Owners of the closed numbers exist in this address space, but this
    // process ends in exec or _exit without running their destructors (`enter::child`, `spawner::commit`).
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0_u32) };
    checked(result).map(drop)
}

/// Makes `number` a duplicate of `fd`, without close-on-exec, whatever it was before.
pub(crate) fn place(fd: BorrowedFd<'_>, number: RawFd) -> nix::Result<()> {
    // SAFETY: dup2(2) takes integers; what `number` was belongs to the parent's objects (see `close_range`).
    let result = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    Errno::result(result).map(drop)
}

/// A descriptor of this process that stays open until exec, by its number.
pub(crate) fn placed(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: called between `place`, which opens these numbers in a process that has just been forked, and exec or _exit;
    // nothing closes them.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// A close-on-exec copy with a number of at least `first`.
pub(crate) fn copy_above(fd: BorrowedFd<'_>, first: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: fcntl(F_DUPFD_CLOEXEC) takes integers.
    let number =
        Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, first) })?;
    Ok(adopt(number))
}

/// Clears the close-on-exec flag.
pub(crate) fn open_on_exec(fd: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: fcntl(F_SETFD) takes integers.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) };
    Errno::result(result).map(drop)
}

/// Sets the close-on-exec flag.
pub(crate) fn close_on_exec(fd: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: fcntl(F_SETFD) takes integers.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    Errno::result(result).map(drop)
}
