// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A client that sends exactly what a test says, and reads what comes.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde_json::Value;

/// How long a test waits for anything before it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// All that came until the server closed the connection.
#[derive(Debug)]
pub(crate) struct Answer(Vec<u8>);

impl Answer {
    /// To one request, sent whole.
    pub(crate) fn to(address: SocketAddr, request: &[u8]) -> Self {
        let mut stream = connect(address);
        stream.write_all(request).unwrap();
        read_to_end(&mut stream)
    }

    pub(crate) fn status(&self) -> u16 {
        let text = self.text();
        let code = text
            .split(' ')
            .nth(1)
            .unwrap_or_else(|| panic!("no status line in {text:?}"));
        code.parse().unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let text = self.text();
        let head = text.split("\r\n\r\n").next()?.to_owned();
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    }

    pub(crate) fn body(&self) -> String {
        self.text()
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())
            .unwrap_or_default()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body()).unwrap()
    }

    /// The stable code of a problem.
    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap().to_owned()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Everything until the server closes; a reset counts as closing.
pub(crate) fn read_to_end(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let began = Instant::now();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset,
            "after {:?}: {error}, having read {:?}",
            began.elapsed(),
            String::from_utf8_lossy(&bytes)
        );
    }
    Answer(bytes)
}
