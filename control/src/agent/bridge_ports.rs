//! Ports of bridges: interfaces that belong to the switch alone, as the `Port` objects name them.
//!
//! A TAP is made in its namespace and kept when the agent ends, like a pod's. An interface that exists is taken whole
//! by AF_XDP, every queue by a worker of its own, made promiscuous since frames for stations behind other ports arrive
//! there, and given back when its object goes or the agent ends. An interface that stays the kernel's is only listened
//! to and sent by. What cannot be taken is a problem in the status and is
//! tried again with every look. Runs on the underlay thread.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use millrace_engine::limits;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::port::PortQueue;
use millrace_engine::port::af_xdp::{AfXdpOptions, AfXdpQueue, AttachPreference, Steering, Umem, receive_queues};
use millrace_engine::port::namespace::NamespaceHandle;
use millrace_engine::port::packet_socket::{Accept, PacketSocket};
use millrace_engine::port::tap::TapDevice;
use millrace_engine::transmit::segmentation::segments_of_unit;

use super::pods::FIRST_BRIDGE_PORT;
use super::shared::Shared;
use crate::cluster::{BridgePortRecord, Cluster, DeviceKind, NetworkRecord, PortDevice, PortName};
use crate::kernel::{KernelError, Link, LinkChange, Netlink};
use crate::plan::LocalPort;

/// The namespace that the agent itself runs in.
const OWN_NAMESPACE: &str = "/proc/self/ns/net";

struct Taken {
    port: PortIndex,
    device: PortDevice,
    namespace: NamespaceHandle,
    link: u32,
    /// MTU of the interface when it was taken: its queues take no longer frames. TAPs take all.
    mtu: u32,
    steering: Option<Steering>,
    /// The socket beside the kernel, and what comes in by it.
    beside: Option<(PacketSocket, Accept)>,
}

/// The bridges' ports on this node.
pub(super) struct BridgePorts {
    shared: Arc<Shared>,
    taken: BTreeMap<PortName, Taken>,
    refused: BTreeMap<PortName, String>,
}

impl BridgePorts {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, taken: BTreeMap::new(), refused: BTreeMap::new() }
    }

    /// Takes and gives back interfaces as the objects say; returns those in use.
    pub(super) fn follow(&mut self, cluster: &Cluster) -> BTreeMap<PortIndex, LocalPort> {
        let node = self.shared.node.clone();
        let networks = cluster.networks.values().filter(|network| network.is_for(&node));
        let made: Vec<BridgePortRecord> = networks.filter_map(NetworkRecord::wire_ports).flatten().collect();
        let objects = cluster.ports.values().filter(|port| port.is_for(&node));
        let wanted: BTreeMap<&PortName, &BridgePortRecord> =
            objects.chain(&made).map(|port| (&port.name, port)).collect();
        let stays = |name: &PortName, taken: &Taken| wanted.get(name).is_some_and(|port| port.device == taken.device);
        let gone: Vec<PortName> =
            self.taken.iter().filter(|(name, taken)| !stays(name, taken)).map(|(name, _)| name.clone()).collect();
        for name in &gone {
            self.release(name, true);
        }
        self.refused.retain(|name, _| wanted.contains_key(name));
        let mut in_use = BTreeMap::new();
        for (name, record) in wanted {
            match self.follow_one(name, record) {
                Ok((port, mtu)) => {
                    self.refused.remove(name);
                    in_use.insert(port, LocalPort { name: name.clone(), mtu });
                }
                Err(problem) => drop(self.refused.insert(name.clone(), format!("port {name}: {problem}"))),
            }
        }
        in_use
    }

    /// The port's number and MTU.
    fn follow_one(&mut self, name: &PortName, record: &BridgePortRecord) -> Result<(PortIndex, u32), String> {
        let interface = record.device.interface.as_str();
        let path = record.device.namespace.as_deref().unwrap_or(std::path::Path::new(OWN_NAMESPACE));
        let namespace = NamespaceHandle::open(path).map_err(|error| error.to_string())?;
        let mut netlink = Netlink::open_in(&namespace).map_err(|error| error.to_string())?;
        let set = |netlink: &mut Netlink| set_link(netlink, interface, record).map_err(|error| error.to_string());
        let mut found = netlink.link(interface).map_err(|error| error.to_string())?;
        if found.is_some() {
            // Before it is taken, so that its queues take frames as long as they shall be.
            found = Some(set(&mut netlink)?);
        }
        let same = |taken: &Taken| {
            let is_same = |link: &Link| {
                link.index == taken.link && (taken.device.kind == DeviceKind::Tap || link.mtu <= taken.mtu)
            };
            taken.namespace.inode() == namespace.inode() && found.as_ref().is_some_and(is_same)
        };
        if self.taken.get(name).is_some_and(|taken| !same(taken)) {
            // The namespace or the interface was replaced by another of its name, or its frames may be longer by now.
            self.release(name, false);
        }
        if !self.taken.contains_key(name) {
            self.take(name, record, namespace)?;
        }
        let link = set(&mut netlink)?;
        let taken = self.taken.get_mut(name).ok_or("was given back")?;
        taken.link = link.index;
        Ok((taken.port, record.mtu.unwrap_or(link.mtu)))
    }

    fn take(&mut self, name: &PortName, record: &BridgePortRecord, namespace: NamespaceHandle) -> Result<(), String> {
        let used: HashSet<u16> = self.taken.values().map(|taken| taken.port.0).collect();
        let port = (FIRST_BRIDGE_PORT..limits::PORTS as u16).find(|number| !used.contains(number)).map(PortIndex);
        let port = port.ok_or_else(|| format!("at most {} are possible", used.len()))?;
        let interface = record.device.interface.as_str();
        let mut netlink = Netlink::open_in(&namespace).map_err(|error| error.to_string())?;
        let mut beside = None;
        let (queues, steering) = match record.device.kind {
            DeviceKind::Tap => (self.make_tap(&namespace, interface, port)?, None),
            DeviceKind::AfXdp => {
                let umems = self.shared.switch.with(|switch| {
                    (0..switch.options().workers).filter_map(|worker| switch.umem(worker).cloned()).collect::<Vec<_>>()
                });
                let opened = namespace.enter(|| take_interface(interface, port, &umems));
                let (queues, steering) = opened.map_err(|error| error.to_string())??;
                (queues, Some(steering))
            }
            DeviceKind::Packet => {
                let mtu = netlink.existing_link(interface).map_err(|error| error.to_string())?.mtu;
                let accept = Accept::Everything;
                let opened = namespace.enter(|| PacketSocket::open(interface, mtu, &accept));
                let socket = opened.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
                let queues = self.beside_kernel(&socket, port);
                beside = Some((socket, accept));
                (queues, None)
            }
        };
        let present = netlink.existing_link(interface).map_err(|error| error.to_string())?;
        let change = match record.device.kind {
            DeviceKind::Tap => LinkChange {
                gso_max_size: Some(limits::POD_GSO_BYTES),
                gso_max_segments: Some(segments_of_unit(record.mtu.unwrap_or(present.mtu))),
                ..LinkChange::up()
            },
            DeviceKind::AfXdp | DeviceKind::Packet => LinkChange { promiscuous: Some(true), ..LinkChange::up() },
        };
        netlink.change_link(interface, &change).map_err(|error| error.to_string())?;
        let link = netlink.existing_link(interface).map_err(|error| error.to_string())?;
        self.shared.switch.with(|switch| switch.attach(port, queues)).map_err(|error| error.to_string())?;
        let device = record.device.clone();
        self.taken
            .insert(name.clone(), Taken { port, device, namespace, link: link.index, mtu: link.mtu, steering, beside });
        Ok(())
    }

    /// One queue, on a worker that the port's number chooses.
    fn beside_kernel(&self, socket: &PacketSocket, port: PortIndex) -> Vec<Option<Box<dyn PortQueue>>> {
        let workers = self.shared.switch.with(|switch| switch.options().workers);
        let owner = usize::from(port.0) % workers;
        let queue = |worker| -> Option<Box<dyn PortQueue>> {
            (worker == owner).then(|| Box::new(socket.queue(port)) as Box<dyn PortQueue>)
        };
        (0..workers).map(queue).collect()
    }

    fn make_tap(
        &self,
        namespace: &NamespaceHandle,
        interface: &str,
        port: PortIndex,
    ) -> Result<Vec<Option<Box<dyn PortQueue>>>, String> {
        let workers = self.shared.switch.with(|switch| switch.options().workers);
        let device = TapDevice::open_in_namespace(namespace, interface, workers).map_err(|error| error.to_string())?;
        Ok(device.into_queues(port).into_iter().map(|queue| Some(Box::new(queue) as Box<dyn PortQueue>)).collect())
    }

    /// Lets in at a network's wire what is for its pods and for groups.
    pub(super) fn listen_for(&mut self, wire: &PortName, pods: Vec<Mac>) {
        let Some((socket, accept)) = self.taken.get_mut(wire).and_then(|taken| taken.beside.as_mut()) else { return };
        let wanted = Accept::Stations(pods);
        if *accept == wanted {
            return;
        }
        match socket.accept(&wanted) {
            Ok(()) => *accept = wanted,
            Err(error) => drop(self.refused.insert(wire.clone(), format!("port {wire}: {error}"))),
        }
    }

    /// First the program, so that the kernel gets its packets again, then the queues. A TAP goes with its object only.
    fn release(&mut self, name: &PortName, object_gone: bool) {
        let Some(taken) = self.taken.remove(name) else { return };
        drop(taken.steering);
        self.shared.switch.with(|switch| switch.detach(taken.port));
        let interface = taken.device.interface.as_str();
        match taken.device.kind {
            // A namespace that is gone took the TAP along.
            DeviceKind::Tap if object_gone => drop(TapDevice::remove_in_namespace(&taken.namespace, interface)),
            DeviceKind::Tap => {}
            DeviceKind::AfXdp | DeviceKind::Packet => {
                let change = LinkChange { promiscuous: Some(false), ..LinkChange::default() };
                let _ = Netlink::open_in(&taken.namespace).and_then(|mut link| link.change_link(interface, &change));
            }
        }
    }

    /// Gives all interfaces back; TAPs stay for the next agent.
    pub(super) fn release_all(&mut self) {
        let names: Vec<PortName> = self.taken.keys().cloned().collect();
        names.iter().for_each(|name| self.release(name, false));
    }

    /// What is wrong with ports.
    pub(super) fn problems(&self) -> Vec<String> {
        self.refused.values().cloned().collect()
    }
}

/// Sets the interface up, with the MTU that its object says; what it is then.
fn set_link(netlink: &mut Netlink, interface: &str, record: &BridgePortRecord) -> Result<Link, KernelError> {
    let link = netlink.existing_link(interface)?;
    let change = LinkChange {
        up: (!link.up).then_some(true),
        mtu: record.mtu.filter(|mtu| *mtu != link.mtu),
        ..LinkChange::default()
    };
    if change == LinkChange::default() {
        return Ok(link);
    }
    netlink.change_link(interface, &change)?;
    netlink.existing_link(interface)
}

type Queues = Vec<Option<Box<dyn PortQueue>>>;

/// Takes all receive queues of an interface of the calling thread's namespace.
fn take_interface(interface: &str, port: PortIndex, umems: &[Umem]) -> Result<(Queues, Steering), String> {
    let count = receive_queues(interface).map_err(|error| format!("interface {interface}: {error}"))?.max(1);
    if count > umems.len() {
        return Err(format!(
            "interface {interface} has {count} receive queues for {} workers: every queue needs a worker of its own; set \
             `ethtool -L {interface} combined {}` or raise `workers`",
            umems.len(),
            umems.len()
        ));
    }
    let mut steering =
        Steering::everything(interface, AttachPreference::default()).map_err(|error| error.to_string())?;
    let mut queues: Queues = Vec::new();
    for (number, umem) in umems.iter().enumerate().take(count) {
        let options = AfXdpOptions::new(port, interface, number as u32, steering.mode());
        let queue = AfXdpQueue::open(options, umem).map_err(|error| error.to_string())?;
        let socket = queue.socket().ok_or_else(|| format!("interface {interface}: no socket"))?;
        steering.insert_socket(number as u32, socket).map_err(|error| error.to_string())?;
        queues.push(Some(Box::new(queue)));
    }
    Ok((queues, steering))
}
