// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One keep-alive HTTP/1.1 connection, as thin as can be: a client library's own threads and pools would be measured too.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// No call of the benchmark comes near it: a server that hangs ends the benchmark instead.
const ANSWER_SECONDS_MAX: u64 = 30;

/// An open connection.
#[derive(Debug)]
pub(crate) struct Connection {
    reader: BufReader<TcpStream>,
    request: Vec<u8>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// `Hearth-Start`.
    pub(crate) start: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        // Without it a request that is written in one piece may wait for the acknowledgement of the one before.
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(ANSWER_SECONDS_MAX)))?;
        Ok(Self {
            reader: BufReader::new(stream),
            request: Vec::new(),
        })
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<Answer> {
        self.send(
            &format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
            b"",
        )
    }

    pub(crate) fn post(&mut self, path: &str, body: &[u8]) -> Result<Answer> {
        let length = body.len();
        self.send(
            &format!("POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n"),
            body,
        )
    }

    fn send(&mut self, head: &str, body: &[u8]) -> Result<Answer> {
        self.request.clear();
        self.request.extend_from_slice(head.as_bytes());
        self.request.extend_from_slice(body);
        self.reader.get_mut().write_all(&self.request)?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Answer> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .with_context(|| format!("not a status line: {line:?}"))?;
        let mut start = None;
        let mut length: Option<usize> = None;
        loop {
            line.clear();
            ensure!(
                self.reader.read_line(&mut line)? > 0,
                "the connection ended in the headers"
            );
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "hearth-start" => start = Some(value.trim().to_owned()),
                "content-length" => length = Some(value.trim().parse()?),
                _ => {}
            }
        }
        let mut body = vec![0; length.context("the answer has no Content-Length")?];
        self.reader.read_exact(&mut body)?;
        Ok(Answer {
            status,
            start,
            body,
        })
    }
}
