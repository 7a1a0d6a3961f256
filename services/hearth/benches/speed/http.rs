// SPDX-License-Identifier: Apache-2.0 OR MIT
//! HTTP/1.1 as thin as can be: a client library's own threads, pools and allocations would be measured too.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::placement::{Placed, Placement};

/// No call of the benchmark comes near it: a server that hangs ends the benchmark instead.
pub(crate) const ANSWER_SECONDS_MAX: u64 = 30;

/// Answers of calls are a few hundred bytes; a page of metrics has tens of KiB.
const PIECE_BYTES: usize = 16 * 1024;

/// The head of an answer.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    pub(crate) status: u16,
    /// `Hearth-Start`: where the sandbox came from.
    pub(crate) start: Option<&'a str>,
    /// Where the body begins.
    pub(crate) body_at: usize,
    pub(crate) body_bytes: usize,
}

impl<'a> Head<'a> {
    /// Nothing where the head has not come whole yet.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Option<Self>> {
        const END: &[u8] = b"\r\n\r\n";
        let Some(end) = bytes.windows(END.len()).position(|window| window == END) else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&bytes[..end]).context("the head is not text")?;
        let mut lines = text.split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .and_then(|status| status.parse().ok())
            .with_context(|| format!("not the head of an answer: {text:?}"))?;
        let mut start = None;
        let mut body_bytes = None;
        for line in lines {
            let Some((name, value)) = line.split_once(':') else {
                bail!("not a header: {line:?}");
            };
            if name.eq_ignore_ascii_case("content-length") {
                body_bytes = Some(value.trim().parse()?);
            } else if name.eq_ignore_ascii_case("hearth-start") {
                start = Some(value.trim());
            }
        }
        Ok(Some(Self {
            status,
            start,
            body_at: end + END.len(),
            body_bytes: body_bytes.context("the answer has no Content-Length")?,
        }))
    }

    /// Where the answer ends.
    pub(crate) fn end(&self) -> usize {
        self.body_at + self.body_bytes
    }
}

/// A whole request.
pub(crate) fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// A whole request.
pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").into_bytes()
}

/// Fails unless this is a success that carries `body`.
pub(crate) fn check(head: &Head<'_>, answer: &[u8], body: &[u8]) -> Result<()> {
    let got = &answer[head.body_at..head.end()];
    ensure!(
        head.status == 200 && got == body,
        "answered {} {}",
        head.status,
        String::from_utf8_lossy(got)
    );
    Ok(())
}

/// One keep-alive connection that waits for each answer.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        // Without it a request that is written in one piece may wait for the acknowledgement of the one before.
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(ANSWER_SECONDS_MAX)))?;
        Ok(Self {
            stream,
            answer: Vec::new(),
        })
    }

    /// Sends a whole request; gives the whole answer and its head.
    pub(crate) fn call(&mut self, request: &[u8]) -> Result<(Head<'_>, &[u8])> {
        self.stream.write_all(request)?;
        self.answer.clear();
        while !is_whole(&self.answer)? {
            ensure!(
                read_piece(&mut self.stream, &mut self.answer)? == Piece::Some,
                "no answer within {ANSWER_SECONDS_MAX} s"
            );
        }
        let head = Head::parse(&self.answer)?.context("the head was whole a moment ago")?;
        Ok((head, &self.answer))
    }

    /// Sends a whole request, whose answer must be a success that carries `body`; gives where the sandbox came from.
    pub(crate) fn echo(&mut self, request: &[u8], body: &[u8]) -> Result<Option<String>> {
        let (head, answer) = self.call(request)?;
        check(&head, answer, body)?;
        Ok(head.start.map(str::to_owned))
    }

    /// Puts this thread beside what answers this connection, or away from it; after the first answer.
    pub(crate) fn place(&self, placement: Placement) -> Result<Option<Placed>> {
        Placed::put(&self.stream, placement)
    }

    /// Asks the gateway for nothing.
    pub(crate) fn healthz(&mut self) -> Result<Option<String>> {
        self.text("/healthz").map(|_text| None)
    }

    /// The body of what is at this path.
    pub(crate) fn text(&mut self, path: &str) -> Result<String> {
        let (head, answer) = self.call(&get(path))?;
        ensure!(head.status == 200, "{path} answered {}", head.status);
        Ok(String::from_utf8_lossy(&answer[head.body_at..head.end()]).into_owned())
    }
}

fn is_whole(answer: &[u8]) -> Result<bool> {
    Ok(Head::parse(answer)?.is_some_and(|head| head.end() <= answer.len()))
}

/// What one read gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Some,
    NotYet,
}

/// Appends what has come, at most [`PIECE_BYTES`].
pub(crate) fn read_piece(stream: &mut TcpStream, answer: &mut Vec<u8>) -> Result<Piece> {
    let filled = answer.len();
    answer.resize(filled + PIECE_BYTES, 0);
    let got = stream.read(&mut answer[filled..]);
    answer.truncate(filled + got.as_ref().copied().unwrap_or(0));
    match got {
        Ok(0) => bail!("the server closed the connection"),
        Ok(_) => Ok(Piece::Some),
        Err(problem) if problem.kind() == ErrorKind::WouldBlock => Ok(Piece::NotYet),
        Err(problem) => Err(problem.into()),
    }
}
