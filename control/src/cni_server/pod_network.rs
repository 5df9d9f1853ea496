//! What the CNI server asks of the rest of the agent: make a pod's attachment, take it away.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use millrace_cni::protocol::{AddAnswer, AnswerAddress, AnswerRoute};
use millrace_cni::spec::{Failure, code};
use millrace_engine::packet::{Mac, PortIndex};

use crate::cluster::{FurtherInterface, NetworkName};

use super::{AttachedNetwork, Attachment, AttachmentKey, NetworkNamespace, PodDevice, PodReference, RuntimeConfig};

/// Makes and takes away pods' attachments. Called from blocking threads, for one container at a time.
pub trait PodNetwork: Send + Sync + 'static {
    /// Allocates addresses, makes the pod's interface, and returns when the tables that forward for it are in
    /// force. On an error it has undone what it did.
    ///
    /// # Errors
    /// The variant says what the runtime is told.
    fn add(&self, request: &AddRequest) -> Result<AddResult, CniFailure>;

    /// The interfaces that the pod is to have beside the one that is asked for; none where nobody can ask for any.
    ///
    /// # Errors
    /// What the pod asks for can never be, or nobody can be asked.
    fn further(&self, _request: &AddRequest) -> Result<Vec<FurtherInterface>, CniFailure> {
        Ok(Vec::new())
    }

    /// Takes away what is there of an attachment. Its addresses and the number of its port stay taken until
    /// [`Self::release`]. What is missing is no error: it is called for attachments never made, half made, or whose
    /// namespace is gone.
    ///
    /// # Errors
    /// Only when something that is there cannot be taken away.
    fn delete(&self, request: &DeleteRequest) -> Result<(), CniFailure>;

    /// Whether the attachment is as it should be: interface, addresses, routes and offloads in the pod, queues and
    /// tables here.
    ///
    /// # Errors
    /// [`CniFailure::Broken`] with what is wrong, all of it.
    fn check(&self, attachment: &Attachment) -> Result<(), CniFailure>;

    /// Whether a pod could be attached now.
    ///
    /// # Errors
    /// [`CniFailure::NotAvailable`] with the reason.
    fn status(&self) -> Result<(), CniFailure>;

    /// Gives the addresses of an attachment that was taken away back, and the number of its port, if it had one, for
    /// others to have; what it does not hold is no error.
    fn release(&self, key: &AttachmentKey, port: Option<PortIndex>);

    /// All attachments that hold addresses.
    fn holders(&self) -> Vec<AttachmentKey>;
}

/// A checked request to attach a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddRequest {
    /// Container and interface name.
    pub key: AttachmentKey,
    /// Name of the network in the CNI configuration.
    pub network: String,
    /// Where the interface goes.
    pub namespace: NetworkNamespace,
    /// The pod, if the runtime is a Kubernetes one.
    pub pod: Option<PodReference>,
    /// The very addresses that the runtime asks for, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The very MAC address.
    pub mac: Option<Mac>,
    /// What it has for the capabilities.
    pub runtime: RuntimeConfig,
    /// The network, if it is a further interface of the pod; else the pod and its namespace say.
    pub further: Option<NetworkName>,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddResult {
    /// The switch's port for the pod.
    pub port: PortIndex,
    /// MAC address of the pod's interface.
    pub mac: Mac,
    /// MTU of the pod's interface.
    pub mtu_bytes: u32,
    /// Addresses of the pod's interface.
    pub addresses: Vec<PodAddress>,
    /// Routes in the pod's namespace.
    pub routes: Vec<PodRoute>,
    /// The network it is plugged into, instead of the pods' segment.
    pub network: Option<AttachedNetwork>,
    /// What the pod's interface is made of.
    pub device: PodDevice,
    /// Its other end, where that is an interface of the host.
    pub host_interface: Option<String>,
}

/// An address of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodAddress {
    /// Address and prefix length as set on the interface.
    pub address: IpNet,
    /// Its gateway.
    pub gateway: Option<IpAddr>,
}

/// A route of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRoute {
    /// Destination prefix.
    pub destination: IpNet,
    /// Gateway; `None` when the destination is on the link.
    pub gateway: Option<IpAddr>,
}

/// A checked request to detach a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteRequest {
    /// Container and interface name.
    pub key: AttachmentKey,
    /// Name of the network in the CNI configuration.
    pub network: String,
    /// The pod's namespace, if it still exists and is still the pod's.
    pub namespace: Option<NetworkNamespace>,
    /// What was recorded; without it, only an interface of ours in `namespace` can be looked for.
    pub record: Option<Attachment>,
}

/// Why a pod could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum CniFailure {
    /// The attachment is there already.
    #[error("CNI_IFNAME {:?} exists: CNI_CONTAINERID {:?} is attached already", .0.interface, .0.container_id)]
    AlreadyAttached(AttachmentKey),
    /// The pod has an interface of this name that is not ours.
    #[error("CNI_IFNAME {interface:?} exists in {}", namespace.display())]
    InterfaceExists {
        /// The name.
        interface: String,
        /// The pod's namespace.
        namespace: PathBuf,
    },
    /// A variable of the runtime's environment is wrong.
    #[error("environment variable {variable} is invalid: {reason}")]
    InvalidEnvironment {
        /// The variable's name.
        variable: &'static str,
        /// Why it is wrong.
        reason: String,
    },
    /// No pool, or none with a free address, serves this pod.
    #[error("no address is free for the pod: {0}")]
    NoAddress(String),
    /// A port of the host that is asked for leads elsewhere.
    #[error("hostPort {place} is taken: it leads to {holder} already")]
    HostPortTaken {
        /// Address, port and protocol.
        place: String,
        /// Whose it is.
        holder: String,
    },
    /// The container is not attached here.
    #[error("CNI_CONTAINERID {:?} with CNI_IFNAME {:?} is not attached", .0.container_id, .0.interface)]
    Unknown(AttachmentKey),
    /// The attachment is not as it should be.
    #[error("the attachment is broken: {0}")]
    Broken(String),
    /// No pod can be attached at present.
    #[error("no pod can be attached: {0}")]
    NotAvailable(String),
    /// No pod can be attached at present, and those that are reach no other node.
    #[error("no pod can be attached: {0}")]
    CutOff(String),
    /// What the pod asks for can never be.
    #[error("{0}")]
    Refused(String),
    /// The agent cannot serve this now and may be able to soon.
    #[error("the agent is not ready: {0}")]
    NotReady(String),
    /// The kernel refused.
    #[error("could not {attempt}")]
    System {
        /// What was attempted, as an infinitive.
        attempt: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl CniFailure {
    /// The kernel refused `attempt`, an infinitive.
    pub fn system(attempt: impl Into<String>, source: io::Error) -> CniFailure {
        CniFailure::System { attempt: attempt.into(), source }
    }

    /// A variable of the environment is wrong.
    pub fn invalid(variable: &'static str, reason: impl Into<String>) -> CniFailure {
        CniFailure::InvalidEnvironment { variable, reason: reason.into() }
    }

    /// The code of the specification.
    #[must_use]
    pub const fn code(&self) -> u32 {
        match self {
            CniFailure::AlreadyAttached(_)
            | CniFailure::InterfaceExists { .. }
            | CniFailure::InvalidEnvironment { .. } => code::INVALID_ENVIRONMENT,
            CniFailure::Unknown(_) => code::UNKNOWN_CONTAINER,
            CniFailure::Broken(_) => code::ATTACHMENT_BROKEN,
            CniFailure::HostPortTaken { .. } => code::HOST_PORT_TAKEN,
            CniFailure::NotAvailable(_) => code::NOT_AVAILABLE,
            CniFailure::CutOff(_) => code::NOT_AVAILABLE_AND_LIMITED,
            CniFailure::Refused(_) => code::INVALID_CONFIGURATION,
            CniFailure::NoAddress(_) | CniFailure::NotReady(_) => code::TRY_AGAIN_LATER,
            CniFailure::System { .. } => code::IO,
        }
    }

    /// As told to the plugin.
    #[must_use]
    pub fn to_failure(&self) -> Failure {
        let details = std::error::Error::source(self).map(ToString::to_string).unwrap_or_default();
        Failure::new(self.code(), self.to_string()).with_details(details)
    }
}

impl AddResult {
    /// As told to the plugin.
    pub(super) fn into_answer(self) -> AddAnswer {
        let text = |gateway: Option<IpAddr>| gateway.map(|address| address.to_string());
        let addresses = self.addresses.into_iter();
        let routes = self.routes.into_iter();
        AddAnswer {
            mac: self.mac.to_string(),
            mtu_bytes: self.mtu_bytes,
            addresses: addresses
                .map(|PodAddress { address, gateway }| AnswerAddress {
                    address: address.to_string(),
                    gateway: text(gateway),
                })
                .collect(),
            routes: routes
                .map(|PodRoute { destination, gateway }| AnswerRoute {
                    destination: destination.to_string(),
                    gateway: text(gateway),
                })
                .collect(),
            host_interface: self.host_interface,
            further: Vec::new(),
        }
    }
}
