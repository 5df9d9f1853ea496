//! Pods that must have a veth: the same pods by another device, and the host's kernel kept out of it.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use millrace_cni::spec::code;
use millrace_control::api::model::PortReport;
use millrace_control::kernel::{LinkChange, NamespaceHandle, Netlink};
use serde_json::json;

use crate::agent_process::AgentOptions;
use crate::cluster::Cluster;
use crate::host::{host, node, pings};
use crate::pod::Pod;
use crate::traffic;

fn pod_object(name: &str, annotations: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, annotations: {{{annotations}}}}}\n\
         spec: {{nodeName: a, containers: []}}\n"
    )
}

/// The switch's ends of pairs on a node.
fn far_ends(node: &NamespaceHandle) -> Vec<String> {
    let links = Netlink::open_in(node).expect("netlink").links().expect("links");
    links.into_iter().map(|link| link.name).filter(|name| name.starts_with("mrp")).collect()
}

/// Whether a socket of the node that listens everywhere gets what a pod broadcasts.
fn hears_broadcasts(node: &NamespaceHandle, pod: &traffic::Endpoint) -> bool {
    let listener = node.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("entered").expect("bound");
    listener.set_read_timeout(Some(Duration::from_millis(300))).expect("timeout");
    let port = listener.local_addr().expect("address").port();
    let sender = pod.udp(true);
    sender.set_broadcast(true).expect("allowed");
    sender.send_to(b"who is there", (Ipv4Addr::BROADCAST, port)).expect("sent");
    listener.recv_from(&mut [0; 64]).is_ok()
}

/// Whether the pod's kernel finds somebody else than the gateway behind the node's own address.
fn resolves(pod: &Pod, address: IpAddr) -> bool {
    let mut netlink = Netlink::open_in(pod.namespace.handle()).expect("netlink");
    let link = pod.interface().expect("interface").index;
    netlink.resolve_neighbour(link, address).expect("asked");
    std::thread::sleep(Duration::from_millis(300));
    let known = netlink.neighbours().expect("neighbours");
    known.iter().any(|neighbour| neighbour.address == address && neighbour.usable_mac().is_some())
}

pub(crate) fn a_pod_may_have_a_veth() {
    let options = AgentOptions { workers: 2, ..AgentOptions::default() };
    let Cluster { agents: [agent, other], underlay } = Cluster::create(1, options);
    let (directory, on_a) = (&underlay.directory, underlay.nodes[0].handle());
    let objects = [
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, annotations: {millrace.dev/interface: veth}}\n"
            .into(),
        pod_object("v1", "millrace.dev/interface: veth"),
        // As its namespace says.
        pod_object("v2", ""),
        pod_object("t1", "millrace.dev/interface: tap"),
        pod_object("wrong", "millrace.dev/interface: macvtap"),
    ];
    directory.write_objects("pods.yaml", &objects.concat());
    agent.wait_for_status(|status| status.problems.iter().any(|problem| problem.message.contains("macvtap")));
    let wrong = Pod::create("wrong", "a").call("ADD", directory);
    assert_eq!(wrong.code(), Some(u64::from(code::INVALID_CONFIGURATION)), "{}", wrong.document);

    let [v1, v2, t1, b1] =
        [("v1", "a"), ("v2", "a"), ("t1", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let added = v1.call("ADD", directory);
    let interfaces: Vec<_> = added.document["interfaces"].as_array().expect("a list").iter().collect();
    let named = |interface: &serde_json::Value| interface["name"].as_str().map(str::to_owned);
    assert_eq!(
        interfaces.iter().map(|one| named(one)).collect::<Vec<_>>(),
        [Some("eth0".to_owned()), far_ends(on_a).into_iter().next()]
    );
    assert_eq!(interfaces[1]["sandbox"], serde_json::Value::Null, "the host's end");
    let first =
        traffic::Endpoint { name: "v1".into(), namespace: v1.namespace.handle().clone(), addresses: added.addresses() };
    let ends = [&v2, &t1, &b1].map(|pod| pod.add(directory));
    let kind = |pod: &Pod| pod.interface().and_then(|link| link.kind);
    assert_eq!(
        (kind(&v1).as_deref(), kind(&v2).as_deref(), kind(&t1).as_deref()),
        (Some("veth"), Some("veth"), Some("tun"))
    );
    assert_eq!(far_ends(on_a).len(), 2);
    let ports: Vec<PortReport> = agent.client().show("ports").expect("ports");
    let port = ports.iter().find(|port| port.name == "default/v1").expect("the pod's port");
    assert_eq!((port.kind.as_str(), port.queues.len()), ("packet", 2), "{port:?}");

    let meets_everybody = || {
        ends.iter().for_each(|end| traffic::check(&first, end));
        for local in [host(&underlay, 0), node(&underlay, 0)] {
            traffic::check(&local, &first);
            pings(&first, &local);
        }
    };
    meets_everybody();
    assert!(!hears_broadcasts(on_a, &first), "a pod's broadcast reached a socket of the host");
    assert!(!resolves(&v1, "192.0.2.1".parse().expect("address")), "the host answered a pod's ARP");

    let prev = json!({"prevResult": added.document});
    let check = || v1.call_with("CHECK", directory, &prev);
    assert!(check().success, "{}", check().document);
    let far = far_ends(on_a);
    let mut netlink = Netlink::open_in(on_a).expect("netlink");
    let set_up = |netlink: &mut Netlink, up| {
        let change = LinkChange { up: Some(up), ..LinkChange::default() };
        far.iter().for_each(|name| netlink.change_link(name, &change).expect("changed"));
    };
    set_up(&mut netlink, false);
    let down = check();
    assert_eq!(down.code(), Some(u64::from(code::ATTACHMENT_BROKEN)));
    assert!(down.document["msg"].as_str().is_some_and(|text| text.contains("no carrier")), "{}", down.document);
    set_up(&mut netlink, true);
    assert!(check().success, "{}", check().document);

    let before = [&v1, &v2].map(|pod| pod.interface().map(|link| (link.index, link.mac, link.mtu)));
    agent.kill();
    let agent = underlay.start(0, options);
    assert_eq!([&v1, &v2].map(|pod| pod.interface().map(|link| (link.index, link.mac, link.mtu))), before);
    meets_everybody();
    assert!(!hears_broadcasts(on_a, &first), "a pod's broadcast reached a socket of the host");
    assert!(check().success, "{}", check().document);

    v1.delete(directory);
    v1.delete(directory);
    assert!(v1.interface().is_none());
    assert_eq!(far_ends(on_a).len(), 1);
    v1.add(directory);
    // A namespace that goes takes the pair along; its DEL comes late.
    let Pod { name, node, namespace } = v2;
    drop(namespace);
    let gone = Pod::create(&name, &node);
    gone.delete(directory);
    assert_eq!((far_ends(on_a).len(), agent.status().pods), (1, 2));
    [&v1, &t1, &b1].iter().for_each(|pod| pod.delete(directory));
    assert_eq!(far_ends(on_a), Vec::<String>::new());
    for agent in [&agent, &other] {
        let status = agent.status();
        assert!(status.problems.iter().all(|problem| problem.message.contains("macvtap")), "{status:#?}");
        assert_eq!(status.unaccounted_frames, 0);
    }
}

/// Units of segments cross from a veth to a TAP and back whole: fewer packets on the switch than the wire would take.
pub(crate) fn units_of_a_veth_stay_whole() {
    let Cluster { agents: [agent, _other], underlay } = Cluster::create(1, AgentOptions::default());
    let directory = &underlay.directory;
    let objects = [pod_object("v1", "millrace.dev/interface: veth"), pod_object("t1", "")];
    directory.write_objects("pods.yaml", &objects.concat());
    let [v1, t1] = ["v1", "t1"].map(|name| Pod::create(name, "a"));
    let [one, two] = [&v1, &t1].map(|pod| pod.add(directory));
    for ipv4 in [true, false] {
        let received = |name: &str| {
            let ports: Vec<PortReport> = agent.client().show("ports").expect("ports");
            ports.iter().find(|port| port.name == name).map(|port| port.received_frames).expect("port")
        };
        for (client, server) in [(&one, &two), (&two, &one)] {
            let before = received("default/v1");
            let bytes = 8 << 20;
            traffic::tcp_of(client, server, ipv4, bytes);
            let frames = received("default/v1") - before;
            assert!((frames as usize) < bytes / 1450 / 2, "{frames} frames for {bytes} bytes (IPv4: {ipv4})");
        }
    }
    // The pod may switch its own offloads off.
    let off = || Command::new("ethtool").args(["-K", "eth0", "tx", "off", "tso", "off", "gso", "off"]).output();
    if v1.namespace.handle().enter(off).expect("entered").is_ok_and(|output| output.status.success()) {
        traffic::check(&one, &two);
    }
    agent.assert_sound();
}
