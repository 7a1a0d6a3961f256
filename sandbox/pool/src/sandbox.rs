// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A living sandbox, owned. Dropping it destroys it: forgetting is safe.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use hearth_protocol::{
    SmallName,
    frame::PACKET_BYTES_MAX,
    init,
    spawner::{
        Handover, Network, SCRATCH_INODES_MAX, SandboxId, SandboxLimits, SkeletonSpec, Worker,
    },
    worker,
};
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    Limits, Program, Target,
    channel::{Channel, ChannelError},
    death::Death,
    gauges::Gauges,
    link::{Link, LinkError},
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

/// What the spawner is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    /// What the skeleton can be bound as.
    pub(crate) spec: SkeletonSpec,
    /// Those of the function that it is likely to be given to.
    pub(crate) limits: SandboxLimits,
}

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

/// Destroys the sandbox when it is dropped.
#[derive(Debug)]
struct Owner {
    id: SandboxId,
    link: Arc<Link>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.link.destroy(self.id);
    }
}

/// A sandbox without a function. Its socket waits for nobody's events yet: it is made on one shard and used on another,
/// and a runtime that is not the user's own would have to wake it up for each answer.
#[derive(Debug)]
pub(crate) struct Skeleton {
    owner: Owner,
    control: OwnedFd,
    gauges: Gauges,
    pub(crate) death: Arc<Death>,
}

impl Skeleton {
    /// A new one, ready to be bound; with the same limits, soonest.
    pub(crate) async fn create(
        link: &Arc<Link>,
        order: &Order,
        room: OwnedSemaphorePermit,
    ) -> Result<Self, StartError> {
        let created = link.create(order.clone(), room).await?;
        let owner = Owner {
            id: created.sandbox,
            link: Arc::clone(link),
        };
        let mut fds = created.fds.into_iter();
        let control = fds.next();
        let gauges = Gauges::new(fds, &link.host);
        let (Some(control), Some(gauges)) = (control, gauges) else {
            return Err(StartError::new("create", "the spawner sent too few fds"));
        };
        if order.spec.worker == Worker::Resident {
            // Through a copy, which the runtime here forgets again.
            let copy = control.try_clone().and_then(Channel::new);
            let channel = copy.map_err(|error| StartError::new("boot", error.to_string()))?;
            let booted = |event: worker::Event| match event {
                worker::Event::Booted => Ok(()),
                other => Err(format!("{other:?}")),
            };
            expect(&channel, "boot", ANSWER_WAIT_MAX, booted).await?;
        }
        Ok(Self {
            owner,
            control,
            gauges,
            death: created.death,
        })
    }

    /// Gives it to a target: files, limits, program. To be called on the shard that will use it.
    pub(crate) async fn bind(
        self,
        target: &Target,
        core: Option<u16>,
    ) -> Result<Sandbox, StartError> {
        let channel = Channel::new(self.control)
            .map_err(|error| StartError::new("bind", error.to_string()))?;
        let sandbox = Sandbox {
            owner: self.owner,
            channel: Arc::new(channel),
            gauges: self.gauges,
            death: self.death,
        };
        match &target.program {
            Program::Native { entry, .. } => sandbox.bind_native(target, entry, core).await?,
            Program::Wasm => sandbox.bind_wasm(target).await?,
        }
        sandbox.gauges.reset_memory_peak();
        Ok(sandbox)
    }
}

/// A living sandbox that is bound.
#[derive(Debug)]
pub(crate) struct Sandbox {
    owner: Owner,
    pub(crate) channel: Arc<Channel>,
    pub(crate) gauges: Gauges,
    pub(crate) death: Arc<Death>,
}

impl Sandbox {
    /// Ends it while others still hold it.
    pub(crate) fn destroy(&self) {
        self.owner.link.destroy(self.owner.id);
    }

    /// Replaces the scratch mount by an empty one.
    pub(crate) async fn renew(&self) -> Result<(), StartError> {
        self.owner.link.renew(self.owner.id).await?;
        Ok(())
    }

    /// The isolation report as JSON.
    pub(crate) async fn inspect(&self) -> Result<OwnedFd, LinkError> {
        self.owner.link.inspect(self.owner.id).await
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
        // Both at once: init answers while the spawner mounts, and looks at no file before it is told to run.
        let files = async {
            let fds = self.bind_files(target, Handover::Mount).await;
            fds.map(drop)
        };
        let told = async {
            let request = init::Request::Bind(program);
            let sent = self.channel.send(&request, &[], &[]).await;
            sent.map_err(|error| lost("bind", &error))?;
            let bound = |event: init::Event| match event {
                init::Event::Bound => Ok(()),
                other => Err(format!("{other:?}")),
            };
            expect(&self.channel, "bind", ANSWER_WAIT_MAX, bound).await
        };
        let (files, told) = tokio::join!(files, told);
        // In this order: a sandbox that the spawner could not bind is gone, which is all that init's end would say.
        files.and(told)
    }

    async fn bind_files(
        &self,
        target: &Target,
        handover: Handover,
    ) -> Result<Vec<OwnedFd>, StartError> {
        let Owner { id, link } = &self.owner;
        let bound = link.bind(*id, target.tree.clone(), handover, limits(target));
        Ok(bound.await?)
    }

    async fn bind_wasm(&self, target: &Target) -> Result<(), StartError> {
        let module = worker::Module {
            memory_bytes_max: target.limits.memory_bytes,
            inflight_max: target.scaling.inflight_max,
            output_bytes_max: target.limits.response_bytes,
            env: target.env.clone(),
        };
        let handover = Handover::OpenFile(ARTIFACT_FILE.to_owned());
        let fds = self.bind_files(target, handover).await?;
        let [artifact] = fds.as_slice() else {
            return Err(StartError::new(
                "bind",
                "the spawner did not open the artifact",
            ));
        };
        let artifact = artifact.as_fd();
        let sent = self
            .channel
            .send(&worker::Request::Bind(module), &[], &[artifact])
            .await;
        sent.map_err(|error| lost("bind", &error))?;
        let bound = |event: worker::Event| match event {
            worker::Event::Bound => Ok(()),
            worker::Event::Failed { message } => Err(message),
            other => Err(format!("{other:?}")),
        };
        expect(&self.channel, LOAD_STEP, LOAD_WAIT_MAX, bound).await
    }
}

/// Waits for the one event that must come next.
async fn expect<E: serde::de::DeserializeOwned>(
    channel: &Channel,
    step: &str,
    wait_max: Duration,
    accept: impl FnOnce(E) -> Result<(), String>,
) -> Result<(), StartError> {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    let received = tokio::time::timeout(wait_max, channel.recv::<E>(&mut buffer)).await;
    let event = received
        .map_err(|_elapsed| {
            StartError::new(step, format!("no answer within {} s", wait_max.as_secs()))
        })?
        .map_err(|error| lost(step, &error))?
        .message;
    accept(event).map_err(|message| StartError::new(step, message))
}

/// What to make for a target on a shard with this core.
pub(crate) fn order(target: &Target, core: Option<u16>) -> Order {
    Order {
        spec: skeleton_spec(target, core),
        limits: limits(target),
    }
}

/// The skeleton that a target needs on a shard with this core.
pub(crate) fn skeleton_spec(target: &Target, core: Option<u16>) -> SkeletonSpec {
    let (worker, base) = match &target.program {
        Program::Native { base, .. } => (Worker::PerCall, base.clone()),
        Program::Wasm => (Worker::Resident, static_base()),
    };
    SkeletonSpec {
        worker,
        base,
        root: target.root(),
        profile: target.profile(),
        network: Network::None,
        core: pinned(target, core),
    }
}

/// What the spawner sets for a target.
fn limits(target: &Target) -> SandboxLimits {
    let cpu_millis = target.limits.cpu_millis;
    match &target.program {
        Program::Native { .. } => SandboxLimits {
            memory_bytes: target.limits.memory_bytes,
            pids: target.limits.pids,
            cpu_millis,
            scratch_bytes: target.limits.scratch_bytes,
            scratch_inodes: scratch_inodes(target),
        },
        Program::Wasm => {
            let Limits {
                memory_bytes,
                request_bytes,
                response_bytes,
                ..
            } = target.limits;
            let instance_bytes = memory_bytes + request_bytes + response_bytes;
            let inflight = u64::from(target.scaling.inflight_max);
            SandboxLimits {
                memory_bytes: WORKER_OVERHEAD_BYTES + inflight * instance_bytes,
                pids: WORKER_PIDS,
                cpu_millis,
                scratch_bytes: WORKER_SCRATCH_BYTES,
                scratch_inodes: WORKER_SCRATCH_INODES,
            }
        }
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
