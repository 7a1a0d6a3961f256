// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the spawner waits for, in one epoll(7).

use std::os::fd::BorrowedFd;

use hearth_protocol::spawner::SandboxId;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Who has something to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A request, or room for answers.
    Gateway,
    /// SIGTERM and its like.
    Signals,
    /// The process that stores a tree has ended.
    Commit,
    /// PID 1 of a sandbox has ended.
    Exit(SandboxId),
    /// The first process of a sandbox speaks on its setup socket.
    Setup(SandboxId),
    /// A sandbox hit its memory limit.
    Oom(SandboxId),
    /// A sandbox's filter asks about a call.
    Question(SandboxId),
}

impl Source {
    /// Three bits of kind below the sandbox's number.
    fn token(self) -> u64 {
        match self {
            Self::Gateway => 0,
            Self::Signals => 1 << 3,
            Self::Commit => 2 << 3,
            Self::Exit(id) => (id.0 << 3) | 1,
            Self::Setup(id) => (id.0 << 3) | 2,
            Self::Oom(id) => (id.0 << 3) | 3,
            Self::Question(id) => (id.0 << 3) | 4,
        }
    }

    fn from_token(token: u64) -> Self {
        let id = SandboxId(token >> 3);
        match token & 7 {
            0 if token == 0 => Self::Gateway,
            0 if id.0 == 1 => Self::Signals,
            0 => Self::Commit,
            1 => Self::Exit(id),
            2 => Self::Setup(id),
            3 => Self::Oom(id),
            _ => Self::Question(id),
        }
    }
}

/// How many events are taken at once.
const BATCH_LEN: usize = 64;

/// What the gateway's socket wakes the spawner up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interest {
    /// Requests only: every answer has been sent.
    Requests,
    /// Room for answers as well.
    RequestsAndRoom,
}

/// The epoll, and what it watches the gateway's socket for.
#[derive(Debug)]
pub(super) struct Poller {
    epoll: Epoll,
    interest: Interest,
}

impl Poller {
    pub(super) fn new(gateway: BorrowedFd<'_>, signals: BorrowedFd<'_>) -> nix::Result<Self> {
        let poller = Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            interest: Interest::Requests,
        };
        poller.watch(gateway, Source::Gateway)?;
        poller.watch(signals, Source::Signals)?;
        Ok(poller)
    }

    /// Until the descriptor is closed or [`Poller::forget`]-ed.
    pub(super) fn watch(&self, fd: BorrowedFd<'_>, source: Source) -> nix::Result<()> {
        self.epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, source.token()))
    }

    /// A descriptor that stays open but has nothing more to say, or is a child's copy too.
    pub(super) fn forget(&self, fd: BorrowedFd<'_>) -> nix::Result<()> {
        self.epoll.delete(fd)
    }

    /// Changes what the gateway's socket wakes up for.
    pub(super) fn watch_gateway(
        &mut self,
        gateway: BorrowedFd<'_>,
        interest: Interest,
    ) -> nix::Result<()> {
        if interest == self.interest {
            return Ok(());
        }
        let room = match interest {
            Interest::Requests => EpollFlags::empty(),
            Interest::RequestsAndRoom => EpollFlags::EPOLLOUT,
        };
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN | room, Source::Gateway.token());
        self.epoll.modify(gateway, &mut event)?;
        self.interest = interest;
        Ok(())
    }

    /// What happened, after at most this time.
    pub(super) fn wait(&self, timeout: EpollTimeout) -> nix::Result<Vec<Source>> {
        let mut events = [EpollEvent::empty(); BATCH_LEN];
        let count = match self.epoll.wait(&mut events, timeout) {
            Err(nix::errno::Errno::EINTR) => 0,
            outcome => outcome?,
        };
        Ok(events
            .iter()
            .take(count)
            .map(|event| Source::from_token(event.data()))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_source() {
        let id = SandboxId(1);
        let many = SandboxId(u64::MAX >> 3);
        for source in [
            Source::Gateway,
            Source::Signals,
            Source::Commit,
            Source::Exit(id),
            Source::Setup(id),
            Source::Oom(id),
            Source::Oom(many),
            Source::Question(many),
        ] {
            assert_eq!(Source::from_token(source.token()), source);
        }
    }
}
