//! Pods in and out: what a CNI call does to the node.
//!
//! ADD: addresses, then the TAP in the pod's namespace, then its queues on the workers, then tables; the answer goes
//! out when every worker forwards for the pod. What was done is undone in reverse order if a step fails. DEL is the
//! same backwards and takes what is missing for done. Runs on API threads, one call for one container at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ipnet::IpNet;
use millrace_cni::protocol;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::port::namespace::NamespaceHandle;
use millrace_engine::tables::Bandwidth;

use super::IN_FORCE;
use super::attachment_check;
use super::host_ports;
use super::place::Place;
use super::pod_device::{PodDevices, far_end};
use super::reports::Source;
use super::shared::Shared;
use crate::cluster::{
    AddressWishes, Cluster, ContainerPort, FurtherInterface, InterfaceName, NetworkName, PODS, PodName, rate_limit,
};
use crate::cni_server::{
    AddRequest, AddResult, AttachedNetwork, Attachment, AttachmentKey, Attachments, CniFailure, DeleteRequest,
    NetworkNamespace, PodDevice, PodNetwork, PodReference, RuntimeConfig,
};
use crate::ipam::shared::SharedAllocators;
use crate::ipam::vanished::VanishedNodes;
use crate::ipam::{AddressAllocators, AddressRequest, AddressSource, IpamError};
use crate::kernel::configure_pod_interface;
use crate::observe::{self, POD, Record};
use crate::plan::{self, AttachedPod, NodePlan, POD_SEGMENT};
use crate::reconcile::Input;
use crate::stable_hash::hash_64;
use crate::store::{ObjectKey, ObjectStore};

/// Port numbers below are for the host's own port, which is 0, and for uplinks.
pub(crate) const FIRST_POD_PORT: u16 = 16;
/// Port numbers from here on are for bridges.
pub(crate) const FIRST_BRIDGE_PORT: u16 = 768;
const POD_PORTS: u16 = FIRST_BRIDGE_PORT - FIRST_POD_PORT;

/// The pods of this node.
pub(super) struct Pods {
    shared: Arc<Shared>,
    store: Arc<dyn ObjectStore>,
    source: AddressSource,
    addresses: SharedAllocators,
    attached: Mutex<AttachedPods>,
    devices: PodDevices,
}

#[derive(Default)]
struct AttachedPods {
    pods: BTreeMap<PortIndex, AttachedPod>,
    /// Port numbers taken by calls that are not done yet, with the ports of the host that these ask for; and those of
    /// recorded pods that could not be taken up, or are being taken away.
    reserved: BTreeMap<PortIndex, Vec<ContainerPort>>,
    /// Where the search for a free number goes on, so that a number rests before it is used again.
    next: u16,
}

impl Pods {
    pub(super) fn new(shared: Arc<Shared>, store: Arc<dyn ObjectStore>, source: AddressSource) -> Self {
        let addresses = SharedAllocators::new(AddressAllocators::new(shared.node.clone(), source));
        Self { shared, store, source, addresses, attached: Mutex::default(), devices: PodDevices::default() }
    }

    /// Claims a block of each family for the node's own address among pods, where it has none.
    pub(super) fn claim_for_node(&self, cluster: &Cluster) -> Result<(), IpamError> {
        self.allocator(|addresses| addresses.claim_for_node(self.store.as_ref(), cluster))
    }

    /// Takes the pods up that were plugged in before the agent started. A pod that cannot be taken up is a problem in
    /// the status; its addresses stay taken until its DEL comes.
    pub(super) fn restore(&self, attachments: &Attachments) {
        for record in attachments.all() {
            let Some(port) = &record.port else { continue };
            let (holder, network) = (holder(&record.key), network_name(port.network.as_ref()));
            for address in &port.addresses {
                if let Err(error) =
                    self.allocator(|addresses| addresses.restore(network.as_ref(), &holder, address.addr()))
                {
                    self.shared.report_of(&record.key, error.to_string());
                }
            }
            let up = record.namespace.is_there().then(|| self.reattach(&record));
            if let Some(Err(failure)) = &up {
                let what = format!("pod of container {} is cut off: {failure}", record.key.container_id);
                self.shared.report_of(&record.key, what);
            }
            if !matches!(up, Some(Ok(()))) {
                // The number stays its own until its DEL: two records of one port would make two pods one.
                self.attached(|attached| attached.reserved.insert(port.index, Vec::new()));
            }
        }
        self.tell();
    }

    fn reattach(&self, record: &Attachment) -> Result<(), CniFailure> {
        let Some(port) = &record.port else { return Ok(()) };
        let namespace = handle(&record.namespace);
        let (addresses, network) = (port.addresses.clone(), port.network.clone());
        let place = Place { addresses, network, device: port.device };
        let interface = place.interface(port.mac, port.mtu_bytes);
        self.devices.take_up(&self.shared.switch, port.device, (&record.key, &record.namespace), port.index)?;
        let configured = configure_pod_interface(&namespace, &record.key.interface, &interface)
            .map_err(|error| system("configure the pod's interface", error));
        let pod = configured.and_then(|()| {
            attached_pod((&record.key, record.pod.as_ref(), &port.runtime), port.mac, &place, port.mtu_bytes)
        });
        let pod = pod.inspect_err(|_| self.shared.switch.with(|switch| switch.detach(port.index)))?;
        self.attached(|attached| attached.pods.insert(port.index, pod));
        Ok(())
    }

    pub(super) fn allocator<T>(&self, act: impl FnOnce(&mut AddressAllocators) -> T) -> T {
        self.addresses.with(act)
    }

    fn attached<T>(&self, act: impl FnOnce(&mut AttachedPods) -> T) -> T {
        act(&mut self.attached.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells the reconcile thread what is plugged in. Under the lock: of two calls that tell at once, the one that knows
    /// less must not come last.
    fn tell(&self) {
        self.attached(|attached| {
            // Nobody listens only while the agent stops.
            let _ = self.shared.inputs.send(Input::Pods(attached.pods.clone()));
        });
    }

    fn plug(&self, request: &AddRequest, port: PortIndex, place: &Place) -> Result<(Mac, u32), CniFailure> {
        let mtu = match network_name(place.network.as_ref()) {
            None => self.shared.standing().plan.map_or(crate::plan::MTU_WITHOUT_UPLINK, |plan| plan.pod_mtu),
            Some(network) => self.mtu_of(&network)?,
        };
        let mac = request.mac.unwrap_or_else(|| station_mac(&self.shared, &request.key));
        self.devices.make(&self.shared.switch, place.device, (&request.key, &request.namespace), port, mtu)?;
        let plugged = self.plug_device(request, port, place, mac, mtu);
        if plugged.is_err()
            && let Err(error) = self.unplug(port, place.device, Some(&request.namespace), &request.key)
        {
            let what = format!("interface {} of port {} stays: {error}", request.key.interface, port.0);
            self.shared.report_of(&request.key, what);
        }
        plugged.map(|()| (mac, mtu))
    }

    fn plug_device(
        &self,
        request: &AddRequest,
        port: PortIndex,
        place: &Place,
        mac: Mac,
        mtu: u32,
    ) -> Result<(), CniFailure> {
        let interface = place.interface(mac, mtu);
        configure_pod_interface(&handle(&request.namespace), &request.key.interface, &interface)
            .map_err(|error| system("configure the pod's interface", error))?;
        let pod = attached_pod((&request.key, request.pod.as_ref(), &request.runtime), mac, place, mtu)?;
        self.attached(|attached| attached.pods.insert(port, pod));
        self.tell();
        if self.shared.wait_for_port(port, true, IN_FORCE) {
            return Ok(());
        }
        let refused = self.shared.standing().refused.unwrap_or_else(|| "tables were not in force in time".into());
        Err(CniFailure::NotReady(refused))
    }

    /// Takes the port out of tables, workers and the pod, in this order. What is missing is done.
    fn unplug(
        &self,
        port: PortIndex,
        device: PodDevice,
        namespace: Option<&NetworkNamespace>,
        key: &AttachmentKey,
    ) -> Result<(), CniFailure> {
        if self.attached(|attached| attached.pods.remove(&port)).is_some() {
            self.tell();
            self.shared.wait_for_port(port, false, IN_FORCE);
        }
        self.shared.switch.with(|switch| switch.detach(port));
        self.devices.remove(Some(device), (key, namespace), Some(port))
    }

    /// Takes a port number for a pod, and the ports of the host that it asks for, until the call is done.
    fn reserve_port(&self, request: &AddRequest, place: &Place) -> Result<PortIndex, CniFailure> {
        let (pod, wanted) = (pod_name(&request.key, request.pod.as_ref())?, host_ports::wanted(&request.runtime));
        let families: Vec<bool> = place.addresses.iter().map(|address| address.addr().is_ipv4()).collect();
        if !wanted.is_empty() && network_name(place.network.as_ref()).is_some() {
            let message = "a pod in a network of its own is not reached by ports of the host: portMappings";
            return Err(CniFailure::Refused(message.to_owned()));
        }
        let plan = self.shared.standing().plan.filter(|_| !wanted.is_empty());
        if let Some((key, owner)) =
            plan.as_ref().and_then(|plan| plan.services.taken_by_another(&pod, &wanted, &families))
        {
            return Err(CniFailure::HostPortTaken { place: key.to_string(), holder: owner.key().to_string() });
        }
        self.attached(|attached| {
            // What is plugged in but not planned yet, and what other calls are about to plug in.
            let plugged = attached.pods.values().filter(|other| other.pod != pod);
            let plugged = plugged.map(|other| (&other.host_ports, format!("Pod {}", other.pod)));
            let calls = attached.reserved.values().map(|ports| (ports, "a pod that is being plugged in".to_owned()));
            host_ports::first_conflict(&wanted, plugged.chain(calls))?;
            let range = POD_PORTS;
            let candidates = (0..range).map(|step| FIRST_POD_PORT + (attached.next + step) % range);
            let free = |port: &PortIndex| !attached.pods.contains_key(port) && !attached.reserved.contains_key(port);
            let port = candidates.map(PortIndex).find(free);
            let port = port.ok_or_else(|| CniFailure::NotReady(format!("all {range} ports for pods are in use")))?;
            attached.next = (port.0 - FIRST_POD_PORT + 1) % range;
            attached.reserved.insert(port, wanted);
            Ok(port)
        })
    }

    /// Gives back what is no longer needed here, and what nodes had that are gone; what fails is tried again the next time.
    pub(super) fn maintain_addresses(&self, vanished: &mut VanishedNodes, cluster: &Cluster, now: Instant) {
        let segment = |plan: &NodePlan| plan.segments.get(&POD_SEGMENT).map(|segment| segment.router_addresses.clone());
        let own = self.shared.standing().plan.as_deref().and_then(segment).unwrap_or_default();
        let done = self.allocator(|addresses| addresses.maintain(self.store.as_ref(), cluster, &own, now));
        let collected = (!done.is_cut_short()).then(|| vanished.collect(self.store.as_ref(), cluster, now));
        let errors = done.errors.iter().chain(collected.iter().flat_map(|collected| &collected.errors));
        let failed = errors.map(|error| format!("addresses could not be given back: {error}"));
        self.shared.report(Source::Addresses, failed);
    }

    /// What the pod asks of address management, by its object as it is now: the watch may not have told it yet. `uid` is the pod's,
    /// where the runtime says it.
    fn wishes(&self, cluster: &Cluster, pod: &PodName, uid: Option<&str>) -> Result<AddressWishes, CniFailure> {
        let key = ObjectKey { kind: POD, namespace: Some(pod.namespace().to_string()), name: pod.name().to_owned() };
        let mut wishes = match self.store.get(&key) {
            Ok(object) => {
                let record = object.map(|object| observe::read(&object)).transpose();
                let record =
                    record.map_err(|error| CniFailure::Refused(format!("{key}: {}: {}", error.path, error.message)))?;
                match record.flatten() {
                    Some(Record::Pod(pod)) => pod.address_wishes,
                    _ => AddressWishes::default(),
                }
            }
            // What was watched will do if it is of this very pod: another of its name may belong elsewhere.
            Err(error) if error.is_passing() => {
                let known = cluster.pods.get(pod).filter(|known| uid.is_some() && known.uid.as_deref() == uid);
                let known = known.map(|known| known.address_wishes.clone());
                known.ok_or_else(|| CniFailure::NotReady(format!("the pod's object cannot be read: {error}")))?
            }
            Err(error) => return Err(system("read the pod's object", error)),
        };
        if wishes.pools.is_empty()
            && let Some(namespace) = cluster.namespaces.get(pod.namespace())
        {
            wishes.pools.clone_from(&namespace.pools);
        }
        if wishes.network.is_none() {
            wishes.network = cluster.namespaces.get(pod.namespace()).and_then(|namespace| namespace.network.clone());
        }
        wishes.network = wishes.network.filter(|network| network.as_str() != PODS);
        if wishes.veth.is_none() {
            wishes.veth = cluster.namespaces.get(pod.namespace()).map(|namespace| namespace.veth);
        }
        Ok(wishes)
    }

    /// The MTU of a network's wire, as long as the switch is at the wire; that of tunnels for a tenant's.
    fn mtu_of(&self, network: &NetworkName) -> Result<u32, CniFailure> {
        let standing = self.shared.standing();
        let found = standing.cluster.as_ref().zip(standing.local.as_ref()).and_then(|(cluster, local)| {
            let Some([wire, _]) = cluster.networks.get(network)?.wire_ports() else {
                return standing.plan.as_ref().map(|plan| plan.network_mtu);
            };
            local.bridge_ports.values().find(|port| port.name == wire.name).map(|port| port.mtu)
        });
        let away =
            || format!("network {network} is not there: `millrace show status` says why its interface is not in use");
        found.ok_or_else(|| CniFailure::NotReady(away()))
    }

    fn known_cluster(&self) -> Result<Arc<Cluster>, CniFailure> {
        let ready = self.shared.wait_until(IN_FORCE, |standing| standing.cluster.is_some() && standing.uplinks_known);
        let known = self.shared.standing().cluster.filter(|_| ready);
        known.ok_or_else(|| CniFailure::NotReady("the objects are not known yet".into()))
    }

    /// Where the pod belongs and which addresses it has there.
    fn place(&self, request: &AddRequest) -> Result<Place, CniFailure> {
        let cluster = self.known_cluster()?;
        let pod = request.pod.as_ref().and_then(|pod| PodName::new(&pod.namespace, &pod.name).ok());
        let wishes = pod.as_ref().map(|pod| self.wishes(&cluster, pod, uid(request))).transpose()?.unwrap_or_default();
        let wishes = match &request.further {
            // What the pod says of addresses it says of its first interface.
            Some(network) => AddressWishes {
                network: Some(network.clone()).filter(|network| network.as_str() != PODS),
                fixed: Vec::new(),
                pools: Vec::new(),
                ..wishes
            },
            None => wishes,
        };
        let device = if wishes.veth.unwrap_or_default() { PodDevice::Veth } else { PodDevice::Tap };
        let Some(name) = &wishes.network else {
            let addresses = self.allocate(request, &cluster, &wishes, pod.as_ref())?;
            let network = request.further.is_some().then(|| routed_network(&cluster, None, true));
            return Ok(Place::routed(network, addresses, device));
        };
        // It may be on its way here, as its pod was.
        let network = cluster.networks.get(name).ok_or_else(|| {
            CniFailure::NotReady(format!("the pod wants to be in network {name}, which does not exist"))
        })?;
        if !network.is_for(&self.shared.node) {
            let message = format!("the pod wants to be in network {name}, which does not exist on this node");
            return Err(CniFailure::Refused(message));
        }
        self.mtu_of(name)?;
        let is_further = request.further.is_some();
        let has_pools = cluster.pools_of(Some(name)).next().is_some();
        if network.routed().is_some() {
            if !has_pools {
                return Err(CniFailure::NoAddress(format!("no IpPool names network {name}")));
            }
            let addresses = self.allocate(request, &cluster, &wishes, pod.as_ref())?;
            let network = routed_network(&cluster, Some(name), is_further);
            return Ok(Place::routed(Some(network), addresses, device));
        }
        let asks_itself = !has_pools && wishes.fixed.is_empty() && request.addresses.is_empty();
        // It asks for its addresses itself, on the wire.
        let addresses = if asks_itself { Vec::new() } else { self.allocate(request, &cluster, &wishes, pod.as_ref())? };
        Place::in_subnets(network, is_further, &addresses, device).inspect_err(|_| {
            self.addresses.release(holder(&request.key));
        })
    }

    /// Of a prefix that the cluster assigned to this node no block says who has an address: pods that another program
    /// plugged in have theirs in their status, the host has its own. Blocks need none of it.
    fn taken_by_others(&self, cluster: &Cluster, asking: Option<&PodName>) -> BTreeSet<IpAddr> {
        if self.source != AddressSource::PodCidr {
            return BTreeSet::new();
        }
        let standing = self.shared.standing();
        let host = standing.local.as_ref().and_then(|local| local.host.as_ref());
        let others = cluster.pods.iter().filter(|(name, pod)| {
            pod.node.as_ref() == Some(&self.shared.node) && pod.has_addresses() && Some(*name) != asking
        });
        let of_pods = others.flat_map(|(_, pod)| pod.addresses.iter().copied());
        of_pods.chain(host.into_iter().flat_map(|host| host.addresses.iter().copied())).collect()
    }

    fn allocate(
        &self,
        request: &AddRequest,
        cluster: &Cluster,
        wishes: &AddressWishes,
        pod: Option<&PodName>,
    ) -> Result<Vec<IpAddr>, CniFailure> {
        // The runtime's own wish beats the pod's annotation.
        let fixed = if request.addresses.is_empty() { &wishes.fixed } else { &request.addresses };
        let wanted = AddressRequest {
            holder: &holder(&request.key),
            pod,
            stateful_set: wishes.stateful_set.as_deref(),
            fixed,
            pools: &wishes.pools,
            taken: &self.taken_by_others(cluster, pod),
        };
        let allocated = self
            .allocator(|addresses| addresses.allocate(wishes.network.as_ref(), self.store.as_ref(), cluster, &wanted));
        match &allocated {
            Ok(given) => self.shared.gave(given, cluster),
            Err(error @ IpamError::Exhausted { pools, .. }) => self.shared.exhausted(pools, &error.to_string()),
            Err(_) => {}
        }
        allocated.map_err(|error| match error {
            error if error.is_of_the_request() => CniFailure::Refused(error.to_string()),
            error if error.is_passing() => CniFailure::NotReady(told_with_reason(&error)),
            IpamError::NoPool | IpamError::Exhausted { .. } | IpamError::InUse { .. } | IpamError::NotLent { .. } => {
                CniFailure::NoAddress(error.to_string())
            }
            error => system("allocate addresses", error),
        })
    }
}

impl PodNetwork for Pods {
    fn add(&self, request: &AddRequest) -> Result<AddResult, CniFailure> {
        let place = self.place(request)?;
        let plugged = self.reserve_port(request, &place).and_then(|port| {
            let plugged = self.plug(request, port, &place).map(|(mac, mtu)| (port, mac, mtu));
            self.attached(|attached| attached.reserved.remove(&port));
            plugged
        });
        match plugged {
            Ok((port, mac, mtu_bytes)) => {
                let host_interface = (place.device == PodDevice::Veth).then(|| far_end(&request.key));
                Ok(AddResult { host_interface, ..place.result(port, mac, mtu_bytes) })
            }
            Err(failure) => {
                self.addresses.release(holder(&request.key));
                Err(failure)
            }
        }
    }

    fn further(&self, request: &AddRequest) -> Result<Vec<FurtherInterface>, CniFailure> {
        let pod = request.pod.as_ref().and_then(|pod| PodName::new(&pod.namespace, &pod.name).ok());
        let Some(pod) = pod else { return Ok(Vec::new()) };
        let cluster = self.known_cluster()?;
        let wishes = self.wishes(&cluster, &pod, uid(request))?;
        let first = wishes.network.as_ref().map_or(PODS, NetworkName::as_str);
        match wishes.further.iter().find(|further| further.network.as_str() == first) {
            Some(_) => Err(CniFailure::Refused(format!("the pod wants two interfaces in network {first}"))),
            None => Ok(wishes.further),
        }
    }

    fn delete(&self, request: &DeleteRequest) -> Result<(), CniFailure> {
        if let Some(port) = request.record.as_ref().and_then(|record| record.port.as_ref()) {
            // Nobody else gets the number before all of it is gone, and the record too.
            self.attached(|attached| {
                attached.reserved.entry(port.index).or_default();
            });
            self.unplug(port.index, port.device, request.namespace.as_ref(), &request.key)?;
        } else if request.record.is_some() {
            // An ADD that was cut short may have left the interface behind.
            self.devices.remove(None, (&request.key, request.namespace.as_ref()), None)?;
        }
        Ok(())
    }

    fn check(&self, attachment: &Attachment) -> Result<(), CniFailure> {
        let Some(port) = &attachment.port else { return Ok(()) };
        let mut wrong =
            attachment_check::pod_side(attachment, port).map_err(|error| system("look at the pod", error))?;
        let here = self.attached(|attached| attached.pods.get(&port.index).cloned());
        let tables = self.shared.switch.with(|switch| switch.tables());
        let queues = self.shared.switch.with(|switch| switch.queues());
        let has_queue = queues.iter().flatten().any(|queue| queue.port == port.index);
        wrong.extend(attachment_check::switch_side(here.as_ref(), port, &tables, has_queue));
        if let (Some(here), Some(plan)) = (&here, self.shared.standing().plan) {
            wrong.extend(attachment_check::host_ports(here, &plan.services));
        }
        if wrong.is_empty() { Ok(()) } else { Err(CniFailure::Broken(wrong.join("; "))) }
    }

    fn status(&self) -> Result<(), CniFailure> {
        let standing = self.shared.standing();
        let refused = |reason: &str| Err(CniFailure::NotAvailable(reason.to_owned()));
        let Some(cluster) = &standing.cluster else { return refused("the objects are not known yet") };
        if let Some(reason) = &standing.refused {
            return refused(reason);
        }
        let wanted = plan::wanted_uplinks(cluster, &self.shared.node).next();
        let has_uplinks = standing.local.as_ref().is_some_and(|local| !local.uplinks.is_empty());
        if let Some(uplink) = wanted.filter(|_| standing.uplinks_known && !has_uplinks) {
            let reason = format!("no uplink of this node is in use, not {} either", uplink.interface);
            return Err(CniFailure::CutOff(reason));
        }
        if self.attached(|attached| attached.pods.len() + attached.reserved.len()) >= usize::from(POD_PORTS) {
            return refused("all ports for pods are in use");
        }
        let own = cluster.nodes.get(&self.shared.node);
        match self.source {
            AddressSource::Blocks if cluster.pools.is_empty() => refused("no IpPool exists"),
            AddressSource::PodCidr if own.is_none_or(|node| node.pod_cidrs.is_empty()) => {
                refused("the node's object has no podCIDR")
            }
            AddressSource::Blocks | AddressSource::PodCidr => Ok(()),
        }
    }

    fn release(&self, key: &AttachmentKey, port: Option<PortIndex>) {
        self.addresses.release(holder(key));
        self.shared.report(Source::Attachment(key.clone()), None::<String>);
        if let Some(port) = port {
            self.attached(|attached| attached.reserved.remove(&port));
        }
    }

    fn holders(&self) -> Vec<AttachmentKey> {
        let key = |holder: &String| {
            let (container, interface) = holder.rsplit_once('/')?;
            Some(AttachmentKey { container_id: container.to_owned(), interface: interface.to_owned() })
        };
        self.allocator(|addresses| addresses.holders().iter().filter_map(key).collect())
    }
}

/// Who an address belongs to, as the allocator knows it.
pub(super) fn holder(key: &AttachmentKey) -> String {
    format!("{}/{}", key.container_id, key.interface)
}

fn handle(namespace: &NetworkNamespace) -> NamespaceHandle {
    NamespaceHandle::recorded(namespace.path.clone(), namespace.inode)
}

/// The pod's uid, where the runtime says it.
fn uid(request: &AddRequest) -> Option<&str> {
    request.pod.as_ref()?.uid.as_deref()
}

/// An error with what it came of.
fn told_with_reason(error: &IpamError) -> String {
    let reason = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{reason}")
}

fn system(attempt: &str, error: impl std::error::Error + Send + Sync + 'static) -> CniFailure {
    CniFailure::system(attempt, std::io::Error::other(error))
}

/// A locally administered MAC address that is the same each time for one attachment.
fn station_mac(shared: &Shared, key: &AttachmentKey) -> Mac {
    let hash = hash_64(&format!("{}/{}", shared.node.as_str(), holder(key))).to_be_bytes();
    Mac([0x02, hash[0], hash[1], hash[2], hash[3], hash[4]])
}

/// A runtime without Kubernetes names no pod; its container stands in, so that the port has a name.
fn pod_name(key: &AttachmentKey, pod_reference: Option<&PodReference>) -> Result<PodName, CniFailure> {
    let stand_in = || {
        let letters = key.container_id.to_ascii_lowercase();
        let name: String = letters.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
        format!("container-{name}")
    };
    let (namespace, name) = match pod_reference {
        Some(pod) => (pod.namespace.clone(), pod.name.clone()),
        None => ("default".to_owned(), stand_in()),
    };
    PodName::new(&namespace, &name).map_err(|error| CniFailure::invalid("CNI_ARGS", error.to_string()))
}

/// The network that an interface is in; `None` for the pods' segment. Names were checked when they were recorded.
pub(super) fn network_name(network: Option<&AttachedNetwork>) -> Option<NetworkName> {
    let named = network.filter(|network| network.name != PODS);
    named.and_then(|network| NetworkName::new(&network.name).ok())
}

/// A routed network, or the pods' segment, as an interface is in it. A further interface leads to the network's own addresses,
/// and those of networks it is connected with.
fn routed_network(cluster: &Cluster, network: Option<&NetworkName>, is_further: bool) -> AttachedNetwork {
    let connected = network.map(|network| plan::connected_with(cluster, network)).unwrap_or_default();
    let networks = std::iter::once(network).chain(connected.iter().map(Option::as_ref));
    let pools = || networks.flat_map(|network| cluster.pools_of(network)).map(|pool| pool.cidr().net()).collect();
    AttachedNetwork {
        name: network.map_or(PODS, NetworkName::as_str).to_owned(),
        gateways: Vec::new(),
        routed: true,
        destinations: is_further.then(pools),
    }
}

fn attached_pod(
    (key, pod_reference, runtime): (&AttachmentKey, Option<&PodReference>, &RuntimeConfig),
    mac: Mac,
    place: &Place,
    mtu: u32,
) -> Result<AttachedPod, CniFailure> {
    let interface =
        InterfaceName::new(&key.interface).map_err(|error| CniFailure::invalid("CNI_IFNAME", error.to_string()))?;
    Ok(AttachedPod {
        pod: pod_name(key, pod_reference)?,
        uid: pod_reference.and_then(|pod| pod.uid.as_deref()).map(Arc::from),
        container_id: key.container_id.clone(),
        interface,
        mac,
        addresses: place.addresses.iter().map(IpNet::addr).collect(),
        mtu,
        network: network_name(place.network.as_ref()),
        further: place.network.as_ref().is_some_and(AttachedNetwork::is_further),
        host_ports: host_ports::wanted(runtime),
        bandwidth: bandwidth(&runtime.bandwidth),
    })
}

/// What goes into the pod leaves by its port.
fn bandwidth(asked: &protocol::Bandwidth) -> Bandwidth {
    let limit =
        |limit: Option<protocol::RateLimit>| limit.map(|limit| rate_limit(limit.bits_per_second, limit.burst_bits));
    Bandwidth { from_port: limit(asked.egress), to_port: limit(asked.ingress) }
}
