//! What all backends have in common: two nodes joined by a veth pair, and three pods. Traffic goes from the client to the near
//! pod on its own node or to the far one on the other.

use std::net::{IpAddr, Ipv4Addr};

use millrace_control::demo::traffic::Endpoint;
use millrace_control::kernel::{LinkChange, Namespace, Netlink};

use crate::program::run;

/// The underlay's interface, in both nodes.
pub(crate) const UPLINK: &str = "uplink0";
/// MTU of the pods: the underlay's less the headers of VXLAN.
pub(crate) const POD_MTU: u32 = 1450;
/// Interface of every pod.
pub(crate) const POD_INTERFACE: &str = "eth0";
/// Port of the server that the Service which is dialled has.
pub(crate) const SERVER_PORT: u16 = 8080;

/// Offloads by which an interface leaves it to others to cut large units.
const SEGMENTATION: [&str; 5] =
    ["tx-udp-segmentation", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation", "tso", "gso"];

/// Whether the underlay's ends cut large units before they send them, as a card without offloads makes its kernel do; a veth
/// pair passes them on whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Segmentation offloads off.
    Cuts,
    /// As veth has them by default.
    PassesWhole,
}

impl Wire {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Wire::Cuts => "segmentation off",
            Wire::PassesWhole => "veth defaults",
        }
    }
}

/// Namespaces of two nodes and three pods.
pub(crate) struct Site {
    pub(crate) nodes: [Namespace; 2],
    pub(crate) pods: [Namespace; 3],
}

/// The pods by their part in a measurement.
#[derive(Clone)]
pub(crate) struct Ends {
    pub(crate) client: Endpoint,
    pub(crate) near: Endpoint,
    pub(crate) far: Endpoint,
}

/// The node of each pod.
pub(crate) const POD_NODES: [usize; 3] = [0, 0, 1];

impl Site {
    /// Makes the namespaces and joins the nodes.
    pub(crate) fn build(backend: &str) -> anyhow::Result<Site> {
        let unique = format!("millrace-compare-{}-{backend}", std::process::id());
        let named = |name: &str| Namespace::create_named(&format!("{unique}-{name}"));
        let site = Site { nodes: [named("a")?, named("b")?], pods: [named("client")?, named("near")?, named("far")?] };
        let [first, second] = &site.nodes;
        let ends = ((UPLINK, None), (UPLINK, Some(second.handle())));
        Netlink::open_in(first.handle())?.create_veth(ends.0, ends.1)?;
        for node in &site.nodes {
            let mut netlink = Netlink::open_in(node.handle())?;
            netlink.change_link("lo", &LinkChange::up())?;
            netlink.change_link(UPLINK, &LinkChange::up())?;
        }
        Ok(site)
    }

    /// Gives the underlay's ends their addresses.
    pub(crate) fn address_uplinks(&self) -> anyhow::Result<()> {
        for (number, node) in self.nodes.iter().enumerate() {
            let mut netlink = Netlink::open_in(node.handle())?;
            netlink.add_address(UPLINK, format!("{}/24", node_address(number)).parse()?)?;
        }
        Ok(())
    }

    /// Joins each pod to its node by a veth pair, and calls `port` with the node's end, which is down.
    pub(crate) fn join_pods(
        &self,
        mut port: impl FnMut(usize, &mut Netlink, &str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for (number, pod) in self.pods.iter().enumerate() {
            let name = format!("pod{number}");
            let mut netlink = Netlink::open_in(self.nodes[POD_NODES[number]].handle())?;
            netlink.create_veth((&name, None), (POD_INTERFACE, Some(pod.handle())))?;
            let mut inside = Netlink::open_in(pod.handle())?;
            inside.change_link("lo", &LinkChange::up())?;
            inside.change_link(POD_INTERFACE, &LinkChange { mtu: Some(POD_MTU), ..LinkChange::up() })?;
            netlink.change_link(&name, &LinkChange { mtu: Some(POD_MTU), ..LinkChange::up() })?;
            port(number, &mut netlink, &name)?;
        }
        Ok(())
    }

    /// The pods with these addresses.
    pub(crate) fn ends(&self, addresses: [IpAddr; 3]) -> Ends {
        let end = |number: usize, name: &str| Endpoint {
            name: name.to_owned(),
            namespace: self.pods[number].handle().clone(),
            addresses: vec![addresses[number]],
        };
        Ends { client: end(0, "client"), near: end(1, "near"), far: end(2, "far") }
    }

    /// Makes the underlay cut large units or pass them whole; either way its ends gather what they receive, as cards do. An interface that a program is attached to may refuse some of
    /// the offloads; then it has them off.
    pub(crate) fn set_wire(&self, wire: Wire) {
        let state = if wire == Wire::Cuts { "off" } else { "on" };
        for node in &self.nodes {
            let _ = run(node.handle(), &format!("ethtool -K {UPLINK} gro on"));
            for feature in SEGMENTATION {
                let _ = run(node.handle(), &format!("ethtool -K {UPLINK} {feature} {state}"));
            }
        }
    }
}

/// A node's address on the underlay.
pub(crate) fn node_address(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, node as u8 + 1)
}
