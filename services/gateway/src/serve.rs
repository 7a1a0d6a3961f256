// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Start, run, drain: one thread per shard, each with its own runtime and accept loop. The first shard also speaks with
//! the monitor.

use std::{
    io,
    net::TcpListener,
    sync::{Arc, RwLock},
    thread::JoinHandle,
    time::Duration,
};

use hearth_pool::{LinkError, Pool, PoolConfig, Recorder, ShardConfig};
use hearth_protocol::{NameProblem, TreeId};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{Mutex, Semaphore, watch},
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    GatewayConfig, GatewayLimits,
    access::Access,
    admission::Admission,
    app::{App, Shard, Trees},
    compile, cpu, deploy,
    edge::Edge,
    learn::Learners,
    metrics::Metrics,
    monitor::{Monitor, MonitorError, Order},
    receipts::Receipts,
    registry::Registry,
    routes::Routes,
    startup,
    store::{ReceiptLimits, StateError, Store},
};

/// Threads per shard for what blocks: the database and unpacking. More would wait for the same disk.
const BLOCKING_THREADS_PER_SHARD: usize = 4;

/// How often trees are looked for that can now be removed. A replaced function's sandboxes are gone within its time
/// limit, and what is left until then costs disk space only; a look is one query.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How often a draining server looks whether anything still runs.
const DRAIN_LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How long the last sandboxes may take to be removed: a hundred at the spawner's pace, with slack.
const POOL_DRAIN_WAIT: Duration = Duration::from_secs(5);

/// How long what still runs in blocking threads may take at the very end.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(2);

/// Why the gateway ended other than by draining.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The configuration has no listener, or not one core entry for each.
    #[error("cannot serve with {listeners} listeners and {cores} core entries")]
    Shards {
        /// How many listeners there are.
        listeners: usize,
        /// How many core entries there are.
        cores: usize,
    },
    /// A thread or its runtime could not be made, or a listener not be used.
    #[error("cannot start shard {shard}")]
    Shard {
        /// Which.
        shard: usize,
        /// Why.
        source: io::Error,
    },
    /// The database could not be used.
    #[error("cannot use the state directory: {problem}")]
    State {
        /// What is wrong, with its cause.
        problem: String,
    },
    /// A metric has a name that Prometheus refuses.
    #[error("cannot register the metrics")]
    Metrics(#[from] prometheus::Error),
    /// A built-in name is not one.
    #[error("cannot name the compiler")]
    Compiler(#[from] NameProblem),
    /// The spawner did not greet.
    #[error("cannot reach the spawner")]
    Spawner(#[from] LinkError),
    /// The monitor is gone or not understood.
    #[error("cannot hear the monitor")]
    Monitor(#[from] MonitorError),
}

impl From<StateError> for GatewayError {
    fn from(error: StateError) -> Self {
        let cause = std::error::Error::source(&error)
            .map(|source| format!(": {source}"))
            .unwrap_or_default();
        Self::State {
            problem: format!("{error}{cause}"),
        }
    }
}

/// Serves until the monitor says to drain, then finishes what runs and returns.
///
/// # Errors
/// [`GatewayError`] where a part cannot start or the monitor is gone.
pub fn serve(config: GatewayConfig) -> Result<(), GatewayError> {
    let (shards, cores) = (config.listeners.len(), config.cores.len());
    if shards == 0 || shards != cores {
        return Err(GatewayError::Shards {
            listeners: shards,
            cores,
        });
    }
    let store = Arc::new(Store::open(&config.state_dir)?);
    let metrics = Arc::new(Metrics::register(config.limits.functions_labelled_max)?);
    let (receipts, writer) = Receipts::start(
        Arc::clone(&store),
        receipt_limits(&config.limits),
        Arc::clone(&metrics),
    )?;
    pin_to(config.cores[0]);
    let runtime = runtime(0)?;
    let served = runtime.block_on(first_shard(config, store, metrics, Arc::new(receipts)));
    runtime.shutdown_timeout(SHUTDOWN_WAIT);
    // The last owner of the receipts went with the runtime's tasks; what waits is still being written.
    if writer.join().is_err() {
        tracing::error!("the writer of receipts panicked");
    }
    served
}

/// Everything of the first shard, from start to end.
async fn first_shard(
    config: GatewayConfig,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    receipts: Arc<Receipts>,
) -> Result<(), GatewayError> {
    let monitor = Arc::new(Monitor::new(config.monitor)?);
    let shard_configs = config
        .cores
        .iter()
        .map(|core| ShardConfig { core: *core })
        .collect();
    let recorder = recorder(
        config.compiler_tree.clone(),
        Arc::clone(&metrics),
        Arc::clone(&receipts),
    );
    let pool = Pool::new(pool_config(&config.limits, shard_configs, recorder));
    let host = pool.attach(config.spawner).await?;
    metrics.isolation(host.level);

    let (drain, draining) = watch::channel(false);
    let app = Arc::new(App {
        pool,
        registry: Registry::default(),
        store,
        receipts,
        metrics,
        admission: Admission::new(config.limits.inflight_max, config.limits.body_bytes_max),
        access: Access::new(config.management_key, config.allowed_hosts),
        learners: Learners::default(),
        edge: Edge::new(config.limits.connections_max, config.timeouts, draining),
        compiler: compile::target(&config.compiler_tree, config.limits.deploys_max)?,
        cpu: cpu::key(),
        deploys: Semaphore::new(config.limits.deploys_max as usize),
        trees: Mutex::new(Trees::default()),
        bases: RwLock::new(host.bases),
        limits: config.limits,
        timeouts: config.timeouts,
    });
    let (stop, stopped) = watch::channel(false);
    let threads = start_shards(&app, config.listeners, &config.cores, &stopped)?;

    let first = Shard {
        app: Arc::clone(&app),
        index: 0,
    };
    let begun = tokio::spawn(begin(first, Arc::clone(&monitor)));
    let swept = tokio::spawn(keep_swept(Arc::clone(&app)));
    let ended = obey(&app, &monitor).await;
    begun.abort();
    swept.abort();
    if ended.is_ok() {
        drain_all(&app, &drain).await;
    }
    stop.send_replace(true);
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a shard panicked");
        }
    }
    ended
}

/// Loads the functions, then takes invocations and says so.
async fn begin(shard: Shard, monitor: Arc<Monitor>) {
    if let Err(error) = startup::load(&shard).await {
        tracing::error!(%error, "cannot load the functions; not becoming ready");
        return;
    }
    shard.app.admission.become_ready();
    tracing::info!(functions = shard.app.registry.len(), "ready");
    if let Err(error) = monitor.tell_ready().await {
        tracing::warn!(%error, "cannot tell the monitor");
    }
}

/// Removes trees that were still in use when their function was replaced or removed.
async fn keep_swept(app: Arc<App>) {
    loop {
        sleep(SWEEP_INTERVAL).await;
        let mut trees = app.trees.lock().await;
        deploy::sweep(&app, &mut trees).await;
    }
}

/// Does what the monitor says, until it says to drain.
async fn obey(app: &Arc<App>, monitor: &Monitor) -> Result<(), GatewayError> {
    loop {
        match monitor.order().await? {
            Order::Drain => return Ok(()),
            Order::Spawner(socket) => match app.pool.attach(socket).await {
                Ok(host) => {
                    app.metrics.isolation(host.level);
                    app.set_bases(host.bases);
                }
                // The monitor starts another when this one ends, too.
                Err(error) => tracing::error!(%error, "cannot reach the new spawner"),
            },
        }
    }
}

/// Takes no new work and finishes what was begun, within the limit. While invocations run, connections are still
/// accepted: whoever asks is told that this server is going down, instead of waiting in a queue that nobody empties.
async fn drain_all(app: &App, drain: &watch::Sender<bool>) {
    tracing::info!(inflight = app.admission.inflight(), "draining");
    let until = Instant::now() + app.limits.drain_max;
    app.admission.start_draining();
    while 0 < app.admission.inflight() && Instant::now() < until {
        sleep(DRAIN_LOOK_INTERVAL).await;
    }
    drain.send_replace(true);
    if timeout_at(until, app.edge.closed()).await.is_err() {
        tracing::warn!(
            inflight = app.admission.inflight(),
            "the drain limit has passed; breaking off what still runs"
        );
    }
    if timeout(POOL_DRAIN_WAIT, app.pool.drain()).await.is_err() {
        tracing::warn!("sandboxes are left; the spawner removes them");
    }
}

/// Starts every accept loop; the first shard's runs on the runtime that this is called in.
fn start_shards(
    app: &Arc<App>,
    listeners: Vec<TcpListener>,
    cores: &[Option<u16>],
    stopped: &watch::Receiver<bool>,
) -> Result<Vec<JoinHandle<()>>, GatewayError> {
    let mut threads = Vec::new();
    for (index, (listener, core)) in listeners.into_iter().zip(cores.iter().copied()).enumerate() {
        let failed = |source| GatewayError::Shard {
            shard: index,
            source,
        };
        listener.set_nonblocking(true).map_err(failed)?;
        let shard = Shard {
            app: Arc::clone(app),
            index,
        };
        if index == 0 {
            let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
            let routes = Arc::new(Routes::new(shard));
            tokio::spawn(app.edge.clone().accept(listener, routes));
            continue;
        }
        let runtime = runtime(index)?;
        let stopped = stopped.clone();
        let thread = std::thread::Builder::new().name(format!("shard-{index}"));
        let thread = thread.spawn(move || {
            pin_to(core);
            if let Err(error) = runtime.block_on(other_shard(shard, listener, stopped)) {
                tracing::error!(%error, shard = index, "a shard cannot use its listener");
            }
            runtime.shutdown_timeout(SHUTDOWN_WAIT);
        });
        threads.push(thread.map_err(failed)?);
    }
    Ok(threads)
}

/// Accepts until draining begins, and stays until all is over: its connections live on this thread.
async fn other_shard(
    shard: Shard,
    listener: TcpListener,
    mut stopped: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let edge = shard.app.edge.clone();
    tokio::spawn(edge.accept(listener, Arc::new(Routes::new(shard))));
    // A sender that is gone means the same.
    drop(stopped.wait_for(|stopped| *stopped).await);
    Ok(())
}

fn runtime(shard: usize) -> Result<Runtime, GatewayError> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_PER_SHARD)
        .thread_name(format!("shard-{shard}-blocking"))
        .build()
        .map_err(|source| GatewayError::Shard { shard, source })
}

/// Pins the calling thread. Where the host does not allow it, calls are slower and nothing else.
fn pin_to(core: Option<u16>) {
    let Some(core) = core else { return };
    let mut set = CpuSet::new();
    let pinned = set
        .set(usize::from(core))
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        tracing::warn!(%error, core, "cannot pin a shard to its core");
    }
}

/// Where each receipt goes. Compilations are no invocations of a user's function: they are counted as deploys.
fn recorder(compiler: TreeId, metrics: Arc<Metrics>, receipts: Arc<Receipts>) -> Recorder {
    Arc::new(move |receipt| {
        if receipt.revision != compiler {
            metrics.observe(&receipt);
            receipts.add(receipt);
        }
    })
}

fn receipt_limits(limits: &GatewayLimits) -> ReceiptLimits {
    ReceiptLimits {
        number_max: limits.receipts_max,
        bytes_max: limits.receipts_bytes_max,
        age_max: limits.receipts_age_max,
    }
}

fn pool_config(limits: &GatewayLimits, shards: Vec<ShardConfig>, recorder: Recorder) -> PoolConfig {
    PoolConfig {
        shards,
        skeletons_per_shard: limits.skeletons_per_shard,
        sandboxes_max: limits.sandboxes_max,
        queue_len_max: limits.queue_len_max,
        queue_wait_max: limits.queue_wait_max,
        stream_bytes_max: limits.stream_bytes_max as usize,
        recorder,
    }
}
