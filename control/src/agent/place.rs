//! A pod's place: in the pods' segment, or in a network of its own wire; with the addresses and routes it has there.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use millrace_engine::packet::{Mac, PortIndex};

use crate::cluster::NetworkRecord;
use crate::cni_server::{AddResult, AttachedNetwork, CniFailure, PodAddress, PodDevice, PodRoute};
use crate::kernel::{GATEWAY_IPV4, GATEWAY_IPV6, PodInterface};
use crate::plan::GATEWAY_MAC;

/// Where a pod belongs.
pub(super) struct Place {
    /// Its addresses, each with its prefix length there.
    pub(super) addresses: Vec<IpNet>,
    /// The network; `None` for the pods' segment.
    pub(super) network: Option<AttachedNetwork>,
    /// What its interface is made of.
    pub(super) device: PodDevice,
}

impl Place {
    /// In a network, whose subnets say what the addresses mean.
    pub(super) fn in_network(
        network: &NetworkRecord,
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
        let network = Some(AttachedNetwork { name: network.name.to_string(), gateways });
        Ok(Self { addresses: prefixes, network, device })
    }

    /// What the pod's interface shall be.
    pub(super) fn interface(&self, mac: Mac, mtu: u32) -> PodInterface {
        match &self.network {
            None => PodInterface::new(self.addresses.iter().map(IpNet::addr).collect(), mac, GATEWAY_MAC, mtu),
            Some(network) => PodInterface::in_network(self.addresses.clone(), &network.gateways, mac, mtu),
        }
    }

    fn gateway(&self, address: &IpNet) -> Option<IpAddr> {
        match (&self.network, address) {
            (None, IpNet::V4(_)) => Some(GATEWAY_IPV4.into()),
            (None, IpNet::V6(_)) => Some(GATEWAY_IPV6.into()),
            (Some(network), address) => {
                let same_family = |gateway: &&IpAddr| gateway.is_ipv4() == address.addr().is_ipv4();
                network.gateways.iter().find(same_family).copied()
            }
        }
    }

    /// What the runtime is told.
    pub(super) fn result(self, port: PortIndex, mac: Mac, mtu_bytes: u32) -> AddResult {
        let everywhere = |address: &IpNet| -> IpNet {
            if address.addr().is_ipv4() { Ipv4Net::default().into() } else { Ipv6Net::default().into() }
        };
        let address = |address: &IpNet| PodAddress { address: *address, gateway: self.gateway(address) };
        let route = |address: &IpNet| {
            self.gateway(address).map(|gateway| PodRoute { destination: everywhere(address), gateway: Some(gateway) })
        };
        AddResult {
            port,
            mac,
            mtu_bytes,
            addresses: self.addresses.iter().map(address).collect(),
            routes: self.addresses.iter().filter_map(route).collect(),
            network: self.network.clone(),
            device: self.device,
        }
    }
}
