// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Making a skeleton: everything prepared, one clone, and two packets on the setup socket, heard when they come.

use std::{
    ffi::CString,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::{Duration, Instant},
};

use hearth_protocol::spawner::{
    CREATED_FDS, Cause, Event, Network, Profile, RequestId, Root, SandboxId, SandboxLimits,
    SkeletonSpec, Worker,
};
use nix::errno::Errno;

use super::{
    Parts, Spawner, c_path,
    events::Source,
    groundwork::Place,
    limits,
    observe::Launch,
    requests::refused,
    table::{Sandbox, Starting, State},
    violations::Violations,
};
use crate::{
    enter::{self, MAPS_WRITTEN, Plan, says},
    failure::{Failure, at},
    idmap::Ids,
    lsm::{self, AppArmor},
    mounts::Scratch,
    seccomp::Filter,
    socket,
};

/// From the clone to init's word; usually 2 ms. Passing it means that the host is out of memory or worse.
const START_MS_MAX: u64 = 10_000;

/// A setup packet: its kind, an errno and a step's name.
const SETUP_PACKET_BYTES_MAX: usize = 256;

/// Skeletons that build their walls at once. More would be none the sooner on few cores, and a bind would have to share
/// them with all.
const STARTING_MAX: usize = 8;

/// Requests for skeletons that wait for their turn: more than the largest table of sandboxes.
const CREATES_WAITING_MAX: usize = 4096;

/// A request that waits for its turn.
#[derive(Debug)]
pub(super) struct Create {
    request: RequestId,
    spec: SkeletonSpec,
    limits: SandboxLimits,
}

/// What a request asks for, checked.
struct Order {
    base: CString,
    filter: Rc<Filter>,
    worker: Worker,
    root: Root,
    core: Option<u16>,
    limits: SandboxLimits,
}

impl Spawner {
    /// Has a skeleton made when its turn comes. The answer comes when it is up, or has failed.
    pub(super) fn queue_create(
        &mut self,
        request: RequestId,
        spec: SkeletonSpec,
        limits: SandboxLimits,
    ) {
        if CREATES_WAITING_MAX <= self.creates.len() {
            let full = Failure {
                step: "make one more sandbox".into(),
                errno: Errno::EAGAIN,
            };
            return self.answer(request, Err(full));
        }
        self.creates.push_back(Create {
            request,
            spec,
            limits,
        });
    }

    /// Whether the next skeleton could be begun now.
    pub(super) fn may_create(&self) -> bool {
        let starting =
            |(_, sandbox): &(SandboxId, &Sandbox)| matches!(sandbox.state, State::Starting(_));
        !self.creates.is_empty() && self.table.restless().filter(starting).count() < STARTING_MAX
    }

    /// Begins one skeleton, if one is asked for: one in a turn, so that a bind that comes meanwhile waits for one clone
    /// and not for a row of them.
    pub(super) fn create_next(&mut self) {
        if !self.may_create() {
            return;
        }
        let Some(create) = self.creates.pop_front() else {
            return;
        };
        if let Err(failure) = self.begin(create.request, &create.spec, &create.limits) {
            self.answer(create.request, Err(failure));
        }
    }

    fn begin(
        &mut self,
        request: RequestId,
        spec: &SkeletonSpec,
        limits: &SandboxLimits,
    ) -> Result<(), Failure> {
        self.observations.check(spec.profile)?;
        let order = self.parts.check(spec, limits)?;
        let Some((pair, ids)) = self.table.reserve() else {
            return Err(Failure {
                step: "make one more sandbox".into(),
                errno: Errno::EAGAIN,
            });
        };
        let (network, place) = self.groundwork.take(limits);
        let started = match place {
            Some(place) => Ok(place),
            None => Place::make(&self.parts, self.table.next_id(), limits),
        };
        let started = started.and_then(|place| {
            let id = place.id;
            start(&self.parts, &order, network, place, (pair, ids), request).map(|one| (id, one))
        });
        match started {
            Ok((id, sandbox)) => self.adopt(id, sandbox),
            Err(failure) => {
                self.table.give_back(pair);
                Err(failure)
            }
        }
    }

    /// From here on the sandbox is ended by destroying it only.
    fn adopt(&mut self, id: SandboxId, sandbox: Sandbox) -> Result<(), Failure> {
        self.table.insert(id, sandbox);
        let watched = self.table.get(id).map_or(Err(Errno::ENOENT), |sandbox| {
            self.poller.watch(sandbox.pidfd.as_fd(), Source::Exit(id))?;
            if let Some(oom) = &sandbox.oom {
                self.poller.watch(oom.as_fd(), Source::Oom(id))?;
            }
            match &sandbox.state {
                State::Starting(starting) => {
                    self.poller.watch(starting.setup.as_fd(), Source::Setup(id))
                }
                _ => Ok(()),
            }
        });
        watched.map_err(|errno| {
            self.destroy(id, Cause::Destroyed);
            at("watch the sandbox")(errno)
        })
    }

    /// The first process speaks.
    pub(super) fn hear_setup(&mut self, id: SandboxId) {
        let Some(Sandbox {
            state: State::Starting(starting),
            pid,
            ids,
            root,
            ..
        }) = self.table.get(id)
        else {
            return;
        };
        let mut packet = [0; SETUP_PACKET_BYTES_MAX];
        let received = match socket::receive(starting.setup.as_fd(), &mut packet) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Err(errno) => return self.fail_start(id, at("hear the sandbox")(errno)),
        };
        let said = packet.get(..received.bytes).unwrap_or_default();
        let outcome = match said.first() {
            Some(&says::MAPS_WANTED) => ids.write_maps(*pid).and_then(|()| {
                socket::send(starting.setup.as_fd(), &[MAPS_WRITTEN], &[])
                    .map_err(at("answer the sandbox"))
            }),
            Some(&says::FILTERED) => self.listen(id, received.fds.into_iter().next()),
            Some(&says::UP) => {
                let label = self.parts.apparmor.label(*root);
                let listener = received.fds.into_iter().next();
                (self.parts.build.look)(*pid, *ids)
                    .and_then(|()| lsm::verify(*pid, label.as_deref()))
                    .and_then(|()| self.listen(id, listener))
                    .and_then(|()| self.announce(id))
            }
            Some(_) => {
                Err(enter::read_report(said).unwrap_or_else(|| refused("understand the sandbox")))
            }
            // Its end is closed: it died, and its pidfd says so with the exit status.
            None => Err(Failure {
                step: "start init".into(),
                errno: Errno::EPIPE,
            }),
        };
        if let Err(failure) = outcome {
            self.fail_start(id, failure);
        }
    }

    /// The skeleton is up: its descriptors go to the gateway.
    fn announce(&mut self, id: SandboxId) -> Result<(), Failure> {
        let Some(sandbox) = self.table.get_mut(id) else {
            return Ok(());
        };
        let counter = sandbox.violations.counter()?;
        sandbox.announced = true;
        let Some(State::Starting(starting)) = self.table.set_state(id, State::Skeleton) else {
            return Err(refused("announce the sandbox twice"));
        };
        // A child that is being cloned may hold a copy for a moment, so closing alone would not end the watch.
        self.poller
            .forget(starting.setup.as_fd())
            .map_err(at("leave the setup socket"))?;
        let mut fds = vec![starting.control];
        fds.extend(starting.reports);
        fds.push(counter);
        debug_assert_eq!(fds.len(), CREATED_FDS);
        self.link.push(
            &Event::Created {
                request: starting.request,
                sandbox: id,
            },
            fds,
        );
        Ok(())
    }

    fn fail_start(&mut self, id: SandboxId, failure: Failure) {
        if let Some(Sandbox {
            state: State::Starting(starting),
            ..
        }) = self.table.get(id)
        {
            let request = starting.request;
            self.answer(request, Err(failure));
        }
        self.destroy(id, Cause::Destroyed);
    }

    /// Gives up on sandboxes whose walls do not come up in time.
    pub(super) fn give_up_on_the_late(&mut self) {
        let now = Instant::now();
        let late = self.table.restless_where(|sandbox| {
            matches!(&sandbox.state, State::Starting(starting) if starting.deadline < now)
        });
        for id in late {
            self.fail_start(
                id,
                Failure {
                    step: "start init in time".into(),
                    errno: Errno::ETIMEDOUT,
                },
            );
        }
    }
}

impl Parts {
    fn check(&mut self, spec: &SkeletonSpec, limits: &SandboxLimits) -> Result<Order, Failure> {
        limits::check(limits)?;
        // An unknown program under the resident's profile, or the reverse: nobody asks for either.
        if (spec.worker == Worker::Resident) != (spec.profile == Profile::Resident) {
            return Err(refused("combine this worker and this seccomp profile"));
        }
        if (spec.worker, spec.root) == (Worker::Resident, Root::Writable) {
            return Err(refused("give a resident program a writable root"));
        }
        match spec.network {
            Network::None => {}
        }
        if spec.core.is_some_and(|core| !self.cores.contains(&core)) {
            return Err(refused("pin to this core"));
        }
        // A small name holds no slash, and only root writes to this directory.
        let base = self.bases.join(spec.base.as_str());
        if !base.is_dir() {
            return Err(Failure {
                step: "find the base".into(),
                errno: Errno::ENOENT,
            });
        }
        Ok(Order {
            base: c_path(&base),
            filter: self
                .filters
                .of(spec.profile)
                .map_err(|_not_compiled| refused("compile the profile"))?,
            worker: spec.worker,
            root: spec.root,
            core: spec.core,
            limits: *limits,
        })
    }
}

fn start(
    parts: &Parts,
    order: &Order,
    network: Option<OwnedFd>,
    place: Place,
    (pair, ids): (u32, Ids),
    request: RequestId,
) -> Result<Sandbox, Failure> {
    let violations = Violations::new(order.filter.asks())?;
    // Before its first process: there is no moment without them.
    let started = (parts.build.limit)(&place.cgroup, &order.limits, Some(&place.limits))
        .and_then(|()| start_in(parts, order, network, &place, ids));
    match started {
        Ok(Started {
            pid,
            pidfd,
            setup,
            control,
        }) => {
            let deadline = Instant::now() + Duration::from_millis(START_MS_MAX);
            let state = State::Starting(Starting {
                request,
                setup,
                control,
                reports: place.reports,
                deadline,
            });
            Ok(Sandbox {
                pair,
                ids,
                pid,
                pidfd,
                cgroup: place.cgroup,
                oom: place.oom,
                oom_seen: false,
                limits: order.limits,
                violations,
                root: order.root,
                filter: Rc::clone(&order.filter),
                launch: Launch::default(),
                state,
                announced: false,
            })
        }
        Err(failure) => {
            place.give_up();
            Err(failure)
        }
    }
}

/// What a clone gives.
struct Started {
    pid: nix::unistd::Pid,
    pidfd: OwnedFd,
    setup: OwnedFd,
    control: OwnedFd,
}

fn start_in(
    parts: &Parts,
    order: &Order,
    network: Option<OwnedFd>,
    place: &Place,
    ids: Ids,
) -> Result<Started, Failure> {
    let (control, init_control) = socket::pair().map_err(at("make the control socket"))?;
    let (setup, init_setup) = socket::pair().map_err(at("make the setup socket"))?;
    let scratch = Scratch::new(&order.limits, ids, order.root);
    let owners = match order.root {
        Root::ReadOnly => None,
        Root::Writable => Some(ids.owner_of_all()?),
    };
    let resident = (order.worker == Worker::Resident).then(|| parts.resident_image.as_fd());
    let plan = Plan {
        base: &order.base,
        owners: owners.as_ref().map(AsFd::as_fd),
        ground: parts.ground,
        scratch,
        tasks: &place.tasks,
        network: network.as_ref().map(AsFd::as_fd),
        control: &init_control,
        setup: &init_setup,
        image: parts.init_image.as_fd(),
        resident,
        argv: match order.worker {
            Worker::Resident => &parts.resident_argv,
            Worker::PerCall if order.filter.has_overlay() => &parts.overlay_argv,
            Worker::PerCall => &parts.init_argv,
        },
        confined: parts.apparmor == AppArmor::Loaded,
        filter: &order.filter,
        core: order.core,
    };
    let (pid, pidfd) = (parts.build.clone)(&plan, place.cgroup.unified())?;
    Ok(Started {
        pid,
        pidfd,
        setup,
        control,
    })
}
