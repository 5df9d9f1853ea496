//! The node agent: everything put together on one node.
//!
//! ```text
//!  store.watch -> reconcile thread -> switch.publish        (control threads)
//!  netlink     -> underlay thread  -> uplinks, peers' paths
//!  unix socket -> API threads      -> CNI server -> pods
//!                                     switch workers         (packet threads)
//! ```
//! The agent owns one [`Switch`] and lets three parties at it, one at a time: the reconcile thread publishes, the
//! underlay thread attaches uplinks and the host's port, CNI calls attach pods. Nothing of this runs on a packet thread. Pods outlive the
//! agent: their TAPs are persistent, their attachments recorded, and [`pods::Pods::restore`] takes them up again; so does
//! the host's own port. [`remove_from_kernel`] takes away what is left when no agent shall come again.

mod addresses;
mod adoption;
mod announcements;
mod attachment_check;
mod bridge_ports;
mod denial_log;
mod event_writer;
mod host_port;
mod host_ports;
mod inspect;
mod network_configuration;
mod networks;
mod outside;
mod place;
mod pod_device;
mod pods;
mod policies;
mod removal;
mod reports;
mod services;
mod shared;
mod trace;
mod underlay;
mod uplinks;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use millrace_engine::flow_cache::FlowCacheLayout;
use millrace_engine::packet::FrameMemoryLayout;
use millrace_engine::switch::{Switch, SwitchOptions};
use millrace_engine::worker::IdlePolicy;

use crate::api::Inspect;
use crate::api::server::{Limits, serve};
use crate::api::socket::Socket;
use crate::cluster::NodeName;
use crate::cni_server::{Attachments, CniServer, PodNetwork};
use crate::configuration::{Configuration, ObjectSource};
use crate::events::EventSink;
use crate::health_check::{self, Condition, HealthChecks, Heartbeat};
use crate::installation;
use crate::metrics::{MetricsServer, Timings};
use crate::observe;
use crate::plan::LocalView;
use crate::receipts::ReceiptWriter;
use crate::reconcile::{self, Input, Reconciler, Settled};
use crate::store::api_server::Connection;
use crate::store::{ApiServerStore, DirectoryStore, ObjectStore};
use addresses::AddressMaintenance;
pub use adoption::RECORD as ADOPTION_FILE;
use denial_log::DenialLog;
use event_writer::EventWriter;
pub use host_port::{HOST_INTERFACE, remove as remove_host_port};
use inspect::Inspector;
use network_configuration::NetworkConfiguration;
use outside::WayOut;
use pods::Pods;
pub(crate) use pods::{FIRST_BRIDGE_PORT, FIRST_POD_PORT};
pub use removal::{Step, remove_from_kernel};
use reports::Source;
use shared::Shared;
pub(crate) use shared::SharedSwitch;

/// The file of the state directory with the record of attachments.
pub(crate) const ATTACHMENTS_FILE: &str = "attachments.json";
/// The file of the state directory that says where connections are kept, for who takes the agent off the node.
pub(crate) const KEPT_FILE: &str = "kept";

/// How long ADD and the start wait for tables to be in force.
const IN_FORCE: Duration = Duration::from_secs(5);

/// Runs the agent until it is told to stop by SIGTERM or SIGINT. Pods stay plugged in; uplinks are given back.
///
/// # Errors
/// What the agent cannot do without: its name, its directories, its store, memory, its socket.
pub fn run(configuration: &Configuration) -> anyhow::Result<()> {
    let node = node_name(configuration)?;
    std::fs::create_dir_all(configuration.state_directory())
        .with_context(|| format!("could not make {}", configuration.state_directory().display()))?;
    let (store, events) = open_store(configuration.objects())?;
    let (kept_directory, is_named) = configuration.kept_directory();
    std::fs::create_dir_all(&kept_directory).with_context(|| format!("could not make {}", kept_directory.display()))?;
    let not_recorded =
        record_kept_directory(configuration.state_directory(), is_named.then_some(&kept_directory)).err();
    let mut switch = Switch::new(switch_options(configuration)).context("could not build the switch")?;
    let not_kept = switch.kept().problem.clone().filter(|_| is_named);
    switch.start().context("could not start the workers")?;
    let switch = SharedSwitch::new(switch);
    let (attachments, problem) = Attachments::load(&configuration.state_directory().join(ATTACHMENTS_FILE))
        .context("could not read the record of attachments")?;
    let attachments = Arc::new(attachments);
    let (inputs, taken) = reconcile::inputs();
    let shared = Arc::new(Shared::new(node.clone(), switch, inputs));
    shared.report(Source::Record, problem);
    shared.report(Source::KeptState, not_kept.into_iter().chain(not_recorded));

    let pods = Arc::new(Pods::new(Arc::clone(&shared), Arc::clone(&store), configuration.address_source()));
    pods.restore(&attachments);
    let record = configuration.state_directory().join(outside::RECORD);
    let way_out = WayOut::new(Arc::clone(&shared), configuration.outside_ports(), record);
    let adopted = configuration.state_directory().join(adoption::RECORD);
    let underlay = underlay::start(Arc::clone(&shared), Arc::clone(&pods), way_out, adopted)?;
    let timings = Arc::new(Timings::default());
    let reconciling = start_reconciling(
        configuration,
        &shared,
        store.as_ref(),
        taken,
        underlay.signal.clone(),
        Arc::clone(&timings),
    )?;
    let cni = Arc::new(
        CniServer::new(Arc::clone(&pods) as Arc<dyn PodNetwork>, Arc::clone(&attachments))
            .with_state_directory(configuration.state_directory().to_owned()),
    );
    shared.report(Source::LeftDeletes, cni.take_up_pending());
    for (key, failure) in cni.release_lost() {
        let what = format!("attachment {} {} could not be cleaned up: {failure}", key.container_id, key.interface);
        shared.report_of(&key, what);
    }
    let socket = Socket::bind(configuration.socket()).context("could not open the socket")?;
    let inspector = Arc::new(Inspector::new(Arc::clone(&shared), Arc::clone(&pods), Arc::clone(&attachments)));
    // The socket stands: whoever calls the plugin from now on is answered.
    let network_configuration = configuration.cni_configuration_directory().map(|directory| {
        let text = installation::network_configuration::text(configuration.socket(), configuration.state_directory());
        let ready = Arc::clone(&pods);
        NetworkConfiguration::start(Arc::clone(&shared), (directory.to_owned(), text), move || ready.status().is_ok())
    });
    let network_configuration = network_configuration.transpose().context("could not start a thread")?;
    let maintenance =
        AddressMaintenance::start(Arc::clone(&shared), pods, Arc::clone(&cni)).context("could not start a thread")?;
    let denial_log = DenialLog::start(Arc::clone(&shared)).context("could not start a thread")?;
    let events = events.map(|sink| EventWriter::start(Arc::clone(&shared), sink)).transpose();
    let events = events.context("could not start a thread")?;
    let reporter = Arc::clone(&shared);
    let metrics = configuration.metrics_address().map(|address| {
        let inspect = Arc::clone(&inspector) as Arc<dyn Inspect>;
        MetricsServer::start(address, inspect, timings, move |problem| reporter.report(Source::Metrics, problem))
    });
    let metrics = metrics.transpose().context("no thread for metrics")?;
    let served = serve_until_told(socket, cni, inspector);

    drop(metrics);
    drop(network_configuration);
    events.into_iter().for_each(EventWriter::stop);
    maintenance.stop();
    denial_log.stop();
    // The order in which packets stop: no new tables, then no steering, then no workers.
    let _ = shared.inputs.send(Input::Stop);
    let _ = reconciling.join();
    underlay.stop();
    shared.switch.with(Switch::stop);
    served
}

/// The store, and where Events are written, if there is such a place.
type Opened = (Arc<dyn ObjectStore>, Option<Arc<dyn EventSink>>);

fn open_store(source: ObjectSource<'_>) -> anyhow::Result<Opened> {
    let connection = match source {
        ObjectSource::Directory(path) => {
            let store = DirectoryStore::open(path).with_context(|| format!("could not open {}", path.display()))?;
            return Ok((Arc::new(store), None));
        }
        ObjectSource::Kubeconfig(file) => Connection::from_kubeconfig(file)?,
        ObjectSource::Cluster => Connection::in_cluster()?,
    };
    let store = Arc::new(ApiServerStore::open(connection)?);
    Ok((Arc::clone(&store) as Arc<dyn ObjectStore>, Some(store)))
}

fn node_name(configuration: &Configuration) -> anyhow::Result<NodeName> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = configuration.node().map_or(host, str::to_owned);
    NodeName::new(&name).with_context(|| format!("{name:?} cannot be the name of a node; set `node`"))
}

fn switch_options(configuration: &Configuration) -> SwitchOptions {
    SwitchOptions {
        workers: configuration.workers().get(),
        cores: configuration.worker_cpus().to_vec(),
        frame_memory: FrameMemoryLayout {
            head_frames: configuration.head_frames(),
            big_buffers: configuration.big_buffers(),
        },
        flows: FlowCacheLayout { ipv4: configuration.flows_ipv4(), ipv6: configuration.flows_ipv6() },
        connections: configuration.connections(),
        timeouts: configuration.timeouts(),
        kept_in: Some(configuration.kept_directory().0),
        idle: if configuration.busy_poll() { IdlePolicy::BusyPoll } else { IdlePolicy::default() },
        ..SwitchOptions::default()
    }
}

/// Starts the reconcile thread. It tells the underlay thread after each settling, since objects name its uplinks.
fn start_reconciling(
    configuration: &Configuration,
    shared: &Arc<Shared>,
    store: &dyn ObjectStore,
    taken: crossbeam::channel::Receiver<Input>,
    underlay: crossbeam::channel::Sender<underlay::Signal>,
    timings: Arc<Timings>,
) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let watch = store.watch(&observe::KINDS).context("could not watch the objects")?;
    let local = LocalView {
        vxlan_port: configuration.vxlan_port(),
        services: configuration.services().clone(),
        masquerade_ports: configuration.masquerade_ports(),
        outside_ports: configuration.outside_ports(),
        exempt: configuration.exempt().to_vec(),
        vni: configuration.vni(),
        unknown_pods_open: configuration.unknown_pods_open(),
        ..LocalView::new(shared.node.clone())
    };
    let shared = Arc::clone(shared);
    let reporter = Arc::clone(&shared);
    let heartbeat = Arc::new(Heartbeat::default());
    let address = configuration.health_address();
    let checks = HealthChecks::start(address, Arc::clone(&heartbeat), move |problems| {
        reporter.report(Source::HealthChecks, problems);
    });
    let checks = checks.context("no thread for health checks")?;
    let mut receipts = receipt_writer(&shared, &timings).context("no thread for receipts")?;
    let thread = std::thread::Builder::new().name("reconcile".into());
    Ok(thread.spawn(move || {
        // The whole watch moves here: dropping a part of it would end it.
        let watch = watch;
        let mut reconciler = Reconciler::publishing_to(local, Box::new(shared.switch.clone()));
        let switch = shared.switch.clone();
        let settled = |reconciler: &Reconciler, settled: &Settled| {
            shared.settled(reconciler, settled);
            if settled.changes.is_some() {
                timings.settled(settled.took);
            }
            let tables = reconciler.publish_state().tables().generation;
            receipts.published(settled.arrived.clone(), tables, &settled.problems);
            if let Some(plan) = &settled.plan {
                let own = reconciler.cluster().nodes.get(reconciler.node());
                let leaving = own.is_some_and(|node| node.leaving);
                let condition = Condition { healthy: settled.error.is_none(), leaving, updated: health_check::now() };
                checks.follow(&plan.services, condition);
            }
            // A full queue holds a signal already.
            let _ = underlay.try_send(underlay::Signal::Objects);
        };
        reconciler.run(&watch.events, &taken, settled, |reconciler| {
            let in_use = switch.with(|switch| switch.generation_in_use());
            heartbeat.beat_with(in_use, reconciler.publish_state().tables().generation);
        });
    })?)
}

/// Says where connections are kept, if that is no place that everybody knows. Without room for it the agent serves all the same.
fn record_kept_directory(state_directory: &Path, directory: Option<&PathBuf>) -> Result<(), String> {
    let record = state_directory.join(KEPT_FILE);
    let Some(directory) = directory else {
        let _ = std::fs::remove_file(record);
        return Ok(());
    };
    let text = directory.as_os_str().as_bytes();
    if std::fs::read(&record).is_ok_and(|known| known == text) {
        return Ok(());
    }
    let written = std::fs::write(&record, text);
    written.map_err(|error| {
        format!(
            "`millrace uninstall` will not find {}: {} cannot be written: {error}",
            directory.display(),
            record.display()
        )
    })
}

/// Waits for workers behind the reconcile thread, and goes with it.
fn receipt_writer(shared: &Shared, timings: &Arc<Timings>) -> std::io::Result<ReceiptWriter> {
    let (switch, timings) = (shared.switch.clone(), Arc::clone(timings));
    let in_use = move || switch.with(|switch| switch.generation_in_use());
    let told = move |kind: &str, took, happened| timings.realised(kind, took, happened);
    ReceiptWriter::start(Arc::clone(&shared.receipts), in_use, Box::new(told))
}

fn serve_until_told(socket: Socket, cni: Arc<CniServer>, inspector: Arc<Inspector>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        };
        serve(socket, cni, inspector, Limits::default(), shutdown).await
    })?;
    Ok(())
}
