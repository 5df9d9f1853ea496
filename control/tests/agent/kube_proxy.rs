//! A node goes over from flannel and kube-proxy: connections that kube-proxy's rules began live on when the rules go.
//!
//! Node a is at first a kernel alone: a VXLAN device as flannel lays it out, and rules that translate as kube-proxy's do.
//! Node b stays such a node throughout, with the pod behind the Service.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use millrace_control::kernel::virtual_links::VxlanDevice;
use millrace_control::kernel::{LinkChange, NamespaceHandle, Netlink, Route, sysctl};

use crate::agent_process::{Agent, AgentOptions};
use crate::cluster::{NODES, POOLS, UPLINK, Underlay, uplink_object};
use crate::flannel::{OWN_MAC, annotated};
use crate::host::node;
use crate::kept::{Conversation, answer, while_held};
use crate::kernel_peer;
use crate::services::{PORT, service_at};
use crate::traffic::Endpoint;

const DEVICE: &str = "flannel.1";
/// Pods of node a.
const PREFIX: &str = "10.8.1.0/24";
const NODE_PORT: u16 = 30_087;
/// Connections that come by the uplink: none may end. Those of the node itself are held beside them and counted; the kernel
/// translates one anew, if it sends after the way has changed and before the rules are gone.
const NODE_PORT_CALLS: &str = "another node to a node port";
/// Connections of each sort.
const EACH: usize = 8;
const OPTIONS: AgentOptions = AgentOptions {
    workers: 1,
    uplink: true,
    more: "[services]\ncluster_ip_ranges = ['10.96.0.0/16', 'fd00:96::/112']\n[addresses]\nsource = 'pod-cidr'",
    under: &[],
};

fn cluster_ip(ipv4: bool) -> IpAddr {
    if ipv4 { "10.96.0.7" } else { "fd00:96::7" }.parse().expect("address")
}

fn balancer(ipv4: bool) -> IpAddr {
    if ipv4 { "203.0.113.7" } else { "2001:db8:9::7" }.parse().expect("address")
}

fn iptables(node: &NamespaceHandle, words: &str) {
    let run = || Command::new("iptables").args(words.split_whitespace()).output();
    let output = node.enter(run).expect("entered").expect("iptables; apt-get install iptables");
    assert!(output.status.success(), "iptables {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Node a as flannel lays it out.
fn lay_out_flannel(underlay: &Underlay) {
    let [own, peer] = [0, 1].map(|number: usize| underlay.nodes[number].handle());
    sysctl::write(own, &[("ipv4/ip_forward".to_owned(), "1")], false).expect("forwarding");
    let mut netlink = Netlink::open_in(own).expect("netlink");
    let [local, other] = [0, 1].map(|number: usize| NODES[number].1[0].parse().expect("address"));
    let device = VxlanDevice { name: DEVICE, vni: 1, local, underlay: UPLINK, port: 8472, mtu: 1450 };
    netlink.create_vxlan(&device).expect("vxlan");
    netlink.change_link(DEVICE, &LinkChange { mac: Some(OWN_MAC), ..LinkChange::up() }).expect("up");
    netlink.add_address(DEVICE, "10.8.1.0/32".parse().expect("prefix")).expect("address");
    netlink.append_vxlan_peer(DEVICE, kernel_peer::DEVICE_MAC, other).expect("forwarding entry");
    let link = netlink.existing_link(DEVICE).expect("device").index;
    let far: IpNet = kernel_peer::PREFIXES[0].parse().expect("prefix");
    netlink.set_permanent_neighbour(DEVICE, far.network(), kernel_peer::DEVICE_MAC).expect("neighbour");
    netlink.set_route(&Route::by_gateway(far, far.network(), link)).expect("route");
    // Its router, without which a kernel does not begin to call an address that it then translates.
    let up = netlink.existing_link(UPLINK).expect("device").index;
    netlink.set_route(&Route::by_gateway(ipnet::Ipv4Net::default().into(), other, up)).expect("route");
    kernel_peer::lead(peer, &[PREFIX.parse().expect("prefix")], local, OWN_MAC);
}

/// What kube-proxy writes for the Service, without its detours: `-A` adds it, `-D` takes it away.
fn rules(node: &NamespaceHandle, verb: &str, pod: IpAddr) {
    let own = NODES[0].1[0];
    let to = format!("-p tcp --dport 80 -j DNAT --to-destination {pod}:{PORT}");
    iptables(node, &format!("-t nat {verb} OUTPUT -d {} {to}", cluster_ip(true)));
    let to = format!("-p tcp --dport {NODE_PORT} -j DNAT --to-destination {pod}:{PORT}");
    iptables(node, &format!("-t nat {verb} PREROUTING -d {own} {to}"));
    iptables(node, &format!("-t nat {verb} POSTROUTING -d {pod} -p tcp --dport {PORT} -j MASQUERADE"));
}

pub(crate) fn connections_of_kube_proxy_live_on() {
    crate::root_tests::needs_program("iptables", "iptables");
    let underlay = Underlay::create(1);
    let [own, peer] = [0, 1].map(|number: usize| node(&underlay, number));
    let pod = kernel_peer::create(underlay.nodes[1].handle());
    lay_out_flannel(&underlay);
    let server = pod.endpoint.address(true);
    rules(underlay.nodes[0].handle(), "-A", server);

    let stop = AtomicBool::new(false);
    let listener = pod.endpoint.namespace.enter(|| TcpListener::bind((server, PORT))).expect("entered").expect("bound");
    std::thread::scope(|scope| {
        scope.spawn(|| answer(&listener, &stop));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let sorts = [
                (NODE_PORT_CALLS, &peer, SocketAddr::new(own.address(true), NODE_PORT)),
                ("the node to a ClusterIP", &own, SocketAddr::new(cluster_ip(true), 80)),
            ];
            let each = |(what, from, to)| (0..EACH).map(move |_| Conversation::open(what, from, to));
            let mut conversations: Vec<Conversation> = sorts.into_iter().flat_map(each).collect();
            let agent = goes_over(&underlay, &pod.endpoint, &mut conversations);
            for (what, from, to) in sorts {
                conversations.push(Conversation::open(what, from, to));
            }
            conversations.retain(|one| one.what == NODE_PORT_CALLS);
            let ((), held) = while_held(&mut conversations, || ());
            assert!(held.iter().all(|(_, outcome)| outcome.is_ok()), "old and new beside each other: {held:?}");
            agent.assert_sound();
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

/// The agent comes, the rules go, the device goes; every conversation is held meanwhile.
fn goes_over(underlay: &Underlay, pod: &Endpoint, conversations: &mut [Conversation]) -> Agent {
    let (name, [address, _]) = NODES[0];
    let object = format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n\
         spec: {{podCIDR: {PREFIX}, podCIDRs: [{PREFIX}, 'fd08:1::/64']}}\n\
         status: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n"
    );
    let service = service_at(7, "Cluster", &[(pod, "b")], |ipv4| [cluster_ip(ipv4), balancer(ipv4)]);
    let objects = [POOLS.to_owned(), annotated(&object), uplink_object(0), kernel_peer::object(), service];
    underlay.directory.write_objects("cluster.yaml", &objects.concat());
    let (agent, held) = while_held(conversations, || {
        let agent = underlay.start(0, OPTIONS);
        let end = Instant::now() + Duration::from_secs(10);
        while agent.status().connections_adopted < 2 * EACH as u64 {
            assert!(Instant::now() < end, "{:?}", agent.status());
            std::thread::sleep(Duration::from_millis(10));
        }
        // Steering begins right after it, and what the kernel still does ends.
        std::thread::sleep(Duration::from_secs(1));
        rules(underlay.nodes[0].handle(), "-D", pod.address(true));
        std::thread::sleep(Duration::from_secs(1));
        let mut netlink = Netlink::open_in(underlay.nodes[0].handle()).expect("netlink");
        netlink.delete_link(DEVICE).expect("deleted");
        agent
    });
    let came_by_the_uplink = held.iter().filter(|(what, _)| *what == NODE_PORT_CALLS);
    let ended: Vec<_> = came_by_the_uplink.filter_map(|(_, outcome)| outcome.as_ref().err()).collect();
    assert_eq!(ended, Vec::<&String>::new());
    let longest = held.iter().filter_map(|(_, outcome)| outcome.as_ref().ok()).max();
    let live = held.iter().filter(|(_, outcome)| outcome.is_ok()).count();
    println!("{live} of {} connections of kube-proxy live on; longest wait {longest:?}", held.len());
    agent.assert_sound();
    agent
}
