//! The network of a pod: everything on its interface that the kernel has to know.
//!
//! Each address stands alone (/32, /128) and everything goes by a gateway that the switch answers for: no pod
//! believes that another is on its link, so all traffic meets the switch, and the same gateway addresses serve on
//! every node. The gateway's MAC address is the same everywhere too and is fixed, so that the first packet waits for
//! no resolution.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use millrace_engine::limits;
use millrace_engine::packet::Mac;

use super::{KernelError, LinkChange, NamespaceHandle, Netlink, Route, sysctl};

/// The gateway's IPv4 address, as every pod sees it.
pub const GATEWAY_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The gateway's IPv6 address, as every pod sees it.
pub const GATEWAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// What a pod's interface shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInterface {
    /// The pod's addresses: at most one of each IP version is usual.
    pub addresses: Vec<IpAddr>,
    /// Who routes IPv4: [`GATEWAY_IPV4`].
    pub gateway_ipv4: Ipv4Addr,
    /// Who routes IPv6: [`GATEWAY_IPV6`].
    pub gateway_ipv6: Ipv6Addr,
    /// The gateway's MAC address.
    pub gateway_mac: Mac,
    /// The interface's MAC address.
    pub mac: Mac,
    /// Its MTU: that of the tunnel.
    pub mtu: u32,
    /// Largest GSO unit it may build.
    pub gso_max_size: u32,
}

impl PodInterface {
    /// An interface with the gateways and the GSO limit that hold on every node.
    #[must_use]
    pub fn new(addresses: Vec<IpAddr>, mac: Mac, gateway_mac: Mac, mtu: u32) -> Self {
        Self {
            addresses,
            gateway_ipv4: GATEWAY_IPV4,
            gateway_ipv6: GATEWAY_IPV6,
            gateway_mac,
            mac,
            mtu,
            gso_max_size: limits::POD_GSO_BYTES,
        }
    }

    fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
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
        gso_max_segments: Some(limits::SEGMENTS_PER_UNIT as u32),
        ..LinkChange::default()
    };
    netlink.change_link(name, &change)?;
    netlink.change_link("lo", &LinkChange::up())?;
    for address in &interface.addresses {
        netlink.add_address(name, IpNet::from(*address))?;
    }
    for gateway in gateways(interface) {
        let default: IpNet = if gateway.is_ipv4() { Ipv4Net::default().into() } else { Ipv6Net::default().into() };
        netlink.set_permanent_neighbour(name, gateway, interface.gateway_mac)?;
        netlink.set_route(&Route::on_link(IpNet::from(gateway), link.index))?;
        netlink.set_route(&Route::by_gateway(default, gateway, link.index))?;
    }
    Ok(())
}

/// Gateways of the IP versions the pod has.
fn gateways(interface: &PodInterface) -> impl Iterator<Item = IpAddr> {
    let ipv4 = interface.addresses.iter().any(IpAddr::is_ipv4).then_some(IpAddr::V4(interface.gateway_ipv4));
    let ipv6 = interface.has_ipv6().then_some(IpAddr::V6(interface.gateway_ipv6));
    ipv4.into_iter().chain(ipv6)
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
