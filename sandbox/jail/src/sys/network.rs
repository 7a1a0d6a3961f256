// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The one thing done to a sandbox's network namespace: `lo` up (netdevice(7)).

use std::os::fd::AsRawFd;

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// Brings the loopback interface of the current network namespace up.
pub(crate) fn loopback_up() -> nix::Result<()> {
    let any = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is integers, bytes and unions of them, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        // C's char has a sign on x86-64 and none on aarch64.
        *place = libc::c_char::from_ne_bytes([*byte]);
    }
    request.ifr_ifru.ifru_flags = UP_AND_RUNNING;
    // SAFETY: SIOCSIFFLAGS reads a name and flags out of an ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(any.as_raw_fd(), SET_FLAGS, &raw const request) };
    Errno::result(result).map(drop)
}

/// The type of a request differs by C library.
const SET_FLAGS: libc::Ioctl = libc::SIOCSIFFLAGS as libc::Ioctl;

/// IFF_UP | IFF_RUNNING (netdevice(7)) as the field's type.
const UP_AND_RUNNING: libc::c_short = 0x41;
