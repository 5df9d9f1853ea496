//! The underlay thread: uplinks, bridges' ports and the host's own port on and off the switch, and how the host's kernel
//! reaches the other nodes and the outside.
//!
//! The host's kernel keeps its addresses, routes and neighbours; this thread follows them. It looks again whenever
//! the kernel reports a change, the objects change, or a second has passed (for what the kernel does not report, such as a
//! sysctl), and tells the reconcile thread what it saw; else it sleeps. Next hops are managed neighbours: no traffic of
//! the kernel would refresh them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use millrace_engine::packet::PortIndex;
use millrace_engine::state::WantedNeighbours;
use millrace_engine::tables::Tunnels;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::adoption;
use super::announcements::Announcements;
use super::bridge_ports::BridgePorts;
use super::host_port::HostPort;
use super::networks;
use super::outside::WayOut;
use super::pods::Pods;
use super::shared::{Shared, Standing};
use super::uplinks::Uplinks;
use crate::api::model::Problem;
use crate::kernel::capabilities::{self, Capability};
use crate::kernel::{KernelError, Monitor, Netlink};
use crate::plan::{self, LocalHost, LocalPort, LocalUplink, LocalView, OutsideView, UnderlayPath};
use crate::reconcile::Input;

/// Longest time between two looks.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Changes arrive in bursts; one look serves a burst.
const BURST: Duration = Duration::from_millis(20);

/// Why to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// The objects or the plan changed.
    Objects,
    /// The kernel reported a change.
    Kernel,
    /// A packet waits for a neighbour that nobody has resolved.
    Wanted,
    /// End.
    Stop,
}

/// The running thread.
pub(super) struct Underlay {
    pub(super) signal: Sender<Signal>,
    ending: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Underlay {
    /// Gives the uplinks back to the host and ends.
    pub(super) fn stop(self) {
        self.ending.store(true, Ordering::Relaxed);
        let _ = self.signal.send(Signal::Stop);
        let _ = self.thread.join();
    }
}

/// Starts the thread, and one that waits for the kernel's reports.
pub(super) fn start(
    shared: Arc<Shared>,
    pods: Arc<Pods>,
    way_out: WayOut,
    adoption_record: PathBuf,
) -> anyhow::Result<Underlay> {
    let (signal, signals) = channel::bounded(16);
    let netlink = Netlink::open().context("could not speak to the kernel")?;
    let mut monitor = Monitor::open().context("could not follow the kernel's changes")?;
    let ending = Arc::new(AtomicBool::new(false));
    let (reports, ended, state) =
        (signal.clone(), Arc::clone(&ending), shared.switch.with(|switch| Arc::clone(switch.state())));
    std::thread::Builder::new().name("kernel-changes".into()).spawn(move || {
        while !ended.load(Ordering::Relaxed) {
            // A full queue holds a signal already; after an error the other thread looks again anyway.
            match wait(&mut monitor, &state.wanted) {
                Ok(signal) => drop(signal.map(|signal| reports.try_send(signal))),
                Err(_) => std::thread::sleep(LOOK_AGAIN),
            }
        }
    })?;
    let thread = std::thread::Builder::new().name("underlay".into()).spawn(move || {
        let (uplinks, host) = (Uplinks::new(Arc::clone(&shared)), HostPort::new(Arc::clone(&shared), pods));
        let bridge_ports = BridgePorts::new(Arc::clone(&shared));
        let follower = Follower {
            uplinks,
            bridge_ports,
            host,
            way_out,
            adoption_record,
            announcements: Announcements::default(),
            shared,
            netlink,
            told: None,
            told_outside: OutsideView::default(),
            told_host: None,
            adopted: false,
            leads_here_now: false,
            known_since: None,
        };
        follower.run(&signals);
    })?;
    Ok(Underlay { signal, ending, thread })
}

#[derive(Clone, PartialEq, Eq)]
struct Seen {
    uplinks: BTreeMap<PortIndex, LocalUplink>,
    bridge_ports: BTreeMap<PortIndex, LocalPort>,
    paths: BTreeMap<IpAddr, UnderlayPath>,
}

/// How long the host's routes wait for an uplink, and the kernel's connections to be taken over.
const ADOPTION: Duration = Duration::from_secs(3);

/// Waits at most [`LOOK_AGAIN`] for a reason to look.
fn wait(monitor: &mut Monitor, wanted: &WantedNeighbours) -> anyhow::Result<Option<Signal>> {
    let bell = wanted.bell();
    let mut sources = [PollFd::new(&bell, PollFlags::IN), PollFd::new(monitor, PollFlags::IN)];
    let longest = Timespec::try_from(LOOK_AGAIN)?;
    match rustix::event::poll(&mut sources, Some(&longest)) {
        Ok(0) | Err(Errno::INTR) => return Ok(None),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let rung = !sources[0].revents().is_empty();
    if rung {
        wanted.heard();
    }
    let changed = !monitor.drain()?.is_empty();
    Ok(if changed { Some(Signal::Kernel) } else { rung.then_some(Signal::Wanted) })
}

/// What netlink's answers have in common where the agent may not change the node's network.
fn missing_right() -> Option<Problem> {
    let missing = capabilities::missing(&[Capability::NetAdmin]);
    let message = "the agent lacks CAP_NET_ADMIN, without which interfaces, addresses, routes and neighbours stay as they are: grant \
                   it (`capabilities` of the container's securityContext, `AmbientCapabilities=` of a unit)";
    let kind = Some("capability".to_owned());
    (!missing.is_empty()).then(|| Problem { kind, ..Problem::from(message.to_owned()) })
}

/// An uplink is used as soon as it is up, so nothing but the link is to be mended.
fn uplink_down(uplink: &LocalUplink) -> Problem {
    let message = format!("uplink {} is down: it is not set up, or has no carrier", uplink.interface);
    Problem { kind: Some("uplink_down".to_owned()), ..Problem::from(message) }
}

struct Follower {
    shared: Arc<Shared>,
    netlink: Netlink,
    uplinks: Uplinks,
    host: HostPort,
    bridge_ports: BridgePorts,
    way_out: WayOut,
    adoption_record: PathBuf,
    announcements: Announcements,
    told: Option<Seen>,
    told_outside: OutsideView,
    told_host: Option<LocalHost>,
    /// Whether the kernel's connections were taken over.
    adopted: bool,
    /// Whether they were just now.
    leads_here_now: bool,
    /// Since when the objects are known.
    known_since: Option<Instant>,
}

impl Follower {
    fn run(mut self, signals: &Receiver<Signal>) {
        self.follow_host(&self.shared.standing());
        let mut looked = Instant::now();
        loop {
            let signal = signals.recv_timeout(LOOK_AGAIN.saturating_sub(looked.elapsed()));
            if matches!(signal, Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected)) {
                break;
            }
            // Whatever woke us: a signal that the queue had no room for is lost.
            self.way_out.resolve_wanted(&mut self.netlink, &self.uplinks);
            if signal.is_ok() {
                std::thread::sleep(BURST);
            }
            if signal == Ok(Signal::Wanted) && looked.elapsed() < LOOK_AGAIN {
                continue;
            }
            if signals.try_iter().any(|signal| signal == Signal::Stop) {
                break;
            }
            self.look();
            looked = Instant::now();
        }
        self.uplinks.release_all();
        self.bridge_ports.release_all();
    }

    /// Brings uplinks and paths into step with objects and kernel, and tells what changed.
    fn look(&mut self) {
        if self.shared.handing_over.load(Ordering::SeqCst) {
            // What changes now is the successor's to follow.
            return;
        }
        let standing = self.shared.standing();
        self.follow_host(&standing);
        let Some(cluster) = standing.cluster.clone() else { return };
        self.known_since.get_or_insert_with(Instant::now);
        let vxlan_port = standing.local.as_ref().map_or(Tunnels::UDP_PORT, |local| local.vxlan_port);
        let uplinks = self.uplinks.follow(&cluster, vxlan_port, &mut self.netlink);
        let bridge_ports = self.bridge_ports.follow(&cluster);
        let mut problems = self.uplinks.problems();
        problems.extend(uplinks.values().filter(|uplink| !uplink.link_up).map(uplink_down));
        if let Some(local) = standing.local.as_deref() {
            let (node, ports) = (&self.shared.node, &mut self.bridge_ports);
            let networks = networks::follow(&cluster, node, local, ports, &mut self.netlink);
            problems.extend(networks.into_iter().map(Problem::from));
        }
        problems.extend(self.bridge_ports.problems().into_iter().map(Problem::from));
        let mut paths = BTreeMap::new();
        for destination in self.destinations(&standing, &uplinks) {
            match self.path(destination, &uplinks) {
                Ok(Some(path)) => drop(paths.insert(destination, path)),
                Ok(None) => problems.push(Problem::from(format!("no uplink leads to {destination}"))),
                Err(error) => problems.push(format!("the way to {destination} is unknown: {error}").into()),
            }
        }
        if standing.plan.as_ref().is_some_and(|plan| !plan.outside.sources.is_empty()) {
            problems.extend(self.way_out.reserve().err().map(Problem::from));
        }
        if !self.adopted && standing.plan.as_deref().is_some_and(Uplinks::will_steer_services) {
            self.adopted = true;
            self.leads_here_now = true;
            let failed = |error| format!("connections that the kernel translates will break: {error}");
            adoption::adopt(&self.shared, &self.adoption_record)
                .unwrap_or_else(|error| self.shared.report(failed(error)));
        }
        self.uplinks.steer(paths.keys().copied(), &uplinks, standing.plan.as_ref());
        if std::mem::take(&mut self.leads_here_now) {
            // Only now may the host's routes lead here: a kernel forgets what it masqueraded by another interface.
            self.follow_host(&standing);
        }
        problems.extend(self.host.problems().iter().cloned().map(Problem::from));
        if let Some(plan) = &standing.plan {
            let announced = self.announcements.follow(plan, &self.uplinks, &uplinks, &self.shared);
            problems.extend(announced.into_iter().map(Problem::from));
        }
        let outside = self.way_out.view(&mut self.netlink, &self.uplinks, &uplinks, &mut problems);
        self.tell(Seen { uplinks, bridge_ports, paths });
        match outside {
            Ok(outside) => self.tell_outside(outside),
            Err(error) => problems.push(format!("the ways to the outside are unknown: {error}").into()),
        }
        if !problems.is_empty() {
            problems.extend(missing_right());
        }
        self.shared.uplinks_looked_at(problems);
    }

    fn follow_host(&mut self, standing: &Standing) {
        let node = &self.shared.node;
        let awaits_uplink = standing.cluster.as_deref().is_none_or(|cluster| {
            cluster.uplinks.values().any(|uplink| uplink.node.as_ref().is_none_or(|own| own == node))
        });
        let leads_here = self.adopted || !awaits_uplink || self.known_since.is_some_and(|at| at.elapsed() > ADOPTION);
        let host = self.host.follow(&mut self.netlink, standing, leads_here);
        if self.told_host != host {
            // Nobody listens only while the agent stops.
            let _ = self.shared.inputs.send(Input::Host(host.clone()));
            self.told_host = host;
        }
    }

    fn destinations(&self, standing: &Standing, uplinks: &BTreeMap<PortIndex, LocalUplink>) -> BTreeSet<IpAddr> {
        let Some(cluster) = &standing.cluster else { return BTreeSet::new() };
        let local = standing.local.as_deref().cloned().unwrap_or_else(|| LocalView::new(self.shared.node.clone()));
        let local = LocalView { uplinks: uplinks.clone(), ..local };
        plan::underlay_destinations(cluster, &local).into_iter().collect()
    }

    /// How the kernel reaches `destination`; `None` if not by one of our uplinks.
    fn path(
        &mut self,
        destination: IpAddr,
        uplinks: &BTreeMap<PortIndex, LocalUplink>,
    ) -> Result<Option<UnderlayPath>, KernelError> {
        let Some(route) = self.netlink.lookup_route(destination)? else { return Ok(None) };
        let Some((port, uplink)) = self.uplinks.by_link(route.link).and_then(|port| uplinks.get_key_value(&port))
        else {
            return Ok(None);
        };
        let own = || uplink.addresses.iter().copied().find(|address| address.is_ipv4() == destination.is_ipv4());
        let Some(source) = route.source.or_else(own) else { return Ok(None) };
        let known = self.netlink.neighbours()?;
        let hop = known.iter().find(|hop| hop.link == route.link && hop.address == route.next_hop);
        if !hop.is_some_and(|hop| hop.managed || hop.state == crate::kernel::NeighbourState::Permanent) {
            self.netlink.set_managed_neighbour(route.link, route.next_hop)?;
        }
        Ok(Some(UnderlayPath {
            port: *port,
            source,
            source_mac: uplink.mac,
            next_hop: hop.and_then(crate::kernel::Neighbour::usable_mac),
            mtu: route.mtu.unwrap_or(uplink.mtu).min(uplink.mtu),
            on_link: route.next_hop == destination,
        }))
    }

    fn tell_outside(&mut self, seen: OutsideView) {
        if self.told_outside != seen {
            let _ = self.shared.inputs.send(Input::Outside(seen.clone()));
            self.told_outside = seen;
        }
    }

    fn tell(&mut self, seen: Seen) {
        if self.told.as_ref() == Some(&seen) {
            return;
        }
        // Nobody listens only while the agent stops.
        let _ = self.shared.inputs.send(Input::Uplinks(seen.uplinks.clone()));
        let _ = self.shared.inputs.send(Input::BridgePorts(seen.bridge_ports.clone()));
        let _ = self.shared.inputs.send(Input::Underlay(seen.paths.clone()));
        self.told = Some(seen);
    }
}
