//! The network of a pod: everything on its interface that the kernel has to know.
//!
//! Each address stands alone (/32, /128) and everything goes by a gateway that the switch answers for: no pod
//! believes that another is on its link, so all traffic meets the switch, and the same gateway addresses serve on
//! every node. The gateway's MAC address is the same everywhere too and is fixed, so that the first packet waits for
//! no resolution.
//!
//! In a network that the switch does not route, a pod has addresses with the network's own prefixes and routers, and
//! resolves them as any machine there. A further interface has no default route: that is the first one's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use millrace_engine::limits;
use millrace_engine::packet::Mac;
use millrace_engine::transmit::segmentation::segments_of_unit;

use super::{KernelError, LinkChange, NamespaceHandle, Netlink, Route, sysctl};

/// The gateway's IPv4 address, as every pod sees it.
pub const GATEWAY_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The gateway's IPv6 address, as every pod sees it.
pub const GATEWAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// What a pod's interface shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInterface {
    /// The pod's addresses: at most one of each IP version is usual.
    pub addresses: Vec<IpNet>,
    /// Who routes what is not on the link, for each IP version at most one.
    pub gateways: Vec<Gateway>,
    /// What the gateways are asked for; `None` for everything else.
    pub destinations: Option<Vec<IpNet>>,
    /// The interface's MAC address.
    pub mac: Mac,
    /// Its MTU: that of the tunnel.
    pub mtu: u32,
    /// Largest GSO unit it may build.
    pub gso_max_size: u32,
}

/// A router of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address, if it is known and never changes; such a router is on the link whatever the addresses say.
    pub mac: Option<Mac>,
}

impl PodInterface {
    /// An interface with the gateways and the GSO limit that hold on every node.
    #[must_use]
    pub fn new(addresses: Vec<IpAddr>, mac: Mac, gateway_mac: Mac, mtu: u32) -> Self {
        let ours = [IpAddr::V4(GATEWAY_IPV4), IpAddr::V6(GATEWAY_IPV6)];
        let of_family = |gateway: &IpAddr| addresses.iter().any(|address| address.is_ipv4() == gateway.is_ipv4());
        let gateways = ours.into_iter().filter(of_family).map(|address| Gateway { address, mac: Some(gateway_mac) });
        let gateways = gateways.collect();
        let addresses = addresses.into_iter().map(IpNet::from).collect();
        Self { addresses, gateways, destinations: None, mac, mtu, gso_max_size: limits::POD_GSO_BYTES }
    }

    /// An interface in a network, with the network's routers.
    #[must_use]
    pub fn in_network(addresses: Vec<IpNet>, gateways: &[IpAddr], mac: Mac, mtu: u32) -> Self {
        let gateways = gateways.iter().map(|address| Gateway { address: *address, mac: None }).collect();
        Self { addresses, gateways, destinations: None, mac, mtu, gso_max_size: limits::POD_GSO_BYTES }
    }

    fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(|address| address.addr().is_ipv6())
    }
}

/// Sets up the interface `name` in `namespace`, and the loopback. May be repeated: an agent that re-attaches a pod
/// calls it again and changes nothing that is right already.
///
/// # Errors
/// What could not be set; what was set before stays, and the caller removes the interface.
pub fn configure_pod_interface(
    namespace: &NamespaceHandle,
    name: &str,
    interface: &PodInterface,
) -> Result<(), KernelError> {
    let mut netlink = Netlink::open_in(namespace)?;
    let link = netlink.existing_link(name)?;
    write_settings(namespace, name, interface)?;
    let change = LinkChange {
        up: Some(true),
        mac: (link.mac != interface.mac).then_some(interface.mac),
        mtu: Some(interface.mtu),
        gso_max_size: Some(interface.gso_max_size),
        gso_max_segments: Some(segments_of_unit(interface.mtu)),
        ..LinkChange::default()
    };
    netlink.change_link(name, &change)?;
    netlink.change_link("lo", &LinkChange::up())?;
    for address in &interface.addresses {
        netlink.add_address(name, *address)?;
    }
    for Gateway { address, mac } in &interface.gateways {
        if let Some(mac) = mac {
            netlink.set_permanent_neighbour(name, *address, *mac)?;
        }
        match &interface.destinations {
            None => {
                // The route to the gateway itself is the first interface's: the others have the same gateway.
                if mac.is_some() {
                    netlink.set_route(&Route::on_link(IpNet::from(*address), link.index))?;
                }
                let default: IpNet =
                    if address.is_ipv4() { Ipv4Net::default().into() } else { Ipv6Net::default().into() };
                netlink.set_route(&Route::by_gateway(default, *address, link.index))?;
            }
            Some(destinations) => {
                let of_family = destinations.iter().filter(|prefix| prefix.addr().is_ipv4() == address.is_ipv4());
                for destination in of_family {
                    netlink.set_route(&Route::by_gateway(*destination, *address, link.index))?;
                }
            }
        }
    }
    Ok(())
}

/// Nothing on a pod's link advertises, solicits or duplicates: the kernel need not look for it. IPv6 is switched on
/// only if the pod has an IPv6 address; runtimes differ in how they leave it.
fn write_settings(namespace: &NamespaceHandle, name: &str, interface: &PodInterface) -> Result<(), KernelError> {
    let ipv6 = |setting: &str, value| (format!("ipv6/conf/{name}/{setting}"), value);
    let settings = [
        ipv6("accept_dad", "0"),
        ipv6("accept_ra", "0"),
        ipv6("autoconf", "0"),
        ipv6("router_solicitations", "0"),
        ipv6("disable_ipv6", if interface.has_ipv6() { "0" } else { "1" }),
    ];
    sysctl::write(namespace, &settings, !interface.has_ipv6())
}
