//! A place of a pod: in the pods' segment, or in a network; with the addresses and routes it has there.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use millrace_engine::packet::{Mac, PortIndex};

use crate::cluster::NetworkRecord;
use crate::cni_server::{AddResult, AttachedNetwork, CniFailure, PodAddress, PodDevice, PodRoute};
use crate::kernel::{GATEWAY_IPV4, GATEWAY_IPV6, PodInterface};
use crate::plan::GATEWAY_MAC;

/// Where an interface of a pod belongs.
pub(super) struct Place {
    /// Its addresses, each with its prefix length there.
    pub(super) addresses: Vec<IpNet>,
    /// The network; `None` for the pods' segment.
    pub(super) network: Option<AttachedNetwork>,
    /// What the interface is made of.
    pub(super) device: PodDevice,
}

impl Place {
    /// Where the switch is the router: in the pods' segment, or in a routed network.
    pub(super) fn routed(network: Option<AttachedNetwork>, addresses: Vec<IpAddr>, device: PodDevice) -> Self {
        Self { addresses: addresses.into_iter().map(IpNet::from).collect(), network, device }
    }

    /// In a network whose subnets say what the addresses mean.
    pub(super) fn in_subnets(
        network: &NetworkRecord,
        is_further: bool,
        addresses: &[IpAddr],
        device: PodDevice,
    ) -> Result<Self, CniFailure> {
        let (mut prefixes, mut gateways) = (Vec::new(), Vec::new());
        for address in addresses {
            let subnet = network.subnet_of(*address).ok_or_else(|| {
                CniFailure::Refused(format!("{address} lies in no subnet of network {}", network.name))
            })?;
            let prefix = IpNet::new(*address, subnet.cidr.length());
            prefixes.push(prefix.unwrap_or_else(|_| unreachable!("the prefix is of the address's family")));
            gateways.extend(subnet.gateway);
        }
        let destinations = is_further.then(Vec::new);
        let network = AttachedNetwork { name: network.name.to_string(), gateways, routed: false, destinations };
        Ok(Self { addresses: prefixes, network: Some(network), device })
    }

    /// What the pod's interface shall be.
    pub(super) fn interface(&self, mac: Mac, mtu: u32) -> PodInterface {
        let addresses = || self.addresses.iter().map(IpNet::addr).collect();
        let made = match &self.network {
            None => PodInterface::new(addresses(), mac, GATEWAY_MAC, mtu),
            Some(network) if network.routed => PodInterface::new(addresses(), mac, GATEWAY_MAC, mtu),
            Some(network) => PodInterface::in_network(self.addresses.clone(), &network.gateways, mac, mtu),
        };
        let destinations = self.network.as_ref().and_then(|network| network.destinations.clone());
        PodInterface { destinations, ..made }
    }

    fn gateway(&self, address: &IpNet) -> Option<IpAddr> {
        let ours = match address {
            IpNet::V4(_) => GATEWAY_IPV4.into(),
            IpNet::V6(_) => GATEWAY_IPV6.into(),
        };
        match &self.network {
            None => Some(ours),
            Some(network) if network.routed => Some(ours),
            Some(network) => {
                let same_family = |gateway: &&IpAddr| gateway.is_ipv4() == ours.is_ipv4();
                network.gateways.iter().find(same_family).copied()
            }
        }
    }

    /// The prefixes that an address's router is asked for.
    fn destinations(&self, address: &IpNet) -> Vec<IpNet> {
        let is_ipv4 = address.addr().is_ipv4();
        match self.network.as_ref().and_then(|network| network.destinations.as_ref()) {
            Some(some) => some.iter().copied().filter(|prefix| prefix.addr().is_ipv4() == is_ipv4).collect(),
            None if is_ipv4 => vec![Ipv4Net::default().into()],
            None => vec![Ipv6Net::default().into()],
        }
    }

    /// What the runtime is told.
    pub(super) fn result(self, port: PortIndex, mac: Mac, mtu_bytes: u32) -> AddResult {
        let address = |address: &IpNet| PodAddress { address: *address, gateway: self.gateway(address) };
        let routes = |address: &IpNet| {
            let gateway = self.gateway(address);
            let destinations = if gateway.is_some() { self.destinations(address) } else { Vec::new() };
            destinations.into_iter().map(move |destination| PodRoute { destination, gateway })
        };
        AddResult {
            port,
            mac,
            mtu_bytes,
            addresses: self.addresses.iter().map(address).collect(),
            routes: self.addresses.iter().flat_map(routes).collect(),
            network: self.network.clone(),
            device: self.device,
            host_interface: None,
        }
    }
}
