// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The load generator: one thread, one epoll, N keep-alive connections that each send the next request as soon as they
//! have the answer to the last. The same for every server.
//!
//! It runs on the cores that the servers run on. With one connection it shares the core of what answers it, as the spaced calls
//! do; with more it is pinned to none: all cores are busy, and one that it were pinned to would be one shard's loss.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::http::{self, ANSWER_SECONDS_MAX, Head, Piece};
use crate::placement::{Placed, Placement};

/// Events taken at once.
const EVENTS_MAX: usize = 64;

/// What is sent where, and what must come back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) request: &'a [u8],
    pub(crate) body: &'a [u8],
}

/// What came of the time that was measured.
#[derive(Debug)]
pub(crate) struct Outcome<M> {
    pub(crate) took: Duration,
    /// Of every call that was answered in it.
    pub(crate) latencies: Vec<Duration>,
    pub(crate) before: M,
    pub(crate) after: M,
}

/// Sends for `warm_up` and then for `measured`, and calls `mark` before and after the latter. Every answer must be a
/// success: how fast a server refuses is not what is measured.
pub(crate) fn drive<M>(
    target: Target<'_>,
    connections: usize,
    warm_up: Duration,
    measured: Duration,
    mut mark: impl FnMut() -> Result<M>,
) -> Result<Outcome<M>> {
    let mut load = Load::open(target, connections)?;
    load.send_all()?;
    load.until(Instant::now() + warm_up)?;
    let _placed = match load.lanes.as_slice() {
        [only] => Placed::put(&only.stream, Placement::SameCore)?,
        _ => None,
    };
    let before = mark()?;
    load.latencies.clear();
    let began = Instant::now();
    load.until(began + measured)?;
    let took = began.elapsed();
    let after = mark()?;
    let latencies = std::mem::take(&mut load.latencies);
    load.drain()?;
    Ok(Outcome {
        took,
        latencies,
        before,
        after,
    })
}

/// What a connection does that has its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    SendAgain,
    Rest,
}

/// One connection.
struct Lane {
    stream: TcpStream,
    answer: Vec<u8>,
    sent: Instant,
}

struct Load<'a> {
    target: Target<'a>,
    epoll: Epoll,
    lanes: Vec<Lane>,
    latencies: Vec<Duration>,
    /// Requests without an answer.
    open: usize,
}

impl<'a> Load<'a> {
    fn open(target: Target<'a>, connections: usize) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut lanes = Vec::with_capacity(connections);
        for index in 0..connections {
            let stream = TcpStream::connect(target.address)
                .with_context(|| format!("cannot connect to {}", target.address))?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            epoll.add(
                &stream,
                EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(index)?),
            )?;
            lanes.push(Lane {
                stream,
                answer: Vec::new(),
                sent: Instant::now(),
            });
        }
        Ok(Self {
            target,
            epoll,
            lanes,
            latencies: Vec::new(),
            open: 0,
        })
    }

    fn send_all(&mut self) -> Result<()> {
        for lane in &mut self.lanes {
            lane.sent = Instant::now();
            lane.stream.write_all(self.target.request)?;
        }
        self.open = self.lanes.len();
        Ok(())
    }

    /// Answers and sends again until this time.
    fn until(&mut self, end: Instant) -> Result<()> {
        while Instant::now() < end {
            self.take_answers(Then::SendAgain)?;
        }
        Ok(())
    }

    /// Waits for the answers that are still to come: a connection closed before would be a cancelled call.
    fn drain(&mut self) -> Result<()> {
        while 0 < self.open {
            self.take_answers(Then::Rest)?;
        }
        Ok(())
    }

    fn take_answers(&mut self, then: Then) -> Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        let timeout = EpollTimeout::try_from(Duration::from_secs(ANSWER_SECONDS_MAX))?;
        let count = self.epoll.wait(&mut events, timeout)?;
        ensure!(0 < count, "no answer within {ANSWER_SECONDS_MAX} s");
        for event in &events[..count] {
            let index = usize::try_from(event.data())?;
            let lane = self.lanes.get_mut(index).context("an event of no lane")?;
            if !lane.take(self.target.body)? {
                continue;
            }
            let now = Instant::now();
            self.latencies.push(now - lane.sent);
            self.open -= 1;
            if then == Then::SendAgain {
                lane.sent = now;
                lane.stream.write_all(self.target.request)?;
                self.open += 1;
            }
        }
        Ok(())
    }
}

impl Lane {
    /// Reads what has come; true where the answer is whole.
    fn take(&mut self, body: &[u8]) -> Result<bool> {
        if http::read_piece(&mut self.stream, &mut self.answer)? == Piece::NotYet {
            return Ok(false);
        }
        let Some(head) = Head::parse(&self.answer)? else {
            return Ok(false);
        };
        if self.answer.len() < head.end() {
            return Ok(false);
        }
        http::check(&head, &self.answer, body)?;
        self.answer.clear();
        Ok(true)
    }
}
