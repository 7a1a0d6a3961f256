// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A client's socket on which the heads of requests are looked at before hyper has them.
//!
//! hyper takes a line feed alone for the end of a line, as RFC 9112 section 2.2 allows. A server in front that takes it
//! for a part of a value sees other headers than hyper does, and so another end of the request: what follows it is a
//! request to one of them only. So it is where a head has two lengths, of which hyper drops one (RFC 9112 section 6.1).
//! hyper cannot be told to refuse either, and its parsed request does not show it any more.
//!
//! Where heads begin follows from where bodies end. That is known of every request but one that came in the same read
//! as the end of the one before it: such a request is not answered, and the connection ends with the answer before it
//! where that was still to come. No client that waits for its answers sends one.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// What hyper's request looked like on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Its head, every line of which ends as it must.
    Plain,
    /// As [`Self::Plain`], and what follows its body came with it and was not looked at: this must be the last request.
    PlainAndMore,
    /// A head with a line that ends with a line feed alone.
    BareLineFeed,
    /// A head with both a Content-Length and a Transfer-Encoding.
    TwoLengths,
    /// Not its whole head.
    NotAll,
}

/// The heads on one connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Heads(Arc<Mutex<Scan>>);

#[derive(Debug, Default)]
struct Scan {
    place: Place,
    line: Line,
    after_return: bool,
    bare_line_feed: bool,
    content_length: bool,
    transfer_encoding: bool,
    /// Heads began where nobody looked.
    lost: bool,
}

/// The line of a head that is being read.
#[derive(Debug, Default)]
struct Line {
    /// Its beginning, as far as it may be a name under watch.
    start: [u8; LONGEST_NAME],
    /// Bytes so far, carriage returns aside, up to as many as `start` holds.
    length: usize,
}

/// The names under watch, and the longest of them.
const CONTENT_LENGTH: &[u8] = b"content-length:";
const TRANSFER_ENCODING: &[u8] = b"transfer-encoding:";
const LONGEST_NAME: usize = TRANSFER_ENCODING.len();

impl Line {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.start.get_mut(self.length) {
            *place = byte.to_ascii_lowercase();
            self.length += 1;
        }
    }

    /// To be asked after a colon.
    fn names(&self, header: &[u8]) -> bool {
        self.start[..self.length] == *header
    }
}

/// Where in the stream of requests the next byte belongs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before a head: empty lines are skipped there (RFC 9112 section 2.2).
    #[default]
    Before,
    Head,
    /// Behind a head of which hyper has not said yet how long its body is. In bytes that came so far.
    Behind(u64),
    /// In a body. In bytes that are still to come.
    Body(u64),
}

impl Heads {
    /// hyper has parsed a head, and its body is so long; None where only the body itself tells, which is always the
    /// last one on its connection.
    pub(super) fn parsed(&self, body_bytes: Option<u64>) -> Seen {
        self.scan().parsed(body_bytes)
    }

    fn scan(&self) -> MutexGuard<'_, Scan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scan {
    fn parsed(&mut self, body_bytes: Option<u64>) -> Seen {
        let Place::Behind(came) = self.place else {
            self.lost = true;
            return Seen::NotAll;
        };
        if self.lost {
            return Seen::NotAll;
        }
        let left = body_bytes.unwrap_or(u64::MAX).checked_sub(came);
        let seen = match left {
            _ if self.bare_line_feed => Seen::BareLineFeed,
            _ if self.content_length && self.transfer_encoding => Seen::TwoLengths,
            None => Seen::PlainAndMore,
            Some(_) => Seen::Plain,
        };
        *self = Self {
            place: match left {
                None | Some(0) => Place::Before,
                Some(left) => Place::Body(left),
            },
            lost: left.is_none(),
            ..Self::default()
        };
        seen
    }

    /// Bytes that came in one read.
    fn take(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if let Place::Body(left) = self.place {
            let body = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
            rest = &rest[body..];
            self.place = match left - body as u64 {
                0 => Place::Before,
                left => Place::Body(left),
            };
        }
        for (index, byte) in rest.iter().enumerate() {
            if let Place::Behind(came) = &mut self.place {
                *came += (rest.len() - index) as u64;
                return;
            }
            self.step(*byte);
        }
    }

    fn step(&mut self, byte: u8) {
        match byte {
            b'\n' => {
                self.bare_line_feed |= !self.after_return;
                if self.line.length == 0 && self.place == Place::Head {
                    self.place = Place::Behind(0);
                }
                self.line.length = 0;
            }
            b'\r' => {}
            _ => {
                self.place = Place::Head;
                self.line.push(byte);
                if byte == b':' {
                    self.content_length |= self.line.names(CONTENT_LENGTH);
                    self.transfer_encoding |= self.line.names(TRANSFER_ENCODING);
                }
            }
        }
        self.after_return = byte == b'\r';
    }
}

/// A client's socket, read under the eyes of [`Heads`].
pub(super) struct Watched {
    stream: TcpStream,
    heads: Heads,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, heads: Heads) -> Self {
        Self { stream, heads }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if let Some(read) = buffer
            .filled()
            .get(before..)
            .filter(|read| !read.is_empty())
        {
            this.heads.scan().take(read);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    const POST: &[u8] = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n";

    /// What is seen of a request whose head comes in these reads.
    fn seen(reads: &[&[u8]], body_bytes: Option<u64>) -> Seen {
        let mut scan = Scan::default();
        reads.iter().for_each(|read| scan.take(read));
        scan.parsed(body_bytes)
    }

    #[test]
    fn a_head_is_plain_however_it_is_cut_into_reads() {
        for cut in 0..GET.len() {
            let (first, rest) = GET.split_at(cut);
            assert_eq!(seen(&[first, rest], Some(0)), Seen::Plain, "{cut}");
        }
        assert_eq!(seen(&[b"\r\n\r\n", GET], Some(0)), Seen::Plain);
    }

    #[test]
    fn a_line_feed_alone_is_seen_wherever_it_ends_a_line() {
        for head in [
            "GET / HTTP/1.1\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\n\n",
            "GET / HTTP/1.1\r\nX: a\nTransfer-Encoding: chunked\r\n\r\n",
            "\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\n\n",
        ] {
            for cut in 0..head.len() {
                let (first, rest) = head.as_bytes().split_at(cut);
                assert_eq!(
                    seen(&[first, rest], Some(0)),
                    Seen::BareLineFeed,
                    "{head:?} {cut}"
                );
            }
        }
    }

    #[test]
    fn two_lengths_are_seen_in_either_order_and_however_they_are_written() {
        let length = "Content-Length: 4\r\n";
        for coding in ["Transfer-Encoding: chunked\r\n", "TRANSFER-ENCODING:x\r\n"] {
            for head in [[length, coding], [coding, length]] {
                let head = format!("POST / HTTP/1.1\r\n{}{}\r\n", head[0], head[1]);
                for cut in 0..head.len() {
                    let (first, rest) = head.as_bytes().split_at(cut);
                    assert_eq!(
                        seen(&[first, rest], None),
                        Seen::TwoLengths,
                        "{head:?} {cut}"
                    );
                }
            }
        }
        let names_in_values =
            b"POST / HTTP/1.1\r\nX: content-length:\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(seen(&[names_in_values], None), Seen::Plain);
    }

    #[test]
    fn line_feeds_of_a_body_are_no_ones_business() {
        let mut scan = Scan::default();
        scan.take(&[POST, b"\n\n"].concat());
        assert_eq!(scan.parsed(Some(4)), Seen::Plain);
        scan.take(b"\n\n");
        scan.take(GET);
        assert_eq!(scan.parsed(Some(0)), Seen::Plain);
        scan.take(&[POST, b"\n\n\n\n"].concat());
        assert_eq!(scan.parsed(Some(4)), Seen::Plain);
        scan.take(GET);
        assert_eq!(scan.parsed(Some(0)), Seen::Plain);
    }

    #[test]
    fn a_request_that_comes_with_the_end_of_a_body_is_looked_at_too() {
        let mut scan = Scan::default();
        scan.take(POST);
        assert_eq!(scan.parsed(Some(4)), Seen::Plain);
        scan.take(b"bodyGET / HTTP/1.1\nHost: x\r\n\r\n");
        assert_eq!(scan.parsed(Some(0)), Seen::BareLineFeed);
    }

    #[test]
    fn what_nobody_looked_at_is_told_from_what_is_plain() {
        let mut scan = Scan::default();
        scan.take(&[GET, GET].concat());
        assert_eq!(scan.parsed(Some(0)), Seen::PlainAndMore);
        assert_eq!(scan.parsed(Some(0)), Seen::NotAll);
        let mut scan = Scan::default();
        scan.take(&[POST, b"bodyGET / HT"].concat());
        assert_eq!(scan.parsed(Some(4)), Seen::PlainAndMore);
        scan.take(b"TP/1.1\r\n\r\n");
        assert_eq!(scan.parsed(Some(0)), Seen::NotAll);
    }

    #[test]
    fn a_body_that_tells_its_own_end_is_never_taken_for_a_head() {
        let mut scan = Scan::default();
        scan.take(&[POST, b"4\r\nbody\r\n0\r\n\r\n", GET].concat());
        assert_eq!(scan.parsed(None), Seen::Plain);
        assert_eq!(scan.parsed(Some(0)), Seen::NotAll);
    }
}
