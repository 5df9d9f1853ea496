//! What the plugin and the agent say to each other: one POST for each verb, JSON in both directions.
//!
//! Status 200 carries the answer; any other status carries a [`Failure`](crate::spec::Failure), whose code and
//! words the plugin passes on unchanged. The answer has plain facts and no version: wording them for the
//! runtime's version is the plugin's work, so an agent serves plugins of every version. New fields must be
//! optional: during an upgrade, plugin and agent differ.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::spec;

/// Path of ADD.
pub const ADD_PATH: &str = "/v1/cni/add";
/// Path of DEL.
pub const DELETE_PATH: &str = "/v1/cni/del";

/// The request of ADD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddRequest {
    /// Name of the network in the configuration.
    pub network: String,
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub interface: String,
    /// CNI_NETNS.
    pub network_namespace: String,
    /// CNI_ARGS.
    #[serde(default)]
    pub arguments: BTreeMap<String, String>,
}

/// The answer to ADD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddAnswer {
    /// Hardware address of the pod's interface.
    pub mac: String,
    /// MTU of the pod's interface.
    pub mtu_bytes: u32,
    /// Addresses of the pod's interface.
    pub addresses: Vec<AnswerAddress>,
    /// Routes made in the pod's namespace.
    pub routes: Vec<AnswerRoute>,
}

/// An address of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerAddress {
    /// Address and prefix length.
    pub address: String,
    /// Its gateway.
    pub gateway: Option<String>,
}

/// A route of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerRoute {
    /// Destination prefix.
    pub destination: String,
    /// Gateway; absent when the destination is on the link.
    pub gateway: Option<String>,
}

/// The request of DEL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteRequest {
    /// Name of the network in the configuration.
    pub network: String,
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub interface: String,
    /// CNI_NETNS, if the runtime still has it.
    #[serde(default)]
    pub network_namespace: Option<String>,
}

impl AddAnswer {
    /// The answer as a result of the specification: one interface, in the pod.
    #[must_use]
    pub fn into_result(self, request: &AddRequest) -> spec::NetworkResult {
        let interface = spec::Interface {
            name: request.interface.clone(),
            mac: Some(self.mac),
            mtu: Some(self.mtu_bytes),
            sandbox: Some(request.network_namespace.clone()),
            ..Default::default()
        };
        let addresses = self.addresses.into_iter().map(|AnswerAddress { address, gateway }| spec::Address {
            address,
            gateway,
            interface: Some(0),
            ..Default::default()
        });
        let routes = self.routes.into_iter().map(|AnswerRoute { destination, gateway }| spec::Route {
            destination,
            gateway,
            ..Default::default()
        });
        spec::NetworkResult {
            interfaces: vec![interface],
            ips: addresses.collect(),
            routes: routes.collect(),
            ..Default::default()
        }
    }
}
