//! A station outside of the cluster: a namespace behind node b, whose kernel forwards between it and the nodes' link. No
//! agent knows of it.

use anyhow::Context;
use ipnet::IpNet;
use millrace_engine::port::af_xdp::set_transmit_checksum;

use super::objects::{NODES, UPLINK};
use super::traffic::Endpoint;
use crate::kernel::{LinkChange, Namespace, Netlink, Route, sysctl};

/// Name of the interface at both ends of its link.
const LINK: [&str; 2] = ["outside0", "eth0"];
/// Addresses of the router and of the station, of each family.
const ADDRESSES: [[&str; 2]; 2] = [["198.51.100.1/24", "198.51.100.2/24"], ["2001:db8:1::1/64", "2001:db8:1::2/64"]];
/// Networks of the nodes' link.
const NODES_LINK: [&str; 2] = ["192.0.2.0/24", "2001:db8::/64"];

/// The station.
#[derive(Debug)]
pub(super) struct Outside {
    /// Where its traffic starts.
    pub(super) endpoint: Endpoint,
    namespace: Namespace,
}

impl Outside {
    /// Joins it to the second node, and tells the first the way back.
    pub(super) fn join(namespace: Namespace, nodes: &[Namespace; 2]) -> anyhow::Result<Self> {
        let [first, router] = nodes;
        let setting = |path: &str| (path.to_owned(), "1");
        sysctl::write(router.handle(), &[setting("ipv4/ip_forward"), setting("ipv6/conf/all/forwarding")], false)?;
        let mut of_router = Netlink::open_in(router.handle())?;
        of_router.create_veth((LINK[0], None), (LINK[1], Some(namespace.handle())))?;
        let mut own = Netlink::open_in(namespace.handle())?;
        for (at, (name, holder, netlink)) in
            [(LINK[0], router, &mut of_router), (LINK[1], &namespace, &mut own)].into_iter().enumerate()
        {
            holder
                .handle()
                .enter(|| set_transmit_checksum(name, false))?
                .context("cannot switch checksum offload off")?;
            netlink.change_link(name, &LinkChange::up())?;
            ADDRESSES
                .iter()
                .try_for_each(|both| netlink.add_address(name, both[at].parse()?).map_err(anyhow::Error::from))?;
        }
        let mut of_first = Netlink::open_in(first.handle())?;
        let (uplink, link) = (of_first.existing_link(UPLINK)?.index, own.existing_link(LINK[1])?.index);
        let mut addresses = Vec::new();
        for (family, [near, far]) in ADDRESSES.into_iter().enumerate() {
            let [near, far] = [near.parse::<IpNet>()?, far.parse::<IpNet>()?];
            let node = [NODES[1].ipv4, NODES[1].ipv6][family].parse()?;
            own.set_route(&Route::by_gateway(NODES_LINK[family].parse()?, near.addr(), link))?;
            of_first.set_route(&Route::by_gateway(far.trunc(), node, uplink))?;
            addresses.push(far.addr());
        }
        let endpoint = Endpoint { name: "outside".to_owned(), namespace: namespace.handle().clone(), addresses };
        Ok(Self { endpoint, namespace })
    }

    /// Leaves it standing.
    pub(super) fn keep(self) {
        // The handle it gives is not needed any more.
        let _ = self.namespace.keep();
    }
}
