//! What the tests of policies share: an oracle, and a node that judges through its own slow path.
//!
//! - [`oracle`]: policies as the API's comments tell them, read from the raw objects, one after the other.
//! - [`judge`]: the same objects through observe, plan and compile into tables, and a packet through the stages.
//! - [`random_cluster`]: clusters with every feature of the API, from a seed; [`random_change`]: what happens to them.
//! - [`shrink`]: the smallest objects that still show something.

pub mod judge;
pub mod oracle;
pub mod random_change;
pub mod random_cluster;
pub mod shrink;

use std::fmt;
use std::net::IpAddr;

use serde_json::Value;

/// The node that judges.
pub const NODE: &str = "a";

/// A pod that is plugged in at the node that judges, as its CNI call told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugged {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, if the runtime told it.
    pub uid: Option<String>,
    /// What it was given.
    pub addresses: Vec<IpAddr>,
}

/// What the node that judges knows beside the objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Its name.
    pub node: String,
    /// Pods that are plugged in there, in the order of their ports.
    pub plugged: Vec<Plugged>,
    /// Whether what is not known yet counts as nothing (`unknown_pods = "open"`).
    pub open: bool,
}

impl NodeView {
    /// A node where each pod is plugged in that its object puts there, with the addresses of its status.
    #[must_use]
    pub fn of(objects: &[Value]) -> Self {
        let pods = objects.iter().filter(|object| object["kind"] == "Pod");
        Self { node: NODE.to_owned(), plugged: pods.filter_map(plugged_by).collect(), open: false }
    }

    /// Whether a pod with this address is plugged in.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        self.plugged.iter().any(|plugged| plugged.addresses.contains(&address))
    }
}

/// How a pod is plugged in by its object; `None` if that is not the case at the node that judges.
#[must_use]
pub fn plugged_by(pod: &Value) -> Option<Plugged> {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let here = text("/spec/nodeName") == NODE
        && pod["spec"]["hostNetwork"] != true
        && !matches!(text("/status/phase"), "Succeeded" | "Failed");
    let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
    let addresses = addresses.filter_map(|entry| entry["ip"].as_str()?.parse().ok());
    here.then(|| Plugged {
        namespace: text("/metadata/namespace").to_owned(),
        name: text("/metadata/name").to_owned(),
        uid: pod["metadata"]["uid"].as_str().map(str::to_owned),
        addresses: addresses.collect(),
    })
}

/// A packet that opens a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who sends it.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// `TCP`, `UDP`, `SCTP` or `ICMP`.
    pub protocol: &'static str,
    /// Destination port; 0 for ICMP.
    pub port: u16,
}

impl fmt::Display for Flow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} > {} port {}", self.protocol, self.source, self.destination, self.port)
    }
}
