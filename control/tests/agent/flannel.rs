//! One node of ours and one of flannel: frames of either are understood by the other.

use std::time::Duration;

use ipnet::IpNet;
use millrace_control::api::model::{RouteReport, RouteTargetReport};
use millrace_engine::packet::Mac;

use crate::agent_process::AgentOptions;
use crate::cluster::{NODES, POOLS, UPLINK, Underlay, node_object, uplink_object_of};
use crate::kernel_peer;
use crate::ping::ping;
use crate::pod::Pod;
use crate::traffic;

pub(crate) fn a_kernel_in_flannels_layout_is_a_peer() {
    for kind in ["automatic", "af_xdp", "udp"] {
        exchange_with_a_kernel(kind);
    }
}

/// MAC address of the device that flannel made on node a, by chance, and that other nodes have learned.
pub(crate) const OWN_MAC: Mac = Mac([0x8e, 0x3d, 0x51, 0xc2, 0x07, 0x9a]);

/// The object of node a as flannel annotates it.
pub(crate) fn annotated(object: &str) -> String {
    let (name, [address, _]) = NODES[0];
    let annotations = format!(
        "flannel.alpha.coreos.com/backend-type: vxlan, flannel.alpha.coreos.com/public-ip: {address}, \
         flannel.alpha.coreos.com/backend-data: '{{\"VNI\":1,\"VtepMAC\":\"{OWN_MAC}\"}}'"
    );
    let plain = format!("metadata: {{name: {name}}}");
    assert!(object.contains(&plain), "{object}");
    object.replacen(&plain, &format!("metadata: {{name: {name}, annotations: {{{annotations}}}}}"), 1)
}

fn exchange_with_a_kernel(kind: &str) {
    let underlay = Underlay::create(1);
    let directory = &underlay.directory;
    let objects = [
        POOLS.to_owned(),
        annotated(&node_object(0)),
        uplink_object_of(0, UPLINK, &format!(", port: {kind}")),
        kernel_peer::object(),
    ];
    directory.write_objects("cluster.yaml", &objects.concat());
    let agent = underlay.start(0, AgentOptions::default());
    let other = kernel_peer::create(underlay.nodes[1].handle());
    let pod = Pod::create("pod", "a");
    let end = pod.add(directory);

    // The blocks just claimed come back from the store as objects, like those of other nodes.
    let of_us = |route: &&RouteReport| route.target == RouteTargetReport::Unreachable;
    let routes = agent.wait_for_routes(|routes| routes.iter().filter(of_us).count() == 2);
    for prefix in kernel_peer::PREFIXES {
        let found = routes.iter().find(|route| route.prefix == prefix).expect("a route to the peer's pods");
        let mac = kernel_peer::DEVICE_MAC.to_string();
        assert_eq!(found.target, RouteTargetReport::Tunnel { peer: NODES[1].1[0].to_owned(), mac });
    }
    let blocks = routes.iter().filter(of_us).map(|route| route.prefix.parse().expect("prefix"));
    let blocks: Vec<IpNet> = blocks.collect();
    let own = NODES[0].1[0].parse().expect("address");
    // The peer believes flannel's annotation, and its kernel takes no frame for another address.
    kernel_peer::lead(underlay.nodes[1].handle(), &blocks, own, OWN_MAC);

    traffic::check(&end, &other.endpoint);
    for ipv4 in [true, false] {
        for (from, to) in [(&end, &other.endpoint), (&other.endpoint, &end)] {
            let address = to.address(ipv4);
            assert!(ping(from, address, 56, Duration::from_secs(5)), "{} pings {address}", from.name);
        }
    }
    agent.assert_sound();
}
