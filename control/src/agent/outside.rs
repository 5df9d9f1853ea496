//! The way out, on the host's side: which of its routes lead by uplinks, who their neighbours are, and that its sockets keep
//! off the ports that masqueraded connections get.
//!
//! The main table's routes count; rules of policy routing do not. Routers are managed neighbours, as the next hops towards
//! other nodes are. Other stations on the links are resolved when a packet to them was seen, by the kernel's own means and
//! with its own limits, so a pod that asks for every address of a link costs the kernel what a process of the host would.
//!
//! Ports that this program reserves are noted in a file of the state directory together with what stood there before, so that
//! they can be given back for good. They stay reserved between two agents, as connections do. Runs on the underlay thread.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use millrace_engine::limits;
use millrace_engine::packet::PortIndex;
use millrace_engine::tables::PortRange;

use super::shared::Shared;
use super::uplinks::Uplinks;
use crate::api::model::Problem;
use crate::kernel::reserved_ports::SETTING;
use crate::kernel::{HostRoute, KernelError, Neighbour, NeighbourState, Netlink, ReservedPorts, sysctl};
use crate::plan::{LocalUplink, OutsidePath, OutsideView};

/// The file of the state directory that remembers reserved ports.
pub(super) const RECORD: &str = "reserved-ports";

/// The way out.
pub(super) struct WayOut {
    shared: Arc<Shared>,
    ports: ReservedPorts,
    record: PathBuf,
    /// What stood in the setting before; `None` while nothing is reserved.
    before: Option<ReservedPorts>,
}

impl WayOut {
    /// Reserves `ports` once they are used; `record` is the file that remembers it.
    pub(super) fn new(shared: Arc<Shared>, ports: PortRange, record: PathBuf) -> Self {
        Self { shared, ports: ReservedPorts::range(ports.first(), ports.last()), record, before: None }
    }

    /// What the kernel knows of the ways by `uplinks`; has it keep the routers' addresses fresh.
    pub(super) fn view(
        &self,
        netlink: &mut Netlink,
        taken: &Uplinks,
        uplinks: &BTreeMap<PortIndex, LocalUplink>,
        problems: &mut Vec<Problem>,
    ) -> Result<OutsideView, KernelError> {
        if uplinks.is_empty() {
            return Ok(OutsideView::default());
        }
        let routes = self.routes(netlink, taken, uplinks)?;
        if routes.len() > limits::OUTSIDE_ROUTES {
            problems.push(Problem::from(format!(
                "the host has {} routes by uplinks, the switch takes {}: pods reach some destinations by another way or not \
                 at all",
                routes.len(),
                limits::OUTSIDE_ROUTES
            )));
        }
        let known = netlink.neighbours()?;
        self.keep_routers(netlink, taken, &routes, &known)?;
        let usable = known.iter().filter_map(|neighbour| {
            Some(((taken.by_link(neighbour.link)?, neighbour.address), neighbour.usable_mac()?))
        });
        Ok(OutsideView { routes, neighbours: usable.collect() })
    }

    fn routes(
        &self,
        netlink: &mut Netlink,
        taken: &Uplinks,
        uplinks: &BTreeMap<PortIndex, LocalUplink>,
    ) -> Result<BTreeMap<IpNet, OutsidePath>, KernelError> {
        let mut best: BTreeMap<IpNet, HostRoute> = BTreeMap::new();
        for found in netlink.host_routes()? {
            let known = best.get(&found.route.destination);
            if known.is_none_or(|known| found.metric < known.metric) {
                best.insert(found.route.destination, found);
            }
        }
        let mut routes = BTreeMap::new();
        for (destination, HostRoute { route, .. }) in best {
            let Some(uplink) =
                route.link.and_then(|link| taken.by_link(link)).and_then(|port| uplinks.get_key_value(&port))
            else {
                continue;
            };
            let (port, uplink) = uplink;
            let towards = route.gateway.unwrap_or(destination.addr());
            let Some(source) = self.source(netlink, route.source, towards, uplink)? else { continue };
            let mtu = route.mtu.unwrap_or(uplink.mtu).min(uplink.mtu);
            routes.insert(destination, OutsidePath { port: *port, gateway: route.gateway, source, mtu });
        }
        Ok(routes)
    }

    /// The source of the host's own sockets: the route's, else what the kernel picks towards the router or network.
    fn source(
        &self,
        netlink: &mut Netlink,
        preferred: Option<IpAddr>,
        towards: IpAddr,
        uplink: &LocalUplink,
    ) -> Result<Option<IpAddr>, KernelError> {
        if preferred.is_some() {
            return Ok(preferred);
        }
        let same_family = |address: &&IpAddr| address.is_ipv4() == towards.is_ipv4();
        let own = || uplink.addresses.iter().find(same_family).copied();
        let picked = netlink.lookup_route(towards)?.and_then(|lookup| lookup.source);
        Ok(picked.filter(|address| uplink.addresses.contains(address)).or_else(own))
    }

    fn keep_routers(
        &self,
        netlink: &mut Netlink,
        taken: &Uplinks,
        routes: &BTreeMap<IpNet, OutsidePath>,
        known: &[Neighbour],
    ) -> Result<(), KernelError> {
        let mut routers: Vec<(u32, IpAddr)> =
            routes.values().filter_map(|path| Some((taken.link(path.port)?, path.gateway?))).collect();
        routers.sort_unstable();
        routers.dedup();
        for (link, router) in routers {
            let entry = known.iter().find(|entry| entry.link == link && entry.address == router);
            if !entry.is_some_and(|entry| entry.managed || entry.state == NeighbourState::Permanent) {
                netlink.set_managed_neighbour(link, router)?;
            }
        }
        Ok(())
    }

    /// Has the kernel resolve the stations that packets wait for.
    pub(super) fn resolve_wanted(&self, netlink: &mut Netlink, taken: &Uplinks) {
        let wanted = self.shared.switch.with(|switch| Arc::clone(switch.state())).wanted.take();
        for (port, neighbour) in wanted {
            // Refused is what the next packet asks for again.
            let _ = taken.link(port).map(|link| netlink.resolve_neighbour(link, neighbour));
        }
    }

    /// Sees to it that the host's sockets keep off the ports.
    pub(super) fn reserve(&mut self) -> Result<(), String> {
        let said = |error: &dyn std::error::Error| {
            format!("the host's sockets may take ports that connections of pods are masqueraded with: {error}")
        };
        let present = ReservedPorts::parse(&sysctl::read_own(SETTING).map_err(|error| said(&error))?);
        if self.before.is_none() {
            let before = match recorded(&self.record) {
                // An agent that did not end well reserved them.
                Some((before, own)) => present.without(&own.without(&before)),
                None => present.clone(),
            };
            std::fs::write(&self.record, format!("{before}\n{}\n", self.ports)).map_err(|error| said(&error))?;
            self.before = Some(before);
        }
        let wanted = present.with(&self.ports).to_string();
        sysctl::write_own(&[(SETTING.to_owned(), &wanted)], false).map_err(|error| said(&error))
    }
}

/// Gives back what agents reserved, by their record. False if there is none.
pub(super) fn give_back_recorded(record: &Path) -> Result<bool, KernelError> {
    let Some((before, own)) = recorded(record) else { return Ok(false) };
    unreserve(&own.without(&before))?;
    let _ = std::fs::remove_file(record);
    Ok(true)
}

/// What stood in the setting before, and what was added.
fn recorded(record: &Path) -> Option<(ReservedPorts, ReservedPorts)> {
    let text = std::fs::read_to_string(record).ok()?;
    let (before, own) = text.split_once('\n')?;
    Some((ReservedPorts::parse(before), ReservedPorts::parse(own)))
}

fn unreserve(ports: &ReservedPorts) -> Result<(), KernelError> {
    let left = ReservedPorts::parse(&sysctl::read_own(SETTING)?).without(ports).to_string();
    // The setting takes an empty line for none.
    let text = if left.is_empty() { "\n" } else { left.as_str() };
    sysctl::write_own(&[(SETTING.to_owned(), text)], false)
}
