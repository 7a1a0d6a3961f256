// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A function's stdin, stdout and stderr: three pipes per invocation. Our ends do not block.

use std::{
    cell::RefCell,
    io::ErrorKind,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use bytes::{Buf, Bytes};
use hearth_protocol::init::RUN_FDS;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::pipe2,
};
use tokio::{io::AsyncWriteExt, net::unix::pipe};

/// One read from a pipe: its default capacity (pipe(7)). In bytes.
const READ_BYTES: usize = READ_BYTES_U32 as usize;
pub(super) const READ_BYTES_U32: u32 = 64 * 1024;

/// The most that a pipe holds without a privilege (`fs.pipe-max-size`, pipe(7)). In bytes.
const PIPE_BYTES_MAX: usize = 1024 * 1024;

/// What an empty pipe takes at once, however little it holds: PIPE_BUF (pipe(7)). In bytes.
const TAKEN_AT_ONCE_BYTES: usize = nix::libc::PIPE_BUF;

/// The pipes of one invocation: our ends do not block, the function's do.
pub(super) struct Pipes {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) theirs: [OwnedFd; RUN_FDS],
}

impl Pipes {
    /// For a body of this many bytes.
    pub(super) fn new(body_bytes: usize) -> nix::Result<Self> {
        let (their_stdin, stdin) = pipe2(OFlag::O_CLOEXEC)?;
        let (stdout, their_stdout) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, their_stderr) = pipe2(OFlag::O_CLOEXEC)?;
        // The flag belongs to one end, so it cannot be set for both when they are made.
        set_nonblocking(&stdout)?;
        set_nonblocking(&stderr)?;
        if TAKEN_AT_ONCE_BYTES < body_bytes {
            set_nonblocking(&stdin)?;
        }
        Ok(Self {
            stdin,
            stdout,
            stderr,
            theirs: [their_stdin, their_stdout, their_stderr],
        })
    }
}

fn set_nonblocking(end: &OwnedFd) -> nix::Result<()> {
    fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

/// Writes what the pipe takes at once. What is left, if anything.
pub(super) fn write_now(stdin: &OwnedFd, body: &mut Bytes) -> Option<Bytes> {
    while !body.is_empty() {
        match nix::unistd::write(stdin, body) {
            Ok(written) => body.advance(written),
            Err(Errno::EINTR) => {}
            Err(_) => break,
        }
    }
    (!body.is_empty()).then(|| body.clone())
}

/// Goes on writing; ends for ever once everything is written or nobody reads.
pub(super) async fn write_more(feed: &mut Option<(pipe::Sender, Bytes)>) {
    let Some((sender, body)) = feed else {
        return std::future::pending().await;
    };
    let more = match sender.write(body).await {
        Ok(written) => {
            body.advance(written);
            !body.is_empty()
        }
        Err(_) => false,
    };
    if !more {
        *feed = None;
    }
}

/// Our end of a pipe that the function writes to.
#[derive(Debug)]
pub(super) enum Tap {
    /// The runtime does not know it.
    Unwatched(OwnedFd),
    /// The runtime says when there is something to read.
    Watched(pipe::Receiver),
    /// Nothing more will come.
    Ended,
}

impl Tap {
    pub(super) fn is_ended(&self) -> bool {
        matches!(self, Self::Ended)
    }

    pub(super) fn is_unwatched(&self) -> bool {
        matches!(self, Self::Unwatched(_))
    }

    /// Has the runtime watch it, unless it does or there is nothing to watch for.
    pub(super) fn watch(&mut self) -> std::io::Result<()> {
        *self = match std::mem::replace(self, Self::Ended) {
            // Unchecked: `Pipes` made it as what it must be.
            Self::Unwatched(end) => Self::Watched(pipe::Receiver::from_owned_fd_unchecked(end)?),
            other => other,
        };
        Ok(())
    }

    /// Resolves when a watched one can be read.
    pub(super) async fn readable(&self) {
        match self {
            // An error shows in the read that follows.
            Self::Watched(pipe) => drop(pipe.readable().await),
            Self::Unwatched(_) | Self::Ended => std::future::pending().await,
        }
    }

    /// Reads a watched one once, without waiting.
    pub(super) fn read(&mut self, take: impl FnOnce(&[u8])) {
        let Self::Watched(pipe) = &*self else { return };
        let is_open = with_buffer(|buffer| match pipe.try_read(buffer) {
            Ok(length) if 0 < length => {
                take(&buffer[..length]);
                true
            }
            Err(error) => error.kind() == ErrorKind::WouldBlock,
            Ok(_) => false,
        });
        if !is_open {
            *self = Self::Ended;
        }
    }

    /// Reads once, when nobody is left to write: what is there is all that will be.
    pub(super) fn read_last(&mut self, take: impl FnOnce(&[u8])) {
        let Some(end) = self.end() else { return };
        let may_hold_more = with_buffer(|buffer| match nix::unistd::read(end, buffer) {
            Ok(length) => {
                take(&buffer[..length]);
                length == READ_BYTES
            }
            Err(errno) => errno == Errno::EINTR,
        });
        if !may_hold_more {
            *self = Self::Ended;
        }
    }

    /// Reads what is there, without asking the runtime whether there is anything. A descendant that the kernel has not
    /// killed yet may go on writing, so the number of reads is bounded by what a pipe can hold.
    pub(super) fn drain(&self, mut take: impl FnMut(&[u8])) {
        let Some(end) = self.end() else { return };
        with_buffer(|buffer| {
            for _ in 0..PIPE_BYTES_MAX / READ_BYTES {
                match nix::unistd::read(end, buffer) {
                    Ok(length) if 0 < length => take(&buffer[..length]),
                    Err(Errno::EINTR) => {}
                    Ok(_) | Err(_) => return,
                }
            }
        });
    }

    fn end(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Unwatched(end) => Some(end.as_fd()),
            Self::Watched(pipe) => Some(pipe.as_fd()),
            Self::Ended => None,
        }
    }
}

/// Lends a buffer for one read: one per shard, since nothing waits while it is borrowed.
fn with_buffer<T>(action: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
    }
    BUFFER.with_borrow_mut(|buffer| action(buffer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(pipes: &mut Option<Pipes>) -> (Tap, [OwnedFd; RUN_FDS]) {
        let Pipes { stdout, theirs, .. } = pipes.take().unwrap();
        (Tap::Unwatched(stdout), theirs)
    }

    #[test]
    fn what_a_dead_writer_left_is_read_whole_and_ends_the_tap() {
        let (mut tap, theirs) = tap(&mut Pipes::new(0).ok());
        nix::unistd::write(&theirs[1], b"left").unwrap();
        drop(theirs);
        let mut found = Vec::new();
        tap.read_last(|bytes| found.extend_from_slice(bytes));
        assert_eq!(found, b"left");
        assert!(tap.is_ended());
    }

    #[test]
    fn a_full_pipe_does_not_end_with_the_first_read() {
        let (mut tap, theirs) = tap(&mut Pipes::new(0).ok());
        fcntl(&theirs[1], FcntlArg::F_SETPIPE_SZ(1024 * 1024)).unwrap();
        let written = nix::unistd::write(&theirs[1], &vec![7; READ_BYTES + 1]).unwrap();
        drop(theirs);
        let mut found = 0;
        tap.read_last(|bytes| found += bytes.len());
        assert!(!tap.is_ended());
        tap.read_last(|bytes| found += bytes.len());
        assert_eq!((found, tap.is_ended()), (written, true));
    }

    #[tokio::test]
    async fn watching_twice_loses_nothing() {
        let (mut tap, theirs) = tap(&mut Pipes::new(0).ok());
        tap.watch().unwrap();
        nix::unistd::write(&theirs[1], b"kept").unwrap();
        tap.watch().unwrap();
        tap.readable().await;
        let mut found = Vec::new();
        tap.read(|bytes| found.extend_from_slice(bytes));
        assert_eq!(found, b"kept");
        assert!(!tap.is_ended());
    }

    #[test]
    fn a_body_that_an_empty_pipe_may_not_take_never_blocks_the_shard() {
        let body = Bytes::from(vec![7; 16 * READ_BYTES]);
        let pipes = Pipes::new(body.len()).unwrap();
        let rest = write_now(&pipes.stdin, &mut body.clone()).unwrap();
        assert!(!rest.is_empty());
    }
}
