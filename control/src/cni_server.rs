//! Serves the CNI verbs: decodes and checks requests, keeps the record of attachments, orders calls.
//!
//! The work on the network itself is behind [`PodNetwork`]. This file decides what a verb means when the same
//! container is asked for again:
//!
//! | ADD for | is |
//! |---|---|
//! | an attachment that is recorded whole, same network namespace | refused with code 4: the interface exists |
//! | one whose ADD was cut short (the agent died in it) | cleaned up, then made anew |
//! | one whose namespace is another by now (a DEL never reached us) | cleaned up, then made anew |
//!
//! DEL succeeds however often it comes and whatever is missing by then. CHECK compares what ADD answered with the
//! record, as far as later plugins may not change it, and the record with the pod and the switch. GC takes away what the
//! runtime does not know, of its own network only, and goes on after an error. A DEL that found no agent has left a file
//! ([`millrace_cni::pending`]), which is taken up at start, from time to time, and before an ADD for the same attachment.
//! Interfaces that a pod has beside the one the runtime asks for come and go with it, and are records of their own.
//! A record is written before anything is made, and completed before ADD is answered, so that a crash at any moment leaves a trace to clean up by.
//!
//! Calls block (netlink, fsync) and run on blocking threads; calls for one container run one after another in
//! the order they came, calls for different containers in parallel.

pub mod attachments;
mod container_order;
mod pod_network;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use millrace_cni::environment::{check_container_id, check_interface_name};
use millrace_cni::{capabilities, pending, protocol};

pub use attachments::{
    AttachedNetwork, AttachedPort, Attachment, AttachmentKey, Attachments, NetworkNamespace, PodDevice, PodReference,
    RuntimeConfig,
};
pub use pod_network::{AddRequest, AddResult, CniFailure, DeleteRequest, PodAddress, PodNetwork, PodRoute};

use crate::cluster::{FurtherInterface, StationMac};
use container_order::ContainerOrder;

/// The CNI verbs of this node.
pub struct CniServer {
    network: Arc<dyn PodNetwork>,
    attachments: Arc<Attachments>,
    order: ContainerOrder,
    /// Where DEL leaves requests while no agent answers.
    state_directory: Option<PathBuf>,
}

impl CniServer {
    /// A server that works on `network` and records in `attachments`.
    #[must_use]
    pub fn new(network: Arc<dyn PodNetwork>, attachments: Arc<Attachments>) -> CniServer {
        CniServer { network, attachments, order: ContainerOrder::default(), state_directory: None }
    }

    /// The same, taking up what DEL has left in this state directory.
    #[must_use]
    pub fn with_state_directory(self, state_directory: PathBuf) -> CniServer {
        CniServer { state_directory: Some(state_directory), ..self }
    }

    /// Attaches a pod. Returns when packets to and from it are forwarded.
    ///
    /// # Errors
    /// See [`CniFailure`]; after an error nothing of the attachment is left, or a record that the next call cleans up.
    pub fn add(&self, request: protocol::AddRequest) -> Result<protocol::AddAnswer, CniFailure> {
        let request = decode_add(request)?;
        let _turn = self.order.enter(&request.key.container_id);
        if self.waits(&request.key) {
            self.delete_in_turn(request.key.clone(), String::new(), None)?;
        }
        if let Some(former) = self.attachments.get(&request.key) {
            // The kernel gives a new namespace the number of one that is gone, so its place counts too.
            let is_same = former.namespace.inode == request.namespace.inode && former.namespace.is_there();
            if former.port.is_some() && is_same {
                return Err(CniFailure::AlreadyAttached(request.key));
            }
            self.remove_former(former)?;
        }
        // What an ADD that was cut short left of further interfaces.
        self.remove_further(&request.key)?;
        let wanted = self.network.further(&request)?;
        let answer = self.add_one(&request, None)?.into_answer();
        self.add_further(&request, wanted, answer).inspect_err(|_| {
            // All interfaces or none. If this fails, the record says what is left.
            let _ = self.attachments.get(&request.key).map(|made| self.remove_former(made));
        })
    }

    /// Makes one interface, of those beside the first if there is one already.
    fn add_one(&self, request: &AddRequest, first: Option<&AttachmentKey>) -> Result<AddResult, CniFailure> {
        let further_to = first.map(|first| first.interface.clone());
        self.record(unmade(request, further_to.clone()))?;
        let result = self.network.add(request).inspect_err(|_| {
            // If this fails, the record stays incomplete, which the next ADD or DEL cleans up.
            let _ = self.attachments.remove(&request.key);
        })?;
        self.complete(request, further_to, &result)?;
        Ok(result)
    }

    /// Makes the interfaces that the pod is to have beside the one that was asked for, and tells of them.
    fn add_further(
        &self,
        first: &AddRequest,
        wanted: Vec<FurtherInterface>,
        mut answer: protocol::AddAnswer,
    ) -> Result<protocol::AddAnswer, CniFailure> {
        for FurtherInterface { interface, network } in wanted {
            let key = AttachmentKey { interface: interface.to_string(), ..first.key.clone() };
            if key == first.key || self.attachments.get(&key).is_some() {
                let message = format!("the pod wants two interfaces {interface}: millrace.dev/networks");
                return Err(CniFailure::Refused(message));
            }
            let request = AddRequest {
                key,
                addresses: Vec::new(),
                mac: None,
                runtime: RuntimeConfig::default(),
                further: Some(network),
                ..first.clone()
            };
            let made = self.add_one(&request, Some(&first.key))?.into_answer();
            answer.further.push(protocol::AnswerInterface {
                name: interface.to_string(),
                mac: made.mac,
                mtu_bytes: made.mtu_bytes,
                addresses: made.addresses,
                routes: made.routes,
                host_interface: made.host_interface,
            });
        }
        Ok(answer)
    }

    /// The interfaces beside this first one.
    fn further_of(&self, first: &AttachmentKey) -> Vec<Attachment> {
        let mut records = self.attachments.all();
        records.retain(|record| record.is_further_to(first));
        records
    }

    fn remove_further(&self, first: &AttachmentKey) -> Result<(), CniFailure> {
        self.further_of(first).into_iter().try_for_each(|record| self.remove_former(record))
    }

    /// Detaches a pod; succeeds if it is not attached.
    ///
    /// # Errors
    /// Only when something that exists could not be taken away; the record stays and DEL may come again.
    pub fn delete(&self, request: protocol::DeleteRequest) -> Result<(), CniFailure> {
        let key = decode_key(request.container_id, request.interface)?;
        let _turn = self.order.enter(&key.container_id);
        self.delete_in_turn(key, request.network, request.network_namespace)
    }

    /// A DEL that waits for the same attachment is done with it.
    fn delete_in_turn(
        &self,
        key: AttachmentKey,
        network: String,
        network_namespace: Option<String>,
    ) -> Result<(), CniFailure> {
        let record = self.attachments.get(&key);
        let namespace = match &record {
            Some(record) => Some(record.namespace.clone()).filter(NetworkNamespace::is_there),
            None => network_namespace.and_then(|path| open_namespace(&path).ok()),
        };
        let waiting = self.pending_file(&key);
        self.detach(DeleteRequest { key, network, namespace, record })?;
        match waiting.map(std::fs::remove_file) {
            Some(Err(source)) if source.kind() != io::ErrorKind::NotFound => {
                Err(CniFailure::system("forget a DEL that was left", source))
            }
            _ => Ok(()),
        }
    }

    /// Interfaces beside the first go before it. The record loses its port first: if the agent dies in the middle, the next start finds an attachment that is
    /// not whole and takes the rest of it away. If something stays, the record is whole again. Addresses are given to
    /// others only when no record has them any more: the next start takes them from the record.
    fn detach(&self, request: DeleteRequest) -> Result<(), CniFailure> {
        self.remove_further(&request.key)?;
        if let Some(whole) = request.record.as_ref().filter(|record| record.port.is_some()) {
            // Where nothing can be written, a pod must still be removable.
            let _ = self.attachments.put(Attachment { port: None, ..whole.clone() });
        }
        self.network.delete(&request).inspect_err(|_| {
            // If this fails too, the record stays without a port, which the next DEL or start cleans up.
            let _ = request.record.clone().map(|whole| self.attachments.put(whole));
        })?;
        self.attachments
            .remove(&request.key)
            .map_err(|source| CniFailure::system("record the detached pod", source))?;
        self.network.release(&request.key, request.record.and_then(|record| record.port).map(|port| port.index));
        Ok(())
    }

    /// Says whether an attachment is as ADD left it.
    ///
    /// # Errors
    /// [`CniFailure::Unknown`] if it is not recorded, [`CniFailure::Broken`] with what is wrong.
    pub fn check(&self, request: protocol::CheckRequest) -> Result<(), CniFailure> {
        let key = decode_key(request.container_id, request.interface)?;
        let _turn = self.order.enter(&key.container_id);
        let record = self.attachments.get(&key).ok_or(CniFailure::Unknown(key))?;
        let Some(port) = &record.port else {
            return Err(CniFailure::Broken("its ADD was cut short".to_owned()));
        };
        let namespace = NetworkNamespace::at(Path::new(&request.network_namespace));
        if namespace.map_or(true, |namespace| namespace.inode != record.namespace.inode) {
            let message = format!("{} is not the network namespace it was made in", request.network_namespace);
            return Err(CniFailure::Broken(message));
        }
        let mut wrong = Vec::new();
        if let Some(mac) = request.mac.filter(|mac| mac.parse() != Ok(port.mac)) {
            wrong.push(format!("prevResult has the MAC address {mac}, ADD gave {}", port.mac));
        }
        // A later plugin of the chain may have added addresses, and have lowered the MTU.
        let missing = port.addresses.iter().filter(|address| !request.addresses.contains(&address.addr()));
        wrong.extend(missing.map(|address| format!("prevResult lacks the address {address}, which ADD gave")));
        let further = self.further_of(&record.key);
        wrong.extend(request.further.iter().flat_map(|told| lacking_interfaces(told, &further)));
        let ports = further.iter().filter_map(|record| record.port.as_ref()).chain([port]);
        wrong.extend(request.routes.iter().flat_map(|told| lacking_routes(told, ports.clone())));
        let mtu_bytes = request.mtu_bytes.map_or(port.mtu_bytes, |mtu| mtu.min(port.mtu_bytes));
        let expected = Attachment { port: Some(AttachedPort { mtu_bytes, ..port.clone() }), ..record.clone() };
        if !wrong.is_empty() {
            return Err(CniFailure::Broken(wrong.join("; ")));
        }
        self.network.check(&expected)?;
        further.iter().try_for_each(|further| match further.port {
            Some(_) => self.network.check(further),
            None => Err(CniFailure::Broken(format!("interface {} was not made whole", further.key.interface))),
        })
    }

    /// Takes away all attachments of a network that the runtime does not know, and releases addresses that belong to
    /// no attachment. What was attached after the call came is left alone.
    ///
    /// # Errors
    /// When something could not be taken away, after the rest was.
    pub fn collect(&self, request: protocol::CollectRequest) -> Result<(), CniFailure> {
        // An interface beside the first is known by the first, of which alone the runtime knows.
        let known = |record: &Attachment| {
            let interface = record.further_to.as_ref().unwrap_or(&record.key.interface);
            let valid = |valid: &protocol::ValidAttachment| {
                valid.container_id == record.key.container_id && valid.interface == *interface
            };
            request.valid.iter().any(valid)
        };
        let before = self.attachments.all();
        let mut failures = Vec::new();
        for record in before.into_iter().filter(|record| record.network == request.network && !known(record)) {
            let key = record.key.clone();
            let _turn = self.order.enter(&key.container_id);
            if self.attachments.get(&key).as_ref() == Some(&record)
                && let Err(failure) = self.remove_former(record)
            {
                failures.push(format!("{} {}: {failure}", key.container_id, key.interface));
            }
        }
        for key in self.network.holders() {
            // An ADD at work is recorded before it has addresses.
            let _turn = self.order.enter(&key.container_id);
            if self.attachments.get(&key).is_none() {
                self.network.release(&key, None);
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        Err(CniFailure::system("take away what is lost", io::Error::other(failures.join("; "))))
    }

    /// Says whether a pod could be attached.
    ///
    /// # Errors
    /// The reason why not.
    pub fn status(&self, _request: protocol::StatusRequest) -> Result<(), CniFailure> {
        self.network.status()
    }

    /// Does what DELs asked for while no agent answered. Returns what could not be done; it is tried again.
    pub fn take_up_pending(&self) -> Vec<String> {
        let Some(directory) = &self.state_directory else { return Vec::new() };
        let waiting = match pending::waiting(directory) {
            Ok(waiting) => waiting,
            Err(error) => return vec![format!("{} cannot be read: {error}", pending::directory(directory).display())],
        };
        let mut failed: Vec<String> = Vec::new();
        for (file, request) in waiting {
            let outcome = request.and_then(|request| self.take_up(request).map_err(|failure| failure.to_string()));
            failed.extend(outcome.err().map(|reason| format!("{}: {reason}", file.display())));
        }
        if let Err(error) = pending::sweep(directory) {
            failed.push(format!("{} cannot be tidied up: {error}", pending::directory(directory).display()));
        }
        failed
    }

    /// Does what a file asks for, if it is there still: an ADD may have done it since, and have made the attachment anew.
    fn take_up(&self, request: protocol::DeleteRequest) -> Result<(), CniFailure> {
        let key = decode_key(request.container_id, request.interface)?;
        let _turn = self.order.enter(&key.container_id);
        if self.waits(&key) { self.delete_in_turn(key, request.network, request.network_namespace) } else { Ok(()) }
    }

    /// Where a DEL of this attachment would have left its request.
    fn pending_file(&self, key: &AttachmentKey) -> Option<PathBuf> {
        pending::file(self.state_directory.as_deref()?, &key.container_id, &key.interface)
    }

    fn waits(&self, key: &AttachmentKey) -> bool {
        self.pending_file(key).is_some_and(|file| file.exists())
    }

    /// Takes away what no DEL will come for: attachments whose namespace went while the agent was down, and those
    /// whose ADD was cut short. Called once at start, before the API is served. Returns what could not be taken
    /// away; their records stay, and a DEL may still come.
    pub fn release_lost(&self) -> Vec<(AttachmentKey, CniFailure)> {
        let is_first_lost = |record: &Attachment| {
            let first = record
                .further_to
                .as_ref()
                .map(|interface| AttachmentKey { interface: interface.clone(), ..record.key.clone() });
            first.is_some_and(|first| self.attachments.get(&first).is_none_or(|first| first.port.is_none()))
        };
        let lost = |record: &Attachment| record.port.is_none() || !record.namespace.is_there() || is_first_lost(record);
        let records: Vec<Attachment> = self.attachments.all().into_iter().filter(lost).collect();
        let records = records.into_iter();
        records
            .filter_map(|record| {
                let key = record.key.clone();
                let _turn = self.order.enter(&key.container_id);
                self.remove_former(record).err().map(|failure| (key, failure))
            })
            .collect()
    }

    fn remove_former(&self, former: Attachment) -> Result<(), CniFailure> {
        let key = former.key.clone();
        let namespace = Some(former.namespace.clone()).filter(NetworkNamespace::is_there);
        let network = former.network.clone();
        self.detach(DeleteRequest { key, network, namespace, record: Some(former) })
    }

    fn record(&self, attachment: Attachment) -> Result<(), CniFailure> {
        self.attachments.put(attachment).map_err(|source| CniFailure::system("record the attachment", source))
    }

    fn complete(&self, request: &AddRequest, further_to: Option<String>, result: &AddResult) -> Result<(), CniFailure> {
        let attachment = Attachment {
            port: Some(AttachedPort {
                index: result.port,
                mac: result.mac,
                mtu_bytes: result.mtu_bytes,
                addresses: result.addresses.iter().map(|assigned| assigned.address).collect(),
                network: result.network.clone(),
                device: result.device,
                runtime: request.runtime.clone(),
            }),
            ..unmade(request, further_to)
        };
        let recorded = self.record(attachment.clone());
        if recorded.is_err() {
            // An attachment that no restart would know of must not exist.
            self.remove_former(attachment)?;
        }
        recorded
    }
}

/// What a result of ADD lacks of interfaces beside the first.
fn lacking_interfaces(told: &[protocol::CheckedInterface], further: &[Attachment]) -> Vec<String> {
    let mut lacking = Vec::new();
    for (name, port) in further.iter().filter_map(|record| Some((&record.key.interface, record.port.as_ref()?))) {
        let Some(found) = told.iter().find(|interface| interface.name == *name) else {
            lacking.push(format!("prevResult lacks the interface {name}, which ADD made"));
            continue;
        };
        if let Some(mac) = found.mac.as_ref().filter(|mac| mac.parse() != Ok(port.mac)) {
            lacking.push(format!("prevResult has the MAC address {mac} at {name}, ADD gave {}", port.mac));
        }
        let missing = port.addresses.iter().filter(|address| !found.addresses.contains(&address.addr()));
        lacking.extend(missing.map(|address| format!("prevResult lacks {address} at {name}, which ADD gave")));
    }
    lacking
}

/// What a result of ADD lacks of routes to gateways. Others may have added some.
fn lacking_routes<'a>(told: &[protocol::AnswerRoute], ports: impl Iterator<Item = &'a AttachedPort>) -> Vec<String> {
    let is_told = |destination: &IpNet, gateway: &IpAddr| {
        told.iter().any(|route| {
            let by = route.gateway.as_ref().and_then(|by| by.parse().ok());
            route.destination.parse() == Ok(*destination) && by == Some(*gateway)
        })
    };
    let lacking = ports.flat_map(AttachedPort::routes).filter(|(destination, gateway)| !is_told(destination, gateway));
    lacking.map(|(to, by)| format!("prevResult lacks the route {to} by {by}, which ADD gave")).collect()
}

/// The record of an attachment before anything of it is made.
fn unmade(request: &AddRequest, further_to: Option<String>) -> Attachment {
    Attachment {
        key: request.key.clone(),
        network: request.network.clone(),
        namespace: request.namespace.clone(),
        pod: request.pod.clone(),
        further_to,
        port: None,
    }
}

fn decode_key(container_id: String, interface: String) -> Result<AttachmentKey, CniFailure> {
    check_container_id(&container_id).map_err(|reason| CniFailure::invalid("CNI_CONTAINERID", reason))?;
    check_interface_name(&interface).map_err(|reason| CniFailure::invalid("CNI_IFNAME", reason))?;
    Ok(AttachmentKey { container_id, interface })
}

fn decode_add(request: protocol::AddRequest) -> Result<AddRequest, CniFailure> {
    let key = decode_key(request.container_id, request.interface)?;
    let namespace = open_namespace(&request.network_namespace)
        .map_err(|reason| CniFailure::invalid("CNI_NETNS", format!("{}: {reason}", request.network_namespace)))?;
    let argument = |name: &str| request.arguments.get(name).filter(|value| !value.is_empty()).cloned();
    let pod = match (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME")) {
        (Some(namespace), Some(name)) => Some(PodReference { namespace, name, uid: argument("K8S_POD_UID") }),
        _ => None,
    };
    let mac = request.mac.map(|text| text.parse::<StationMac>().map(StationMac::mac)).transpose();
    let mac = mac.map_err(|error| CniFailure::Refused(format!("the MAC address that is asked for: {error}")))?;
    let families = [true, false].map(|ipv4| request.addresses.iter().filter(|ip| ip.is_ipv4() == ipv4).count());
    if families.iter().any(|count| *count > 1) {
        let message = "more than one address of a family is asked for; one of each is possible";
        return Err(CniFailure::Refused(message.to_owned()));
    }
    let runtime = RuntimeConfig { port_mappings: request.port_mappings, bandwidth: request.bandwidth };
    check_runtime(&runtime).map_err(CniFailure::Refused)?;
    Ok(AddRequest {
        key,
        network: request.network,
        namespace,
        pod,
        addresses: request.addresses,
        mac,
        runtime,
        further: None,
    })
}

/// What the plugin sees to, asked again of whoever speaks here.
fn check_runtime(runtime: &RuntimeConfig) -> Result<(), String> {
    if runtime.port_mappings.len() > capabilities::PORT_MAPPINGS {
        return Err(format!("more than {} ports of the host are asked for", capabilities::PORT_MAPPINGS));
    }
    if runtime.port_mappings.iter().any(|mapping| mapping.host_port == 0 || mapping.container_port == 0) {
        return Err("0 is no port".to_owned());
    }
    let limits = [runtime.bandwidth.ingress, runtime.bandwidth.egress].into_iter().flatten();
    match limits.map(|limit| limit.bits_per_second).find(|rate| !capabilities::RATES.contains(rate)) {
        Some(rate) => Err(format!("a limit of {rate} bits per second is out of range")),
        None => Ok(()),
    }
}

/// The namespace at `path`, unless it is the one this process lives in: taking the host's own for a pod's would
/// put the pod's addresses and default route on the node.
fn open_namespace(path: &str) -> Result<NetworkNamespace, io::Error> {
    let namespace = NetworkNamespace::at(Path::new(path))?;
    match NetworkNamespace::at(Path::new("/proc/self/ns/net")) {
        Ok(own) if own.inode == namespace.inode => Err(io::Error::other("it is the network namespace of the host")),
        _ => Ok(namespace),
    }
}

#[cfg(test)]
mod tests;
