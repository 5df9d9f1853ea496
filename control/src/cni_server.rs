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
//! DEL succeeds however often it comes and whatever is missing by then. A record is written before anything is
//! made, and completed before ADD is answered, so that a crash at any moment leaves a trace to clean up by.
//!
//! Calls block (netlink, fsync) and run on blocking threads; calls for one container run one after another in
//! the order they came, calls for different containers in parallel.

pub mod attachments;
mod container_order;
mod pod_network;

use std::io;
use std::path::Path;
use std::sync::Arc;

use millrace_cni::environment::{check_container_id, check_interface_name};
use millrace_cni::protocol;

pub use attachments::{AttachedPort, Attachment, AttachmentKey, Attachments, NetworkNamespace, PodReference};
pub use pod_network::{AddRequest, AddResult, CniFailure, DeleteRequest, PodAddress, PodNetwork, PodRoute};

use container_order::ContainerOrder;

/// The CNI verbs of this node.
pub struct CniServer {
    network: Arc<dyn PodNetwork>,
    attachments: Arc<Attachments>,
    order: ContainerOrder,
}

impl CniServer {
    /// A server that works on `network` and records in `attachments`.
    #[must_use]
    pub fn new(network: Arc<dyn PodNetwork>, attachments: Arc<Attachments>) -> CniServer {
        CniServer { network, attachments, order: ContainerOrder::default() }
    }

    /// Attaches a pod. Returns when packets to and from it are forwarded.
    ///
    /// # Errors
    /// See [`CniFailure`]; after an error nothing of the attachment is left, or a record that the next call cleans up.
    pub fn add(&self, request: protocol::AddRequest) -> Result<protocol::AddAnswer, CniFailure> {
        let request = decode_add(request)?;
        let _turn = self.order.enter(&request.key.container_id);
        if let Some(former) = self.attachments.get(&request.key) {
            if former.port.is_some() && former.namespace.inode == request.namespace.inode {
                return Err(CniFailure::AlreadyAttached(request.key));
            }
            self.remove_former(former)?;
        }
        self.record(Attachment {
            key: request.key.clone(),
            network: request.network.clone(),
            namespace: request.namespace.clone(),
            pod: request.pod.clone(),
            port: None,
        })?;
        let result = self.network.add(&request).inspect_err(|_| {
            // If this fails, the record stays incomplete, which the next ADD or DEL cleans up.
            let _ = self.attachments.remove(&request.key);
        })?;
        self.complete(&request, &result)?;
        Ok(result.into_answer())
    }

    /// Detaches a pod; succeeds if it is not attached.
    ///
    /// # Errors
    /// Only when something that exists could not be taken away; the record stays and DEL may come again.
    pub fn delete(&self, request: protocol::DeleteRequest) -> Result<(), CniFailure> {
        let key = decode_key(request.container_id, request.interface)?;
        let _turn = self.order.enter(&key.container_id);
        let record = self.attachments.get(&key);
        let namespace = match &record {
            Some(record) => Some(record.namespace.clone()).filter(NetworkNamespace::is_there),
            None => request.network_namespace.and_then(|path| open_namespace(&path).ok()),
        };
        self.network.delete(&DeleteRequest { key: key.clone(), network: request.network, namespace, record })?;
        self.attachments.remove(&key).map_err(|source| CniFailure::system("record the detached pod", source))
    }

    /// Takes away what no DEL will come for: attachments whose namespace went while the agent was down, and those
    /// whose ADD was cut short. Called once at start, before the API is served. Returns what could not be taken
    /// away; their records stay, and a DEL may still come.
    pub fn release_lost(&self) -> Vec<(AttachmentKey, CniFailure)> {
        let lost = |record: &Attachment| record.port.is_none() || !record.namespace.is_there();
        let records = self.attachments.all().into_iter().filter(lost);
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
        self.network.delete(&DeleteRequest { key: key.clone(), network, namespace, record: Some(former) })?;
        self.attachments.remove(&key).map_err(|source| CniFailure::system("record the detached pod", source))
    }

    fn record(&self, attachment: Attachment) -> Result<(), CniFailure> {
        self.attachments.put(attachment).map_err(|source| CniFailure::system("record the attachment", source))
    }

    fn complete(&self, request: &AddRequest, result: &AddResult) -> Result<(), CniFailure> {
        let attachment = Attachment {
            key: request.key.clone(),
            network: request.network.clone(),
            namespace: request.namespace.clone(),
            pod: request.pod.clone(),
            port: Some(AttachedPort {
                index: result.port,
                mac: result.mac,
                mtu_bytes: result.mtu_bytes,
                addresses: result.addresses.iter().map(|assigned| assigned.address).collect(),
            }),
        };
        let recorded = self.record(attachment.clone());
        if recorded.is_err() {
            // An attachment that no restart would know of must not exist.
            self.remove_former(attachment)?;
        }
        recorded
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
    Ok(AddRequest { key, network: request.network, namespace, pod })
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
