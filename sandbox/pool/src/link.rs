// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The gateway's side of the spawner's socket: requests with their answers, and the deaths that come unasked.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use hearth_protocol::{
    TreeId,
    frame::PACKET_BYTES_MAX,
    init::ScratchUse,
    spawner::{Cause, Event, Handover, Host, Request, RequestId, SandboxId, SandboxLimits, Totals},
};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};

use crate::{
    channel::{Channel, ChannelError},
    death::Death,
    sandbox::Order,
};

/// How long the spawner may take to answer one request: two orders of magnitude above its slowest step. A spawner that
/// is slower is stuck, and what waits for it must not be.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);

/// Why the spawner did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// There is no spawner at the moment; the monitor is starting one.
    #[error("the spawner is gone")]
    Down,
    /// It did not answer in time.
    #[error("the spawner did not answer within {} s", ANSWER_WAIT_MAX.as_secs())]
    Silent,
    /// It answered something else than was asked.
    #[error("the spawner's answer does not fit the request")]
    Confused,
    /// It refused, or a step failed.
    #[error("{message}")]
    Failed {
        /// Which wall or step.
        step: String,
        /// errno(3), 0 where none applies.
        errno: i32,
        /// One sentence.
        message: String,
    },
}

/// A connection to one spawner. Sandboxes hold it; it ends with the last of them after the spawner is gone.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) channel: Channel,
    pub(crate) host: Host,
    next: AtomicU64,
    down: AtomicBool,
    pending: Mutex<HashMap<RequestId, Pending>>,
    lives: Mutex<HashMap<SandboxId, Life>>,
    destroy: mpsc::UnboundedSender<SandboxId>,
    one_less: Notify,
    breach: OnceLock<Breach>,
}

/// A sandbox that was found to be other than it was made; it was destroyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// The wall, as the isolation report names it.
    pub wall: String,
    /// What the kernel said of it.
    pub reading: String,
}

/// What the link knows of one living sandbox.
#[derive(Debug)]
struct Life {
    death: Arc<Death>,
    /// Given back when nothing of the sandbox is left on the host.
    _room: Option<OwnedSemaphorePermit>,
}

/// A request that is not answered yet.
#[derive(Debug)]
struct Pending {
    answer: oneshot::Sender<Answer>,
    /// For the sandbox that it makes, if it makes one.
    room: Option<OwnedSemaphorePermit>,
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) event: Event,
    pub(crate) fds: Vec<OwnedFd>,
    newborn: Option<Newborn>,
}

/// A sandbox that nobody has taken over yet: destroyed where nobody does, because whoever asked for it may go away at
/// any moment.
#[derive(Debug)]
struct Newborn {
    sandbox: SandboxId,
    death: Arc<Death>,
    destroy: Option<mpsc::UnboundedSender<SandboxId>>,
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(destroy) = &self.destroy {
            // The receiver ends with the spawner, and the sandbox with it.
            destroy.send(self.sandbox).ok();
        }
    }
}

/// A new skeleton's facts.
pub(crate) struct Created {
    pub(crate) sandbox: SandboxId,
    pub(crate) death: Arc<Death>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Link {
    /// Reads the spawner's `Hello` and starts the task that reads everything else.
    ///
    /// `on_death` is called for each sandbox that is gone, `on_down` once when the spawner is.
    pub(crate) async fn open(
        socket: OwnedFd,
        on_death: impl Fn(Cause) + Send + 'static,
        on_down: impl FnOnce() + Send + 'static,
    ) -> Result<Arc<Self>, LinkError> {
        let channel = Channel::new(socket).map_err(|_gone| LinkError::Down)?;
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        let hello = tokio::time::timeout(ANSWER_WAIT_MAX, channel.recv::<Event>(&mut buffer));
        let Event::Hello { host } = hello
            .await
            .map_err(|_elapsed| LinkError::Silent)?
            .map_err(|_gone| LinkError::Down)?
            .message
        else {
            return Err(LinkError::Confused);
        };
        let (destroy, doomed) = mpsc::unbounded_channel();
        let link = Arc::new(Self {
            channel,
            host,
            next: AtomicU64::new(1),
            down: AtomicBool::new(false),
            pending: Mutex::default(),
            lives: Mutex::default(),
            destroy,
            one_less: Notify::new(),
            breach: OnceLock::new(),
        });
        tokio::spawn(Arc::clone(&link).drive(buffer, doomed, on_death, on_down));
        Ok(link)
    }

    /// The first sandbox of this spawner that was not as it was made, if there was one.
    pub(crate) fn breach(&self) -> Option<&Breach> {
        self.breach.get()
    }

    /// Whether the spawner is gone.
    pub(crate) fn is_down(&self) -> bool {
        self.down.load(Ordering::Acquire)
    }

    /// Has a skeleton made. `room` is held until nothing of it is left.
    pub(crate) async fn create(
        &self,
        order: Order,
        room: OwnedSemaphorePermit,
    ) -> Result<Created, LinkError> {
        let Order { spec, limits } = order;
        let create = |request| Request::Create {
            request,
            spec,
            limits,
        };
        let answer = self.ask(create, Some(room)).await?;
        let Some(mut newborn) = answer.newborn else {
            return Err(LinkError::Confused);
        };
        newborn.destroy = None;
        Ok(Created {
            sandbox: newborn.sandbox,
            death: Arc::clone(&newborn.death),
            fds: answer.fds,
        })
    }

    /// Gives a skeleton to a function's tree; the fds are those of [`Handover::OpenFile`].
    pub(crate) async fn bind(
        &self,
        sandbox: SandboxId,
        tree: TreeId,
        handover: Handover,
        limits: SandboxLimits,
    ) -> Result<Vec<OwnedFd>, LinkError> {
        let answer = self
            .ask(
                |request| Request::Bind {
                    request,
                    sandbox,
                    tree,
                    handover,
                    limits,
                },
                None,
            )
            .await?;
        let Event::Bound { .. } = answer.event else {
            return Err(LinkError::Confused);
        };
        Ok(answer.fds)
    }

    /// Replaces the scratch mount by an empty one.
    pub(crate) async fn renew(&self, sandbox: SandboxId) -> Result<ScratchUse, LinkError> {
        let answer = self
            .ask(|request| Request::Renew { request, sandbox }, None)
            .await?;
        let Event::Renewed { discarded, .. } = answer.event else {
            return Err(LinkError::Confused);
        };
        Ok(discarded)
    }

    /// The isolation report as JSON in a memfd.
    pub(crate) async fn inspect(&self, sandbox: SandboxId) -> Result<OwnedFd, LinkError> {
        let answer = self
            .ask(|request| Request::Inspect { request, sandbox }, None)
            .await?;
        let Event::Inspected { .. } = answer.event else {
            return Err(LinkError::Confused);
        };
        answer.fds.into_iter().next().ok_or(LinkError::Confused)
    }

    /// Has a sandbox killed and removed. Never waits, never fails: it is called from `Drop`.
    pub(crate) fn destroy(&self, sandbox: SandboxId) {
        // The receiver ends with the spawner, and the sandbox with it.
        self.destroy.send(sandbox).ok();
    }

    /// Waits until the spawner has no sandbox left, or is gone.
    pub(crate) async fn emptied(&self) {
        loop {
            let changed = self.one_less.notified();
            if self.is_down()
                || self
                    .lives
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .is_empty()
            {
                return;
            }
            changed.await;
        }
    }

    /// One request and its answer; a refusal is an error.
    pub(crate) async fn ask(
        &self,
        request: impl FnOnce(RequestId) -> Request,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<Answer, LinkError> {
        let id = RequestId(self.next.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = oneshot::channel();
        let pending = Pending {
            answer: sender,
            room,
        };
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, pending);
        let sent = self.channel.send(&request(id), &[], &[]).await;
        if sent.is_err() || self.is_down() {
            self.pending
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&id);
            return Err(LinkError::Down);
        }
        match tokio::time::timeout(ANSWER_WAIT_MAX, receiver).await {
            Ok(Ok(Answer {
                event:
                    Event::Failed {
                        step,
                        errno,
                        message,
                        ..
                    },
                ..
            })) => Err(LinkError::Failed {
                step,
                errno,
                message,
            }),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_dropped)) => Err(LinkError::Down),
            Err(_elapsed) => {
                self.pending
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&id);
                Err(LinkError::Silent)
            }
        }
    }

    /// Reads events and sends what `destroy` was asked, until the spawner is gone.
    async fn drive(
        self: Arc<Self>,
        mut buffer: Vec<u8>,
        mut doomed: mpsc::UnboundedReceiver<SandboxId>,
        on_death: impl Fn(Cause) + Send,
        on_down: impl FnOnce() + Send,
    ) {
        loop {
            let step = tokio::select! {
                received = self.channel.recv::<Event>(&mut buffer) => {
                    received.map(|received| self.take(received.message, received.fds, &on_death))
                }
                Some(sandbox) = doomed.recv() => {
                    self.channel.send(&Request::Destroy { sandbox }, &[], &[]).await
                }
            };
            match step {
                Ok(()) => {}
                Err(ChannelError::Closed) => break,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "the spawner's socket is unusable"
                    );
                    break;
                }
            }
        }
        // A spawner that lives on would keep its sandboxes, and nobody would start another.
        self.channel.shut_down();
        self.down.store(true, Ordering::Release);
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        for (_, life) in self
            .lives
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain()
        {
            life.death.announce(Totals::default());
        }
        self.one_less.notify_waiters();
        on_down();
    }

    fn take(&self, event: Event, fds: Vec<OwnedFd>, on_death: &impl Fn(Cause)) {
        let request = match &event {
            Event::Gone {
                sandbox,
                cause,
                totals,
            } => {
                let life = self
                    .lives
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(sandbox);
                if let Some(life) = life {
                    life.death.announce(*totals);
                }
                self.one_less.notify_waiters();
                return on_death(*cause);
            }
            Event::Breached {
                sandbox,
                wall,
                reading,
            } => return self.note_breach(*sandbox, wall.clone(), reading.clone()),
            Event::Violation { sandbox, violation } => {
                let lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(life) = lives.get(sandbox) {
                    life.death.tell(violation.clone());
                }
                return;
            }
            Event::Hello { .. } => return,
            Event::Created { request, .. }
            | Event::Bound { request }
            | Event::Renewed { request, .. }
            | Event::Inspected { request }
            | Event::TreeBegun { request, .. }
            | Event::TreeStored { request, .. }
            | Event::TreeRemoved { request }
            | Event::TreeOpened { request }
            | Event::Observing { request, .. }
            | Event::Observed { request, .. }
            | Event::ProfileRead { request, .. }
            | Event::Failed { request, .. } => *request,
        };
        let waiting = self
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&request);
        let (waiter, room) =
            waiting.map_or((None, None), |pending| (Some(pending.answer), pending.room));
        let newborn = match event {
            Event::Created { sandbox, .. } => Some(self.enter(sandbox, room)),
            _ => None,
        };
        let answer = Answer {
            event,
            fds,
            newborn,
        };
        // Whoever asked may have gone; a sandbox that was made for them goes with the answer.
        if let Some(waiter) = waiter {
            waiter.send(answer).ok();
        }
    }

    fn note_breach(&self, sandbox: SandboxId, wall: String, reading: String) {
        tracing::error!(
            sandbox = sandbox.0,
            wall,
            reading,
            "a wall is not as it was made: the sandbox is destroyed, and readiness is off until Hearth is restarted"
        );
        // The first one is kept: what comes after it may come of it.
        self.breach.get_or_init(|| Breach { wall, reading });
    }

    /// Enters a new sandbox, here and not where it is asked for, so that its death cannot come before its life.
    fn enter(&self, sandbox: SandboxId, room: Option<OwnedSemaphorePermit>) -> Newborn {
        let death = Arc::new(Death::default());
        let life = Life {
            death: Arc::clone(&death),
            _room: room,
        };
        self.lives
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(sandbox, life);
        Newborn {
            sandbox,
            death,
            destroy: Some(self.destroy.clone()),
        }
    }
}
