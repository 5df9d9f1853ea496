//! Pods in and out: what a CNI call does to the node.
//!
//! ADD: addresses, then the TAP in the pod's namespace, then its queues on the workers, then tables; the answer goes
//! out when every worker forwards for the pod. What was done is undone in reverse order if a step fails. DEL is the
//! same backwards and takes what is missing for done. Runs on API threads, one call for one container at a time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ipnet::IpNet;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::port::PortQueue;
use millrace_engine::port::namespace::NamespaceHandle;
use millrace_engine::port::tap::{TapDevice, TapError, TapQueue};

use super::IN_FORCE;
use super::attachment_check;
use super::shared::Shared;
use crate::cluster::{AddressWishes, Cluster, InterfaceName, PodName};
use crate::cni_server::{
    AddRequest, AddResult, Attachment, AttachmentKey, Attachments, CniFailure, DeleteRequest, NetworkNamespace,
    PodAddress, PodNetwork, PodReference, PodRoute,
};
use crate::ipam::{AddressAllocator, AddressRequest, AddressSource, IpamError};
use crate::kernel::{GATEWAY_IPV4, GATEWAY_IPV6, PodInterface, configure_pod_interface};
use crate::observe::{self, POD, Record};
use crate::plan::{AttachedPod, GATEWAY_MAC, NodePlan, POD_SEGMENT};
use crate::reconcile::Input;
use crate::stable_hash::hash_64;
use crate::store::{ObjectKey, ObjectStore};

/// Port numbers below are for the host's own port, which is 0, and for uplinks.
pub(super) const FIRST_POD_PORT: u16 = 16;
/// Port numbers from here on are for bridges.
pub(super) const FIRST_BRIDGE_PORT: u16 = 768;

/// The pods of this node.
pub(super) struct Pods {
    shared: Arc<Shared>,
    store: Arc<dyn ObjectStore>,
    addresses: Mutex<AddressAllocator>,
    attached: Mutex<AttachedPods>,
}

#[derive(Default)]
struct AttachedPods {
    pods: BTreeMap<PortIndex, AttachedPod>,
    /// Port numbers taken by calls that are not done yet.
    reserved: Vec<PortIndex>,
    /// Where the search for a free number goes on, so that a number rests before it is used again.
    next: u16,
}

impl Pods {
    pub(super) fn new(shared: Arc<Shared>, store: Arc<dyn ObjectStore>, source: AddressSource) -> Self {
        let addresses = Mutex::new(AddressAllocator::with_source(shared.node.clone(), source));
        Self { shared, store, addresses, attached: Mutex::default() }
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
            let holder = holder(&record.key);
            for address in &port.addresses {
                if let Err(error) = self.allocator(|addresses| addresses.restore(&holder, address.addr())) {
                    self.shared.report(error.to_string());
                }
            }
            if record.namespace.is_there()
                && let Err(failure) = self.reattach(&record)
            {
                self.shared.report(format!("pod of container {} is cut off: {failure}", record.key.container_id));
            }
        }
        self.tell();
    }

    fn reattach(&self, record: &Attachment) -> Result<(), CniFailure> {
        let Some(port) = &record.port else { return Ok(()) };
        let namespace = handle(&record.namespace);
        let device = TapDevice::attach_in_namespace(&namespace, &record.key.interface, self.workers())
            .map_err(|error| system("take up the pod's interface", error))?;
        let addresses: Vec<IpAddr> = port.addresses.iter().map(IpNet::addr).collect();
        let interface = PodInterface::new(addresses.clone(), port.mac, GATEWAY_MAC, port.mtu_bytes);
        self.attach(device, port.index)?;
        configure_pod_interface(&namespace, &record.key.interface, &interface)
            .map_err(|error| system("configure the pod's interface", error))?;
        let pod = attached_pod(&record.key, record.pod.as_ref(), port.mac, addresses, port.mtu_bytes)?;
        self.attached(|attached| attached.pods.insert(port.index, pod));
        Ok(())
    }

    fn workers(&self) -> usize {
        self.shared.switch.with(|switch| switch.options().workers)
    }

    pub(super) fn allocator<T>(&self, act: impl FnOnce(&mut AddressAllocator) -> T) -> T {
        act(&mut self.addresses.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn attached<T>(&self, act: impl FnOnce(&mut AttachedPods) -> T) -> T {
        act(&mut self.attached.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells the reconcile thread what is plugged in.
    fn tell(&self) {
        let pods = self.attached(|attached| attached.pods.clone());
        // Nobody listens only while the agent stops.
        let _ = self.shared.inputs.send(Input::Pods(pods));
    }

    fn attach(&self, device: TapDevice, port: PortIndex) -> Result<(), CniFailure> {
        let boxed = |queue: TapQueue| -> Option<Box<dyn PortQueue>> { Some(Box::new(queue)) };
        let queues = device.into_queues(port).into_iter().map(boxed).collect();
        let attached = self.shared.switch.with(|switch| switch.attach(port, queues));
        attached.map_err(|error| CniFailure::NotReady(error.to_string()))
    }

    fn plug(&self, request: &AddRequest, port: PortIndex, addresses: &[IpAddr]) -> Result<(Mac, u32), CniFailure> {
        let namespace = handle(&request.namespace);
        let mtu = self.shared.standing().plan.map_or(crate::plan::MTU_WITHOUT_UPLINK, |plan| plan.pod_mtu);
        let mac = request.mac.unwrap_or_else(|| station_mac(&self.shared, &request.key));
        let name = &request.key.interface;
        let device = TapDevice::create_in_namespace(&namespace, name, self.workers()).map_err(|error| match error {
            TapError::Exists { .. } => {
                CniFailure::InterfaceExists { interface: name.clone(), namespace: request.namespace.path.clone() }
            }
            error => system("make the pod's interface", error),
        })?;
        let plugged = self.plug_device(request, port, addresses, mac, mtu, device);
        if plugged.is_err() {
            self.unplug(port, Some(&request.namespace), name);
        }
        plugged.map(|()| (mac, mtu))
    }

    fn plug_device(
        &self,
        request: &AddRequest,
        port: PortIndex,
        addresses: &[IpAddr],
        mac: Mac,
        mtu: u32,
        device: TapDevice,
    ) -> Result<(), CniFailure> {
        self.attach(device, port)?;
        let interface = PodInterface::new(addresses.to_vec(), mac, GATEWAY_MAC, mtu);
        configure_pod_interface(&handle(&request.namespace), &request.key.interface, &interface)
            .map_err(|error| system("configure the pod's interface", error))?;
        let pod = attached_pod(&request.key, request.pod.as_ref(), mac, addresses.to_vec(), mtu)?;
        self.attached(|attached| attached.pods.insert(port, pod));
        self.tell();
        if self.shared.wait_for_port(port, true, IN_FORCE) {
            return Ok(());
        }
        let refused = self.shared.standing().refused.unwrap_or_else(|| "tables were not in force in time".into());
        Err(CniFailure::NotReady(refused))
    }

    /// Takes the port out of tables, workers and the pod, in this order. What is missing is done.
    fn unplug(&self, port: PortIndex, namespace: Option<&NetworkNamespace>, interface: &str) {
        if self.attached(|attached| attached.pods.remove(&port)).is_some() {
            self.tell();
            self.shared.wait_for_port(port, false, IN_FORCE);
        }
        self.shared.switch.with(|switch| switch.detach(port));
        if let Some(namespace) = namespace
            && let Err(error) = TapDevice::remove_in_namespace(&handle(namespace), interface)
        {
            self.shared.report(format!("interface {interface} of port {} stays: {error}", port.0));
        }
    }

    fn reserve_port(&self) -> Option<PortIndex> {
        self.attached(|attached| {
            let range = FIRST_BRIDGE_PORT - FIRST_POD_PORT;
            let candidates = (0..range).map(|step| FIRST_POD_PORT + (attached.next + step) % range);
            let free = |port: &PortIndex| !attached.pods.contains_key(port) && !attached.reserved.contains(port);
            let port = candidates.map(PortIndex).find(free)?;
            attached.next = (port.0 - FIRST_POD_PORT + 1) % range;
            attached.reserved.push(port);
            Some(port)
        })
    }

    /// Gives back what is no longer needed; what fails is tried again the next time.
    pub(super) fn maintain_addresses(&self, cluster: &Cluster, now: Instant) {
        let segment = |plan: &NodePlan| plan.segments.get(&POD_SEGMENT).map(|segment| segment.router_addresses.clone());
        let own = self.shared.standing().plan.as_deref().and_then(segment).unwrap_or_default();
        let done = self.allocator(|addresses| addresses.maintain(self.store.as_ref(), cluster, &own, now));
        for error in done.errors {
            self.shared.report(format!("addresses could not be given back: {error}"));
        }
    }

    /// What the pod asks of address management, by its object as it is now: the watch may not have told it yet.
    fn wishes(&self, cluster: &Cluster, pod: &PodName) -> Result<AddressWishes, CniFailure> {
        let key = ObjectKey { kind: POD, namespace: Some(pod.namespace().to_string()), name: pod.name().to_owned() };
        let object = self.store.get(&key).map_err(|error| system("read the pod's object", error))?;
        let record = object.map(|object| observe::read(&object)).transpose();
        let record =
            record.map_err(|error| CniFailure::Refused(format!("{key}: {}: {}", error.path, error.message)))?;
        let mut wishes = match record.flatten() {
            Some(Record::Pod(pod)) => pod.address_wishes,
            _ => AddressWishes::default(),
        };
        if wishes.pools.is_empty()
            && let Some(namespace) = cluster.namespaces.get(pod.namespace())
        {
            wishes.pools.clone_from(&namespace.pools);
        }
        Ok(wishes)
    }

    fn allocate(&self, request: &AddRequest) -> Result<Vec<IpAddr>, CniFailure> {
        let ready = self.shared.wait_until(IN_FORCE, |standing| standing.cluster.is_some() && standing.uplinks_known);
        let Some(cluster) = self.shared.standing().cluster.filter(|_| ready) else {
            return Err(CniFailure::NotReady("the objects are not known yet".into()));
        };
        let pod = request.pod.as_ref().and_then(|pod| PodName::new(&pod.namespace, &pod.name).ok());
        let wishes = pod.as_ref().map(|pod| self.wishes(&cluster, pod)).transpose()?.unwrap_or_default();
        // The runtime's own wish beats the pod's annotation.
        let fixed = if request.addresses.is_empty() { &wishes.fixed } else { &request.addresses };
        let wanted = AddressRequest {
            holder: &holder(&request.key),
            pod: pod.as_ref(),
            stateful_set: wishes.stateful_set.as_deref(),
            fixed,
            pools: &wishes.pools,
        };
        let allocated = self.allocator(|addresses| addresses.allocate(self.store.as_ref(), &cluster, &wanted));
        allocated.map_err(|error| match error {
            error if error.is_of_the_request() => CniFailure::Refused(error.to_string()),
            IpamError::NoPool | IpamError::Exhausted { .. } | IpamError::InUse { .. } | IpamError::NotLent { .. } => {
                CniFailure::NoAddress(error.to_string())
            }
            error => system("allocate addresses", error),
        })
    }
}

impl PodNetwork for Pods {
    fn add(&self, request: &AddRequest) -> Result<AddResult, CniFailure> {
        let addresses = self.allocate(request)?;
        let plugged = match self.reserve_port() {
            None => Err(CniFailure::NotReady(format!(
                "all {} ports for pods are in use",
                FIRST_BRIDGE_PORT - FIRST_POD_PORT
            ))),
            Some(port) => {
                let plugged = self.plug(request, port, &addresses).map(|(mac, mtu)| (port, mac, mtu));
                self.attached(|attached| attached.reserved.retain(|other| *other != port));
                plugged
            }
        };
        match plugged {
            Ok((port, mac, mtu_bytes)) => Ok(result(port, mac, mtu_bytes, &addresses)),
            Err(failure) => {
                self.allocator(|allocator| allocator.release(&holder(&request.key)));
                Err(failure)
            }
        }
    }

    fn delete(&self, request: &DeleteRequest) -> Result<(), CniFailure> {
        if let Some(port) = request.record.as_ref().and_then(|record| record.port.as_ref()) {
            self.unplug(port.index, request.namespace.as_ref(), &request.key.interface);
        } else if let Some(namespace) = request.record.as_ref().and(request.namespace.as_ref()) {
            // An ADD that was cut short may have left the interface behind.
            TapDevice::remove_in_namespace(&handle(namespace), &request.key.interface)
                .map_err(|error| system("remove the pod's interface", error))?;
        }
        self.allocator(|allocator| allocator.release(&holder(&request.key)));
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
        if wrong.is_empty() { Ok(()) } else { Err(CniFailure::Broken(wrong.join("; "))) }
    }

    fn status(&self) -> Result<(), CniFailure> {
        let standing = self.shared.standing();
        let refused = |reason: &str| Err(CniFailure::NotAvailable(reason.to_owned()));
        let Some(cluster) = &standing.cluster else { return refused("the objects are not known yet") };
        if let Some(reason) = &standing.refused {
            return refused(reason);
        }
        let source = self.allocator(|addresses| addresses.source());
        let own = cluster.nodes.get(&self.shared.node);
        match source {
            AddressSource::Blocks if cluster.pools.is_empty() => refused("no IpPool exists"),
            AddressSource::PodCidr if own.is_none_or(|node| node.pod_cidrs.is_empty()) => {
                refused("the node's object has no podCIDR")
            }
            AddressSource::Blocks | AddressSource::PodCidr => Ok(()),
        }
    }

    fn release_unrecorded(&self, recorded: &[AttachmentKey]) {
        let holders: Vec<String> = recorded.iter().map(holder).collect();
        self.allocator(|addresses| {
            let held: Vec<String> = addresses.held().values().cloned().collect();
            held.iter().filter(|held| !holders.contains(held)).for_each(|holder| drop(addresses.release(holder)));
        });
    }
}

/// Who an address belongs to, as the allocator knows it.
pub(super) fn holder(key: &AttachmentKey) -> String {
    format!("{}/{}", key.container_id, key.interface)
}

fn handle(namespace: &NetworkNamespace) -> NamespaceHandle {
    NamespaceHandle::recorded(namespace.path.clone(), namespace.inode)
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
fn attached_pod(
    key: &AttachmentKey,
    pod: Option<&PodReference>,
    mac: Mac,
    addresses: Vec<IpAddr>,
    mtu: u32,
) -> Result<AttachedPod, CniFailure> {
    let stand_in = || {
        let letters = key.container_id.to_ascii_lowercase();
        let name: String = letters.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
        format!("container-{name}")
    };
    let (namespace, name) = match pod {
        Some(pod) => (pod.namespace.clone(), pod.name.clone()),
        None => ("default".to_owned(), stand_in()),
    };
    let pod = PodName::new(&namespace, &name).map_err(|error| CniFailure::invalid("CNI_ARGS", error.to_string()))?;
    let interface =
        InterfaceName::new(&key.interface).map_err(|error| CniFailure::invalid("CNI_IFNAME", error.to_string()))?;
    Ok(AttachedPod { pod, container_id: key.container_id.clone(), interface, mac, addresses, mtu })
}

fn result(port: PortIndex, mac: Mac, mtu_bytes: u32, addresses: &[IpAddr]) -> AddResult {
    let gateway =
        |address: &IpAddr| -> IpAddr { if address.is_ipv4() { GATEWAY_IPV4.into() } else { GATEWAY_IPV6.into() } };
    let everywhere = |address: &IpAddr| -> IpNet {
        if address.is_ipv4() { IpNet::V4(ipnet::Ipv4Net::default()) } else { IpNet::V6(ipnet::Ipv6Net::default()) }
    };
    AddResult {
        port,
        mac,
        mtu_bytes,
        addresses: addresses
            .iter()
            .map(|address| PodAddress { address: IpNet::from(*address), gateway: Some(gateway(address)) })
            .collect(),
        routes: addresses
            .iter()
            .map(|address| PodRoute { destination: everywhere(address), gateway: Some(gateway(address)) })
            .collect(),
    }
}
