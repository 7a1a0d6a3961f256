// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A living sandbox, owned. Dropping it destroys it: forgetting is safe.

use std::{sync::Arc, time::Duration};

use hearth_protocol::{
    SmallName,
    frame::PACKET_BYTES_MAX,
    init,
    spawner::{
        Handover, Network, Profile, SCRATCH_INODES_MAX, SandboxId, SandboxLimits, SkeletonSpec,
        Worker,
    },
    worker,
};
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    Program, Target,
    channel::{Channel, ChannelError},
    gauges::Gauges,
    link::{Death, Link, LinkError},
    target::ARTIFACT_FILE,
};

/// How long init may take to answer `Bind`, or a resident worker to boot: it does no work worth mentioning.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long a wasm worker may take to map a module. Large ones (a JavaScript engine) need tens of milliseconds.
const LOAD_WAIT_MAX: Duration = Duration::from_secs(10);

/// The step of a [`StartError`] that means that there was no spawner: nothing began, and the next one can do it.
pub(crate) const SPAWNER_GONE: &str = "spawner gone";

/// The step of [`crate::Outcome::CannotStart`] that is the module's own fault: it does not link, or does not fit its limits.
pub const LOAD_STEP: &str = "load";

/// Memory of a wasm worker beside its instances: engine, artifact pages, and bodies in flight. In bytes.
const WORKER_OVERHEAD_BYTES: u64 = 64 * 1024 * 1024;

/// Processes and threads of a wasm sandbox: init, the worker and its epoch thread, with slack.
const WORKER_PIDS: u32 = 8;

/// Scratch of a wasm sandbox, whose worker opens no file: the least that the spawner takes, one page and one inode
/// beside the root.
const WORKER_SCRATCH_BYTES: u64 = 4096;
const WORKER_SCRATCH_INODES: u64 = 2;

/// One inode per this many bytes of scratch, so that an inode bomb meets a limit as a byte bomb does.
const SCRATCH_BYTES_PER_INODE: u64 = 4096;

/// Why no sandbox could be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot start a sandbox: {message}")]
pub(crate) struct StartError {
    pub(crate) step: String,
    pub(crate) errno: i32,
    pub(crate) message: String,
}

impl StartError {
    pub(crate) fn new(step: &str, message: impl Into<String>) -> Self {
        Self {
            step: step.to_owned(),
            errno: 0,
            message: message.into(),
        }
    }
}

impl From<LinkError> for StartError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Failed {
                step,
                errno,
                message,
            } => Self {
                step,
                errno,
                message,
            },
            LinkError::Down => Self::new(SPAWNER_GONE, error.to_string()),
            LinkError::Silent | LinkError::Confused => Self::new("spawner", error.to_string()),
        }
    }
}

/// A living sandbox.
#[derive(Debug)]
pub(crate) struct Sandbox {
    id: SandboxId,
    link: Arc<Link>,
    pub(crate) channel: Arc<Channel>,
    pub(crate) gauges: Gauges,
    pub(crate) death: Arc<Death>,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.link.destroy(self.id);
    }
}

impl Sandbox {
    /// A new skeleton, ready to be bound.
    pub(crate) async fn create(
        link: &Arc<Link>,
        spec: &SkeletonSpec,
        room: OwnedSemaphorePermit,
    ) -> Result<Self, StartError> {
        let created = link.create(spec.clone(), room).await?;
        let mut fds = created.fds.into_iter();
        let control = fds.next().and_then(|fd| Channel::new(fd).ok());
        let gauges = Gauges::new(fds, &link.host);
        let (Some(channel), Some(gauges)) = (control, gauges) else {
            link.destroy(created.sandbox);
            return Err(StartError::new("create", "the spawner sent too few fds"));
        };
        let sandbox = Self {
            id: created.sandbox,
            link: Arc::clone(link),
            channel: Arc::new(channel),
            gauges,
            death: created.death,
        };
        if spec.worker == Worker::Resident {
            sandbox
                .expect(
                    "boot",
                    ANSWER_WAIT_MAX,
                    |event: worker::Event| match event {
                        worker::Event::Booted => Ok(()),
                        other => Err(format!("{other:?}")),
                    },
                )
                .await?;
        }
        Ok(sandbox)
    }

    /// Gives this skeleton to a target: files, limits, program.
    pub(crate) async fn bind(&self, target: &Target, core: Option<u16>) -> Result<(), StartError> {
        match &target.program {
            Program::Native { entry, .. } => self.bind_native(target, entry, core).await?,
            Program::Wasm => self.bind_wasm(target).await?,
        }
        self.gauges.reset_memory_peak();
        Ok(())
    }

    /// Ends it while others still hold it.
    pub(crate) fn destroy(&self) {
        self.link.destroy(self.id);
    }

    /// Replaces the scratch mount by an empty one.
    pub(crate) async fn renew(&self) -> Result<(), StartError> {
        self.link.renew(self.id).await?;
        Ok(())
    }

    /// The isolation report as JSON.
    pub(crate) async fn inspect(&self) -> Result<std::os::fd::OwnedFd, LinkError> {
        self.link.inspect(self.id).await
    }

    async fn bind_native(
        &self,
        target: &Target,
        entry: &str,
        core: Option<u16>,
    ) -> Result<(), StartError> {
        let program = init::Program {
            argv: vec![format!("/function/{entry}")],
            env: target.env.clone(),
            cwd: "/function".to_owned(),
            cores: pinned(target, core).into_iter().collect(),
        };
        let limits = SandboxLimits {
            memory_bytes: target.limits.memory_bytes,
            pids: target.limits.pids,
            cpu_millis: target.limits.cpu_millis,
            scratch_bytes: target.limits.scratch_bytes,
            scratch_inodes: scratch_inodes(target),
        };
        self.link
            .bind(self.id, target.tree.clone(), Handover::Mount, limits)
            .await?;
        let sent = self
            .channel
            .send(&init::Request::Bind(program), &[], &[])
            .await;
        sent.map_err(|error| lost("bind", &error))?;
        self.expect("bind", ANSWER_WAIT_MAX, |event: init::Event| match event {
            init::Event::Bound => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await
    }

    async fn bind_wasm(&self, target: &Target) -> Result<(), StartError> {
        let inflight = u64::from(target.scaling.inflight_max);
        let instance_bytes =
            target.limits.memory_bytes + target.limits.request_bytes + target.limits.response_bytes;
        let limits = SandboxLimits {
            memory_bytes: WORKER_OVERHEAD_BYTES + inflight * instance_bytes,
            pids: WORKER_PIDS,
            cpu_millis: target.limits.cpu_millis,
            scratch_bytes: WORKER_SCRATCH_BYTES,
            scratch_inodes: WORKER_SCRATCH_INODES,
        };
        let module = worker::Module {
            memory_bytes_max: target.limits.memory_bytes,
            inflight_max: target.scaling.inflight_max,
            output_bytes_max: target.limits.response_bytes,
            env: target.env.clone(),
        };
        let handover = Handover::OpenFile(ARTIFACT_FILE.to_owned());
        let fds = self
            .link
            .bind(self.id, target.tree.clone(), handover, limits)
            .await?;
        let [artifact] = fds.as_slice() else {
            return Err(StartError::new(
                "bind",
                "the spawner did not open the artifact",
            ));
        };
        let artifact = std::os::fd::AsFd::as_fd(artifact);
        let sent = self
            .channel
            .send(&worker::Request::Bind(module), &[], &[artifact])
            .await;
        sent.map_err(|error| lost("bind", &error))?;
        self.expect(
            LOAD_STEP,
            LOAD_WAIT_MAX,
            |event: worker::Event| match event {
                worker::Event::Bound => Ok(()),
                worker::Event::Failed { message } => Err(message),
                other => Err(format!("{other:?}")),
            },
        )
        .await
    }

    /// Waits for the one event that must come next.
    async fn expect<E: serde::de::DeserializeOwned>(
        &self,
        step: &str,
        wait_max: Duration,
        accept: impl FnOnce(E) -> Result<(), String>,
    ) -> Result<(), StartError> {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        let received = tokio::time::timeout(wait_max, self.channel.recv::<E>(&mut buffer)).await;
        let event = received
            .map_err(|_elapsed| {
                StartError::new(step, format!("no answer within {} s", wait_max.as_secs()))
            })?
            .map_err(|error| lost(step, &error))?
            .message;
        accept(event).map_err(|message| StartError::new(step, message))
    }
}

/// The skeleton that a target needs on a shard with this core.
pub(crate) fn skeleton_spec(target: &Target, core: Option<u16>) -> SkeletonSpec {
    let (worker, base, profile) = match &target.program {
        Program::Native { base, .. } => (Worker::PerCall, base.clone(), Profile::Default),
        Program::Wasm => (Worker::Resident, static_base(), Profile::Resident),
    };
    SkeletonSpec {
        worker,
        base,
        profile,
        network: Network::None,
        core: pinned(target, core),
    }
}

/// How many inodes the scratch of a native function has, its root among them.
pub(crate) fn scratch_inodes(target: &Target) -> u64 {
    (target.limits.scratch_bytes / SCRATCH_BYTES_PER_INODE + 16).min(SCRATCH_INODES_MAX)
}

/// Up to one core of CPU a worker stays on its shard's core: a hop to the other core costs six to eleven times one on
/// the same (host-facts). Above that the kernel may spread it.
fn pinned(target: &Target, core: Option<u16>) -> Option<u16> {
    core.filter(|_| target.limits.cpu_millis <= 1000)
}

fn static_base() -> SmallName {
    SmallName::new("static").unwrap_or_else(|_| unreachable!("`static` has a name's form"))
}

fn lost(step: &str, error: &ChannelError) -> StartError {
    StartError::new(step, format!("the sandbox did not answer: {error}"))
}
