// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Accepts connections and speaks HTTP/1 on them, each limit with a name. Not `axum::serve`: that has no limit of
//! connections, and none of its timers runs before a client has sent its first byte.

mod heads;
mod timed_io;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};

use crate::{config::EdgeTimeouts, routes::Routes};
use heads::{Heads, Seen, Watched};
use timed_io::{Phase, SharedPhase, TimedIo};

/// How much of a connection is buffered: request line and headers must fit, else 431. In bytes.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// How long accepting waits after it failed for want of file descriptors or memory, which only time gives back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Both ends of the connection that a request came on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
}

/// What every accept loop shares.
#[derive(Debug, Clone)]
pub(crate) struct Edge {
    connections: Arc<Semaphore>,
    connections_max: u32,
    timeouts: EdgeTimeouts,
    /// True once no new connection is wanted.
    draining: watch::Receiver<bool>,
}

impl Edge {
    pub(crate) fn new(
        connections_max: u32,
        timeouts: EdgeTimeouts,
        draining: watch::Receiver<bool>,
    ) -> Self {
        let connections = Arc::new(Semaphore::new(connections_max as usize));
        Self {
            connections,
            connections_max,
            timeouts,
            draining,
        }
    }

    /// Open connections.
    pub(crate) fn connections(&self) -> usize {
        (self.connections_max as usize).saturating_sub(self.connections.available_permits())
    }

    /// Returns when no connection is open. Only after draining has begun: it lets none in any more.
    pub(crate) async fn closed(&self) {
        // The semaphore is never closed, so this waits until every permit is back.
        drop(self.connections.acquire_many(self.connections_max).await);
    }

    /// Accepts until draining begins.
    pub(crate) async fn accept(self, listener: TcpListener, routes: Arc<Routes>) {
        let mut draining = self.draining.clone();
        loop {
            tokio::select! {
                biased;
                () = begun(&mut draining) => return,
                accepted = self.accept_one(&listener) => match accepted {
                    Ok((stream, peer, permit)) => {
                        tokio::spawn(self.clone().serve(stream, peer, Arc::clone(&routes), permit));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    /// Waits for room after accepting, so that a shard that nobody calls holds no room: at the limit, one connection per
    /// shard waits here, the rest in the kernel's backlog, and those that are open are served.
    async fn accept_one(
        &self,
        listener: &TcpListener,
    ) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let (stream, peer) = listener.accept().await?;
        let permit = Arc::clone(&self.connections).acquire_owned().await;
        Ok((stream, peer, permit.map_err(io::Error::other)?))
    }

    async fn serve(
        self,
        stream: TcpStream,
        peer: SocketAddr,
        routes: Arc<Routes>,
        permit: OwnedSemaphorePermit,
    ) {
        // Answers are written whole: waiting to fill a segment would only add the peer's delayed acknowledgement.
        let Ok(local) = stream.set_nodelay(true).and_then(|()| stream.local_addr()) else {
            // The client is gone already.
            return;
        };
        let ends = Ends { peer, local };
        let phase = SharedPhase::default();
        let heads = Heads::default();
        let io = TimedIo::new(
            Watched::new(stream, heads.clone()),
            phase.clone(),
            self.timeouts,
        );
        let service = service_fn(|request: hyper::Request<Incoming>| {
            // Here and not when the answer is first polled: hyper may read again in between.
            let seen = heads.parsed(request.body().size_hint().exact());
            answer(request, seen, ends, &routes, phase.clone())
        });
        let connection = http1::Builder::new()
            // `TimedIo` has a limit for every state; this one would be armed anew for every request, and never fire.
            .header_read_timeout(None)
            .max_buf_size(BUFFER_BYTES_MAX)
            // A client that closes its sending side has gone away: its invocation is cancelled.
            .half_close(false)
            .serve_connection(io, service);
        let mut connection = pin!(connection);
        let mut draining = self.draining.clone();
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = begun(&mut draining) => {
                if phase.get() == Phase::FirstByte {
                    return;
                }
                connection.as_mut().graceful_shutdown();
                connection.as_mut().await
            }
        };
        if let Err(error) = ended {
            // A client's doing, in most cases: of no interest unless looked for.
            tracing::debug!(%error, peer = %ends.peer, "connection ended early");
        }
        drop(permit);
    }
}

/// Waits for draining to begin. A sender that is gone means the same.
async fn begun(draining: &mut watch::Receiver<bool>) {
    drop(draining.wait_for(|draining| *draining).await);
}

async fn answer(
    request: hyper::Request<Incoming>,
    seen: Seen,
    ends: Ends,
    routes: &Routes,
    phase: SharedPhase,
) -> Result<hyper::Response<Tracked>, Infallible> {
    phase.set(Phase::Busy);
    let response = match seen {
        Seen::Plain => routes.answer(request, ends).await,
        Seen::PlainAndMore => closing(routes.answer(request, ends).await),
        Seen::BareLineFeed => routes.refuse("a line of its head ends with a line feed alone"),
        Seen::TwoLengths => routes.refuse("its body has two lengths"),
        Seen::NotAll => routes.refuse("it came together with the request before it"),
    };
    Ok(response.map(|body| Tracked { body, phase }))
}

/// The last answer of its connection.
fn closing(mut response: Response) -> Response {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

/// A body that says when it is out: hyper drops it then.
struct Tracked {
    body: Body,
    phase: SharedPhase,
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.phase.set(Phase::Idle);
    }
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
